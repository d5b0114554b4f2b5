"""Graphs of others in 8 bits: the linear maps of their layers and their word table, as `quantized` says.

A graph is first brought to the simplest form that onnxruntime writes with standard operators, in which linear maps are
recognised; what they read is looked at in runs over random tokens. What is not recognised stays float. The result is
run beside the float graph before it is used.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.export.int8_graph import SEQUENCES, TOKENS, Frame, frame_of
from asyncembed.export.onnx_builder import FLOAT
from asyncembed.export.quantized import (
    FloatArray,
    Rows8,
    pair_safe,
    product,
    quantized_rows,
    quantized_table,
    smoothing,
)
from asyncembed.repo_files import read_object
from asyncembed.runtime.onnx import open_as_it_is, save_simplified
from asyncembed.runtime.onnx_file import BY_ROW
from asyncembed.runtime.onnx_graph import Node, OnnxGraph, Tensor, tensor_beside, tensor_inside
from asyncembed.runtime.session import Array

LEAST_COSINE = 0.97
"""Of the numbers for a token, on average; what is farther from those of the float graph is not used."""

_SIMPLE, _SIMPLE_DATA = "simple.onnx", "simple.onnx.data"
_OLDEST_OPSET = 11
_PREFIX = "asyncembed/8 bits/"
_INTEGERS: Mapping[str, type[np.int64 | np.int32]] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}

_ALIGNMENT_BYTES = 4096
_ROWS_AT_ONCE = 4096

# What GELU gives is never less: -0.16998, or -0.17005 where it is approximated.
_GELU_FLOOR, _ANY_GELU_FLOOR = -0.17, -0.1701
_GELUS = frozenset({"Gelu", "FastGelu"})


@dataclass(frozen=True, slots=True)
class _Map:
    """A linear map.

    Attributes:
        nodes: The product, and the addition of a bias where that is a node of its own.
        value: What it reads.
        weight: The name of its weight: (K, N), or (N, K) where `is_transposed`.
        bias: The name of its bias, (N,).
        size: K and N.
    """

    nodes: tuple[Node, ...]
    value: str
    weight: str
    is_transposed: bool
    bias: str | None
    size: tuple[int, int]

    @property
    def result(self) -> str:
        return self.nodes[-1].outputs[0]


@dataclass(frozen=True, slots=True)
class _Range:
    """What a map reads: how many axes it has, the greatest absolute value of each channel, and the least number."""

    axes: int
    largest: FloatArray
    least: float


def write_in_8_bits(source: Path, directory: Path, graph: Path, data: Path) -> None:
    """Write the float32 graph at `source`, of the model in `directory`, to `graph` and its weights to `data`. Blocks.

    Both are in one folder, which also takes the float graph meanwhile.

    Raises:
        UnsupportedModelError: There is nothing to be recognised in it, or its numbers would be others.
        ModelLoadError: It cannot be loaded.
        OSError: It cannot be written.
    """
    simple = graph.with_name(_SIMPLE)
    try:
        save_simplified(source, simple, _SIMPLE_DATA)
        read = OnnxGraph(simple)
        if read.opset < _OLDEST_OPSET:
            raise _unsupported(source, f"it is of opset {read.opset}")
        table = _word_table(read)
        if table is None:
            raise _unsupported(source, "it has no float32 table of words")
        words = read.tensors[table.inputs[0]].shape[0]
        config = read_object(directory / "config.json") if (directory / "config.json").is_file() else {}
        frame = frame_of(directory, words=words, config=config)
        maps = list(_maps(read))
        ranges = _ranges(read, maps, frame, graph.with_name("watched.onnx"), source)
        chosen = _of_layers(maps, ranges)
        if not chosen:
            raise _unsupported(source, "no linear maps of the usual form are found")
        writer = _Writer(read, simple.with_name(_SIMPLE_DATA), data)
        writer.write(graph, chosen, ranges, table)
        _check(simple, graph, frame, source)
    except (UnsupportedModelError, ModelLoadError, OSError):
        raise
    except Exception as error:  # whatever is odd about a stranger's graph
        raise _unsupported(source, f"it is not read: {error}") from error
    finally:
        for name in (_SIMPLE, _SIMPLE_DATA, "watched.onnx"):
            graph.with_name(name).unlink(missing_ok=True)


def _unsupported(source: Path, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{source} cannot be brought to 8 bits: {reason}", model=str(source))


def _word_table(graph: OnnxGraph) -> Node | None:
    """What looks words up, if it is the only one that reads their table."""
    casts = {node.outputs[0]: node.inputs[0] for node in graph.nodes if node.operator == "Cast"}
    readers = Counter(name for node in graph.nodes for name in node.reads)
    for node in graph.nodes:
        if (node.domain, node.operator) != ("", "Gather") or node.numbers.get("axis", 0) != 0:
            continue
        table, ids = node.inputs
        if casts.get(ids, ids) == "input_ids" and readers[table] == 1 and _is_weight(graph, table, axes=2):
            return node
    return None


def _is_weight(graph: OnnxGraph, name: str, *, axes: int) -> bool:
    tensor = graph.tensors.get(name)
    return tensor is not None and tensor.element == FLOAT and len(tensor.shape) == axes and tensor.place is not None


def _maps(graph: OnnxGraph) -> Iterator[_Map]:
    """All products with a weight, and what adds their biases."""
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.reads:
            readers.setdefault(name, []).append(node)
    for node in graph.nodes:
        if node.domain or len(node.inputs) < 2 or not _is_weight(graph, node.inputs[1], axes=2):
            continue
        value, weight, *bias = node.inputs
        inputs, outputs = graph.tensors[weight].shape
        if node.operator == "MatMul":
            added = _added_bias(graph, node, outputs, readers)
            nodes = (node,) if added is None else (node, added[0])
            yield _Map(nodes, value, weight, False, None if added is None else added[1], (inputs, outputs))
        elif node.operator == "Gemm" and _is_plain(node):
            is_transposed = bool(node.numbers.get("transB"))
            size = (outputs, inputs) if is_transposed else (inputs, outputs)
            if not bias or _is_bias(graph, bias[0], size[1]):
                yield _Map((node,), value, weight, is_transposed, bias[0] if bias else None, size)


def _added_bias(
    graph: OnnxGraph, product: Node, outputs: int, readers: Mapping[str, Sequence[Node]]
) -> tuple[Node, str] | None:
    """The node that adds a bias to a product, and the bias, if nothing else reads the product."""
    (value,) = product.outputs
    read_by = readers.get(value, [])
    if len(read_by) != 1 or value in graph.outputs or (read_by[0].domain, read_by[0].operator) != ("", "Add"):
        return None
    others = [name for name in read_by[0].inputs if name != value]
    return (read_by[0], others[0]) if len(others) == 1 and _is_bias(graph, others[0], outputs) else None


def _is_bias(graph: OnnxGraph, name: str, outputs: int) -> bool:
    tensor = graph.tensors.get(name)
    return tensor is not None and (tensor.element, tensor.shape) == (FLOAT, (outputs,))


def _is_plain(gemm: Node) -> bool:
    numbers = gemm.numbers
    return not numbers.get("transA") and numbers.get("alpha", 1.0) == numbers.get("beta", 1.0) == 1.0


def _ranges(graph: OnnxGraph, maps: Sequence[_Map], frame: Frame, watched: Path, source: Path) -> dict[str, _Range]:
    """The ranges of what maps read that has a row for each token, over random texts."""
    values = sorted({each.value for each in maps}.difference(graph.tensors))
    sizes = {each.value: each.size[0] for each in maps}
    graph.write(watched, outputs=[name for name in values if name not in graph.outputs])
    session = open_as_it_is(watched)
    random = np.random.default_rng(SEQUENCES)
    count = max(2, min(TOKENS, frame.tokens) - len(frame.before) - len(frame.after))
    found: dict[str, _Range] = {}
    others: set[str] = set()
    for _ in range(SEQUENCES):
        ids = np.array([[*frame.before, *random.integers(0, frame.words, count), *frame.after]])
        for name, array in zip(values, _run(session, values, ids, source), strict=True):
            rows = array.reshape(-1, array.shape[-1]) if array.ndim else array
            if array.ndim not in (2, 3) or rows.shape != (ids.size, sizes[name]) or not np.isfinite(rows).all():
                others.add(name)
                continue
            seen = found.get(name, _Range(array.ndim, np.zeros(sizes[name], np.float32), 0.0))
            largest = np.maximum(seen.largest, np.abs(rows).max(axis=0))
            found[name] = _Range(array.ndim, largest, min(seen.least, float(rows.min())))
    return {name: seen for name, seen in found.items() if name not in others}


def _run(session: Any, outputs: Sequence[str], ids: Array, source: Path) -> list[Array]:
    """Some outputs for some ids."""
    given = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "position_ids": np.tile(np.arange(ids.shape[1]), (len(ids), 1)),
    }
    inputs = session.get_inputs()
    if unknown := [value.name for value in inputs if value.name not in given or value.type not in _INTEGERS]:
        raise _unsupported(source, f"it takes {', '.join(unknown)}")
    feeds = {value.name: given[value.name].astype(_INTEGERS[value.type]) for value in inputs}
    try:
        return list(session.run(list(outputs), feeds))
    except Exception as error:
        raise _unsupported(source, f"it fails over random tokens: {error}") from error


def _of_layers(maps: Sequence[_Map], ranges: Mapping[str, _Range]) -> list[_Map]:
    """Those maps that layers have: of one size there are several. What stands on the states is left as it is."""
    read = [each for each in maps if each.value in ranges]
    sizes = Counter(each.size for each in read)
    return [each for each in read if sizes[each.size] > 1]


class _Writer:
    """Writes a graph with some of its maps in 8 bits: the `Nodes` that are added for each stand in its place."""

    def __init__(self, graph: OnnxGraph, floats: Path, data: Path) -> None:
        self.opset: int = graph.opset
        self._graph = graph
        self._floats = np.memmap(floats, mode="r")
        self._data = data
        self._nodes: list[Node] = []
        self._count = 0
        self._tensors: dict[str, bytes] = {}

    def node(self, op: str, *inputs: str, **attributes: int | float | Sequence[int]) -> str:
        """Add a node; the name of its output."""
        self._count += 1
        name = f"{_PREFIX}{op}_{self._count}"
        self._nodes.append(Node.make(op, inputs, [name], **attributes))
        return name

    def constant(self, value: int | float | Sequence[int] | np.uint8) -> str:
        """A small tensor inside the graph."""
        array = np.asarray(value)
        if not isinstance(value, np.uint8):
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        name = f"{_PREFIX}{array.dtype.name} {array.tolist()}"
        self._tensors[name] = tensor_inside(name, array)
        return name

    def write(self, path: Path, maps: Sequence[_Map], ranges: Mapping[str, _Range], table: Node) -> None:
        """Write the graph to `path`, and all its weights."""
        floors = {
            name: floor for name, seen in ranges.items() if (floor := _floor(self._graph, name, seen)) is not None
        }
        smooth = {
            value: smoothing(ranges[value].largest, [self._weight(each) for each in maps if each.value == value])
            for value in dict.fromkeys(each.value for each in maps)
            if value not in floors
        }
        places = {id(each.nodes[0]): each for each in maps}
        left_out = {id(node) for each in maps for node in each.nodes[1:]}
        rows: dict[str, Rows8] = {}
        with self._data.open("wb") as file:
            for node in self._graph.nodes:
                if node is table:
                    self._look_up(node, file)
                elif id(node) in places:
                    self._multiply(places[id(node)], rows, ranges, smooth, floors, file)
                elif id(node) not in left_out:
                    self._nodes.append(node)
            read = {name for node in self._nodes for name in node.reads}.union(self._graph.outputs)
            for name, tensor in self._graph.tensors.items():
                if name in read and tensor.place is not None:
                    start, stop = tensor.place
                    self._tensors[name] = tensor.moved(self._data.name, _put(file, self._floats[start:stop]))
        gone = [name for name, tensor in self._graph.tensors.items() if name not in read or tensor.place is not None]
        tensors = list(self._tensors.values())
        self._graph.write(path, nodes=self._nodes, tensors=tensors, without=gone, metadata={BY_ROW: "1"})

    def _multiply(
        self,
        map_: _Map,
        rows: dict[str, Rows8],
        ranges: Mapping[str, _Range],
        smooth: Mapping[str, FloatArray],
        floors: Mapping[str, float],
        file: BinaryIO,
    ) -> None:
        """Add one map."""
        value, factor, floor = map_.value, smooth.get(map_.value), floors.get(map_.value)
        if value not in rows:
            divisor = None if factor is None else self._beside(f"{value}/divisor", np.reciprocal(factor), file)
            rows[value] = quantized_rows(self, value, floor=floor, divisor=divisor, axis=ranges[value].axes - 1)
        weight = self._weight(map_)
        made = pair_safe(weight if factor is None else weight * factor)
        bias = None if map_.bias is None else self._array(map_.bias)
        names = (
            self._beside(f"{map_.result}/int8", made.values, file),
            self._beside(f"{map_.result}/scale", made.scale, file),
            self._beside(f"{map_.result}/shift", made.bias(bias, floor=floor), file),
        )
        self._finish(product(self, rows[value], *names), map_.result)

    def _look_up(self, node: Node, file: BinaryIO) -> None:
        """Add the look-up of words."""
        table, ids = self._array(node.inputs[0]), node.inputs[1]
        values = np.empty(table.shape, np.int8)
        scales = np.empty((len(table), 1), np.float32)
        for start in range(0, len(table), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            values[part], scales[part] = quantized_table(table[part])
        names = [
            self._beside(f"{node.inputs[0]}/{kind}", array, file)
            for kind, array in (("int8", values), ("scale", scales))
        ]
        integers, scale = (self.node("Gather", name, ids) for name in names)
        self._finish(self.node("Mul", self.node("Cast", integers, to=FLOAT), scale), node.outputs[0])

    def _finish(self, value: str, name: str) -> None:
        """Call what the last node gives what the graph calls it."""
        last = self._nodes.pop()
        assert last.outputs == (value,), "the last node that was added gives the value"
        self._nodes.append(last.renamed(last.inputs, [name]))

    def _beside(self, name: str, array: Array, file: BinaryIO) -> str:
        """Put a tensor into the data file; its name."""
        name = _PREFIX + name
        self._tensors[name] = tensor_beside(name, array, self._data.name, _put(file, array))
        return name

    def _weight(self, map_: _Map) -> FloatArray:
        """The weight of a map, (N, K)."""
        weight = self._array(map_.weight)
        return weight if map_.is_transposed else np.ascontiguousarray(weight.T)

    def _array(self, name: str) -> FloatArray:
        tensor = self._graph.tensors[name]
        if tensor.place is None:
            return np.asarray(tensor.inside(), np.float32)
        start, stop = tensor.place
        return self._floats[start:stop].view(np.float32).reshape(tensor.shape)


def _put(file: BinaryIO, array: Array) -> int:
    """Append what an array holds, on a page of its own; where it begins."""
    file.seek(-file.tell() % _ALIGNMENT_BYTES, 1)
    start = file.tell()
    file.write(np.ascontiguousarray(array).data)
    return start


def _floor(graph: OnnxGraph, value: str, seen: _Range) -> float | None:
    """What no number of a value is less than, where an activation gives it that has such a floor."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    node = makers.get(value)
    if node is None:
        return None
    floor = None
    if (node.domain, node.operator) == ("", "Relu"):
        floor = 0.0
    elif node.operator in _GELUS:
        floor = _ANY_GELU_FLOOR
    elif _is_gelu(node, makers, graph.tensors):
        floor = _GELU_FLOOR
    return floor if floor is not None and seen.least >= floor else None


def _is_gelu(node: Node, makers: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> bool:
    """Whether it multiplies u with a number and with what a number added to the error function of u's share gives."""
    if node.operator != "Mul":
        return False
    inner = [makers[name] for name in node.inputs if name in makers and makers[name].operator == "Mul"]
    for product_ in inner:
        factors = [*product_.inputs, *(name for name in node.inputs if name != product_.outputs[0])]
        variable = [name for name in factors if name not in tensors]
        if (
            len(factors) == 3
            and len(variable) == 2
            and any(_is_one_more_than_error(variable[i], variable[1 - i], makers, tensors) for i in (0, 1))
        ):
            return True
    return False


def _is_one_more_than_error(
    value: str, argument: str, makers: Mapping[str, Node], tensors: Mapping[str, Tensor]
) -> bool:
    """Whether a value is a number added to erf(argument times or through a number)."""
    for operator in ("Add", "Erf", "Div"):
        node = makers.get(value)
        if node is None or node.operator not in ((operator, "Mul") if operator == "Div" else (operator,)):
            return False
        variable = [name for name in node.inputs if name not in tensors]
        if len(variable) != 1:
            return False
        (value,) = variable
    return value == argument


def _check(simple: Path, graph: Path, frame: Frame, source: Path) -> None:
    """See that a graph gives what the float one does, by and large."""
    random = np.random.default_rng(TOKENS)
    ids = np.tile(np.array([[*frame.before, *[0] * 14, *frame.after]]), (3, 1))
    ids[:, len(frame.before) : ids.shape[1] - len(frame.after)] = random.integers(0, frame.words, (3, 14))
    float_, other = open_as_it_is(simple), open_as_it_is(graph)
    names = [value.name for value in float_.get_outputs() if value.type == "tensor(float)"]
    for name, expected, found in zip(
        names, _run(float_, names, ids, source), _run(other, names, ids, source), strict=True
    ):
        if expected.ndim < 2 or expected.shape != found.shape:
            continue
        cosine = _cosine(expected, found)
        if not cosine >= LEAST_COSINE:
            raise _unsupported(source, f"the cosine of {name} to the float graph's would be {cosine:.3f} on average")


def _cosine(some: Array, others: Array) -> float:
    a, b = (np.asarray(each, np.float64).reshape(-1, each.shape[-1]) for each in (some, others))
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(sizes, 1e-30)).mean())
