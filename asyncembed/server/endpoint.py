"""One route as an ASGI app: from a request to a handler, and from what comes of it to an answer.

What every request takes goes through here, so it is plain: no middleware, no `Request`, nothing that is not needed.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO, Logger, getLogger
from time import perf_counter
from typing import Any, ClassVar, TypeAlias

import msgspec
import orjson
from anyio import get_cancelled_exc_class, move_on_after

from asyncembed.integrations.asgi import Receive, Send, until_gone
from asyncembed.server.refusals import RETRY_AFTER_SECONDS, STATUSES, Kind, Refusal, malformed, refusal_of
from asyncembed.server.service import Service

requests_log: Logger = getLogger("asyncembed.server.requests")

JSON = b"application/json"

DROPPED_BYTES = 64 * 1024 * 1024
DROPPING_SECONDS = 2.0
"""How much of a refused body is read at most, and how long, without being kept."""


_ENDING = Refusal(
    "unavailable",
    "the server has ended before this was computed: try again",
    headers={"retry-after": str(RETRY_AFTER_SECONDS), "connection": "close"},
)
"""What a request gets that was not finished within the server's grace."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is not just JSON.

    Attributes:
        body: The bytes.
        media_type: What they are.
        headers: To be sent with them, in lower case.
    """

    body: bytes
    media_type: bytes = JSON
    headers: Mapping[str, str] | None = None


Handler: TypeAlias = Callable[[Service, Any], Awaitable[bytes | Reply]]
"""From the service and the decoded body to the answer, where bytes are JSON.

Instead of a body, a GET has what stands in its path where the route has `{id}`, or None.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route of a dialect: what the app serves, and what the OpenAPI document says of it.

    Attributes:
        path: In full: "/v1/embeddings". It may end with "{id}", which stands for anything, slashes included.
        handle: Computes the answer.
        body: The Struct that the JSON of a POST is decoded as; None: a GET.
        answer: Struct, or type, of what it answers, for the document only.
        media_type: What the answer is, likewise.
        summary: A sentence for the document.
        needs_key: Whether it is served to those only who have the API key, if there is one.
    """

    path: str
    handle: Handler
    body: Any = None
    answer: Any = None
    media_type: str = "application/json"
    summary: str
    needs_key: bool = True

    @property
    def method(self) -> str:
        """The one method that it takes."""
        return "GET" if self.body is None else "POST"


class Dialect(ABC):
    """The HTTP interface of some service that clients know."""

    name: ClassVar[str]
    """For the document and the metrics."""

    routes: "tuple[Route, ...]"

    statuses: ClassVar[Mapping[Kind, int]] = {}
    """Where they differ from `refusals.STATUSES`."""

    @abstractmethod
    def refuse(self, refusal: Refusal, status: int) -> object:
        """The body that says so, in its form: what `orjson.dumps` takes."""


def bodies_of(form: Any) -> Callable[[bytes], Any]:
    """What decodes JSON as that Struct; raises `Refusal`, or the errors of msgspec, for a body that is not of it."""
    decode = msgspec.json.Decoder(form).decode

    def decoded(body: bytes) -> Any:
        try:
            return decode(body)
        except UnicodeDecodeError as error:
            raise Refusal("malformed", f"the body is no JSON, which is UTF-8: {error.reason}") from error
        except RecursionError as error:
            raise Refusal("malformed", "the body has too many brackets within each other") from error
        except msgspec.ValidationError as error:
            raise malformed(form, error) from error

    return decoded


class Endpoint:
    """An ASGI app for one path."""

    def __init__(self, service: Service, dialect: Dialect, route: Route) -> None:
        self.dialect = dialect
        self.route = route
        self._service = service
        self._decode: Callable[[bytes], Any] | None = None
        if route.body is not None:
            self._decode = bodies_of(route.body)

    def takes(self, method: str) -> bool:
        """Whether it answers requests of this method."""
        return method == self.route.method or (method, self.route.method) == ("HEAD", "GET")

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if self._decode is None:
            await self._serve(scope, receive, send)
            return
        meter, status = self._service.meter, STATUSES["gone"]
        meter.begin()
        began = perf_counter()
        try:
            status = await self._serve(scope, receive, send)
        finally:
            seconds = perf_counter() - began
            meter.end(self.route.path, status, seconds)
            if requests_log.isEnabledFor(INFO):
                log_request(scope, self.route.path, status, seconds)

    async def _serve(self, scope: Any, receive: Receive, send: Send) -> int:
        """Answer a request; gives the status."""
        try:
            reply = await self._answer(scope, receive)
        except Exception as error:  # noqa: BLE001 (whatever it is, the client is told in its dialect)
            return await self._refuse(refusal_of(error), receive, send)
        except get_cancelled_exc_class():
            if self._service.is_alone:  # elsewhere a middleware may have cancelled it, and answers itself
                with move_on_after(DROPPING_SECONDS, shield=True):
                    await self._refuse(_ENDING, receive, send)
            raise
        if isinstance(reply, bytes):
            headers = [(b"content-type", JSON), (b"content-length", b"%d" % len(reply))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": reply})
        else:
            await _send(send, 200, reply.body, reply.media_type, reply.headers or {})
        return 200

    async def _answer(self, scope: Any, receive: Receive) -> bytes | Reply:
        route, service = self.route, self._service
        if not self.takes(scope["method"]):
            raise Refusal("no_method", f"{route.path} takes {route.method} only", headers={"allow": route.method})
        if route.needs_key:
            service.check_asker(scope)
        if self._decode is None:
            return await route.handle(service, scope.get("path_params", {}).get("id"))
        body = await read_body(scope, receive, service.limits.max_bytes)
        service.check_values(body)
        asked = self._decode(body)
        return await until_gone(receive, route.handle(service, asked))

    async def _refuse(self, refusal: Refusal, receive: Receive, send: Send) -> int:
        status = self.dialect.statuses.get(refusal.kind) or STATUSES[refusal.kind]
        body = orjson.dumps(self.dialect.refuse(refusal, status))
        is_too_large = refusal.kind == "too_large"
        await _send(send, status, body, JSON, refusal.headers, more_body=is_too_large)
        if is_too_large:
            await _drop_body(receive)
            await send({"type": "http.response.body", "body": b""})
        return status


class ByMethod:
    """Several of them at one path, which take different methods."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        fitting = (one for one in self._endpoints if one.takes(scope["method"]))
        await next(fitting, self._endpoints[0])(scope, receive, send)


async def _send(
    send: Send, status: int, body: bytes, media_type: bytes, more: Mapping[str, str], *, more_body: bool = False
) -> None:
    headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body))]
    headers += [(name.encode(), value.encode()) for name, value in more.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more_body})


def log_request(scope: Any, path: str, status: int, seconds: float) -> None:
    """One line for a request, whose parts a structured log has as fields; nothing of its body or of its headers."""
    client = _client(scope)
    fields = {
        "method": scope["method"],
        "path": path,
        "status": status,
        "milliseconds": round(1000 * seconds, 2),
        "client": client,
    }
    line = "%(method)s %(path)s %(status)d in %(milliseconds).1f ms" + (" for %(client)s" if client else "")
    requests_log.info(line, fields, extra={"fields": fields})


def _client(scope: Any) -> str | None:
    """The address of who asks: at a unix socket what the proxy there says, whose own word is the last one."""
    if scope.get("client"):
        return str(scope["client"][0])
    said = next((value for name, value in scope["headers"] if name == b"x-forwarded-for"), b"")
    return said.rpartition(b",")[2].strip().decode("latin-1") or None


async def _drop_body(receive: Receive) -> None:
    """Read a little more of a body that is too large: who still sends when the connection ends reads no answer."""
    size = 0
    with move_on_after(DROPPING_SECONDS):
        while size < DROPPED_BYTES:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                return


async def read_body(scope: Any, receive: Receive, max_bytes: int) -> bytes:
    """The body of a request.

    Raises:
        Refusal: It is too large, which is known from its header, or as soon as too much has come.
        ClientGoneError: The client left in the middle of it.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > max_bytes:
            raise _too_large(max_bytes)
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False) and message["type"] == "http.request" and len(body) <= max_bytes:
        return body
    parts, size = [body], len(body)
    while True:
        if message["type"] == "http.disconnect":
            raise Refusal("gone", "the client left before its body was there")
        if size > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])


def _too_large(max_bytes: int) -> Refusal:
    # What is still to come of the body would be taken for the next request of this connection.
    return Refusal(
        "too_large", f"the body is too large; one request may have {max_bytes} bytes", headers={"connection": "close"}
    )
