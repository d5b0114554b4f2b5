"""A small hub on real sockets: the API and the small files on one port, the content of large files on another.

It speaks the part of the protocol that downloads use (`info`, paginated `tree`, `resolve` with its three kinds of
answer, ranges, signed URLs), keeps a list of all requests, can limit the rate of each connection as a content server
does, and misbehaves as its `faults` say.
"""

import contextlib
import gzip
import hashlib
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

CHUNK_BYTES = 64 * 1024

Content = bytes | memoryview


def blob_id(content: Content) -> str:
    """Name that git gives a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + bytes(content)).hexdigest()


@dataclass
class Repo:
    """One commit of a repo, under its branch names."""

    files: Mapping[str, Content]
    large: frozenset[str] = frozenset()
    commit: str = "c" * 40
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    token: str | None = None
    oids: dict[str, str] = field(default_factory=dict)

    def sha256(self, path: str) -> str:
        """Name of a large file's content; computed once."""
        if path not in self.oids:
            self.oids[path] = hashlib.sha256(self.files[path]).hexdigest()
        return self.oids[path]

    def etag(self, path: str) -> str:
        return self.sha256(path) if path in self.large else blob_id(self.files[path])


@dataclass
class Fault:
    """What goes wrong with the next `times` requests to `route` whose path matches `path`.

    Routes: "info", "tree", "resolve" (the hub's answer about a file), "content" (the bytes, wherever they come from).
    """

    route: str
    times: int = 1
    path: str = ""
    method: str = "GET"
    skip: int = 0
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    close_at_once: bool = False
    cut_after: int | None = None
    reset_after: int | None = None
    stall_after: int | None = None
    trickle: bool = False
    bytes_per_second: int | None = None
    slow_after: int = 0
    slow_headers: bool = False
    corrupt: bool = False
    ignore_range: bool = False
    shift_range: int = 0
    other_total: bool = False
    no_content_range: bool = False
    compress: bool = False
    no_length: bool = False
    excess: bytes = b""
    drop_headers: tuple[str, ...] = ()
    hold: threading.Event | None = None


@dataclass(frozen=True)
class Request:
    server: str
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    route: str = ""


class HubServer:
    """Both servers. `url` is the endpoint to use; `requests` all that came."""

    def __init__(self, page_size: int = 1000, tls: ssl.SSLContext | None = None, prefix: str = "") -> None:
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.archives: dict[str, bytes] = {}
        self.archive_headers: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.page_size = page_size
        self.bytes_per_second: float | None = None
        self.latency_seconds = 0.0
        self.next_page_host: str | None = None
        self.small_files_redirect = True
        self.known_tokens: set[str] = set()
        self.prefix = prefix
        self.tls = tls
        self.closing = threading.Event()
        self.connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._signatures = 0
        self._servers = [self._start("hub"), self._start("cdn")]
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._servers[0].server_port}{prefix}"
        # Another host name, as in reality: huggingface_hub tells content servers by it.
        self.cdn_url = f"{scheme}://localhost:{self._servers[1].server_port}"

    def _start(self, name: str) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "name": name})
        server = _Server(("127.0.0.1", 0), handler)
        if self.tls is not None:
            server.socket = self.tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True).start()
        return server

    def close(self) -> None:
        """End all connections and both servers."""
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        with self._lock:
            for connection in list(self.connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def of_route(self, *routes: str) -> list[Request]:
        """The requests to these routes, in order."""
        return [request for request in self.requests if request.route in routes]

    def note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def take_fault(self, route: str, path: str, method: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.route != route or fault.method != method or not re.search(fault.path, path):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                if fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def sign(self) -> str:
        with self._lock:
            self._signatures += 1
            return f"Expires=99&Signature=s{self._signatures}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[HubServer]
    name: ClassVar[str]
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, *args: object, **keywords: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)  # through a proxy's eyes, it is a whole URL
        path, query = parts.path.removeprefix(self.hub.prefix), parts.query
        self.query = query
        route, answer = self._route(path)
        self.hub.note(Request(self.name, self.command, path, query, dict(self.headers.items()), route))
        if self.hub.latency_seconds:
            self.hub.closing.wait(self.hub.latency_seconds)
        self.fault = self.hub.take_fault(route, unquote(path), self.command)
        if self.fault is not None:
            if self.fault.hold is not None:
                self.fault.hold.wait()
            if self.fault.slow_headers:
                self._trickle(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000)
                return
            if self.fault.close_at_once:
                self._hang_up()
                return
            if self.fault.status is not None:
                self._send(self.fault.status, dict(self.fault.headers), self.fault.body)
                return
        answer(path, query)

    def _route(self, path: str) -> tuple[str, Any]:
        if path.startswith("/archives/"):
            return "content", self._archive
        if self.name == "cdn" or "Signature=" in self.query:
            return "content", self._content
        if "/api/resolve-cache/" in path:
            return "content", self._small
        if "/resolve/" in path:
            return "resolve", self._resolve
        if "/tree/" in path:
            return "tree", self._tree
        if path.startswith("/api/models/"):
            return "info", self._info
        return "other", lambda path, query: self._send(404, {}, b"")

    def _repo(self, name: str) -> Repo | None:
        """The repo, unless an answer was sent instead."""
        moved = self.hub.renamed.get(name)
        if moved is not None:
            self._send(307, {"Location": self.path.replace(name, moved, 1)}, b"")
            return None
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if sent and sent not in self.hub.known_tokens:
            self._send(401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}")
            return None
        repo = self.hub.repos.get(name)
        if repo is None or (repo.token is not None and repo.token != sent):
            if sent:
                self._send(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}")
            else:
                self._send(401, {"X-Error-Message": "Invalid username or password."}, b"{}")
            return None
        return repo

    def _commit(self, repo: Repo, revision: str) -> bool:
        if revision == repo.commit or revision in repo.revisions:
            return True
        self._send(
            404,
            {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"},
            b"{}",
        )
        return False

    def _info(self, path: str, query: str) -> None:
        match = re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)(?:/revision/([^/]+))?", path)
        assert match is not None
        repo = self._repo(match[1])
        if repo is None or not self._commit(repo, unquote(match[2] or "main")):
            return
        siblings = [{"rfilename": name} for name in repo.files]
        self._json({"id": match[1], "sha": repo.commit, "siblings": siblings, "gated": repo.gated})

    def _tree(self, path: str, query: str) -> None:
        match = re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)/tree/([^/]+)", path)
        assert match is not None
        repo = self._repo(match[1])
        if repo is None or not self._commit(repo, unquote(match[2])):
            return
        entries: list[dict[str, object]] = [
            {"type": "directory", "path": folder, "oid": "d" * 40, "size": 0}
            for folder in sorted({name.rpartition("/")[0] for name in repo.files} - {""})
        ]
        for name, content in repo.files.items():
            entry: dict[str, object] = {"type": "file", "path": name, "size": len(content)}
            if name in repo.large:
                pointer = f"oid sha256:{repo.sha256(name)}\nsize {len(content)}\n".encode()
                entry["oid"] = blob_id(pointer)
                entry["lfs"] = {
                    "oid": repo.sha256(name),
                    "size": len(content),
                    "pointerSize": len(pointer),
                }
            else:
                entry["oid"] = blob_id(content)
            entries.append(entry)
        cursor = int(parse_qs(query).get("cursor", ["0"])[0])
        headers = {}
        if cursor + self.hub.page_size < len(entries):
            kept = re.sub(r"&?cursor=\d+", "", query)
            base = self.hub.next_page_host or self.hub.url
            following = f"{base}{path}?{kept}&cursor={cursor + self.hub.page_size}"
            headers["Link"] = f'<{following}>; rel="next"'
        self._json(entries[cursor : cursor + self.hub.page_size], headers)

    def _resolve(self, path: str, query: str) -> None:
        match = re.fullmatch(r"/([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", path)
        assert match is not None
        repo = self._repo(match[1])
        name = unquote(match[3])
        if repo is None or not self._commit(repo, unquote(match[2])):
            return
        if repo.gated and not self.headers.get("Authorization"):
            self._send(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}, b"{}")
            return
        commit = {"X-Repo-Commit": repo.commit}
        if name not in repo.files:
            message = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self._send(404, commit | message, b"Entry not found")
            return
        if name in repo.large:
            headers = commit | {
                "X-Linked-ETag": f'"{repo.sha256(name)}"',
                "X-Linked-Size": str(len(repo.files[name])),
                "Accept-Ranges": "bytes",
                "Location": f"{self.hub.cdn_url}/{match[1]}/{match[3]}?{self.hub.sign()}",
            }
            self._send(302, self._without_dropped(headers), b"Found. Redirecting to somewhere else.")
        elif self.hub.small_files_redirect and not self.headers.get("Authorization"):
            target = f"{self.hub.prefix}/api/resolve-cache/models/{match[1]}/{repo.commit}/{match[3]}"
            location = f"{target}?etag=%22{repo.etag(name)}%22"
            self._send(307, commit | {"Location": location}, b"Temporary Redirect")
        else:
            self._send_file(repo.files[name], commit | {"ETag": f'"{repo.etag(name)}"'})

    def _small(self, path: str, query: str) -> None:
        match = re.fullmatch(r"/api/resolve-cache/models/([^/]+(?:/[^/]+)?)/([0-9a-f]{40})/(.+)", path)
        assert match is not None
        if "etag=" not in query:
            self._send(400, {}, b"the query is part of the address")
            return
        repo = self.hub.repos[match[1]]
        name = unquote(match[3])
        headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{repo.etag(name)}"'}
        self._send_file(repo.files[name], headers)

    def _content(self, path: str, query: str) -> None:
        if "Signature=" not in query or self.headers.get("Authorization"):
            self._send(400, {}, b"<Error>only one auth mechanism allowed</Error>")
            return
        parts = unquote(path).lstrip("/").split("/")
        for size in (2, 1):
            repo = self.hub.repos.get("/".join(parts[:size]))
            if repo is not None:
                # What a content server calls ETag looks like a sha256, and is none.
                self._send_file(repo.files["/".join(parts[size:])], {"ETag": '"' + "0" * 64 + '"'})
                return
        self._send(404, {}, b"<Error>NoSuchKey</Error>")

    def _archive(self, path: str, query: str) -> None:
        content = self.hub.archives.get(path.rpartition("/")[2])
        if content is None:
            self._send(404, {}, b"<Error>NoSuchKey</Error>")
        else:
            self._send_file(content, dict(self.hub.archive_headers))

    def _json(self, document: object, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(document).encode()
        self._send_body(200, {"Content-Type": "application/json", **(headers or {})}, body, len(body))

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_file(self, content: Content, headers: dict[str, str]) -> None:
        fault = self.fault or Fault("")
        total = len(content)
        headers["Accept-Ranges"] = "bytes"
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None or fault.ignore_range:
            body = bytes(content) + fault.excess if fault.excess else content
            if fault.compress:
                body = gzip.compress(content)
                headers |= {"Content-Encoding": "gzip", "ETag": "W/" + headers["ETag"]}
            self._send_body(200, headers, body, len(body))
            return
        start, end = int(match[1]), min(int(match[2]) + 1 if match[2] else total, total)
        if start >= total:
            self._send(416, {"Content-Range": f"bytes */{total}"}, b"")
            return
        start = max(0, start + fault.shift_range)
        if not fault.no_content_range:
            said = total + 1 if fault.other_total else total
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{said}"
        self._send_body(206, headers, memoryview(content)[start:end], end - start)

    def _send_body(self, status: int, headers: Mapping[str, str], body: Content, length: int) -> None:
        fault = self.fault or Fault("")
        self.send_response(status)
        for name, value in self._without_dropped(headers).items():
            self.send_header(name, value)
        if fault.no_length:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault.corrupt:
            body = bytes(byte ^ 0xFF for byte in bytes(body[:3])) + bytes(body[3:])
        if fault.trickle:
            self._trickle(body)
        if fault.bytes_per_second is not None:
            self._write(memoryview(body)[: fault.slow_after])
            self._drip(memoryview(body)[fault.slow_after :], fault.bytes_per_second)
            return
        limit = min(n for n in (fault.cut_after, fault.reset_after, fault.stall_after, len(body)) if n is not None)
        self._write(memoryview(body)[:limit])
        if fault.cut_after is not None:
            self._hang_up()
        elif fault.reset_after is not None:
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif fault.stall_after is not None:
            self.wfile.flush()
            self.hub.closing.wait()

    def _write(self, body: memoryview) -> None:
        rate = self.hub.bytes_per_second
        if rate is None:
            for position in range(0, len(body), 16 * CHUNK_BYTES):
                self.wfile.write(body[position : position + 16 * CHUNK_BYTES])
            return
        started = time.perf_counter()
        for position in range(0, len(body), CHUNK_BYTES):
            self.wfile.write(body[position : position + CHUNK_BYTES])
            ahead = (position + CHUNK_BYTES) / rate - (time.perf_counter() - started)
            if ahead > 0.002 and self.hub.closing.wait(ahead):
                return

    def _trickle(self, body: Content) -> None:
        for position in range(len(body)):
            self.wfile.write(body[position : position + 1])
            if self.hub.closing.wait(0.05):
                return

    def _drip(self, body: memoryview, bytes_per_second: int) -> None:
        portion = max(1, bytes_per_second // 20)
        for position in range(0, len(body), portion):
            self.wfile.write(body[position : position + portion])
            if self.hub.closing.wait(0.05):
                return

    def _without_dropped(self, headers: Mapping[str, str]) -> dict[str, str]:
        dropped = self.fault.drop_headers if self.fault is not None else ()
        return {name: value for name, value in headers.items() if name not in dropped}

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
