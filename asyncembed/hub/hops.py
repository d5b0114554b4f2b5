"""What an answer means for a request: another address, content, or an error. Decided here, done by `client`."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urljoin, urlsplit

from asyncembed.errors import (
    AccessDeniedError,
    BadTokenError,
    DownloadError,
    GatedRepoError,
    RepoFileNotFoundError,
    RepoNotFoundError,
    RevisionNotFoundError,
    UnexpectedAnswerError,
    UnreachableError,
)
from asyncembed.http import httpx
from asyncembed.hub.addresses import Secrets, origin, shown_address
from asyncembed.hub.retry import TransientError, requested_pause

_READ_ENCODINGS = frozenset({"", "identity", "gzip", "deflate"})
"""They expand a thousandfold at most, so that what one read of a socket unpacks to fits into memory; others, or several
at once, have no bound."""

_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_REQUEST_IDS = ("x-request-id", "x-amzn-trace-id", "x-amz-cf-id")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request is about, for messages.

    Attributes:
        source: The repo; elsewhere than at the hub, the address.
        path: The file; "" for a document of the API.
        is_hub: Whether the hub is asked, so that its headers mean something.
    """

    source: str
    revision: str = ""
    path: str = ""
    is_hub: bool = True

    def __str__(self) -> str:
        return f"{self.path} of {self.source}" if self.path else self.source


@dataclass(frozen=True, slots=True)
class Request:
    """One GET on its way through redirects.

    Attributes:
        is_content_server: Whether it has been sent on to a server that has the bytes and knows nothing of repos.
        may_authorize: Whether no address on its way was one that must not see the token.
    """

    url: str
    asked: Asked
    headers: Mapping[str, str]
    timeout_seconds: float
    is_content_server: bool = False
    may_authorize: bool = True


@dataclass(frozen=True, slots=True)
class Follow:
    """Ask there. `has_metadata`: the answer tells of the file itself, and the address is that of its content."""

    url: str
    is_content_server: bool
    has_metadata: bool


@dataclass(frozen=True, slots=True)
class Content:
    """Read the body."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Raise this: a TransientError where another try may do better, else one of ours."""

    error: Exception


Hop: TypeAlias = Follow | Content | Refuse


def next_hop(response: httpx.Response, request: Request, secrets: Secrets, *, has_token: bool) -> Hop:
    """What to do after an answer, of which only the status and the headers are here."""
    if response.has_redirect_location:
        return _follow(response.headers, request, secrets)
    if response.status_code not in (200, 206):
        return Refuse(_refusal(response, request, secrets, has_token=has_token))
    if encoding(response) not in _READ_ENCODINGS:
        return Refuse(
            UnexpectedAnswerError(
                f"{shown_address(request.url)} compresses its answer in a way that was not asked for",
                source=request.asked.source,
            )
        )
    return Content()


def encoding(response: httpx.Response) -> str:
    """How the body is compressed; "" and "identity" stand for not at all."""
    return str(response.headers.get("content-encoding", "")).strip().lower()


def _follow(headers: Mapping[str, str], request: Request, secrets: Secrets) -> Hop:
    with contextlib.suppress(ValueError):
        target = urljoin(request.url, headers["location"])
        parts = urlsplit(target)
        if parts.scheme in ("http", "https") and parts.hostname and is_requestable(target):
            has_metadata = "x-linked-etag" in headers
            is_elsewhere = has_metadata or origin(target) != origin(request.url)
            return Follow(target, request.is_content_server or is_elsewhere, has_metadata)
    return Refuse(
        UnexpectedAnswerError(
            f"{shown_address(request.url)} redirects to what is no address: {secrets.quote(headers['location'])}",
            source=request.asked.source,
        )
    )


def is_requestable(url: str) -> bool:
    """Whether a request can be built for an address: its port is one, and its host can be looked up."""
    try:
        httpx.URL(url).raw_host.decode("ascii").encode("idna")
        origin(url)
    except (httpx.InvalidURL, ValueError):
        return False
    return True


def _refusal(response: httpx.Response, request: Request, secrets: Secrets, *, has_token: bool) -> Exception:
    status, headers, asked = response.status_code, response.headers, request.asked
    request_id = next((headers[name] for name in _REQUEST_IDS if name in headers), None)
    answered = f"{shown_address(request.url)} answered {status}"
    answered += f" (request {secrets.quote(request_id)})" if request_id else ""
    if status in _RETRIED_STATUSES:
        return TransientError(answered, pause_seconds=requested_pause(headers), status=status)
    is_content_server = request.is_content_server and "x-error-code" not in headers
    if status == 416 or (is_content_server and asked.is_hub and status in (401, 403, 404, 410)):
        # The content is shorter than the listing says; or a signed URL has expired.
        return TransientError(answered, status=status)
    if status == 407:
        return proxy_refusal(f"407 {secrets.quote(response.reason_phrase)}", asked.source)
    if not asked.is_hub or is_content_server:
        return DownloadError(answered, source=asked.source, path=asked.path or None)
    message = secrets.quote(headers.get("x-error-message", ""))
    code = headers.get("x-error-code", "")
    row = next(
        row for row in _REFUSALS if row.fits(status, code, message, is_file=bool(asked.path), has_token=has_token)
    )
    text = row.text.format(
        repo=asked.source,
        revision=asked.revision,
        path=asked.path,
        answered=answered,
        why=f"{answered}: {message}" if message else answered,
        page=f"{origin(request.url).removesuffix(':443')}/{asked.source}",
    )
    return row.error(text, source=asked.source, path=asked.path or None)


def proxy_refusal(answer: str, source: str) -> UnreachableError:
    """The error for what a proxy says instead of passing a request on."""
    if answer.startswith("407"):
        return UnreachableError(
            f"the proxy wants a login ({answer}): put it into the proxy's address, as in "
            "HTTPS_PROXY=http://user:password@host:port, or name the endpoint in NO_PROXY",
            source=source,
        )
    return UnreachableError(f"the proxy refuses ({answer}); check HTTPS_PROXY and NO_PROXY", source=source)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What a 4xx of the hub means that fits all that is given here; the hub tells the reason in headers."""

    error: type[DownloadError]
    text: str
    status: int | None = None
    code: str = ""
    says: str = ""
    is_file: bool = False
    has_token: bool = False

    def fits(self, status: int, code: str, message: str, *, is_file: bool, has_token: bool) -> bool:
        return (
            self.status in (None, status)
            and self.code in ("", code)
            and self.says in message
            and is_file >= self.is_file
            and has_token >= self.has_token
        )


_GATED_ALL_THE_SAME = (
    "{repo} is gated, and the token that was given has no access: accept its terms at {page} with that token's account "
    "(they may have to be granted), and let the token read gated repos, if it is a fine-grained one"
)
_GATED = (
    "{repo} is gated, and no token was given: accept its terms at {page}, then give a token of that account (token= or "
    "HF_TOKEN)"
)
_BAD_LOGIN = (
    "the hub does not know the token: renew it, or take it away (HF_TOKEN, the token file, token=), as public repos "
    "need none"
)
_NO_REPO_SHOWN = (
    "the hub shows no repo {repo!r}: either there is none of this name, or it is private and needs a token that may "
    "read it (token= or HF_TOKEN)"
)
_NO_FILE = "{repo} has no file {path!r} ({answered})"
_NO_REVISION = "{repo} has no revision {revision!r} ({answered})"

_REFUSALS = (
    _Refusal(RevisionNotFoundError, _NO_REVISION, code="RevisionNotFound"),
    _Refusal(RepoFileNotFoundError, _NO_FILE, code="EntryNotFound"),
    _Refusal(GatedRepoError, _GATED_ALL_THE_SAME, code="GatedRepo", has_token=True),
    _Refusal(GatedRepoError, _GATED, code="GatedRepo"),
    _Refusal(AccessDeniedError, "{repo} has been disabled by the hub ({answered})", status=403, says="disabled"),
    _Refusal(BadTokenError, _BAD_LOGIN, status=401, says="Invalid credentials"),
    _Refusal(RepoNotFoundError, _NO_REPO_SHOWN, status=401),
    _Refusal(RepoNotFoundError, _NO_REPO_SHOWN, code="RepoNotFound"),
    _Refusal(RepoFileNotFoundError, _NO_FILE, status=404, is_file=True),
    _Refusal(RepoNotFoundError, "there is no repo {repo!r} ({answered})", status=404),
    _Refusal(AccessDeniedError, "the token may not read {repo} ({why})", status=403),
    _Refusal(UnexpectedAnswerError, "{why}"),
)
"""The first one that fits holds: codes before statuses, and the special before the general."""
