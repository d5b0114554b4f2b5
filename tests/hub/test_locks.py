"""Turns among tasks and processes: none waits for ever, and each can be cancelled."""

from pathlib import Path

import anyio
import pytest
from filelock import FileLock

from asyncembed.hub.locks import newest_write, only_one, only_one_task


def nothing_written() -> float:
    return 0.0


@pytest.mark.slow
async def test_waiting_for_another_process_can_be_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "locks/file.lock"
    path.parent.mkdir()
    with FileLock(path):
        with anyio.move_on_after(0.2) as scope:
            async with only_one(path, nothing_written, 120):
                raise AssertionError("the lock is taken")
        assert scope.cancelled_caught
    async with only_one(path, nothing_written, 120):
        pass


@pytest.mark.slow
async def test_a_holder_that_does_nothing_holds_no_one_up(tmp_path: Path) -> None:
    path = tmp_path / "file.lock"
    with FileLock(path), anyio.fail_after(20):
        async with only_one(path, nothing_written, 0.2) as is_locked:
            assert not is_locked


async def test_the_next_task_gets_its_turn_when_one_is_cancelled_or_fails() -> None:
    order: list[str] = []
    inside = anyio.Event()
    first = anyio.CancelScope()

    async def hold() -> None:
        with first:
            async with only_one_task("key"):
                inside.set()
                await anyio.sleep_forever()

    async def follow(name: str) -> None:
        async with only_one_task("key"):
            order.append(name)

    async with anyio.create_task_group() as group:
        group.start_soon(hold)
        await inside.wait()
        group.start_soon(follow, "second")
        group.start_soon(follow, "third")
        await anyio.wait_all_tasks_blocked()
        assert order == []
        first.cancel()
    assert sorted(order) == ["second", "third"]


async def test_different_things_do_not_wait_for_each_other() -> None:
    async with only_one_task("one"), only_one_task("other"):
        pass


async def test_the_holder_of_a_lock_is_told_so(tmp_path: Path) -> None:
    async with only_one(tmp_path / "file.lock", nothing_written, 120) as is_locked:
        assert is_locked


async def test_a_lock_that_keeps_nobody_out_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On some network file systems every process gets every lock."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", lambda *args: None)
    async with only_one(tmp_path / "file.lock", nothing_written, 120) as is_locked:
        assert not is_locked


async def test_a_task_learns_whether_another_one_was_in_before_it() -> None:
    told: list[bool] = []

    async def enter() -> None:
        async with only_one_task("key") as has_waited:
            told.append(has_waited)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(enter)
    await enter()
    assert told == [False, True, True, False]


@pytest.mark.posix
def test_what_vanishes_while_its_time_is_looked_at_counts_for_nothing(tmp_path: Path) -> None:
    """As what another process downloads does when it is whole; here, a link to nothing."""
    (tmp_path / "there").touch()
    (tmp_path / "vanished").symlink_to("nothing")
    assert newest_write(tmp_path, "*") == (tmp_path / "there").stat().st_mtime
    assert newest_write(tmp_path / "vanished", "**/*") == 0.0
