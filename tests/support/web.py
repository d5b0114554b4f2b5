"""A small web server on a real socket, which gives files and misbehaves as its paths say."""

import ssl
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


class WebServer:
    """Serves `files` by path. Other paths: /status/N, /redirect/TARGET, /endless, /stall, /packed, /loop, /together.

    What asks for /together is answered when as many ask for it as `meeting` says.
    """

    def __init__(self, files: Mapping[str, bytes], *, meeting: int = 2, tls: ssl.SSLContext | None = None) -> None:
        self.files = dict(files)
        self.headers: list[tuple[str, Mapping[str, str]]] = []
        self.connections = 0
        self._scheme = "http" if tls is None else "https"
        self._meeting = threading.Barrier(meeting)
        self.requests: list[str] = []
        self.busiest = 0
        self._busy = 0
        self._lock = threading.Lock()
        self._released = threading.Event()
        handler = type("Handler", (_Handler,), {"site": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def enter(self, path: str) -> None:
        with self._lock:
            self.requests.append(path)
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)

    def leave(self) -> None:
        with self._lock:
            self._busy -= 1

    def meet(self) -> None:
        self._meeting.wait(30)

    def wait_for_release(self) -> None:
        self._released.wait(30)


class _Server(ThreadingHTTPServer):
    # The default is 5: of more connections at once the system drops some, whose clients try again after 1 s, 2 s, 4 s;
    # on a busy machine that happens several times over, and a client gives up before it is through.
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    site: WebServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        pass

    def setup(self) -> None:
        super().setup()
        self.site.connections += 1

    def do_GET(self) -> None:
        self.site.headers.append((self.path, dict(self.headers)))
        self.site.enter(self.path)
        try:
            self._answer()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client had enough
        finally:
            self.site.leave()

    def _answer(self) -> None:
        match self.path.split("/", 2)[1:]:
            case ["status", code]:
                self._send(int(code), b"")
            case ["redirect", target]:
                self._send(302, b"", Location=target)
            case ["loop"]:
                self._send(302, b"", Location="/loop")
            case ["packed"]:
                self._send(200, b"x", **{"Content-Encoding": "gzip"})
            case ["together"]:
                self.site.meet()
                self._send(200, b"picture")
            case ["cookie"]:
                self._send(200, b"picture", **{"Set-Cookie": "secret=1; Path=/"})
            case ["stall"]:
                self.site.wait_for_release()
            case ["endless"]:
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                while True:
                    self.wfile.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            case _ if self.path in self.site.files:
                self._send(200, self.site.files[self.path])
            case _:
                self._send(404, b"")

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
