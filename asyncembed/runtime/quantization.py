"""Does a graph quantise its activations while it runs?

Such a graph takes one scale for a whole tensor, hence for a whole batch: the result for a text then depends
on its neighbours (cosine down to 0.98). The answer is read from the ONNX file itself, without the `onnx`
package: a file is a protobuf message, in which the names of the operators are found by walking model → graph
→ node → op_type. Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from asyncembed.runtime.protobuf import fields, open_message

DYNAMIC_OPERATORS = frozenset(
    {
        b"DynamicQuantizeLinear",
        b"DynamicQuantizeMatMul",
        b"DynamicQuantizeLSTM",
        b"MatMulIntegerToFloat",
        b"MatMulInteger",
    }
)

_MODEL_GRAPH = 7
_MODEL_FUNCTIONS = 25
_GRAPH_NODE = 1
_FUNCTION_NODE = 7
_NODE_OP_TYPE = 4
_NODE_ATTRIBUTE = 5
_ATTRIBUTE_GRAPH = 6


def is_dynamically_quantized(path: Path) -> bool:
    """Whether the ONNX file at `path` has an operator that derives a scale from its input at run time.

    A file that is no ONNX model gives False: that is for the runtime to say.
    """
    with open_message(path) as data:
        try:
            return any(operator in DYNAMIC_OPERATORS for operator in _operators(data))
        except (IndexError, ValueError):
            return False


def _operators(data: mmap.mmap) -> Iterator[bytes]:
    for field, start, end in fields(data, 0, len(data)):
        if field == _MODEL_GRAPH:
            yield from _graph_operators(data, start, end, _GRAPH_NODE)
        elif field == _MODEL_FUNCTIONS:
            yield from _graph_operators(data, start, end, _FUNCTION_NODE)


def _graph_operators(data: mmap.mmap, start: int, end: int, node_field: int) -> Iterator[bytes]:
    for field, node_start, node_end in fields(data, start, end):
        if field != node_field:
            continue  # the weights, mostly: skipped without being read
        for part, part_start, part_end in fields(data, node_start, node_end):
            if part == _NODE_OP_TYPE:
                yield data[part_start:part_end]
            elif part == _NODE_ATTRIBUTE:
                # The branches of If and Loop are graphs inside attributes.
                for member, inner_start, inner_end in fields(data, part_start, part_end):
                    if member == _ATTRIBUTE_GRAPH:
                        yield from _graph_operators(data, inner_start, inner_end, _GRAPH_NODE)
