"""Rerankers: how well a document answers a query, judged by a model that reads both together."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Unpack, cast, get_args, overload

from asyncembed.catalogue.lookup import parse_origins, register
from asyncembed.catalogue.spec import ModelSpec
from asyncembed.checks import check_bool, check_choice, check_count, check_custom_model, checks_keywords
from asyncembed.embedders.base import Embedder, InputT, Key, ModelName, PriorityName, measure_text
from asyncembed.embedders.roles import ReturningCall, StreamCall
from asyncembed.encoders.encoder import Call
from asyncembed.errors import InputError
from asyncembed.options import OptionKeywords
from asyncembed.results import SCORE, Output, Scores, own_score, stack_scores
from asyncembed.stream import EmbeddingStream, OnError, ReturningStream, Source

Activation = Literal["none", "sigmoid"]
Pair = tuple[str, str]


class RerankStreamCall(StreamCall, total=False):
    """What a call may say that gives a stream of scores: also an activation instead of the constructor's."""

    activation: Activation | None


class RerankReturningCall(ReturningCall, total=False):
    """The same with errors in the place of scores."""

    activation: Activation | None


class TextCrossEncoder(Embedder):
    """A reranker: one score for a query and a document; the higher, the better the document answers the query.

    ```python
    async with TextCrossEncoder("Xenova/ms-marco-MiniLM-L-6-v2") as model:
        best = await model.rank("what is backpressure?", documents, top_k=10)
    ```

    Scores are Python floats in `async for`, float32 arrays (n,) in `collect` and `batches`. Those of two models cannot
    be compared.

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`: any model for
            sequence classification with one label.
        activation: "none" gives the model's logits, "sigmoid" maps them to 0..1.
        truncate: Cut pairs over the length limit, the longer text first; False makes such a pair an `InputError`.
        options: The keywords that all six classes share (`workers`, `device`, `pool`, ...): see `asyncembed.Options`.
    """

    family = "cross_encoder"

    @checks_keywords
    def __init__(
        self,
        model_name: ModelName,
        *,
        activation: Activation = "none",
        truncate: bool = True,
        **options: Unpack[OptionKeywords],
    ) -> None:
        super().__init__(model_name, **options)
        check_choice("activation", activation, get_args(Activation))
        check_bool("truncate", truncate)
        self._activation: Activation = activation
        self._truncate = truncate

    @overload
    def rerank(
        self, query: str, documents: Source[str], *, key: None = None, **call: Unpack[RerankStreamCall]
    ) -> EmbeddingStream[str, float, Scores]: ...
    @overload
    def rerank(
        self, query: str, documents: Source[InputT], *, key: Callable[[InputT], str], **call: Unpack[RerankStreamCall]
    ) -> EmbeddingStream[InputT, float, Scores]: ...
    @overload
    def rerank(
        self, query: str, documents: Source[str], *, key: None = None, **call: Unpack[RerankReturningCall]
    ) -> ReturningStream[str, float]: ...
    @overload
    def rerank(
        self,
        query: str,
        documents: Source[InputT],
        *,
        key: Callable[[InputT], str],
        **call: Unpack[RerankReturningCall],
    ) -> ReturningStream[InputT, float]: ...
    @checks_keywords
    def rerank(
        self,
        query: str,
        documents: Source[Any],
        *,
        key: Key | None = None,
        activation: Activation | None = None,
        priority: PriorityName = "bulk",
        ordered: bool = True,
        on_error: OnError = "raise",
    ) -> EmbeddingStream[Any, Any, Any]:
        """Score documents, from any iterable or async iterable, against one query.

        Args:
            query: The query.
            documents: The texts, or records from which `key` takes the text.
            key: Takes the text out of a record.
            activation: Instead of the constructor's.
            priority: "interactive" goes before "bulk".
            ordered: Whether scores come in input order, or as they are ready.
            on_error: What becomes of a document that has no score: "raise" ends the stream with its error, "skip"
                leaves it out, "return" gives the error in the place of the score.

        Returns:
            A stream of scores, in input order: nothing is sorted (see `rank`).

        Raises:
            StateError: The model is not open, or was opened on another event loop.
            OptionError: An argument that cannot work.
            InputError: The query is no text, or `documents` is one text; (from the stream) a document is not a text, or
                its pair is over the limit with `truncate=False`: `index` says which.
        """
        query_units, _ = measure_text(query)
        _refuse_text(documents, "documents", "the document")
        text_of: Callable[[Any], str] = key or _itself

        def measure(value: object) -> tuple[int, int]:
            assert isinstance(value, tuple)
            units, size_bytes = measure_text(value[1])
            return query_units + units, size_bytes

        return self._stream(
            documents,
            measure,
            self._call(activation),
            SCORE,
            key=lambda record: (query, text_of(record)),
            priority=priority,
            ordered=ordered,
            on_error=on_error,
        )

    @overload
    def rerank_pairs(
        self, pairs: Source[Pair], *, key: None = None, **call: Unpack[RerankStreamCall]
    ) -> EmbeddingStream[Pair, float, Scores]: ...
    @overload
    def rerank_pairs(
        self, pairs: Source[InputT], *, key: Callable[[InputT], Pair], **call: Unpack[RerankStreamCall]
    ) -> EmbeddingStream[InputT, float, Scores]: ...
    @overload
    def rerank_pairs(
        self, pairs: Source[Pair], *, key: None = None, **call: Unpack[RerankReturningCall]
    ) -> ReturningStream[Pair, float]: ...
    @overload
    def rerank_pairs(
        self, pairs: Source[InputT], *, key: Callable[[InputT], Pair], **call: Unpack[RerankReturningCall]
    ) -> ReturningStream[InputT, float]: ...
    @checks_keywords
    def rerank_pairs(
        self,
        pairs: Source[Any],
        *,
        key: Key | None = None,
        activation: Activation | None = None,
        priority: PriorityName = "bulk",
        ordered: bool = True,
        on_error: OnError = "raise",
    ) -> EmbeddingStream[Any, Any, Any]:
        """Score pairs (query, document), from any iterable or async iterable; see `rerank`."""
        _refuse_text(pairs, "pairs", "the pair")
        return self._stream(
            pairs,
            measure_pair,
            self._call(activation),
            SCORE,
            key=key,
            priority=priority,
            ordered=ordered,
            on_error=on_error,
        )

    @overload
    async def rank(
        self,
        query: str,
        documents: Source[str],
        top_k: int | None = None,
        *,
        key: None = None,
        activation: Activation | None = None,
    ) -> list[tuple[int, float]]: ...
    @overload
    async def rank(
        self,
        query: str,
        documents: Source[InputT],
        top_k: int | None = None,
        *,
        key: Callable[[InputT], str],
        activation: Activation | None = None,
    ) -> list[tuple[int, float]]: ...
    @checks_keywords
    async def rank(
        self,
        query: str,
        documents: Source[Any],
        top_k: int | None = None,
        *,
        key: Key | None = None,
        activation: Activation | None = None,
    ) -> list[tuple[int, float]]:
        """The best documents for a query. Goes before bulk work.

        Returns:
            (position in `documents`, score), best first, the earlier of two equals first; `top_k` of them, or all.

        Raises:
            InputError: As in `rerank`.
        """
        await self._turn()
        check_count("top_k", top_k, least=1)
        stream: EmbeddingStream[Any, float, Any] = self.rerank(
            query, documents, key=key or _itself, activation=activation, priority="interactive"
        )
        # Where the scores of many documents are put together they are sorted too: in a thread.
        stream.output = Output(own=own_score, assemble=partial(_best, top_k=top_k))
        return cast("list[tuple[int, float]]", await stream.collect())

    @checks_keywords
    async def token_count(self, pairs: Source[Pair]) -> int:
        """How many tokens the pairs have together, special tokens included, each cut at the length limit."""
        await self._turn()
        _refuse_text(pairs, "pairs", "the pair")
        return await self._count(pairs, measure_pair, self._call(None))

    @classmethod
    def add_custom_model(
        cls,
        model: str,
        sources: object,
        model_file: str = "onnx/model.onnx",
        description: str = "",
        license: str = "",  # noqa: A002 (the name that fastembed's users know)
        size_in_gb: float = 0.0,
        additional_files: Sequence[str] | None = None,
    ) -> None:
        """Make a reranker known by name, for this process and the workers it starts.

        Args:
            model: Its name; must not be taken.
            sources: Where its files come from: a hub repo ("organisation/name"), the URL of a `.tar.gz`, a source of
                `asyncembed.catalogue.spec`, any object with the attributes `hf` and `url`, or several of these.
            model_file: Path of the ONNX graph in the repo; its first output is (batch, 1) or (batch,).
            description: For people.
            license: For people.
            size_in_gb: For people.
            additional_files: Further files that must be there, as paths in the repo.

        Raises:
            OptionError: The name is taken, or there is no source.
        """
        files = check_custom_model(model, model_file, additional_files)
        register(
            ModelSpec(
                name=model,
                family=cls.family,
                encoder="cross_encoder",
                sources=parse_origins(sources, model),
                model_file=model_file,
                additional_files=files,
                description=description,
                license=license,
                size_in_gb=size_in_gb,
            )
        )

    def _call(self, activation: Activation | None) -> Call:
        check_choice("activation", activation, (None, *get_args(Activation)))
        chosen = activation or self._activation
        settings = () if chosen == "none" else (("activation", chosen),)
        return Call(mode="pair", truncate=self._truncate, settings=settings)


def _best(scores: list[Any], top_k: int | None) -> list[tuple[int, float]]:
    stacked = stack_scores(scores)
    order = (-stacked).argsort(kind="stable")[:top_k]
    return list(zip(order.tolist(), stacked[order].tolist(), strict=True))


def measure_pair(value: object) -> tuple[int, int]:
    """Characters and bytes of a pair of texts."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise InputError(f"expected a pair (query, document), got {type(value).__name__}")
    (query_units, query_bytes), (units, size_bytes) = map(measure_text, value)
    return query_units + units, query_bytes + size_bytes + sys.getsizeof(value)


def _refuse_text(source: object, name: str, what: str) -> None:
    if isinstance(source, str | bytes):
        raise InputError(f"{name} must be an iterable; put {what} into a list")


def _itself(record: object) -> str:
    return cast(str, record)
