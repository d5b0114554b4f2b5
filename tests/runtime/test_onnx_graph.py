"""Graphs taken apart and put together again, beside what the `onnx` package makes of the same bytes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from asyncembed.runtime import onnx_graph
from asyncembed.runtime.onnx_graph import Node, OnnxGraph, branch, tensor_beside, tensor_inside

EXPORTED = sorted(Path(__file__).with_name("exported").glob("*.onnx"))


@pytest.mark.parametrize("path", EXPORTED, ids=lambda path: path.stem)
def test_a_graph_is_read_as_onnx_reads_it_and_written_as_it_was(path: Path, tmp_path: Path) -> None:
    ours, theirs = OnnxGraph(path), onnx.load(path)
    assert [(node.operator, node.inputs, node.outputs) for node in ours.nodes] == [
        (node.op_type, tuple(node.input), tuple(node.output)) for node in theirs.graph.node
    ]
    assert {name: tensor.shape for name, tensor in ours.tensors.items()} == {
        tensor.name: tuple(tensor.dims) for tensor in theirs.graph.initializer
    }
    assert ours.outputs == tuple(value.name for value in theirs.graph.output)
    assert ours.opset == next(each.version for each in theirs.opset_import if each.domain == "")
    ours.write(tmp_path / "same.onnx")
    assert onnx.load(tmp_path / "same.onnx") == theirs


def test_numbers_of_a_node_are_known_and_its_subgraphs_looked_into() -> None:
    inner = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "inner", [], [])
    made = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner, low=-1, half=0.5, many=[1, 2])
    node = Node.read(made.SerializeToString())
    assert node.numbers == {"low": -1, "half": 0.5}
    assert node.reads == ("x", "a", "b", "a", "b")
    other = onnx.NodeProto.FromString(node.renamed(["z"], ["w"]).content)
    assert (list(other.input), list(other.output), other.attribute) == (["z"], ["w"], made.attribute)


def test_nodes_constants_and_outputs_are_added(tmp_path: Path) -> None:
    whole = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    path = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)]), path)
    nodes = [Node.make(operator, ["x"], ["z"]) for operator in ("Neg", "Abs")]
    branches = [branch(node.operator, [node], ["z"]) for node in nodes]
    graph = OnnxGraph(path)
    added = [
        Node.make("Shape", ["x"], ["shape"]),
        Node.make("Greater", ["shape", "three"], ["is_long"]),
        Node.make("If", ["is_long"], ["chosen"], then_branch=branches[0], else_branch=branches[1]),
        Node.make("Concat", ["chosen", "chosen"], ["twice"], axis=-1),
        Node.make("Custom", ["twice"], ["last"], many=[1, -2], half=0.5),
    ]
    graph.write(
        path,
        nodes=[*graph.nodes, *added],
        tensors=[tensor_inside("three", np.array([300]))],
        outputs=["twice"],
        metadata={"what": "it is"},
    )
    read = onnx.load(path)
    (three,) = read.graph.initializer
    assert numpy_helper.to_array(three).tolist() == [300]
    assert [value.name for value in read.graph.output] == ["y", "twice"]
    choice = read.graph.node[3]
    assert [helper.get_attribute_value(each).node[0].op_type for each in choice.attribute] == ["Neg", "Abs"]
    assert helper.get_attribute_value(read.graph.node[4].attribute[0]) == -1
    assert [helper.get_attribute_value(each) for each in read.graph.node[5].attribute] == [[1, -2], 0.5]
    assert [(each.key, each.value) for each in read.metadata_props] == [("what", "it is")]


def test_tensors_are_left_out_and_lie_beside_the_graph(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    onnx.save(onnx.load(EXPORTED[0]), path, save_as_external_data=True, location="a", size_threshold=100)
    graph = OnnxGraph(path)
    old, tensor = next((name, tensor) for name, tensor in graph.tensors.items() if tensor.place is not None)
    start, stop = tensor.place or (0, 0)
    expected = numpy_helper.to_array(next(each for each in onnx.load(path).graph.initializer if each.name == old))
    values = np.arange(6, dtype=np.int8).reshape(2, 3)
    (tmp_path / "b").write_bytes(b"12345" + values.tobytes() + (tmp_path / "a").read_bytes()[start:stop])
    graph.write(path, tensors=[tensor.moved("b", 11), tensor_beside("new", values, "b", 5)], without=[old])
    read = {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    np.testing.assert_array_equal(read[old], expected)
    np.testing.assert_array_equal(read["new"], values)
    assert read.keys() == {*graph.tensors, "new"}


@pytest.mark.parametrize("content", [b"\x0a", b"\x0a\xff", b"\xff" * 12, b"\x0b", b"", b"\x3a\x02\x0a\x05"])
def test_what_is_no_graph_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="."):
        OnnxGraph(path)


def test_a_file_with_weights_inside_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="without its weights"):
        OnnxGraph(EXPORTED[0])
