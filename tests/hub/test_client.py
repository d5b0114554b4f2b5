"""What lies between a user and the hub: certificates, proxies, mirrors, names that no one knows."""

import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anyio
import pytest
import trustme
from huggingface_hub import constants

import asyncembed
from asyncembed.catalogue.spec import HubOrigin
from asyncembed.errors import DownloadError, GatedRepoError, OptionError, UnreachableError
from tests.hub.calls import change_policy, download_files
from tests.hub.server import Fault, HubServer, Repo

pytestmark = pytest.mark.slow

REPO = "org/model"
FILES: Mapping[str, bytes] = {"config.json": b"{}", "model.onnx": bytes(range(256)) * 1000}


def fill(hub: HubServer) -> None:
    hub.repos[REPO] = Repo(FILES, large=frozenset({"model.onnx"}))


@pytest.fixture(autouse=True)
def _filled(hub: HubServer) -> None:
    fill(hub)


async def fetch_all(**keywords: object) -> None:
    snapshot = await download_files([HubOrigin(REPO)], patterns=["*"], progress=False, **keywords)  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == FILES


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A company's own."""
    return trustme.CA()


class TestCertificates:
    @pytest.fixture
    def secure_hub(self, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
        with HubServer(tls=context) as server:
            fill(server)
            monkeypatch.setattr(constants, "ENDPOINT", server.url)
            yield server

    async def test_a_certificate_of_an_unknown_authority_is_told_at_once(self, secure_hub: HubServer) -> None:
        with pytest.raises(UnreachableError, match="certificate of https://127.0.0.1.*SSL_CERT_FILE") as caught:
            await fetch_all()
        assert "times in a row" not in str(caught.value)
        assert secure_hub.requests == []

    async def test_the_file_that_the_environment_names_is_trusted(
        self, secure_hub: HubServer, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        authority.cert_pem.write_to_path(str(tmp_path / "company.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "company.pem"))
        await fetch_all()
        assert len(secure_hub.of_route("content")) == 2

    async def test_a_content_server_that_is_not_trusted_is_named(
        self, hub: HubServer, secure_hub: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        hub.cdn_url = secure_hub.cdn_url
        with pytest.raises(UnreachableError, match="certificate of https://localhost"):
            await fetch_all()

    @pytest.mark.parametrize("content", [None, b"no certificate"])
    async def test_a_certificate_file_that_cannot_be_used_is_named(
        self, content: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        path = tmp_path / "company.pem"
        if content is not None:
            path.write_bytes(content)
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        with pytest.raises(OptionError, match="SSL_CERT_FILE"):
            await fetch_all()


class _LoginProxy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(407, "Proxy Authentication Required")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_CONNECT = do_GET  # noqa: N815

    def log_message(self, *args: object, **keywords: object) -> None:
        pass


@pytest.fixture
def login_proxy() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _LoginProxy) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class TestProxy:
    @pytest.fixture(autouse=True)
    def _proxied(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)

    async def test_requests_go_through_the_proxy(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """The hub plays the proxy of a name that only it knows."""
        monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
        hub.cdn_url = "http://content.invalid"
        monkeypatch.setenv("HTTP_PROXY", hub.url)
        await fetch_all()
        assert {request.headers["Host"] for request in hub.requests} == {"hub.invalid", "content.invalid"}

    async def test_a_host_that_needs_no_proxy_gets_none(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        await fetch_all()

    async def test_a_dead_proxy_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        change_policy(monkeypatch, try_limit=2)
        with pytest.raises(UnreachableError, match="HTTPS_PROXY"):
            await fetch_all()

    @pytest.mark.parametrize("scheme", ["http", "https"])
    async def test_a_proxy_that_wants_a_login_is_told_at_once(
        self, scheme: str, login_proxy: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", f"{scheme}://hub.invalid")
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", login_proxy)
        with pytest.raises(UnreachableError, match="wants a login.*user:password@host"):
            await fetch_all()

    async def test_a_proxy_that_cannot_be_used_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its address is none, or its protocol needs a package that is not there."""
        monkeypatch.setenv("ALL_PROXY", "socks9://127.0.0.1:1")
        with pytest.raises(OptionError, match="ALL_PROXY"):
            await fetch_all()


class TestMirror:
    async def test_a_trailing_slash_of_the_endpoint_does_no_harm(
        self, hub: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url + "/")
        await fetch_all()

    async def test_an_endpoint_may_have_a_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with HubServer(prefix="/artifacts/huggingface", page_size=1) as mirror:
            fill(mirror)
            monkeypatch.setattr(constants, "ENDPOINT", mirror.url)
            await fetch_all()
            assert len(mirror.of_route("tree")) == 2

    async def test_the_endpoint_may_serve_the_content_itself(self, hub: HubServer) -> None:
        """A signed URL bears no token beside it, on whichever host it is."""
        hub.known_tokens = {"hf_secret"}
        hub.cdn_url = hub.url
        await fetch_all(token="hf_secret")

    async def test_metadata_that_a_mirror_leaves_out_is_not_missed(self, hub: HubServer) -> None:
        metadata = ("X-Repo-Commit", "X-Linked-ETag", "X-Linked-Size", "Accept-Ranges", "ETag")
        hub.faults += [Fault(route, times=99, drop_headers=metadata) for route in ("resolve", "content")]
        await fetch_all()

    async def test_a_name_that_no_one_knows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
        change_policy(monkeypatch, try_limit=2)
        with pytest.raises(UnreachableError, match="HF_ENDPOINT"):
            await fetch_all()


@pytest.mark.parametrize("route", ["info", "content"])
async def test_headers_that_only_trickle_are_given_up(
    route: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then trips no read timeout."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    hub.faults.append(Fault(route, slow_headers=True))
    await fetch_all()


async def test_a_page_of_the_listing_is_asked_for_again(hub: HubServer) -> None:
    hub.page_size = 1
    hub.faults += [Fault("tree", skip=1, status=503), Fault("tree", skip=1, cut_after=5)]
    await fetch_all()


async def test_a_listing_that_never_ends_is_refused(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    change_policy(monkeypatch, page_limit=1)
    hub.page_size = 1
    with pytest.raises(DownloadError, match="does not end"):
        await fetch_all()


def test_one_module_imports_the_http_client() -> None:
    """Its successor has the same interface: to change over is to change that line."""
    package = Path(asyncembed.__file__).parent
    importers = [
        path.name
        for path in package.rglob("*.py")
        if re.search(r"(?m)^\s*(import|from) httpx", path.read_text("utf-8"))
    ]
    assert importers == ["http.py"]


class TestUnreachable:
    @pytest.mark.parametrize("endpoint", ["http://hub.invalid", "http://no-such-name.hub.invalid:8080"])
    async def test_a_host_that_cannot_be_resolved_is_told_at_once_and_given_up_soon(
        self, endpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With the pauses that a user has, and not the tests' short ones."""
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        change_policy(monkeypatch, first_wait_seconds=0.5)
        with anyio.fail_after(5), pytest.raises(UnreachableError, match="failed 3 times.*HF_ENDPOINT"):
            await fetch_all()
        (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
        assert "hub.invalid" in warning.getMessage()
        assert "cannot be reached" in warning.getMessage()

    async def test_a_hub_that_answers_nobody_is_told_once(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
        with pytest.raises(UnreachableError, match="failed 6 times"):
            await fetch_all()
        (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
        assert "http://127.0.0.1:1 cannot be reached" in warning.getMessage()

    async def test_one_that_answers_the_next_time_is_no_warning(
        self, hub: HubServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        hub.faults.append(Fault("info", times=2, close_at_once=True))
        await fetch_all()
        assert not [record for record in caplog.records if record.levelname == "WARNING"]


class TestGated:
    @pytest.fixture(autouse=True)
    def _gated(self, hub: HubServer) -> None:
        hub.known_tokens = {"hf_right"}
        hub.faults.append(Fault("resolve", times=9, status=403, headers={"X-Error-Code": "GatedRepo"}))

    async def test_without_a_token_one_is_asked_for(self) -> None:
        with pytest.raises(GatedRepoError, match="no token was given.*HF_TOKEN"):
            await fetch_all(token=False)

    async def test_a_token_without_access_is_told_from_none(self) -> None:
        with pytest.raises(GatedRepoError, match="the token that was given has no access.*fine-grained"):
            await fetch_all(token="hf_right")
