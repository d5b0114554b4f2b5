"""Notices what reaches beyond this process: a process that is started, a socket that is bound or connected."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import util

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
    for seen in list(_watchers.values()):
        seen.append(what)


def _hook(event: str, arguments: tuple[object, ...]) -> None:  # noqa: ARG001 (the interpreter's signature)
    if event in _EVENTS and _watchers:
        _note(_EVENTS[event])


def _noting(start: Callable[..., int]) -> Callable[..., int]:
    def start_and_note(*arguments: object) -> int:
        _note("starts a worker")
        return start(*arguments)

    return start_and_note


sys.addaudithook(_hook)
if hasattr(util, "spawnv_passfds"):
    # How multiprocessing starts a process on POSIX: the one way that raises no audit event.
    util.spawnv_passfds = _noting(util.spawnv_passfds)
