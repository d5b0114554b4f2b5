"""What type-checks runs: each call here raises when it is made, and a type checker says so before.

An ignored error that no longer is one is an error itself, of mypy and of pyright.
"""

from pathlib import Path

from asyncembed import (
    ImageEmbedding,
    LateInteractionMultimodalEmbedding,
    LateInteractionTextEmbedding,
    SparseTextEmbedding,
    TextCrossEncoder,
    TextEmbedding,
)


def records_without_a_key(
    dense: TextEmbedding,
    sparse: SparseTextEmbedding,
    matrices: LateInteractionTextEmbedding,
    images: ImageEmbedding,
    pages: LateInteractionMultimodalEmbedding,
    reranker: TextCrossEncoder,
    records: list[dict[str, str]],
) -> None:
    dense.embed(records)  # type: ignore[arg-type]
    dense.query_embed(records, on_error="return")  # type: ignore[call-overload]
    dense.passage_embed(records)  # type: ignore[arg-type]
    sparse.embed(records)  # type: ignore[arg-type]
    sparse.passage_embed(records, on_error="skip")  # type: ignore[call-overload]
    matrices.query_embed(records)  # type: ignore[arg-type]
    images.embed([3, 4])  # type: ignore[list-item]
    pages.embed_text([Path("page.png")])  # type: ignore[list-item]
    pages.embed_image(records, key=lambda record: len(record))  # type: ignore[arg-type, return-value]
    reranker.rerank("query", records)  # type: ignore[arg-type]
    reranker.rerank_pairs(["a", "b"])  # type: ignore[list-item]


async def a_few_records(dense: TextEmbedding, reranker: TextCrossEncoder, records: list[dict[str, str]]) -> None:
    await dense.embed_documents(records)  # type: ignore[arg-type]
    await dense.embed_query(["a list"])  # type: ignore[call-overload]
    await reranker.rank("query", records)  # type: ignore[arg-type]
    await dense.token_count([1, 2])  # type: ignore[list-item]


def keys_that_give_no_text(dense: TextEmbedding, reranker: TextCrossEncoder, records: list[dict[str, int]]) -> None:
    dense.embed(records, key=lambda record: record["id"])  # type: ignore[arg-type, return-value]
    reranker.rerank_pairs(records, key=lambda record: record["id"])  # type: ignore[arg-type, return-value]


def values_that_do_not_exist(dense: TextEmbedding, sparse: SparseTextEmbedding, texts: list[str]) -> None:
    dense.embed(texts, on_error="ignore")  # type: ignore[call-overload]
    dense.embed(texts, on_error=len)  # type: ignore[arg-type]
    dense.embed(texts, priority=1)  # type: ignore[call-overload]
    sparse.embed(texts, ordered="yes")  # type: ignore[call-overload]
    TextEmbedding("a/b", dtype="int8")  # type: ignore[call-overload]
    TextEmbedding("a/b", output="ubinary")  # type: ignore[call-overload]
    TextEmbedding("a/b", pooling="median")  # type: ignore[call-overload]
    TextEmbedding("a/b", device="cuda:0")  # type: ignore[call-overload]
    TextCrossEncoder("a/b", activation="softmax")  # type: ignore[arg-type]
    ImageEmbedding("a/b", url_timeout="5")  # type: ignore[call-overload]


def keywords_that_go_together_or_exclude_each_other() -> None:
    TextEmbedding("a/b", output="int8")  # type: ignore[call-overload]
    TextEmbedding("a/b", output="binary", dtype="float16")  # type: ignore[call-overload]
    TextEmbedding("a/b", int8_ranges=[[0.0], [1.0]])  # type: ignore[call-overload]


def keywords_of_other_libraries(dense: TextEmbedding, sparse: SparseTextEmbedding, texts: list[str]) -> None:
    dense.embed(texts, batch_size=32)  # type: ignore[call-overload]
    sparse.embed(texts, parallel=4)  # type: ignore[call-overload]
    TextEmbedding("a/b", lazy_load=True)  # type: ignore[call-overload]
    SparseTextEmbedding("a/b", cuda=True)  # type: ignore[call-arg]


async def streams_are_asynchronous(dense: TextEmbedding, texts: list[str]) -> None:
    list(dense.embed(texts))  # type: ignore[call-overload]
    await dense.embed(texts)  # type: ignore[misc]
    with dense:  # type: ignore[attr-defined]
        pass
    dense.encode(texts)  # type: ignore[attr-defined]
