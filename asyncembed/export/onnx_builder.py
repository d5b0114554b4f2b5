"""An ONNX graph under construction, and how it is written to disk.

The weights lie in a file of their own beside the graph ("external data"). So one way serves models below and
above protobuf's limit of 2 GB, a runtime maps the weights instead of copying them, worker processes share the
embedding table's pages, and at no time is more than one tensor in memory here.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from asyncembed.runtime.session import Array

if TYPE_CHECKING:
    import onnx

# Element types as `onnx.TensorProto` numbers them, which is loaded only where a graph is built.
FLOAT, INT8, INT64, BOOL = 1, 3, 7, 9

_ELEMENT_TYPES = {np.dtype("<f4"): FLOAT, np.dtype("i1"): INT8}

# Tensors up to this size stay in the graph, where a runtime's optimiser can read them: scalars, axes, shapes.
_INLINE_BYTES = 256
# Half-precision weights are widened in pieces of this size.
BLOCK_BYTES = 16 * 2**20
# Page size: what lets a runtime map one tensor without its neighbours.
_ALIGNMENT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class _Weight:
    """One tensor of the data file; `load` gives blocks of its rows, at the moment of writing.

    Those are of its own element type, or for a float32 one of any float type.
    """

    name: str
    shape: tuple[int, ...]
    load: Callable[[], Iterable[Array]]
    dtype: np.dtype[Any]


class Graph:
    """Nodes, constants and weights, in the order in which they are added."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}
        self._weights: dict[str, _Weight] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._floors: dict[str, float] = {}
        self.metadata: dict[str, str] = {}

    @property
    def size(self) -> int:
        """How many nodes there are, without those in branches."""
        return len(self._nodes)

    def input(self, name: str, shape: Sequence[int | str]) -> str:
        """Declare an int64 input; a dimension with a name is dynamic."""
        from onnx import TensorProto, helper

        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str]) -> None:
        """Declare the float32 `value` an output called `name`."""
        from onnx import TensorProto, helper

        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def node(self, op: str, *inputs: str, **attributes: int | float | Sequence[int]) -> str:
        """Add a node of the standard operator set; the name of its output."""
        return self._add(op, inputs, 1, attributes)[0]

    def split(self, value: str, sizes: str, count: int, *, axis: int) -> list[str]:
        """Cut `value` along `axis` into `count` pieces of the sizes in the int64 tensor `sizes` (count,)."""
        return self._add("Split", (value, sizes), count, {"axis": axis})

    def choose(
        self, condition: str, then: Callable[[], Sequence[str]], otherwise: Callable[[], Sequence[str]]
    ) -> list[str]:
        """The values of one of two branches, by a boolean scalar: each adds its nodes, and only one's are computed.

        What a branch gives must be of the same element types as the other's, in the same order.
        """
        from onnx import helper

        branches = {"then_branch": self._branch(then), "else_branch": self._branch(otherwise)}
        counts = {len(given) for _, given in branches.values()}
        assert len(counts) == 1, "both branches of an If give equally many values"
        names = self._add("If", (condition,), counts.pop(), {})
        for key, (nodes, given) in branches.items():
            # Their types are inferred from what the nodes compute.
            outputs = [helper.make_empty_tensor_value_info(name) for name in given]
            graph = helper.make_graph(nodes, key, [], outputs)
            self._nodes[-1].attribute.append(helper.make_attribute(key, graph))
        return names

    def _branch(self, add: Callable[[], Sequence[str]]) -> "tuple[list[onnx.NodeProto], list[str]]":
        """The nodes that `add` adds, and what each value that it gives is called there."""
        outside, self._nodes = self._nodes, []
        try:
            # A branch may give none but its own values.
            given = [self.node("Identity", value) for value in add()]
            return self._nodes, given
        finally:
            self._nodes = outside

    def rewrite(self, replace: Callable[[str, Sequence[str]], str | None], *, last: int) -> None:
        """Offer each of the first `last` nodes to `replace`, by its operator and its inputs.

        What it adds stands in the node's place: it gives the value of the last node that it has added, or None.
        """
        nodes, self._nodes = self._nodes, []
        for node in nodes[:last]:
            value = replace(node.op_type, tuple(node.input))
            if value is None:
                self._nodes.append(node)
            else:
                assert list(self._nodes[-1].output) == [value], "the last node that was added gives the value"
                self._nodes[-1].output[0] = node.output[0]
        self._nodes += nodes[last:]

    def note_floor(self, value: str, least: float) -> str:
        """Note that no number of `value` can be less."""
        self._floors[value] = least
        return value

    def floor_of(self, value: str) -> float | None:
        """The least that a number of `value` can be, where that was noted."""
        return self._floors.get(value)

    def _add(
        self, op: str, inputs: Sequence[str], outputs: int, attributes: Mapping[str, int | float | Sequence[int]]
    ) -> list[str]:
        from onnx import helper

        name = f"{op}_{self._count}"
        self._count += 1
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        node = helper.make_node(op, inputs, names, name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self._nodes.append(node)
        return names

    def constant(self, value: int | float | Sequence[Any] | np.uint8) -> str:
        """A small tensor inside the graph, of numbers or nested lists: int64, float32, or the type of a numpy number.

        Equal ones are shared.
        """
        from onnx import numpy_helper

        array = np.asarray(value)
        if not isinstance(value, np.generic):
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(array, f"constant_{len(self._constants)}")
        return self._constants[key].name

    def weight(self, name: str, shape: tuple[int, ...], load: Callable[[], Array], *, dtype: str = "<f4") -> str:
        """A tensor of the data file. `load` is called once, when the graph is written."""
        self._weights.setdefault(name, _Weight(name, shape, lambda: [load()], np.dtype(dtype)))
        return name

    def weight_in_blocks(
        self, name: str, shape: tuple[int, ...], load: Callable[[], Iterable[Array]], *, dtype: str = "<f4"
    ) -> str:
        """Likewise for one that is read in blocks of rows, since it may be too large to be held whole."""
        self._weights.setdefault(name, _Weight(name, shape, load, np.dtype(dtype)))
        return name

    def reader_of(self, name: str) -> tuple[tuple[int, ...], Callable[[], Iterable[Array]]] | None:
        """The shape of a weight and what reads its blocks of rows, for others that are made of it; None: it is none."""
        weight = self._weights.get(name)
        return None if weight is None else (weight.shape, weight.load)

    def write(self, model: Path, data: Path, data_name: str) -> None:
        """Write the graph to `model`, its weights to `data`, which the graph refers to as `data_name`."""
        from onnx import helper

        used = _used(self._nodes)
        with data.open("wb") as file:
            weights = [_write_weight(each, file, data_name) for name, each in self._weights.items() if name in used]
        graph = helper.make_graph(
            self._nodes, "encoder", self._inputs, self._outputs, [*self._constants.values(), *weights]
        )
        proto = helper.make_model(
            graph,
            producer_name="asyncembed",
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=8,
        )
        helper.set_model_props(proto, self.metadata)
        model.write_bytes(proto.SerializeToString(deterministic=True))


def _used(nodes: "Iterable[onnx.NodeProto]") -> set[str]:
    """The names of all values that nodes read, those in branches included."""
    found: set[str] = set()
    for node in nodes:
        found.update(node.input)
        for attribute in node.attribute:
            found |= _used(attribute.g.node)
    return found


def _write_weight(weight: _Weight, file: BinaryIO, data_name: str) -> "onnx.TensorProto":
    from onnx import TensorProto

    dtype = weight.dtype
    size_bytes = dtype.itemsize * math.prod(weight.shape)
    tensor = TensorProto(name=weight.name, data_type=_ELEMENT_TYPES[dtype], dims=weight.shape)
    if size_bytes <= _INLINE_BYTES:
        tensor.raw_data = b"".join(block.astype(dtype).tobytes() for block in weight.load())
        return tensor
    file.seek(-file.tell() % _ALIGNMENT_BYTES, 1)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", data_name), ("offset", file.tell()), ("length", size_bytes)):
        tensor.external_data.add(key=key, value=str(value))
    for block in weight.load():
        rows = max(1, BLOCK_BYTES * len(block) // max(1, 4 * block.size))
        for start in range(0, len(block), rows):
            file.write(np.ascontiguousarray(block[start : start + rows], dtype).data)
    return tensor
