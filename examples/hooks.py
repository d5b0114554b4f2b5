"""A framework with a pair of hooks: open on startup, close on shutdown, and exchange the model in between.

    uv run uvicorn examples.hooks:app
    curl 'localhost:8000/query?text=what+is+backpressure'
    curl -X POST localhost:8000/model -H 'content-type: application/json' -d '{"name": "BAAI/bge-small-en-v1.5"}'

The app is Litestar's; bots, pipelines, test fixtures and other servers have such hooks as well. `await model.open()`
and `await model.aclose()` may be called in different tasks of one event loop. Where there is a place for `async with`,
or for a lifespan as in `web_fastapi.py`, take that: it cannot be forgotten.
"""

import os
from dataclasses import dataclass

from litestar import Litestar, get, post
from litestar.exceptions import ClientException
from litestar.params import FromQuery

from asyncembed import TextEmbedding
from asyncembed.errors import AsyncEmbedError
from examples.quickstart import demo_model


class Search:
    """What the hooks and handlers share."""

    def __init__(self, name: str | os.PathLike[str]) -> None:
        self.model = TextEmbedding(name)

    async def start(self) -> None:
        await self.model.open()

    async def stop(self) -> None:
        await self.model.aclose()

    async def exchange(self, name: str) -> None:
        """Have another model answer from now on; if it cannot be opened, the old one stays."""
        new = TextEmbedding(name)
        await new.open()
        old, self.model = self.model, new
        await old.aclose()  # a call that it was still computing gets a `StateError`


@dataclass
class Wanted:
    """Which model shall answer."""

    name: str


search = Search(os.environ.get("MODEL") or demo_model())


@get("/query")
async def query(text: FromQuery[str]) -> list[float]:
    """One vector."""
    vector: list[float] = (await search.model.embed_query(text)).tolist()
    return vector


@post("/model", status_code=200)
async def exchange(data: Wanted) -> str:
    """Exchange the model, in the task of a request."""
    try:
        await search.exchange(data.name)
    except AsyncEmbedError as error:  # no such model, or one that cannot be opened: a 400
        raise ClientException(str(error)) from error
    return repr(search.model)


app = Litestar([query, exchange], on_startup=[search.start], on_shutdown=[search.stop])
