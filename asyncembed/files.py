"""Files, without ever holding up the event loop."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, Protocol, TypeVar, TypeVarTuple, cast

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar, current_token

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

DISK_THREADS = 8
"""Threads per event loop for disk work, apart from anyio's default ones, which a program may have filled."""

_disk_limiter: RunVar[CapacityLimiter] = RunVar("asyncembed_disk_limiter")


async def in_disk_thread(function: Callable[[*Ts], T], *args: *Ts) -> T:
    """Run blocking disk (or hashing) work in a thread and wait for its result.

    Cancellation waits for the function to return, so give it small portions of long work.
    """
    limiter = _disk_limiter.get(None)
    if limiter is None:
        limiter = CapacityLimiter(DISK_THREADS)
        _disk_limiter.set(limiter)
    return await to_thread.run_sync(function, *args, limiter=limiter)


class BinaryFile(Protocol):
    """What both backends' open files have in common, as far as it is used here."""

    async def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes; all that is left for -1."""
        ...

    async def write(self, data: bytes, /) -> int:
        """Write all of `data`."""
        ...

    async def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to `offset`."""
        ...

    async def truncate(self, size: int | None = None, /) -> int:
        """Cut the file off at `size` bytes."""
        ...


def open_file(
    path: str | Path, mode: Literal["rb", "wb", "r+b", "xb"] = "rb"
) -> AbstractAsyncContextManager[BinaryFile]:
    """Open a file for `async with`; its methods are awaited.

    aiofiles on asyncio, anyio's own files elsewhere, as aiofiles needs asyncio's loop.
    """
    if isinstance(current_token().native_token, asyncio.AbstractEventLoop):
        import aiofiles

        return cast(AbstractAsyncContextManager[BinaryFile], aiofiles.open(path, mode))
    return _AnyioFile(path, mode)


class _AnyioFile(AbstractAsyncContextManager[BinaryFile]):
    """`anyio.open_file` as a context manager that opens on entry, as aiofiles' does."""

    def __init__(self, path: str | Path, mode: Literal["rb", "wb", "r+b", "xb"]) -> None:
        self._path = path
        self._mode = mode

    async def __aenter__(self) -> BinaryFile:
        from anyio import open_file as open_anyio_file

        self._file = await open_anyio_file(self._path, self._mode)
        return cast(BinaryFile, self._file)

    async def __aexit__(self, *exc_info: object) -> None:
        await self._file.aclose()
