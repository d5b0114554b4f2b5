"""One download of a thing at a time: among the tasks of an event loop, and among processes.

Among processes it only saves transfers: what two of them write is right without any lock, so a lock that
cannot be had, that does not exclude (some network file systems), or whose holder hangs, holds no one up
for long.
"""

import contextlib
import errno
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import RunVar

from asyncembed.files import in_disk_thread

if TYPE_CHECKING:
    from filelock import BaseFileLock

POLL_SECONDS = 0.05
LONGEST_POLL_SECONDS = 0.5

_LOCKLESS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EACCES, errno.EPERM, errno.EROFS)
"""How a file system says that it has no locks, or none for us: a lock file may be another user's."""

logger: logging.Logger = logging.getLogger("asyncembed")


@dataclass(slots=True)
class _Turn:
    """A lock of this event loop, and how many tasks hold or await it."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    users: int = 0


_turns: RunVar[dict[str, _Turn]] = RunVar("asyncembed_turns")


@asynccontextmanager
async def only_one_task(key: str) -> AsyncIterator[bool]:
    """Let one task of this event loop in at a time; it gets whether another one was in before it.

    That one looks anew at what is left to do. When the one inside is cancelled, the next goes on from what it left:
    each does its own work in its own task, so no download runs without an owner.
    """
    turns = _turns.get({})
    _turns.set(turns)
    turn = turns.setdefault(key, _Turn())
    has_waited = turn.users > 0
    turn.users += 1
    try:
        async with turn.lock:
            yield has_waited
    finally:
        turn.users -= 1
        if not turn.users:
            del turns[key]


@asynccontextmanager
async def only_one(lock_path: Path, watch: Callable[[], float], stuck_seconds: float) -> AsyncIterator[bool]:
    """Let one task in at a time, in all processes that use `lock_path`; it gets whether it is surely the only one.

    `watch` tells when the holder last wrote something, in seconds since the epoch. When that is `stuck_seconds` ago,
    we go on without the lock.

    Raises:
        OSError: The lock file cannot be made, for another reason than that there are no locks for us.
    """
    async with only_one_task(str(lock_path)):
        lock = await in_disk_thread(_make_lock, lock_path)
        waiting_since = time.time()
        wait = POLL_SECONDS
        try:
            # Polled, so that no thread is blocked and a cancellation is heard at once.
            while (state := await in_disk_thread(_try_acquire, lock)) is _State.TAKEN:
                last_write = max(await in_disk_thread(watch), waiting_since)
                if time.time() - last_write > stuck_seconds:
                    logger.warning("whoever holds %s seems to be stuck; going on without the lock", lock_path)
                    break
                await anyio.sleep(wait)
                wait = min(wait * 1.5, LONGEST_POLL_SECONDS)
            yield state is _State.OURS
        finally:
            with anyio.CancelScope(shield=True):
                await in_disk_thread(lock.release)


def newest_write(folder: Path, pattern: str) -> float:
    """When what matches was last written to, in seconds since the epoch; 0.0 if there is nothing. Blocks."""
    times = [0.0]
    with contextlib.suppress(OSError):  # a folder goes
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):  # it is whole by now, and has another name
                times.append(path.stat().st_mtime)
    return max(times)


class _State(Enum):
    OURS = "we hold the lock"
    TAKEN = "somebody else does"
    NONE = "there is none for us, or one that keeps nobody out"


def _make_lock(path: Path) -> "BaseFileLock":
    from filelock import FileLock

    for directory in (path.parent, path.parent.parent):
        if directory.is_symlink():  # whoever made it chooses where we make files
            raise OSError(errno.ELOOP, "a link where a directory for locks belongs", str(directory))
    with contextlib.suppress(PermissionError):
        path.parent.mkdir(parents=True, exist_ok=True)
    # Not tied to a thread, as each call may run in another; the mode lets other users of a shared cache lock
    # it too.
    return FileLock(path, thread_local=False, mode=0o664)


def _try_acquire(lock: "BaseFileLock") -> _State:
    from filelock import Timeout

    try:
        lock.acquire(blocking=False)
        with _make_lock(Path(lock.lock_file)).acquire(blocking=False):
            return _State.NONE
    except Timeout:
        return _State.OURS if lock.is_locked else _State.TAKEN
    except NotImplementedError:
        return _State.NONE
    except OSError as error:
        if error.errno not in _LOCKLESS:
            raise
        return _State.NONE
