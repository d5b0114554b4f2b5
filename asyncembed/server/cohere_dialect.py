"""The interface of Cohere: `POST /v2/embed` of texts and images, `POST /v2/rerank`, and its form of errors."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias
from uuid import uuid4

import msgspec
import numpy as np
import orjson

from asyncembed.embedders.cross_encoder import TextCrossEncoder
from asyncembed.embedders.image import ImageEmbedding
from asyncembed.embedders.text import TextEmbedding
from asyncembed.results import CountedBatch
from asyncembed.server.computing import check_size, embed_images, embed_texts, rank
from asyncembed.server.endpoint import Dialect, Route
from asyncembed.server.refusals import Refusal
from asyncembed.server.service import Service
from asyncembed.server.vectors import as_base64, as_json, each_as

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from asyncembed.encoders.encoder import Mode
    from asyncembed.server.served import Served

NOT_EMPTY = msgspec.Meta(extra_json_schema={"minItems": 1})
"""What the document says; an empty list is refused by name, not as one of a wrong form."""

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]

Priority: TypeAlias = int | None
"""0 is the highest, and what is meant without one; whatever is above it is bulk work here, where there are two."""

# ---------------------------------------------------------------- bodies


class ImageUrl(msgspec.Struct):
    """Where an image is: a URL, or a data URI."""

    url: str


class TextContent(msgspec.Struct, tag_field="type", tag="text"):
    """A text of an input."""

    text: str


class ImageContent(msgspec.Struct, tag_field="type", tag="image_url"):
    """An image of an input."""

    image_url: ImageUrl


class CohereInput(msgspec.Struct):
    """An input: one text, or one image."""

    content: list[TextContent | ImageContent]


class CohereEmbedRequest(msgspec.Struct, kw_only=True):
    """What `/v2/embed` takes: one of `texts`, `images` and `inputs`."""

    model: str | None = None
    input_type: Literal["search_document", "search_query", "classification", "clustering", "image"] | None = None
    texts: Annotated[list[str], NOT_EMPTY] | None = None
    images: Annotated[list[str], NOT_EMPTY] | None = None
    inputs: Annotated[list[CohereInput], NOT_EMPTY] | None = None
    max_tokens: Count | None = None
    output_dimension: Count | None = None
    embedding_types: list[Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]] | None = None
    truncate: Literal["NONE", "START", "END"] = "END"
    priority: Priority = 0


class CohereRerankRequest(msgspec.Struct, kw_only=True):
    """What `/v2/rerank` takes."""

    model: str | None = None
    query: str
    documents: Annotated[list[str], NOT_EMPTY]
    top_n: Count | None = None
    max_tokens_per_doc: Count | None = None
    relevant_spans: dict[str, Any] | None = None
    instruction: str | None = None
    priority: Priority = 0


class CohereEmbeddings(msgspec.Struct, omit_defaults=True):
    """Vectors by what they are made of; "binary" and "ubinary" have eight components to a number."""

    float_: list[list[float]] | None = msgspec.field(default=None, name="float")
    binary: list[list[int]] | None = None
    ubinary: list[list[int]] | None = None
    base64: list[str] | None = None


class CohereEmbedAnswer(msgspec.Struct, omit_defaults=True):
    """What `/v2/embed` answers."""

    id: str
    embeddings: CohereEmbeddings
    meta: dict[str, Any]
    response_type: Literal["embeddings_by_type"]
    texts: list[str] | None = None


class CohereRank(msgspec.Struct):
    """A document and its score, 0 to 1."""

    index: int
    relevance_score: float


class CohereRerankAnswer(msgspec.Struct):
    """What `/v2/rerank` answers."""

    id: str
    results: list[CohereRank]
    meta: dict[str, Any]


# ---------------------------------------------------------------- vectors


async def embed(service: Service, asked: CohereEmbedRequest) -> bytes:
    """Vectors of texts or images, in the forms that are asked for."""
    kinds = asked.embedding_types or ["float"]
    check_types(kinds)
    texts, images = inputs_of(asked)
    if texts is not None:
        counted = await _embed_texts(service, asked, texts)
        units = {"input_tokens": int(counted.tokens.sum())}
    else:
        counted = await _embed_images(service, asked, images or [])
        units = {"images": len(images or []), "image_tokens": int(counted.tokens.sum())}
    answer = {
        "id": str(uuid4()),
        "embeddings": {kind: orjson.Fragment(await in_form(kind, counted.results)) for kind in kinds},
        "meta": meta_of(units),
        "response_type": "embeddings_by_type",
    }
    return orjson.dumps(answer if texts is None else {**answer, "texts": texts})


def check_types(kinds: Sequence[str]) -> None:
    """Raise `Refusal` for the forms of vectors that need to know more than a vector."""
    for kind in kinds:
        if kind not in FORMS:
            message = f"{kind!r} needs the ranges of a corpus, which are not known; there are: {', '.join(FORMS)}"
            raise Refusal("invalid", message, param="embedding_types")


def inputs_of(asked: CohereEmbedRequest) -> tuple[list[str] | None, list[str] | None]:
    """The texts or the images of a request, and None for the others.

    Raises:
        Refusal: There are none, or both.
    """
    given = [one is not None for one in (asked.texts, asked.images, asked.inputs)]
    if sum(given) != 1:
        raise Refusal("invalid", "give one of texts, images and inputs", param="texts")
    if asked.inputs is None:
        return asked.texts, asked.images
    contents = [one.content[0] for one in asked.inputs if len(one.content) == 1]
    texts = [content.text for content in contents if isinstance(content, TextContent)]
    images = [content.image_url.url for content in contents if isinstance(content, ImageContent)]
    if len(contents) < len(asked.inputs) or (texts and images):
        raise Refusal("invalid", "each of inputs is one text, or each is one image", param="inputs")
    return (None, images) if images else (texts, None)


async def _embed_texts(service: Service, asked: CohereEmbedRequest, texts: list[str]) -> CountedBatch[Any]:
    model = await service.pick(asked.model, TextEmbedding)
    if asked.input_type == "image":
        raise Refusal("invalid", "texts are no images", param="input_type")
    if asked.truncate == "START":
        message = "which end of a text is cut off is the model's own: say END or NONE"
        raise Refusal("invalid", message, param="truncate")
    check_limit(asked.max_tokens, model.embedder.max_length, param="max_tokens")
    check_size(model.embedder, asked.output_dimension, param="output_dimension")
    prompts = service.facts(model).config.spec.prompts
    return await embed_texts(
        service,
        model,
        texts,
        ROLES.get(asked.input_type or "", "embed"),
        param="texts",
        truncate=asked.truncate != "NONE",
        is_bulk=is_bulk(asked.priority),
        truncate_dim=asked.output_dimension,
        prompt_name=asked.input_type if asked.input_type in prompts else None,
    )


ROLES: "Mapping[str, Mode]" = {"search_document": "passage", "search_query": "query"}
"""What `input_type` means. The others are texts without a role, with a prompt of this name where the model has one."""


async def _embed_images(service: Service, asked: CohereEmbedRequest, images: list[str]) -> CountedBatch[Any]:
    model: Served[ImageEmbedding[Any]] = await service.pick(asked.model, ImageEmbedding)
    check_size(model.embedder, asked.output_dimension, param="output_dimension")
    return await embed_images(service, model, images, param="images", is_bulk=is_bulk(asked.priority))


def is_bulk(priority: int | None) -> bool:
    """Whether a request lets others go first."""
    return priority is not None and priority > 0


def check_limit(wanted: int | None, limit: int | None, *, param: str) -> None:
    """Raise `Refusal` if inputs are to be cut sooner than the model cuts them."""
    if wanted is not None and (limit is None or wanted < limit):
        at = "never" if limit is None else f"at {limit} tokens"
        raise Refusal("invalid", f"this model cuts an input {at}, and at no other length", param=param)


def _bits(vector: "NDArray[Any]") -> "NDArray[np.uint8]":
    return np.packbits(vector > 0)


def _signed_bits(vector: "NDArray[Any]") -> "NDArray[np.int8]":
    """Less 128, as Cohere and sentence-transformers have them."""
    return (_bits(vector).astype(np.int16) - 128).astype(np.int8)


FORMS: "Mapping[str, Callable[[NDArray[Any]], bytes]]" = {
    "float": as_json,
    "base64": as_base64,
    "binary": lambda vector: as_json(_signed_bits(vector)),
    "ubinary": lambda vector: as_json(_bits(vector)),
}
"""From a vector, float32 (dim,), to what stands in the answer."""


async def in_form(kind: str, vectors: "NDArray[Any]") -> bytes:
    """Vectors (n, dim) as they stand in an answer."""
    return b"[%b]" % b",".join(await each_as(FORMS[kind], vectors))


# ---------------------------------------------------------------- ranks


async def rerank(service: Service, asked: CohereRerankRequest) -> bytes:
    """Documents by how well they answer a query, best first."""
    model = await service.pick(asked.model, TextCrossEncoder)
    if asked.relevant_spans is not None:
        raise Refusal("invalid", "relevant_spans are not told here: leave them out", param="relevant_spans")
    check_limit(asked.max_tokens_per_doc, model.embedder.max_length, param="max_tokens_per_doc")
    counted = await rank(
        service,
        model,
        asked.query,
        asked.documents,
        param="documents",
        top_k=asked.top_n,
        instruction=asked.instruction,
        is_bulk=is_bulk(asked.priority),
    )
    results = [{"index": index, "relevance_score": score} for index, score in counted.results]
    units = {"search_units": 1, "input_tokens": int(counted.tokens.sum())}
    return orjson.dumps({"id": str(uuid4()), "results": results, "meta": meta_of(units)})


def meta_of(units: Mapping[str, int]) -> dict[str, object]:
    """What an answer says beside what was asked for."""
    return {"api_version": {"version": "2"}, "billed_units": units}


# ---------------------------------------------------------------- the dialect


class CohereDialect(Dialect):
    """Routes and errors of Cohere."""

    name = "cohere"
    routes: tuple[Route, ...] = (
        Route(
            path="/v2/embed",
            handle=embed,
            body=CohereEmbedRequest,
            answer=CohereEmbedAnswer,
            summary="Vectors of texts or images, in one form or several.",
        ),
        Route(
            path="/v2/rerank",
            handle=rerank,
            body=CohereRerankRequest,
            answer=CohereRerankAnswer,
            summary="Documents by how well they answer a query, best first.",
        ),
    )

    def refuse(self, refusal: Refusal, status: int) -> object:  # noqa: ARG002 (it says nothing of it)
        """Its form: `message`, a sentence, and an id of the answer."""
        return {"id": str(uuid4()), "message": refusal.message}
