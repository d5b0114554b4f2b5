"""Which files hold a graph's weights."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from asyncembed.runtime.external_data import are_within_reach, external_data_files


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
    assert external_data_files(tmp_path / "model.onnx") == (name,)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "C:\\secret", "a\\..\\..\\secret", ""])
def test_a_name_that_leads_out_of_the_directory_is_none(name: str, tmp_path: Path) -> None:
    write_graph(tmp_path / "model.onnx", name)
    assert external_data_files(tmp_path / "model.onnx") == ()


@pytest.mark.parametrize("content", [b"", b"not a graph at all", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 40])
def test_what_is_no_graph_has_no_weights_elsewhere(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert external_data_files(tmp_path / "model.onnx") == ()


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
