"""Embedding functions for Chroma: dense and sparse.

```python
import chromadb

client = chromadb.EphemeralClient()
function = AsyncembedEmbeddingFunction("BAAI/bge-small-en-v1.5")
collection = client.create_collection("articles", embedding_function=function)
collection.add(ids=["1", "2"], documents=["the way", "a day"])
print(collection.query(query_texts="a way", n_results=1)["ids"])
```

Needs `pip install "asyncembed[chroma]"`. The function's name and options are kept with the collection. A program that
has imported this module gets it back with `client.get_collection("articles")`.

A sparse function stands in the schema of a collection, and fills a key of the metadata from the documents; searching
by it needs a server of Chroma's that has an index of sparse vectors:

    schema = chromadb.Schema().create_index(
        chromadb.SparseVectorIndexConfig(
            embedding_function=AsyncembedSparseFunction("Qdrant/bm25"), source_key="#document", bm25=True
        ),
        key="terms",
    )

Chroma calls embedding functions synchronously, its asynchronous client too, on the event loop: there the function
blocks the loop, and warns once. Programs with a loop compute vectors themselves, and give them to Chroma:

    await collection.add(ids=ids, documents=texts, embeddings=list(await model.embed_documents(texts)))
    await collection.query(query_embeddings=[await model.embed_query(text)])
"""

from typing import TYPE_CHECKING, Any, Literal, Unpack

from asyncembed.embedders.sparse import SparseKeywords, SparseTextEmbedding
from asyncembed.embedders.text import DEFAULT_MODEL, TextEmbedding, TextKeywords
from asyncembed.integrations._models import Model, listed

try:
    from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, SparseEmbeddingFunction, SparseVectors
    from chromadb.base_types import SparseVector
    from chromadb.utils.embedding_functions import register_embedding_function, register_sparse_embedding_function
except ImportError as _error:
    raise ImportError('asyncembed.integrations.chroma needs a package: pip install "asyncembed[chroma]"') from _error

if TYPE_CHECKING:
    from asyncembed.embedders.base import ModelName
    from asyncembed.results import SparseEmbedding
    from asyncembed.sync import SparseTextEmbedding as SyncSparseTextEmbedding
    from asyncembed.sync import TextEmbedding as SyncTextEmbedding

__all__ = ["AsyncembedEmbeddingFunction", "AsyncembedSparseFunction"]


@register_embedding_function
class AsyncembedEmbeddingFunction(EmbeddingFunction[Documents]):
    """Vectors of documents, and, with the prompts and tasks of queries, of queries; from any thread.

    Args:
        model: A name, directory or spec, opened with the first call and shared with all who ask for the same; or a
            model, which stays the program's to open and close, on a loop in another thread. Only what is made of a name
            is kept with a collection; with anything else, give the function whenever the collection is opened.
        keep_alive: With a name: seconds after which the engine closes when nobody uses it, until the next call.
        options: With a name: keywords of `TextEmbedding`.

    Raises:
        OptionError: A model, or an option, that cannot work.
    """

    def __init__(
        self,
        model: "ModelName | TextEmbedding[Any] | SyncTextEmbedding[Any]" = DEFAULT_MODEL,
        *,
        keep_alive: float | None = None,
        **options: Unpack[TextKeywords],
    ) -> None:
        self._model = Model(TextEmbedding, model, keep_alive=keep_alive, **options)

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 (Chroma's name for it)
        """The vectors of documents: float32 (dim,) each."""
        texts = listed(input)
        return list(self._model.run(lambda model: model.embed_documents(texts), instead="model.embed_documents"))

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002 (Chroma's name for it)
        """The vectors of queries, likewise."""
        texts = listed(input)

        async def embed(model: TextEmbedding[Any]) -> Any:
            return await model.query_embed(texts, priority="interactive").collect()

        return list(self._model.run(embed, instead="model.embed_query"))

    @staticmethod
    def name() -> str:
        """What Chroma knows it by."""
        return "asyncembed"

    def default_space(self) -> Literal["cosine", "l2", "ip"]:
        """How vectors are compared in a collection that does not say it."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """The model's name and options, for the collection; `NotImplemented` where there is none, as Chroma has it."""
        return self._model.configuration() if self._model.is_configuration else NotImplemented

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "AsyncembedEmbeddingFunction":
        """The function that has this configuration."""
        return AsyncembedEmbeddingFunction(**config)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._model!r}>"


@register_sparse_embedding_function
class AsyncembedSparseFunction(SparseEmbeddingFunction[Documents]):
    """Sparse vectors of documents, and of queries as the model has them; from any thread.

    Args:
        model: As `AsyncembedEmbeddingFunction` has it, of the class `SparseTextEmbedding`. A schema is written down
            when its collection is made, so that there it has to be a name.
        keep_alive: With a name: seconds after which the engine closes when nobody uses it, until the next call.
        options: With a name: keywords of `SparseTextEmbedding`.

    Raises:
        OptionError: A model, or an option, that cannot work.
    """

    def __init__(
        self,
        model: "ModelName | SparseTextEmbedding | SyncSparseTextEmbedding",
        *,
        keep_alive: float | None = None,
        **options: Unpack[SparseKeywords],
    ) -> None:
        self._model = Model(SparseTextEmbedding, model, keep_alive=keep_alive, **options)

    def __call__(self, input: Documents) -> SparseVectors:  # noqa: A002 (Chroma's name for it)
        """The vectors of documents, indices ascending."""
        texts = listed(input)
        vectors = self._model.run(lambda model: model.embed_documents(texts), instead="model.embed_documents")
        return [_chromas(vector) for vector in vectors]

    def embed_query(self, input: Documents) -> SparseVectors:  # noqa: A002 (Chroma's name for it)
        """The vectors of queries, likewise."""
        texts = listed(input)

        async def embed(model: SparseTextEmbedding) -> "list[SparseEmbedding]":
            return await model.query_embed(texts, priority="interactive").collect()

        return [_chromas(vector) for vector in self._model.run(embed, instead="model.embed_query")]

    @staticmethod
    def name() -> str:
        """What Chroma knows it by."""
        return "asyncembed_sparse"

    def get_config(self) -> dict[str, Any]:
        """The model's name and options, for the schema.

        Raises:
            UsageError: It was given a model, which no schema can hold.
        """
        return self._model.configuration()

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "AsyncembedSparseFunction":
        """The function that has this configuration."""
        return AsyncembedSparseFunction(**config)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._model!r}>"


def _chromas(vector: "SparseEmbedding") -> SparseVector:
    order = vector.indices.argsort()
    return SparseVector(indices=vector.indices[order].tolist(), values=vector.values[order].tolist())
