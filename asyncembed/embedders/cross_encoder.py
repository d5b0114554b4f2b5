"""Rerankers: how well a document answers a query, judged by a model that reads both together."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, Unpack, cast, get_args, overload

from asyncembed.catalogue.described import Overrides
from asyncembed.catalogue.lookup import register
from asyncembed.catalogue.spec import Family
from asyncembed.checks import check_choice, check_count, check_long, check_text, checks_keywords
from asyncembed.embedders.base import AnyStream, Embedder, ModelName, Opened, ReturningCall, StreamCall, StreamKeywords
from asyncembed.embedders.intake import Door, InputT, Intake, Key, accept_pair, accept_text
from asyncembed.encoders.encoder import Call
from asyncembed.errors import InputError
from asyncembed.feeding import Source
from asyncembed.options import OptionKeywords
from asyncembed.results import SCORE, Assembly, CollectedT, CountedBatch, Scores, stack_scores
from asyncembed.stream import EmbeddingStream, ReturningStream

Activation = Literal["none", "sigmoid", "auto"]
Template = Literal["qwen3-reranker", "mxbai-rerank-v2"]
Pair = tuple[str, str]


class RerankStreamCall(StreamCall, total=False):
    """What a call may say that gives a stream of scores: also an activation instead of the constructor's.

    `instruction` is what a model that is a language model is to look for.
    """

    activation: Activation | None
    instruction: str | None


class RerankReturningCall(ReturningCall, total=False):
    """The same with errors in the place of scores."""

    activation: Activation | None
    instruction: str | None


class RerankKeywords(StreamKeywords, total=False):
    """What a call may say that gives either."""

    activation: Activation | None
    instruction: str | None


PAIRS = partial(Intake, accept_pair)


class CrossEncoderKeywords(OptionKeywords, total=False):
    """The keywords, for signatures; `TextCrossEncoder` documents them."""

    activation: Activation
    long: Literal["truncate", "error"]
    template: Template | None


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
            sequence classification with one label, or a language model that answers whether a document fits.
        activation: "none" gives the model's logits, "sigmoid" maps them to 0..1; "auto" does what the repo names, and
            where it names nothing, as sentence-transformers does, "sigmoid".
        long: What becomes of a pair over the length limit: "truncate" cuts it, the longer text first, "error" makes it
            an `InputError`.
        template: What a language model reads of a pair, where its repo does not say: as "qwen3-reranker", answering
            yes or no, or as "mxbai-rerank-v2", answering 1 or 0. The score is the difference of the two logits.
        options: The keywords that all classes share (`workers`, `device`, `pool`, ...): see `asyncembed.Options`.
    """

    family: ClassVar[Family] = "cross_encoder"

    @checks_keywords
    def __init__(
        self,
        model_name: ModelName,
        *,
        activation: Activation = "none",
        long: Literal["truncate", "error"] = "truncate",
        template: Template | None = None,
        **options: Unpack[OptionKeywords],
    ) -> None:
        super().__init__(model_name, **options)
        check_choice("activation", activation, get_args(Activation))
        check_long(long)
        check_choice("template", template, (None, *get_args(Template)))
        self._template = template
        self._activation: Activation = activation
        self._long = long

    def _overrides(self) -> Overrides:
        return replace(super()._overrides(), template=self._template)

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
        self, query: str, documents: Source[Any], **call: Unpack[RerankKeywords]
    ) -> AnyStream[Any, float, Scores]:
        """Score documents, from any iterable or async iterable, against one query.

        Args:
            query: The query.
            documents: The texts, or records from which `key` takes the text.
            call: `activation`, instead of the constructor's; `instruction`, what a model that is a language model is to
                look for, instead of its own default; `key`, `priority`, `ordered`, `on_error`: see
                `asyncembed.StreamKeywords`, also for the errors.

        Returns:
            A stream of scores, in input order: nothing is sorted (see `rank`).

        Raises:
            InputError: The query is no text, or `documents` is one text.
        """
        return self._with_query(query, documents, SCORE, call)

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
    def rerank_pairs(self, pairs: Source[Any], **call: Unpack[RerankKeywords]) -> AnyStream[Any, float, Scores]:
        """Score pairs (query, document), from any iterable or async iterable; see `rerank`."""
        _refuse_text(pairs, "pairs", "the pair")
        return self._pairs(pairs, PAIRS, SCORE, call)

    @overload
    async def rank(
        self,
        query: str,
        documents: Source[str],
        top_k: int | None = None,
        *,
        key: None = None,
        with_tokens: Literal[False] = False,
        activation: Activation | None = None,
        instruction: str | None = None,
    ) -> list[tuple[int, float]]: ...
    @overload
    async def rank(
        self,
        query: str,
        documents: Source[InputT],
        top_k: int | None = None,
        *,
        key: Callable[[InputT], str],
        with_tokens: Literal[False] = False,
        activation: Activation | None = None,
        instruction: str | None = None,
    ) -> list[tuple[int, float]]: ...
    @overload
    async def rank(
        self,
        query: str,
        documents: Source[str],
        top_k: int | None = None,
        *,
        key: None = None,
        with_tokens: Literal[True],
        activation: Activation | None = None,
        instruction: str | None = None,
    ) -> CountedBatch[list[tuple[int, float]]]: ...
    @overload
    async def rank(
        self,
        query: str,
        documents: Source[InputT],
        top_k: int | None = None,
        *,
        key: Callable[[InputT], str],
        with_tokens: Literal[True],
        activation: Activation | None = None,
        instruction: str | None = None,
    ) -> CountedBatch[list[tuple[int, float]]]: ...
    @checks_keywords
    async def rank(
        self,
        query: str,
        documents: Source[Any],
        top_k: int | None = None,
        *,
        key: Key | None = None,
        with_tokens: bool = False,
        activation: Activation | None = None,
        instruction: str | None = None,
    ) -> list[tuple[int, float]] | CountedBatch[list[tuple[int, float]]]:
        """The best documents for a query. Goes before bulk work.

        `instruction` as in `rerank`.

        Returns:
            (position in `documents`, score), best first, the earlier of two equals first; `top_k` of them, or all.
            `with_tokens` as a `CountedBatch`, whose counts are those of all pairs, in the order of `documents`.

        Raises:
            InputError: As in `rerank`.
        """
        call: RerankKeywords = {"key": key, "activation": activation, "instruction": instruction}
        return await self._rank(query, documents, top_k, call, with_tokens=with_tokens)

    @checks_keywords
    async def token_count(self, pairs: Source[Pair], *, truncated: bool = True) -> int:
        """How many tokens the pairs have together, special tokens included.

        As `rerank_pairs` computes them, each cut at `max_length`; with `truncated=False` all that the whole texts have.
        """
        opened = await self._turn()
        _refuse_text(pairs, "pairs", "the pair")
        return await self._count(opened, pairs, PAIRS, replace(self._call({}), truncated=truncated))

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
            sources: Where its files come from: a hub repo ("organisation/name"), the URL of a `.tar.gz`, a directory
                as a `Path`, an `asyncembed.Origin`, any object with the attributes `hf` and `url`, or several of these.
            model_file: Path of the ONNX graph in the repo; its first output is (batch, 1) or (batch,).
            description: For people.
            license: For people.
            size_in_gb: For people.
            additional_files: Further files that must be there, as paths in the repo.

        Raises:
            OptionError: The name is taken, or there is no source.
        """
        register(
            cls._custom_spec(
                model, "cross_encoder", sources, model_file, additional_files, description, license, size_in_gb
            )
        )

    async def _rank(
        self, query: str, documents: Source[Any], top_k: int | None, asked: RerankKeywords, *, with_tokens: bool
    ) -> list[tuple[int, float]] | CountedBatch[list[tuple[int, float]]]:
        await self._turn()
        check_count("top_k", top_k, minimum=1)
        # Where the scores of many documents are put together they are sorted too: in a thread.
        best = Assembly(float, partial(_best, top_k=top_k))
        call: RerankKeywords = {"priority": "interactive", **asked}
        stream = cast(
            "EmbeddingStream[Any, float, list[tuple[int, float]]]", self._with_query(query, documents, best, call)
        )
        return await self._several(stream, with_tokens=with_tokens)

    def _with_query(
        self, query: str, documents: Source[InputT], assembly: Assembly[float, CollectedT], call: RerankKeywords
    ) -> AnyStream[InputT, float, CollectedT]:
        text, query_units, _ = accept_text(query)
        _refuse_text(documents, "documents", "the document")

        def accept(value: object) -> tuple[Pair, int, int]:
            document, units, size_bytes = accept_text(value)
            return (text, document), query_units + units, size_bytes

        return self._pairs(documents, partial(Intake, accept), assembly, call)

    def _pairs(
        self, source: Source[InputT], door: Door, assembly: Assembly[float, CollectedT], call: RerankKeywords
    ) -> AnyStream[InputT, float, CollectedT]:
        asked = self._call(call)
        return self._stream(self._require_open(), source, door, lambda _: (asked, assembly), call)

    def _usual_calls(self, opened: Opened) -> Sequence[Call]:  # noqa: ARG002 (it is no matter of the model)
        return [self._call({})]

    def _call(self, keywords: RerankKeywords) -> Call:
        activation, instruction = keywords.get("activation"), keywords.get("instruction")
        check_choice("activation", activation, (None, *get_args(Activation)))
        check_text("instruction", instruction)
        chosen = activation or self._activation
        return Call(mode="pair", long=self._long, activation=chosen, instruction=instruction)


async def rank_texts(
    model: TextCrossEncoder, query: str, documents: Sequence[str], top_k: int | None, asked: RerankKeywords
) -> CountedBatch[list[tuple[int, float]]]:
    """For the package itself: `TextCrossEncoder.rank`, which goes before bulk work unless `asked` says otherwise."""
    ranked = await model._rank(query, documents, top_k, asked, with_tokens=True)  # noqa: SLF001
    return cast("CountedBatch[list[tuple[int, float]]]", ranked)


def _best(scores: list[Any], top_k: int | None) -> list[tuple[int, float]]:
    stacked = stack_scores(scores)
    order = (-stacked).argsort(kind="stable")[:top_k]
    return list(zip(order.tolist(), stacked[order].tolist(), strict=True))


def _refuse_text(source: object, name: str, what: str) -> None:
    if isinstance(source, str | bytes):
        raise InputError(f"{name} must be an iterable; put {what} into a list")
