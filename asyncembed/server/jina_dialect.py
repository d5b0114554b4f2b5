"""The interface of Jina for reranking, `/v1/rerank`, which LocalAI, vLLM and gateways have too; and Infinity's.

Infinity's is the same at `/rerank`, but for the documents, which it gives back as plain texts, and only if it is asked.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Protocol

import msgspec
import orjson

from asyncembed.embedders.cross_encoder import TextCrossEncoder
from asyncembed.server.computing import rank
from asyncembed.server.endpoint import Dialect, Route
from asyncembed.server.refusals import Kind, Refusal
from asyncembed.server.service import Service

# ---------------------------------------------------------------- bodies


class JinaDocument(msgspec.Struct):
    """A document that is no plain text."""

    text: str


class JinaRerankRequest(msgspec.Struct, kw_only=True):
    """What `/v1/rerank` takes; scores are 0 to 1 unless `raw_scores` asks for the model's own.

    `instruction` is vLLM's and llama.cpp's word for what a model that is a language model is to look for.
    """

    model: str | None = None
    query: str
    documents: Annotated[list[str | JinaDocument], msgspec.Meta(extra_json_schema={"minItems": 1})]
    top_n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    return_documents: bool = True
    raw_scores: bool = False
    instruction: str | None = None


class JinaUsage(msgspec.Struct):
    """The tokens that were computed, those of the query once for each document."""

    total_tokens: int
    prompt_tokens: int


class JinaRank(msgspec.Struct, omit_defaults=True):
    """A document and its score; Infinity has its text as it is."""

    index: int
    relevance_score: float
    document: JinaDocument | str | None = None


class JinaRerankAnswer(msgspec.Struct):
    """What `/v1/rerank` answers."""

    model: str
    object: str
    usage: JinaUsage
    results: list[JinaRank]


# ---------------------------------------------------------------- routes


class Asked(Protocol):
    """What both have in common."""

    @property
    def model(self) -> str | None: ...
    @property
    def query(self) -> str: ...
    @property
    def top_n(self) -> int | None: ...
    @property
    def return_documents(self) -> bool: ...
    @property
    def raw_scores(self) -> bool: ...
    @property
    def instruction(self) -> str | None: ...


async def rerank(service: Service, asked: JinaRerankRequest) -> bytes:
    """Documents by how well they answer a query, best first."""
    texts = document_texts(asked.documents)
    return await ranked(service, asked, texts, [{"text": text} for text in texts])


def document_texts(documents: Sequence[str | JinaDocument]) -> list[str]:
    """The texts of documents."""
    return [document if isinstance(document, str) else document.text for document in documents]


async def infinity_rerank(service: Service, asked: Asked, documents: Sequence[str | JinaDocument]) -> bytes:
    """The same as Infinity has it."""
    texts = document_texts(documents)
    return await ranked(service, asked, texts, texts)


async def ranked(service: Service, asked: Asked, texts: Sequence[str], shown: Sequence[object]) -> bytes:
    """The answer, with what is `shown` of each of the documents if it is asked for."""
    model = await service.pick(asked.model, TextCrossEncoder)
    counted = await rank(
        service,
        model,
        asked.query,
        texts,
        param="documents",
        top_k=asked.top_n,
        activation="none" if asked.raw_scores else "sigmoid",
        instruction=asked.instruction,
    )
    tokens = int(counted.tokens.sum())
    results = [
        {"index": index, "relevance_score": score, "document": shown[index]}
        if asked.return_documents
        else {"index": index, "relevance_score": score}
        for index, score in counted.results
    ]
    usage = {"total_tokens": tokens, "prompt_tokens": tokens}
    return orjson.dumps({"model": model.name, "object": "rerank", "usage": usage, "results": results})


# ---------------------------------------------------------------- the dialect


class JinaDialect(Dialect):
    """Routes and errors of Jina."""

    name = "jina"
    statuses: ClassVar[Mapping[Kind, int]] = {"malformed": 422, "invalid": 422}
    routes: tuple[Route, ...] = (
        Route(
            path="/v1/rerank",
            handle=rerank,
            body=JinaRerankRequest,
            answer=JinaRerankAnswer,
            summary="Documents by how well they answer a query, best first.",
        ),
    )

    def refuse(self, refusal: Refusal, status: int) -> object:  # noqa: ARG002 (it says nothing of it)
        """Its form: `detail`, a sentence."""
        return {"detail": refusal.message}
