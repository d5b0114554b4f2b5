"""Feeding: three feeders and the handover, over an intake that answers when the test says so. No worker computes."""

import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from queue import SimpleQueue
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncembed.engine.pool import WorkerPool, engine_of
from asyncembed.engine.scheduler import BatchKey, Item, Priority
from asyncembed.engine.supervisor import Supervisor
from asyncembed.errors import InputError
from asyncembed.feeding import Handover, Means, OnError, Recipient, StreamState
from asyncembed.results import Assembly
from asyncembed.stream import EmbeddingStream

KEY = BatchKey(model=0, call=None, max_batch_tokens=64, max_batch_size=8)
KINDS = ["list", "generator", "async generator"]

Stream = EmbeddingStream[int, int, list[int]]


AS_THEY_ARE: Assembly[int, list[int]] = Assembly(lambda one: one, list)


class Held:
    """An intake of whole numbers, -1 being none, that lets each wait until it is answered: with itself."""

    batch_key = KEY

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.failed = 0
        self.on_submit: Callable[[], None] = lambda: None

    def item(self, record: int | InputError, index: int, sink: Recipient) -> tuple[Item, int]:
        if not isinstance(record, int) or record < 0:
            raise InputError("no input", index=index)
        return Item(record, 1 + record, KEY, Priority.BULK, sink, index), record

    def count_failure(self) -> None:
        self.failed += 1

    def admit(self, count: int) -> None:
        """There is always room."""

    def submit(self, items: list[Item]) -> None:
        self.items += items
        self.on_submit()

    def withdraw(self, items: list[Item]) -> None:
        """Whatever waits is answered all the same."""

    def answer(self, position: int = 0) -> None:
        """Answer one of those that wait."""
        item = self.items.pop(position % len(self.items))
        item.sink.deliver(item.index, item.value)


def in_source(kind: str, records: list[int]) -> Any:
    async def awaited() -> AsyncIterator[int]:
        for record in records:
            yield record

    match kind:
        case "list":
            return records
        case "generator":
            return (record for record in records)
        case _:
            return awaited()


@pytest.fixture(scope="module")
async def engine(anyio_backend: str) -> AsyncGenerator[Supervisor]:
    """One thread of this process, which has nothing to do."""
    async with WorkerPool(workers=0) as pool:
        yield engine_of(pool)


@asynccontextmanager
async def fed(
    engine: Supervisor,
    source: Any,
    intake: Held,
    *,
    max_items: int = 8,
    on_error: OnError = "return",
    ordered: bool = True,
) -> AsyncGenerator[Stream]:
    """A stream of the source's numbers."""
    async with anyio.create_task_group() as group:
        state: StreamState[int] = StreamState(
            engine.loop,
            Means(engine, intake, None),
            model_name="numbers",
            max_items=max_items,
            max_bytes=10_000,
            ordered=ordered,
            on_error=on_error,
            on_end=lambda _: None,
        )
        async with EmbeddingStream(state, source, group, AS_THEY_ARE) as stream:
            yield stream


async def take_all(stream: Stream, seen: list[Any]) -> None:
    async for result in stream:
        seen.append(result)  # noqa: PERF401 (those before an error are wanted)


# ---------------------------------------------------------------- feeders


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(st.one_of(st.integers(0, 5), st.integers(500, 6000), st.just(-1)), max_size=40),
    order=st.lists(st.integers(0, 50), min_size=1, max_size=20),
    ordered=st.booleans(),
)
async def test_every_record_has_one_result_whatever_the_order_of_the_answers(
    kind: str, records: list[int], order: list[int], ordered: bool, engine: Supervisor
) -> None:
    intake = Held()
    seen: list[Any] = []
    asked = 0

    async with anyio.create_task_group() as group:
        async with fed(engine, in_source(kind, records), intake, ordered=ordered) as stream:
            came = anyio.Event()
            intake.on_submit = lambda: came.set()
            is_done = False

            async def consume() -> None:
                nonlocal is_done
                await take_all(stream, seen)
                is_done = True
                came.set()

            group.start_soon(consume)
            # The feeder is woken by what is answered and taken, or this would never end.
            with anyio.fail_after(20):
                while not is_done:
                    if intake.items:
                        intake.answer(order[asked % len(order)])
                        asked += 1
                        await anyio.lowlevel.checkpoint()
                    else:
                        came = anyio.Event()
                        await came.wait()
    found = ["none" if isinstance(one, InputError) else one for one in seen]
    expected = ["none" if record < 0 else record for record in records]
    assert found == expected if ordered else sorted(map(str, found)) == sorted(map(str, expected))
    assert [one.index for one in seen if isinstance(one, InputError)] == [
        index for index, record in enumerate(records) if record < 0
    ]
    assert intake.failed == expected.count("none")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_a_feeder_reads_on_when_there_is_room_again_and_not_before(kind: str, engine: Supervisor) -> None:
    intake = Held()
    pulled = 0

    def count(record: int) -> int:
        nonlocal pulled
        pulled += 1
        return record

    source: Any = in_source(kind, list(range(100)))
    if kind == "generator":
        source = map(count, source)
    async with fed(engine, source, intake, max_items=8) as stream, anyio.create_task_group() as group:
        came = anyio.Event()
        intake.on_submit = lambda: came.set()
        group.start_soon(anext, stream)
        await anyio.wait_all_tasks_blocked()
        while len(intake.items) < 8:
            came = anyio.Event()
            await came.wait()
        await anyio.wait_all_tasks_blocked()
        assert [item.value for item in intake.items] == list(range(8))
        came = anyio.Event()
        intake.answer()
        await anyio.wait_all_tasks_blocked()
        # The first one was taken, and its place is free; a thread waits for two.
        if kind == "generator":
            assert len(intake.items) == 7
            assert pulled == 8
            intake.answer()
            assert await anext(stream) == 1
        await came.wait()
        assert len(intake.items) > 6
        await stream.aclose()


# ---------------------------------------------------------------- handover


def test_what_a_thread_hands_over_is_taken_whole_and_in_order() -> None:
    """However the two threads meet: after the last call nothing is left lying."""
    for _ in range(20):
        calls: SimpleQueue[bool] = SimpleQueue()
        handover: Handover[int] = Handover(lambda calls=calls: calls.put(True))  # type: ignore[misc]
        thread = threading.Thread(target=lambda handover=handover: [handover.put(n) for n in range(2000)])
        thread.start()
        taken: list[int] = []
        while len(taken) < 2000:
            assert calls.get(timeout=10)
            taken += handover.take_all()
        thread.join()
        assert taken == list(range(2000))


def test_one_call_is_for_all_that_was_not_taken_yet() -> None:
    calls: list[int] = []
    handover: Handover[int] = Handover(lambda: calls.append(1))
    for number in range(5):
        handover.put(number)
    assert len(calls) == 1
    assert handover.take_all() == [0, 1, 2, 3, 4]
    assert handover.take_all() == []
    handover.put(5)
    assert len(calls) == 2
