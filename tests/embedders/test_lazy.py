"""`lazy=True`: opening loads nothing, and the first call does."""

from pathlib import Path

import anyio
import numpy as np
import pytest

from asyncembed import ImageEmbedding, SparseTextEmbedding, TextCrossEncoder, WorkerPool
from asyncembed.embedders.text import TextEmbedding
from asyncembed.errors import ModelLoadError, StateError, UnknownModelError
from asyncembed.observing import CallBegan, CallEnded, Event, ModelClosed, ModelOpened
from asyncembed.sync import TextEmbedding as SyncTextEmbedding
from asyncembed.testing import fake_models
from tests.support.encoders import with_settings
from tests.support.waiting import nothing_left_behind, until

NAME = "BAAI/bge-small-en-v1.5"


def loads(log: Path) -> int:
    return len(log.read_text("utf-8").splitlines()) if log.exists() else 0


@pytest.mark.slow
async def test_opening_starts_no_worker_and_the_first_calls_load_the_model_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with nothing_left_behind():
        async with TextEmbedding(with_settings(load_log=str(log)), workers=1, lazy=True) as model:
            before = model.stats()
            assert (before.workers, before.workers_ready, before.items) == (1, 0, 0)
            assert loads(log) == 0
            async with anyio.create_task_group() as group:
                for i in range(5):
                    group.start_soon(model.embed_query, f"#{i}")
                group.start_soon(model.embed(["#7", "#8"]).collect)
            after = model.stats()
            assert (after.workers_ready, after.items) == (1, 7)
        assert loads(log) == 1


async def test_what_only_the_files_say_is_known_once_it_is_loaded() -> None:
    with fake_models():
        async with TextEmbedding(NAME, lazy=True) as model:
            assert repr(model) == f"<TextEmbedding '{NAME}' open, not yet loaded>"
            assert model.embedding_size == 384  # the catalogue says it
            with pytest.raises(StateError, match="first call"):
                _ = model.max_length
            await model.embed_query("one")
            assert model.max_length == 512
            assert "open on" in repr(model)
        assert "closed after 1 inputs" in repr(model)
        async with TextEmbedding(NAME, lazy=True) as model:
            pass
        assert "closed before it was loaded" in repr(model)


async def test_a_stream_loads_the_model_when_its_first_result_is_asked_for() -> None:
    with fake_models():
        async with TextEmbedding(NAME, lazy=True) as model:
            stream = model.embed(["one", "two words"], progress=False).with_inputs().with_tokens()
            assert model.stats().workers_ready == 0
            assert [(text, tokens) async for (text, _), tokens, _ in stream] == [("one", 1), ("two words", 2)]
            assert model.stats().workers_ready == 1
            assert (await model.embed(iter(["one"])).collect()).shape == (1, 384)


async def test_every_class_can_be_lazy() -> None:
    with fake_models():
        async with SparseTextEmbedding("Qdrant/bm25", lazy=True) as sparse:
            assert sparse.requires_idf
            assert len(await sparse.embed(["one"]).collect()) == 1
        async with TextCrossEncoder("Xenova/ms-marco-MiniLM-L-6-v2", lazy=True) as reranker:
            assert (await reranker.rerank("one", ["two", "three"]).collect()).shape == (2,)
        async with ImageEmbedding("Qdrant/clip-ViT-B-32-vision", lazy=True) as images:
            assert (await images.embed([np.zeros((4, 4, 3), np.uint8)]).collect()).shape == (1, 512)


async def test_in_a_shared_pool_its_stats_are_those_of_the_pool_and_of_nothing_computed() -> None:
    with fake_models():
        async with WorkerPool(workers=0) as pool, TextEmbedding(NAME, pool=pool) as other:
            await other.embed_query("one")
            async with TextEmbedding(NAME, pool=pool, lazy=True) as model:
                assert (model.stats().workers_ready, model.stats().items) == (1, 0)
                await model.embed_query("one")
                assert model.stats().items == 1


async def test_what_cannot_be_found_is_the_error_of_the_call() -> None:
    async with TextEmbedding("no-such-model", lazy=True, workers=0) as model:
        for _ in range(2):
            with pytest.raises(UnknownModelError):
                await model.embed_query("one")
        with pytest.raises(UnknownModelError):
            await model.embed(["one"]).collect()


@pytest.mark.slow
async def test_what_failed_to_load_is_tried_again_by_the_next_call(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    async with TextEmbedding(with_settings(refuse_if=str(broken)), workers=0, lazy=True) as model:
        errors: list[ModelLoadError] = []

        async def fail() -> None:
            with pytest.raises(ModelLoadError) as caught:
                await model.embed_query("#1")
            errors.append(caught.value)

        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            group.start_soon(fail)
        assert errors[0] is not errors[1]
        broken.unlink()
        assert (await model.embed_query("#1"))[2] == 1


@pytest.mark.slow
async def test_a_caller_that_is_cancelled_leaves_it_loading_for_the_next_one(tmp_path: Path) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    settings = {"load_log": str(log), "load_when": str(go)}
    async with TextEmbedding(with_settings(**settings), workers=0, lazy=True) as model:
        async with anyio.create_task_group() as group:
            group.start_soon(model.embed_query, "#1")
            await until(lambda: loads(log) == 1)
            group.cancel_scope.cancel()
        stream = model.embed(["#2"])
        async with anyio.create_task_group() as group:
            group.start_soon(stream.take_some)
            await anyio.wait_all_tasks_blocked()
            await stream.aclose()
        go.touch()
        assert (await model.embed_query("#3"))[2] == 3
    assert loads(log) == 1


@pytest.mark.slow
async def test_closing_ends_those_who_wait_for_it_to_load(tmp_path: Path) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    errors: list[StateError] = []

    async def fail() -> None:
        with pytest.raises(StateError) as caught:
            await model.embed_query("#1")
        errors.append(caught.value)

    async with nothing_left_behind():
        model = TextEmbedding(with_settings(load_log=str(log), load_when=str(go)), workers=1, lazy=True)
        await model.open()
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            await until(lambda: loads(log) == 1)
            stream = model.embed(["#2"])
            await model.aclose()
        assert "closed" in str(errors[0])
        with pytest.raises(StateError):
            await stream.collect()


async def test_observers_hear_of_it_when_it_is_loaded() -> None:
    heard: list[type[Event]] = []
    with fake_models():
        async with TextEmbedding(NAME, lazy=True, observers=[lambda event: heard.append(type(event))]) as model:
            assert heard == []
            await model.embed(["one"]).collect()
    assert heard[:2] == [ModelOpened, CallBegan]
    assert heard[-2:] == [CallEnded, ModelClosed]


async def test_it_can_be_awaited_from_any_loop_and_used_without_one() -> None:
    with fake_models():
        async with TextEmbedding(NAME, lazy=True) as model:
            anywhere = model.on_any_loop()
            vector = await anyio.to_thread.run_sync(lambda: anyio.run(lambda: anywhere.embed_query("one")))
            assert vector.shape == (384,)

        def in_thread() -> int:
            with SyncTextEmbedding(NAME, lazy=True) as sync:
                assert sync.stats().items == 0
                return sum(len(vector) for vector in sync.embed(["one", "two"]))

        assert await anyio.to_thread.run_sync(in_thread) == 768
