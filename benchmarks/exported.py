"""Graphs that are built from weights, beside those that torch exports of the same model; and long texts.

`python benchmarks/torch_export.py DIRECTORY` makes both in an environment with torch. The sides run in turn, in one
process, each with the same threads. Long texts run in a process of their own, whose peak memory is counted; torch's
graph computes only those of `--torch-long`, since its memory grows with the square of their length.
"""

import argparse
import multiprocessing
import os
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
    """Compare both at several shapes, twice, then compute long texts."""
    options = _options()
    say(machine())
    started = time.perf_counter()
    ours = ensure_graph(options.directory / "weights", cache_dir=options.directory / "cache")
    size_mb = sum(file.stat().st_size for file in ours.parent.iterdir()) / 2**20
    say(f"{options.directory}: built or found in {time.perf_counter() - started:.1f} s, {size_mb:.0f} MB")
    theirs = options.directory / "torch" / "model.onnx"
    for sides in ({"ours": ours, "torch": theirs}, {"torch": theirs, "ours": ours}):
        compare(sides, threads=options.threads, rounds=options.rounds)
    for side, graph, lengths in (("ours", ours, options.long), ("torch", theirs, options.torch_long)):
        for length in lengths:
            measure_long(side, graph, length, threads=options.threads)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="what benchmarks/torch_export.py has made")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--long", type=int, nargs="*", default=[2048, 8192], help="tokens of our long texts")
    parser.add_argument("--torch-long", type=int, nargs="*", default=[2048], help="tokens of torch's")
    return parser.parse_args()


def compare(graphs: Mapping[str, Path], *, threads: int, rounds: int) -> None:
    """Processor time of each side, in turn; it is less disturbed by what else runs than the clock's.

    Where in memory a session's weights come to lie changes its time for a short text by a few per cent.
    """
    say(f"Loaded anew, {' before '.join(graphs)}:")
    sides = {side: load(graph, threads) for side, graph in graphs.items()}
    for batch, tokens in SHAPES:
        ids = random_ids(batch, tokens)
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        states = {side: run(ids) for side, run in sides.items()}
        for number in range(rounds * max(1, 256 // (batch * tokens))):
            for side in sorted(sides, reverse=bool(number % 2)):
                started = time.process_time()
                sides[side](ids)
                seconds[side].append(time.process_time() - started)
        difference = np.abs(states["ours"] - states["torch"]).max()
        ratio = min(seconds["ours"]) / min(seconds["torch"])
        per_second = {side: batch * threads / min(times) for side, times in seconds.items()}
        say(
            f"{batch} x {tokens}: "
            + ", ".join(
                f"{side} {spread([1000 * value for value in times])} ms, at best {per_second[side]:.1f} texts/s"
                for side, times in seconds.items()
            )
            + f"; time ours / torch {ratio:.2f}; states differ by {difference:.0e}"
        )


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
