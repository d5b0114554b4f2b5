"""A cache that others write to: nothing behind a link is written, deleted or believed."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from asyncembed.catalogue.spec import HubOrigin
from asyncembed.errors import CacheNotWritableError, DownloadError, NotCachedError, UnexpectedAnswerError
from asyncembed.hub.cache import RepoCache
from asyncembed.hub.listing import RepoFile, Wanted
from asyncembed.hub.partial import Partial
from tests.hub.calls import download_files
from tests.hub.server import Fault, HubServer, Repo, blob_id
from tests.support import posix

pytestmark = pytest.mark.slow

REPO = "org/model"
FILES = {"config.json": b"{}", "onnx/model.onnx": b"graph" * 100}
COMMIT = "c" * 40
PRECIOUS = b"the victim's own"


@pytest.fixture(autouse=True)
def repo(hub: HubServer) -> Repo:
    hub.repos[REPO] = Repo(FILES, large=frozenset({"onnx/model.onnx"}))
    return hub.repos[REPO]


@pytest.fixture
def folder(cache: Path) -> Path:
    """The repo's place in the cache."""
    path = cache / "models--org--model"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory outside the cache, with what must stay as it is."""
    path = tmp_path / "victim"
    path.mkdir()
    for name in ("main", f"{COMMIT}.json", "config.json", blob_id(FILES["config.json"]), "model.onnx"):
        (path / name).write_bytes(PRECIOUS)
    return path


def assert_untouched(victim: Path) -> None:
    assert {path.read_bytes() for path in victim.iterdir()} == {PRECIOUS}
    assert len(list(victim.iterdir())) == 5


async def fetch_all(**keywords: object) -> Path:
    return await download_files([HubOrigin(REPO)], patterns=["*"], progress=False, **keywords)  # type: ignore[arg-type]


PLACES = ["blobs", "refs", "trees", "snapshots", f"snapshots/{COMMIT}", f"snapshots/{COMMIT}/onnx"]


@pytest.mark.posix
@pytest.mark.parametrize("place", PLACES)
async def test_nothing_is_written_behind_a_link_that_stands_for_a_directory(
    place: str, folder: Path, victim: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told in an error, or in a warning where all files of the model could be had."""
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).symlink_to(victim)
    assert f"{place} is a link" in await outcome(caplog)
    assert_untouched(victim)


@pytest.mark.posix
@pytest.mark.parametrize("place", PLACES)
async def test_nothing_is_deleted_behind_a_link_that_stands_for_a_directory(
    place: str, folder: Path, victim: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is behind it is not what the listing says, so `verify` would delete it."""
    await fetch_all()
    shutil.rmtree(folder / place)
    (folder / place).symlink_to(victim)
    await outcome(caplog, verify=True, local_files_only=True, required=["onnx/model.onnx"])
    assert f"{place} is a link" in await outcome(caplog, verify=True)
    assert_untouched(victim)


async def outcome(caplog: pytest.LogCaptureFixture, **keywords: object) -> str:
    """What the user is told."""
    try:
        await fetch_all(**keywords)
    except DownloadError as error:
        return str(error)
    return caplog.text


@pytest.mark.posix
@pytest.mark.parametrize("place", ["snapshots", f"snapshots/{COMMIT}"])
async def test_a_snapshot_that_is_a_link_is_not_used(place: str, folder: Path, tmp_path: Path) -> None:
    snapshot = await fetch_all()
    (folder / place).rename(tmp_path / "elsewhere")
    (folder / place).symlink_to(tmp_path / "elsewhere")
    assert snapshot.is_dir()
    with pytest.raises(NotCachedError):
        await fetch_all(local_files_only=True)


@pytest.mark.posix
async def test_a_model_that_its_user_moved_to_another_disk_is_used_and_completed(
    folder: Path, tmp_path: Path, hub: HubServer
) -> None:
    folder.rmdir()
    (tmp_path / "disk").mkdir()
    folder.symlink_to(tmp_path / "disk")
    snapshot = await fetch_all()
    assert (snapshot / "config.json").read_bytes() == FILES["config.json"]
    assert (tmp_path / "disk/refs/main").read_text("utf-8") == COMMIT


@pytest.mark.posix
@pytest.mark.skipif(not posix.is_root(), reason="only root can give a link away")
async def test_a_model_that_another_user_linked_elsewhere_is_not_written(folder: Path, victim: Path) -> None:
    folder.rmdir()
    folder.symlink_to(victim)
    posix.give_away(folder)
    with pytest.raises(CacheNotWritableError, match="is a link"):
        await fetch_all()
    assert_untouched(victim)


# ------------------------------------------------------------------ partial files and locks

CONTENT = bytes(range(256)) * 40
FILE = RepoFile("model.bin", len(CONTENT), blob_id(CONTENT))


def finish(blob: Path) -> None:
    partial = Partial(blob, FILE)
    partial.open()
    assert partial.ranges.total() == 0
    partial.write(0, [CONTENT])
    assert partial.is_verified()
    partial.finish(blob)
    assert blob.read_bytes() == CONTENT
    assert not blob.is_symlink()


@pytest.mark.posix
@pytest.mark.parametrize("kind", ["a link", "a dangling link", "a hard link", "a pipe", "a directory"])
def test_a_leftover_that_is_no_file_of_ours_is_never_opened(kind: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(PRECIOUS)
    blob = tmp_path / "blobs" / FILE.etag
    blob.parent.mkdir()
    leftover = blob.with_name(f"{blob.name}.asyncembed.incomplete")
    match kind:
        case "a link":
            leftover.symlink_to(precious)
        case "a dangling link":
            leftover.symlink_to(tmp_path / "new")
        case "a hard link":
            os.link(precious, leftover)
        case "a pipe":
            posix.make_pipe(leftover)
        case _:
            leftover.mkdir()
    finish(blob)
    assert precious.read_bytes() == PRECIOUS
    assert not (tmp_path / "new").exists()


@pytest.mark.posix
def test_a_link_at_the_very_name_of_a_partial_file_is_replaced(tmp_path: Path) -> None:
    """As when someone is quicker than the moment between finding a leftover and opening it."""
    precious = tmp_path / "precious"
    precious.write_bytes(PRECIOUS)
    partial = Partial(tmp_path / FILE.etag, FILE)
    partial.path.symlink_to(precious)
    partial.open()
    partial.write(0, [CONTENT])
    partial.finish(tmp_path / FILE.etag)
    assert precious.read_bytes() == PRECIOUS
    assert (tmp_path / FILE.etag).read_bytes() == CONTENT


@pytest.mark.posix
@pytest.mark.skipif(not posix.is_root(), reason="only root can give a file away")
def test_a_leftover_of_another_user_is_not_written_to(tmp_path: Path) -> None:
    blob = tmp_path / FILE.etag
    leftover = blob.with_name(f"{blob.name}.asyncembed.incomplete")
    leftover.write_bytes(bytes(2 * len(CONTENT)))
    posix.give_away(leftover)
    finish(blob)
    assert leftover.read_bytes() == bytes(2 * len(CONTENT))


@pytest.mark.posix
async def test_a_lock_that_is_a_link_empties_nothing(cache: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(PRECIOUS)
    lock = cache / ".locks/models--org--model" / f"{blob_id(FILES['config.json'])}.lock"
    lock.parent.mkdir(parents=True)
    lock.symlink_to(precious)
    with pytest.raises(DownloadError, match="the cache cannot be used"):
        await fetch_all()
    assert precious.read_bytes() == PRECIOUS


@pytest.mark.posix
@pytest.mark.parametrize("place", [".locks", ".locks/models--org--model"])
async def test_no_lock_is_made_behind_a_link(place: str, cache: Path, victim: Path) -> None:
    (cache / place).parent.mkdir(parents=True)
    (cache / place).symlink_to(victim)
    with pytest.raises(DownloadError, match="the cache cannot be used"):
        await fetch_all()
    assert_untouched(victim)


# ------------------------------------------------------------------ what a listing or a ref says


def write_listing(folder: Path, files: dict[str, dict[str, object]]) -> None:
    for name in ("trees", "refs", f"snapshots/{COMMIT}", "blobs"):
        (folder / name).mkdir(parents=True)
    (folder / "refs/main").write_text(COMMIT, "utf-8")
    (folder / f"trees/{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": files}), "utf-8")


async def test_an_unsafe_path_in_a_cached_listing_is_not_used(cache: Path, folder: Path, hub: HubServer) -> None:
    """What a download refuses is not taken from the cache either."""
    secret = folder / "snapshots/secret.json"
    name = "../secret.json"
    write_listing(folder, {name: {"size": 2, "blob_id": blob_id(b"{}")}})
    secret.write_bytes(b"{}")
    for required in ([], [name]):
        with pytest.raises(NotCachedError):
            await download_files([HubOrigin(REPO)], patterns=["*.json"], required=required, local_files_only=True)
    with pytest.raises(UnexpectedAnswerError, match="stored safely"):
        await download_files([HubOrigin(REPO)], patterns=["*.json"])


async def test_an_unsafe_path_is_not_used_without_a_listing(folder: Path) -> None:
    write_listing(folder, {})
    (folder / f"trees/{COMMIT}.json").unlink()
    (folder / "snapshots/secret.json").write_bytes(b"{}")
    with pytest.raises(NotCachedError, match="incomplete"):
        await download_files([HubOrigin(REPO)], patterns=[], required=["../secret.json"], local_files_only=True)


def test_a_hash_in_a_cached_listing_that_is_a_path_deletes_nothing(cache: Path, folder: Path) -> None:
    precious = cache / "precious"
    write_listing(folder, {"config.json": {"size": 9, "blob_id": "../../precious"}})
    precious.write_bytes(PRECIOUS)
    (folder / f"snapshots/{COMMIT}/config.json").write_bytes(b"{}")
    RepoCache(cache, REPO).drop_damaged("main", Wanted(("*",)))
    assert precious.read_bytes() == PRECIOUS


async def test_a_listing_that_names_a_file_outside_is_refused(hub: HubServer, cache: Path) -> None:
    entry = {"type": "file", "path": "../../escaped.json", "size": 2, "oid": blob_id(b"{}")}
    hub.faults.append(Fault("tree", status=200, body=json.dumps([entry]).encode()))
    with pytest.raises(UnexpectedAnswerError, match="stored safely"):
        await fetch_all()
    assert not list(cache.rglob("escaped.json"))


PIPES = """
import anyio, sys
from asyncembed.catalogue.spec import HubOrigin
from asyncembed.hub import HubAccess, download_files
from asyncembed.errors import NotCachedError
async def main():
    try:
        access = HubAccess(cache_dir=sys.argv[1], local_files_only=True)
        await download_files([HubOrigin("org/model")], access, patterns=["*"])
    except NotCachedError:
        pass
    print("done")
anyio.run(main)
"""


@pytest.mark.posix
@pytest.mark.parametrize("place", ["refs/main", f"trees/{COMMIT}.json"])
def test_a_pipe_in_the_cache_does_not_hang(place: str, cache: Path, folder: Path) -> None:
    write_listing(folder, {})
    (folder / place).unlink()
    posix.make_pipe(folder / place)
    told = subprocess.run([sys.executable, "-c", PIPES, str(cache)], capture_output=True, encoding="utf-8", timeout=60)
    assert told.stdout == "done\n", told.stderr


async def test_a_ref_without_end_is_ignored(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_listing(folder, {})
    (folder / "refs/main").write_text(COMMIT + "\n" * 2**20, "utf-8")
    assert RepoCache(folder.parent, REPO).read_ref("main") is None
