"""The cache in a file: bounded, shared, and private."""

import os
import pickle
import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from struct import pack

import anyio
import pytest

from asyncembed import VectorCacheFile
from asyncembed.errors import OptionError
from tests.support.posix import as_ordinary_user, make_pipe, make_read_only, room_for

SMALL = 2**16


def key(number: int) -> bytes:
    return number.to_bytes(20, "big")


async def put(cache: VectorCacheFile, *numbers: int, size: int = 1000) -> None:
    await cache.put([(key(number), bytes([number % 256]) * size) for number in numbers])


async def found(cache: VectorCacheFile, *numbers: int) -> list[int]:
    values = await cache.get([key(number) for number in numbers])
    return [number for number, value in zip(numbers, values, strict=True) if value is not None]


async def changed(path: Path, statement: str, *numbers: int) -> VectorCacheFile:
    """A cache that has kept these, and whose file somebody has changed."""
    cache = VectorCacheFile(path)
    await put(cache, *numbers)
    await cache.aclose()
    with closing(sqlite3.connect(path)) as file:
        file.executescript(statement)
    return cache


async def test_what_was_kept_is_found_by_the_next_one(tmp_path: Path) -> None:
    cache = VectorCacheFile(tmp_path / "new" / "cache")
    assert await cache.get([key(1)]) == [None]
    assert not cache.path.parent.exists()  # looking makes nothing
    await put(cache, 1, 2)
    assert await found(cache, 3, 2, 1) == [2, 1]
    await cache.aclose()
    assert sorted(path.name for path in cache.path.parent.iterdir()) == ["cache"]
    again = pickle.loads(pickle.dumps(cache))
    assert await found(again, *range(1000)) == [1, 2]
    await again.aclose()


async def test_the_file_stays_within_its_bound_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = VectorCacheFile(tmp_path / "cache", max_bytes=4 * SMALL)
    await put(cache, 0)
    for number in range(1, 2000, 10):
        await put(cache, *range(number, number + 10))
        assert await found(cache, 0) == [0]
    last = await found(cache, *range(2001))
    assert 100 < len(last) < 300
    assert last[-1] == 2000
    await cache.aclose()
    assert cache.path.stat().st_size < 6 * SMALL


async def test_a_value_that_is_too_large_is_left_out(tmp_path: Path) -> None:
    cache = VectorCacheFile(tmp_path / "cache")
    await cache.put([(key(1), bytes(65 * 2**20)), (key(2), b"small")])
    assert await found(cache, 1, 2) == [2]
    await cache.aclose()


@pytest.mark.posix
async def test_it_is_its_owners_alone(tmp_path: Path) -> None:
    """Vectors tell much of their texts."""
    cache = VectorCacheFile(tmp_path / "cache")
    await put(cache, 1)
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    await cache.aclose()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER mine AFTER INSERT ON vectors BEGIN DELETE FROM vectors; END",
        "PRAGMA user_version = 99",
        "DROP TABLE counters",
        "ALTER TABLE vectors RENAME TO others; CREATE VIEW vectors AS SELECT * FROM others",
    ],
)
async def test_a_file_that_would_act_by_itself_is_refused(tmp_path: Path, statement: str) -> None:
    cache = await changed(tmp_path / "cache", statement, 1)
    with pytest.raises(OptionError, match="no cache of vectors"):
        await cache.get([key(1)])
    await cache.aclose()


async def test_a_file_may_be_replaced_while_it_is_used(tmp_path: Path) -> None:
    cache = VectorCacheFile(tmp_path / "cache")
    await put(cache, 1)
    await cache.aclose()
    cache.path.write_bytes(b"x" * 5000)
    with pytest.raises(sqlite3.DatabaseError, match=rf"{re.escape(str(cache.path))}: .*broken: remove it"):
        await cache.get([key(1)])
    cache.path.unlink()
    await put(cache, 2)
    assert await found(cache, 1, 2) == [2]
    await cache.aclose()


@pytest.mark.posix  # on Windows a file that is open stays
async def test_a_file_may_be_deleted_while_it_is_open(tmp_path: Path) -> None:
    cache = VectorCacheFile(tmp_path / "cache")
    await put(cache, 1)
    assert await found(cache, 1) == [1]
    for path in tmp_path.iterdir():
        path.unlink()
    assert await found(cache, 1) == []
    await put(cache, 2)
    assert await found(cache, 1, 2) == [2]
    await cache.aclose()
    again = VectorCacheFile(tmp_path / "cache")
    assert await found(again, 1, 2) == [2]
    await again.aclose()


@pytest.mark.posix
@pytest.mark.parametrize("name", ["cache", "cache-journal", "cache-wal"])
async def test_what_is_not_a_file_is_neither_waited_for_nor_used(name: str, tmp_path: Path) -> None:
    cache = VectorCacheFile(tmp_path / "cache")
    if name != "cache":
        await put(cache, 1)
        await cache.aclose()
    make_pipe(tmp_path / name)
    for call in (cache.get([key(1)]), put(cache, 2)):
        with pytest.raises(OptionError, match=f"{name} is not a file: name another place"):
            await call


async def test_no_journal_beside_it_deletes_another_file(tmp_path: Path) -> None:
    """As SQLite does it with the journal that it finds named as the one above."""
    cache = VectorCacheFile(tmp_path / "cache")
    await put(cache, 1)
    await cache.aclose()
    victim = tmp_path / "victim"
    victim.write_text("somebody's", "utf-8")
    magic, name = bytes.fromhex("d9d505f920a163d7"), os.fsencode(victim)
    begin = magic + pack(">IIIII", 0, 0, cache.path.stat().st_size // 4096, 512, 4096)
    end = pack(">I", 2**30 // 4096 + 1) + name + pack(">II", len(name), sum(name)) + magic
    (tmp_path / "cache-journal").write_bytes(begin.ljust(512, b"\0") + end)
    with pytest.raises(OptionError, match="would have another file deleted"):
        await cache.get([key(1)])
    assert victim.exists()


@pytest.mark.posix
async def test_where_nothing_can_be_written_it_is_read(open_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in a container's image. Of one that a process of another user writes to, what it has written is read, too."""
    closed, live = VectorCacheFile(open_folder / "ca che?#%41"), VectorCacheFile(open_folder / "live")
    for cache in (closed, live):
        await put(cache, 1)
    await closed.aclose()
    make_read_only(open_folder)
    names = sorted(path.name for path in open_folder.iterdir())
    with as_ordinary_user():
        for path in (closed.path, live.path):
            reader, other = VectorCacheFile(path), VectorCacheFile(path)
            for cache in (reader, other, reader):
                assert await found(cache, 1, 2) == [1]
                await put(cache, 2)
            assert await found(reader, 2) == []
            await reader.aclose()
            await other.aclose()
            assert caplog.text.count(f"{path}, or its folder, cannot be written") == 2  # each says it once
    assert sorted(path.name for path in open_folder.iterdir()) == names
    await live.aclose()


@pytest.mark.posix
async def test_where_nothing_can_be_written_no_stranger_is_believed_either(open_folder: Path) -> None:
    await changed(open_folder / "cache", "CREATE TRIGGER t AFTER INSERT ON vectors BEGIN SELECT 1; END", 1)
    (open_folder / "journalled").write_bytes((open_folder / "cache").read_bytes())
    (open_folder / "journalled-journal").write_bytes(bytes.fromhex("d9d505f920a163d7"))
    (open_folder / "empty").touch()
    make_read_only(open_folder)
    for name, answer in (("cache", "is no cache"), ("journalled", "another file deleted"), ("empty", "is no cache")):
        with as_ordinary_user(), pytest.raises(OptionError, match=answer):
            await VectorCacheFile(open_folder / name).get([key(1)])


@pytest.mark.parametrize("forged", ["DELETE FROM counters", "UPDATE counters SET number = 'a'"])
async def test_a_forged_number_of_its_own_is_told_as_a_broken_file(forged: str, tmp_path: Path) -> None:
    cache = await changed(tmp_path / "cache", forged, 1)
    for call in (cache.get([key(1)]), put(cache, 2)):
        with pytest.raises(sqlite3.DatabaseError, match="where a number belongs .*remove it"):
            await call


@pytest.mark.parametrize("forged", ["7", "'a'"])
async def test_a_forged_value_is_none(forged: str, tmp_path: Path) -> None:
    statement = f"UPDATE vectors SET value = {forged} WHERE key = x'{key(1).hex()}'"
    cache = await changed(tmp_path / "cache", statement, 1, 2)
    assert await cache.get([key(1), key(2)]) == [b"", b"\2" * 1000]
    await cache.aclose()


@pytest.mark.posix
async def test_on_a_full_disk_the_error_says_so_and_the_file_stays_whole(tmp_path: Path) -> None:
    cache = VectorCacheFile(tmp_path / "cache")
    await put(cache, 1)
    with room_for(100_000), pytest.raises(sqlite3.OperationalError, match=rf"{re.escape(str(cache.path))}: .*disk"):
        await put(cache, *range(2, 500))
    assert await found(cache, *range(500)) == [1]
    await put(cache, 2)
    assert await found(cache, *range(500)) == [1, 2]
    await cache.aclose()


WRITER = """
import anyio, sys
from asyncembed import VectorCacheFile
async def main():
    cache = VectorCacheFile(sys.argv[1], max_bytes=2**20)
    start = int(sys.argv[2])
    for number in range(start, start + 200, 4):
        await cache.put([(n.to_bytes(20, "big"), bytes([n % 256]) * 500) for n in range(number, number + 4)])
        await cache.get([n.to_bytes(20, "big") for n in range(400)])
    await cache.aclose()
anyio.run(main)
"""


@pytest.mark.slow
async def test_processes_write_and_read_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    async with anyio.create_task_group() as group:
        for start in ("0", "200"):
            group.start_soon(anyio.run_process, [sys.executable, "-c", WRITER, str(path), start])
    cache = VectorCacheFile(path)
    values = await cache.get([key(number) for number in range(400)])
    assert values == [bytes([number % 256]) * 500 for number in range(400)]
    await cache.aclose()


@pytest.mark.posix
@pytest.mark.slow
async def test_a_forked_child_opens_it_anew(tmp_path: Path) -> None:
    if sys.platform == "win32":
        return  # for the types: it is not collected there
    cache = VectorCacheFile(tmp_path / "cache")
    await put(cache, 1)
    child = os.fork()
    if child == 0:  # no event loop of its own: what its methods do in threads
        try:
            assert cache._get([key(1)]) != [None]
            cache._put([(key(2), b"the child's")])
        except BaseException:  # noqa: BLE001 (nothing of the parent's tests may run on here)
            os._exit(1)
        os._exit(0)
    status = await anyio.to_thread.run_sync(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status[1]) == 0
    assert await found(cache, 1, 2) == [1, 2]
    await cache.aclose()
