"""What the layers of all architectures are made of: linear maps, norms, activations.

Hidden states are flat, (batch · tokens, dim), so that each linear map is one Gemm that adds its bias as it goes.
Nothing but standard operators is used, so that any ONNX runtime takes the graph.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from asyncembed.export.construction import Weights
from asyncembed.export.onnx_builder import Graph

Activation = Callable[[Graph, str], str]


def linear(
    weights: Weights,
    name: str,
    value: str,
    inputs: int,
    outputs: int,
    *,
    needs_bias: bool = False,
    part: tuple[int, int] = (0, 1),
) -> str:
    """`value` · weightᵀ + bias, where there is one: a checkpoint keeps the weight as (outputs, inputs).

    Where it keeps several maps of equal size one after the other as one, `part` says which, and of how many.
    """
    operands = [value, _part(weights, f"{name}.weight", (outputs, inputs), part)]
    if needs_bias or weights.has(f"{name}.bias"):
        operands.append(_part(weights, f"{name}.bias", (outputs,), part))
    return weights.graph.node("Gemm", *operands, transB=1)


def _part(weights: Weights, name: str, shape: tuple[int, ...], part: tuple[int, int]) -> str:
    """The rows of a tensor that are `part` of it, of this shape."""
    index, count = part
    rows = shape[0]
    weights.shape(name, (rows * count, *shape[1:]))
    if count == 1:
        return weights.take(name, shape)
    first = index * rows
    return weights.made(name, shape, lambda array: array[first : first + rows], suffix=f".{index}")


def layer_norm(weights: Weights, name: str, value: str, width: int, *, eps: float, needs_bias: bool = False) -> str:
    """Layer norm (Ba et al. 2016), with a bias where there is one."""
    scale, shift = norm_names(weights, name)
    operands = [value, weights.take(scale, (width,))]
    if needs_bias or weights.has(shift):
        operands.append(weights.take(shift, (width,)))
    return weights.graph.node("LayerNormalization", *operands, epsilon=eps)


def norm_names(weights: Weights, name: str) -> tuple[str, str]:
    """What the scale and the bias of a layer norm are called."""
    # Checkpoints that came from TensorFlow keep its names, and some later ones have them again.
    old = weights.has(f"{name}.gamma")
    return (f"{name}.gamma", f"{name}.beta") if old else (f"{name}.weight", f"{name}.bias")


def rms_norm(weights: Weights, name: str, value: str, width: int, *, eps: float, plus_one: bool = False) -> str:
    """Root mean square norm (Zhang and Sennrich 2019) over the last axis; `plus_one`: the scale is 1 + weight."""
    graph = weights.graph
    shift = np.float32(1 if plus_one else 0)
    scale = weights.made(f"{name}.weight", weights.shape(f"{name}.weight", (width,)), lambda array: array + shift)
    # In the form that onnxruntime makes one operator of.
    square = graph.node("ReduceMean", graph.node("Pow", value, graph.constant(2.0)), axes=[-1])
    root = graph.node("Sqrt", graph.node("Add", square, graph.constant(eps)))
    return graph.node("Mul", graph.node("Div", value, root), scale)


def gated(weights: Weights, gate: str, up: str, down: str, value: str, width: int, *, activation: Activation) -> str:
    """down(activation(gate(value)) ⊙ up(value)), for linear maps of these names (Shazeer 2020)."""
    inner = weights.shape(f"{gate}.weight", (None, width))[0]
    opened = activation(weights.graph, linear(weights, gate, value, width, inner))
    product = weights.graph.node("Mul", opened, linear(weights, up, value, width, inner))
    return linear(weights, down, product, inner, width)


def _gelu(graph: Graph, value: str) -> str:
    """Compute x · Φ(x) with the exact normal distribution (Hendrycks and Gimpel 2016)."""
    error = graph.node("Erf", graph.node("Div", value, graph.constant(math.sqrt(2.0))))
    doubled = graph.node("Mul", value, graph.node("Add", error, graph.constant(1.0)))
    return graph.note_floor(graph.node("Mul", doubled, graph.constant(0.5)), _GELU_FLOOR)


def _gelu_tanh(graph: Graph, value: str) -> str:
    """The same approximated: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))."""
    cubic = graph.node("Mul", graph.node("Pow", value, graph.constant(3.0)), graph.constant(0.044715))
    inner = graph.node("Mul", graph.node("Add", value, cubic), graph.constant(math.sqrt(2.0 / math.pi)))
    tanh = graph.node("Add", graph.node("Tanh", inner), graph.constant(1.0))
    whole = graph.node("Mul", graph.node("Mul", value, graph.constant(0.5)), tanh)
    return graph.note_floor(whole, _GELU_TANH_FLOOR)


def _silu(graph: Graph, value: str) -> str:
    return graph.note_floor(graph.node("Mul", value, graph.node("Sigmoid", value)), _SILU_FLOOR)


def _relu(graph: Graph, value: str) -> str:
    return graph.note_floor(graph.node("Relu", value), 0.0)


# Just below the least values of the functions: -0.16998, -0.17005 and -0.27847.
_GELU_FLOOR, _GELU_TANH_FLOOR, _SILU_FLOOR = -0.17, -0.1701, -0.2785

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": _relu,
    "silu": _silu,
    "swish": _silu,
    "tanh": lambda graph, value: graph.node("Tanh", value),
}
