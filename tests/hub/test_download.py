"""Many files at once, large ones in ranges, resumed from what is there, each file once."""

import asyncio
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncembed.catalogue.spec import HubOrigin
from asyncembed.hub import BytesReceived, ProgressEvent, download
from asyncembed.hub.listing import RepoFile
from asyncembed.hub.partial import ByteRanges, Partial, allocated_bytes
from tests.hub.calls import change_policy, download_files
from tests.hub.server import Fault, HubServer, Repo, blob_id

REPO = "org/large"
SIZE = 4_000_037
WEIGHTS = random.Random(1).randbytes(SIZE)


@pytest.fixture(autouse=True)
def _small_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few megabytes stand for a gigabyte."""
    change_policy(
        monkeypatch,
        split_minimum_bytes=2**20,
        stream_minimum_bytes=2**18,
        write_bytes=2**16,
        progress_minimum_bytes=2**12,
    )


@pytest.fixture
def repo(hub: HubServer) -> Repo:
    hub.repos[REPO] = Repo({"model.onnx": WEIGHTS, "config.json": b"{}"}, large=frozenset({"model.onnx"}))
    return hub.repos[REPO]


async def fetch_weights() -> bytes:
    snapshot = await download_files([HubOrigin(REPO)], patterns=["model.onnx"], progress=False)
    return (snapshot / "model.onnx").read_bytes()


def ranges_asked(hub: HubServer) -> list[str]:
    return [request.headers.get("Range", "all") for request in hub.of_route("content")]


@pytest.mark.slow
async def test_a_large_file_comes_in_ranges_over_one_signed_url(repo: Repo, hub: HubServer) -> None:
    assert await fetch_weights() == WEIGHTS
    assert len(ranges_asked(hub)) == download.CONNECTIONS
    assert len(set(ranges_asked(hub))) == download.CONNECTIONS
    assert len(hub.of_route("resolve")) == 1
    assert len({request.query for request in hub.of_route("content")}) == 1


@pytest.mark.slow
async def test_a_file_too_small_to_split_comes_in_one_stream(
    repo: Repo, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_policy(monkeypatch, split_minimum_bytes=SIZE + 1)
    assert await fetch_weights() == WEIGHTS
    assert ranges_asked(hub) == ["all"]


@pytest.mark.slow
async def test_no_more_connections_than_allowed_are_open_at_once(hub: HubServer) -> None:
    """Twenty files and two repos at once; the server holds every answer until all that can come have come."""
    for name in ("org/a", "org/b"):
        hub.repos[name] = Repo({f"{n}.json": b"%d" % n for n in range(20)})
    hub.small_files_redirect = False
    gate = threading.Event()
    hub.faults.append(Fault("resolve", times=1000, hold=gate))
    async with anyio.create_task_group() as group:
        for name in ("org/a", "org/b"):
            group.start_soon(partial(download_files, [HubOrigin(name)], patterns=["*"], progress=False))
        while len(hub.of_route("resolve")) < download.CONNECTIONS:
            await anyio.lowlevel.checkpoint()
        for _ in range(200):
            await anyio.lowlevel.checkpoint()
        assert len(hub.of_route("resolve")) == download.CONNECTIONS
        gate.set()
    assert len(hub.of_route("resolve")) == 40


@pytest.mark.slow
async def test_a_cancelled_download_resumes_where_it_was(repo: Repo, hub: HubServer, cache: Path) -> None:
    hub.faults.append(Fault("content", times=8, stall_after=300_000))
    received: list[int] = []
    with anyio.CancelScope() as scope:

        def watch(event: ProgressEvent) -> None:
            if isinstance(event, BytesReceived):
                received.append(event.received_bytes)
                if event.received_bytes > 2_000_000:
                    scope.cancel()

        await download_files([HubOrigin(REPO)], patterns=["model.onnx"], progress=watch)
    assert scope.cancelled_caught
    assert not (cache / "models--org--large/refs/main").exists()
    assert not list((cache / "models--org--large/snapshots").rglob("model.onnx"))
    hub.faults.clear()
    hub.requests.clear()
    assert await fetch_weights() == WEIGHTS
    assert asked_bytes(hub) <= SIZE - 2_000_000


def asked_bytes(hub: HubServer) -> int:
    total = 0
    for request in hub.of_route("content"):
        if "onnx" not in request.path:
            continue
        start, _, end = request.headers.get("Range", f"bytes=0-{SIZE - 1}").removeprefix("bytes=").partition("-")
        total += (int(end) if end else SIZE - 1) + 1 - int(start)
    return total


CHILD = """
import sys, anyio
from huggingface_hub import constants
from asyncembed.catalogue.spec import HubOrigin
from asyncembed.hub import BytesReceived, DownloadPolicy, HubAccess, download_files
constants.ENDPOINT = sys.argv[1]
constants.HF_HUB_DISABLE_TELEMETRY = True
policy = DownloadPolicy(split_minimum_bytes=2**20, stream_minimum_bytes=2**18, write_bytes=2**16)
def watch(event):
    if isinstance(event, BytesReceived):
        print(event.received_bytes, flush=True)
async def main():
    access = HubAccess(cache_dir=sys.argv[2], token=False, progress=watch, policy=policy)
    await download_files([HubOrigin(sys.argv[3])], access, patterns=["*"])
anyio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("route", ["info", "tree", "resolve", "content"])
async def test_a_download_can_be_cancelled_wherever_it_waits(
    route: str, repo: Repo, hub: HubServer, cache: Path
) -> None:
    """Nothing becomes visible, no lock stays held, and the next one works."""
    gate = threading.Event()
    hub.faults.append(Fault(route, times=8, hold=gate))
    async with anyio.create_task_group() as group:
        group.start_soon(fetch_weights)
        while not hub.of_route(route):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    gate.set()
    hub.faults.clear()
    assert not list(cache.rglob("snapshots/*/*"))
    assert not list(cache.rglob("refs/*"))
    with anyio.fail_after(20):
        assert await fetch_weights() == WEIGHTS
    assert not list(cache.rglob("*.incomplete"))


@pytest.mark.slow
def test_asyncios_own_cancellation_leaves_what_resumes_too(repo: Repo, hub: HubServer, cache: Path) -> None:
    """`asyncio.wait_for` cancels tasks without anyio's scopes."""
    hub.faults.append(Fault("content", times=8, path="onnx", stall_after=300_000))

    async def give_up() -> None:
        enough = asyncio.Event()

        def watch(event: ProgressEvent) -> None:
            if isinstance(event, BytesReceived) and event.received_bytes > 2_000_000:
                enough.set()

        task = asyncio.create_task(download_files([HubOrigin(REPO)], patterns=["model.onnx"], progress=watch))
        await enough.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    (left,) = cache.rglob("*.incomplete")
    assert left.name.endswith(".asyncembed.incomplete")
    hub.faults.clear()
    hub.requests.clear()
    assert anyio.run(fetch_weights) == WEIGHTS
    assert asked_bytes(hub) <= SIZE - 2_000_000


@pytest.mark.slow
def test_ctrl_c_in_a_shell_leaves_what_the_next_one_resumes(repo: Repo, hub: HubServer, cache: Path) -> None:
    hub.faults.append(Fault("content", times=8, path="onnx", stall_after=300_000))

    with subprocess.Popen(
        [sys.executable, "-c", CHILD, hub.url, str(cache), REPO],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) > 2_000_000:
                break
        child.send_signal(signal.SIGINT)
        _, complaints = child.communicate()
    assert "KeyboardInterrupt" in complaints
    (left,) = cache.rglob("*.incomplete")
    assert left.name.endswith(".asyncembed.incomplete")  # let go of, not torn off
    hub.faults.clear()
    hub.requests.clear()
    assert anyio.run(fetch_weights) == WEIGHTS
    assert asked_bytes(hub) <= SIZE - 2_000_000


@pytest.mark.slow
def test_a_killed_process_leaves_what_the_next_one_resumes(repo: Repo, hub: HubServer, cache: Path) -> None:
    hub.faults.append(Fault("content", times=8, path="onnx", stall_after=300_000))

    with subprocess.Popen(
        [sys.executable, "-c", CHILD, hub.url, str(cache), REPO], stdout=subprocess.PIPE, encoding="utf-8"
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) > 2_000_000:
                break
        child.kill()
    hub.faults.clear()
    hub.requests.clear()
    anyio.run(partial(download_files, [HubOrigin(REPO)], patterns=["*"], progress=False))
    assert anyio.run(fetch_weights) == WEIGHTS
    assert asked_bytes(hub) <= SIZE - 2_000_000
    assert not list(cache.rglob("*.incomplete"))


@pytest.mark.slow
def test_several_processes_on_one_cold_cache_transfer_each_file_once(repo: Repo, hub: HubServer, cache: Path) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, hub.url, str(cache), REPO], stdout=subprocess.DEVNULL)
        for _ in range(3)
    ]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    hub_requests = len(hub.of_route("content"))
    assert anyio.run(fetch_weights) == WEIGHTS
    assert hub_requests == download.CONNECTIONS + 1


@pytest.mark.slow
def test_processes_without_working_locks_still_get_it_right(repo: Repo, hub: HubServer, cache: Path) -> None:
    """On some network file systems every process gets every lock."""
    child = "import fcntl; fcntl.flock = lambda *a: None\n" + CHILD

    children = [
        subprocess.Popen([sys.executable, "-c", child, hub.url, str(cache), REPO], stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait(60) for process in children] == [0, 0]
    assert anyio.run(fetch_weights) == WEIGHTS


@pytest.mark.slow
async def test_callers_at_once_download_each_file_once(repo: Repo, hub: HubServer) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(fetch_weights)
    assert asked_bytes(hub) == SIZE
    assert len(hub.of_route("info")) == 1


@pytest.mark.slow
async def test_callers_with_different_wishes_share_a_file(repo: Repo, hub: HubServer) -> None:
    async with anyio.create_task_group() as group:
        for patterns in (["*"], ["model.onnx"], ["*.onnx"]):
            group.start_soon(partial(download_files, [HubOrigin(REPO)], patterns=patterns, progress=False))
    assert len(hub.of_route("content")) == download.CONNECTIONS + 1


@pytest.mark.slow
async def test_cancelling_one_caller_leaves_the_other_its_download(repo: Repo, hub: HubServer) -> None:
    hub.faults.append(Fault("content", times=8, stall_after=300_000))
    results: list[bytes] = []
    first = anyio.CancelScope()
    started = anyio.Event()

    def watch(event: ProgressEvent) -> None:
        if isinstance(event, BytesReceived) and event.received_bytes > 2_000_000:
            started.set()

    async def give_up() -> None:
        with first:
            await download_files([HubOrigin(REPO)], patterns=["model.onnx"], progress=watch)

    async def persist() -> None:
        results.append(await fetch_weights())

    async with anyio.create_task_group() as group:
        group.start_soon(give_up)
        await started.wait()
        group.start_soon(persist)
        await anyio.wait_all_tasks_blocked()
        hub.faults.clear()
        first.cancel()
    assert first.cancelled_caught
    assert results == [WEIGHTS]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted), max_size=30))
def test_ranges_are_a_set_of_offsets(stretches: list[list[int]]) -> None:
    ranges, expected = ByteRanges(), set[int]()
    for start, end in stretches:
        new = ranges.add(start, end)
        assert new == len(set(range(start, end)) - expected)
        expected |= set(range(start, end))
    assert ranges.total() == len(expected)
    missing = {offset for start, end in ranges.gaps(60) for offset in range(start, end)}
    assert missing == set(range(60)) - expected


@given(
    order=st.permutations(list(range(0, 1000, 100))),
    lost=st.integers(0, 9),
    torn=st.integers(0, 45),
)
@settings(max_examples=40, deadline=None)
def test_a_resumed_file_equals_an_unbroken_one(order: list[int], lost: int, torn: int) -> None:
    """Whatever came before a crash, in whatever order, and however much of the journal the crash tore off."""
    import tempfile

    content = random.Random(2).randbytes(1000)
    file = RepoFile("model.bin", 1000, blob_id(content))
    with tempfile.TemporaryDirectory() as folder:
        blob = Path(folder, file.etag)
        crashed = Partial(blob, file)
        crashed.open()
        for offset in order[lost:]:
            crashed.write(offset, [content[offset : offset + 100]])
        crashed.release()
        for path in Path(folder).iterdir():
            os.truncate(path, max(1000, path.stat().st_size - torn))
        resumed = Partial(blob, file)
        resumed.open()
        for start, end in resumed.ranges.gaps(1000):
            resumed.write(start, [content[start:end]])
        while resumed.hash_more():
            pass
        assert resumed.is_verified()
        resumed.finish(blob)
        assert blob.read_bytes() == content
        assert list(Path(folder).iterdir()) == [blob]


def test_what_a_file_takes_of_its_disk_is_known_on_windows_too(tmp_path: Path) -> None:
    """There an `os.stat_result` does not tell how many blocks a file has."""
    path = tmp_path / "file"
    path.write_bytes(bytes(5000))
    status = path.stat()
    assert allocated_bytes(os.stat_result(status[:10])) == 5000
    assert 0 <= allocated_bytes(status) < 100_000


def test_a_partial_file_is_never_as_long_as_the_file(tmp_path: Path) -> None:
    content = b"x" * 1000
    file = RepoFile("model.bin", 1000, blob_id(content))
    partial = Partial(tmp_path / file.etag, file)
    partial.open()
    partial.write(500, [content[:500]])
    partial.release()
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".incomplete")
    assert left.stat().st_size > 1000


def test_a_partial_file_in_use_is_not_taken_over(tmp_path: Path) -> None:
    file = RepoFile("model.bin", 4, blob_id(b"abcd"))
    first, second = Partial(tmp_path / file.etag, file), Partial(tmp_path / file.etag, file, is_locked=False)
    first.open()
    first.write(0, [b"ab"])
    second.open()
    assert second.ranges.total() == 0
    assert first.path != second.path
    first.release()
    second.release()


@pytest.mark.parametrize(
    ("began", "goes_on", "is_taken_over"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_only_who_holds_the_lock_takes_over_what_another_holder_began(
    began: bool, goes_on: bool, is_taken_over: bool, tmp_path: Path
) -> None:
    """As a killed process leaves it: nobody let go of it."""
    file = RepoFile("model.bin", 4, blob_id(b"abcd"))
    killed = Partial(tmp_path / file.etag, file, is_locked=began)
    killed.open()
    killed.write(0, [b"ab"])
    killed._close()
    next_one = Partial(tmp_path / file.etag, file, is_locked=goes_on)
    next_one.open()
    assert next_one.ranges.total() == 2 * is_taken_over
    assert killed.path.exists() != is_taken_over
    next_one.release()


def test_what_one_without_the_lock_began_is_taken_over_after_a_while(tmp_path: Path) -> None:
    file = RepoFile("model.bin", 4, blob_id(b"abcd"))
    killed = Partial(tmp_path / file.etag, file, is_locked=False)
    killed.open()
    killed.write(0, [b"ab"])
    killed._close()
    os.utime(killed.path, (0, 0))
    next_one = Partial(tmp_path / file.etag, file)
    next_one.open()
    assert next_one.ranges.total() == 2
    next_one.release()


def test_an_unfinished_file_of_another_tool_is_not_adopted(tmp_path: Path) -> None:
    file = RepoFile("model.bin", 4, blob_id(b"abcd"))
    foreign = tmp_path / f"{file.etag}.0a1b2c3d.incomplete"
    foreign.write_bytes(b"\0\0\0\0")
    partial = Partial(tmp_path / file.etag, file)
    partial.open()
    assert partial.ranges.total() == 0
    partial.write(0, [b"abcd"])
    partial.finish(tmp_path / file.etag)
    assert foreign.exists()  # it may still be in use
    assert (tmp_path / file.etag).read_bytes() == b"abcd"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.slow
async def test_files_get_the_mode_that_the_umask_gives(repo: Repo, umask: None, cache: Path) -> None:
    await fetch_weights()
    modes = {path.stat().st_mode & 0o777 for path in cache.rglob("*") if path.is_file()}
    assert modes == {0o664}


def forged(folder: Path, records: list[tuple[int, int]]) -> tuple[Path, RepoFile]:
    """A leftover whose journal says whatever one likes, and the file that it seems to be of."""
    file = RepoFile("model.bin", 2**30, blob_id(b"a gigabyte"))
    blob = folder / file.etag
    with blob.with_name(f"{blob.name}.asyncembed.incomplete").open("wb") as leftover:
        leftover.truncate(2**30)
        leftover.seek(2**30)
        for start, end in records:
            stretch = struct.pack(">QQ", start, end)
            leftover.write(stretch + struct.pack(">I", zlib.crc32(stretch)))
    return blob, file


@pytest.mark.parametrize(
    "records",
    [
        lambda: [(2 * n, 2 * n + 1) for n in range(100_000)],  # as many gaps, each of which would be a request
        lambda: [(2 * n, 2 * n + 1) for n in range(1_000_000)],
        lambda: [(0, 2**30)] * 1_000_000,
    ],
    ids=["many gaps", "many more", "the same one"],
)
@pytest.mark.slow
def test_a_journal_that_no_download_wrote_counts_for_nothing(
    records: Callable[[], list[tuple[int, int]]], tmp_path: Path
) -> None:
    blob, file = forged(tmp_path, records())
    partial = Partial(blob, file)
    started = time.process_time()
    partial.open()
    assert time.process_time() - started < 2
    assert partial.ranges.total() == 0
    assert partial.path.stat().st_size == 0
    partial.discard()


@pytest.mark.slow
def test_a_journal_of_many_writes_is_believed(tmp_path: Path) -> None:
    """A megabyte each, in any order: as many as a file of 80 GB has."""
    order = random.Random(6).sample(range(900), 900)
    blob, file = forged(tmp_path, [(n * 2**20, (n + 1) * 2**20) for n in order] + [(0, 2**20)] * 80_000)
    partial = Partial(blob, file)
    partial.open()
    assert partial.ranges.gaps(2**30) == [(900 * 2**20, 2**30)]
    partial.discard()


@pytest.mark.slow
class TestLaggards:
    @pytest.fixture(autouse=True)
    def _soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A quarter of a second stands for five, and so on."""
        change_policy(monkeypatch, watch_seconds=0.05, lag_seconds=0.25, long_seconds=0.5)

    async def test_other_connections_take_over_the_rest_of_one_that_trickles(self, repo: Repo, hub: HubServer) -> None:
        """At 2 KB/s its half megabyte would take four minutes."""
        hub.faults.append(Fault("content", path="onnx", bytes_per_second=2000))
        with anyio.fail_after(30):
            assert await fetch_weights() == WEIGHTS
        assert download.CONNECTIONS < len(ranges_asked(hub)) <= download.CONNECTIONS + 4
        assert asked_again(hub) <= 2**20

    async def test_several_that_trickle_hold_up_nothing(self, repo: Repo, hub: HubServer) -> None:
        """Most of the first connections, and some of those that take over."""
        hub.faults.append(Fault("content", path="onnx", times=5, bytes_per_second=2000))
        hub.faults.append(Fault("content", path="onnx", times=2, skip=4, bytes_per_second=2000))
        with anyio.fail_after(60):
            assert await fetch_weights() == WEIGHTS

    @pytest.mark.parametrize("slow_after", [0, 1_000_000])
    async def test_a_file_of_one_stream_is_shared_when_it_trickles(
        self, slow_after: int, repo: Repo, hub: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There is nothing to compare it with, so an idle connection tries half of the rest."""
        change_policy(monkeypatch, split_minimum_bytes=SIZE + 1)
        hub.faults.append(Fault("content", path="onnx", bytes_per_second=2000, slow_after=slow_after))
        with anyio.fail_after(30):
            assert await fetch_weights() == WEIGHTS
        first, *others = ranges_asked(hub)
        assert first == "all"
        assert others
        assert asked_again(hub) <= SIZE

    async def test_a_stalled_connection_is_taken_over_before_its_timeout(self, repo: Repo, hub: HubServer) -> None:
        hub.faults.append(Fault("content", path="onnx", stall_after=100_000))
        with anyio.fail_after(constants.HF_HUB_DOWNLOAD_TIMEOUT / 2):
            assert await fetch_weights() == WEIGHTS

    async def test_a_server_without_ranges_is_read_to_its_end(self, repo: Repo, hub: HubServer) -> None:
        """Its slow connection is the only one there is."""
        hub.faults.append(
            Fault("content", path="onnx", times=99, ignore_range=True, bytes_per_second=400_000, slow_after=3_600_000)
        )
        with anyio.fail_after(30):
            assert await fetch_weights() == WEIGHTS

    async def test_what_a_slow_connection_brought_is_kept(self, repo: Repo, hub: HubServer) -> None:
        received: list[int] = []

        def watch(event: ProgressEvent) -> None:
            if isinstance(event, BytesReceived):
                received.append(event.received_bytes)

        hub.faults.append(Fault("content", path="onnx", bytes_per_second=20_000))
        with anyio.fail_after(30):
            await download_files([HubOrigin(REPO)], patterns=["model.onnx"], progress=watch)
        assert received == sorted(received)
        assert received[-1] == SIZE


def asked_again(hub: HubServer) -> int:
    return asked_bytes(hub) - SIZE
