"""What the control groups of a container allow this process: cores' worth of time, and memory.

Both versions of control groups are read, as systems mount either or both. A group's share is part of its parents', so
the least of them all counts. Source: the kernel's `admin-guide/cgroup-v1` and `cgroup-v2.rst`.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf
from pathlib import Path, PurePosixPath

OWN = Path("/proc/self")

_UNLIMITED_BYTES = 2**62
"""Version 1 says so many, or a page less than twice as many, where there is no limit."""


def cpu_quota(proc: Path = OWN) -> float:
    """Cores' worth of time that this process may use; infinite without a limit."""
    return _least(proc, "cpu", _quota_v2, _quota_v1)


def memory_limit(proc: Path = OWN) -> float:
    """Bytes of memory that this process and the others of its groups may use together; infinite without a limit."""
    return _least(proc, "memory", _memory_v2, _memory_v1)


def _least(proc: Path, controller: str, read_v2: Callable[[Path], float], read_v1: Callable[[Path], float]) -> float:
    """The least that any of this process's groups allows; the readers take a group's folder."""
    try:
        mounts = (proc / "mountinfo").read_text("utf-8", errors="replace").splitlines()
        memberships = (proc / "cgroup").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return inf
    own = {controllers: path for _, controllers, path in (line.split(":", 2) for line in memberships if line)}
    least = inf
    for line in mounts:
        # "36 35 98:0 /root /mount/point options optional... - type source super-options"
        before, _, after = line.partition(" - ")
        fields, described = before.split(" "), after.split(" ")
        if len(fields) < 5 or described[0] not in ("cgroup", "cgroup2"):
            continue
        is_v2 = described[0] == "cgroup2"
        path = own.get("") if is_v2 else _path_of(controller, own, described[-1])
        if path is not None:
            read = read_v2 if is_v2 else read_v1
            for folder in _groups(Path(_unescape(fields[4])), _unescape(fields[3]), path):
                least = min(least, read(folder))
    return least


def _path_of(controller: str, own: dict[str, str], super_options: str) -> str | None:
    """This process's group in a hierarchy of version 1, if that is the one of the controller."""
    if controller not in super_options.split(","):
        return None
    return next((path for controllers, path in own.items() if controller in controllers.split(",")), None)


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


def _memory_v2(folder: Path) -> float:
    return _limit(folder / "memory.max")


def _memory_v1(folder: Path) -> float:
    return _limit(folder / "memory.limit_in_bytes")


def _limit(file: Path) -> float:
    with suppress(OSError, ValueError):
        limit = int(file.read_text("utf-8"))
        return limit if 0 <= limit < _UNLIMITED_BYTES else inf
    return inf


def _unescape(field: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field
