"""What it saves not to compute anything twice, and what it costs who computes all of it.

    uv run python -m benchmarks.reuse [--texts 400] [--queries 2000] [--rounds 3] [--workers 2]

all-MiniLM-L6-v2 in fp32, in one process, the sides in turn:

- an ingest of docstrings without a cache, with a new one in a file, and again with that one, which has it all;
- short queries, 64 at a time, of which 60 % were asked before: each computed; equal ones at the same time computed once
  (the default); and with a cache in a file.

Beside the time there is the processor time of the program and its workers: what else runs on the machine does not
change it.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from asyncembed import TextEmbedding
from benchmarks.common import machine, minilm, minilm_spec, processor_seconds, say, spread, texts

CONCURRENT = 64
REPEATED = 0.6


@dataclass
class Cost:
    """Of one side in one round, in seconds."""

    wall: float = 0.0
    processor: float = 0.0


@asynccontextmanager
async def opened(cost: Cost, workers: int, **options: Any) -> AsyncGenerator[TextEmbedding]:
    """A model, warm, whose cost is counted until it is closed: what is written then belongs to it."""
    stack = TextEmbedding(minilm_spec(), model_path=minilm()[0], workers=workers, threads=1, **options)
    async with stack as model:
        await model.embed([f"warm up {n}" for n in range(16)]).collect()
        before, began = processor_seconds(), time.perf_counter()
        yield model
        cost.wall, cost.processor = time.perf_counter() - began, processor_seconds() - before


def asked(count: int) -> list[str]:
    """Queries, of which `REPEATED` were asked before."""
    random = Random(7)
    found: list[str] = []
    for number in range(count):
        is_new = not found or random.random() >= REPEATED
        found.append(f"how do I sort list number {number} of a file?" if is_new else random.choice(found))
    return found


async def ingest(documents: Sequence[str], workers: int, **options: Any) -> Cost:
    cost = Cost()
    async with opened(cost, workers, **options) as model:
        async for _ in model.embed(documents):
            pass
    return cost


async def queries(sequence: Sequence[str], workers: int, **options: Any) -> Cost:
    cost = Cost()
    async with opened(cost, workers, **options) as model:
        rest: Iterator[str] = iter(sequence)

        async def ask() -> None:
            for query in rest:
                await model.embed_query(query)

        await asyncio.gather(*[ask() for _ in range(CONCURRENT)])
    return cost


async def one_round(arguments: argparse.Namespace, folder: Path) -> dict[str, Cost]:
    documents, sequence, workers = texts(arguments.texts), asked(arguments.queries), arguments.workers
    return {
        "ingest, no cache": await ingest(documents, workers),
        "ingest, new cache": await ingest(documents, workers, cache=folder / "ingest"),
        "ingest, warm cache": await ingest(documents, workers, cache=folder / "ingest"),
        "queries, each computed": await queries(sequence, workers, deduplicate=False),
        "queries, equal ones once": await queries(sequence, workers),
        "queries, with a cache": await queries(sequence, workers, cache=folder / "queries"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("texts", 400), ("queries", 2000), ("rounds", 3), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    say(machine())
    rounds = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(asyncio.run(one_round(arguments, Path(folder))))
    say(f"{'':26} {'seconds':>24} {'processor seconds':>24}   ratio to the first of its kind")
    for side in rounds[0]:
        first = next(name for name in rounds[0] if name.split(",")[0] == side.split(",")[0])
        ratios = [
            statistics.median(getattr(one[side], unit) / getattr(one[first], unit) for one in rounds)
            for unit in ("wall", "processor")
        ]
        walls, processors = ([getattr(one[side], unit) for one in rounds] for unit in ("wall", "processor"))
        say(f"{side:26} {spread(walls):>24} {spread(processors):>24}   {ratios[0]:.3f} and {ratios[1]:.3f}")


if __name__ == "__main__":
    main()
