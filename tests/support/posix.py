"""What only POSIX has, for tests that are marked so: for type checkers of other systems it is not there at all."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ELSEWHERE = "there is no such thing on this system: mark the test with @pytest.mark.posix"


def make_pipe(path: Path) -> None:
    """Make a pipe that has a name."""
    if sys.platform == "win32":
        raise NotImplementedError(_ELSEWHERE)
    os.mkfifo(path)


@contextmanager
def room_for(size_bytes: int) -> Iterator[None]:
    """Have no file of this process grow beyond so many bytes, as on a disk that is full."""
    if sys.platform == "win32":
        raise NotImplementedError(_ELSEWHERE)
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def give_away(path: Path) -> None:
    """Make a file or link another user's; only root can."""
    if sys.platform == "win32":
        raise NotImplementedError(_ELSEWHERE)
    os.lchown(path, 12345, 12345)


def user_id() -> int:
    """Who this process acts as; 0 is root."""
    if sys.platform == "win32":
        raise NotImplementedError(_ELSEWHERE)
    return os.geteuid()


def is_root() -> bool:
    """Whether permissions mean nothing to this process."""
    return sys.platform != "win32" and user_id() == 0


def act_as(user: int) -> None:
    """Act as another user, or as root again."""
    if sys.platform == "win32":
        raise NotImplementedError(_ELSEWHERE)
    os.seteuid(user)


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Permissions mean nothing to root."""
    if not is_root():
        yield
        return
    act_as(65534)
    try:
        yield
    finally:
        act_as(0)


def make_read_only(folder: Path) -> None:
    """Let nobody write to a folder, and what is in it, but root."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)


def for_a_server() -> dict[str, Any]:
    """How `subprocess` starts a server, which may refuse to be root's."""
    if sys.platform == "win32" or not is_root():
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def give_to_servers(folder: Path) -> None:
    """Have the servers that are started so own a folder."""
    if owner := for_a_server():
        shutil.chown(folder, owner["user"], owner["group"])


def interrupt(process: "subprocess.Popen[bytes]") -> None:
    """Have a process end as at a terminal."""
    process.send_signal(signal.SIGINT)


def fork() -> int:
    """Go on in two processes; 0 in the new one."""
    if sys.platform == "win32":
        raise NotImplementedError(_ELSEWHERE)
    return os.fork()


def halt(pid: int) -> None:
    """Have a process do nothing, until it goes on or is killed."""
    if sys.platform == "win32":
        raise NotImplementedError(_ELSEWHERE)
    os.kill(pid, signal.SIGSTOP)


def press_ctrl_c(pid: int) -> None:
    """Send SIGINT to all processes of the session that a process has begun, as their terminal would."""
    if sys.platform == "win32":
        raise NotImplementedError(_ELSEWHERE)
    os.killpg(pid, signal.SIGINT)


def blocked_signals() -> set[int]:
    """The signals that wait in the calling thread."""
    if sys.platform == "win32":
        raise NotImplementedError(_ELSEWHERE)
    return {int(one) for one in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


def unix_socket() -> socket.socket:
    """A socket that connects to a path."""
    if sys.platform == "win32":
        raise NotImplementedError(_ELSEWHERE)
    return socket.socket(socket.AF_UNIX)


def open_terminal(columns: int = 100) -> tuple[int, int]:
    """A terminal of this width: the end that a person sits at, and the program's."""
    if sys.platform == "win32":
        raise NotImplementedError(_ELSEWHERE)
    import fcntl
    import pty
    import struct
    import termios

    person, program = pty.openpty()
    fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return person, program


def shown_in_terminal(command: Sequence[str], **options: Any) -> bytes:
    """All that a program writes into the terminal that is its standard error; it must end well."""
    terminal, end = open_terminal()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=end, **options) as child:
        os.close(end)
        shown = b""
        try:
            while chunk := os.read(terminal, 4096):
                shown += chunk
        except OSError:  # how Linux reports that the other end is closed
            pass
        assert child.wait() == 0
    os.close(terminal)
    return shown


def let_output_flow(terminal: int, *, flows: bool) -> None:
    """Have a terminal take no more characters, as Ctrl-S does, or take them again."""
    if sys.platform == "win32":
        raise NotImplementedError(_ELSEWHERE)
    import termios

    termios.tcflow(terminal, termios.TCOON if flows else termios.TCOOFF)
