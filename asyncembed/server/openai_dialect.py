"""The interface of OpenAI: `POST /v1/embeddings`, `GET /v1/models`, and its form of errors."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

import msgspec
import orjson

from asyncembed.embedders.base import Embedder
from asyncembed.embedders.late_interaction import LateInteractionTextEmbedding
from asyncembed.embedders.text import TextCall, TextEmbedding
from asyncembed.server.endpoint import Dialect, Route
from asyncembed.server.refusals import Kind, Refusal
from asyncembed.server.served import Served
from asyncembed.server.service import NO_CALL, Service
from asyncembed.server.vectors import as_base64, as_json, each_as

if TYPE_CHECKING:
    from asyncembed.embedders.roles import TextRoles

# ---------------------------------------------------------------- bodies


Id: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
"""Of a token, as the model's own tokenizer has it."""


class EmbeddingsRequest(msgspec.Struct):
    """What `/v1/embeddings` takes: a text, the ids of its tokens, or several of one or the other.

    `input_type` is no field of OpenAI's: what the texts are, for models that tell queries from passages.
    """

    input: str | list[str | list[Id] | Id]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    user: str | None = None
    input_type: Literal["query", "passage"] | None = None


class EmbeddingObject(msgspec.Struct):
    """One vector: numbers, or base64 of float32. A model of late interaction has a list of vectors."""

    object: Literal["embedding"]
    index: int
    embedding: list[float | list[float]] | str


class Usage(msgspec.Struct):
    """The tokens that were computed."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(msgspec.Struct):
    """What `/v1/embeddings` answers."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: Usage


class ModelObject(msgspec.Struct):
    """One model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsAnswer(msgspec.Struct):
    """What `/v1/models` answers."""

    object: Literal["list"]
    data: list[ModelObject]


# ---------------------------------------------------------------- routes


async def embeddings(service: Service, asked: EmbeddingsRequest) -> bytes:
    """Vectors of texts."""
    model = service.models.pick(asked.model, _KINDS)
    texts = [asked.input] if isinstance(asked.input, str) else await _texts(service, model, asked.input)
    if not all(texts):
        raise Refusal("invalid", "input has an empty text, which means nothing", param="input")
    mode = asked.input_type or "embed"
    call = NO_CALL if asked.dimensions is None else _shortened(model.embedder, asked.dimensions)
    # Of several vectors base64 would not say how many there are.
    is_packed = asked.encoding_format == "base64" and isinstance(model.embedder, TextEmbedding)
    write = as_base64 if is_packed else as_json
    if len(texts) == 1:
        vector, tokens = await service.embed_text(model, texts[0], mode, call=call)
        written = [write(vector)]
    else:
        vectors, tokens = await service.embed_texts(model, texts, mode, call=call)
        written = await each_as(write, vectors)
    data = b",".join([b'{"object":"embedding","index":%d,"embedding":%b}' % one for one in enumerate(written)])
    return b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (
        data,
        model.json_name,
        tokens,
        tokens,
    )


_KINDS: "tuple[type[TextRoles[Any, Any]], ...]" = (TextEmbedding, LateInteractionTextEmbedding)


def _shortened(embedder: Embedder, dimensions: int) -> TextCall:
    if not isinstance(embedder, TextEmbedding):
        raise Refusal("invalid", "the vectors of this model cannot be made shorter", param="dimensions")
    return TextCall(truncate_dim=dimensions)


async def _texts(service: Service, model: Served[Embedder], given: Sequence[str | int | list[int]]) -> list[str]:
    """The texts of a list: themselves, or what their token ids, or the ids of one text, stand for."""
    if all(isinstance(one, str) for one in given):
        return cast("list[str]", given)
    if all(isinstance(one, int) for one in given):
        several = [cast("list[int]", given)]
    elif all(isinstance(one, list) for one in given):
        several = cast("list[list[int]]", given)
    else:
        raise Refusal("malformed", "input has texts as well as token ids: give one or the other", param="input")
    service.check_count(len(several), param="input")
    return await service.facts(model).ask_tokens(lambda tokens: tokens.texts(several))


async def models(service: Service, _: None) -> bytes:
    """What is served."""
    data = [
        {"id": model.name, "object": "model", "created": model.created, "owned_by": "asyncembed"}
        for model in service.models
    ]
    return orjson.dumps({"object": "list", "data": data})


# ---------------------------------------------------------------- the dialect

_CODES: Mapping[Kind, str] = {"no_key": "invalid_api_key", "no_model": "model_not_found", "overloaded": "overloaded"}


class OpenAIDialect(Dialect):
    """Routes and errors of OpenAI; also the form of refusals that belong to no route."""

    name = "openai"
    routes: tuple[Route, ...] = (
        Route(
            path="/v1/embeddings",
            handle=embeddings,
            body=EmbeddingsRequest,
            answer=EmbeddingsAnswer,
            summary="Vectors of one text or several.",
        ),
        Route(path="/v1/models", handle=models, answer=ModelsAnswer, summary="The models that are served."),
    )

    def refuse(self, refusal: Refusal, status: int) -> object:
        """Its form: an object `error` with message, type, param and code."""
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        code = _CODES.get(refusal.kind)
        return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": code}}
