"""SPLADE's weights of words, against what sentence-transformers makes of the same logits and repos."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncembed.catalogue.pipeline import spec_from_directory
from asyncembed.encoders import build
from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.encoders.settings import SpladeSettings
from asyncembed.encoders.splade import strongest, weigh
from asyncembed.errors import ModelLoadError, OptionError, UnsupportedModelError
from asyncembed.results import SparseEmbedding
from tests.support.graphs import write_text_graph
from tests.support.safetensors_files import write_tensors

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[1] / "embedders" / "data" / "sparse"
TEXTS: list[str] = json.loads((DATA / "texts.json").read_text("utf-8"))
QUERY = Call(mode="query")


def dense(vector: SparseEmbedding, size: int) -> np.ndarray[Any, Any]:
    """All weights, those that are 0 too."""
    assert np.unique(vector.indices).tolist() == vector.indices.tolist()
    row = np.zeros(size, np.float32)
    row[vector.indices] = vector.values
    return row


@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_logits_become_the_weights_of_sentence_transformers(
    pooling: Literal["max", "sum"], activation: Literal["relu", "log1p_relu"]
) -> None:
    reference = np.load(DATA / "pooling.npz")
    settings = SpladeSettings(word_pooling=pooling, activation=activation)
    for logits, mask, expected in zip(
        reference["logits"], reference["mask"], reference[f"{pooling}_{activation}"], strict=True
    ):
        for order in (slice(None), slice(None, None, -1)):  # padding on the right, and on the left
            places = mask[order].nonzero()[0]
            real = slice(int(places[0]), int(places[-1]) + 1)
            indices, values = weigh(places, logits[order], real, is_query=False, settings=settings)
            assert indices.tolist() == expected.nonzero()[0].tolist()
            np.testing.assert_allclose(values, expected[indices], rtol=1e-6)


def test_long_texts_are_summed_up_whole() -> None:
    logits = np.random.default_rng(1).normal(size=(150, 7)).astype(np.float32)
    settings = SpladeSettings(word_pooling="sum")
    indices, values = weigh(np.arange(147), logits, slice(2, 149), is_query=False, settings=settings)
    assert indices.tolist() == list(range(7))
    np.testing.assert_allclose(values, np.log1p(np.maximum(logits[2:149], 0)).sum(axis=0), rtol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_the_largest_logits_alone_give_the_same_weights(activation: Literal["relu", "log1p_relu"]) -> None:
    reference = np.load(DATA / "pooling.npz")
    settings = SpladeSettings(activation=activation)
    logits, ids = reference["logits"][0], np.arange(6)
    largest = weigh(ids, logits.max(axis=0), slice(0, 6), is_query=False, settings=settings)
    for found, expected in zip(
        largest, weigh(ids, logits, slice(0, 6), is_query=False, settings=settings), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_the_strongest_entries_are_kept_in_their_order() -> None:
    indices, values = np.array([2, 5, 6, 8, 9]), np.array([0.5, 0.1, 2.0, 0.5, 0.2], np.float32)

    def kept(**keywords: Any) -> list[int]:
        found, weights = strongest(indices, values, SpladeSettings(**keywords))
        assert weights.tolist() == [values[indices.tolist().index(index)] for index in found]
        return [int(index) for index in found]

    assert kept() == kept(max_active_dims=5) == kept(pruning=0) == [2, 5, 6, 8, 9]
    assert kept(max_active_dims=3) == [2, 6, 8]
    assert kept(max_active_dims=2) == [2, 6]  # of equal ones the first
    assert kept(pruning=0.25) == [2, 6, 8]
    assert kept(pruning=1) == kept(pruning=0.25, max_active_dims=1) == [6]


@given(
    values=st.lists(st.floats(-4, 4, width=32), max_size=20),
    most=st.none() | st.integers(1, 25),
    share=st.none() | st.floats(0, 1),
)
def test_no_entry_that_is_left_out_is_stronger_than_one_that_is_kept(
    values: list[float], most: int | None, share: float | None
) -> None:
    weights = np.array(values, np.float32)
    indices, kept = strongest(np.arange(len(weights)), weights, SpladeSettings(max_active_dims=most, pruning=share))
    assert kept.tolist() == weights[indices].tolist()
    assert len(kept) <= (most or 25)
    if len(weights):
        assert np.abs(weights).max() == np.abs(kept).max()
        left_out = np.abs(np.delete(weights, indices))
        assert not len(left_out) or left_out.max() <= np.abs(kept).min()


def test_what_is_no_number_is_not_pruned_away() -> None:
    """So that the text fails, rather than having a vector without it."""
    values = np.array([1, np.nan, 2], np.float32)
    assert len(strongest(np.arange(3), values, SpladeSettings(max_active_dims=1, pruning=0.9))[0]) == 3


# ---------------------------------------------------------------- repos


def with_graph(name: str, directory: Path, folder: str = "") -> Path:
    """A repo of the reference, with a graph of ours whose words are some of all."""
    shutil.copytree(DATA / name, directory, dirs_exist_ok=True)
    write_text_graph(directory / folder / "onnx" / "model.onnx", outputs=("logits",))
    return directory


def load(directory: Path, **options: Any) -> Any:
    spec = spec_from_directory(directory, family="sparse")
    return build(EncoderConfig(spec=spec, directory=directory, **options))


ROUTED = {"router": "document_0_Transformer", "idf": ""}


@pytest.mark.parametrize("name", ROUTED)
def test_queries_are_those_of_sentence_transformers_without_any_graph(name: str, tmp_path: Path) -> None:
    with_graph(name, tmp_path, ROUTED[name])
    encoder = load(tmp_path)
    next(tmp_path.rglob("*.onnx")).unlink()
    expected = np.load(DATA / f"{name}.npz")["queries"]
    for batch in (TEXTS, TEXTS[:1]):
        for found, wanted in zip(encoder.encode(batch, QUERY).results, expected, strict=False):
            np.testing.assert_array_equal(dense(found, len(wanted)), wanted)
    with pytest.raises(ModelLoadError, match=r"model\.onnx"):
        encoder.encode(TEXTS, Call())


@pytest.mark.parametrize("name", ROUTED)
def test_documents_of_a_router_are_computed_by_the_graph_of_its_folder(name: str, tmp_path: Path) -> None:
    with_graph(name, tmp_path, ROUTED[name])
    encoder = load(tmp_path, keywords={"max_active_dims": 600})
    assert encoder.info.max_length == 16
    graph, tokenizer = encoder._graph, encoder._tokenizer
    for text, found in zip(TEXTS, encoder.encode(TEXTS, Call()).results, strict=True):
        ids = np.array([tokenizer.encode([text]).values[0].ids])
        logits = graph.run_text(ids, np.ones_like(ids))[0]
        expected = np.log1p(np.log1p(np.maximum(logits.max(axis=0), 0)))  # special tokens count, as they do there
        np.testing.assert_allclose(dense(found, expected.size), expected, rtol=1e-4, atol=1e-6)
    # The one repo says so itself.
    assert {len(vector) > 9 for vector in load(tmp_path).encode(TEXTS, Call()).results} == {name == "idf"}


def test_the_tokenizer_of_queries_cuts_at_a_limit_of_its_own(tmp_path: Path) -> None:
    with_graph("router", tmp_path, ROUTED["router"])
    path = tmp_path / "query_0_SparseStaticEmbedding" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"model_max_length": 3}), "utf-8")
    encoder = load(tmp_path)
    cut, whole = encoder.encode(["the day of of the way", "the day of"], QUERY).results
    assert cut == whole
    assert encoder.encode([TEXTS[3]], Call()).counts == [-16]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"other": np.zeros(38, np.float32)}, "no tensor `weight`"),
        ({"weight": np.zeros((2, 19), np.float32)}, "no tensor `weight`"),
        ({"weight": np.full(38, np.inf, np.float32)}, "not finite"),
    ],
)
def test_a_broken_table_of_queries_is_named(
    weights: dict[str, np.ndarray[Any, Any]], message: str, tmp_path: Path
) -> None:
    with_graph("router", tmp_path, ROUTED["router"])
    write_tensors(tmp_path / "query_0_SparseStaticEmbedding" / "model.safetensors", weights)
    with pytest.raises(ModelLoadError, match=message):
        load(tmp_path)


def test_tokens_beyond_the_table_weigh_nothing(tmp_path: Path) -> None:
    with_graph("router", tmp_path, ROUTED["router"])
    path = tmp_path / "query_0_SparseStaticEmbedding" / "model.safetensors"
    write_tensors(path, {"weight": np.ones(6, np.float32)})
    assert load(tmp_path).encode(["the day", "day"], QUERY).results[0].as_dict() == {5: 1.0}
    write_tensors(path, {"weight": np.ones(60, np.float16)})
    assert load(tmp_path).encode(["the day"], QUERY).results[0].as_dict() == {5: 1.0, 17: 1.0}


def test_a_graph_of_finished_vectors_is_refused(tmp_path: Path) -> None:
    shutil.copytree(DATA / "splade", tmp_path, dirs_exist_ok=True)
    write_text_graph(tmp_path / "model.onnx", outputs=("sentence_embedding",))
    with pytest.raises(UnsupportedModelError, match="one vector for a text"):
        load(tmp_path)


def test_keywords_of_pruning_are_splades_alone(tmp_path: Path) -> None:
    with_graph("splade", tmp_path)
    (few,) = load(tmp_path, keywords={"max_active_dims": 2}).encode(TEXTS[:1], Call()).results
    (all_of_them,) = load(tmp_path).encode(TEXTS[:1], Call()).results
    assert len(few) == 2 < len(all_of_them)
    assert set(few.values) == set(np.sort(all_of_them.values)[-2:])
    with pytest.raises(OptionError, match="max_active_dims, pruning"):
        load(tmp_path, keywords={"alpha": 1})
