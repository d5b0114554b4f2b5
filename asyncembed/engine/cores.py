"""What this process may use of the machine: its affinity, its container's limits, its share among sibling servers."""

import multiprocessing
import os
import sys
from contextlib import suppress
from logging import Logger, getLogger
from pathlib import Path

from asyncembed.engine.cgroups import cpu_quota, memory_limit

SERVERS = ("uvicorn", "gunicorn", "hypercorn", "granian", "fastapi", "daphne")
"""Web servers that run a program in several processes; the first four and fastapi take `--workers`."""

AMPLE_CORES = 4
"""Of so many, queries computed one by one take less than 3 %."""

logger: Logger = getLogger("asyncembed")


def available_cores() -> int:
    """Cores that this process may use: its affinity, its container's quota, shared out among server processes.

    `WEB_CONCURRENCY`, which web servers set or read for their number of processes, divides them; without it, the
    `--workers` of the server's command line does. So does `share_cores`.
    """
    cores, quota = _cores(), cpu_quota()
    if quota < cores:
        cores = max(1, round(quota))
    return max(1, cores // _sharers())


def has_tight_quota() -> bool:
    """Whether a container's quota of processor time is less than its cores have, and small: one worker more slows all.

    Measured with a quota of one core, 20 queries a second beside an ingest: computed by a worker of their own they take
    10 % from the ingest, as they are batched no more, and wait as long, for the next period of the quota.
    """
    return cpu_quota() < min(_cores(), AMPLE_CORES)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> float:
    """Bytes of memory that this process may use: its machine's or container's, shared out likewise; 0: not known."""
    memory = 0.0
    if sys.platform != "win32":
        with suppress(OSError, ValueError):
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(memory, memory_limit()) / _sharers()


def _sharers() -> int:
    return max(1, server_processes(), _told)


# ---------------------------------------------------------------- sibling servers


_told = 1


def share_cores(processes: int) -> None:
    """Say among how many processes the cores are to be shared out, for this one and those that are forked from it."""
    global _told
    _told = processes


def server_processes() -> int:
    """Among how many processes of a server the cores are to be shared out: this one and its siblings."""
    with suppress(ValueError):
        return int(os.environ["WEB_CONCURRENCY"]) if "WEB_CONCURRENCY" in os.environ else _from_command_line()
    return 1


def _from_command_line() -> int:
    # A server's children have its arguments: forked ones anyway, and multiprocessing hands them to spawned ones.
    server = _server(sys.argv[0] if sys.argv else "")
    arguments = sys.argv[1:]
    if server is not None:
        for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
            name, has_value, value = argument.partition("=")
            if name in ("--workers", "-w"):
                return int(value if has_value else following)
            if server == "gunicorn" and argument.startswith("-w"):
                return int(argument.removeprefix("-w"))
    elif multiprocessing.parent_process() is not None and any(name in sys.modules for name in SERVERS):
        logger.info(
            "this looks like one of several server processes: set WEB_CONCURRENCY to their number, or give workers= "
            "and threads=, so that they do not all take all cores"
        )
    return 1


def _server(program: str) -> str | None:
    """The web server that `program` is, as a script or by `python -m`."""
    path = Path(program)
    name = path.parent.name if path.name == "__main__.py" else path.stem
    return name if name in SERVERS else None
