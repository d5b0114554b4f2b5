"""A web app with FastAPI: queries and documents, a streaming answer, clients that leave, and overload.

    uv run uvicorn --timeout-graceful-shutdown 30 examples.web_fastapi:app
    curl 'localhost:8000/query?text=what+is+backpressure'
    curl localhost:8000/documents -H 'content-type: application/json' -d '{"texts": ["one", "two"]}'
    curl -N localhost:8000/stream -H 'content-type: application/json' -d '{"texts": ["one", "two"]}'
    curl localhost:8000/stats

The model lives as long as the app. Requests that arrive together are computed together, and those of a client that
goes away are withdrawn: press Ctrl-C in the middle of a long `curl`, and look at `/stats`. Where more than `MAX_QUEUED`
texts wait, the app answers 503 with `Retry-After` at once; more of them in one request are a 422. When it is told to
end, answers under way have 30 seconds: by itself uvicorn waits for the end of the longest stream.

`MODEL` in the environment names another model, or a directory with one; the default is that of `quickstart.py`.
"""

import json
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from asyncembed import TextEmbedding
from asyncembed.integrations.asgi import UntilGoneMiddleware, exception_handlers, lifespan
from examples.quickstart import demo_model

MAX_QUEUED = int(os.environ.get("MAX_QUEUED", "1000"))
"""Texts of requests that may wait: some seconds of work, as nobody waits longer for a query."""

embedder = TextEmbedding(os.environ.get("MODEL") or demo_model(), max_queued=MAX_QUEUED)
app = FastAPI(lifespan=lifespan(embedder=embedder), exception_handlers=exception_handlers())
app.add_middleware(UntilGoneMiddleware)


class Texts(BaseModel):
    """What is to be embedded."""

    texts: list[str]


@app.get("/query")
async def query(text: str) -> list[float]:
    """One vector; goes before all that is streamed."""
    vector: list[float] = (await embedder.embed_query(text)).tolist()
    return vector


@app.post("/documents")
async def documents(body: Texts) -> list[list[float]]:
    """A few vectors, all at once."""
    vectors: list[list[float]] = (await embedder.embed_documents(body.texts)).tolist()
    return vectors


@app.post("/stream")
async def stream(body: Texts) -> StreamingResponse:
    """As many vectors as one likes, a line of JSON for each as soon as it is there; a slow client slows it down."""
    return StreamingResponse(lines(body.texts), media_type="application/x-ndjson")


async def lines(texts: list[str]) -> AsyncIterator[str]:
    async with embedder.embed(texts) as vectors:
        async for vector in vectors:
            yield json.dumps(vector.tolist()) + "\n"


@app.get("/stats")
async def stats() -> dict[str, int]:
    """What waits and what was done."""
    now = embedder.stats()
    return {"queued": now.queued, "computed": now.items, "refused": now.refused}
