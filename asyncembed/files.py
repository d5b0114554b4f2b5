"""Files: without ever holding up the event loop, and whole or not at all."""

import asyncio
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import IO, Literal, Protocol, TypeVar, TypeVarTuple, cast

from anyio import CancelScope, CapacityLimiter, to_thread
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


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new name beside `target`, for the block to make a file or link there; that then takes the place of `target`.

    Whoever looks meanwhile finds what was there before, or the whole of what is new. Where the block fails, nothing has
    changed. Blocks.
    """
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def default_cache_dir() -> Path:
    """Where the files are kept that we make: `$ASYNCEMBED_CACHE`, else `asyncembed` in the Hugging Face home.

    That is `$HF_HOME`, else `$XDG_CACHE_HOME/huggingface`, else `~/.cache/huggingface`. Blocks.
    """
    if chosen := os.environ.get("ASYNCEMBED_CACHE"):
        return Path(chosen).expanduser()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "asyncembed"


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

    aiofiles on asyncio; elsewhere files of our own, as aiofiles needs asyncio's loop.
    """
    if isinstance(current_token().native_token, asyncio.AbstractEventLoop):
        import aiofiles

        return cast(AbstractAsyncContextManager[BinaryFile], aiofiles.open(path, mode))
    return _DiskFile(path, mode)


class _DiskFile(AbstractAsyncContextManager[BinaryFile]):
    """A file whose methods run in the threads for disk work."""

    def __init__(self, path: str | Path, mode: Literal["rb", "wb", "r+b", "xb"]) -> None:
        self._path = path
        self._mode = mode

    async def __aenter__(self) -> BinaryFile:
        self._file = cast(IO[bytes], await in_disk_thread(Path(self._path).open, self._mode))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        with CancelScope(shield=True):
            await in_disk_thread(self._file.close)

    async def read(self, size: int = -1, /) -> bytes:
        return await in_disk_thread(self._file.read, size)

    async def write(self, data: bytes, /) -> int:
        return await in_disk_thread(self._file.write, data)

    async def seek(self, offset: int, whence: int = 0, /) -> int:
        return await in_disk_thread(self._file.seek, offset, whence)

    async def truncate(self, size: int | None = None, /) -> int:
        return await in_disk_thread(self._file.truncate, size)
