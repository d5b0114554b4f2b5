"""LlamaIndex: dense and sparse embedding models, and a reranker, for indexes, ingestion, retrievers and query engines.

```python
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

async with TextEmbedding("BAAI/bge-small-en-v1.5") as model:
    index = VectorStoreIndex([], embed_model=AsyncembedEmbedding(model))
    await index.ainsert_nodes([TextNode(text=text) for text in documents])
    found = await index.as_retriever(similarity_top_k=50).aretrieve("what is backpressure?")
    reranker = AsyncembedRerank("Xenova/ms-marco-MiniLM-L-6-v2", top_n=2)
    best = await reranker.apostprocess_nodes(found, query_str="what is backpressure?")
```

Needs `pip install "asyncembed[llama-index]"`. Each class takes as `model` either a model of asyncembed, open or not,
or a model's name with the keywords of its class; by name, all who ask for the same share one engine, which opens with
the first call. All classes can be used by any event loops and threads at once.

What awaits never blocks the event loop. The synchronous methods block the thread that calls them; on the thread of an
event loop they warn once, and where the model is open on that very loop they raise `UsageError`. LlamaIndex calls them
in places where one may not expect it: `VectorStoreIndex(nodes)` embeds synchronously, and `use_async=True` and
`index.as_query_engine().query()` block the loop that they are called on. In coroutines there are `ainsert_nodes`,
`IngestionPipeline.arun`, `aretrieve` and `aquery`.
"""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import uuid4

from asyncembed.embedders.base import Embedder, ModelName
from asyncembed.embedders.cross_encoder import TextCrossEncoder
from asyncembed.embedders.sparse import SparseTextEmbedding
from asyncembed.embedders.text import DEFAULT_MODEL, TextEmbedding
from asyncembed.errors import OF_ONE_INPUT, InputError, OptionError, UsageError
from asyncembed.integrations._models import Model, as_lists, listed
from asyncembed.results import SparseEmbedding

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
    from llama_index.core.bridge.pydantic import BaseModel, Field, PrivateAttr
    from llama_index.core.callbacks.schema import CBEventType, EventPayload
    from llama_index.core.instrumentation import Dispatcher, get_dispatcher
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
except ImportError as _error:
    raise ImportError(
        'asyncembed.integrations.llama_index needs a package: pip install "asyncembed[llama-index]"'
    ) from _error

if TYPE_CHECKING:
    from asyncembed import sync

EmbedderT = TypeVar("EmbedderT", bound=Embedder)
KindT = TypeVar("KindT", bound=BaseModel)

__all__ = ["AsyncembedEmbedding", "AsyncembedRerank", "AsyncembedSparseEmbedding"]

BATCH_SIZE = 256
"""Texts that LlamaIndex hands over at once: its 10 would be a call of its own each."""

HANDED = "model_digest"
"""Stands in dicts for a model that was handed over."""

dispatcher: Dispatcher = get_dispatcher(__name__)


_whole: ContextVar[list[str] | None] = ContextVar("_whole", default=None)
"""All texts of the call that runs: LlamaIndex hands over some at a time."""


class _ManyTexts:
    """The calls of LlamaIndex's that take texts one by one: a `str` is one text, and not its characters."""

    def get_text_embedding_batch(self, texts: list[str], *arguments: Any, **keywords: Any) -> list[Any]:
        """An embedding per text. Of an error, `index` is its text's; blocks the thread that calls it."""
        with _all_of(texts) as whole:
            return cast("list[Any]", cast(Any, super()).get_text_embedding_batch(whole, *arguments, **keywords))

    async def aget_text_embedding_batch(self, texts: list[str], *arguments: Any, **keywords: Any) -> list[Any]:
        """`get_text_embedding_batch`, awaited."""
        with _all_of(texts) as whole:
            return cast("list[Any]", await cast(Any, super()).aget_text_embedding_batch(whole, *arguments, **keywords))

    def get_agg_embedding_from_queries(self, queries: list[str], *arguments: Any, **keywords: Any) -> Any:
        """One embedding of several queries, their mean; blocks the thread that calls it."""
        return cast(Any, super()).get_agg_embedding_from_queries(listed(queries), *arguments, **keywords)

    async def aget_agg_embedding_from_queries(self, queries: list[str], *arguments: Any, **keywords: Any) -> Any:
        """`get_agg_embedding_from_queries`, awaited."""
        return await cast(Any, super()).aget_agg_embedding_from_queries(listed(queries), *arguments, **keywords)


@contextmanager
def _all_of(texts: list[str]) -> Iterator[list[str]]:
    whole = listed(texts)
    token = _whole.set(whole)
    try:
        yield whole
    finally:
        _whole.reset(token)


@contextmanager
def _numbered(some: list[str]) -> Iterator[None]:
    """Have an error in the block carry the number of its text among all: of the first that is the same, which fails."""
    try:
        yield
    except OF_ONE_INPUT as error:
        whole = _whole.get()
        if whole is not None and error.index is not None:
            text = some[error.index]
            error.index = next((number for number, one in enumerate(whole) if one is text), error.index)
        raise


class AsyncembedEmbedding(_ManyTexts, BaseEmbedding):
    """Dense embeddings for LlamaIndex: lists of floats, queries with the query prompt, texts with that of passages.

    Prompts are those of the model, where they are switched on: see `asyncembed.TextEmbedding`. Texts of an ingestion
    let queries go first.

    With a model that is open on the running event loop, a synchronous query in a coroutine (`retriever.retrieve(...)`)
    would wait for itself for ever: it raises `UsageError` at once; await `aretrieve` there.

    It pickles as configuration: in the worker processes of `IngestionPipeline.run(num_workers=2)` it opens a model of
    its own, in each of them. Asyncembed has worker processes itself (`workers=`), so that this makes nothing faster.

    Args:
        model: A `TextEmbedding`, of `asyncembed` or `asyncembed.sync`; or a name, directory or spec, as it takes them.
        embed_batch_size: Texts per call, as LlamaIndex counts them: batches for the model are made by asyncembed.
        options: With a name: the keywords of `asyncembed.TextEmbedding`, and `keep_alive`. The fields of LlamaIndex's
            `BaseEmbedding` (`callback_manager`, `embeddings_cache`, `rate_limiter`, `num_workers`) may be among them.

    Raises:
        OptionError: An unknown keyword, or a value that cannot work.
    """

    options: dict[str, Any] = Field(default_factory=dict, description="Keywords of the model, if it is given by name.")

    _model: Model[TextEmbedding[Any]] = PrivateAttr()
    _mark: str = PrivateAttr(default_factory=lambda: uuid4().hex)

    def __init__(
        self,
        model: "TextEmbedding[Any] | sync.TextEmbedding[Any] | ModelName | None" = None,
        *,
        embed_batch_size: int = BATCH_SIZE,
        **options: Any,
    ) -> None:
        made, fields = _made(type(self), TextEmbedding, model, options, default=DEFAULT_MODEL)
        super().__init__(embed_batch_size=embed_batch_size, **fields)
        self._model = made

    @classmethod
    def class_name(cls) -> str:
        return "AsyncembedEmbedding"

    def to_dict(self, **keywords: Any) -> dict[str, Any]:
        """As LlamaIndex writes it down, and tells by it whether what an ingestion has cached is of the same model."""
        return super().to_dict(**keywords) | _what_dicts_cannot_hold(self._model, self._mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self._model, _configuration_of(self))

    # ---------------------------------------------------------------- awaited

    async def _aget_query_embedding(self, query: str) -> list[float]:
        vector = await self._model.anywhere.embed_query(query)
        return cast(list[float], vector.tolist())

    async def _aget_text_embedding(self, text: str) -> list[float]:
        (vector,) = await self._model.anywhere.embed_documents([text])
        return cast(list[float], vector.tolist())

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        with _numbered(texts):
            return await as_lists(await self._model.anywhere.passage_embed(texts).collect())

    # ---------------------------------------------------------------- that block

    def _get_query_embedding(self, query: str) -> list[float]:
        vector = self._model.run(lambda model: model.embed_query(query), instead="aget_query_embedding")
        return cast(list[float], vector.tolist())

    def _get_text_embedding(self, text: str) -> list[float]:
        (vector,) = self._model.run(lambda model: model.embed_documents([text]), instead="aget_text_embedding")
        return cast(list[float], vector.tolist())

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        with _numbered(texts):
            vectors = self._model.run(
                lambda model: model.passage_embed(texts).collect(), instead="aget_text_embedding_batch"
            )
        return cast(list[list[float]], vectors.tolist())


# ---------------------------------------------------------------- sparse


class AsyncembedSparseEmbedding(_ManyTexts, BaseSparseEmbedding):
    """Sparse embeddings (BM25, SPLADE, ...) for LlamaIndex: dicts from index to weight.

    For hybrid search in Qdrant see `asyncembed.integrations.llama_index_qdrant`. LlamaIndex's own `QdrantVectorStore`
    takes two functions, `sparse_doc_fn` and `sparse_query_fn`, and calls them on the event loop, also in its
    asynchronous methods: that blocks the loop, and needs a model given by name.

    Args:
        model: A `SparseTextEmbedding`, of `asyncembed` or `asyncembed.sync`; or a name, directory or spec.
        embed_batch_size: Texts per call, as LlamaIndex counts them: batches for the model are made by asyncembed.
        options: With a name: the keywords of `asyncembed.SparseTextEmbedding`, and `keep_alive`; and LlamaIndex's
            `num_workers`.

    Raises:
        OptionError: An unknown keyword, or a value that cannot work.
    """

    options: dict[str, Any] = Field(default_factory=dict, description="Keywords of the model, if it is given by name.")

    _model: Model[SparseTextEmbedding] = PrivateAttr()

    def __init__(
        self,
        model: "SparseTextEmbedding | sync.SparseTextEmbedding | ModelName | None" = None,
        *,
        embed_batch_size: int = BATCH_SIZE,
        **options: Any,
    ) -> None:
        made, fields = _made(type(self), SparseTextEmbedding, model, options)
        super().__init__(embed_batch_size=embed_batch_size, **fields)
        self._model = made

    @classmethod
    def class_name(cls) -> str:
        return "AsyncembedSparseEmbedding"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self._model, _configuration_of(self))

    # ---------------------------------------------------------------- awaited

    async def _aget_query_embedding(self, query: str) -> dict[int, float]:
        return _as_dict(await self._model.anywhere.embed_query(query))

    async def _aget_text_embedding(self, text: str) -> dict[int, float]:
        return _as_dict((await self._model.anywhere.embed_documents([text]))[0])

    async def _aget_text_embeddings(self, texts: list[str]) -> list[dict[int, float]]:
        with _numbered(texts):
            return [_as_dict(vector) async for vector in self._model.anywhere.passage_embed(texts)]

    # ---------------------------------------------------------------- that block

    def _get_query_embedding(self, query: str) -> dict[int, float]:
        return _as_dict(self._model.run(lambda model: model.embed_query(query), instead="aget_query_embedding"))

    def _get_text_embedding(self, text: str) -> dict[int, float]:
        (vector,) = self._model.run(lambda model: model.embed_documents([text]), instead="aget_text_embedding")
        return _as_dict(vector)

    def _get_text_embeddings(self, texts: list[str]) -> list[dict[int, float]]:
        with _numbered(texts):
            return list(map(_as_dict, self._passages(texts, "aget_text_embedding_batch")))

    def sparse_doc_fn(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """Indices and weights of documents, for the Qdrant store; blocks the thread that calls it."""
        return _as_columns(self._passages(texts, "aget_text_embedding_batch"))

    def sparse_query_fn(self, queries: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """Indices and weights of queries, for the Qdrant store; blocks the thread that calls it."""
        vectors = self._model.run(lambda model: model.query_embed(queries).collect(), instead="aget_query_embedding")
        return _as_columns(vectors)

    async def asparse_doc_fn(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """`sparse_doc_fn`, awaited."""
        return _as_columns([vector async for vector in self._model.anywhere.passage_embed(texts)])

    async def asparse_query_fn(self, queries: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """`sparse_query_fn`, awaited; goes before bulk work."""
        stream = self._model.anywhere.query_embed(queries, priority="interactive")
        return _as_columns([vector async for vector in stream])

    @property
    def requires_idf(self) -> bool:
        """Whether the store is to weigh terms by their rarity; of most models it is known once they are open."""
        return self._model.anywhere.requires_idf

    def _passages(self, texts: list[str], instead: str) -> list[SparseEmbedding]:
        return self._model.run(lambda model: model.passage_embed(texts).collect(), instead=instead)


def _as_dict(vector: SparseEmbedding) -> dict[int, float]:
    return dict(zip(vector.indices.tolist(), vector.values.tolist(), strict=True))


def _as_columns(vectors: list[SparseEmbedding]) -> tuple[list[list[int]], list[list[float]]]:
    return [vector.indices.tolist() for vector in vectors], [vector.values.tolist() for vector in vectors]


# ---------------------------------------------------------------- reranking


class AsyncembedRerank(BaseNodePostprocessor):
    """A reranker for LlamaIndex: the nodes that answer the query best, best first, with its scores.

    The nodes that come in, and their scores, stay as they are.

    Args:
        model: A `TextCrossEncoder`, of `asyncembed` or `asyncembed.sync`; or a name, directory or spec.
        top_n: How many nodes are left; None: all of them.
        options: With a name: the keywords of `asyncembed.TextCrossEncoder`, and `keep_alive`; and LlamaIndex's
            `callback_manager`.

    Raises:
        OptionError: An unknown keyword, or a value that cannot work.
        ValueError: (from calls) There is no query.
    """

    model_name: str = Field(description="The name of the reranker.")
    top_n: int | None = Field(default=None, description="How many nodes are left.", gt=0)
    options: dict[str, Any] = Field(default_factory=dict, description="Keywords of the model, if it is given by name.")

    _model: Model[TextCrossEncoder] = PrivateAttr()

    def __init__(
        self,
        model: "TextCrossEncoder | sync.TextCrossEncoder | ModelName | None" = None,
        *,
        top_n: int | None = None,
        **options: Any,
    ) -> None:
        made, fields = _made(type(self), TextCrossEncoder, model, options)
        fields["top_n"] = top_n
        super().__init__(**fields)
        self._model = made

    @classmethod
    def class_name(cls) -> str:
        return "AsyncembedRerank"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self._model, _configuration_of(self))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        texts = _contents(nodes)
        with self._told(nodes, query_bundle) as (query, told):
            return told(await self._model.anywhere.rank(query, texts, self.top_n))

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        texts = _contents(nodes)
        with self._told(nodes, query_bundle) as (query, told):
            return told(
                self._model.run(lambda model: model.rank(query, texts, self.top_n), instead="apostprocess_nodes")
            )

    @contextmanager
    def _told(
        self, nodes: list[NodeWithScore], bundle: QueryBundle | None
    ) -> "Iterator[tuple[str, Callable[[list[tuple[int, float]]], list[NodeWithScore]]]]":
        """Tell LlamaIndex of the reranking; gives the query, and what makes nodes of the model's answer."""
        if bundle is None:
            raise ValueError("a reranker needs the query: give query_bundle= or query_str=")
        query = bundle.query_str
        dispatcher.event(
            ReRankStartEvent(query=query, nodes=nodes, top_n=self.top_n or len(nodes), model_name=self.model_name)
        )
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model_name,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: self.top_n,
        }
        best: list[NodeWithScore] = []

        def told(ranked: list[tuple[int, float]]) -> list[NodeWithScore]:
            best.extend(NodeWithScore(node=nodes[position].node, score=score) for position, score in ranked)
            event.on_end(payload={EventPayload.NODES: best})
            dispatcher.event(ReRankEndEvent(nodes=best))
            return best

        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            yield query, told


def _contents(nodes: list[NodeWithScore]) -> list[str]:
    _check_nodes(nodes)
    return [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]


def _check_nodes(nodes: object) -> None:
    if not isinstance(nodes, list) or not all(isinstance(node, NodeWithScore) for node in nodes):
        raise InputError("expected a list of LlamaIndex's NodeWithScore, as a retriever gives them")


# ---------------------------------------------------------------- what the three share


def _made(
    kind: type[BaseModel],
    model_kind: type[EmbedderT],
    model: object,
    keywords: dict[str, Any],
    *,
    default: str | None = None,
) -> tuple[Model[EmbedderT], dict[str, Any]]:
    """The model that a constructor is asked for, and what LlamaIndex is to know: the fields among the keywords.

    `from_dict` gives the fields as `to_dict` has written them.
    """
    if HANDED in keywords and model is None:
        raise OptionError("this was made of a model, which a dict cannot hold: from_dict(data, model=...)")
    keywords.pop(HANDED, None)
    fields = {name: keywords.pop(name) for name in kind.model_fields if name in keywords}
    options: dict[str, Any] = {**fields.pop("options", {}), **keywords}
    name = fields.pop("model_name", None)
    if isinstance(model, Model):
        made = model  # out of a pickle
    else:
        made = Model(model_kind, next((one for one in (model, name, default) if one is not None), None), **options)
    return made, {**fields, "model_name": made.name, "options": options}


def _what_dicts_cannot_hold(model: Model[Any], mark: str) -> dict[str, str]:
    """What tells a model that was handed over from others of its name, where these are written down.

    One that cannot be pickled, as it has a pool, is only ever equal to itself: it has a mark.
    """
    try:
        model.configuration()
    except UsageError:
        try:
            return {HANDED: sha256(pickle.dumps(model)).hexdigest()}
        except Exception:  # noqa: BLE001 (whatever a foreign object raises)
            return {HANDED: mark}
    return {}


def _configuration_of(component: BaseModel) -> dict[str, Any]:
    """The fields that LlamaIndex would write down, as they are: no callbacks, no rate limiter, which stay here."""
    fields = {
        name: getattr(component, name) for name, field in type(component).model_fields.items() if not field.exclude
    }
    del fields["model_name"]
    return fields


def _again(kind: Callable[..., KindT], model: Model[Any], fields: dict[str, Any]) -> KindT:
    return kind(model, **fields)
