"""Graphs with their weights in files of their own load, wherever the cache's links lead."""

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from huggingface_hub import constants
from onnx import TensorProto, helper, numpy_helper

from asyncembed.catalogue.spec import HubSource
from asyncembed.hub import fetch, loadable_model_path
from asyncembed.runtime.onnx import OnnxSession
from asyncembed.runtime.session import SessionOptions
from tests.hub.server import HubServer, Repo

pytestmark = pytest.mark.slow

WEIGHTS = np.arange(5000, dtype=np.float32)


def model_files(folder: Path) -> dict[str, bytes | memoryview]:
    weights = numpy_helper.from_array(WEIGHTS, "weights")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "weights"], ["y"])],
        "add",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5000])],
        [numpy_helper.from_array(np.ones(3, np.float32), "inside"), weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=100,
    )
    return {f"onnx/{path.name}": path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes | memoryview]:
    folder = tmp_path / "model"
    folder.mkdir()
    return model_files(folder)


async def fetch_model(hub: HubServer, files: dict[str, bytes | memoryview]) -> Path:
    hub.repos["org/model"] = Repo(files, large=frozenset(files))
    return await fetch([HubSource("org/model")], patterns=["*"])


def run(path: Path) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.zeros(1, np.float32)})
    np.testing.assert_array_equal(result, WEIGHTS)


def move_into_shared_store(snapshot: Path) -> None:
    """As huggingface_hub keeps large files: each in a directory of a store outside the repo's own."""
    root = snapshot.parents[2]
    for number, path in enumerate(sorted(snapshot.glob("onnx/*"))):
        blob = path.parent / path.readlink()
        store = root / "blobs" / f"{number:02}" / "payload"
        store.parent.mkdir(parents=True)
        blob.resolve().rename(store)
        Path(os.path.normpath(blob)).symlink_to(os.path.relpath(store, os.path.normpath(blob.parent)))


async def test_what_we_download_loads_as_it_is(hub: HubServer, files: dict[str, bytes | memoryview]) -> None:
    snapshot = await fetch_model(hub, files)
    path = await loadable_model_path(snapshot, "onnx/model.onnx")
    assert path == snapshot / "onnx/model.onnx"
    run(path)


async def test_weights_in_the_shared_store_load_through_hard_links(
    hub: HubServer, files: dict[str, bytes | memoryview]
) -> None:
    snapshot = await fetch_model(hub, files)
    move_into_shared_store(snapshot)
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 32):
        with pytest.raises(Exception, match="escapes"):
            run(snapshot / "onnx/model.onnx")
    path = await loadable_model_path(snapshot, "onnx/model.onnx")
    run(path)
    assert path.samefile(snapshot / "onnx/model.onnx")
    assert await loadable_model_path(snapshot, "onnx/model.onnx") == path


async def test_links_of_deleted_snapshots_are_removed(hub: HubServer, files: dict[str, bytes | memoryview]) -> None:
    snapshot = await fetch_model(hub, files)
    move_into_shared_store(snapshot)
    gone = snapshot.parents[1] / "onnx_snapshots" / ("a" * 40)
    gone.mkdir(parents=True)
    await loadable_model_path(snapshot, "onnx/model.onnx")
    assert not gone.exists()


async def test_where_links_cannot_be_made_copies_serve(
    hub: HubServer, files: dict[str, bytes | memoryview], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache in which no directory can be made (a file is in its place), as with a read-only one."""
    snapshot = await fetch_model(hub, files)
    move_into_shared_store(snapshot)
    (snapshot.parents[1] / "onnx_snapshots").write_bytes(b"")
    path = await loadable_model_path(snapshot, "onnx/model.onnx")
    assert path.is_relative_to(tmp_path / "home" / "asyncembed")
    run(path)


async def test_where_nothing_can_be_put_anywhere_the_weights_come_from_memory(
    hub: HubServer,
    files: dict[str, bytes | memoryview],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    snapshot = await fetch_model(hub, files)
    move_into_shared_store(snapshot)
    blocked = tmp_path / "blocked"
    blocked.write_bytes(b"")
    (snapshot.parents[1] / "onnx_snapshots").write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HOME", str(blocked))
    monkeypatch.setattr(tempfile, "tempdir", str(blocked))
    path = await loadable_model_path(snapshot, "onnx/model.onnx")
    assert "HF_HUB_DISABLE_SHARED_BLOBS" in caplog.text
    session = OnnxSession(path, SessionOptions(device="cpu"))
    (result,) = session.run(["y"], {"x": np.zeros(1, np.float32)})
    np.testing.assert_array_equal(result, WEIGHTS)
