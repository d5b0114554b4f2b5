"""Weights that lie in files beside their graph: which these are, and whether onnxruntime will open them.

It does so (from 1.24.2 on) only if a file's real path is inside the directory of the path that it was given for the
graph, or inside the directory of the graph's own real path. In the hub's cache both are links, and where they lead is
up to whoever wrote them.
"""

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath

from asyncembed.runtime.protobuf import fields, open_message

# Field numbers of onnx.proto (ModelProto, GraphProto, TensorProto, StringStringEntryProto).
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_EXTERNAL_DATA = 13
_ENTRY_KEY = 1
_ENTRY_VALUE = 2


def external_data_files(model: Path) -> tuple[str, ...]:
    """Names of the files that hold weights of a graph, relative to the graph's directory; blocks.

    Read from the graph itself: `ModelProto.graph.initializer[].external_data["location"]` (onnx.proto). What is no
    such graph has none, and a name that leads out of the directory is none.
    """
    try:
        with open_message(model) as data:
            names = dict.fromkeys(_locations(data))
    except (IndexError, ValueError):
        return ()
    return tuple(name for name in names if _stays_inside(name))


def are_within_reach(model: Path, names: Sequence[str]) -> bool:
    """Whether onnxruntime will open these files for the graph at `model`; blocks."""
    allowed = (model.parent.resolve(), model.resolve().parent)
    return all(
        any((model.parent / name).resolve().is_relative_to(directory) for directory in allowed) for name in names
    )


def _locations(data: mmap.mmap) -> Iterator[str]:
    for graph_start, graph_end in _members(data, 0, len(data), _MODEL_GRAPH):
        for tensor_start, tensor_end in _members(data, graph_start, graph_end, _GRAPH_INITIALIZER):
            for entry_start, entry_end in _members(data, tensor_start, tensor_end, _TENSOR_EXTERNAL_DATA):
                entry = {number: data[start:end] for number, start, end in fields(data, entry_start, entry_end)}
                if entry.get(_ENTRY_KEY) == b"location":
                    yield entry.get(_ENTRY_VALUE, b"").decode()


def _members(data: mmap.mmap, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    return ((begin, stop) for number, begin, stop in fields(data, start, end) if number == wanted)


def _stays_inside(name: str) -> bool:
    path = PureWindowsPath(name)  # which also knows the separators and roots of other systems
    return bool(name) and not path.anchor and ".." not in path.parts
