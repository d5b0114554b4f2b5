"""What routes of several dialects ask of a model, within the limits of a request: texts, pairs, ranks, images.

All of it goes before bulk work, but long lists of texts and what is said to be bulk work itself; it is withdrawn when
its request is cancelled.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from asyncembed.embedders.base import opened_model
from asyncembed.embedders.cross_encoder import TextCrossEncoder, rank_texts
from asyncembed.embedders.image import ImageEmbedding
from asyncembed.embedders.roles import TextRoles, one_text, several_texts
from asyncembed.embedders.text import TextEmbedding
from asyncembed.errors import OverloadedError
from asyncembed.results import CountedBatch
from asyncembed.server.refusals import Refusal
from asyncembed.server.sent_images import images_of, is_large
from asyncembed.server.served import Served
from asyncembed.server.service import Service
from asyncembed.wakeup import completion, start_thread

if TYPE_CHECKING:
    from asyncembed.embedders.base import Embedder, HasVectors, PriorityName, StreamKeywords
    from asyncembed.embedders.cross_encoder import RerankKeywords
    from asyncembed.embedders.multimodal import LateInteractionMultimodalEmbedding
    from asyncembed.encoders.encoder import Mode

Activation = Literal["none", "sigmoid"]

INTERACTIVE_TEXTS = 64
"""A request of more texts is bulk work: queries need not wait for what takes a small model half a second."""

# ---------------------------------------------------------------- texts


def several(inputs: str | Sequence[str | int | list[int]], *, param: str) -> list[str | list[int]]:
    """The texts, or token ids of texts, that a request has; one alone is one of them.

    Raises:
        Refusal: They are numbers and texts together.
    """
    if isinstance(inputs, str):
        return [inputs]
    numbers = sum(isinstance(one, int) for one in inputs)
    if numbers == 0:
        return cast("list[str | list[int]]", inputs)
    if numbers < len(inputs):
        raise Refusal("invalid", f"{param} has texts, or token ids, or lists of token ids", param=param)
    return [cast("list[int]", inputs)]


async def texts_of(
    service: Service, model: "Served[Embedder]", inputs: str | Sequence[str | int | list[int]], *, param: str
) -> list[str]:
    """The texts of a request, token ids as what they stand for.

    Raises:
        Refusal: There are none, or too many; the model has no tokens.
        InputError: It has others.
    """
    given = several(inputs, param=param)
    service.check_count(len(given), param=param)
    places = [place for place, one in enumerate(given) if not isinstance(one, str)]
    if places:
        ids = [cast("list[int]", given[place]) for place in places]
        service.check_token_count(sum(map(len, ids)), param=param)
        found = await service.facts(model).ask_tokens(lambda tokens: tokens.texts(ids))
        for place, text in zip(places, found, strict=True):
            given[place] = text
    return cast("list[str]", given)


async def embed_texts(
    service: Service,
    model: "Served[TextRoles[Any, Any] | LateInteractionMultimodalEmbedding[Any]]",
    texts: Sequence[str],
    mode: "Mode" = "embed",
    *,
    param: str,
    truncate: bool | None = None,
    is_bulk: bool = False,
    **call: Any,
) -> CountedBatch[Any]:
    """The results of texts in a role; `call` are keywords of the model's `embed`.

    Args:
        service: Whose limits are kept.
        model: What computes them.
        texts: At least one.
        mode: What they are.
        param: The field of the body that they come from.
        truncate: False refuses the request if a text is over the model's limit; None: as the model was opened.
        is_bulk: Whether others go first, however few texts there are.
        call: Keywords of `TextEmbedding.embed`, for such a model.
    """
    embedder = model.embedder
    service.check_count(len(texts), param=param)
    await service.check_tokens(model, texts, param=param)
    if truncate is not None and isinstance(embedder, TextEmbedding):
        call["long"] = "truncate" if truncate else "error"
    asked = cast("StreamKeywords", call)
    if not isinstance(embedder, TextRoles):
        counted = await embedder.embed_text(texts, priority="interactive").with_tokens().collect()
    elif len(texts) == 1 and not is_bulk:
        counted = await _one_text(embedder, texts[0], mode, asked)
    else:
        is_bulk = is_bulk or len(texts) > INTERACTIVE_TEXTS
        with lane(service, embedder, len(texts), is_bulk=is_bulk) as priority:
            counted = await several_texts(embedder, texts, mode, {**asked, "priority": priority})
    return _checked(counted, embedder, param, truncate=truncate)


async def _one_text(
    embedder: TextRoles[Any, Any], text: str, mode: "Mode", asked: "StreamKeywords"
) -> CountedBatch[Any]:
    """The same as several: it costs less than a stream."""
    result, tokens, is_cut = await one_text(embedder, text, mode, asked)
    results = result[None] if isinstance(embedder, TextEmbedding) else [result]
    return CountedBatch(results, np.array([tokens], np.int32), np.array([is_cut], np.bool_))


@contextmanager
def lane(
    service: Service, embedder: "Embedder", count: int, *, is_bulk: bool, are_absent: bool = False
) -> "Iterator[PriorityName]":
    """Where so many inputs of a request wait: gives their priority.

    Of bulk work a server keeps the count itself; what has yet to be fetched counts apart, as in the engine.

    Raises:
        OverloadedError: As many of bulk work wait as may; what comes alone may be more than that.
    """
    if not is_bulk:
        yield "interactive"
        return
    _, engine = opened_model(embedder)
    most, waiting = engine.plan.max_queued, service.bulk[engine, are_absent]
    if most is not None and waiting and waiting + count > most:
        raise OverloadedError(f"{waiting} inputs of bulk work wait already (max_queued={most})")
    service.bulk[engine, are_absent] += count
    try:
        yield "bulk"
    finally:
        service.bulk[engine, are_absent] -= count


def _checked(
    counted: CountedBatch[Any], embedder: "Embedder", param: str, *, truncate: bool | None
) -> CountedBatch[Any]:
    """The results. Raises `Refusal` if a text was cut that was not to be."""
    if truncate is False and counted.is_cut.any():
        index = int(counted.is_cut.argmax())
        limit = embedder.max_length
        raise Refusal(
            "invalid", f"input {index}: longer than the model's limit of {limit} tokens, and not to be cut", param=param
        )
    return counted


# ---------------------------------------------------------------- pairs of texts


async def rank(
    service: Service,
    model: Served[TextCrossEncoder],
    query: str,
    documents: Sequence[str],
    *,
    param: str,
    top_k: int | None = None,
    activation: Activation = "sigmoid",
    instruction: str | None = None,
    truncate: bool | None = None,
    is_bulk: bool = False,
) -> CountedBatch[list[tuple[int, float]]]:
    """The best documents for a query, as `TextCrossEncoder.rank`; `param` is the field of the documents."""
    whole_query = query if instruction is None else f"{instruction} {query}"  # which is read with each document
    await _check_pairs(service, model, [(whole_query, document) for document in documents], param)
    with lane(service, model.embedder, len(documents), is_bulk=is_bulk) as priority:
        call: RerankKeywords = {"activation": activation, "instruction": instruction, "priority": priority}
        counted = await rank_texts(model.embedder, query, documents, top_k, call)
    return _checked(counted, model.embedder, param, truncate=truncate)


async def score_pairs(
    service: Service,
    model: Served[TextCrossEncoder],
    pairs: Sequence[tuple[str, str]],
    *,
    param: str,
    activation: Activation = "sigmoid",
    truncate: bool | None = None,
) -> CountedBatch[Any]:
    """The scores of pairs, float32 (n,)."""
    await _check_pairs(service, model, pairs, param)
    stream = model.embedder.rerank_pairs(pairs, activation=activation, priority="interactive")
    counted = await stream.with_tokens().collect()
    return _checked(counted, model.embedder, param, truncate=truncate)


async def _check_pairs(
    service: Service, model: Served[TextCrossEncoder], pairs: Sequence[tuple[str, str]], param: str
) -> None:
    service.check_count(len(pairs), param=param)
    await service.check_tokens(model, pairs, param=param)


# ---------------------------------------------------------------- images


async def embed_images(
    service: Service,
    model: "Served[ImageEmbedding[Any] | LateInteractionMultimodalEmbedding[Any]]",
    images: Sequence[str],
    *,
    param: str,
    is_bulk: bool = False,
) -> CountedBatch[Any]:
    """The results of images, each a URL, a data URI or base64: float32 (n, dim), or a list of matrices."""
    service.check_count(len(images), param=param)
    given = await completion(start_thread(images_of, images)) if is_large(images) else images_of(images)
    embedder = model.embedder
    method = embedder.embed if isinstance(embedder, ImageEmbedding) else embedder.embed_image
    are_absent = any(isinstance(image, str) for image in given)
    with lane(service, embedder, len(images), is_bulk=is_bulk, are_absent=are_absent) as priority:
        return await method(given, priority=priority).with_tokens().collect()


def check_size(embedder: "HasVectors", wanted: int | None, *, param: str) -> None:
    """Raise `Refusal` for vectors of a length that the model does not give; those of texts may be cut to less."""
    size = embedder.embedding_size
    is_cut = isinstance(embedder, TextEmbedding)
    if wanted is not None and (wanted > size or (wanted < size and not is_cut)):
        what_else = "can be cut to fewer, and are never longer" if is_cut else "are never cut"
        message = f"{param} is {wanted}: vectors of this model have {size} components, and {what_else}"
        raise Refusal("invalid", message, param=param)
