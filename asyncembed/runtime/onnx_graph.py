"""The nodes of an ONNX graph, taken apart and put together again without the `onnx` package.

What is not changed is written back byte for byte: a node that moves into a branch, and tensors with what onnxruntime
says of them beyond the standard. It is for graphs that onnxruntime has just written, whose weights lie in another file.
Wire format: https://protobuf.dev/programming-guides/encoding/ Field numbers: onnx/onnx.proto.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 64 * 2**20
"""Far more than a graph has without its weights."""

Number = int | float

_VARINT, _BYTES = 0, 2  # wire types

# Fields of the messages.
_GRAPH, _OPSET = 7, 8
_NODE, _INITIALIZER, _OUTPUT = 1, 5, 12
_INPUTS, _OUTPUTS, _NAME, _OPERATOR, _ATTRIBUTE, _DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _FLOAT, _INTEGER, _SUBGRAPH, _SUBGRAPHS, _TYPE = 1, 2, 3, 6, 11, 20
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9
_VALUE_NAME = 1

_ATTRIBUTE_INTEGER, _ATTRIBUTE_SUBGRAPH = 2, 5
_INT64 = 7


@dataclass(frozen=True, slots=True)
class Node:
    """One node.

    Attributes:
        operator: Its name, and `domain` whose it is: "" for the standard's.
        inputs, outputs: Names of values; an input left out is "".
        captured: Names of values within its subgraphs, some of which are those of the graph around it.
        numbers: Those of its attributes that are one number.
        content: The whole message.
    """

    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captured: tuple[str, ...]
    numbers: Mapping[str, Number]
    content: bytes

    @classmethod
    def read(cls, content: bytes) -> "Node":
        """The node that a message holds."""
        names: dict[int, list[str]] = {}
        numbers: dict[str, Number] = {}
        captured: list[str] = []
        for number, value, _ in _fields(content):
            if not isinstance(value, bytes):
                continue
            if number != _ATTRIBUTE:
                names.setdefault(number, []).append(value.decode())
                continue
            name, meant, subgraphs = _attribute(value)
            if meant is not None:
                numbers[name] = meant
            for subgraph in subgraphs:
                captured += _named_in(subgraph)
        operator, domain = (names.get(field, [""])[-1] for field in (_OPERATOR, _DOMAIN))
        ends = tuple(names.get(_INPUTS, ())), tuple(names.get(_OUTPUTS, ()))
        return cls(operator, "" if domain == "ai.onnx" else domain, *ends, tuple(captured), numbers, content)

    @property
    def reads(self) -> tuple[str, ...]:
        """All values that it may take."""
        return (*self.inputs, *self.captured)

    @classmethod
    def make(cls, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int | bytes) -> "Node":
        """A node of the standard operator set, without a name; an attribute is a number, or a subgraph."""
        fields = [_named(_INPUTS, name) for name in inputs] + [_named(_OUTPUTS, name) for name in outputs]
        fields.append(_named(_OPERATOR, operator))
        for name, value in attributes.items():
            if isinstance(value, int):
                meant = _integer(_INTEGER, value) + _integer(_TYPE, _ATTRIBUTE_INTEGER)
            else:
                meant = _message(_SUBGRAPH, value) + _integer(_TYPE, _ATTRIBUTE_SUBGRAPH)
            fields.append(_message(_ATTRIBUTE, _named(_ATTRIBUTE_NAME, name) + meant))
        return cls.read(b"".join(fields))

    def renamed(self, inputs: Sequence[str], outputs: Sequence[str]) -> "Node":
        """The same node with other inputs and outputs, and without its name."""
        fields = [_named(_INPUTS, name) for name in inputs] + [_named(_OUTPUTS, name) for name in outputs]
        fields += [raw for number, _, raw in _fields(self.content) if number not in (_INPUTS, _OUTPUTS, _NAME)]
        return Node.read(b"".join(fields))


class OnnxGraph:
    """The graph of one file.

    Attributes:
        nodes: In the order in which they are computed.
        outputs: Names of what the graph gives.
        shapes: Of its constant tensors, by name.
        opset: The version of the standard operators.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; blocks.

        Raises:
            ValueError: It is no ONNX model, or too large for a graph without its weights.
            OSError: It cannot be read.
        """
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} is larger than a graph is without its weights")
        self._model = list(_fields(path.read_bytes()))
        (content,) = [value for number, value, _ in self._model if number == _GRAPH and isinstance(value, bytes)]
        self._graph = list(_fields(content))
        self.nodes: list[Node] = [Node.read(value) for value in self._all(_NODE)]
        self.outputs: tuple[str, ...] = tuple(_text(value, _VALUE_NAME) for value in self._all(_OUTPUT))
        self.shapes: Mapping[str, tuple[int, ...]] = {
            _text(value, _TENSOR_NAME): tuple(_dimensions(value)) for value in self._all(_INITIALIZER)
        }
        self.opset: int = self._opset()

    def write(
        self,
        path: Path,
        *,
        nodes: Sequence[Node] | None = None,
        constants: Mapping[str, int] | None = None,
        outputs: Sequence[str] = (),
    ) -> None:
        """Write the model to `path`; blocks.

        Args:
            path: The file, beside which its weights are.
            nodes: All of its nodes, where they are not as they were.
            constants: More tensors int64 (1,), by name.
            outputs: More values that it gives.
        """
        nodes = self.nodes if nodes is None else nodes
        graph = [_message(_NODE, node.content) for node in nodes]
        graph += [raw for number, _, raw in self._graph if number != _NODE]
        graph += [_message(_INITIALIZER, _constant(name, value)) for name, value in (constants or {}).items()]
        graph += [_message(_OUTPUT, _named(_VALUE_NAME, name)) for name in outputs]
        model = [raw for number, _, raw in self._model if number != _GRAPH]
        path.write_bytes(b"".join([*model, _message(_GRAPH, b"".join(graph))]))

    def _all(self, number: int) -> list[bytes]:
        return [value for field, value, _ in self._graph if field == number and isinstance(value, bytes)]

    def _opset(self) -> int:
        for number, value, _ in self._model:
            if number == _OPSET and isinstance(value, bytes) and _text(value, 1) in ("", "ai.onnx"):
                return max((version for _, version, _ in _fields(value) if isinstance(version, int)), default=0)
        return 0


def branch(name: str, nodes: Sequence[Node], outputs: Sequence[str]) -> bytes:
    """The subgraph of these nodes, as an attribute holds it; the types of its outputs are left to be inferred."""
    content = [_message(_NODE, node.content) for node in nodes]
    content += [_named(2, name)]
    content += [_message(_OUTPUT, _named(_VALUE_NAME, output)) for output in outputs]
    return b"".join(content)


def _attribute(content: bytes) -> tuple[str, Number | None, list[bytes]]:
    """Name of an attribute; the number that it is, if it is one; the subgraphs that it holds."""
    name, meant, subgraphs = "", None, []
    for number, value, _ in _fields(content):
        if number == _FLOAT and isinstance(value, bytes):
            (meant,) = struct.unpack("<f", value)
        elif number == _INTEGER and isinstance(value, int):
            meant = value - 2**64 if value >= 2**63 else value
        elif number == _ATTRIBUTE_NAME and isinstance(value, bytes):
            name = value.decode()
        elif number in (_SUBGRAPH, _SUBGRAPHS) and isinstance(value, bytes):
            subgraphs.append(value)
    return name, meant, subgraphs


def _named_in(subgraph: bytes) -> Iterator[str]:
    """The values that are read in a subgraph, and those that it gives."""
    for number, value, _ in _fields(subgraph):
        if number == _NODE and isinstance(value, bytes):
            yield from Node.read(value).reads
        elif number == _OUTPUT and isinstance(value, bytes):
            yield _text(value, _VALUE_NAME)


def _constant(name: str, value: int) -> bytes:
    dims = _integer(_DIMS, 1) + _integer(_DATA_TYPE, _INT64)
    return dims + _named(_TENSOR_NAME, name) + _message(_RAW_DATA, struct.pack("<q", value))


def _dimensions(tensor: bytes) -> Iterator[int]:
    for number, value, _ in _fields(tensor):
        if number == _DIMS and isinstance(value, int):
            yield value
        elif number == _DIMS and isinstance(value, bytes):  # packed
            position = 0
            while position < len(value):
                size, position = _varint(value, position)
                yield size


def _text(content: bytes, field: int) -> str:
    """The one text of a message in a field; empty where it has none."""
    found = [value for number, value, _ in _fields(content) if number == field and isinstance(value, bytes)]
    return found[-1].decode() if found else ""


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes, bytes]]:
    """Number, value and all bytes of each field of a message."""
    position = 0
    while position < len(content):
        start = position
        key, position = _varint(content, position)
        value: int | bytes
        match kind := key & 7:
            case 0:
                value, position = _varint(content, position)
            case 2:
                length, position = _varint(content, position)
                value, position = content[position : position + length], position + length
            case 1 | 5:
                length = 8 if kind == 1 else 4
                value, position = content[position : position + length], position + length
            case other:
                raise ValueError(f"no protobuf message: wire type {other}")
        if position > len(content):
            raise ValueError("no protobuf message: a field is longer than what it is in")
        yield key >> 3, value, content[start:position]


def _varint(content: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(content) and shift < 70:
        byte = content[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ValueError("no protobuf message: a number does not end")


def _written(value: int) -> bytes:
    """A number as it is written: seven bits a byte, the lowest first."""
    value &= 2**64 - 1
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _integer(field: int, value: int) -> bytes:
    return _written(field << 3 | _VARINT) + _written(value)


def _message(field: int, content: bytes) -> bytes:
    return _written(field << 3 | _BYTES) + _written(len(content)) + content


def _named(field: int, name: str) -> bytes:
    return _message(field, name.encode())
