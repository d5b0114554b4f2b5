"""Requests to the hub, its mirrors and its content servers: redirects, tokens, refusals, stalls."""

import contextlib
import json
import logging
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, TypeVar
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
from asyncembed.hub.addresses import Secrets, origin, proxy_addresses, shown_address, split_login
from asyncembed.hub.retry import (
    LONGEST_PAUSE_SECONDS,
    TRIES_TO_RESOLVE,
    Patience,
    TransientError,
    requested_pause,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_REDIRECTS = 20
MAX_JSON_BYTES = 32 * 2**20
"""A page of the tree is a few hundred kilobytes; more than this is not one."""

LEAST_BYTES_PER_SECOND = 1024
"""A connection slower than this over a whole read timeout is dropped: a trickle trips no read timeout."""

PATIENT_TIMEOUTS = 3
"""Timeouts, each for one read of a socket, in which a document of the API, or the headers of a file, must be here."""

CLOSE_GRACE_SECONDS = 5.0

_READ_ENCODINGS = frozenset({"", "identity", "gzip", "deflate"})
"""They expand a thousandfold at most, so that what one read of a socket unpacks to fits into memory; others, or several
at once, have no bound."""

_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_REQUEST_IDS = ("x-request-id", "x-amzn-trace-id", "x-amz-cf-id")

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
        self.is_encoded: bool = _is_encoded(response)
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
            raise self._client.transient(error) from self._client.secrets.cause(error)
        self._window_bytes += len(chunk)
        self._left_seconds -= anyio.current_time() - started
        if self._window_bytes >= LEAST_BYTES_PER_SECOND * self._window_seconds:
            self._window_bytes = 0
            self._left_seconds = self._window_seconds
        return chunk


class HubClient:
    """Talks to one endpoint with one token."""

    def __init__(self, http: httpx.AsyncClient, endpoint: str, headers: dict[str, str]) -> None:
        """`endpoint` may carry a login, which only itself is told, in place of the token."""
        from huggingface_hub import constants

        self._http = http
        token = next((value for name, value in headers.items() if name.lower() == "authorization"), None)
        bare_token = token.removeprefix("Bearer ") if token else None
        self.secrets: Secrets = Secrets(bare_token, [endpoint, *proxy_addresses()])
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

    def resolve_url(self, repo: str, commit: str, path: str) -> str:
        """Where the content of a file is asked for."""
        return f"{self.endpoint}/{repo}/resolve/{quote(commit, safe='')}/{quote(path)}"

    async def get_json(self, address: str, *, repo: str, revision: str) -> tuple[object, str | None]:
        """Get a document of the API by its path and query, and the address of its next page, if any.

        Raises:
            DownloadError: The hub refuses, or gives no usable answer after several tries.
        """
        patience = Patience(f"asking {self.endpoint} about {repo}", repo, tries_to_resolve=TRIES_TO_RESOLVE)
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
            headers = {"Accept-Encoding": "gzip, deflate"}
            async with self._send(url, headers, timeout, repo=repo, revision=revision) as (response, at):
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
                    if len(body) > MAX_JSON_BYTES:
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
            yield Answer(self, response, body, self._content_seconds)

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
            response = await self._ask(url, headers, timeout_seconds, repo, may_have_token=may_have_token)
            try:
                self._log_hub_warning(response, url)
                if response.has_redirect_location:
                    target = self._target(url, response.headers["location"], repo)
                    if stop_at_content and "x-linked-etag" in response.headers:
                        yield response, target
                        return
                    is_content_server |= "x-linked-etag" in response.headers or origin(target) != origin(url)
                    url = target
                    continue
                if response.status_code not in (200, 206):
                    raise self._refusal(
                        response, url, repo, revision, path, is_content_server, has_token=may_have_token
                    )
                if _encoding(response) not in _READ_ENCODINGS:
                    raise UnexpectedAnswerError(
                        f"{shown_address(url)} compresses its answer in a way that was not asked for",
                        source=repo or shown_address(url),
                    )
                yield response, url
                return
            finally:
                with anyio.move_on_after(CLOSE_GRACE_SECONDS, shield=True):
                    await response.aclose()
        raise UnexpectedAnswerError(
            f"{shown_address(url)} redirects in circles; a login page or a proxy may be in the way",
            source=repo or shown_address(url),
        )

    async def _ask(
        self, url: str, headers: "Mapping[str, str]", timeout_seconds: float, repo: str | None, *, may_have_token: bool
    ) -> httpx.Response:
        """Send one request, and give what answers; its body is still to come."""
        try:
            request = self._http.build_request(
                "GET",
                url,
                headers={**self._headers, **headers, **self._authorization(url, may_have_token=may_have_token)},
                timeout=httpx.Timeout(timeout_seconds, pool=None),
            )
            request.url = QuietURL(request.url)
            with anyio.fail_after(PATIENT_TIMEOUTS * timeout_seconds):
                return await self._http.send(request, stream=True)
        except TimeoutError:
            seconds = PATIENT_TIMEOUTS * timeout_seconds
            raise TransientError(f"{shown_address(url)} did not answer in {seconds:g} s") from None
        except httpx.ProxyError as error:
            answer = self.secrets.quote(str(error))
            raise _proxy_refusal(answer, repo or shown_address(url)) from self.secrets.cause(error)
        except httpx.UnsupportedProtocol:
            raise OptionError(
                f"{shown_address(url)} is no usable address: it must begin with https:// or http://"
            ) from None
        except (httpx.InvalidURL, ValueError):  # also what the loop's codec of host names raises
            raise OptionError(f"{shown_address(url)} is no usable address") from None
        except httpx.HTTPError as error:
            if (problem := _find_cause(error, ssl.SSLCertVerificationError)) is not None:
                raise _untrusted(url, problem.verify_message, repo) from error
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                self._log_unreachable(url, error)
            raise self.transient(error, url) from self.secrets.cause(error)

    def _target(self, url: str, location: str, repo: str | None) -> str:
        """Where a redirect leads, if that is an address of the web."""
        with contextlib.suppress(ValueError):
            target = urljoin(url, location)
            parts = urlsplit(target)
            if parts.scheme in ("http", "https") and parts.hostname and is_requestable(target):
                return target
        raise UnexpectedAnswerError(
            f"{shown_address(url)} redirects to what is no address: {self.secrets.quote(location)}",
            source=repo or shown_address(url),
        )

    def _authorization(self, url: str, *, may_have_token: bool) -> dict[str, str]:
        is_endpoint = origin(url) == origin(self.endpoint)
        secret = self._login if is_endpoint and self._login else self._token
        return {"authorization": secret} if secret and may_have_token else {}

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

    def _refusal(
        self,
        response: httpx.Response,
        url: str,
        repo: str | None,
        revision: str,
        path: str,
        is_content_server: bool,
        *,
        has_token: bool,
    ) -> Exception:
        """The error that an answer without content means."""
        status = response.status_code
        request_id = next((response.headers[name] for name in _REQUEST_IDS if name in response.headers), None)
        answered = f"{shown_address(url)} answered {status}"
        answered += f" (request {self.secrets.quote(request_id)})" if request_id else ""
        if status in _RETRIED_STATUSES:
            pause = requested_pause(response.headers)
            if status == 429 and pause is not None and pause <= LONGEST_PAUSE_SECONDS:
                self._paused_until[origin(url)] = anyio.current_time() + pause
            return TransientError(answered, pause_seconds=pause, status=status)
        is_content_server = is_content_server and "x-error-code" not in response.headers
        if status == 416 or (is_content_server and repo is not None and status in (401, 403, 404, 410)):
            # The content is shorter than the listing says; or a signed URL has expired.
            return TransientError(answered, status=status)
        if status == 407:
            reason = self.secrets.quote(response.reason_phrase)
            return _proxy_refusal(f"407 {reason}", repo or shown_address(url))
        if repo is None or is_content_server:
            return DownloadError(answered, source=repo or shown_address(url), path=path or None)
        message = self.secrets.quote(response.headers.get("x-error-message", ""))
        return _hub_refusal(
            status,
            response.headers.get("x-error-code", ""),
            message,
            answered,
            f"{origin(url).removesuffix(':443')}/{repo}",
            repo,
            revision,
            path,
            has_token=has_token and self._token is not None,
        )

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


def _hub_refusal(
    status: int,
    code: str,
    message: str,
    answered: str,
    page: str,
    repo: str,
    revision: str,
    path: str,
    *,
    has_token: bool,
) -> DownloadError:
    """The error for a 4xx of the hub, which tells the reason in headers."""
    match status, code:
        case _, "RevisionNotFound":
            return RevisionNotFoundError(f"{repo} has no revision {revision!r} ({answered})", source=repo)
        case _, "EntryNotFound":
            return RepoFileNotFoundError(f"{repo} has no file {path!r} ({answered})", source=repo, path=path)
        case _, "GatedRepo" if has_token:
            return GatedRepoError(
                f"{repo} is gated, and the token that was given has no access: accept its terms at {page} with that "
                "token's account (they may have to be granted), and let the token read gated repos, if it is a "
                "fine-grained one",
                source=repo,
            )
        case _, "GatedRepo":
            return GatedRepoError(
                f"{repo} is gated, and no token was given: accept its terms at {page}, then give a token of that "
                "account (token= or HF_TOKEN)",
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
    return HubClient(http, constants.ENDPOINT.rstrip("/"), headers)


def _unusable_settings(reason: str) -> OptionError:
    return OptionError(
        f"the network settings of the environment cannot be used ({reason}): look at SSL_CERT_FILE, SSL_CERT_DIR, "
        "HTTPS_PROXY, HTTP_PROXY and ALL_PROXY"
    )


@cache
def _certificates(cert_file: str | None, cert_dir: str | None) -> ssl.SSLContext:  # noqa: ARG001 (httpx reads them)
    """What httpx trusts in this environment; reading it takes longer than anything else about a client."""
    return httpx.create_ssl_context()


def is_requestable(url: str) -> bool:
    """Whether a request can be built for an address: its port is one, and its host can be looked up."""
    try:
        httpx.URL(url).raw_host.decode("ascii").encode("idna")
        origin(url)
    except (httpx.InvalidURL, ValueError):
        return False
    return True


def _encoding(response: httpx.Response) -> str:
    return str(response.headers.get("content-encoding", "identity")).strip().lower()


def _is_encoded(response: httpx.Response) -> bool:
    return _encoding(response) not in ("", "identity")


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
        f"the certificate of {origin(url)} is not trusted ({reason}): a company's proxy or a login page may be in the "
        "way; name a file with that company's certificates in SSL_CERT_FILE (REQUESTS_CA_BUNDLE is not read)",
        source=repo or origin(url),
    )


def _find_cause(error: BaseException, kind: type[ErrorT]) -> ErrorT | None:
    """The error of this kind that made `error` happen, if one did."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, kind):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
