"""Images from URLs, which may come from anybody: bounded in size, time and number, and never from a private address.

A URL is data of the caller's users as often as not, and a service that fetches it sees more of the network than they do
(server-side request forgery). So a host name is resolved here, only public addresses are connected to, and it is
the checked address itself that is connected to, not the name once more; each redirect is checked likewise. Requests
have no cookies, and share no connection but with those to the same host.
"""

import base64
import ipaddress
import logging
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit, urlunsplit

from anyio import CancelScope, Event, Lock, Semaphore, current_time, fail_after, move_on_after

from asyncembed.errors import InputError, in_words
from asyncembed.images.fetch_turns import Turn, Turns
from asyncembed.wakeup import Loop, completion, start_thread

if TYPE_CHECKING:
    from asyncembed.http import httpcore, httpx

logger: logging.Logger = logging.getLogger("asyncembed")

CONCURRENCY = 32
"""URLs that are fetched at a time: twice what one stream does."""

PATIENCE_SECONDS = 2.0
"""How long a URL may take though others wait who have fewer; twice as long each time that it begins again."""

MAX_REDIRECTS = 5
MAX_BYTES = 32 * 1024 * 1024
TIMEOUT_SECONDS = 30.0
CONNECT_SECONDS = 10.0

KEEP_SECONDS = 5.0
"""How long a connection waits for the next URL of its host."""

MAX_LOOKUPS = 64
"""Host names that are looked up at a time, those included that nobody waits for any more."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {"Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity", "User-Agent": "asyncembed"}

_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",  # protocol assignments; a cloud's metadata at 192.0.0.192
            "192.88.99.0/24",  # 6to4 relays
            "168.63.129.16/32",  # a cloud's own services, on a public address
            "2001::/32",  # Teredo: leads to an IPv4 address behind somebody's NAT
            "3fff::/20",  # documentation
        ),
    )
)
"""Beside those that Python's `ipaddress` knows of, whose list depends on its version."""

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All others of IPv6 are local in some way (fec0::/10, 64:ff9b:1::/48), or nobody's yet."""

_WITH_IPV4_AT_THE_END = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "::/96",  # IPv4-compatible
            "::ffff:0:0/96",  # IPv4-mapped
            "::ffff:0:0:0/96",  # IPv4-translated (SIIT)
            "64:ff9b::/96",  # NAT64
        ),
    )
)
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})


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
        self._turns = Turns(CONCURRENCY)
        self._lock = Lock()
        self._pool: httpcore.AsyncConnectionPool | None = None

    async def fetch(self, url: str, owner: object = None) -> bytes:
        """The bytes behind `url`, of whose owner as many others are fetched as of everybody else.

        One that takes long may have to begin again later, where others wait; waiting does not count as its time.

        Raises:
            InputError: It cannot be had, is too large or too slow, or leads to an address that is not public.
        """
        pool = await self._open()
        seconds, patience = self._limits.timeout_seconds, PATIENCE_SECONDS
        while True:
            began, scope = Event(), CancelScope()
            turn = Turn(owner, patience, began.set, scope.cancel)
            try:
                await self._wait(turn, began)
                with fail_after(seconds), scope:
                    return await self._follow(pool, url)
            except TimeoutError:
                raise InputError(
                    f"{_shown(url)} took longer than url_timeout={self._limits.timeout_seconds:g} s"
                ) from None
            finally:
                self._turns.leave(turn, current_time())
            seconds -= current_time() - turn.began_at
            patience *= 2

    async def _wait(self, turn: Turn, began: Event) -> None:
        self._turns.ask(turn, current_time())
        while not began.is_set():
            with move_on_after(PATIENCE_SECONDS):
                await began.wait()
            self._turns.look(current_time())

    async def aclose(self) -> None:
        """Close all connections."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await pool.aclose()

    async def _open(self) -> "httpcore.AsyncConnectionPool":
        async with self._lock:
            if self._pool is None:
                # Loading the certificates takes some 20 ms.
                certificates = await completion(start_thread(_load_certificates))
                self._pool = _make_pool(certificates, self._limits)
            return self._pool

    async def _follow(self, pool: "httpcore.AsyncConnectionPool", url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._ask(pool, url)
            if isinstance(answer, bytes):
                return answer
            try:
                url = urljoin(url, answer)
            except ValueError as error:
                raise InputError(f"{_shown(url)} redirects to no valid URL: {error}") from error
        raise InputError(f"{_shown(url)} redirects more than {MAX_REDIRECTS} times")

    async def _ask(self, pool: "httpcore.AsyncConnectionPool", url: str) -> bytes | str:
        """The body, or where it redirects to."""
        from asyncembed.http import httpx

        target, headers = _request(url)
        timeouts = {"timeout": {"connect": CONNECT_SECONDS}}
        try:
            async with pool.stream("GET", target, headers=headers, extensions=timeouts) as response:
                answered = httpx.Headers(response.headers)
                if response.status in _REDIRECTS and "location" in answered:
                    return answered["location"]
                if response.status != 200:
                    raise InputError(f"{_shown(url)} cannot be fetched: HTTP status {response.status}")
                return await self._body(response, answered, url)
        except _NotAllowed as error:
            raise InputError(f"{_shown(url)} {error}") from error.__cause__
        except InputError:
            raise
        except Exception as error:  # httpcore's errors have no base of their own
            raise InputError(f"{_shown(url)} cannot be fetched: {in_words(error)}") from error

    async def _body(self, response: "httpcore.Response", headers: "httpx.Headers", url: str) -> bytes:
        from asyncembed.http import reading

        limit = self._limits.max_bytes
        too_large = InputError(f"{_shown(url)} is larger than max_url_bytes={limit}")
        declared = headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit):
            raise too_large
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            # Unpacking could make a thousand times as much of it; images are compressed as they are.
            raise InputError(f"{_shown(url)} comes compressed although that was not asked for")
        body = bytearray()
        async with reading(response.aiter_stream()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > limit:
                    raise too_large
        return bytes(body)


class _NotAllowed(Exception):  # noqa: N818 (never leaves this module)
    """A host that may not be connected to, or that is not known."""


class _Resolver:
    """From a host to the addresses that may be connected to."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._lookups = Semaphore(MAX_LOOKUPS)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        try:
            addresses = await self._look_up(host, port)
        except (OSError, UnicodeError, ValueError, RuntimeError) as error:
            raise _NotAllowed(f"cannot be fetched: {host!r} is not known ({error})") from error
        allowed = [address for address in addresses if self._allow_private or is_public(address)]
        if not allowed:
            # Not in the error: whoever sends URLs to a server would learn the addresses of its network.
            logger.info("%s leads to %s, which is not public", host, ", ".join(addresses))
            raise _NotAllowed("leads to an address that is not public; allow_private_urls=True fetches it nevertheless")
        return allowed

    async def _look_up(self, host: str, port: int) -> Sequence[str]:
        """Look `host` up in a thread of its own: a server of names that does not answer holds up nothing else."""
        if _is_address(host):
            return (host,)
        await self._lookups.acquire()
        loop = Loop()
        try:
            found = start_thread(_addresses_of, host, port)
        except BaseException:
            self._lookups.release()
            raise
        found.add_done_callback(lambda _: loop.post(self._lookups.release))
        return await completion(found)


def _addresses_of(host: str, port: int) -> Sequence[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _load_certificates() -> ssl.SSLContext:
    from asyncembed.http import httpx

    return httpx.create_ssl_context()


def _make_pool(certificates: ssl.SSLContext, limits: FetchLimits) -> "httpcore.AsyncConnectionPool":
    from asyncembed.http import httpcore
    from asyncembed.images.connecting import CheckedNetwork

    network = CheckedNetwork(_Resolver(allow_private=limits.allow_private))
    return httpcore.AsyncConnectionPool(
        certificates, max_connections=CONCURRENCY, keepalive_expiry=KEEP_SECONDS, network_backend=network
    )


def _request(url: str) -> "tuple[httpcore.URL, list[tuple[bytes, bytes]]]":
    """What is asked for, and the headers that go with it."""
    from asyncembed.http import httpcore, httpx

    try:
        parsed = httpx.URL(url)
        target = httpcore.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path)
        headers = [(b"Host", parsed.netloc), *((key.encode(), value.encode()) for key, value in _HEADERS.items())]
        if parsed.userinfo:
            name = f"{parsed.username}:{parsed.password}".encode()
            headers.append((b"Authorization", b"Basic " + base64.b64encode(name)))
    except (httpx.InvalidURL, ValueError) as error:
        raise InputError(f"{_shown(url)} is no valid URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.raw_host:
        raise InputError(f"{_shown(url)} leads to {parsed.scheme or 'no'}: URL; only http and https are fetched")
    return target, headers


def is_public(address: str) -> bool:
    """Whether an IP address is reachable for everybody; one that embeds another is what that other one is."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if any(ip in network for network in _NOT_PUBLIC):
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = _embedded_ipv4(ip)
        if embedded is not None:
            return is_public(str(embedded))
        if ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast


def _embedded_ipv4(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The address of the other family to which something on the way may translate this one."""
    if ip.sixtofour is not None:
        return ip.sixtofour
    is_at_the_end = any(ip in network for network in _WITH_IPV4_AT_THE_END)
    if is_at_the_end or int(ip) >> 32 & 0xFFFFFFFF in _ISATAP:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


def _shown(url: str) -> str:
    """The URL without what may be secret in it, and not longer than a message bears."""
    try:
        parts = urlsplit(url)
        netloc = parts.netloc.rpartition("@")[2]
        url = urlunsplit(parts._replace(netloc=netloc, query="..." if parts.query else "", fragment=""))
    except ValueError:
        scheme, _, rest = url.partition("?")[0].partition("://")
        url = f"{scheme}://{rest.rpartition('@')[2]}"
    return url if len(url) <= 200 else url[:197] + "..."
