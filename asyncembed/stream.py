"""Streams: what a caller holds of the way from a source to its results, in input order and no further than a window.

`EmbeddingStream` gives results one by one, `BatchStream` several at a time. Both are handles: all that runs for them is
behind `StreamState`, which refers to no handle, so that dropping one ends the stream.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from math import inf
from time import perf_counter
from traceback import clear_frames
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeAlias, TypeVar

from anyio import get_cancelled_exc_class, to_thread
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from asyncembed.bars import StreamProgress
from asyncembed.checks import check_count, check_number
from asyncembed.engine.lifetime import uninterrupted
from asyncembed.errors import OF_ONE_INPUT, InputFailure, StateError, UsageError
from asyncembed.feeding import OnError as OnError
from asyncembed.feeding import Source as Source
from asyncembed.feeding import StreamState
from asyncembed.results import Assembly, Counted, CountedBatch, count_of, counts_of, detach_each
from asyncembed.window import Entry

InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")
CollectedT = TypeVar("CollectedT")
OtherResultT = TypeVar("OtherResultT")
OtherCollectedT = TypeVar("OtherCollectedT")

TURN_SECONDS = 0.00025
"""How long a consumer may take results that are ready before it lets other tasks run: a turn of the event loop costs as
much as a dozen results."""

TAKEN_AT_ONCE = 256
"""Results that are taken in one turn of the loop, for several at a time."""

ASSEMBLED_AT_ONCE_BYTES = 1024 * 1024
"""Results that are put together on the loop, which takes some tenths of a millisecond; more of them in a thread."""


def let_go(cancelled: BaseException) -> None:
    """Have the traceback of a cancellation hold no stream; the caller does `del self` beside it.

    Whoever is cancelled in a loop over a stream has left it. Event loops and frameworks keep such an exception in
    cycles, for as long as the garbage collector likes, and until then all that was read ahead would be computed.
    """
    clear_frames(cancelled.__traceback__)


class _Handle(ABC):
    """What both kinds of stream are: asynchronous iterators that are closed; and no lists and no coroutines."""

    _state: StreamState[Any]

    def __aiter__(self) -> Self:
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state!r}>"

    def progress(self) -> StreamProgress:
        """How far it is, at any time, also after the end: records read, done and failed, tokens, seconds, rates."""
        return self._state.progress()

    @abstractmethod
    async def aclose(self) -> None:
        """End the stream and wait until its source is closed; on another event loop than its own, it does not wait."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

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


class EmbeddingStream(_Handle, Generic[InputT, ResultT, CollectedT]):
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
        given: frozenset[str] = frozenset(),
        *,
        embedder: object = None,
    ) -> None:
        self._state = state
        # Nobody else may hold it, and it stays open as long as somebody does.
        self._embedder = embedder
        # None once it is being read.
        self._source: Source[InputT] | None = source
        self._group = group
        self._assembly = assembly
        # What goes out with each result. If anything does, the assembly takes entries instead of their results.
        self._given = given
        self._loop = state.loop
        self._turn_ends = 0.0
        # What `Runs` has taken and its consumer has not.
        self._ahead: deque[Any] = deque()
        self._has_passed_on = False
        """Whether `with_inputs` or `with_tokens` has made another handle of the same stream."""

    @uninterrupted
    async def __anext__(self) -> ResultT:
        try:
            if self._source is not None:
                self._start()
            # Before anything is taken: a cancelled consumer loses no result.
            if perf_counter() < self._turn_ends:
                await checkpoint_if_cancelled()
            else:
                self._check_loop()
                await checkpoint()
                self._turn_ends = perf_counter() + TURN_SECONDS
            state = self._state
            try:
                while (entry := state.take()) is None:
                    self._check_loop()
                    await state.wait_ready()
            except BaseException:
                await state.wait_drawn()
                raise
            return self._assembly.detach(entry if self._given else entry.result)
        except get_cancelled_exc_class() as cancelled:
            let_go(cancelled)
            del self
            raise

    @uninterrupted
    async def aclose(self) -> None:
        if not self._loop.is_running_here():
            self._loop.post(self._state.close)
            return
        self._state.close()
        if self._state.is_started:
            await self._state.feeder_ended.wait()
        await self._state.wait_drawn()
        await checkpoint()

    def __del__(self) -> None:
        # May run in any thread, or after the loop is gone: leave word and do no more.
        state = getattr(self, "_state", None)
        if state is not None and not state.is_closed and not self._has_passed_on:
            state.end_bar()  # the loop may be gone
            self._loop.post(state.close)

    def with_inputs(self) -> "EmbeddingStream[InputT, tuple[InputT, ResultT], tuple[list[InputT], CollectedT]]":
        """Give each result together with its input: pairs, so that a record travels with its vector.

        Returns the stream that gives them, instead of this one. With `batches` and `collect`, the pairs come as (list
        of inputs, results).

        Raises:
            StateError: The stream has been started, or gives pairs already.
        """
        source = self._pass_on("inputs")
        self._state.keeps_inputs = True
        return self._with(_paired(self._of_entries()), source, "inputs")

    def with_tokens(self) -> "EmbeddingStream[InputT, Counted[ResultT], CountedBatch[CollectedT]]":
        """Give each result together with the tokens of its input, and whether that was cut: see `asyncembed.Counted`.

        Returns the stream that gives them, instead of this one. With `batches` and `collect` they come as
        `asyncembed.CountedBatch`. The workers count as they compute, so it costs nothing. After `with_inputs` a result
        is a pair; before it, each pair is an input and what this gives.

        Raises:
            StateError: The stream has been started, or gives tokens already.
        """
        source = self._pass_on("tokens")
        return self._with(_counted(self._of_entries()), source, "tokens")

    def batches(self, size: int, max_wait: float | None = None) -> "BatchStream[ResultT, CollectedT]":
        """The same results, up to `size` at a time, each time of the type that `collect` gives.

        For a dense model arrays of up to `size` rows, for a reranker arrays of scores, for the others lists; with
        `on_error="return"` always lists. Made for ingest into a database; `with_inputs` comes before it.

        A batch has `size` rows; only the last one is smaller, unless `max_wait` is given, for a source that trickles.

        Args:
            size: Rows of a batch.
            max_wait: Seconds after which a batch is given with the rows that are there, from 0 (what is ready) on. They
                count from when its first row was ready, whether anybody asked for it then or not: a result is ready
                when it and all before it are computed, with `ordered=False` when it is computed. So no row waits for
                others longer than that, and no batch is empty. A cancelled wait keeps its rows, and the time they have
                waited, for the next one.
        """
        check_count("size", size, minimum=1, may_be_none=False)
        check_number("max_wait", max_wait, minimum=0, may_be_none=True)
        return BatchStream(
            size, max_wait, self._state, take=self._take_some, assemble=self._assemble, close=self.aclose
        )

    async def take_some(self, limit: int = TAKEN_AT_ONCE) -> list[ResultT]:
        """What is ready, up to `limit` results, at least one: it waits for the first, and for no other.

        An empty list is the end. For loops of your own, which want few turns of the event loop and no batches of a
        size: `while some := await stream.take_some(): ...`. Cancelled, it loses nothing. An input's error comes with
        the next call when results were ready before it.
        """
        check_count("limit", limit, minimum=1, may_be_none=False)
        detach = self._assembly.detach
        return [detach(result) for result in await self._take_some(min(limit, TAKEN_AT_ONCE))]

    async def collect(self) -> CollectedT:
        """All results: for a dense model one array (n, dim), else a list or an array of scores.

        With `on_error="return"` always a list, of results and errors. Cancelled, it ends the stream.
        """
        results: list[Any] = []
        try:
            while some := await self._take_some(TAKEN_AT_ONCE):
                results += some
        except BaseException:
            # Whoever holds the stream, as a task or an exception may, cannot get at these results any more.
            self._state.close()
            raise
        return await self._assemble(results)

    @property
    def skipped(self) -> int:
        """How many inputs `on_error="skip"`, or a function in its place, has left out so far."""
        return self._state.skipped

    @uninterrupted
    async def _take_some(
        self, limit: int, until: float = inf, take: Callable[[], Entry | None] | None = None
    ) -> list[Any]:
        """What is ready, up to `limit` results, to be assembled; waits for the first of them.

        Empty at the end, or when the clock says `until` before there is any.
        """
        if self._source is not None:
            self._start()
        self._check_loop()
        await checkpoint()
        if self._ahead:
            return _popped(self._ahead, limit)
        state = self._state
        state.release()
        take = take or state.take
        results: list[Any] = []
        while True:
            try:
                while len(results) < limit and (entry := take()) is not None:
                    results.append(entry if self._given else entry.result)
            except StopAsyncIteration:
                await state.wait_drawn()
                return results
            except BaseException as error:
                await state.wait_drawn()
                # What came before the error goes out first; the error comes again with the next call.
                if results and error is state.end:
                    return results
                raise
            if results or (until != inf and perf_counter() >= until):
                return results
            await state.wait_ready(until)

    async def _assemble(self, results: list[Any]) -> CollectedT:
        """Put results together as `collect` gives them: many of them in a thread, as all are copied."""
        parts = [entry.result for entry in results] if self._given else results
        size_bytes = sum([getattr(part, "nbytes", 0) for part in parts]) if len(parts) <= TAKEN_AT_ONCE else inf
        if size_bytes <= ASSEMBLED_AT_ONCE_BYTES:
            return self._assembly.assemble(results)
        return await to_thread.run_sync(self._assembly.assemble, results, limiter=self._state.engine.limiter)

    def _runs(self) -> "Runs[ResultT]":
        return Runs(self._state, self._ahead, take=self._take_some, detach=self._assembly.detach)

    @uninterrupted
    def _start(self) -> None:
        if self._has_passed_on:
            raise StateError("with_inputs() or with_tokens() has given another stream: take from that one")
        if self._source is not None and not self._state.is_closed:
            self._loop.check()
            source, self._source = self._source, None
            self._state.start()
            self._group.start_soon(self._state.feed, source)

    def _pass_on(self, what: str) -> Source[InputT]:
        """Leave the source to another handle, which gives something else with each result."""
        if self._source is None or self._has_passed_on or what in self._given:
            raise StateError(f"with_{what}() comes before the first result is asked for, and once")
        self._has_passed_on = True
        return self._source

    def _with(
        self, assembly: Assembly[OtherResultT, OtherCollectedT], source: Source[InputT], what: str
    ) -> "EmbeddingStream[InputT, OtherResultT, OtherCollectedT]":
        given = self._given | {what}
        return EmbeddingStream(self._state, source, self._group, assembly, given, embedder=self._embedder)

    def _of_entries(self) -> Assembly[ResultT, CollectedT]:
        return self._assembly if self._given else _of_entries(self._assembly)

    def _check_loop(self) -> None:
        """Raise `StateError` on another event loop, where nothing would ever wake the consumer."""
        if not self._state.is_closed and not self._loop.is_running_here():
            raise StateError(
                "this stream was begun on another event loop; take from it there, or begin another one here"
            )


class Runs(Generic[ResultT]):
    """The results of a stream for a consumer in another thread, as many at a time as are ready.

    A run counts in the window until the next one is fetched: the source is read as far ahead as for any consumer.
    """

    def __init__(
        self,
        state: StreamState[Any],
        ahead: deque[Any],
        *,
        take: Callable[[int, float, Callable[[], Entry | None]], Awaitable[list[Any]]],
        detach: Callable[[Any], ResultT],
    ) -> None:
        self._state = state
        self._ahead = ahead
        # Methods of the stream, which stays as long as they do.
        self._take = take
        self._detach = detach

    async def fetch(self) -> bool:
        """Wait for results, on the stream's loop; False at the end, when there are none.

        Cancelled, it loses no result. Raises what `__anext__` of the stream does; what was ready before comes first.
        """
        some = await self._take(TAKEN_AT_ONCE, inf, self._state.take_held)
        self._ahead += some
        return bool(some)

    def take_nowait(self) -> ResultT:
        """The next one of those that were fetched, in any thread. Raises `IndexError` where there is none."""
        return self._detach(self._ahead.popleft())

    @property
    def has_some(self) -> bool:
        """Whether `take_nowait` has something; in any thread."""
        return bool(self._ahead)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be fetched; in any thread."""
        return self._state.is_closed

    def close_soon(self) -> None:
        """Have the stream end; in any thread."""
        self._state.loop.post(self._state.close)


def runs_of(stream: EmbeddingStream[Any, ResultT, Any]) -> Runs[ResultT]:
    """For the package itself: the stream as a thread takes from it."""
    return stream._runs()  # noqa: SLF001 (a stream offers its users no more than they need)


ReturningStream: TypeAlias = EmbeddingStream[InputT, ResultT | InputFailure, list[ResultT | InputFailure]]
"""A stream with `on_error="return"`."""


class BatchStream(_Handle, Generic[ResultT, CollectedT]):
    """The results of a stream, several at a time: an async iterator; see `EmbeddingStream.batches`."""

    def __init__(
        self,
        size: int,
        max_wait: float | None,
        state: StreamState[Any],
        *,
        take: Callable[[int, float], Awaitable[list[Any]]],
        assemble: Callable[[list[Any]], Awaitable[CollectedT]],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        self._size = size
        self._max_wait = max_wait
        self._state = state
        if max_wait is not None:
            state.keep_time()
        # Methods of the stream, which stays as long as they do.
        self._take = take
        self._assemble = assemble
        self._close = close
        # Kept across calls, so that a cancelled consumer loses no result; and when they are to be given.
        self._taken: list[Any] = []
        self._until = inf

    async def __anext__(self) -> CollectedT:
        try:
            return await self._next()
        except get_cancelled_exc_class() as cancelled:
            let_go(cancelled)
            del self
            raise

    async def _next(self) -> CollectedT:
        await self._fill()
        if not self._taken:
            raise StopAsyncIteration
        # Several tasks may have filled it together.
        batch, self._taken = self._taken[: self._size], self._taken[self._size :]
        until, self._until = self._until, inf
        if self._max_wait is not None:
            self._state.restart_time()
            if self._taken:
                self._until = perf_counter() + self._max_wait
        try:
            return await self._assemble(batch)
        except BaseException:
            self._taken, self._until = batch + self._taken, until
            raise

    async def _fill(self) -> None:
        """Take results until there are enough for a batch, or it is time to give it, or the stream ends."""
        while len(self._taken) < self._size:
            try:
                some = await self._take(min(TAKEN_AT_ONCE, self._size - len(self._taken)), self._until)
            except BaseException as error:
                if self._taken and error is self._state.end:
                    return  # the error comes again with the next call
                raise
            # Another task may have given the batch whose time has come.
            if not some and (self._taken or self._state.is_closed):
                return
            if some and not self._taken and self._max_wait is not None:
                self._until = self._state.ready_since + self._max_wait
            self._taken += some

    async def aclose(self) -> None:
        await self._close()


def _popped(ahead: deque[Any], limit: int) -> list[Any]:
    """Up to `limit` of those that were fetched already; their consumer's thread may take them as well."""
    results: list[Any] = []
    with suppress(IndexError):
        while len(results) < limit:
            results.append(ahead.popleft())
    return results


# ---------------------------------------------------------------- errors, inputs and tokens among results


def returning(assembly: Assembly[ResultT, Any]) -> Assembly[ResultT | InputFailure, list[ResultT | InputFailure]]:
    """The same where errors come in the place of results: several are always a list."""

    def detach(result: Any) -> ResultT | InputFailure:
        return result if isinstance(result, OF_ONE_INPUT) else assembly.detach(result)

    return Assembly(detach, partial(detach_each, detach=detach))


def _of_entries(assembly: Assembly[ResultT, CollectedT]) -> Assembly[ResultT, CollectedT]:
    """The same, given entries of the window."""
    return Assembly(
        lambda entry: assembly.detach(entry.result),
        lambda entries: assembly.assemble([entry.result for entry in entries]),
    )


def _paired(assembly: Assembly[ResultT, CollectedT]) -> Assembly[tuple[Any, ResultT], tuple[list[Any], CollectedT]]:
    """(input, result) pairs, given entries, as `assembly` is."""
    return Assembly(
        lambda entry: (entry.record, assembly.detach(entry)),
        lambda entries: ([entry.record for entry in entries], assembly.assemble(entries)),
    )


def _counted(assembly: Assembly[ResultT, CollectedT]) -> Assembly[Counted[ResultT], CountedBatch[CollectedT]]:
    """Results with their tokens, given entries, as `assembly` is."""
    return Assembly(
        lambda entry: count_of(assembly.detach(entry), entry.count),
        lambda entries: counts_of(assembly.assemble(entries), [entry.count for entry in entries]),
    )
