"""Several results from one pass, against what the authors' own code gives; see `reference_one_pass.py`."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest

from asyncembed.catalogue.described import Overrides
from asyncembed.encoders import build
from asyncembed.encoders.encoder import Call, Encoder, EncoderConfig
from asyncembed.errors import EncodeError, ModelError, OptionError, UnsupportedModelError
from asyncembed.loading.load import prepare
from asyncembed.options import Options
from asyncembed.results import HYBRID_OUTPUTS, HybridBatch
from asyncembed.runtime.torch_file import read_torch_file
from tests.support.hybrid_models import HYBRID_TEXTS, Layout, expected, hybrid_spec, write_hybrid_model
from tests.support.safetensors_files import write_tensors
from tests.support.torch_files import write_torch_file

pytestmark = pytest.mark.slow

LAYOUTS: tuple[Layout, ...] = get_args(Layout)


def opened(directory: Path, **config: Any) -> Encoder:
    return build(EncoderConfig(spec=hybrid_spec(directory), directory=directory, **config))


def assert_is_reference(batch: HybridBatch[Any], position: int, of_text: int) -> None:
    dense, weights, rows = expected(of_text)
    np.testing.assert_allclose(batch.dense[position], dense, atol=1e-5)
    sparse = batch.sparse[position]
    assert sparse.indices.tolist() == list(weights)
    np.testing.assert_allclose(sparse.values, list(weights.values()), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(batch.late_interaction[position], rows, atol=1e-5)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "weights"])
def test_all_results_are_those_of_the_authors_code(layout: Layout, tmp_path: Path) -> None:
    """A batch with padding, and each text alone."""
    encoder = opened(write_hybrid_model(tmp_path, layout))
    assert encoder.info.outputs == HYBRID_OUTPUTS
    assert encoder.info.dim == 8
    together = encoder.encode(HYBRID_TEXTS, Call(outputs=HYBRID_OUTPUTS))
    assert isinstance(together.results, HybridBatch)
    assert not together.failures
    for position, text in enumerate(HYBRID_TEXTS):
        assert_is_reference(together.results, position, position)
        alone: Any = encoder.encode([text], Call()).results
        assert_is_reference(alone, 0, position)


async def test_weights_alone_are_enough(tmp_path: Path) -> None:
    directory = write_hybrid_model(tmp_path / "model", "weights")
    config = await prepare(
        directory, "hybrid", Options(workers=0, cache_dir=tmp_path), place=directory, overrides=Overrides(), settings={}
    )
    results: Any = build(config).encode(HYBRID_TEXTS, Call()).results
    for position in range(len(HYBRID_TEXTS)):
        assert_is_reference(results, position, position)


@pytest.mark.parametrize("layout", ["own", "finished", "raw"])
def test_padding_on_the_left_changes_nothing(layout: Layout, tmp_path: Path) -> None:
    directory = write_hybrid_model(tmp_path, layout)
    path = directory / "tokenizer_config.json"
    path.write_text(path.read_text("utf-8").replace("{", '{"padding_side": "left", ', 1), "utf-8")
    encoder: Any = opened(directory)
    assert encoder.tokenizer.pads_left
    results = encoder.encode(HYBRID_TEXTS, Call(outputs=("sparse", "late_interaction"))).results
    for position in range(len(HYBRID_TEXTS)):
        _, weights, rows = expected(position)
        assert results.sparse[position].as_dict() == pytest.approx(weights, abs=1e-5)
        np.testing.assert_allclose(results.late_interaction[position], rows, atol=1e-5)
    if layout == "own":  # the others take the first position of a row in the graph itself
        dense = encoder.encode(HYBRID_TEXTS, Call(outputs=("dense",))).results.dense
        np.testing.assert_allclose(dense, [expected(row)[0] for row in range(len(HYBRID_TEXTS))], atol=1e-5)


def test_only_what_is_asked_for_is_computed_and_sent(tmp_path: Path) -> None:
    encoder = opened(write_hybrid_model(tmp_path))
    results: Any = encoder.encode(["the day"], Call(outputs=("sparse",))).results
    assert results.outputs == results[0].outputs == ("sparse",)
    with pytest.raises(OptionError, match="no colour results"):
        encoder.encode(["the day"], Call(outputs=("dense", "colour")))  # type: ignore[arg-type]


def test_what_is_wrong_with_an_input_concerns_it_alone(tmp_path: Path) -> None:
    encoder = opened(write_hybrid_model(tmp_path))
    done: Any = encoder.encode([HYBRID_TEXTS[0], 3, "\ud800", HYBRID_TEXTS[3], "the " * 100], Call(long="error"))
    assert done.failures.keys() == {1, 2, 4}
    assert_is_reference(done.results, 0, 0)
    assert_is_reference(done.results, 3, 3)
    assert [bool(count) for count in done.counts] == [True, False, False, True, False]
    assert len(encoder.encode([], Call()).results) == 0
    assert list(encoder.encode(["the day", 7], Call(mode="count")).results) == [4, 0]


def test_halves_are_halves(tmp_path: Path) -> None:
    results: Any = opened(write_hybrid_model(tmp_path)).encode(["the day"], Call(dtype="float16")).results
    assert results.dense.dtype == results.late_interaction[0].dtype == np.float16
    assert results.sparse[0].values.dtype == np.float32


def test_what_is_not_finite_is_no_result(tmp_path: Path) -> None:
    directory = write_hybrid_model(tmp_path)
    head = {"weight": np.full((1, 8), np.inf, np.float32), "bias": np.ones(1, np.float32)}
    write_torch_file(directory / "sparse_linear.pt", head)
    encoder = opened(directory)
    done = encoder.encode(["the day"], Call())
    assert isinstance(done.failures[0], EncodeError)
    assert not encoder.encode(["the day"], Call(outputs=("dense", "late_interaction"))).failures


def test_a_layer_may_come_in_safetensors(tmp_path: Path) -> None:
    directory = write_hybrid_model(tmp_path)
    for name in ("sparse_linear", "colbert_linear"):
        tensors = read_torch_file(directory / f"{name}.pt")
        (directory / f"{name}.pt").unlink()
        write_tensors(directory / f"{name}.safetensors", tensors)
    assert_is_reference(opened(directory).encode([HYBRID_TEXTS[3]], Call()).results, 0, 3)  # type: ignore[arg-type]


def test_one_layer_is_enough(tmp_path: Path) -> None:
    directory = write_hybrid_model(tmp_path)
    (directory / "colbert_linear.pt").unlink()
    encoder = opened(directory)
    assert encoder.info.outputs == ("dense", "sparse")
    with pytest.raises(OptionError, match="no late_interaction results, only dense, sparse"):
        encoder.encode(["the day"], Call(outputs=("late_interaction",)))


def test_a_model_of_dense_vectors_is_for_another_class(tmp_path: Path) -> None:
    directory = write_hybrid_model(tmp_path)
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        (directory / name).unlink()
    with pytest.raises(UnsupportedModelError, match="TextEmbedding is the class for it"):
        opened(directory)


@pytest.mark.parametrize(
    ("file", "tensors"),
    [
        ("sparse_linear.pt", {"weight": np.ones((2, 8), np.float32), "bias": np.ones(2, np.float32)}),
        ("colbert_linear.pt", {"weight": np.ones((8, 8), np.float32)}),
        ("colbert_linear.pt", {"weight": np.ones(8, np.float32), "bias": np.ones(8, np.float32)}),
        ("colbert_linear.pt", {"weight": np.ones((8, 7), np.float32), "bias": np.ones(8, np.float32)}),
    ],
)
def test_a_layer_that_does_not_fit_is_an_error_of_opening(file: str, tensors: Any, tmp_path: Path) -> None:
    directory = write_hybrid_model(tmp_path)
    write_torch_file(directory / file, tensors)
    with pytest.raises(ModelError, match="layer|weight"):
        opened(directory)


def test_an_output_of_another_shape_is_an_error_of_opening(tmp_path: Path) -> None:
    directory = write_hybrid_model(tmp_path, "raw")
    path = directory / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    for value in model.graph.output:  # what is called sparse is the matrix
        value.name = {"sparse": "colbert", "colbert": "sparse"}.get(value.name, value.name)
    for node in model.graph.node:
        node.output[0] = {"sparse": "colbert", "colbert": "sparse"}.get(node.output[0], node.output[0])
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedModelError, match="shape"):
        opened(directory)
