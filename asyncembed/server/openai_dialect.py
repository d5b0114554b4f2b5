"""The interface of OpenAI: `POST /v1/embeddings`, `GET /v1/models` and `/v1/models/{id}`, and its form of errors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

import msgspec
import orjson

from asyncembed.embedders.base import Embedder
from asyncembed.embedders.image import ImageEmbedding
from asyncembed.embedders.late_interaction import LateInteractionTextEmbedding
from asyncembed.embedders.multimodal import LateInteractionMultimodalEmbedding
from asyncembed.embedders.text import TextCall, TextEmbedding
from asyncembed.results import CountedBatch
from asyncembed.server.computing import check_size, embed_images, embed_texts, texts_of
from asyncembed.server.endpoint import Dialect, Route
from asyncembed.server.refusals import Kind, Refusal
from asyncembed.server.served import Served
from asyncembed.server.service import Service
from asyncembed.server.vectors import as_base64, as_json, each_as

if TYPE_CHECKING:
    from asyncembed.encoders.encoder import Mode

# ---------------------------------------------------------------- bodies


Id: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
"""Of a token, as the model's own tokenizer has it."""


class InputObject(msgspec.Struct):
    """An input as Jina has it: a text, or an image by its URL, a data URI or base64."""

    text: str | None = None
    image: str | None = None


Modality: TypeAlias = Literal["text", "image"]

Texts: TypeAlias = str | list[str | int | list[int]] | list[str]

InputRole: TypeAlias = Literal["query", "document", "passage", "search_query", "search_document"]


class EmbeddingsRequest(msgspec.Struct):
    """What `/v1/embeddings` takes. `input_type` and `modality` are no words of OpenAI's, but of others who speak so.

    Attributes:
        input: A text, the token ids of one, or several of either; with the modality "image", images.
        input_type: What the texts are, for models that tell queries from documents. None: neither.
        modality: What the inputs are, as Infinity has it.
        output_dimension: `dimensions` in Voyage's word.
        output_dtype: Of Voyage's: what is not done is refused, as vectors would be others than those asked for.
        embedding_type: Likewise of Jina's.
        late_chunking: Likewise.
    """

    input: str | InputObject | list[str | Id | list[Id] | InputObject]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    user: str | None = None
    input_type: InputRole | None = None
    modality: Modality = "text"
    output_dimension: Annotated[int, msgspec.Meta(ge=1)] | None = None
    output_dtype: Literal["float"] | None = None
    embedding_type: Literal["float"] | None = None
    late_chunking: bool | None = None


class EmbeddingObject(msgspec.Struct):
    """One vector: numbers, or base64 of float32. Of a late interaction model several, always as numbers."""

    object: Literal["embedding"]
    index: int
    embedding: str | list[float | list[float]]


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

OF_TEXTS = (TextEmbedding, LateInteractionTextEmbedding, LateInteractionMultimodalEmbedding)
OF_IMAGES = (ImageEmbedding, LateInteractionMultimodalEmbedding)

ROLES: "Mapping[InputRole | None, Mode]" = {
    "query": "query",
    "search_query": "query",
    "document": "passage",
    "passage": "passage",
    "search_document": "passage",
}


async def embeddings(service: Service, asked: EmbeddingsRequest) -> bytes:
    """Vectors of texts or images."""
    model, counted = await _embed(service, asked)
    # Of several vectors base64 would not say how many there are.
    is_packed = asked.encoding_format == "base64" and counted.results[0].ndim == 1
    written = await each_as(as_base64 if is_packed else as_json, counted.results)
    data = b",".join([b'{"object":"embedding","index":%d,"embedding":%b}' % one for one in enumerate(written)])
    tokens = int(counted.tokens.sum())
    return b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (
        data,
        model.json_name,
        tokens,
        tokens,
    )


async def _embed(service: Service, asked: EmbeddingsRequest) -> tuple[Served[Any], CountedBatch[Any]]:
    """The model that is asked for, and what it gives: vectors (n, dim), or a list of matrices (rows, dim)."""
    texts, images = _inputs(asked)
    kinds = OF_IMAGES if texts is None else TextEmbedding if asked.model is None else OF_TEXTS
    model: Served[Any] = await service.pick(asked.model, kinds)
    call: TextCall = {}
    if asked.late_chunking:
        raise Refusal("invalid", "late_chunking: each input is a text of its own here", param="late_chunking")
    size, word = asked.dimensions, "dimensions"
    if size is None:
        size, word = asked.output_dimension, "output_dimension"
    if size is not None:
        check_size(model.embedder, size, param=word)
        if isinstance(model.embedder, TextEmbedding):
            call["truncate_dim"] = size
    if texts is None:
        return model, await embed_images(service, model, images or [], param="input")
    whole = await texts_of(service, model, texts, param="input")
    if not all(whole):
        raise Refusal("invalid", "input has an empty text, which means nothing", param="input")
    role = ROLES.get(asked.input_type, "embed")
    return model, await embed_texts(service, model, whole, role, param="input", **call)


def _inputs(asked: EmbeddingsRequest) -> tuple[Texts | None, list[str] | None]:
    """The texts or the images of a request, and None for the others.

    Raises:
        Refusal: There are both.
    """
    given = asked.input if isinstance(asked.input, list) else [asked.input]
    if asked.modality == "text" and not any(isinstance(one, InputObject) for one in given):
        return cast("Texts", asked.input), None
    found = [_input(one, asked.modality) for one in given]
    kinds = {kind for kind, _ in found} or {asked.modality}
    if len(kinds) > 1:
        raise Refusal("invalid", "input has texts and images: send them one after the other", param="input")
    values = [value for _, value in found]
    return (None, values) if kinds == {"image"} else (values, None)


def _input(given: str | int | list[int] | InputObject, modality: Modality) -> tuple[Modality, str]:
    if isinstance(given, str):
        return modality, given
    if isinstance(given, InputObject):
        if given.text is not None and given.image is None:
            return "text", given.text
        if given.image is not None and given.text is None:
            return "image", given.image
    raise Refusal("invalid", "an object of input has a text or an image, and an image is no token ids", param="input")


async def models(service: Service, _: None) -> bytes:
    """What is served."""
    return orjson.dumps({"object": "list", "data": [_object(model) for model in service.models]})


async def one_model(service: Service, name: str) -> bytes:
    """One of them, by its name; without one, all."""
    if not name:  # a slash too many
        return await models(service, None)
    return orjson.dumps(_object(service.models.pick(name, Embedder)))


def _object(model: Served[Embedder]) -> dict[str, object]:
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "asyncembed"}


# ---------------------------------------------------------------- the dialect

_CODES: Mapping[Kind, str] = {
    "no_key": "invalid_api_key",
    "no_model": "model_not_found",
    "unfit": "model_not_found",
    "overloaded": "overloaded",
}


class OpenAIDialect(Dialect):
    """Routes and errors of OpenAI; also the form of refusals that belong to no route."""

    name = "openai"
    # Without the version, as Text Embeddings Inference and Infinity have them too.
    routes: tuple[Route, ...] = tuple(
        route
        for prefix in ("/v1", "")
        for route in (
            Route(
                path=f"{prefix}/embeddings",
                handle=embeddings,
                body=EmbeddingsRequest,
                answer=EmbeddingsAnswer,
                summary="Vectors of texts or images, one or several.",
            ),
            Route(path=f"{prefix}/models", handle=models, answer=ModelsAnswer, summary="The models that are served."),
            Route(
                path=f"{prefix}/models/{{id}}",
                handle=one_model,
                answer=ModelObject,
                summary="One of them, by its name, in which slashes may stand as they are.",
            ),
        )
    )

    def refuse(self, refusal: Refusal, status: int) -> object:
        """Its form: an object `error` with message, type, param and code."""
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        code = _CODES.get(refusal.kind)
        return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": code}}
