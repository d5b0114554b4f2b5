"""Late interaction against fastembed: a vector per token of mixed texts.

    uv run python -m benchmarks.late_interaction [--texts 300] [--queries 100] [--rounds 3]

The graph and weights are those of all-MiniLM-L6-v2 in fp32, run as a ColBERT of 384 dimensions: the work is that of
answerai-colbert-small-v1, which has the same size. Documents are docstrings of the standard library, cut at 512 tokens;
queries are their first words. Each side runs in a process of its own, in turn; the time is that of the embedding alone
(no loading), the memory the peak of the whole process tree (PSS).
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import anyio
import numpy as np
import onnx
from onnx import helper

from asyncembed import LateInteractionTextEmbedding
from asyncembed.catalogue.lookup import require_model
from benchmarks.common import fastembed_directory, machine, say, texts, watch_memory

NAME = "answerdotai/answerai-colbert-small-v1"
QUERY_WORDS = 8
OURS = "asyncembed, default"
FASTEMBED_SIDES: dict[str, dict[str, int]] = {
    "fastembed, default": {},
    "fastembed, batch_size=8": {"batch_size": 8},
    "fastembed, parallel=2": {"parallel": 2},
}


def model_directory() -> Path:
    """all-MiniLM-L6-v2 laid out as a ColBERT model; its graph makes the token types, as those of ColBERT do."""
    source = fastembed_directory()
    target = Path(tempfile.gettempdir()) / "asyncembed-benchmark-colbert"
    if target.exists():
        return target
    building = Path(tempfile.mkdtemp(dir=target.parent))
    for name in ("config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, building / name)
    model = onnx.load(str(source / "model.onnx"))
    graph = model.graph
    types = next((value for value in graph.input if value.name == "token_type_ids"), None)
    if types is not None:
        graph.input.remove(types)
        graph.node.insert(0, helper.make_node("Sub", ["input_ids", "input_ids"], ["token_type_ids"]))
    file = require_model(NAME, "late_interaction").model_file
    assert file is not None
    onnx.save(model, str(building / file))
    building.rename(target)
    return target


def inputs(documents: int, queries: int) -> tuple[list[str], list[str]]:
    found = texts(max(documents, queries))
    return found[:documents], [" ".join(text.split()[:QUERY_WORDS]) for text in found[:queries]]


def run_fastembed(documents: list[str], queries: list[str], keywords: dict[str, int]) -> float:
    from fastembed import LateInteractionTextEmbedding as Reference

    model = Reference(NAME, specific_model_path=str(model_directory()))
    list(model.embed(documents[:2]))
    started = time.perf_counter()
    matrices = list(model.embed(documents, **keywords))
    document_seconds = time.perf_counter() - started
    started = time.perf_counter()
    matrices += list(model.query_embed(queries))
    report(documents=document_seconds, queries=time.perf_counter() - started)
    return checksum(matrices)


async def run_asyncembed(documents: list[str], queries: list[str]) -> float:
    spec = replace(require_model(NAME, "late_interaction"), dim=384)
    async with LateInteractionTextEmbedding(spec, model_path=model_directory()) as model:
        await model.embed_query("warm")
        started = time.perf_counter()
        matrices = [matrix async for matrix in model.embed(documents)]
        document_seconds = time.perf_counter() - started
        started = time.perf_counter()
        matrices += [matrix async for matrix in model.query_embed(queries)]
        report(documents=document_seconds, queries=time.perf_counter() - started)
        return checksum(matrices)


def checksum(matrices: Iterable[np.ndarray]) -> float:
    """Rows and magnitudes: equal sides have equal sums."""
    return sum(len(matrix) + float(np.abs(matrix).mean()) for matrix in matrices)


def report(**values: float) -> None:
    print(json.dumps(values), flush=True)


def run_side(side: str, documents: list[str], queries: list[str]) -> None:
    """In the side's own process."""
    with watch_memory() as peak:
        total = (
            anyio.run(run_asyncembed, documents, queries)
            if side == OURS
            else run_fastembed(documents, queries, FASTEMBED_SIDES[side])
        )
    report(peak_bytes=peak.size_bytes, checksum=total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments.side, *inputs(arguments.texts, arguments.queries))
        return
    model_directory()
    say(machine())
    found: dict[str, list[dict[str, float]]] = {side: [] for side in (OURS, *FASTEMBED_SIDES)}
    for _ in range(arguments.rounds):
        for side, runs in found.items():
            command = [sys.executable, "-m", "benchmarks.late_interaction", "--side", side]
            command += ["--texts", str(arguments.texts), "--queries", str(arguments.queries)]
            lines = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.splitlines()
            runs.append({name: value for line in lines for name, value in json.loads(line).items()})
    say(f"{arguments.texts} documents, {arguments.queries} queries, {arguments.rounds} rounds: medians\n")
    ours = medians(found[OURS])
    say("| side | documents, s | / ours | queries, s | / ours | peak MB | / ours | checksum |")
    say("|---|---|---|---|---|---|---|---|")
    for side, runs in found.items():
        run = medians(runs)
        say(
            f"| {side} | {run['documents']:.2f} | {run['documents'] / ours['documents']:.1f} "
            f"| {run['queries']:.2f} | {run['queries'] / ours['queries']:.1f} "
            f"| {run['peak_bytes'] / 1e6:.0f} | {run['peak_bytes'] / ours['peak_bytes']:.1f} | {run['checksum']:.2f} |"
        )


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


if __name__ == "__main__":
    main()
