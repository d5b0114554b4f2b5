"""Late chunking beside one pass over the same tokens, and beside chunks one by one that bring their neighbours along.

The model has the shape of all-MiniLM-L6-v2 and its weights, with positions for 8,192 tokens that repeat those of its
512: what it finds says nothing, and it takes the time of one that was trained for that. Another model may be named.
The sides take the documents in turn, so many at a time, in workers of one pool.
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

import numpy as np
import psutil

from asyncembed import TextEmbedding
from asyncembed.files import default_cache_dir
from asyncembed.runtime.safetensors import read_tensors
from benchmarks.common import machine, say, texts
from examples.quickstart import demo_model

LIMIT = 8192
CHUNK_TOKENS = 256
CONTEXT_TOKENS = 256
"""On either side of a chunk that is embedded by itself: about what its neighbours are."""

Side = Callable[[Sequence[str]], Awaitable[int]]


def main() -> None:
    """Time the sides, and print what each takes of one pass."""
    options = _options()
    say(machine())
    asyncio.run(compare(options.model or long_model(), options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=4, help="documents of one turn")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--model", default=None, help="a model that is pooled by mean, instead of the one made here")
    return parser.parse_args()


def long_model() -> Path:
    """MiniLM with positions for long texts: its directory, made once."""
    directory = default_cache_dir() / "benchmarks" / f"minilm-{LIMIT}"
    if (directory / "model.safetensors").exists():
        return directory
    shutil.copytree(demo_model(), directory, ignore=shutil.ignore_patterns("*.onnx*", "model.safetensors"))
    tensors = dict(read_tensors(demo_model() / "model.safetensors"))
    for name, tensor in tensors.items():
        if name.endswith("position_embeddings.weight"):
            tensors[name] = np.tile(tensor, (LIMIT // len(tensor), 1))
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.dtype == np.float32}
    _set(directory / "config.json", max_position_embeddings=LIMIT)
    _set(directory / "sentence_bert_config.json", max_seq_length=LIMIT)
    _set(directory / "tokenizer_config.json", model_max_length=LIMIT, max_length=LIMIT)
    _write(directory / "model.safetensors", tensors)
    return directory


def _set(path: Path, **values: int) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), encoding="utf-8")


def _write(path: Path, tensors: Mapping[str, "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"]) -> None:
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    raw = json.dumps(header).encode()
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(map(bytes, map(np.ravel, tensors.values()))))
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

        async def one_pass(some: Sequence[str]) -> int:
            return len(await model.embed(some).collect())

        async def late(some: Sequence[str]) -> int:
            return len(await model.embed_chunks(some, chunk_tokens=CHUNK_TOKENS).collect())

        async def late_sentences(some: Sequence[str]) -> int:
            stream = model.embed_chunks(some, chunk_tokens=CHUNK_TOKENS, boundaries="sentences")
            return len(await stream.collect())

        async def with_neighbours(some: Sequence[str]) -> int:
            size = CHUNK_TOKENS + 2 * CONTEXT_TOKENS
            stream = model.embed_chunks(some, mode="plain", chunk_tokens=size, overlap=2 * CONTEXT_TOKENS)
            return len(await stream.collect())

        async def plain(some: Sequence[str]) -> int:
            return len(await model.embed_chunks(some, mode="plain", chunk_tokens=CHUNK_TOKENS).collect())

        sides: dict[str, Side] = {
            "one pass over the same tokens": one_pass,
            "late chunks": late,
            "late chunks, by sentences": late_sentences,
            "chunks one by one, with 256 tokens of context on either side": with_neighbours,
            "chunks one by one, without context": plain,
        }
        corpus = documents(options.documents)
        lengths = [await model.token_count([text], truncated=False) for text in corpus]
        say(f"{len(corpus)} documents of {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} together")
        await measure(sides, corpus, options.at_once)


async def measure(sides: Mapping[str, Side], corpus: Sequence[str], at_once: int) -> None:
    """Give each side the same documents, a few at a time, and print how its time compares with the first's."""
    for side in sides.values():
        await side(corpus[:1])
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    counts = dict.fromkeys(sides, 0)
    turns = list(sides)
    for start in range(0, len(corpus), at_once):
        for name in turns:
            began, before = time.perf_counter(), _processor_seconds()
            counts[name] += await sides[name](corpus[start : start + at_once])
            seconds[name].append((time.perf_counter() - began, _processor_seconds() - before))
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


def _processor_seconds() -> float:
    """Of this process and its workers."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(one.user + one.system for one in times)


if __name__ == "__main__":
    main()
