"""Web apps: real servers (uvicorn on asyncio, hypercorn on trio), real frameworks, and clients that leave."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import fastapi
import httpx
import litestar
import pytest
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from asyncembed import TextEmbedding, WorkerPool
from asyncembed.engine.lifetime import Openable
from asyncembed.errors import ClientGoneError, InputError, OptionError, OverloadedError, StateError
from asyncembed.integrations.asgi import (
    READ_AHEAD_BYTES,
    ErrorAnswersMiddleware,
    UntilGoneMiddleware,
    lifespan,
    until_gone,
)
from tests.support.asgi_apps import FRAMEWORKS, make_app
from tests.support.asgi_servers import serving
from tests.support.encoders import ECHO, with_settings
from tests.support.waiting import nothing_left_behind, until

every_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


@asynccontextmanager
async def served(framework: str, **options: Any) -> AsyncGenerator[tuple[httpx.AsyncClient, TextEmbedding]]:
    """An app with a model that computes in one thread, a text at a time."""
    async with TextEmbedding(ECHO, workers=0, max_batch_size=1, **options) as model:
        async with serving(make_app(framework, model)) as client:
            yield client, model


@asynccontextmanager
async def busy(framework: str, gate: Path, **options: Any) -> AsyncGenerator[tuple[httpx.AsyncClient, TextEmbedding]]:
    """The same, while the thread computes something else until there is a gate."""
    async with served(framework, **options) as (client, model):
        async with anyio.create_task_group() as group:
            group.start_soon(model.embed_query, f"wait:{gate}")
            await until(lambda: model.stats().in_flight == 1)
            yield client, model
            gate.touch()


# ---------------------------------------------------------------- clients that leave


@pytest.mark.slow
@every_framework
@pytest.mark.parametrize("path", ["/query", "/helped"])
async def test_a_client_that_leaves_withdraws_its_query(framework: str, path: str, gate: Path) -> None:
    async with busy(framework, gate) as (client, model):
        async with anyio.create_task_group() as leaving:
            for number in range(3):
                leaving.start_soon(client.get, f"{path}?text=%23{number}")
            await until(lambda: model.stats().queued_interactive == 3)
            leaving.cancel_scope.cancel()
        await until(lambda: model.stats().queued_interactive == 0)
        gate.touch()
        assert (await client.get(path, params={"text": "#7"})).json() == [7]


@pytest.mark.slow
@every_framework
async def test_a_client_that_leaves_withdraws_the_documents_that_it_sent(framework: str, gate: Path) -> None:
    async with busy(framework, gate) as (client, model):
        async with anyio.create_task_group() as leaving:

            async def post() -> None:
                await client.post("/documents", json=["a", "b", "c"])

            leaving.start_soon(post)
            await until(lambda: model.stats().queued_interactive == 3)
            leaving.cancel_scope.cancel()
        await until(lambda: model.stats().queued_interactive == 0)


@pytest.mark.slow
@every_framework
async def test_a_client_that_leaves_in_the_middle_of_a_streaming_answer_ends_its_stream(framework: str) -> None:
    async with served(framework) as (client, model):
        seen: list[str] = []

        async def read() -> None:
            async with client.stream("GET", "/stream?count=1000000000") as response:
                async for line in response.aiter_lines():
                    seen.append(line)  # noqa: PERF401 (it is cancelled)

        assert model._opened is not None
        streams = model._opened.streams
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await until(lambda: len(seen) > 3)
            assert len(streams) == 1
            group.cancel_scope.cancel()
        assert seen[:4] == ["0", "1", "2", "3"]
        await until(lambda: not streams)
        await until(lambda: model.stats().queued_bulk == 0)


@pytest.mark.slow
@every_framework
async def test_a_streaming_answer_comes_whole(framework: str) -> None:
    async with served(framework) as (client, _):
        response = await client.get("/stream?count=50")
        assert response.text.split() == [str(number) for number in range(50)]


@pytest.mark.slow
@every_framework
async def test_a_background_task_goes_on_when_the_client_has_its_answer_and_leaves(framework: str, gate: Path) -> None:
    async with served(framework) as (client, model):
        async with httpx.AsyncClient(base_url=client.base_url, trust_env=False) as leaving:
            assert (await leaving.get(f"/later?text=wait:{gate}")).json() == []
            await until(lambda: model.stats().in_flight == 1)
        gate.touch()
        await until(lambda: model.stats().items == 1)
        await until(lambda: model.stats().in_flight == 0)


@pytest.mark.slow
@every_framework
async def test_a_large_body_reaches_the_handler(framework: str) -> None:
    texts = [f"#{number} " + 1000 * "x" for number in range(500)]

    async def in_parts() -> AsyncGenerator[bytes]:
        body = json.dumps(texts).encode()
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    async with served(framework) as (client, _):
        response = await client.post("/documents", content=in_parts())
        assert response.json() == list(range(500))


class Client:
    """What a server hands to an app, for requests that are acted by the test."""

    def __init__(self, *messages: dict[str, Any], headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.scope: dict[str, Any] = {"type": "http", "headers": headers}
        self.read: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []
        self.leaves = anyio.Event()
        self._messages = list(messages)

    async def receive(self) -> dict[str, Any]:
        if self._messages:
            self.read.append(self._messages.pop(0))
            return self.read[-1]
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


def body(content: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": content, "more_body": more}


async def test_a_handler_that_asks_again_hears_again_that_the_client_left() -> None:
    client, heard = Client(body(b"all")), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with anyio.CancelScope(shield=True):
            client.leaves.set()
            heard.extend([await receive() for _ in range(3)])

    await UntilGoneMiddleware(app)(client.scope, client.receive, client.send)
    assert [message["type"] for message in heard] == ["http.request", "http.disconnect", "http.disconnect"]


# Starlette 0.50 leaves this generator to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*Request.stream:pytest.PytestUnraisableExceptionWarning")
async def test_a_middleware_around_hears_that_the_client_left() -> None:
    """Starlette's own takes an app that gives no answer for one that has failed, and logs it so each time."""
    client, seen = Client(body(b"all")), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        client.leaves.set()
        await anyio.sleep_forever()

    async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        seen.append(response.status_code)
        return response

    around: Any = BaseHTTPMiddleware(UntilGoneMiddleware(app), dispatch)
    await around(client.scope, client.receive, client.send)
    assert seen == [499]


async def test_a_server_may_refuse_an_answer_to_a_client_that_left() -> None:
    """As ASGI lets it, with an `OSError`."""
    client = Client(body(b"all"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        client.leaves.set()
        await anyio.sleep_forever()

    async def send(message: dict[str, Any]) -> None:
        raise BrokenPipeError("nobody is there")

    await UntilGoneMiddleware(app)(client.scope, client.receive, send)


async def test_an_answer_that_was_begun_when_the_client_left_is_not_begun_again() -> None:
    client = Client(body(b"all"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        client.leaves.set()
        await anyio.sleep_forever()

    await UntilGoneMiddleware(app)(client.scope, client.receive, client.send)
    assert len(client.sent) == 1


async def test_a_streaming_answer_may_be_made_of_the_body_as_it_comes() -> None:
    """Starlette itself listens for the client's leaving meanwhile, and would take the parts away."""
    client = Client(*[body(part, more=part != b"c") for part in (b"a", b"b", b"c")])
    before = client.scope["asgi"] = {"version": "3.0", "spec_version": "2.3"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await StreamingResponse(Request(scope, receive).stream())(scope, receive, send)

    await UntilGoneMiddleware(app)(client.scope, client.receive, client.send)
    assert b"".join([message.get("body", b"") for message in client.sent]) == b"abc"
    assert client.scope["asgi"] is before


async def test_a_body_that_nobody_reads_is_not_taken_in_whole() -> None:
    client = Client(*[body(READ_AHEAD_BYTES // 4 * b"x", more=True)] * 100)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.wait_all_tasks_blocked()
        assert len(client.read) == 4
        await receive()
        await anyio.wait_all_tasks_blocked()
        assert len(client.read) == 5

    await UntilGoneMiddleware(app)(client.scope, client.receive, client.send)


async def test_a_body_in_many_small_parts_is_not_taken_in_whole() -> None:
    """A message weighs something itself, and there may be no end of them."""

    async def receive() -> dict[str, Any]:
        read.append(None)
        assert len(read) < 10_000
        return body(more=True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.wait_all_tasks_blocked()
        assert 1 < len(read) < 1000
        before = len(read)
        await receive()
        await anyio.wait_all_tasks_blocked()
        assert len(read) == before + 1

    read: list[None] = []
    client = Client()
    await UntilGoneMiddleware(app)(client.scope, receive, client.send)


async def test_a_client_is_not_told_to_send_a_body_before_its_handler_wants_it() -> None:
    client = Client(body(b"x"), headers=((b"expect", b"100-continue"),))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.wait_all_tasks_blocked()
        assert not client.read
        assert (await receive())["body"] == b"x"
        client.leaves.set()
        await anyio.sleep_forever()

    await UntilGoneMiddleware(app)(client.scope, client.receive, client.send)


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
@pytest.mark.parametrize("middleware", [UntilGoneMiddleware, ErrorAnswersMiddleware])
async def test_what_is_no_request_passes_untouched(kind: str, middleware: Any) -> None:
    client, seen = Client(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))
        raise InputError("its own affair")

    scope = {"type": kind}
    receive, send = client.receive, client.send
    with pytest.raises(InputError, match="its own affair"):
        await middleware(app)(scope, receive, send)
    assert seen == [(scope, receive, send)]


async def test_an_error_of_a_handler_comes_out_as_itself() -> None:
    client = Client(body())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await UntilGoneMiddleware(app)(client.scope, client.receive, client.send)


async def test_the_helper_gives_what_is_awaited_and_raises_what_that_raises() -> None:
    client = Client()

    async def work(number: int) -> int:
        await anyio.lowlevel.checkpoint()
        return 12 // number

    assert await until_gone(client.receive, work(3)) == 4
    with pytest.raises(ZeroDivisionError):
        await until_gone(client.receive, work(0))


async def test_the_helper_says_that_the_client_is_gone() -> None:
    client = Client(body(b"left over"))
    has_ended = False

    async def work() -> None:
        nonlocal has_ended
        try:
            await anyio.wait_all_tasks_blocked()
            client.leaves.set()
            await anyio.sleep_forever()
        finally:
            has_ended = True

    with pytest.raises(ClientGoneError, match="the client left"):
        await until_gone(client.receive, work())
    assert has_ended


async def test_the_helper_does_not_listen_for_ever_to_what_never_tells_of_a_client() -> None:
    """As a middleware that has read the body often puts in its place: it gives the body each time, at once."""

    async def receive() -> dict[str, Any]:
        asked.append(None)
        assert len(asked) < 100
        return {"type": "http.request", "body": b"all"}

    async def work() -> int:
        await anyio.wait_all_tasks_blocked()
        return 7

    asked: list[None] = []
    assert await until_gone(receive, work()) == 7


async def test_the_helper_ends_the_work_if_its_client_cannot_be_heard() -> None:
    async def receive() -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        raise OSError("no more of it")

    with pytest.raises(OSError, match="no more of it"):
        await until_gone(receive, anyio.sleep_forever())


async def test_the_helper_lets_a_time_limit_pass() -> None:
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.01):
            await until_gone(Client().receive, anyio.sleep_forever())


# ---------------------------------------------------------------- what clients are told


@pytest.mark.slow
@every_framework
async def test_bad_input_is_the_clients_error_with_its_index(framework: str) -> None:
    async with served(framework) as (client, _):
        response = await client.post("/documents", json=["fine", 42])
        assert response.status_code == 422
        assert response.headers["content-type"] == "application/json"
        assert response.json() == {"detail": "input 1: expected a str, got int", "index": 1}


@pytest.mark.slow
@every_framework
async def test_overload_tells_when_to_come_back(framework: str, gate: Path) -> None:
    async with busy(framework, gate, max_queued=1) as (client, model):
        async with anyio.create_task_group() as group:
            group.start_soon(client.get, "/query?text=waits")
            await until(lambda: model.stats().queued_interactive == 1)
            response = await client.get("/query?text=more")
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) == 1
            assert response.json() == {"detail": "too many requests are waiting: try again later"}
            gate.touch()
        assert (await client.get("/query", params={"text": "#3"})).json() == [3]


@pytest.mark.slow
@every_framework
async def test_a_mistake_of_the_app_stays_one(framework: str) -> None:
    async with served(framework) as (client, _):
        assert (await client.get("/mistake")).status_code == 500


@pytest.mark.parametrize(("seconds", "header"), [(None, b"1"), (0.2, b"1"), (7.3, b"8")])
async def test_clients_are_asked_to_wait_as_long_as_the_queue_takes(seconds: float | None, header: bytes) -> None:
    client = Client(body())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise OverloadedError("full", retry_after_seconds=seconds)

    await ErrorAnswersMiddleware(app)(client.scope, client.receive, client.send)
    start, _ = client.sent
    assert start["status"] == 503
    assert (b"retry-after", header) in start["headers"]


async def test_an_error_after_the_answer_has_begun_comes_out() -> None:
    client = Client(body())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise InputError("too late")

    with pytest.raises(InputError, match="too late"):
        await ErrorAnswersMiddleware(app)(client.scope, client.receive, client.send)
    assert len(client.sent) == 1


# ---------------------------------------------------------------- the life of an app


def app_with(framework: str, life: Any) -> Any:
    """An app of that framework that answers `/` with the number in the vector of "#7"."""
    if framework == "litestar":

        @litestar.get("/")
        async def of_litestar(request: litestar.Request[Any, Any, Any]) -> int:
            return int((await request.app.state.embedder.embed_query("#7"))[2])

        return litestar.Litestar([of_litestar], lifespan=[life], openapi_config=None, logging_config=None)

    async def of_starlette(request: Request) -> JSONResponse:
        assert request.state.embedder is request.app.state.embedder
        return JSONResponse(int((await request.state.embedder.embed_query("#7"))[2]))

    kind = fastapi.FastAPI if framework == "fastapi" else Starlette
    return kind(routes=[Route("/", of_starlette)], lifespan=life)


every_lifespan = pytest.mark.parametrize("framework", ["starlette", "fastapi", "litestar"])


async def live(app: Any) -> list[dict[str, Any]]:
    """What a server hears of an app's lifespan."""
    heard: list[dict[str, Any]] = []
    to_tell = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> dict[str, Any]:
        return to_tell.pop(0)

    async def send(message: dict[str, Any]) -> None:
        heard.append(message)

    with suppress(Exception):  # Starlette raises it again, which servers take for a lifespan that is not supported
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}, "app": app}, receive, send)
    return heard


@pytest.mark.slow
@every_lifespan
async def test_models_are_open_as_long_as_the_app_is(framework: str) -> None:
    pool = WorkerPool(workers=0)
    embedder = TextEmbedding(ECHO, pool=pool)
    life = lifespan(other=TextEmbedding(ECHO, pool=pool), embedder=embedder, pool=pool)
    for _ in range(2):  # an app may be started again, as tests do
        async with nothing_left_behind(), serving(app_with(framework, life)) as client:
            assert (await client.get("/")).json() == 7
            assert pool.stats().workers_ready == 1
        with pytest.raises(StateError):
            await embedder.embed_query("closed")


@pytest.mark.slow
@every_lifespan
async def test_a_model_that_cannot_be_opened_stops_the_start_and_is_named(framework: str) -> None:
    fine, broken = TextEmbedding(ECHO, workers=0), TextEmbedding(with_settings(refuse="no memory for it"), workers=0)
    async with nothing_left_behind():
        (heard,) = await live(app_with(framework, lifespan(embedder=fine, broken=broken)))
    assert heard["type"] == "lifespan.startup.failed"
    assert "asyncembed.errors.ModelLoadError: " in heard["message"]
    assert "no memory for it" in heard["message"]
    assert "so the app does not start: broken=<TextEmbedding" in heard["message"]
    assert framework == "litestar" or "ExceptionGroup" not in heard["message"]  # it has a group of its own
    with pytest.raises(StateError):
        await fine.embed_query("closed")


class Recorded(Openable[Any]):
    """Opens when all of its like do; says what it does."""

    def __init__(self, name: str, log: list[str], others: int) -> None:
        self._name, self._log, self._others = name, log, others

    @asynccontextmanager
    async def _lifetime(self) -> AsyncGenerator[None]:
        name, log, others = self._name, self._log, self._others
        log.append(f"{name} opens")
        await until(lambda: sum(line.endswith("opens") for line in log) == others)
        yield
        log.append(f"{name} closed")


async def test_models_open_together_and_close_in_the_reverse_order() -> None:
    log: list[str] = []
    a, b, c = (Recorded(name, log, 3) for name in "abc")
    async with lifespan(a=a, b=b, c=c)(None) as state:
        assert list(state) == ["a", "b", "c"]
        assert len(log) == 3
    assert log[3:] == ["c closed", "b closed", "a closed"]


async def test_models_may_lie_together_under_one_name() -> None:
    model, app = TextEmbedding(ECHO, workers=0), Starlette()
    async with lifespan(app_state_name="models", embedder=model)(app) as state:
        assert app.state.models.embedder is model
        assert state["models"].embedder is model


async def test_an_error_in_the_life_of_the_app_comes_out_as_itself() -> None:
    with pytest.raises(ZeroDivisionError):
        async with lifespan(embedder=TextEmbedding(ECHO, workers=0))(None):
            raise ZeroDivisionError


def test_a_lifespan_takes_models_and_nothing_else() -> None:
    with pytest.raises(OptionError, match=r"embedder= is str"):
        lifespan(embedder="BAAI/bge-small-en-v1.5")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="models by name"):
        lifespan()
