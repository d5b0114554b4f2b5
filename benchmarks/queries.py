"""Queries in the middle of an ingest, and many at once, against fastembed behind `asyncio.to_thread`.

    uv run python -m benchmarks.queries [--seconds 20] [--rounds 3] [--chart queries.svg] [--before CHECKOUT] [--ours]

all-MiniLM-L6-v2 in fp32. Each side runs in a process of its own, in turn, and does four things: 20 short queries a
second alone; an ingest of docstrings (cut at 512 tokens) alone; both together; and 64 concurrent queries, again and
again. A ticker on the event loop measures by how much it is late meanwhile. With `--before`, the directory of
another version of this repository, that is a side, too; with `--ours` there is no other library.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.charts import QueryFigures, queries_chart
from benchmarks.common import fastembed_directory, machine, minilm, minilm_spec, say, texts

if TYPE_CHECKING:
    from asyncembed import OptionKeywords

ROOT = Path(__file__).resolve().parent.parent
BEFORE = "the version before"

QUERIES = [
    f"how do I {verb} a {noun}?" for verb in ("open", "close", "sort", "copy") for noun in ("file", "list", "socket")
]
QUERIES_PER_SECOND = 20
CONCURRENT = 64
TICK_SECONDS = 0.005

Query = Callable[[str], Awaitable[object]]
Ingest = Callable[[Iterator[str], Callable[[], bool]], Awaitable[int]]
"""Embeds texts until told to stop; gives how many it embedded."""


async def measure(query: Query, ingest: Ingest, seconds: float) -> dict[str, float]:
    """All four, on one side."""
    documents = texts(2000)
    await query("warm up")
    found: dict[str, float] = {}

    async def ingest_for(duration: float) -> float:
        end = time.perf_counter() + duration
        started = time.perf_counter()
        count = await ingest(cycle(documents), lambda: time.perf_counter() > end)
        return count / (time.perf_counter() - started)

    own = await paced(query, seconds / 2)
    found["own_ms"], found["own_p99_ms"] = statistics.median(own) * 1e3, p99(own) * 1e3
    async with ticker() as lags:
        found["ingest_alone"] = await ingest_for(seconds)
    found["lag_alone_ms"] = p99(lags) * 1e3
    async with ticker() as lags:
        task = asyncio.create_task(ingest_for(seconds))
        await asyncio.sleep(1)
        values = await paced(query, seconds - 1)
        found["ingest_with_queries"] = await task
    found["lag_ms"] = p99(lags) * 1e3
    found["p50_ms"], found["p99_ms"] = statistics.median(values) * 1e3, p99(values) * 1e3
    found["times_own"] = found["p99_ms"] / found["own_p99_ms"]
    found["kept"] = found["ingest_with_queries"] / found["ingest_alone"] * 100
    rounds, burst = 0, []
    async with ticker() as lags:
        started = time.perf_counter()
        while time.perf_counter() - started < seconds / 4:
            burst += await asyncio.gather(
                *[timed(query, text) for text, _ in zip(cycle(QUERIES), range(CONCURRENT), strict=False)]
            )
            rounds += 1
        found["burst_per_second"] = rounds * CONCURRENT / (time.perf_counter() - started)
    found["burst_p99_ms"] = p99(burst) * 1e3
    found["burst_lag_ms"] = p99(lags) * 1e3
    return found


async def paced(query: Query, seconds: float) -> list[float]:
    """How long each of 20 queries a second takes, whatever the others do."""
    latencies: list[asyncio.Task[float]] = []
    for text, _ in zip(cycle(QUERIES), range(round(QUERIES_PER_SECOND * seconds)), strict=False):
        latencies.append(asyncio.create_task(timed(query, text)))
        await asyncio.sleep(1 / QUERIES_PER_SECOND)
    return await asyncio.gather(*latencies)


async def timed(query: Query, text: str) -> float:
    started = time.perf_counter()
    await query(text)
    return time.perf_counter() - started


def p99(values: list[float]) -> float:
    return float(np.percentile(values, 99))


@asynccontextmanager
async def ticker() -> AsyncIterator[list[float]]:
    """How late each tick comes, in seconds."""
    lags: list[float] = []

    async def tick() -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            lags.append(time.perf_counter() - started - TICK_SECONDS)

    task = asyncio.create_task(tick())
    try:
        yield lags
    finally:
        task.cancel()


async def asyncembed_side(seconds: float, **options: int) -> dict[str, float]:
    from asyncembed import Options, TextEmbedding

    keywords: OptionKeywords = {"model_path": minilm()[0], **options}  # type: ignore[typeddict-item]
    if "deduplicate" in Options.__annotations__:  # of which the version before may know nothing
        keywords["deduplicate"] = False
    async with TextEmbedding(minilm_spec(), **keywords) as model:

        async def ingest(source: Iterator[str], is_over: Callable[[], bool]) -> int:
            count = 0
            async with model.embed(source) as stream:
                async for _ in stream:
                    count += 1
                    if is_over():
                        break
            return count

        found = await measure(model.embed_query, ingest, seconds)
        found["batch_ms"] = model.stats().batch_seconds * 1e3
        return found


async def fastembed_side(seconds: float) -> dict[str, float]:
    from fastembed import TextEmbedding

    model = TextEmbedding("sentence-transformers/all-MiniLM-L6-v2", specific_model_path=str(fastembed_directory()))

    def embed_one(text: str) -> object:
        return next(iter(model.query_embed(text)))

    async def query(text: str) -> object:
        return await asyncio.to_thread(embed_one, text)

    async def ingest(source: Iterator[str], is_over: Callable[[], bool]) -> int:
        # As an async program streams with it: batches in a thread. 32 is its best size on this corpus; see ingest.py.
        count = 0
        while not is_over():
            batch = [next(source) for _ in range(32)]
            await asyncio.to_thread(lambda texts: list(model.embed(texts, batch_size=32)), batch)
            count += len(batch)
        return count

    return await measure(query, ingest, seconds)


SIDES: dict[str, Callable[[float], Coroutine[None, None, dict[str, float]]]] = {
    "asyncembed": asyncembed_side,
    "asyncembed, interactive_workers=0": partial(asyncembed_side, interactive_workers=0),
    "fastembed in to_thread": fastembed_side,
}
COLUMNS = {
    "own_ms": "a query alone, p50 ms",
    "own_p99_ms": "a query alone, p99 ms",
    "ingest_alone": "ingest alone, texts/s",
    "ingest_with_queries": "ingest with queries, texts/s",
    "p50_ms": "query in an ingest, p50 ms",
    "p99_ms": "query in an ingest, p99 ms",
    "times_own": "p99 in an ingest, by p99 alone",
    "kept": "ingest with queries, % of that alone",
    "batch_ms": "median batch, ms",
    "burst_per_second": "64 at once, queries/s",
    "burst_p99_ms": "64 at once, p99 ms",
    "lag_alone_ms": "loop lag p99 in the ingest, ms",
    "lag_ms": "loop lag p99 with queries, ms",
    "burst_lag_ms": "loop lag p99 in the bursts, ms",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chart", type=Path, help="draw what was measured")
    parser.add_argument("--before", type=Path, help="a side of its own: the package that lies in another checkout")
    parser.add_argument("--ours", action="store_true", help="no other library")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(asyncio.run(SIDES[arguments.side](arguments.seconds))))
        return
    minilm()
    say(machine())
    sides = {side: ROOT for side in SIDES if not arguments.ours or side.startswith("asyncembed")}
    if arguments.before is not None:
        sides = {BEFORE: arguments.before, **sides}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side, checkout in sides.items():
            found[side].append(run("asyncembed" if side == BEFORE else side, arguments.seconds, checkout))
    say(f"\nmedians of {arguments.rounds} rounds of {arguments.seconds:.0f} s (in brackets: by the last column's)\n")
    say(f"| | {' | '.join(sides)} |\n|---|{'---|' * len(sides)}")
    for key, title in COLUMNS.items():
        reference = statistics.median(run.get(key, 0.0) for run in list(found.values())[-1])
        cells = []
        for runs in found.values():
            value = statistics.median(run.get(key, 0.0) for run in runs)
            ratio = f" ({value / reference:.2f})" if reference and value != reference else ""
            cells.append(f"{value:.1f}{ratio}" if value else "")
        say(f"| {title} | {' | '.join(cells)} |")
    if arguments.chart:
        drawn = {side: _figures(runs) for side, runs in found.items()}
        note = f"all-MiniLM-L6-v2 in fp32; {machine()}"
        arguments.chart.write_text(queries_chart(drawn, note), encoding="utf-8")


def run(side: str, seconds: float, checkout: Path) -> dict[str, float]:
    """Run a side in a process of its own, with the package that lies in `checkout`."""
    command = [sys.executable, str(Path(__file__)), "--side", side, "--seconds", str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8", env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _figures(runs: list[dict[str, float]]) -> QueryFigures:
    p50, p99, rate = (
        statistics.median(run[key] for run in runs) for key in ("p50_ms", "p99_ms", "ingest_with_queries")
    )
    return QueryFigures(p50, p99, rate)


if __name__ == "__main__":
    main()
