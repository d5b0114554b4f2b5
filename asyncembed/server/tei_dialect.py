"""The interface of Text Embeddings Inference: `/embed` and its like, `/rerank`, `/predict`, `/tokenize`, `/info`.

Its server has one model; here, a request may name one in a field `model`, and is otherwise served by the first that the
route fits. Its clients are those of huggingface_hub, LangChain, LlamaIndex, Chroma and others.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, cast

import msgspec
import numpy as np
import orjson
from msgspec import UnsetType

from asyncembed import __version__
from asyncembed.embedders.base import Embedder, fingerprint_in_thread, load
from asyncembed.embedders.cross_encoder import TextCrossEncoder
from asyncembed.embedders.late_interaction import LateInteractionTextEmbedding
from asyncembed.embedders.multimodal import LateInteractionMultimodalEmbedding
from asyncembed.embedders.roles import prompt_of
from asyncembed.embedders.sparse import SparseTextEmbedding
from asyncembed.embedders.text import TextEmbedding
from asyncembed.results import CountedBatch
from asyncembed.server.computing import check_size, embed_texts, rank, score_pairs, several, texts_of
from asyncembed.server.endpoint import Dialect, Reply, Route, bodies_of
from asyncembed.server.jina_dialect import JinaRerankAnswer, infinity_rerank
from asyncembed.server.model_facts import ModelFacts
from asyncembed.server.refusals import Kind, Refusal
from asyncembed.server.served import Served
from asyncembed.server.service import Service
from asyncembed.server.tei_bodies import (
    CuttingRequest,
    DecodeRequest,
    EmbedAllRequest,
    EmbedRequest,
    EmbedSparseRequest,
    InfoAnswer,
    Prediction,
    PredictRequest,
    Rank,
    RerankRequest,
    SimilarityParameters,
    SimilarityRequest,
    SimpleToken,
    SparseValue,
    TeiRequest,
    TokenizeRequest,
)
from asyncembed.server.token_lists import Token, TokenLists
from asyncembed.server.vectors import as_json, as_sparse_json, each_as

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from asyncembed.embedders.base import StreamKeywords
    from asyncembed.encoders.encoder import Mode

OF_TEXTS = (
    TextEmbedding,
    TextCrossEncoder,
    SparseTextEmbedding,
    LateInteractionTextEmbedding,
    LateInteractionMultimodalEmbedding,
)
"""The classes that have tokens of texts."""

ROLES: "Mapping[str, Mode]" = {"query": "query", "document": "passage", "passage": "passage"}
"""What `prompt_name` may be for a model that has roles, and no prompts by name."""

# ---------------------------------------------------------------- from a request to a call


def check_cutting(asked: CuttingRequest) -> None:
    """Raise `Refusal` if the beginning of a text is to be cut off, not its end."""
    if asked.truncation_direction in ("Left", "left") and asked.truncate is not False:
        raise Refusal(
            "invalid",
            "which end of a text is cut off is the model's own: say truncate=false, or leave it out",
            param="truncation_direction",
        )


def role_of(prompt_name: str | None) -> "Mode":
    """The role that a prompt's name means.

    Raises:
        Refusal: It means none.
    """
    if prompt_name is None:
        return "embed"
    if prompt_name not in ROLES:
        known = ", ".join(ROLES)
        raise Refusal("invalid", f"no prompt is called {prompt_name!r}; known are: {known}", param="prompt_name")
    return ROLES[prompt_name]


def has_right_length(*, normalize: bool, is_unit: bool) -> bool:
    """Whether vectors are as they are asked for, or have yet to be brought to unit length.

    Raises:
        Refusal: They have unit length, and are asked for without.
    """
    if is_unit and not normalize:
        message = "the vectors of this model have unit length: with normalize=false there are none"
        raise Refusal("invalid", message, param="normalize")
    return is_unit or not normalize


def of_unit_length(vectors: "NDArray[Any]") -> "NDArray[Any]":
    """Vectors (n, dim) of unit length; a zero stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[Any] = vectors / np.where(lengths == 0, 1, lengths)
    return scaled


def answered(body: bytes, texts: Sequence[str], counted: CountedBatch[Any], began: float) -> Reply:
    """An answer with the headers that these servers send."""
    took = str(round((perf_counter() - began) * 1000))
    headers = {
        "x-compute-time": took,
        "x-total-time": took,
        "x-compute-characters": str(sum(map(len, texts))),
        "x-compute-tokens": str(int(counted.tokens.sum())),
    }
    return Reply(body, headers=headers)


# ---------------------------------------------------------------- vectors


async def embed(service: Service, asked: EmbedRequest) -> Reply:
    """One vector for each text."""
    began, model = perf_counter(), await service.pick(asked.model, TextEmbedding)
    check_cutting(asked)
    check_size(model.embedder, asked.dimensions, param="dimensions")
    is_unit = service.facts(model).config.spec.normalize or asked.dimensions is not None
    is_finished = has_right_length(normalize=asked.normalize, is_unit=is_unit)
    texts = await texts_of(service, model, asked.inputs, param="inputs")
    counted = await embed_texts(
        service,
        model,
        texts,
        param="inputs",
        truncate=asked.truncate,
        prompt_name=asked.prompt_name,
        truncate_dim=asked.dimensions,
    )
    vectors = counted.results if is_finished else of_unit_length(counted.results)
    return answered(_list(await each_as(as_json, vectors)), texts, counted, began)


async def embed_sparse(service: Service, asked: EmbedSparseRequest) -> Reply:
    """One sparse vector for each text."""
    began, model = perf_counter(), await service.pick(asked.model, SparseTextEmbedding)
    texts, counted = await _of_roles(service, model, asked)
    return answered(_list(map(as_sparse_json, counted.results)), texts, counted, began)


async def embed_all(service: Service, asked: EmbedAllRequest) -> Reply:
    """For each text a vector per token."""
    began, model = perf_counter(), await service.pick(asked.model, LateInteractionTextEmbedding)
    texts, counted = await _of_roles(service, model, asked)
    return answered(_list(await each_as(as_json, counted.results)), texts, counted, began)


async def similarity(service: Service, asked: SimilarityRequest) -> Reply:
    """The cosines of one text and each of several others."""
    began, model = perf_counter(), await service.pick(asked.model, TextEmbedding)
    parameters = asked.parameters or SimilarityParameters()
    check_cutting(parameters)
    service.check_count(len(asked.inputs.sentences), param="inputs.sentences")
    texts = [asked.inputs.source_sentence, *asked.inputs.sentences]
    counted = await embed_texts(
        service, model, texts, param="inputs", truncate=parameters.truncate, prompt_name=parameters.prompt_name
    )
    vectors = of_unit_length(counted.results)
    return answered(as_json(vectors[1:] @ vectors[0]), texts, counted, began)


async def _of_roles(
    service: Service, model: Served[Any], asked: EmbedAllRequest
) -> tuple[list[str], CountedBatch[Any]]:
    check_cutting(asked)
    role = role_of(asked.prompt_name)
    texts = await texts_of(service, model, asked.inputs, param="inputs")
    return texts, await embed_texts(service, model, texts, role, param="inputs", truncate=asked.truncate)


def _list(parts: "Iterable[bytes]") -> bytes:
    return b"[%b]" % b",".join(parts)


# ---------------------------------------------------------------- scores


async def rerank(service: Service, asked: RerankRequest) -> Reply | bytes:
    """Texts by how well they answer a query, best first; if they are called `documents`, as Infinity does it."""
    if not isinstance(asked.documents, UnsetType):
        return await infinity_rerank(service, asked, asked.documents)
    if isinstance(asked.texts, UnsetType):
        raise Refusal("malformed", "Object missing required field `texts`", param="texts")
    began, model = perf_counter(), await service.pick(asked.model, TextCrossEncoder)
    check_cutting(asked)
    counted = await rank(
        service,
        model,
        asked.query,
        asked.texts,
        param="texts",
        activation="none" if asked.raw_scores else "sigmoid",
        instruction=asked.instruction,
        truncate=asked.truncate,
    )
    ranks = [
        {"index": index, "score": score, "text": asked.texts[index]}
        if asked.return_text
        else {"index": index, "score": score}
        for index, score in counted.results
    ]
    return answered(orjson.dumps(ranks), [asked.query, *asked.texts], counted, began)


def pairs_of(inputs: str | list[str | list[str]]) -> list[tuple[str, str]]:
    """The pairs of texts that a request has; two texts alone are one of them.

    Raises:
        Refusal: They are no pairs, as rerankers take nothing else.
    """
    given = [inputs] if len(inputs) == 2 and _is_texts(inputs) else inputs
    if isinstance(given, str) or not all(isinstance(pair, list) and len(pair) == 2 for pair in given):
        message = (
            "inputs are a pair of texts, or a list of pairs: [query, text]. What is served here are rerankers, which "
            "score a pair; models that classify a text alone are not served"
        )
        raise Refusal("invalid", message, param="inputs")
    return [(first, second) for first, second in cast("list[list[str]]", given)]


def _is_texts(inputs: Sequence[Any]) -> bool:
    return not isinstance(inputs, str) and all(isinstance(text, str) for text in inputs)


async def predict(service: Service, asked: PredictRequest) -> Reply:
    """For each pair of texts its score, with the name that the model has for it."""
    began, model = perf_counter(), await service.pick(asked.model, TextCrossEncoder)
    check_cutting(asked)
    pairs = pairs_of(asked.inputs)
    counted = await score_pairs(
        service,
        model,
        pairs,
        param="inputs",
        activation="none" if asked.raw_scores else "sigmoid",
        truncate=asked.truncate,
    )
    label = await service.facts(model).label()
    predictions = [[{"score": score, "label": label}] for score in counted.results.tolist()]
    is_alone = _is_texts(asked.inputs)
    body = orjson.dumps(predictions[0] if is_alone else predictions)
    return answered(body, [text for pair in pairs for text in pair], counted, began)


# ---------------------------------------------------------------- tokens

CHARACTERS_PER_TOKEN = 8
"""A text of more than this for each token that a request may have is not tokenized at all."""

TOKENS_AT_ONCE = 1000


async def tokenize(service: Service, asked: TokenizeRequest) -> bytes:
    """The tokens of texts, whether or not they are within the limit."""
    model = await service.pick(asked.model, OF_TEXTS)
    texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
    service.check_count(len(texts), param="inputs")
    prompt = _prompt(model.embedder, asked.prompt_name)
    whole = [prompt + text for text in texts] if prompt else texts

    # There are fewer tokens than characters: how many, is known only when they are there, and take their memory.
    service.check_token_count(sum(map(len, whole)) // CHARACTERS_PER_TOKEN, param="inputs")

    def work(tokens: TokenLists) -> bytes:
        written: list[bytes] = []
        count = 0
        for text in whole:
            found = tokens.tokens(text, add_special_tokens=asked.add_special_tokens)
            count += len(found)
            service.check_token_count(count, param="inputs")
            written.append(_written(found))
        return _list(written)

    return await service.facts(model).ask_tokens(work)


def _written(tokens: Sequence[Token]) -> bytes:
    """Tokens as JSON, in portions: while one is written, no other thread goes on."""
    starts = range(0, len(tokens), TOKENS_AT_ONCE)
    portions = ([token._asdict() for token in tokens[start : start + TOKENS_AT_ONCE]] for start in starts)
    return _list(orjson.dumps(portion)[1:-1] for portion in portions)


async def decode(service: Service, asked: DecodeRequest) -> bytes:
    """What lists of token ids stand for."""
    model = await service.pick(asked.model, OF_TEXTS)
    ids = [cast("list[int]", one) for one in several(asked.ids, param="ids")]
    service.check_count(len(ids), param="ids")
    service.check_token_count(sum(map(len, ids)), param="ids")
    return await service.facts(model).ask_tokens(
        lambda tokens: orjson.dumps(tokens.texts(ids, skip_special_tokens=asked.skip_special_tokens))
    )


def _prompt(embedder: Embedder, name: str | None) -> str:
    if isinstance(embedder, TextEmbedding):
        return prompt_of(embedder, "embed", cast("StreamKeywords", {"prompt_name": name}))
    role_of(name)
    return ""


# ---------------------------------------------------------------- about models


async def info(service: Service, _: None) -> bytes:
    """What the first model is, and, as `models`, what all are."""
    answers = [await _info(service, model) for model in service.models]
    return orjson.dumps({**answers[0], "models": answers})


async def _info(service: Service, model: Served[Embedder]) -> dict[str, object]:
    await load(model.embedder)
    facts = service.facts(model)
    config, engine = facts.config, facts.engine
    return {
        "model_id": model.embedder.model_name,
        "model_sha": facts.revision,
        "model_dtype": facts.dtype,
        "model_fingerprint": await fingerprint_in_thread(model.embedder),
        "served_model_name": model.name,
        "model_type": await _type(facts),
        "max_concurrent_requests": engine.plan.max_queued,
        "max_input_length": model.embedder.max_length,
        "max_batch_tokens": config.max_batch_tokens,
        "max_batch_requests": config.max_batch_size,
        "max_client_batch_size": service.limits.max_inputs,
        "auto_truncate": True,
        "tokenization_workers": engine.size,
        "version": __version__,
        "sha": None,
        "docker_label": None,
    }


async def _type(facts: ModelFacts) -> dict[str, object]:
    spec = facts.config.spec
    if spec.family == "cross_encoder":
        label = await facts.label()
        return {"reranker": {"id2label": {"0": label}, "label2id": {label: 0}}}
    return {"embedding": {"pooling": POOLINGS.get(spec.family) or spec.pooling}}


POOLINGS: Mapping[str, str] = {"sparse": "splade", "late_interaction": "none", "late_interaction_multimodal": "none"}
"""What stands there for models whose vectors do not come by pooling."""


# ---------------------------------------------------------------- whatever the model is for

BY_CLASS: "Sequence[tuple[type[Embedder], Callable[[Service, Any], Awaitable[Reply | bytes]], type]]" = (
    (TextEmbedding, embed, EmbedRequest),
    (SparseTextEmbedding, embed_sparse, EmbedSparseRequest),
    (LateInteractionTextEmbedding, embed_all, EmbedAllRequest),
    (TextCrossEncoder, predict, PredictRequest),
)
"""What `/` does with `inputs`, and how it reads its body."""


async def infer(service: Service, asked: dict[str, msgspec.Raw]) -> Reply | bytes:
    """What the model is for, as clients ask for it that know an address only."""
    body = msgspec.json.encode(asked)
    if "query" in asked:
        return await rerank(service, bodies_of(RerankRequest)(body))
    if bytes(asked.get("inputs", b"")).startswith(b"{"):
        return await similarity(service, bodies_of(SimilarityRequest)(body))
    model = await service.pick(bodies_of(TeiRequest)(body).model, [kind for kind, _, _ in BY_CLASS])
    handle, form = next((handle, form) for kind, handle, form in BY_CLASS if isinstance(model.embedder, kind))
    return await handle(service, bodies_of(form)(body))


# ---------------------------------------------------------------- the dialect

_ERROR_TYPES: Mapping[Kind, str] = {
    "empty": "Empty",
    "no_model": "Backend",
    "unfit": "Backend",
    "failed": "Backend",
    "overloaded": "Overloaded",
    "unavailable": "Unhealthy",
}


class TeiDialect(Dialect):
    """Routes and errors of Text Embeddings Inference."""

    name = "text-embeddings-inference"
    statuses: ClassVar[Mapping[Kind, int]] = {
        "malformed": 422,
        "invalid": 422,
        "too_many": 422,
        "unfit": 424,
        "failed": 424,
    }
    routes: tuple[Route, ...] = (
        Route(
            path="/embed",
            handle=embed,
            body=EmbedRequest,
            answer=list[list[float]],
            summary="Vectors of one text or several.",
        ),
        Route(
            path="/embed_sparse",
            handle=embed_sparse,
            body=EmbedSparseRequest,
            answer=list[list[SparseValue]],
            summary="Sparse vectors of one text or several.",
        ),
        Route(
            path="/embed_all",
            handle=embed_all,
            body=EmbedAllRequest,
            answer=list[list[list[float]]],
            summary="For one text or several, a vector per token.",
        ),
        Route(
            path="/similarity",
            handle=similarity,
            body=SimilarityRequest,
            answer=list[float],
            summary="How near several texts are to one: cosines.",
        ),
        Route(
            path="/rerank",
            handle=rerank,
            body=RerankRequest,
            answer=list[Rank] | JinaRerankAnswer,
            summary="Texts by how well they answer a query, best first.",
        ),
        Route(
            path="/predict",
            handle=predict,
            body=PredictRequest,
            answer=list[Prediction | list[Prediction]],
            summary="Scores of one pair of texts or several.",
        ),
        Route(
            path="/tokenize",
            handle=tokenize,
            body=TokenizeRequest,
            answer=list[list[SimpleToken]],
            summary="Tokens of one text or several.",
        ),
        Route(path="/decode", handle=decode, body=DecodeRequest, answer=list[str], summary="Texts from token ids."),
        Route(
            path="/",
            handle=infer,
            body=dict[str, msgspec.Raw],
            answer=Any,
            summary="What the model is for: as `/embed`, `/embed_sparse`, `/embed_all`, `/rerank` or `/predict`.",
        ),
        Route(path="/info", handle=info, answer=InfoAnswer, summary="What the first model is, and what all are."),
    )

    def refuse(self, refusal: Refusal, status: int) -> object:  # noqa: ARG002 (it says nothing of it)
        """Its form: `error`, a sentence, and `error_type`."""
        return {"error": refusal.message, "error_type": _ERROR_TYPES.get(refusal.kind, "Validation")}
