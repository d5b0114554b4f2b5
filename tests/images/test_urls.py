"""Fetching images: bounded, and never from where only this machine can reach."""

import base64
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

from asyncembed.errors import InputError
from asyncembed.images.inputs import is_url
from asyncembed.images.urls import CONCURRENCY, FetchLimits, UrlFetcher, is_public
from tests.support.waiting import until
from tests.support.web import WebServer

pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer({"/a.png": b"picture", "/large": b"x" * 5000}) as web:
        yield web


@pytest.fixture
async def fetcher() -> AsyncIterator[UrlFetcher]:
    fetcher = UrlFetcher(FetchLimits(allow_private=True, max_bytes=4096, timeout_seconds=20))
    yield fetcher
    await fetcher.aclose()


async def test_a_url_is_fetched(server: WebServer, fetcher: UrlFetcher) -> None:
    assert await fetcher.fetch(f"{server.url}/a.png") == b"picture"
    assert await fetcher.fetch(f"{server.url}/redirect//a.png") == b"picture"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing", "HTTP status 404"),
        ("/status/500", "HTTP status 500"),
        ("/large", "max_url_bytes=4096"),
        ("/endless", "max_url_bytes=4096"),
        ("/packed", "compressed"),
        ("/loop", "redirects more than"),
        ("/redirect/file:///etc/passwd", "only http and https"),
        ("/redirect/http://[", "no valid URL"),
    ],
)
async def test_what_cannot_be_had_has_a_reason(server: WebServer, fetcher: UrlFetcher, path: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        await fetcher.fetch(server.url + path)
    assert await fetcher.fetch(f"{server.url}/a.png") == b"picture"


async def test_a_server_that_stalls_is_given_up(server: WebServer) -> None:
    fetcher = UrlFetcher(FetchLimits(allow_private=True, timeout_seconds=0.3))
    with pytest.raises(InputError, match=r"url_timeout=0\.3 s"):
        await fetcher.fetch(f"{server.url}/stall")
    await fetcher.aclose()


async def test_nobody_there(fetcher: UrlFetcher) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match="cannot be fetched"):
            await fetcher.fetch(f"http://127.0.0.1:{free.getsockname()[1]}/")


async def test_only_so_many_are_fetched_at_a_time(fetcher: UrlFetcher) -> None:
    with WebServer({}, meeting=CONCURRENCY) as server:
        async with anyio.create_task_group() as group:
            for _ in range(3 * CONCURRENCY):
                group.start_soon(fetcher.fetch, f"{server.url}/together")
        assert len(server.requests) == 3 * CONCURRENCY
        assert server.busiest == CONCURRENCY


async def test_private_addresses_are_not_asked(server: WebServer) -> None:
    port = server.url.rpartition(":")[2]
    fetcher = UrlFetcher(FetchLimits())
    for host in ("127.0.0.1", "localhost", "127.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "2130706433"):
        with pytest.raises(InputError, match=r"not public|is not known"):
            await fetcher.fetch(f"http://{host}:{port}/a.png")
    assert server.requests == []
    await fetcher.aclose()


async def test_the_checked_address_is_the_one_that_is_asked(
    server: WebServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A name that is public when it is looked at, and private when it is looked at again, leads nowhere private."""
    answers: list[str] = ["203.0.113.1"]
    looked_up: list[str] = []

    def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers]

    monkeypatch.setattr("asyncembed.images.urls.socket.getaddrinfo", getaddrinfo)
    # A public address, for this test: the one where the server listens.
    monkeypatch.setattr("asyncembed.images.urls.is_public", lambda address: address == "127.0.0.1")
    fetcher = UrlFetcher(FetchLimits())
    with caplog.at_level("INFO"), pytest.raises(InputError, match="an address that is not public") as refused:
        await fetcher.fetch("http://pictures.example/a.png")
    assert "203.0.113.1" in caplog.text
    assert "203.0.113.1" not in str(refused.value), "who sends URLs to a server learns nothing of its network"
    port = server.url.rpartition(":")[2]
    answers[:] = ["10.0.0.1", "127.0.0.1"]
    assert await fetcher.fetch(f"http://pictures.example:{port}/a.png") == b"picture"
    assert await fetcher.fetch(f"http://pictures.example:{port}/redirect//a.png") == b"picture"
    answers[:] = ["10.0.0.1"]
    asked = len(looked_up)
    assert await fetcher.fetch(f"http://pictures.example:{port}/a.png") == b"picture"
    assert len(looked_up) == asked, "a connection to a checked address is used again"
    await fetcher.aclose()
    with pytest.raises(InputError, match="not public"):
        await fetcher.fetch(f"http://pictures.example:{port}/a.png")
    assert set(looked_up) == {"pictures.example"}
    await fetcher.aclose()


async def test_each_redirect_is_checked(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    port = server.url.rpartition(":")[2]
    monkeypatch.setattr("asyncembed.images.urls.is_public", lambda address: address == "127.0.0.1")
    fetcher = UrlFetcher(FetchLimits())
    with pytest.raises(InputError, match="not public"):
        await fetcher.fetch(f"{server.url}/redirect/http://127.0.0.2:{port}/a.png")
    await fetcher.aclose()


async def test_hosts_of_one_address_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a TLS connection by its own name, which its certificate must bear; nobody is told of a cookie."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    known = {"one.example", "two.example", "other.example"}
    names_to("127.0.0.1", known, monkeypatch)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("one.example", "two.example").configure_cert(tls)
    asked_for: list[str] = []
    tls.sni_callback = lambda _socket, name, _context: asked_for.append(name)
    with WebServer({"/a.png": b"picture"}, tls=tls) as server:
        fetcher = UrlFetcher(FetchLimits(allow_private=True, timeout_seconds=20))
        for host in ("one.example", "two.example", "one.example", "two.example"):
            assert await fetcher.fetch(f"https://{host}:{server.port}/cookie") == b"picture"
        assert asked_for == ["one.example", "two.example"]
        assert server.connections == 2
        hosts = [headers["Host"] for _, headers in server.headers]
        assert hosts == [f"{name}.example:{server.port}" for name in ("one", "two", "one", "two")]
        assert not any("Cookie" in headers for _, headers in server.headers)
        with pytest.raises(InputError, match=r"other\.example.*(?i:certificate)"):
            await fetcher.fetch(f"https://other.example:{server.port}/a.png")
        await fetcher.aclose()


async def test_a_slow_server_of_names_holds_up_nobody(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither other hosts nor the program, whose threads are few; and closing does not wait for it."""
    answers = threading.Event()
    known = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        if host == "slow.example":
            answers.wait(60)
        return known("127.0.0.1", port, **options)

    monkeypatch.setattr("asyncembed.images.urls.socket.getaddrinfo", getaddrinfo)
    fetcher = UrlFetcher(FetchLimits(allow_private=True, timeout_seconds=1))
    try:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                for _ in range(CONCURRENCY - 1):
                    group.start_soon(fetcher.fetch, f"http://slow.example:{server.port}/a.png")
                await until(lambda: threads_named("asyncembed-image") == CONCURRENCY - 1)
                assert await fetcher.fetch(f"http://fast.example:{server.port}/a.png") == b"picture"
                with anyio.fail_after(10):
                    await anyio.to_thread.run_sync(int)
                scope.cancel()
        await fetcher.aclose()
        with pytest.raises(InputError, match="url_timeout=1 s"):
            await fetcher.fetch(f"http://slow.example:{server.port}/a.png")
        await fetcher.aclose()
    finally:
        answers.set()
    await until(lambda: threads_named("asyncembed-image") == 0)


async def test_the_next_address_is_tried(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.9", "127.0.0.1")]

    monkeypatch.setattr("asyncembed.images.urls.socket.getaddrinfo", getaddrinfo)
    fetcher = UrlFetcher(FetchLimits(allow_private=True))
    assert await fetcher.fetch(f"http://pictures.example:{server.port}/a.png") == b"picture"
    await fetcher.aclose()


async def test_a_name_and_password_go_to_their_host_alone(server: WebServer, fetcher: UrlFetcher) -> None:
    assert (
        await fetcher.fetch(f"http://me:pass%20word@127.0.0.1:{server.port}/redirect/{server.url}/a.png") == b"picture"
    )
    (_, first), (_, second) = server.headers
    assert first["Authorization"] == "Basic " + base64.b64encode(b"me:pass word").decode()
    assert "Authorization" not in second


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http://:80/",
        "http://a:99999/",
        "http://a:x/",
        "http://[::1/",
        "http://\ud800/",
        "http://xn--/a.png",
        "http://" + "a" * 5000 + "/",
        "http://" + "a." * 5000 + "/",
        "http://a/" + "b" * 100_000,
        "http://\u2100.example/",
        "http://a b/",
        "http://a\0b/",
        "HTTP://\t",
    ],
    ids=ascii,
)
async def test_whatever_a_url_is_the_error_is_ours(fetcher: UrlFetcher, url: str) -> None:
    with pytest.raises(InputError):
        await fetcher.fetch(url)


def names_to(address: str, names: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have these names, and no others, lead to `address`."""

    def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        if host not in names:
            raise socket.gaierror(f"{host} is not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr("asyncembed.images.urls.socket.getaddrinfo", getaddrinfo)


def threads_named(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("nonsense", False),
        ("192.0.0.10", False),
        ("192.0.0.192", False),
        ("192.88.99.1", False),
        ("168.63.129.16", False),
        ("168.63.129.17", True),
        ("64:ff9b:1::808:808", False),
        ("::10.0.0.1", False),
        ("::8.8.8.8", True),
        ("::ffff:0:10.0.0.1", False),
        ("::ffff:0:8.8.8.8", True),
        ("::ffff:168.63.129.16", False),
        ("64:ff9b::a83f:8110", False),
        ("2002:a83f:8110::", False),
        ("fec0::1", False),
        ("5f00::1", False),
        ("3fff::1", False),
        ("2606:4700::5efe:10.0.0.1", False),
        ("2606:4700::200:5efe:192.168.0.1", False),
        ("100.100.100.200", False),
        ("fd00:ec2::254", False),
        ("::", False),
    ],
)
def test_which_addresses_are_public(address: str, expected: bool) -> None:
    assert is_public(address) is expected


def test_what_is_a_url() -> None:
    assert is_url("https://a/b.png")
    assert is_url("HTTP://a/b.png")
    assert not is_url("httpd.png")
    assert not is_url("./http://x")


async def test_a_message_does_not_tell_secrets(fetcher: UrlFetcher) -> None:
    for host in ("127.0.0.1:1", "[::1", "1.1.1.1:bad"):  # the last two are no URLs
        with pytest.raises(InputError) as caught:
            await fetcher.fetch(f"http://user:password@{host}/a.png?token=secret")
        assert "password" not in str(caught.value)
        assert "secret" not in str(caught.value)
