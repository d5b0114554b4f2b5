"""Models for LangChain: embeddings, a reranker as a document compressor, a cross-encoder, sparse embeddings.

```python
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

async with TextEmbedding("BAAI/bge-small-en-v1.5") as model:
    store = InMemoryVectorStore(AsyncembedEmbeddings(model))
    await store.aadd_documents([Document(text) for text in texts])
    found = await store.asimilarity_search("what is backpressure?", k=50)
    reranker = AsyncembedReranker("Xenova/ms-marco-MiniLM-L-6-v2", top_n=3)
    best = await reranker.acompress_documents(found, "what is backpressure?")
```

Needs `pip install "asyncembed[langchain]"`, and `AsyncembedSparse` besides `"asyncembed[langchain-qdrant]"`.

What is awaited never blocks the event loop, and a caller that is cancelled withdraws its work. What blocks is for
threads: on the thread of an event loop it warns once, and where the model is open on that very loop it raises
`UsageError`. Some stores only ever call what blocks, in threads of their own, as LangChain's for Qdrant does in its
asynchronous methods. Its constructor embeds where it is called: in a coroutine, call it by `asyncio.to_thread`.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from asyncembed.checks import check_count
from asyncembed.embedders.cross_encoder import CrossEncoderKeywords, TextCrossEncoder
from asyncembed.embedders.text import DEFAULT_MODEL, TextEmbedding, TextKeywords
from asyncembed.integrations._models import Model, as_lists, listed

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.cross_encoders import BaseCrossEncoder
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings
    from pydantic import PrivateAttr
except ImportError as _error:
    raise ImportError(
        'asyncembed.integrations.langchain needs a package: pip install "asyncembed[langchain]"'
    ) from _error

if TYPE_CHECKING:
    from asyncembed import sync
    from asyncembed.embedders.base import ModelName
    from asyncembed.integrations.langchain_qdrant import AsyncembedSparse

__all__ = ["AsyncembedCrossEncoder", "AsyncembedEmbeddings", "AsyncembedReranker", "AsyncembedSparse"]


class AsyncembedEmbeddings(Embeddings):
    """Dense embeddings: lists of Python floats.

    Documents have the model's passage prompt and queries its query prompt, where it has them and they are switched on
    (`prompts=True` for a catalogued model). Queries go before documents, which are bulk work however few they are: a
    store may be filled while it is searched.

    Args:
        model: A model, open or not, of `asyncembed` or `asyncembed.sync`; or a name, directory or spec, whose engine is
            shared with all who ask for the same, opens with the first call and closes with its last user.
        keep_alive: With a name: seconds after which the engine closes when nobody uses it, until the next call.
        options: With a name: keywords of `asyncembed.TextEmbedding`.
    """

    def __init__(
        self,
        model: "TextEmbedding[Any] | sync.TextEmbedding[Any] | ModelName" = DEFAULT_MODEL,
        *,
        keep_alive: float | None = None,
        **options: Unpack[TextKeywords],
    ) -> None:
        self._model = Model[TextEmbedding[Any]](TextEmbedding, model, keep_alive=keep_alive, **options)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """A list per text, in their order."""
        return await as_lists(await self._model.anywhere.passage_embed(texts).collect())

    async def aembed_query(self, text: str) -> list[float]:
        """The query's, as soon as a worker is free."""
        vector: list[float] = (await self._model.anywhere.embed_query(text)).tolist()
        return vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """`aembed_documents`, which blocks the thread."""
        rows: list[list[float]] = self._model.run(
            lambda model: model.passage_embed(texts).collect(), instead="aembed_documents"
        ).tolist()
        return rows

    def embed_query(self, text: str) -> list[float]:
        """`aembed_query`, which blocks the thread."""
        vector: list[float] = self._model.run(lambda model: model.embed_query(text), instead="aembed_query").tolist()
        return vector

    def __repr__(self) -> str:
        return f"AsyncembedEmbeddings({self._model.name!r})"


class AsyncembedReranker(BaseDocumentCompressor):
    """The best documents for a query, best first, as a cross-encoder judges them.

    They are copies of those that come in, with the score in `metadata["relevance_score"]`: the model's logit, or 0 to 1
    with `activation="sigmoid"`.

    It is the `base_compressor` of a `ContextualCompressionRetriever`, for one.

    Args:
        model: As `AsyncembedEmbeddings` takes it, of the class `TextCrossEncoder`.
        top_n: How many documents are kept; None: all.
        keep_alive: With a name: seconds after which the engine closes when nobody uses it, until the next call.
        options: With a name: keywords of `asyncembed.TextCrossEncoder`.
    """

    top_n: int | None = 3
    _model: Model[TextCrossEncoder] = PrivateAttr()

    def __init__(
        self,
        model: "TextCrossEncoder | sync.TextCrossEncoder | ModelName",
        *,
        top_n: int | None = 3,
        keep_alive: float | None = None,
        **options: Unpack[CrossEncoderKeywords],
    ) -> None:
        check_count("top_n", top_n, minimum=1)
        super().__init__(top_n=top_n)  # type: ignore[call-arg]  # of this class, which pydantic knows
        self._model = Model(TextCrossEncoder, model, keep_alive=keep_alive, **options)

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002 (it runs nothing of LangChain's)
    ) -> Sequence[Document]:
        """The best of the documents, best first."""
        among = listed(documents)
        return _scored(among, await self._model.anywhere.rank(query, among, self.top_n, key=_text_of))

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002 (it runs nothing of LangChain's)
    ) -> Sequence[Document]:
        """`acompress_documents`, which blocks the thread."""
        among = listed(documents)
        ranked = self._model.run(
            lambda model: model.rank(query, among, self.top_n, key=_text_of), instead="acompress_documents"
        )
        return _scored(among, ranked)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        yield "model", self._model.name
        yield from super().__repr_args__()


def _text_of(document: Document) -> str:
    return document.page_content


def _scored(documents: Sequence[Document], ranked: Sequence[tuple[int, float]]) -> list[Document]:
    return [
        documents[position].model_copy(update={"metadata": {**documents[position].metadata, "relevance_score": score}})
        for position, score in ranked
    ]


class AsyncembedCrossEncoder(BaseCrossEncoder):
    """Scores of pairs (query, document), for what takes LangChain's cross-encoders; they have no asynchronous method.

    Args:
        model: As `AsyncembedEmbeddings` takes it, of the class `TextCrossEncoder`.
        keep_alive: With a name: seconds after which the engine closes when nobody uses it, until the next call.
        options: With a name: keywords of `asyncembed.TextCrossEncoder`.
    """

    def __init__(
        self,
        model: "TextCrossEncoder | sync.TextCrossEncoder | ModelName",
        *,
        keep_alive: float | None = None,
        **options: Unpack[CrossEncoderKeywords],
    ) -> None:
        self._model = Model(TextCrossEncoder, model, keep_alive=keep_alive, **options)

    async def ascore(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """A score per pair, in their order; goes before bulk work."""
        return await as_lists(await self._model.anywhere.rerank_pairs(text_pairs, priority="interactive").collect())

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """`ascore`, which blocks the thread."""
        scores: list[float] = self._model.run(
            lambda model: model.rerank_pairs(text_pairs, priority="interactive").collect(), instead="ascore"
        ).tolist()
        return scores

    def __repr__(self) -> str:
        return f"AsyncembedCrossEncoder({self._model.name!r})"


if not TYPE_CHECKING:  # type checkers know all names there are

    def __getattr__(name: str) -> object:
        # Its package takes seconds to import.
        if name == "AsyncembedSparse":
            from asyncembed.integrations.langchain_qdrant import AsyncembedSparse

            return AsyncembedSparse
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
