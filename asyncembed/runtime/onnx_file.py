"""What an ONNX file says about itself: the files with its weights, and whether it quantises while it runs.

It is read without the `onnx` package and without loading the model: a file is a protobuf message, of which nodes,
attributes and the heads of tensors are walked through once, in all subgraphs and functions. A file may come from
anybody: each range is checked to lie in the one around it, and the fields are counted, so that reading ends in a second
or two whatever the bytes are. Wire format: https://protobuf.dev/programming-guides/encoding/

Also told here: whether onnxruntime opens a file with weights. It does so (from 1.24.2 on) only if the file's real path
is inside the directory of the path that it was given for the graph, or inside the directory of the graph's own real
path. In the hub's cache both are links, and where they lead is up to whoever wrote them.
"""

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PureWindowsPath

from asyncembed.errors import ModelLoadError
from asyncembed.repo_files import is_commit

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

BY_ROW = "asyncembed.scale_per_row"
"""What the metadata of graphs say whose `MatMulInteger` has a scale per row, so that a result has no neighbours."""

BRANCHES = frozenset({b"If", b"Loop", b"Scan"})
"""Operators with graphs of their own inside."""

MAX_FIELDS = 1_000_000
"""A large graph without its weights is a megabyte at most, of some ten bytes a field."""

_MAX_DEPTH = 100  # messages in one another, as onnx's own readers allow
_MAX_NAME_BYTES = 4096
_MAX_VARINT_BYTES = 10


_PARTS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function", 14: "metadata"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {4: "operator", 5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 6: "graph", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external data"},
}
"""Field numbers of the messages within each message. An operator is a name; external data and metadata are pairs of key
and value.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto"""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """What one file says.

    Attributes:
        weights: The files that tensors of it lie in, relative to its own directory. A name that leads out is left out.
        is_dynamically_quantized: Whether an operator derives a scale from its input at run time. It takes one scale for
            a whole tensor, hence for a whole batch: a result then depends on its neighbours (cosine down to 0.98).
        has_branches: Whether some of it runs on a condition, or several times.
    """

    weights: tuple[str, ...] = ()
    is_dynamically_quantized: bool = False
    has_branches: bool = False


def read_onnx_file(path: Path) -> OnnxFile:
    """Read what the file at `path` says; blocks. What is no ONNX model or no file says nothing: the runtime will tell.

    The latest answers are remembered, as several ask for the same file when it is loaded.

    Raises:
        ModelLoadError: It has more parts than any graph that we know of.
    """
    try:
        status = path.stat()
        return _read(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    except (OSError, ValueError):
        return OnnxFile()


def are_within_reach(model: Path, names: Sequence[str], *, beside_only: bool = False) -> bool:
    """Whether onnxruntime will open these files for the graph at `model`; blocks.

    `beside_only`: whether OpenVINO will, which looks at the first of the two directories alone.
    """
    directories = (model.parent.resolve(), *([] if beside_only else [model.resolve().parent]))
    return not _outside(model, names, directories)


def check_links(model: Path, names: Sequence[str]) -> None:
    """See that these files of the graph at `model` may be read although onnxruntime would not; blocks.

    That is so in the hub's cache, where a file is a link into the blobs of its repo, or into those that all repos
    share. Elsewhere a link is as good as the stranger who made the directory: it could show any file as numbers.

    Raises:
        ModelLoadError: One of them lies elsewhere.
    """
    snapshot = snapshot_of(model)
    repo = None if snapshot is None else snapshot.parent.parent.resolve()
    stores = () if repo is None else (repo / "blobs", repo.parent / "blobs")
    for name in _outside(model, names, (model.parent.resolve(), *stores)):
        raise ModelLoadError(
            f"{model.parent / name} is a link out of its directory, to {(model.parent / name).resolve()}, which is not "
            "read for a graph: put the file itself there",
            model=str(model),
        )


def snapshot_of(path: Path) -> Path | None:
    """The snapshot of a hub's cache that a path lies in, by its name: `models--org--name/snapshots/<commit>`."""
    for parent in path.parents:
        folder = parent.parent
        if is_commit(parent.name) and folder.name == "snapshots" and folder.parent.name.startswith("models--"):
            return parent
    return None


def _outside(model: Path, names: Sequence[str], allowed: Sequence[Path]) -> list[str]:
    """Those of the files beside a graph that lead into none of these directories."""
    real = {name: (model.parent / name).resolve() for name in names}
    return [name for name, path in real.items() if not any(map(path.is_relative_to, allowed))]


@lru_cache(maxsize=16)
def _read(path: Path, _: tuple[int, ...]) -> OnnxFile:
    """The answer for the file that `path` leads to, which the second argument tells from others."""
    weights: dict[str, None] = {}
    operators: set[bytes] = set()
    is_by_row = False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        message = _Message(data, path)
        for kind, start, end in _walk(message):
            if kind == "external data":
                weights.update(dict.fromkeys(_location(message, start, end)))
            elif kind == "metadata":
                entry = {number: message.content(begin, stop) for number, begin, stop in message.fields(start, end)}
                is_by_row = is_by_row or entry.get(1) == BY_ROW.encode()
            else:
                operators.add(message.content(start, end))
    dynamic = operators & DYNAMIC_OPERATORS - ({b"MatMulInteger"} if is_by_row else set())
    return OnnxFile(tuple(weights), bool(dynamic), bool(operators & BRANCHES))


def _walk(message: "_Message") -> Iterator[tuple[str, int, int]]:
    """The names of operators, the entries about external data, wherever they are, and those of the metadata."""
    open_parts = [(_PARTS["model"], message.fields(0, message.size))]
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


def _location(message: "_Message", start: int, end: int) -> Iterator[str]:
    """The file that an entry names, if it is the one entry of several that does, and the file can be ours."""
    entry = {number: message.content(begin, stop) for number, begin, stop in message.fields(start, end)}
    if entry.get(1) == b"location":
        name = entry.get(2, b"").decode(errors="replace")
        path = PureWindowsPath(name)  # which also knows the separators and roots of other systems
        if name and not path.anchor and ".." not in path.parts:
            yield name


class _Message:
    """The bytes of a file, as ranges of fields within fields. What is skipped is never read.

    `fields` raises ValueError where the bytes are no such message, and ModelLoadError once it has met more than
    `MAX_FIELDS` fields in all, whether these are nested or side by side.
    """

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.size = len(data)
        self._data = data
        self._path = path
        self._fields_left = MAX_FIELDS

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Number and byte range of each length-delimited field of the message in the range from `start` to `end`."""
        position = start
        while position < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise ModelLoadError(
                    f"{self._path} has more than {MAX_FIELDS:,} parts; it is no graph of an embedding model",
                    model=str(self._path),
                )
            key, position = self._varint(position, end)
            match key & 7:
                case 2:
                    length, position = self._varint(position, end)
                    if length > end - position:
                        raise ValueError("no protobuf message: a field is longer than what it is in")
                    yield key >> 3, position, position + length
                    position += length
                case 0:
                    _, position = self._varint(position, end)
                case 1:
                    position += 8
                case 5:
                    position += 4
                case other:
                    raise ValueError(f"no protobuf message: wire type {other}")

    def content(self, start: int, end: int) -> bytes:
        """The bytes of a range, as many of them as a name has at most."""
        return self._data[start : min(end, start + _MAX_NAME_BYTES)]

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        if position < end and (byte := self._data[position]) < 0x80:  # nearly all of them
            return byte, position + 1
        value = 0
        for shift in range(0, 7 * min(_MAX_VARINT_BYTES, end - position), 7):
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise ValueError("no protobuf message: a number does not end")
