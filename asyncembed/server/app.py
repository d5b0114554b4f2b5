"""The app: models on one pool as long as it runs, and a route for every path of every dialect."""

import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack, cast

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

import asyncembed
from asyncembed.catalogue.lookup import CLASSES
from asyncembed.catalogue.spec import ModelSpec
from asyncembed.checks import check_bool, check_text
from asyncembed.embedders.base import Embedder
from asyncembed.engine.pool import PoolKeywords, WorkerPool
from asyncembed.errors import OptionError
from asyncembed.integrations.asgi import lifespan
from asyncembed.loading.locate import find_family, known_family
from asyncembed.options import OptionKeywords, Options
from asyncembed.server.cohere_dialect import CohereDialect
from asyncembed.server.endpoint import ByMethod, Dialect, Endpoint
from asyncembed.server.jina_dialect import JinaDialect
from asyncembed.server.monitoring import Monitor, Operations
from asyncembed.server.openai_dialect import OpenAIDialect
from asyncembed.server.openapi_document import describe_routes
from asyncembed.server.page import Page
from asyncembed.server.refusals import Kind, Refusal
from asyncembed.server.request_limits import Limits
from asyncembed.server.served import ServedModels
from asyncembed.server.service import Service
from asyncembed.server.tei_dialect import TeiDialect

if TYPE_CHECKING:
    from asyncembed.catalogue.spec import Family

ServedAs: TypeAlias = str | os.PathLike[str] | ModelSpec | Embedder
"""What may be served: a name, directory or spec as the classes take it, whose class is found; or a model of one."""

DIALECTS: tuple[type[Dialect], ...] = (OpenAIDialect, TeiDialect, CohereDialect, JinaDialect)
"""All that a server speaks; the first one is asked first, and speaks for the rest."""


def create_app(
    models: ServedAs | Sequence[ServedAs] | Mapping[str, ServedAs],
    *,
    api_key: str | Sequence[str] | None = None,
    limits: Limits | None = None,
    page: bool = True,
    foreign_pages: bool = False,
    **options: Unpack[OptionKeywords],
) -> FastAPI:
    """An app that serves models to clients of other services: of OpenAI's, for one.

    ```python
    app = create_app({"small": "BAAI/bge-small-en-v1.5"}, workers=2, max_queued=1000)
    ```

    The models are opened when the app starts, on one pool, and closed when it ends; what is asked for until then is
    finished. It is a FastAPI app: routes and middlewares of one's own can be added. Where it is mounted in another app,
    that one's lifespan has to enter its own, which no framework does: `async with app.router.lifespan_context(app):`.

    What a connection may take that has not asked for anything yet (heads without end, clients that stall) is up to the
    server that runs the app, and so is how long that waits for requests under way when it is told to end: `asyncembed
    serve` bounds both, uvicorn alone neither (`timeout_graceful_shutdown=30` bounds the latter).

    Args:
        models: What is served, by the name that clients use; without names, a model's own is taken. A model that is
            given as an object is not open yet; it has a pool of its own unless it was given one.
        api_key: Clients must give it, or one of these, as a bearer token, except for `/health` and the page. None:
            anybody may ask.
        limits: What one request may ask for.
        page: Whether there is a page at `/` that shows the models and live numbers, and lets one try things. The page
            itself is for everybody, what it shows for those who have the API key.
        foreign_pages: Whether an app without an API key also answers web pages of other sites, in the browser of
            somebody who can reach it: those that post what is not said to be JSON, and those whose name leads to this
            machine (DNS rebinding). For apps that are guarded in another way, behind a proxy of the same port.
        options: Of the models that are given by name: keywords that all classes share (`device`, `max_length`),
            and those of the `WorkerPool` that is made for them (`workers`, `max_queued`), unless `pool=` is given.

    Raises:
        OptionError: An argument that cannot work.
    """
    check_bool("page", page)
    check_bool("foreign_pages", foreign_pages)
    keys = _keys(api_key)
    named = _by_name(models)
    pool, of_models = _shared(options)
    planned = {name: _planned(model, of_models) for name, model in named.items()}
    if all(isinstance(model, Embedder) for model in named.values()):
        pool = None  # nobody would use its workers
    service = Service(ServedModels({}, 0), limits or Limits(), keys, foreign_pages=foreign_pages)
    monitor = Monitor(service.meter)
    app = _App(
        title="asyncembed",
        version=asyncembed.__version__,
        lifespan=_lifespan(service, monitor, pool, planned),
        servers=[{"url": "."}],  # where the document is: also behind a proxy that puts a path in front
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to where the client's own header says that it is
        exception_handlers=_unrouted(DIALECTS[0]()),
    )
    app.state.service = service
    _add(app, service, [*(kind() for kind in DIALECTS), Operations(monitor), *([Page()] if page else [])])
    return app


class _App(FastAPI):
    """FastAPI, with a short way to our own routes: its middlewares and its router take a good part of a request."""

    endpoints: Mapping[str, Endpoint | ByMethod] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not self.user_middleware:
            endpoint = self.endpoints.get(scope["path"])
            if endpoint is not None:
                await endpoint(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def _add(app: _App, service: Service, dialects: Sequence[Dialect]) -> None:
    """Put the routes of all dialects into the app, ahead of its own, and into its document."""
    by_path: dict[str, list[Endpoint]] = {}
    for dialect in dialects:
        for route in dialect.routes:
            by_path.setdefault(route.path, []).append(Endpoint(service, dialect, route))
    endpoints = {path: some[0] if len(some) == 1 else ByMethod(some) for path, some in by_path.items()}
    app.endpoints = {path: endpoint for path, endpoint in endpoints.items() if not path.endswith("{id}")}
    app.router.routes[:0] = [
        StarletteRoute(path.replace("{id}", "{id:path}"), endpoint) for path, endpoint in endpoints.items()
    ]
    of_fastapi = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe_routes(of_fastapi(), dialects)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


# ---------------------------------------------------------------- what is served


def _keys(given: str | Sequence[str] | None) -> list[str]:
    keys = [] if given is None else [given] if isinstance(given, str) else list(given)
    for key in keys:
        check_text("api_key", key, may_be_none=False)
    return keys


def _by_name(models: ServedAs | Sequence[ServedAs] | Mapping[str, ServedAs]) -> dict[str, ServedAs]:
    if isinstance(models, Mapping):
        named = dict(models)
    else:
        several = [models] if isinstance(models, str | os.PathLike | ModelSpec | Embedder) else list(models)
        named = {_name_of(model): model for model in several}
        if len(named) < len(several):
            raise OptionError("two models have the same name: give each one of its own, as in {NAME: MODEL, ...}")
    if not named:
        raise OptionError("there is nothing to serve: give at least one model")
    return named


def _name_of(model: ServedAs) -> str:
    if isinstance(model, Embedder):
        return model.model_name
    return model.name if isinstance(model, ModelSpec) else os.fspath(model)


def _shared(options: OptionKeywords) -> tuple[WorkerPool | None, OptionKeywords]:
    """The pool that is to be opened, and the options of each model in it."""
    if options.get("pool") is not None:
        return None, options
    of_pool = {name: value for name, value in options.items() if name in PoolKeywords.__annotations__}
    of_models = {name: value for name, value in options.items() if name not in of_pool}
    pool = WorkerPool(**cast(PoolKeywords, of_pool))
    return pool, cast(OptionKeywords, {**of_models, "pool": pool})


Planned: TypeAlias = Embedder | Callable[[], Awaitable[Embedder]]
"""A model, or what finds out of which class it is, which may have to ask the hub."""


def _planned(model: ServedAs, options: OptionKeywords) -> Planned:
    if isinstance(model, Embedder):
        return model
    if isinstance(model, ModelSpec):
        return _class_of(model.family)(model, **options)
    if family := known_family(model):
        return _class_of(family)(model, **options)
    checked = Options.from_keywords(options)

    async def find() -> Embedder:
        return _class_of(await find_family(model, checked))(model, **options)

    return find


def _class_of(family: "Family") -> type[Embedder]:
    return cast("type[Embedder]", getattr(asyncembed, CLASSES[family]))


def _lifespan(
    service: Service, monitor: Monitor, pool: WorkerPool | None, planned: Mapping[str, Planned]
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    async def open_all(stack: AsyncExitStack) -> None:
        if pool is not None:
            await stack.enter_async_context(lifespan("pool", pool=pool)(None))
        embedders = {name: one if isinstance(one, Embedder) else await one() for name, one in planned.items()}
        await stack.enter_async_context(lifespan("models", **embedders)(None))
        service.models = ServedModels(embedders, int(time.time()))

    @asynccontextmanager
    async def run(_: FastAPI) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            try:
                await open_all(stack)
            except Exception as error:
                service.failure = error
                raise
            monitor.watch(service.models)
            service.is_ready = True
            yield
            service.is_ready = False
            monitor.leave()

    return run


# ---------------------------------------------------------------- what belongs to no dialect


def _unrouted(dialect: Dialect) -> dict[Any, Any]:
    """What is said where no route is, in the form of one dialect."""

    async def answer(_: object, error: HTTPException) -> Response:
        kinds: Mapping[int, Kind] = {404: "no_route", 405: "no_method"}
        detail = "there is no such path here; /openapi.json has all" if error.detail == "Not Found" else error.detail
        refusal = Refusal(kinds.get(error.status_code, "invalid"), detail)
        body = orjson.dumps(dialect.refuse(refusal, error.status_code))
        return Response(body, error.status_code, headers=error.headers, media_type="application/json")

    return {HTTPException: answer}
