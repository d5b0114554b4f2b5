"""A server's own unix socket: its rights, and whose place it never takes."""

import os
import socket
from pathlib import Path
from stat import S_IMODE

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.posix]

UNIX: int = getattr(socket, "AF_UNIX", 0)
"""Which Windows has not."""


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_a_socket_has_the_rights_that_are_wanted_before_anybody_can_connect(tmp_path: Path, umask: int) -> None:
    from asyncembed.cli.unix_socket import place

    path = tmp_path / "socket"
    before = os.umask(umask)
    try:
        with place(path, 0o660), socket.socket(UNIX) as client:
            assert S_IMODE(path.stat().st_mode) == 0o660
            with pytest.raises(ConnectionRefusedError):
                client.connect(str(path))
    finally:
        os.umask(before)
    assert not path.exists()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("waiting", [0, 1])
def test_a_place_where_somebody_listens_is_not_taken(tmp_path: Path, kind: socket.SocketKind, waiting: int) -> None:
    from asyncembed.cli.unix_socket import place

    path = tmp_path / "socket"
    with socket.socket(UNIX, kind) as other, socket.socket(UNIX, kind) as client:
        other.bind(str(path))
        if kind == socket.SOCK_STREAM:
            other.listen(0)
        if waiting:  # and no other one can
            client.connect(str(path))
        with pytest.raises(OSError, match="another server listens there"), place(path, 0o660):
            pass
        assert path.exists()


def test_the_socket_of_a_server_that_has_died_is_replaced(tmp_path: Path) -> None:
    from asyncembed.cli.unix_socket import place

    path = tmp_path / "socket"
    with socket.socket(UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    with place(path, 0o660) as taken, socket.socket(UNIX) as client:
        taken.socket.listen()
        client.connect(str(path))


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_is_no_socket_is_left_where_it_is(tmp_path: Path, kind: str) -> None:
    from asyncembed.cli.unix_socket import place

    path = tmp_path / "mine"
    (tmp_path / "content").write_text("all that I have", "utf-8")
    match kind:
        case "file":
            path.write_text("all that I have", "utf-8")
        case "link":
            path.symlink_to("content")
        case _:
            path.mkdir()
    with pytest.raises(FileExistsError, match="no socket"), place(path, 0o660):
        pass
    assert path.is_dir() or path.read_text("utf-8") == "all that I have"


def test_the_socket_of_a_later_server_is_not_removed_by_an_earlier_one(tmp_path: Path) -> None:
    from asyncembed.cli.unix_socket import place

    path = tmp_path / "socket"
    with place(path, 0o660) as first:
        with place(path, 0o660) as second:
            assert second.is_ours
            assert not first.is_ours
            first.leave()
            assert path.exists()
        assert not path.exists()


def test_a_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    from asyncembed.cli.unix_socket import place

    with pytest.raises(OSError, match="too long") as failed, place(tmp_path / ("a" * 200), 0o660):
        pass
    assert str(tmp_path) in str(failed.value)
