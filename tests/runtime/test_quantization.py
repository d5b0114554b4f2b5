from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from asyncembed.runtime.quantization import is_dynamically_quantized
from tests.support.graphs import write_text_graph


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_dynamically_quantised_graph_is_recognised(dynamic: bool, tmp_path: Path) -> None:
    path = write_text_graph(tmp_path / "model.onnx", dynamic_quantization=dynamic)
    assert is_dynamically_quantized(path) == dynamic


def test_the_name_alone_does_not_count(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("DynamicQuantizeLinear", TensorProto.FLOAT, ["n"])
    result = helper.make_tensor_value_info("MatMulInteger", TensorProto.FLOAT, ["n"])
    node = helper.make_node("Relu", [value.name], [result.name], name="DynamicQuantizeLinear")
    model = helper.make_model(helper.make_graph([node], "MatMulInteger", [value], [result]))
    onnx.save(model, str(tmp_path / "model.onnx"))
    assert not is_dynamically_quantized(tmp_path / "model.onnx")


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
    assert is_dynamically_quantized(tmp_path / "m.onnx")


def test_a_file_that_is_no_model_is_left_to_the_runtime(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x0fno model at all")
    assert not is_dynamically_quantized(tmp_path / "model.onnx")
