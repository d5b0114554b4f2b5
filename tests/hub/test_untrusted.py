"""Whatever a server, a listing or a cache says: it works, or the error is one of ours."""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from huggingface_hub import constants
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asyncembed.catalogue.spec import ArchiveOrigin, HubOrigin
from asyncembed.errors import AsyncEmbedError, DownloadError, OptionError, UnexpectedAnswerError
from asyncembed.hub.cache import RepoCache
from asyncembed.hub.listing import Wanted
from asyncembed.hub.retry import requested_pause
from tests.hub.calls import change_policy, download_files, list_files
from tests.hub.server import Fault, HubServer, Repo, blob_id

pytestmark = pytest.mark.slow

REPO = "org/model"
CONFIG = b'{"hidden_size": 384}'
WEIGHTS = bytes(range(256)) * 400
COMMIT = "c" * 40

backends = st.sampled_from(["asyncio", "trio"])

fuzzed = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def repo(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Repo:
    change_policy(monkeypatch, try_limit=2, longest_pause_seconds=0.01)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 2)
    change_policy(monkeypatch, split_minimum_bytes=2**15, stream_minimum_bytes=2**14)
    files = {"config.json": CONFIG, "sub/model.onnx": WEIGHTS}
    hub.repos[REPO] = Repo(files, large=frozenset({"sub/model.onnx"}))
    return hub.repos[REPO]


def attempt(*faults: Fault, hub: HubServer, backend: str = "asyncio") -> None:
    """A download into an empty cache, and another one: whole files, or one of our errors."""
    hub.faults = list(faults)
    with tempfile.TemporaryDirectory() as cache:
        for keywords in ({}, {"required": ["sub/model.onnx"]}):
            ask = partial(
                download_files, [HubOrigin(REPO)], patterns=["*"], cache_dir=cache, progress=False, **keywords
            )
            try:
                snapshot = anyio.run(ask, backend=backend)
            except AsyncEmbedError:
                continue
            for name, content in {"config.json": CONFIG, "sub/model.onnx": WEIGHTS}.items():
                assert not (snapshot / name).exists() or (snapshot / name).read_bytes() == content
        assert {path.parent for path in Path(cache).parent.glob("*escaped*")} == set()


# ------------------------------------------------------------------ documents

json_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**62, max_value=2**70)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["\ud800", "../escaped", "/escaped", "a\0b", "x" * 5000, "", ".", "C:x", "a\\b", "sub", "nul"])
)
json_values = st.recursive(
    json_leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(["type", "path", "size", "oid", "lfs", "xetHash", "sha"])


def info() -> dict[str, Any]:
    return {"id": REPO, "sha": COMMIT, "siblings": [], "gated": False}


def tree() -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": "config.json", "size": len(CONFIG), "oid": blob_id(CONFIG)},
        {"type": "file", "path": "extra.json", "size": len(CONFIG), "oid": blob_id(CONFIG), "lfs": None},
    ]


DOCUMENTS = {
    "nested too deeply": b"[" * 200_000 + b"]" * 200_000,
    "an endless number": b'{"sha": 1e999}',
    "a number of 5,000 digits": b'{"sha": ' + b"9" * 5000 + b"}",
    "a size without end": json.dumps([{**tree()[0], "size": 0}]).replace('"size": 0', '"size": 1e999').encode(),
    "a size of 5,000 digits": json.dumps([{**tree()[0], "size": 0}])
    .replace('"size": 0', f'"size": {"9" * 5000}')
    .encode(),
    "a negative size": json.dumps([{**tree()[0], "size": -1}]).encode(),
    "a size that is true": json.dumps([{**tree()[0], "size": True}]).encode(),
    "a hash that is a number": json.dumps([{**tree()[0], "oid": 7}]).encode(),
    "a hash that is a list": json.dumps([{**tree()[0], "lfs": {"oid": ["a"]}}]).encode(),
    "large files' hashes that are a list": json.dumps([{**tree()[0], "lfs": [1]}]).encode(),
    "half a letter": json.dumps([{**tree()[0], "path": "\ud800"}]).encode(),
    "a name of 5,000 letters": json.dumps([{**tree()[0], "path": "x" * 5000}]).encode(),
    "a file that is a folder, too": json.dumps([tree()[0], {**tree()[0], "path": "config.json/a"}]).encode(),
    "a file that is there twice": json.dumps([tree()[0], {**tree()[0], "oid": "a" * 40}]).encode(),
    "not text": b"\xff\xfe[",
    "nothing": b"",
}


@pytest.mark.parametrize("route", ["info", "tree"])
@pytest.mark.parametrize("name", DOCUMENTS)
async def test_a_document_that_is_none_is_refused(name: str, route: str, hub: HubServer) -> None:
    hub.faults.append(Fault(route, times=9, status=200, body=DOCUMENTS[name]))
    with pytest.raises(DownloadError):
        await download_files([HubOrigin(REPO)], patterns=["*"], progress=False)


@pytest.mark.parametrize("route", ["info", "tree"])
def test_a_document_of_any_shape_is_read_or_refused(route: str, hub: HubServer) -> None:
    @fuzzed
    @given(json_values, backends)
    def check(document: object, backend: str) -> None:
        attempt(Fault(route, times=9, status=200, body=json.dumps(document).encode()), hub=hub, backend=backend)

    check()


def test_a_listing_with_any_value_in_any_place_is_read_or_refused(hub: HubServer) -> None:
    @fuzzed
    @given(st.integers(0, 1), keys, json_values)
    def check(row: int, key: str, value: object) -> None:
        document = tree()
        document[row][key] = value
        attempt(Fault("tree", times=9, status=200, body=json.dumps(document).encode()), hub=hub)

    check()


def test_a_commit_of_any_shape_is_one_or_refused(hub: HubServer) -> None:
    @fuzzed
    @given(json_values)
    def check(value: object) -> None:
        body = json.dumps({**info(), "sha": value}).encode()
        attempt(Fault("info", times=9, status=200, body=body), hub=hub)

    check()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_listing_without_end_is_refused(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    change_policy(monkeypatch, document_limit_bytes=10_000)
    hub.faults.append(Fault("tree", times=9, status=200, body=b"[" + b" " * 20_000 + b"]"))
    with pytest.raises(UnexpectedAnswerError, match="no end of data"):
        await download_files([HubOrigin(REPO)], patterns=["*"])
    hub.faults = [Fault("tree", times=9999, status=200, body=b"[]", headers={"Link": '</tree/?a=1>; rel="next"'})]
    with pytest.raises(UnexpectedAnswerError, match="does not end"):
        await download_files([HubOrigin(REPO)], patterns=["*"])


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress", "gzip;q=1"])
async def test_an_answer_packed_in_a_way_without_bounds_is_refused(encoding: str, hub: HubServer) -> None:
    hub.faults.append(Fault("info", times=9, status=200, headers={"Content-Encoding": encoding}, body=b"{}"))
    with pytest.raises(UnexpectedAnswerError, match="compresses"):
        await download_files([HubOrigin(REPO)], patterns=["*"])


# ------------------------------------------------------------------ headers

# What HTTP's own syntax lets through: the rest ends as an error of the protocol.
header_text = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=60) | st.sampled_from(
    ["9" * 5000, "-1", "1e999", "٣", "²", "a" * 20_000, "\0", ";r=0;t=" + "9" * 400, "<", '<>; rel="next"']
)
# Names that no one resolves, whatever stands before the last dot.
hosts = st.text(st.sampled_from("é☃%:[]@ ._-\u0663xn#?\\"), max_size=12).map(lambda text: f"{text}.invalid")
ports = st.sampled_from(["", ":", ":0", ":99999", ":x", ":-1", ":" + "9" * 5000, ":٣"])
addresses = (
    st.builds(
        lambda scheme, host, port, path: f"{scheme}{host}{port}{path}",
        st.sampled_from(["http://", "https://", "//", "ftp://", "file://", "http:", "x:", "HTTP://user:pass@"]),
        hosts
        | st.sampled_from(
            ["", "[", "[::1", "[::g]", "127.0.0.1:1", "xn--a.invalid", "a..invalid", "x" * 70 + ".invalid"]
        ),
        ports,
        st.sampled_from(["", "/", "/\0", "/é☃", "/%zz", "?a=%", "/" + "x" * 3000]),
    )
    | st.text(st.characters(max_codepoint=255, exclude_characters="\r\n:"), max_size=30)
).map(lambda text: text.encode().decode("latin-1"))

HEADERS: dict[str, tuple[str, int, dict[str, str]]] = {
    "retry-after": ("info", 429, {}),
    "ratelimit": ("info", 429, {}),
    "x-error-code": ("info", 404, {}),
    "x-error-message": ("resolve", 403, {}),
    "x-request-id": ("info", 500, {}),
    "x-hf-warning": ("info", 503, {}),
    "content-encoding": ("info", 200, {}),
    "content-length": ("content", 200, {}),
    "content-range": ("content", 206, {}),
    "content-type": ("tree", 200, {}),
    "link": ("tree", 200, {}),
    "location": ("resolve", 302, {"X-Linked-ETag": "x"}),
    "set-cookie": ("info", 200, {}),
    "transfer-encoding": ("info", 200, {}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_of_any_text_is_understood_or_refused(name: str, hub: HubServer) -> None:
    route, status, others = HEADERS[name]

    @settings(fuzzed, max_examples=12)
    @given(header_text)
    def check(value: str) -> None:
        body = json.dumps(info() if route == "info" else tree()).encode()
        attempt(Fault(route, times=2, status=status, headers={name: value, **others}, body=body), hub=hub)

    check()


@pytest.mark.parametrize("route", ["info", "resolve", "content"])
def test_a_redirect_to_anywhere_is_followed_or_refused(route: str, hub: HubServer) -> None:
    @settings(fuzzed, max_examples=20)
    @given(addresses, st.sampled_from([{}, {"X-Linked-ETag": "x"}]), backends)
    @example("http://.", {}, "asyncio")
    @example("http://" + "a" * 70 + ".invalid/", {}, "trio")
    @example("http://host:99999/", {}, "asyncio")
    @example("http://xn--a/", {}, "trio")
    @example("http://[::1", {}, "asyncio")
    @example("mailto:someone", {}, "trio")
    @example("http:///path", {}, "asyncio")
    def check(address: str, others: dict[str, str], backend: str) -> None:
        fault = Fault(route, times=9, status=302, headers={"Location": address, **others})
        attempt(fault, hub=hub, backend=backend)

    check()


def test_a_next_page_anywhere_is_asked_of_the_endpoint_or_refused(hub: HubServer) -> None:
    @settings(fuzzed, max_examples=20)
    @given(addresses, backends)
    @example("x:.invalid/", "asyncio")
    @example("x:@127.0.0.1:1/", "trio")
    @example("http://host:99999/", "asyncio")
    def check(address: str, backend: str) -> None:
        fault = Fault(
            "tree", status=200, headers={"Link": f'<{address}>; rel="next"'}, body=json.dumps(tree()).encode()
        )
        attempt(fault, hub=hub, backend=backend)

    check()


@pytest.mark.parametrize("link", ["x:.invalid/", "x:@127.0.0.1:1/", "x:81/", "http://[/"])
async def test_a_next_page_that_would_be_another_hosts_is_refused(link: str, hub: HubServer) -> None:
    """Its path is put behind the endpoint's address, which must not become another one by that."""
    hub.faults.append(Fault("tree", status=200, headers={"Link": f'<{link}>; rel="next"'}, body=b"[]"))
    with pytest.raises(UnexpectedAnswerError, match="next page"):
        await download_files([HubOrigin(REPO)], patterns=["*"])


@given(name=st.sampled_from(["retry-after", "ratelimit"]), value=st.text() | header_text)
@example("retry-after", "Mon, 01 Jan 0001 00:00:00 +9999")
@example("retry-after", "Mon, 01 Jan 9999 00:00:00 -9999999999")
@example("ratelimit", ";r=" + "0" * 5000 + ";t=" + "9" * 5000)
def test_a_pause_is_a_number_or_none(name: str, value: str) -> None:
    pause = requested_pause({name: value})
    assert pause is None or 0 <= pause < 1e9


@pytest.mark.parametrize(
    "headers",
    [
        {"x-goog-hash": "md5=A"},
        {"x-goog-hash": "md5===="},
        {"ETag": "é" * 500},
        {"Content-Range": "bytes " + "9" * 5000},
    ],
)
async def test_an_archives_headers_are_understood_or_refused(headers: dict[str, str], hub: HubServer) -> None:
    hub.archives["a.tar.gz"] = b"no archive"
    hub.archive_headers = headers
    with pytest.raises(DownloadError):
        await download_files([ArchiveOrigin(f"{hub.url}/archives/a.tar.gz", "folder")], patterns=["*"])


# ------------------------------------------------------------------ what lies in a cache, and what a caller asks for


def test_a_cached_listing_of_any_shape_is_read_or_ignored(tmp_path: Path) -> None:
    cache = RepoCache(tmp_path, REPO)
    for name in ("trees", f"snapshots/{COMMIT}", "refs"):
        (cache.folder / name).mkdir(parents=True)
    (cache.folder / "refs/main").write_text(COMMIT, "utf-8")

    @fuzzed
    @given(json_values | st.dictionaries(json_leaves.map(str), json_values, max_size=3), keys, json_values)
    def check(files: object, key: str, value: object) -> None:
        entry = {"size": 1, "blob_id": "a" * 40, {"oid": "blob_id", "lfs": "lfs_sha256"}.get(key, key): value}
        for document in (files, {"format_version": 1, "files": files}, {"format_version": 1, "files": {"f": entry}}):
            (cache.folder / f"trees/{COMMIT}.json").write_text(json.dumps(document), "utf-8")
            cache.on_disk("main", Wanted(("*",), ("sub/model.onnx",)))
            cache.drop_damaged("main", Wanted(("*",)))
            listing = cache.read_listing("main", COMMIT)
            if listing is not None:
                cache.missing(COMMIT, listing.files)

    check()
    (cache.folder / f"trees/{COMMIT}.json").write_bytes(DOCUMENTS["nested too deeply"])
    assert cache.read_listing("main", COMMIT) is None


@given(st.text() | st.text(st.characters()))
@settings(max_examples=50, deadline=None)
def test_a_revision_of_any_text_is_looked_up_or_refused(revision: str) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(AsyncEmbedError):
        anyio.run(partial(list_files, REPO, revision=revision or "/", cache_dir=folder, local_files_only=True))


@pytest.mark.parametrize("revision", ["\ud800", "a" * 5000, "../x", 7, b"main"])
async def test_a_revision_that_is_none_is_told_before_anything_is_asked(revision: Any, hub: HubServer) -> None:
    with pytest.raises(OptionError, match="revision="):
        await download_files([HubOrigin(REPO)], patterns=["*"], revision=revision)
    assert hub.requests == []
