"""What the public classes share: the base opens, closes and dispatches; a class adds what its family differs in."""

import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence, Sized
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from inspect import signature
from logging import INFO, Logger, getLogger
from time import perf_counter
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    NoReturn,
    Required,
    TypeAlias,
    TypedDict,
    Unpack,
    cast,
    get_args,
)

from anyio import Event
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from asyncembed.any_loop import OnAnyLoop
from asyncembed.catalogue.described import Overrides
from asyncembed.catalogue.lookup import describe, find_model, list_models, parse_origins, require_model
from asyncembed.catalogue.onnx_choice import precision_of
from asyncembed.catalogue.spec import Family, ModelSpec
from asyncembed.checks import (
    check_bool,
    check_callable,
    check_choice,
    check_count,
    check_custom_model,
    check_model_name,
    check_on_error,
)
from asyncembed.embedders.intake import Door, InputT, Intake, Key, check_source
from asyncembed.encoders.encoder import Call, EncoderConfig, Mode
from asyncembed.encoders.registry import TokenSource, row_of
from asyncembed.engine.lifetime import Deferred, owned_task_group, uninterrupted
from asyncembed.engine.model import PooledModel, Stats
from asyncembed.engine.pool import WorkerPool, engine_of
from asyncembed.engine.scheduler import Priority
from asyncembed.engine.supervisor import Supervisor
from asyncembed.errors import InputError, ModelLoadError, StateError, WorkerError
from asyncembed.faking import ENCODER, SETTING, Fakes, current_fakes
from asyncembed.feeding import ErrorHandler, Means, OnError, Source, StreamState, is_in_memory
from asyncembed.files import in_disk_thread
from asyncembed.migration import ATTRIBUTES, refuse_assignment
from asyncembed.observing import ObservedCall, ObservedModel, Observer, Observers
from asyncembed.options import MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, OptionKeywords, Options, absolute, overrides_of
from asyncembed.remote import Remote
from asyncembed.results import COUNT, Assembly, CollectedT, Counted, CountedBatch, ResultT, count_of, dense
from asyncembed.reuse.deduplication import Reuse
from asyncembed.stream import EmbeddingStream, ReturningStream, returning
from asyncembed.wakeup import Turnstile, completion, start_thread

ModelName: TypeAlias = str | os.PathLike[str] | ModelSpec
"""As the classes take it: a name of the catalogue, a repo on the hub, a local directory, or a spec."""

PriorityName: TypeAlias = Literal["interactive", "bulk"]

AnyStream: TypeAlias = EmbeddingStream[InputT, ResultT, CollectedT] | ReturningStream[InputT, ResultT]
"""What a call gives, by what it says of errors."""


class CallKeywords(TypedDict, total=False):
    """What every call that gives a stream may say, beside `key` and `on_error`, which decide about its type.

    Keys:
        priority: "interactive" goes before "bulk", which is what streams are unless they say otherwise.
        ordered: Whether results come in input order (True, unless said otherwise), or as they are ready.
        progress: Show a bar of this stream on stderr: one that moves in a terminal or a notebook, a line every half
            minute elsewhere, as in a log. (The constructor's `progress` is about downloads.)
        total: How many records the source has, for the bar and `progress()`. Of a collection in memory (a list, say) it
            is known; any other source is asked for its length where `progress` wants a bar.
    """

    priority: PriorityName
    ordered: bool
    progress: bool
    total: int | None


class StreamCall(CallKeywords, total=False):
    """`CallKeywords` of a call whose stream holds results only."""

    on_error: Literal["raise", "skip"] | ErrorHandler


class ReturningCall(CallKeywords, total=False):
    """`CallKeywords` of a call whose stream holds an error in the place of each result that there is none of."""

    on_error: Required[Literal["return"]]


class StreamKeywords(CallKeywords, total=False):
    """What every call that gives a stream may say.

    Keys:
        key: Takes the input out of a record of the source.
        priority: "interactive" goes before "bulk", which is what streams are unless they say otherwise.
        ordered: Whether results come in input order (True, unless said otherwise), or as they are ready.
        on_error: What becomes of an input that has no result: "raise" (unless said otherwise) ends the stream with its
            error, "skip" leaves it out, "return" gives the error in the place of the result. A function leaves it out,
            too, and is called with the record and the error, one after the other in the order of the results, as the
            consumer comes to them. It is a plain function, runs on the event loop, and must return at once. What it
            raises ends the stream. Where the source handed over an `InputError`, that is the record as well.
        progress: Show a bar of this stream on stderr: one that moves in a terminal or a notebook, a line every half
            minute elsewhere, as in a log. (The constructor's `progress` is about downloads.)
        total: How many records the source has, for the bar and `progress()`, where its length does not say so.

    Raises:
        StateError: The embedder is not open, or was opened on another event loop.
        OverloadedError: (from the stream) With "interactive", more inputs wait than `max_queued` allows.
        OptionError: An argument that cannot work; (from the stream) one that the model cannot serve.
        InputError: The source is none; (from the stream) one of its inputs is none of the family, cannot be had, or is
            over the limit with `long="error"`; `index` says which.
    """

    key: Key | None
    on_error: OnError


logger: Logger = getLogger("asyncembed")

GRAPH_IMPORTS = ("numpy", "onnxruntime", "asyncembed.encoders.text_graph")
"""What a worker needs for a model that has a graph."""

_OPENING_IMPORTS = frozenset({"asyncembed.loading.load", "asyncembed.loading.fake_loading", "numpy"})
"""What this process needs to find a model, and for its results: imported while the workers start."""

CALLS_PER_TURN = 32
"""Coroutine calls that begin in one turn of the event loop: each takes some tens of microseconds to begin."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in a pool, which may be its own."""

    engine: Supervisor
    model: PooledModel
    owns_engine: bool
    digest: str | None = None
    """Of the model, where it was asked for already."""


@dataclass(slots=True)
class Opened:
    """What exists only between opening and closing."""

    group: TaskGroup
    turnstile: Turnstile
    remote: Remote
    deferred: Deferred[Loaded]
    """What loads it, where that was left to the first call."""
    idle_stats: Callable[[], Stats]
    """What there is to count before."""
    loaded: Loaded | None = None
    """None: no call has loaded it yet."""
    streams: set[StreamState[Any]] = field(default_factory=set)
    requests: "set[_Request]" = field(default_factory=set)
    plain_calls: dict[Mode, tuple[Call, Assembly[Any, Any]]] = field(default_factory=dict)
    """Of one-item calls without keywords: the same for each."""
    token_source: TokenSource | None = None
    """Says where the tokens of a text are; once something has asked for it."""
    fingerprint: str | None = None
    """Known once it was asked for."""

    @property
    def engine(self) -> Supervisor:
        return self.require_loaded().engine

    @property
    def model(self) -> PooledModel:
        return self.require_loaded().model

    @property
    def spec(self) -> ModelSpec:
        return self.require_loaded().model.config.spec

    def require_loaded(self) -> Loaded:
        """Raise `StateError` if it is not loaded yet."""
        if self.loaded is None:
            raise StateError("this model is loaded by its first call (lazy=True): that is known from then on")
        return self.loaded

    async def load(self) -> None:
        """Have it loaded, unless it is; it may be closed meanwhile."""
        if self.loaded is None:
            loaded = await self.deferred.get()
            if loaded is not None:
                self.loaded = loaded

    def stats(self) -> Stats:
        return self.idle_stats() if self.loaded is None else self.engine.stats(self.model)

    def end_all(self) -> None:
        """End whatever runs, with an error: the embedder closes."""
        for state in list(self.streams):
            state.close(StateError("the embedder was closed before the stream had ended"))
        for request in list(self.requests):
            request.fail(0, StateError("the embedder was closed before the call had ended"))

    def kill(self) -> None:
        """See `asyncembed.engine.lifetime.Killable`."""
        if self.loaded is not None and self.loaded.owns_engine:
            self.loaded.engine.kill()


class Embedder(OnAnyLoop[Opened]):
    """What the seven classes share: they differ in what their inputs are and what a result looks like.

    Opening finds the model's files (downloading them if need be), starts the workers unless a pool is given, and has
    them load the model. Closing ends every stream, drops the model, and ends the workers that opening started.

    Args:
        model_name: A name of the catalogue (letter case does not matter), a repo on the hub, or a local directory (as
            a `Path`, always that); or a `ModelSpec` of your own.
        options: The keywords that all classes share (`workers`, `device`, `pool`, ...): see `asyncembed.Options`.

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

    def _lifetime(self) -> AbstractAsyncContextManager[Opened]:
        fakes = self._fakes()
        find = partial(
            _find,
            fakes,
            self._wanted(),
            self.family,
            self._options,
            place=self._place,
            overrides=self._overrides(),
            settings=self._settings(),
        )
        spec = self._known_spec()
        has_graph = spec is None or spec.model_file is not None
        load = partial(
            _loading, type(self).__name__, self._options, find, has_graph=has_graph, in_process=fakes is not None
        )
        return _from_opening_to_closing(self._options, load)

    def _fakes(self) -> Fakes | None:
        """What it is to be instead of itself, if it was given a fake, or they are switched on."""
        name = self._model_name
        own = name.settings.get(SETTING) if isinstance(name, ModelSpec) else None
        return own if isinstance(own, Fakes) else current_fakes()

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

        def __setattr__(self, name: str, value: object) -> None:
            refuse_assignment(self, name, ATTRIBUTES)
            super().__setattr__(name, value)

    @property
    def max_length(self) -> int | None:
        """Most tokens of an input, special tokens included; what is longer is cut. None: no limit (BM25, images).

        Tokens that a prompt takes count, too, as do those that the model puts in (ColBERT's markers). For a reranker it
        is the limit of both texts of a pair together.

        Raises:
            StateError: The model is not open, or not loaded: its files, its graph and `max_length=` decide together.
        """
        return self._peek().model.info.max_length

    def __repr__(self) -> str:
        # Also of one that its constructor has refused, as debuggers show those.
        kind, name = type(self).__name__, repr(self.model_name) if hasattr(self, "_model_name") else "refused"
        opened = self._opened
        last = opened or self._last_opened
        if last is None:
            return f"<{kind} {name} not open>"
        if last.loaded is None:
            return f"<{kind} {name} {'closed before it was' if opened is None else 'open, not yet'} loaded>"
        model = last.loaded.model
        if opened is not None:
            return f"<{kind} {name} open on {model.info.runs_on}: {opened.stats().in_words()}>"
        return f"<{kind} {name} closed after {model.items} inputs in {model.batches} batches>"

    @property
    def fingerprint(self) -> str:
        """Which bytes make the vectors, in 20 hexadecimal digits that are the same on every machine.

        It changes with the graph, the weights, the tokenizer, the precision, the limit of tokens, and what the
        constructor said of pooling, prompts and the form of vectors; not with the model's name or its place, nor with
        what only decides where it runs and how fast. Two indexes of the same fingerprint may be searched with the same
        queries. What calls ask for (another prompt, say) is not in it.

        Files that are not from the hub are read when it is first asked for, which takes about a second per GB; it is
        remembered until they change.

        Raises:
            StateError: The model is not open, or not loaded yet (`lazy=True`).
            OSError: A file cannot be read any more.
        """
        opened = self._peek()
        if opened.fingerprint is None:
            from asyncembed.reuse.fingerprint import fingerprint_of

            loaded = opened.require_loaded()
            digest = loaded.digest or _digest(loaded.model.config, self._options)
            opened.fingerprint = fingerprint_of(digest, self._usual_calls(opened))
        return opened.fingerprint

    def stats(self) -> Stats:
        """What this model has computed, and the state of its pool: a snapshot, from any thread.

        Before the first call of a lazy one, it has computed nothing, and no worker of its own is ready.

        Raises:
            StateError: The embedder is not open.
        """
        return self._peek().stats()

    # ---------------------------------------------------------------- opening

    def _remote(self) -> Remote | None:
        opened = self._opened
        return None if opened is None else opened.remote

    def _wanted(self) -> ModelName:
        """The model to open."""
        return self._model_name

    def _overrides(self) -> Overrides:
        """What the caller says instead of the model's own configuration."""
        return overrides_of(self._options)

    def _settings(self) -> Mapping[str, object]:
        """The family's own keywords that its encoder reads."""
        return {}

    def _usual_calls(self, opened: Opened) -> Sequence[Call]:  # noqa: ARG002 (for those whose model decides)
        """What its methods ask of a worker, where their callers say nothing else."""
        return ()

    def _known_spec(self) -> ModelSpec | None:
        """The spec of the model if it was given, or is catalogued."""
        name = self._model_name
        return name if isinstance(name, ModelSpec) else find_model(os.fspath(name), self.family)

    def _known_size(self) -> int | None:
        """Length of the model's vectors; None where it is not known, or not yet."""
        opened = self._opened
        if opened is None or opened.loaded is None:
            spec = self._known_spec()
            return None if spec is None else spec.truncate_dim or spec.dim
        return opened.spec.truncate_dim or opened.spec.dim or opened.model.info.dim

    def _dense_assembly(self, call: Call) -> Assembly[Any, Any]:
        """How the vectors that `call` asks for leave a stream."""
        # An image model outside the catalogue tells with its first vector.
        size = call.truncate_dim or self._known_size() or 0
        if call.output == "float":
            return dense(size, call.dtype)
        return dense(size if call.output == "int8" else -(-size // 8), "int8")

    @classmethod
    def _custom_spec(
        cls,
        name: str,
        encoder: str,
        sources: object,
        model_file: str,
        additional_files: Sequence[str] | None,
        description: str,
        license: str,  # noqa: A002 (the spec's name for it)
        size_in_gb: float,
    ) -> ModelSpec:
        """The spec of a model that a program adds to this class; the arguments are those of `add_custom_model`."""
        return ModelSpec(
            name=name,
            family=cls.family,
            encoder=encoder,
            additional_files=check_custom_model(name, model_file, additional_files),
            sources=parse_origins(sources, name),
            model_file=model_file,
            description=description,
            license=license,
            size_in_gb=size_in_gb,
        )

    def _peek(self) -> Opened:
        """What opening has made, to be looked at from any thread. Raises `StateError` if it is not open."""
        opened = self._opened
        if opened is None:
            raise StateError(
                f"{type(self).__name__} {self._closed_words}: use it inside `async with`, or after `await model.open()`"
            )
        return opened

    def _require_open(self) -> Opened:
        """Likewise, for what its own event loop does with it. Also raises `StateError` on another one."""
        opened = self._peek()
        opened.remote.loop.check()
        return opened

    # ---------------------------------------------------------------- dispatching

    def _stream(
        self,
        opened: Opened,
        source: Source[InputT],
        door: Door,
        plan: "Plan[ResultT, CollectedT]",
        keywords: StreamKeywords,
        make_state: Callable[..., StreamState[Any]] = StreamState,
    ) -> AnyStream[InputT, ResultT, CollectedT]:
        check_stream(keywords)
        check_source(source)
        on_error, shows_bar = keywords.get("on_error", "raise"), keywords.get("progress", False)
        total = keywords.get("total")
        course = _Course(opened, door, plan, keywords.get("priority", "bulk"), keywords.get("key"))

        def end(state: StreamState[InputT]) -> None:
            opened.streams.discard(state)
            course.close()
            if state.observed is not None:
                state.observed.end(state.end)
            _log_truncated(opened, state)

        loaded = opened.loaded
        state: StreamState[InputT] = make_state(
            opened.remote.loop,
            course.load if loaded is None else course.begin(),
            model_name=self.model_name if loaded is None else loaded.model.name,
            max_items=self._options.max_in_flight or MAX_IN_FLIGHT,
            max_bytes=self._options.max_in_flight_bytes or MAX_IN_FLIGHT_BYTES,
            ordered=keywords.get("ordered", True),
            on_error=on_error,
            total=length_of(source, is_wanted=shows_bar) if total is None else total,
            shows_bar=shows_bar,
            on_end=end,
        )
        opened.streams.add(state)
        assembly = course.assembly
        if on_error == "return":
            return EmbeddingStream(state, source, opened.group, returning(assembly), embedder=self)
        return EmbeddingStream(state, source, opened.group, assembly, embedder=self)

    @uninterrupted
    async def _turn(self) -> Opened:
        """Wait until one more call may begin: first of all, in every method that is a coroutine.

        Raises:
            AsyncEmbedError: It is yet to be loaded, and cannot be.
            StateError: The embedder is not open, or was opened on another event loop.
        """
        opened = self._opened
        if opened is not None:
            if opened.loaded is None:
                opened.remote.loop.check()
                await opened.load()
            await opened.turnstile.enter()
        return self._require_open()

    @uninterrupted
    async def _one(
        self,
        opened: Opened,
        value: object,
        door: Door,
        call: Call,
        assembly: Assembly[ResultT, Any],
        *,
        with_tokens: bool = False,
    ) -> ResultT | Counted[ResultT]:
        """One input, at once: an interactive call; after `_turn`."""
        check_bool("with_tokens", with_tokens)
        intake = door(opened.engine, opened.model, call, Priority.INTERACTIVE, None)
        observers = opened.model.observers
        observed = None if observers is None else observers.begin(call.mode, "interactive")
        try:
            intake.admit(1)
            request = _Request(observed)
            try:
                item, _ = intake.item(value, 0, request)
            except InputError as error:
                intake.count_failure()
                error.index = None
                raise
            opened.requests.add(request)
            try:
                intake.submit([item])
                result = assembly.detach(await request.wait(partial(intake.withdraw, [item])))
            finally:
                opened.requests.discard(request)
        except BaseException as error:
            if observed is not None:
                observed.failed = int(isinstance(error, Exception))
                observed.end(error)
            raise
        finally:
            intake.close()
        if observed is not None:
            observed.end()
        return count_of(result, item.count) if with_tokens else result

    async def _several(
        self, stream: EmbeddingStream[InputT, ResultT, CollectedT], *, with_tokens: bool
    ) -> CollectedT | CountedBatch[CollectedT]:
        """All results of a call for several inputs; after `_turn`."""
        check_bool("with_tokens", with_tokens)
        return await (stream.with_tokens().collect() if with_tokens else stream.collect())

    async def _count(self, opened: Opened, source: Source[InputT], door: Door, call: Call) -> int:
        """Tokens of all inputs together; after `_turn`."""
        # A text alone is a single call; a corpus waits in the lane of the streams.
        check_bool("truncated", call.truncated)
        priority: PriorityName = "interactive" if type(source) is list and len(source) == 1 else "bulk"
        keywords: StreamKeywords = {"priority": priority, "ordered": False}
        counting = replace(call, mode="count")
        stream = self._stream(opened, source, door, lambda _: (counting, COUNT), keywords)
        return cast(int, await stream.collect())


Plan: TypeAlias = Callable[[Opened], tuple[Call, Assembly[ResultT, CollectedT]]]
"""What is asked of the model once it is loaded, and how its results leave a stream."""


class _Course(Generic[ResultT, CollectedT]):
    """What a stream asks of its model: settled at once, or when the model is loaded for it."""

    def __init__(
        self,
        opened: Opened,
        door: Door,
        plan: Plan[ResultT, CollectedT],
        priority: PriorityName,
        key: Key | None,
    ) -> None:
        self._opened = opened
        # Of the embedder, which nothing that runs refers to.
        self._of_embedder: tuple[Door, Plan[ResultT, CollectedT]] | None = door, plan
        self._priority: PriorityName = priority
        self._key = key
        self._intake: Intake | None = None
        self._assembly: Assembly[ResultT, CollectedT] | None = None

    def begin(self) -> Means:
        """What it is computed with.

        Raises:
            OptionError: Something that the model cannot serve.
        """
        assert self._of_embedder is not None, "it begins once"
        (door, plan), self._of_embedder = self._of_embedder, None
        engine, model = self._opened.engine, self._opened.model
        call, self._assembly = plan(self._opened)
        self._intake = door(engine, model, call, Priority[self._priority.upper()], self._key)
        observers = model.observers
        return Means(
            engine, self._intake, None if observers is None else partial(observers.begin, call.mode, self._priority)
        )

    async def load(self) -> Means:
        """The same, of a model that is yet to be loaded."""
        await self._opened.load()
        await checkpoint()  # it may have been closed meanwhile
        return self.begin()

    @property
    def assembly(self) -> Assembly[ResultT, CollectedT]:
        if self._assembly is not None:
            return self._assembly
        return Assembly(
            lambda result: self._settled().detach(result), lambda results: self._settled().assemble(results)
        )

    def _settled(self) -> Assembly[ResultT, CollectedT]:
        if self._assembly is None:
            raise StateError("the stream was closed before the model was loaded for it")
        return self._assembly

    def close(self) -> None:
        if self._intake is not None:
            self._intake.close()


@asynccontextmanager
async def _from_opening_to_closing(
    options: Options, load: Callable[[], AbstractAsyncContextManager[Loaded]]
) -> AsyncGenerator[Opened]:
    """An embedder's life; `load` is that of what computes it, within."""
    async with AsyncExitStack() as stack:
        deferred = Deferred(await stack.enter_async_context(owned_task_group()), load)
        loaded = None if options.lazy else await stack.enter_async_context(load())
        group = await stack.enter_async_context(owned_task_group())
        remote = Remote(group)
        opened = Opened(
            group, Turnstile(remote.loop, CALLS_PER_TURN), remote, deferred, partial(_idle_stats, options), loaded
        )
        try:
            yield opened
        finally:
            opened.remote.close()
            opened.end_all()


@asynccontextmanager
async def _loading(
    kind: str, options: Options, find: Callable[[], Awaitable[EncoderConfig]], *, has_graph: bool, in_process: bool
) -> AsyncGenerator[Loaded]:
    """What computes an embedder, from finding it to its end.

    `kind` is the embedder's class, `find` brings its files onto disk, `has_graph` says whether it is likely to have a
    graph; `in_process` is for fakes.
    """
    began = perf_counter()
    async with AsyncExitStack() as stack:
        if options.pool is None:
            # The workers start, and import what they will need, while the files are being found.
            keywords = options.pool_keywords()
            if in_process:
                keywords["workers"] = 0
            engine = engine_of(WorkerPool(**keywords))
            if has_graph:
                engine.plan = replace(engine.plan, imports=GRAPH_IMPORTS)
            await stack.enter_async_context(engine.running())
        else:
            engine = engine_of(options.pool)
        engine.check_open()
        model, digest = await stack.enter_async_context(_computing(engine, options, find))
        if logger.isEnabledFor(INFO):
            logger.info("%s opened %s in %.1f s", kind, _described(engine, model), perf_counter() - began)
        if options.observers:
            observers = model.observers = _observers(options.observers, engine, model)
            observers.opened()
            stack.callback(observers.closed)
        if digest is not None or _deduplicates(model, options):
            model.reuse = Reuse(engine, model, deduplicates=_deduplicates(model, options))
            if digest is not None:
                assert options.cache is not None
                await stack.enter_async_context(model.reuse.keeping(options.cache, await completion(digest)))
        yield Loaded(
            engine, model, owns_engine=options.pool is None, digest=None if digest is None else digest.result()
        )


@asynccontextmanager
async def _computing(
    engine: Supervisor, options: Options, find: Callable[[], Awaitable[EncoderConfig]]
) -> AsyncGenerator[tuple[PooledModel, Future[str] | None]]:
    """A model that the workers have loaded, and its digest, where that is needed.

    Where its graph was made here and is damaged, it is made again.
    """
    for may_be_damaged in (True, False):
        config = await find()
        model = engine.add_model(config)
        try:
            digest = None if options.cache is None else start_thread(_digest, config, options)
            try:
                await engine.warm(model)
            except ModelLoadError as error:
                from asyncembed.loading.made_graphs import discard_damaged

                if not (may_be_damaged and await discard_damaged(config, options, error)):
                    raise
                continue
            yield model, digest
            return
        finally:
            engine.remove_model(model)


async def _find(fakes: Fakes | None, *arguments: Any, **keywords: Any) -> EncoderConfig:
    """`prepare`, or that of a fake: by modules that are imported now, while the workers start."""
    if not sys.modules.keys() >= _OPENING_IMPORTS:
        await in_disk_thread(_import_rest)
    from asyncembed.loading.fake_loading import prepare_fake
    from asyncembed.loading.load import prepare

    return await (prepare if fakes is None else partial(prepare_fake, fakes))(*arguments, **keywords)


def _import_rest() -> None:
    """`_OPENING_IMPORTS`, of which each takes long or may fail.

    Raises:
        WorkerError: It cannot be imported now, as when there are too many open files.
    """
    try:
        for module in _OPENING_IMPORTS:
            import_module(module)
    except (OSError, ImportError) as error:
        raise WorkerError(
            f"what reads models cannot be imported ({type(error).__name__}: {error}); free what it lacks, ask for "
            "fewer workers, or use workers=0"
        ) from error


def _idle_stats(options: Options) -> Stats:
    """Those of a model that has not been loaded."""
    pool = WorkerPool(**options.pool_keywords()) if options.pool is None else options.pool
    counts = (
        "batches", "items", "failed", "tokens", "padded_tokens", "batch_seconds", "refused", "truncated",
        "deduplicated", "cache_hits", "cache_misses",
    )  # fmt: skip
    return replace(pool.stats(), **dict.fromkeys(counts, 0))


async def load(embedder: Embedder) -> None:
    """For the package itself: have a lazy model loaded, as its first call would.

    Raises:
        AsyncEmbedError: It cannot be, or is not open.
    """
    opened = embedder._require_open()  # noqa: SLF001 (as below)
    if opened.loaded is None:
        await opened.load()
        embedder._require_open()  # noqa: SLF001 (as below)


def is_loaded(embedder: Embedder) -> bool:
    """For the package itself: whether it has been loaded, as far as that is left to its first call."""
    opened = embedder._opened  # noqa: SLF001 (as below)
    return opened is not None and opened.loaded is not None


def _deduplicates(model: PooledModel, options: Options) -> bool:
    """Whether equal inputs are to be computed once."""
    if options.deduplicate is not None:
        return options.deduplicate
    # Without a graph, to compute an input takes about as long as to look for an equal one. Of somebody else's encoder
    # nobody knows that the results of equal inputs are equal.
    spec = model.config.spec
    kind = row_of(spec)
    return spec.encoder == ENCODER or not (kind.is_cheap or kind.is_foreign)


def _digest(config: EncoderConfig, options: Options) -> str:
    from asyncembed.reuse.fingerprint import model_digest

    return model_digest(config, options.own_cache_dir, precision=options.precision)


def opened_model(embedder: Embedder) -> tuple[PooledModel, Supervisor]:
    """For the package itself: what an embedder has opened, with the files it was opened from; and what computes it.

    Raises:
        StateError: It is not open, or not loaded yet.
    """
    opened = embedder._peek()  # noqa: SLF001 (an embedder offers its users no more than they need)
    return opened.model, opened.engine


class HasVectors(Embedder):
    """What the classes share whose results are vectors, or rows, of one length."""

    _truncate_dim: int | None = None

    @property
    def embedding_size(self) -> int:
        """Length of a vector; with late interaction, of a token's or patch's.

        Raises:
            StateError: The model is not catalogued, so its size is known only while it is open.
        """
        size = self._truncate_dim or self._known_size()
        if size is None:
            raise StateError(f"the size of {self.model_name} is known once it is open")
        return size

    @classmethod
    def get_embedding_size(cls, model_name: str) -> int:
        """Length of a catalogued model's vectors. Raises `UnknownModelError`."""
        size = require_model(model_name, cls.family).dim
        assert size is not None, f"every catalogued model of the family {cls.family} has a size"
        return size


class _Request:
    """The sink of a one-item call."""

    def __init__(self, observed: ObservedCall | None) -> None:
        self.observed: ObservedCall | None = observed
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

    def charge(self, index: int, size_bytes: int) -> None:
        """One input alone is not bounded by what it keeps."""

    async def wait_bytes(self, index: int, expected_bytes: int) -> None:
        """Likewise."""

    async def wait(self, withdraw: Callable[[], None]) -> object:
        try:
            await self._event.wait()
        except BaseException:
            withdraw()
            raise
        if self._error is not None:
            raise self._error
        return self._result


def check_stream(keywords: StreamKeywords) -> None:
    """See that what a call says of its stream can work. Raises `OptionError`."""
    check_choice("priority", keywords.get("priority", "bulk"), get_args(PriorityName))
    check_on_error(keywords.get("on_error", "raise"))
    check_bool("progress", keywords.get("progress", False))
    check_count("total", keywords.get("total"), minimum=0)
    check_bool("ordered", keywords.get("ordered", True))
    check_callable("key", keywords.get("key"), what="a function that takes the input out of a record")


def length_of(source: object, *, is_wanted: bool) -> int | None:
    """How many records a source has, if it knows; what it raises instead is its own matter when it is read.

    A source of somebody's own may ask a database for it, and hold up the loop: it does so where that is wanted.
    """
    if not is_wanted and not is_in_memory(source):
        return None
    try:
        return len(cast("Sized", source))
    except Exception:  # noqa: BLE001 (it may be anybody's class)
        return None


def _observers(observers: Sequence[Observer], engine: Supervisor, model: PooledModel) -> Observers:
    dim = model.config.spec.dim or model.info.dim
    return Observers(observers, ObservedModel(name=model.name, dim=dim, stats=partial(engine.stats, model)))


def _log_truncated(opened: Opened, state: StreamState[Any]) -> None:
    """Say of a stream that ends how many inputs were cut, if any was."""
    if state.truncated:
        length = opened.model.info.max_length  # somebody's own encoder may cut and not say where
        logger.info(
            "%s: %d of %d inputs of a stream were longer than %s and were cut; with_tokens() says which",
            opened.model.name,
            state.truncated,
            state.answered,
            "the limit" if length is None else f"{length} tokens",
        )


async def fingerprint_in_thread(embedder: Embedder) -> str:
    """`Embedder.fingerprint` without holding up the loop: for the package itself. A lazy model is loaded for it."""
    await load(embedder)
    return await in_disk_thread(lambda: embedder.fingerprint)


def described(embedder: Embedder) -> str:
    """What an open model is, and what computes it, in the words of the log: for the package itself."""
    opened = embedder._require_open()  # noqa: SLF001 (it is no part of what users see)
    return _described(opened.engine, opened.model)


def _described(engine: Supervisor, model: PooledModel) -> str:
    """What was opened, and what computes it: for the log."""
    config, plan = model.config, engine.plan
    graph = ""
    if (file := config.spec.model_file) is not None:
        precision = precision_of(file)
        if precision == "fp32" and model.info.dynamically_quantized:
            precision = "quantised, though its name does not say so"
        origin = ", exported from its weights" if config.is_exported else ""
        graph = f": {config.directory / file} ({precision}{origin})"
    each = f"x {plan.threads} threads in this process" if plan.in_thread else f"workers x {plan.threads} threads"
    return f"{model.name}{graph} on {model.info.runs_on}, {engine.size} {each} on {plan.cores} cores"
