"""The seven classes for programs without an event loop: the same calls, which block the thread that makes them.

```python
with TextEmbedding("BAAI/bge-small-en-v1.5") as model:
    for vector in model.embed(documents):
        ...
    query = model.embed_query("what is backpressure?")
```

Arguments, results and errors are those of the class of the same name in `asyncembed`, which documents them. Behind them
is the asynchronous engine, on an event loop in the background: one for all who ask for the same class, name and
options, in any thread, whose single calls are batched together. `with` opens the model and gives it back; without it
the first call opens it, and `close()`, or dropping it, gives it back. The engine closes with its last user.
"""

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from functools import partial, update_wrapper
from threading import Lock
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Generic,
    Literal,
    NoReturn,
    ParamSpec,
    Self,
    TypedDict,
    TypeVar,
    TypeVarTuple,
    Unpack,
    cast,
    overload,
)
from weakref import finalize

from asyncembed import background
from asyncembed.any_loop import Home, only_open
from asyncembed.bars import StreamProgress
from asyncembed.checkpoint import CheckpointFile
from asyncembed.checks import check_bool, check_seconds
from asyncembed.embedders.base import Embedder, HasVectors, ModelName, fingerprint_in_thread
from asyncembed.embedders.cross_encoder import CrossEncoderKeywords
from asyncembed.embedders.cross_encoder import TextCrossEncoder as AsyncTextCrossEncoder
from asyncembed.embedders.hybrid import DEFAULT_MODEL as DEFAULT_HYBRID_MODEL
from asyncembed.embedders.hybrid import HybridKeywords
from asyncembed.embedders.hybrid import HybridTextEmbedding as AsyncHybridTextEmbedding
from asyncembed.embedders.image import ImageEmbedding as AsyncImageEmbedding
from asyncembed.embedders.image import ImageVectorKeywords
from asyncembed.embedders.late_interaction import LateInteractionKeywords
from asyncembed.embedders.late_interaction import LateInteractionTextEmbedding as AsyncLateInteractionTextEmbedding
from asyncembed.embedders.multimodal import LateInteractionMultimodalEmbedding as AsyncMultimodalEmbedding
from asyncembed.embedders.multimodal import MultimodalKeywords
from asyncembed.embedders.roles import TextRoles
from asyncembed.embedders.sparse import SparseKeywords
from asyncembed.embedders.sparse import SparseTextEmbedding as AsyncSparseTextEmbedding
from asyncembed.embedders.text import DEFAULT_MODEL, TextKeywords
from asyncembed.embedders.text import TextEmbedding as AsyncTextEmbedding
from asyncembed.engine.model import Stats
from asyncembed.engine.pool import WorkerPool as AsyncWorkerPool
from asyncembed.errors import StateError, UsageError
from asyncembed.feeding import NotedFailures
from asyncembed.migration import ATTRIBUTES, no_such_name, refuse_assignment
from asyncembed.results import CollectedT, HybridOutput, ResultT, ScalarT, SparseEmbedding
from asyncembed.shared import Lease, Use, as_unopened
from asyncembed.stream import BatchStream as AsyncBatchStream
from asyncembed.stream import EmbeddingStream as AsyncEmbeddingStream
from asyncembed.stream import runs_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from numpy.typing import NDArray  # noqa: F401 (in a base's arguments)

InputT = TypeVar("InputT")
EmbedderT = TypeVar("EmbedderT", bound=Embedder)
MethodT = TypeVar("MethodT")
OwnerT = TypeVar("OwnerT")
T = TypeVar("T")
P = ParamSpec("P")
Args = TypeVarTuple("Args")

__all__ = [
    "BatchStream",
    "Checkpoint",
    "DoorKeywords",
    "EmbeddingStream",
    "HybridTextEmbedding",
    "ImageEmbedding",
    "LateInteractionMultimodalEmbedding",
    "LateInteractionTextEmbedding",
    "SparseTextEmbedding",
    "TextCrossEncoder",
    "TextEmbedding",
    "WorkerPool",
]


if not TYPE_CHECKING:  # type checkers know all names there are

    def __getattr__(name: str) -> NoReturn:
        raise no_such_name(__name__, name)


background.end_after_threads()


# ---------------------------------------------------------------- from an asynchronous method to one that blocks
#
#     @_blocking
#     @_of(AsyncTextEmbedding[ScalarT].embed_query)
#     def embed_query(self) -> None: ...
#
# takes all of it, overloads and docstring, from the asynchronous class. There are two steps since type checkers carry
# overloads through a decorator, and not through a function that returns one.


def _of(method: MethodT) -> Callable[[Callable[..., None]], MethodT]:
    """The asynchronous method itself, in the place of what is decorated."""
    return lambda _: method


def _blocking(method: Callable[Concatenate[OwnerT, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """Of a coroutine method: its result."""

    def call(self: _Blocking, /, *arguments: P.args, **keywords: P.kwargs) -> T:
        return self._wait_for(method, *arguments, **keywords)

    return _documented(call, method)


def _streaming(
    method: Callable[Concatenate[OwnerT, P], AsyncEmbeddingStream[InputT, ResultT, CollectedT]],
) -> "Callable[Concatenate[Any, P], EmbeddingStream[InputT, ResultT, CollectedT]]":
    """Of a method that gives a stream: a stream for `for`."""

    def call(
        self: _Blocking, /, *arguments: P.args, **keywords: P.kwargs
    ) -> "EmbeddingStream[InputT, ResultT, CollectedT]":
        return self._begin(method, *arguments, **keywords)

    return _documented(call, method)


def _batching(
    method: Callable[Concatenate[OwnerT, P], AsyncBatchStream[ResultT, CollectedT]],
) -> "Callable[Concatenate[Any, P], BatchStream[ResultT, CollectedT]]":
    """Of the method of a stream that gives batches."""

    def call(
        self: "EmbeddingStream[Any, Any, Any]", /, *arguments: P.args, **keywords: P.kwargs
    ) -> "BatchStream[ResultT, CollectedT]":
        return self._begin_batches(method, *arguments, **keywords)

    return _documented(call, method)


def _documented(call: MethodT, method: Callable[..., object]) -> MethodT:
    """`call` with the name, signature and docstring of the asynchronous method."""
    return cast(MethodT, update_wrapper(cast(Callable[..., object], call), method))


# ---------------------------------------------------------------- calls


class _Blocking(ABC):
    """Has the methods that are made of asynchronous ones."""

    @abstractmethod
    def _wait_for(
        self, method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]], *arguments: P.args, **keywords: P.kwargs
    ) -> T:
        """What the method gives on the background loop, called with what this stands for."""

    @abstractmethod
    def _begin(
        self,
        method: Callable[Concatenate[Any, P], AsyncEmbeddingStream[InputT, ResultT, CollectedT]],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> "EmbeddingStream[InputT, ResultT, CollectedT]":
        """Likewise, of a method that gives a stream."""


class _Caller:
    """Makes calls on the background loop, from threads that may wait for them."""

    def __init__(self, *, allow_in_loop: bool) -> None:
        self.allow_in_loop = allow_in_loop

    def run(self, function: Callable[[*Args], Awaitable[T]], *arguments: *Args) -> T:
        """What the function gives on the background loop.

        Raises:
            UsageError: An event loop runs in this thread, and nobody has allowed to block it.
        """
        self._check()
        return background.run(function, *arguments)

    def run_last(self, function: Callable[[], Awaitable[object]]) -> None:
        """Likewise, for what ends something: nothing is left to end once the interpreter is ending."""
        self._check()
        background.run_last(function)

    @property
    def may_wait(self) -> bool:
        """Whether no event loop runs in this thread, or it may be blocked."""
        return not is_loop_here() or (self.allow_in_loop and not background.is_current_thread())

    def _check(self) -> None:
        if not self.may_wait:
            raise UsageError(
                "this call would block the event loop that runs in this thread: there, await the same call of the "
                "class of this name in `asyncembed`, or make this one in a thread (`await asyncio.to_thread(...)`); "
                "allow_in_loop=True of the constructor is for notebooks"
            )


def is_loop_here() -> bool:
    """Whether an event loop runs in this thread, also where no task of it does."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        trio = sys.modules.get("trio")
        return trio is not None and hasattr(trio, "lowlevel") and bool(trio.lowlevel.in_trio_run())
    return True


class _Hold:
    """What a stream has of its model, which counts as used until the stream has ended, or was dropped."""

    def __init__(self, lease: Lease[Any], use: Use[Any]) -> None:
        self._lease = lease
        self._end = finalize(self, background.post, use.end)
        self._end.atexit = False

    def end(self) -> None:
        self._end()


# ---------------------------------------------------------------- streams


class EmbeddingStream(_Blocking, Iterator[ResultT], Generic[InputT, ResultT, CollectedT]):
    """Results as they become ready, in input order: an iterator.

    Nothing is read from the source before the first result is asked for, and then no further than `max_in_flight`
    ahead: a loop that is slow slows its source. A list and its like is read where it is; any other iterable in a thread
    of its own, as it may block; an async iterable on the background loop.

    `close()`, leaving `with`, Ctrl-C while it waits, or dropping the stream, as leaving a loop over `model.embed(...)`
    does, end it: its source is closed, and what waits for a worker is withdrawn. Several threads may take from one
    stream: each result goes to one of them.
    """

    def __init__(
        self,
        stream: AsyncEmbeddingStream[InputT, ResultT, CollectedT],
        caller: _Caller,
        hold: _Hold,
        failures: NotedFailures | None,
    ) -> None:
        self._stream = stream
        self._caller = caller
        self._hold = hold
        self._failures = failures
        self._runs = runs_of(stream)
        self._lock = Lock()
        """Held by the thread that fetches."""

    def __next__(self) -> ResultT:
        while True:
            with suppress(IndexError):
                return self._runs.take_nowait()
            if not self._fetch():
                raise StopIteration

    def _fetch(self) -> bool:
        """Have results there; False at the end."""
        with self._lock:
            return self._runs.has_some or self._run(self._runs.fetch)

    def _run(self, function: Callable[[*Args], Awaitable[T]], *arguments: *Args) -> T:
        try:
            return self._caller.run(function, *arguments)
        except KeyboardInterrupt:
            self._runs.close_soon()
            raise
        finally:
            if self._runs.is_over:
                self._hold.end()
            if self._failures is not None:
                self._hand_over(self._failures)

    def _hand_over(self, failures: "NotedFailures") -> None:
        try:
            failures.hand_over()
        except BaseException:
            self._runs.close_soon()
            raise

    def _wait_for(
        self, method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]], *arguments: P.args, **keywords: P.kwargs
    ) -> T:
        return self._run(partial(method, self._stream, *arguments, **keywords))

    def _begin(
        self,
        method: Callable[Concatenate[Any, P], AsyncEmbeddingStream[Any, Any, Any]],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> "EmbeddingStream[Any, Any, Any]":
        return EmbeddingStream(method(self._stream, *arguments, **keywords), self._caller, self._hold, self._failures)

    def _begin_batches(
        self,
        method: Callable[Concatenate[Any, P], AsyncBatchStream[Any, Any]],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> "BatchStream[Any, Any]":
        return BatchStream(method(self._stream, *arguments, **keywords), self._run, self.close)

    @_streaming
    @_of(AsyncEmbeddingStream[InputT, ResultT, CollectedT].with_inputs)
    def with_inputs(self) -> None: ...

    @_streaming
    @_of(AsyncEmbeddingStream[InputT, ResultT, CollectedT].with_tokens)
    def with_tokens(self) -> None: ...

    @_batching
    @_of(AsyncEmbeddingStream[InputT, ResultT, CollectedT].batches)
    def batches(self) -> None: ...

    @_blocking
    @_of(AsyncEmbeddingStream[InputT, ResultT, CollectedT].take_some)
    def take_some(self) -> None: ...

    @_blocking
    @_of(AsyncEmbeddingStream[InputT, ResultT, CollectedT].collect)
    def collect(self) -> None: ...

    @property
    def skipped(self) -> int:
        """How many inputs `on_error="skip"`, or a function in its place, has left out so far."""
        return self._stream.skipped

    def progress(self) -> StreamProgress:
        """How far it is, at any time, also after the end: records read, done and failed, tokens, seconds, rates."""
        return self._stream.progress()

    def close(self) -> None:
        """End the stream, and wait until its source is closed; where that would block an event loop, do not wait."""
        if not self._runs.is_over and self._caller.may_wait:
            self._run(self._stream.aclose)
            return
        self._runs.close_soon()
        self._hold.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._stream)

    if not TYPE_CHECKING:  # type checkers say it first

        def __aiter__(self) -> NoReturn:
            raise UsageError("this stream is for `for`; `asyncembed` has the classes whose streams are for `async for`")


class BatchStream(Iterator[CollectedT], Generic[ResultT, CollectedT]):
    """The results of a stream, several at a time: an iterator; see `EmbeddingStream.batches`."""

    def __init__(
        self, stream: AsyncBatchStream[ResultT, CollectedT], run: Callable[..., Any], close: Callable[[], None]
    ) -> None:
        self._stream = stream
        # Methods of the stream, which stays as long as they do.
        self._run = run
        self._close = close

    def __next__(self) -> CollectedT:
        try:
            return cast(CollectedT, self._run(self._stream.__anext__))
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """End the stream, and wait until its source is closed."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# ---------------------------------------------------------------- what the seven classes share


_HINTS = {
    name: hint.replace("await ", "").replace("`async for`", "`for`").replace("`async with`", "`with`")
    for name, hint in ATTRIBUTES.items()
}
"""`ATTRIBUTES`, in the words of this module."""


class DoorKeywords(TypedDict, total=False):
    """What every constructor takes besides the keywords of the asynchronous class.

    Keys:
        keep_alive: Seconds after which the engine is closed when nobody uses it, to be opened again by the next call;
            None (unless said otherwise) never does so.
        allow_in_loop: Whether calls may block a thread in which an event loop runs, as those of a notebook do. Without
            it they raise `asyncembed.errors.UsageError`, as they would hold up everything else there.
    """

    keep_alive: float | None
    allow_in_loop: bool


class _Embedder(_Blocking, Generic[EmbedderT]):
    """A model as a thread without an event loop uses it. All of it may be used by several threads at once."""

    _kind: ClassVar[type[Embedder]]

    def __init__(
        self, *arguments: Any, keep_alive: float | None = None, allow_in_loop: bool = False, **keywords: Any
    ) -> None:
        check_seconds("keep_alive", keep_alive, may_be_none=True)
        check_bool("allow_in_loop", allow_in_loop)
        # Never opened: it says what is wanted, and checks it.
        self._wanted = cast(EmbedderT, self._kind(*arguments, **keywords))
        self._keep_alive = keep_alive
        self._caller = _Caller(allow_in_loop=allow_in_loop)
        self._lease: Lease[EmbedderT] | None = None
        self._is_closed = False

    # ---------------------------------------------------------------- opening and closing

    def open(self) -> Self:
        """Open the model now, instead of with the first call; gives itself.

        Raises:
            AsyncEmbedError: It cannot be opened; the next call tries again.
            StateError: It was closed.
        """
        self._caller.run(self._leased().call, only_open)
        return self

    def close(self) -> None:
        """Give the model back; it is closed if nobody else uses it, and its streams end. Again, nothing happens.

        It waits for the end, unless that would block an event loop.
        """
        lease, self._lease, self._is_closed = self._lease, None, True
        if lease is None:
            return
        lease.close()
        if self._caller.may_wait:
            background.run_last(lease.aclose)

    def unload(self) -> None:
        """Close the engine at once, for all its users; the next call of any of them opens it again."""
        if self._lease is not None:
            self._caller.run_last(self._lease.unload)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    if not TYPE_CHECKING:  # type checkers say it first

        def __aenter__(self) -> NoReturn:
            raise UsageError(f"this is opened by `with`; `async with` opens asyncembed.{type(self).__name__}")

        def __aexit__(self, *_: object) -> None:
            """Only beside `__aenter__`."""

        def __getattr__(self, name: str) -> NoReturn:
            hint = f": {_HINTS[name]}" if name in _HINTS else ""
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}", name=name, obj=self)

        def __setattr__(self, name: str, value: object) -> None:
            refuse_assignment(self, name, _HINTS)
            super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Another process has an engine of its own, which its first call opens."""
        return as_unopened(self)

    def __repr__(self) -> str:
        return repr(self._model)

    # ---------------------------------------------------------------- about models

    @property
    def model_name(self) -> str:
        """The name or directory as it was given."""
        return self._wanted.model_name

    @property
    def max_length(self) -> int | None:
        """Most tokens of an input, as `asyncembed.TextEmbedding.max_length` has it. Opens the model."""
        return self._caller.run(self._leased().call, _length_of)

    @property
    def fingerprint(self) -> str:
        """Which bytes make the vectors, as `asyncembed.TextEmbedding.fingerprint` has it. Opens the model."""
        return self._caller.run(self._leased().call, fingerprint_in_thread)

    def stats(self) -> Stats:
        """What this model has computed for all its users, and the state of its workers: a snapshot.

        Raises:
            StateError: The model is not open.
        """
        return self._model.stats()

    @classmethod
    def list_supported_models(cls) -> list[dict[str, object]]:
        """The catalogued models of this class, added ones included, with the keys that fastembed's users know."""
        return cls._kind.list_supported_models()

    # ---------------------------------------------------------------- calling

    @property
    def _model(self) -> EmbedderT:
        """The model if it is open, and what is wanted otherwise."""
        lease = self._lease
        return (None if lease is None else lease.model) or self._wanted

    def _leased(self) -> Lease[EmbedderT]:
        lease = self._lease
        if lease is None:
            if self._is_closed:
                raise StateError(f"this {type(self).__name__} was closed: make another one")
            # Where several threads come here at once, those leases but one are dropped after their first call.
            lease = self._lease = Lease(self._wanted, keep_alive=self._keep_alive)
        return lease

    def _wait_for(
        self, method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]], *arguments: P.args, **keywords: P.kwargs
    ) -> T:
        return self._caller.run(self._leased().call, lambda model: method(model, *arguments, **keywords))

    def _begin(
        self,
        method: Callable[Concatenate[Any, P], AsyncEmbeddingStream[InputT, ResultT, CollectedT]],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> EmbeddingStream[Any, Any, Any]:
        lease = self._leased()
        failures = NotedFailures.instead_of_handler(cast(dict[str, object], keywords))

        async def begin() -> tuple[AsyncEmbeddingStream[Any, Any, Any], Use[EmbedderT]]:
            use = await lease.use()
            try:
                return method(use.model, *arguments, **keywords), use
            except BaseException:
                use.end()
                raise

        stream, use = self._caller.run(begin)
        return EmbeddingStream(stream, self._caller, _Hold(lease, use), failures)


async def _length_of(model: Embedder) -> int | None:
    return model.max_length


class _Home(Home[EmbedderT]):
    """What coroutines use of a model of this module; it closes when that does."""

    def __init__(self, kind: type[EmbedderT], model: _Embedder[EmbedderT]) -> None:
        super().__init__(kind)
        self._model = model

    @property
    def wanted(self) -> EmbedderT:
        return self._model._wanted  # noqa: SLF001 (of this module)

    def _present(self) -> EmbedderT:
        return self._model._model  # noqa: SLF001 (of this module)

    def _leased(self) -> Lease[EmbedderT]:
        return self._model._leased()  # noqa: SLF001 (of this module)


def face_of_sync(model: object) -> Embedder | None:
    """A model of this module for coroutines, as `on_any_loop` is of an asynchronous one; None if it is none."""
    return _Home(model._kind, model).on_any_loop() if isinstance(model, _Embedder) else None  # noqa: SLF001 (of this module)


def may_block_loops(model: object) -> bool:
    """Whether it is a model of this module that was made with `allow_in_loop=True`."""
    return isinstance(model, _Embedder) and model._caller.allow_in_loop  # noqa: SLF001 (of this module)


VectorsT = TypeVar("VectorsT", bound=HasVectors)


class _HasVectors(_Embedder[VectorsT]):
    """What the classes share whose results are vectors, or rows, of one length."""

    @property
    def embedding_size(self) -> int:
        """Length of a vector; with late interaction, of a token's or patch's. Opens a model that is not catalogued."""
        try:
            return self._model.embedding_size
        except StateError:
            return self._caller.run(self._leased().call, _size_of)

    @classmethod
    def get_embedding_size(cls, model_name: str) -> int:
        """Length of a catalogued model's vectors. Raises `UnknownModelError`."""
        return cast(type[HasVectors], cls._kind).get_embedding_size(model_name)


async def _size_of(model: HasVectors) -> int:
    return model.embedding_size


class _TextRoles(_Embedder[EmbedderT], Generic[EmbedderT, ResultT, CollectedT]):
    """Queries, passages and documents, each as a stream or a few at once."""

    @_streaming
    @_of(TextRoles[ResultT, CollectedT].embed)
    def embed(self) -> None: ...

    @_streaming
    @_of(TextRoles[ResultT, CollectedT].query_embed)
    def query_embed(self) -> None: ...

    @_streaming
    @_of(TextRoles[ResultT, CollectedT].passage_embed)
    def passage_embed(self) -> None: ...

    @_blocking
    @_of(TextRoles[ResultT, CollectedT].embed_query)
    def embed_query(self) -> None: ...

    @_blocking
    @_of(TextRoles[ResultT, CollectedT].embed_documents)
    def embed_documents(self) -> None: ...


# ---------------------------------------------------------------- the seven classes, and the pool that they may share


class WorkerPool(AsyncWorkerPool):
    """Worker processes that several models can share. As `asyncembed.WorkerPool`, for programs without a loop.

    ```python
    with WorkerPool(workers=2) as pool:
        with TextEmbedding("BAAI/bge-small-en-v1.5", pool=pool) as model:
            query = model.embed_query("what is backpressure?")
    ```

    It is open inside `with` only.
    """

    def __enter__(self) -> Self:
        _Caller(allow_in_loop=False).run(self.open)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        background.run_last(self.aclose)


class Checkpoint(CheckpointFile):
    """How far an ingest is, in a file. As `asyncembed.Checkpoint`, for programs without a loop.

    ```python
    with Checkpoint("articles.done") as done, TextEmbedding("BAAI/bge-small-en-v1.5") as model:
        stream = model.embed(done.rest(documents), on_error=done.skip).with_inputs()
        for texts, vectors in stream.batches(256):
            print(vectors.shape)  # (3, 384)
            done.advance(len(texts))
    ```
    """

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def advance(self, count: int) -> None:
        """Note that `count` more records are done, and those that `skip` was called with. On disk when it returns.

        Raises:
            StateError: The checkpoint is not open.
            UsageError: `rest` has not given so many.
        """
        self._advance(count)

    def reach(self, records: int) -> None:
        """Note that `records` records from the source's beginning are done, failed ones included. Likewise."""
        self._reach(records)


class _TextKeywords(TextKeywords, DoorKeywords, total=False): ...


class _SparseKeywords(SparseKeywords, DoorKeywords, total=False): ...


class _LateInteractionKeywords(LateInteractionKeywords, DoorKeywords, total=False): ...


class _HybridKeywords(HybridKeywords, DoorKeywords, total=False): ...


class _ImageKeywords(ImageVectorKeywords, DoorKeywords, total=False): ...


class _MultimodalKeywords(MultimodalKeywords, DoorKeywords, total=False): ...


class _CrossEncoderKeywords(CrossEncoderKeywords, DoorKeywords, total=False): ...


class TextEmbedding(_HasVectors[AsyncTextEmbedding[ScalarT]], Generic[ScalarT]):
    """Dense text embeddings: one vector per text. As `asyncembed.TextEmbedding`, for programs without a loop.

    ```python
    with TextEmbedding("BAAI/bge-small-en-v1.5") as model:
        for vector in model.embed(documents):
            ...
        query = model.embed_query("what is backpressure?")
    ```

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`.
        keywords: Those of `asyncembed.TextEmbedding`, and `asyncembed.sync.DoorKeywords`.
    """

    _kind: ClassVar[type[Embedder]] = AsyncTextEmbedding

    @overload
    def __init__(
        self: "TextEmbedding[np.float32]",
        model_name: ModelName = DEFAULT_MODEL,
        *,
        dtype: Literal["float32"] = "float32",
        output: Literal["float"] = "float",
        **keywords: Unpack[_TextKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: "TextEmbedding[np.float16]",
        model_name: ModelName = DEFAULT_MODEL,
        *,
        dtype: Literal["float16"],
        output: Literal["float"] = "float",
        **keywords: Unpack[_TextKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: "TextEmbedding[np.int8]",
        model_name: ModelName = DEFAULT_MODEL,
        *,
        output: Literal["binary"],
        **keywords: Unpack[_TextKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: "TextEmbedding[np.int8]",
        model_name: ModelName = DEFAULT_MODEL,
        *,
        output: Literal["int8"],
        int8_ranges: "npt.ArrayLike",
        **keywords: Unpack[_TextKeywords],
    ) -> None: ...
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)

    @_streaming
    @_of(AsyncTextEmbedding[ScalarT].embed)
    def embed(self) -> None: ...

    @_streaming
    @_of(AsyncTextEmbedding[ScalarT].query_embed)
    def query_embed(self) -> None: ...

    @_streaming
    @_of(AsyncTextEmbedding[ScalarT].passage_embed)
    def passage_embed(self) -> None: ...

    @_streaming
    @_of(AsyncTextEmbedding[ScalarT].embed_chunks)
    def embed_chunks(self) -> None: ...

    @_blocking
    @_of(AsyncTextEmbedding[ScalarT].embed_query)
    def embed_query(self) -> None: ...

    @_blocking
    @_of(AsyncTextEmbedding[ScalarT].embed_documents)
    def embed_documents(self) -> None: ...

    @_blocking
    @_of(AsyncTextEmbedding[ScalarT].token_count)
    def token_count(self) -> None: ...

    @staticmethod
    @_of(AsyncTextEmbedding.add_custom_model)
    def add_custom_model() -> None: ...


class SparseTextEmbedding(_TextRoles[AsyncSparseTextEmbedding, SparseEmbedding, list[SparseEmbedding]]):
    """Sparse text embeddings. As `asyncembed.SparseTextEmbedding`, for programs without a loop.

    ```python
    with SparseTextEmbedding("Qdrant/bm25") as model:
        for vector in model.embed(documents):
            index(vector.indices, vector.values)
    ```

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`.
        keywords: Those of `asyncembed.SparseTextEmbedding`, and `asyncembed.sync.DoorKeywords`.
    """

    _kind: ClassVar[type[Embedder]] = AsyncSparseTextEmbedding

    def __init__(self, model_name: ModelName, **keywords: Unpack[_SparseKeywords]) -> None:
        super().__init__(model_name, **keywords)

    @property
    def requires_idf(self) -> bool:
        """Whether its vectors leave the rarity of a term to the database. Opens a model that is not known by name."""
        try:
            return self._model.requires_idf
        except StateError:
            return self._caller.run(self._leased().call, _requires_idf)

    @_blocking
    @_of(AsyncSparseTextEmbedding.token_count)
    def token_count(self) -> None: ...

    @staticmethod
    @_of(AsyncSparseTextEmbedding.add_custom_model)
    def add_custom_model() -> None: ...


async def _requires_idf(model: AsyncSparseTextEmbedding) -> bool:
    return model.requires_idf


class LateInteractionTextEmbedding(
    _TextRoles[AsyncLateInteractionTextEmbedding[ScalarT], "NDArray[ScalarT]", "list[NDArray[ScalarT]]"],
    _HasVectors[AsyncLateInteractionTextEmbedding[ScalarT]],
    Generic[ScalarT],
):
    """A vector per token of a text. As `asyncembed.LateInteractionTextEmbedding`, for programs without a loop.

    ```python
    with LateInteractionTextEmbedding("answerdotai/answerai-colbert-small-v1") as model:
        documents = model.embed(texts).collect()           # a list of arrays (tokens, dim)
        query = model.embed_query("what is backpressure?")  # (tokens, dim)
    ```

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`.
        keywords: Those of `asyncembed.LateInteractionTextEmbedding`, and `asyncembed.sync.DoorKeywords`.
    """

    _kind: ClassVar[type[Embedder]] = AsyncLateInteractionTextEmbedding

    @overload
    def __init__(
        self: "LateInteractionTextEmbedding[np.float32]",
        model_name: ModelName,
        *,
        dtype: Literal["float32"] = "float32",
        **keywords: Unpack[_LateInteractionKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: "LateInteractionTextEmbedding[np.float16]",
        model_name: ModelName,
        *,
        dtype: Literal["float16"],
        **keywords: Unpack[_LateInteractionKeywords],
    ) -> None: ...
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)

    @_blocking
    @_of(AsyncLateInteractionTextEmbedding[ScalarT].token_count)
    def token_count(self) -> None: ...

    @staticmethod
    @_of(AsyncLateInteractionTextEmbedding.add_custom_model)
    def add_custom_model() -> None: ...


class HybridTextEmbedding(_HasVectors[AsyncHybridTextEmbedding[ScalarT]], Generic[ScalarT]):
    """Several results for a text from one pass. As `asyncembed.HybridTextEmbedding`, for programs without a loop.

    ```python
    with HybridTextEmbedding("BAAI/bge-m3") as model:
        batch = model.embed(texts).collect()               # a `HybridBatch`
        query = model.embed_query("what is backpressure?")  # a `HybridEmbedding`
    ```

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`.
        keywords: Those of `asyncembed.HybridTextEmbedding`, and `asyncembed.sync.DoorKeywords`.
    """

    _kind: ClassVar[type[Embedder]] = AsyncHybridTextEmbedding

    @overload
    def __init__(
        self: "HybridTextEmbedding[np.float32]",
        model_name: ModelName = DEFAULT_HYBRID_MODEL,
        *,
        dtype: Literal["float32"] = "float32",
        **keywords: Unpack[_HybridKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: "HybridTextEmbedding[np.float16]",
        model_name: ModelName = DEFAULT_HYBRID_MODEL,
        *,
        dtype: Literal["float16"],
        **keywords: Unpack[_HybridKeywords],
    ) -> None: ...
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)

    @property
    def outputs(self) -> tuple[HybridOutput, ...]:
        """Which results calls give that ask for none: the constructor's, else all of the model's. Opens the model."""
        return self._caller.run(self._leased().call, _outputs_of)

    @property
    def token_embedding_size(self) -> int | None:
        """Length of the vector of a token; None: the model has no late interaction results. Opens the model."""
        return self._caller.run(self._leased().call, _token_size_of)

    @_streaming
    @_of(AsyncHybridTextEmbedding[ScalarT].embed)
    def embed(self) -> None: ...

    @_streaming
    @_of(AsyncHybridTextEmbedding[ScalarT].query_embed)
    def query_embed(self) -> None: ...

    @_streaming
    @_of(AsyncHybridTextEmbedding[ScalarT].passage_embed)
    def passage_embed(self) -> None: ...

    @_blocking
    @_of(AsyncHybridTextEmbedding[ScalarT].embed_query)
    def embed_query(self) -> None: ...

    @_blocking
    @_of(AsyncHybridTextEmbedding[ScalarT].embed_documents)
    def embed_documents(self) -> None: ...

    @_blocking
    @_of(AsyncHybridTextEmbedding[ScalarT].token_count)
    def token_count(self) -> None: ...

    @staticmethod
    @_of(AsyncHybridTextEmbedding.add_custom_model)
    def add_custom_model() -> None: ...


async def _token_size_of(model: AsyncHybridTextEmbedding[Any]) -> int | None:
    return model.token_embedding_size


async def _outputs_of(model: AsyncHybridTextEmbedding[Any]) -> tuple[HybridOutput, ...]:
    return model.outputs


class ImageEmbedding(_HasVectors[AsyncImageEmbedding[ScalarT]], Generic[ScalarT]):
    """Image embeddings: one vector per image. As `asyncembed.ImageEmbedding`, for programs without a loop.

    ```python
    with ImageEmbedding("Qdrant/clip-ViT-B-32-vision") as model:
        for vector in model.embed(Path("photos").iterdir(), on_error="skip"):
            ...
    ```

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`.
        keywords: Those of `asyncembed.ImageEmbedding`, and `asyncembed.sync.DoorKeywords`.
    """

    _kind: ClassVar[type[Embedder]] = AsyncImageEmbedding

    @overload
    def __init__(
        self: "ImageEmbedding[np.float32]",
        model_name: ModelName,
        *,
        dtype: Literal["float32"] = "float32",
        **keywords: Unpack[_ImageKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: "ImageEmbedding[np.float16]",
        model_name: ModelName,
        *,
        dtype: Literal["float16"],
        **keywords: Unpack[_ImageKeywords],
    ) -> None: ...
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)

    @_streaming
    @_of(AsyncImageEmbedding[ScalarT].embed)
    def embed(self) -> None: ...

    @_blocking
    @_of(AsyncImageEmbedding[ScalarT].embed_image)
    def embed_image(self) -> None: ...

    @_blocking
    @_of(AsyncImageEmbedding[ScalarT].embed_images)
    def embed_images(self) -> None: ...

    @staticmethod
    @_of(AsyncImageEmbedding.add_custom_model)
    def add_custom_model() -> None: ...


class LateInteractionMultimodalEmbedding(_HasVectors[AsyncMultimodalEmbedding[ScalarT]], Generic[ScalarT]):
    """A vector per token or patch. As `asyncembed.LateInteractionMultimodalEmbedding`, for programs without a loop.

    ```python
    with LateInteractionMultimodalEmbedding("Qdrant/colmodernvbert") as model:
        pages = model.embed_image(paths).collect()           # a list of arrays (rows, 128)
        query = model.embed_query("revenue by region, 2023")  # (rows, 128)
    ```

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`.
        keywords: Those of `asyncembed.LateInteractionMultimodalEmbedding`, and `asyncembed.sync.DoorKeywords`.
    """

    _kind: ClassVar[type[Embedder]] = AsyncMultimodalEmbedding

    @overload
    def __init__(
        self: "LateInteractionMultimodalEmbedding[np.float32]",
        model_name: ModelName,
        *,
        dtype: Literal["float32"] = "float32",
        **keywords: Unpack[_MultimodalKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: "LateInteractionMultimodalEmbedding[np.float16]",
        model_name: ModelName,
        *,
        dtype: Literal["float16"],
        **keywords: Unpack[_MultimodalKeywords],
    ) -> None: ...
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)

    @_streaming
    @_of(AsyncMultimodalEmbedding[ScalarT].embed_text)
    def embed_text(self) -> None: ...

    @_streaming
    @_of(AsyncMultimodalEmbedding[ScalarT].embed_image)
    def embed_image(self) -> None: ...

    @_blocking
    @_of(AsyncMultimodalEmbedding[ScalarT].embed_query)
    def embed_query(self) -> None: ...

    @_blocking
    @_of(AsyncMultimodalEmbedding[ScalarT].embed_images)
    def embed_images(self) -> None: ...

    @_blocking
    @_of(AsyncMultimodalEmbedding[ScalarT].embed_one_image)
    def embed_one_image(self) -> None: ...

    @_blocking
    @_of(AsyncMultimodalEmbedding[ScalarT].token_count)
    def token_count(self) -> None: ...

    @staticmethod
    @_of(AsyncMultimodalEmbedding.add_custom_model)
    def add_custom_model() -> None: ...


class TextCrossEncoder(_Embedder[AsyncTextCrossEncoder]):
    """A reranker. As `asyncembed.TextCrossEncoder`, for programs without a loop.

    ```python
    with TextCrossEncoder("Xenova/ms-marco-MiniLM-L-6-v2") as model:
        best = model.rank("what is backpressure?", documents, top_k=10)
    ```

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`.
        keywords: Those of `asyncembed.TextCrossEncoder`, and `asyncembed.sync.DoorKeywords`.
    """

    _kind: ClassVar[type[Embedder]] = AsyncTextCrossEncoder

    def __init__(self, model_name: ModelName, **keywords: Unpack[_CrossEncoderKeywords]) -> None:
        super().__init__(model_name, **keywords)

    @_streaming
    @_of(AsyncTextCrossEncoder.rerank)
    def rerank(self) -> None: ...

    @_streaming
    @_of(AsyncTextCrossEncoder.rerank_pairs)
    def rerank_pairs(self) -> None: ...

    @_blocking
    @_of(AsyncTextCrossEncoder.rank)
    def rank(self) -> None: ...

    @_blocking
    @_of(AsyncTextCrossEncoder.token_count)
    def token_count(self) -> None: ...

    @staticmethod
    @_of(AsyncTextCrossEncoder.add_custom_model)
    def add_custom_model() -> None: ...
