"""Files from a `.tar.gz` at any URL."""

import base64
import gzip
import hashlib
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncembed.catalogue.spec import ArchiveSource, HubSource
from asyncembed.errors import ArchiveError, CorruptFileError, DownloadError, NotCachedError, RepoFileNotFoundError
from asyncembed.hub import fetch
from asyncembed.hub.archive import extract
from tests.hub.server import Fault, HubServer

pytestmark = pytest.mark.slow

FOLDER = "fast-model"
GRAPH = random.Random(4).randbytes(400_000)


def make_archive(change: Callable[[tarfile.TarFile], None] | None = None) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in {"model.onnx": GRAPH, "._model.onnx": b"finder", "sub/config.json": b"{}"}.items():
            add(archive, f"./{FOLDER}/{name}", content)
        if change is not None:
            change(archive)
    return file.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.type = kind
    member.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def source(hub: HubServer) -> ArchiveSource:
    hub.archives["model.tar.gz"] = make_archive()
    return ArchiveSource(f"{hub.url}/archives/model.tar.gz", FOLDER)


def assert_whole(directory: Path, cache: Path) -> None:
    assert directory == cache / FOLDER
    files = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert files == {"model.onnx", "sub/config.json"}
    assert (directory / "model.onnx").read_bytes() == GRAPH
    assert {path.name for path in cache.iterdir()} == {FOLDER, ".locks"}


async def test_the_folder_of_an_archive_is_extracted(source: ArchiveSource, cache: Path, hub: HubServer) -> None:
    assert_whole(await fetch([source], patterns=["*"], required=["model.onnx"]), cache)
    hub.requests.clear()
    assert_whole(await fetch([source], patterns=["*"], required=["model.onnx"]), cache)
    assert hub.requests == []


async def test_an_archive_serves_where_the_hub_has_nothing(source: ArchiveSource, cache: Path) -> None:
    assert_whole(await fetch([HubSource("org/absent"), source], patterns=["*"]), cache)


async def test_a_cut_archive_is_resumed_if_it_is_still_the_same(
    source: ArchiveSource, cache: Path, hub: HubServer
) -> None:
    hub.archive_headers = {"ETag": '"v1"'}
    hub.faults.append(Fault("content", times=3, cut_after=100_000))
    assert_whole(await fetch([source], patterns=["*"]), cache)
    assert [request.headers.get("Range") for request in hub.of_route("content")] == [
        None,
        "bytes=100000-",
        "bytes=200000-",
        "bytes=300000-",
    ]


async def test_an_archive_without_etag_is_started_anew(source: ArchiveSource, cache: Path, hub: HubServer) -> None:
    hub.faults.append(Fault("content", times=2, cut_after=100_000))
    assert_whole(await fetch([source], patterns=["*"]), cache)


async def test_the_stores_own_hash_is_checked(source: ArchiveSource, hub: HubServer) -> None:
    digest = base64.b64encode(hashlib.md5(b"something else").digest()).decode()
    hub.archive_headers = {"x-goog-hash": f"crc32c=AAAAAA==,md5={digest}"}
    with pytest.raises(CorruptFileError):
        await fetch([source], patterns=["*"])


async def test_a_half_extracted_folder_of_another_tool_is_replaced(source: ArchiveSource, cache: Path) -> None:
    (cache / FOLDER).mkdir(parents=True)
    (cache / FOLDER / "config.json").write_bytes(b"{}")
    assert_whole(await fetch([source], patterns=["*"], required=["model.onnx"]), cache)


async def test_an_archive_that_is_gone_is_told_at_once(source: ArchiveSource, hub: HubServer) -> None:
    hub.archives.clear()
    with pytest.raises(DownloadError, match="404"):
        await fetch([source], patterns=["*"])
    assert len(hub.requests) == 1


async def test_offline_and_not_there(source: ArchiveSource, hub: HubServer) -> None:
    with pytest.raises(NotCachedError):
        await fetch([source], patterns=["*"], local_files_only=True)
    assert hub.requests == []


async def test_a_folder_without_a_required_file_is_named(source: ArchiveSource) -> None:
    with pytest.raises(RepoFileNotFoundError, match=r"absent\.json"):
        await fetch([source], patterns=["*"], required=["absent.json"])


BAD: dict[str, bytes] = {
    "a parent": make_archive(lambda archive: add(archive, f"{FOLDER}/../../evil", b"x")),
    "an absolute name": make_archive(lambda archive: add(archive, "/evil", b"x")),
    "a backslash": make_archive(lambda archive: add(archive, FOLDER + "\\..\\evil", b"x")),
    "a symlink": make_archive(lambda archive: add(archive, f"{FOLDER}/link", kind=tarfile.SYMTYPE)),
    "a hard link": make_archive(lambda archive: add(archive, f"{FOLDER}/link", kind=tarfile.LNKTYPE)),
    "a device": make_archive(lambda archive: add(archive, f"{FOLDER}/device", kind=tarfile.CHRTYPE)),
    "a file twice": make_archive(lambda archive: add(archive, f"{FOLDER}/model.onnx", b"x")),
    "an error page": b"<html>Access denied</html>",
    "cut": make_archive()[:-100_000],
    "cut in the checksum": make_archive()[:-8],
    "a wrong checksum": make_archive()[:-8] + bytes(8),
    "another folder": gzip.compress(b"\0" * 10240),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_archive_is_refused(name: str, tmp_path: Path) -> None:
    archive = tmp_path / "model.tar.gz"
    archive.write_bytes(BAD[name])
    with pytest.raises(ArchiveError):
        extract(archive, tmp_path / "into", FOLDER, "the archive")
    assert not list(tmp_path.rglob("*evil*"))


async def test_nothing_of_a_bad_archive_stays(hub: HubServer, cache: Path) -> None:
    hub.archives["bad.tar.gz"] = BAD["cut in the checksum"]
    with pytest.raises(ArchiveError):
        await fetch([ArchiveSource(f"{hub.url}/archives/bad.tar.gz", FOLDER)], patterns=["*"])
    assert {path.name for path in cache.iterdir()} == {".locks"}
