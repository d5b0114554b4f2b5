"""One cache, shared with the real huggingface_hub: each finds whole what the other downloaded.

`test_versions.py` runs these tests a second time, with the newest huggingface_hub.
"""

from functools import partial
from pathlib import Path

import pytest
from anyio import create_task_group, fail_after, to_thread
from huggingface_hub import constants, scan_cache_dir, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import WeakFileLock

from asyncembed.catalogue.spec import HubOrigin
from tests.hub.calls import download_files
from tests.hub.server import HubServer, Repo
from tests.support.waiting import until

pytestmark = pytest.mark.slow

REPO = "org/model"
FILES: dict[str, bytes | memoryview] = {
    "config.json": b'{"model_type": "bert"}',
    "1_Pooling/config.json": b"{}",
    "empty.txt": b"",
    "onnx/model.onnx": bytes(range(256)) * 300,
    "onnx/model.onnx_data": b"w" * 100_000,
}


@pytest.fixture(autouse=True)
def repo(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Repo:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS_WARNING", True)  # on Windows
    hub.repos[REPO] = Repo(dict(FILES), large=frozenset({"onnx/model.onnx", "onnx/model.onnx_data"}))
    return hub.repos[REPO]


def download_with_huggingface_hub(hub: HubServer, cache: Path, *, offline: bool = False) -> Path:
    return Path(snapshot_download(REPO, cache_dir=cache, endpoint=hub.url, token=False, local_files_only=offline))


async def test_what_we_download_huggingface_hub_finds_whole(repo: Repo, hub: HubServer, cache: Path) -> None:
    ours = await download_files([HubOrigin(REPO)], patterns=["*"])
    hub.requests.clear()
    theirs = await to_thread.run_sync(lambda: download_with_huggingface_hub(hub, cache, offline=True))
    assert theirs == ours
    for path, content in FILES.items():
        found = try_to_load_from_cache(REPO, path, cache_dir=cache)
        assert isinstance(found, str)
        assert Path(found).read_bytes() == content
    assert hub.requests == []


async def test_scanning_the_cache_finds_nothing_to_warn_of(repo: Repo, hub: HubServer, cache: Path) -> None:
    await download_files([HubOrigin(REPO)], patterns=["*"])
    scanned = await to_thread.run_sync(lambda: scan_cache_dir(cache))
    assert not scanned.warnings
    (found,) = scanned.repos
    (revision,) = found.revisions
    assert revision.commit_hash == repo.commit
    assert revision.refs == {"main"}
    assert {file.file_name for file in revision.files} == {Path(path).name for path in FILES}
    assert found.size_on_disk == sum(map(len, FILES.values()))


async def test_huggingface_hub_deletes_what_we_downloaded(repo: Repo, hub: HubServer, cache: Path) -> None:
    snapshot = await download_files([HubOrigin(REPO)], patterns=["*"])

    def delete() -> None:
        scan_cache_dir(cache).delete_revisions(repo.commit).execute()

    await to_thread.run_sync(delete)
    assert not snapshot.exists()
    assert await download_files([HubOrigin(REPO)], patterns=["*"]) == snapshot


async def test_what_huggingface_hub_downloads_we_use_without_a_request(repo: Repo, hub: HubServer, cache: Path) -> None:
    theirs = await to_thread.run_sync(lambda: download_with_huggingface_hub(hub, cache))
    hub.requests.clear()
    assert await download_files([HubOrigin(REPO)], patterns=["*"]) == theirs
    assert await download_files([HubOrigin(REPO)], patterns=["*"], revision=repo.commit) == theirs
    assert hub.requests == []


async def test_huggingface_hub_fills_up_what_we_began(repo: Repo, hub: HubServer, cache: Path) -> None:
    await download_files([HubOrigin(REPO)], patterns=["onnx/*"])
    hub.requests.clear()
    theirs = await to_thread.run_sync(lambda: download_with_huggingface_hub(hub, cache))
    assert not [request for request in hub.requests if "onnx" in request.path and request.method == "GET"]
    assert {p.relative_to(theirs).as_posix() for p in theirs.rglob("*") if p.is_file()} == set(FILES)


async def test_we_fill_up_what_huggingface_hub_began(repo: Repo, hub: HubServer, cache: Path) -> None:
    await to_thread.run_sync(
        lambda: snapshot_download(REPO, cache_dir=cache, endpoint=hub.url, token=False, allow_patterns="onnx/*")
    )
    hub.requests.clear()
    await download_files([HubOrigin(REPO)], patterns=["*"])
    assert not [request for request in hub.requests if "onnx" in request.path]


async def test_both_may_fill_one_cache_at_once(repo: Repo, hub: HubServer, cache: Path) -> None:
    found: list[Path] = []

    async def ours() -> None:
        found.append(await download_files([HubOrigin(REPO)], patterns=["*"]))

    async def theirs() -> None:
        found.append(await to_thread.run_sync(lambda: download_with_huggingface_hub(hub, cache)))

    async with create_task_group() as group:
        group.start_soon(theirs)
        group.start_soon(ours)
    assert found[0] == found[1]
    assert {path: (found[0] / path).read_bytes() for path in FILES} == FILES
    assert not (await to_thread.run_sync(lambda: scan_cache_dir(cache))).warnings


@pytest.mark.posix
async def test_we_link_a_blob_that_is_there_only_while_huggingface_hub_does_not(
    repo: Repo, hub: HubServer, cache: Path
) -> None:
    """It holds the blob's lock, removes whatever it finds in the link's place, and raises if it then meets a file."""
    snapshot = await download_files([HubOrigin(REPO)], patterns=["*"])
    locked, free = snapshot / "config.json", snapshot / "onnx" / "model.onnx"
    blob = locked.resolve()
    locked.unlink()
    free.unlink()
    with WeakFileLock(cache / ".locks" / "models--org--model" / f"{blob.name}.lock"):
        async with create_task_group() as group:
            group.start_soon(partial(download_files, [HubOrigin(REPO)], patterns=["*"]))
            await until(free.exists)
            with pytest.raises(TimeoutError), fail_after(0.2):
                await until(locked.exists)
            group.cancel_scope.cancel()
    assert await download_files([HubOrigin(REPO)], patterns=["*"]) == snapshot
    assert locked.resolve() == blob


async def test_without_symlinks_both_still_find_the_files(
    repo: Repo, hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    ours = await download_files([HubOrigin(REPO)], patterns=["*"])
    assert not any(path.is_symlink() for path in ours.rglob("*"))
    assert await to_thread.run_sync(lambda: download_with_huggingface_hub(hub, cache, offline=True)) == ours
    hub.requests.clear()
    assert await download_files([HubOrigin(REPO)], patterns=["*"]) == ours
    assert hub.requests == []
