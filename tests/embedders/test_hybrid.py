"""Several results for a text end to end, through real workers."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncembed import (
    HybridBatch,
    HybridTextEmbedding,
    LateInteractionTextEmbedding,
    SparseTextEmbedding,
    TextEmbedding,
    WorkerPool,
    sync,
)
from asyncembed.errors import InputError, ModelLoadError, OptionError, StateError, UnsupportedModelError
from asyncembed.testing import fake_model, fake_models
from tests.support.encoders import ECHO
from tests.support.hybrid_models import HYBRID_TEXTS, Layout, expected, write_hybrid_model
from tests.support.models import forget_registered_models
from tests.support.torch_files import write_archive

pytestmark = pytest.mark.slow


def assert_is_reference(embedding: Any, position: int) -> None:
    dense, weights, rows = expected(position)
    np.testing.assert_allclose(embedding.dense, dense, atol=1e-5)
    assert embedding.sparse.as_dict() == pytest.approx(weights, abs=1e-5)
    np.testing.assert_allclose(embedding.late_interaction, rows, atol=1e-5)


@pytest.mark.slow
async def test_a_repo_of_bge_m3s_layout_gives_all_results_in_every_way(tmp_path: Path) -> None:
    """Its graph keeps weights in a file of their own, also for a tensor in a node's attribute."""
    directory = write_hybrid_model(tmp_path)
    async with HybridTextEmbedding(directory, workers=1, max_batch_tokens=100) as model:
        assert model.outputs == ("dense", "sparse", "late_interaction")
        assert model.embedding_size == model.token_embedding_size == 8
        assert model.max_length == 64
        for call in (model.embed, model.query_embed, model.passage_embed):
            position = 0
            async for embedding in call(HYBRID_TEXTS):
                assert_is_reference(embedding, position)
                position += 1
        batch = await model.embed_documents(HYBRID_TEXTS)
        assert isinstance(batch, HybridBatch)
        assert batch.dense.shape == (9, 8)
        assert len(batch.sparse) == len(batch.late_interaction) == len(batch) == 9
        for position, embedding in enumerate(batch):
            assert_is_reference(embedding, position)
        assert_is_reference(await model.embed_query(HYBRID_TEXTS[3]), 3)
        assert [len(part) async for part in model.embed(HYBRID_TEXTS).batches(4)] == [4, 4, 1]
        assert model.stats().items == 3 * 9 + 9 + 1 + 9


async def test_a_call_says_which_results_it_wants(tmp_path: Path) -> None:
    directory = write_hybrid_model(tmp_path)
    async with HybridTextEmbedding(directory, workers=0, outputs=["sparse", "dense"]) as model:
        both = await model.embed_query("the day")
        assert both.outputs == model.outputs == ("dense", "sparse")
        with pytest.raises(StateError, match="no late_interaction result here, only dense, sparse"):
            both.late_interaction  # noqa: B018 (it raises)
        one = await model.embed_query("the day", outputs=("late_interaction",))
        assert one.outputs == ("late_interaction",)
        assert one.late_interaction.shape == (3, 8)
        batch, tokens, is_cut = await model.embed_documents(["a day", "the " * 99], outputs=["dense"], with_tokens=True)
        assert batch.outputs == ("dense",)
        assert tokens.tolist() == [4, 64]
        assert is_cut.tolist() == [False, True]
        assert (await model.embed([], outputs=["dense"]).collect()).dense.shape == (0, 8)
        wrong: Any
        for wrong in ("dense", [], ["colour"], 3):
            with pytest.raises(OptionError, match="outputs"):
                await model.embed_query("the day", outputs=wrong)


async def test_a_result_that_the_model_has_not_is_refused_at_the_door(tmp_path: Path) -> None:
    directory = write_hybrid_model(tmp_path)
    (directory / "colbert_linear.pt").unlink()
    async with HybridTextEmbedding(directory, workers=0) as model:
        assert (await model.embed_query("the day")).outputs == model.outputs == ("dense", "sparse")
        with pytest.raises(OptionError, match="no late_interaction results"):
            model.embed(["the day"], outputs=["late_interaction"])


async def test_the_dense_vectors_are_those_of_the_class_for_them(tmp_path: Path) -> None:
    directory = write_hybrid_model(tmp_path)
    async with (
        WorkerPool(workers=0) as pool,
        HybridTextEmbedding(directory, pool=pool) as model,
        TextEmbedding(directory, pool=pool) as dense,
    ):
        batch = await model.embed(HYBRID_TEXTS, outputs=["dense"]).collect()
        np.testing.assert_allclose(batch.dense, await dense.embed(HYBRID_TEXTS).collect(), atol=1e-6)


@pytest.mark.parametrize("layout", ["own", "weights"])
async def test_the_class_for_late_interaction_takes_it_too(layout: Layout, tmp_path: Path) -> None:
    directory = write_hybrid_model(tmp_path / "model", layout)
    async with LateInteractionTextEmbedding(directory, workers=0, cache_dir=tmp_path) as model:
        assert model.embedding_size == 8
        for position, matrix in enumerate(await model.embed(HYBRID_TEXTS).collect()):
            np.testing.assert_allclose(matrix, expected(position)[2], atol=1e-5)
        np.testing.assert_allclose(await model.embed_query(HYBRID_TEXTS[0]), expected(0)[2], atol=1e-5)
        assert await model.token_count("the day", is_doc=False, include_extension=True) == 4
    with pytest.raises(OptionError, match="no keyword 'pool_factor'"):
        await LateInteractionTextEmbedding(directory, workers=0, pool_factor=2).open()


@pytest.mark.parametrize("layout", ["own", "weights"])
async def test_the_class_for_sparse_vectors_takes_it_too(layout: Layout, tmp_path: Path) -> None:
    directory = write_hybrid_model(tmp_path / "model", layout)
    async with SparseTextEmbedding(directory, workers=0, cache_dir=tmp_path) as model:
        vectors = await model.embed(HYBRID_TEXTS).collect()
        for position, vector in enumerate(vectors):
            assert vector.as_dict() == pytest.approx(expected(position)[1], abs=1e-5)
        assert await model.embed_query(HYBRID_TEXTS[0]) == vectors[0]
        assert not model.requires_idf


async def test_results_keep_nothing_of_their_batch_alive(tmp_path: Path) -> None:
    async with HybridTextEmbedding(write_hybrid_model(tmp_path), workers=0, dtype="float16") as model:
        async for embedding in model.embed(HYBRID_TEXTS):
            assert embedding.dense.base is None
            assert embedding.dense.dtype == np.float16
            assert embedding.late_interaction.base is None
            assert embedding.sparse.indices.base is None
        collected = await model.embed(HYBRID_TEXTS).collect()
        assert collected[2].late_interaction.base is None


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


async def test_a_repo_with_a_hostile_layer_is_refused_and_does_nothing(tmp_path: Path) -> None:
    directory, harm = write_hybrid_model(tmp_path / "model"), tmp_path / "harm"
    write_archive(directory / "sparse_linear.pt", pickle.dumps({"weight": Hostile(harm)}, 2), {})
    with pytest.raises(ModelLoadError, match=r"sparse_linear\.pt is not read: its pickle names "):
        await HybridTextEmbedding(directory, workers=0).open()
    assert not harm.exists()
    pickle.loads(pickle.dumps(Hostile(harm), 2))
    assert harm.exists()


async def test_a_wrong_input_is_skipped_or_told(tmp_path: Path) -> None:
    async with HybridTextEmbedding(write_hybrid_model(tmp_path), workers=0, long="error") as model:
        inputs: list[Any] = ["the", 3, "the " * 99, "way"]
        assert len(await model.embed(inputs, on_error="skip").collect()) == 2
        results = [result async for result in model.embed(inputs, on_error="return")]
        assert [isinstance(result, InputError) for result in results] == [False, True, True, False]


def test_words_of_other_libraries_lead_here() -> None:
    for keyword in ("return_sparse", "outputs"):
        with pytest.raises(OptionError, match=r"HybridTextEmbedding gives several results from one pass: outputs="):
            TextEmbedding("BAAI/bge-m3", **{keyword: True})  # type: ignore[call-overload]


async def test_it_is_found_by_name_and_by_the_reasons_why_not(tmp_path: Path) -> None:
    assert HybridTextEmbedding().model_name == "BAAI/bge-m3"
    assert HybridTextEmbedding.get_embedding_size("baai/BGE-M3") == 1024
    assert [record["model"] for record in HybridTextEmbedding.list_supported_models()] == ["BAAI/bge-m3"]
    directory = write_hybrid_model(tmp_path, "weights")
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        (directory / name).unlink()
    with pytest.raises(UnsupportedModelError, match=r"neither sparse_linear\.pt nor colbert_linear\.pt"):
        await HybridTextEmbedding(directory, workers=0).open()


async def test_a_model_of_ones_own_has_a_name(tmp_path: Path) -> None:
    directory = write_hybrid_model(tmp_path)
    try:
        HybridTextEmbedding.add_custom_model(
            "mine/all", directory, "sparse_linear.pt", "colbert_linear.pt", additional_files=["onnx/model.onnx_data"]
        )
        async with HybridTextEmbedding("mine/all", workers=0) as model:
            assert_is_reference(await model.embed_query(HYBRID_TEXTS[4]), 4)
    finally:
        forget_registered_models()


async def test_somebody_elses_encoder_may_be_one() -> None:
    async with HybridTextEmbedding(replace(ECHO, family="hybrid"), workers=0) as model:
        assert model.outputs == ("dense", "sparse", "late_interaction")


async def test_fakes_have_all_results() -> None:
    with fake_models():
        async with HybridTextEmbedding("some/hybrid") as model:
            one, other = await model.embed_documents(["backpressure in streams", "streams"])
            assert one.dense.shape == (384,)
            assert len(one.sparse) == 3
            assert one.late_interaction.shape == (3, 384)
            assert float(one.dense @ other.dense) > 0.1
        async with (
            HybridTextEmbedding(fake_model("hybrid", dim=8)) as model,
            SparseTextEmbedding(fake_model("sparse")) as words,
        ):
            assert (await model.embed_query("streams")).sparse == await words.embed_query("streams")


@pytest.mark.slow
def test_it_blocks_for_programs_without_a_loop(tmp_path: Path) -> None:
    with sync.HybridTextEmbedding(write_hybrid_model(tmp_path), workers=0) as model:
        assert model.outputs == ("dense", "sparse", "late_interaction")
        assert model.token_embedding_size == 8
        for position, embedding in enumerate(model.embed(HYBRID_TEXTS)):
            assert_is_reference(embedding, position)
        assert model.embed_query("the day", outputs=["sparse"]).outputs == ("sparse",)


async def test_it_may_be_awaited_from_any_loop(tmp_path: Path) -> None:
    model = HybridTextEmbedding(write_hybrid_model(tmp_path), workers=0)
    async with model.on_any_loop() as anywhere:
        assert_is_reference(await anywhere.embed_query(HYBRID_TEXTS[0]), 0)
        assert len(await anywhere.embed(HYBRID_TEXTS, outputs=["dense"]).collect()) == 9
