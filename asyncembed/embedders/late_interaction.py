"""Late interaction text embeddings: a vector per token, compared by MaxSim."""

import os
from collections.abc import Callable, Iterable
from typing import Literal, Unpack

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.checks import check_choice
from asyncembed.embedders.base import Embedder, InputT, Key, PriorityName, as_source, measure_text
from asyncembed.encoders.encoder import Call, Mode
from asyncembed.options import OptionKeywords
from asyncembed.results import MATRICES, Matrix
from asyncembed.stream import EmbeddingStream, OnError, Source


class LateInteractionTextEmbedding(Embedder):
    """ColBERT and its descendants: for each text a matrix with a vector per token.

    ```python
    async with LateInteractionTextEmbedding("answerdotai/answerai-colbert-small-v1") as model:
        documents = await model.embed(texts).collect()           # a list of arrays (tokens, dim)
        query = await model.embed_query("what is backpressure?")  # (tokens, dim)
        scores = maxsim_scores(query, documents)
    ```

    Queries have matrices of their own: `query_embed` and `embed_query` for them, `embed` for documents. A matrix has no
    rows for padding, and is what its text alone gives. `maxsim_scores` compares them, `Muvera` makes each one vector.

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`.
        truncate: Cut inputs over the length limit; False makes such an input an `InputError`.
        dtype: "float32" or "float16".
        options: The keywords that all six classes share (`workers`, `device`, `pool`, ...): see `asyncembed.Options`.

    Raises:
        OptionError: An unknown keyword, or a value that cannot work.
    """

    family = "late_interaction"

    def __init__(
        self,
        model_name: str | os.PathLike[str] | ModelSpec,
        *,
        truncate: bool = True,
        dtype: Literal["float32", "float16"] = "float32",
        **options: Unpack[OptionKeywords],
    ) -> None:
        super().__init__(model_name, **options)
        check_choice("dtype", dtype, ("float32", "float16"))
        self._truncate = truncate
        self._dtype: Literal["float32", "float16"] = dtype

    # ---------------------------------------------------------------- many inputs

    def embed(
        self,
        documents: Source[InputT],
        *,
        key: Callable[[InputT], str] | None = None,
        priority: PriorityName = "bulk",
        ordered: bool = True,
        on_error: OnError = "raise",
    ) -> EmbeddingStream[InputT, Matrix, list[Matrix]]:
        """Embed documents from any iterable or async iterable.

        Args:
            documents: The texts, or records from which `key` takes the text. One `str` is one document.
            key: Takes the text out of a record.
            priority: "interactive" goes before "bulk".
            ordered: Whether results come in input order, or as they are ready.
            on_error: What becomes of an input that has no matrix: "raise" ends the stream with its error, "skip"
                leaves it out, "return" gives the error in the place of the matrix.

        Returns:
            A stream of float32 arrays (tokens, dim).

        Raises:
            StateError: The embedder is not open, or was opened on another event loop.
            OptionError: An argument that cannot work.
            InputError: (from the stream) an input is not a text, or is over the limit with `truncate=False`; `index`
                says which.
        """
        return self._texts("embed", documents, key, priority, ordered, on_error)

    def query_embed(
        self,
        queries: Source[InputT],
        *,
        key: Callable[[InputT], str] | None = None,
        priority: PriorityName = "bulk",
        ordered: bool = True,
        on_error: OnError = "raise",
    ) -> EmbeddingStream[InputT, Matrix, list[Matrix]]:
        """`embed` for queries. Of most models a query has at least 32 rows: mask tokens lengthen it."""
        return self._texts("query", queries, key, priority, ordered, on_error)

    def passage_embed(
        self,
        passages: Source[InputT],
        *,
        key: Callable[[InputT], str] | None = None,
        priority: PriorityName = "bulk",
        ordered: bool = True,
        on_error: OnError = "raise",
    ) -> EmbeddingStream[InputT, Matrix, list[Matrix]]:
        """The same as `embed`: every document is a passage."""
        return self._texts("embed", passages, key, priority, ordered, on_error)

    # ---------------------------------------------------------------- a few inputs, at once

    async def embed_query(self, query: str) -> Matrix:
        """The matrix of one query: (tokens, dim). Goes before bulk work."""
        return await self._one(query, measure_text, self._call("query"), MATRICES)

    async def embed_documents(self, documents: Iterable[str]) -> list[Matrix]:
        """The matrices of some documents, in input order. Goes before bulk work."""
        return await self.embed(documents, priority="interactive").collect()

    async def token_count(self, texts: Source[str], is_doc: bool = True, include_extension: bool = False) -> int:
        """How many tokens the texts have together, special tokens included, each cut at the length limit.

        Args:
            texts: The texts; one `str` is one text.
            is_doc: Whether they are documents, rather than queries.
            include_extension: Whether the model's marker, and the mask tokens that lengthen a query, count too.
        """
        role = "document" if is_doc else "query"
        call = Call(truncate=self._truncate, settings=(("include_extension", include_extension), ("role", role)))
        return await self._count(as_source(texts), measure_text, call)

    # ---------------------------------------------------------------- about models

    @property
    def embedding_size(self) -> int:
        """Length of a token's vector. Raises `StateError` if the model is neither catalogued nor open."""
        return self._vector_size()

    @classmethod
    def get_embedding_size(cls, model_name: str) -> int:
        """Length of a catalogued model's vectors. Raises `UnknownModelError`."""
        return cls._catalogued_size(model_name)

    # ---------------------------------------------------------------- parts

    def _texts(
        self,
        mode: Mode,
        source: Source[InputT],
        key: Key | None,
        priority: PriorityName,
        ordered: bool,
        on_error: OnError,
    ) -> EmbeddingStream[InputT, Matrix, list[Matrix]]:
        return self._stream(
            as_source(source),
            measure_text,
            self._call(mode),
            MATRICES,
            key=key,
            priority=priority,
            ordered=ordered,
            on_error=on_error,
        )

    def _call(self, mode: Mode) -> Call:
        return Call(mode=mode, truncate=self._truncate, dtype=self._dtype)
