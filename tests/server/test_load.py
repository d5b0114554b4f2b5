"""Many connections at once: each request gets the answer to itself, and nothing of them stays."""

import json
from typing import Any

import anyio
import numpy as np
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from asyncembed import TextEmbedding
from asyncembed.testing import fake_models
from tests.support.asgi_servers import serving
from tests.support.waiting import nothing_left_behind

pytestmark = pytest.mark.slow

CONNECTIONS = 256
TURNS = 3


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
