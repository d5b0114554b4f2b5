"""From a caller's source into the window of a stream: what runs for a stream while somebody holds its handle.

`StreamState` is what feeder, worker pool and handle have in common, and what the first two hold. Nothing that runs
refers to the handle, so that dropping the handle can end it all. There are three feeders: a list and its like is read
on the event loop, any other iterable in a thread of its own, as it may block, and an async iterable is awaited.
"""

import itertools
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Collection, Generator, Iterable
from contextlib import suppress
from contextvars import copy_context
from inspect import iscoroutine
from itertools import islice
from math import inf
from queue import SimpleQueue
from sys import getsizeof
from time import perf_counter
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, cast

from anyio import CancelScope, Event, current_effective_deadline, get_cancelled_exc_class, move_on_after
from anyio.lowlevel import checkpoint

from asyncembed.bars import StreamBar, StreamProgress
from asyncembed.engine.lifetime import uninterrupted
from asyncembed.engine.scheduler import BatchKey, Item, Sink
from asyncembed.engine.supervisor import Supervisor
from asyncembed.errors import (
    OF_ONE_INPUT,
    AsyncEmbedError,
    InputError,
    InputFailure,
    OverloadedError,
    StateError,
    UsageError,
)
from asyncembed.observing import ObservedCall
from asyncembed.wakeup import Loop, Signal
from asyncembed.window import Entry, Room, Window

InputT = TypeVar("InputT")
RecordT = TypeVar("RecordT", contravariant=True)
T = TypeVar("T")

Source: TypeAlias = Iterable[InputT | InputError] | AsyncIterable[InputT | InputError]
"""The caller's inputs; a source may hand over an `InputError` in the place of one that it cannot give."""

ErrorHandler: TypeAlias = Callable[[Any, InputFailure], object]
"""Called with each record that has no result, and its error. A plain function; what it returns is not looked at."""

OnError: TypeAlias = Literal["raise", "skip", "return"] | ErrorHandler
"""What becomes of an input that has no result."""

WAITING_BATCHES = 64
"""How much work of one stream may wait, in full batches: enough to choose inputs of like lengths from (with prose and
the default budget, any more would save 1 % of padding), and the most that a stream which joins later waits for."""

WAITING_BATCHES_PER_WORKER = 4
"""As above, added for each worker: its batches in flight, and the next ones."""

FIRST_READ = 16
"""Records of a list that are handed on before anything else, so that the first workers have something to do. The rest
of a chunk follows in the same turn of the loop: the first batches are chosen from more than those."""

FEED_CHUNK = 256
"""Inputs that a feeder hands on at once, before it lets other tasks run."""

FEED_SECONDS = 0.001
"""How long a feeder may work on the loop at once, whatever `key` does: a record alone may take longer."""

LIST_SHARE = 1 / 8
THREAD_SHARE = 1 / 4
"""The part of the window that has to be free before a list, or a thread, is read on: each time costs a turn of the
loop, and a thread's also two switches between threads."""

CLOSE_GRACE_SECONDS = 0.5
"""How long the end of a stream waits for its source to close."""

FIELDS_LOOKED_AT = 64
"""Fields of a record whose sizes count, beside the record's own."""

_IN_MEMORY = frozenset({list, tuple, set, frozenset, deque, range, type({}.keys()), type({}.values())})
"""Sources that are read on the loop, because reading them cannot block; a subclass might."""


def is_in_memory(source: object) -> bool:
    """Whether to read a source, or to ask for its length, cannot block."""
    # By its type: what an object says of its class may be anything, or raise.
    return type(source) in _IN_MEMORY


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

    def admit(self, count: int) -> None:
        """Reserve places for items, where the interactive lane is bounded; those not submitted are free at the end.

        Raises:
            OverloadedError: There are not as many left.
            InputError: There never are as many.
        """
        ...

    def submit(self, items: list[Item]) -> None:
        """Let items wait for a worker: at once, or when what they stand for was fetched or read.

        Raises:
            OverloadedError: There is no place for items that were not admitted; none of these waits.
        """
        ...

    def withdraw(self, items: list[Item]) -> None:
        """Forget items, submitted or not, whose results nobody waits for any more."""
        ...


def hand_over(handler: ErrorHandler, record: object, error: InputFailure) -> None:
    """Call the function of `on_error=` with a record that failed. Raises what it raises."""
    outcome = handler(record, error)
    if iscoroutine(outcome):
        outcome.close()
        raise UsageError("on_error= calls a plain function, as nothing waits for the coroutine that it gave")


class NotedFailures:
    """Records that failed, on their way from the loop of a stream to the function that `on_error=` names.

    That is called by who takes the results, in another thread: there it may make calls of its own.
    """

    def __init__(self, handler: ErrorHandler) -> None:
        self._handler = handler
        self._noted: deque[tuple[object, InputFailure]] = deque()

    @classmethod
    def instead_of_handler(cls, keywords: dict[str, object]) -> "NotedFailures | None":
        """Put itself in the place of a function among the keywords of a call."""
        handler = keywords.get("on_error")
        if not callable(handler):
            return None
        failures = cls(handler)
        keywords["on_error"] = failures.note
        return failures

    def note(self, record: object, error: InputFailure) -> None:
        self._noted.append((record, error))

    def hand_over(self) -> None:
        while self._noted:
            hand_over(self._handler, *self._noted.popleft())


class Means(NamedTuple):
    """What a stream is computed with: who computes, how a record becomes an item, and what tells observers of it."""

    engine: Supervisor
    intake: Intake[Any]
    observe: Callable[[], ObservedCall] | None


class StreamState(Generic[InputT]):
    """What a stream is behind its handle: its window, who waits for what, and how it ends.

    Its state changes on the event loop only, so none of it needs a lock: by its feeder (`push`, `finish`), by the pool
    and whoever loads inputs (`deliver`, `fail`, `charge`), and by whoever holds the handle or the embedder (`take`,
    `close`). Only `prepare` runs where the source is read, and changes nothing.

    Args:
        loop: Where it runs.
        means: What it is computed with, or what gives that, of a model that its first reading loads.

    Attributes:
        engine: Who computes, once anything is read.
        loop: Where it runs.
        model_name: With what.
        ready: Notified when `take` may have something new.
        keeps_inputs: Whether each result goes out with its record; decided before the start.
        skipped: How many inputs `on_error="skip"`, or a function, has left out.
        total: How many records the source has, where anybody says so.
        is_started: Whether its source is being read, or was.
        is_closed: Whether nothing more can come of it.
        end: The error that it ended with, then.
        observed: What its observers are told of it: once it is started, and if it has any.
        feeder_ended: Set when its source is closed.
    """

    engine: Supervisor
    _intake: Intake[InputT]
    _minimum_tokens: float

    def __init__(
        self,
        loop: Loop,
        means: Means | Callable[[], Awaitable[Means]],
        *,
        model_name: str,
        max_items: int,
        max_bytes: int,
        ordered: bool,
        on_error: OnError,
        on_end: Callable[["StreamState[InputT]"], None],
        total: int | None = None,
        shows_bar: bool = False,
    ) -> None:
        self.loop: Loop = loop
        self.model_name = model_name
        self.ready: Signal = Signal()
        self.keeps_inputs = False
        self.skipped: int = 0
        self.total = total
        self.is_started: bool = False
        self.is_closed: bool = False
        self.end: BaseException | None = None
        self.observed: ObservedCall | None = None
        self.feeder_ended: Event = Event()
        self._on_error = on_error
        self._handler = on_error if callable(on_error) else None
        self._on_end = on_end
        self._room = Signal()
        self._window = Window(
            max_items=max_items,
            max_tokens=inf,
            max_bytes=max_bytes,
            ordered=ordered,
            on_ready=self.ready.notify,
            on_room=self._room.notify,
        )
        # Of a stream of parts, one answer is several results.
        self._next: Callable[[], Entry | None] = self._window.take
        self._keeps_time = False
        self._ready_since: float | None = None
        self._failed = 0
        self._began_at: float | None = None
        self._last: StreamProgress | None = None
        self._bar = StreamBar(model_name, self.progress, self._on_drawn) if shows_bar else None
        self._drawn = Event()
        self._source_error: BaseException | None = None
        self._is_source_done = False
        self._feeder_scope = CancelScope()
        self._observe: Callable[[], ObservedCall] | None = None
        # Until there is what it needs to be read.
        self._load: Callable[[], Awaitable[Means]] | None = None
        if isinstance(means, Means):
            self._compute_with(means)
        else:
            self._load = means

    def _compute_with(self, means: Means) -> None:
        self.engine, self._intake, self._observe = means
        key = self._intake.batch_key
        self._minimum_tokens = key.minimum_size
        batches = WAITING_BATCHES + WAITING_BATCHES_PER_WORKER * self.engine.size
        self._window.max_tokens = batches * key.max_batch_tokens

    # ---------------------------------------------------------------- how far it is

    def start(self) -> None:
        """Learn that its source is about to be read."""
        self.is_started = True
        self._begin_observed()
        self._began_at = perf_counter()
        if self._bar is not None:
            self._bar.start()

    def _begin_observed(self) -> None:
        if self._observe is not None:
            self.observed = self._observe()

    def progress(self) -> StreamProgress:
        """How far it is; from any thread."""
        if self._last is not None:
            return self._last
        read, done, failed = self._counts()
        return StreamProgress(
            read=read,
            done=done,
            failed=failed,
            tokens=self._window.tokens,
            seconds=0.0 if self._began_at is None else perf_counter() - self._began_at,
            total=self.total,
        )

    def _counts(self) -> tuple[int, int, int]:
        """Records read, done and failed."""
        taken, failed = self._window.taken, self._failed
        return taken + len(self._window), max(0, taken - failed), failed

    def end_bar(self) -> None:
        """Let the bar end, if there is one; from any thread."""
        if self._bar is not None:
            self._bar.end()

    def _on_drawn(self) -> None:
        self.loop.post(self._drawn.set)

    async def wait_drawn(self) -> None:
        """Once it is closed: wait, not long, until its bar is as it will stay, so that nothing is written into it."""
        if self.is_closed and self._bar is not None and self._began_at is not None:
            with move_on_after(CLOSE_GRACE_SECONDS, shield=True):
                await self._drawn.wait()

    # ---------------------------------------------------------------- the feeder's side

    async def feed(self, source: Source[InputT]) -> None:
        """Read the source into the window until it ends; never lets an exception into the shared task group."""
        outcome: BaseException | None = StateError("the source was cancelled, by itself or because the embedder closes")
        try:
            with self._feeder_scope:
                if self._load is not None:
                    await self._wait_loaded(self._load)
                if is_in_memory(source):
                    collection = cast("Collection[InputT | InputError]", source)
                    self._intake.admit(len(collection))
                    await _feed_from_memory(self, collection)
                    outcome = None
                elif hasattr(type(source), "__aiter__"):
                    await _feed_awaiting(self, cast("AsyncIterable[InputT | InputError]", source))
                    outcome = None
                else:
                    outcome = await _feed_from_thread(self, cast("Iterable[InputT | InputError]", source))
        except get_cancelled_exc_class():
            # On asyncio it may be the source's own, as of a task that it waits for: nobody else's affair.
            if current_effective_deadline() == -inf:
                raise
        except BaseException as error:  # noqa: BLE001 (raised at the consumer: other streams share this task group)
            outcome = error
        finally:
            self._is_source_done = True
            self._source_error = outcome
            self.ready.notify()
            self.feeder_ended.set()

    async def _wait_loaded(self, load: Callable[[], Awaitable[Means]]) -> None:
        """Have what it needs, which may take long: nothing is read before."""
        means = await load()
        self._load = None
        self._compute_with(means)
        self._begin_observed()

    @property
    def is_full(self) -> bool:
        """Whether nothing may be read now."""
        return self._window.is_full

    @property
    def answered(self) -> int:
        """Inputs so far that have a result, or an error in its place."""
        return self._window.answered

    @property
    def truncated(self) -> int:
        """Results so far whose inputs were cut at the length limit."""
        return self._window.truncated

    def __repr__(self) -> str:
        if self.is_closed:
            state = "ended" if self.end is None else f"ended by {type(self.end).__name__}"
        else:
            state = "reading" if self.is_started else "not begun"
        now = self.progress()
        failed = f", {now.failed} failed" if now.failed else ""
        return f"of {self.model_name!r} {state}: {now.done} done{failed}, {len(self._window)} ahead"

    @uninterrupted
    async def wait_room(self, share: float = 0.0) -> Room:
        """Wait until this share of the window, and at least one place, is free; returns what is."""
        while (room := self._window.ask_room(share)) is None:
            await self._room.wait()
        return room

    def prepare(self, index: int, record: InputT | InputError) -> Entry:
        """Make an input of a record of the source.

        Raises:
            KeyboardInterrupt, SystemExit: The caller's own code ends the program.
        """
        kept = record if self.keeps_inputs or self._handler is not None else None
        try:
            item, size_bytes = self._intake.item(record, index, self)
        except AsyncEmbedError as error:
            return Entry(index, kept, None, 0.0, 0 if kept is None else _bytes_of(kept), error)
        if kept is not None and kept is not item.value:
            size_bytes += _bytes_of(kept)
        tokens = item.size
        return Entry(index, kept, item, tokens if tokens > self._minimum_tokens else self._minimum_tokens, size_bytes)

    def push(self, entries: list[Entry]) -> None:
        """Take in what was read, in the order of the source, and let it wait for a worker."""
        if self.is_closed:
            return
        items = self._window.push(entries)
        for _ in range(len(entries) - len(items)):
            self._intake.count_failure()
            if self.observed is not None:
                self.observed.failed += 1
        if items:
            try:
                self._intake.submit(items)
            except OverloadedError as error:
                self.close(error)  # now, and not when it is their turn: the caller is to hear it at once

    # ---------------------------------------------------------------- the pool's side (a `Recipient`)

    def deliver(self, index: int, result: object) -> None:
        """Take a result."""
        if not self.is_closed:
            self._window.arrive(index, result, None, getattr(result, "nbytes", 0))

    def fail(self, index: int, error: Exception) -> None:
        """Take an error in the place of a result."""
        if self.observed is not None:
            self.observed.failed += 1
        if not self.is_closed:
            self._window.arrive(index, None, error)

    def charge(self, index: int, size_bytes: int) -> None:
        """Learn how many bytes an input really keeps that was fetched or read after it had been taken in."""
        self._window.charge(index, size_bytes)

    async def wait_bytes(self, index: int, expected_bytes: int) -> None:
        """Wait until an input may be fetched or read, for which so many bytes may come."""
        while not self._window.may_load(index, expected_bytes):
            await self._room.wait()

    # ---------------------------------------------------------------- the consumer's side

    def keep_time(self) -> None:
        """Note from now on since when a result has been ready."""
        if not self._keeps_time:
            self._keeps_time = True
            self._window.on_ready = self._note_ready
            self.restart_time()

    def restart_time(self) -> None:
        """The next result was not ready before now, as another one was before it."""
        self._ready_since = perf_counter() if self._is_ready else None

    @property
    def _is_ready(self) -> bool:
        return self._window.is_ready

    def _note_ready(self) -> None:
        if self._ready_since is None:
            self._ready_since = perf_counter()
        self.ready.notify()

    @property
    def ready_since(self) -> float:
        """Since when a result has been ready; of what `take` gives first after a wait or `restart_time`."""
        return perf_counter() if self._ready_since is None else self._ready_since

    @uninterrupted
    async def wait_ready(self, until: float = inf) -> None:
        """Wait until `take`, which had nothing, may have something, or until the clock says `until`."""
        self._ready_since = None
        if until == inf:
            await self.ready.wait()
        else:
            with move_on_after(max(0.0, until - perf_counter())):
                await self.ready.wait()

    def take(self) -> Entry | None:
        """The next entry whose result goes to the consumer, or None if `ready` is to be awaited.

        With `on_error="return"` the error is its result. A function is called here with each record that fails.

        Raises:
            StopAsyncIteration: There are no more.
            Exception: The input's own error with `on_error="raise"`, that of the function, or the source's; again at
                each further call.
        """
        while (entry := self._next()) is not None:
            if entry.error is None or self._goes_out(entry, entry.error):
                return entry
        if self._is_source_done and not self._window:
            self.close(self._source_error)
        if self.is_closed:
            raise self.end or StopAsyncIteration
        return None

    def _goes_out(self, entry: Entry, error: Exception) -> bool:
        """Whether an entry that has failed goes to the consumer; otherwise it ends the stream, or is left out."""
        self._failed += 1
        if self._on_error == "raise" or not isinstance(error, OF_ONE_INPUT):
            self.close(error)
            return False
        if self._on_error == "return":
            entry.result = error
            return True
        self.skipped += 1
        if self._handler is not None:
            try:
                hand_over(self._handler, entry.record, error)
            except BaseException as own:  # noqa: BLE001 (raised at the consumer)
                self.close(own)
        return False

    def take_held(self) -> Entry | None:
        """As `take`, but what is taken counts in the window until `release`."""
        entry = self.take()
        if entry is not None:
            self._window.hold(entry)
        return entry

    def release(self) -> None:
        """Nothing that was taken counts in the window any more."""
        self._window.release()

    @uninterrupted
    def close(self, end: BaseException | None = None) -> None:
        """End the stream: the feeder is cancelled, what waits is withdrawn, `take` raises `end` from now on."""
        if self.is_closed:
            return
        self._last = self.progress()
        self.is_closed = True
        self.end = end
        self.end_bar()
        self._feeder_scope.cancel()
        waiting = self._window.close()
        if self._load is None:
            self._intake.withdraw(waiting)
        self.ready.notify()
        self._on_end(self)


# ---------------------------------------------------------------- the three feeders


async def close_generator(iterator: object) -> None:
    """Close what was read from if it is a generator: that is ours alone, and ends in the task that ran it.

    Another kind of iterator (a stream of the caller's) is the caller's to close.
    """
    if isinstance(iterator, AsyncGenerator):
        with move_on_after(CLOSE_GRACE_SECONDS, shield=True):
            await iterator.aclose()


async def _feed_from_memory(state: StreamState[InputT], source: Iterable[InputT | InputError]) -> None:
    records = _Records(state, source)
    limit = FIRST_READ
    while not records.is_done:
        room = await state.wait_room(LIST_SHARE)
        entries: list[Entry] = []
        try:
            records.read(room, limit, entries.append, perf_counter() + FEED_SECONDS)
        finally:
            state.push(entries)
        if limit == FEED_CHUNK:
            await checkpoint()
        limit = FEED_CHUNK


async def _feed_awaiting(state: StreamState[InputT], source: AsyncIterable[InputT | InputError]) -> None:
    iterator = aiter(source)
    try:
        for index in itertools.count():
            if state.is_full:
                await state.wait_room()
            try:
                record = await anext(iterator)
            except StopAsyncIteration:
                break
            state.push([state.prepare(index, record)])
            if (index + 1) % FIRST_READ == 0:
                await checkpoint()  # the source need not have one
    finally:
        await close_generator(iterator)


async def _feed_from_thread(state: StreamState[InputT], source: Iterable[InputT | InputError]) -> BaseException | None:
    reader = _Reader(source, state)
    try:
        while not reader.is_done:
            await reader.read(await state.wait_room(THREAD_SHARE))
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
        self._prepare = state.prepare
        self._iterator = iter(source)
        self._count = 0

    def read(self, room: Room, limit: int, put: Callable[[Entry], bool | None], until: float = inf) -> None:
        """Read up to `limit` records, the next one when that before it was counted; none after the time `until`.

        `put` is given the input of each at once; it says True if it wants no more.
        """
        end = self._count + min(room.items, limit)
        tokens, size_bytes, result_bytes = room.tokens, room.size_bytes, room.result_bytes
        for record in islice(self._iterator, end - self._count):
            entry = self._prepare(self._count, record)
            self._count += 1
            tokens -= entry.tokens
            size_bytes -= entry.size_bytes + result_bytes
            if put(entry) or size_bytes <= 0 or tokens <= 0 or perf_counter() > until:
                return
        self.is_done = self._count < end

    def close(self) -> None:
        """Close a generator; another kind of iterator has no such thing."""
        if isinstance(self._iterator, Generator):
            with suppress(BaseException):
                self._iterator.close()


class Handover(Generic[T]):
    """Hands things from a thread to the loop, with one call of the loop for all that it has not taken yet.

    Nothing is left lying. Only two orders matter: the thread appends a thing *before* it looks whether the loop is
    called already, and the loop says that it is called no more *before* it takes. So if the thread found it called, the
    loop had yet to take, and takes this thing too; if the loop was through, the thread finds it not called, and calls.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        """`call` has the loop call `take_all` soon."""
        self._call = call
        self._things: deque[T] = deque()  # both of its ends are atomic
        self._is_called = False

    def put(self, thing: T) -> None:
        """In the thread: hand a thing over."""
        self._things.append(thing)
        if not self._is_called:
            self._is_called = True
            self._call()

    def take_all(self) -> list[T]:
        """On the loop: all that has been handed over."""
        self._is_called = False
        things = []
        while self._things:
            things.append(self._things.popleft())
        return things


class _Reader(Generic[InputT]):
    """Reads a synchronous iterable in a thread of its own; each record reaches the loop as soon as it is read.

    One thread from beginning to end, as things like database connections may not change it; and a daemon, so that a
    source that never answers does not keep the interpreter from exiting.

    The loop gives orders, each a room to use up, and waits for `_has_read` before the next one. The thread writes
    `is_done` and `error` before it posts the call that sets it, so the loop reads them when they are final.
    """

    def __init__(self, source: Iterable[InputT | InputError], state: StreamState[InputT]) -> None:
        self.is_done = False
        self.error: BaseException | None = None
        self.ended = Event()
        self._source = source
        self._state = state
        self._loop = state.loop
        self._has_read = Event()
        self._orders: SimpleQueue[Room | None] = SimpleQueue()
        self._entries: Handover[Entry] = Handover(lambda: self._loop.post(self._push))
        self._is_stopped = False
        context = copy_context()
        threading.Thread(target=context.run, args=(self._work,), name="asyncembed-reader", daemon=True).start()

    # ---- on the loop

    async def read(self, room: Room) -> None:
        """Have records read until the room is used up, and wait until they are."""
        self._has_read = Event()
        self._orders.put(room)
        await self._has_read.wait()

    def stop(self) -> None:
        """Have the thread end, after the record that it is reading; it closes a generator."""
        self._is_stopped = True
        self._orders.put(None)

    def _push(self) -> None:
        try:
            self._state.push(self._entries.take_all())
        except Exception as error:  # noqa: BLE001 (this is called by the loop itself, where nobody would see it)
            self._state.close(error)

    def _on_read(self) -> None:
        self._push()
        self._has_read.set()

    # ---- in the thread

    def _work(self) -> None:
        records: _Records[InputT] | None = None
        try:
            records = _Records(self._state, self._source)
            while not self.is_done and (room := self._orders.get()) is not None:
                records.read(room, FEED_CHUNK, self._put)
                self.is_done = records.is_done
                self._loop.post(self._on_read)
        except BaseException as error:  # noqa: BLE001 (the source's own, raised at the consumer)
            self.error = error
            self.is_done = True
            self._loop.post(self._on_read)
        finally:
            if records is not None:
                records.close()
            del records
            self._loop.post(self.ended.set)

    def _put(self, entry: Entry) -> bool:
        self._entries.put(entry)
        return self._is_stopped


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
