"""Files: without ever holding up the event loop, and whole or not at all."""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Protocol, TypeVar, TypeVarTuple, cast

from anyio import CancelScope, CapacityLimiter, to_thread
from anyio.lowlevel import RunVar, current_token

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

IN_USE_SECONDS = 1.0
"""On Windows a file that somebody has open stays where it is, and cannot be replaced. Readers of small files and virus
scanners, which look at new ones, are done sooner; whoever maps a graph is not."""

_STEP_SECONDS = 0.01

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
        move(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Give a file (or a folder that takes no other's place) another name, in the place of what has it now. Blocks.

    Raises:
        PermissionError: It may not be. On Windows, where either is open or mapped, only after a short wait for its end.
    """
    until = time.perf_counter() + IN_USE_SECONDS
    while True:
        try:
            source.replace(target)
            return
        except PermissionError:
            if os.name != "nt" or time.perf_counter() > until:
                raise
        time.sleep(_STEP_SECONDS)


def sync(path: Path) -> None:
    """Have a file's content reach the disk, before its name says that it is whole. Blocks."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def default_cache_dir() -> Path:
    """Where the files are kept that we make: `$ASYNCEMBED_CACHE`, else `asyncembed` in the Hugging Face home.

    That is `$HF_HOME`, else `$XDG_CACHE_HOME/huggingface`, else `~/.cache/huggingface`. Blocks.
    """
    if chosen := os.environ.get("ASYNCEMBED_CACHE"):
        return Path(chosen).expanduser().absolute()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME).absolute() / "asyncembed"


class WritableFile(Protocol):
    """What both backends' open files have in common, as far as it is used here."""

    async def write(self, data: bytes, /) -> int:
        """Write all of `data`."""
        ...


def open_to_write(path: Path) -> AbstractAsyncContextManager[WritableFile]:
    """Open a file for `async with`, empty; its methods are awaited.

    aiofiles on asyncio; elsewhere files of our own, as aiofiles needs asyncio's loop.
    """
    if isinstance(current_token().native_token, asyncio.AbstractEventLoop):
        import aiofiles

        return cast(AbstractAsyncContextManager[WritableFile], aiofiles.open(path, "wb"))
    return _open_in_threads(path)


@asynccontextmanager
async def _open_in_threads(path: Path) -> AsyncIterator[WritableFile]:
    file = await in_disk_thread(path.open, "wb")
    try:
        yield _DiskFile(cast(IO[bytes], file))
    finally:
        with CancelScope(shield=True):
            await in_disk_thread(file.close)


class _DiskFile:
    """A file that the threads for disk work write."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    async def write(self, data: bytes, /) -> int:
        return await in_disk_thread(self._file.write, data)
