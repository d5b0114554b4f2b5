"""A server's own unix socket: with rights that are given to it, and never taken from a server that is there."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn

from asyncembed.cli.http_server import HttpServer, log
from asyncembed.errors import OptionError


class Place:
    """A path with a socket of ours, at which nobody can connect before somebody listens."""

    def __init__(self, path: Path, bound: socket.socket) -> None:
        self.path = path
        self.socket = bound
        self._file: tuple[int, int] | None = _identity(path)

    @property
    def is_ours(self) -> bool:
        """Whether it is still there."""
        return self._file is not None and _identity(self.path) == self._file

    def leave(self) -> None:
        """Remove it. It is open still: else another server's socket, made by now, might have its number."""
        if self.is_ours:
            self.path.unlink()
        self._file = None


@contextmanager
def place(path: Path, mode: int) -> Iterator[Place]:
    """Take the path, from a server that has died at most; it is free again in the end.

    Raises:
        OptionError: This system has no unix sockets that Python knows.
        OSError: A server is there, or what is no socket; or there can be none.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise OptionError("--uds: Python has no unix sockets on this system; use --host and --port")
    _free(path, socket.AF_UNIX)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        _bind(bound, path, mode)
        taken = Place(path, bound)
        try:
            yield taken
        finally:
            taken.leave()


def _bind(bound: socket.socket, path: Path, mode: int) -> None:
    """Make the socket with its rights: what is changed later may be what somebody else has put there by then."""
    before = os.umask(0o777 & ~mode)
    try:
        bound.bind(str(path))
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error} (--uds)", str(path)) from error
    finally:
        os.umask(before)


def _free(path: Path, family: socket.AddressFamily) -> None:
    """Remove the socket of a server that has died. Raises OSError for anything else that is there."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file already, which is no socket (--uds)", str(path))
    except FileNotFoundError:
        return
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # for one with too many who wait
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:  # nobody listens
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except PermissionError as error:
            raise PermissionError(error.errno, "there is a socket of somebody else (--uds)", str(path)) from error
        except OSError:
            pass  # somebody does, in some way
    raise OSError(errno.EADDRINUSE, "another server listens there (--uds)", str(path))


def _identity(path: Path) -> tuple[int, int] | None:
    """Of a file, as long as it is open or there; None: there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class SocketServer(HttpServer):
    """Uvicorn at such a place: says when it listens, and ends if another server has taken it in the meantime.

    That one was started while this one opened its models, and could not know that somebody would listen.
    """

    def __init__(self, config: uvicorn.Config, at: Place) -> None:
        super().__init__(config)
        self._at = at
        self.is_too_late: bool = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the models, and listen."""
        await super().startup(sockets)
        if self._at.is_ours:
            log.info("Uvicorn running on unix socket %s (Press CTRL+C to quit)", self._at.path)
        else:
            self.should_exit = self.is_too_late = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Make room for the next server, and finish what is under way."""
        self._at.leave()
        await super().shutdown(sockets)

    def run(self, _: list[socket.socket] | None = None) -> None:
        """Serve until it is told to end.

        Raises:
            OSError: Another server has taken the place.
        """
        super().run([self._at.socket])
        if self.is_too_late:
            raise OSError(
                errno.EADDRINUSE, "another server was started there in the meantime (--uds)", str(self._at.path)
            )
