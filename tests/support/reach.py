"""Notices what reaches beyond this process: a process that is started, a socket that is bound or connected.

What a module does while it is imported does not count: it would fall on whichever test comes first (urllib3 binds a
socket to learn whether there is IPv6; trio and older numpy run a program).
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

_EVENTS = {
    "subprocess.Popen": "starts a program",
    "os.fork": "forks",
    "os.posix_spawn": "starts a program",
    "socket.bind": "opens a socket",
    "socket.connect": "opens a socket",
}

_watchers: dict[int, list[str]] = {}


@contextmanager
def watched() -> Iterator[list[str]]:
    """What has been done since, in words; the list grows while the block runs."""
    seen: list[str] = []
    _watchers[id(seen)] = seen
    try:
        yield seen
    finally:
        del _watchers[id(seen)]


def _note(what: str) -> None:
    if not _watchers or _is_importing():
        return
    for seen in list(_watchers.values()):
        seen.append(what)


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event in _EVENTS:
        _note(_EVENTS[event])


def _is_importing() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _noting(start: Callable[..., int]) -> Callable[..., int]:
    def start_and_note(*arguments: object) -> int:
        _note("starts a worker")
        return start(*arguments)

    return start_and_note


sys.addaudithook(_hook)
if hasattr(util, "spawnv_passfds"):
    # How multiprocessing starts a process on POSIX: the one way that raises no audit event.
    util.spawnv_passfds = _noting(util.spawnv_passfds)
