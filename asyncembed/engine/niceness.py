"""Who makes way for whom on a busy machine: worker processes of a lower priority, and back.

POSIX only: elsewhere nothing is done, and all workers are alike to the system. On Linux a level is a thread's own, and
a thread that is started has that of its starter; elsewhere it is the process's. Levels are compared within a container.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LOWER_BY = 10
"""A process that is so much nicer gets a tenth of a core that it shares, and all of one that is idle."""

LOWEST = 19


def lower(pid: int) -> int | None:
    """Have a process make way for others; returns its level before, or None where nothing can be done."""
    if sys.platform == "win32":
        return None
    level = None
    with suppress(OSError):
        level = os.getpriority(os.PRIO_PROCESS, pid)
        _set(pid, min(level + LOWER_BY, LOWEST))
    return level


def raise_again(pid: int, level: int) -> bool:
    """Bring a process back to its level; returns whether that is allowed here, which takes a privilege."""
    if sys.platform == "win32":
        return True
    try:
        _set(pid, level)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return True


def _set(pid: int, level: int) -> None:
    if sys.platform == "win32":
        return
    for thread in _threads(pid):
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, thread, level)


def _threads(pid: int) -> Iterator[int]:
    """Its threads where each has a level of its own, else the process."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        yield from [int(task.name) for task in tasks.iterdir()]
    except FileNotFoundError:
        yield pid
