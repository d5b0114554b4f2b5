"""Fetching images: bounded, and never from where only this machine can reach."""

import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from asyncembed.embedders.fetch import CONCURRENCY, FetchLimits, UrlFetcher, is_public, is_url
from asyncembed.errors import InputError
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


async def test_only_so_many_are_fetched_at_a_time(server: WebServer, fetcher: UrlFetcher) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(3 * CONCURRENCY):
            group.start_soon(fetcher.fetch, f"{server.url}/a.png")
    assert len(server.requests) == 3 * CONCURRENCY
    assert 1 < server.busiest <= CONCURRENCY


async def test_private_addresses_are_not_asked(server: WebServer) -> None:
    port = server.url.rpartition(":")[2]
    fetcher = UrlFetcher(FetchLimits())
    for host in ("127.0.0.1", "localhost", "127.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "2130706433"):
        with pytest.raises(InputError, match=r"not public|is not known"):
            await fetcher.fetch(f"http://{host}:{port}/a.png")
    assert server.requests == []
    await fetcher.aclose()


async def test_the_checked_address_is_the_one_that_is_asked(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when it is looked at, and private when it is looked at again, leads nowhere private."""
    answers: list[str] = ["203.0.113.1"]
    looked_up: list[str] = []

    async def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers]

    monkeypatch.setattr("asyncembed.embedders.fetch.anyio.getaddrinfo", getaddrinfo)
    # A public address, for this test: the one where the server listens.
    monkeypatch.setattr("asyncembed.embedders.fetch.is_public", lambda address: address == "127.0.0.1")
    fetcher = UrlFetcher(FetchLimits())
    with pytest.raises(InputError, match=r"203\.0\.113\.1, which is not public"):
        await fetcher.fetch("http://pictures.example/a.png")
    port = server.url.rpartition(":")[2]
    answers[:] = ["10.0.0.1", "127.0.0.1"]
    assert await fetcher.fetch(f"http://pictures.example:{port}/a.png") == b"picture"
    assert await fetcher.fetch(f"http://pictures.example:{port}/redirect//a.png") == b"picture"
    answers[:] = ["10.0.0.1"]
    with pytest.raises(InputError, match="not public"):
        await fetcher.fetch(f"http://pictures.example:{port}/a.png")
    assert set(looked_up) == {"pictures.example"}
    await fetcher.aclose()


async def test_each_redirect_is_checked(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    port = server.url.rpartition(":")[2]
    monkeypatch.setattr("asyncembed.embedders.fetch.is_public", lambda address: address == "127.0.0.1")
    fetcher = UrlFetcher(FetchLimits())
    with pytest.raises(InputError, match="not public"):
        await fetcher.fetch(f"{server.url}/redirect/http://127.0.0.2:{port}/a.png")
    await fetcher.aclose()


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
    with pytest.raises(InputError) as caught:
        await fetcher.fetch("http://user:password@127.0.0.1:1/a.png?token=secret")
    assert "password" not in str(caught.value)
    assert "secret" not in str(caught.value)
