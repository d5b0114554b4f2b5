"""`embed_chunks` as a user calls it: against the definition, computed with numpy on hidden states."""

import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from asyncembed import Chunk, TextEmbedding, WorkerPool, sync
from asyncembed.encoders.tokenization import TextTokenizer
from asyncembed.errors import InputError, OptionError, StateError
from asyncembed.runtime.onnx import OnnxSession
from asyncembed.runtime.session import Array, SessionOptions
from asyncembed.testing import fake_model, fake_models
from tests.support.models import write_self_describing_model
from tests.support.static_models import write_static
from tests.support.tokenizers import WORDS, wordpiece

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
LONG = " ".join(WORDS)  # more than the 62 tokens of a text that the model takes
SHORT = "how can you make it long"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_self_describing_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
async def model(directory: Path) -> AsyncGenerator[TextEmbedding]:
    async with TextEmbedding(directory, workers=0) as model:
        yield model


def ids_of(directory: Path, text: str) -> list[int]:
    tokenizer = TextTokenizer(directory)
    return [id_ for ids, _ in tokenizer.placed(text) for id_ in ids]


def states(directory: Path, ids: list[int]) -> Array:
    """The hidden states of some tokens, with [CLS] and [SEP] around them, without the states of these."""
    tokenizer = TextTokenizer(directory)
    before, behind = tokenizer.around()
    row = np.array([[*before, *ids, *behind]], np.int64)
    session = OnnxSession(directory / "model.onnx", SessionOptions(device="cpu"))
    feeds = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": row * 0}
    found: Array = session.run(["last_hidden_state"], feeds)[0][0, 1:-1]
    return found


def unit(vector: Array) -> Array:
    scaled: Array = vector / np.linalg.norm(vector)
    return scaled


def vectors(chunks: list[Chunk[Any, Any]]) -> Array:
    return np.stack([chunk.vector for chunk in chunks])


async def test_late_chunks_are_means_of_the_states_of_the_whole_document(directory: Path) -> None:
    async with TextEmbedding(directory, workers=1, normalize=True) as model:
        chunks = await model.embed_chunks([SHORT, "the day"], chunk_tokens=2).collect()
    assert [(chunk.document, chunk.index, chunk.tokens) for chunk in chunks] == [
        (SHORT, 0, 2),
        (SHORT, 1, 2),
        (SHORT, 2, 2),
        ("the day", 0, 2),
    ]
    assert [SHORT[chunk.start : chunk.end] for chunk in chunks[:3]] == ["how can", "you make", "it long"]
    whole = states(directory, ids_of(directory, SHORT))
    expected = [unit(whole[at : at + 2].mean(axis=0)) for at in (0, 2, 4)]
    np.testing.assert_allclose(vectors(chunks[:3]), expected, atol=TOLERANCE)


async def test_a_longer_document_goes_through_in_windows_with_context(directory: Path, model: TextEmbedding) -> None:
    chunks = await model.embed_chunks(LONG, chunk_tokens=16, context_tokens=10).collect()
    ids = ids_of(directory, LONG)
    assert len(ids) > 64
    assert [chunk.tokens for chunk in chunks][:4] == [16] * 4
    # Three chunks are 48 of the 62 tokens that there is room for; then ten of context and three more; and so on.
    for first in (0, 48):
        begin = max(0, first - 10)
        end = 48 if first == 0 else len(ids)
        window = states(directory, ids[begin:end])
        for at, chunk in zip(range(first, end, 16), chunks[first // 16 :], strict=False):
            expected = window[at - begin : min(at + 16, end) - begin].mean(axis=0)
            np.testing.assert_allclose(chunk.vector, expected, atol=TOLERANCE)


async def test_plain_chunks_are_what_embed_gives_for_their_texts(model: TextEmbedding) -> None:
    for asked in ({"chunk_tokens": 5}, {"boundaries": "sentences", "overlap": 3, "chunk_tokens": 9}):
        chunks = await model.embed_chunks([LONG, SHORT], mode="plain", prompt="see: ", **asked).collect()
        texts = [chunk.document[chunk.start : chunk.end] for chunk in chunks]
        expected = await model.embed(texts, prompt="see: ").collect()
        np.testing.assert_allclose(vectors(chunks), expected, atol=TOLERANCE)


async def test_a_prompt_is_context_and_in_no_chunk(directory: Path, model: TextEmbedding) -> None:
    document = np.str_(SHORT)  # a text of a column of numpy's is one text, too
    (chunk,) = await model.embed_chunks(document, prompt="how to see: ").collect()
    whole = states(directory, ids_of(directory, f"how to see: {SHORT}"))
    np.testing.assert_allclose(chunk.vector, whole[4:].mean(axis=0), atol=TOLERANCE)
    assert (chunk.start, chunk.end, chunk.tokens) == (0, len(SHORT), 6)


async def test_each_record_comes_with_its_chunks_and_what_they_cost(model: TextEmbedding) -> None:
    records: list[dict[str, Any]] = [
        {"id": number, "text": text} for number, text in enumerate([SHORT, "", " \n", LONG])
    ]
    stream = model.embed_chunks(records, key=lambda record: str(record["text"]), chunk_tokens=16)
    pairs = [pair async for pair in stream.with_tokens().with_inputs()]
    assert [record["id"] for record, _ in pairs] == sorted(record["id"] for record, _ in pairs)
    assert {record["id"] for record, _ in pairs} == {0, 3}
    for record, counted in pairs:
        assert counted.result.document is record
        assert not counted.is_cut
    # What goes through the model beside the chunks' own tokens is the first one's of each window.
    assert pairs[0][1].tokens == pairs[0][1].result.tokens + 2
    assert sum(counted.tokens for _, counted in pairs) == model.stats().tokens == stream.progress().tokens
    indices = [counted.result.index for record, counted in pairs if record["id"] == 3]
    assert indices == list(range(len(indices)))


async def test_progress_counts_documents(model: TextEmbedding) -> None:
    stream = model.embed_chunks(LONG, chunk_tokens=8)
    assert stream.progress().total == 1
    async for chunk in stream:
        progress = stream.progress()
        assert (progress.read, progress.done, progress.failed) == (1, int(chunk.end == len(LONG)), 0)
    empty = model.embed_chunks(iter(["", SHORT, " "]))
    assert len(await empty.collect()) == 1
    assert (empty.progress().read, empty.progress().done, empty.progress().total) == (3, 3, None)


async def test_batches_hold_chunks_of_several_documents(model: TextEmbedding) -> None:
    sizes = [len(batch) async for batch in model.embed_chunks([LONG] * 3, chunk_tokens=10).batches(8)]
    assert sizes[:-1] == [8] * (len(sizes) - 1)
    everything = await model.embed_chunks([LONG] * 3, chunk_tokens=10).collect()
    assert sum(sizes) == len(everything)


async def test_as_they_are_ready_the_same_chunks_come(model: TextEmbedding) -> None:
    texts = [f"{word} {LONG}" for word in WORDS[:20]]
    some = await model.embed_chunks(texts, chunk_tokens=16).collect()
    other = await model.embed_chunks(texts, chunk_tokens=16, ordered=False).collect()
    other.sort(key=lambda chunk: (texts.index(chunk.document), chunk.index))
    assert [(chunk.document, chunk.start) for chunk in some] == [(chunk.document, chunk.start) for chunk in other]
    np.testing.assert_allclose(vectors(some), vectors(other), atol=TOLERANCE)


async def test_a_document_that_fails_is_named_by_its_place_and_others_come(model: TextEmbedding) -> None:
    broken: list[Any] = [LONG, 3, SHORT, "\ud800", InputError("not there"), SHORT]
    with pytest.raises(InputError, match="input 1: expected a str, got int"):
        await model.embed_chunks(broken, chunk_tokens=16).collect()
    stream = model.embed_chunks(broken, chunk_tokens=16, on_error="return")
    results = await stream.collect()
    errors = [result for result in results if isinstance(result, InputError)]
    assert [error.index for error in errors] == [1, 3, 4]
    progress = stream.progress()
    assert (progress.read, progress.done, progress.failed, progress.total) == (6, 3, 3, 6)
    told: list[tuple[object, int | None]] = []
    skipping = model.embed_chunks(broken, on_error=lambda record, error: told.append((record, error.index)))
    assert {chunk.document for chunk in await skipping.collect()} == {LONG, SHORT}
    assert told == [(3, 1), ("\ud800", 3), (broken[4], 4)]
    assert skipping.skipped == 3


async def test_a_function_that_fails_concerns_its_document_alone(model: TextEmbedding) -> None:
    def halves(text: str) -> Iterator[tuple[int, int]]:
        yield 0, len(text) // 2
        if text == SHORT:
            raise RuntimeError("no more")
        yield len(text) // 2, len(text)

    results = await model.embed_chunks(["the day", SHORT, "so hot"], boundaries=halves, on_error="return").collect()
    assert [type(result).__name__ for result in results] == ["Chunk", "Chunk", "InputError", "Chunk", "Chunk"]
    with pytest.raises(InputError, match="input 1: boundaries= failed: RuntimeError: no more") as caught:
        await model.embed_chunks(["the day", SHORT], boundaries=halves).collect()
    assert caught.value.index == 1


async def test_sources_of_every_kind_are_read_and_closed(model: TextEmbedding) -> None:
    closed: list[str] = []

    def lines() -> Iterator[str]:
        try:
            while True:
                yield LONG
        finally:
            closed.append("sync")

    async def rows() -> AsyncIterator[str]:
        try:
            while True:
                yield LONG
                await anyio.lowlevel.checkpoint()
        finally:
            closed.append("async")

    for source in (lines(), rows()):
        async with model.embed_chunks(source, chunk_tokens=16) as stream:
            async for chunk in stream:
                if chunk.index == 2:
                    break
    assert closed == ["sync", "async"]


async def test_a_document_of_many_megabytes_fills_no_window(directory: Path) -> None:
    """Its chunks come while it is being cut, and as few of them wait as of small documents."""
    text = f"{LONG} " * 25_000  # 10 MB
    async with TextEmbedding(directory, workers=0, max_in_flight=32) as model:
        await model.embed_query(SHORT)
        tracemalloc.start()
        try:
            async with model.embed_chunks([text], chunk_tokens=16) as stream:
                for _ in range(200):
                    chunk = await anext(stream)
                assert len(stream._state._window) <= 32
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert chunk.index == 199
    assert peak < 40_000_000  # the text itself, once more with its prompt, and little else


async def test_models_that_are_not_pooled_by_mean_refuse_late_chunks(directory: Path) -> None:
    async with TextEmbedding(directory, workers=0, pooling="cls") as model:
        with pytest.raises(
            OptionError, match="is pooled by 'cls', and late chunking takes the mean .* say mode=\"plain\""
        ):
            model.embed_chunks([LONG])
        assert len(await model.embed_chunks([LONG], mode="plain", chunk_tokens=16).collect()) > 3


async def test_a_model_that_is_yet_to_be_loaded_is_asked_with_the_first_chunk(directory: Path) -> None:
    async with TextEmbedding(directory, workers=0, lazy=True) as model:
        assert (await anext(model.embed_chunks([LONG], chunk_tokens=16))).tokens == 16
    async with TextEmbedding(directory, workers=0, lazy=True, pooling="cls") as model:
        stream = model.embed_chunks([LONG])
        with pytest.raises(OptionError, match="is pooled by 'cls'"):
            await anext(stream)


async def test_models_without_states_give_plain_chunks_alone(tmp_path: Path) -> None:
    directory = write_static(tmp_path, wordpiece())
    async with TextEmbedding(directory, workers=0) as model:
        with pytest.raises(OptionError, match='gives no vectors to parts of a text: say mode="plain"'):
            model.embed_chunks([LONG])
        chunks = await model.embed_chunks([LONG], mode="plain", chunk_tokens=16).collect()
        expected = await model.embed([LONG[chunk.start : chunk.end] for chunk in chunks]).collect()
        np.testing.assert_allclose(vectors(chunks), expected, atol=TOLERANCE)


async def test_a_call_that_cannot_work_is_refused(model: TextEmbedding) -> None:
    for keywords, words in (
        ({"mode": "early"}, "mode must be"),
        ({"chunk_tokens": 0}, "chunk_tokens must be"),
        ({"boundaries": "pages"}, "boundaries must be"),
        ({"boundaries": str.split, "overlap": 3}, "overlap= goes with boundaries by tokens and sentences"),
        ({"mode": "plain", "context_tokens": 3}, 'context_tokens= goes with mode="late"'),
        ({"chunks": 3}, "unknown keyword 'chunks'; did you mean"),
    ):
        with pytest.raises(OptionError, match=words):
            model.embed_chunks([LONG], **keywords)
    with pytest.raises(OptionError, match="chunk_tokens=63 is more than .* has room for"):
        await model.embed_chunks([LONG], chunk_tokens=63).collect()
    with pytest.raises(InputError, match="the source is bytes"):
        model.embed_chunks(b"text")  # type: ignore[arg-type]
    with pytest.raises(StateError):
        TextEmbedding("a/b").embed_chunks([LONG])


@pytest.mark.parametrize("mode", ["late", "plain"])
async def test_with_a_cache_a_document_is_computed_once(directory: Path, tmp_path: Path, mode: Any) -> None:
    async with TextEmbedding(directory, workers=0, cache=tmp_path / "vectors.db") as model:
        first = await model.embed_chunks([LONG, SHORT], mode=mode, chunk_tokens=8).collect()
        computed = model.stats().cache_misses
    async with TextEmbedding(directory, workers=0, cache=tmp_path / "vectors.db") as model:
        again = await model.embed_chunks([LONG, SHORT], mode=mode, chunk_tokens=8).collect()
        assert (model.stats().cache_misses, model.stats().cache_hits) == (0, computed)
        await model.embed_chunks([SHORT], mode=mode, chunk_tokens=3).collect()
        assert model.stats().cache_misses > 0
    assert [(c.document, c.start, c.end, c.tokens) for c in first] == [
        (c.document, c.start, c.end, c.tokens) for c in again
    ]
    np.testing.assert_array_equal(vectors(first), vectors(again))


async def test_from_any_loop_and_in_a_pool_the_same_chunks_come(directory: Path, model: TextEmbedding) -> None:
    expected = await model.embed_chunks([LONG, SHORT], chunk_tokens=16).collect()
    async with WorkerPool(workers=1) as pool, TextEmbedding(directory, pool=pool, dtype="float16") as other:
        for stream in (
            model.on_any_loop().embed_chunks([LONG, SHORT], chunk_tokens=16),
            other.embed_chunks([LONG, SHORT], chunk_tokens=16),
        ):
            chunks = await stream.collect()
            assert [(one.document, one.start) for one in chunks] == [(one.document, one.start) for one in expected]
            np.testing.assert_allclose(vectors(chunks), vectors(expected), atol=1e-2)
    assert chunks[0].vector.dtype == np.float16


def test_a_program_without_a_loop_gets_them_too(directory: Path) -> None:
    told: list[object] = []
    with sync.TextEmbedding(directory, workers=0) as model:
        stream = model.embed_chunks([LONG, 3, SHORT], chunk_tokens=16, on_error=lambda record, _: told.append(record))  # type: ignore[list-item]
        chunks = list(stream)
    assert [chunk.index for chunk in chunks if chunk.document == SHORT] == [0]
    assert told == [3]
    assert all(after.start > before.start for before, after in pairwise(chunks[:-1]))


async def test_fakes_cut_by_words_and_find_what_is_alike() -> None:
    text = "Bread needs flour and time. A queue makes its writer wait. The ferry leaves at noon."
    for mode in ("late", "plain"):
        async with TextEmbedding(fake_model(max_length=8)) as model:
            chunks = await model.embed_chunks([text], mode=mode, chunk_tokens=6, boundaries="sentences").collect()
            assert [text[chunk.start : chunk.end] for chunk in chunks] == [f"{one}." for one in text[:-1].split(". ")]
            query = await model.embed_query("when does the ferry leave at noon?")
            assert int(np.argmax(vectors(chunks) @ query)) == 2
    with fake_models(failures={"queue": InputError("no queues")}):
        async with TextEmbedding("sentence-transformers/all-MiniLM-L6-v2") as model:
            found = await model.embed_chunks([text], chunk_tokens=6, on_error="skip", mode="plain").collect()
            assert len(found) == 2
