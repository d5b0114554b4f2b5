"""Fakes of every family: results of the right kind, made up of hashes, on the real streams, limits and errors."""

import logging
import threading
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from asyncembed import (
    ImageEmbedding,
    LateInteractionMultimodalEmbedding,
    LateInteractionTextEmbedding,
    SparseEmbedding,
    SparseTextEmbedding,
    TextCrossEncoder,
    TextEmbedding,
    WorkerPool,
    maxsim_scores,
    sync,
)
from asyncembed.errors import EncodeError, InputError, NotCachedError, OptionError, OverloadedError, WorkerCrashed
from asyncembed.testing import Fakes, fake_model, fake_models
from tests.support.images import picture
from tests.support.waiting import until

BGE = "BAAI/bge-small-en-v1.5"
QUERY = "when does the ferry leave?"
PASSAGES = ["bread needs flour and time", "a queue makes its writer wait", "the ferry leaves at noon"]


@pytest.fixture(autouse=True)
def fakes() -> Iterator[Fakes]:
    with fake_models() as fakes:
        yield fakes


# ---------------------------------------------------------------- results


async def test_dense_vectors_are_of_unit_length_and_of_the_catalogues_size() -> None:
    async with TextEmbedding(BGE) as model:
        matrix = await model.embed(PASSAGES).collect()
        assert matrix.shape == (3, model.embedding_size) == (3, 384)
        assert matrix.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-6)
        query = await model.embed_query(QUERY)
        assert int(np.argmax(matrix @ query)) == 2


async def test_equal_texts_have_equal_vectors_and_others_do_not() -> None:
    async with TextEmbedding(BGE) as one, TextEmbedding(BGE) as other:
        first = await one.embed_documents(["a b", "b a", "", " "])
        second = await other.embed_documents(["a b", "b a", "", " "])
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first, axis=0)) == 4
    assert np.isfinite(first).all()


async def test_vectors_are_the_same_on_every_machine() -> None:
    async with TextEmbedding(fake_model(dim=4)) as model:
        vector = await model.embed_query("ferry")
    np.testing.assert_allclose(vector, [-0.74872, -0.52489, -0.39519, 0.08795], atol=1e-5)


async def test_prompts_and_tasks_change_vectors() -> None:
    async with TextEmbedding(BGE, prompts=True) as model:
        query, document = await model.embed_query("a ferry"), await model.embed_query("a ferry", prompt="")
        assert 0.8 < query @ document < 0.999
        assert await model.token_count("a ferry", prompt="one two ") == 4
    async with TextEmbedding("jinaai/jina-embeddings-v3") as model:
        plain, told = await model.embed_query("a ferry"), await model.embed_query("a ferry", task="separation")
        assert not np.array_equal(plain, told)
        with pytest.raises(OptionError, match="no task 'cooking'"):
            await model.embed_query("a ferry", task="cooking")


async def test_the_forms_of_a_vector_are_those_of_the_options() -> None:
    async with TextEmbedding(BGE, dtype="float16", truncate_dim=16) as half:
        vector = await half.embed_query("a ferry")
        assert (str(vector.dtype), vector.shape) == ("float16", (16,))
    async with TextEmbedding(BGE, output="binary") as binary:
        packed = await binary.embed_query("a ferry")
        assert (str(packed.dtype), packed.shape) == ("int8", (48,))


async def test_sparse_vectors_have_an_entry_for_each_word() -> None:
    async with SparseTextEmbedding("Qdrant/bm25") as model:
        assert model.max_length is None
        query = await model.embed_query("ferry noon")
        document, other = await model.embed(["The ferry: ferry at noon", "bread"]).collect()
    assert isinstance(document, SparseEmbedding)
    assert (str(document.indices.dtype), str(document.values.dtype)) == ("int32", "float32")
    assert query.as_dict().keys() <= document.as_dict().keys()
    assert not query.as_dict().keys() & other.as_dict().keys()
    assert set(query.values.tolist()) == {1.0}
    assert document.as_dict()[int(query.indices[0])] > 1


async def test_indices_are_within_the_vocabulary() -> None:
    async with SparseTextEmbedding("prithivida/Splade_PP_en_v1") as model:
        vector = await model.embed_query(" ".join(map(str, range(500))))
    assert vector.indices.min() >= 0
    assert vector.indices.max() < 30522


async def test_late_interaction_has_a_row_for_each_word() -> None:
    async with LateInteractionTextEmbedding("colbert-ir/colbertv2.0", dtype="float16") as model:
        documents = await model.embed([*PASSAGES, ""]).collect()
        query = await model.embed_query(QUERY)
        assert query.shape == (32, model.embedding_size) == (32, 128)
        assert [len(each) for each in documents] == [5, 6, 5, 1]
        assert query.dtype == documents[0].dtype == np.float16
        assert int(np.argmax(maxsim_scores(query, documents))) == 2
        assert await model.token_count(QUERY) == 5
        assert await model.token_count(QUERY, is_doc=False, include_extension=True) == 32


async def test_rerankers_put_the_documents_that_share_words_first() -> None:
    async with TextCrossEncoder("some/reranker") as model:
        ranking = await model.rank(QUERY, PASSAGES)
        assert ranking[0][0] == 2
        assert isinstance(ranking[0][1], float)
        scores = await model.rerank(QUERY, PASSAGES, activation="sigmoid").collect()
        assert scores.dtype == np.float32
        assert ((scores > 0) & (scores < 1)).all()
        assert await model.token_count([("one two", "three")]) == 3


async def test_images_have_vectors_of_their_pixels(tmp_path: Path) -> None:
    image, encoded = picture(30, 20, seed=1), BytesIO()
    image.save(encoded, "PNG")
    image.save(tmp_path / "a.png")
    async with ImageEmbedding("Qdrant/clip-ViT-B-32-vision") as model:
        images: list[Any] = [image, encoded.getvalue(), tmp_path / "a.png", picture(30, 20, seed=2)]
        vectors = await model.embed(images).collect()
        assert vectors.shape == (4, 512)
        np.testing.assert_array_equal(vectors[0], vectors[1])
        np.testing.assert_array_equal(vectors[0], vectors[2])
        assert abs(vectors[0] @ vectors[3]) < 0.3
        with pytest.raises(InputError, match="input 0: "):
            await model.embed([b"no image"]).collect()
        with pytest.raises(InputError):
            await model.embed_image(tmp_path / "nowhere.png")


async def test_multimodal_models_have_matrices_of_texts_and_images() -> None:
    async with LateInteractionMultimodalEmbedding("Qdrant/colpali-v1.3-fp16") as model:
        pages = await model.embed_image([picture(30, 20), picture(30, 20)]).collect()
        query = await model.embed_query("two words")
    assert pages[0].shape == (64, 128)
    assert query.shape == (2, 128)
    assert maxsim_scores(query, pages).shape == (2,)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (TextEmbedding, 384),
        (LateInteractionTextEmbedding, 128),
        (ImageEmbedding, 512),
        (LateInteractionMultimodalEmbedding, 128),
    ],
)
async def test_models_that_the_catalogue_does_not_know_have_a_usual_size(
    kind: type[Any], size: int, fakes: Fakes
) -> None:
    async with kind("mine/own") as model:
        assert model.embedding_size == size
    fakes.dim = 8
    async with kind("./a/directory") as model:
        assert model.embedding_size == 8


# ---------------------------------------------------------------- limits, errors, streams


async def test_words_count_and_are_cut_at_max_length() -> None:
    async with TextEmbedding(BGE, max_length=3) as model:
        assert model.max_length == 3
        assert await model.token_count(["One, two!", "a b c d e"]) == 5
        assert await model.token_count("a b c d e", truncated=False) == 5
        counted = await model.embed_documents(["aa bb cc dd", "aa bb cc"], with_tokens=True)
        np.testing.assert_array_equal(counted.results[0], counted.results[1])
        assert (counted.tokens.tolist(), counted.is_cut.tolist()) == ([3, 3], [True, False])
        assert model.stats().truncated == 1
        with pytest.raises(InputError, match="longer than the model's limit of 3 tokens"):
            await model.embed_query("a b c d", long="error")


async def test_pairs_are_cut_together() -> None:
    async with TextCrossEncoder("some/reranker", max_length=4, long="error") as model:
        assert await model.rank("one two", ["three four"])
        with pytest.raises(InputError, match="input 1: longer than"):
            await model.rank("one two", ["three", "three four five"])


async def test_wrong_inputs_and_keywords_are_refused_as_by_the_model() -> None:
    async with TextEmbedding(BGE) as model:
        with pytest.raises(InputError, match="input 1: expected a str, got int"):
            await model.embed(["a", 1]).collect()  # type: ignore[list-item]
        with pytest.raises(InputError, match="lone surrogate"):
            await model.embed_query("\ud800")
    with pytest.raises(OptionError, match="no keyword 'alpha'"):
        await SparseTextEmbedding("Qdrant/bm25", alpha=0.5).open()
    with pytest.raises(OptionError, match="is a model for TextEmbedding"):
        await TextCrossEncoder(fake_model("text")).open()


async def test_a_source_is_read_no_further_than_the_window() -> None:
    read = 0

    async def source() -> AsyncIterator[str]:
        nonlocal read
        for number in range(10_000):
            read += 1
            yield f"text {number}"

    async with TextEmbedding(BGE, max_in_flight=8) as model:
        async with model.embed(source()) as vectors:
            async for _ in vectors:
                break
        assert read <= 8 + 1 + 1


@pytest.mark.parametrize("error", [InputError("told to"), EncodeError("told to"), WorkerCrashed("told to")])
async def test_an_input_fails_as_it_is_told_to(fakes: Fakes, error: Any) -> None:
    async with TextEmbedding(BGE) as model:
        fakes.failures["poison"] = error
        results = await model.embed(["good", "a poison", "good"], on_error="return").collect()
        assert isinstance(results[1], type(error))
        assert results[1].index == 1
        with pytest.raises(type(error), match="told to"):
            await model.embed_query("poison")
        fakes.failures.clear()
        await model.embed_query("poison")


async def test_opening_fails_as_it_is_told_to(fakes: Fakes) -> None:
    fakes.opening_error = NotCachedError("not here")
    with pytest.raises(NotCachedError):
        await TextEmbedding(BGE).open()


async def test_a_slow_model_can_be_overloaded_and_is_quick_again_at_once(fakes: Fakes) -> None:
    refused = 0

    async def ask(text: str) -> None:
        nonlocal refused
        try:
            await model.embed_query(text)
        except OverloadedError:
            refused += 1

    async with TextEmbedding(BGE, max_queued=1) as model:
        fakes.seconds = 3600.0
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(ask, f"text {number}")
            await until(lambda: refused > 0)
            fakes.seconds = 0.0
        assert model.stats().refused == refused


# ---------------------------------------------------------------- everywhere


async def test_a_pool_of_fakes_has_threads_for_workers() -> None:
    """This test is not marked: it would fail if it started a process."""
    pool = WorkerPool(workers=2, batch_timeout=1.0)
    async with pool, TextEmbedding(BGE, pool=pool) as model, TextCrossEncoder("some/reranker", pool=pool) as reranker:
        assert (pool.size, pool.stats().workers, pool.worker_pids()) == (2, 2, [])
        assert (await model.embed(PASSAGES * 20).collect()).shape == (60, 384)
        assert await reranker.rank(QUERY, PASSAGES)
        assert "fakes" in repr(model)


@pytest.mark.slow
async def test_a_pool_has_processes_again_when_fakes_are_switched_off() -> None:
    pool = WorkerPool(workers=1)
    async with pool:
        assert pool.worker_pids() == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncembed.faking._switched_on", [])
        async with pool:
            await until(lambda: len(pool.worker_pids()) == 1)
    async with pool:
        assert pool.worker_pids() == []


def test_programs_without_a_loop_have_fakes() -> None:
    with sync.TextEmbedding(BGE) as model:
        assert model.embed_query("a ferry").shape == (384,)
        assert len(list(model.embed(PASSAGES))) == 3
    with sync.SparseTextEmbedding("Qdrant/bm25") as sparse:
        assert len(sparse.embed_query("a ferry")) == 2


async def test_a_model_on_any_loop_is_a_fake() -> None:
    async with TextEmbedding(BGE).on_any_loop() as anywhere:
        vector = await anywhere.embed_query("a ferry")
        thread = threading.Thread(target=lambda: vectors.append(anyio.run(anywhere.embed_query, "a ferry")))
        vectors: list[Any] = []
        thread.start()
        thread.join()
    np.testing.assert_array_equal(vector, vectors[0])


def test_a_shared_engine_follows_the_switch() -> None:
    with sync.TextEmbedding(BGE, local_files_only=True) as model:
        with fake_models() as inner:
            inner.failures["ferry"] = InputError("of the inner ones")
            with pytest.raises(InputError, match="of the inner ones"):
                model.embed_query("a ferry")
        assert model.embed_query("a ferry").shape == (384,)


async def test_one_line_warns_that_results_are_made_up(caplog: pytest.LogCaptureFixture) -> None:
    with fake_models(), caplog.at_level(logging.WARNING, "asyncembed"):
        for _ in range(2):
            async with TextEmbedding(BGE) as model:
                await model.embed_query("a")
    (line,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "never for production" in line.getMessage()


async def test_one_fake_needs_no_switch() -> None:
    """Nor a process, whatever it is told: this test is not marked."""
    own = Fakes(failures={"poison": InputError("its own")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncembed.faking._switched_on", [])
        spec = fake_model(dim=8, max_length=2, prompts={"query": "query: "}, fakes=own)
        async with TextEmbedding(spec, workers=3) as model:
            assert model.embedding_size == 8
            assert await model.token_count("a b c") == 2
            assert not np.array_equal(await model.embed_query("a"), (await model.embed_documents(["a"]))[0])
            with pytest.raises(InputError, match="its own"):
                await model.embed_query("poison")


@pytest.mark.slow
async def test_one_fake_may_be_computed_in_processes_too() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncembed.faking._switched_on", [])
        async with WorkerPool(workers=1) as pool, TextEmbedding(fake_model(dim=8), pool=pool) as there:
            vector = await there.embed_query("a ferry")
            assert pool.worker_pids()
        async with TextEmbedding(fake_model(dim=8)) as here:
            np.testing.assert_array_equal(vector, await here.embed_query("a ferry"))
