"""The classes that block: what comes is typed as precisely as of the asynchronous ones, and so is what they refuse."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias, assert_type

import numpy as np
from numpy.typing import NDArray

from asyncembed import Chunk, Counted, CountedBatch, SparseEmbedding, sync
from asyncembed.errors import EncodeError, InputError, WorkerCrashed
from tests.typed.results import Record, path_of, text_of

Floats: TypeAlias = NDArray[np.float32]
Halves: TypeAlias = NDArray[np.float16]
Bytes: TypeAlias = NDArray[np.int8]


def dense(model: sync.TextEmbedding, texts: list[str], lines: Iterator[str]) -> None:
    assert_type(model, sync.TextEmbedding[np.float32])
    for vector in model.embed(texts):
        assert_type(vector, Floats)
    assert_type(model.embed(lines).collect(), Floats)
    assert_type(model.passage_embed(texts, prompt_name="web", truncate_dim=64).collect(), Floats)
    assert_type(model.embed_query("x", task="retrieval"), Floats)
    assert_type(model.embed_documents(texts, prompt="search: "), Floats)
    assert_type(model.token_count(texts), int)
    assert_type(model.embed(texts).take_some(), list[Floats])
    assert_type(model.embed_query("x", with_tokens=True), Counted[Floats])
    assert_type(model.embed(texts).with_tokens().collect(), CountedBatch[Floats])
    for batch in model.embed(texts, on_error="skip", ordered=False, priority="interactive").batches(8):
        assert_type(batch, Floats)
    with model as opened, opened.embed(texts) as stream:
        assert_type(next(stream), Floats)


def records(model: sync.TextEmbedding, many: list[Record], some: Iterator[Record]) -> None:
    for pair in model.embed(many, key=text_of).with_inputs():
        assert_type(pair, tuple[Record, Floats])
    for batch, vectors in model.query_embed(some, key=lambda record: record["text"]).with_inputs().batches(8):
        assert_type(batch, list[Record])
        assert_type(vectors, Floats)
    assert_type(model.passage_embed(many, key=text_of).with_inputs().collect(), tuple[list[Record], Floats])


def chunks(model: sync.TextEmbedding, many: list[Record]) -> None:
    for chunk in model.embed_chunks(many, key=text_of):
        assert_type(chunk, Chunk[Record, np.float32])
    assert_type(model.embed_chunks("one text").collect(), list[Chunk[str, np.float32]])


def errors_as_results(model: sync.TextEmbedding, texts: list[str], many: list[Record]) -> None:
    for result in model.embed(texts, on_error="return"):
        assert_type(result, Floats | InputError | EncodeError | WorkerCrashed)
    collected = model.query_embed(many, key=text_of, on_error="return").collect()
    assert_type(collected, list[Floats | InputError | EncodeError | WorkerCrashed])
    for rows, results in model.embed(many, key=text_of, on_error="return").with_inputs().batches(8):
        assert_type(rows, list[Record])
        assert_type(results, list[Floats | InputError | EncodeError | WorkerCrashed])


def forms_of_vectors(texts: list[str], dtype: Literal["float32", "float16"]) -> None:
    half = sync.TextEmbedding("a/b", dtype="float16", pooling="cls", workers=2, keep_alive=60)
    assert_type(half.embed(texts).collect(), Halves)
    bits = sync.TextEmbedding(output="binary", truncate_dim=64, allow_in_loop=True)
    assert_type(bits.embed_query("x"), Bytes)
    small = sync.TextEmbedding(Path("model"), output="int8", int8_ranges=[[-1.0], [1.0]])
    assert_type(small.embed_documents(texts), Bytes)
    either = sync.TextEmbedding("a/b", dtype=dtype)
    assert_type(either.embed_query("x"), Floats | Halves)
    model: sync.TextEmbedding[np.int8] = sync.TextEmbedding(output="binary")
    stream: sync.EmbeddingStream[str, Bytes, Bytes] = model.embed(texts)
    any_model: sync.TextEmbedding[Any] = model
    assert_type(stream.collect(), Bytes)
    any_model.embed(texts).collect()
    sync.TextEmbedding.add_custom_model("a/b", "mean", True, sources="a/b", dim=3)


def the_other_texts(model: sync.SparseTextEmbedding, texts: list[str], many: list[Record]) -> None:
    assert_type(model.embed(texts).collect(), list[SparseEmbedding])
    assert_type(model.embed_query("x"), SparseEmbedding)
    for record, vector in model.query_embed(many, key=text_of).with_inputs():
        assert_type(record, Record)
        assert_type(vector, SparseEmbedding)
    sync.SparseTextEmbedding("a/b", k=1.2, workers=1, keep_alive=None)
    half = sync.LateInteractionTextEmbedding("a/b", dtype="float16", workers=1)
    assert_type(half.embed_documents(texts), list[Halves])
    assert_type(half.embedding_size, int)
    for record, matrix in half.embed(many, key=text_of).with_inputs():
        assert_type(record, Record)
        assert_type(matrix, Halves)


def images(paths: list[Path], many: list[Record], texts: list[str]) -> None:
    model = sync.ImageEmbedding("a/b", fast_decode=True, truncate_dim=64)
    for path, vector in model.embed(paths).with_inputs():
        assert_type(path, Path)
        assert_type(vector, Floats)
    assert_type(model.embed(paths[0]).collect(), Floats)
    assert_type(model.embed_image(b"..."), Floats)
    half = sync.ImageEmbedding("a/b", dtype="float16")
    for result in half.embed(many, key=path_of, on_error="return"):
        assert_type(result, Halves | InputError | EncodeError | WorkerCrashed)
    pages = sync.LateInteractionMultimodalEmbedding("a/b", dtype="float16", long="error")
    assert_type(pages.embed_image(paths).collect(), list[Halves])
    assert_type(pages.embed_text(texts).collect(), list[Halves])
    assert_type(pages.embed_one_image(paths[0]), Halves)


def scores(model: sync.TextCrossEncoder, texts: list[str], many: list[Record], pairs: list[tuple[str, str]]) -> None:
    for score in model.rerank("query", texts):
        assert_type(score, float)
    assert_type(model.rerank("query", many, key=text_of, activation="sigmoid").collect(), Floats)
    assert_type(model.rerank_pairs(pairs).collect(), Floats)
    assert_type(model.rank("query", many, 3, key=text_of), list[tuple[int, float]])
    for batch in model.rerank_pairs(many, key=lambda record: ("q", record["text"]), on_error="return").batches(8):
        assert_type(batch, list[float | InputError | EncodeError | WorkerCrashed])


def refused(
    dense: sync.TextEmbedding, reranker: sync.TextCrossEncoder, texts: list[str], many: list[dict[str, int]]
) -> None:
    dense.embed(many)  # type: ignore[arg-type]
    dense.embed(many, key=lambda record: record["id"])  # type: ignore[arg-type, return-value]
    dense.embed(texts, on_error="ignore")  # type: ignore[call-overload]
    dense.embed(texts, batch_size=32)  # type: ignore[call-overload]
    dense.embed_query(["a list"])  # type: ignore[call-overload]
    reranker.rank("query", many)  # type: ignore[arg-type]
    sync.TextEmbedding("a/b", dtype="int8")  # type: ignore[call-overload]
    sync.TextEmbedding("a/b", keep_alive="5")  # type: ignore[call-overload]
    sync.TextEmbedding("a/b", output="binary", dtype="float16")  # type: ignore[call-overload]
    sync.SparseTextEmbedding("a/b", cuda=True)  # type: ignore[call-arg]
    sync.TextCrossEncoder("a/b", activation="softmax")  # type: ignore[arg-type]


async def asynchronous(dense: sync.TextEmbedding, texts: list[str]) -> None:
    await dense.embed_query("x")  # type: ignore[misc]
    async for _ in dense.embed(texts):  # type: ignore[attr-defined]
        pass
    async with dense:  # type: ignore[attr-defined]
        pass
