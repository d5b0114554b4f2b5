"""What the public classes share: the base opens, closes and dispatches; a class adds what its family differs in."""

import os
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, TypeAlias, TypeVar, Unpack, cast, get_args

from anyio import Event
from anyio.abc import TaskGroup

from asyncembed.catalogue.lookup import describe, find_model, list_models, require_model
from asyncembed.catalogue.pipeline import Overrides
from asyncembed.catalogue.spec import Family, ModelSpec
from asyncembed.checks import check_bool, check_choice, check_model_name
from asyncembed.encoders.encoder import Call
from asyncembed.engine.lifetime import Openable, owned_task_group, uninterrupted
from asyncembed.engine.scheduler import Group, Item, Priority, Sink
from asyncembed.engine.supervisor import PooledModel, Stats, WorkerPool
from asyncembed.errors import InputError, OptionError, StateError, in_words
from asyncembed.loading import prepare
from asyncembed.migration import ATTRIBUTES
from asyncembed.options import MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, OptionKeywords, Options, absolute
from asyncembed.results import COUNT, Output, dense
from asyncembed.stream import EmbeddingStream, OnError, Source, StreamState
from asyncembed.wakeup import Turnstile

InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")

ModelName: TypeAlias = str | os.PathLike[str] | ModelSpec
"""As the classes take it: a name of the catalogue, a repo on the hub, a local directory, or a spec."""

PriorityName: TypeAlias = Literal["interactive", "bulk"]
Key: TypeAlias = Callable[[Any], Any]


CALLS_PER_TURN = 32
"""Coroutine calls that begin in one turn of the event loop: each takes some tens of microseconds to begin."""


@dataclass(slots=True)
class Opened:
    """What exists only between opening and closing."""

    pool: WorkerPool
    model: PooledModel
    group: TaskGroup
    spec: ModelSpec
    turnstile: Turnstile
    streams: set[StreamState[Any]] = field(default_factory=set)


class Embedder(Openable):
    """What the six classes share: they differ in what their inputs are and what a result looks like.

    Opening finds the model's files (downloading them if need be), starts the workers unless a pool is given, and has
    them load the model. Closing ends every stream, drops the model, and ends the workers that opening started.

    Args:
        model_name: A name of the catalogue (letter case does not matter), a repo on the hub, or a local directory (as
            a `Path`, always that); or a `ModelSpec` of your own.
        options: The keywords that all six classes share (`workers`, `device`, `pool`, ...): see `asyncembed.Options`.

    Raises:
        OptionError: An unknown keyword, or a value that cannot work.
    """

    family: ClassVar[Family]

    def __init__(self, model_name: ModelName, **options: Unpack[OptionKeywords]) -> None:
        if not isinstance(model_name, ModelSpec):
            check_model_name(model_name)
        self._model_name = model_name
        # Now, as the program may change its working directory before it opens the model.
        self._place = None if isinstance(model_name, ModelSpec) else absolute(model_name)
        parameters = signature(type(self)).parameters.values()
        self._options = Options.from_keywords(
            options, own=[one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
        )
        self._opened: Opened | None = None
        self._was_closed = False

    @asynccontextmanager
    async def _lifetime(self) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            pool = self._options.pool
            if pool is None:
                # The workers start while the files are being found.
                pool = await stack.enter_async_context(self._new_pool())
            else:
                pool.check_loop()
            config = await prepare(
                self._wanted(),
                self.family,
                self._options,
                place=self._place,
                overrides=self._overrides(),
                settings=self._settings(),
            )
            model = pool.add_model(config)
            stack.callback(pool.remove_model, model)
            await pool.warm(model)
            group = await stack.enter_async_context(owned_task_group())
            opened = self._opened = Opened(pool, model, group, config.spec, Turnstile(pool.loop, CALLS_PER_TURN))
            try:
                yield
            finally:
                self._opened = None
                self._was_closed = True
                for state in list(opened.streams):
                    state.close(StateError("the embedder was closed before the stream had ended"))

    @property
    def model_name(self) -> str:
        """The name or directory as it was given."""
        name = self._model_name
        return name.name if isinstance(name, ModelSpec) else os.fspath(name)

    @classmethod
    def list_supported_models(cls) -> list[dict[str, object]]:
        """The catalogued models of this class, added ones included, with the keys that fastembed's users know."""
        return [describe(spec) for spec in list_models(cls.family)]

    if not TYPE_CHECKING:  # type checkers know all names there are

        def __getattr__(self, name: str) -> NoReturn:
            hint = f": {ATTRIBUTES[name]}" if name in ATTRIBUTES else ""
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}", name=name, obj=self)

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
            interactive_workers=options.interactive_workers,
            device_ids=options.device_ids,
            batch_timeout=options.batch_timeout,
        )

    def _wanted(self) -> ModelName:
        """The model to open."""
        return self._model_name

    def _overrides(self) -> Overrides:
        """What the caller says instead of the model's own configuration."""
        options = self._options
        return Overrides(
            max_length=options.max_length,
            onnx_file=options.onnx_file,
            precision=options.precision,
            graph_output=options.output_name,
        )

    def _settings(self) -> Mapping[str, object]:
        """The family's own keywords that its encoder reads."""
        return {}

    def _vector_size(self) -> int:
        """Length of the model's vectors. Raises `StateError` where it is known only while the model is open."""
        if self._opened is not None:
            size = self._opened.spec.dim or self._opened.model.info.dim
        else:
            name = self._model_name
            spec = name if isinstance(name, ModelSpec) else find_model(os.fspath(name), self.family)
            size = spec.dim if spec is not None else None
        if not isinstance(size, int):
            raise StateError(f"the size of {self.model_name} is known once it is open")
        return size

    def _dense_output(self, call: Call) -> Output[Any, Any]:
        """How the vectors that `call` asks for leave a stream."""
        try:
            size = call.truncate_dim or self._vector_size()
        except StateError:
            size = 0  # an image model outside the catalogue, which tells with its first vector
        if call.output == "float":
            return dense(size, call.dtype)
        return dense(size if call.output == "int8" else -(-size // 8), "int8")

    @classmethod
    def _catalogued_size(cls, model_name: str) -> int:
        size = require_model(model_name, cls.family).dim
        assert size is not None, f"every catalogued model of the family {cls.family} has a size"
        return size

    def _require_open(self) -> Opened:
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
        output: Output[Any, Any],
        *,
        key: Key | None,
        priority: PriorityName,
        ordered: bool,
        on_error: OnError,
    ) -> EmbeddingStream[InputT, Any, Any]:
        opened = self._require_open()
        check_choice("priority", priority, get_args(PriorityName))
        check_choice("on_error", on_error, get_args(OnError))
        check_bool("ordered", ordered)
        if key is not None and not callable(key):
            raise OptionError(f"key must be a function that takes the input out of a record; got {key!r}")
        _check_source(source)
        intake = self._intake(self._group_of(opened, call), Priority[priority.upper()], measure, key)

        def end(state: StreamState[InputT]) -> None:
            opened.streams.discard(state)
            intake.close()

        state: StreamState[InputT] = StreamState(
            opened.pool,
            intake,
            max_items=self._options.max_in_flight or MAX_IN_FLIGHT,
            max_bytes=self._options.max_in_flight_bytes or MAX_IN_FLIGHT_BYTES,
            ordered=ordered,
            on_error=on_error,
            on_end=end,
        )
        opened.streams.add(state)
        return EmbeddingStream(state, source, opened.group, output.returning() if on_error == "return" else output)

    @uninterrupted
    async def _turn(self) -> Opened:
        """Wait until one more call may begin: first of all, in every method that is a coroutine.

        Raises:
            StateError: The embedder is not open, or was opened on another event loop.
        """
        if self._opened is not None:
            await self._opened.turnstile.enter()
        return self._require_open()

    @uninterrupted
    async def _one(self, value: object, measure: "Measure", call: Call, output: Output[ResultT, Any]) -> ResultT:
        """One input, at once: an interactive call; after `_turn`."""
        opened = self._require_open()
        intake = self._intake(self._group_of(opened, call), Priority.INTERACTIVE, measure, None)
        request = _Request()
        try:
            item, _ = intake.item(value, 0, request)
        except InputError as error:
            intake.count_failure()
            error.index = None
            raise
        intake.submit([item])
        try:
            return output.own(await request.wait(opened.pool, item))
        finally:
            intake.close()

    def _intake(self, group: Group, priority: Priority, measure: "Measure", key: Key | None) -> "ModelIntake":
        opened = self._opened
        assert opened is not None, "asked for by those who have looked"
        return ModelIntake(opened.pool, opened.model, group, priority, measure, key)

    async def _count(self, source: Source[InputT], measure: "Measure", call: Call) -> int:
        """Tokens of all inputs together; after `_turn`."""
        counted = replace(call, mode="count")
        # A text alone is a single call; a corpus waits in the lane of the streams.
        priority: PriorityName = "interactive" if type(source) is list and len(source) == 1 else "bulk"
        stream: EmbeddingStream[InputT, int, int] = self._stream(
            source, measure, counted, COUNT, key=None, priority=priority, ordered=False, on_error="raise"
        )
        return await stream.collect()

    def _group_of(self, opened: Opened, call: Call) -> Group:
        model = opened.model
        # What came up in the workers decides: a model on the CPU does not get an accelerator's batches.
        max_tokens = model.info.max_batch_tokens or model.config.max_batch_tokens
        return Group(model.key, call, max_tokens, model.config.max_batch_size or sys.maxsize)


Measure: TypeAlias = Callable[[object], tuple[int, int]]
"""From an input to (units, bytes): what its cost is estimated from, and what it keeps in memory.

Raises `InputError` if it can be no input of the family.
"""


class ModelIntake:
    """From a record of the source to an item of this model."""

    def __init__(
        self,
        pool: WorkerPool,
        model: PooledModel,
        group: Group,
        priority: Priority,
        measure: Measure,
        key: Key | None,
    ) -> None:
        self._pool = pool
        self._model = model
        self.group = group
        self._priority = priority
        self._measure = measure
        self._key = key
        self._most_tokens = model.config.max_length or model.info.max_length or sys.maxsize

    def item(self, record: object, index: int, sink: Sink) -> tuple[Item, int]:
        """See `asyncembed.stream.Intake`."""
        # By its type: what an object says of its class may be anything, or raise.
        if type(record) is not str and issubclass(type(record), InputError):
            raise _at_index(cast(InputError, record), index)  # a source's word on a record that it could not give
        value = record if self._key is None else self._take(record, index)
        try:
            units, size_bytes = self._measure(value)
            return self._make_item(value, units, index, sink), size_bytes
        except InputError as error:
            raise _at_index(error, index) from error.__cause__
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise InputError(f"the input cannot be read: {in_words(error)}", index=index) from error

    def _take(self, record: object, index: int) -> object:
        assert self._key is not None
        try:
            return self._key(record)
        except InputError as error:
            raise _at_index(error, index) from error.__cause__
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise InputError(f"key= failed: {in_words(error)}", index=index) from error

    def count_failure(self) -> None:
        """See `asyncembed.stream.Intake`."""
        self._model.failed += 1

    def submit(self, items: list[Item]) -> None:
        """See `asyncembed.stream.Intake`."""
        self._pool.submit(items)

    def close(self) -> None:
        """Forget what was not submitted yet."""

    def _make_item(self, value: object, units: int, index: int, sink: Sink) -> Item:
        tokens = self._model.estimate_tokens(units)
        if tokens >= self._most_tokens:
            tokens, units = self._most_tokens, 0  # cut: says nothing of how many tokens a unit is
        if type(value) is not str:
            value = _plain(value)
        return Item(value, tokens, self.group, self._priority, sink, index, units)


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


def measure_text(value: object) -> tuple[int, int]:
    """Characters and bytes of a text."""
    text = value if type(value) is str else plain_text(value)
    if text is None:
        hint = "; decode it first" if isinstance(value, bytes) else ""
        raise InputError(f"expected a str, got {type(value).__name__}{hint}")
    return len(text), sys.getsizeof(text)


def plain_text(value: object) -> str | None:
    """A text as `str` itself, None for what is none.

    A subclass may not survive pickling, or bring much along; pyarrow's scalars of strings are no subclasses.
    """
    if issubclass(type(value), str):
        return str.__str__(cast(str, value))
    if type(value).__module__.partition(".")[0] == "pyarrow" and hasattr(value, "as_py"):
        text = value.as_py()
        return text if type(text) is str else None
    return None


def _plain(value: object) -> object:
    """A text, or the texts of a pair, as `str` itself."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return value if (text := plain_text(value)) is None else text


def _at_index(error: InputError, index: int) -> InputError:
    """The error with its index; another one for what was handed over before, as a source may do several times."""
    if error.index not in (None, index):
        again = InputError(*error.args, index=index)
        again.__cause__ = error.__cause__
        return again
    error.index = index
    return error


_TABLES = frozenset({"DataFrame", "DataFrameGroupBy", "LazyFrame", "DataArray", "RecordBatchReader"})
"""Names of the tables that do not say so by `__dataframe__`, as those of pandas, polars, pyarrow and others do."""


def _check_source(source: object) -> None:
    """Refuse what is no source, and what iterates as something other than its records."""
    kind = type(source)
    if isinstance(source, bytes | bytearray | memoryview):
        raise InputError(f"the source is {kind.__name__}, whose elements are numbers: decode it first")
    if isinstance(source, Mapping):
        # Iterating over it gives its keys, which is hardly ever what is meant.
        name = "dict" if kind is dict else f"mapping ({kind.__name__})"
        raise InputError(f"the source is a {name}: give its keys(), its values(), or a list of records with key=")
    if hasattr(kind, "__dataframe__") or any(base.__name__ in _TABLES for base in kind.__mro__):
        raise InputError(
            f"the source is a table ({kind.__module__.partition('.')[0]}.{kind.__name__}), which iterates as something "
            'other than its rows: give a column, as table["text"] or array.values, or its rows as dicts, with key='
        )
    if getattr(source, "ndim", None) == 0:
        raise InputError(f"the source is a single value ({kind.__name__} of no dimension): put it into a list")
    if not hasattr(kind, "__aiter__") and not hasattr(kind, "__iter__") and not hasattr(kind, "__getitem__"):
        raise InputError(f"the source must be iterable or async iterable; got {kind.__name__}")


def as_source(texts: Source[InputT]) -> Source[InputT]:
    """One `str` is one text, not many characters."""
    return cast("Source[InputT]", [texts]) if isinstance(texts, str) else texts
