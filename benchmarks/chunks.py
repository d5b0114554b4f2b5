"""Late chunking beside one pass over the same tokens, and beside chunks one by one that bring their neighbours along.

The model has the shape of the long-context models that are pooled by mean (768 wide, 8,192 positions), with random
weights and fewer layers, each of which costs the same: what it finds says nothing, and what it takes compares as theirs
does. Another model may be named. The sides take the documents in turn, so many at a time, in the same workers.
"""

import argparse
import asyncio
import json
import random
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from asyncembed import TextEmbedding
from asyncembed.embedders.base import opened_model
from asyncembed.encoders.chunking import Chunker, ChunkPlan
from asyncembed.encoders.registry import TokenSource, token_source
from asyncembed.files import default_cache_dir
from benchmarks.common import machine, processor_seconds, say, texts
from examples.quickstart import demo_model

LIMIT = 8192
CHUNK_TOKENS = 256
WIDTH = 768

FloatArray: TypeAlias = npt.NDArray[np.float32]
Side: TypeAlias = Callable[[Sequence[str]], Awaitable[int]]


def main() -> None:
    """Time the sides, and print what each takes of one pass."""
    options = _options()
    say(machine())
    asyncio.run(compare(options.model or long_model(options.layers), options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=4, help="documents of one turn")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--layers", type=int, default=4, help="of the model made here")
    parser.add_argument("--model", default=None, help="a model that is pooled by mean, instead of the one made here")
    return parser.parse_args()


def long_model(layers: int) -> Path:
    """A BERT for long texts, with the tokenizer of MiniLM: its directory, made once."""
    directory = default_cache_dir() / "benchmarks" / f"bert-{WIDTH}-{layers}-{LIMIT}"
    if (directory / "model.safetensors").exists():
        return directory
    shutil.copytree(
        demo_model(), directory, ignore=shutil.ignore_patterns("*.onnx*", "model.safetensors"), dirs_exist_ok=True
    )
    heads = WIDTH // 64
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": heads}
    _set(directory / "config.json", **shape, num_hidden_layers=layers, max_position_embeddings=LIMIT)
    _set(directory / "1_Pooling" / "config.json", word_embedding_dimension=WIDTH)
    _set(directory / "sentence_bert_config.json", max_seq_length=LIMIT)
    _set(directory / "tokenizer_config.json", model_max_length=LIMIT, max_length=LIMIT)
    _write(directory / "model.safetensors", _weights(layers))
    return directory


def _weights(layers: int) -> dict[str, FloatArray]:
    chance = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (30522, WIDTH),
        "embeddings.position_embeddings.weight": (LIMIT, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}."
        norms += [f"{prefix}attention.output.LayerNorm", f"{prefix}output.LayerNorm"]
        sizes = {f"attention.self.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
        sizes |= {"attention.output.dense": (WIDTH, WIDTH)}
        sizes |= {"intermediate.dense": (4 * WIDTH, WIDTH), "output.dense": (WIDTH, 4 * WIDTH)}
        shapes |= {f"{prefix}{name}.weight": size for name, size in sizes.items()}
    tensors = {name: (chance.standard_normal(shape) * 0.02).astype(np.float32) for name, shape in shapes.items()}
    biases = {
        f"{name.removesuffix('.weight')}.bias": len(tensor) for name, tensor in tensors.items() if "layer." in name
    }
    tensors |= {name: np.zeros(size, np.float32) for name, size in biases.items()}
    tensors |= {f"{norm}.weight": np.ones(WIDTH, np.float32) for norm in norms}
    return tensors | {f"{norm}.bias": np.zeros(WIDTH, np.float32) for norm in norms}


def _set(path: Path, **values: int) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), encoding="utf-8")


def _write(path: Path, tensors: Mapping[str, FloatArray]) -> None:
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    raw = json.dumps(header).encode()
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).tobytes())
    temporary.replace(path)


def documents(count: int) -> list[str]:
    """Prose of 2,000 to 8,000 tokens, about four characters each."""
    prose = texts(2000)
    chance = random.Random(1)
    found: list[str] = []
    for _ in range(count):
        text, wanted = "", chance.randint(2000, 7600) * 4
        while len(text) < wanted:
            text += chance.choice(prose) + "\n\n"
        found.append(text[:wanted])
    return found


async def compare(name: str | Path, options: argparse.Namespace) -> None:
    """Take the documents in turn with every side, and print medians of each side's time by that of one pass."""
    async with TextEmbedding(name, workers=options.workers, threads=options.threads) as model:
        neighbourhoods: dict[str, list[tuple[int, int]]] = {}

        async def one_pass(some: Sequence[str]) -> int:
            return len(await model.embed(some).collect())

        async def late(some: Sequence[str]) -> int:
            return len(await model.embed_chunks(some, chunk_tokens=CHUNK_TOKENS).collect())

        async def late_sentences(some: Sequence[str]) -> int:
            stream = model.embed_chunks(some, chunk_tokens=CHUNK_TOKENS, boundaries="sentences")
            return len(await stream.collect())

        async def with_neighbours(some: Sequence[str]) -> int:
            # Each as long as three, so that none is cut, whatever its words are without those before.
            stream = model.embed_chunks(
                some, mode="plain", chunk_tokens=4 * CHUNK_TOKENS, boundaries=lambda text: neighbourhoods[text]
            )
            return len(await stream.collect())

        async def plain(some: Sequence[str]) -> int:
            return len(await model.embed_chunks(some, mode="plain", chunk_tokens=CHUNK_TOKENS).collect())

        sides: dict[str, Side] = {
            "one pass over the same tokens": one_pass,
            "late chunks": late,
            "late chunks, by sentences": late_sentences,
            "chunks one by one, each with its two neighbours": with_neighbours,
            "chunks one by one, without context": plain,
        }
        corpus = documents(options.documents)
        lengths = [await model.token_count([text], truncated=False) for text in corpus]
        chunker = Chunker(ChunkPlan(is_late=False, chunk_tokens=CHUNK_TOKENS), _source(model), LIMIT, "")
        for text in corpus:
            spans = [place[:2] for piece in chunker.pieces(text) for place in piece.places]
            pairs = zip([spans[0], *spans[:-1]], [*spans[1:], spans[-1]], strict=True)
            neighbourhoods[text] = [(before[0], after[1]) for before, after in pairs]
        say(f"{len(corpus)} documents of {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} together")
        await measure(sides, corpus, options.at_once)


def _source(model: TextEmbedding) -> TokenSource:
    opened, _ = opened_model(model)
    return token_source(opened.config)


async def measure(sides: Mapping[str, Side], corpus: Sequence[str], at_once: int) -> None:
    """Give each side the same documents, a few at a time, and print how its time compares with the first's."""
    for side in sides.values():
        await side(corpus[:1])
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    counts = dict.fromkeys(sides, 0)
    turns = list(sides)
    for start in range(0, len(corpus), at_once):
        for name in turns:
            began, before = time.perf_counter(), processor_seconds()
            counts[name] += await sides[name](corpus[start : start + at_once])
            seconds[name].append((time.perf_counter() - began, processor_seconds() - before))
        turns.append(turns.pop(0))  # whoever comes after another may find its caches
    first = next(iter(sides))
    for name, taken in seconds.items():
        clock, processor = (sum(column) for column in zip(*taken, strict=True))
        ratios = [mine[1] / pass_[1] for mine, pass_ in zip(taken, seconds[first], strict=True)]
        all_clock, all_processor = (sum(column) for column in zip(*seconds[first], strict=True))
        say(
            f"{name}: {counts[name]} results, {clock:.1f} s ({clock / all_clock:.3f} of one pass), processor "
            f"{processor:.1f} s ({processor / all_processor:.3f}; median of the turns {statistics.median(ratios):.3f}, "
            f"{min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
