"""What an ONNX file says about itself, whatever its bytes are."""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from asyncembed.errors import ModelLoadError
from asyncembed.runtime.onnx_file import OnnxFile, read_onnx_file
from tests.support.external_data import external_tensor


def constant(location: str) -> NodeProto:
    return helper.make_node("Constant", [], ["c"], value=external_tensor(location))


def sparse(location: str) -> onnx.SparseTensorProto:
    found: onnx.SparseTensorProto = helper.make_sparse_tensor(
        external_tensor(location), numpy_helper.from_array(np.arange(3)), [9]
    )
    return found


def graph_of(*nodes: NodeProto, initializers: tuple[TensorProto, ...] = ()) -> onnx.GraphProto:
    graph: onnx.GraphProto = helper.make_graph(list(nodes), "graph", [], [], list(initializers))
    return graph


def write(path: Path, graph: onnx.GraphProto, **keywords: object) -> Path:
    path.write_bytes(helper.make_model(graph, **keywords).SerializeToString())
    return path


def attribute(name: str, **fields: object) -> AttributeProto:
    found = AttributeProto(name=name)
    for field, values in fields.items():
        if isinstance(values, list):
            getattr(found, field).extend(values)
        else:
            getattr(found, field).CopyFrom(values)
    return found


def node_with(part: AttributeProto) -> NodeProto:
    node = NodeProto(op_type="Custom")
    node.attribute.append(part)
    return node


@pytest.mark.parametrize(
    "graph",
    [
        lambda name: graph_of(initializers=(external_tensor(name),)),
        lambda name: graph_of(constant(name)),
        lambda name: graph_of(node_with(attribute("t", tensors=[external_tensor(name)]))),
        lambda name: graph_of(node_with(attribute("g", g=graph_of(constant(name))))),
        lambda name: graph_of(node_with(attribute("g", graphs=[graph_of(initializers=(external_tensor(name),))]))),
        lambda name: graph_of(node_with(attribute("s", sparse_tensor=sparse(name)))),
        lambda name: graph_of(node_with(attribute("s", sparse_tensors=[sparse(name)]))),
        lambda name: helper.make_graph([], "graph", [], [], sparse_initializer=[sparse(name)]),
    ],
)
def test_files_are_found_wherever_a_tensor_may_be(graph: Callable[[str], onnx.GraphProto], tmp_path: Path) -> None:
    """The graph of BAAI/bge-m3 keeps a constant's value in a file that no naming rule knows."""
    path = write(tmp_path / "model.onnx", graph("Constant_7_attr__value"))
    assert read_onnx_file(path) == OnnxFile(weights=("Constant_7_attr__value",))


def test_files_of_functions_are_found_and_each_file_once(tmp_path: Path) -> None:
    function = helper.make_function("own", "f", [], ["c"], [constant("in-function")], [helper.make_opsetid("", 17)])
    graph = graph_of(constant("shared"), initializers=(external_tensor("shared"), external_tensor("other", "b")))
    path = write(tmp_path / "model.onnx", graph, functions=[function])
    assert read_onnx_file(path).weights == ("shared", "other", "in-function")


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def nested(content: bytes, times: int) -> bytes:
    """Graphs in attributes of nodes of graphs."""
    for _ in range(times):
        content = field(1, field(5, field(6, content)))
    return field(7, content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 2**20,  # a number that does not end
        b"\x3a" + b"\xff" * 2**20,
        field(7, b"\x0a\xff\xff\xff\xff\x0f"),  # a field longer than what it is in
        field(7, field(5, field(13, field(2, b"x" * 2**20)) * 100)),
        nested(b"", 10_000),
    ],
)
def test_bytes_that_are_no_graph_say_nothing_at_once(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    before = time.process_time()
    assert read_onnx_file(path) == OnnxFile()
    assert time.process_time() - before < 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        b"\x08\x01" * 2**21,
        field(7, b"\x0a\x00" * 2**21),
        nested(field(5, field(13, b"") * 2**21), 30),
        field(7, field(5, field(13, b"\x0a\x00" * 2**21))),
    ],
)
def test_more_parts_than_any_graph_has_are_refused_in_bounded_time(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    before = time.process_time()
    with pytest.raises(ModelLoadError, match="more than 1,000,000 parts"):
        read_onnx_file(path)
    assert time.process_time() - before < 15


@given(st.binary() | st.binary().map(lambda content: field(7, content)) | st.binary().map(lambda rest: nested(rest, 2)))
def test_any_bytes_are_read_to_an_end(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(content)
        read_onnx_file(path)
