"""The face of a model that may be awaited anywhere: from any asyncio or trio loop, in any thread.

`model.on_any_loop()` gives a model of the same class with the same methods. A call goes to the loop on which the model
is open; where it is not open, to the engine of all who ask for the same (`asyncembed.shared`). The plain method runs
there. This module carries arguments, results and cancellation: the results of a stream come many at a time (`_Far`),
and an asynchronous source stays on its caller's loop (`_Relay`).
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from functools import cache, wraps
from inspect import getattr_static, iscoroutinefunction, isfunction
from time import monotonic
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar, TypeVarTuple, cast

from anyio import CancelScope, Event, get_cancelled_exc_class
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from asyncembed import background
from asyncembed.bars import StreamProgress
from asyncembed.checks import check_count, check_seconds
from asyncembed.engine.lifetime import Openable, OpenedT
from asyncembed.errors import OptionError, StateError
from asyncembed.feeding import NotedFailures, close_generator
from asyncembed.remote import Remote
from asyncembed.results import Counted, CountedBatch
from asyncembed.shared import Lease, as_unopened, unopened
from asyncembed.stream import TAKEN_AT_ONCE, TURN_SECONDS, BatchStream, EmbeddingStream, Runs, let_go, runs_of
from asyncembed.wakeup import Loop

READ_AHEAD = 16
"""Records that an asynchronous source may be ahead of the window, as each of them on its own would be a wake-up of
another thread."""

_NOT_BEGUN = StreamProgress(read=0, done=0, failed=0, tokens=0, seconds=0.0, total=None)

Args = TypeVarTuple("Args")
InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")
CollectedT = TypeVar("CollectedT")
T = TypeVar("T")


class OnAnyLoop(Openable[OpenedT]):
    """What can be used from other event loops than the one on which it is opened."""

    _lease: "Lease[Self] | None" = None
    """Of the engine that is shared with others; from the first call that needed it."""

    def on_any_loop(self, *, keep_alive: float | None = None) -> Self:
        """The same model, to be awaited from any asyncio or trio loop and in any thread; costs some 0.1 ms a call.

        ```python
        model = TextEmbedding("BAAI/bge-small-en-v1.5")   # in a module, say
        anywhere = model.on_any_loop()

        query = await anywhere.embed_query("what is backpressure?")   # under asyncio.run in one thread, trio in another
        ```

        While this model is open, calls run on its event loop. If it was never opened, they run on a loop in the
        background, in an engine that the first call opens, and that all share who ask for the same class, name and
        options in this process, also by `asyncembed.sync`. It closes with the last of their models (when that is
        collected, or by `aclose` of what this returns), or with the interpreter; `unload` closes it at once.

        A caller that is cancelled, as by a time-out, withdraws its work. The errors are those of the methods; those
        about the arguments of a stream come with its first result. An asynchronous source is read on the loop of its
        caller, by a task of its own, and up to 16 records further than the window. Any other source is read in a
        thread, and `key=` is called there, or on the loop of the model.

        Args:
            keep_alive: Seconds after which the shared engine is closed when nobody uses it, to be opened again by the
                next call; None never does so. Of several users the longest time counts.

        Raises:
            OptionError: A `keep_alive` that cannot work.
            StateError: (from calls) The model was opened and is closed.
        """
        check_seconds("keep_alive", keep_alive, may_be_none=True)
        background.end_after_threads()
        return cast(Self, _face_class(type(self))(self, keep_alive))

    async def unload(self) -> None:
        """Close the shared engine of this model at once, for all its users; the next call opens it again.

        What runs gets a `StateError`. It concerns `on_any_loop` and `asyncembed.sync`: a model that was opened by
        `open` or `async with` stays open until it is closed.
        """
        if self._lease is not None:
            await background.run_last_async(self._lease.unload)

    def __getstate__(self) -> dict[str, Any]:
        return as_unopened(self)

    @abstractmethod
    def _remote(self) -> Remote | None:
        """The way to the loop on which it is open."""

    def _way(self, keep_alive: float | None) -> "_Way":
        """The way to where calls run now."""
        remote = self._remote()
        if remote is not None:
            return _OwnLoop(self, remote)
        if self._owner is not None:
            raise StateError(
                f"this {type(self).__name__} {self._closed_words}: open it again, or make another one that the program "
                "never opens"
            )
        lease: Lease[Any] | None = self._lease
        if lease is None or not lease.is_held or lease.keep_alive != keep_alive:
            # Where several threads come here at once, those leases but one are dropped after their first call.
            lease = self._lease = Lease[Any](self, keep_alive=keep_alive)
        return _Background(lease)

    def _present(self) -> "OnAnyLoop[OpenedT]":
        """The model that is open, if there is one."""
        if self._remote() is not None or self._lease is None:
            return self
        return self._lease.model or self

    async def _give_back(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.close()
            await background.run_last_async(lease.aclose)


# ---------------------------------------------------------------- where calls run


class _Used(Protocol):
    """A model in use."""

    model: Any

    def end(self) -> None:
        """It is no more; on its loop."""


class _Way(Protocol):
    """To an event loop and a model that is open there, or is opened."""

    @property
    def model_here(self) -> Any:
        """The model if this is its loop."""

    async def call(self, function: Callable[[Any], Awaitable[T]]) -> T:
        """What the function gives there, with the model."""
        ...

    def call_blocking(self, function: Callable[[Any], Awaitable[T]]) -> T:
        """The same for a thread, which waits."""
        ...

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller runs in the thread of that loop."""
        ...

    async def run(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """What the function gives there."""
        ...

    def post(self, function: Callable[[], object]) -> None:
        """Have it called there, soon."""

    async def use(self) -> _Used:
        """Begin to use the model; on its loop."""
        ...


class _OwnLoop:
    """The loop on which the program has opened the model."""

    def __init__(self, model: Any, remote: Remote) -> None:
        self.model = model
        self._remote = remote

    @property
    def model_here(self) -> Any:
        return self.model if self._remote.loop.is_running_here() else None

    async def call(self, function: Callable[[Any], Awaitable[T]]) -> T:
        return await self._remote.call(function, self.model)

    def call_blocking(self, function: Callable[[Any], Awaitable[T]]) -> T:
        return self._remote.call_blocking(function, self.model)

    @property
    def is_current_thread(self) -> bool:
        return self._remote.is_current_thread

    async def run(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        return await self._remote.call(function, *args)

    def post(self, function: Callable[[], object]) -> None:
        self._remote.loop.post(function)

    async def use(self) -> _Used:
        return self

    def end(self) -> None:
        """It is open for as long as the program wants."""


class _Background:
    """The loop in the background."""

    model_here: Any = None

    def __init__(self, lease: Lease[Any]) -> None:
        self._lease = lease

    async def call(self, function: Callable[[Any], Awaitable[T]]) -> T:
        return await background.run_async(self._lease.call, function)

    def call_blocking(self, function: Callable[[Any], Awaitable[T]]) -> T:
        return background.run(self._lease.call, function)

    @property
    def is_current_thread(self) -> bool:
        return background.is_current_thread()

    async def run(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        return await background.run_async(function, *args)

    def post(self, function: Callable[[], object]) -> None:
        background.post(function)

    async def use(self) -> _Used:
        return await self._lease.use()


# ---------------------------------------------------------------- the face


class _Face:
    """Comes before the class of the model, and holds a model of it; `_face_class` adds the methods."""

    def __init__(self, model: "OnAnyLoop[Any] | Home[Any]", keep_alive: float | None) -> None:
        self._model = model
        self._keep_alive = keep_alive

    def on_any_loop(self, *, keep_alive: float | None = None) -> Any:
        return self._model.on_any_loop(keep_alive=keep_alive)

    async def open(self) -> Self:
        """Open the shared engine now, if the model is not open, instead of with the first call."""
        await self._way().call(only_open)
        return self

    async def aclose(self) -> None:
        """Give the shared engine back; it closes if nobody else uses it. The model itself stays open, if it is."""
        await self._model._give_back()  # noqa: SLF001 (a face is a part of its model)

    async def unload(self) -> None:
        await self._model.unload()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        """Nothing of it is open."""

    def __copy__(self) -> Self:
        return self

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[Any, ...]]:
        """Another process has a shared engine of its own."""
        return _face_again, (unopened_of(cast(Any, self)), self._keep_alive)

    def __repr__(self) -> str:
        return f"<{self._present()!r} on any loop>"

    def _way(self) -> _Way:
        return self._model._way(self._keep_alive)  # noqa: SLF001 (a face is a part of its model)

    def _present(self) -> Any:
        return self._model._present()  # noqa: SLF001 (a face is a part of its model)


def _face_again(model: OnAnyLoop[Any], keep_alive: float | None) -> Any:
    return model.on_any_loop(keep_alive=keep_alive)


async def only_open(_: object) -> None:
    """What is done with an open model by those who want it open, and nothing else yet."""


ModelT = TypeVar("ModelT", bound=OnAnyLoop[Any])


class Home(ABC, Generic[ModelT]):
    """What a face asks of a model, where that is something else than an `OnAnyLoop`."""

    def __init__(self, kind: type[ModelT]) -> None:
        self._kind = kind

    def on_any_loop(self, *, keep_alive: float | None = None) -> ModelT:
        """The face; its time is that of its model."""
        if keep_alive is not None:
            raise OptionError("keep_alive: this model has its own")
        return cast(ModelT, _face_class(self._kind)(self, None))

    @property
    @abstractmethod
    def wanted(self) -> ModelT:
        """What says which model it is, and is never opened."""

    @abstractmethod
    def _present(self) -> ModelT:
        """The open model, or `wanted`."""

    @abstractmethod
    def _leased(self) -> Lease[ModelT]:
        """Of its engine."""

    async def unload(self) -> None:
        await background.run_last_async(self._leased().unload)

    def _way(self, keep_alive: float | None) -> _Way:  # noqa: ARG002 (it has its own)
        return _Background(self._leased())

    async def _give_back(self) -> None:
        """Who has made the model does so."""


def face_of(model: ModelT) -> ModelT:
    """What `on_any_loop` gives; of that, itself."""
    return model if isinstance(cast(object, model), _Face) else model.on_any_loop()


def unopened_of(face: ModelT) -> ModelT:
    """Another model of the same class, name and options, of what `on_any_loop` gave."""
    model = cast(_Face, face)._model  # noqa: SLF001 (of this module)
    return cast(ModelT, unopened(model.wanted if isinstance(model, Home) else model))


def run_blocking(face: ModelT, function: Callable[[ModelT], Awaitable[T]]) -> T:
    """What the function gives with the open model of what `on_any_loop` gave, on its loop; blocks the calling thread.

    Raises:
        UsageError: The calling thread is that of this loop.
    """
    return cast(_Face, face)._way().call_blocking(function)  # noqa: SLF001 (of this module)


def is_loop_of(face: OnAnyLoop[Any]) -> bool:
    """Whether the calling thread is that of the loop on which the calls of the face run."""
    return cast(_Face, face)._way().is_current_thread  # noqa: SLF001 (of this module)


@cache
def _face_class(kind: type[OnAnyLoop[Any]]) -> Callable[["OnAnyLoop[Any] | Home[Any]", float | None], Any]:
    """The class of the faces of a class of models: a subclass, each of whose methods goes where the model is."""
    members: dict[str, Any] = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    for name in dir(kind):
        member = getattr_static(kind, name)
        if name.startswith("_") or name in vars(_Face):
            continue
        if isinstance(member, property):
            members[name] = _property_there(name, member)
        elif iscoroutinefunction(member):
            members[name] = _calling(member)
        elif isfunction(member):
            members[name] = _streaming(member) if gives_stream(member) else _asking(member)
    return cast(Callable[..., Any], cast(Any, type(kind))(kind.__name__, (_Face, kind), members))


def gives_stream(method: Callable[..., object]) -> bool:
    """Whether a method says that it returns a stream."""
    return "Stream" in str(method.__annotations__.get("return"))


def _property_there(name: str, member: property) -> property:
    return property(lambda face: getattr(face._present(), name), doc=member.__doc__)  # noqa: SLF001 (see `_Face`)


def _asking(method: Callable[..., T]) -> Callable[..., T]:
    """Of a method that only looks, in any thread."""

    @wraps(method)
    def ask(face: Any, *arguments: Any, **keywords: Any) -> T:
        return method(face._present(), *arguments, **keywords)  # noqa: SLF001 (see `_Face`)

    return ask


def _calling(method: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., Coroutine[Any, Any, T]]:
    """Of a method that is a coroutine."""

    @wraps(method)
    async def call(face: Any, *arguments: Any, **keywords: Any) -> T:
        way: _Way = face._way()  # noqa: SLF001 (see `_Face`)
        if way.model_here is not None:
            return await method(way.model_here, *arguments, **keywords)
        relays = _Relays()
        arguments, keywords = relays.replace(arguments, keywords)
        try:
            relays.begin()
            return await way.call(lambda model: method(model, *arguments, **keywords))
        finally:
            await relays.aclose()

    return call


def _streaming(method: Callable[..., EmbeddingStream[Any, Any, Any]]) -> Callable[..., EmbeddingStream[Any, Any, Any]]:
    """Of a method that gives a stream."""

    @wraps(method)
    def begin(face: Any, *arguments: Any, **keywords: Any) -> EmbeddingStream[Any, Any, Any]:
        way: _Way = face._way()  # noqa: SLF001 (see `_Face`)
        if way.model_here is not None:
            return method(way.model_here, *arguments, **keywords)
        relays = _Relays()
        arguments, keywords = relays.replace(arguments, keywords)
        failures = NotedFailures.instead_of_handler(keywords)
        return _FarStream(_Far(way, lambda model: method(model, *arguments, **keywords), relays, failures))

    return begin


# ---------------------------------------------------------------- streams


class _Far(Generic[InputT, ResultT, CollectedT]):
    """A stream on another loop, and how it is made there when its first result is asked for.

    It refers to no handle, so that dropping one ends the stream.
    """

    def __init__(
        self,
        way: _Way,
        make: Callable[[Any], EmbeddingStream[InputT, ResultT, CollectedT]],
        relays: "_Relays",
        failures: NotedFailures | None,
    ) -> None:
        self.way = way
        self.make = make
        self.relays = relays
        self.failures = failures
        self.stream: EmbeddingStream[InputT, ResultT, CollectedT] | None = None
        self.runs: Runs[ResultT] | None = None
        self._use: _Used | None = None
        self._is_closed = False

    async def run(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """What the function gives on the stream's loop; on the caller's."""
        self.relays.begin()
        try:
            return await self.way.run(function, *args)
        finally:
            if self.runs is not None and self.runs.is_over:
                self.relays.stop()
            if self.failures is not None:
                self._hand_over(self.failures)

    def _hand_over(self, failures: NotedFailures) -> None:
        try:
            failures.hand_over()
        except BaseException:
            self.way.post(self.drop)
            raise

    def followed_by(
        self, step: Callable[[EmbeddingStream[InputT, ResultT, CollectedT]], EmbeddingStream[InputT, Any, Any]]
    ) -> "_Far[InputT, Any, Any]":
        """The one that gives what a further step makes of this one, which has not begun."""
        return _Far(self.way, lambda model: step(self.make(model)), self.relays, self.failures)

    # ---------------------------------------------------------------- there

    async def take(self, function: Callable[[EmbeddingStream[InputT, ResultT, CollectedT]], Awaitable[T]]) -> T:
        """What the function gives with the stream, made if need be."""
        try:
            return await function(await self._begun())
        finally:
            if self.runs is None or self.runs.is_over:
                self._end_use()

    async def fetch(self) -> bool:
        """Have results in `runs`; False at the end."""
        return await self.take(self._fetch)

    async def _fetch(self, stream: EmbeddingStream[InputT, ResultT, CollectedT]) -> bool:  # noqa: ARG002 (it has begun)
        assert self.runs is not None
        return self.runs.has_some or await self.runs.fetch()

    async def _begun(self) -> EmbeddingStream[InputT, ResultT, CollectedT]:
        if self.stream is None:
            use = await self.way.use()
            if self.stream is not None:  # two have come at once
                use.end()
                return self.stream
            self._use = use
            if self._is_closed:
                raise StateError("this stream was closed before it had begun")
            self.stream = self.make(use.model)
            self.runs = runs_of(self.stream)
        return self.stream

    async def close(self) -> None:
        try:
            if self.stream is not None:
                await self.stream.aclose()
        finally:
            self.drop()

    def drop(self) -> None:
        self._is_closed = True
        if self.runs is not None:
            self.runs.close_soon()
        self._end_use()

    def _end_use(self) -> None:
        use, self._use = self._use, None
        if use is not None:
            use.end()


class _FarStream(EmbeddingStream[InputT, ResultT, CollectedT]):
    """The handle of a stream on another loop. It may be used on any loop, and in any thread."""

    def __init__(self, far: _Far[InputT, ResultT, CollectedT]) -> None:
        self._far = far
        self._turn_ends = 0.0
        self._has_passed_on = False

    async def __anext__(self) -> ResultT:
        try:
            if monotonic() < self._turn_ends:
                await checkpoint_if_cancelled()
            else:
                await checkpoint()
                self._turn_ends = monotonic() + TURN_SECONDS
            far = self._far
            while True:
                if far.runs is not None:
                    with suppress(IndexError):
                        return far.runs.take_nowait()
                self._check_not_passed_on()
                if not await far.run(far.fetch):
                    raise StopAsyncIteration
        except get_cancelled_exc_class() as cancelled:
            let_go(cancelled)
            del self
            raise

    async def aclose(self) -> None:
        far = self._far
        try:
            await far.way.run(far.close)
        finally:
            await far.relays.aclose()

    def __del__(self) -> None:
        # May run in any thread: leave word and do no more.
        far = getattr(self, "_far", None)
        if far is not None and not self._has_passed_on:
            far.relays.stop()
            far.way.post(far.drop)

    def __repr__(self) -> str:
        return "<EmbeddingStream not begun>" if self._far.stream is None else repr(self._far.stream)

    def with_inputs(self) -> EmbeddingStream[InputT, tuple[InputT, ResultT], tuple[list[InputT], CollectedT]]:
        return self._passed_on("with_inputs", lambda stream: stream.with_inputs())

    def with_tokens(self) -> EmbeddingStream[InputT, Counted[ResultT], CountedBatch[CollectedT]]:
        return self._passed_on("with_tokens", lambda stream: stream.with_tokens())

    def _passed_on(
        self,
        name: str,
        step: Callable[[EmbeddingStream[InputT, ResultT, CollectedT]], EmbeddingStream[InputT, Any, Any]],
    ) -> EmbeddingStream[InputT, Any, Any]:
        self._check_not_passed_on()
        if self._far.stream is not None:
            raise StateError(f"{name}() comes before the first result is asked for")
        self._has_passed_on = True
        return _FarStream(self._far.followed_by(step))

    def batches(self, size: int, max_wait: float | None = None) -> BatchStream[ResultT, CollectedT]:
        self._check_not_passed_on()
        return _FarBatches(self, self._far, size, max_wait)

    async def take_some(self, limit: int = TAKEN_AT_ONCE) -> list[ResultT]:
        check_count("limit", limit, minimum=1, may_be_none=False)
        try:
            some = [await anext(self)]
        except StopAsyncIteration:
            return []
        runs = self._far.runs
        with suppress(IndexError):
            while runs is not None and len(some) < limit:
                some.append(runs.take_nowait())
        return some

    async def collect(self) -> CollectedT:
        self._check_not_passed_on()
        return await self._far.run(self._far.take, lambda stream: stream.collect())

    def progress(self) -> StreamProgress:
        return _NOT_BEGUN if self._far.stream is None else self._far.stream.progress()

    @property
    def skipped(self) -> int:
        return 0 if self._far.stream is None else self._far.stream.skipped

    def _check_not_passed_on(self) -> None:
        if self._has_passed_on:
            raise StateError("with_inputs() or with_tokens() has given another stream: take from that one")


class _FarBatches(BatchStream[ResultT, CollectedT]):
    """The same for batches."""

    def __init__(
        self,
        stream: _FarStream[Any, ResultT, CollectedT],
        far: _Far[Any, ResultT, CollectedT],
        size: int,
        max_wait: float | None,
    ) -> None:
        self._stream = stream  # which stays as long as this does
        self._run, self._take_there = far.run, far.take
        self._wanted = size, max_wait
        self._batches: BatchStream[ResultT, CollectedT] | None = None
        self._ready: deque[CollectedT] = deque()
        """Those that a cancelled consumer has left."""

    async def _next(self) -> CollectedT:
        await checkpoint()
        while not self._ready:
            await self._run(self._take_there, self._fetch)
        return self._ready.popleft()

    async def _fetch(self, stream: EmbeddingStream[Any, ResultT, CollectedT]) -> None:
        if self._batches is None:
            self._batches = stream.batches(*self._wanted)
        self._ready.append(await anext(self._batches))

    def progress(self) -> StreamProgress:
        return self._stream.progress()

    async def aclose(self) -> None:
        await self._stream.aclose()


# ---------------------------------------------------------------- asynchronous sources


class _Relays:
    """The asynchronous sources among the arguments of a call."""

    def __init__(self) -> None:
        self._relays: list[_Relay[Any]] = []
        self._has_begun = False

    def replace(
        self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with a relay in the place of each asynchronous source."""
        return tuple(map(self._relayed, arguments)), {name: self._relayed(value) for name, value in keywords.items()}

    def _relayed(self, value: Any) -> Any:
        if not hasattr(type(value), "__aiter__"):
            return value
        relay = _Relay[Any](value)
        self._relays.append(relay)
        return relay

    def begin(self) -> None:
        """Begin to read, on the loop of the caller; again, nothing happens."""
        if not self._has_begun:
            self._has_begun = True
            for relay in self._relays:
                relay.begin()

    def stop(self) -> None:
        """Stop reading; from any thread."""
        for relay in self._relays:
            relay.stop()

    async def aclose(self) -> None:
        """Stop reading, and wait for it on the loop of the caller."""
        self.stop()
        for relay in self._relays:
            await relay.wait_ended()


class _Relay(AsyncIterator[InputT]):
    """An asynchronous source that one loop reads (here) and another one takes from (there)."""

    def __init__(self, source: AsyncIterable[InputT]) -> None:
        self._source = source
        self._records: deque[InputT] = deque()
        self._error: BaseException | None = None
        self._is_over = False
        self._here: Loop | None = None
        self._there: Loop | None = None
        self._scope = CancelScope()
        self._ended: Event | None = None
        # The two who may wait: for a record, there, and for room, here.
        self._record_came: Event | None = None
        self._room_came: Event | None = None

    # ---------------------------------------------------------------- there

    async def __anext__(self) -> InputT:
        if self._there is None:
            self._there = Loop()
        while not self._records:
            if self._is_over:
                raise self._error or StopAsyncIteration
            event = self._record_came = Event()
            # What came before that is seen now, and what comes after it sets it.
            if not self._records and not self._is_over:
                await event.wait()
        record = self._records.popleft()
        room, self._room_came = self._room_came, None
        if room is not None and self._here is not None:
            self._here.post(room.set)
        return record

    # ---------------------------------------------------------------- here

    def begin(self) -> None:
        self._here = Loop()
        self._ended = Event()
        self._here.spawn(self._read, "asyncembed-source")

    def stop(self) -> None:
        if self._here is not None and not self._is_over:
            self._here.post(self._scope.cancel)

    async def wait_ended(self) -> None:
        if self._ended is not None and self._here is not None and self._here.is_running_here():
            await self._ended.wait()

    async def _read(self) -> None:
        try:
            with self._scope:
                iterator = aiter(self._source)
                try:
                    async for record in iterator:
                        self._records.append(record)
                        self._tell()
                        await self._wait_room()
                finally:
                    await close_generator(iterator)
            if self._scope.cancelled_caught:
                self._error = StateError("the stream was closed")
        except get_cancelled_exc_class():
            self._error = StateError("the source was cancelled, by itself or because its event loop has ended")
            raise
        except BaseException as error:  # noqa: BLE001 (it is the stream's)
            self._error = error
        finally:
            self._is_over = True
            self._tell()
            assert self._ended is not None
            self._ended.set()

    def _tell(self) -> None:
        came, self._record_came = self._record_came, None
        if came is not None and self._there is not None:
            self._there.post(came.set)

    async def _wait_room(self) -> None:
        if len(self._records) < READ_AHEAD:
            return
        event = self._room_came = Event()
        if len(self._records) >= READ_AHEAD:
            await event.wait()
