"""The same ingest with onnxruntime, with OpenVINO in float32, and with OpenVINO in bfloat16 where the CPU has that.

Processor time of the workers, so that other programs on the machine change little; rounds in turn. `--base` takes an
encoder of BERT's base size with random weights, whose vectors say nothing but cost what those of a trained one do.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from asyncembed import TextEmbedding
from asyncembed.errors import OptionError
from asyncembed.runtime.safetensors import read_tensors
from benchmarks.common import machine, say, spread, texts
from examples.quickstart import demo_model
from tests.support.safetensors_files import write_tensors

SIDES: dict[str, dict[str, Any]] = {
    "onnxruntime": {},
    "openvino": {"runtime": "openvino"},
    "openvino bf16": {"runtime": "openvino", "precision": "bf16"},
}

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


def write_base(directory: Path) -> Path:
    """all-MiniLM-L6-v2 made as wide and deep as BERT base, of random weights."""
    shutil.copytree(demo_model(), directory, ignore=shutil.ignore_patterns("*.safetensors", "*.onnx", "*.bin"))
    config = json.loads((directory / "config.json").read_text("utf-8"))
    (directory / "config.json").write_text(json.dumps(config | BASE), "utf-8")
    pooling = directory / "1_Pooling" / "config.json"
    said = json.loads(pooling.read_text("utf-8"))
    pooling.write_text(json.dumps(said | {"word_embedding_dimension": BASE["hidden_size"]}), "utf-8")
    random = np.random.default_rng(0)
    wider = {config["hidden_size"]: BASE["hidden_size"], config["intermediate_size"]: BASE["intermediate_size"]}
    made: dict[str, Any] = {}
    with read_tensors(demo_model() / "model.safetensors") as tensors:
        for name in tensors:
            shape = [wider.get(size, size) for size in map(int, tensors[name].shape)]
            for layer in range(BASE["num_hidden_layers"]) if "layer.0." in name else (None,):
                own = name if layer is None else name.replace("layer.0.", f"layer.{layer}.")
                if "LayerNorm" in name:
                    made[own] = np.full(shape, name.endswith("weight"), np.float32)
                elif "layer." not in name or layer is not None:
                    made[own] = (random.standard_normal(shape) * 0.05).astype(np.float32)
    write_tensors(directory / "model.safetensors", made)
    return directory


async def opened(directory: Path, arguments: argparse.Namespace) -> dict[str, TextEmbedding]:
    """A model for each side that this CPU can run."""
    models = {}
    for name, options in SIDES.items():
        model = TextEmbedding(
            directory,
            workers=1,
            threads=1,
            interactive_workers=0,
            max_batch_tokens=arguments.max_batch_tokens,
            **options,
        )
        try:
            await model.open()
        except OptionError as error:
            say(f"not run: {name}: {error}")
            continue
        models[name] = model
    return models


async def main(arguments: argparse.Namespace) -> None:
    say(f"{machine()}; {arguments.texts} texts, one worker with one thread")
    with tempfile.TemporaryDirectory() as folder:
        directory = write_base(Path(folder, "base")) if arguments.base else demo_model()
        documents = texts(arguments.texts)

        models = await opened(directory, arguments)
        seconds: dict[str, list[float]] = {name: [] for name in models}
        vectors = {}
        for _ in range(arguments.rounds + 1):
            for name, model in models.items():
                before = cpu_seconds()
                vectors[name] = await model.embed(documents).collect()
                seconds[name].append(cpu_seconds() - before)
        usual = statistics.median(seconds["onnxruntime"][1:])
        for name, values in seconds.items():
            cosines = (vectors[name] * vectors["onnxruntime"]).sum(axis=1)
            ratio = usual / statistics.median(values[1:])
            say(
                f"{name}: {spread(values[1:])} s of processor time, {ratio:.2f} times as fast; "
                f"cosine {cosines.mean():.6f}, at least {cosines.min():.6f}"
            )
        for model in models.values():
            await model.aclose()


def cpu_seconds() -> float:
    """Of all workers together: those that wait take none."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(one.user + one.system for one in times)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", action="store_true")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-batch-tokens", type=int)
    asyncio.run(main(parser.parse_args()))
