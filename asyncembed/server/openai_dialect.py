"""The interface of OpenAI: `POST /v1/embeddings`, `GET /v1/models`, and its form of errors."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import msgspec
import orjson

from asyncembed.embedders.text import TextCall, TextEmbedding
from asyncembed.server.endpoint import Dialect, Route
from asyncembed.server.refusals import Kind, Refusal
from asyncembed.server.service import NO_CALL, Service
from asyncembed.server.vectors import as_base64, as_json

# ---------------------------------------------------------------- bodies


class EmbeddingsRequest(msgspec.Struct):
    """What `/v1/embeddings` takes."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    user: str | None = None


class EmbeddingObject(msgspec.Struct):
    """One vector: numbers, or base64 of float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


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
    model = service.models.pick(asked.model, TextEmbedding)
    write = as_base64 if asked.encoding_format == "base64" else as_json
    call = NO_CALL if asked.dimensions is None else TextCall(truncate_dim=asked.dimensions)
    texts = _texts(asked.input)
    if len(texts) == 1:
        vector, tokens = await service.embed_text(model, texts[0], call=call)
        data = b'{"object":"embedding","index":0,"embedding":%b}' % write(vector)
    else:
        vectors, tokens = await service.embed_texts(model, texts, call=call)
        data = b",".join(
            b'{"object":"embedding","index":%d,"embedding":%b}' % (index, write(vector))
            for index, vector in enumerate(vectors)
        )
    return b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (
        data,
        model.json_name,
        tokens,
        tokens,
    )


def _texts(given: str | list[str | int | list[int]]) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not all(isinstance(text, str) for text in texts):
        raise Refusal("invalid", "input must be a text or a list of texts", param="input")
    if not all(texts):
        raise Refusal("invalid", "input has an empty text, which means nothing", param="input")
    return texts  # type: ignore[return-value]


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
    routes: ClassVar[tuple[Route, ...]] = (
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
