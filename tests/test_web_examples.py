"""The web apps of the examples, served by uvicorn as their docstrings say, and spoken to by clients."""

import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
import pytest

from tests.support.graphs import DIM
from tests.support.models import write_self_describing_model
from tests.support.waiting import WAIT_SECONDS, until, worker_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

ROOT = Path(__file__).parents[1]
MAX_QUEUED = 8


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Of the client: the server is a program of its own."""
    return "asyncio"


@pytest.fixture(scope="module")
async def server(request: pytest.FixtureRequest, tmp_path_factory: Any) -> AsyncGenerator[psutil.Process]:
    directory = write_self_describing_model(tmp_path_factory.mktemp("model"))
    environment = os.environ | {
        "MODEL": str(directory),
        "MAX_QUEUED": str(MAX_QUEUED),
        "ASYNCEMBED_CACHE": str(directory / "cache"),
    }
    command = [sys.executable, "-m", "uvicorn", f"examples.{request.param}:app", "--port", "0", "--no-access-log"]
    process = await anyio.open_process(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = ""
    with anyio.fail_after(WAIT_SECONDS):
        while not (found := re.search(r"running on (http://[\d.:]+)", said)):
            said += (await process.stderr.receive()).decode()
    running = psutil.Process(process.pid)
    running.url = found[1]  # type: ignore[attr-defined]
    yield running
    process.send_signal(signal.SIGINT)
    with anyio.fail_after(WAIT_SECONDS):
        assert await process.wait() in (0, -signal.SIGINT)
    await process.aclose()
    assert not worker_processes()


@pytest.fixture
async def client(server: Any) -> AsyncGenerator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=WAIT_SECONDS, trust_env=False, limits=limits) as client:
        yield client


def body(client: httpx.AsyncClient, server: Any, texts: list[str]) -> Any:
    return {"texts": texts} if "fastapi" in " ".join(server.cmdline()) else texts


async def queued(client: httpx.AsyncClient) -> int:
    return int((await client.get("/stats")).json()["queued"])


async def until_queued(client: httpx.AsyncClient, count: int) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        while await queued(client) != count:  # noqa: ASYNC110 (of another process)
            await anyio.sleep(0.01)


both = pytest.mark.parametrize("server", ["web_fastapi", "web_litestar"], indirect=True)


@both
async def test_queries_and_documents_are_answered(client: httpx.AsyncClient, server: Any) -> None:
    vector = (await client.get("/query", params={"text": "one"})).json()
    vectors = (await client.post("/documents", json=body(client, server, ["one", "two"]))).json()
    assert len(vector) == DIM
    assert vectors[0] == pytest.approx(vector, abs=1e-5)
    streamed = (await client.post("/stream", json=body(client, server, ["one", "two"] * 20))).text.splitlines()
    assert len(streamed) == 40


@both
async def test_bad_input_is_the_clients_error(client: httpx.AsyncClient, server: Any) -> None:
    response = await client.post("/documents", json=body(client, server, ["one"] * (MAX_QUEUED + 1)))
    assert response.status_code == 422
    assert f"more than max_queued={MAX_QUEUED}" in response.json()["detail"]


@both
async def test_clients_that_leave_and_overload(client: httpx.AsyncClient, server: Any) -> None:
    """While the workers are stopped, queries wait, no more than may; those of clients that leave are withdrawn."""
    workers = worker_processes(server.pid)
    for worker in workers:
        worker.suspend()
    try:
        async with anyio.create_task_group() as group:
            # The first ones are given to the workers, before it shows that these do nothing.
            texts = (f"text {number}" for number in itertools.count())  # equal ones would be computed once
            with anyio.fail_after(WAIT_SECONDS):
                while await queued(client) < MAX_QUEUED:
                    group.start_soon(partial(client.get, "/query", params={"text": next(texts)}))
            refused = [await client.get("/query", params={"text": next(texts)}) for _ in range(3)]
            group.cancel_scope.cancel()
        assert {response.status_code for response in refused} == {503}
        assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
        await until_queued(client, 0)
    finally:
        for worker in workers:
            worker.resume()
    assert (await client.get("/query", params={"text": "one"})).status_code == 200


@both
async def test_a_client_that_leaves_in_the_middle_of_a_stream(client: httpx.AsyncClient, server: Any) -> None:
    seen: list[str] = []

    async def read() -> None:
        async with client.stream("POST", "/stream", json=body(client, server, ["one"] * 200_000)) as response:
            async for line in response.aiter_lines():
                seen.append(line)  # noqa: PERF401 (it is cancelled)

    before = int((await client.get("/stats")).json()["computed"])
    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await until(lambda: len(seen) > 3)
        group.cancel_scope.cancel()
    await until_queued(client, 0)
    assert int((await client.get("/stats")).json()["computed"]) < before + 200_000
