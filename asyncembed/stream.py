"""Streams: from a caller's source to results in input order, no further ahead than the window allows.

`EmbeddingStream` is the caller's handle. `StreamState` is what the feeder and the worker pool hold: the window, the
results that wait, the order. The two are apart so that dropping the handle can end the feeder: nothing that runs
refers to the handle. All methods of the state run on the event loop, so none of them needs a lock.
"""

import itertools
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from contextvars import copy_context
from itertools import islice
from queue import SimpleQueue
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, Self, TypeAlias, TypeVar, cast

from anyio import CancelScope, Event, move_on_after, to_thread
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from asyncembed.checks import check_count
from asyncembed.engine.scheduler import Group, Item, Sink
from asyncembed.engine.supervisor import WorkerPool
from asyncembed.errors import OF_ONE_INPUT, AsyncEmbedError, InputFailure, StateError
from asyncembed.results import Output

if TYPE_CHECKING:
    from asyncembed.engine.wakeup import Loop

InputT = TypeVar("InputT")
RecordT = TypeVar("RecordT", contravariant=True)
ResultT = TypeVar("ResultT")
CollectedT = TypeVar("CollectedT")

Source: TypeAlias = Iterable[InputT] | AsyncIterable[InputT]
OnError: TypeAlias = Literal["raise", "skip", "return"]

FEED_CHUNK = 256
"""Inputs that a feeder hands on at once, before it lets other tasks run."""

FIRST_READ = 16
"""Records that are read before it is known how large they are."""

WAITING_BATCHES = 64
"""How much work of one stream may wait, in full batches: enough to choose inputs of like lengths from (with prose and
the default budget, any more would save 1 % of padding), and the most that a stream which joins later waits for."""

WAITING_BATCHES_PER_WORKER = 4
"""As above, added for each worker: its batches in flight, and the next ones."""

TURN_SECONDS = 0.00025
"""How long a consumer may take results that are ready before it lets other tasks run: a turn of the event loop costs as
much as a dozen results."""

CLOSE_GRACE_SECONDS = 0.5
"""How long the end of a stream waits for its source to close."""

_IN_MEMORY: tuple[type, ...] = (list, tuple, set, frozenset, deque, range, type({}.keys()), type({}.values()))
"""Sources that are read on the loop, because reading them cannot block."""


class Intake(Protocol[RecordT]):
    """How a record of the source becomes an item: chosen by the family, fixed for the stream."""

    @property
    def group(self) -> Group:
        """What its items have in common."""
        ...

    def item(self, record: RecordT, index: int, sink: Sink) -> tuple[Item, int]:
        """The item, and about how many bytes it keeps in memory. Raises `InputError` if it can be no input."""
        ...

    def submit(self, items: list[Item]) -> None:
        """Let items wait for a worker: at once, or when what they stand for was fetched or read."""
        ...


class _Pending:
    """A record that was read and whose result is not taken yet: what it holds of the window's bounds."""

    __slots__ = ("item", "record", "size_bytes", "tokens")

    def __init__(self, record: object, item: Item | None, tokens: float, size_bytes: int) -> None:
        self.record = record
        self.item = item
        self.tokens = tokens
        self.size_bytes = size_bytes


class _Failure:
    """An error in the place of a result."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


_NOT_READY = object()


class StreamState(Generic[InputT]):
    """The window of one stream: what was read from the source and not yet taken by the consumer.

    Its mutable state changes in three places only: the feeder calls `push` and `finish`, the pool calls `deliver` and
    `fail`, the consumer calls `take` and `close`.
    """

    def __init__(
        self,
        pool: WorkerPool,
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
        self._max_waiting_tokens = waiting_batches * intake.group.max_batch_tokens
        # What a record was like lately: how many more fit is foretold from it, as sources are read in chunks.
        self._typical_bytes = 1.0
        self._typical_tokens = 0.0
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
        # What the feeder waits for: this much room; 0 while it does not wait.
        self._wanted_room = 0
        self._looks_spared = 0

    # ---------------------------------------------------------------- the feeder's side

    def room(self) -> int:
        """How many more inputs may be read now."""
        room = self._max_items - len(self._window)
        room = min(room, int((self._max_bytes - self._bytes) / self._typical_bytes))
        if self._typical_tokens:
            room = min(room, int((self._max_waiting_tokens - self._waiting_tokens) / self._typical_tokens))
        return max(room, 0) if self._window else max(room, 1)

    async def wait_room(self, share: float = 0.0) -> int:
        """Wait until this share of the window, and at least one place, is free; returns how many are."""
        whole = min(self._max_items, self._max_bytes / self._typical_bytes)
        if self._typical_tokens:
            whole = min(whole, self._max_waiting_tokens / self._typical_tokens)
        wanted = max(1, int(whole * share))
        while (room := self.room()) < wanted:
            self._wanted_room = wanted
            self._looks_spared = (wanted - room) // 2
            self._feeder_wake = Event()
            await self._feeder_wake.wait()
        return room

    def _wake_feeder(self) -> None:
        # Comes twice per item. One item frees about one place, so most of these need no look at the bounds; an empty
        # window always does, as nothing would come after it.
        self._looks_spared -= 1
        if self._looks_spared > 0 and self._window:
            return
        room = self.room()
        if room >= self._wanted_room:
            self._wanted_room = 0
            self._feeder_wake.set()
        else:
            self._looks_spared = (self._wanted_room - room) // 2

    def push(self, records: Sequence[InputT]) -> None:
        """Take records from the source, in order, and let them wait for a worker."""
        if self._is_closed:
            return
        items: list[Item] = []
        least = self._intake.group.least_size
        bytes_before, tokens_before = self._bytes, self._waiting_tokens
        for record in records:
            index = self._pulled
            self._pulled += 1
            kept = record if self.keeps_inputs else None
            try:
                item, size_bytes = self._intake.item(record, index, self)
            except AsyncEmbedError as error:
                self._window[index] = _Pending(kept, None, 0.0, 0)
                self.fail(index, error)
                continue
            tokens = max(item.size, least)
            self._window[index] = _Pending(kept, item, tokens, size_bytes)
            self._bytes += size_bytes
            self._waiting_tokens += tokens
            items.append(item)
        if items:
            self._typical_bytes = max(1.0, (self._bytes - bytes_before) / len(items))
            self._typical_tokens = (self._waiting_tokens - tokens_before) / len(items)
            self._intake.submit(items)

    def charge(self, index: int, size_bytes: int) -> None:
        """Learn how many bytes an input really keeps that was fetched or read after it had been pushed."""
        pending = self._window.get(index)
        if pending is not None:
            self._bytes += size_bytes - pending.size_bytes
            pending.size_bytes = size_bytes

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
        pending.size_bytes += result_bytes
        pending.item = None
        if self._wanted_room:
            self._wake_feeder()
        self._outcomes[index] = outcome
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
            if self._wanted_room:
                self._wake_feeder()
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

    async def wait_ready(self) -> None:
        """Wait until `take` may have something new."""
        if self._is_closed or self._next_index() is not None or (self._is_source_done and not self._window):
            return
        if self._consumer_wake.is_set():
            # Not otherwise: several tasks may share a stream, and another one may wait for this event already.
            self._consumer_wake = Event()
        await self._consumer_wake.wait()

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


class EmbeddingStream(Generic[InputT, ResultT, CollectedT]):
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
        output: Output[ResultT, CollectedT],
    ) -> None:
        self._state = state
        self._source: Source[InputT] | None = source
        self._group = group
        self.output = output
        self._loop: Loop = state.pool.loop
        self._turn_ends = 0.0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ResultT:
        self._start()
        # Before anything is taken: a cancelled consumer loses no result.
        if monotonic() < self._turn_ends:
            await checkpoint_if_cancelled()
        else:
            await checkpoint()
            self._turn_ends = monotonic() + TURN_SECONDS
        state = self._state
        while (outcome := state.take()) is _NOT_READY:
            await state.wait_ready()
        return self.output.own(cast(ResultT, outcome))

    async def aclose(self) -> None:
        """End the stream and wait until its source is closed."""
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
        stream.output = self.output.paired()
        return stream

    def batches(self, size: int) -> "BatchStream[ResultT, CollectedT]":
        """The same results, up to `size` at a time, each time of the type that `collect` gives.

        For a dense model arrays of up to `size` rows, for a reranker arrays of scores, for the others lists; with
        `on_error="return"` always lists. Only the last one is smaller. Made for ingest into a database; `with_inputs`
        comes before it.
        """
        check_count("size", size, least=1, may_be_none=False)
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
        # Assembling a large array copies all of it: not on the loop.
        return await to_thread.run_sync(self.output.assemble, results, limiter=self._state.pool.limiter)

    @property
    def skipped(self) -> int:
        """How many inputs `on_error="skip"` has left out so far."""
        return self._state.skipped

    @property
    def end(self) -> BaseException | None:
        """The error that it ended with, once that was raised."""
        return self._state.end

    async def take_some(self, most: int) -> list[ResultT]:
        """What is ready, up to `most` results; waits for the first of them. Empty at the end of the stream."""
        self._start()
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

    def _start(self) -> None:
        if self._source is not None and not self._state.is_closed:
            self._state.pool.check_loop()
            source, self._source = self._source, None
            self._group.start_soon(_feed, self._state, source)


ReturningStream: TypeAlias = EmbeddingStream[InputT, ResultT | InputFailure, list[ResultT | InputFailure]]
"""A stream with `on_error="return"`."""


class BatchStream(Generic[ResultT, CollectedT]):
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
                some = await self._stream.take_some(self._size - len(self._taken))
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
        return self._stream.output.assemble(batch)

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
            if isinstance(source, AsyncIterable):
                outcome = await _feed_awaiting(state, source)
            elif isinstance(source, _IN_MEMORY):
                await _feed_from_memory(state, source)
                outcome = None
            else:
                outcome = await _feed_from_thread(state, source)
    except Exception as error:  # noqa: BLE001 (raised at the consumer: other streams share this task group)
        outcome = error
    finally:
        state.finish(outcome)
        state.feeder_ended.set()


async def _feed_from_memory(state: StreamState[InputT], source: Iterable[InputT]) -> None:
    iterator = iter(source)
    # Without a checkpoint after the first few, so that the first batches are chosen from more than those.
    state.push(list(islice(iterator, min(state.room(), FIRST_READ))))
    while True:
        room = await state.wait_room(share=1 / 8)
        records = list(islice(iterator, min(room, FEED_CHUNK)))
        if not records:
            return
        state.push(records)
        await checkpoint()


async def _feed_awaiting(state: StreamState[InputT], source: AsyncIterable[InputT]) -> BaseException | None:
    iterator = aiter(source)
    try:
        for count in itertools.count(1):
            await state.wait_room()
            try:
                record = await anext(iterator)
            except StopAsyncIteration:
                break
            state.push((record,))
            if count % FIRST_READ == 0:
                await checkpoint()  # the source need not have one
    except SystemExit as error:
        return error  # it would end the event loop at once, before anything is closed
    finally:
        # A generator is ours alone, and ends here, in the task that ran it. Another kind of iterator (a stream
        # of the caller's) is the caller's to close.
        if isinstance(iterator, AsyncGenerator):
            with move_on_after(CLOSE_GRACE_SECONDS, shield=True):
                await iterator.aclose()
    return None


async def _feed_from_thread(state: StreamState[InputT], source: Iterable[InputT]) -> BaseException | None:
    reader = _Reader(source, state)
    most = FIRST_READ
    try:
        while not reader.is_done:
            room = await state.wait_room(share=1 / 4)
            await reader.read(min(room, most))
            most = FEED_CHUNK
    finally:
        reader.stop()
        # A thread does not hear cancellation: it ends after the record that it is reading, which may take for ever.
        with move_on_after(CLOSE_GRACE_SECONDS, shield=True):
            await reader.ended.wait()
    return reader.error


class _Reader(Generic[InputT]):
    """Reads a synchronous iterable in a thread of its own; each record reaches the loop as soon as it is read.

    One thread from beginning to end, as things like database connections may not change it; and a daemon, so that a
    source that never answers does not keep the interpreter from exiting.
    """

    def __init__(self, source: Iterable[InputT], state: StreamState[InputT]) -> None:
        self.is_done = False
        self.error: BaseException | None = None
        self.ended = Event()
        self._source = source
        self._state = state
        self._loop = state.pool.loop
        self._has_read = Event()
        self._orders: SimpleQueue[int] = SimpleQueue()
        # The thread appends, the loop takes; both ends of a deque are atomic.
        self._records: deque[InputT] = deque()
        self._is_posted = False
        self._is_stopped = False
        context = copy_context()
        threading.Thread(target=context.run, args=(self._work,), name="asyncembed-reader", daemon=True).start()

    # ---- on the loop

    async def read(self, most: int) -> None:
        """Have up to `most` records read, and wait until they are."""
        self._has_read = Event()
        self._orders.put(most)
        await self._has_read.wait()

    def stop(self) -> None:
        """Have the thread end, after the record that it is reading; it closes a generator."""
        self._is_stopped = True
        self._orders.put(0)

    def _hand_over(self) -> None:
        self._is_posted = False
        records = []
        while self._records:
            records.append(self._records.popleft())
        try:
            self._state.push(records)
        except Exception as error:  # noqa: BLE001 (this is called by the loop itself, where nobody would see it)
            self._state.close(error)

    def _on_read(self) -> None:
        self._hand_over()
        self._has_read.set()

    # ---- in the thread

    def _work(self) -> None:
        iterator: Iterator[InputT] | None = None
        try:
            iterator = iter(self._source)
            while not self.is_done and (most := self._orders.get()):
                self._read(iterator, most)
                self._loop.post(self._on_read)
        except BaseException as error:  # noqa: BLE001 (the source's own, raised at the consumer)
            self.error = error
            self.is_done = True
            self._loop.post(self._on_read)
        finally:
            if isinstance(iterator, Generator):
                with suppress(BaseException):
                    iterator.close()
            del iterator
            self._loop.post(self.ended.set)

    def _read(self, iterator: Iterator[InputT], most: int) -> None:
        for record in islice(iterator, most):
            self._records.append(record)
            if not self._is_posted:
                self._is_posted = True
                self._loop.post(self._hand_over)
            if self._is_stopped:
                return
            most -= 1
        self.is_done = most > 0
