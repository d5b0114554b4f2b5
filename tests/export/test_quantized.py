"""Weights in 8 bits, by their numbers, and the nodes that compute with them."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from asyncembed.export.onnx_builder import FLOAT, Graph
from asyncembed.export.quantized import FloatArray, Weights8, pair_safe, product, quantized_rows, smoothing

LARGEST_INT16 = 32767


def largest_sum(weights: Weights8) -> int:
    """The greatest sum of two neighbouring products, as processors without VNNI add them, with bytes of 255."""
    values = weights.values.astype(np.int64)
    if len(values) % 2:
        values = np.pad(values, ((0, 1), (0, 0)))
    pairs = values.reshape(len(values) // 2, 2, -1)
    sums = [255 * np.maximum(sign * pairs, 0).sum(axis=1).max(initial=0) for sign in (1, -1)]
    return int(max(sums))


def random_weight(outputs: int, inputs: int) -> FloatArray:
    return np.random.default_rng(3).standard_normal((outputs, inputs)).astype(np.float32)


@pytest.mark.parametrize(
    "weight",
    [
        random_weight(70, 48),
        random_weight(5, 7),
        np.ones((3, 8), np.float32),
        -np.ones((3, 5), np.float32),
        np.zeros((2, 4), np.float32),
        random_weight(4, 16) * np.float32(1e-30),
    ],
    ids=["random", "odd", "all the largest", "all the least", "zeros", "tiny"],
)
def test_no_two_neighbours_overflow_16_bits(weight: FloatArray) -> None:
    weights = pair_safe(weight)
    assert weights.values.shape == weight.T.shape
    assert np.abs(weights.values.astype(int)).max() <= 127
    assert largest_sum(weights) <= LARGEST_INT16
    assert np.isfinite(weights.scale).all()
    assert (weights.scale > 0).all()


def test_weights_that_are_safe_as_they_are_lose_nothing_but_the_rounding() -> None:
    weight = random_weight(6, 32)
    weight[:, 1::2] = 0
    weights = pair_safe(weight)
    assert np.abs(weights.values.T * weights.scale[:, None] - weight).max() <= weights.scale.max() / 2 * 1.001


def test_a_coarser_scale_is_taken_where_it_is_nearer() -> None:
    """Of all scales the one with the least error: of two neighbours as large as can be, one with them at 64 each."""
    weight = np.ones((1, 64), np.float32)
    weights = pair_safe(weight)
    assert set(weights.values.ravel().tolist()) == {64}
    np.testing.assert_allclose(weights.values.T * weights.scale[:, None], weight, rtol=0.01)


def test_smoothing_divides_what_is_hard_between_activations_and_weights() -> None:
    factor = smoothing(
        np.array([16.0, 1.0, 1.0], np.float32), [np.ones((2, 3), np.float32), np.zeros((1, 3), np.float32)]
    )
    np.testing.assert_allclose(factor / factor[1], [4, 1, 1], rtol=1e-6)
    assert np.prod(factor) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize(("floor", "opset"), [(None, 17), (-0.17, 17), (0.0, 17), (None, 18)])
def test_a_product_is_near_the_exact_one_and_the_same_for_each_row_alone(
    floor: float | None, opset: int, tmp_path: Path
) -> None:
    weight, bias = random_weight(24, 33), random_weight(1, 24)[0]
    session = session_of(pair_safe(weight), bias, tmp_path, floor=floor, opset=opset)
    thousandths = np.random.default_rng(5).integers(-3000, 3000, (9, 33))
    thousandths[0], thousandths[1] = 0, thousandths[1] * 1000
    if floor is not None:
        thousandths = np.maximum(thousandths, int(1000 * floor))
    (together,) = session.run(["product"], {"thousandths": thousandths})
    values = thousandths / 1000
    for row, exact in zip(together, values @ weight.T + bias, strict=True):
        assert np.abs(row - exact).max() <= 0.02 * max(1, np.abs(exact).max())
    alone = [session.run(["product"], {"thousandths": row[None]})[0][0] for row in thousandths]
    np.testing.assert_array_equal(alone, together)


def session_of(
    weights: Weights8, bias: FloatArray, directory: Path, *, floor: float | None, opset: int
) -> onnxruntime.InferenceSession:
    """A graph with one product: of thousandths, which are its input."""
    graph, (inputs, outputs) = Graph(opset), weights.values.shape
    given = graph.input("thousandths", ["rows", inputs])
    value = graph.node("Mul", graph.node("Cast", given, to=FLOAT), graph.constant(0.001))
    names = (
        graph.weight("values", (inputs, outputs), lambda: weights.values, dtype="i1"),
        graph.weight("scale", (outputs,), lambda: weights.scale),
        graph.weight("bias", (outputs,), lambda: weights.bias(bias, floor=floor)),
    )
    graph.output(product(graph, quantized_rows(graph, value, floor=floor), *names), "product", ["rows", outputs])
    graph.write(directory / "model.onnx", directory / "data", "data")
    return onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
