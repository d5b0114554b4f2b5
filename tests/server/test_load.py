"""Many connections at once: each request gets the answer to itself, and nothing of them stays."""

import json
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import anyio
import httpx
import numpy as np
import psutil
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from asyncembed import TextEmbedding
from asyncembed.testing import fake_models
from tests.support import programs
from tests.support.asgi_servers import serving
from tests.support.graphs import DIM
from tests.support.models import write_self_describing_model
from tests.support.waiting import nothing_left_behind, open_files, until, worker_processes

pytestmark = pytest.mark.slow

CONNECTIONS = 256
TURNS = 3

FIRST_ROUNDS, ROUNDS = 2, 4
"""Of as many connections and turns: in the first ones processes take what they keep."""

MOST_GROWTH_BYTES = 256 * 1024
"""Of the memory of a process, in the usual round after the first ones: a third of a kilobyte for each request."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The server of production's."""
    return "asyncio"


async def ask(stream: anyio.abc.SocketStream, text: str) -> Any:
    """One request, by hand: clients take more for it than the server does."""
    body = json.dumps({"input": text}).encode()
    await stream.send(b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    received = BufferedByteReceiveStream(stream)
    head = await received.receive_until(b"\r\n\r\n", 4096)
    (length,) = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
    return json.loads(await received.receive_exactly(length))


async def test_with_256_connections_each_request_has_the_answer_to_its_own_text() -> None:
    from asyncembed.server import create_app

    answers: dict[str, list[float]] = {}

    async def use_connection(port: int, number: int) -> None:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            for turn in range(TURNS):
                text = f"turn {turn} of connection {number}"
                answers[text] = (await ask(stream, text))["data"][0]["embedding"]

    with fake_models(dim=4):
        app = create_app({"model": "nosuch/model"})
        async with nothing_left_behind(), serving(app) as client:
            async with anyio.create_task_group() as group:
                for number in range(CONNECTIONS):
                    group.start_soon(use_connection, client.base_url.port or 0, number)
            meter = app.state.service.meter
            assert meter.by_route == {("/v1/embeddings", 200): TURNS * CONNECTIONS}
            assert meter.in_progress == 0
        async with TextEmbedding("nosuch/model") as model:
            expected = await model.embed(list(answers)).collect()
    np.testing.assert_allclose(list(answers.values()), expected, atol=1e-6)


SERVER = """
import asyncio
import socket
import sys

import uvicorn

from asyncembed.server import create_app


async def tasks() -> int:
    return len(asyncio.all_tasks())


if __name__ == "__main__":
    app = create_app(sys.argv[1], workers=2)
    app.get("/tasks")(tasks)
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_keep_alive=60)).run(sockets=[listening])
"""


class Usage(NamedTuple):
    """What a server takes while nobody asks it: memory of its processes, descriptors and tasks."""

    memory: dict[int, int]
    files: int
    tasks: int


async def test_many_requests_over_256_connections_leave_memory_descriptors_and_tasks_as_they_were(
    tmp_path: Path,
) -> None:
    process = programs.start(SERVER, tmp_path, str(write_self_describing_model(tmp_path / "model")))
    try:
        assert process.stdout is not None
        port = int(await anyio.to_thread.run_sync(process.stdout.readline))
        server = psutil.Process(process.pid)

        def is_idle() -> bool:
            return not any(one.status == psutil.CONN_ESTABLISHED for one in server.net_connections("tcp"))

        async def use_connection(number: int) -> None:
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                for turn in range(TURNS):
                    answer = await ask(stream, f"turn {turn} of connection {number}")
                    assert len(answer["data"][0]["embedding"]) == DIM

        async def play_round() -> Usage:
            async with anyio.create_task_group() as group:
                for number in range(CONNECTIONS):
                    group.start_soon(use_connection, number)
            await until(is_idle)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                tasks = (await client.get("/tasks")).json()
            await until(is_idle)
            processes = [server, *worker_processes(process.pid)]
            return Usage({one.pid: one.memory_info().rss for one in processes}, open_files(process.pid), tasks)

        for _ in range(FIRST_ROUNDS):
            before = await play_round()
        assert len(before.memory) == 3
        rounds = [before, *[await play_round() for _ in range(ROUNDS)]]
        assert (rounds[-1].files, rounds[-1].tasks) == (before.files, before.tasks)
        # What leaks does so in each round; on a busy machine more requests than ever may be at hand in one of them.
        for pid in before.memory:
            growth = [after.memory[pid] - earlier.memory[pid] for earlier, after in pairwise(rounds)]
            assert median(growth) <= MOST_GROWTH_BYTES, growth
    finally:
        process.kill()
        process.communicate()
