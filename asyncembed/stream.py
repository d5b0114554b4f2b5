"""Streams: from a caller's source to results in input order, no further ahead than the window allows.

`EmbeddingStream` is the caller's handle. `StreamState` is what the feeder and the worker pool hold: the window, the
results that wait, the order. The two are apart so that dropping the handle can end the feeder: nothing that runs
refers to the handle. All methods of the state but `prepare` run on the event loop, so none of them needs a lock.
"""

import itertools
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from itertools import islice
from queue import SimpleQueue
from sys import getsizeof
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, Protocol, Self, TypeAlias, TypeVar, cast

from anyio import CancelScope, Event, get_cancelled_exc_class, move_on_after, to_thread
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from asyncembed.checks import check_count
from asyncembed.engine.lifetime import uninterrupted
from asyncembed.engine.scheduler import BatchKey, Item, Sink
from asyncembed.engine.supervisor import Supervisor
from asyncembed.errors import OF_ONE_INPUT, AsyncEmbedError, InputError, InputFailure, StateError, UsageError
from asyncembed.results import Assembly, detach_each

if TYPE_CHECKING:
    from asyncembed.wakeup import Loop

InputT = TypeVar("InputT")
RecordT = TypeVar("RecordT", contravariant=True)
ResultT = TypeVar("ResultT")
CollectedT = TypeVar("CollectedT")

Source: TypeAlias = Iterable[InputT | InputError] | AsyncIterable[InputT | InputError]
"""The caller's inputs; a source may hand over an `InputError` in the place of one that it cannot give."""

OnError: TypeAlias = Literal["raise", "skip", "return"]

FEED_CHUNK = 256
"""Inputs that a feeder hands on at once, before it lets other tasks run."""

FIRST_READ = 16
"""Records of a list that are handed on before anything else: the first batches are chosen from more than those."""

WAITING_BATCHES = 64
"""How much work of one stream may wait, in full batches: enough to choose inputs of like lengths from (with prose and
the default budget, any more would save 1 % of padding), and the most that a stream which joins later waits for."""

WAITING_BATCHES_PER_WORKER = 4
"""As above, added for each worker: its batches in flight, and the next ones."""

TURN_SECONDS = 0.00025
"""How long a consumer may take results that are ready before it lets other tasks run: a turn of the event loop costs as
much as a dozen results."""

FEED_SECONDS = 0.001
"""How long a feeder may work on the loop at once, whatever `key` does: a record alone may take longer."""

CLOSE_GRACE_SECONDS = 0.5
"""How long the end of a stream waits for its source to close."""

ASSEMBLED_AT_ONCE_BYTES = 1024 * 1024
"""Results that are put together on the loop, which takes some tenths of a millisecond; more of them in a thread."""

FIELDS_LOOKED_AT = 64
"""Fields of a record whose sizes count, beside the record's own."""

_IN_MEMORY = frozenset({list, tuple, set, frozenset, deque, range, type({}.keys()), type({}.values())})
"""Sources that are read on the loop, because reading them cannot block; a subclass might."""


class Recipient(Sink, Protocol):
    """Whom a result concerns, and who bounds what waits for it."""

    def charge(self, index: int, size_bytes: int) -> None:
        """Learn how many bytes an input really keeps that was fetched or read after it had been taken in."""
        ...

    async def wait_bytes(self, index: int, expected_bytes: int) -> None:
        """Wait until an input may be fetched or read, for which so many bytes may come."""
        ...


class Intake(Protocol[RecordT]):
    """How a record of the source becomes an item: chosen by the family, fixed for the stream."""

    @property
    def batch_key(self) -> BatchKey:
        """What its items have in common."""
        ...

    def item(self, record: RecordT | InputError, index: int, sink: Recipient) -> tuple[Item, int]:
        """The item, and about how many bytes it keeps in memory; in the thread that reads the source.

        Raises:
            InputError: It can be no input.
            KeyboardInterrupt, SystemExit: The caller's own code ends the program.
        """
        ...

    def count_failure(self) -> None:
        """Count a record that can be no input."""
        ...

    def submit(self, items: list[Item]) -> None:
        """Let items wait for a worker: at once, or when what they stand for was fetched or read."""
        ...


class _Pending:
    """A record that was read and whose result is not taken yet: what it holds of the window's bounds."""

    __slots__ = ("index", "item", "record", "refusal", "size_bytes", "tokens")

    def __init__(
        self,
        index: int,
        record: object,
        item: Item | None,
        tokens: float,
        size_bytes: int,
        refusal: AsyncEmbedError | None = None,
    ) -> None:
        self.index = index
        self.record = record
        self.item = item
        self.tokens = tokens
        self.size_bytes = size_bytes
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class _Room:
    """What a window has room for: reading goes on until the first of these is used up.

    Attributes:
        items: Inputs.
        size_bytes: Their bytes, each with those of the result that is expected of it.
        tokens: Their estimated tokens.
        result_bytes: Expected of each input.
    """

    items: int
    size_bytes: float
    tokens: float
    result_bytes: float


class _Failure:
    """An error in the place of a result."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


_NOT_READY = object()


class StreamState(Generic[InputT]):
    """The window of one stream: what was read from the source and not yet taken by the consumer.

    Its mutable state changes in three places only: the feeder calls `push` and `finish`, the pool calls `deliver` and
    `fail` (and an intake `charge`), the consumer calls `take` and `close`. Only whoever reads the source calls
    `prepare`, which counts the records and changes nothing else.

    The window holds at most its bounds and one record: nothing is read while it is full, and of what was read each
    record counts before the next one is read. Results count as they come, and before that as the average of the
    earlier ones.
    """

    def __init__(
        self,
        pool: Supervisor,
        intake: Intake[InputT],
        *,
        max_items: int,
        max_bytes: int,
        ordered: bool,
        on_error: OnError,
        on_end: Callable[["StreamState[InputT]"], None],
    ) -> None:
        self.pool = pool
        self.keeps_inputs = False
        self.skipped = 0
        self.feeder_scope = CancelScope()
        self.feeder_ended = Event()
        self._intake = intake
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._ordered = ordered
        self._on_error = on_error
        self._on_end = on_end
        self._pulled = 0
        self._taken = 0
        self._bytes = 0
        self._waiting_tokens = 0.0
        waiting_batches = WAITING_BATCHES + WAITING_BATCHES_PER_WORKER * pool.size
        self._max_waiting_tokens = waiting_batches * intake.batch_key.max_batch_tokens
        self._least_tokens = intake.batch_key.minimum_size
        # Of all results so far, to know what to expect of the next ones.
        self._arrived = 0
        self._result_bytes = 0
        # By index: what was read and is not taken yet.
        self._window: dict[int, _Pending] = {}
        # By index: what can be taken; and, for an unordered stream, the indices in order of arrival.
        self._outcomes: dict[int, object] = {}
        self._arrivals: deque[int] = deque()
        self._source_error: BaseException | None = None
        self._is_source_done = False
        self._end: BaseException | None = None
        self._is_closed = False
        self._consumer_wake = Event()
        self._feeder_wake = Event()
        self._bytes_wake = Event()
        self._waits_for_bytes = False
        # What part of the window the feeder waits for; None while it does not wait.
        self._wanted_share: float | None = None

    # ---------------------------------------------------------------- the feeder's side

    @property
    def is_full(self) -> bool:
        """Whether nothing may be read now."""
        taken = len(self._window)
        return taken > 0 and (
            taken >= self._max_items or self._waiting_tokens >= self._max_waiting_tokens or self._free_bytes() <= 0
        )

    def has_room(self, share: float = 0.0) -> bool:
        """Whether this share of the window, and at least one place, is free."""
        taken = len(self._window)
        if not taken:
            return True
        # The number first: it alone decides most of the time.
        if taken > self._max_items - max(1, int(self._max_items * share)):
            return False
        if self._max_waiting_tokens - self._waiting_tokens <= self._max_waiting_tokens * share:
            return False
        return self._free_bytes() > self._max_bytes * share

    def _free_bytes(self) -> float:
        free = self._max_bytes - self._bytes
        if not self._result_bytes:
            return free
        return free - (len(self._window) - len(self._outcomes)) * self._result_bytes / self._arrived

    def room(self) -> _Room:
        """What may be read now."""
        return _Room(
            self._max_items - len(self._window),
            self._free_bytes(),
            self._max_waiting_tokens - self._waiting_tokens,
            self._result_bytes / self._arrived if self._arrived else 0.0,
        )

    @uninterrupted
    async def wait_room(self, share: float = 0.0) -> _Room:
        """Wait until this share of the window, and at least one place, is free; returns what is."""
        while not self.has_room(share):
            self._wanted_share = share
            self._feeder_wake = Event()
            await self._feeder_wake.wait()
        return self.room()

    def _wake_feeder(self, share: float) -> None:
        if self.has_room(share):
            self._wanted_share = None
            self._feeder_wake.set()

    def prepare(self, record: InputT | InputError) -> _Pending:
        """Make an input of a record: for `push`, in the order of the source.

        Raises:
            KeyboardInterrupt, SystemExit: The caller's own code ends the program.
        """
        index = self._pulled
        self._pulled = index + 1
        kept = record if self.keeps_inputs else None
        try:
            item, size_bytes = self._intake.item(record, index, self)
        except AsyncEmbedError as error:
            return _Pending(index, kept, None, 0.0, 0 if kept is None else _bytes_of(kept), error)
        if kept is not None and kept is not item.value:
            size_bytes += _bytes_of(kept)
        return _Pending(index, kept, item, max(item.size, self._least_tokens), size_bytes)

    def push(self, prepared: Iterable[_Pending]) -> None:
        """Take inputs of the source, in order, and let them wait for a worker."""
        if self._is_closed:
            return
        items: list[Item] = []
        for pending in prepared:
            self._window[pending.index] = pending
            self._bytes += pending.size_bytes
            if pending.item is None:
                assert pending.refusal is not None
                self._intake.count_failure()
                self.fail(pending.index, pending.refusal)
            else:
                self._waiting_tokens += pending.tokens
                items.append(pending.item)
        if items:
            self._intake.submit(items)

    def charge(self, index: int, size_bytes: int) -> None:
        """Learn how many bytes an input really keeps that was fetched or read after it had been pushed."""
        pending = self._window.get(index)
        if pending is not None:
            self._bytes += size_bytes - pending.size_bytes
            pending.size_bytes = size_bytes
            self._look_at_bytes()

    def _look_at_bytes(self) -> None:
        self._waits_for_bytes = False
        self._bytes_wake.set()

    async def wait_bytes(self, index: int, expected_bytes: int) -> None:
        """Wait until an input that was pushed may be fetched or read, for which so many bytes may come.

        The one that is to be taken first never waits: everything else may be waiting for it.
        """
        while self._bytes + expected_bytes > self._max_bytes and next(iter(self._window), index) != index:
            if not self._waits_for_bytes:
                self._waits_for_bytes = True
                self._bytes_wake = Event()
            await self._bytes_wake.wait()

    def finish(self, error: BaseException | None = None) -> None:
        """Learn that the source has ended, or failed with `error`, which is raised after all results before it."""
        self._is_source_done = True
        self._source_error = error
        self._consumer_wake.set()

    # ---------------------------------------------------------------- the pool's side (a `Sink`)

    def deliver(self, index: int, result: object) -> None:
        """Take a result."""
        if not self._is_closed:
            self._arrive(index, result, getattr(result, "nbytes", 0))

    def fail(self, index: int, error: Exception) -> None:
        """Take an error in the place of a result."""
        if not self._is_closed:
            self._arrive(index, _Failure(error), 0)

    def _arrive(self, index: int, outcome: object, result_bytes: int) -> None:
        pending = self._window[index]
        self._waiting_tokens -= pending.tokens
        self._bytes += result_bytes
        self._arrived += 1
        self._result_bytes += result_bytes
        pending.size_bytes += result_bytes
        pending.item = None
        self._outcomes[index] = outcome
        if self._wanted_share is not None:
            self._wake_feeder(self._wanted_share)
        if not self._ordered:
            self._arrivals.append(index)
            self._consumer_wake.set()
        elif index == self._taken:
            self._consumer_wake.set()

    # ---------------------------------------------------------------- the consumer's side

    def take(self) -> object:
        """The next result, or (input, result), or `_NOT_READY`.

        Raises:
            StopAsyncIteration: There are no more.
            Exception: The input's own error with `on_error="raise"`, or the source's; again at each further call.
        """
        while True:
            if self._is_closed:
                raise self._end or StopAsyncIteration
            index = self._next_index()
            if index is None:
                if not self._is_source_done or self._window:
                    return _NOT_READY
                self.close(self._source_error)
                continue
            if not self._ordered:
                self._arrivals.popleft()
            outcome = self._outcomes.pop(index)
            pending = self._window.pop(index)
            self._taken += 1
            self._bytes -= pending.size_bytes
            if self._waits_for_bytes:
                self._look_at_bytes()
            if self._wanted_share is not None:
                self._wake_feeder(self._wanted_share)
            if type(outcome) is _Failure:
                if self._on_error == "raise" or not isinstance(outcome.error, OF_ONE_INPUT):
                    self.close(outcome.error)
                    continue
                if self._on_error == "skip":
                    self.skipped += 1
                    continue
                outcome = outcome.error
            return (pending.record, outcome) if self.keeps_inputs else outcome

    def _next_index(self) -> int | None:
        if self._ordered:
            return self._taken if self._taken in self._outcomes else None
        return self._arrivals[0] if self._arrivals else None

    @uninterrupted
    async def wait_ready(self) -> None:
        """Wait until `take` may have something new."""
        if self._is_closed or self._next_index() is not None or (self._is_source_done and not self._window):
            return
        if self._consumer_wake.is_set():
            # Not otherwise: several tasks may share a stream, and another one may wait for this event already.
            self._consumer_wake = Event()
        await self._consumer_wake.wait()

    @uninterrupted
    def close(self, end: BaseException | None = None) -> None:
        """End the stream: the feeder is cancelled, what waits is withdrawn, `take` raises `end` from now on."""
        if self._is_closed:
            return
        self._is_closed = True
        self._end = end
        self.feeder_scope.cancel()
        self.pool.withdraw([pending.item for pending in self._window.values() if pending.item is not None])
        self._window.clear()
        self._outcomes.clear()
        self._consumer_wake.set()
        self._on_end(self)

    @property
    def is_closed(self) -> bool:
        """Whether nothing more can come of it."""
        return self._is_closed

    @property
    def end(self) -> BaseException | None:
        """The error that it ended with."""
        return self._end


class _Asynchronous:
    """Says what to write where a program takes a stream for a list or for a coroutine."""

    if not TYPE_CHECKING:  # type checkers say it first

        def __iter__(self) -> NoReturn:
            raise UsageError(
                "a stream is asynchronous: `async for result in stream`, or `await stream.collect()` for all results"
            )

        def __await__(self) -> NoReturn:
            raise UsageError("a stream is no coroutine: `await stream.collect()` gives all results")

        __next__ = __iter__

        def __array__(self, *_: object, **__: object) -> NoReturn:
            self.__iter__()


class EmbeddingStream(_Asynchronous, Generic[InputT, ResultT, CollectedT]):
    """Results as they become ready, in input order: an async iterator.

    Nothing is read from the source before the first result is asked for. `aclose()`, or leaving `async with`, ends the
    stream at once: the reading of the source, which is closed, and what waits for a worker. Dropping the stream does so
    too, as leaving `async for` does where nothing else refers to it. While something does (a variable, a kept
    exception) it stays, filled as far as its window, so that you can go on where you left.

    A stream belongs to the event loop and the embedder that made it. Several tasks may take from one stream: each
    result goes to one of them.
    """

    def __init__(
        self,
        state: StreamState[InputT],
        source: Source[InputT],
        group: TaskGroup,
        assembly: Assembly[ResultT, CollectedT],
    ) -> None:
        self._state = state
        self._source: Source[InputT] | None = source
        self._group = group
        self._assembly = assembly
        self._loop: Loop = state.pool.loop
        self._turn_ends = 0.0

    def __aiter__(self) -> Self:
        return self

    @uninterrupted
    async def __anext__(self) -> ResultT:
        self._start()
        # Before anything is taken: a cancelled consumer loses no result.
        if monotonic() < self._turn_ends:
            await checkpoint_if_cancelled()
        else:
            self._check_loop()
            await checkpoint()
            self._turn_ends = monotonic() + TURN_SECONDS
        state = self._state
        while (outcome := state.take()) is _NOT_READY:
            self._check_loop()
            await state.wait_ready()
        return self._assembly.detach(cast(ResultT, outcome))

    @uninterrupted
    async def aclose(self) -> None:
        """End the stream and wait until its source is closed; on another event loop than its own, it does not wait."""
        if not self._loop.is_running_here():
            self._loop.post(self._state.close)
            return
        self._state.close()
        if self._source is None:
            await self._state.feeder_ended.wait()
        await checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # May run in any thread, or after the loop is gone: leave word and do no more.
        state = getattr(self, "_state", None)
        if state is not None and not state.is_closed:
            self._loop.post(state.close)

    def with_inputs(self) -> "EmbeddingStream[InputT, tuple[InputT, ResultT], tuple[list[InputT], CollectedT]]":
        """Give each result together with its input: pairs, so that a record travels with its vector.

        Returns this stream. With `batches` and `collect`, the pairs come as (list of inputs, results).

        Raises:
            StateError: The stream has been started.
        """
        if self._source is None:
            raise StateError("with_inputs() comes before the first result is asked for")
        self._state.keeps_inputs = True
        stream = cast("EmbeddingStream[InputT, tuple[InputT, ResultT], tuple[list[InputT], CollectedT]]", self)
        stream._assembly = _paired(self._assembly)  # noqa: SLF001 (its own)
        return stream

    def batches(self, size: int) -> "BatchStream[ResultT, CollectedT]":
        """The same results, up to `size` at a time, each time of the type that `collect` gives.

        For a dense model arrays of up to `size` rows, for a reranker arrays of scores, for the others lists; with
        `on_error="return"` always lists. Only the last one is smaller. Made for ingest into a database; `with_inputs`
        comes before it.
        """
        check_count("size", size, minimum=1, may_be_none=False)
        return BatchStream(self, size)

    async def collect(self) -> CollectedT:
        """All results: for a dense model one array (n, dim), else a list or an array of scores.

        With `on_error="return"` always a list, of results and errors. Cancelled, it ends the stream.
        """
        results: list[ResultT] = []
        try:
            while some := await self.take_some(FEED_CHUNK):
                results += some
        except BaseException:
            # Whoever holds the stream, as a task or an exception may, cannot get at these results any more.
            self._state.close()
            raise
        return await self.assemble(results)

    @property
    def skipped(self) -> int:
        """How many inputs `on_error="skip"` has left out so far."""
        return self._state.skipped

    @property
    def end(self) -> BaseException | None:
        """The error that it ended with, once that was raised."""
        return self._state.end

    @uninterrupted
    async def take_some(self, most: int) -> list[ResultT]:
        """What is ready, up to `most` results; waits for the first of them. Empty at the end of the stream."""
        self._start()
        self._check_loop()
        await checkpoint()
        results: list[ResultT] = []
        while True:
            try:
                while len(results) < most and (outcome := self._state.take()) is not _NOT_READY:
                    results.append(cast(ResultT, outcome))
            except StopAsyncIteration:
                return results
            except BaseException as error:
                # What came before the error goes out first; the error comes again with the next call.
                if results and error is self.end:
                    return results
                raise
            if results:
                return results
            await self._state.wait_ready()

    async def assemble(self, results: list[ResultT]) -> CollectedT:
        """Put results together as `collect` gives them: many of them in a thread, as all are copied."""
        if len(results) <= FEED_CHUNK and sum(map(_result_bytes, results)) <= ASSEMBLED_AT_ONCE_BYTES:
            return self._assembly.assemble(results)
        return await to_thread.run_sync(self._assembly.assemble, results, limiter=self._state.pool.limiter)

    @uninterrupted
    def _start(self) -> None:
        if self._source is not None and not self._state.is_closed:
            self._state.pool.loop.check()
            source, self._source = self._source, None
            self._group.start_soon(_feed, self._state, source)

    def _check_loop(self) -> None:
        """Raise `StateError` on another event loop, where nothing would ever wake the consumer."""
        if not self._state.is_closed and not self._loop.is_running_here():
            raise StateError(
                "this stream was begun on another event loop; take from it there, or begin another one here"
            )


def returning(assembly: Assembly[ResultT, Any]) -> Assembly[ResultT | InputFailure, list[ResultT | InputFailure]]:
    """The same where errors come in the place of results: several are always a list."""

    def detach(result: Any) -> ResultT | InputFailure:
        return result if isinstance(result, OF_ONE_INPUT) else assembly.detach(result)

    return Assembly(detach, partial(detach_each, detach=detach))


def _paired(
    assembly: Assembly[ResultT, CollectedT],
) -> Assembly[tuple[Any, ResultT], tuple[list[Any], CollectedT]]:
    """The same for (input, result) pairs."""
    return Assembly(
        lambda pair: (pair[0], assembly.detach(pair[1])),
        lambda pairs: ([pair[0] for pair in pairs], assembly.assemble([pair[1] for pair in pairs])),
    )


ReturningStream: TypeAlias = EmbeddingStream[InputT, ResultT | InputFailure, list[ResultT | InputFailure]]
"""A stream with `on_error="return"`."""


class BatchStream(_Asynchronous, Generic[ResultT, CollectedT]):
    """The results of a stream, several at a time: an async iterator; see `EmbeddingStream.batches`."""

    def __init__(self, stream: "EmbeddingStream[Any, ResultT, CollectedT]", size: int) -> None:
        self._stream = stream
        self._size = size
        # Kept across calls, so that a cancelled consumer loses no result.
        self._taken: list[ResultT] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> CollectedT:
        while len(self._taken) < self._size:
            try:
                some = await self._stream.take_some(min(FEED_CHUNK, self._size - len(self._taken)))
            except BaseException as error:
                if self._taken and error is self._stream.end:
                    break  # the error comes again with the next call
                raise
            if not some:
                break
            self._taken += some
        if not self._taken:
            raise StopAsyncIteration
        # Several tasks may have filled it together.
        batch, self._taken = self._taken[: self._size], self._taken[self._size :]
        try:
            return await self._stream.assemble(batch)
        except BaseException:
            self._taken = batch + self._taken
            raise

    async def aclose(self) -> None:
        """End the stream and wait until its source is closed."""
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


# ---------------------------------------------------------------- feeding


async def _feed(state: StreamState[InputT], source: Source[InputT]) -> None:
    """Read the source into the window until it ends; never lets an exception into the shared task group."""
    outcome: BaseException | None = StateError("the source was cancelled, by itself or because the embedder closes")
    try:
        with state.feeder_scope:
            # By its type: what an object says of its class may be anything, or raise.
            if type(source) in _IN_MEMORY:
                await _feed_from_memory(state, cast("Iterable[InputT | InputError]", source))
                outcome = None
            elif hasattr(type(source), "__aiter__"):
                await _feed_awaiting(state, cast("AsyncIterable[InputT | InputError]", source))
                outcome = None
            else:
                outcome = await _feed_from_thread(state, cast("Iterable[InputT | InputError]", source))
    except get_cancelled_exc_class():
        raise
    except BaseException as error:  # noqa: BLE001 (raised at the consumer: other streams share this task group)
        outcome = error
    finally:
        state.finish(outcome)
        state.feeder_ended.set()


async def _feed_from_memory(state: StreamState[InputT], source: Iterable[InputT | InputError]) -> None:
    records = _Records(state, source)
    # Without a checkpoint after the first few, so that the first batches are chosen from more than those.
    most = FIRST_READ
    while not records.is_done:
        room = await state.wait_room(share=1 / 8)
        prepared: list[_Pending] = []
        turn_ends = monotonic() + FEED_SECONDS
        try:
            for pending in records.read(room, most):
                prepared.append(pending)
                if monotonic() > turn_ends:
                    break
        finally:
            state.push(prepared)
        if most == FEED_CHUNK:
            await checkpoint()
        most = FEED_CHUNK


async def _feed_awaiting(state: StreamState[InputT], source: AsyncIterable[InputT | InputError]) -> None:
    iterator = aiter(source)
    try:
        for count in itertools.count(1):
            if state.is_full:
                await state.wait_room()
            try:
                record = await anext(iterator)
            except StopAsyncIteration:
                break
            state.push((state.prepare(record),))
            if count % FIRST_READ == 0:
                await checkpoint()  # the source need not have one
    finally:
        # A generator is ours alone, and ends here, in the task that ran it. Another kind of iterator (a stream
        # of the caller's) is the caller's to close.
        if isinstance(iterator, AsyncGenerator):
            with move_on_after(CLOSE_GRACE_SECONDS, shield=True):
                await iterator.aclose()


async def _feed_from_thread(state: StreamState[InputT], source: Iterable[InputT | InputError]) -> BaseException | None:
    reader = _Reader(source, state)
    try:
        while not reader.is_done:
            await reader.read(await state.wait_room(share=1 / 4))
    finally:
        reader.stop()
        # A thread does not hear cancellation: it ends after the record that it is reading, which may take for ever.
        with move_on_after(CLOSE_GRACE_SECONDS, shield=True):
            await reader.ended.wait()
    return reader.error


class _Records(Generic[InputT]):
    """Makes inputs of the records of an iterable, no more than there is room for."""

    def __init__(self, state: StreamState[InputT], source: Iterable[InputT | InputError]) -> None:
        self.is_done = False
        self.iterator = iter(source)
        self._state = state

    def read(self, room: _Room, most: int) -> Iterator[_Pending]:
        """Up to `most` inputs: the next record is read when the one before it has been counted."""
        count = most = min(room.items, most)
        size_bytes, tokens = room.size_bytes, room.tokens
        for record in islice(self.iterator, most):
            pending = self._state.prepare(record)
            count -= 1
            size_bytes -= pending.size_bytes + room.result_bytes
            tokens -= pending.tokens
            yield pending
            if size_bytes <= 0 or tokens <= 0:
                return
        self.is_done = count > 0


class _Reader(Generic[InputT]):
    """Reads a synchronous iterable in a thread of its own; each record reaches the loop as soon as it is read.

    One thread from beginning to end, as things like database connections may not change it; and a daemon, so that a
    source that never answers does not keep the interpreter from exiting.
    """

    def __init__(self, source: Iterable[InputT | InputError], state: StreamState[InputT]) -> None:
        self.is_done = False
        self.error: BaseException | None = None
        self.ended = Event()
        self._source = source
        self._state = state
        self._loop = state.pool.loop
        self._has_read = Event()
        self._orders: SimpleQueue[_Room | None] = SimpleQueue()
        # The thread appends, the loop takes; both ends of a deque are atomic. The thread appends before it looks at the
        # flag and the loop clears the flag before it takes, so no input is left lying there.
        self._prepared: deque[_Pending] = deque()
        self._is_posted = False
        self._is_stopped = False
        context = copy_context()
        threading.Thread(target=context.run, args=(self._work,), name="asyncembed-reader", daemon=True).start()

    # ---- on the loop

    async def read(self, room: _Room) -> None:
        """Have records read until the room is used up, and wait until they are."""
        self._has_read = Event()
        self._orders.put(room)
        await self._has_read.wait()

    def stop(self) -> None:
        """Have the thread end, after the record that it is reading; it closes a generator."""
        self._is_stopped = True
        self._orders.put(None)

    def _hand_over(self) -> None:
        self._is_posted = False
        prepared = []
        while self._prepared:
            prepared.append(self._prepared.popleft())
        try:
            self._state.push(prepared)
        except Exception as error:  # noqa: BLE001 (this is called by the loop itself, where nobody would see it)
            self._state.close(error)

    def _on_read(self) -> None:
        self._hand_over()
        self._has_read.set()

    # ---- in the thread

    def _work(self) -> None:
        records: _Records[InputT] | None = None
        try:
            records = _Records(self._state, self._source)
            while not self.is_done and (room := self._orders.get()) is not None:
                self._read(records, room)
                self._loop.post(self._on_read)
        except BaseException as error:  # noqa: BLE001 (the source's own, raised at the consumer)
            self.error = error
            self.is_done = True
            self._loop.post(self._on_read)
        finally:
            if records is not None and isinstance(records.iterator, Generator):
                with suppress(BaseException):
                    records.iterator.close()
            del records
            self._loop.post(self.ended.set)

    def _read(self, records: _Records[InputT], room: _Room) -> None:
        for pending in records.read(room, FEED_CHUNK):
            self._prepared.append(pending)
            if not self._is_posted:
                self._is_posted = True
                self._loop.post(self._hand_over)
            if self._is_stopped:
                return
        self.is_done = records.is_done


def _bytes_of(record: object) -> int:
    """About how many bytes a record keeps in memory that travels beside its input: its own and those of its fields."""
    try:
        kind = type(record)
        if kind is str:
            return getsizeof(record)
        fields: Iterable[object] = ()
        if issubclass(kind, dict):
            fields = cast("dict[object, object]", record).values()
        elif issubclass(kind, list | tuple):
            fields = cast("list[object]", record)
        elif hasattr(record, "__dict__"):
            fields = vars(record).values()
        return getsizeof(record) + sum(map(getsizeof, islice(fields, FIELDS_LOOKED_AT)))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 (an object may answer as it likes; it is embedded all the same)
        return 0


def _result_bytes(result: object) -> int:
    """Bytes of a result, or of that of an (input, result) pair."""
    size = getattr(result[1] if type(result) is tuple else result, "nbytes", 0)
    return size if isinstance(size, int) else 0
