"""Static models (model2vec) against fastembed, and against model2vec itself where it is installed.

    uv run python -m benchmarks.static_models [--texts 6000] [--rounds 5]

The model has the size of potion-base-8M: BERT's vocabulary, 256 components; its values are random, which changes no
time. fastembed runs in this process (its faster way) and with `parallel=2`; model2vec in this process, against one
worker of ours. The sides alternate in one run; the first round, in which our table of words fills, counts too.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import anyio
import numpy as np

from asyncembed import TextEmbedding
from benchmarks.common import machine, minilm, say, spread, texts

VOCABULARY = 30522
DIM = 256


def write_model(directory: Path) -> None:
    """A static model as model2vec saves it, with the tokenizer of all-MiniLM-L6-v2."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(minilm()[0] / name, directory / name)
    matrix = np.random.default_rng(0).standard_normal((VOCABULARY, DIM)).astype(np.float32)
    entry = {"dtype": "F32", "shape": [VOCABULARY, DIM], "data_offsets": [0, matrix.nbytes]}
    header = json.dumps({"embeddings": entry}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + matrix.tobytes())
    config = {"model_type": "model2vec", "normalize": True, "hidden_dim": DIM}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    documents = texts(arguments.texts)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_model(directory)
        os.environ["HF_HUB_OFFLINE"] = "1"
        from fastembed import TextEmbedding as Reference

        reference = Reference("minishlab/potion-base-8M", specific_model_path=name)

        async def fastembed() -> None:
            np.stack(list(reference.embed(documents)))

        async def fastembed_parallel() -> None:
            np.stack(list(reference.embed(documents, parallel=2)))

        async with AsyncExitStack() as stack:
            sides: dict[str, Callable[[], Awaitable[None]]] = {}
            for workers in (2, 1):
                model = await stack.enter_async_context(TextEmbedding(directory, workers=workers))
                sides[f"asyncembed, {workers} workers"] = collecting(model, documents)
            sides |= {"fastembed, in process": fastembed, "fastembed, parallel=2": fastembed_parallel}
            if find_spec("model2vec"):
                static = import_module("model2vec").StaticModel.from_pretrained(name)

                async def model2vec() -> None:
                    static.encode(documents)

                sides["model2vec, in process"] = model2vec
            say(f"{machine()}; {len(documents)} docstrings, {sum(map(len, documents)) / len(documents):.0f} characters")
            seconds: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(arguments.rounds):
                for side, run in sides.items():
                    start = time.perf_counter()
                    await run()
                    seconds[side].append(time.perf_counter() - start)
    ours = statistics.median(seconds["asyncembed, 2 workers"])
    for side, values in seconds.items():
        per_second = spread([len(documents) / value for value in values])
        say(f"{side:24} {per_second} texts/s; asyncembed with 2 workers takes {ours / statistics.median(values):.2f}")


def collecting(model: TextEmbedding, documents: list[str]) -> Callable[[], Awaitable[None]]:
    """A run over all documents."""

    async def run() -> None:
        await model.embed(documents).collect()

    return run


if __name__ == "__main__":
    anyio.run(main)
