"""Ray Data against the plain stream, on the same cores of one machine.

    uv run python -m benchmarks.ray_data [--rounds 3] [--texts 3072] [--calls 1 2]

all-MiniLM-L6-v2 in fp32; docstrings cut at 512 tokens, in batches of 128. The stream has a worker per core; so has the
one actor of the dataset, whose blocks of one batch each lie in Ray's store before it begins. It works on so many of
them at a time as `--calls` says. The first batch, with the start of all processes, is left out on both sides; by then
a stream has computed some of the 1,024 texts that it reads ahead, so that few texts favour it, in time and in processor
time. The sides take turns; a ratio is that of neighbours in time.
"""

import argparse
import logging
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import psutil

from benchmarks.common import machine, minilm, minilm_spec, say, spread, texts

BATCH = 128


class Meter:
    """Counts what arrives after the first time, and what it took."""

    def __init__(self) -> None:
        self._count: int | None = None
        self._began = self._ended = 0.0
        self._before = self._after = 0.0

    def arrived(self, count: int) -> None:
        if self._count is None:
            self._count = 0
            self._began, self._before = time.perf_counter(), processor_seconds()
        else:
            self._count += count
            self._ended, self._after = time.perf_counter(), processor_seconds()

    def rate(self) -> float:
        """Texts per second."""
        assert self._count, "at least two times"
        return self._count / (self._ended - self._began)

    def processor_ms(self) -> float:
        """Of a text, in all processes."""
        assert self._count, "at least two times"
        return (self._after - self._before) / self._count * 1e3


def processor_seconds() -> float:
    """Of this process and all that it has started."""
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


# ---------------------------------------------------------------- sides


async def stream(documents: list[str]) -> Meter:
    """The plain stream, in batches as the dataset has them."""
    from asyncembed import TextEmbedding

    meter = Meter()
    async with TextEmbedding(minilm_spec(), model_path=minilm()[0]) as model:
        async for batch in model.embed(documents).batches(BATCH):
            meter.arrived(len(batch))
    return meter


@contextmanager
def cluster(cores: int) -> Iterator[None]:
    """Ray on this machine; it leaves nothing."""
    # Read when Ray is imported. Its processes are to have this environment, and none that uv makes of it.
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_TOKEN"] = token_hex(32)
    import ray

    with TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _temp_dir=folder
        )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        try:
            yield
        finally:
            ray.shutdown()


def dataset(documents: list[str], cores: int, calls: int) -> Meter:
    """Ray Data, with so many blocks at a time."""
    import ray

    from asyncembed.integrations.ray import Embed

    embedded = (
        ray.data.from_items([{"text": text} for text in documents], override_num_blocks=len(documents) // BATCH)
        .materialize()
        .map_batches(
            Embed,
            fn_constructor_args=(minilm_spec(),),
            fn_constructor_kwargs={"model_path": minilm()[0]},
            batch_format="pyarrow",
            batch_size=BATCH,
            num_cpus=cores,
            compute=ray.data.ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=calls),
        )
    )
    meter = Meter()
    for block in embedded.iter_batches(batch_size=None, batch_format="pyarrow"):
        meter.arrived(block.num_rows)
    return meter


# ---------------------------------------------------------------- in turn


def compare(count: int, rounds: int, calls: Sequence[int] = (1, 2)) -> dict[str, dict[str, Any]]:
    """For each side its rates and processor times, and their ratios to those of the stream beside it."""
    documents, cores = texts(count), os.cpu_count() or 1
    found: dict[str, dict[str, Any]] = defaultdict(lambda: defaultdict(list))
    anyio.run(stream, documents[: 2 * BATCH])  # what the disk has to bring
    with cluster(cores):
        for _ in range(rounds):
            plain = anyio.run(stream, documents)
            sides = {"stream": plain}
            sides |= {f"dataset, {at_a_time} at a time": dataset(documents, cores, at_a_time) for at_a_time in calls}
            for side, meter in sides.items():
                found[side]["rate"].append(meter.rate())
                found[side]["processor_ms"].append(meter.processor_ms())
                found[side]["share"].append(meter.rate() / plain.rate())
                found[side]["cost"].append(meter.processor_ms() / plain.processor_ms())
    return found


def report(found: dict[str, dict[str, Any]]) -> None:
    """Print a row for each side."""
    say("| side | texts/s | of the stream's | processor ms a text | of the stream's |")
    say("|---|---|---|---|---|")
    for side, values in found.items():
        share, cost = statistics.median(values["share"]), statistics.median(values["cost"])
        rate, processor_ms = spread(values["rate"]), spread(values["processor_ms"])
        say(f"| {side} | {rate} | {share:.1%} | {processor_ms} | {cost:.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=3072)
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    say(machine())
    report(compare(arguments.texts, arguments.rounds, arguments.calls))


if __name__ == "__main__":
    main()
