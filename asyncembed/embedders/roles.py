"""The roles of a text: what calls may say, and the methods that sparse and late interaction models share."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Generic, Literal, Required, TypedDict, Unpack, overload

from asyncembed.checks import checks_keywords
from asyncembed.embedders.base import Embedder, InputT, Key, PriorityName, as_source, measure_text
from asyncembed.encoders.encoder import Call, Mode
from asyncembed.results import Assembly, CollectedT, ResultT
from asyncembed.stream import EmbeddingStream, OnError, ReturningStream, Source


class StreamCall(TypedDict, total=False):
    """What a call may say that gives a stream, where an input without a result raises or is left out.

    Keys:
        priority: "interactive" goes before "bulk".
        ordered: Whether results come in input order, or as they are ready.
        on_error: "raise" ends the stream with the input's error, "skip" leaves the input out.
    """

    priority: PriorityName
    ordered: bool
    on_error: Literal["raise", "skip"]


class ReturningCall(TypedDict, total=False):
    """The same, where an error comes in the place of the result.

    Keys:
        priority: "interactive" goes before "bulk".
        ordered: Whether results come in input order, or as they are ready.
        on_error: "return".
    """

    priority: PriorityName
    ordered: bool
    on_error: Required[Literal["return"]]


class TextRoles(Embedder, Generic[ResultT, CollectedT]):
    """Queries, passages and documents, each as a stream or a few at once."""

    _assembly: ClassVar[Assembly[Any, Any]]
    """How a result leaves a stream."""

    # ---------------------------------------------------------------- many inputs

    @overload
    def embed(
        self, documents: Source[str], *, key: None = None, **call: Unpack[StreamCall]
    ) -> EmbeddingStream[str, ResultT, CollectedT]: ...
    @overload
    def embed(
        self, documents: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[StreamCall]
    ) -> EmbeddingStream[InputT, ResultT, CollectedT]: ...
    @overload
    def embed(
        self, documents: Source[str], *, key: None = None, **call: Unpack[ReturningCall]
    ) -> ReturningStream[str, ResultT]: ...
    @overload
    def embed(
        self, documents: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[ReturningCall]
    ) -> ReturningStream[InputT, ResultT]: ...
    @checks_keywords
    def embed(
        self,
        documents: Source[Any],
        *,
        key: Key | None = None,
        priority: PriorityName = "bulk",
        ordered: bool = True,
        on_error: OnError = "raise",
    ) -> EmbeddingStream[Any, Any, Any]:
        """Embed documents from any iterable or async iterable.

        Args:
            documents: The texts, or records from which `key` takes the text. One `str` is one document.
            key: Takes the text out of a record.
            priority: "interactive" goes before "bulk".
            ordered: Whether results come in input order, or as they are ready.
            on_error: What becomes of an input that has no result: "raise" ends the stream with its error, "skip"
                leaves it out, "return" gives the error in the place of the result.

        Returns:
            A stream of one result per document.

        Raises:
            StateError: The embedder is not open, or was opened on another event loop.
            OptionError: An argument that cannot work.
            InputError: (from the stream) an input is not a text, or is over the limit with `truncate=False`; `index`
                says which.
        """
        return self._texts("embed", documents, key, priority, ordered, on_error)

    @overload
    def query_embed(
        self, queries: Source[str], *, key: None = None, **call: Unpack[StreamCall]
    ) -> EmbeddingStream[str, ResultT, CollectedT]: ...
    @overload
    def query_embed(
        self, queries: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[StreamCall]
    ) -> EmbeddingStream[InputT, ResultT, CollectedT]: ...
    @overload
    def query_embed(
        self, queries: Source[str], *, key: None = None, **call: Unpack[ReturningCall]
    ) -> ReturningStream[str, ResultT]: ...
    @overload
    def query_embed(
        self, queries: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[ReturningCall]
    ) -> ReturningStream[InputT, ResultT]: ...
    @checks_keywords
    def query_embed(
        self,
        queries: Source[Any],
        *,
        key: Key | None = None,
        priority: PriorityName = "bulk",
        ordered: bool = True,
        on_error: OnError = "raise",
    ) -> EmbeddingStream[Any, Any, Any]:
        """`embed` for queries."""
        return self._texts("query", queries, key, priority, ordered, on_error)

    @overload
    def passage_embed(
        self, passages: Source[str], *, key: None = None, **call: Unpack[StreamCall]
    ) -> EmbeddingStream[str, ResultT, CollectedT]: ...
    @overload
    def passage_embed(
        self, passages: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[StreamCall]
    ) -> EmbeddingStream[InputT, ResultT, CollectedT]: ...
    @overload
    def passage_embed(
        self, passages: Source[str], *, key: None = None, **call: Unpack[ReturningCall]
    ) -> ReturningStream[str, ResultT]: ...
    @overload
    def passage_embed(
        self, passages: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[ReturningCall]
    ) -> ReturningStream[InputT, ResultT]: ...
    @checks_keywords
    def passage_embed(
        self,
        passages: Source[Any],
        *,
        key: Key | None = None,
        priority: PriorityName = "bulk",
        ordered: bool = True,
        on_error: OnError = "raise",
    ) -> EmbeddingStream[Any, Any, Any]:
        """The same as `embed`: every document is a passage."""
        return self._texts("embed", passages, key, priority, ordered, on_error)

    # ---------------------------------------------------------------- a few inputs, at once

    @checks_keywords
    async def embed_query(self, query: str) -> ResultT:
        """The result of one query. Goes before bulk work."""
        await self._turn()
        return await self._one(query, measure_text, self._call("query"), self._assembly)

    @checks_keywords
    async def embed_documents(self, documents: Iterable[str]) -> CollectedT:
        """The results of some documents, in input order. Goes before bulk work."""
        await self._turn()
        return await self.embed(documents, priority="interactive").collect()

    # ---------------------------------------------------------------- parts

    @abstractmethod
    def _call(self, mode: Mode) -> Call:
        """What the worker is to do with texts of a role."""

    def _texts(
        self,
        mode: Mode,
        source: Source[Any],
        key: Key | None,
        priority: PriorityName,
        ordered: bool,
        on_error: OnError,
    ) -> EmbeddingStream[Any, Any, Any]:
        return self._stream(
            as_source(source),
            measure_text,
            self._call(mode),
            self._assembly,
            key=key,
            priority=priority,
            ordered=ordered,
            on_error=on_error,
        )
