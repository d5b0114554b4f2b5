"""The same small web app in several frameworks; `Work` is what its handlers do, written once.

`/query?text=` answers with the number in the text's vector, and `/helped?text=` likewise, with `until_gone`;
`/documents` with those of a JSON list; `/stream?count=` with a line per vector; `/later?text=` at once, and computes in
a background task; `/mistake` raises an error that is none of asyncembed's.
"""

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs

import fastapi
import litestar
import litestar.background_tasks
import litestar.response
import starlette.applications
import starlette.background
import starlette.routing
from litestar.params import FromQuery
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from asyncembed import TextEmbedding
from asyncembed.integrations.asgi import (
    ErrorAnswersMiddleware,
    UntilGoneMiddleware,
    exception_handlers,
    litestar_exception_handlers,
    until_gone,
)

FRAMEWORKS = ("plain", "starlette", "fastapi", "litestar")


class Work:
    """What the handlers do with an open model."""

    def __init__(self, model: TextEmbedding) -> None:
        self._model = model

    async def query(self, text: str) -> list[int]:
        return [int((await self._model.embed_query(text))[2])]

    async def helped(self, receive: Any, text: str) -> list[int]:
        return await until_gone(receive, self.query(text))

    async def documents(self, body: bytes) -> list[int]:
        return [int(number) for number in (await self._model.embed_documents(json.loads(body)))[:, 2]]

    async def stream(self, count: str) -> AsyncIterator[bytes]:
        async with self._model.embed(f"#{number}" for number in range(int(count))) as stream:
            async for vector in stream:
                yield f"{int(vector[2])}\n".encode()

    async def mistake(self) -> list[int]:
        raise ZeroDivisionError("a mistake of the app")


def make_app(framework: str, model: TextEmbedding) -> Any:
    """An app whose handlers end with their clients, and tell them of errors."""
    work = Work(model)
    match framework:
        case "plain":
            return UntilGoneMiddleware(ErrorAnswersMiddleware(_Plain(work)))
        case "starlette":
            app = starlette.applications.Starlette(
                routes=_starlette_routes(work), exception_handlers=exception_handlers()
            )
            app.add_middleware(UntilGoneMiddleware)
            return app
        case "fastapi":
            return _fastapi(work)
        case _:
            return _litestar(work)


class _Plain:
    def __init__(self, work: Work) -> None:
        self._work = work

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _plain_lifespan(receive, send)
            return
        query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
        match scope["path"]:
            case "/stream":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                async for line in self._work.stream(query["count"]):
                    await send({"type": "http.response.body", "body": line, "more_body": True})
                await send({"type": "http.response.body"})
            case "/documents":
                await _plain_answer(send, await self._work.documents(await _plain_body(receive)))
            case "/helped":
                await _plain_body(receive)
                await _plain_answer(send, await self._work.helped(receive, query["text"]))
            case "/later":
                await _plain_answer(send, [])
                await self._work.query(query["text"])
            case "/mistake":
                await _plain_answer(send, await self._work.mistake())
            case _:
                await _plain_answer(send, await self._work.query(query["text"]))


async def _plain_lifespan(receive: Any, send: Any) -> None:
    for moment in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{moment}.complete"})


async def _plain_body(receive: Any) -> bytes:
    body, is_more = b"", True
    while is_more:
        message = await receive()
        body += message.get("body", b"")
        is_more = message.get("more_body", False)
    return body


async def _plain_answer(send: Any, numbers: list[int]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(numbers).encode()})


def _starlette_routes(work: Work) -> list[starlette.routing.Route]:
    async def query(request: Request) -> JSONResponse:
        return JSONResponse(await work.query(request.query_params["text"]))

    async def helped(request: Request) -> JSONResponse:
        return JSONResponse(await work.helped(request.receive, request.query_params["text"]))

    async def documents(request: Request) -> JSONResponse:
        return JSONResponse(await work.documents(await request.body()))

    async def stream(request: Request) -> StreamingResponse:
        return StreamingResponse(work.stream(request.query_params["count"]))

    async def later(request: Request) -> JSONResponse:
        task = starlette.background.BackgroundTask(work.query, request.query_params["text"])
        return JSONResponse([], background=task)

    async def mistake(request: Request) -> JSONResponse:
        return JSONResponse(await work.mistake())

    return [
        starlette.routing.Route(f"/{handler.__name__}", handler, methods=["GET", "POST"])
        for handler in (query, helped, documents, stream, later, mistake)
    ]


def _fastapi(work: Work) -> Any:
    app = fastapi.FastAPI(exception_handlers=exception_handlers())
    app.add_middleware(UntilGoneMiddleware)

    @app.get("/query")
    async def query(text: str) -> list[int]:
        return await work.query(text)

    @app.get("/helped")
    async def helped(request: fastapi.Request, text: str) -> list[int]:
        return await work.helped(request.receive, text)

    @app.post("/documents")
    async def documents(request: fastapi.Request) -> list[int]:
        return await work.documents(await request.body())

    @app.get("/stream")
    async def stream(count: str) -> StreamingResponse:
        return StreamingResponse(work.stream(count))

    @app.get("/later")
    async def later(text: str, tasks: fastapi.BackgroundTasks) -> list[int]:
        tasks.add_task(work.query, text)
        return []

    @app.get("/mistake")
    async def mistake() -> list[int]:
        return await work.mistake()

    return app


def _litestar(work: Work) -> Any:
    @litestar.get("/query")
    async def query(text: FromQuery[str]) -> list[int]:
        return await work.query(text)

    @litestar.get("/helped")
    async def helped(request: litestar.Request[Any, Any, Any], text: FromQuery[str]) -> list[int]:
        return await work.helped(request.receive, text)

    @litestar.post("/documents", status_code=200)
    async def documents(request: litestar.Request[Any, Any, Any]) -> list[int]:
        return await work.documents(await request.body())

    @litestar.get("/stream")
    async def stream(count: FromQuery[str]) -> litestar.response.Stream:
        return litestar.response.Stream(work.stream(count))

    @litestar.get("/later")
    async def later(text: FromQuery[str]) -> litestar.Response[list[int]]:
        return litestar.Response([], background=litestar.background_tasks.BackgroundTask(work.query, text))

    @litestar.get("/mistake")
    async def mistake() -> list[int]:
        return await work.mistake()

    return litestar.Litestar(
        [query, helped, documents, stream, later, mistake],
        middleware=[UntilGoneMiddleware],
        exception_handlers=litestar_exception_handlers(),
        openapi_config=None,
        logging_config=None,
    )
