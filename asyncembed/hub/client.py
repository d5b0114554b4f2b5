"""Requests to the hub, its mirrors and its content servers: redirects, tokens, refusals, stalls."""

import json
import logging
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

import anyio

from asyncembed import __version__
from asyncembed.errors import (
    AccessDeniedError,
    BadTokenError,
    DownloadError,
    GatedRepoError,
    OptionError,
    RepoFileNotFoundError,
    RepoNotFoundError,
    RevisionNotFoundError,
    UnexpectedAnswerError,
    UnreachableError,
)
from asyncembed.files import in_disk_thread
from asyncembed.http import httpx
from asyncembed.hub.retry import Patience, TransientError, requested_pause

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_REDIRECTS = 20
MAX_JSON_BYTES = 64 * 2**20
"""A page of the tree is a few hundred kilobytes; more than this is not one."""

LEAST_BYTES_PER_SECOND = 1024
"""A connection slower than this over a whole read timeout is dropped: a trickle trips no read timeout."""

PATIENT_TIMEOUTS = 3
"""Timeouts, each for one read of a socket, in which a document of the API, or the headers of a file, must be here."""

CLOSE_GRACE_SECONDS = 5.0

_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_REQUEST_IDS = ("x-request-id", "x-amzn-trace-id", "x-amz-cf-id")

logger = logging.getLogger("asyncembed")


class Answer:
    """An answer whose body is still to come.

    Attributes:
        status: 200 or 206.
        headers: Its headers, by lower-case name.
        url: Where it came from, after all redirects.
        is_encoded: Whether the bytes on the wire are compressed, so that offsets mean nothing.
    """

    def __init__(self, response: httpx.Response, body: AsyncIterator[bytes], window_seconds: float) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.url = str(response.url)
        self.is_encoded = _is_encoded(response)
        self._body = body
        self._window_seconds = window_seconds
        self._left_seconds = window_seconds
        self._window_bytes = 0

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
            raise _transient(error) from error
        self._window_bytes += len(chunk)
        self._left_seconds -= anyio.current_time() - started
        if self._window_bytes >= LEAST_BYTES_PER_SECOND * self._window_seconds:
            self._window_bytes = 0
            self._left_seconds = self._window_seconds
        return chunk


class HubClient:
    """Talks to one endpoint with one token."""

    def __init__(self, http: httpx.AsyncClient, endpoint: str, headers: dict[str, str]) -> None:
        from huggingface_hub import constants

        self.endpoint = endpoint
        self._http = http
        self._authorization = {k: v for k, v in headers.items() if k.lower() == "authorization"}
        self._headers = {k: v for k, v in headers.items() if k.lower() != "authorization"}
        self._metadata_seconds = float(constants.HF_HUB_ETAG_TIMEOUT)
        self._content_seconds = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        self._paused_until: dict[str, float] = {}
        self._warned: set[str] = set()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def resolve_url(self, repo: str, commit: str, path: str) -> str:
        """Where the content of a file is asked for."""
        return f"{self.endpoint}/{repo}/resolve/{quote(commit, safe='')}/{quote(path)}"

    async def get_json(self, address: str, *, repo: str, revision: str) -> tuple[object, str | None]:
        """Get a document of the API by its path and query, and the address of its next page, if any.

        Raises:
            DownloadError: The hub refuses, or gives no usable answer after several tries.
        """
        patience = Patience(f"asking {self.endpoint} about {repo}", repo)
        while True:
            await self._wait_for_pause(self.endpoint)
            try:
                return await self._get_json_once(address, repo, revision)
            except TransientError as error:
                await patience.after(error)

    async def _get_json_once(self, address: str, repo: str, revision: str) -> tuple[object, str | None]:
        url = self.endpoint + address
        timeout = self._metadata_seconds
        with anyio.move_on_after(PATIENT_TIMEOUTS * timeout):  # whatever else happens: a trickle, slow redirects
            async with self._send(url, {}, timeout, repo=repo, revision=revision) as (response, _):
                body = bytearray()
                try:
                    async with _body(response) as chunks:
                        async for chunk in chunks:
                            body += chunk
                            if len(body) > MAX_JSON_BYTES:
                                raise UnexpectedAnswerError(
                                    f"{self.endpoint} sends no end of data about {repo}", source=repo
                                )
                except httpx.HTTPError as error:
                    raise _transient(error) from error
            try:
                document = json.loads(body)
            except ValueError as error:
                raise UnexpectedAnswerError(
                    f"{_without_query(str(response.url))} does not answer as a hub does (a login page, a "
                    "proxy, or a wrong HF_ENDPOINT?)",
                    source=repo,
                ) from error
            return document, self._next_page(response)
        raise TransientError(f"{_without_query(url)} did not answer in {PATIENT_TIMEOUTS * timeout:g} s")

    def _next_page(self, response: httpx.Response) -> str | None:
        """The next page's path and query, for our endpoint: whichever host it names, the token stays here."""
        link = response.links.get("next", {}).get("url")
        if link is None:
            return None
        parts = urlsplit(urljoin(str(response.url), link))
        prefix = urlsplit(self.endpoint).path
        path = parts.path.removeprefix(prefix) if prefix else parts.path
        return urlunsplit(("", "", path, parts.query, ""))

    @asynccontextmanager
    async def open_content(
        self,
        url: str,
        *,
        start: int = 0,
        end: int | None = None,
        is_located: bool = False,
        headers: "Mapping[str, str] | None" = None,
        repo: str | None = None,
        revision: str = "",
        path: str = "",
    ) -> AsyncIterator[Answer]:
        """Ask for the bytes `[start, end)` of a file, or for all of it, and hand out the answer.

        `is_located` says that `url` comes from `locate`; `repo`, `revision` and `path` say what is asked
        for, for the error texts.

        Raises:
            TransientError: No answer, or one that may be another the next time.
            DownloadError: A refusal.
        """
        wanted = {"Accept-Encoding": "identity", "X-HF-Download-Counter": "1", **(headers or {})}
        if start or end is not None:
            wanted["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        await self._wait_for_pause(url)
        async with (
            self._send(
                url,
                wanted,
                self._content_seconds,
                repo=repo,
                revision=revision,
                path=path,
                is_content_server=is_located,
            ) as (response, _),
            _body(response) as body,
        ):
            yield Answer(response, body, self._content_seconds)

    async def locate(self, url: str, *, repo: str, revision: str, path: str) -> str:
        """Where the content behind a resolve URL lies now: a signed URL that serves any number of ranges.

        The URL itself, where the endpoint serves the content.
        """
        headers = {"Accept-Encoding": "identity", "X-HF-Download-Counter": "1", "Range": "bytes=0-0"}
        await self._wait_for_pause(url)
        async with self._send(
            url, headers, self._content_seconds, repo=repo, revision=revision, path=path, stop_at_content=True
        ) as (_, location):
            return location

    @asynccontextmanager
    async def _send(
        self,
        url: str,
        headers: "Mapping[str, str]",
        timeout_seconds: float,
        *,
        repo: str | None,
        revision: str,
        path: str = "",
        stop_at_content: bool = False,
        is_content_server: bool = False,
    ) -> AsyncIterator[tuple[httpx.Response, str]]:
        """Send a GET, follow redirects, and hand out the first answer that is content.

        With `stop_at_content` a redirect that carries a large file's metadata is not followed; its target
        comes as the second value.
        """
        may_have_token = True
        for _ in range(MAX_REDIRECTS + 1):
            may_have_token = may_have_token and self._may_see_token(url)
            request = self._http.build_request(
                "GET",
                url,
                headers={**self._headers, **headers, **(self._authorization if may_have_token else {})},
                timeout=httpx.Timeout(timeout_seconds, pool=None),
            )
            try:
                with anyio.fail_after(PATIENT_TIMEOUTS * timeout_seconds):
                    response = await self._http.send(request, stream=True)
            except TimeoutError:
                seconds = PATIENT_TIMEOUTS * timeout_seconds
                raise TransientError(f"{_without_query(url)} did not answer in {seconds:g} s") from None
            except httpx.ProxyError as error:
                raise _proxy_refusal(str(error), repo or _origin(url)) from error
            except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
                raise OptionError(f"{_without_query(url)} is no usable address ({error})") from error
            except httpx.HTTPError as error:
                if (reason := _certificate_problem(error)) is not None:
                    raise _untrusted(url, reason, repo) from error
                raise _transient(error, url) from error
            try:
                self._log_hub_warning(response)
                if response.has_redirect_location:
                    target = urljoin(url, response.headers["location"])
                    if stop_at_content and "x-linked-etag" in response.headers:
                        yield response, target
                        return
                    is_content_server |= "x-linked-etag" in response.headers or _origin(target) != _origin(url)
                    url = target
                    continue
                if response.status_code not in (200, 206):
                    raise self._refusal(response, repo, revision, path, is_content_server)
                yield response, url
                return
            finally:
                with anyio.move_on_after(CLOSE_GRACE_SECONDS, shield=True):
                    await response.aclose()
        raise UnexpectedAnswerError(
            f"{_without_query(url)} redirects in circles; a login page or a proxy may be in the way",
            source=repo or url,
        )

    def _may_see_token(self, url: str) -> bool:
        """Whether the token may be sent there: to the endpoint itself, or to the hub over TLS.

        A signed URL carries its own proof; content servers refuse a second one.
        """
        from huggingface_hub import constants

        if "signature=" in urlsplit(url).query.lower():
            return False
        if _origin(url) == _origin(self.endpoint):
            return True
        parts = urlsplit(url)
        return parts.scheme == "https" and parts.port in (None, 443) and parts.hostname in constants.HF_URL_HOSTS

    async def _wait_for_pause(self, url: str) -> None:
        """When one request was told to wait, all requests to that server do."""
        await anyio.sleep(max(0.0, self._paused_until.get(_origin(url), 0.0) - anyio.current_time()))

    def _refusal(
        self, response: httpx.Response, repo: str | None, revision: str, path: str, is_content_server: bool
    ) -> Exception:
        """The error that an answer without content means."""
        status = response.status_code
        url = _without_query(str(response.url))
        request_id = next((response.headers[name] for name in _REQUEST_IDS if name in response.headers), None)
        answered = f"{url} answered {status}" + (f" (request {request_id})" if request_id else "")
        if status in _RETRIED_STATUSES:
            pause = requested_pause(response.headers)
            if status == 429 and pause is not None:
                self._paused_until[_origin(str(response.url))] = anyio.current_time() + pause
            return TransientError(answered, pause_seconds=pause, status=status)
        is_content_server = is_content_server and "x-error-code" not in response.headers
        if status == 416 or (is_content_server and repo is not None and status in (401, 403, 404, 410)):
            # The content is shorter than the listing says; or a signed URL has expired.
            return TransientError(answered, status=status)
        if status == 407:
            return _proxy_refusal(f"407 {response.reason_phrase}", repo or _origin(url))
        if repo is None or is_content_server:
            return DownloadError(answered, source=repo or url, path=path or None)
        return _hub_refusal(response, answered, repo, revision, path)

    def _log_hub_warning(self, response: httpx.Response) -> None:
        topic, _, message = response.headers.get("x-hf-warning", "").partition(";")
        if message.strip() and topic not in self._warned and _origin(str(response.url)) == _origin(self.endpoint):
            self._warned.add(topic)
            logger.warning("the hub says: %s", message.strip())


def _hub_refusal(response: httpx.Response, answered: str, repo: str, revision: str, path: str) -> DownloadError:
    """The error for a 4xx of the hub, which tells the reason in headers."""
    code = response.headers.get("x-error-code", "")
    message = response.headers.get("x-error-message", "")
    page = f"{response.url.scheme}://{response.url.netloc.decode()}/{repo}"
    match response.status_code, code:
        case _, "RevisionNotFound":
            return RevisionNotFoundError(f"{repo} has no revision {revision!r} ({answered})", source=repo)
        case _, "EntryNotFound":
            return RepoFileNotFoundError(f"{repo} has no file {path!r} ({answered})", source=repo, path=path)
        case _, "GatedRepo":
            return GatedRepoError(
                f"{repo} is gated: accept its terms at {page}, then give a token of that account (token= or HF_TOKEN)",
                source=repo,
            )
        case 403, _ if "disabled" in message:
            return AccessDeniedError(f"{repo} has been disabled by the hub ({answered})", source=repo)
        case 401, _ if "Invalid credentials" in message:
            return BadTokenError(
                "the hub does not know the token: renew it, or take it away (HF_TOKEN, the token file, "
                "token=), as public repos need none",
                source=repo,
            )
        case (401, _) | (_, "RepoNotFound"):
            return RepoNotFoundError(
                f"the hub shows no repo {repo!r}: either there is none of this name, or it is private and "
                "needs a token that may read it (token= or HF_TOKEN)",
                source=repo,
            )
        case 404, _ if path:
            return RepoFileNotFoundError(f"{repo} has no file {path!r} ({answered})", source=repo, path=path)
        case 404, _:
            return RepoNotFoundError(f"there is no repo {repo!r} ({answered})", source=repo)
        case 403, _:
            return AccessDeniedError(
                f"the token may not read {repo} ({answered}{': ' + message if message else ''})", source=repo
            )
        case _:
            return UnexpectedAnswerError(answered + (f": {message}" if message else ""), source=repo)


@asynccontextmanager
async def open_client(token: str | bool | None = None) -> AsyncIterator[HubClient]:
    """Open a client for the endpoint and the token that the environment (or `token`) names now."""
    # In a thread: certificates are read from disk, and huggingface_hub may ask the network for a token.
    client = await in_disk_thread(_build, token)
    try:
        yield client
    finally:
        with anyio.move_on_after(CLOSE_GRACE_SECONDS, shield=True):
            await client.aclose()


def _build(token: str | bool | None) -> HubClient:
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    try:
        headers = build_hf_headers(token=token, library_name="asyncembed", library_version=__version__)
    except OSError as error:  # token=True and none is stored, or the token file cannot be read
        raise BadTokenError(f"the token cannot be read: {error}") from error
    try:
        http = httpx.AsyncClient(
            verify=_certificates(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")),
            follow_redirects=False,
            limits=httpx.Limits(max_connections=None),
        )
    except (ImportError, OSError, ValueError, ssl.SSLError, httpx.InvalidURL) as error:
        raise OptionError(
            f"the network settings of the environment cannot be used ({error}): look at SSL_CERT_FILE, "
            "SSL_CERT_DIR, HTTPS_PROXY, HTTP_PROXY and ALL_PROXY"
        ) from error
    return HubClient(http, constants.ENDPOINT.rstrip("/"), headers)


@cache
def _certificates(cert_file: str | None, cert_dir: str | None) -> ssl.SSLContext:  # noqa: ARG001 (httpx reads them)
    """What httpx trusts in this environment; reading it takes longer than anything else about a client."""
    return httpx.create_ssl_context()


def _is_encoded(response: httpx.Response) -> bool:
    return response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity")


@asynccontextmanager
async def _body(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """The bytes of the body as they come; decoded only where someone compressed them."""
    chunks = response.aiter_bytes() if _is_encoded(response) else response.aiter_raw()
    try:
        yield chunks
    finally:
        # These are generators within generators, and closing the outer one leaves the inner ones open, to be
        # collected somewhere, sometime (trio warns of it). Their end, or an exception that passes through all of
        # them, ends them; where the body was not read to its end, a cancellation is that exception.
        with anyio.CancelScope() as scope:
            scope.cancel()
            async for _ in chunks:
                pass


def _transient(error: httpx.HTTPError, url: str | None = None) -> TransientError:
    what = str(error) or type(error).__name__
    return TransientError(f"{_without_query(url)}: {what}" if url else what)


def _proxy_refusal(answer: str, source: str) -> UnreachableError:
    if answer.startswith("407"):
        return UnreachableError(
            f"the proxy wants a login ({answer}): put it into the proxy's address, as in "
            "HTTPS_PROXY=http://user:password@host:port, or name the endpoint in NO_PROXY",
            source=source,
        )
    return UnreachableError(f"the proxy refuses ({answer}); check HTTPS_PROXY and NO_PROXY", source=source)


def _untrusted(url: str, reason: str, repo: str | None) -> UnreachableError:
    return UnreachableError(
        f"the certificate of {_origin(url)} is not trusted ({reason}): a company's proxy or a login page may be in the "
        "way; name a file with that company's certificates in SSL_CERT_FILE (REQUESTS_CA_BUNDLE is not read)",
        source=repo or _origin(url),
    )


def _certificate_problem(error: BaseException) -> str | None:
    """What is wrong with a server's certificate, if that is what made a request fail."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        cause = cause.__cause__ or cause.__context__
    return None


def _origin(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _without_query(url: str) -> str:
    """A URL for people: signed URLs carry their signature in the query."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return urlunsplit((parts.scheme, f"{host}:{parts.port}" if parts.port else host, parts.path, "", ""))
