"""Web apps: models that live as long as the app, clients that leave, and what clients are told of errors.

Everything here is plain ASGI, for Starlette, FastAPI, Litestar and whatever else is an ASGI app, on asyncio and on
trio; no framework is imported. `examples/web_fastapi.py` and `examples/web_litestar.py` show it in use.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from math import ceil
from types import SimpleNamespace
from typing import Any, Final, TypeAlias, TypeVar

from anyio import CancelScope, Event, create_task_group

from asyncembed.engine.lifetime import Openable, owned_task_group
from asyncembed.engine.pool import WorkerPool
from asyncembed.errors import ClientGoneError, InputError, OptionError, OverloadedError
from asyncembed.wakeup import Signal

T = TypeVar("T")

# As loose as can be: each framework has types of its own for them, which exclude those of the others.
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]


READ_AHEAD_BYTES = 64 * 1024
"""How much of a request's body may be read before its handler asks for it, to hear whether the client leaves. What is
larger is read as the handler takes it."""

MESSAGE_BYTES = 256
"""What a message takes beside its part of the body: bodies may come in very many, very small parts."""

RETRY_AFTER_SECONDS = 1
"""What an overloaded app asks clients to wait for at least, and as long as the speed of the model is not known."""

GONE = "the client left before its answer was there"

CLIENT_GONE_STATUS = 499
"""Read by nobody but logs and metrics; nginx's number for it."""

HEARD_BY_SENDING = (2, 4)
"""The version of ASGI from which on apps need not listen for a client's leaving while they answer."""

STATUSES: Final[Mapping[type[Exception], int]] = {
    InputError: 422,
    OverloadedError: 503,
    ClientGoneError: CLIENT_GONE_STATUS,
}
"""The errors that are the client's, or that it is to know of. All others are mistakes or accidents: a 500."""


# ---------------------------------------------------------------- the life of an app


def lifespan(
    app_state_name: str | None = None, **models: Openable[Any]
) -> Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]:
    """Models (and pools) that are open as long as the app is: what frameworks take as `lifespan=`.

    ```python
    from fastapi import FastAPI

    app = FastAPI(lifespan=lifespan(embedder=TextEmbedding("BAAI/bge-small-en-v1.5")))
    ```

    Litestar takes a list: `lifespan=[lifespan(...)]`.

    Pools are opened first, then all models at the same time; they are closed in the reverse order. A model that is to
    compute in a pool is made with it (`pool=`), and the pool given here too. If one of them cannot be opened, the
    others are closed, and the app does not start: its error names the one.

    Each is `app.state.NAME` while the app runs, and with Starlette and FastAPI `request.state.NAME` as well. For more
    of one's own, this can be entered in another lifespan: `async with lifespan(embedder=...)(app) as state:`.

    Args:
        app_state_name: Instead of each under a name of its own, all of them together under this one:
            `app.state.models.embedder` with `lifespan(app_state_name="models", embedder=...)`.
        models: Embedders and pools by name.

    Raises:
        OptionError: Something else was given, or nothing at all.
    """
    if not models:
        raise OptionError("lifespan takes models by name, as in lifespan(embedder=TextEmbedding(...))")
    for name, model in models.items():
        if not isinstance(model, Openable):
            raise OptionError(f"lifespan takes embedders and pools; {name}= is {type(model).__name__}")
    pools = {name: model for name, model in models.items() if isinstance(model, WorkerPool)}
    others = {name: model for name, model in models.items() if name not in pools}

    @asynccontextmanager
    async def run(app: Any) -> AsyncGenerator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            await _open_together(pools, stack)
            await _open_together(others, stack)
            named = {app_state_name: SimpleNamespace(**models)} if app_state_name else dict(models)
            state = getattr(app, "state", None)
            if state is not None:
                for name, value in named.items():
                    setattr(state, name, value)
            yield named

    return run


async def _open_together(models: Mapping[str, Openable[Any]], stack: AsyncExitStack) -> None:
    """Open all at once, and have the stack close them; or raise the first error, with the others given up."""
    opened: set[str] = set()
    failures: list[Exception] = []

    async def open_one(name: str) -> None:
        try:
            await models[name].open()
        except Exception as error:  # noqa: BLE001 (raised below, as itself and not in a group)
            error.add_note(f"so the app does not start: {name}={models[name]!r} of its lifespan cannot be opened")
            failures.append(error)
            group.cancel_scope.cancel()
        else:
            opened.add(name)

    try:
        async with create_task_group() as group:
            for name in models:
                group.start_soon(open_one, name)
    finally:
        for name in models:
            if name in opened:
                stack.push_async_callback(models[name].aclose)
    if failures:
        raise failures[0]


# ---------------------------------------------------------------- clients that leave


async def until_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Await `work`, and cancel it when the client disconnects: what waits for a worker is withdrawn.

    As in `await until_gone(request.receive, model.embed_query(text))`, for one handler; `UntilGoneMiddleware` does it
    for all. The request's body has to be read before, as what is left of it is dropped.

    Args:
        receive: Of the request, as ASGI has it: `request.receive` in Starlette, FastAPI and Litestar.
        work: A coroutine, or whatever else can be awaited.

    Raises:
        ClientGoneError: The client has left. The exception handlers here answer it, which nobody reads.
    """
    task = asyncio.current_task() if _is_asyncio_running() else None
    if task is None:
        async with owned_task_group() as group:
            group.start_soon(_until_left, receive, group.cancel_scope.cancel)
            return await work
        raise ClientGoneError(GONE)
    # A plain task beside a scope does the same for a fraction of what a group takes, for each of very many requests.
    failure: BaseException | None = None

    def end(watcher: asyncio.Task[None]) -> None:
        nonlocal failure
        failure = None if watcher.cancelled() else watcher.exception()
        if failure is not None:
            scope.cancel()

    with CancelScope() as scope:
        watcher = task.get_loop().create_task(_until_left(receive, scope.cancel))
        watcher.add_done_callback(end)
        try:
            return await work
        finally:
            watcher.cancel()
    raise failure or ClientGoneError(GONE)


async def _until_left(receive: Receive, leave: Callable[[], object]) -> None:
    """Wait until the client disconnects, and call `leave` then."""
    ends = 0
    # After the end of a body only its client's leaving can come. Middlewares that have read it put a function in
    # the place of `receive` that gives it again and again, at once: that one tells of nothing.
    while ends < 2:
        message = await receive()
        if message["type"] == "http.disconnect":
            leave()
            return
        ends += not message.get("more_body", False)


def _is_asyncio_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class UntilGoneMiddleware:
    """Cancels the handler of a request whose client disconnects, for a whole app: whatever it awaits ends.

    ```python
    from fastapi import FastAPI

    app = FastAPI()
    app.add_middleware(UntilGoneMiddleware)
    ```

    Litestar takes it as `middleware=[UntilGoneMiddleware]`, and any ASGI app can be put into it:
    `UntilGoneMiddleware(app)`.

    Streaming answers end in the same way, and may be made of what the request still sends. Where no answer was begun,
    middlewares around this one see a 499. A handler whose answer is complete is left alone, with its background tasks;
    so are websockets, which hear of it by themselves, and the lifespan. What has to be finished though nobody waits
    for its answer belongs into a background task, or under a shield (`anyio.CancelScope(shield=True)`), as does
    clean-up that awaits something. A handler that is no coroutine runs in a thread, which nothing can end.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        with _hearing_for_the_app(scope):
            async with owned_task_group() as group:
                group.start_soon(exchange.watch, group.cancel_scope.cancel)
                await self._app(scope, exchange.receive, exchange.send)
        if exchange.is_abandoned:
            # For the middlewares around: to some of them, no answer at all is a failure of the app. The server may
            # refuse it, by an `OSError`.
            with suppress(OSError):
                await _Answer(ClientGoneError(GONE))(scope, receive, send)


@contextmanager
def _hearing_for_the_app(scope: Any) -> Generator[None]:
    """Have a framework listen for nothing itself while it sends a streaming answer.

    Where ASGI is older than 2.4, Starlette waits for the client's leaving by `receive`, and so takes away what is left
    of the body from an answer that is made of it, as of an upload: that one would wait for ever.
    """
    asgi = scope.get("asgi", {})
    versions = {"spec_version": "2.4"} if _spec_version(asgi) < HEARD_BY_SENDING else {}
    scope["asgi"] = {**asgi, **versions}
    try:
        yield
    finally:
        scope["asgi"] = asgi


def _spec_version(asgi: Mapping[str, str]) -> tuple[int, ...]:
    return tuple(map(int, asgi.get("spec_version", "2.0").split(".")))


class _Exchange:
    """One request and its answer: what the client sends is read just so far ahead that its leaving is heard."""

    def __init__(self, scope: Any, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._messages: deque[Message] = deque()
        self._unread_bytes = 0
        self._changed = Signal()
        self._is_asked_for = Event()
        # It is told to send its body when that is asked for, which may be never.
        if not any(name.lower() == b"expect" for name, _ in scope["headers"]):
            self._is_asked_for.set()
        self._is_begun = self._is_answered = False
        self._is_gone = False
        """Whether the client left before it was answered."""

    @property
    def is_abandoned(self) -> bool:
        """Whether the client left before its answer was begun."""
        return self._is_gone and not self._is_begun

    async def watch(self, leave: Callable[[], None]) -> None:
        """Read what the client sends, and call `leave` if it goes before it was answered."""
        await self._is_asked_for.wait()
        while True:
            while self._unread_bytes >= READ_AHEAD_BYTES:
                await self._changed.wait()
            message = await self._receive()
            self._messages.append(message)
            self._unread_bytes += MESSAGE_BYTES + len(message.get("body", b""))
            self._changed.notify()
            if message["type"] == "http.disconnect":
                break
        if not self._is_answered:
            self._is_gone = True
            leave()

    async def receive(self) -> Message:
        """For the handler: the next message, as the server gives it."""
        self._is_asked_for.set()
        while not self._messages:
            await self._changed.wait()
        if self._messages[0]["type"] == "http.disconnect":
            return self._messages[0]  # nothing comes after it, however often it is asked for
        message = self._messages.popleft()
        self._unread_bytes -= MESSAGE_BYTES + len(message.get("body", b""))
        self._changed.notify()
        return message

    async def send(self, message: Message) -> None:
        """For the handler: a part of its answer. After the last one it is not cancelled any more."""
        self._is_begun = True
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if is_last or message["type"] == "http.response.pathsend":
            self._is_answered = True
        await self._send(message)


# ---------------------------------------------------------------- what clients are told


def exception_handlers() -> dict[Any, Any]:
    """For `exception_handlers=` of Starlette and FastAPI: bad input is a 422, overload a 503 with `Retry-After`.

    ```python
    from fastapi import FastAPI

    app = FastAPI(exception_handlers=exception_handlers())
    ```

    The body is JSON: `detail`, a sentence, and with bad input `index`, the position in its source, where there is one.
    All other errors of asyncembed are the app's own, and stay a 500.
    """

    async def answer(_: object, error: Exception) -> object:
        return _Answer(error)

    return dict.fromkeys(STATUSES, answer)


def litestar_exception_handlers() -> dict[Any, Any]:
    """The same for `exception_handlers=` of Litestar, whose handlers are no coroutines."""

    def answer(_: object, error: Exception) -> object:
        return _Answer(error)

    return dict.fromkeys(STATUSES, answer)


class ErrorAnswersMiddleware:
    """The same for any ASGI app: answers the errors that leave it, if it has not begun an answer of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except tuple(STATUSES) as error:
            if is_begun:
                raise
            await _Answer(error)(scope, receive, send)


class _Answer:
    """What a client is told of an error: an ASGI app, as the responses of Starlette are, and of Litestar in the end."""

    def __init__(self, error: Exception) -> None:
        self._status = next(status for kind, status in STATUSES.items() if isinstance(error, kind))
        content: dict[str, object] = {"detail": str(error)}
        self._headers = [(b"content-type", b"application/json")]
        if isinstance(error, InputError):
            content["index"] = error.index
        elif isinstance(error, OverloadedError):
            content["detail"] = "too many requests are waiting: try again later"  # not what its operator is told
            seconds = max(RETRY_AFTER_SECONDS, ceil(error.retry_after_seconds or 0))
            self._headers.append((b"retry-after", str(seconds).encode()))
        self._body = json.dumps(content).encode()
        self._headers.append((b"content-length", str(len(self._body)).encode()))

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:  # noqa: ARG002 (as ASGI has it)
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body})

    def to_asgi_response(self, *_: object, **__: object) -> "_Answer":
        """What Litestar calls on the response of an exception handler."""
        return self
