"""Components for Haystack's pipelines: dense and sparse embedders for texts and documents, and a ranker.

```python
embedder = AsyncembedDocumentEmbedder("BAAI/bge-small-en-v1.5")
embedded = await embedder.run_async([Document(content="A full queue makes its writer wait.")])  # or run, without a loop
print(len(embedded["documents"][0].embedding))  # 384
await embedder.close_async()
```

Needs `pip install "asyncembed[haystack]"`. Each component takes as its first argument a model, open or not, of
`asyncembed` or `asyncembed.sync`; or a name, directory or spec, whose engine is shared with all who ask for the same,
opens with `warm_up` or the first run, and closes with its last user. With a name come `keep_alive=`, the seconds after
which the engine closes when nobody uses it, until the next run; and the keywords of the model's class.

`run_async` never blocks the event loop, and withdraws its work when it is cancelled. A component that was given a name
can be written into a file, and read with `Pipeline.load(file, allowed_modules=["asyncembed.*"])`.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from math import inf
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar, Unpack

from asyncembed.any_loop import only_open
from asyncembed.checks import check_bool, check_count, check_number, check_text, check_words
from asyncembed.embedders.base import Embedder, ModelName
from asyncembed.embedders.cross_encoder import CrossEncoderKeywords, TextCrossEncoder
from asyncembed.embedders.roles import TextRoles
from asyncembed.embedders.sparse import SparseKeywords, SparseTextEmbedding
from asyncembed.embedders.text import DEFAULT_MODEL, TextEmbedding, TextKeywords
from asyncembed.errors import InputError
from asyncembed.integrations._models import Model

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.dataclasses import SparseEmbedding
except ImportError as _error:
    raise ImportError(
        'asyncembed.integrations.haystack needs a package: pip install "asyncembed[haystack]"'
    ) from _error

if TYPE_CHECKING:
    from asyncembed import results, sync

__all__ = [
    "AsyncembedDocumentEmbedder",
    "AsyncembedRanker",
    "AsyncembedSparseDocumentEmbedder",
    "AsyncembedSparseTextEmbedder",
    "AsyncembedTextEmbedder",
]

EmbedderT = TypeVar("EmbedderT", bound=Embedder)

BATCH = 64
"""Documents that are made in one turn of the event loop, each with its vector: some milliseconds."""


# ---------------------------------------------------------------- results and inputs


class _Output(NamedTuple):
    """A kind of vector: what Haystack calls it, and makes of one of ours."""

    name: str
    of: Callable[[Any], Any]


def _sparse(vector: "results.SparseEmbedding") -> SparseEmbedding:
    return SparseEmbedding(indices=vector.indices.tolist(), values=vector.values.tolist())


DENSE = _Output("embedding", lambda vector: vector.tolist())
SPARSE = _Output("sparse_embedding", _sparse)


def _meta(model: Embedder, tokens: int) -> dict[str, Any]:
    return {"model": model.model_name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


class _TextOf:
    """What of a document is embedded: called with one, it gives the text."""

    def __init__(self, fields: Iterable[str] | None, separator: str, prefix: str = "", suffix: str = "") -> None:
        _check_texts(embedding_separator=separator)
        self._fields = check_words("meta_fields_to_embed", fields, what="names of fields") or ()
        self._separator = separator
        self._prefix = prefix
        self._suffix = suffix

    def parameters(self) -> dict[str, Any]:
        """As they are written down."""
        return {"meta_fields_to_embed": list(self._fields), "embedding_separator": self._separator}

    def __call__(self, document: Document) -> str:
        values = [str(document.meta[field]) for field in self._fields if document.meta.get(field) is not None]
        return self._prefix + self._separator.join([*values, document.content or ""]) + self._suffix


def _check_texts(**texts: object) -> None:
    for name, value in texts.items():
        check_text(name, value, may_be_none=False, may_be_empty=True)


def _check_documents(documents: object) -> None:
    if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
        raise InputError("expected a list of Haystack's documents; a text is for a text embedder")


# ---------------------------------------------------------------- what the five share
#
# `component` makes its class anew, so that `super()` does not work in what it decorates: bases are called by name.


class _Component(Generic[EmbedderT]):
    """A model, when its engine opens and closes, and how all of it is written down."""

    def __init__(self, model: Model[EmbedderT], **parameters: Any) -> None:
        self._model = model
        self._parameters = parameters
        self._is_warm = False

    def warm_up(self) -> None:
        """Open the model, if it is not open, instead of with the first run; pipelines do so."""
        if not self._is_warm:
            self._model.run(only_open, instead="warm_up_async")
            self._is_warm = True

    async def warm_up_async(self) -> None:
        """The same, without blocking the event loop."""
        if not self._is_warm:
            await self._model.anywhere.open()
            self._is_warm = True

    def close(self) -> None:
        """Give the engine back, if the model was given by name: it closes if nobody else uses it.

        The next run opens it again.
        """
        self._is_warm = False
        self._model.close()

    async def close_async(self) -> None:
        """The same, without blocking the event loop."""
        self._is_warm = False
        await self._model.aclose()

    def to_dict(self) -> dict[str, Any]:
        """Name, options and parameters, for files.

        Raises:
            UsageError: It was given a model or a spec, which no file can hold.
        """
        written = {**self._model.configuration(), **self._parameters}
        return default_to_dict(
            self, **{name: fspath(value) if isinstance(value, PathLike) else value for name, value in written.items()}
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The component that `to_dict` has written down."""
        return default_from_dict(cls, data)


# ---------------------------------------------------------------- texts


class _TextEmbedder(_Component[TextRoles[Any, Any]]):
    """A vector for a text, which is a query."""

    def __init__(self, model: Model[TextRoles[Any, Any]], output: _Output, *, prefix: str, suffix: str) -> None:
        _check_texts(prefix=prefix, suffix=suffix)
        _Component.__init__(self, model, prefix=prefix, suffix=suffix)
        self._output = output

    async def _embed(self, text: str, model: TextRoles[Any, Any]) -> dict[str, Any]:
        if not isinstance(text, str):
            raise InputError(f"expected a str, got {type(text).__name__}; documents are for a document embedder")
        whole = self._parameters["prefix"] + text + self._parameters["suffix"]
        result, tokens, _ = await model.embed_query(whole, with_tokens=True)
        return {self._output.name: self._output.of(result), "meta": _meta(model, tokens)}


@component
class AsyncembedTextEmbedder(_TextEmbedder):
    """A dense vector for a text, as a query: with the model's query prompt, where that is switched on.

    Args:
        model: See the module.
        prefix: Is put before each text, after the model's own prompt.
        suffix: Is put behind each text.
        keep_alive: See the module.
        options: With a name: keywords of `asyncembed.TextEmbedding`.
    """

    def __init__(
        self,
        model: "TextEmbedding[Any] | sync.TextEmbedding[Any] | ModelName" = DEFAULT_MODEL,
        *,
        prefix: str = "",
        suffix: str = "",
        keep_alive: float | None = None,
        **options: Unpack[TextKeywords],
    ) -> None:
        held = Model[TextRoles[Any, Any]](TextEmbedding, model, keep_alive=keep_alive, **options)
        _TextEmbedder.__init__(self, held, DENSE, prefix=prefix, suffix=suffix)

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """`embedding`, and `meta` with the model's name and the tokens used. Blocks the thread."""
        return self._model.run(partial(self._embed, text), instead="run_async")

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str) -> dict[str, Any]:
        """`embedding`, and `meta` with the model's name and the tokens used."""
        return await self._embed(text, self._model.anywhere)


@component
class AsyncembedSparseTextEmbedder(_TextEmbedder):
    """A sparse vector for a text, as a query.

    Args:
        model: See the module.
        prefix: Is put before each text.
        suffix: Is put behind each text.
        keep_alive: See the module.
        options: With a name: keywords of `asyncembed.SparseTextEmbedding`.
    """

    def __init__(
        self,
        model: "SparseTextEmbedding | sync.SparseTextEmbedding | ModelName",
        *,
        prefix: str = "",
        suffix: str = "",
        keep_alive: float | None = None,
        **options: Unpack[SparseKeywords],
    ) -> None:
        held = Model[TextRoles[Any, Any]](SparseTextEmbedding, model, keep_alive=keep_alive, **options)
        _TextEmbedder.__init__(self, held, SPARSE, prefix=prefix, suffix=suffix)

    @component.output_types(sparse_embedding=SparseEmbedding, meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """`sparse_embedding`, and `meta` with the model's name and the tokens used. Blocks the thread."""
        return self._model.run(partial(self._embed, text), instead="run_async")

    @component.output_types(sparse_embedding=SparseEmbedding, meta=dict[str, Any])
    async def run_async(self, text: str) -> dict[str, Any]:
        """`sparse_embedding`, and `meta` with the model's name and the tokens used."""
        return await self._embed(text, self._model.anywhere)


# ---------------------------------------------------------------- documents


class _DocumentEmbedder(_Component[TextRoles[Any, Any]]):
    """Documents with vectors: new ones, as a component must not change what it is given."""

    def __init__(
        self,
        model: Model[TextRoles[Any, Any]],
        output: _Output,
        *,
        prefix: str,
        suffix: str,
        meta_fields_to_embed: Iterable[str] | None,
        embedding_separator: str,
        progress_bar: bool,
    ) -> None:
        _check_texts(prefix=prefix, suffix=suffix)
        check_bool("progress_bar", progress_bar)
        self._text = _TextOf(meta_fields_to_embed, embedding_separator, prefix, suffix)
        self._output = output
        _Component.__init__(
            self, model, prefix=prefix, suffix=suffix, **self._text.parameters(), progress_bar=progress_bar
        )

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """New `documents`, each with its vector, and `meta` with the model's name and the tokens used.

        Blocks the thread.
        """
        return self._model.run(partial(self._embed, documents), instead="run_async")

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """New `documents`, each with its vector, and `meta` with the model's name and the tokens used."""
        return await self._embed(documents, self._model.anywhere)

    async def _embed(self, documents: list[Document], model: TextRoles[Any, Any]) -> dict[str, Any]:
        _check_documents(documents)
        embedded: list[Document] = []
        tokens = 0
        stream = model.passage_embed(documents, key=self._text, progress=self._parameters["progress_bar"])
        async with stream.with_tokens().with_inputs().batches(BATCH) as batches:
            async for some, counted in batches:
                embedded += [
                    replace(document, **{self._output.name: self._output.of(result)})
                    for document, result in zip(some, counted.results, strict=True)
                ]
                tokens += int(counted.tokens.sum())
        return {"documents": embedded, "meta": _meta(model, tokens)}


@component
class AsyncembedDocumentEmbedder(_DocumentEmbedder):
    """Documents with dense vectors: with the model's passage prompt, where that is switched on.

    They are bulk work: the queries of others go first.

    Args:
        model: See the module.
        prefix: Is put before each text, after the model's own prompt.
        suffix: Is put behind each text.
        meta_fields_to_embed: Fields of a document's `meta` that are put before its content, where it has them.
        embedding_separator: Is put between these and the content.
        progress_bar: Show a bar on stderr.
        keep_alive: See the module.
        options: With a name: keywords of `asyncembed.TextEmbedding`.
    """

    def __init__(
        self,
        model: "TextEmbedding[Any] | sync.TextEmbedding[Any] | ModelName" = DEFAULT_MODEL,
        *,
        prefix: str = "",
        suffix: str = "",
        meta_fields_to_embed: Iterable[str] | None = None,
        embedding_separator: str = "\n",
        progress_bar: bool = False,
        keep_alive: float | None = None,
        **options: Unpack[TextKeywords],
    ) -> None:
        _DocumentEmbedder.__init__(
            self,
            Model[TextRoles[Any, Any]](TextEmbedding, model, keep_alive=keep_alive, **options),
            DENSE,
            prefix=prefix,
            suffix=suffix,
            meta_fields_to_embed=meta_fields_to_embed,
            embedding_separator=embedding_separator,
            progress_bar=progress_bar,
        )


@component
class AsyncembedSparseDocumentEmbedder(_DocumentEmbedder):
    """Documents with sparse vectors. They are bulk work: the queries of others go first.

    Args:
        model: See the module.
        prefix: Is put before each text.
        suffix: Is put behind each text.
        meta_fields_to_embed: Fields of a document's `meta` that are put before its content, where it has them.
        embedding_separator: Is put between these and the content.
        progress_bar: Show a bar on stderr.
        keep_alive: See the module.
        options: With a name: keywords of `asyncembed.SparseTextEmbedding`.
    """

    def __init__(
        self,
        model: "SparseTextEmbedding | sync.SparseTextEmbedding | ModelName",
        *,
        prefix: str = "",
        suffix: str = "",
        meta_fields_to_embed: Iterable[str] | None = None,
        embedding_separator: str = "\n",
        progress_bar: bool = False,
        keep_alive: float | None = None,
        **options: Unpack[SparseKeywords],
    ) -> None:
        _DocumentEmbedder.__init__(
            self,
            Model[TextRoles[Any, Any]](SparseTextEmbedding, model, keep_alive=keep_alive, **options),
            SPARSE,
            prefix=prefix,
            suffix=suffix,
            meta_fields_to_embed=meta_fields_to_embed,
            embedding_separator=embedding_separator,
            progress_bar=progress_bar,
        )


@component
class AsyncembedRanker(_Component[TextCrossEncoder]):
    """The best documents for a query, best first, as a cross-encoder judges them; of documents of one id, one.

    Args:
        model: See the module.
        top_k: How many documents are left; None: all.
        score_threshold: Documents with a lower score are left out.
        meta_fields_to_embed: Fields of a document's `meta` that are put before its content, where it has them.
        embedding_separator: Is put between these and the content.
        keep_alive: See the module.
        options: With a name: keywords of `asyncembed.TextCrossEncoder`; `activation="sigmoid"` makes scores 0 to 1.
    """

    def __init__(
        self,
        model: "TextCrossEncoder | sync.TextCrossEncoder | ModelName",
        *,
        top_k: int | None = 10,
        score_threshold: float | None = None,
        meta_fields_to_embed: Iterable[str] | None = None,
        embedding_separator: str = "\n",
        keep_alive: float | None = None,
        **options: Unpack[CrossEncoderKeywords],
    ) -> None:
        check_count("top_k", top_k, minimum=1)
        check_number("score_threshold", score_threshold, minimum=-inf, may_be_none=True)
        self._text = _TextOf(meta_fields_to_embed, embedding_separator)
        _Component.__init__(
            self,
            Model[TextCrossEncoder](TextCrossEncoder, model, keep_alive=keep_alive, **options),
            top_k=top_k,
            score_threshold=score_threshold,
            **self._text.parameters(),
        )

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """New `documents`, each with its `score`, best first; `top_k` instead of the constructor's.

        Blocks the thread.
        """
        return self._model.run(partial(self._rank, query, documents, top_k), instead="run_async")

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """New `documents`, each with its `score`, best first; `top_k` instead of the constructor's."""
        return await self._rank(query, documents, top_k, self._model.anywhere)

    async def _rank(
        self, query: str, documents: list[Document], top_k: int | None, model: TextCrossEncoder
    ) -> dict[str, Any]:
        _check_documents(documents)
        unique = list({document.id: document for document in documents}.values())
        limit = self._parameters["top_k"] if top_k is None else top_k
        least = self._parameters["score_threshold"]
        ranked = await model.rank(query, unique, limit, key=self._text)
        return {
            "documents": [
                replace(unique[position], score=score) for position, score in ranked if least is None or score >= least
            ]
        }
