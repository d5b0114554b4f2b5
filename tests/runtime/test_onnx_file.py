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
from asyncembed.runtime.onnx_file import OnnxFile, are_within_reach, read_onnx_file
from tests.support.external_data import external_tensor
from tests.support.graphs import write_text_graph


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        lambda: b"",
        lambda: b"\xff" * 2**20,  # a number that does not end
        lambda: b"\x3a" + b"\xff" * 2**20,
        lambda: field(7, b"\x0a\xff\xff\xff\xff\x0f"),  # a field longer than what it is in
        lambda: field(7, field(5, field(13, field(2, b"x" * 2**20)) * 100)),
        lambda: nested(b"", 10_000),
    ],
)
def test_bytes_that_are_no_graph_say_nothing_at_once(content: Callable[[], bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content())
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


def write_graph(path: Path, location: str) -> None:
    weights = numpy_helper.from_array(np.ones(3, np.float32), "weights")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="offset", value="0")
    weights.external_data.add(key="location", value=location)
    graph = helper.make_graph([], "graph", [], [], [numpy_helper.from_array(np.ones(3, np.float32), "inside"), weights])
    path.write_bytes(helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize("name", ["model.onnx_data", "parts/weights 1.bin"])
def test_the_graph_tells_where_its_weights_are(name: str, tmp_path: Path) -> None:
    write_graph(tmp_path / "model.onnx", name)
    assert read_onnx_file(tmp_path / "model.onnx").weights == (name,)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "C:\\secret", "a\\..\\..\\secret", ""])
def test_a_name_that_leads_out_of_the_directory_is_none(name: str, tmp_path: Path) -> None:
    write_graph(tmp_path / "model.onnx", name)
    assert read_onnx_file(tmp_path / "model.onnx").weights == ()


@pytest.mark.parametrize("content", [b"", b"not a graph at all", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 40])
def test_what_is_no_graph_has_no_weights_elsewhere(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert read_onnx_file(tmp_path / "model.onnx").weights == ()


@pytest.mark.posix
def test_a_file_is_within_reach_beside_the_graph_or_beside_what_it_links_to(tmp_path: Path) -> None:
    for name in ("snapshot", "blobs", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "blobs/a").write_bytes(b"graph")
    (tmp_path / "snapshot/model.onnx").symlink_to("../blobs/a")
    for name, home in {"beside": "snapshot", "linked": "blobs", "lost": "elsewhere"}.items():
        (tmp_path / home / f"{name}-bytes").write_bytes(b"weights")
        (tmp_path / "snapshot" / name).symlink_to(f"../{home}/{name}-bytes")
    model = tmp_path / "snapshot/model.onnx"
    assert [are_within_reach(model, [name]) for name in ("beside", "linked", "lost")] == [True, True, False]
    assert are_within_reach(model, [])


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_dynamically_quantised_graph_is_recognised(dynamic: bool, tmp_path: Path) -> None:
    path = write_text_graph(tmp_path / "model.onnx", dynamic_quantization=dynamic)
    assert read_onnx_file(path).is_dynamically_quantized == dynamic
    assert not read_onnx_file(path).has_branches


def test_the_name_alone_does_not_count(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("DynamicQuantizeLinear", TensorProto.FLOAT, ["n"])
    result = helper.make_tensor_value_info("MatMulInteger", TensorProto.FLOAT, ["n"])
    node = helper.make_node("Relu", [value.name], [result.name], name="DynamicQuantizeLinear")
    model = helper.make_model(helper.make_graph([node], "MatMulInteger", [value], [result]))
    onnx.save(model, str(tmp_path / "model.onnx"))
    assert not read_onnx_file(tmp_path / "model.onnx").is_dynamically_quantized


def test_operators_inside_branches_are_found(tmp_path: Path) -> None:
    result = helper.make_tensor_value_info("q", TensorProto.UINT8, None)
    branch = helper.make_graph(
        [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"])], "branch", [], [result]
    )
    choice = helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)
    inputs = [
        helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.UINT8, None)
    onnx.save(helper.make_model(helper.make_graph([choice], "graph", inputs, [output])), str(tmp_path / "m.onnx"))
    assert read_onnx_file(tmp_path / "m.onnx").is_dynamically_quantized
    assert read_onnx_file(tmp_path / "m.onnx").has_branches


def test_a_file_that_is_no_model_is_left_to_the_runtime(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x0fno model at all")
    assert not read_onnx_file(tmp_path / "model.onnx").is_dynamically_quantized
