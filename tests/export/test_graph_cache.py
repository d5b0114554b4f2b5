import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from asyncembed.errors import ModelLoadError
from asyncembed.export.graph_cache import ensure_graph, find_graph
from asyncembed.runtime import digests
from tests.export.conftest import DATA, Variant


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and "digests" not in path.parts)


def run(code: str, *arguments: object, env: Mapping[str, str] | None = None) -> str:
    """Run `code` in a fresh interpreter; what it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8", check=True)
    return done.stdout.strip()


def test_the_graph_is_built_once(tmp_path: Path) -> None:
    first = ensure_graph(DATA / "bert", cache_dir=tmp_path)
    before = first.stat()
    assert ensure_graph(DATA / "bert", cache_dir=tmp_path) == first
    assert first.stat() == before
    assert [path.name for path in files(tmp_path)] == ["model.onnx", "model.onnx_data"]


def test_the_weights_can_be_deleted_once_the_graph_is_built(variant: Variant, tmp_path: Path) -> None:
    """On Windows they cannot while they are mapped, and nobody knows when garbage is collected next."""
    directory = variant("bert")
    gc.disable()
    try:
        ensure_graph(directory, cache_dir=tmp_path / "cache")
        (directory / "model.safetensors").unlink()
    finally:
        gc.enable()


def test_a_graph_is_found_only_once_it_was_built(tmp_path: Path) -> None:
    assert find_graph(DATA / "bert", cache_dir=tmp_path) is None
    graph = ensure_graph(DATA / "bert", cache_dir=tmp_path)
    assert find_graph(DATA / "bert", cache_dir=tmp_path) == graph


def test_a_copy_of_the_weights_finds_the_same_graph(variant: Variant, tmp_path: Path) -> None:
    directory, other = variant("bert"), variant("bert")
    assert ensure_graph(other, cache_dir=tmp_path / "cache") == ensure_graph(directory, cache_dir=tmp_path / "cache")


@pytest.mark.posix
def test_links_into_a_blob_store_find_the_same_graph(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(DATA / "bert" / name)
    assert ensure_graph(snapshot, cache_dir=tmp_path / "cache") == ensure_graph(
        DATA / "bert", cache_dir=tmp_path / "cache"
    )


@pytest.mark.parametrize("remembered", [False, True])
def test_changed_weights_never_get_the_old_graph(
    remembered: bool, variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where place, size, inode and modification time are the same as before."""
    if remembered:  # as if the files were old, so that their digests are kept
        monkeypatch.setattr(digests, "_TIMESTAMP_STEP_SECONDS", -1.0)
    directory = variant("bert")
    old = ensure_graph(directory, cache_dir=tmp_path / "cache")
    weights = directory / "model.safetensors"
    before = weights.stat()
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    after = before
    while after.st_ctime_ns == before.st_ctime_ns:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = weights.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert ensure_graph(directory, cache_dir=tmp_path / "cache") != old


def test_a_changed_config_never_gets_the_old_graph(variant: Variant, tmp_path: Path) -> None:
    directory = variant("bert", hidden_act="gelu")
    old = ensure_graph(directory, cache_dir=tmp_path / "cache")
    config = json.loads((directory / "config.json").read_bytes())
    (directory / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}), "utf-8")
    assert ensure_graph(directory, cache_dir=tmp_path / "cache") != old


@pytest.mark.slow
def test_weights_that_did_not_change_are_not_read_again(
    variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content is hashed once; afterwards the graph is found from what stat says."""
    monkeypatch.setattr(digests, "_TIMESTAMP_STEP_SECONDS", -1.0)
    directory = variant("bert")
    first = ensure_graph(directory, cache_dir=tmp_path / "cache")
    weights = directory / "model.safetensors"
    accesses = run_traced_opens(directory, tmp_path / "cache")
    assert str(first) in accesses
    assert str(weights) not in accesses


def run_traced_opens(directory: Path, cache_dir: Path) -> str:
    """The graph's path, and each file that a fresh interpreter opens while it finds it."""
    code = """
import sys
from pathlib import Path
from asyncembed.export.graph_cache import ensure_graph
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
print(ensure_graph(Path(sys.argv[1]), cache_dir=Path(sys.argv[2])), *opened, sep="\\n")
"""
    return run(code, directory, cache_dir)


def test_a_graph_without_its_weights_is_built_again(tmp_path: Path) -> None:
    graph = ensure_graph(DATA / "bert", cache_dir=tmp_path)
    data = graph.with_name("model.onnx_data")
    content = data.read_bytes()
    data.unlink()
    assert ensure_graph(DATA / "bert", cache_dir=tmp_path) == graph
    assert data.read_bytes() == content


@pytest.mark.slow
def test_several_processes_at_once_make_one_graph(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        graphs = set(pool.map(build, [str(tmp_path)] * 6))
    assert len(graphs) == 1
    assert [path.name for path in files(tmp_path)] == ["model.onnx", "model.onnx_data"]
    alone = ensure_graph(DATA / "mpnet", cache_dir=tmp_path / "alone")
    for path in files(tmp_path / "exported"):
        assert path.read_bytes() == alone.with_name(path.name).read_bytes()


def build(cache_dir: str) -> str:
    return str(ensure_graph(DATA / "mpnet", cache_dir=Path(cache_dir)))


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    abandoned = tmp_path / "exported" / "tmp-killed"
    abandoned.mkdir(parents=True)
    (abandoned / "model.onnx_data").write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    busy = tmp_path / "exported" / "tmp-busy"
    busy.mkdir()
    ensure_graph(DATA / "bert", cache_dir=tmp_path)
    assert busy.exists()
    assert not abandoned.exists()


def test_a_failed_build_leaves_nothing_behind(variant: Variant, tmp_path: Path) -> None:
    directory = variant("bert", num_hidden_layers=3)
    with pytest.raises(ModelLoadError):
        ensure_graph(directory, cache_dir=tmp_path / "cache")
    assert not files(tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(ModelLoadError, match="ASYNCEMBED_CACHE"):
        ensure_graph(DATA / "bert", cache_dir=tmp_path / "file" / "cache")


@pytest.mark.slow
def test_the_default_place_of_the_cache(tmp_path: Path) -> None:
    code = "from asyncembed.files import default_cache_dir; print(default_cache_dir())"
    env = {name: value for name, value in os.environ.items() if name not in {"ASYNCEMBED_CACHE", "HF_HOME"}}
    own, home, xdg = (str(tmp_path / name) for name in ("own", "home", "xdg"))
    assert run(code, env=env | {"ASYNCEMBED_CACHE": own, "HF_HOME": home}) == own
    assert Path(run(code, env=env | {"HF_HOME": home})) == Path(home, "asyncembed")
    assert Path(run(code, env=env | {"ASYNCEMBED_CACHE": "own"})).is_absolute(), "it is put behind a model's directory"
    assert Path(run(code, env=env | {"HF_HOME": "home"})).is_absolute()
    assert Path(run(code, env=env | {"XDG_CACHE_HOME": xdg})) == Path(xdg, "huggingface", "asyncembed")


@pytest.mark.slow
def test_without_the_onnx_package_only_building_fails(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["onnx"] = None
from pathlib import Path
from asyncembed.errors import RuntimeMissingError
from asyncembed.export.graph_cache import ensure_graph
try:
    print(ensure_graph(Path(sys.argv[1]), cache_dir=Path(sys.argv[2])))
except RuntimeMissingError as error:
    print(error)
"""
    assert 'pip install "asyncembed[export]"' in run(code, DATA / "bert", tmp_path)
    graph = ensure_graph(DATA / "bert", cache_dir=tmp_path)
    assert run(code, DATA / "bert", tmp_path) == str(graph)


@pytest.mark.slow
def test_importing_the_export_loads_neither_onnx_nor_a_runtime() -> None:
    code = """
import sys
import asyncembed.export.graph_cache
print(sorted({'onnx', 'onnxruntime', 'torch', 'httpx'} & set(sys.modules)))
"""
    assert run(code) == "[]"


@pytest.mark.posix
def test_nothing_is_written_behind_a_link(tmp_path: Path) -> None:
    graph = ensure_graph(DATA / "bert", cache_dir=tmp_path / "cache")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in graph.parent.iterdir():
        path.unlink()
        (elsewhere / path.name).write_bytes(b"someone's own")
    graph.parent.rmdir()
    graph.parent.symlink_to(elsewhere)
    with pytest.raises(ModelLoadError, match="a link where a directory"):
        ensure_graph(DATA / "bert", cache_dir=tmp_path / "cache")
    assert {path.read_bytes() for path in elsewhere.iterdir()} == {b"someone's own"}
    assert find_graph(DATA / "bert", cache_dir=tmp_path / "cache") is None
