"""Graphs with their weights in files of their own load, wherever the cache's links lead."""

import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from huggingface_hub import constants
from onnx import TensorProto, helper, numpy_helper

from asyncembed.catalogue.spec import HubOrigin
from asyncembed.errors import ModelLoadError
from asyncembed.files import in_disk_thread
from asyncembed.runtime.loadable_path import loadable_model_path
from asyncembed.runtime.onnx import OnnxSession
from asyncembed.runtime.openvino import OpenVinoSession
from asyncembed.runtime.session import SessionOptions
from tests.hub import conftest
from tests.hub.calls import download_files
from tests.hub.server import HubServer, Repo
from tests.support import posix

pytestmark = pytest.mark.slow
hub, _environment = conftest.hub, conftest._environment

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
    return await download_files([HubOrigin("org/model")], patterns=["*"])


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
    path = await in_disk_thread(loadable_model_path, snapshot, "onnx/model.onnx")
    assert path == snapshot / "onnx/model.onnx"
    run(path)


@pytest.mark.posix
async def test_openvino_gets_hard_links_as_it_does_not_follow_to_the_blobs(
    hub: HubServer, files: dict[str, bytes | memoryview]
) -> None:
    snapshot = await fetch_model(hub, files)
    path = await in_disk_thread(partial(loadable_model_path, snapshot, "onnx/model.onnx", beside_only=True))
    assert path.samefile(snapshot / "onnx/model.onnx")
    session = OpenVinoSession(path, SessionOptions(runtime="openvino"))
    (result,) = session.run(session.output_names, {"x": np.zeros(1, np.float32)})
    np.testing.assert_array_equal(result, WEIGHTS)


@pytest.mark.posix
async def test_weights_in_the_shared_store_load_through_hard_links(
    hub: HubServer, files: dict[str, bytes | memoryview]
) -> None:
    snapshot = await fetch_model(hub, files)
    move_into_shared_store(snapshot)
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 32):
        with pytest.raises(Exception, match="escapes"):
            run(snapshot / "onnx/model.onnx")
    path = await in_disk_thread(loadable_model_path, snapshot, "onnx/model.onnx")
    run(path)
    assert path.samefile(snapshot / "onnx/model.onnx")
    assert await in_disk_thread(loadable_model_path, snapshot, "onnx/model.onnx") == path


@pytest.mark.posix
async def test_links_of_deleted_snapshots_are_removed_and_nothing_else(
    hub: HubServer, files: dict[str, bytes | memoryview]
) -> None:
    snapshot = await fetch_model(hub, files)
    move_into_shared_store(snapshot)
    links = snapshot.parents[1] / "onnx_snapshots"
    ours = await in_disk_thread(loadable_model_path, snapshot, "onnx/model.onnx")
    assert ours.is_relative_to(links / snapshot.name)
    newer = snapshot.with_name("d" * 40)
    snapshot.rename(newer)
    others = [links / ("a" * 40) / "model.onnx", links / "notes" / "notes.txt"]
    for path in others:
        path.parent.mkdir()
        path.write_bytes(b"of another program")
    await in_disk_thread(loadable_model_path, newer, "onnx/model.onnx")
    assert not (links / snapshot.name).exists()
    assert all(path.exists() for path in others)


@pytest.mark.parametrize("folder", ["mine", f"snapshots/{'c' * 40}"])
@pytest.mark.posix
async def test_folders_beside_a_local_model_are_left_alone(
    folder: str, files: dict[str, bytes | memoryview], tmp_path: Path
) -> None:
    """Its weights are a link, as versioning tools make them, and a folder nearby has the name that fastembed uses."""
    directory = local_model(tmp_path / "work" / folder, files)
    photo = tmp_path / "work" / "onnx_snapshots" / ("a" * 40) / "photo.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"the only copy")
    link_weights(directory, tmp_path / "store" / "weights")
    with pytest.raises(ModelLoadError, match="link out of its directory"):
        await in_disk_thread(loadable_model_path, directory, "onnx/model.onnx")
    assert photo.read_bytes() == b"the only copy"


def local_model(directory: Path, files: dict[str, bytes | memoryview]) -> Path:
    for path, content in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
    return directory


def link_weights(directory: Path, target: Path) -> None:
    """Move the weights to `target`, and leave a link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    (directory / "onnx/model.onnx_data").rename(target)
    (directory / "onnx/model.onnx_data").symlink_to(target)


@pytest.mark.parametrize(
    "layout", ["model", f"models--org--name/snapshots/{'c' * 40}", "models--org--name/snapshots/main"]
)
@pytest.mark.posix
async def test_no_file_outside_the_model_is_read_as_weights(
    layout: str, files: dict[str, bytes | memoryview], tmp_path: Path
) -> None:
    """Whoever makes a directory could otherwise have any file come out as a vector; a cache's layout is no help."""
    directory = local_model(tmp_path / layout, files)
    (tmp_path / layout.partition("/")[0] / "blobs").mkdir(exist_ok=True)
    link_weights(directory, tmp_path / "home" / "secret")
    with pytest.raises(ModelLoadError, match="link out of its directory"):
        await in_disk_thread(loadable_model_path, directory, "onnx/model.onnx")
    with pytest.raises(ModelLoadError, match="link out of its directory"):
        OnnxSession(directory / "onnx/model.onnx", SessionOptions(device="cpu"))
    assert not list(tmp_path.rglob("onnx_snapshots"))


@pytest.mark.posix
async def test_a_link_that_stays_in_the_directory_is_followed(
    files: dict[str, bytes | memoryview], tmp_path: Path
) -> None:
    directory = local_model(tmp_path / "model", files)
    link_weights(directory, directory / "onnx" / "weights" / "part")
    run(await in_disk_thread(loadable_model_path, directory, "onnx/model.onnx"))


async def test_weights_that_are_missing_are_named(files: dict[str, bytes | memoryview], tmp_path: Path) -> None:
    directory = local_model(tmp_path / "model", files)
    (directory / "onnx/model.onnx_data").unlink()
    with pytest.raises(ModelLoadError, match=r"keeps weights in model\.onnx_data, and .*onnx has no such file"):
        await in_disk_thread(loadable_model_path, directory, "onnx/model.onnx")


@pytest.mark.posix
@pytest.mark.posix
async def test_nothing_is_put_where_others_can_write_or_a_link_leads_elsewhere(
    hub: HubServer, files: dict[str, bytes | memoryview], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = await fetch_model(hub, files)
    move_into_shared_store(snapshot)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    links = snapshot.parents[1] / "onnx_snapshots"
    links.mkdir()
    (links / snapshot.name).symlink_to(elsewhere)
    blocked = tmp_path / "blocked"
    blocked.write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HOME", str(blocked))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    private = temporary / f"asyncembed-{posix.user_id()}"
    private.mkdir()
    private.chmod(0o777)
    assert await in_disk_thread(loadable_model_path, snapshot, "onnx/model.onnx") == snapshot / "onnx/model.onnx"
    assert not list(elsewhere.iterdir())
    assert not list(private.iterdir())
    private.chmod(0o700)
    assert (await in_disk_thread(loadable_model_path, snapshot, "onnx/model.onnx")).is_relative_to(private)


@pytest.mark.posix
async def test_where_links_cannot_be_made_copies_serve(
    hub: HubServer, files: dict[str, bytes | memoryview], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache in which no directory can be made (a file is in its place), as with a read-only one."""
    snapshot = await fetch_model(hub, files)
    move_into_shared_store(snapshot)
    (snapshot.parents[1] / "onnx_snapshots").write_bytes(b"")
    path = await in_disk_thread(loadable_model_path, snapshot, "onnx/model.onnx")
    assert path.is_relative_to(tmp_path / "home" / "asyncembed")
    run(path)


@pytest.mark.posix
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
    path = await in_disk_thread(loadable_model_path, snapshot, "onnx/model.onnx")
    assert "HF_HUB_DISABLE_SHARED_BLOBS" in caplog.text
    session = OnnxSession(path, SessionOptions(device="cpu"))
    (result,) = session.run(["y"], {"x": np.zeros(1, np.float32)})
    np.testing.assert_array_equal(result, WEIGHTS)
