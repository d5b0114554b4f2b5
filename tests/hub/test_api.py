"""From a repo's name to a directory with its files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from asyncembed.catalogue.spec import CacheFolderOrigin, HubOrigin, LocalOrigin
from asyncembed.errors import (
    NoSourceError,
    NotCachedError,
    OptionError,
    RepoFileNotFoundError,
    RevisionNotFoundError,
)
from tests.hub.calls import download_files, list_files
from tests.hub.server import Fault, HubServer, Repo

pytestmark = pytest.mark.slow

REPO = "org/model"
WEIGHTS = bytes(range(256)) * 1000
FILES: dict[str, bytes | memoryview] = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}" * 5000,
    "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
    "onnx/model.onnx": WEIGHTS,
    "empty.txt": b"",
    "a file with spaces & %41 +#ü.json": b"{}",
}


@pytest.fixture
def repo(hub: HubServer) -> Repo:
    hub.repos[REPO] = Repo(dict(FILES), large=frozenset({"onnx/model.onnx"}))
    return hub.repos[REPO]


def contents(snapshot: Path) -> dict[str, bytes]:
    return {path.relative_to(snapshot).as_posix(): path.read_bytes() for path in snapshot.rglob("*") if path.is_file()}


async def test_the_directory_holds_every_wanted_file(repo: Repo, cache: Path) -> None:
    snapshot = await download_files([HubOrigin(REPO)], patterns=["*"])
    assert snapshot == cache / "models--org--model" / "snapshots" / repo.commit
    assert contents(snapshot) == FILES


async def test_only_what_matches_is_downloaded(repo: Repo) -> None:
    snapshot = await download_files([HubOrigin(REPO)], patterns=["*config.json"], required=["onnx/model.onnx"])
    assert set(contents(snapshot)) == {"config.json", "1_Pooling/config.json", "onnx/model.onnx"}


async def test_a_complete_model_needs_no_request(repo: Repo, hub: HubServer) -> None:
    first = await download_files([HubOrigin(REPO)], patterns=["*"])
    hub.requests.clear()
    assert await download_files([HubOrigin(REPO)], patterns=["*"]) == first
    assert hub.requests == []


async def test_a_small_repo_takes_few_requests(repo: Repo, hub: HubServer) -> None:
    """Two to learn what there is, two per file (the empty one none), where others need three."""
    await download_files([HubOrigin(REPO)], patterns=["*"])
    assert len(hub.requests) == 2 + 2 * 5


async def test_a_listing_of_many_pages_is_read_to_its_end(hub: HubServer) -> None:
    hub.page_size = 100
    hub.repos[REPO] = Repo({f"{n:04}/{n}.json": b"{}" for n in range(250)} | {"zz.json": b"[1]"})
    listing = await list_files(REPO)
    assert len(listing.files) == 251
    snapshot = await download_files([HubOrigin(REPO)], patterns=["zz.json"])
    assert contents(snapshot) == {"zz.json": b"[1]"}


async def test_a_named_revision_becomes_its_commit(hub: HubServer, cache: Path) -> None:
    hub.repos[REPO] = Repo({"a.json": b"{}"}, commit="d" * 40, revisions=("refs/pr/1",))
    snapshot = await download_files([HubOrigin(REPO)], patterns=["*"], revision="refs/pr/1")
    assert snapshot.name == "d" * 40
    assert (cache / "models--org--model/refs/refs/pr/1").read_bytes() == b"d" * 40


async def test_a_commit_needs_no_look_up(repo: Repo, hub: HubServer) -> None:
    await download_files([HubOrigin(REPO)], patterns=["config.json"], revision=repo.commit)
    assert hub.of_route("info") == []


async def test_all_files_come_from_one_commit_though_the_branch_moves(repo: Repo, hub: HubServer) -> None:
    await download_files([HubOrigin(REPO)], patterns=["*"])
    assert all(repo.commit in request.path for request in hub.of_route("tree", "resolve"))


async def test_the_listing_tells_what_there_is_online_and_offline(repo: Repo, hub: HubServer) -> None:
    assert set((await list_files(REPO)).paths) == set(FILES)
    await download_files([HubOrigin(REPO)], patterns=["*.json"])
    hub.requests.clear()
    assert set((await list_files(REPO, local_files_only=True)).paths) == set(FILES)
    assert hub.requests == []


async def test_without_a_listing_the_snapshot_says_offline_what_there_is(repo: Repo, cache: Path) -> None:
    await download_files([HubOrigin(REPO)], patterns=["config.json", "onnx/*"])
    (cache / "models--org--model/trees" / f"{repo.commit}.json").unlink()
    listing = await list_files(REPO, local_files_only=True)
    assert set(listing.paths) == {"config.json", "onnx/model.onnx"}


async def test_a_missing_file_is_named(repo: Repo) -> None:
    with pytest.raises(RepoFileNotFoundError, match="absent.onnx") as caught:
        await download_files([HubOrigin(REPO)], patterns=["*.json"], required=["absent.onnx"])
    assert caught.value.path == "absent.onnx"


async def test_patterns_that_match_nothing_say_so(repo: Repo) -> None:
    with pytest.raises(RepoFileNotFoundError, match=r"\*\.bin"):
        await download_files([HubOrigin(REPO)], patterns=["*.bin"])


@pytest.mark.parametrize("name", ["a/b/c", "../etc", "-x/y", "a--b/c", "x/y.git", "", "a b/c"])
async def test_an_impossible_repo_id_is_refused_without_a_request(name: str, hub: HubServer) -> None:
    with pytest.raises(OptionError):
        await download_files([HubOrigin(name)], patterns=["*"])
    assert hub.requests == []


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", "C:/x", "a\\..\\b", "x//y"])
async def test_a_file_name_that_leads_out_is_refused(path: str, hub: HubServer, tmp_path: Path) -> None:
    from asyncembed.errors import UnexpectedAnswerError

    hub.repos[REPO] = Repo({path: b"evil"})
    with pytest.raises(UnexpectedAnswerError, match="stored safely"):
        await download_files([HubOrigin(REPO)], patterns=["*"])
    assert not list(tmp_path.rglob("*outside*"))


async def test_offline_and_not_cached_tells_the_ways_out(repo: Repo, hub: HubServer) -> None:
    with pytest.raises(NotCachedError, match="HF_HUB_OFFLINE.*cache_dir=.*model_path="):
        await download_files([HubOrigin(REPO)], patterns=["*"], local_files_only=True)
    assert hub.requests == []


async def test_the_offline_switch_of_the_environment_counts(
    repo: Repo, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotCachedError):
        await download_files([HubOrigin(REPO)], patterns=["*"])
    assert hub.requests == []


async def test_a_directory_is_a_source(tmp_path: Path, hub: HubServer) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    assert await download_files([LocalOrigin(tmp_path)], patterns=[], required=["model.onnx"]) == tmp_path
    with pytest.raises(RepoFileNotFoundError, match=r"tokenizer\.json"):
        await download_files([LocalOrigin(tmp_path)], patterns=[], required=["model.onnx", "tokenizer.json"])


async def test_sources_are_tried_in_order(repo: Repo) -> None:
    snapshot = await download_files([HubOrigin("org/absent"), HubOrigin(REPO)], patterns=["config.json"])
    assert contents(snapshot) == {"config.json": FILES["config.json"]}


async def test_a_later_source_on_disk_goes_before_an_earlier_one_on_the_network(
    repo: Repo, hub: HubServer, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    found = await download_files([HubOrigin(REPO), LocalOrigin(tmp_path)], patterns=[], required=["config.json"])
    assert found == tmp_path
    assert hub.requests == []


async def test_when_all_sources_fail_each_gets_a_sentence(repo: Repo, tmp_path: Path) -> None:
    with pytest.raises(NoSourceError, match="org/absent: .*\n.*nowhere: ") as caught:
        await download_files([HubOrigin("org/absent"), LocalOrigin(tmp_path / "nowhere")], patterns=["*"])
    assert len(caught.value.failures) == 2


async def test_an_unknown_revision_is_named(repo: Repo) -> None:
    with pytest.raises(RevisionNotFoundError, match="'v9'"):
        await download_files([HubOrigin(REPO)], patterns=["*"], revision="v9")


class TestRefresh:
    """A branch that moved on the hub after it was downloaded."""

    @pytest.fixture
    def moved(self, hub: HubServer) -> Callable[[], None]:
        hub.repos[REPO] = Repo(dict(FILES), large=frozenset({"onnx/model.onnx"}))

        def move() -> None:
            files = {**FILES, "config.json": b"[]"}
            hub.repos[REPO] = Repo(files, large=frozenset({"onnx/model.onnx"}), commit="e" * 40)
            hub.requests.clear()

        return move

    async def test_a_cached_branch_stays_where_it_was(self, moved: Callable[[], None], hub: HubServer) -> None:
        old = await download_files([HubOrigin(REPO)], patterns=["*"])
        moved()
        assert await download_files([HubOrigin(REPO)], patterns=["*"]) == old
        assert hub.requests == []

    async def test_refreshing_brings_what_is_new_and_no_more(self, moved: Callable[[], None], hub: HubServer) -> None:
        old = await download_files([HubOrigin(REPO)], patterns=["*"])
        moved()
        new = await download_files([HubOrigin(REPO)], patterns=["*"], refresh=True)
        assert new.name == "e" * 40
        assert contents(new) == {**FILES, "config.json": b"[]"}
        assert contents(old) == FILES
        assert [request.path for request in hub.of_route("resolve")] == [f"/{REPO}/resolve/{new.name}/config.json"]
        assert await download_files([HubOrigin(REPO)], patterns=["*"]) == new
        assert (await list_files(REPO)).commit == new.name

    async def test_without_links_no_more_is_downloaded_either(
        self, moved: Callable[[], None], hub: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The bytes lie in the snapshot of the commit that had them first, and nowhere else."""
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
        old = await download_files([HubOrigin(REPO)], patterns=["*"])
        (old / "onnx" / "model.onnx").write_bytes(bytes(len(FILES["onnx/model.onnx"])))  # damaged
        moved()
        new = await download_files([HubOrigin(REPO)], patterns=["*"], refresh=True)
        assert contents(new) == {**FILES, "config.json": b"[]"}
        downloaded = {request.path.partition(f"{new.name}/")[2] for request in hub.of_route("resolve")}
        assert downloaded == {"config.json", "onnx/model.onnx"}

    async def test_refreshing_what_is_up_to_date_takes_one_request(self, repo: Repo, hub: HubServer) -> None:
        snapshot = await download_files([HubOrigin(REPO)], patterns=["*"])
        hub.requests.clear()
        assert await download_files([HubOrigin(REPO)], patterns=["*"], refresh=True) == snapshot
        assert [request.route for request in hub.requests] == ["info"]

    async def test_refreshing_a_commit_asks_nothing(self, repo: Repo, hub: HubServer) -> None:
        snapshot = await download_files([HubOrigin(REPO)], patterns=["*"])
        hub.requests.clear()
        assert await download_files([HubOrigin(REPO)], patterns=["*"], revision=repo.commit, refresh=True) == snapshot
        assert hub.requests == []

    @pytest.mark.parametrize("local_files_only", [True, False])
    async def test_where_nobody_can_be_asked_the_cache_is_used(
        self, local_files_only: bool, moved: Callable[[], None], hub: HubServer
    ) -> None:
        old = await download_files([HubOrigin(REPO)], patterns=["*"])
        moved()
        hub.faults.append(Fault("info", times=99, close_at_once=True))
        found = await download_files([HubOrigin(REPO)], patterns=["*"], refresh=True, local_files_only=local_files_only)
        assert found == old
        listing = await list_files(REPO, refresh=True, local_files_only=local_files_only)
        assert listing.commit == old.name


class TestCacheFolder:
    """What earlier versions of fastembed left in the cache's root."""

    SOURCES = (HubOrigin(REPO), CacheFolderOrigin("fast-model"))

    async def test_it_is_used_without_a_request(self, repo: Repo, hub: HubServer, cache: Path) -> None:
        folder = cache / "fast-model"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"graph")
        assert await download_files(self.SOURCES, patterns=["*.json"], required=["model.onnx"]) == folder
        assert hub.requests == []

    async def test_without_the_model_it_is_not(self, repo: Repo, cache: Path) -> None:
        (cache / "fast-model").mkdir(parents=True)
        assert (await download_files(self.SOURCES, patterns=["*.json"])).name == repo.commit
        assert (await download_files(self.SOURCES, patterns=[], required=["onnx/model.onnx"])).name == repo.commit

    async def test_where_there_is_none_only_the_repo_is_complained_of(self, repo: Repo) -> None:
        with pytest.raises(RepoFileNotFoundError, match=r"absent\.onnx"):
            await download_files(self.SOURCES, patterns=[], required=["absent.onnx"])
        with pytest.raises(NotCachedError, match="org/model"):
            await download_files(self.SOURCES, patterns=[], required=["onnx/model.onnx"], local_files_only=True)
