"""Files on both backends."""

from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from asyncembed.files import in_disk_thread, open_file


async def test_a_file_is_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    async with open_file(path, "xb") as file:
        await file.write(b"0123456789")
        await file.seek(4)
        await file.truncate(4)
    async with open_file(path, "r+b") as file:
        assert await file.read(2) == b"01"
        await file.write(b"x")
    async with open_file(path) as file:
        assert await file.read() == b"01x3"


async def test_an_absent_file_raises_as_usual(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with open_file(tmp_path / "absent"):
            pass


async def test_disk_work_goes_on_when_the_default_threads_are_taken() -> None:
    limiter = to_thread.current_default_thread_limiter()
    limiter.total_tokens = 1
    async with limiter:
        with anyio.fail_after(10):
            assert await in_disk_thread(sum, [1, 2, 3]) == 6
