"""What goes wrong on networks, disks and in caches ends in a retry, or in one clear sentence."""

import logging
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import anyio
import httpx
import pytest
from huggingface_hub import constants

from asyncembed.catalogue.spec import HubOrigin
from asyncembed.errors import (
    AccessDeniedError,
    BadTokenError,
    CacheNotWritableError,
    CorruptFileError,
    DiskFullError,
    DownloadError,
    GatedRepoError,
    NotCachedError,
    RateLimitedError,
    RepoFileNotFoundError,
    RepoNotFoundError,
    UnexpectedAnswerError,
    UnreachableError,
)
from asyncembed.hub import BytesReceived, ProgressEvent
from tests.hub.calls import change_policy, download_files, list_files
from tests.hub.server import Fault, HubServer, Repo
from tests.support import posix

pytestmark = pytest.mark.slow

REPO = "org/model"
SIZE = 1_500_000
WEIGHTS = random.Random(3).randbytes(SIZE)
CONFIG = b'{"hidden_size": 384}' * 100
COMMIT = "c" * 40


@pytest.fixture(autouse=True)
def repo(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Repo:
    change_policy(monkeypatch, split_minimum_bytes=2**20, stream_minimum_bytes=2**18, write_bytes=2**16)
    hub.repos[REPO] = Repo({"model.onnx": WEIGHTS, "config.json": CONFIG}, large=frozenset({"model.onnx"}))
    return hub.repos[REPO]


@pytest.fixture
def single_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    change_policy(monkeypatch, split_minimum_bytes=SIZE + 1)


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)


async def fetch_all(**keywords: object) -> Path:
    return await download_files([HubOrigin(REPO)], patterns=["*"], progress=False, **keywords)  # type: ignore[arg-type]


def assert_whole(snapshot: Path) -> None:
    assert (snapshot / "model.onnx").read_bytes() == WEIGHTS
    assert (snapshot / "config.json").read_bytes() == CONFIG
    assert not list(snapshot.parents[2].rglob("*.incomplete"))


def assert_nothing_visible(cache: Path) -> None:
    """No file in a snapshot and no ref: no tool takes what came so far for the model."""
    assert not [path for path in cache.rglob("snapshots/*/*") if path.name == "model.onnx"]
    assert not list(cache.rglob("refs/main"))


PASSING = {
    "info fails for a while": [Fault("info", times=3, status=503)],
    "tree fails for a while": [Fault("tree", times=2, status=502), Fault("tree", times=1, status=500)],
    "resolve fails for a while": [Fault("resolve", times=4, status=504)],
    "content fails for a while": [Fault("content", times=4, status=503)],
    "closed before any answer": [Fault(route, close_at_once=True) for route in ("info", "tree", "resolve", "content")],
    "cut, several times over": [Fault("content", times=6, path="onnx", cut_after=200_000)],
    "cut at the very beginning": [Fault("content", times=3, cut_after=0)],
    "a small file is cut": [Fault("content", times=3, path="config", cut_after=100)],
    "reset, several times over": [Fault("content", times=5, path="onnx", reset_after=150_000)],
    "the listing is cut": [Fault("tree", cut_after=20), Fault("info", cut_after=5)],
    "the server ignores ranges": [Fault("content", times=50, path="onnx", ignore_range=True)],
    "some answers ignore ranges": [Fault("content", times=2, path="onnx", ignore_range=True)],
    "a range begins elsewhere": [Fault("content", times=1, path="onnx", shift_range=-7, skip=2)],
    "a range of another total": [Fault("content", times=1, path="onnx", other_total=True)],
    "a range that does not say which": [Fault("content", times=1, path="onnx", no_content_range=True)],
    "a range that cannot be satisfied": [Fault("content", times=1, path="onnx", status=416)],
    "wrong bytes": [Fault("content", times=1, path="onnx", corrupt=True)],
    "wrong bytes after a resume": [
        Fault("content", path="onnx", cut_after=100_000),
        Fault("content", path="onnx", skip=1, corrupt=True),
    ],
    "wrong bytes in the place of right ones": [
        Fault("content", path="onnx", cut_after=200_000),
        Fault("content", times=1, path="onnx", ignore_range=True, corrupt=True),
    ],
    "wrong bytes, in a small file": [Fault("content", times=2, path="config", corrupt=True)],
    "too many bytes": [Fault("content", times=1, path="config", excess=b"more")],
    "no length": [Fault("content", times=9, no_length=True)],
    "no length, and cut": [Fault("content", times=2, path="config", no_length=True, cut_after=50)],
    "compressed though nobody asked": [Fault("content", times=1, path="config", compress=True)],
    "the signed URL expires": [Fault("content", times=2, path="onnx", status=403, body=b"<Error/>", skip=1)],
    "headers are missing": [
        Fault("content", times=99, drop_headers=("X-Repo-Commit", "ETag", "Accept-Ranges")),
    ],
    "too many requests, in seconds": [Fault("resolve", status=429, headers={"Retry-After": "0"})],
    "too many requests, with a window": [
        Fault("info", status=429, headers={"RateLimit": '"api";r=0;t=0', "Retry-After": "3600"})
    ],
    "too many requests, without a word": [Fault("tree", times=2, status=429)],
    "too many requests, at the content server": [Fault("content", times=3, path="onnx", status=429)],
}


@pytest.mark.parametrize(
    ("name", "streams"),
    [(name, "ranges") for name in PASSING]
    + [(name, "one stream") for name, faults in PASSING.items() if any("onnx" in fault.path for fault in faults)],
)
async def test_a_passing_fault_is_overcome(
    name: str, streams: str, hub: HubServer, request: pytest.FixtureRequest
) -> None:
    if streams == "one stream":
        request.getfixturevalue("single_stream")
    hub.faults = [Fault(**vars(fault)) for fault in PASSING[name]]
    assert_whole(await fetch_all())


@pytest.mark.parametrize("route", ["info", "tree", "resolve", "content"])
async def test_a_silent_server_is_given_up_and_asked_again(route: str, hub: HubServer, short_timeouts: None) -> None:
    gate = threading.Event()
    hub.faults.append(Fault(route, hold=gate))
    assert_whole(await fetch_all())
    gate.set()


async def test_a_stalled_file_is_resumed(hub: HubServer, short_timeouts: None, single_stream: None) -> None:
    hub.faults.append(Fault("content", path="onnx", stall_after=1_000_000))
    assert_whole(await fetch_all())
    (_, again) = [request for request in hub.of_route("content") if "onnx" in request.path]
    assert again.headers["Range"] == "bytes=1000000-"


async def test_a_trickle_that_trips_no_read_timeout_is_given_up(hub: HubServer, short_timeouts: None) -> None:
    hub.faults.append(Fault("content", times=1, path="config", trickle=True))
    assert_whole(await fetch_all())


async def test_a_server_that_only_trickles_ends_it(
    hub: HubServer, short_timeouts: None, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    change_policy(monkeypatch, try_limit=2)
    hub.faults.append(Fault("content", times=99, path="config", trickle=True))
    with pytest.raises(UnreachableError, match="bytes came in"):
        await fetch_all()


async def test_drops_with_progress_are_never_too_many(hub: HubServer, single_stream: None) -> None:
    hub.faults.append(Fault("content", times=14, path="onnx", cut_after=100_000))
    assert_whole(await fetch_all())


async def test_drops_without_progress_end_in_a_sentence(hub: HubServer, cache: Path) -> None:
    hub.faults.append(Fault("content", times=999, path="onnx", cut_after=10))
    with pytest.raises(UnreachableError, match=r"model\.onnx of org/model failed 6 times.*HTTPS_PROXY"):
        await fetch_all()
    assert_nothing_visible(cache)


async def test_bytes_that_stay_wrong_end_in_a_sentence(hub: HubServer, cache: Path) -> None:
    hub.faults.append(Fault("content", times=999, path="onnx", corrupt=True))
    with pytest.raises(CorruptFileError, match=r"model\.onnx of org/model came with wrong bytes 3 times"):
        await fetch_all()
    assert_nothing_visible(cache)
    assert not list(cache.rglob("*.incomplete"))


async def test_a_signed_url_that_expired_is_replaced(hub: HubServer, single_stream: None) -> None:
    hub.faults += [
        Fault("content", path="onnx", cut_after=700_000),
        Fault("content", path="onnx", status=403),
    ]
    assert_whole(await fetch_all())
    last = hub.of_route("content")[-1]
    assert last.headers["Range"] == "bytes=700000-"


async def test_everyone_pauses_when_one_is_told_to(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause that one answer asks for, and no request to that server during it."""
    slept: list[float] = []
    sleep = anyio.sleep

    async def watched_sleep(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr(anyio, "sleep", watched_sleep)
    hub.faults.append(Fault("info", status=429, headers={"RateLimit": '"api";r=0;t=77'}))
    assert_whole(await fetch_all())
    assert 77.0 in slept
    assert any(76 < seconds < 77 for seconds in slept)


async def test_a_pause_too_long_says_when_to_come_back(hub: HubServer) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    hub.faults.append(Fault("info", status=429, headers={"Retry-After": later}))
    with pytest.raises(RateLimitedError, match="HF_TOKEN") as caught:
        await fetch_all()
    assert caught.value.retry_after_seconds == pytest.approx(7200, abs=60)


async def test_a_login_page_is_no_hub(hub: HubServer, cache: Path) -> None:
    page = {"Content-Type": "text/html"}
    hub.faults.append(Fault("info", times=99, status=200, headers=page, body=b"<html>log in</html>"))
    with pytest.raises(UnexpectedAnswerError, match="does not answer as a hub"):
        await fetch_all()
    hub.faults = [Fault("content", times=99, status=200, headers=page, body=b"<html>log in</html>")]
    with pytest.raises(DownloadError):
        await fetch_all()
    assert_nothing_visible(cache)


async def test_redirects_in_circles_end(hub: HubServer) -> None:
    hub.renamed = {REPO: "org/other", "org/other": REPO}
    with pytest.raises(UnexpectedAnswerError, match="circles"):
        await fetch_all()


async def test_a_renamed_repo_is_found_under_its_old_name(hub: HubServer, cache: Path) -> None:
    hub.renamed = {"Org/Old-Name": REPO}
    snapshot = await download_files([HubOrigin("Org/Old-Name")], patterns=["*"])
    assert snapshot.parent.parent.name == "models--Org--Old-Name"
    assert_whole(snapshot)


async def test_a_file_that_vanished_from_the_repo_is_named(hub: HubServer) -> None:
    hub.faults.append(Fault("resolve", status=404, path="config", headers={"X-Error-Code": "EntryNotFound"}))
    with pytest.raises(RepoFileNotFoundError, match=r"config\.json"):
        await fetch_all()


class TestAccess:
    async def test_a_missing_repo_cannot_be_told_from_a_private_one(self, hub: HubServer) -> None:
        with pytest.raises(RepoNotFoundError, match="private"):
            await download_files([HubOrigin("org/absent")], patterns=["*"])
        assert len(hub.requests) == 1

    async def test_a_private_repo_opens_with_its_token(self, hub: HubServer) -> None:
        hub.known_tokens = {"hf_right", "hf_other"}
        hub.repos[REPO].token = "hf_right"
        with pytest.raises(RepoNotFoundError):
            await fetch_all(token="hf_other")
        assert_whole(await fetch_all(token="hf_right"))

    async def test_a_gated_repo_says_where_to_accept_its_terms(self, hub: HubServer) -> None:
        hub.repos[REPO].gated = True
        with pytest.raises(GatedRepoError, match=f"{hub.url}/{REPO}"):
            await fetch_all()

    async def test_a_token_without_access_is_told_so(self, hub: HubServer) -> None:
        hub.faults.append(Fault("resolve", times=9, status=403, headers={"X-Error-Code": "GatedRepo"}))
        with pytest.raises(GatedRepoError):
            await fetch_all()
        hub.faults = [Fault("info", status=403, headers={"X-Error-Message": "Access to this resource is disabled."})]
        with pytest.raises(AccessDeniedError, match="disabled"):
            await fetch_all()

    async def test_a_bad_token_is_told_as_such_though_the_repo_is_public(self, hub: HubServer) -> None:
        with pytest.raises(BadTokenError, match="HF_TOKEN") as caught:
            await fetch_all(token="hf_expired")
        assert "hf_expired" not in str(caught.value)

    async def test_the_token_comes_from_where_users_keep_it(
        self, hub: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.known_tokens = {"hf_env", "hf_file"}
        token_file = Path(constants.HF_TOKEN_PATH)
        token_file.parent.mkdir(parents=True)
        token_file.write_text("hf_file\n", "utf-8")
        await fetch_all()
        assert hub.of_route("info")[-1].headers["authorization"] == "Bearer hf_file"
        monkeypatch.setenv("HF_TOKEN", "hf_env")
        await download_files([HubOrigin(REPO)], patterns=["*"], cache_dir=token_file.parent / "elsewhere")
        assert hub.of_route("info")[-1].headers["authorization"] == "Bearer hf_env"

    async def test_the_token_goes_to_no_other_server(self, hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
        """Not to the content server, nor to the host that a listing names for its next page."""
        hub.known_tokens = {"hf_secret"}
        hub.page_size = 1
        hub.next_page_host = hub.cdn_url
        with caplog.at_level(logging.DEBUG, "asyncembed"):
            assert_whole(await fetch_all(token="hf_secret"))
        for request in hub.requests:
            sent = {name.lower(): value for name, value in request.headers.items()}
            assert ("authorization" in sent) == (request.server == "hub")
        assert "hf_secret" not in caplog.text

    async def test_a_redirect_to_another_server_does_not_carry_the_token(self, hub: HubServer) -> None:
        hub.known_tokens = {"hf_secret"}
        with HubServer() as other:
            other.repos[REPO] = hub.repos[REPO]
            hub.faults += [
                Fault(route, times=99, status=308, headers={"Location": f"{other.url}/api/models/{REPO}"})
                for route in ("info",)
            ]
            await fetch_all(token="hf_secret")
            assert [request.route for request in other.requests] == ["info"]
            assert "authorization" not in {name.lower() for name in other.requests[0].headers}


async def test_nobody_there_and_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(UnreachableError, match="HF_ENDPOINT"):
        await fetch_all()


class TestCache:
    async def test_what_an_interrupted_download_left_is_completed(self, hub: HubServer, cache: Path) -> None:
        snapshot = await fetch_all()
        (snapshot / "config.json").unlink()
        with pytest.raises(NotCachedError, match=r"config\.json"):
            await fetch_all(local_files_only=True)
        assert_whole(await fetch_all())

    async def test_a_dangling_link_is_healed(self, hub: HubServer) -> None:
        snapshot = await fetch_all()
        (snapshot / "model.onnx").resolve().unlink()
        assert_whole(await fetch_all())

    @pytest.mark.parametrize("size", [0, 1000])
    async def test_a_shortened_blob_is_healed(self, hub: HubServer, size: int) -> None:
        snapshot = await fetch_all()
        os.truncate(snapshot / "model.onnx", size)
        assert_whole(await fetch_all())

    async def test_damage_that_keeps_the_size_is_found_on_demand(self, hub: HubServer) -> None:
        snapshot = await fetch_all()
        with (snapshot / "model.onnx").open("r+b") as file:
            file.write(bytes(100))
        hub.requests.clear()
        assert await fetch_all() == snapshot
        assert hub.requests == []
        assert_whole(await fetch_all(verify=True))

    @pytest.mark.posix
    async def test_a_dangling_chain_of_two_links_is_healed(self, hub: HubServer, cache: Path) -> None:
        """The store that huggingface_hub shares among repos was purged."""
        snapshot = await fetch_all()
        blob = (snapshot / "model.onnx").resolve()
        blob.unlink()
        blob.symlink_to("../../blobs/ab/purged")
        assert_whole(await fetch_all())
        assert not blob.is_symlink()

    async def test_what_other_tools_left_unfinished_long_ago_is_cleaned_up(self, hub: HubServer, cache: Path) -> None:
        etag = hub.repos[REPO].sha256("model.onnx")
        blobs = cache / "models--org--model/blobs"
        blobs.mkdir(parents=True)
        old = [blobs / f"{etag}.incomplete", blobs / f"{etag}.0a1b2c3d.incomplete"]
        for path in old:
            path.write_bytes(bytes(SIZE))
            os.utime(path, (0, 0))
        assert_whole(await fetch_all())

    @pytest.mark.posix
    async def test_damage_in_a_cache_that_cannot_be_written_is_told(self, hub: HubServer, open_folder: Path) -> None:
        snapshot = await fetch_all(cache_dir=open_folder)
        with (snapshot / "model.onnx").open("r+b") as file:
            file.write(bytes(100))
        posix.make_read_only(open_folder)
        with posix.as_ordinary_user(), pytest.raises(CacheNotWritableError, match="cache_dir="):
            await fetch_all(cache_dir=open_folder, verify=True)

    @pytest.mark.posix
    async def test_a_cache_that_is_purged_meanwhile_is_filled_anew(self, cache: Path) -> None:
        def purge(event: ProgressEvent) -> None:
            if isinstance(event, BytesReceived) and not purged:
                purged.append(True)
                shutil.rmtree(cache / "models--org--model")

        purged: list[bool] = []
        assert_whole(await download_files([HubOrigin(REPO)], patterns=["*"], progress=purge))
        assert purged

    async def test_a_zero_byte_file_without_a_listing_is_healed(self, hub: HubServer, cache: Path) -> None:
        snapshot = await fetch_all()
        shutil.rmtree(cache / "models--org--model/trees")
        os.truncate(snapshot / "model.onnx", 0)
        found = await download_files([HubOrigin(REPO)], patterns=[], required=["model.onnx", "config.json"])
        assert_whole(found)

    @pytest.mark.posix
    async def test_a_link_to_the_wrong_blob_is_healed(self, hub: HubServer) -> None:
        snapshot = await fetch_all()
        (snapshot / "config.json").unlink()
        (snapshot / "config.json").symlink_to((snapshot / "model.onnx").readlink())
        assert_whole(await fetch_all())

    @pytest.mark.posix
    async def test_a_blob_that_lost_its_link_is_not_downloaded_again(self, hub: HubServer) -> None:
        snapshot = await fetch_all()
        shutil.rmtree(snapshot)
        hub.requests.clear()
        assert_whole(await fetch_all())
        assert hub.of_route("resolve", "content", "tree") == []

    @pytest.mark.parametrize("content", [b"", b"rubbish", b'{"format_version": 9, "files": {}}'])
    async def test_an_unreadable_listing_is_made_anew(self, content: bytes, cache: Path) -> None:
        await fetch_all()
        listing = cache / "models--org--model/trees" / f"{COMMIT}.json"
        before = listing.read_bytes()
        listing.write_bytes(content)
        assert_whole(await fetch_all())
        assert listing.read_bytes() == before

    @pytest.mark.parametrize("content", [b"", b"c" * 40 + b"\n", b"f" * 40])
    async def test_a_damaged_ref_is_healed_or_read(self, content: bytes, cache: Path) -> None:
        await fetch_all()
        (cache / "models--org--model/refs/main").write_bytes(content)
        assert_whole(await fetch_all())

    async def test_a_failed_update_leaves_the_old_snapshot_in_use(self, hub: HubServer, cache: Path) -> None:
        old = await fetch_all()
        files = {"model.onnx": WEIGHTS[::-1], "config.json": CONFIG}
        hub.repos[REPO] = Repo(files, large=frozenset({"model.onnx"}), commit="e" * 40)
        hub.faults.append(Fault("content", times=99, path="onnx", close_at_once=True))
        with pytest.raises(UnreachableError):
            await fetch_all(revision="e" * 40)
        hub.requests.clear()
        assert await fetch_all(local_files_only=True) == old
        assert hub.requests == []

    async def test_an_update_that_another_tool_left_half_done_does_not_hide_the_old_snapshot(
        self, hub: HubServer, cache: Path
    ) -> None:
        old = await fetch_all()
        (cache / "models--org--model/snapshots" / ("e" * 40)).mkdir()
        (cache / "models--org--model/refs/main").write_text("e" * 40, "utf-8")
        assert await fetch_all(local_files_only=True) == old

    async def test_a_cache_written_in_lower_case_is_found(self, hub: HubServer, cache: Path) -> None:
        await fetch_all()
        hub.requests.clear()
        assert_whole(await download_files([HubOrigin("Org/Model")], patterns=["*"]))
        assert hub.requests == []

    @pytest.mark.posix
    async def test_two_links_in_a_row_are_followed_and_never_written_through(self, hub: HubServer, cache: Path) -> None:
        """As the store that huggingface_hub shares among repos has them."""
        snapshot = await fetch_all()
        blob = (snapshot / "model.onnx").resolve()
        store = cache / "blobs/ab/payload"
        store.parent.mkdir(parents=True)
        blob.rename(store)
        blob.symlink_to(os.path.relpath(store, blob.parent))
        hub.requests.clear()
        assert_whole(await fetch_all())
        assert hub.requests == []
        store.write_bytes(b"another repo's")
        assert_whole(await fetch_all())
        assert store.read_bytes() == b"another repo's"

    async def test_no_network_but_enough_in_the_cache_is_used_with_a_warning(
        self, hub: HubServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        snapshot = await download_files([HubOrigin(REPO)], patterns=["model.onnx"])
        hub.faults.append(Fault("info", times=99, close_at_once=True))
        assert await download_files([HubOrigin(REPO)], patterns=["*"], required=["model.onnx"]) == snapshot
        assert "without config.json" in caplog.text

    @pytest.mark.posix
    async def test_a_cache_path_with_blanks_and_umlauts_and_links(self, tmp_path: Path) -> None:
        (tmp_path / "ä b").mkdir()
        (tmp_path / "link").symlink_to("ä b")
        snapshot = await fetch_all(cache_dir=tmp_path / "link")
        assert_whole(snapshot)
        assert snapshot.is_relative_to(tmp_path / "ä b")


@pytest.mark.posix
async def test_a_read_only_cache_with_the_model_is_enough(hub: HubServer, open_folder: Path) -> None:
    snapshot = await fetch_all(cache_dir=open_folder)
    posix.make_read_only(open_folder)
    with posix.as_ordinary_user():
        assert await fetch_all(cache_dir=open_folder) == snapshot


@pytest.mark.posix
async def test_a_read_only_cache_without_the_model_says_so(
    hub: HubServer, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(open_folder / "token"))
    snapshot = await fetch_all(cache_dir=open_folder)
    (snapshot / "config.json").unlink()
    posix.make_read_only(open_folder)
    with posix.as_ordinary_user(), pytest.raises(CacheNotWritableError, match="cache_dir="):
        await fetch_all(cache_dir=open_folder)


@pytest.mark.posix
@pytest.mark.parametrize("name", ["closed/to others", "x" * 300])
async def test_a_cache_that_cannot_even_be_looked_at_is_told(name: str, open_folder: Path) -> None:
    (open_folder / "closed").mkdir(mode=0o700 if posix.is_root() else 0)
    with posix.as_ordinary_user():
        with pytest.raises(DownloadError, match=name):
            await fetch_all(cache_dir=open_folder / name)
        with pytest.raises(DownloadError, match=name):
            await list_files(REPO, cache_dir=open_folder / name)


@pytest.mark.posix
async def test_the_lock_file_of_another_user_is_no_obstacle(
    hub: HubServer, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older tools made lock files that only their user may open."""
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(open_folder / "token"))
    locks = open_folder / ".locks/models--org--model"
    locks.mkdir(parents=True)
    lock = locks / f"{hub.repos[REPO].sha256('model.onnx')}.lock"
    lock.touch()
    lock.chmod(0o400 if not posix.is_root() else 0o600)
    open_folder.chmod(0o777)
    with posix.as_ordinary_user():
        assert_whole(await fetch_all(cache_dir=open_folder))


@pytest.mark.posix
async def test_a_blob_that_only_another_user_may_read_is_downloaded(
    hub: HubServer, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The payloads of the store that huggingface_hub shares among repos may be closed to others."""
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(open_folder / "token"))
    snapshot = await fetch_all(cache_dir=open_folder)
    (snapshot / "model.onnx").resolve().chmod(0o400 if posix.is_root() else 0)
    for path in [open_folder, *open_folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o777)
    with posix.as_ordinary_user():
        assert_whole(await fetch_all(cache_dir=open_folder))


FULL_DISK = """
import resource, sys, anyio, pathlib
from huggingface_hub import constants
from asyncembed.catalogue.spec import HubOrigin
from asyncembed.errors import DiskFullError
from asyncembed.hub import HubAccess, download_files
constants.ENDPOINT = sys.argv[1]
constants.HF_HUB_DISABLE_TELEMETRY = True
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
try:
    access = HubAccess(cache_dir=sys.argv[2], token=False)
    anyio.run(lambda: download_files([HubOrigin("org/model")], access, patterns=["*"]))
except DiskFullError as error:
    print(error)
"""


def test_a_full_disk_is_named_and_nothing_unfinished_is_kept(hub: HubServer, cache: Path) -> None:
    """The limit of a file's size fails as a full disk does: in the middle of a write."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, hub.url, str(cache)], capture_output=True, encoding="utf-8", check=False
    )
    assert "no room left" in done.stdout, done.stderr
    assert not list(cache.rglob(f"blobs/{hub.repos[REPO].sha256('model.onnx')}*"))
    assert_nothing_visible(cache)


async def test_too_little_room_is_known_before_the_first_byte(hub: HubServer) -> None:
    free = shutil.disk_usage("/").free

    class Huge(bytes):
        def __len__(self) -> int:
            return free * 10

    hub.repos[REPO] = Repo({"model.onnx": Huge(b"x")}, large=frozenset({"model.onnx"}))
    with pytest.raises(DiskFullError, match="MB are needed"):
        await fetch_all()
    assert hub.of_route("resolve") == []


def test_every_error_of_the_client_has_a_counterpart() -> None:
    """All that can go wrong in a request is below the class that is translated."""
    for name in ("TransportError", "DecodingError", "TooManyRedirects", "ReadError", "ProxyError"):
        assert issubclass(getattr(httpx, name), httpx.HTTPError)


def test_errors_survive_pickling() -> None:
    pending = [DownloadError]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        error = kind("a sentence")
        for name in vars(error):
            setattr(error, name, f"the {name}")
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is kind
        assert str(copy) == "a sentence"
        assert vars(copy) == vars(error)
