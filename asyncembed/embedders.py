"""The public classes: thin. The base opens, closes and dispatches; a class adds what its family differs in."""

import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias, TypeVar, Unpack, cast

from anyio import AsyncContextManagerMixin, Event
from anyio.abc import TaskGroup

from asyncembed.catalogue.spec import Family, ModelSpec
from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.engine.scheduler import Group, Item, Priority, Sink
from asyncembed.engine.supervisor import PooledModel, Stats, WorkerPool, owned_task_group
from asyncembed.errors import InputError, OptionError, StateError
from asyncembed.options import MAX_BATCH_TOKENS, MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, OptionKeywords, Options
from asyncembed.results import DENSE, Matrix, Output, Vector
from asyncembed.stream import EmbeddingStream, OnError, Source, StreamState

InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")
CollectedT = TypeVar("CollectedT")

PriorityName: TypeAlias = Literal["interactive", "bulk"]
Key: TypeAlias = Callable[[Any], Any]


@dataclass(slots=True)
class _Opened:
    """What exists only between opening and closing."""

    pool: WorkerPool
    model: PooledModel
    group: TaskGroup
    spec: ModelSpec
    streams: set[StreamState[Any]] = field(default_factory=set)


class Embedder(AsyncContextManagerMixin):
    """What the six classes share: they differ in what their inputs are and what a result looks like.

    Opening finds the model's files (downloading them if need be), starts the workers unless a pool is given, and has
    them load the model. Closing ends every stream, drops the model, and ends the workers that opening started.

    Args:
        model_name: A name of the catalogue (letter case does not matter), a repo on the hub, or a local directory;
            or a `ModelSpec` of your own.
        options: See `Options`.

    Raises:
        OptionError: An unknown keyword, or a value that cannot work.
    """

    family: ClassVar[Family]

    def __init__(self, model_name: str | os.PathLike[str] | ModelSpec, **options: Unpack[OptionKeywords]) -> None:
        self._model_name = model_name
        self._options = Options.from_keywords(options)
        self._opened: _Opened | None = None
        self._is_opening = False
        self._was_closed = False

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        if self._opened is not None or self._is_opening:
            raise StateError("this is open already")
        self._is_opening = True
        try:
            async with AsyncExitStack() as stack:
                pool = self._options.pool
                if pool is None:
                    # The workers start while the files are being found.
                    pool = await stack.enter_async_context(self._new_pool())
                else:
                    pool.check_loop()
                config = await self._prepare()
                model = pool.add_model(config)
                stack.callback(pool.remove_model, model)
                await pool.warm(model)
                group = await stack.enter_async_context(owned_task_group())
                opened = self._opened = _Opened(pool, model, group, config.spec)
                try:
                    yield self
                finally:
                    self._opened = None
                    self._was_closed = True
                    for state in list(opened.streams):
                        state.close(StateError("the embedder was closed before the stream had ended"))
        finally:
            self._is_opening = False

    @property
    def model_name(self) -> str:
        """The name or directory as it was given."""
        name = self._model_name
        return name.name if isinstance(name, ModelSpec) else os.fspath(name)

    def stats(self) -> Stats:
        """What this model has computed, and the state of its pool: a snapshot."""
        opened = self._require_open()
        return opened.pool.stats(opened.model)

    # ---------------------------------------------------------------- opening

    def _new_pool(self) -> WorkerPool:
        options = self._options
        return WorkerPool(
            workers=options.workers,
            threads=options.threads,
            device_ids=options.device_ids,
            batch_timeout=options.batch_timeout,
        )

    async def _prepare(self) -> EncoderConfig:
        """Find the model's files, and say how it is to be run."""
        options = self._options
        assert isinstance(self._model_name, ModelSpec)
        return EncoderConfig(
            spec=self._model_name,
            directory=Path(),
            session=options.session_options(),
            max_length=options.max_length,
            max_batch_tokens=options.max_batch_tokens or MAX_BATCH_TOKENS,
            max_batch_size=options.max_batch_size,
            batch_invariant=options.batch_invariant,
        )

    def _require_open(self) -> _Opened:
        if self._opened is None:
            state = "was closed" if self._was_closed else "is not open"
            raise StateError(f"{type(self).__name__} {state}: use it inside `async with`")
        self._opened.pool.check_loop()
        return self._opened

    # ---------------------------------------------------------------- dispatching

    def _stream(
        self,
        source: Source[InputT],
        measure: "Measure",
        call: Call,
        output: Output[ResultT, CollectedT],
        *,
        key: Key | None,
        priority: PriorityName,
        ordered: bool,
        on_error: OnError,
    ) -> EmbeddingStream[InputT, ResultT, CollectedT]:
        opened = self._require_open()
        if on_error not in ("raise", "skip", "return"):
            raise OptionError(f"on_error must be 'raise', 'skip' or 'return'; got {on_error!r}")
        if not hasattr(source, "__aiter__") and not hasattr(source, "__iter__"):
            raise InputError(f"the source must be iterable or async iterable; got {type(source).__name__}")
        intake = _Intake(opened.model, self._group_of(opened, call), _priority(priority), measure, key)
        state: StreamState[InputT] = StreamState(
            opened.pool,
            intake,
            max_items=self._options.max_in_flight or MAX_IN_FLIGHT,
            max_bytes=self._options.max_in_flight_bytes or MAX_IN_FLIGHT_BYTES,
            ordered=ordered,
            on_error=on_error,
            on_end=opened.streams.discard,
        )
        opened.streams.add(state)
        return EmbeddingStream(state, source, opened.group, output)

    async def _one(self, value: object, measure: "Measure", call: Call, output: Output[ResultT, Any]) -> ResultT:
        """One input, at once: an interactive call."""
        opened = self._require_open()
        intake = _Intake(opened.model, self._group_of(opened, call), Priority.INTERACTIVE, measure, None)
        request = _Request()
        try:
            item, _ = intake.item(value, 0, request)
        except InputError as error:
            error.index = None
            raise
        opened.pool.submit([item])
        return output.own(await request.wait(opened.pool, item))

    def _group_of(self, opened: _Opened, call: Call) -> Group:
        config = opened.model.config
        return Group(opened.model.key, call, config.max_batch_tokens, config.max_batch_size or sys.maxsize)


Measure: TypeAlias = Callable[[object], tuple[int, int]]
"""From an input to (units, bytes): what its cost is estimated from, and what it keeps in memory.

Raises `InputError` if it can be no input of the family.
"""


class _Intake:
    """From a record of the source to an item of this model."""

    def __init__(self, model: PooledModel, group: Group, priority: Priority, measure: Measure, key: Key | None) -> None:
        self._model = model
        self._group = group
        self._priority = priority
        self._measure = measure
        self._key = key
        limit = model.config.max_length or model.facts.get("max_length")
        self._most_tokens = limit if isinstance(limit, int) else sys.maxsize

    def item(self, record: object, index: int, sink: Sink) -> tuple[Item, int]:
        """See `asyncembed.stream.Intake`."""
        try:
            value = record if self._key is None else self._key(record)
        except Exception as error:
            raise InputError(f"key= failed on record {index}: {type(error).__name__}: {error}", index=index) from error
        try:
            units, size_bytes = self._measure(value)
        except InputError as error:
            raise InputError(f"input {index}: {error}", index=index) from None
        tokens = self._model.estimate_tokens(units)
        if tokens >= self._most_tokens:
            tokens, units = self._most_tokens, 0  # cut: says nothing of how many tokens a unit is
        return Item(value, tokens, self._group, self._priority, sink, index, units), size_bytes


class _Request:
    """The sink of a one-item call."""

    def __init__(self) -> None:
        self._event = Event()
        self._result: object = None
        self._error: Exception | None = None

    def deliver(self, index: int, result: object) -> None:  # noqa: ARG002 (there is one)
        self._result = result
        self._event.set()

    def fail(self, index: int, error: Exception) -> None:  # noqa: ARG002 (there is one)
        if hasattr(error, "index"):
            error.index = None
        self._error = error
        self._event.set()

    async def wait(self, pool: WorkerPool, item: Item) -> object:
        try:
            await self._event.wait()
        except BaseException:
            pool.withdraw([item])
            raise
        if self._error is not None:
            raise self._error
        return self._result


def _priority(name: PriorityName) -> Priority:
    try:
        return Priority[name.upper()]
    except (KeyError, AttributeError):
        raise OptionError(f"priority must be 'interactive' or 'bulk'; got {name!r}") from None


def measure_text(value: object) -> tuple[int, int]:
    """Characters and bytes of a text."""
    if not isinstance(value, str):
        hint = "; decode it first" if isinstance(value, bytes) else ""
        raise InputError(f"expected a str, got {type(value).__name__}{hint}")
    return len(value), sys.getsizeof(value)


class TextEmbedding(Embedder):
    """Dense text embeddings: one vector per text.

    ```python
    async with TextEmbedding("BAAI/bge-small-en-v1.5") as model:
        async for vector in model.embed(documents):
            ...
        query = await model.embed_query("what is backpressure?")
    ```
    """

    family = "text"

    def embed(
        self,
        documents: Source[InputT],
        *,
        key: Callable[[InputT], str] | None = None,
        priority: PriorityName = "bulk",
        ordered: bool = True,
        on_error: OnError = "raise",
    ) -> EmbeddingStream[InputT, Vector, Matrix]:
        """Embed texts from any iterable or async iterable.

        Args:
            documents: The texts, or records from which `key` takes the text. One `str` is one document.
            key: Takes the text out of a record.
            priority: "interactive" goes before "bulk".
            ordered: Whether results come in input order, or as they are ready.
            on_error: What becomes of an input that has no vector: "raise" ends the stream with its error, "skip"
                leaves it out, "return" gives the error in the place of the vector.

        Returns:
            A stream of float32 arrays (dim,).

        Raises:
            StateError: The embedder is not open, or was opened on another event loop.
            InputError: (from the stream) an input is not a text; `index` says which.
        """
        source = cast("Source[InputT]", [documents]) if isinstance(documents, str) else documents
        return self._stream(
            source,
            measure_text,
            Call(),
            DENSE,
            key=key,
            priority=priority,
            ordered=ordered,
            on_error=on_error,
        )

    async def embed_query(self, query: str) -> Vector:
        """The vector of one query: float32 (dim,)."""
        return await self._one(query, measure_text, Call(mode="query"), DENSE)

    async def embed_documents(self, documents: Iterable[str]) -> Matrix:
        """The vectors of some documents: float32 (n, dim), rows in input order."""
        return await self.embed(documents, priority="interactive").collect()
