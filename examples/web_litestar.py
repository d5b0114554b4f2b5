"""The same web app as `web_fastapi.py`, with Litestar.

    uv run uvicorn --timeout-graceful-shutdown 30 examples.web_litestar:app
    curl 'localhost:8000/query?text=what+is+backpressure'
    curl localhost:8000/documents -H 'content-type: application/json' -d '["one", "two"]'
    curl -N localhost:8000/stream -H 'content-type: application/json' -d '["one", "two"]'
    curl localhost:8000/stats

Here the model is taken from the app's state, so that handlers can live in modules that know nothing of it.
"""

import json
import os
from collections.abc import AsyncIterator

from litestar import Litestar, get, post
from litestar.datastructures import State
from litestar.params import FromQuery
from litestar.response import Stream

from asyncembed import TextEmbedding
from asyncembed.integrations.asgi import UntilGoneMiddleware, lifespan, litestar_exception_handlers
from examples.quickstart import demo_model

MAX_QUEUED = int(os.environ.get("MAX_QUEUED", "1000"))


@get("/query")
async def query(state: State, text: FromQuery[str]) -> list[float]:
    """One vector; goes before all that is streamed."""
    vector: list[float] = (await state.embedder.embed_query(text)).tolist()
    return vector


@post("/documents", status_code=200)
async def documents(state: State, data: list[str]) -> list[list[float]]:
    """A few vectors, all at once."""
    vectors: list[list[float]] = (await state.embedder.embed_documents(data)).tolist()
    return vectors


@post("/stream", status_code=200)
async def stream(state: State, data: list[str]) -> Stream:
    """As many vectors as one likes, a line of JSON for each as soon as it is there; a slow client slows it down."""
    return Stream(lines(state.embedder, data), media_type="application/x-ndjson")


async def lines(embedder: TextEmbedding, texts: list[str]) -> AsyncIterator[str]:
    async with embedder.embed(texts) as vectors:
        async for vector in vectors:
            yield json.dumps(vector.tolist()) + "\n"


@get("/stats")
async def stats(state: State) -> dict[str, int]:
    """What waits and what was done."""
    now = state.embedder.stats()
    return {"queued": now.queued, "computed": now.items, "refused": now.refused}


app = Litestar(
    [query, documents, stream, stats],
    lifespan=[lifespan(embedder=TextEmbedding(os.environ.get("MODEL") or demo_model(), max_queued=MAX_QUEUED))],
    middleware=[UntilGoneMiddleware],
    exception_handlers=litestar_exception_handlers(),
)
