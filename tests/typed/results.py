"""What is annotated comes: the type of every kind of result, for each class."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, assert_type

import numpy as np
from numpy.typing import NDArray

from asyncembed import (
    Chunk,
    Counted,
    CountedBatch,
    EmbeddingStream,
    HybridBatch,
    HybridEmbedding,
    HybridTextEmbedding,
    ImageEmbedding,
    LateInteractionMultimodalEmbedding,
    LateInteractionTextEmbedding,
    SparseEmbedding,
    SparseTextEmbedding,
    TextCrossEncoder,
    TextEmbedding,
)
from asyncembed.errors import OF_ONE_INPUT, AsyncEmbedError, EncodeError, InputError, WorkerCrashed
from asyncembed.images.inputs import ImageInput
from asyncembed.readers import csv_records, text_lines
from asyncembed.stream import OnError

Floats: TypeAlias = NDArray[np.float32]
Halves: TypeAlias = NDArray[np.float16]
Bytes: TypeAlias = NDArray[np.int8]


class Record(TypedDict):
    id: int
    text: str
    path: Path


def text_of(record: Record) -> str:
    return record["text"]


def path_of(record: Record) -> Path:
    return record["path"]


async def dense(model: TextEmbedding, texts: list[str], lines: AsyncIterator[str]) -> None:
    assert_type(model, TextEmbedding[np.float32])
    async for vector in model.embed(texts):
        assert_type(vector, Floats)
    assert_type(await model.embed(lines).collect(), Floats)
    assert_type(await model.query_embed("one text").collect(), Floats)
    assert_type(await model.passage_embed(texts, prompt_name="web", truncate_dim=64).collect(), Floats)
    assert_type(await model.embed_query("x", task="retrieval"), Floats)
    assert_type(await model.embed_documents(texts, prompt="search: "), Floats)
    assert_type(await model.token_count(texts), int)
    assert_type(await model.token_count(texts, truncated=False), int)
    assert_type(await model.embed_query("x", task="retrieval", with_tokens=True), Counted[Floats])
    assert_type(await model.embed_documents(texts, prompt="search: ", with_tokens=True), CountedBatch[Floats])
    async for batch in model.embed(texts, on_error="skip", ordered=False, priority="interactive").batches(8):
        assert_type(batch, Floats)


async def chunks(model: TextEmbedding, half: TextEmbedding[np.float16], texts: list[str], many: list[Record]) -> None:
    async for chunk in model.embed_chunks(texts, chunk_tokens=64, boundaries="sentences"):
        assert_type(chunk, Chunk[str, np.float32])
        assert_type(chunk.vector, Floats)
    records = half.embed_chunks(many, key=text_of, mode="plain", boundaries=lambda text: [(0, len(text))])
    assert_type(records, EmbeddingStream[Record, Chunk[Record, np.float16], list[Chunk[Record, np.float16]]])
    async for batch in model.embed_chunks(many, key=text_of, on_error="return").batches(8):
        assert_type(batch, list[Chunk[Record, np.float32] | InputError | EncodeError | WorkerCrashed])


async def several_results(model: HybridTextEmbedding, texts: list[str], many: list[Record]) -> None:
    assert_type(model, HybridTextEmbedding[np.float32])
    async for embedding in model.embed(texts, outputs=["dense", "sparse"]):
        assert_type(embedding, HybridEmbedding[np.float32])
        assert_type(embedding.dense, Floats)
        assert_type(embedding.sparse, SparseEmbedding)
        assert_type(embedding.late_interaction, Floats)
    batch = await model.passage_embed(many, key=text_of).collect()
    assert_type(batch, HybridBatch[np.float32])
    assert_type(batch.dense, Floats)
    assert_type(batch[0], HybridEmbedding[np.float32])
    assert_type(await model.embed_query("x", outputs=("dense",)), HybridEmbedding[np.float32])
    assert_type(await model.embed_documents(texts, with_tokens=True), CountedBatch[HybridBatch[np.float32]])
    async for result in model.query_embed(texts, on_error="return"):
        assert_type(result, HybridEmbedding[np.float32] | InputError | EncodeError | WorkerCrashed)
    assert_type(HybridTextEmbedding(dtype="float16"), HybridTextEmbedding[np.float16])


async def broken_records(model: TextEmbedding) -> None:
    """A source may hand over errors in the place of records; `key` and the pairs are of the records."""
    async for pair in model.embed(csv_records("a.csv"), key=lambda record: record["text"]).with_inputs():
        assert_type(pair, tuple[dict[str, str], Floats])
    assert_type(await model.embed(text_lines("a.txt")).collect(), Floats)


async def records(model: TextEmbedding, many: list[Record], some: Iterator[Record]) -> None:
    async for pair in model.embed(many, key=text_of).with_inputs():
        assert_type(pair, tuple[Record, Floats])
    async for batch, vectors in model.query_embed(some, key=lambda record: record["text"]).with_inputs().batches(8):
        assert_type(batch, list[Record])
        assert_type(vectors, Floats)
    assert_type(await model.passage_embed(many, key=text_of).with_inputs().collect(), tuple[list[Record], Floats])


async def tokens(
    dense: TextEmbedding[np.float16], sparse: SparseTextEmbedding, reranker: TextCrossEncoder, many: list[Record]
) -> None:
    async for item in dense.embed(many, key=text_of).with_tokens():
        assert_type(item, Counted[Halves])
        assert_type(item.result, Halves)
        assert_type(item.tokens, int)
        assert_type(item.is_cut, bool)
    async for record, item in dense.embed(many, key=text_of).with_tokens().with_inputs():
        assert_type(record, Record)
        assert_type(item, Counted[Halves])
    assert_type(
        await dense.embed(many, key=text_of).with_inputs().with_tokens().collect(),
        CountedBatch[tuple[list[Record], Halves]],
    )
    async for batch in sparse.embed(["x"]).with_tokens().batches(8):
        assert_type(batch, CountedBatch[list[SparseEmbedding]])
        assert_type(batch.tokens, NDArray[np.int32])
        assert_type(batch.is_cut, NDArray[np.bool_])
    assert_type(await sparse.embed_query("x", with_tokens=True), Counted[SparseEmbedding])
    assert_type(await reranker.rank("x", ["y"], with_tokens=True), CountedBatch[list[tuple[int, float]]])
    async for returned in dense.embed(["x"], on_error="return").with_tokens():
        assert_type(returned, Counted[Halves | InputError | EncodeError | WorkerCrashed])


async def errors_as_results(model: TextEmbedding, texts: list[str], many: list[Record]) -> None:
    async for result in model.embed(texts, on_error="return"):
        assert_type(result, Floats | InputError | EncodeError | WorkerCrashed)
        if isinstance(result, OF_ONE_INPUT):
            assert_type(result.index, int | None)
        else:
            assert_type(result, Floats)
    collected = await model.query_embed(many, key=text_of, on_error="return").collect()
    assert_type(collected, list[Floats | InputError | EncodeError | WorkerCrashed])
    async for batch in model.passage_embed(texts, on_error="return", task="x").batches(8):
        assert_type(batch, list[Floats | InputError | EncodeError | WorkerCrashed])
    async for rows, results in model.embed(many, key=text_of, on_error="return").with_inputs().batches(8):
        assert_type(rows, list[Record])
        assert_type(results, list[Floats | InputError | EncodeError | WorkerCrashed])


async def errors_to_a_function(
    model: TextEmbedding, reranker: TextCrossEncoder, images: ImageEmbedding, many: list[Record], failed: list[Record]
) -> None:
    """A stream of results only, as with "skip"."""

    def dead_letter(record: Record, error: AsyncEmbedError) -> None:
        failed.append(record)

    stream = model.embed(many, key=text_of, on_error=dead_letter)
    async for pair in stream.with_inputs():
        assert_type(pair, tuple[Record, Floats])
    assert_type(await images.embed(many, key=path_of, on_error=dead_letter).collect(), Floats)
    scores = reranker.rerank_pairs(many, key=lambda record: ("q", record["text"]), on_error=dead_letter)
    async for batch in scores.batches(8, max_wait=0.5):
        assert_type(batch, Floats)


async def how_far_it_is(dense: TextEmbedding, reranker: TextCrossEncoder, texts: list[str]) -> None:
    stream = dense.embed(iter(texts), progress=True, total=len(texts))
    assert_type(stream, EmbeddingStream[str, Floats, Floats])
    assert_type(stream.progress().items_per_second, float)
    assert_type(reranker.rerank("query", texts, progress=True).batches(8).progress().total, int | None)


async def some_at_a_time(dense: TextEmbedding, sparse: SparseTextEmbedding, texts: list[str]) -> None:
    assert_type(await dense.embed(texts).take_some(), list[Floats])
    assert_type(await sparse.embed(texts).with_inputs().take_some(10), list[tuple[str, SparseEmbedding]])
    failures = dense.embed(texts, on_error="return")
    assert_type(await failures.take_some(), list[Floats | InputError | EncodeError | WorkerCrashed])


async def a_way_that_is_not_known_yet(model: TextEmbedding, texts: list[str], on_error: OnError) -> None:
    """Either type of stream then."""
    async for result in model.embed(texts, on_error=on_error):
        if not isinstance(result, OF_ONE_INPUT):
            assert_type(result, Floats)


async def forms_of_vectors(texts: list[str], dtype: Literal["float32", "float16"]) -> None:
    half = TextEmbedding("a/b", dtype="float16", pooling="cls", workers=2)
    assert_type(await half.embed(texts).collect(), Halves)
    bits = TextEmbedding(output="binary", truncate_dim=64)
    assert_type(await bits.embed_query("x"), Bytes)
    small = TextEmbedding(Path("model"), output="int8", int8_ranges=[[-1.0], [1.0]])
    assert_type(await small.embed_documents(texts), Bytes)
    plain = TextEmbedding("a/b", dtype="float32", output="float", normalize=False)
    assert_type(await plain.embed(texts).collect(), Floats)
    either = TextEmbedding("a/b", dtype=dtype)
    assert_type(await either.embed_query("x"), Floats | Halves)


async def named_streams(texts: list[str]) -> None:
    """Streams and models can be annotated."""
    model: TextEmbedding[np.int8] = TextEmbedding(output="binary")
    stream: EmbeddingStream[str, Bytes, Bytes] = model.embed(texts)
    any_model: TextEmbedding[Any] = model
    assert_type(await stream.collect(), Bytes)
    await any_model.embed(texts).collect()


async def sparse(model: SparseTextEmbedding, texts: list[str], many: list[Record]) -> None:
    assert_type(await model.embed(texts).collect(), list[SparseEmbedding])
    assert_type(await model.embed_query("x"), SparseEmbedding)
    assert_type(await model.embed_documents(texts), list[SparseEmbedding])
    async for record, vector in model.query_embed(many, key=text_of).with_inputs():
        assert_type(record, Record)
        assert_type(vector, SparseEmbedding)
    async for batch in model.passage_embed(texts, on_error="return").batches(8):
        assert_type(batch, list[SparseEmbedding | InputError | EncodeError | WorkerCrashed])


async def late_interaction(texts: list[str], many: list[Record]) -> None:
    model = LateInteractionTextEmbedding("a/b", long="error")
    assert_type(await model.embed(texts).collect(), list[Floats])
    assert_type(await model.embed_query("x"), Floats)
    half = LateInteractionTextEmbedding("a/b", dtype="float16", workers=1)
    assert_type(await half.embed_documents(texts), list[Halves])
    async for record, matrix in half.embed(many, key=text_of).with_inputs():
        assert_type(record, Record)
        assert_type(matrix, Halves)


async def scores(model: TextCrossEncoder, texts: list[str], many: list[Record], pairs: list[tuple[str, str]]) -> None:
    async for score in model.rerank("query", texts):
        assert_type(score, float)
    assert_type(await model.rerank("query", many, key=text_of, activation="sigmoid").collect(), Floats)
    assert_type(await model.rerank_pairs(pairs).collect(), Floats)
    assert_type(await model.rank("query", many, 3, key=text_of), list[tuple[int, float]])
    async for batch in model.rerank_pairs(many, key=lambda record: ("q", record["text"]), on_error="return").batches(8):
        assert_type(batch, list[float | InputError | EncodeError | WorkerCrashed])


async def images(paths: list[Path], many: list[Record], mixed: list[ImageInput], pixels: NDArray[np.uint8]) -> None:
    model = ImageEmbedding("a/b", fast_decode=True, truncate_dim=64)
    async for path, vector in model.embed(paths).with_inputs():
        assert_type(path, Path)
        assert_type(vector, Floats)
    assert_type(await model.embed(paths[0]).collect(), Floats)
    assert_type(await model.embed(mixed).collect(), Floats)
    assert_type(await model.embed(pixels).collect(), Floats)
    assert_type(await model.embed_image(b"..."), Floats)
    half = ImageEmbedding("a/b", dtype="float16")
    assert_type(await half.embed_images(paths), Halves)
    async for result in half.embed(many, key=path_of, on_error="return"):
        assert_type(result, Halves | InputError | EncodeError | WorkerCrashed)


async def pages(paths: list[Path], texts: list[str]) -> None:
    model = LateInteractionMultimodalEmbedding("a/b", dtype="float16", long="error")
    assert_type(await model.embed_image(paths).collect(), list[Halves])
    assert_type(await model.embed_text(texts).collect(), list[Halves])
    assert_type(await model.embed_one_image(paths[0]), Halves)
