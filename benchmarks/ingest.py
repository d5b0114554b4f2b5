"""Ingest of mixed texts, against fastembed as its users run it.

    uv run python -m benchmarks.ingest [--texts 1000] [--rounds 3] [--chart ingest.svg]

all-MiniLM-L6-v2 in fp32, docstrings of the standard library cut at 512 tokens. Each side runs in a process of its own,
in turn; the time is that of the ingest alone (no loading), the memory the peak of the whole process tree (proportional
set size: pages that processes share count once).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import numpy as np

from benchmarks.charts import IngestFigures, ingest_chart
from benchmarks.common import fastembed_directory, machine, minilm, minilm_spec, say, texts, watch_memory

FASTEMBED_SIDES: dict[str, dict[str, int]] = {
    "fastembed, default": {},
    "fastembed, batch_size=8": {"batch_size": 8},
    "fastembed, batch_size=32": {"batch_size": 32},
    "fastembed, batch_size=256": {"batch_size": 256},
    "fastembed, parallel=2": {"parallel": 2},
}
OURS = "asyncembed, default"


def run_fastembed(documents: list[str], keywords: dict[str, int]) -> np.ndarray:
    from fastembed import TextEmbedding

    model = TextEmbedding("sentence-transformers/all-MiniLM-L6-v2", specific_model_path=str(fastembed_directory()))
    list(model.embed(documents[:2]))
    return measured(lambda: np.array(list(model.embed(documents, **keywords))))


def run_asyncembed(documents: list[str]) -> np.ndarray:
    from asyncembed import TextEmbedding

    async def main() -> np.ndarray:
        async with TextEmbedding(minilm_spec(), model_path=minilm()[0]) as model:
            await model.embed_query("warm")
            started = time.perf_counter()
            vectors = [vector async for vector in model.embed(documents)]
            seconds = time.perf_counter() - started
            stats = model.stats()
            report(seconds, padding=stats.padding_share, batch_ms=stats.batch_seconds * 1e3)
            return np.array(vectors)

    return anyio.run(main)


def measured(work: Callable[[], np.ndarray]) -> np.ndarray:
    started = time.perf_counter()
    result = work()
    report(time.perf_counter() - started)
    return result


def report(seconds: float, **more: float) -> None:
    print(json.dumps({"seconds": seconds, **more}), flush=True)


def run_side(side: str, count: int) -> None:
    """In the side's own process."""
    documents = texts(count)
    with watch_memory() as peak:
        vectors = run_asyncembed(documents) if side == OURS else run_fastembed(documents, FASTEMBED_SIDES[side])
    print(json.dumps({"peak_bytes": peak.size_bytes, "sum": float(np.abs(vectors).sum())}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chart", type=Path, help="draw what was measured")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments.side, arguments.texts)
        return
    minilm()
    say(machine())
    sides = [OURS, *FASTEMBED_SIDES]
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side in sides:
            command = [sys.executable, "-m", "benchmarks.ingest", "--side", side, "--texts", str(arguments.texts)]
            lines = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.splitlines()
            merged: dict[str, float] = {}
            for line in lines:
                merged |= json.loads(line)
            found[side].append(merged)
    ours = statistics.median(run["seconds"] for run in found[OURS])
    our_peak = statistics.median(run["peak_bytes"] for run in found[OURS])
    say(f"{arguments.texts} docstrings, {arguments.rounds} rounds, medians (range)\n")
    say("| side | seconds | texts/s | time / ours | peak MB | peak / ours |\n|---|---|---|---|---|---|")
    drawn: dict[str, IngestFigures] = {}
    for side, runs in found.items():
        seconds = [run["seconds"] for run in runs]
        median, peak = statistics.median(seconds), statistics.median(run["peak_bytes"] for run in runs)
        drawn[side] = IngestFigures(arguments.texts / median, peak / 1e6)
        say(
            f"| {side} | {median:.1f} ({min(seconds):.1f} to {max(seconds):.1f}) | {arguments.texts / median:.0f} "
            f"| {median / ours:.1f} | {peak / 1e6:.0f} | {peak / our_peak:.1f} |"
        )
    if arguments.chart:
        note = f"{arguments.texts} docstrings, all-MiniLM-L6-v2 in fp32; {machine()}"
        arguments.chart.write_text(ingest_chart(drawn, note), encoding="utf-8")
    run = found[OURS][-1]
    say(f"\nasyncembed: padding {run['padding']:.1%} of the computed tokens, median batch {run['batch_ms']:.0f} ms")


if __name__ == "__main__":
    main()
