"""How web apps use `asyncembed.integrations.asgi`, as type checkers of each framework's users see it."""

from typing import Any, assert_type

from fastapi import FastAPI
from litestar import Litestar
from litestar import Request as LitestarRequest
from numpy import float32
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request

from asyncembed import TextCrossEncoder, TextEmbedding, WorkerPool
from asyncembed.integrations.asgi import (
    ErrorAnswersMiddleware,
    UntilGoneMiddleware,
    exception_handlers,
    lifespan,
    litestar_exception_handlers,
    until_gone,
)

pool = WorkerPool()
embedder = TextEmbedding(pool=pool)
life = lifespan(pool=pool, embedder=embedder, reranker=TextCrossEncoder("Xenova/ms-marco-MiniLM-L-6-v2", pool=pool))

fast = FastAPI(lifespan=life, exception_handlers=exception_handlers())
fast.add_middleware(UntilGoneMiddleware)
star = Starlette(
    lifespan=life,
    exception_handlers=exception_handlers(),
    middleware=[Middleware(UntilGoneMiddleware), Middleware(ErrorAnswersMiddleware)],
)
lite = Litestar(lifespan=[life], exception_handlers=litestar_exception_handlers(), middleware=[UntilGoneMiddleware])
plain = UntilGoneMiddleware(ErrorAnswersMiddleware(star))


async def of_starlette(request: Request) -> None:
    assert_type(await until_gone(request.receive, embedder.embed_query("a")), NDArray[float32])


async def of_litestar(request: LitestarRequest[Any, Any, Any]) -> None:
    assert_type(await until_gone(request.receive, embedder.embed_query("a")), NDArray[float32])
