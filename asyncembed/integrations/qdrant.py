"""Points for Qdrant: from one source, read once, through several models, into a collection.

```python
from qdrant_client import AsyncQdrantClient
from qdrant_client.models import Fusion, FusionQuery

client = AsyncQdrantClient(":memory:")
models = {"dense": text_model, "sparse": sparse_model}  # open, best in one pool

await client.create_collection("articles", **collection_config(**models))
done = await upload(client, "articles", points(documents, **models))
found = await client.query_points(
    "articles", prefetch=await prefetch("what is it about?", **models), query=FusionQuery(fusion=Fusion.RRF), limit=3
)
print(done.done, len(found.points))  # 3 3
```

Needs `pip install "asyncembed[qdrant]"`. The client's own inference computes on the event loop; here the workers do.
"""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from inspect import isawaitable, iscoroutinefunction
from itertools import islice
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypedDict, cast
from uuid import UUID

from anyio import CapacityLimiter, create_task_group, to_thread
from anyio.lowlevel import checkpoint

from asyncembed.bars import StreamProgress
from asyncembed.checkpoint import Checkpoint
from asyncembed.checks import check_callable, check_count, check_on_error
from asyncembed.embedders.base import Embedder, HasVectors
from asyncembed.embedders.hybrid import HybridTextEmbedding
from asyncembed.embedders.image import ImageEmbedding
from asyncembed.embedders.intake import as_source, check_source
from asyncembed.embedders.late_interaction import LateInteractionTextEmbedding
from asyncembed.embedders.multimodal import LateInteractionMultimodalEmbedding
from asyncembed.embedders.roles import TextRoles
from asyncembed.embedders.sparse import SparseTextEmbedding
from asyncembed.embedders.text import TextEmbedding
from asyncembed.errors import OF_ONE_INPUT, InputError, InputFailure, OptionError, UsageError, in_words
from asyncembed.feeding import ErrorHandler, Source, close_generator, hand_over, is_in_memory
from asyncembed.results import HybridEmbedding, SparseEmbedding
from asyncembed.stream import BatchStream, EmbeddingStream

try:
    from qdrant_client import AsyncQdrantClient
    from qdrant_client.models import (
        Distance,
        Modifier,
        MultiVectorComparator,
        MultiVectorConfig,
        PointStruct,
        Prefetch,
        SparseVector,
        SparseVectorParams,
        VectorParams,
    )
except ImportError as _error:
    raise ImportError('asyncembed.integrations.qdrant needs a package: pip install "asyncembed[qdrant]"') from _error

__all__ = [
    "BATCH_POINTS",
    "CollectionConfig",
    "PointStream",
    "Stored",
    "as_vector",
    "collection_config",
    "points",
    "prefetch",
    "upload",
]

BATCH_POINTS = 64
"""Of a batch, unless said otherwise: the client makes JSON of it on the event loop, which takes some milliseconds."""

DenseModel: TypeAlias = TextEmbedding[Any] | ImageEmbedding[Any]
MultivectorModel: TypeAlias = LateInteractionTextEmbedding[Any] | LateInteractionMultimodalEmbedding[Any]
PointId: TypeAlias = int | str | UUID
"""As Qdrant takes it: a number from 0 on, or a UUID."""


class CollectionConfig(TypedDict):
    """What `create_collection` takes."""

    vectors_config: VectorParams | Mapping[str, VectorParams]
    sparse_vectors_config: Mapping[str, SparseVectorParams] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """How far the store has come: what the checkpoint of `upload` is called with.

    Attributes:
        records: So many records from the source's beginning are through: in the store, or given to `on_error`. With
            `start=records` the next `points` go on behind them.
        points: So many of them this upload has stored.
        last_id: Of the last point that was stored; None before the first.
    """

    records: int
    points: int
    last_id: PointId | None


# ---------------------------------------------------------------- the collection, and queries


def collection_config(
    *,
    dense: DenseModel | Mapping[str, DenseModel] | None = None,
    sparse: SparseTextEmbedding | Mapping[str, SparseTextEmbedding] | None = None,
    multivector: MultivectorModel | Mapping[str, MultivectorModel] | None = None,
    hybrid: HybridTextEmbedding[Any] | None = None,
    distance: Distance = Distance.COSINE,
) -> CollectionConfig:
    """The parameters of a collection for what these models give: `client.create_collection(name, **config)`.

    Sizes are the models', multivectors are compared by MaxSim, and the index weighs the terms of those sparse models by
    their rarity that leave it to the store (BM25, BM42, miniCOIL).

    Args:
        dense: As `points` has it.
        sparse: As `points` has it.
        multivector: As `points` has it.
        hybrid: As `points` has it; open.
        distance: Of the dense vectors and multivectors.

    Raises:
        StateError: A model is neither catalogued nor open, so its size is not known.
    """
    vectors: dict[str, VectorParams] = {}
    terms: dict[str, SparseVectorParams] = {}
    for name, model in _named(dense, sparse, multivector, hybrid).items():
        if isinstance(model, HybridTextEmbedding):
            terms |= {output: SparseVectorParams() for output in model.outputs if output == "sparse"}
            vectors |= _params_of_hybrid(model, distance)
        elif isinstance(model, SparseTextEmbedding):
            terms[name] = SparseVectorParams(modifier=Modifier.IDF if model.requires_idf else None)
        else:
            vectors[name] = _vector_params(model, distance)
    return CollectionConfig(
        vectors_config=vectors[""] if vectors.keys() == {""} else vectors, sparse_vectors_config=terms or None
    )


async def prefetch(
    query: str,
    *,
    dense: TextEmbedding[Any] | Mapping[str, TextEmbedding[Any]] | None = None,
    sparse: SparseTextEmbedding | Mapping[str, SparseTextEmbedding] | None = None,
    multivector: MultivectorModel | Mapping[str, MultivectorModel] | None = None,
    hybrid: HybridTextEmbedding[Any] | None = None,
    limit: int = 20,
) -> list[Prefetch]:
    """One search per vector, of `limit` hits, for a hybrid query: the vectors of the query, as each model makes them.

    They are for `client.query_points(collection, prefetch=..., query=FusionQuery(fusion=Fusion.RRF))`. For pictures
    found by texts, `dense` is the text model that goes with the image model.
    """
    named = _named(dense, sparse, multivector, hybrid)
    found: dict[str, list[Prefetch]] = {}

    async def search(name: str, model: Embedder) -> None:
        if not isinstance(model, TextRoles | LateInteractionMultimodalEmbedding):
            raise OptionError(f"{model!r} has no vectors of texts: give the text model that goes with it")
        vectors = _by_name(name, await model.embed_query(query))
        found[name] = [Prefetch(query=vector, using=one or None, limit=limit) for one, vector in vectors.items()]

    if len(named) == 1:
        await search(*next(iter(named.items())))
    else:
        async with create_task_group() as group:
            for name, model in named.items():
                group.start_soon(search, name, model)
    return [one for name in named for one in found[name]]


def as_vector(result: Any) -> Any:
    """A model's result as Qdrant takes it: a `SparseVector`, a list of numbers, or of lists of them."""
    if isinstance(result, SparseEmbedding):
        return SparseVector(indices=result.indices.tolist(), values=result.values.tolist())
    return result.tolist()


def _by_name(name: str, result: Any) -> dict[str, Any]:
    """What a model gives as Qdrant takes it, by name: a hybrid model several vectors, whose names are its own."""
    if isinstance(result, HybridEmbedding):
        return {output: as_vector(getattr(result, output)) for output in result.outputs}
    return {name: as_vector(result)}


def _named(dense: object, sparse: object, multivector: object, hybrid: object) -> dict[str, Embedder]:
    """The models by the names of their vectors, the hybrid one by that of its kind."""
    named: dict[str, Embedder] = {}
    for kind, given, classes in (
        ("dense", dense, (TextEmbedding, ImageEmbedding)),
        ("sparse", sparse, (SparseTextEmbedding,)),
        ("multivector", multivector, (LateInteractionTextEmbedding, LateInteractionMultimodalEmbedding)),
    ):
        for name, model in ({} if given is None else given if isinstance(given, Mapping) else {kind: given}).items():
            if not isinstance(model, classes):
                names = " or ".join(one.__name__ for one in classes)
                raise OptionError(f"{kind}= is a {names} of asyncembed, or a mapping of such by name; got {model!r}")
            if name in named:
                raise OptionError(f"two models have vectors of the name {name!r}")
            named[name] = cast(Embedder, model)
    if hybrid is not None:
        if not isinstance(hybrid, HybridTextEmbedding):
            raise OptionError(f"hybrid= is a HybridTextEmbedding of asyncembed; got {hybrid!r}")
        if taken := named.keys() & {"", "hybrid", *hybrid.outputs}:
            raise OptionError(f"the hybrid model has a vector of its own for the name {min(taken)!r}")
        named["hybrid"] = hybrid
    if not named:
        raise OptionError("say what the vectors are of: dense=, sparse=, multivector= or hybrid=")
    return named


def _params_of_hybrid(model: HybridTextEmbedding[Any], distance: Distance) -> dict[str, VectorParams]:
    params: dict[str, VectorParams] = {}
    if "dense" in model.outputs:
        params["dense"] = VectorParams(size=model.embedding_size, distance=distance)
    size = model.token_embedding_size
    if "late_interaction" in model.outputs and size is not None:
        comparator = MultiVectorConfig(comparator=MultiVectorComparator.MAX_SIM)
        params["late_interaction"] = VectorParams(size=size, distance=distance, multivector_config=comparator)
    return params


def _vector_params(model: Embedder, distance: Distance) -> VectorParams:
    assert isinstance(model, HasVectors)
    is_multivector = isinstance(model, LateInteractionTextEmbedding | LateInteractionMultimodalEmbedding)
    return VectorParams(
        size=model.embedding_size,
        distance=distance,
        multivector_config=MultiVectorConfig(comparator=MultiVectorComparator.MAX_SIM) if is_multivector else None,
    )


# ---------------------------------------------------------------- points


def points(
    records: Source[Any],
    *,
    dense: DenseModel | Mapping[str, DenseModel] | None = None,
    sparse: SparseTextEmbedding | Mapping[str, SparseTextEmbedding] | None = None,
    multivector: MultivectorModel | Mapping[str, MultivectorModel] | None = None,
    hybrid: HybridTextEmbedding[Any] | None = None,
    key: Callable[[Any], Any] | None = None,
    id: Callable[[Any], PointId] | None = None,  # noqa: A002 (the store's name for it)
    payload: Callable[[Any], Mapping[str, Any] | None] | None = None,
    batch_size: int = BATCH_POINTS,
    max_wait: float | None = None,
    start: int | Checkpoint = 0,
    on_error: Literal["raise", "skip"] | ErrorHandler = "raise",
    progress: bool = False,
    total: int | None = None,
) -> "PointStream":
    """Make points of the records of any iterable or async iterable: a stream of batches, in the order of the source.

    The source is read once. Each record goes through one model after the other; all of them compute at the same time,
    each on other records, and none is further ahead than its `max_in_flight`. A record is there with all its vectors,
    or not at all. As with every stream, a slow store slows the source.

    Args:
        records: What is stored. One `str` is one record.
        dense: An open `TextEmbedding` or `ImageEmbedding`; its vectors have the name "dense". A mapping gives names,
            and allows for several; the name "" is the vector without one.
        sparse: An open `SparseTextEmbedding`, named "sparse" unless a mapping says otherwise.
        multivector: An open late interaction model, likewise, named "multivector".
        hybrid: An open `HybridTextEmbedding`: a vector of each kind that it gives, named "dense", "sparse" and
            "late_interaction", from one pass.
        key: Takes the text or image out of a record; called once for each model.
        id: From a record to a number or UUID; None: its number in the source, from 0 on. Called in a thread, as
            `payload` is.
        payload: From a record to what is kept with its vectors. None: of a mapping itself, of a text {"text": ...}, of
            anything else nothing.
        batch_size: Most points of a batch.
        max_wait: Seconds after which a batch is given with the points that are there: see `EmbeddingStream.batches`.
        start: How many records of the source are passed over, since they are stored: an open `Checkpoint`, by whose
            `key` they are known again, or a number: the last `Stored.records`. They are read, and not computed.
        on_error: What becomes of a record that has no vector, id or payload: "raise" ends the stream with the error,
            behind the points before it; "skip" leaves it out; a function leaves it out, too, and is called with the
            record and its error when its batch is taken.
        progress: Show a bar.
        total: How many records are to come, for the bar, where the source's length does not say so.

    Raises:
        OptionError: An argument that cannot work; also from the stream.
        StateError: A model is not open.
        InputError: The source is none; (from the stream) a record that has failed, with its index in the source.
    """
    check_on_error(on_error)
    if cast(object, on_error) == "return":
        raise OptionError('on_error is "raise", "skip" or a function here: no error can be in the place of a point')
    for name, function in (("key", key), ("id", id), ("payload", payload)):
        check_callable(name, function, what="a function of a record")
    passed = start.records if isinstance(start, Checkpoint) else start
    check_count("start", passed, minimum=0, may_be_none=False)
    source = as_source(records)
    check_source(source)
    named = _named(dense, sparse, multivector, hybrid)
    if passed and total is None and is_in_memory(source):
        total = max(0, len(cast("Sized", source)) - passed)
    source = start.rest(source) if isinstance(start, Checkpoint) else _from(source, start)
    streams = _streams(source, list(named.values()), key, progress=progress, total=total)
    maker = _Maker(list(named), id, payload)
    return PointStream(streams, streams[-1].batches(batch_size, max_wait), maker, start=passed, on_error=on_error)


class PointStream(AsyncIterator[list[PointStruct]]):
    """Batches of points: an async iterator; see `points`. Leaving `async with`, `aclose` or dropping it ends it."""

    def __init__(
        self,
        streams: "list[EmbeddingStream[Any, Any, Any]]",
        batches: BatchStream[Any, tuple[list[Any], list[Any]]],
        maker: "_Maker",
        *,
        start: int,
        on_error: Literal["raise", "skip"] | ErrorHandler,
    ) -> None:
        self._streams = streams
        self._batches = batches
        self._maker = maker
        self._on_error = on_error
        self._records = start
        self._failed = 0
        self._points = 0
        # Kept until points are made of it, so that a cancelled consumer loses nothing.
        self._taken: tuple[list[Any], list[Any]] | None = None
        self._error: InputFailure | None = None
        self._limiter = CapacityLimiter(1)

    @property
    def records(self) -> int:
        """How many records of the source are through with the batches so far; `start` and failed ones count."""
        return self._records

    def progress(self) -> StreamProgress:
        """How far it is, at any time, also after the end; the tokens are those of all models together."""
        each = [stream.progress() for stream in self._streams]
        return StreamProgress(
            read=each[0].read,
            done=self._points,
            failed=self._failed,
            tokens=sum(one.tokens for one in each),
            seconds=each[-1].seconds,
            total=each[-1].total,
        )

    async def __anext__(self) -> list[PointStruct]:
        while True:
            await self._raise_failure()
            if self._taken is None:
                self._taken = await anext(self._batches)
            made = await to_thread.run_sync(self._maker.make, self._records, *self._taken, limiter=self._limiter)
            self._taken = None
            if ready := await self._sorted(made):
                self._points += len(ready)
                return ready

    async def _sorted(self, made: "list[PointStruct | _Failed]") -> list[PointStruct]:
        """The points of a batch; its failures go where they belong, those that end it after the points before them."""
        ready: list[PointStruct] = []
        for one in made:
            if isinstance(one, _Failed):
                self._failed += 1
                if self._on_error == "raise":
                    self._error = one.error
                    break
                await self._hand_over(one)
            else:
                ready.append(one)
            self._records += 1
        return ready

    async def _hand_over(self, failed: "_Failed") -> None:
        if callable(self._on_error):
            try:
                hand_over(self._on_error, failed.record, failed.error)
            except BaseException:
                await self.aclose()
                raise

    async def _raise_failure(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            await self.aclose()
            raise error

    async def aclose(self) -> None:
        """End the stream and wait until its source is closed."""
        await self._batches.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._points} points of {self._records} records, {self._failed} failed>"


# ---------------------------------------------------------------- through several models


class _Carried:
    """A record on its way from model to model, with the results so far, or the error that it met."""

    __slots__ = ("error", "record", "results")

    def __init__(self, record: Any, result: Any) -> None:
        self.record = record
        self.results: list[Any] = [result]
        self.error: InputFailure | None = result if isinstance(result, OF_ONE_INPUT) else None

    def add(self, result: Any) -> None:
        """Take another model's result."""
        self.results.append(result)
        if self.error is None and isinstance(result, OF_ONE_INPUT):
            self.error = result


def _streams(
    source: Source[Any],
    models: list[Embedder],
    key: Callable[[Any], Any] | None,
    *,
    progress: bool,
    total: int | None,
) -> "list[EmbeddingStream[Any, Any, Any]]":
    """A stream of each model, each the source of the next one; each gives pairs of input and result."""
    streams: list[EmbeddingStream[Any, Any, Any]] = []
    for model in models:
        # Only the last one is looked at: what it has done is through all of them.
        shown = {"progress": progress and model is models[-1], "total": total}
        if not streams:
            stream = _documents(model)(source, key=key, on_error="return", **shown)
        else:
            total = streams[-1].progress().total
            shown["total"] = total
            carried = _carried(streams[-1], is_first=len(streams) == 1)
            stream = _documents(model)(carried, key=_key_of_carried(key), on_error="return", **shown)
        streams.append(stream.with_inputs())
    return streams


def _documents(model: Embedder) -> Callable[..., EmbeddingStream[Any, Any, Any]]:
    """The method for what is stored."""
    if isinstance(model, LateInteractionMultimodalEmbedding):
        return model.embed_image
    if isinstance(model, TextRoles):
        return cast("Callable[..., EmbeddingStream[Any, Any, Any]]", model.passage_embed)
    return cast(ImageEmbedding[Any], model).embed


async def _carried(stream: "EmbeddingStream[Any, Any, Any]", *, is_first: bool) -> AsyncGenerator[_Carried]:
    async with stream:
        while some := await stream.take_some():
            for record, result in some:
                if is_first:
                    yield _Carried(record, result)
                else:
                    record.add(result)
                    yield record


def _key_of_carried(key: Callable[[Any], Any] | None) -> Callable[[_Carried], Any]:
    def take(carried: _Carried) -> Any:
        if carried.error is not None:
            raise InputError("another model has no result for it")  # which keeps its place
        return carried.record if key is None else key(carried.record)

    return take


def _from(records: Source[Any], start: int) -> Source[Any]:
    """The records but for the first ones."""
    if not start:
        return records
    if hasattr(type(records), "__aiter__"):
        return _passing_over(cast("AsyncIterable[Any]", records), start)
    return islice(cast("Iterable[Any]", records), start, None)


async def _passing_over(records: AsyncIterable[Any], count: int) -> AsyncGenerator[Any]:
    iterator = aiter(records)
    try:
        async for record in iterator:
            if count:
                count -= 1
                await checkpoint()
            else:
                yield record
    finally:
        await close_generator(iterator)


# ---------------------------------------------------------------- from results to points


@dataclass(frozen=True, slots=True)
class _Failed:
    """In the place of a point."""

    record: Any
    error: InputFailure


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes points of records and their results, in a thread."""

    names: list[str]
    id: Callable[[Any], PointId] | None
    payload: Callable[[Any], Mapping[str, Any] | None] | None

    def make(self, number: int, records: list[Any], results: list[Any]) -> list[PointStruct | _Failed]:
        """For each record a point or its failure; `number` is that of the first one in the source."""
        return [
            self._one(number + position, record, result)
            for position, (record, result) in enumerate(zip(records, results, strict=True))
        ]

    def _one(self, number: int, record: Any, result: Any) -> PointStruct | _Failed:
        own, results, error = record, [result], None
        if isinstance(record, _Carried):  # which has the results of the models before the last one
            own, results, error = record.record, [*record.results, result], record.error
        if error is None and isinstance(result, OF_ONE_INPUT):
            error = result
        if error is None:
            try:
                return PointStruct(id=self._id_of(own, number), vector=self._vector(results), payload=self._kept(own))
            except InputError as met:
                error = met
            except Exception as met:  # noqa: BLE001 (the caller's own functions, and what the client says of a point)
                error = InputError(f"the record makes no point: {in_words(met)}")
                error.__cause__ = met
        if hasattr(error, "index"):
            error.index = number
        return _Failed(own, error)

    def _id_of(self, record: Any, number: int) -> PointId:
        return number if self.id is None else self.id(record)

    def _vector(self, results: list[Any]) -> Any:
        if self.names == [""]:
            return as_vector(results[0])
        named = [_by_name(name, result) for name, result in zip(self.names, results, strict=True)]
        return {name: vector for vectors in named for name, vector in vectors.items()}

    def _kept(self, record: Any) -> dict[str, Any] | None:
        kept = record if self.payload is None else self.payload(record)
        if self.payload is None and isinstance(record, str):
            return {"text": record}
        return dict(kept) if isinstance(kept, Mapping) else None


# ---------------------------------------------------------------- into the store


async def upload(
    client: AsyncQdrantClient,
    collection: str,
    batches: PointStream,
    *,
    checkpoint: Checkpoint | Callable[[Stored], Awaitable[object] | object] | None = None,
    wait: bool = True,
) -> StreamProgress:
    """Store all points of a stream, batch by batch, while the next ones are computed; returns how far it came.

    A batch that the store refuses ends it with the client's error, which has tried again as often as its own settings
    say; so does cancelling it. The checkpoint tells where to go on: a batch may come twice then, and never is one left
    out, so ids should be the same in each run.

    Args:
        client: Qdrant's asynchronous client.
        collection: Its name; see `collection_config`.
        batches: What `points` gives. It is closed in the end.
        checkpoint: An open `Checkpoint`, with which the `points` were started (`start=` of them); or a function, or
            coroutine function. Called after each batch that the store has acknowledged, in order, and in the end if
            records failed after that.
        wait: Whether the store acknowledges a batch only when it can be found.

    Raises:
        UsageError: The client is no asynchronous one; the points start elsewhere than the checkpoint says.
    """
    if not iscoroutinefunction(getattr(client, "upsert", None)):
        raise UsageError(f"upload() awaits its client: give it an AsyncQdrantClient; got {type(client).__name__}")
    if isinstance(checkpoint, Checkpoint):
        if checkpoint.records != batches.records:
            raise UsageError(
                f"the points start behind record {batches.records}, the checkpoint is at {checkpoint.records}: give "
                "points() the whole source, and the checkpoint as start="
            )
        await checkpoint.reach(batches.records)  # which nothing has come before, and says so if it cannot be
    stored, last_id, told = 0, None, batches.records
    async with batches:
        async for batch in batches:
            await client.upsert(collection, batch, wait=wait)
            stored, last_id, told = stored + len(batch), batch[-1].id, batches.records
            await _tell(checkpoint, Stored(records=told, points=stored, last_id=last_id))
        if batches.records != told:
            await _tell(checkpoint, Stored(records=batches.records, points=stored, last_id=last_id))
    return batches.progress()


async def _tell(checkpoint: Checkpoint | Callable[[Stored], Awaitable[object] | object] | None, stored: Stored) -> None:
    if isinstance(checkpoint, Checkpoint):
        await checkpoint.reach(stored.records)
        return
    told = None if checkpoint is None else checkpoint(stored)
    if isawaitable(told):
        await told
