"""One graph under construction: its inputs, and the tensors of a checkpoint as its weights."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.export.onnx_builder import BLOCK_BYTES, Graph
from asyncembed.runtime.safetensors import Tensors
from asyncembed.runtime.session import Array

# The first with LayerNormalization, and one that onnxruntime and OpenVINO have long known. At opset 12, and
# with MatMul and Add for Gemm, onnxruntime's optimiser makes its own Attention operator of the same graph: on
# a CPU that measured 3 to 6 % faster for one text of 512 tokens, and up to 5 % slower for batches of shorter ones.
OPSET = 17


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a checkpoint, by their names after a prefix that all have in common.

    Attributes:
        graph: What they become weights of.
        tensors: All of the checkpoint.
        model: For messages.
        prefix: What stands before each name here.
    """

    graph: Graph
    tensors: Tensors
    model: str
    prefix: str = ""

    def under(self, prefix: str) -> "Weights":
        """Those whose names begin with `prefix`, too."""
        return Weights(self.graph, self.tensors, self.model, self.prefix + prefix)

    def has(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def shape(self, name: str, expected: tuple[int | None, ...]) -> tuple[int, ...]:
        """The shape of a tensor, which must be `expected` where that is not None.

        Raises:
            ModelLoadError: It is missing, or of another shape.
        """
        if not self.has(name):
            raise ModelLoadError(self._about(name, "is not among its weights"), model=self.model)
        shape = self.tensors.shape(self.prefix + name)
        if len(shape) != len(expected) or any(e not in (None, s) for e, s in zip(expected, shape, strict=True)):
            reason = f"has the shape {list(shape)}, which does not fit config.json and the other tensors"
            raise ModelLoadError(self._about(name, reason), model=self.model)
        return shape

    def take(self, name: str, expected: tuple[int | None, ...]) -> str:
        """A tensor, as it is, as a weight of the graph; the weight's name there.

        Raises:
            ModelLoadError: As `shape`; an element type that is no float is an `UnsupportedModelError` at the moment of
                writing.
        """
        shape = self.shape(name, expected)
        rows = max(1, BLOCK_BYTES * shape[0] // max(1, 4 * math.prod(shape)))
        readers = [self.reader(name, slice(start, start + rows)) for start in range(0, shape[0], rows)]
        return self.graph.weight_in_blocks(self.prefix + name, shape, lambda: (read() for read in readers))

    def made(self, name: str, shape: tuple[int, ...], make: Callable[[Array], Array], *, suffix: str = "") -> str:
        """A weight of this shape that `make` computes of a tensor when the graph is written.

        Several that are made of one tensor differ in `suffix`.
        """
        read = self.reader(name)
        return self.graph.weight(self.prefix + name + suffix, shape, lambda: make(read()))

    def reader(self, name: str, rows: slice = slice(None)) -> Callable[[], Array]:
        """What reads a tensor, or rows of it, for a weight that is made of it when the graph is written.

        Raises, then:
            UnsupportedModelError: Its element type is no float.
        """
        # Not `self`, which has the graph that has this function: a circle would keep the weights mapped.
        tensors, full_name, model, objection = self.tensors, self.prefix + name, self.model, self._about(name, "")

        def load() -> Array:
            array = tensors.rows(full_name, rows)
            if array.dtype.kind != "f":
                reason = f"has the element type {array.dtype}, and quantised weights are not computed; use a repo that"
                raise UnsupportedModelError(f"{objection}{reason} has an ONNX file", model=model)
            return array

        return load

    def _about(self, name: str, reason: str) -> str:
        return f"no ONNX graph can be built of {self.model}: the tensor {self.prefix}{name} {reason}"


@dataclass(frozen=True, slots=True)
class Answer:
    """How likely a text goes on with one token: `yes`, an id, and if there is another, compared to `no`."""

    yes: int
    no: int | None = None

    def __str__(self) -> str:
        return f"answer {self.yes} {self.no}"


@dataclass(frozen=True, slots=True)
class Construction:
    """What all steps of building a graph share. Hidden states are float32 (batch · tokens, dim) throughout.

    Attributes:
        config: What config.json says.
        weights: The encoder's tensors, by their names without the prefix that a checkpoint with a head puts there.
        all_weights: All tensors, by their full names.
        ids, mask: The graph's first inputs, int64 (batch, tokens).
        shape: The value [batch, tokens], int64 (2,).
        tokens: The value [tokens], int64 (1,).
        answer: What is asked, where that is the graph's head.
        in_chunks: Whether the attention of long texts is computed in chunks; the graph then has branches.
    """

    config: Mapping[str, Any]
    weights: Weights
    all_weights: Weights
    ids: str
    mask: str
    shape: str
    tokens: str
    answer: Answer | None = None
    in_chunks: bool = True
    _heads: dict[tuple[int, int], str] = field(default_factory=dict)

    @classmethod
    def begin(
        cls,
        config: Mapping[str, Any],
        tensors: Tensors,
        *,
        model: str,
        prefix: str,
        answer: Answer | None = None,
        in_chunks: bool = True,
    ) -> "Construction":
        """A graph with its inputs and nothing else."""
        graph = Graph(OPSET)
        ids = graph.input("input_ids", ["batch", "tokens"])
        mask = graph.input("attention_mask", ["batch", "tokens"])
        shape = graph.node("Shape", ids)
        tokens = graph.node("Gather", shape, graph.constant([1]), axis=0)
        whole = Weights(graph, tensors, model)
        return cls(config, whole.under(prefix), whole, ids, mask, shape, tokens, answer, in_chunks)

    @property
    def graph(self) -> Graph:
        return self.weights.graph

    def split_heads(self, flat: str, heads: int, size: int, *, transposed: bool = False) -> str:
        """(batch · tokens, heads · size) as (batch, heads, tokens, size); transposed: (batch, heads, size, tokens)."""
        graph = self.graph
        if (heads, size) not in self._heads:
            self._heads[heads, size] = graph.node("Concat", self.shape, graph.constant([heads, size]), axis=0)
        apart = graph.node("Reshape", flat, self._heads[heads, size])
        return graph.node("Transpose", apart, perm=[0, 2, 3, 1] if transposed else [0, 2, 1, 3])

    def by_text(self, flat: str, width: int) -> str:
        """(batch · tokens, width) as (batch, tokens, width)."""
        graph = self.graph
        return graph.node("Reshape", flat, graph.node("Concat", self.shape, graph.constant([width]), axis=0))
