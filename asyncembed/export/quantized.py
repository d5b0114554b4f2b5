"""Linear maps in 8 bits whose results do not depend on the neighbours: each row of activations has its own scale.

A row, a token, is quantised by its own largest value, so that it gives the same integers in any batch; other libraries
take one scale for the whole batch. Nothing but standard operators is used.

On processors without VNNI two neighbouring products of `MatMulInteger` are added in 16 bits, where they can overflow in
silence. No two neighbours of the weights that are made here can: the same file gives the same integers everywhere.

Sources: Xiao et al. 2023 (SmoothQuant: what is hard in the activations is moved into the weights, by channel), and for
the sums in 16 bits, the instruction VPMADDUBSW.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from asyncembed.export.onnx_builder import FLOAT

FloatArray = npt.NDArray[np.float32]

# Coarser scales make the neighbours smaller that are too large together: of these, each output takes the best.
_COARSER = (1.0, 1.1, 1.2, 1.3, 1.4, 1.55, 1.7, 1.85, 2.0)

# 255 · 128 is the last product that 16 bits hold with its sign.
_LARGEST_PAIR = 128

# A row of zeros needs a scale as well.
_SMALLEST = 1e-12

# Rows of weights at once: what is computed of them stays in a processor's cache.
_ROWS_AT_ONCE = 64


class Nodes(Protocol):
    """Where nodes of the standard operator set are added: `onnx_builder.Graph`, or what writes into another graph."""

    @property
    def opset(self) -> int:
        """Its version; at least 11."""

    def node(self, op: str, *inputs: str, **attributes: int | float | Sequence[int]) -> str:
        """Add a node; the name of its output."""

    def constant(self, value: int | float | Sequence[int] | np.uint8) -> str:
        """A small tensor, of int64, float32, or the type of a numpy number."""


@dataclass(frozen=True, slots=True)
class Weights8:
    """A linear map from K to N numbers in 8 bits.

    Attributes:
        values: int8 (K, N).
        scale: What each output is multiplied with, float32 (N,).
    """

    values: npt.NDArray[np.int8]
    scale: FloatArray

    def bias(self, bias: FloatArray | None, *, floor: float | None) -> FloatArray:
        """The bias, float32 (N,), of rows that `quantized_rows` has made with the same floor."""
        given = np.zeros(len(self.scale)) if bias is None else bias.astype(np.float64)
        if floor:
            given = given + floor * self.values.sum(0, dtype=np.int64) * self.scale.astype(np.float64)
        return given.astype(np.float32)


def pair_safe(weight: FloatArray) -> Weights8:
    """Quantise a weight, (N, K) as checkpoints keep it, so that |w[2k] + w[2k + 1]| <= 128 where their signs agree."""
    outputs, inputs = weight.shape
    values, scale = np.empty((inputs, outputs), np.int8), np.empty(outputs, np.float32)
    for start in range(0, outputs, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        found, scale[rows] = _pair_safe_rows(weight[rows].astype(np.float32))
        values[:, rows] = found[:, :inputs].T
    return Weights8(values, scale)


def _pair_safe_rows(weight: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """The integers of some rows, with a zero after an odd number, and the scale of each."""
    if weight.shape[1] % 2:
        weight = np.pad(weight, ((0, 0), (0, 1)))
    top = np.abs(weight).max(axis=1, initial=0.0)
    top[top == 0] = 1.0
    least = np.full(len(weight), np.inf, np.float32)
    best, scale = np.zeros(weight.shape, np.int8), top / np.float32(127)
    for coarser in _COARSER:
        step = np.float32(coarser) * top / np.float32(127)
        rounded = np.rint(weight / step[:, None])
        pairs = rounded.reshape(len(weight), -1, 2)
        total = np.abs(pairs[..., 0] + pairs[..., 1])
        # Of opposite signs none is that large.
        row, place = np.nonzero(total > _LARGEST_PAIR)
        pairs[row, place] = np.trunc(pairs[row, place] * (np.float32(_LARGEST_PAIR) / total[row, place])[:, None])
        error = np.square(rounded * step[:, None] - weight).sum(axis=1)
        better = error < least
        least[better], best[better], scale[better] = error[better], rounded[better].astype(np.int8), step[better]
    return best, scale


def quantized_table(rows: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Rows of a table, int8 (rows, width), and the scale of each, float32 (rows, 1)."""
    top = np.abs(rows).max(axis=1, keepdims=True, initial=0.0).astype(np.float32)
    top[top == 0] = 1.0
    scale = top / np.float32(127)
    return np.rint(rows / scale).astype(np.int8), scale


def smoothing(largest: FloatArray, weights: Iterable[FloatArray]) -> FloatArray:
    """What channels are divided by before they are quantised, and their weights are multiplied with: float32 (K,).

    `largest` is the greatest absolute value of each channel of the activations, (K,), `weights` are those of all linear
    maps, (N, K), that read them. Geometrically the mean is 1. Source: SmoothQuant, section 4, alpha = 0.5.
    """
    by_channel = np.maximum.reduce([np.abs(weight).max(axis=0, initial=0.0) for weight in weights])
    found = np.sqrt(np.maximum(largest, 1e-5) / np.maximum(by_channel, 1e-8))
    return np.asarray(found / np.exp(np.log(found).mean()), np.float32)


@dataclass(frozen=True, slots=True)
class Rows8:
    """Quantised activations, as values of a graph: uint8 (M, K), the zero point, and float32 (M, 1) scales."""

    values: str
    zero: str
    scale: str


def quantized_rows(
    graph: Nodes, value: str, *, floor: float | None = None, divisor: str | None = None, axis: int = 1
) -> Rows8:
    """Add what quantises each row of `value`, float32 (M, K), by its own largest number.

    Rows may also be in batches, (B, M, K), with `axis` 2.

    `floor` is what no number is less than, as after GELU: then all 256 steps lie above it. `divisor` is a weight,
    float32 (K,), that holds 1 / `smoothing`.
    """
    if divisor is not None:
        value = graph.node("Mul", value, divisor)
    if floor:
        value = graph.node("Add", value, graph.constant(-floor))
    size = value if floor is not None else graph.node("Abs", value)
    steps, zero = (127, 128) if floor is None else (255, 0)
    if graph.opset < 18:
        largest = graph.node("ReduceMax", size, axes=[axis], keepdims=1)
    else:
        largest = graph.node("ReduceMax", size, graph.constant([axis]), keepdims=1)
    scale = graph.node("Mul", graph.node("Max", largest, graph.constant(_SMALLEST)), graph.constant(1.0 / steps))
    point = graph.constant(np.uint8(zero))
    values = graph.node("QuantizeLinear", graph.node("Div", value, scale), graph.constant(1.0), point)
    return Rows8(values, point, scale)


def product(graph: Nodes, rows: Rows8, values: str, scale: str, bias: str) -> str:
    """Add rows · weight + bias, float32 (M, N), for weights that hold what `Weights8` has."""
    integers = graph.node("MatMulInteger", rows.values, values, rows.zero)
    scaled = graph.node("Mul", graph.node("Cast", integers, to=FLOAT), scale)
    return graph.node("Add", graph.node("Mul", scaled, rows.scale), bias)
