"""Graphs that keep their weights in other files."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CONSTANT_FILE = "Constant_7_attr__value"
"""What torch called such a file of BAAI/bge-m3."""


def graph_naming(*names: str) -> bytes:
    """A graph with a tensor in each of these files."""
    tensors = [external_tensor(name, f"weights{position}") for position, name in enumerate(names)]
    content: bytes = helper.make_model(helper.make_graph([], "graph", [], [], tensors)).SerializeToString()
    return content


def external_tensor(location: str, name: str = "weights") -> TensorProto:
    """Three float32 numbers in the file `location`."""
    tensor = numpy_helper.from_array(np.ones(3, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def move_weights_out(path: Path) -> Path:
    """Lay the graph at `path` out as BAAI/bge-m3 is: one constant in a file of its own, the rest in model.onnx_data."""
    model = onnx.load(path)
    constant = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    model.graph.initializer.remove(constant)
    value = TensorProto()
    value.CopyFrom(constant)
    (path.parent / CONSTANT_FILE).write_bytes(value.raw_data)
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value=CONSTANT_FILE)
    onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}_data", size_threshold=100)
    model = onnx.load(path, load_external_data=False)
    model.graph.node.insert(0, helper.make_node("Constant", [], [constant.name], value=value))
    path.write_bytes(model.SerializeToString())
    return path
