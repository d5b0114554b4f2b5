"""Calls from threads without an event loop, against awaited ones and against fastembed.

    uv run python -m benchmarks.anywhere [--rounds 5] [--texts 300] [--seconds 5] [--before CHECKOUT]

all-MiniLM-L6-v2 in fp32; the ingest has docstrings cut at 512 tokens, the queries are short. Each query, and each
ingest, is awaited and made by a thread in turn, in one process, with two models that are both open; a ratio or
difference is that of neighbours in time. 16 threads that ask one query after the other run in a process per side, in
turn; their processor time, of all processes, says what a query costs on a machine that does other things, too. With
`--before`, the directory of another version of this repository, awaited calls are made with both versions in turn:
queries, an ingest, and the parent's processor time for 50,000 texts that cost nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import anyio
import psutil
from anyio import to_thread

from benchmarks.common import fastembed_directory, machine, minilm, minilm_spec, say, spread, texts
from benchmarks.trivial import TRIVIAL

ROOT = Path(__file__).parents[1]
QUERIES = [
    f"how do I {verb} a {noun}?" for verb in ("open", "close", "sort", "copy") for noun in ("file", "list", "socket")
]
QUERIES_PER_ROUND = 60
THREADS = 16
TRIVIAL_TEXTS = 50_000

Found = dict[str, list[float]]


# ---------------------------------------------------------------- awaited


async def await_queries(model: Any) -> float:
    """Milliseconds of one query: the median of some."""
    found = []
    for _, text in zip(range(QUERIES_PER_ROUND), cycle(QUERIES), strict=False):
        started = time.perf_counter()
        await model.embed_query(text)
        found.append(time.perf_counter() - started)
    return statistics.median(found) * 1e3


async def await_ingest(model: Any, documents: list[str]) -> float:
    """Texts per second."""
    started = time.perf_counter()
    async for _ in model.embed(iter(documents)):
        pass
    return len(documents) / (time.perf_counter() - started)


async def awaited(count: int, rounds: int) -> Found:
    """What this version of the package does, or another one that the program finds instead."""
    from asyncembed import TextEmbedding

    found: Found = defaultdict(list)
    documents, trivial_documents = texts(count), [f"text {number}" for number in range(TRIVIAL_TEXTS)]
    async with TextEmbedding(minilm_spec(), model_path=minilm()[0]) as model, TextEmbedding(TRIVIAL) as trivial:
        await await_queries(model)
        for _ in range(rounds):
            found["query_ms"].append(await await_queries(model))
            found["ingest"].append(await await_ingest(model, documents))
            started = time.process_time()
            await await_ingest(trivial, trivial_documents)
            found["trivial_us"].append((time.process_time() - started) / TRIVIAL_TEXTS * 1e6)
    return found


# ---------------------------------------------------------------- from a thread


def timed(call: Callable[[str], object], text: str) -> float:
    """Milliseconds, in the thread that calls."""
    started = time.perf_counter()
    call(text)
    return (time.perf_counter() - started) * 1e3


def block_ingest(model: Any, documents: list[str]) -> float:
    """As `await_ingest`."""
    started = time.perf_counter()
    for _ in model.embed(iter(documents)):
        pass
    return len(documents) / (time.perf_counter() - started)


async def in_turn(count: int, rounds: int) -> Found:
    """Awaited calls, and the same of a thread."""
    from asyncembed import TextEmbedding, sync

    found: Found = defaultdict(list)
    documents = texts(count)
    blocking = sync.TextEmbedding(minilm_spec(), model_path=minilm()[0])
    async with TextEmbedding(minilm_spec(), model_path=minilm()[0]) as model:
        await await_queries(model)
        await to_thread.run_sync(blocking.embed_documents, QUERIES)
        for _, text in zip(range(rounds * QUERIES_PER_ROUND), cycle(QUERIES), strict=False):
            started = time.perf_counter()
            await model.embed_query(text)
            found["awaited_ms"].append((time.perf_counter() - started) * 1e3)
            found["blocked_ms"].append(await to_thread.run_sync(timed, blocking.embed_query, text))
        for number in range(rounds):
            for is_awaited in (number % 2 == 0, number % 2 == 1):
                if is_awaited:
                    found["awaited_ingest"].append(await await_ingest(model, documents))
                else:
                    found["blocked_ingest"].append(await to_thread.run_sync(block_ingest, blocking, documents))
    await to_thread.run_sync(blocking.close)
    return found


# ---------------------------------------------------------------- 16 threads


def from_threads(query: Callable[[str], object], seconds: float) -> tuple[float, float]:
    """Queries per second, and the milliseconds of processor time that one takes."""

    def ask(texts: list[str]) -> int:
        for count, text in enumerate(cycle(texts)):
            if time.perf_counter() > end:
                return count
            query(text)
        raise AssertionError

    query("warm up")
    with ThreadPoolExecutor(THREADS) as executor:
        started, before = time.perf_counter(), processor_seconds()
        end = started + seconds
        # Each thread has its own: of equal ones that wait at the same time only one would be computed.
        count = sum(executor.map(ask, [[f"{text} ({number})" for text in QUERIES] for number in range(THREADS)]))
        return count / (time.perf_counter() - started), (processor_seconds() - before) / count * 1e3


def processor_seconds() -> float:
    """Of this process and its workers."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def our_threads(seconds: float) -> tuple[float, float]:
    from asyncembed.sync import TextEmbedding

    with TextEmbedding(minilm_spec(), model_path=minilm()[0]) as model:
        return from_threads(model.embed_query, seconds)


def fastembed_threads(seconds: float) -> tuple[float, float]:
    from fastembed import TextEmbedding

    model = TextEmbedding("sentence-transformers/all-MiniLM-L6-v2", specific_model_path=str(fastembed_directory()))
    return from_threads(lambda text: next(iter(model.query_embed(text))), seconds)


# ---------------------------------------------------------------- sides


def run_side(side: str, arguments: argparse.Namespace) -> object:
    match side:
        case "awaited":
            return anyio.run(awaited, arguments.texts, 1)
        case "in turn":
            return anyio.run(in_turn, arguments.texts, arguments.rounds)
        case "asyncembed":
            return our_threads(arguments.seconds)
        case _:
            return fastembed_threads(arguments.seconds)


def run(side: str, arguments: argparse.Namespace, checkout: Path = ROOT) -> Any:
    """Run a side in a process of its own, with the package that lies in `checkout`."""
    keywords = ["--texts", str(arguments.texts), "--rounds", str(arguments.rounds), "--seconds", str(arguments.seconds)]
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), "--side", side, *keywords],
        check=True,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )
    return json.loads(done.stdout.splitlines()[-1])


def ratio(found: Found, name: str, by: str) -> float:
    return statistics.median(one / other for one, other in zip(found[name], found[by], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(run_side(arguments.side, arguments)))
        return
    minilm()
    say(machine())
    say(f"medians (range) of {arguments.rounds} rounds; ratios and differences are medians of neighbours in time\n")
    found: Found = run("in turn", arguments)
    more = statistics.median(
        ours - theirs for ours, theirs in zip(found["blocked_ms"], found["awaited_ms"], strict=True)
    )
    for _ in range(arguments.rounds):
        for side in ("asyncembed", "fastembed"):
            per_second, processor_ms = run(side, arguments)
            found.setdefault(side, []).append(per_second)
            found.setdefault(f"{side} processor", []).append(processor_ms)
    say("| | from a thread | beside it | |\n|---|---|---|---|")
    say(f"| a query, ms | {spread(found['blocked_ms'])} | awaited {spread(found['awaited_ms'])} | {more:+.2f} ms |")
    say(
        f"| ingest, texts/s | {spread(found['blocked_ingest'])} | async for {spread(found['awaited_ingest'])} "
        f"| {ratio(found, 'blocked_ingest', 'awaited_ingest'):.1%} |"
    )
    say(
        f"| {THREADS} threads, queries/s | {spread(found['asyncembed'])} | fastembed {spread(found['fastembed'])} "
        f"| {ratio(found, 'asyncembed', 'fastembed'):.1f} times |"
    )
    say(
        f"| of these, processor ms a query | {spread(found['asyncembed processor'])} "
        f"| fastembed {spread(found['fastembed processor'])} "
        f"| 1/{ratio(found, 'fastembed processor', 'asyncembed processor'):.1f} |"
    )
    if arguments.before is not None:
        say_before(arguments)


def say_before(arguments: argparse.Namespace) -> None:
    """Awaited calls of this version and of another one."""
    now: Found = defaultdict(list)
    before: Found = defaultdict(list)
    for _ in range(arguments.rounds):
        for found, checkout in ((before, arguments.before), (now, ROOT)):
            for name, values in run("awaited", arguments, checkout).items():
                found[name] += values
    say("\n| awaited | now | before | ratio |\n|---|---|---|---|")
    for name, title in {
        "query_ms": "a query, ms",
        "ingest": "ingest, texts/s",
        "trivial_us": "a text that costs nothing, processor µs of the parent",
    }.items():
        quotient = statistics.median(one / other for one, other in zip(now[name], before[name], strict=True))
        say(f"| {title} | {spread(now[name])} | {spread(before[name])} | {quotient:.2f} |")


if __name__ == "__main__":
    main()
