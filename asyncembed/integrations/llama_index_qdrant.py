"""LlamaIndex: its Qdrant store for hybrid search, dense and sparse, that never blocks the event loop.

```python
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from qdrant_client import AsyncQdrantClient

from asyncembed.integrations.llama_index import AsyncembedEmbedding

client = AsyncQdrantClient(":memory:")  # which has no index of payloads, and warns without index_doc_id=False
store = AsyncembedQdrantVectorStore("articles", aclient=client, sparse="Qdrant/bm25", index_doc_id=False)
index = VectorStoreIndex.from_vector_store(store, embed_model=AsyncembedEmbedding("BAAI/bge-small-en-v1.5"))
await index.ainsert_nodes([TextNode(text=text) for text in documents])
retriever = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=3, sparse_top_k=10)
found = await retriever.aretrieve("what is backpressure?")
```

Needs `pip install "asyncembed[llama-index-qdrant]"`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from asyncembed.integrations.llama_index import AsyncembedSparseEmbedding

try:
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.schema import BaseNode, MetadataMode
    from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode, VectorStoreQueryResult
    from qdrant_client.models import Modifier, SparseIndexParams, SparseVectorParams

    if TYPE_CHECKING:
        from llama_index.core.vector_stores.types import BasePydanticVectorStore
    else:
        from llama_index.vector_stores.qdrant import QdrantVectorStore
except ImportError as _error:
    raise ImportError(
        'asyncembed.integrations.llama_index_qdrant needs a package: pip install "asyncembed[llama-index-qdrant]"'
    ) from _error

if TYPE_CHECKING:
    from asyncembed import SparseTextEmbedding, sync
    from asyncembed.embedders.base import ModelName

    class QdrantVectorStore(BasePydanticVectorStore):
        """What the store is to a type checker: its own package does not tell."""

        _sparse_config: SparseVectorParams | None

        def __init__(self, collection_name: str, **keywords: Any) -> None: ...
        @property
        def client(self) -> Any: ...
        def add(self, nodes: Sequence[BaseNode], *arguments: Any, **keywords: Any) -> list[str]: ...
        async def async_add(self, nodes: Sequence[BaseNode], *arguments: Any, **keywords: Any) -> list[str]: ...
        def query(self, query: VectorStoreQuery, **keywords: Any) -> VectorStoreQueryResult: ...
        def delete(self, ref_doc_id: str, **keywords: Any) -> None: ...


__all__ = ["AsyncembedQdrantVectorStore"]

Columns = tuple[list[list[int]], list[list[float]]]
"""The indices and the weights of some texts, as the store takes them."""

_computed: ContextVar[dict[str, tuple[list[int], list[float]]] | None] = ContextVar("_computed", default=None)
"""What the store asks for in the call that runs: text → indices and weights."""


class AsyncembedQdrantVectorStore(QdrantVectorStore):
    """LlamaIndex's `QdrantVectorStore` in hybrid mode, its sparse vectors from a model of asyncembed.

    Its asynchronous methods await the sparse model before the store, which knows only functions that block, asks for
    the vectors. The collection that it makes weighs terms by their rarity where the model leaves that to Qdrant (BM25,
    BM42, miniCOIL).

    Args:
        collection_name: Is made with the first nodes, if it does not exist.
        sparse: An `AsyncembedSparseEmbedding`, or what that takes as its model: a model, or a name.
        keywords: Those of `QdrantVectorStore` (`client`, `aclient`, `batch_size`, ...).
    """

    _sparse: AsyncembedSparseEmbedding = PrivateAttr()

    def __init__(
        self,
        collection_name: str,
        *,
        sparse: "AsyncembedSparseEmbedding | SparseTextEmbedding | sync.SparseTextEmbedding | ModelName",
        **keywords: Any,
    ) -> None:
        embedding = sparse if isinstance(sparse, AsyncembedSparseEmbedding) else AsyncembedSparseEmbedding(sparse)
        super().__init__(
            collection_name,
            enable_hybrid=True,
            sparse_doc_fn=lambda texts: _looked_up(texts) or embedding.sparse_doc_fn(texts),
            sparse_query_fn=lambda queries: _looked_up(queries) or embedding.sparse_query_fn(queries),
            **keywords,
        )
        self._sparse = embedding

    @classmethod
    def class_name(cls) -> str:
        return "AsyncembedQdrantVectorStore"

    # ---------------------------------------------------------------- awaited

    async def async_add(self, nodes: Sequence[BaseNode], *arguments: Any, **keywords: Any) -> list[str]:
        """Store nodes that have their embeddings; gives their ids."""
        texts = _contents(nodes)
        with self._handing_over(texts, await self._sparse.asparse_doc_fn(texts)):
            return await super().async_add(list(nodes), *arguments, **keywords)

    async def aquery(self, query: VectorStoreQuery, **keywords: Any) -> VectorStoreQueryResult:
        """Search as `query.mode` says: dense, sparse or hybrid."""
        texts = _queries(query)
        with self._handing_over(texts, await self._sparse.asparse_query_fn(texts)):
            return await super().aquery(query, **keywords)

    # ---------------------------------------------------------------- that block

    def add(self, nodes: Sequence[BaseNode], *arguments: Any, **keywords: Any) -> list[str]:
        """`async_add`, which blocks the thread."""
        texts = _contents(nodes)
        with self._handing_over(texts, self._sparse.sparse_doc_fn(texts)):
            return super().add(list(nodes), *arguments, **keywords)

    @contextmanager
    def _handing_over(self, texts: list[str], columns: Columns) -> Iterator[None]:
        """In the block, the store has these vectors without computing."""
        if texts and self._sparse_config is None:
            modifier = Modifier.IDF if self._sparse.requires_idf else None
            self._sparse_config = SparseVectorParams(index=SparseIndexParams(), modifier=modifier)
        token = _computed.set(dict(zip(texts, zip(*columns, strict=True), strict=True)))
        try:
            yield
        finally:
            _computed.reset(token)


def _looked_up(texts: Sequence[str]) -> Columns | None:
    known = _computed.get()
    if known is None or not all(text in known for text in texts):
        return None
    return [known[text][0] for text in texts], [known[text][1] for text in texts]


def _contents(nodes: Sequence[BaseNode]) -> list[str]:
    return [node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]


def _queries(query: VectorStoreQuery) -> list[str]:
    """The text whose sparse vector the search needs, if it needs one."""
    is_sparse = query.mode in (VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.SPARSE)
    return [query.query_str] if is_sparse and query.query_str is not None else []
