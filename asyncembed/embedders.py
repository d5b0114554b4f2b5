"""The public classes: thin. The base opens, closes and dispatches; a class adds what its family differs in."""

import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias, TypedDict, TypeVar, Unpack, cast, get_args

from anyio import AsyncContextManagerMixin, Event
from anyio.abc import TaskGroup

from asyncembed.catalogue.from_repo import Overrides
from asyncembed.catalogue.lookup import Catalogue, describe, parse_sources
from asyncembed.catalogue.spec import Family, ModelSpec, Pooling
from asyncembed.encoders.encoder import Call, Mode
from asyncembed.engine.scheduler import Group, Item, Priority, Sink
from asyncembed.engine.supervisor import PooledModel, Stats, WorkerPool, check_count, owned_task_group
from asyncembed.errors import InputError, OptionError, StateError
from asyncembed.opening import prepare
from asyncembed.options import MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, OptionKeywords, Options, check_choice
from asyncembed.results import COUNT, DENSE, Matrix, Output, Vector
from asyncembed.stream import EmbeddingStream, OnError, Source, StreamState

if TYPE_CHECKING:
    import numpy.typing as npt

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
        self._options = Options.from_keywords(options, own=signature(type(self)).parameters)
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
                config = await prepare(
                    self._wanted(), self.family, self._options, overrides=self._overrides(), settings=self._settings()
                )
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

    @classmethod
    def list_supported_models(cls) -> list[dict[str, object]]:
        """The catalogued models of this class, added ones included, with the keys that fastembed's users know."""
        return [describe(spec) for spec in Catalogue.builtin().list_models(cls.family)]

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

    def _wanted(self) -> str | os.PathLike[str] | ModelSpec:
        """The model to open."""
        return self._model_name

    def _overrides(self) -> Overrides:
        """What the caller says instead of the model's own configuration."""
        options = self._options
        return Overrides(max_length=options.max_length, onnx_file=options.onnx_file, precision=options.precision)

    def _settings(self) -> Mapping[str, object]:
        """The family's own keywords that its encoder reads."""
        return {}

    def _vector_size(self) -> int:
        """Length of the model's vectors. Raises `StateError` where it is known only while the model is open."""
        if self._opened is not None:
            size = self._opened.spec.dim or self._opened.model.facts.get("dim")
        else:
            name = self._model_name
            spec = name if isinstance(name, ModelSpec) else Catalogue.builtin().find(os.fspath(name), self.family)
            size = spec.dim if spec is not None else None
        if not isinstance(size, int):
            raise StateError(f"the size of {self.model_name} is known once it is open")
        return size

    @classmethod
    def _catalogued_size(cls, model_name: str) -> int:
        size = Catalogue.builtin().lookup(model_name, cls.family).dim
        assert size is not None, f"every catalogued model of the family {cls.family} has a size"
        return size

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
        check_choice("priority", priority, get_args(PriorityName))
        check_choice("on_error", on_error, get_args(OnError))
        if not hasattr(source, "__aiter__") and not hasattr(source, "__iter__"):
            raise InputError(f"the source must be iterable or async iterable; got {type(source).__name__}")
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
        return EmbeddingStream(state, source, opened.group, output)

    async def _one(self, value: object, measure: "Measure", call: Call, output: Output[ResultT, Any]) -> ResultT:
        """One input, at once: an interactive call."""
        opened = self._require_open()
        intake = self._intake(self._group_of(opened, call), Priority.INTERACTIVE, measure, None)
        request = _Request()
        try:
            item, _ = intake.item(value, 0, request)
        except InputError as error:
            error.index = None
            raise
        intake.submit([item])
        try:
            return output.own(await request.wait(opened.pool, item))
        finally:
            intake.close()

    def _intake(self, group: Group, priority: Priority, measure: "Measure", key: Key | None) -> "ModelIntake":
        opened = self._require_open()
        return ModelIntake(opened.pool, opened.model, group, priority, measure, key)

    async def _count(self, source: Source[InputT], measure: "Measure", call: Call) -> int:
        """Tokens of all inputs together."""
        counted = replace(call, mode="count")
        return await self._stream(
            source, measure, counted, COUNT, key=None, priority="interactive", ordered=False, on_error="raise"
        ).collect()

    def _group_of(self, opened: _Opened, call: Call) -> Group:
        config = opened.model.config
        return Group(opened.model.key, call, config.max_batch_tokens, config.max_batch_size or sys.maxsize)


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
        return self._make_item(value, units, index, sink), size_bytes

    def submit(self, items: list[Item]) -> None:
        """See `asyncembed.stream.Intake`."""
        self._pool.submit(items)

    def close(self) -> None:
        """Forget what was not submitted yet."""

    def _make_item(self, value: object, units: int, index: int, sink: Sink) -> Item:
        tokens = self._model.estimate_tokens(units)
        if tokens >= self._most_tokens:
            tokens, units = self._most_tokens, 0  # cut: says nothing of how many tokens a unit is
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
    if not isinstance(value, str):
        hint = "; decode it first" if isinstance(value, bytes) else ""
        raise InputError(f"expected a str, got {type(value).__name__}{hint}")
    return len(value), sys.getsizeof(value)


def as_source(texts: Source[InputT]) -> Source[InputT]:
    """One `str` is one text, not many characters."""
    return cast("Source[InputT]", [texts]) if isinstance(texts, str) else texts


class TextCall(TypedDict, total=False):
    """What one call of `TextEmbedding` may ask for, instead of what the constructor said.

    Keys:
        prompt: Text put before each input, instead of any prompt by name; "" for none.
        prompt_name: Name of the prompt put before each input.
        task: Task of a multi-task model, by name or number.
        truncate: Cut inputs over the length limit; False makes such an input an `InputError`.
        truncate_dim: Keep only this many leading components, then normalise again (Matryoshka).
    """

    prompt: str | None
    prompt_name: str | None
    task: str | int | None
    truncate: bool
    truncate_dim: int | None


class TextEmbedding(Embedder):
    """Dense text embeddings: one vector per text.

    ```python
    async with TextEmbedding("BAAI/bge-small-en-v1.5") as model:
        async for vector in model.embed(documents):
            ...
        query = await model.embed_query("what is backpressure?")
    ```

    A vector is float32 (dim,) unless `dtype` or `output` asks otherwise.

    Args:
        model_name: See `Embedder`.
        pooling: From hidden states to one vector, instead of what the model's files say: "cls", "mean", "max",
            "weighted_mean", "mean_sqrt_len", "last_token", or "none" for a graph that pools by itself.
        normalize: Whether vectors are scaled to unit length, instead of what the model's files say.
        prompts: Text put before inputs, by role: "query" for queries, "passage" for passages and documents, other
            names for `prompt_name=`. True takes the model's own, False none. None takes those of a repo that is
            configured for sentence-transformers, and none for a catalogued model, as fastembed does.
        task: Task of a multi-task model, by name or number, where a call names none.
        truncate: Cut inputs over the length limit; False makes such an input an `InputError`.
        truncate_dim: Keep only this many leading components, then normalise again (Matryoshka).
        dtype: "float32" or "float16".
        output: "float"; "int8", which needs `int8_ranges`; or "binary", eight components to a byte, as int8.
        int8_ranges: Smallest and largest value of each component, float32 (2, dim), from a sample of the corpus.
        options: See `Options`.
    """

    family = "text"

    def __init__(
        self,
        model_name: str | os.PathLike[str] | ModelSpec = "BAAI/bge-small-en-v1.5",
        *,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        prompts: bool | Mapping[str, str] | None = None,
        task: str | int | None = None,
        truncate: bool = True,
        truncate_dim: int | None = None,
        dtype: Literal["float32", "float16"] = "float32",
        output: Literal["float", "int8", "binary"] = "float",
        int8_ranges: "npt.ArrayLike | None" = None,
        **options: Unpack[OptionKeywords],
    ) -> None:
        super().__init__(model_name, **options)
        check_choice("pooling", pooling, (None, *get_args(Pooling)))
        check_choice("dtype", dtype, ("float32", "float16"))
        check_choice("output", output, ("float", "int8", "binary"))
        check_count("truncate_dim", truncate_dim, least=1)
        if dtype != "float32" and output != "float":
            raise OptionError(f"dtype={dtype!r} and output={output!r} exclude each other")
        if (output == "int8") != (int8_ranges is not None):
            raise OptionError(
                'output="int8" and int8_ranges= go together: the smallest and largest value of each component, '
                "np.stack([sample.min(0), sample.max(0)]) of the float embeddings of some hundred documents"
            )
        self._pooling = pooling
        self._normalize = normalize
        self._prompts = prompts
        self._call = Call(
            task=task,
            truncate=truncate,
            truncate_dim=truncate_dim,
            dtype=dtype,
            output=output,
            settings=() if int8_ranges is None else (("int8_ranges", _as_float32_bytes(int8_ranges)),),
        )

    # ---------------------------------------------------------------- many inputs

    def embed(
        self,
        documents: Source[InputT],
        *,
        key: Callable[[InputT], str] | None = None,
        priority: PriorityName = "bulk",
        ordered: bool = True,
        on_error: OnError = "raise",
        **call: Unpack[TextCall],
    ) -> EmbeddingStream[InputT, Vector, Matrix]:
        """Embed texts from any iterable or async iterable.

        Args:
            documents: The texts, or records from which `key` takes the text. One `str` is one document.
            key: Takes the text out of a record.
            priority: "interactive" goes before "bulk".
            ordered: Whether results come in input order, or as they are ready.
            on_error: What becomes of an input that has no vector: "raise" ends the stream with its error, "skip"
                leaves it out, "return" gives the error in the place of the vector.
            call: See `TextCall`.

        Returns:
            A stream of arrays (dim,).

        Raises:
            StateError: The embedder is not open, or was opened on another event loop.
            OptionError: An argument that cannot work; (from the stream) one that the model cannot serve.
            InputError: (from the stream) an input is not a text, or is over the limit with `truncate=False`; `index`
                says which.
        """
        return self._texts("embed", documents, key, priority, ordered, on_error, call)

    def query_embed(
        self,
        queries: Source[InputT],
        *,
        key: Callable[[InputT], str] | None = None,
        priority: PriorityName = "bulk",
        ordered: bool = True,
        on_error: OnError = "raise",
        **call: Unpack[TextCall],
    ) -> EmbeddingStream[InputT, Vector, Matrix]:
        """`embed` for queries: with the query prompt or task, where the model has one and it is switched on."""
        return self._texts("query", queries, key, priority, ordered, on_error, call)

    def passage_embed(
        self,
        passages: Source[InputT],
        *,
        key: Callable[[InputT], str] | None = None,
        priority: PriorityName = "bulk",
        ordered: bool = True,
        on_error: OnError = "raise",
        **call: Unpack[TextCall],
    ) -> EmbeddingStream[InputT, Vector, Matrix]:
        """`embed` for passages: with the passage prompt or task, where the model has one and it is switched on."""
        return self._texts("passage", passages, key, priority, ordered, on_error, call)

    # ---------------------------------------------------------------- a few inputs, at once

    async def embed_query(self, query: str, **call: Unpack[TextCall]) -> Vector:
        """The vector of one query: (dim,). Goes before bulk work."""
        opened = self._require_open()
        return await self._one(query, measure_text, self._call_of(opened, "query", call), DENSE)

    async def embed_documents(self, documents: Iterable[str], **call: Unpack[TextCall]) -> Matrix:
        """The vectors of some passages: (n, dim), rows in input order. Goes before bulk work."""
        return await self.passage_embed(documents, priority="interactive", **call).collect()

    async def token_count(self, texts: Source[str], **call: Unpack[TextCall]) -> int:
        """How many tokens the texts have together, special tokens included, each cut at the length limit."""
        opened = self._require_open()
        return await self._count(as_source(texts), measure_text, self._call_of(opened, "embed", call))

    # ---------------------------------------------------------------- about models

    @property
    def embedding_size(self) -> int:
        """Length of a vector.

        Raises:
            StateError: The model is not catalogued, so its size is known only while it is open.
        """
        return self._call.truncate_dim or self._vector_size()

    @classmethod
    def get_embedding_size(cls, model_name: str) -> int:
        """Length of a catalogued model's vectors. Raises `UnknownModelError`."""
        return cls._catalogued_size(model_name)

    @classmethod
    def add_custom_model(
        cls,
        model: str,
        pooling: Pooling | str,
        normalization: bool,
        sources: object,
        dim: int,
        model_file: str = "onnx/model.onnx",
        description: str = "",
        license: str = "",  # noqa: A002 (the name that fastembed's users know)
        size_in_gb: float = 0.0,
        additional_files: Sequence[str] | None = None,
        output_name: str | None = None,
    ) -> None:
        """Make a model known by name, for this process and the workers it starts.

        Args:
            model: Its name; must not be taken.
            pooling: As in the constructor; fastembed's "CLS", "MEAN", "LAST_TOKEN" and "DISABLED" are understood.
            normalization: Whether vectors are scaled to unit length.
            sources: Where its files come from: a hub repo ("organisation/name"), the URL of a `.tar.gz`, a source of
                `asyncembed.catalogue.spec`, any object with the attributes `hf` and `url`, or several of these.
            dim: Length of its vectors.
            model_file: Path of the ONNX graph in the repo.
            description: For people.
            license: For people.
            size_in_gb: For people.
            additional_files: Further files that must be there, as paths in the repo.
            output_name: Graph output to take; None: the first.

        Raises:
            OptionError: The name is taken, there is no source, or the pooling is not known.
        """
        wanted = str(getattr(pooling, "value", pooling)).lower()
        wanted = {"disabled": "none"}.get(wanted, wanted)
        check_choice("pooling", wanted, get_args(Pooling))
        Catalogue.builtin().register(
            ModelSpec(
                name=model,
                family=cls.family,
                encoder="dense",
                sources=parse_sources(sources, model),
                model_file=model_file,
                additional_files=tuple(additional_files or ()),
                dim=dim,
                pooling=cast(Pooling, wanted),
                normalize=normalization,
                output=output_name if output_name is not None else 0,
                description=description,
                license=license,
                size_in_gb=size_in_gb,
            )
        )

    # ---------------------------------------------------------------- parts

    def _overrides(self) -> Overrides:
        return replace(super()._overrides(), pooling=self._pooling, normalize=self._normalize)

    def _texts(
        self,
        mode: Mode,
        source: Source[InputT],
        key: Key | None,
        priority: PriorityName,
        ordered: bool,
        on_error: OnError,
        call: TextCall,
    ) -> EmbeddingStream[InputT, Vector, Matrix]:
        return self._stream(
            as_source(source),
            measure_text,
            self._call_of(self._require_open(), mode, call),
            DENSE,
            key=key,
            priority=priority,
            ordered=ordered,
            on_error=on_error,
        )

    def _call_of(self, opened: _Opened, mode: Mode, call: TextCall) -> Call:
        unknown = set(call) - set(TextCall.__annotations__)
        if unknown:
            raise OptionError(f"unknown keyword {min(unknown)!r}; known are: {', '.join(TextCall.__annotations__)}")
        check_count("truncate_dim", call.get("truncate_dim"), least=1)
        base = self._call
        task = call.get("task")
        dim = call.get("truncate_dim")
        return replace(
            base,
            mode=mode,
            prompt=self._prompt(opened.spec, mode, call),
            task=base.task if task is None else task,
            truncate=call.get("truncate", base.truncate),
            truncate_dim=base.truncate_dim if dim is None else dim,
        )

    def _prompt(self, spec: ModelSpec, mode: Mode, call: TextCall) -> str | None:
        prompt, name = call.get("prompt"), call.get("prompt_name")
        if prompt is not None:
            return prompt or None
        known = {**spec.prompts, **self._prompts} if isinstance(self._prompts, Mapping) else spec.prompts
        if name is not None:
            if name not in known:
                raise OptionError(f"no prompt is called {name!r}; known are: {', '.join(known) or 'none'}")
            return known[name] or None
        # Catalogued models are computed as the reference computes them unless the caller asks for prompts.
        is_on = not spec.is_catalogued if self._prompts is None else self._prompts is not False
        if not is_on:
            return None
        return (known.get(mode) or known.get(spec.default_prompt or "")) or None


def _as_float32_bytes(values: "npt.ArrayLike") -> bytes:
    import numpy as np

    return np.ascontiguousarray(values, dtype=np.float32).tobytes()
