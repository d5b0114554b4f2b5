"""How many cores this process may use: its affinity, its container's quota, its share among sibling servers."""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from logging import Logger, getLogger
from math import inf
from pathlib import Path, PurePosixPath

SERVERS = ("uvicorn", "gunicorn", "hypercorn", "granian", "fastapi", "daphne")
"""Web servers that run a program in several processes; the first four and fastapi take `--workers`."""

logger: Logger = getLogger("asyncembed")


def available_cores() -> int:
    """Cores that this process may use: its affinity, its container's quota, shared out among server processes.

    `WEB_CONCURRENCY`, which web servers set or read for their number of processes, divides them; without it, the
    `--workers` of the server's command line does.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    if quota < cores:
        cores = max(1, round(quota))
    return max(1, cores // max(1, server_processes()))


# ---------------------------------------------------------------- the quota of a container


def cpu_quota(proc: Path = Path("/proc/self")) -> float:
    """Cores' worth of time that the control groups of this process allow it; infinite without a limit.

    A group's time is part of its parents', so the least of them all counts. Both versions of control groups are read,
    as systems mount either or both. Source: the kernel's `admin-guide/cgroup-v1` and `cgroup-v2.rst`.
    """
    try:
        mounts = (proc / "mountinfo").read_text("utf-8", errors="replace").splitlines()
        memberships = (proc / "cgroup").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return inf
    own = {controllers: path for _, controllers, path in (line.split(":", 2) for line in memberships if line)}
    quota = inf
    for line in mounts:
        # "36 35 98:0 /root /mount/point options optional... - type source super-options"
        before, _, after = line.partition(" - ")
        fields, described = before.split(" "), after.split(" ")
        if len(fields) < 5 or described[0] not in ("cgroup", "cgroup2"):
            continue
        is_v2 = described[0] == "cgroup2"
        path = own.get("") if is_v2 else _path_of_cpu(own, described[-1])
        if path is not None:
            read = _quota_v2 if is_v2 else _quota_v1
            for folder in _groups(Path(_unescape(fields[4])), _unescape(fields[3]), path):
                quota = min(quota, read(folder))
    return quota


def _path_of_cpu(own: dict[str, str], super_options: str) -> str | None:
    """This process's group in a hierarchy of version 1, if that is the one of the cpu controller."""
    if "cpu" not in super_options.split(","):
        return None
    return next((path for controllers, path in own.items() if "cpu" in controllers.split(",")), None)


def _groups(mount_point: Path, root: str, path: str) -> Iterator[Path]:
    """The folders of the group at `path` and of all its parents that `mount_point` shows; its top is `root`."""
    inside = PurePosixPath(path)
    # A container that does not see the group's own folder sees it as the top.
    is_shown = inside.is_relative_to(root) and ".." not in inside.parts
    folder = mount_point.joinpath(*inside.relative_to(root).parts) if is_shown else mount_point
    yield folder
    while folder != mount_point:
        folder = folder.parent
        yield folder


def _quota_v2(folder: Path) -> float:
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text("utf-8").split()
        return _cores(int(quota), int(period))
    return inf


def _quota_v1(folder: Path) -> float:
    with suppress(OSError, ValueError):
        quota = int((folder / "cpu.cfs_quota_us").read_text("utf-8"))
        return _cores(quota, int((folder / "cpu.cfs_period_us").read_text("utf-8")))
    return inf


def _cores(quota: int, period: int) -> float:
    return quota / period if quota > 0 and period > 0 else inf


def _unescape(field: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field


# ---------------------------------------------------------------- sibling servers


def server_processes() -> int:
    """Among how many processes of a web server the cores are to be shared out: this one and its siblings."""
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
