"""The nodes of an ONNX graph, taken apart and put together again without the `onnx` package.

What is not changed is written back byte for byte: a node that moves into a branch, and tensors with what onnxruntime
says of them beyond the standard. It is for graphs that onnxruntime has just written, whose weights lie in another file.
Wire format: https://protobuf.dev/programming-guides/encoding/ Field numbers: onnx/onnx.proto.
"""

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asyncembed.runtime.session import Array

MAX_BYTES = 64 * 2**20
"""Far more than a graph has without its weights."""

Number = int | float
Attribute = Number | Sequence[int] | bytes

ELEMENTS: Mapping[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    7: np.dtype("<i8"),
}
"""Types of elements by their number in the standard: those that we compute with."""

_NUMBERS = {dtype: number for number, dtype in ELEMENTS.items()}

_VARINT, _BYTES, _FIXED32 = 0, 2, 5  # wire types

# Fields of the messages.
_GRAPH, _OPSET, _METADATA = 7, 8, 14
_NODE, _GRAPH_NAME, _INITIALIZER, _OUTPUT = 1, 2, 5, 12
_INPUTS, _OUTPUTS, _NAME, _OPERATOR, _ATTRIBUTE, _DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _FLOAT, _INTEGER, _SUBGRAPH, _INTEGERS, _SUBGRAPHS, _TYPE = 1, 2, 3, 6, 8, 11, 20
_DIMS, _ELEMENT, _TENSOR_NAME, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 9, 13, 14
_VALUE_NAME = 1
_KEY, _VALUE = 1, 2

_OF_FLOAT, _OF_INTEGER, _OF_SUBGRAPH, _OF_INTEGERS = 1, 2, 5, 7  # types of attributes


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
    def make(cls, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Attribute) -> "Node":
        """A node of the standard operator set, without a name; an attribute is a number, several, or a subgraph."""
        fields = [_named(_INPUTS, name) for name in inputs] + [_named(_OUTPUTS, name) for name in outputs]
        fields.append(_named(_OPERATOR, operator))
        for name, value in attributes.items():
            fields.append(_message(_ATTRIBUTE, _named(_ATTRIBUTE_NAME, name) + _written_attribute(value)))
        return cls.read(b"".join(fields))

    def renamed(self, inputs: Sequence[str], outputs: Sequence[str]) -> "Node":
        """The same node with other inputs and outputs, and without its name."""
        fields = [_named(_INPUTS, name) for name in inputs] + [_named(_OUTPUTS, name) for name in outputs]
        fields += [raw for number, _, raw in _fields(self.content) if number not in (_INPUTS, _OUTPUTS, _NAME)]
        return Node.read(b"".join(fields))


@dataclass(frozen=True, slots=True)
class Tensor:
    """A constant tensor.

    Attributes:
        shape: Its sizes.
        element: The number of its type in the standard.
        place: Where in a file beside the graph it lies: its first byte and the one after the last; None: inside.
        content: The whole message.
    """

    shape: tuple[int, ...]
    element: int
    place: tuple[int, int] | None
    content: bytes

    @classmethod
    def read(cls, content: bytes) -> "Tensor":
        """The tensor that a message holds."""
        shape = tuple(_dimensions(content))
        element = next((value for number, value, _ in _fields(content) if number == _ELEMENT), 0)
        entries = {
            _text(value, _KEY): _text(value, _VALUE)
            for number, value, _ in _fields(content)
            if number == _EXTERNAL_DATA and isinstance(value, bytes)
        }
        place = None
        if "length" in entries:
            start = int(entries.get("offset", "0"))
            place = start, start + int(entries["length"])
        return cls(shape, element if isinstance(element, int) else 0, place, content)

    def inside(self) -> Array:
        """What a tensor holds that lies in the graph itself, of a type that we know."""
        for number, value, _ in _fields(self.content):
            if number == _RAW_DATA and isinstance(value, bytes):
                return np.frombuffer(value, ELEMENTS[self.element]).reshape(self.shape)
        raise ValueError("a tensor's numbers are written in a way that is not read")

    def moved(self, location: str, start: int) -> bytes:
        """The message, where its content lies elsewhere: in the file `location`, from the byte `start` on."""
        assert self.place is not None, "only what is outside has a place"
        fields = [raw for number, _, raw in _fields(self.content) if number not in (_EXTERNAL_DATA, _DATA_LOCATION)]
        return b"".join(fields) + _outside(location, start, self.place[1] - self.place[0])


def tensor_inside(name: str, array: Array) -> bytes:
    """The message of a tensor that lies in the graph itself."""
    array = np.asarray(array)
    return _head(name, array.shape, array.dtype) + _message(_RAW_DATA, array.tobytes())


def tensor_beside(name: str, array: Array, location: str, start: int) -> bytes:
    """The message of a tensor whose content lies in the file `location`, from the byte `start` on."""
    return _head(name, array.shape, array.dtype) + _outside(location, start, array.nbytes)


class OnnxGraph:
    """The graph of one file.

    Attributes:
        nodes: In the order in which they are computed.
        outputs: Names of what the graph gives.
        tensors: Its constant tensors, by name.
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
        self.tensors: Mapping[str, Tensor] = {
            _text(value, _TENSOR_NAME): Tensor.read(value) for value in self._all(_INITIALIZER)
        }
        self.opset: int = self._opset()

    def write(
        self,
        path: Path,
        *,
        nodes: Sequence[Node] | None = None,
        tensors: Sequence[bytes] = (),
        without: Collection[str] = (),
        outputs: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write the model to `path`; blocks.

        Args:
            path: The file, beside which its weights are.
            nodes: All of its nodes, where they are not as they were.
            tensors: More constant tensors, as messages.
            without: Names of those that are left out.
            outputs: More values that it gives.
            metadata: What is to be said of it.
        """
        nodes = self.nodes if nodes is None else nodes
        graph = [_message(_NODE, node.content) for node in nodes]
        left_out = {self.tensors[name].content for name in without}
        graph += [
            raw
            for number, value, raw in self._graph
            if number != _NODE and not (number == _INITIALIZER and value in left_out)
        ]
        graph += [_message(_INITIALIZER, tensor) for tensor in tensors]
        graph += [_message(_OUTPUT, _named(_VALUE_NAME, name)) for name in outputs]
        model = [raw for number, _, raw in self._model if number != _GRAPH]
        model += [_message(_METADATA, _pair(*entry)) for entry in (metadata or {}).items()]
        path.write_bytes(b"".join([*model, _message(_GRAPH, b"".join(graph))]))

    def _all(self, number: int) -> list[bytes]:
        return [value for field, value, _ in self._graph if field == number and isinstance(value, bytes)]

    def _opset(self) -> int:
        for number, value, _ in self._model:
            if number == _OPSET and isinstance(value, bytes) and _text(value, _KEY) in ("", "ai.onnx"):
                return max((version for _, version, _ in _fields(value) if isinstance(version, int)), default=0)
        return 0


def branch(name: str, nodes: Sequence[Node], outputs: Sequence[str]) -> bytes:
    """The subgraph of these nodes, as an attribute holds it; the types of its outputs are left to be inferred."""
    content = [_message(_NODE, node.content) for node in nodes]
    content.append(_named(_GRAPH_NAME, name))
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


def _written_attribute(value: Attribute) -> bytes:
    """What an attribute is, without its name."""
    if isinstance(value, bytes):
        return _message(_SUBGRAPH, value) + _integer(_TYPE, _OF_SUBGRAPH)
    if isinstance(value, int):
        return _integer(_INTEGER, value) + _integer(_TYPE, _OF_INTEGER)
    if isinstance(value, float):
        return _written(_FLOAT << 3 | _FIXED32) + struct.pack("<f", value) + _integer(_TYPE, _OF_FLOAT)
    return b"".join(_integer(_INTEGERS, each) for each in value) + _integer(_TYPE, _OF_INTEGERS)


def _head(name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> bytes:
    sizes = b"".join(_integer(_DIMS, size) for size in shape)
    return sizes + _integer(_ELEMENT, _NUMBERS[dtype]) + _named(_TENSOR_NAME, name)


def _outside(location: str, start: int, length: int) -> bytes:
    entries = {"location": location, "offset": str(start), "length": str(length)}
    pairs = b"".join(_message(_EXTERNAL_DATA, _pair(*entry)) for entry in entries.items())
    return pairs + _integer(_DATA_LOCATION, 1)


def _pair(key: str, value: str) -> bytes:
    return _named(_KEY, key) + _named(_VALUE, value)


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
