"""The server of the soak, and its clients over HTTP: those that wait for their answers, and those that leave.

    python -m benchmarks.soak_web asyncio FOLDER

serves two models and prints its port: with uvicorn on asyncio, with hypercorn on trio. `/rest` waits until it does
nothing and tells what it holds; `/stream` answers a line at a time. It ends with its standard input.
"""

import base64
import json
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import anyio
import anyio.abc
import httpx
import numpy as np
import psutil
from anyio import move_on_after, sleep, to_thread
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from asyncembed import TextEmbedding, WorkerPool
from asyncembed.errors import WorkerCrashed
from asyncembed.server import Limits, create_app
from benchmarks.soak_books import HANGS_SECONDS, Books, until_rest, usage
from tests.support.asgi_servers import serving
from tests.support.killing import kill
from tests.support.waiting import worker_processes

MOST_INPUTS = 64
MOST_QUEUED = 400

CRASHED = "ended unexpectedly each time"
"""In an answer to an input whose workers were all killed, by chance."""

QUIET_CONNECTIONS = 2
"""The one that listens, and that of `/rest`. hypercorn keeps those of clients that are gone for 5 seconds."""


class Wanted(BaseModel):
    """What `/stream` is asked for."""

    model: str
    texts: list[str]


def app_of(folder: Path, pool: WorkerPool, spared: list[int]) -> FastAPI:
    """The server, with some ways more."""
    models = {
        "steady": TextEmbedding(folder / "steady", pool=pool),
        "mortal": TextEmbedding(folder / "mortal", workers=2, interactive_workers=0, max_queued=MOST_QUEUED),
    }
    app = create_app(models, limits=Limits(max_inputs=MOST_INPUTS))

    def is_at_rest() -> bool:
        stats = [model.stats() for model in models.values()]
        if any(one.queued or one.in_flight or one.workers_ready < one.workers for one in stats):
            return False
        return len(psutil.Process().net_connections()) <= QUIET_CONNECTIONS

    @app.post("/stream")
    async def stream(wanted: Wanted) -> StreamingResponse:
        return StreamingResponse(lines(models[wanted.model], wanted.texts))

    @app.get("/spared")
    async def tell_spared() -> list[int]:
        return spared

    @app.get("/rest")
    async def rest() -> dict[str, float] | None:
        return usage(spared, [Path(gettempdir())]) if await until_rest(is_at_rest) else None

    return app


async def lines(model: TextEmbedding, texts: list[str]) -> AsyncIterator[str]:
    async with model.embed(texts) as vectors:
        try:
            async for vector in vectors:
                yield json.dumps(vector.tolist()) + "\n"
        except WorkerCrashed as error:
            yield json.dumps(str(error)) + "\n"


async def serve(folder: Path) -> None:
    """Until standard input ends."""
    async with (
        WorkerPool(workers=1, interactive_workers=1, max_queued=MOST_QUEUED) as pool,
        TextEmbedding(folder / "idle", pool=pool),  # whose opening starts the workers
    ):
        spared = [worker.pid for worker in worker_processes()]
        async with serving(app_of(folder, pool, spared)) as client:
            print(client.base_url.port, flush=True)
            await to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


# ---------------------------------------------------------------- its clients


class Clients:
    """Clients of one server: each method `..._turn` is the turn of one of them."""

    def __init__(self, books: Books, port: int, pid: int) -> None:
        self.books = books
        self.random = books.random
        self._port = port
        self._pid = pid
        self._spared: list[int] = []
        self._client: httpx.AsyncClient  # of the round

    async def start(self) -> None:
        """Learn which of its workers live as long as it does."""
        async with self._new_client() as client:
            self._spared = (await client.get("/spared")).json()

    async def play(self, seconds: float) -> None:
        """A round, with connections of its own."""
        turns = {self.request_turn: 4, self.stream_turn: 2, self.leaving_stream_turn: 2, self.leaving_turn: 2}
        turns |= {self.wrong_turn: 1, self.killing_turn: 1}
        async with self._new_client() as self._client:
            await self.books.play(turns, seconds)

    async def rest(self) -> dict[str, float] | None:
        """What the server holds once it does nothing."""
        async with self._new_client() as client:
            held: dict[str, float] | None = (await client.get("/rest")).json()
        if held is None:
            self.books.note("the server does not come to rest")
        return held

    def _new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self._port}", timeout=HANGS_SECONDS, trust_env=False)

    def _pick(self, most: int) -> tuple[str, list[int], list[str]]:
        numbers = self.books.pick(most)
        return self.random.choice(["steady", "mortal"]), numbers, [self.books.texts[number] for number in numbers]

    async def request_turn(self) -> None:
        """A request of any size in either interface, over a connection that is kept or over one of its own."""
        name, numbers, texts = self._pick(self.random.choice([1, 4, MOST_INPUTS]))
        headers = {"connection": "close"} if self.random.random() < 0.3 else {}
        if self.random.random() < 0.5:
            body: Any = {"model": name, "input": texts, "encoding_format": self.random.choice(["float", "base64"])}
            answer = await self._client.post("/v1/embeddings", json=body, headers=headers)
            vectors = [_vector(one["embedding"]) for one in _data(answer)]
        else:
            body = {"model": name, "inputs": texts, "normalize": False}
            answer = await self._client.post("/embed", json=body, headers=headers)
            vectors = answer.json() if answer.is_success else []
        if answer.status_code == 429:
            self.books.counts["refused"] += 1
            return
        if CRASHED in answer.text:
            raise WorkerCrashed(answer.text)
        if answer.status_code != 200:
            self.books.note(f"a request gets {answer.status_code}: {answer.text[:500]}")
            return
        self.books.check("requested", name, numbers, vectors)

    async def stream_turn(self) -> None:
        """An answer that comes line by line, and is read to its end."""
        name, numbers, texts = self._pick(200)
        async with self._client.stream("POST", "/stream", json={"model": name, "texts": texts}) as answer:
            vectors = [_vector_of(line) async for line in answer.aiter_lines()]
        self.books.check("streamed", name, numbers, vectors)

    async def leaving_stream_turn(self) -> None:
        """A client that has read enough."""
        name, numbers, texts = self._pick(1000)
        most = self.random.randint(1, 100)
        vectors: list[Any] = []
        async with self._client.stream("POST", "/stream", json={"model": name, "texts": texts}) as answer:
            async for line in answer.aiter_lines():
                vectors.append(_vector_of(line))
                if len(vectors) == most:
                    break
        self.books.check("streamed until the client left", name, numbers[: len(vectors)], vectors)

    async def leaving_turn(self) -> None:
        """A client that is gone in the middle of its request, before the answer or within it."""
        name, _, texts = self._pick(MOST_INPUTS)
        body = json.dumps({"model": name, "input": texts}).encode()
        request = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        if self.random.random() < 0.3:
            request = request[: self.random.randrange(len(request))]
        async with await anyio.connect_tcp("127.0.0.1", self._port) as stream:
            await stream.send(request)
            with move_on_after(self.random.uniform(0, 0.05)), suppress(anyio.EndOfStream):
                await stream.receive(64)
            if self.random.random() < 0.5:  # without a farewell
                raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.books.counts["left in a request"] += 1

    async def wrong_turn(self) -> None:
        """What is refused, and why."""
        wrong = [
            (404, json.dumps({"model": "nosuch", "input": "x"})),
            (400, "{"),
            (400, json.dumps({"model": "steady", "input": ["x"] * (MOST_INPUTS + 1)})),
        ]
        status, body = self.random.choice(wrong)
        answer = await self._client.post("/v1/embeddings", content=body)
        self.books.expect("status", answer.status_code, status)
        self.books.counts["refused as wrong"] += 1
        await sleep(0.05)

    async def killing_turn(self) -> None:
        """A worker of the server that ends from one moment to the next."""
        await sleep(self.random.uniform(0.3, 2))
        victims = [worker for worker in worker_processes(self._pid) if worker.pid not in self._spared]
        if victims:
            with suppress(ProcessLookupError):
                kill(self.random.choice(victims).pid)
                self.books.counts["workers killed"] += 1


def _data(answer: httpx.Response) -> list[Any]:
    found: list[Any] = answer.json()["data"] if answer.is_success else []
    return found


def _vector_of(line: str) -> list[float]:
    found: list[float] | str = json.loads(line)
    if isinstance(found, str):
        raise WorkerCrashed(found)
    return found


def _vector(given: str | list[float]) -> Any:
    return np.frombuffer(base64.b64decode(given), np.float32) if isinstance(given, str) else given


if __name__ == "__main__":
    anyio.run(partial(serve, Path(sys.argv[2])), backend=sys.argv[1])
