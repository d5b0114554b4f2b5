"""What clients may take that ask for nothing: heads without end, bodies that do not come, answers that nobody reads."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import pytest

from tests.support.waiting import WAIT_SECONDS

pytestmark = pytest.mark.slow

ANSWER = b"a" * 50_000_000

CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
NEVER = b"GET /never HTTP/1.1\r\nhost: a\r\n\r\n"
"""An answer that never comes."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body, and answers: much at /large, when the client is gone at /never, and with the body at /echo."""
    assert scope["type"] == "http"
    body = b""
    while (message := await receive()).get("more_body"):
        body += message["body"]
    if scope["path"] == "/never":
        message = await receive()
    if message["type"] == "http.disconnect":
        return
    answer = {"/large": ANSWER, "/echo": body + message["body"]}.get(scope["path"], b"ok")
    headers = [(b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


@contextmanager
def listening() -> Iterator[int]:
    """The port of a server whose connections have bounds."""
    import uvicorn

    from asyncembed.server.http_connection import BoundedConnection

    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, lifespan="off", log_config=None, http=BoundedConnection)
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def all_of(client: socket.socket) -> bytes:
    """What comes until the server ends the connection."""
    received = bytearray()
    try:
        while some := client.recv(65536):
            received += some
    except ConnectionResetError:
        pass
    return bytes(received)


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No patience with clients."""
    monkeypatch.setattr("asyncembed.server.http_connection.SENDING_SECONDS", 0.2)
    monkeypatch.setattr("asyncembed.server.http_connection.READING_SECONDS", 0.2)


@pytest.mark.parametrize("part", [b"x: " + 1000 * b"a" + b"\r\n", b"a" * 1000], ids=["many", "one"])
@pytest.mark.parametrize(
    "beginning",
    [
        pytest.param(b"GET / HTTP/1.1\r\nhost: a\r\nx-1: ", id="headers"),
        pytest.param(b"GET /", id="path"),
        pytest.param(CHUNKED + b"0\r\nx-1: ", id="trailers"),
        pytest.param(CHUNKED + b"1;x=", id="extensions of a chunk"),
    ],
)
def test_what_is_no_body_and_has_no_end_is_refused(part: bytes, beginning: bytes) -> None:
    with listening() as port, connected(port) as client:
        client.sendall(beginning)
        with pytest.raises(OSError):
            for _ in range(100_000):
                client.sendall(part)


def test_who_sends_large_headers_is_told_so() -> None:
    with listening() as port, connected(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nx: ")
        client.settimeout(0.01)
        received = b""
        while not received:
            client.sendall(b"a" * 1000)
            with suppress(TimeoutError):
                received = client.recv(1000)
        assert received.startswith(b"HTTP/1.1 431 ")


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GET / HT", id="half a head"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n", id="no body"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nab", id="half a body"),
    ],
)
def test_who_sends_no_more_is_left(sent: bytes) -> None:
    with listening() as port, connected(port) as client:
        client.sendall(sent)
        assert all_of(client) == b""


@pytest.mark.usefixtures("hurry")
def test_who_sends_slowly_is_waited_for() -> None:
    with listening() as port, connected(port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 8\r\n\r\n")
        client.settimeout(0.1)
        for _ in range(8):  # longer together than each may take
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.sendall(b"a")
        client.settimeout(WAIT_SECONDS)
        assert all_of(client).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("hurry")
def test_who_reads_nothing_of_its_answer_is_left_and_who_reads_gets_all() -> None:
    with listening() as port:
        with connected(port) as reader:
            reader.sendall(b"GET /large HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            assert all_of(reader).endswith(ANSWER)
        with connected(port) as idle:
            idle.sendall(b"GET /large HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            # Until the server has ended the connection, it hears of nothing: so it is asked by sending more.
            with pytest.raises(OSError):
                for _ in range(100_000):
                    idle.sendall(b"a" * 1000)


@pytest.mark.usefixtures("hurry")
def test_a_connection_is_kept_for_the_next_request() -> None:
    with listening() as port, connected(port) as client:
        for _ in range(3):
            client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            received = b""
            while not received.endswith(b"ok"):
                received += client.recv(1000)
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):  # though it is silent for longer than within a request
                client.recv(1)
            client.settimeout(WAIT_SECONDS)


def test_a_few_requests_may_be_sent_ahead_of_their_answers_and_no_more() -> None:
    ahead = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
    with listening() as port:
        with connected(port) as client:
            client.sendall(50 * ahead)
            client.sendall(9 * ahead + b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            assert all_of(client).count(b"ok") == 60
        with connected(port) as client:
            client.sendall(NEVER + 100 * ahead)
            assert all_of(client) == b""


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
def test_who_asks_for_another_protocol_is_answered_in_this_one(protocol: bytes) -> None:
    """As Java's own client does with each request. What lies in a body is no further request."""
    asked = b"connection: upgrade, http2-settings\r\nupgrade: " + protocol + b"\r\nhttp2-settings: AAMAAABk\r\n"
    body = b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n"
    request = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n" % len(body) + asked + b"\r\n"
    last = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    with listening() as port, connected(port) as client:
        client.sendall(request)
        client.sendall(body + request + body + last)
        answers = all_of(client)
    assert [answers.count(part) for part in (b"HTTP/1.1 200 OK", b"\r\n\r\n" + body, b"ok")] == [3, 2, 1]


def test_what_follows_a_request_is_not_answered_in_its_place() -> None:
    """Whoever waits for several answers would take the refusal of the last request for that of the first one."""
    with listening() as port:
        for wrong in (b"CONNECT a:1 HTTP/1.1\r\n\r\n", b"nonsense\r\n\r\n"):
            for before, answer in ((b"", b"HTTP/1.1 400 "), (NEVER, b"")):
                with connected(port) as client:
                    client.sendall(before + wrong)
                    assert all_of(client)[:13] == answer
