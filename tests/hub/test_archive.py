"""Files from a `.tar.gz` at any URL."""

import contextlib
import gzip
import io
import os
import random
import tarfile
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncembed.catalogue.spec import ArchiveOrigin, HubOrigin, ModelSpec
from asyncembed.errors import ArchiveError, DownloadError, NotCachedError, RepoFileNotFoundError
from asyncembed.hub import HubAccess
from asyncembed.hub.archive import extract
from asyncembed.hub.model_files import download_model
from tests.hub.calls import change_policy, download_files
from tests.hub.server import Fault, HubServer
from tests.support.external_data import graph_naming
from tests.support.waiting import until

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
def source(hub: HubServer) -> ArchiveOrigin:
    hub.archives["model.tar.gz"] = make_archive()
    return ArchiveOrigin(f"{hub.url}/archives/model.tar.gz", FOLDER)


def assert_whole(directory: Path, cache: Path) -> None:
    assert directory == cache / FOLDER
    files = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert files == {"model.onnx", "sub/config.json"}
    assert (directory / "model.onnx").read_bytes() == GRAPH
    assert {path.name for path in cache.iterdir()} == {FOLDER, ".locks"}


async def test_the_folder_of_an_archive_is_extracted(source: ArchiveOrigin, cache: Path, hub: HubServer) -> None:
    assert_whole(await download_files([source], patterns=["*"], required=["model.onnx"]), cache)
    hub.requests.clear()
    assert_whole(await download_files([source], patterns=["*"], required=["model.onnx"]), cache)
    assert hub.requests == []


async def test_an_archive_serves_where_the_hub_has_nothing(source: ArchiveOrigin, cache: Path) -> None:
    assert_whole(await download_files([HubOrigin("org/absent"), source], patterns=["*"]), cache)


async def test_an_archive_that_is_cut_is_begun_anew(source: ArchiveOrigin, cache: Path, hub: HubServer) -> None:
    hub.faults.append(Fault("content", times=3, cut_after=100_000))
    assert_whole(await download_files([source], patterns=["*"]), cache)
    assert [request.headers.get("Range") for request in hub.of_route("content")] == [None] * 4


async def test_what_a_killed_process_has_left_goes_with_the_next_download(source: ArchiveOrigin, cache: Path) -> None:
    old, new, other = (cache / f".{name}.incomplete" for name in (f"{FOLDER}.0a1b2c3d", f"{FOLDER}.0a1b2c3e", "a.0"))
    for folder in (old, new, other):
        folder.mkdir(parents=True)
        (folder / "archive.tar.gz").write_bytes(GRAPH)
    for path in (old / "archive.tar.gz", old, other):
        os.utime(path, (1, 1))
    await download_files([source], patterns=["*"])
    assert {path.name for path in cache.iterdir()} == {FOLDER, ".locks", new.name, other.name}


async def test_bytes_that_came_wrong_are_told(source: ArchiveOrigin, hub: HubServer) -> None:
    """By the checksum that every gzip carries; no store need tell one."""
    hub.archives["model.tar.gz"] = BAD["a wrong checksum"]
    with pytest.raises(ArchiveError, match="damaged"):
        await download_files([source], patterns=["*"])


async def test_a_half_extracted_folder_of_another_tool_is_replaced(source: ArchiveOrigin, cache: Path) -> None:
    (cache / FOLDER / "sub").mkdir(parents=True)
    (cache / FOLDER / "sub/config.json").write_bytes(b"half")
    assert_whole(await download_files([source], patterns=["*"], required=["model.onnx"]), cache)


async def test_what_else_is_in_a_folder_of_the_archives_name_stays(source: ArchiveOrigin, cache: Path) -> None:
    """A cache may be any directory of the user's, and the folder in it his own."""
    (cache / FOLDER / "sub").mkdir(parents=True)
    (cache / FOLDER / "sub/config.json").write_bytes(b"half")
    (cache / FOLDER / "notes.txt").write_bytes(b"the only copy")
    directory = await download_files([source], patterns=["*"], required=["model.onnx"])
    assert (directory / "notes.txt").read_bytes() == b"the only copy"
    assert (directory / "sub/config.json").read_bytes() == b"{}"


@pytest.mark.posix
async def test_an_archive_is_not_extracted_through_a_link(source: ArchiveOrigin, cache: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (cache / FOLDER).mkdir(parents=True)
    (cache / FOLDER / "sub").symlink_to(elsewhere)
    with pytest.raises(DownloadError, match="is a link out of"):
        await download_files([source], patterns=["*"], required=["model.onnx"])
    assert not list(elsewhere.iterdir())


async def test_the_graph_of_an_archive_says_which_files_it_needs(hub: HubServer, cache: Path) -> None:
    def add_graph(archive: tarfile.TarFile) -> None:
        add(archive, f"{FOLDER}/graph.onnx", graph_naming("weights", "absent"))
        add(archive, f"{FOLDER}/weights", b"weights")

    hub.archives["named.tar.gz"] = make_archive(add_graph)
    source = ArchiveOrigin(f"{hub.url}/archives/named.tar.gz", FOLDER)
    spec = ModelSpec(name="x", family="text", encoder="dense", sources=(source,), model_file="graph.onnx")
    with pytest.raises(RepoFileNotFoundError, match="absent"):
        await download_model(spec, HubAccess(progress=False))
    (cache / FOLDER / "absent").write_bytes(b"weights")
    assert await download_model(spec, HubAccess(local_files_only=True)) == cache / FOLDER


async def test_an_archive_that_is_gone_is_told_at_once(source: ArchiveOrigin, hub: HubServer) -> None:
    hub.archives.clear()
    with pytest.raises(DownloadError, match="404"):
        await download_files([source], patterns=["*"])
    assert len(hub.requests) == 1


async def test_offline_and_not_there(source: ArchiveOrigin, hub: HubServer) -> None:
    with pytest.raises(NotCachedError):
        await download_files([source], patterns=["*"], local_files_only=True)
    assert hub.requests == []


async def test_a_folder_without_a_required_file_is_named(source: ArchiveOrigin) -> None:
    with pytest.raises(RepoFileNotFoundError, match=r"absent\.json"):
        await download_files([source], patterns=["*"], required=["absent.json"])


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
        await download_files([ArchiveOrigin(f"{hub.url}/archives/bad.tar.gz", FOLDER)], patterns=["*"])
    assert {path.name for path in cache.iterdir()} == {".locks"}


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header that says whatever one likes, also of the size of what follows."""
    member = tarfile.TarInfo(name)
    member.size = size
    member.type = kind
    return member.tobuf(tarfile.GNU_FORMAT)


def pax(keywords: dict[str, str]) -> bytes:
    return tarfile.TarInfo.create_pax_global_header(keywords)


def zeros(size_mb: int, start: bytes = b"", end: bytes = b"") -> bytes:
    """A gzip that expands a thousandfold."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [start, *[bytes(2**20)] * size_mb, end]
    return b"".join([*map(packer.compress, parts), packer.flush()])


whole = io.BytesIO(gzip.decompress(make_archive())).read().rstrip(b"\0") + bytes(1024)

HOSTILE: dict[str, Callable[[], bytes]] = {
    "a name of 300 MB": lambda: zeros(300, header("x", 300 * 2**20, tarfile.GNUTYPE_LONGNAME)),
    "a link's name of 300 MB": lambda: zeros(300, header("x", 300 * 2**20, tarfile.GNUTYPE_LONGLINK)),
    "keywords of 300 MB": lambda: zeros(300, header("x", 300 * 2**20, tarfile.XHDTYPE)),
    "keywords for all of 300 MB": lambda: zeros(300, header("x", 300 * 2**20, tarfile.XGLTYPE)),
    "a name that says it has 8 GB": lambda: gzip.compress(header("x", 2**33, tarfile.GNUTYPE_LONGNAME)),
    "a name of a negative size": lambda: gzip.compress(header("x", -512, tarfile.GNUTYPE_LONGNAME)),
    "a file of a negative size": lambda: gzip.compress(header(f"{FOLDER}/x", -512) + whole),
    "500 MB outside the folder": lambda: zeros(500, header("other/x", 500 * 2**20), whole),
    "500 MB in the folder": lambda: zeros(500, header(f"{FOLDER}/x", 500 * 2**20), whole),
    "500 MB behind the end": lambda: zeros(500, whole),
    "a hole of 8 EB": lambda: gzip.compress(sparse_header(2**62)),
    "a list of holes without end": lambda: zeros(300, sparse_header(2**30, goes_on=True)),
    "a map of holes without end": lambda: zeros(
        300, pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": f"{FOLDER}/x"})
        + header(f"{FOLDER}/x", 300 * 2**20) + b"9999999\n0\n"
    ),
    "5,000 names of the same file": lambda: gzip.compress(
        b"".join(header("x", 1, tarfile.GNUTYPE_LONGNAME) + b"x".ljust(512, b"\0") for _ in range(5000)) + whole
    ),
    "a size of 5,000 digits": lambda: gzip.compress(pax({"size": "9" * 2000}) + whole),
    "a size that is endless": lambda: gzip.compress(pax({"size": "1e999"}) + header(f"{FOLDER}/x", 4)),
}  # fmt: skip


def sparse_header(size: int, *, goes_on: bool = False) -> bytes:
    """GNU's: real size, and whether more of the list of holes follows."""
    raw = bytearray(header(f"{FOLDER}/x", 0, tarfile.GNUTYPE_SPARSE))
    raw[482] = goes_on
    raw[483:495] = b"\x80\0\0\0" + size.to_bytes(8, "big")
    raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + sum(raw[156:]) + 8 * 32)
    return bytes(raw)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_soon_and_in_little_memory(name: str, tmp_path: Path) -> None:
    archive = tmp_path / "model.tar.gz"
    archive.write_bytes(HOSTILE[name]())
    started = time.process_time()
    tracemalloc.start()
    with pytest.raises(ArchiveError):
        extract(archive, tmp_path / "into", FOLDER, "the archive")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 16 * 2**20
    assert time.process_time() - started < 5
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 128 * 2**20


def test_an_archive_may_hold_other_folders_too(tmp_path: Path) -> None:
    archive = tmp_path / "model.tar.gz"
    archive.write_bytes(make_archive(lambda archive: add(archive, "README", GRAPH)))
    extract(archive, tmp_path / "into", FOLDER, "the archive")
    assert [path.name for path in (tmp_path / "into").iterdir()] == [FOLDER]


def test_long_names_are_names(tmp_path: Path) -> None:
    name = "/".join(["part" * 40] * 5)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz", format=form) as archive:
            add(archive, f"{FOLDER}/{name}", b"content")
        (tmp_path / "model.tar.gz").write_bytes(file.getvalue())
        extract(tmp_path / "model.tar.gz", tmp_path / str(form), FOLDER, "the archive")
        assert (tmp_path / str(form) / FOLDER / name).read_bytes() == b"content"


@given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=6), st.integers(0, 8000))
@settings(max_examples=150, deadline=None)
def test_an_archive_of_any_bytes_is_extracted_or_refused(changes: list[tuple[int, int]], kept: int) -> None:
    content = bytearray(whole)
    for position, value in changes:
        # Mostly in the headers, where the numbers are.
        content[position % 2048 if value % 2 else position] = value
    with tempfile.TemporaryDirectory() as name:
        archive = Path(name, "model.tar.gz")
        archive.write_bytes(gzip.compress(content[: len(content) - kept], 1))
        with contextlib.suppress(ArchiveError, OSError):
            extract(archive, Path(name, "into"), FOLDER, "the archive")
        assert {path.name for path in Path(name).iterdir()} <= {"model.tar.gz", "into"}


async def test_an_endless_archive_is_given_up(
    source: ArchiveOrigin, hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_policy(monkeypatch, archive_limit_bytes=300_000)
    for fault in (Fault("content", no_length=True), Fault("content")):
        hub.faults.append(fault)
        with pytest.raises(ArchiveError, match="larger than 300,000 bytes"):
            await download_files([source], patterns=["*"])
    assert {path.name for path in cache.iterdir()} == {".locks"}


async def test_the_extraction_of_an_archive_can_be_cancelled(hub: HubServer, cache: Path) -> None:
    """Half a gigabyte, of which a few megabytes are extracted when the download's scope is cancelled."""
    noise = random.Random(5).randbytes(6 * 2**20)  # else it is refused for what it expands to
    hub.archives["large.tar.gz"] = zeros(500, noise_archive(noise))
    extracting = False

    async def watch() -> None:
        nonlocal extracting
        await until(lambda: bool(list(cache.glob(f".{FOLDER}.*/{FOLDER}/noise"))))
        extracting = True
        group.cancel_scope.cancel()

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await download_files(
            [ArchiveOrigin(f"{hub.url}/archives/large.tar.gz", FOLDER)], patterns=["*"], progress=False
        )
        group.cancel_scope.cancel()
    assert extracting
    assert group.cancel_scope.cancelled_caught
    assert {path.name for path in cache.iterdir()} == {".locks"}
    assert time.perf_counter() - started < 60


def noise_archive(noise: bytes) -> bytes:
    padding = bytes(-len(noise) % 512)
    return header(f"{FOLDER}/noise", len(noise)) + noise + padding + header(f"{FOLDER}/big", 500 * 2**20)
