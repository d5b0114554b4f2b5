"""Sparse embeddings for LangChain's Qdrant store; `asyncembed.integrations.langchain` has the name, too.

```python
import asyncio

from langchain_qdrant import QdrantVectorStore, RetrievalMode
from qdrant_client import models

from asyncembed.integrations.langchain import AsyncembedEmbeddings

store = await asyncio.to_thread(
    QdrantVectorStore.from_texts,
    texts,
    embedding=AsyncembedEmbeddings("BAAI/bge-small-en-v1.5"),
    sparse_embedding=AsyncembedSparse("Qdrant/bm25"),
    retrieval_mode=RetrievalMode.HYBRID,
    sparse_vector_params={"modifier": models.Modifier.IDF},  # for BM25, BM42 and miniCOIL
    location=":memory:",
)
found = await store.asimilarity_search("what is backpressure?")
```

Needs `pip install "asyncembed[langchain-qdrant]"`.
"""

from typing import TYPE_CHECKING, Unpack

from asyncembed.embedders.sparse import SparseKeywords, SparseTextEmbedding
from asyncembed.integrations._models import Model

try:
    from langchain_qdrant.sparse_embeddings import SparseEmbeddings, SparseVector
except ImportError as _error:
    raise ImportError(
        "asyncembed.integrations.langchain_qdrant, as AsyncembedSparse of asyncembed.integrations.langchain, needs a "
        'package: pip install "asyncembed[langchain-qdrant]"'
    ) from _error

if TYPE_CHECKING:
    from asyncembed import sync
    from asyncembed.embedders.base import ModelName
    from asyncembed.results import SparseEmbedding

__all__ = ["AsyncembedSparse"]


class AsyncembedSparse(SparseEmbeddings):
    """Sparse embeddings, with a query's as the model computes them for queries.

    Args:
        model: A model, open or not, of `asyncembed` or `asyncembed.sync`; or a name, directory or spec, whose engine is
            shared with all who ask for the same, opens with the first call and closes with its last user.
        keep_alive: With a name: seconds after which the engine closes when nobody uses it, until the next call.
        options: With a name: keywords of `asyncembed.SparseTextEmbedding`.
    """

    def __init__(
        self,
        model: "SparseTextEmbedding | sync.SparseTextEmbedding | ModelName",
        *,
        keep_alive: float | None = None,
        **options: Unpack[SparseKeywords],
    ) -> None:
        self._model = Model(SparseTextEmbedding, model, keep_alive=keep_alive, **options)

    async def aembed_documents(self, texts: list[str]) -> list[SparseVector]:
        """A vector per text, in their order; bulk work, which queries go before."""
        async with self._model.anywhere.passage_embed(texts) as stream:
            # One at a time: each takes its time to make, and the stream lets others run between them.
            return [_langchains(vector) async for vector in stream]

    async def aembed_query(self, text: str) -> SparseVector:
        """The query's, as soon as a worker is free."""
        return _langchains(await self._model.anywhere.embed_query(text))

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """`aembed_documents`, which blocks the thread."""
        vectors = self._model.run(lambda model: model.passage_embed(texts).collect(), instead="aembed_documents")
        return [_langchains(vector) for vector in vectors]

    def embed_query(self, text: str) -> SparseVector:
        """`aembed_query`, which blocks the thread."""
        return _langchains(self._model.run(lambda model: model.embed_query(text), instead="aembed_query"))

    def __repr__(self) -> str:
        return f"AsyncembedSparse({self._model.name!r})"


def _langchains(vector: "SparseEmbedding") -> SparseVector:
    return SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())
