"""Streams over real workers, threads where no process is needed: order, window, sources, and every way to leave one."""

import gc
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import FrozenInstanceError, replace
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from anyio.abc import TaskStatus
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncembed import (
    CountedBatch,
    HybridTextEmbedding,
    ImageEmbedding,
    LateInteractionMultimodalEmbedding,
    LateInteractionTextEmbedding,
    SparseTextEmbedding,
    StreamProgress,
    TextCrossEncoder,
)
from asyncembed.catalogue.spec import Family
from asyncembed.embedders.text import TextEmbedding
from asyncembed.engine.pool import WorkerPool
from asyncembed.errors import InputError, OptionError, StateError, UsageError
from asyncembed.feeding import FEED_SECONDS, FIRST_READ, WAITING_BATCHES, WAITING_BATCHES_PER_WORKER
from asyncembed.stream import TURN_SECONDS, EmbeddingStream, OnError
from tests.support.encoders import ECHO, with_settings
from tests.support.waiting import nothing_left_behind, run_in_a_loop_of_its_own, until

Stream = EmbeddingStream[Any, Any, Any]


@pytest.fixture(scope="module")
async def pool(anyio_backend: str) -> AsyncGenerator[WorkerPool]:
    async with WorkerPool(workers=0) as pool:
        yield pool


@pytest.fixture(scope="module")
async def processes(anyio_backend: str) -> AsyncGenerator[WorkerPool]:
    """Two workers, which finish in any order."""
    async with WorkerPool(workers=2) as pool:
        yield pool


@pytest.fixture(scope="module")
async def model(pool: WorkerPool) -> AsyncGenerator[TextEmbedding]:
    async with TextEmbedding(ECHO, pool=pool) as model:
        yield model


@pytest.fixture
async def narrow(pool: WorkerPool) -> AsyncGenerator[TextEmbedding]:
    """A model whose streams read at most eight inputs ahead."""
    async with TextEmbedding(ECHO, pool=pool, max_in_flight=8) as model:
        yield model


def texts(count: int) -> list[str]:
    return [f"#{i}" for i in range(count)]


def number(result: Any) -> int:
    return int(result[2])


async def all_ready(model: TextEmbedding, count: int) -> Stream:
    """A stream of `count` results whose first one was taken, when all others are ready."""
    before = model.stats().items
    stream = model.embed(texts(count))
    assert number(await anext(stream)) == 0
    await until(lambda: model.stats().items == before + count)
    return stream


async def numbers(stream: Stream) -> list[int]:
    return [number(result) async for result in stream]


class Source:
    """Texts without end in three kinds of source; knows how many were pulled, and whether it was closed."""

    def __init__(self, make: Callable[[int], str] = "#{}".format, end: int | None = None) -> None:
        self.pulled = 0
        self.is_closed = False
        self.thread: int | None = None
        self._make = make
        self._end = end

    def generator(self) -> Iterator[str]:
        self.thread = threading.get_ident()
        try:
            while self.pulled != self._end:
                self.pulled += 1
                yield self._make(self.pulled - 1)
        finally:
            assert threading.get_ident() == self.thread
            self.is_closed = True

    async def async_generator(self) -> AsyncGenerator[str]:
        try:
            while self.pulled != self._end:
                self.pulled += 1
                yield self._make(self.pulled - 1)
        finally:
            # Cleaning up may have to wait, also when the stream is cancelled.
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            self.is_closed = True

    def __iter__(self) -> Iterator[str]:
        return self.generator()

    def of_kind(self, kind: str) -> Any:
        match kind:
            case "generator":
                return self.generator()
            case "async generator":
                return self.async_generator()
            case _:
                return self


every_kind = pytest.mark.parametrize("kind", ["generator", "async generator", "iterable"])


# ---------------------------------------------------------------- order


@pytest.mark.slow
@pytest.mark.parametrize("ordered", [True, False])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 120), max_size=60),
    bad=st.sets(st.integers(0, 59)),
    kind=st.sampled_from(["list", "generator", "async generator"]),
)
async def test_each_input_has_one_result_and_results_keep_their_order(
    ordered: bool, lengths: list[int], bad: set[int], kind: str, processes: WorkerPool
) -> None:
    """Inputs of many lengths under a small budget are computed in quite another order than they came in."""
    inputs = [f"#{i} {'bad ' * (i in bad)}{'x' * length}" for i, length in enumerate(lengths)]
    source: Any = inputs if kind == "list" else Source(inputs.__getitem__, end=len(inputs)).of_kind(kind)
    async with TextEmbedding(ECHO, pool=processes, max_batch_tokens=64, max_in_flight=16) as model:
        stream = model.embed(source, ordered=ordered, on_error="return").with_inputs()
        pairs = [(text, result) async for text, result in stream]
    if not ordered:
        pairs.sort(key=lambda pair: int(pair[0].split()[0][1:]))
    assert [text for text, _ in pairs] == inputs
    for i, (_, result) in enumerate(pairs):
        if i in bad:
            assert isinstance(result, InputError)
            assert result.index == i
        else:
            assert number(result) == i


@pytest.mark.slow
async def test_unordered_results_do_not_wait_for_one_that_takes_longer(processes: WorkerPool, gate: Path) -> None:
    async with TextEmbedding(ECHO, pool=processes, max_batch_size=1) as model:
        stream = model.embed([f"#0 wait:{gate}", *texts(50)[1:]], ordered=False)
        first = number(await anext(stream))
        gate.touch()
        rest = await numbers(stream)
    assert first != 0
    assert sorted([first, *rest]) == list(range(50))


# ---------------------------------------------------------------- the window


@every_kind
async def test_a_source_is_read_no_further_than_the_window(kind: str, narrow: TextEmbedding) -> None:
    source = Source()
    stream = narrow.embed(source.of_kind(kind))
    async with stream:
        for taken in range(1, 50):
            assert number(await anext(stream)) == taken - 1
            assert source.pulled <= taken + 8
    assert source.is_closed


@every_kind
async def test_nothing_is_read_before_the_first_result_is_asked_for(kind: str, narrow: TextEmbedding) -> None:
    source = Source()
    stream = narrow.embed(source.of_kind(kind))
    await anyio.wait_all_tasks_blocked()
    assert source.pulled == 0
    await stream.aclose()


@every_kind
async def test_a_window_is_full_when_nobody_takes(kind: str, narrow: TextEmbedding) -> None:
    source = Source()
    async with narrow.embed(source.of_kind(kind)) as stream:
        await anext(stream)
        # One result was taken, so the reader may stop one short of the full window: it reads ahead in chunks.
        await until(lambda: source.pulled >= 8)
        await anyio.wait_all_tasks_blocked()
        assert source.pulled <= 9


@every_kind
async def test_large_inputs_are_read_less_far_ahead(kind: str, pool: WorkerPool) -> None:
    source = Source(lambda i: f"#{i} " + "x" * 10_000)
    async with TextEmbedding(ECHO, pool=pool, max_in_flight_bytes=100_000) as model:
        async with model.embed(source.of_kind(kind)) as stream:
            for taken in range(1, 30):
                await anext(stream)
                # How large the records of a thread are is known only when the first of them have been read.
                assert source.pulled <= taken + (10 if kind == "async generator" or taken > FIRST_READ else FIRST_READ)


async def test_large_inputs_of_a_list_wait_only_within_the_window(pool: WorkerPool) -> None:
    async with TextEmbedding(ECHO, pool=pool, max_in_flight_bytes=100_000) as model:
        stream = model.embed([f"#{i} " + "x" * 10_000 for i in range(1000)])
        async with stream:
            for _ in range(30):
                await anext(stream)
                assert model.stats().queued <= FIRST_READ


async def test_one_input_over_the_whole_window_still_goes_through(pool: WorkerPool) -> None:
    async with TextEmbedding(ECHO, pool=pool, max_in_flight_bytes=10, max_in_flight=1) as model:
        assert await numbers(model.embed(texts(20))) == list(range(20))
        assert await numbers(model.embed(iter(texts(20)))) == list(range(20))


async def test_results_that_wait_count_towards_the_window(pool: WorkerPool) -> None:
    source = Source(end=2000)
    async with TextEmbedding(ECHO, pool=pool, max_in_flight_bytes=2000) as model:
        async with model.embed(source.generator()) as stream:
            await anext(stream)
            await until(lambda: model.stats().queued + model.stats().in_flight == 0)
            await anyio.wait_all_tasks_blocked()
            # A result is 12 bytes beside some 50 of its text, which is given back.
            assert source.pulled < 2000 / 12


class Sized:
    """Texts of given sizes in every kind of source; checks the window's bound whenever one is asked for."""

    def __init__(self, sizes: list[int], bound: int) -> None:
        self.sizes = sizes
        self.taken_bytes = 0
        self.most_held = 0
        self._bound = bound
        self._read_bytes = 0

    def load(self, index: int) -> str:
        """Make the text, as a source or a `key` does that reads a file."""
        self.most_held = max(self.most_held, self._read_bytes - self.taken_bytes)
        text = self.text(index)
        self._read_bytes += sys.getsizeof(text)
        return text

    def text(self, index: int) -> str:
        return f"#{index} " + "x" * self.sizes[index]

    def of_kind(self, kind: str) -> Any:
        match kind:
            case "generator":
                return map(self.load, range(len(self.sizes)))
            case "async generator":
                return self._awaited()
            case "list with key":
                return list(range(len(self.sizes)))
        raise AssertionError(kind)

    async def _awaited(self) -> AsyncGenerator[str]:
        for index in range(len(self.sizes)):
            yield self.load(index)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generator", "async generator", "list with key"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.one_of(st.integers(0, 30), st.integers(1000, 20_000)), max_size=80),
    bound=st.integers(100, 50_000),
)
async def test_a_window_holds_its_bound_and_one_record_at_most_whatever_their_sizes(
    kind: str, sizes: list[int], bound: int, pool: WorkerPool
) -> None:
    source = Sized(sizes, bound)
    key = source.load if kind == "list with key" else None
    async with TextEmbedding(ECHO, pool=pool, max_in_flight_bytes=bound) as model:
        index = 0
        async for row in model.embed(source.of_kind(kind), key=key):
            assert number(row) == index
            source.taken_bytes += sys.getsizeof(source.text(index))
            index += 1
    assert index == len(sizes)
    # Each time that a record was asked for, the window was not full: it may come on top of that.
    assert source.most_held < bound


@pytest.mark.parametrize("kind", ["generator", "async generator", "list with key"])
async def test_small_records_do_not_foretell_the_large_ones_after_them(kind: str, pool: WorkerPool) -> None:
    source = Sized([10] * 16 + [100_000] * 100, 500_000)
    key = source.load if kind == "list with key" else None
    async with TextEmbedding(ECHO, pool=pool, max_in_flight_bytes=500_000) as model:
        async with model.embed(source.of_kind(kind), key=key) as stream:
            await anext(stream)
            await until(lambda: source.most_held > 300_000)
            await until(lambda: model.stats().queued + model.stats().in_flight == 0)
            await anyio.wait_all_tasks_blocked()
            assert source.most_held < 500_000


async def test_results_count_before_they_come_as_the_earlier_ones_were(pool: WorkerPool, gate: Path) -> None:
    """Of results far larger than their inputs, the next ones are not awaited by the hundred."""
    may_go_on = anyio.Event()
    pulled = 0

    async def source() -> AsyncGenerator[str]:
        nonlocal pulled
        for pulled in range(1, 101):
            if pulled == 2:
                await may_go_on.wait()
            yield f"#{pulled - 1}" + f" wait:{gate}" * (pulled > 1)

    async with TextEmbedding(with_settings(width="10000"), pool=pool, max_in_flight_bytes=400_000) as model:
        async with model.embed(source()) as stream:
            assert (await anext(stream)).nbytes == 40_000
            may_go_on.set()
            async with anyio.create_task_group() as group:
                group.start_soon(anext, stream)
                await until(lambda: pulled >= 9)
                await anyio.wait_all_tasks_blocked()
                assert pulled <= 12
                gate.touch()
            assert await numbers(stream) == list(range(2, 100))


async def test_a_record_kept_beside_its_text_counts(pool: WorkerPool) -> None:
    made: list[int] = []

    async def records() -> AsyncGenerator[dict[str, object]]:
        for i in range(100):
            made.append(i)
            yield {"text": f"#{i}", "photo": bytes(10_000)}

    async with TextEmbedding(ECHO, pool=pool, max_in_flight_bytes=100_000) as model:
        stream = model.embed(records(), key=lambda record: str(record["text"])).with_inputs()
        async with stream:
            await anext(stream)
            await anyio.wait_all_tasks_blocked()
            assert len(made) <= 12


@pytest.mark.slow
async def test_only_some_dozens_of_batches_of_a_stream_wait(processes: WorkerPool, tmp_path: Path, gate: Path) -> None:
    """However wide its window: a stream that joins later has no more than that before it."""
    log = tmp_path / "log"
    most = WAITING_BATCHES + 2 * WAITING_BATCHES_PER_WORKER
    source = Source(lambda i: f"early{i} #{i} wait:{gate}")
    async with TextEmbedding(with_settings(log=str(log)), pool=processes, max_batch_size=1) as model:
        async with model.embed(source.generator()) as early, model.embed(["late #5"]) as late:
            async with anyio.create_task_group() as group:
                group.start_soon(anext, early)
                await until(lambda: source.pulled == most)
                await anyio.wait_all_tasks_blocked()
                assert source.pulled == most
                group.start_soon(anext, late)
                await until(lambda: model.stats().queued + model.stats().in_flight == most + 1)
                gate.touch()
    order = [line.split()[1] for line in log.read_text("utf-8").splitlines()]
    assert order.index("late") <= most + 8  # the workers write as they finish, and go on reading meanwhile


@pytest.mark.slow
async def test_streams_share_the_workers_fairly(processes: WorkerPool, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with TextEmbedding(with_settings(log=str(log)), pool=processes, max_batch_size=1) as model:
        async with anyio.create_task_group() as group:
            for name in ("one", "two", "three"):
                group.start_soon(numbers, model.embed([f"{name} #{i}" for i in range(150)]))
    order = [line.split()[1] for line in log.read_text("utf-8").splitlines()]
    counts = [order[:300].count(name) for name in ("one", "two", "three")]
    # The first one has a window's lead at most.
    assert min(counts) >= 60, counts


# ---------------------------------------------------------------- sources


@pytest.mark.parametrize("kind", [list, tuple, lambda texts: dict.fromkeys(texts).keys(), iter, np.array])
async def test_any_iterable_is_a_source(kind: Callable[[list[str]], Iterable[str]], model: TextEmbedding) -> None:
    assert await numbers(model.embed(kind(["#1", "#2"]))) == [1, 2]
    assert await numbers(model.embed(kind([]))) == []


async def test_a_set_is_a_source(model: TextEmbedding) -> None:
    assert sorted(await numbers(model.embed({"#1", "#2"}))) == [1, 2]


@every_kind
async def test_an_empty_source_has_no_results(kind: str, model: TextEmbedding) -> None:
    stream = model.embed(Source(end=0).of_kind(kind))
    assert await numbers(stream) == []
    assert await numbers(stream) == []


async def test_a_text_alone_is_one_document(model: TextEmbedding) -> None:
    assert await numbers(model.embed("#3 and no letters")) == [3]


@pytest.mark.parametrize("source", [3, None])
async def test_what_cannot_be_iterated_is_no_source(source: Any, model: TextEmbedding) -> None:
    with pytest.raises(InputError, match="must be iterable"):
        model.embed(source)


async def test_a_source_that_blocks_stops_nobody(model: TextEmbedding) -> None:
    """Each item is embedded as soon as it is there, while the source blocks its own thread."""
    may_go_on = threading.Semaphore(0)

    def source() -> Iterator[str]:
        for i in range(5):
            yield f"#{i}"
            may_go_on.acquire(timeout=30)

    stream = model.embed(source())
    for i in range(5):
        assert number(await anext(stream)) == i  # the source waits inside its next step meanwhile
        assert len(await model.embed_query("still here")) == 3
        may_go_on.release()
    assert await numbers(stream) == []


async def test_a_source_runs_in_one_thread_from_beginning_to_end(narrow: TextEmbedding) -> None:
    """Such as a database cursor demands."""
    threads: set[int] = set()

    def source() -> Iterator[str]:
        try:
            for i in range(500):
                threads.add(threading.get_ident())
                yield f"#{i}"
        finally:
            threads.add(threading.get_ident())

    assert await numbers(narrow.embed(source())) == list(range(500))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_a_source_sees_the_context_variables_of_its_consumer(model: TextEmbedding) -> None:
    request: ContextVar[str] = ContextVar("request", default="#0")
    request.set("#9")

    def source() -> Iterator[str]:
        yield request.get()

    async def async_source() -> AsyncIterator[str]:
        yield request.get()

    assert await numbers(model.embed(source())) == [9]
    assert await numbers(model.embed(async_source())) == [9]


@every_kind
async def test_an_exception_of_the_source_comes_after_all_earlier_results(kind: str, model: TextEmbedding) -> None:
    def make(i: int) -> str:
        if i == 30:
            raise LookupError("the source is broken")
        return f"#{i}"

    stream = model.embed(Source(make).of_kind(kind))
    results = []
    with pytest.raises(LookupError, match="the source is broken"):
        async for result in stream:
            results.append(number(result))  # noqa: PERF401 (they are wanted in spite of the exception)
    assert results == list(range(30))
    with pytest.raises(LookupError):
        await anext(stream)


@every_kind
async def test_a_source_may_end_the_program(kind: str, model: TextEmbedding) -> None:
    def make(i: int) -> str:
        raise SystemExit(5)

    with pytest.raises(SystemExit):
        await model.embed(Source(make).of_kind(kind)).collect()


@pytest.mark.parametrize("kind", ["generator", "async generator"])
async def test_what_came_before_the_end_of_the_program_is_not_lost(kind: str, model: TextEmbedding) -> None:
    def make(i: int) -> str:
        if i == 7:
            raise SystemExit(5)
        return f"#{i}"

    seen: list[int] = []
    with pytest.raises(SystemExit):
        async for batch in model.embed(Source(make).of_kind(kind)).batches(5):
            seen += [number(row) for row in batch]
    assert seen == list(range(7))


async def test_a_source_that_cannot_begin(model: TextEmbedding) -> None:
    class Broken:
        def __iter__(self) -> Iterator[str]:
            raise LookupError("no beginning")

    class BrokenToo:
        def __aiter__(self) -> AsyncIterator[str]:
            raise LookupError("no beginning")

    for source in (Broken(), BrokenToo()):
        with pytest.raises(LookupError, match="no beginning"):
            await model.embed(source).collect()


async def test_a_list_that_changes_while_it_is_read(narrow: TextEmbedding) -> None:
    source = set(texts(100))
    stream = narrow.embed(source)
    await anext(stream)
    source.add("another")
    with pytest.raises(RuntimeError, match="changed size during iteration"):
        await stream.collect()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], scope="module")
async def test_a_source_that_is_cancelled_from_inside_ends_its_stream(anyio_backend: str) -> None:
    """A task that the source waits for was cancelled: on asyncio that looks like our own cancellation."""
    import asyncio

    async def source() -> AsyncIterator[str]:
        yield "#1"
        task = asyncio.ensure_future(asyncio.sleep(3600))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    async with TextEmbedding(ECHO, workers=0) as model:
        stream = model.embed(source())
        assert number(await anext(stream)) == 1
        with pytest.raises(StateError, match="cancelled"):
            await anext(stream)
        assert await numbers(model.embed(texts(3))) == [0, 1, 2]


async def test_a_stream_is_a_source_for_another(model: TextEmbedding) -> None:
    async with model.embed(texts(5)) as first:
        again = model.embed(first, key=lambda vector: f"#{2 * number(vector)}")
        assert await numbers(again) == [0, 2, 4, 6, 8]


# ---------------------------------------------------------------- records, batches, errors


async def test_records_travel_with_their_vectors(model: TextEmbedding) -> None:
    records = [{"id": i, "text": f"#{i}"} for i in range(20)]
    pairs = [pair async for pair in model.embed(records, key=lambda record: str(record["text"])).with_inputs()]
    assert [record for record, _ in pairs] == records
    assert [number(vector) for _, vector in pairs] == list(range(20))
    inputs, matrix = await model.embed(records, key=lambda record: str(record["text"])).with_inputs().collect()
    assert inputs == records
    assert matrix.shape == (20, 3)


async def test_a_key_that_fails_is_an_error_of_its_input(model: TextEmbedding) -> None:
    stream = model.embed([{"text": "#0"}, {}], key=lambda record: record["text"])
    assert number(await anext(stream)) == 0
    with pytest.raises(InputError, match="KeyError") as caught:
        await anext(stream)
    assert caught.value.index == 1
    assert isinstance(caught.value.__cause__, KeyError)


async def test_a_source_hands_over_an_error_in_the_place_of_a_record(model: TextEmbedding) -> None:
    """In every kind of source; also the same error several times."""
    broken = InputError("a page is missing")
    source: list[str | InputError] = ["#0", broken, "#2", broken, "#4"]

    async def awaited() -> AsyncIterator[str | InputError]:
        for record in source:
            yield record

    for one in (source, iter(source), awaited()):
        failed = model.stats().failed
        results: list[Any] = await model.embed(one, key=str.strip, on_error="return").collect()
        assert [getattr(result, "index", None) for result in results] == [None, 1, None, 3, None]
        assert str(results[3]) == "input 3: a page is missing"
        assert model.stats().failed == failed + 2
    stream = model.embed(iter(source), on_error="skip").with_inputs()
    assert [record async for record, _ in stream] == ["#0", "#2", "#4"]
    assert stream.skipped == 2
    with pytest.raises(InputError, match="input 1: a page is missing"):
        await model.embed(source).collect()


class LyingClass:
    @property
    def __class__(self) -> Any:
        return str

    @__class__.setter
    def __class__(self, value: object) -> None: ...


class RaisingClass:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    @property
    def __class__(self) -> Any:
        raise self._error

    @__class__.setter
    def __class__(self, value: object) -> None: ...


class Unspeakable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError("not even this")


class LongerThanItSays(str):
    __slots__ = ()

    def __len__(self) -> int:
        return -1

    def __sizeof__(self) -> int:
        raise SystemExit(4)


def released() -> memoryview:
    view = memoryview(b"text")
    view.release()
    return view


class Panic(BaseException):
    """As native code raises, which no `except Exception` catches."""


WILD: dict[str, Callable[[], Any]] = {
    "lying class": LyingClass,
    "raising class": lambda: RaisingClass(RuntimeError("no class")),
    "out of memory": lambda: RaisingClass(MemoryError()),
    "end of the program": lambda: RaisingClass(SystemExit(3)),
    "panic": lambda: RaisingClass(Panic("at the disco")),
    "unspeakable": lambda: RaisingClass(Unspeakable()),
    "released": released,
    "bytes": lambda: b"bytes",
}
every_source = pytest.mark.parametrize("kind", ["list", "generator", "async generator"])


def in_source(kind: str, records: list[Any]) -> Any:
    return records if kind == "list" else Source(records.__getitem__, end=len(records)).of_kind(kind)


@every_source
@pytest.mark.parametrize("what", WILD)
async def test_an_input_that_raises_when_it_is_looked_at_fails_alone(
    kind: str, what: str, model: TextEmbedding
) -> None:
    wild = WILD[what]()
    with anyio.fail_after(20):
        results = await model.embed(in_source(kind, ["#0", wild, "#2"]), on_error="return").collect()
        assert isinstance(results[1], InputError)
        assert results[1].index == 1
        assert [number(results[0]), number(results[2])] == [0, 2]
        stream = model.embed(in_source(kind, ["#0", wild, "#2"]), on_error="skip").with_inputs()
        assert [record async for record, _ in stream] == ["#0", "#2"]
        with pytest.raises(InputError):
            await model.embed_query(wild)


async def test_what_a_text_says_of_itself_is_not_believed(model: TextEmbedding) -> None:
    assert await numbers(model.embed([LongerThanItSays("#0"), "#1"])) == [0, 1]


@every_source
@pytest.mark.parametrize("error", [Panic("!"), GeneratorExit(), Unspeakable(), MemoryError(), InputError("empty")])
async def test_a_key_that_raises_anything_fails_for_its_record_alone(
    kind: str, error: BaseException, model: TextEmbedding
) -> None:
    def key(record: str) -> str:
        if record == "#1":
            raise error
        return record

    results: list[Any] = await model.embed(in_source(kind, ["#0", "#1", "#2"]), key=key, on_error="return").collect()
    assert [type(result) for result in results] == [np.ndarray, InputError, np.ndarray]
    assert results[1].index == 1
    assert type(error).__name__ in str(results[1]) or str(results[1]) == "input 1: empty"


@every_source
@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
async def test_a_key_may_end_the_program_and_harms_no_other_stream(
    kind: str, end: type[BaseException], model: TextEmbedding, gate: Path
) -> None:
    def key(record: str) -> str:
        if record == "#20":
            raise end
        return record

    other = model.embed([f"#{i} wait:{gate}" for i in range(30)])
    async with other, anyio.create_task_group() as group:
        group.start_soon(anext, other)
        await until(lambda: model.stats().in_flight > 0)
        gate.touch()
        seen: list[int] = []
        with pytest.raises(end):
            async for row in model.embed(in_source(kind, texts(40)), key=key):
                seen.append(number(row))  # noqa: PERF401 (they are wanted in spite of the exception)
        assert seen == list(range(20))
    assert await numbers(model.embed(texts(3))) == [0, 1, 2]


@every_kind
@pytest.mark.parametrize("error", [Panic("!"), KeyboardInterrupt()])
async def test_whatever_a_source_raises_ends_its_own_stream_only(
    kind: str, error: BaseException, model: TextEmbedding
) -> None:
    def make(i: int) -> str:
        if i == 5:
            raise error
        return f"#{i}"

    stream = model.embed(Source(make).of_kind(kind))
    for i in range(5):
        assert number(await anext(stream)) == i
    with pytest.raises(type(error)):
        await anext(stream)
    assert await numbers(model.embed(texts(3))) == [0, 1, 2]


async def test_a_list_of_a_kind_of_its_own_is_read_in_a_thread(model: TextEmbedding) -> None:
    """What it does to give its elements may block."""

    class Lazy(list[str]):
        thread = 0

        def __iter__(self) -> Iterator[str]:
            Lazy.thread = threading.get_ident()
            return super().__iter__()

    assert await numbers(model.embed(Lazy(texts(5)))) == list(range(5))
    assert Lazy.thread not in (0, threading.get_ident())


async def test_a_key_that_takes_long_leaves_turns_to_others(model: TextEmbedding) -> None:
    turns_between: list[int] = []
    turns = 0

    def key(record: str) -> str:
        turns_between.append(turns)
        busy_until = time.perf_counter() + FEED_SECONDS
        while time.perf_counter() < busy_until:
            pass
        return record

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with anyio.create_task_group() as group:
        group.start_soon(count_turns)
        assert await numbers(model.embed(texts(20), key=key)) == list(range(20))
        group.cancel_scope.cancel()
    assert len(set(turns_between)) >= 8  # trio shuffles the tasks of each turn


async def test_inputs_are_asked_for_before_the_start(model: TextEmbedding) -> None:
    stream = model.embed(texts(3))
    await anext(stream)
    with pytest.raises(StateError, match="before the first result"):
        stream.with_inputs()


async def test_batches_are_arrays_of_so_many_rows(model: TextEmbedding) -> None:
    batches = [batch async for batch in model.embed(texts(25)).batches(10)]
    assert [batch.shape for batch in batches] == [(10, 3), (10, 3), (5, 3)]
    assert np.concatenate(batches)[:, 2].tolist() == list(range(25))
    pairs = [pair async for pair in model.embed(texts(3)).with_inputs().batches(2)]
    assert [inputs for inputs, _ in pairs] == [["#0", "#1"], ["#2"]]
    for size in (0, 2.5, "3", None):
        with pytest.raises(OptionError, match="size must be a whole number, 1 or more; got"):
            model.embed(texts(3)).batches(cast(Any, size))


async def test_large_batches_are_put_together_in_a_thread_and_small_ones_at_once(model: TextEmbedding) -> None:
    places: list[tuple[int, bool]] = []
    here = threading.get_ident()

    def noted(stream: Stream) -> Stream:
        assemble = stream._assembly.assemble

        def note(rows: list[Any]) -> Any:
            places.append((len(rows), threading.get_ident() == here))
            return assemble(rows)

        stream._assembly = replace(stream._assembly, assemble=note)
        return stream

    batches = [batch async for batch in noted(model.embed(texts(1500))).batches(1000)]
    assert np.concatenate(batches)[:, 2].tolist() == list(range(1500))
    inputs, _ = await anext(noted(model.embed(texts(5)).with_inputs()).batches(5))
    assert inputs == texts(5)
    assert len(await noted(model.embed(texts(1500))).collect()) == 1500
    assert len(await noted(model.embed(texts(2))).collect()) == 2
    assert places == [(1000, False), (500, False), (5, True), (1500, False), (2, True)]


async def test_cancelling_while_a_large_batch_is_put_together_loses_no_result(model: TextEmbedding) -> None:
    stream: Stream = model.embed(texts(900))
    batches = stream.batches(400)
    with anyio.CancelScope() as scope:
        batches._taken = await stream._take_some(256)  # what an earlier call had taken
        while len(batches._taken) < 400:
            batches._taken += await stream._take_some(400 - len(batches._taken))
        scope.cancel()
        await anext(batches)
    assert scope.cancelled_caught
    assert [number(row) async for rows in batches for row in rows] == list(range(900))


async def test_collecting_gives_one_array(model: TextEmbedding) -> None:
    matrix = await model.embed(texts(3000)).collect()
    assert matrix.dtype == np.float32
    assert matrix[:, 2].tolist() == list(range(3000))
    assert matrix.flags.owndata


@pytest.mark.parametrize("bad", [3, b"bytes", None, "bad"])
async def test_an_input_that_cannot_be_embedded_ends_the_stream_in_its_turn(bad: Any, model: TextEmbedding) -> None:
    stream = model.embed([*texts(20), bad, *texts(20)])
    results = []
    with pytest.raises(InputError) as caught:
        async for result in stream:
            results.append(number(result))  # noqa: PERF401 (they are wanted in spite of the exception)
    assert results == list(range(20))
    assert caught.value.index == 20


async def test_errors_can_be_skipped_or_returned(model: TextEmbedding) -> None:
    inputs: list[Any] = ["#0", "bad", "#2", 3, "#4"]
    failed_before = model.stats().failed
    stream = model.embed(inputs, on_error="skip")
    assert await numbers(stream) == [0, 2, 4]
    assert (stream.skipped, model.stats().failed - failed_before) == (2, 2)
    results = await model.embed(inputs, on_error="return").collect()
    assert [getattr(result, "index", None) for result in results] == [None, 1, None, 3, None]
    assert [number(results[i]) for i in (0, 2, 4)] == [0, 2, 4]
    batches = [batch async for batch in model.embed(inputs, on_error="return").batches(2)]
    assert [len(batch) for batch in batches] == [2, 2, 1]


async def test_batches_are_of_one_type_whatever_is_in_them(model: TextEmbedding) -> None:
    """Code that stacks or writes a batch would else fail on the first one that is different."""
    inputs: list[Any] = ["#0", "#1", "bad", "#3", "#4", "#5"]
    returned = [batch async for batch in model.embed(inputs, on_error="return").batches(2)]
    assert [type(batch) for batch in returned] == [list, list, list]
    assert type(await model.embed(["#0"], on_error="return").collect()) is list
    assert await model.embed([], on_error="return").collect() == []
    rows, results = await model.embed(["#0"], on_error="return").with_inputs().collect()
    assert (type(rows), type(results)) == (list, list)
    skipped = [batch async for batch in model.embed(inputs, on_error="skip").batches(2)]
    assert [type(batch) for batch in skipped] == [np.ndarray] * 3
    assert [batch.shape for batch in skipped] == [(2, 3), (2, 3), (1, 3)]


async def test_results_before_an_error_are_not_lost_in_a_batch(model: TextEmbedding) -> None:
    batches = model.embed([*texts(5), "bad"]).batches(10)
    assert (await anext(batches)).shape == (5, 3)
    with pytest.raises(InputError):
        await anext(batches)


async def test_a_result_keeps_nothing_else_alive(model: TextEmbedding) -> None:
    async for vector in model.embed(texts(3)):
        assert vector.base is None


@pytest.mark.parametrize(
    "options", [{"on_error": "ignore"}, {"priority": "urgent"}, {"ordered": "no"}, {"key": "text"}, {"long": 0}]
)
async def test_choices_are_checked_at_once(options: dict[str, Any], model: TextEmbedding) -> None:
    with pytest.raises(OptionError):
        model.embed(texts(3), **options)


# ---------------------------------------------------------------- looking at it


async def test_a_stream_says_how_far_it_is(narrow: TextEmbedding) -> None:
    stream = narrow.embed(texts(3))
    assert repr(stream) == "<EmbeddingStream of 'echo' not begun: 0 done, 0 ahead>"
    await anext(stream)
    assert repr(stream) == "<EmbeddingStream of 'echo' reading: 1 done, 2 ahead>"
    batches = stream.batches(2)
    await anext(batches)
    assert repr(batches) == "<BatchStream of 'echo' reading: 3 done, 0 ahead>"
    assert await stream.collect() is not None
    assert repr(stream) == "<EmbeddingStream of 'echo' ended: 3 done, 0 ahead>"


async def test_a_stream_says_what_ended_it(narrow: TextEmbedding) -> None:
    left = narrow.embed(texts(8))
    await anext(left)
    await left.aclose()
    assert repr(left) == "<EmbeddingStream of 'echo' ended: 1 done, 0 ahead>"
    failed = narrow.embed(["#1", "bad"], ordered=True)
    with pytest.raises(InputError):
        await failed.collect()
    assert repr(failed).startswith("<EmbeddingStream of 'echo' ended by InputError")
    skipping = narrow.embed(["#1", "bad"], on_error="skip")
    await skipping.collect()
    assert repr(skipping) == "<EmbeddingStream of 'echo' ended: 1 done, 1 failed, 0 ahead>"


# ---------------------------------------------------------------- tokens


async def test_results_come_with_the_tokens_of_their_inputs_where_asked_for(model: TextEmbedding) -> None:
    """The echo's tokens are characters."""
    stream = model.embed(["#0", "#1 cut", "#22"]).with_tokens()
    items = [item async for item in stream]
    assert [(number(item.result), item.tokens, item.is_cut) for item in items] == [
        (0, 2, False),
        (1, 6, True),
        (22, 3, False),
    ]
    assert all(type(item.tokens) is int and type(item.is_cut) is bool for item in items)
    assert items[0].result.flags.owndata


async def counted_columns(model: TextEmbedding) -> CountedBatch[Any]:
    source = [*(f"{'x' * i} #{i}" for i in range(300)), "cut"]
    return await model.embed(source).with_tokens().collect()


async def test_the_tokens_of_a_collected_stream_are_columns_beside_its_results(model: TextEmbedding) -> None:
    results, tokens, is_cut = await counted_columns(model)
    assert results.shape == (301, 3)
    assert tokens.dtype == np.int32
    assert is_cut.dtype == np.bool_
    assert tokens.tolist() == [int(row[0]) for row in results]
    assert np.flatnonzero(is_cut).tolist() == [300]
    empty = await model.embed([]).with_tokens().collect()
    assert (empty.results.shape, empty.tokens.shape, empty.is_cut.shape) == ((0, 3), (0,), (0,))


@pytest.mark.slow
async def test_processes_count_as_threads_do(model: TextEmbedding, processes: WorkerPool) -> None:
    async with TextEmbedding(ECHO, pool=processes) as other:
        for ours, theirs in zip(await counted_columns(other), await counted_columns(model), strict=True):
            np.testing.assert_array_equal(
                ours if ours.ndim == 1 else ours[:, 2], theirs if ours.ndim == 1 else theirs[:, 2]
            )


async def test_tokens_come_with_batches_too(model: TextEmbedding) -> None:
    batches = [batch async for batch in model.embed(texts(5)).with_tokens().batches(2)]
    assert [batch.tokens.tolist() for batch in batches] == [[2, 2], [2, 2], [2]]
    assert [len(batch.results) for batch in batches] == [2, 2, 1]


async def test_tokens_and_inputs_may_be_asked_for_together_in_either_order(model: TextEmbedding) -> None:
    records = [{"text": "#0 cut"}, {"text": "#1"}]

    def stream() -> EmbeddingStream[dict[str, str], Any, Any]:
        return model.embed(records, key=lambda record: record["text"])

    pairs = [pair async for pair in stream().with_tokens().with_inputs()]
    assert [record for record, _ in pairs] == records
    assert [(item.tokens, item.is_cut) for _, item in pairs] == [(6, True), (2, False)]
    items = [item async for item in stream().with_inputs().with_tokens()]
    assert [item.result[0] for item in items] == records
    assert [(number(item.result[1]), item.tokens) for item in items] == [(0, 6), (1, 2)]
    inputs, counted = await stream().with_tokens().with_inputs().collect()
    assert (inputs, counted.tokens.tolist(), counted.results.shape) == (records, [6, 2], (2, 3))
    (inputs, matrix), tokens, is_cut = await stream().with_inputs().with_tokens().collect()
    assert (inputs, matrix.shape, tokens.tolist(), is_cut.tolist()) == (records, (2, 3), [6, 2], [True, False])


async def test_an_error_in_the_place_of_a_result_has_no_tokens(model: TextEmbedding) -> None:
    """Neither one of a worker nor one that comes before any."""
    source = cast("list[str]", ["#0", "bad", 3, "#1"])
    items = [item async for item in model.embed(source, on_error="return").with_tokens()]
    assert [item.tokens for item in items] == [2, 0, 0, 2]
    assert [isinstance(item.result, InputError) for item in items] == [False, True, True, False]
    results, tokens, _ = await model.embed(source, on_error="return").with_tokens().collect()
    assert [isinstance(result, InputError) for result in results] == [False, True, True, False]
    assert tokens.tolist() == [2, 0, 0, 2]
    skipping = await model.embed(["#0", "bad", "#17"], on_error="skip", ordered=False).with_tokens().collect()
    assert sorted(skipping.tokens.tolist()) == [2, 3]


async def test_tokens_are_asked_for_once_and_before_the_first_result(model: TextEmbedding) -> None:
    first = model.embed(texts(3))
    stream = first.with_tokens()
    with pytest.raises(StateError, match="with_tokens"):
        await anext(first)
    for taken in (first, stream):
        with pytest.raises(StateError, match="once"):
            taken.with_tokens()
    assert number((await anext(stream)).result) == 0
    for ask in (stream.with_tokens, stream.with_inputs):
        with pytest.raises(StateError, match="before the first result"):
            ask()
    await stream.aclose()


async def test_a_stream_says_at_its_end_how_many_inputs_were_cut(
    model: TextEmbedding, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, whether tokens were asked for or not; nothing if none was."""
    with caplog.at_level("INFO", logger="asyncembed"):
        await model.embed(texts(3)).collect()
        assert not caplog.messages
        await model.embed(["#0 cut", "#1", "#2 cut"]).collect()
        (message,) = caplog.messages
        assert message.startswith("echo: 2 of 3 inputs of a stream were longer than the limit and were cut; ")
        caplog.clear()
        async with model.embed(["#0 cut"]).with_tokens() as stream:
            await anext(stream)
        assert len(caplog.messages) == 1


# ---------------------------------------------------------------- a source that trickles


class Trickle:
    """A source that gives its next records when it is told to, and says when it has given all that it may."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[str](100)

    def give(self, *records: str) -> None:
        for record in records:
            self._send.send_nowait(record)

    def end(self) -> None:
        self._send.close()

    async def records(self) -> AsyncGenerator[str]:
        async with self._receive:
            async for record in self._receive:
                yield record


@pytest.fixture
def trickle() -> Iterator[Trickle]:
    source = Trickle()
    yield source
    source.end()


async def taken(batches: Any, count: int) -> list[Any]:
    """The rows of as many batches as it takes for `count` rows."""
    rows: list[Any] = []
    while len(rows) < count:
        batch = await anext(batches)
        assert len(batch)
        rows.extend(batch)
    return rows


@pytest.mark.parametrize("max_wait", [0, 0.001])
@pytest.mark.parametrize("ordered", [True, False])
async def test_a_batch_does_not_wait_for_a_source_that_trickles(
    max_wait: float, ordered: bool, trickle: Trickle, model: TextEmbedding
) -> None:
    async with model.embed(trickle.records(), ordered=ordered) as stream:
        batches = stream.batches(10, max_wait)
        for start in (0, 3, 6):
            trickle.give(*texts(9)[start : start + 3])
            assert sorted(number(row) for row in await taken(batches, 3)) == [start, start + 1, start + 2]
        trickle.end()
        with pytest.raises(StopAsyncIteration):
            await anext(batches)


async def test_a_batch_is_full_before_its_time_where_the_source_gives_enough(
    trickle: Trickle, model: TextEmbedding
) -> None:
    async with model.embed(trickle.records()) as stream:
        batches = stream.batches(10, max_wait=3600)
        trickle.give(*texts(25))
        for start in (0, 10):
            assert [number(row) for row in await anext(batches)] == list(range(start, start + 10))
        trickle.end()
        assert [number(row) for row in await anext(batches)] == list(range(20, 25))
        with pytest.raises(StopAsyncIteration):
            await anext(batches)


async def test_the_time_of_a_batch_counts_from_when_its_first_row_was_ready(
    trickle: Trickle, model: TextEmbedding
) -> None:
    """Not from when somebody asks for it: a consumer that was busy does not wait once more."""
    before = model.stats().items
    async with model.embed(trickle.records()) as stream:
        batches = stream.batches(2, max_wait=3600)
        trickle.give(*texts(3))
        assert len(await anext(batches)) == 2
        await until(lambda: model.stats().items == before + 3)
        await anyio.wait_all_tasks_blocked()
        assert stream._state._ready_since is not None
        stream._state._ready_since -= 3600
        assert [number(row) for row in await anext(batches)] == [2]
        trickle.give("#3", "#4")  # and the next one has a time of its own
        assert [number(row) for row in await anext(batches)] == [3, 4]


async def test_a_cancelled_wait_keeps_its_rows_and_their_time(trickle: Trickle, model: TextEmbedding) -> None:
    async with model.embed(trickle.records()) as stream:
        batches = stream.batches(10, max_wait=3600)
        for so_far in (3, 6):
            trickle.give(*texts(so_far)[-3:])
            async with anyio.create_task_group() as group:
                group.start_soon(anext, batches)
                await until(partial(lambda count: len(batches._taken) == count, so_far))
                group.cancel_scope.cancel()
        batches._until -= 3600
        assert [number(row) for row in await anext(batches)] == list(range(6))
        trickle.give(*texts(3))
        with anyio.move_on_after(0):
            await anext(batches)
        trickle.end()
        assert [number(row) for row in await anext(batches)] == [0, 1, 2]


@pytest.mark.parametrize("on_error", ["raise", "skip", "return", lambda *_: None])
async def test_a_trickling_batch_has_inputs_and_errors_as_others_have(
    on_error: OnError, trickle: Trickle, model: TextEmbedding
) -> None:
    stream = cast(Stream, model.embed(trickle.records(), on_error=on_error)).with_inputs()
    batches = stream.batches(10, max_wait=0)
    trickle.give("#0", "bad #1", "#2")
    rows: list[tuple[str, Any]] = []
    if on_error == "raise":
        with pytest.raises(InputError):
            while True:
                rows += zip(*await anext(batches), strict=True)
    else:
        while not rows or rows[-1][0] != "#2":
            rows += zip(*await anext(batches), strict=True)
    await stream.aclose()
    expected = {"raise": ["#0"], "return": ["#0", "bad #1", "#2"]}
    assert [text for text, _ in rows] == expected.get(cast(str, on_error), ["#0", "#2"])


async def test_records_that_are_left_out_make_no_empty_batch(trickle: Trickle, model: TextEmbedding) -> None:
    async with model.embed(trickle.records(), on_error="skip") as stream:
        batches = stream.batches(10, max_wait=0)
        trickle.give("bad", "bad")
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(anext, batches)
                await until(lambda: stream.skipped == 2)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        trickle.give("#7")
        assert [number(row) for row in await anext(batches)] == [7]


@pytest.mark.slow
async def test_several_tasks_may_take_trickling_batches(trickle: Trickle, model: TextEmbedding) -> None:
    """A task whose batch another one has given goes on waiting: it does not take that for the end."""
    seen: list[int] = []
    batches = model.embed(trickle.records()).batches(4, max_wait=0.0005)

    async def consume() -> None:
        async for rows in batches:
            assert len(rows)
            seen.extend(number(row) for row in rows)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(consume)
        for i in range(60):
            trickle.give(f"#{i}")
            if i % 7 == 0:
                await until(partial(lambda count: len(seen) == count, i + 1))
        trickle.end()
    assert sorted(seen) == list(range(60))


@pytest.mark.parametrize("max_wait", [-1, "1", float("nan"), True])
async def test_the_time_of_a_batch_is_checked(max_wait: Any, model: TextEmbedding) -> None:
    with pytest.raises(OptionError, match="max_wait must be a number of at least 0; got"):
        model.embed(texts(3)).batches(2, max_wait)


async def test_what_is_ready_is_taken_at_once(model: TextEmbedding) -> None:
    stream = await all_ready(model, 30)
    assert [number(row) for row in await stream.take_some(10)] == list(range(1, 11))
    assert [number(row) for row in await stream.take_some()] == list(range(11, 30))
    assert await stream.take_some() == []
    with pytest.raises(OptionError, match="limit must be a whole number, 1 or more; got 0"):
        await stream.take_some(0)


async def test_taking_some_waits_for_one_result_only(trickle: Trickle, model: TextEmbedding) -> None:
    async with model.embed(trickle.records()).with_inputs() as stream:
        trickle.give("#5")
        ((text, row),) = await stream.take_some(10)
        assert (text, number(row)) == ("#5", 5)
        assert row.base is None
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(stream.take_some)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        trickle.give("#6")
        assert [text for text, _ in await stream.take_some()] == ["#6"]


async def test_results_before_an_error_are_taken_before_it(model: TextEmbedding) -> None:
    stream = model.embed(["#0", "#1", 3, "#4"])  # type: ignore[list-item]
    seen: list[Any] = []
    with pytest.raises(InputError):
        while some := await stream.take_some():
            seen += some
    assert [number(row) for row in seen] == [0, 1]


# ---------------------------------------------------------------- a function that hears of failures


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("way", ["one by one", "batches", "collect", "some"])
@pytest.mark.parametrize("kind", ["list", "generator"])
async def test_a_function_is_called_for_each_record_that_fails(
    kind: str, way: str, ordered: bool, model: TextEmbedding
) -> None:
    """Whether the source, the key, the input or the worker is to blame; in input order, as the results."""
    broken = InputError("line 3 is no JSON")
    records: list[Any] = [
        {"text": "#0"},
        {"no": 1},
        {"text": "bad"},
        broken,
        {"text": 4},
        {"text": "#5"},
        {"text": "bad"},
    ]
    failed: list[tuple[Any, Any]] = []
    stream = cast(
        Stream,
        model.embed(
            records if kind == "list" else (record for record in records),
            key=lambda record: record["text"],
            on_error=lambda record, error: failed.append((record, error)),
            ordered=ordered,
        ),
    )
    match way:
        case "one by one":
            rows = [row async for row in stream]
        case "batches":
            rows = [row async for batch in stream.batches(2) for row in batch]
        case "collect":
            rows = list(await stream.collect())
        case _:
            rows = []
            while some := await stream.take_some(3):
                rows += some
    if not ordered:
        rows.sort(key=number)
        failed.sort(key=lambda pair: pair[1].index)
    assert [number(row) for row in rows] == [0, 5]
    assert [record for record, _ in failed] == [records[i] for i in (1, 2, 3, 4, 6)]
    assert [error.index for _, error in failed] == [1, 2, 3, 4, 6]
    assert failed[2][0] is broken
    assert stream.skipped == 5


@pytest.mark.parametrize("family", get_args(Family))
async def test_every_family_tells_a_function_of_failures(family: Family, pool: WorkerPool) -> None:
    broken, failed = InputError("line 1 is no JSON"), list[Any]()
    embedders: dict[Family, tuple[type[Any], tuple[str, ...]]] = {
        "text": (TextEmbedding, ("embed", "query_embed", "passage_embed")),
        "sparse": (SparseTextEmbedding, ("embed", "query_embed", "passage_embed")),
        "late_interaction": (LateInteractionTextEmbedding, ("embed", "query_embed", "passage_embed")),
        "hybrid": (HybridTextEmbedding, ("embed", "query_embed", "passage_embed")),
        "image": (ImageEmbedding, ("embed",)),
        "late_interaction_multimodal": (LateInteractionMultimodalEmbedding, ("embed_text", "embed_image")),
        "cross_encoder": (TextCrossEncoder, ("rerank_pairs", "rerank")),
    }
    embedder, methods = embedders[family]
    async with embedder(replace(ECHO, family=family), pool=pool) as model:
        for method in methods:
            failed.clear()
            query = ["a query"] if method == "rerank" else []
            stream = getattr(model, method)(
                *query,
                [{"of": 3}, broken, {}],
                key=lambda record: record["of"],
                on_error=lambda record, error: failed.append((record, error.index)),
            )
            assert len(await stream.collect()) == 0
            assert failed == [({"of": 3}, 0), (broken, 1), ({}, 2)]


async def test_a_function_hears_of_failures_also_where_inputs_travel_along(model: TextEmbedding) -> None:
    failed: list[Any] = []
    stream = model.embed(["#0", "bad", "#2"], on_error=lambda record, _: failed.append(record)).with_inputs()
    inputs, matrix = await stream.collect()
    assert inputs == ["#0", "#2"]
    assert matrix.shape == (2, 3)
    assert failed == ["bad"]


@pytest.mark.parametrize("error", [LookupError("the disk is full"), KeyboardInterrupt(), SystemExit(3)])
async def test_what_a_function_raises_ends_the_stream(error: BaseException, model: TextEmbedding) -> None:
    def refuse(record: object, failure: Exception) -> None:
        raise error

    source = Source("#{} bad".format)
    stream = model.embed(source.generator(), on_error=refuse)
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            await anext(stream)
        assert caught.value is error
    await until(lambda: source.is_closed)
    batches = model.embed(["#0", "#1", "bad", "#3"], on_error=refuse).batches(4)
    assert len(await anext(batches)) == 2
    with pytest.raises(type(error)):
        await anext(batches)


async def test_an_error_that_is_of_no_input_is_not_told_to_a_function(model: TextEmbedding) -> None:
    def records() -> Iterator[str]:
        yield "bad"
        raise LookupError("the source is broken")

    failed: list[str] = []
    with pytest.raises(LookupError):
        await model.embed(records(), on_error=lambda record, _: failed.append(record)).collect()
    assert failed == ["bad"]


async def handle(record: object, error: Exception) -> None:
    """A coroutine, which nobody would await."""


class Handler:
    async def __call__(self, record: object, error: Exception) -> None:
        """Likewise."""


@pytest.mark.parametrize("on_error", [handle, partial(handle, error=ValueError()), Handler()])
async def test_a_coroutine_function_is_refused(on_error: Any, model: TextEmbedding) -> None:
    with pytest.raises(OptionError, match="on_error must be a plain function"):
        model.embed(texts(3), on_error=on_error)


async def test_a_function_that_gives_a_coroutine_ends_the_stream(model: TextEmbedding) -> None:
    with pytest.raises(UsageError, match="nothing waits for the coroutine"):
        await model.embed(["bad"], on_error=lambda record, error: handle(record, error)).collect()


# ---------------------------------------------------------------- how far it is


def counts(stream: Any) -> tuple[int, int, int]:
    progress = stream.progress()
    return progress.read, progress.done, progress.failed


async def test_progress_counts_what_was_read_done_and_failed(narrow: TextEmbedding) -> None:
    stream = narrow.embed([*texts(3), "bad", *texts(30)], on_error="skip")
    assert stream.progress() == StreamProgress(read=0, done=0, failed=0, tokens=0, seconds=0, total=34)
    for done in (1, 2, 3):
        await anext(stream)
        read, *rest = counts(stream)
        assert rest == [done, 0]
        assert done <= read <= done + 8
    await anext(stream)  # the one after the bad one
    assert counts(stream)[1:] == (4, 1)
    await stream.collect()
    assert counts(stream) == (34, 33, 1)


@pytest.mark.parametrize("on_error", ["raise", "skip", "return", lambda *_: None])
@pytest.mark.parametrize("ordered", [True, False])
async def test_what_failed_is_counted_whatever_becomes_of_it(
    on_error: OnError, ordered: bool, model: TextEmbedding
) -> None:
    records: list[Any] = ["#0", 7, "bad", "#3"]
    stream = cast(Stream, model.embed(records, on_error=on_error, ordered=ordered))
    batches = stream.with_inputs().batches(3)
    if on_error == "raise":
        with pytest.raises(InputError):
            while True:
                await anext(batches)
        assert counts(batches)[2] == 1
    else:
        async for _ in batches:
            pass
        assert counts(batches) == counts(stream) == (4, 2, 2)


async def test_progress_stays_as_it_was_when_the_stream_ended(model: TextEmbedding) -> None:
    stream = await all_ready(model, 20)
    await anext(stream)
    await stream.aclose()
    progress = stream.progress()
    assert (progress.read, progress.done, progress.failed) == (20, 2, 0)
    assert progress.seconds > 0
    assert stream.progress() is progress
    with pytest.raises(FrozenInstanceError):
        progress.done = 3  # type: ignore[misc]


async def test_progress_has_the_tokens_of_what_is_computed(model: TextEmbedding, gate: Path) -> None:
    stream = model.embed(["a text of some words"] * 50 + [f"wait:{gate} " + "x" * 5000])
    for _ in range(50):
        await anext(stream)
    before = stream.progress().tokens
    assert before > 0
    gate.touch()
    await stream.collect()
    assert stream.progress().tokens > 5 * before


async def test_progress_says_how_many_there_are_in_all_where_it_can(model: TextEmbedding) -> None:
    class Unsure(list[str]):
        def __len__(self) -> int:
            raise LookupError

    assert model.embed(texts(7)).progress().total == 7
    assert model.embed(set(texts(7)), total=9).progress().total == 9
    assert model.embed(iter(texts(7))).progress().total is None
    assert model.embed((text for text in texts(7)), total=7).progress().total == 7
    assert model.embed(Unsure(texts(7)), progress=True).progress().total is None
    assert await numbers(model.embed(Unsure(texts(7)))) == list(range(7))


class OfADatabase:
    """Records whose number is a query, as with the row sets of some libraries."""

    def __init__(self) -> None:
        self.was_counted = False

    def __len__(self) -> int:
        self.was_counted = True
        return 3

    def __iter__(self) -> Iterator[str]:
        return iter(texts(3))


async def test_a_source_that_may_take_long_to_count_is_not_asked_unless_a_bar_is_to_show_it(
    model: TextEmbedding,
) -> None:
    rows = OfADatabase()
    assert len(await model.embed(rows).collect()) == 3
    assert not rows.was_counted
    assert model.embed(rows).progress().total is None
    assert model.embed(rows, progress=True).progress().total == 3


def test_rates_are_of_all_that_is_through() -> None:
    progress = StreamProgress(read=100, done=60, failed=20, tokens=1000, seconds=4, total=None)
    assert progress.items_per_second == 20
    assert progress.tokens_per_second == 250
    unread = replace(progress, seconds=0)
    assert unread.items_per_second == unread.tokens_per_second == 0


# ---------------------------------------------------------------- leaving


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize("way", ["drop", "aclose", "async with"])
async def test_leaving_early_ends_the_source_and_withdraws_what_waits(
    way: str, kind: str, narrow: TextEmbedding
) -> None:
    async with nothing_left_behind():
        source = Source()
        stream = narrow.embed(source.of_kind(kind))
        if way == "async with":
            async with stream:
                async for _ in stream:
                    break
            assert source.is_closed
        else:
            async for _ in stream:
                break
        if way == "aclose":
            await stream.aclose()
            assert source.is_closed
            assert await numbers(stream) == []
            await stream.aclose()
        del stream
        gc.collect()
        await until(lambda: source.is_closed)
        assert narrow.stats().queued == 0


@pytest.mark.slow
async def test_a_loop_over_a_temporary_ends_with_the_loop(narrow: TextEmbedding) -> None:
    source = Source()
    async for _ in narrow.embed(source.generator()):
        break
    gc.collect()
    await until(lambda: source.is_closed)


@pytest.mark.slow
@pytest.mark.parametrize("takes", ["results", "batches", "on any loop", "batches on any loop"])
async def test_a_cancelled_loop_over_a_temporary_ends_it_though_its_error_is_kept(
    takes: str, narrow: TextEmbedding, gate: Path
) -> None:
    """As event loops and web frameworks keep it, in cycles that only the garbage collector ends."""
    source = Source(lambda number: f"#{number}" if number else f"wait:{gate}")
    kept: list[BaseException] = []
    far = narrow.on_any_loop()

    async def loop() -> None:
        model = far if "any loop" in takes else narrow
        try:
            async for _ in model.embed(source.generator()).batches(2) if "batches" in takes else model.embed(source):
                pass
        except anyio.get_cancelled_exc_class() as cancelled:
            kept.append(cancelled)
            raise

    async with far, anyio.create_task_group() as group:
        group.start_soon(loop)
        await until(lambda: narrow.stats().in_flight > 0)
        group.cancel_scope.cancel()
    await until(lambda: source.is_closed)
    assert kept


async def test_a_stream_goes_on_after_a_break(model: TextEmbedding) -> None:
    stream = model.embed(texts(10))
    async for result in stream:
        if number(result) == 3:
            break
    assert await numbers(stream) == [4, 5, 6, 7, 8, 9]


@pytest.mark.slow
@pytest.mark.parametrize("batched", [False, True])
async def test_a_cancelled_consumer_loses_no_result(batched: bool, narrow: TextEmbedding, tmp_path: Path) -> None:
    """It was cancelled while it waited; whoever goes on gets everything from there."""
    gates = [tmp_path / f"gate{i}" for i in range(3)]
    stream = narrow.embed([f"#{i} wait:{gates[i // 10]}" for i in range(30)])
    batches = stream.batches(7)
    seen: list[int] = []
    for gate in gates:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def consume() -> None:
                    if batched:
                        async for rows in batches:
                            seen.extend(number(row) for row in rows)
                    else:
                        async for row in stream:
                            seen.append(number(row))

                group.start_soon(consume)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        gate.touch()
    seen += await numbers(stream) if not batched else [number(row) async for rows in batches for row in rows]
    assert seen == list(range(30))


async def test_taking_results_that_are_ready_lets_others_run(model: TextEmbedding) -> None:
    """However quickly they are taken, and also if the loop's body never waits."""
    stream = await all_ready(model, 300)
    turns = 0

    async def count_turns(task_status: TaskStatus[None]) -> None:
        nonlocal turns
        task_status.started()
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with anyio.create_task_group() as group:
        # It has to run already: trio shuffles the tasks of each turn, so one that starts late may lose some.
        await group.start(count_turns)
        turns = 0
        for _ in range(50):
            await anext(stream)
            busy_until = time.perf_counter() + 2 * TURN_SECONDS
            while time.perf_counter() < busy_until:
                pass
        group.cancel_scope.cancel()
    assert turns >= 49


async def test_taking_a_result_that_is_ready_can_be_cancelled(model: TextEmbedding) -> None:
    stream = await all_ready(model, 300)
    with anyio.CancelScope() as scope:
        while True:
            last = number(await anext(stream))
            if last == 20:
                scope.cancel()
    assert scope.cancelled_caught
    assert await numbers(stream) == list(range(21, 300))


@pytest.mark.slow
async def test_a_timeout_around_a_stream_withdraws_what_waits(narrow: TextEmbedding, gate: Path) -> None:
    source = Source(lambda i: f"#{i} wait:{gate}")
    with anyio.move_on_after(0.05) as scope:
        async with narrow.embed(source.async_generator()) as stream:
            await stream.collect()
    assert scope.cancelled_caught
    await until(lambda: source.is_closed)
    assert narrow.stats().queued == 0
    gate.touch()
    assert await numbers(narrow.embed(texts(5))) == list(range(5))


async def test_an_exception_of_the_loops_body_comes_out_as_itself(narrow: TextEmbedding) -> None:
    source = Source()
    with pytest.raises(KeyError):
        async with narrow.embed(source.async_generator()) as stream:
            async for _ in stream:
                raise KeyError("mine")
    assert source.is_closed


@pytest.mark.slow
async def test_a_source_that_blocks_for_ever_delays_nobody(narrow: TextEmbedding) -> None:
    gate = threading.Event()

    def source() -> Iterator[str]:
        yield "#0"
        gate.wait()

    async with nothing_left_behind():
        async with narrow.embed(source()) as stream:
            assert number(await anext(stream)) == 0
        # The thread is left behind, inside the source; it ends when that answers.
        gate.set()


async def test_closing_does_not_disturb_other_streams(model: TextEmbedding, gate: Path) -> None:
    async with anyio.create_task_group() as group:
        results: list[int] = []

        async def lasting() -> None:
            results.extend(await numbers(model.embed([f"#{i} wait:{gate}" for i in range(300)])))

        group.start_soon(lasting)
        await until(lambda: model.stats().in_flight > 0)
        async with model.embed([f"#{i} wait:{gate}" for i in range(300, 600)]) as stream:
            group.start_soon(_next_or_end, stream)
            await until(lambda: model.stats().queued > 300)
        gate.touch()
    assert results == list(range(300))


async def _next_or_end(stream: Stream) -> None:
    with suppress(StopAsyncIteration):
        await anext(stream)


async def test_closing_wakes_a_consumer_that_waits(model: TextEmbedding, gate: Path) -> None:
    stream = model.embed([f"wait:{gate}"])
    results: list[list[int]] = []

    async def consume() -> None:
        results.append(await numbers(stream))

    async with anyio.create_task_group() as group:
        group.start_soon(consume)
        await until(lambda: model.stats().in_flight == 1)
        await stream.aclose()
    assert results == [[]]
    gate.touch()


async def test_several_tasks_may_take_from_one_stream(model: TextEmbedding) -> None:
    stream = model.embed(Source(end=500).async_generator())
    seen: list[int] = []

    async def consume() -> None:
        async for row in stream:
            seen.append(number(row))
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(consume)
    assert sorted(seen) == list(range(500))


@pytest.mark.slow
async def test_several_tasks_may_take_batches_from_one_stream(model: TextEmbedding) -> None:
    async def source() -> AsyncIterator[str]:
        for i in range(60):
            if i % 3:
                await anyio.sleep(0.002)
            yield f"#{i}"

    batches = model.embed(source()).batches(4)
    seen: list[int] = []
    sizes: list[int] = []

    async def consume() -> None:
        async for batch in batches:
            sizes.append(len(batch))
            seen.extend(number(row) for row in batch)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(consume)
    assert sorted(seen) == list(range(60))
    assert max(sizes) <= 4


@pytest.mark.slow
async def test_closing_the_embedder_ends_its_streams(pool: WorkerPool) -> None:
    async with nothing_left_behind():
        source, unread = Source(), Source()
        async with TextEmbedding(ECHO, pool=pool, max_in_flight=8) as model:
            stream, unstarted = model.embed(source.async_generator()), model.embed(unread.generator())
            assert number(await anext(stream)) == 0
        assert source.is_closed
        for ended in (stream, unstarted):
            with pytest.raises(StateError, match="closed before the stream had ended"):
                await anext(ended)
            await ended.aclose()
        assert unread.pulled == 0
        del stream, unstarted, ended


async def test_closing_the_embedder_wakes_a_consumer_in_another_task(pool: WorkerPool, gate: Path) -> None:
    errors: list[StateError] = []

    async def consume(stream: Stream) -> None:
        try:
            await stream.collect()
        except StateError as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        async with TextEmbedding(ECHO, pool=pool) as model:
            group.start_soon(consume, model.embed([f"wait:{gate}"]))
            await until(lambda: model.stats().in_flight == 1)
        gate.touch()
    assert len(errors) == 1


@pytest.mark.slow
@pytest.mark.parametrize("on_error", ["raise", "skip", "return"])
@pytest.mark.parametrize("kind", ["list", "async generator"])
async def test_a_pool_that_closes_ends_the_streams_of_embedders_in_other_tasks(kind: str, on_error: OnError) -> None:
    """Whatever becomes of bad inputs: it is no input that is to blame, and results would be missing in silence."""
    closed, begun = anyio.Event(), anyio.Event()
    seen: list[int] = []

    async def more() -> AsyncIterator[str]:
        for i in range(3):
            yield f"#{i}"
        await closed.wait()
        for i in range(3, 6):
            yield f"#{i}"

    async def consume(pool: WorkerPool) -> None:
        async with TextEmbedding(ECHO, pool=pool, max_in_flight=4) as model:
            source: Any = texts(400) if kind == "list" else more()
            with pytest.raises(StateError, match="was closed"):
                async for row in model.embed(source, on_error=on_error):
                    seen.append(number(row))
                    if len(seen) == 3:
                        begun.set()
                        await closed.wait()

    async with nothing_left_behind(), anyio.create_task_group() as group:
        async with WorkerPool(workers=1) as pool:
            group.start_soon(consume, pool)
            await begun.wait()
        closed.set()
    assert seen == list(range(len(seen)))


@pytest.mark.slow
def test_a_stream_dropped_after_its_loop_has_ended_is_no_trouble(anyio_backend: str) -> None:
    async def make() -> Stream:
        async with TextEmbedding(ECHO, workers=0) as model:
            stream = model.embed(texts(3))
            await anext(stream)
            return stream

    stream = run_in_a_loop_of_its_own(make, anyio_backend)
    del stream
    gc.collect()


@pytest.mark.parametrize("way", ["next", "batch", "collect"])
async def test_a_stream_begun_on_one_loop_is_not_taken_from_on_another(
    way: str, narrow: TextEmbedding, anyio_backend: str
) -> None:
    """Nothing would ever wake whoever waits there."""
    source = Source()
    stream = narrow.embed(source.async_generator())
    assert number(await anext(stream)) == 0

    async def elsewhere() -> None:
        with anyio.fail_after(20), pytest.raises(StateError, match="begun on another event loop"):
            match way:
                case "next":
                    while True:
                        await anext(stream)
                case "batch":
                    await anext(stream.batches(100))
                case "collect":
                    await stream.collect()

    await anyio.to_thread.run_sync(run_in_a_loop_of_its_own, elsewhere, anyio_backend)
    if way != "collect":
        assert number(await anext(stream)) >= 1


async def test_a_stream_closed_on_another_loop_ends_on_its_own(narrow: TextEmbedding, anyio_backend: str) -> None:
    source = Source()
    stream = narrow.embed(source.async_generator())
    assert number(await anext(stream)) == 0
    await anyio.to_thread.run_sync(run_in_a_loop_of_its_own, stream.aclose, anyio_backend)
    await until(lambda: source.is_closed)
    assert await numbers(stream) == []


def test_a_stream_belongs_to_its_loop(anyio_backend: str) -> None:
    async def make() -> Stream:
        async with TextEmbedding(ECHO, workers=0) as model:
            return model.embed(texts(3))

    stream = run_in_a_loop_of_its_own(make, anyio_backend)

    async def use() -> None:
        with pytest.raises(StateError):
            await anext(stream)

    run_in_a_loop_of_its_own(use, anyio_backend)
