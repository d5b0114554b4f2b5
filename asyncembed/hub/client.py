"""Requests to the hub, its mirrors and its content servers: redirects, tokens, refusals, stalls."""

import contextlib
import json
import logging
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import cache
from typing import TypeVar
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

import anyio

from asyncembed import __version__
from asyncembed.errors import BadTokenError, OptionError, UnexpectedAnswerError, UnreachableError
from asyncembed.files import in_disk_thread
from asyncembed.http import httpx, reading
from asyncembed.hub.access import DownloadPolicy, HubAccess
from asyncembed.hub.addresses import Secrets, origin, proxy_addresses, shown_address, split_login
from asyncembed.hub.hops import (
    Asked,
    Content,
    Follow,
    Refuse,
    Request,
    encoding,
    is_requestable,
    next_hop,
    proxy_refusal,
)
from asyncembed.hub.retry import RetryBudget, TransientError

MAX_REDIRECTS = 20
MINIMUM_BYTES_PER_SECOND = 1024
"""A connection slower than this over a whole read timeout is dropped: a trickle trips no read timeout."""

PATIENT_TIMEOUTS = 3
"""Timeouts, each for one read of a socket, in which a document of the API, or the headers of a file, must be here."""

CLOSE_GRACE_SECONDS = 5.0

ErrorT = TypeVar("ErrorT", bound=BaseException)

logger: logging.Logger = logging.getLogger("asyncembed")


class QuietURL(httpx.URL):
    """An address that is asked as a whole and shown without its query, by httpx too, which logs each request."""

    def __str__(self) -> str:
        return shown_address(super().__str__())


class Answer:
    """An answer whose body is still to come.

    Attributes:
        status: 200 or 206.
        headers: Its headers, by lower-case name.
        is_encoded: Whether the bytes on the wire are compressed, so that offsets mean nothing.
    """

    def __init__(
        self, client: "HubClient", response: httpx.Response, body: AsyncIterator[bytes], window_seconds: float
    ) -> None:
        self._client = client
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.is_encoded: bool = encoding(response) not in ("", "identity")
        self._body = body
        self._window_seconds = window_seconds
        self._left_seconds = window_seconds
        self._window_bytes = 0

    @property
    def length(self) -> int | None:
        """How many bytes the server says that the body has."""
        length = self.headers.get("content-length", "")
        return int(length) if re.fullmatch("[0-9]{1,18}", length) and not self.is_encoded else None

    @property
    def serves_ranges(self) -> bool:
        """Whether the server says that a part of it can be asked for."""
        return not self.is_encoded and self.headers.get("accept-ranges", "").strip().lower() == "bytes"

    async def receive(self) -> bytes:
        """The next bytes of the body; b"" at its end.

        Raises:
            TransientError: The connection broke, or brings too little. Only time spent waiting here counts.
        """
        started = anyio.current_time()
        try:
            with anyio.fail_after(self._left_seconds):
                chunk = await anext(self._body, b"")
        except TimeoutError:
            raise TransientError(f"only {self._window_bytes} bytes came in {self._window_seconds:g} s") from None
        except httpx.HTTPError as error:
            raise self._client.transient(error) from self._client.secrets.cause(error)
        self._window_bytes += len(chunk)
        self._left_seconds -= anyio.current_time() - started
        if self._window_bytes >= MINIMUM_BYTES_PER_SECOND * self._window_seconds:
            self._window_bytes = 0
            self._left_seconds = self._window_seconds
        return chunk


class HubClient:
    """Talks to one endpoint with one token."""

    def __init__(
        self, http: httpx.AsyncClient, endpoint: str, headers: Mapping[str, str], policy: DownloadPolicy
    ) -> None:
        """`endpoint` may carry a login, which only itself is told, in place of the token."""
        from huggingface_hub import constants

        self._http = http
        self.policy = policy
        token = next((value for name, value in headers.items() if name.lower() == "authorization"), None)
        self.secrets: Secrets = Secrets(
            token.removeprefix("Bearer ") if token else None, [endpoint, *proxy_addresses()]
        )
        self.endpoint: str
        self.endpoint, self._login = split_login(endpoint)
        self._token = token
        self._headers = {k: v for k, v in headers.items() if k.lower() != "authorization"}
        self._metadata_seconds = float(constants.HF_HUB_ETAG_TIMEOUT)
        self._content_seconds = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        self._paused_until: dict[str, float] = {}
        self._warned: set[str] = set()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def get_json(self, address: str, *, repo: str, revision: str) -> tuple[object, str | None]:
        """Get a document of the API by its path and query, and the address of its next page, if any.

        Raises:
            DownloadError: The hub refuses, or gives no usable answer after several tries.
        """
        budget = RetryBudget(self.policy, f"asking {self.endpoint} about {repo}", repo, is_first_contact=True)
        while True:
            await self._wait_for_pause(self.endpoint)
            try:
                return await self._get_json_once(address, repo, revision)
            except TransientError as error:
                await budget.wait(error)

    async def _get_json_once(self, address: str, repo: str, revision: str) -> tuple[object, str | None]:
        url = self.endpoint + address
        timeout = self._metadata_seconds
        with anyio.move_on_after(PATIENT_TIMEOUTS * timeout):  # whatever else happens: a trickle, slow redirects
            headers = {"Accept-Encoding": "gzip, deflate"}
            async with self._send(Request(url, Asked(repo, revision), headers, timeout)) as (response, at):
                body = await self._document(response, repo)
            try:
                # In a thread, as it may be large; nested too deeply, it exhausts the stack.
                document = await in_disk_thread(json.loads, self.secrets.hide_token(body))
            except (ValueError, RecursionError) as error:
                raise UnexpectedAnswerError(
                    f"{shown_address(at)} does not answer as a hub does (a login page, a proxy, or a wrong "
                    "HF_ENDPOINT?)",
                    source=repo,
                ) from self.secrets.cause(error)
            return document, self._next_page(response, at, repo)
        raise TransientError(f"{shown_address(url)} did not answer in {PATIENT_TIMEOUTS * timeout:g} s")

    async def _document(self, response: httpx.Response, repo: str) -> bytes:
        body = bytearray()
        try:
            async with _body(response) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > self.policy.document_limit_bytes:
                        raise UnexpectedAnswerError(f"{self.endpoint} sends no end of data about {repo}", source=repo)
        except httpx.HTTPError as error:
            raise self.transient(error) from self.secrets.cause(error)
        return bytes(body)

    def _next_page(self, response: httpx.Response, url: str, repo: str) -> str | None:
        """The next page's path and query, for our endpoint: whichever host it names, the token stays here."""
        link = response.links.get("next", {}).get("url")
        if link is None:
            return None
        prefix = urlsplit(self.endpoint).path
        with contextlib.suppress(ValueError):  # it is no address at all
            parts = urlsplit(urljoin(url, link))
            path = parts.path.removeprefix(prefix)
            if path.startswith("/"):  # else it would go on with the endpoint's host, and be another one's
                return urlunsplit(("", "", path, parts.query, ""))
        raise UnexpectedAnswerError(
            f"{shown_address(url)} names a next page that is none: {self.secrets.quote(link)}", source=repo
        )

    @asynccontextmanager
    async def open_content(
        self, asked: Asked, *, start: int = 0, end: int | None = None, location: str | None = None
    ) -> AsyncIterator[Answer]:
        """Ask for the bytes `[start, end)` of a file, or for all of it, and hand out the answer.

        `location` is where its content lies, as `locate` says; None: the hub is asked for it.

        Raises:
            TransientError: No answer, or one that may be another the next time.
            DownloadError: A refusal.
        """
        part = None if start == 0 and end is None else f"bytes={start}-{'' if end is None else end - 1}"
        request = self._content_request(asked, part, location)
        await self._wait_for_pause(request.url)
        async with self._send(request) as (response, _), _body(response) as body:
            yield Answer(self, response, body, self._content_seconds)

    async def locate(self, asked: Asked) -> str:
        """Where the content of a file lies now: a signed URL that serves any number of ranges.

        Where the endpoint serves the content itself, an address there.
        """
        request = self._content_request(asked, "bytes=0-0", None)
        await self._wait_for_pause(request.url)
        async with self._send(request, stops_at_content=True) as (_, location):
            return location

    def _content_request(self, asked: Asked, part: str | None, location: str | None) -> Request:
        headers = {"Accept-Encoding": "identity", "X-HF-Download-Counter": "1"}
        if part is not None:
            headers["Range"] = part
        url = f"{self.endpoint}/{asked.source}/resolve/{quote(asked.revision, safe='')}/{quote(asked.path)}"
        return Request(location or url, asked, headers, self._content_seconds, is_content_server=location is not None)

    @asynccontextmanager
    async def _send(
        self, request: Request, *, stops_at_content: bool = False
    ) -> AsyncIterator[tuple[httpx.Response, str]]:
        """Send a GET, follow redirects, and hand out the first answer that is content, and where it came from.

        With `stops_at_content` a redirect that carries a large file's metadata is not followed; its target
        comes as the second value.
        """
        for _ in range(MAX_REDIRECTS + 1):
            request = replace(request, may_authorize=request.may_authorize and self._may_see_token(request.url))
            response = await self._ask(request)
            try:
                self._log_hub_warning(response, request.url)
                has_token = request.may_authorize and self._token is not None
                match next_hop(response, request, self.secrets, has_token=has_token):
                    case Follow(target, is_content_server, has_metadata):
                        if stops_at_content and has_metadata:
                            yield response, target
                            return
                        request = replace(request, url=target, is_content_server=is_content_server)
                    case Content():
                        yield response, request.url
                        return
                    case Refuse(error):
                        self._note_pause(error, request.url)
                        raise error
            finally:
                with anyio.move_on_after(CLOSE_GRACE_SECONDS, shield=True):
                    await response.aclose()
        raise UnexpectedAnswerError(
            f"{shown_address(request.url)} redirects in circles; a login page or a proxy may be in the way",
            source=request.asked.source,
        )

    async def _ask(self, request: Request) -> httpx.Response:
        """Send one request, and give what answers; its body is still to come."""
        url, seconds = request.url, request.timeout_seconds
        try:
            sent = self._http.build_request(
                "GET",
                url,
                headers={**self._headers, **request.headers, **self._authorization(request)},
                timeout=httpx.Timeout(seconds, pool=None),
            )
            sent.url = QuietURL(sent.url)
            with anyio.fail_after(PATIENT_TIMEOUTS * seconds):
                return await self._http.send(sent, stream=True)
        except TimeoutError:
            raise TransientError(f"{shown_address(url)} did not answer in {PATIENT_TIMEOUTS * seconds:g} s") from None
        except httpx.ProxyError as error:
            raise proxy_refusal(self.secrets.quote(str(error)), request.asked.source) from self.secrets.cause(error)
        except httpx.UnsupportedProtocol:
            raise OptionError(
                f"{shown_address(url)} is no usable address: it must begin with https:// or http://"
            ) from None
        except (httpx.InvalidURL, ValueError):  # also what the loop's codec of host names raises
            raise OptionError(f"{shown_address(url)} is no usable address") from None
        except httpx.HTTPError as error:
            if (problem := _find_cause(error, ssl.SSLCertVerificationError)) is not None:
                raise _untrusted(request, problem.verify_message) from error
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                self._log_unreachable(url, error)
            raise self.transient(error, url) from self.secrets.cause(error)

    def _authorization(self, request: Request) -> dict[str, str]:
        is_endpoint = origin(request.url) == origin(self.endpoint)
        secret = self._login if is_endpoint and self._login else self._token
        return {"authorization": secret} if secret and request.may_authorize else {}

    def transient(self, error: httpx.HTTPError, url: str | None = None) -> TransientError:
        """The error for one that another try may not meet."""
        what = self.secrets.quote(str(error) or type(error).__name__)
        return TransientError(
            f"{shown_address(url)}: {what}" if url else what,
            is_unresolved=_find_cause(error, socket.gaierror) is not None,
        )

    def _may_see_token(self, url: str) -> bool:
        """Whether the token may be sent there: to the endpoint itself, or to the hub over TLS.

        A signed URL carries its own proof; content servers refuse a second one.
        """
        from huggingface_hub import constants

        if "signature=" in urlsplit(url).query.lower():
            return False
        if origin(url) == origin(self.endpoint):
            return True
        parts = urlsplit(url)
        return parts.scheme == "https" and parts.port in (None, 443) and parts.hostname in constants.HF_URL_HOSTS

    async def _wait_for_pause(self, url: str) -> None:
        """When one request was told to wait, all requests to that server do."""
        with contextlib.suppress(ValueError):  # an address that is none: the request says so
            await anyio.sleep(max(0.0, self._paused_until.get(origin(url), 0.0) - anyio.current_time()))

    def _note_pause(self, error: Exception, url: str) -> None:
        """Hold the other requests back, too, where it is their number that the server complains of."""
        if isinstance(error, TransientError) and error.status == 429:
            pause = error.pause_seconds
            if pause is not None and pause <= self.policy.longest_pause_seconds:
                self._paused_until[origin(url)] = anyio.current_time() + pause

    def _log_hub_warning(self, response: httpx.Response, url: str) -> None:
        topic, _, message = response.headers.get("x-hf-warning", "").partition(";")
        if message.strip() and topic not in self._warned and origin(url) == origin(self.endpoint):
            self._warned.add(topic)
            logger.warning("the hub says: %s", self.secrets.quote(message.strip()))

    def _log_unreachable(self, url: str, error: httpx.HTTPError) -> None:
        """Say at once, and once per server, why it takes long; the tries that follow are told as any others are."""
        if (host := origin(url)) not in self._warned:
            self._warned.add(host)
            logger.warning("%s cannot be reached (%s); trying again", host, self.secrets.quote(str(error)))


@asynccontextmanager
async def open_client(access: HubAccess) -> AsyncIterator[HubClient]:
    """Open a client for the endpoint and the token that the environment (or `access`) names now."""
    # In a thread: certificates are read from disk, and huggingface_hub may ask the network for a token.
    client = await in_disk_thread(_build, access)
    try:
        yield client
    finally:
        with anyio.move_on_after(CLOSE_GRACE_SECONDS, shield=True):
            await client.aclose()


def _build(access: HubAccess) -> HubClient:
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    token = access.token
    if token is not None and not isinstance(token, str | bool):  # its value is not shown
        raise OptionError(f"token= is a text, True, False or None, and not a {type(token).__name__}")
    try:
        headers = build_hf_headers(token=token, library_name="asyncembed", library_version=__version__)
    except OSError as error:  # token=True and none is stored, or the token file cannot be read
        raise BadTokenError(f"the token cannot be read: {error}") from error
    if not all(re.fullmatch("[ -~]*", value) for value in headers.values()):
        raise BadTokenError("the token holds characters that no token has, perhaps the end of a line: copy it anew")
    if not is_requestable(constants.ENDPOINT):
        raise OptionError("HF_ENDPOINT holds no usable address, which is one like https://huggingface.co")
    try:
        http = httpx.AsyncClient(
            verify=_certificates(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")),
            follow_redirects=False,
            limits=httpx.Limits(max_connections=None),
        )
    except httpx.InvalidURL:  # its words are pieces of the address, and one of them may be the password
        raise _unusable_settings("an address is none") from None
    except (ImportError, OSError, ValueError, ssl.SSLError) as error:
        cause = Secrets(None, proxy_addresses()).cause(error)
        raise _unusable_settings(str(cause or "an address is none")) from cause
    return HubClient(http, constants.ENDPOINT.rstrip("/"), headers, access.policy)


def _unusable_settings(reason: str) -> OptionError:
    return OptionError(
        f"the network settings of the environment cannot be used ({reason}): look at SSL_CERT_FILE, SSL_CERT_DIR, "
        "HTTPS_PROXY, HTTP_PROXY and ALL_PROXY"
    )


@cache
def _certificates(cert_file: str | None, cert_dir: str | None) -> ssl.SSLContext:  # noqa: ARG001 (httpx reads them)
    """What httpx trusts in this environment; reading it takes longer than anything else about a client."""
    return httpx.create_ssl_context()


def _body(response: httpx.Response) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
    """The bytes of the body as they come; decoded only where someone compressed them."""
    return reading(response.aiter_bytes() if encoding(response) not in ("", "identity") else response.aiter_raw())


def _untrusted(request: Request, reason: str) -> UnreachableError:
    server = origin(request.url)
    return UnreachableError(
        f"the certificate of {server} is not trusted ({reason}): a company's proxy or a login page may be in the "
        "way; name a file with that company's certificates in SSL_CERT_FILE (REQUESTS_CA_BUNDLE is not read)",
        source=request.asked.source,
    )


def _find_cause(error: BaseException, kind: type[ErrorT]) -> ErrorT | None:
    """The error of this kind that made `error` happen, if one did."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, kind):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
