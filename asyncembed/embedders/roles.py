"""The roles of a text: the methods that dense, sparse and late interaction models of texts share."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Literal, Unpack, cast, overload

from asyncembed.checks import checks_keywords
from asyncembed.embedders.base import AnyStream, Embedder, Opened, ReturningCall, StreamCall, StreamKeywords
from asyncembed.embedders.intake import InputT, Intake, accept_text, as_source
from asyncembed.encoders.encoder import Call, Mode
from asyncembed.feeding import Source
from asyncembed.results import Assembly, CollectedT, Counted, CountedBatch, ResultT
from asyncembed.stream import EmbeddingStream, ReturningStream

TEXTS = partial(Intake, accept_text)

_PROMPTS_OF_ROLES: Mapping[Mode, tuple[str, ...]] = {"query": ("query",), "passage": ("document", "passage", "corpus")}
"""What the prompt of a role may be called, as in sentence-transformers: the first that there is counts, also an empty
one. A role without any has none, as the default prompt is for texts without a role."""


_ROLES: tuple[Mode, ...] = ("embed", "query", "passage")


def role_prompt(prompts: Mapping[str, str], mode: Mode) -> str | None:
    """The prompt of a role among those of a model, if it has one."""
    return next((prompts[name] for name in _PROMPTS_OF_ROLES.get(mode, ()) if name in prompts), "") or None


def role_prompt_of_two(prompts: Mapping[str, str], mode: Mode) -> str | None:
    """Likewise, for models that tell queries and documents apart: every text that is no query is a document."""
    return role_prompt(prompts, "query" if mode == "query" else "passage")


class TextRoles(Embedder, Generic[ResultT, CollectedT]):
    """Queries, passages and documents, each as a stream or a few at once."""

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
    def embed(self, documents: Source[Any], **call: Unpack[StreamKeywords]) -> AnyStream[Any, ResultT, CollectedT]:
        """Embed documents from any iterable or async iterable.

        Args:
            documents: The texts, or records from which `key` takes the text. One `str` is one document.
            call: `key`, `priority`, `ordered`, `on_error`: see `asyncembed.StreamKeywords`, also for the errors.

        Returns:
            A stream of one result per document.
        """
        return self._texts("embed", documents, call)

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
    def query_embed(self, queries: Source[Any], **call: Unpack[StreamKeywords]) -> AnyStream[Any, ResultT, CollectedT]:
        """`embed` for queries."""
        return self._texts("query", queries, call)

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
        self, passages: Source[Any], **call: Unpack[StreamKeywords]
    ) -> AnyStream[Any, ResultT, CollectedT]:
        """The same as `embed`: every document is a passage."""
        return self._texts("embed", passages, call)

    # ---------------------------------------------------------------- a few inputs, at once

    @overload
    async def embed_query(self, query: str, *, with_tokens: Literal[False] = False) -> ResultT: ...
    @overload
    async def embed_query(self, query: str, *, with_tokens: Literal[True]) -> Counted[ResultT]: ...
    @checks_keywords
    async def embed_query(self, query: str, *, with_tokens: bool = False) -> ResultT | Counted[ResultT]:
        """The result of one query, `with_tokens` as a `Counted`. Goes before bulk work."""
        return await self._query(query, {}, with_tokens=with_tokens)

    @overload
    async def embed_documents(self, documents: Iterable[str], *, with_tokens: Literal[False] = False) -> CollectedT: ...
    @overload
    async def embed_documents(
        self, documents: Iterable[str], *, with_tokens: Literal[True]
    ) -> CountedBatch[CollectedT]: ...
    @checks_keywords
    async def embed_documents(
        self, documents: Iterable[str], *, with_tokens: bool = False
    ) -> CollectedT | CountedBatch[CollectedT]:
        """The results of some documents, in input order, `with_tokens` as a `CountedBatch`. Goes before bulk work."""
        await self._turn()
        return await self._several(self.embed(documents, priority="interactive"), with_tokens=with_tokens)

    # ---------------------------------------------------------------- parts

    @abstractmethod
    def _call(self, opened: Opened, mode: Mode, asked: StreamKeywords) -> Call:
        """What the worker is to do with texts of a role, given what the caller asked for."""

    def _usual_calls(self, opened: Opened) -> Sequence[Call]:
        return [self._call(opened, mode, {}) for mode in _ROLES]

    @abstractmethod
    def _assembly(self, call: Call) -> Assembly[ResultT, CollectedT]:
        """How a result of `call` leaves a stream."""

    def _texts(
        self, mode: Mode, source: Source[InputT], asked: StreamKeywords
    ) -> AnyStream[InputT, ResultT, CollectedT]:
        def plan(opened: Opened) -> tuple[Call, Assembly[ResultT, CollectedT]]:
            call = self._call(opened, mode, asked)
            return call, self._assembly(call)

        return self._stream(self._require_open(), as_source(source), TEXTS, plan, asked)

    async def _query(self, query: str, asked: StreamKeywords, *, with_tokens: bool) -> ResultT | Counted[ResultT]:
        return await self._one_text("query", query, asked, with_tokens=with_tokens)

    async def _one_text(
        self, mode: Mode, text: str, asked: StreamKeywords, *, with_tokens: bool
    ) -> ResultT | Counted[ResultT]:
        opened = await self._turn()
        if asked:
            call = self._call(opened, mode, asked)
            assembly = self._assembly(call)
        elif mode in opened.plain_calls:
            call, assembly = opened.plain_calls[mode]
        else:
            call = self._call(opened, mode, asked)
            assembly = self._assembly(call)
            opened.plain_calls[mode] = call, assembly
        return await self._one(opened, text, TEXTS, call, assembly, with_tokens=with_tokens)

    async def _several_texts(self, mode: Mode, texts: Iterable[str], asked: StreamKeywords) -> CountedBatch[CollectedT]:
        await self._turn()
        stream = cast("EmbeddingStream[str, ResultT, CollectedT]", self._texts(mode, texts, asked))
        return cast("CountedBatch[CollectedT]", await self._several(stream, with_tokens=True))


async def one_text(model: TextRoles[ResultT, Any], text: str, mode: Mode, asked: StreamKeywords) -> Counted[ResultT]:
    """For the package itself: one text in any role, at once, as `embed_query` does it for queries."""
    return cast("Counted[ResultT]", await model._one_text(mode, text, asked, with_tokens=True))  # noqa: SLF001


async def several_texts(
    model: TextRoles[Any, CollectedT], texts: Iterable[str], mode: Mode, asked: StreamKeywords
) -> CountedBatch[CollectedT]:
    """For the package itself: some texts in any role, as `embed_documents` does it for documents.

    They go before bulk work unless `asked` says otherwise.
    """
    return await model._several_texts(mode, texts, {"priority": "interactive", **asked})  # noqa: SLF001


def prompt_of(model: TextRoles[Any, Any], mode: Mode, asked: StreamKeywords) -> str:
    """For the package itself: what is put before a text in a role.

    Raises:
        StateError: The model is not open.
        OptionError: It has no prompt of the name that is asked for.
    """
    return model._call(model._require_open(), mode, asked).prompt or ""  # noqa: SLF001
