"""What lies in a cache, how large it is, and that no more goes than was asked for."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from asyncembed.cli.stored import Places, Stored, chosen, delete, look_into, names_of
from asyncembed.errors import CacheNotWritableError
from asyncembed.export.graph_cache import ensure_graph
from asyncembed.runtime import digests
from asyncembed.runtime.loadable_path import MARK
from asyncembed.runtime.onnx import save_optimized
from asyncembed.runtime.prepared import Source, prepare_graph
from tests.export.conftest import DATA

COMMIT, OTHER = "1" * 40, "2" * 40
ONE_FILE = {"model.onnx": b"x"}


def write_repo(
    root: Path, repo: str, files: Mapping[str, bytes] = ONE_FILE, *, commit: str = COMMIT, ref: str | None = "main"
) -> Path:
    """A repo in the hub's cache."""
    folder = root / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    for name, content in files.items():
        blob = folder / "blobs" / f"{name}-{commit[:4]}"
        blob.write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    if ref is not None:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / ref).write_text(commit, encoding="utf-8")
    return folder


def kinds(stored: list[Stored]) -> list[tuple[str, str, int]]:
    return [(each.kind, each.name, each.size_bytes) for each in stored]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "hub").mkdir()
    return Places.of(tmp_path / "hub")


def test_a_cache_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert look_into(Places.of(tmp_path / "none")) == []
    (tmp_path / "file").touch()
    assert look_into(Places.of(tmp_path / "file")) == []


@pytest.mark.posix
def test_models_are_found_with_their_sizes_and_revisions(places: Places) -> None:
    write_repo(places.hub, "org/b", {"model.onnx": b"x" * 1000, "config.json": b"{}"})
    write_repo(places.hub, "org/b", {"model.onnx": b"x" * 500}, commit=OTHER, ref=None)
    write_repo(places.hub, "org/a", {"config.json": b"{}"})
    (places.hub / "datasets--org--data" / "snapshots").mkdir(parents=True)
    found = look_into(places)
    assert kinds(found) == [("model", "org/a", 2), ("model", "org/b", 1502)]
    assert found[1].revisions == ("2222222", "main (1111111)")
    assert found[1].path == places.hub / "models--org--b"


@pytest.mark.posix
def test_what_is_damaged_or_begun_is_told_apart_from_models(places: Places) -> None:
    folder = write_repo(places.hub, "org/broken")
    next((folder / "blobs").iterdir()).unlink()
    begun = places.hub / "models--org--begun" / "blobs" / "abc.asyncembed.incomplete"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"x" * 8192)
    archive = places.hub / ".fast-model-v1.5.0a1b2c3d.incomplete" / "archive.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(b"x" * 100)
    assert kinds(look_into(places)) == [
        ("incomplete model", "org/begun", 0),
        ("incomplete model", "org/broken", len(COMMIT)),  # in the ref
        ("unfinished download", "fast-model-v1.5", 100),
        ("unfinished download", "org/begun", 8192),
    ]


@pytest.mark.posix
def test_an_exported_graph_is_found_with_the_model_that_it_was_built_from(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_TIMESTAMP_STEP_SECONDS", -1.0)  # as if the files had been there for long
    files = {path.name: path.read_bytes() for path in (DATA / "bert").iterdir()}
    folder = write_repo(places.hub, "org/bert", files)
    snapshot = folder / "snapshots" / COMMIT
    own = ensure_graph(snapshot, cache_dir=places.own)
    of_nobody = ensure_graph(DATA / "electra", cache_dir=places.own)
    found = {each.path: each for each in look_into(places)}
    assert (found[own.parent].kind, found[own.parent].name) == ("exported graph", "org/bert")
    assert found[own.parent].size_bytes == sum(path.stat().st_size for path in own.parent.iterdir())
    assert found[of_nobody.parent].name == ""
    ready = prepare_graph(Source.of(own, machine="this one", cache_dir=places.own), save_optimized)
    found = {each.path: each for each in look_into(places)}
    assert (found[ready.parent].kind, found[ready.parent].name) == ("prepared graph", "org/bert")
    delete(chosen(look_into(places), ["org/bert"], made_here=False))
    assert [each.path for each in look_into(places)] == [of_nobody.parent]


@pytest.mark.posix
def test_links_cost_nothing_and_are_found_with_their_model(places: Places, tmp_path: Path) -> None:
    folder = write_repo(places.hub, "org/a", {"model.onnx": b"x" * 1000})
    links = folder / "onnx_snapshots" / COMMIT
    links.mkdir(parents=True)
    (links / MARK).touch()
    os.link(folder / "blobs" / "model.onnx-1111", links / "model.onnx")
    assert kinds(look_into(places)) == [("model", "org/a", 1000), ("links", "org/a", 0)]


@pytest.mark.posix
def test_clearing_a_model_takes_what_was_made_of_it_and_leaves_the_others(places: Places) -> None:
    """Also a copy of it, which has the same commit."""
    write_repo(places.hub, "Qdrant/bge-small-en")
    write_repo(places.hub, "org/other")
    ensure_graph(DATA / "electra", cache_dir=places.own)
    stored = look_into(places)
    what = chosen(stored, ["baai/BGE-small-en"], made_here=False)
    assert kinds(what) == [("model", "Qdrant/bge-small-en", 1)]
    delete(what)
    assert look_into(places) == [each for each in stored if each not in what]


@pytest.mark.posix
def test_what_was_made_here_can_go_without_any_model(places: Places) -> None:
    folder = write_repo(places.hub, "org/a")
    graph = ensure_graph(DATA / "electra", cache_dir=places.own)
    old, new = (folder / "blobs" / f"{name}.incomplete" for name in ("old", "new"))
    old.touch()
    new.touch()
    archive = places.hub / ".fast-model.0a1b2c3d.incomplete" / "archive.tar.gz"
    archive.parent.mkdir()
    archive.touch()
    for path in (old, archive):
        os.utime(path, (1, 1))
    delete(chosen(look_into(places), [], made_here=True))
    assert not graph.parent.exists()
    assert not old.exists()
    assert not archive.parent.exists()
    assert new.exists(), "somebody may be writing to it"
    assert kinds(look_into(places))[0] == ("model", "org/a", 1)


@pytest.mark.posix
def test_what_somebody_may_be_downloading_is_left_alone(places: Places) -> None:
    for repo in ("org/begun", "org/updated"):
        begun = places.hub / f"models--{repo.replace('/', '--')}" / "blobs" / "abc.asyncembed.incomplete"
        begun.parent.mkdir(parents=True)
        begun.touch()
    write_repo(places.hub, "org/updated")
    assert len(look_into(places)) == 4
    assert chosen(look_into(places), ["org/begun", "org/updated"], made_here=True) == []


@pytest.mark.posix
def test_a_repo_whose_name_huggingface_hub_misreads_is_found_by_it(places: Places) -> None:
    write_repo(places.hub, "org/very--good")
    (found,) = chosen(look_into(places), ["org/very--good"], made_here=False)
    assert found.name == "org/very/good"


@pytest.mark.posix
def test_a_model_on_another_disk_is_left_there(places: Places, tmp_path: Path) -> None:
    """Deleting the link alone would look as if the bytes were gone."""
    folder = write_repo(tmp_path / "elsewhere", "org/a")
    (places.hub / folder.name).symlink_to(folder)
    with pytest.raises(CacheNotWritableError, match="a link to"):
        delete(look_into(places))
    assert folder.exists()


def test_a_repo_is_known_by_the_names_of_the_catalogue() -> None:
    assert names_of("qdrant/bge-small-en") == ["BAAI/bge-small-en"]
    assert names_of("org/nothing") == []
