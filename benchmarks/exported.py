"""Graphs that are built from weights, beside those that torch exports of the same model; and long texts.

`python benchmarks/torch_export.py DIRECTORY` makes both in an environment with torch. The sides run in turn, in one
process, each with the same threads. Long texts run in a process of their own, whose peak memory is counted; torch's
graph computes only those of `--torch-long`, since its memory grows with the square of their length.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import psutil

from asyncembed.export.graph_cache import ensure_graph
from benchmarks.common import machine, say, spread

SHAPES = [(1, 12), (16, 16), (4, 64), (1, 256), (1, 511)]

Run = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]


def main() -> None:
    """Compare both at several shapes, then compute long texts."""
    options = _options()
    say(machine())
    started = time.perf_counter()
    ours = ensure_graph(options.directory / "weights", cache_dir=options.directory / "cache")
    size_mb = sum(file.stat().st_size for file in ours.parent.iterdir()) / 2**20
    say(f"{options.directory}: built or found in {time.perf_counter() - started:.1f} s, {size_mb:.0f} MB")
    theirs = options.directory / "torch" / "model.onnx"
    sides = {"ours": ours, "torch": theirs}
    compare(sides, threads=options.threads, loads=options.loads, rounds=options.rounds)
    for side, graph, lengths in (("ours", ours, options.long), ("torch", theirs, options.torch_long)):
        for length in lengths:
            measure_long(side, graph, length, threads=options.threads)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="what benchmarks/torch_export.py has made")
    parser.add_argument("--loads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--long", type=int, nargs="*", default=[2048, 8192], help="tokens of our long texts")
    parser.add_argument("--torch-long", type=int, nargs="*", default=[2048], help="tokens of torch's")
    return parser.parse_args()


def compare(graphs: Mapping[str, Path], *, threads: int, loads: int, rounds: int) -> None:
    """Processor time of each side, in turn; it is less disturbed by what else runs than the clock's.

    Both are loaded several times: where a session's weights come to lie in memory changes its time for a short text by
    several per cent. Of each time that they are loaded the best round counts.
    """
    best: dict[tuple[int, int], dict[str, list[float]]] = {shape: {side: [] for side in graphs} for shape in SHAPES}
    for number in range(loads):
        order = sorted(graphs, reverse=bool(number % 2))
        sides = {side: load(graphs[side], threads) for side in order}
        for shape, found in best.items():
            for side, milliseconds in _best(sides, shape, rounds).items():
                found[side].append(milliseconds)
    for (batch, tokens), found in best.items():
        medians = {side: statistics.median(values) for side, values in found.items()}
        per_second = {side: 1000 * batch * threads / median for side, median in medians.items()}
        sides_said = (f"{side} {spread(values)} ms, {per_second[side]:.1f} texts/s" for side, values in found.items())
        say(f"{batch} x {tokens}: {', '.join(sides_said)}; time ours / torch {medians['ours'] / medians['torch']:.2f}")


def _best(sides: Mapping[str, Run], shape: tuple[int, int], rounds: int) -> dict[str, float]:
    """The least milliseconds of each side, which must compute the same."""
    ids = random_ids(*shape)
    states = {side: run(ids) for side, run in sides.items()}
    difference = np.abs(states["ours"] - states["torch"]).max()
    assert difference < 1e-4, f"the states differ by {difference}"
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds * max(1, 256 // ids.size)):
        for side in sorted(sides, reverse=bool(number % 2)):
            started = time.process_time()
            sides[side](ids)
            seconds[side].append(time.process_time() - started)
    return {side: 1000 * min(values) for side, values in seconds.items()}


def load(graph: Path, threads: int) -> Run:
    """A session of `graph`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        (states,) = session.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        return np.asarray(states, np.float32)

    return run


def random_ids(batch: int, tokens: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(5, 1000, (batch, tokens))


def measure_long(side: str, graph: Path, tokens: int, *, threads: int) -> None:
    """One text in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        before, peak, seconds = pool.apply(_compute_long, (graph, tokens, threads))
    say(
        f"one text of {tokens} tokens, {side}: {seconds:.1f} s of processor time; "
        f"the process has {before / 2**20:.0f} MB before, {peak / 2**20:.0f} MB at its peak"
    )


def _compute_long(graph: Path, tokens: int, threads: int) -> tuple[int, int, float]:
    run = load(graph, threads)
    run(random_ids(1, 12))
    before = psutil.Process(os.getpid()).memory_info().rss
    started = time.process_time()
    run(random_ids(1, tokens))
    seconds = time.process_time() - started
    # Not `getrusage`: its peak begins with that of the process that this one was started from.
    status = Path("/proc/self/status").read_text("ascii")
    return before, 1024 * int(status.partition("VmHWM:")[2].split()[0]), seconds


if __name__ == "__main__":
    main()
