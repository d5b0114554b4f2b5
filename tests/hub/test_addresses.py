"""What messages and logs show of addresses and answers."""

import logging
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from asyncembed.catalogue.spec import ArchiveOrigin, HubOrigin
from asyncembed.errors import AsyncEmbedError, BadTokenError, DownloadError, OptionError, UnreachableError
from asyncembed.hub import HubAccess
from asyncembed.hub.addresses import LONGEST_QUOTE, Secrets, passwords_in, shown_address, split_login
from asyncembed.options import Options
from tests.hub.calls import change_policy, download_files
from tests.hub.server import Fault, HubServer, Repo

pytestmark = pytest.mark.slow

REPO = "org/model"
TOKEN = "hf_very_secret_token"
PASSWORD = "s3cret/pass"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:word@host:1/path?Signature=x#y", "https://host:1/path"),
        ("https://host/path", "https://host/path"),
        ("http://[::1]:8/a", "http://[::1]:8/a"),
        ("http://[::1", "an address that is none"),
        ("http://host:port/", "an address that is none"),
        ("http://host:99999/", "an address that is none"),
    ],
)
def test_an_address_is_shown_without_login_and_query(url: str, shown: str) -> None:
    assert shown_address(url) == shown


@given(st.text())
def test_whatever_is_no_address_can_be_shown(url: str) -> None:
    shown_address(url)
    split_login(url)
    passwords_in(url)


def test_a_login_is_taken_out_of_an_address() -> None:
    assert split_login("http://user:p%2Fw@host:1/hf") == ("http://host:1/hf", "Basic dXNlcjpwL3c=")
    assert split_login("http://host:1/a@b") == ("http://host:1/a@b", None)


def test_what_a_server_says_is_quoted_without_secrets_on_one_line_and_not_long() -> None:
    secrets = Secrets(TOKEN, ["http://user:pass%40word@host", "http://u:pw@short"])
    said = secrets.quote(f"no {TOKEN},\r\nno pass@word, no pass%40word; pw is a word\x1b[31m" + "!" * 10_000)
    assert said.startswith("no ***,  no ***, no ***; pw is a word [31m!!!")
    assert len(said) <= LONGEST_QUOTE + 3


def test_options_are_shown_without_the_token() -> None:
    assert TOKEN not in repr(Options(token=TOKEN))
    assert TOKEN not in repr(HubAccess(token=TOKEN))
    assert Options(token=TOKEN) != Options()


async def fetch_all(**keywords: object) -> None:
    await download_files([HubOrigin(REPO)], patterns=["*"], progress=False, **keywords)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _filled(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    change_policy(monkeypatch, try_limit=2)
    hub.repos[REPO] = Repo({"config.json": b"{}", "model.onnx": b"graph"}, large=frozenset({"model.onnx"}))
    hub.known_tokens = {TOKEN}


@pytest.fixture
def everything_said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What our log and the HTTP client's say; the latter tells of each request."""
    caplog.set_level(logging.INFO)
    return caplog


def trace_of(error: BaseException) -> str:
    """All that a traceback prints of an error and of those that made it happen."""
    told, cause = "", error
    while cause is not None:
        told += f"{cause!r} {cause} {vars(cause)}\n"
        cause = cause.__cause__ if cause.__suppress_context__ else cause.__cause__ or cause.__context__  # type: ignore[assignment]
    return told


async def test_the_endpoints_password_logs_in_and_is_shown_nowhere(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, everything_said: pytest.LogCaptureFixture
) -> None:
    hub.small_files_redirect = False
    monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("://", "://user:s3cret%2Fpass@"))
    with pytest.raises(AsyncEmbedError) as caught:  # this hub knows tokens only
        await fetch_all()
    sent = hub.of_route("info")[0].headers
    assert {value for name, value in sent.items() if name.lower() == "authorization"} == {
        "Basic dXNlcjpzM2NyZXQvcGFzcw=="
    }
    for told in (everything_said.text, trace_of(caught.value)):
        assert PASSWORD not in told
        assert "s3cret" not in told
        assert "dXNlcjp" not in told


async def test_the_endpoints_password_goes_to_no_other_host(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the content server neither the login nor the token is sent."""
    hub.known_tokens = {"Basic dXNlcjpwYXNzd29yZA=="}
    monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("://", "://user:password@"))
    await fetch_all()
    for request in hub.requests:
        names = {name.lower() for name in request.headers}
        assert ("authorization" in names) == (request.server == "hub" and "Signature" not in request.query)


async def test_an_unreachable_endpoint_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, everything_said: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:s3cretpass@127.0.0.1:1")
    with pytest.raises(UnreachableError, match=r"asking http://127\.0\.0\.1:1 about") as caught:
        await fetch_all()
    assert "s3cretpass" not in trace_of(caught.value) + everything_said.text


@pytest.mark.parametrize(
    "endpoint", ["http://user:s3cretpass@[::1", "http://user:s3cret/pass@host", "ftp://u:s3cret@h", "s3cret"]
)
async def test_an_endpoint_that_is_no_address_is_not_quoted(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(OptionError, match="usable address") as caught:
        await fetch_all()
    assert "s3cret" not in trace_of(caught.value).replace(shown_address(endpoint), "")
    assert endpoint == "s3cret" or "s3cret" not in trace_of(caught.value)


@pytest.mark.parametrize(
    "address", ["http://user:s3cret/pass@host:1", "ftp://user:s3cret@host:1", "http://user:s3cret@[::1"]
)
async def test_a_proxys_address_that_cannot_be_used_is_not_quoted(
    address: str, monkeypatch: pytest.MonkeyPatch, everything_said: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("HTTP_PROXY", address)
    with pytest.raises(OptionError, match="HTTP_PROXY") as caught:
        await fetch_all()
    assert "s3cret" not in trace_of(caught.value) + everything_said.text


async def test_a_dead_proxys_password_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, everything_said: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://user:s3cretpass@127.0.0.1:1")
    with pytest.raises(UnreachableError) as caught:
        await fetch_all()
    assert "s3cretpass" not in trace_of(caught.value) + everything_said.text


ECHOES = {
    "in a refusal's words": Fault("info", times=9, status=403, headers={"X-Error-Message": f"not for {TOKEN}"}),
    "in an unknown refusal": Fault("info", times=9, status=418, headers={"X-Error-Message": f"not for {TOKEN}"}),
    "in a request's id": Fault("info", times=9, status=403, headers={"X-Request-Id": TOKEN}),
    "in a redirect": Fault("info", times=9, status=307, headers={"Location": f"http://[{TOKEN}"}),
    "in a redirect's host": Fault("info", times=9, status=307, headers={"Location": f"ftp://{TOKEN}/"}),
    "in the next page's address": Fault(
        "tree", times=9, status=200, headers={"Link": f'<http://[{TOKEN}>; rel="next"'}, body=b"[]"
    ),
    "in what is no protocol": Fault("info", times=9, status=200, headers={f"not {TOKEN} a header": ""}),
    "in a document that is none": Fault("info", times=9, status=200, body=f'{{"{TOKEN}": '.encode()),
    "in the commit": Fault("info", times=9, status=200, body=f'{{"sha": "{TOKEN}"}}'.encode()),
    "in a name of the listing": Fault(
        "tree", times=9, status=200,
        body=f'[{{"type": "file", "path": "../{TOKEN}", "size": 1, "oid": "{"a" * 40}"}}]'.encode(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("where", ECHOES)
async def test_a_token_that_a_server_sends_back_is_not_shown(
    where: str, hub: HubServer, everything_said: pytest.LogCaptureFixture
) -> None:
    hub.faults.append(ECHOES[where])
    with pytest.raises(AsyncEmbedError) as caught:
        await fetch_all(token=TOKEN)
    assert TOKEN not in trace_of(caught.value) + everything_said.text


async def test_a_warning_of_the_hub_is_told_without_the_token(
    hub: HubServer, everything_said: pytest.LogCaptureFixture
) -> None:
    hub.faults.append(Fault("tree", status=503, headers={"X-HF-Warning": f"topic; {TOKEN} is old"}))
    await fetch_all(token=TOKEN)
    assert "the hub says: *** is old" in everything_said.text
    assert TOKEN not in everything_said.text


@pytest.mark.parametrize("token", [f"{TOKEN}\nX: y", f"{TOKEN}é", f"\x00{TOKEN}x"])
async def test_a_token_that_no_header_can_carry_is_not_quoted(
    token: str, everything_said: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BadTokenError, match="copy it anew") as caught:
        await fetch_all(token=token)
    assert TOKEN not in trace_of(caught.value) + everything_said.text


async def test_a_token_that_is_no_text_is_not_quoted() -> None:
    with pytest.raises(OptionError, match="not a bytes") as caught:
        await fetch_all(token=TOKEN.encode())
    assert TOKEN not in trace_of(caught.value)


async def test_the_signature_of_an_address_is_not_logged(
    hub: HubServer, everything_said: pytest.LogCaptureFixture
) -> None:
    await fetch_all(token=TOKEN)
    assert hub.of_route("content")[0].query
    assert "HTTP Request: GET" in everything_said.text
    assert "Signature" not in everything_said.text


async def test_an_archives_address_is_named_without_its_secrets(
    hub: HubServer, everything_said: pytest.LogCaptureFixture
) -> None:
    url = hub.url.replace("://", "://user:s3cretpass@") + "/archives/absent.tar.gz?key=s3cretkey"
    with pytest.raises(DownloadError, match=re.escape(f"{hub.url}/archives/absent.tar.gz answered 404")) as caught:
        await download_files([ArchiveOrigin(url, "folder")], patterns=["*"])
    assert "s3cret" not in trace_of(caught.value) + everything_said.text
    assert hub.of_route("content")[0].query == "key=s3cretkey"


class _RudeProxy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(407, f"who is {self.headers['Proxy-Authorization']}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object, **keywords: object) -> None:
        pass


@pytest.fixture
def rude_proxy() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _RudeProxy) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


async def test_a_proxy_that_sends_its_login_back_is_quoted_without_it(
    rude_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://user:s3cretpass@{rude_proxy}")
    with pytest.raises(UnreachableError, match="the proxy wants a login") as caught:
        await fetch_all()
    assert "dXNlcjpzM2NyZXRwYXNz" not in trace_of(caught.value)
