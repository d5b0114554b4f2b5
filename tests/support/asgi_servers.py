"""Real ASGI servers on real sockets, in the test's own event loop: uvicorn on asyncio, hypercorn on trio."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import hypercorn.trio
import uvicorn
from anyio.lowlevel import current_token

from tests.support.waiting import WAIT_SECONDS


@asynccontextmanager
async def serving(app: Any) -> AsyncGenerator[httpx.AsyncClient]:
    """Serve `app`; gives a client whose base URL is the server's. Its lifespan runs as a server runs it."""
    backend = type(current_token().native_token).__module__.partition(".")[0]
    start = _on_trio if backend == "trio" else _on_asyncio
    async with start(app) as port:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=WAIT_SECONDS, trust_env=False
        ) as client:
            yield client


@asynccontextmanager
async def _on_asyncio(app: Any) -> AsyncGenerator[int]:
    # On a busy machine a client may be slower than the 5 seconds that an idle connection is kept by default.
    config = uvicorn.Config(
        app, port=0, lifespan="on", log_config=None, access_log=False, timeout_keep_alive=round(WAIT_SECONDS)
    )
    server = uvicorn.Server(config)
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve)
        await _until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
        server.should_exit = True


@asynccontextmanager
async def _on_trio(app: Any) -> AsyncGenerator[int]:
    config = hypercorn.Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    config.graceful_timeout = 0.1
    ended = anyio.Event()
    async with anyio.create_task_group() as group:

        async def serve(*, task_status: Any) -> None:
            await hypercorn.trio.serve(app, config, shutdown_trigger=ended.wait, task_status=task_status)

        (address,) = await group.start(serve)
        yield int(address.rpartition(":")[2])
        ended.set()


async def _until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110 (uvicorn has no event for it)
            await anyio.sleep(0.005)
