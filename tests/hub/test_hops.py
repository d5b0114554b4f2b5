"""What an answer means, decided without any server: a row of the table, a test."""

from collections.abc import Mapping

import httpx
import pytest

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
from asyncembed.hub.addresses import Secrets
from asyncembed.hub.hops import Asked, Content, Follow, Hop, Refuse, Request, next_hop
from asyncembed.hub.retry import TransientError

HUB = "https://hub.example/org/model/resolve/main/model.onnx"
STORE = "https://store.example/blob?Signature=x"
FILE = Asked("org/model", "main", "model.onnx")
DOCUMENT = Asked("org/model", "main")
ARCHIVE = Asked("https://store.example/model.tar.gz", is_hub=False)
TOKEN = "hf_secret_token"


def hop(
    status: int,
    headers: Mapping[str, str] | None = None,
    *,
    asked: Asked = FILE,
    url: str = HUB,
    is_content_server: bool = False,
    has_token: bool = False,
) -> Hop:
    request = Request(url, asked, {}, 10.0, is_content_server=is_content_server)
    return next_hop(httpx.Response(status, headers=headers), request, Secrets(TOKEN, []), has_token=has_token)


def refused(status: int, **keywords: object) -> Exception:
    found = hop(status, **keywords)  # type: ignore[arg-type]
    assert isinstance(found, Refuse)
    return found.error


@pytest.mark.parametrize("status", [200, 206])
def test_content_is_read(status: int) -> None:
    assert hop(status) == Content()
    assert hop(status, {"Content-Encoding": "gzip"}) == Content()


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_content_that_is_packed_without_bounds_is_refused(encoding: str) -> None:
    assert isinstance(refused(200, headers={"Content-Encoding": encoding}), UnexpectedAnswerError)


@pytest.mark.parametrize(
    ("headers", "came_from_store", "expected"),
    [
        ({"Location": "/org/new/model.onnx"}, False, Follow("https://hub.example/org/new/model.onnx", False, False)),
        ({"Location": STORE}, False, Follow(STORE, True, False)),
        ({"Location": "/raw", "X-Linked-ETag": "e"}, False, Follow("https://hub.example/raw", True, True)),
        ({"Location": "/back"}, True, Follow("https://hub.example/back", True, False)),
        ({"Location": "https://hub.example:8443/a"}, False, Follow("https://hub.example:8443/a", True, False)),
    ],
    ids=["on the same server", "to another one", "with a file's metadata", "once at a content server", "another port"],
)
def test_a_redirect_is_followed(headers: Mapping[str, str], came_from_store: bool, expected: Follow) -> None:
    assert hop(302, headers, is_content_server=came_from_store) == expected


@pytest.mark.parametrize("location", ["ftp://x/y", "file:///etc/passwd", "http://[::1", "http://x:99999/"])
def test_a_redirect_to_no_address_of_the_web_is_refused(location: str) -> None:
    assert isinstance(refused(302, headers={"Location": location}), UnexpectedAnswerError)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("asked", [FILE, DOCUMENT, ARCHIVE], ids=str)
def test_a_passing_trouble_is_tried_again(status: int, asked: Asked) -> None:
    error = refused(status, headers={"Retry-After": "7"}, asked=asked)
    assert isinstance(error, TransientError)
    assert (error.status, error.pause_seconds) == (status, 7.0)


@pytest.mark.parametrize("status", [401, 403, 404, 410, 416])
def test_a_content_server_that_refuses_is_asked_again_with_a_new_address(status: int) -> None:
    assert isinstance(refused(status, url=STORE, is_content_server=True), TransientError)


def test_a_content_server_that_says_why_is_believed() -> None:
    error = refused(404, headers={"X-Error-Code": "EntryNotFound"}, url=STORE, is_content_server=True)
    assert isinstance(error, RepoFileNotFoundError)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_what_is_no_hub_is_not_read_as_one(status: int) -> None:
    error = refused(status, headers={"X-Error-Code": "GatedRepo"}, asked=ARCHIVE, is_content_server=True)
    assert type(error) is DownloadError
    assert str(status) in str(error)


def test_a_proxy_that_wants_a_login_is_told() -> None:
    assert isinstance(refused(407), UnreachableError)


REFUSALS: dict[str, tuple[int, dict[str, str], Asked, bool, type[DownloadError], str]] = {
    "no such revision": (404, {"X-Error-Code": "RevisionNotFound"}, DOCUMENT, False, RevisionNotFoundError, "'main'"),
    "no such entry": (404, {"X-Error-Code": "EntryNotFound"}, FILE, False, RepoFileNotFoundError, "no file"),
    "gated, a token": (403, {"X-Error-Code": "GatedRepo"}, FILE, True, GatedRepoError, "has no access"),
    "gated, no token": (401, {"X-Error-Code": "GatedRepo"}, FILE, False, GatedRepoError, "no token was given"),
    "disabled": (403, {"X-Error-Message": "is disabled"}, FILE, True, AccessDeniedError, "has been disabled"),
    "bad token": (401, {"X-Error-Message": "Invalid credentials in"}, FILE, True, BadTokenError, "not know the token"),
    "unknown or private": (401, {}, DOCUMENT, False, RepoNotFoundError, "private"),
    "no such repo": (404, {"X-Error-Code": "RepoNotFound"}, FILE, False, RepoNotFoundError, "shows no repo"),
    "no such file": (404, {}, FILE, False, RepoFileNotFoundError, "no file"),
    "no such page": (404, {}, DOCUMENT, False, RepoNotFoundError, "there is no repo"),
    "forbidden": (403, {"X-Error-Message": "not yours"}, FILE, True, AccessDeniedError, "may not.*403: not yours"),
    "anything else": (418, {"X-Error-Message": "a teapot"}, FILE, False, UnexpectedAnswerError, "418: a teapot"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_the_hubs_refusals_each_have_their_error(name: str) -> None:
    status, headers, asked, has_token, kind, says = REFUSALS[name]
    error = refused(status, headers=headers, asked=asked, has_token=has_token)
    assert type(error) is kind
    assert error.source == "org/model"
    with pytest.raises(kind, match=says):
        raise error


def test_where_terms_are_accepted_is_named_without_the_usual_port() -> None:
    error = refused(403, headers={"X-Error-Code": "GatedRepo"})
    assert "at https://hub.example/org/model," in str(error)


def test_a_request_that_a_server_can_look_up_is_named() -> None:
    assert "(request abc-1)" in str(refused(418, headers={"X-Request-Id": "abc-1"}))


def test_what_a_server_says_may_hold_braces_and_shows_no_token() -> None:
    told = str(refused(403, headers={"X-Error-Message": f"{{0}} {{repo}} {TOKEN}"}))
    assert "{0} {repo} ***" in told
