"""Workers that are forked by a process of their own, which has imported what they need: on Linux.

Each worker then starts in the time that its model takes, and shares the memory of what was imported. The process is a
child of this one, has one thread, loads no model and runs nothing of the caller's; so what a fork may not do (threads,
locks, event loops) is not there. It ends with its parent, and with it the workers that it has forked.

What is not documented and relied upon is told in `asyncembed.engine.spawn`; and, as CPython 3.11 has it, that
`multiprocessing.spawn._main` runs what comes through a pipe, and `popen_forkserver` numbers what a process inherits.
"""

import errno
import gc
import io
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from multiprocessing import connection, reduction, resource_tracker, spawn, util
from multiprocessing.context import set_spawning_popen
from pathlib import Path
from typing import Any

from asyncembed.engine import child

if sys.platform == "linux":
    from multiprocessing import forkserver, popen_forkserver

    _ForkServerPopen: Any = popen_forkserver.Popen
else:
    _ForkServerPopen = object

ANSWER_SECONDS = 30.0
"""What a fork may take, the imports included that come before the first one; then it is given up."""

PARENT_WATCH_SECONDS = 1.0
"""How long it may outlive a parent that was killed and has children of its own."""

MOST_DESCRIPTORS = 64

_PID = struct.Struct("q")


def _tracker() -> int:
    descriptor = resource_tracker.getfd()
    assert descriptor is not None, "it was started before"
    return descriptor


class ForkServerGone(Exception):  # noqa: N818 (reads as the event it reports)
    """It forks no more; workers can be spawned instead."""


@cache
def _has_pidfds() -> bool:
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:  # an old kernel, or a sandbox
        return False
    return True


def is_possible(threads: int) -> bool:
    """Whether workers of so many threads can be forked here: with several, libraries start them when imported."""
    return threads == 1 and _has_pidfds() and not getattr(sys, "frozen", False)


class ForkServer:
    """This process's end of it. All methods are for a thread, as they block."""

    def __init__(self, imports: Sequence[str]) -> None:
        self._imports = list(imports)
        self._environment = dict(os.environ)
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._pid: int | None = None

    def start(self, command: Sequence[str], first: str) -> None:
        """Have `command` run the server, after the code `first`; it imports, and forks afterwards."""
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = f"{theirs.fileno()}, {os.getpid()}, {self._imports!r}"
            code = (
                f"{first}import sys; sys.path[:] = {sys.path!r}; "
                f"from asyncembed.engine.fork_server import serve; serve({arguments})"
            )
            try:
                self._pid = util.spawnv_passfds(os.fsencode(command[0]), [*command, "-c", code], [theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        ours.settimeout(ANSWER_SECONDS)
        self._socket = ours

    def fork(self, descriptors: Sequence[int]) -> tuple[int, int]:
        """Process id of a new worker, and a descriptor that stands for it (a pidfd).

        The first of its `descriptors` is that which tells it what to run.

        Raises:
            ForkServerGone: There is no server, or not for a process of this environment.
            OSError: There cannot be one more process.
        """
        with self._lock:
            link = self._socket
            if link is None or self._environment != dict(os.environ):
                raise ForkServerGone
            try:
                socket.send_fds(link, [b"f"], [_tracker(), *descriptors])
                answer, received, _, _ = socket.recv_fds(link, _PID.size, 1)
            except OSError as error:
                self._give_up()
                raise ForkServerGone from error
            if len(answer) < _PID.size:
                self._give_up()
                raise ForkServerGone
        (pid,) = _PID.unpack(answer)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        if not received:  # there was no number free for it
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return pid, received[0]

    def _give_up(self) -> None:
        link, self._socket = self._socket, None
        if link is not None:
            link.close()
        pid, self._pid = self._pid, None
        if pid is not None:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def stop(self) -> None:
        """End it, and with it, soon, whatever it has forked that still runs."""
        pid = self._pid
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # whoever waits for its answer, and holds the lock, has none
        with self._lock:
            self._give_up()


class ForkedPopen(_ForkServerPopen):  # type: ignore[misc]
    """A process of multiprocessing's that `server` forks."""

    returncode: int | None

    def __init__(self, process: Any, server: ForkServer) -> None:
        self._server = server
        super().__init__(process)

    def _launch(self, process: Any) -> None:
        data = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process.name), data)
            reduction.dump(process, data)
        finally:
            set_spawning_popen(None)
        theirs, ours = os.pipe()
        try:
            self.pid, self.sentinel = self._server.fork([theirs, *self._fds])
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        # While the pipe is open, this process is there.
        self.finalizer = util.Finalize(self, util.close_fds, (ours, self.sentinel))  # type: ignore[attr-defined]
        with suppress(BrokenPipeError), open(ours, "wb", closefd=False) as file:
            file.write(data.getbuffer())

    def poll(self, flag: int = 1) -> int | None:
        if self.returncode is None:
            ready = connection.wait([self.sentinel], 0 if flag == os.WNOHANG else None)
            self.returncode = 0 if ready else None  # what it was, the server knows; nobody asks
        return self.returncode

    def _send_signal(self, sig: int) -> None:
        if self.returncode is None and sys.platform == "linux":
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.sentinel, sig)


# ---------------------------------------------------------------- the server's process


def serve(descriptor: int, parent: int, imports: Sequence[str]) -> None:
    """Import, then fork a worker for each request, until the parent is gone."""
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    child.settle_environment(threads=1)
    child.import_ahead(imports)
    gc.collect()
    gc.freeze()  # what the collector does not touch stays shared
    with suppress(OSError):
        if len([*Path("/proc/self/task").iterdir()]) == 1:
            _fork_for(socket.socket(fileno=descriptor), parent)
    # Else some library has threads, which would be missing in a fork.


def _fork_for(link: socket.socket, parent: int) -> None:
    workers: dict[int, int] = {}  # pidfd → pid
    poll = select.poll()
    poll.register(link, select.POLLIN)
    while os.getppid() == parent:
        for ready, _ in poll.poll(1000 * PARENT_WATCH_SECONDS):
            if ready in workers:
                poll.unregister(ready)
                os.waitpid(workers.pop(ready), 0)
                os.close(ready)
            elif not _answer(link, workers, poll):
                return


def _answer(link: socket.socket, workers: dict[int, int], poll: "select.poll") -> bool:
    """Fork a worker for the next request; False: there will be none."""
    request, descriptors, _, _ = socket.recv_fds(link, 1, MOST_DESCRIPTORS)
    if not request:
        return False
    try:
        pid = os.fork()
    except OSError as error:
        pid = -(error.errno or 1)
    if pid == 0:
        _become_worker(descriptors, [link.detach(), *workers])
    for descriptor in descriptors:
        os.close(descriptor)
    if pid < 0:
        link.sendall(_PID.pack(pid))
        return True
    pidfd = os.pidfd_open(pid)
    workers[pidfd] = pid
    poll.register(pidfd, select.POLLIN)
    socket.send_fds(link, [_PID.pack(pid)], [pidfd])
    return True


def _become_worker(descriptors: list[int], others: list[int]) -> None:
    code = 1
    try:
        for descriptor in others:
            os.close(descriptor)
        tracker, told_by, *inherited = descriptors
        resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]  # noqa: SLF001
        forkserver._forkserver._inherited_fds = inherited  # type: ignore[attr-defined]  # noqa: SLF001
        code = spawn._main(told_by, os.dup(told_by))  # noqa: SLF001
    except EOFError:
        pass  # the parent has given it up, or is gone
    except BaseException:  # noqa: BLE001 (nothing of it may come back to the server's loop)
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)
