"""What `bench` measures of one model: opening it, an ingest, its latency alone and under an ingest, its memory."""

import platform
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from math import ceil
from pathlib import Path
from typing import Any

import anyio

from asyncembed.cli.accuracy import MOST_TEXTS, Accuracy, accuracy_of, graph_in_8_bits, vectors
from asyncembed.cli.checkup import processor_name, versions_in_words
from asyncembed.cli.sample_inputs import sample_images, sample_queries, sample_texts
from asyncembed.embedders.base import Embedder, described
from asyncembed.embedders.cross_encoder import TextCrossEncoder
from asyncembed.embedders.image import ImageEmbedding
from asyncembed.embedders.multimodal import LateInteractionMultimodalEmbedding
from asyncembed.embedders.roles import TextRoles
from asyncembed.engine.lifetime import owned_task_group
from asyncembed.engine.model import Stats
from asyncembed.engine.pool import WorkerPool
from asyncembed.errors import OptionError
from asyncembed.files import in_disk_thread

QUERIES_ALONE = 100
QUERIES_PER_SECOND = 20
"""In an ingest: so few that they take little of it, and enough for a 99th percentile within ten seconds."""

WARM_INPUTS = 64
SAMPLE_TEXTS = 2000
SAMPLE_IMAGES = 64
RANKED = 10
"""Documents of a query of a reranker."""

STEP_SECONDS = 0.5
"""Between two looks at how far an ingest is, and at the memory."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a model of some family is given to do.

    Attributes:
        unit: What an input of the ingest is called.
        query: What a call is.
        inputs: Those of the ingest, taken again and again.
        stream: Starts to compute some.
        call: One interactive call about a text.
    """

    unit: str
    query: str
    inputs: Sequence[Any]
    stream: Callable[[Iterator[Any]], Any]
    call: Callable[[str], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Ingest:
    """An ingest that was measured.

    Attributes:
        per_second: Inputs.
        tokens_per_second: Without padding; 0 where nothing has tokens.
        padding_share: The part of the computed tokens that was padding, 0 to 1.
        course: Seconds since its beginning, and inputs a second since the point before.
    """

    per_second: float
    tokens_per_second: float
    padding_share: float
    course: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All of it.

    Attributes:
        model: Its name.
        description: What was opened, and what computes it.
        machine: The CPU, and the versions of what matters.
        unit: What an input of the ingest is.
        query: What a call is.
        open_seconds: From nothing to the first result possible; of files that are on this disk.
        alone: An ingest, and nothing besides.
        with_queries: An ingest with `QUERIES_PER_SECOND`.
        batch_seconds: Median time of a batch of the ingest.
        latency_alone: Seconds of each call, one after the other.
        latency_in_ingest: Seconds of each call in the middle of an ingest.
        memory_bytes: The most that this process and its workers took together, pages that they share counted once;
            None where the system does not say so.
        accuracy: Of a graph in 8 bits that was made here.
    """

    model: str
    description: str
    machine: str
    unit: str
    query: str
    open_seconds: float
    alone: Ingest
    with_queries: Ingest
    batch_seconds: float
    latency_alone: Sequence[float]
    latency_in_ingest: Sequence[float]
    memory_bytes: int | None
    accuracy: Accuracy | None = None


async def measure(
    embedder: Embedder,
    pool: WorkerPool,
    seconds: float,
    texts: Sequence[str] = (),
    exact: tuple[Embedder, WorkerPool] | None = None,
) -> Measured:
    """Open a model in a pool that is not open either, and have it work for some more than twice so many seconds.

    Args:
        embedder: Made with `pool=pool`.
        pool: Its own.
        seconds: How long each of the two ingests takes.
        texts: The inputs; none: some that are made up.
        exact: The same in float, and its own pool, to compare a graph in 8 bits with.

    Raises:
        OptionError: The model takes no texts.
        AsyncEmbedError: What opening and computing raises.
    """
    work = workload(embedder, texts)
    started = time.perf_counter()
    async with pool, _watched(pool) as memory, embedder:
        open_seconds = time.perf_counter() - started
        queries = sample_queries(QUERIES_ALONE)
        await work.call(queries[0])
        await _ingest(embedder, work, inputs=WARM_INPUTS)
        latency_alone = [await _timed(work, query) for query in queries]
        alone = await _ingest(embedder, work, seconds=seconds)
        with_queries, latency_in_ingest = await _ingest_with_queries(embedder, work, seconds)
        graph = None if exact is None else graph_in_8_bits(embedder)
        sample = list(work.inputs[:MOST_TEXTS])
        found = None if graph is None or len(sample) < 2 else await vectors(embedder, sample)
        measured = Measured(
            model=embedder.model_name,
            description=described(embedder),
            machine=f"{processor_name()}, {platform.system()}, {versions_in_words()}",
            unit=work.unit,
            query=work.query,
            open_seconds=open_seconds,
            alone=alone,
            with_queries=with_queries,
            batch_seconds=embedder.stats().batch_seconds,
            latency_alone=latency_alone,
            latency_in_ingest=latency_in_ingest,
            memory_bytes=memory.most_bytes,
        )
    if exact is None or graph is None or found is None:
        return measured
    return replace(measured, accuracy=await accuracy_of(graph, found, sample, *exact))


def workload(embedder: Embedder, texts: Sequence[str] = ()) -> Workload:
    """What suits the family of a model.

    Raises:
        OptionError: There are texts, and it takes none.
    """
    match embedder:
        case TextRoles():
            return Workload(
                "texts", "embed_query", texts or sample_texts(SAMPLE_TEXTS), embedder.embed, embedder.embed_query
            )
        case TextCrossEncoder():
            return _pairs(embedder, texts or sample_texts(SAMPLE_TEXTS))
    if texts:
        raise OptionError(f"{embedder.model_name} takes images, and no texts of yours")
    images = sample_images(SAMPLE_IMAGES)
    match embedder:
        case LateInteractionMultimodalEmbedding():
            return Workload(
                "images", "embed_text", images, embedder.embed_image, lambda query: embedder.embed_text(query).collect()
            )
        case ImageEmbedding():
            return Workload("images", "embed_image", images, embedder.embed, lambda _: embedder.embed_image(images[0]))
    raise AssertionError("these are the seven families")


def _pairs(reranker: TextCrossEncoder, texts: Sequence[str]) -> Workload:
    ranked = texts[:RANKED]
    pairs = [(query, text) for query, text in zip(cycle(sample_queries(QUERIES_ALONE)), texts, strict=False)]
    return Workload(
        "pairs", f"rank of {len(ranked)}", pairs, reranker.rerank_pairs, lambda query: reranker.rank(query, ranked)
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of the values that so many per cent are not above; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)] if ordered else 0.0


# ---------------------------------------------------------------- parts


async def _ingest(
    embedder: Embedder, work: Workload, *, seconds: float | None = None, inputs: int | None = None
) -> Ingest:
    """Compute for so long, or so many."""
    before = embedder.stats()
    started = last = time.perf_counter()
    count = last_count = 0
    course = []
    async with work.stream(cycle(work.inputs)) as stream:
        async for _ in stream:
            count += 1
            now = time.perf_counter()
            if now - last >= STEP_SECONDS:
                course.append((now - started, (count - last_count) / (now - last)))
                last, last_count = now, count
            if count == inputs or (seconds is not None and now - started >= seconds):
                break
    return _found(before, embedder.stats(), count, time.perf_counter() - started, course)


def _found(before: Stats, after: Stats, count: int, seconds: float, course: Sequence[tuple[float, float]]) -> Ingest:
    items, tokens = after.items - before.items, after.tokens - before.tokens
    padded = after.padded_tokens - before.padded_tokens
    # What was read ahead is computed, too, and no part of the count.
    per_input = tokens / items if items else 0.0
    return Ingest(count / seconds, per_input * count / seconds, 1 - tokens / padded if padded else 0.0, tuple(course))


async def _ingest_with_queries(embedder: Embedder, work: Workload, seconds: float) -> tuple[Ingest, list[float]]:
    """Compute for so long with a query now and then, and wait for all of these: the slow ones count, too."""
    latencies: list[float] = []
    is_over, is_answered = anyio.Event(), anyio.Event()

    async def ask(query: str) -> None:
        latencies.append(await _timed(work, query))

    async def ask_regularly() -> None:
        async with anyio.create_task_group() as asking:
            for query in cycle(sample_queries(QUERIES_ALONE)):
                asking.start_soon(ask, query)
                await anyio.sleep(1 / QUERIES_PER_SECOND)
                if is_over.is_set():
                    break
        is_answered.set()

    async with owned_task_group() as group:
        group.start_soon(ask_regularly)
        ingest = await _ingest(embedder, work, seconds=seconds)
        is_over.set()
        await is_answered.wait()
    return ingest, latencies


async def _timed(work: Workload, query: str) -> float:
    started = time.perf_counter()
    await work.call(query)
    return time.perf_counter() - started


@dataclass(slots=True)
class _Memory:
    most_bytes: int | None = field(default=None)


@asynccontextmanager
async def _watched(pool: WorkerPool) -> AsyncGenerator[_Memory]:
    """Look at the memory of this process and the pool's now and then, while the block runs."""
    memory = _Memory()

    async def watch() -> None:
        while True:
            found = await in_disk_thread(memory_of, ["self", *map(str, pool.worker_pids())])
            if found is not None:
                memory.most_bytes = max(found, memory.most_bytes or 0)
            await anyio.sleep(STEP_SECONDS)

    async with owned_task_group() as group:
        group.start_soon(watch)
        yield memory


def memory_of(processes: Sequence[str]) -> int | None:
    """Bytes that these processes take together, where Linux says so; a page that several share counts once.

    Source: `Pss` in the kernel's `filesystems/proc.rst`.
    """
    total = None
    for process in processes:
        try:
            lines = Path("/proc", process, "smaps_rollup").read_text("utf-8").splitlines()
        except OSError:  # it has ended, or this is no Linux
            continue
        total = (total or 0) + sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total
