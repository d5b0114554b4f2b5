"""Takes from the package what macOS and Windows lack, in every Python that is started with this folder on its path.

```
PYTHONPATH=tests/support/elsewhere pytest -m "not slow and not posix"
```
Python imports a module of this name before all else, in worker processes as well. What modules lack is missing for the
package only: the libraries that it stands on are still those of this system, and need it. How files behave there holds
for everybody. It runs on Linux, which tells by a lease whether anybody has a file open, or mapped into memory.
"""

import errno
import fcntl
import math
import os
import re
import shutil
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType, ModuleType

assert sys.platform == "linux", "elsewhere nothing needs to be taken away, and leases are unknown"

_OF_POSIX_ONLY = re.findall(
    r"\w+",
    """
    chown chroot copy_file_range fchdir fchown fork forkpty geteuid getegid getgid getgroups getloadavg getpgid
    getpgrp getpriority getsid getuid killpg lchown lockf mkfifo mknod nice openpty pidfd_open posix_fadvise
    posix_fallocate posix_spawn posix_spawnp pread preadv pwrite pwritev register_at_fork sched_getaffinity
    sched_setaffinity sched_yield sendfile seteuid setegid setgid setpgid setpriority setsid setuid statvfs sysconf
    uname wait waitid O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC
    """,
)

_SIGNALS_OF_WINDOWS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}

_TICK_SECONDS = 1 / 64
"""Of the monotonic clock on Windows, before Python 3.13."""

_FORBIDDEN_NAME = re.compile(r'(?i).*[<>:"|?*\x00-\x1f]|.*[ .]$|(con|prn|aux|nul|com[1-9]|lpt[1-9])(\.|$)')

_QUIET = signal.SIGURG
"""What a lease would tell somebody's opening by; it is ignored where nobody asks for it."""


# ---------------------------------------------------------------- modules, as the package sees them


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == "asyncembed"


def _seen(name: str, real: object, elsewhere: Mapping[str, object], module: ModuleType) -> object:
    if not _is_ours(sys._getframe(1)):
        return real
    if name not in elsewhere:
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r} elsewhere")
    return elsewhere[name]


def _change(module: ModuleType, lacking: Iterable[str], **elsewhere: object) -> None:
    """Let the package see a module without these names, and with others."""
    names = [name for name in (*lacking, *elsewhere) if name in vars(module)]
    seen = {name: property(partial(_seen, name, vars(module)[name], elsewhere)) for name in names}
    module.__class__ = type(module.__name__, (ModuleType,), seen)


def _cannot_start() -> None:
    raise ModuleNotFoundError("No module named '_posixsubprocess'")


def _signals_of_posix() -> list[str]:
    functions = ("alarm", "pause", "pthread_", "setitimer", "getitimer", "siginterrupt", "sigpending", "sigwait")
    return [
        name
        for name in dir(signal)
        if name.startswith(("SIG", "ITIMER", *functions)) and name not in (*_SIGNALS_OF_WINDOWS, "Signals")
    ]


# ---------------------------------------------------------------- files, as all see them


def _path(path: object, folder: int = -1) -> Path | None:
    """Where a call would act; None for a descriptor."""
    if isinstance(path, int):
        return None
    text = os.fsdecode(path)  # type: ignore[arg-type]
    return Path(text) if folder < 0 or text.startswith("/") else Path(f"/proc/self/fd/{folder}").readlink() / text


def _is_in_use(path: Path) -> bool:
    """Whether anybody has this file open, or mapped into memory."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, _QUIET)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False  # another user's
    finally:
        os.close(descriptor)
    return False


def _refuse_in_use(path: Path | None) -> None:
    if path is None:
        return
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else (path,)
    for file in inside:
        if _is_in_use(file):
            raise PermissionError(errno.EACCES, "used by another process", str(file))


def _refuse_name(path: Path | None) -> None:
    if path is not None and _FORBIDDEN_NAME.match(path.name):
        raise OSError(errno.EINVAL, "no name for a file", str(path))


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    react = _REACTIONS.get(event)
    if react is not None:
        react(*arguments)


def _open(path: object, mode: object, flags: int) -> None:
    where = _path(path)
    if flags & os.O_CREAT:
        _refuse_name(where)
    if where is not None and where.parts[:2] == ("/", "proc") and _is_asked_by_us():
        raise FileNotFoundError(errno.ENOENT, "there is no /proc elsewhere", str(where))


def _is_asked_by_us() -> bool:
    """Whether the package does it, by itself or through Python's own library."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if frame.f_globals is not globals() and name not in sys.stdlib_module_names:
            return name == "asyncembed"
        frame = frame.f_back
    return False


def _rename(source: object, target: object, source_folder: int, target_folder: int) -> None:
    place = _path(target, target_folder)
    _refuse_name(place)
    _refuse_in_use(_path(source, source_folder))
    _refuse_in_use(place)


def _remove(path: object, folder: int) -> None:
    _refuse_in_use(_path(path, folder))


def _make_directory(path: object, mode: int, folder: int) -> None:
    _refuse_name(_path(path, folder))


def _make_link(source: object, target: object, folder: int) -> None:
    # WinError 1314, which users get who are no developers.
    raise OSError(errno.EINVAL, "A required privilege is not held by the client", str(source), None, str(target))


_REACTIONS: dict[str, Callable[..., None]] = {
    "open": _open,
    "os.rename": _rename,
    "os.remove": _remove,
    "os.mkdir": _make_directory,
    "os.symlink": _make_link,
}


def _renaming(rename: Callable[..., None]) -> Callable[..., None]:
    def rename_to_what_is_new(source: str, target: str, **folders: int) -> None:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "File exists", str(source), None, str(target))
        rename(source, target, **folders)

    return rename_to_what_is_new


def _ticking(clock: Callable[[], float]) -> Callable[[], float]:
    return lambda: math.floor(clock() / _TICK_SECONDS) * _TICK_SECONDS


os.rename = _renaming(os.rename)
time.monotonic = _ticking(time.monotonic)
shutil._use_fd_functions = False  # type: ignore[attr-defined]
nothing: frozenset[object] = frozenset()
supports = {name: nothing for name in dir(os) if name.startswith("supports_")}
_change(os, _OF_POSIX_ONLY, name="nt", **supports)
_change(signal, _signals_of_posix())
_change(socket, ["AF_UNIX"])
_change(resource_tracker, [], ensure_running=_cannot_start)
_change(sys, [], platform="win32")
sys.addaudithook(_hook)
