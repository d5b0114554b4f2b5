"""Files on both backends."""

import threading
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from asyncembed.files import in_disk_thread, move, open_to_write, replacing


async def test_a_file_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"what was there")
    async with open_to_write(path) as file:
        await file.write(b"0123")
        await file.write(b"x3")
    assert path.read_bytes() == b"0123x3"


async def test_a_file_in_an_absent_directory_raises_as_usual(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with open_to_write(tmp_path / "absent" / "file"):
            pass


async def test_disk_work_goes_on_when_the_default_threads_are_taken() -> None:
    limiter = to_thread.current_default_thread_limiter()
    limiter.total_tokens = 1
    async with limiter:
        with anyio.fail_after(10):
            assert await in_disk_thread(sum, [1, 2, 3]) == 6


@pytest.mark.parametrize("is_there", [False, True])
def test_a_file_is_replaced_as_a_whole_or_not_at_all(is_there: bool, tmp_path: Path) -> None:
    target = tmp_path / "file"
    if is_there:
        target.write_text("old", "utf-8")
    with pytest.raises(OSError, match="the disk is full"), replacing(target) as temporary:
        temporary.write_text("ne", "utf-8")
        raise OSError("the disk is full")
    assert [path.read_text("utf-8") for path in tmp_path.iterdir()] == (["old"] if is_there else [])
    with replacing(target) as temporary:
        temporary.write_text("new", "utf-8")
        assert target.exists() == is_there
    assert [(path.name, path.read_text("utf-8")) for path in tmp_path.iterdir()] == [("file", "new")]


@pytest.mark.posix
def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("someone's own", "utf-8")
    (tmp_path / "link").symlink_to("other")
    with replacing(tmp_path / "link") as temporary:
        temporary.symlink_to("elsewhere")
    assert (tmp_path / "link").readlink() == Path("elsewhere")
    assert (tmp_path / "other").read_text("utf-8") == "someone's own"


def test_a_file_that_somebody_reads_is_replaced_all_the_same(tmp_path: Path) -> None:
    """On Windows once that is over: no longer than IN_USE_SECONDS."""
    (tmp_path / "new").write_text("new", "utf-8")
    (tmp_path / "old").write_text("old", "utf-8")
    reader = (tmp_path / "old").open("rb")
    closing = threading.Timer(0.1, reader.close)
    closing.start()
    move(tmp_path / "new", tmp_path / "old")
    closing.join()
    assert [(path.name, path.read_text("utf-8")) for path in tmp_path.iterdir()] == [("old", "new")]


def test_what_fails_to_take_a_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"), replacing(tmp_path / "folder") as temporary:
        temporary.write_text("new", "utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
