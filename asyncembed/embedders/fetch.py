"""Images from URLs, which may come from anybody: bounded in size, time and number, and never from a private address.

A URL is data of the caller's users as often as not, and a service that fetches it sees more of the network than they do
(server-side request forgery). So a host name is resolved here, only public addresses are connected to, and it is
the checked address itself that is connected to, not the name once more; each redirect is checked likewise.
"""

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from socket import SOCK_STREAM
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit, urlunsplit

import anyio
from anyio import CancelScope, Lock, Semaphore

from asyncembed.errors import InputError

if TYPE_CHECKING:
    from asyncembed.http import httpx

CONCURRENCY = 16
MAX_REDIRECTS = 5
MAX_BYTES = 32 * 1024 * 1024
TIMEOUT_SECONDS = 30.0
CONNECT_SECONDS = 10.0

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_url(text: str) -> bool:
    """Whether a text is a URL to fetch, rather than a path."""
    return text[:8].lower().startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """What a URL may cost.

    Attributes:
        allow_private: Also connect to private, loopback and link-local addresses.
        max_bytes: Most bytes of one answer.
        timeout_seconds: Most time for one URL, redirects included.
    """

    allow_private: bool = False
    max_bytes: int = MAX_BYTES
    timeout_seconds: float = TIMEOUT_SECONDS


class UrlFetcher:
    """Fetches up to `CONCURRENCY` URLs at a time. Proxies of the environment are not used: they resolve names anew."""

    def __init__(self, limits: FetchLimits) -> None:
        self._limits = limits
        self._slots = Semaphore(CONCURRENCY)
        self._lock = Lock()
        self._client: httpx.AsyncClient | None = None

    async def fetch(self, url: str) -> bytes:
        """The bytes behind `url`.

        Raises:
            InputError: It cannot be had, is too large or too slow, or leads to an address that is not public.
        """
        client = await self._open()
        async with self._slots:
            try:
                with anyio.fail_after(self._limits.timeout_seconds):
                    return await self._follow(client, url)
            except TimeoutError:
                raise InputError(
                    f"{_shown(url)} took longer than url_timeout={self._limits.timeout_seconds:g} s"
                ) from None

    async def aclose(self) -> None:
        """Close all connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    async def _open(self) -> "httpx.AsyncClient":
        async with self._lock:
            if self._client is None:
                # Loading the certificates takes some 20 ms.
                self._client = await anyio.to_thread.run_sync(_make_client)
            return self._client

    async def _follow(self, client: "httpx.AsyncClient", url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._ask(client, url)
            if isinstance(answer, bytes):
                return answer
            try:
                url = urljoin(url, answer)
            except ValueError as error:
                raise InputError(f"{_shown(url)} redirects to no valid URL: {error}") from error
        raise InputError(f"{_shown(url)} redirects more than {MAX_REDIRECTS} times")

    async def _ask(self, client: "httpx.AsyncClient", url: str) -> bytes | str:
        """The body, or where it redirects to."""
        from asyncembed.http import httpx

        reason: object = "it has no address"
        for target, headers, extensions in await self._targets(url):
            try:
                async with client.stream("GET", target, headers=headers, extensions=extensions) as response:
                    if response.status_code in _REDIRECTS and "location" in response.headers:
                        return str(response.headers["location"])
                    if response.status_code != 200:
                        raise InputError(f"{_shown(url)} cannot be fetched: HTTP status {response.status_code}")
                    return await self._body(response, url)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                reason = error  # the next address may answer
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise InputError(f"{_shown(url)} cannot be fetched: {_describe(error)}") from error
        described = _describe(reason) if isinstance(reason, Exception) else reason
        raise InputError(f"{_shown(url)} cannot be fetched: {described}")

    async def _targets(self, url: str) -> list[tuple[str, dict[str, str], dict[str, str]]]:
        """How to ask: URL, headers and extensions of a request, for each address that may be connected to."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InputError(f"{_shown(url)} is no valid URL: {error}") from error
        if parts.scheme not in ("http", "https") or not host:
            raise InputError(f"{_shown(url)} leads to {parts.scheme or 'no'}: URL; only http and https are fetched")
        if self._limits.allow_private:
            return [(url, {}, {})]
        port = port or (443 if parts.scheme == "https" else 80)
        try:
            found = await anyio.getaddrinfo(host, port, type=SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise InputError(f"{_shown(url)} cannot be fetched: {host!r} is not known ({error})") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        public = [address for address in addresses if is_public(address)]
        if not public:
            raise InputError(
                f"{_shown(url)} leads to the address {', '.join(addresses)}, which is not public; "
                "allow_private_urls=True fetches it nevertheless"
            )
        # The host's name still goes into the request and is what its certificate must name.
        name = host.encode("idna").decode("ascii") if not host.isascii() else host
        host_header = f"[{name}]" if ":" in name else name
        if parts.port is not None:
            host_header += f":{parts.port}"
        return [
            (
                urlunsplit(parts._replace(netloc=f"[{address}]:{port}" if ":" in address else f"{address}:{port}")),
                {"Host": host_header},
                {"sni_hostname": name},
            )
            for address in public
        ]

    async def _body(self, response: "httpx.Response", url: str) -> bytes:
        limit = self._limits.max_bytes
        too_large = InputError(f"{_shown(url)} is larger than max_url_bytes={limit}")
        declared = response.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise too_large
        if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            # Unpacking could make a thousand times as much of it; images are compressed as they are.
            raise InputError(f"{_shown(url)} comes compressed although that was not asked for")
        body = bytearray()
        async with _raw_bytes(response) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > limit:
                    raise too_large
        return bytes(body)


def is_public(address: str) -> bool:
    """Whether an IP address is reachable for everybody; one that embeds another is what that other one is."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner: ipaddress.IPv4Address | None = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
        elif ip.teredo is not None:
            return False
    return ip.is_global and not ip.is_multicast


def _make_client() -> "httpx.AsyncClient":
    from asyncembed.http import httpx

    return httpx.AsyncClient(
        follow_redirects=False,
        trust_env=False,
        timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=CONCURRENCY),
        headers={"Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity", "User-Agent": "asyncembed"},
    )


@asynccontextmanager
async def _raw_bytes(response: "httpx.Response") -> AsyncIterator[AsyncIterator[bytes]]:
    """The body as it comes. Leaving early ends all the generators below, which closing the outermost does not."""
    chunks = response.aiter_raw()
    try:
        yield chunks
    finally:
        with CancelScope() as scope:
            scope.cancel()
            async for _ in chunks:
                pass


def _shown(url: str) -> str:
    """The URL without what may be secret in it, and not longer than a message bears."""
    try:
        parts = urlsplit(url)
        netloc = parts.netloc.rpartition("@")[2]
        url = urlunsplit(parts._replace(netloc=netloc, query="..." if parts.query else "", fragment=""))
    except ValueError:
        url = url.partition("?")[0]
    return url if len(url) <= 200 else url[:197] + "..."


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
