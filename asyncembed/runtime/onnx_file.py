"""What an ONNX file says about itself: the files with its weights, and whether it quantises while it runs.

It is read without the `onnx` package and without loading the model: a file is a protobuf message, of which nodes,
attributes and the heads of tensors are walked through once, in all subgraphs and functions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from pathlib import Path

from asyncembed.runtime.protobuf import Message, open_message

DYNAMIC_OPERATORS = frozenset(
    {
        b"DynamicQuantizeLinear",
        b"DynamicQuantizeMatMul",
        b"DynamicQuantizeLSTM",
        b"MatMulIntegerToFloat",
        b"MatMulInteger",
    }
)
"""Operators that derive a scale from their input at run time."""

_MAX_DEPTH = 100  # messages in one another, as onnx's own readers allow
_MAX_NAME_BYTES = 4096


class _Kind(Enum):
    MODEL = auto()
    FUNCTION = auto()
    GRAPH = auto()
    NODE = auto()
    ATTRIBUTE = auto()
    SPARSE_TENSOR = auto()
    TENSOR = auto()
    OPERATOR = auto()  # a name
    EXTERNAL_DATA = auto()  # a pair of key and value


_PARTS: Mapping[_Kind, Mapping[int, _Kind]] = {
    _Kind.MODEL: {7: _Kind.GRAPH, 25: _Kind.FUNCTION},
    _Kind.FUNCTION: {7: _Kind.NODE, 11: _Kind.ATTRIBUTE},
    _Kind.GRAPH: {1: _Kind.NODE, 5: _Kind.TENSOR, 15: _Kind.SPARSE_TENSOR},
    _Kind.NODE: {4: _Kind.OPERATOR, 5: _Kind.ATTRIBUTE},
    _Kind.ATTRIBUTE: {
        5: _Kind.TENSOR,
        10: _Kind.TENSOR,
        6: _Kind.GRAPH,
        11: _Kind.GRAPH,
        22: _Kind.SPARSE_TENSOR,
        23: _Kind.SPARSE_TENSOR,
    },
    _Kind.SPARSE_TENSOR: {1: _Kind.TENSOR, 2: _Kind.TENSOR},
    _Kind.TENSOR: {13: _Kind.EXTERNAL_DATA},
}
"""Field numbers of the messages within each message: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto"""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """What one file says.

    Attributes:
        weights: The files that tensors of it lie in, as it names them: relative to its own directory, and unchecked.
        is_dynamically_quantized: Whether an operator derives a scale from its input at run time.
    """

    weights: tuple[str, ...] = ()
    is_dynamically_quantized: bool = False


def read_onnx_file(path: Path) -> OnnxFile:
    """Read what the file at `path` says; blocks. A file that is no ONNX model says nothing: that is for the runtime.

    The latest answers are remembered, as several ask for the same file when it is loaded.

    Raises:
        ModelLoadError: It has more parts than any graph that we know of.
        OSError: It cannot be read.
    """
    status = path.stat()
    return _read(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=16)
def _read(path: Path, _: tuple[int, ...]) -> OnnxFile:
    """The answer for the file that `path` leads to, which the second argument tells from others."""
    weights: dict[str, None] = {}
    is_dynamically_quantized = False
    try:
        with open_message(path) as message:
            for kind, start, end in _walk(message):
                if kind is _Kind.EXTERNAL_DATA:
                    weights.update(dict.fromkeys(_location(message, start, end)))
                elif message.content(start, end, max_bytes=_MAX_NAME_BYTES) in DYNAMIC_OPERATORS:
                    is_dynamically_quantized = True
    except ValueError:
        return OnnxFile()
    return OnnxFile(tuple(weights), is_dynamically_quantized)


def _walk(message: Message) -> Iterator[tuple[_Kind, int, int]]:
    """The names of operators and the entries about external data in a model, wherever they are."""
    open_parts = [(_PARTS[_Kind.MODEL], message.fields(0, message.size))]
    while open_parts:
        parts, fields = open_parts[-1]
        for number, start, end in fields:
            if (kind := parts.get(number)) is None:
                continue
            if kind in _PARTS:
                open_parts.append((_PARTS[kind], message.fields(start, end)))
                break
            yield kind, start, end
        else:
            open_parts.pop()
        if len(open_parts) > _MAX_DEPTH:
            raise ValueError("no ONNX model: nested too deeply")


def _location(message: Message, start: int, end: int) -> Iterator[str]:
    """The file that an entry names, if it is the one entry of several that does."""
    entry = {
        number: message.content(begin, stop, max_bytes=_MAX_NAME_BYTES)
        for number, begin, stop in message.fields(start, end)
    }
    if entry.get(1) == b"location":
        yield entry.get(2, b"").decode(errors="replace")
