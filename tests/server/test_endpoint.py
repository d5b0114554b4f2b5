"""The way of a request, where it ends otherwise than with vectors: clients leave, too many wait, the server ends."""

import json
import logging
import socket
from functools import partial
from typing import Any

import anyio
import httpx
import pytest

import asyncembed
from asyncembed import Stats
from asyncembed.testing import fake_models
from tests.support.asgi_servers import serving
from tests.support.waiting import until

pytestmark = pytest.mark.slow

MODEL = "BAAI/bge-small-en-v1.5"


async def ask(client: httpx.AsyncClient, text: str) -> httpx.Response:
    return await client.post("/v1/embeddings", json={"input": text})


def stats(app: Any) -> Stats:
    (model,) = app.state.service.models
    found: Stats = model.embedder.stats()
    return found


async def test_the_work_of_a_client_that_leaves_is_withdrawn() -> None:
    from asyncembed.server import create_app

    with fake_models(seconds=30) as fakes:
        app = create_app(MODEL, workers=1)
        async with serving(app) as client, anyio.create_task_group() as group:
            group.start_soon(ask, client, "it is being computed")
            await until(lambda: stats(app).in_flight == 1)
            leaving = socket.create_connection((client.base_url.host, client.base_url.port or 0))
            body = json.dumps({"input": "it waits"}).encode()
            leaving.sendall(
                b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            await until(lambda: stats(app).queued == 1)
            leaving.close()
            await until(lambda: stats(app).queued == 0)
            await until(lambda: app.state.service.meter.by_route["/v1/embeddings", 499] == 1)
            fakes.seconds = 0


LONG_LIST = [f"text {number}" for number in range(200)]  # equal ones would be computed once


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/v1/embeddings", "TextEmbedding", {"input": LONG_LIST}),
        ("/v1/embeddings", "TextEmbedding", {"input": LONG_LIST[:40]}),
        ("/v2/embed", "TextEmbedding", {"texts": LONG_LIST, "priority": 9}),
        ("/embed_sparse", "SparseTextEmbedding", {"inputs": LONG_LIST}),
        ("/embed_all", "LateInteractionTextEmbedding", {"inputs": LONG_LIST}),
        ("/rerank", "TextCrossEncoder", {"query": "a query", "texts": LONG_LIST}),
        ("/predict", "TextCrossEncoder", {"inputs": [["a query", text] for text in LONG_LIST]}),
    ],
)
async def test_no_batch_begins_for_a_client_that_has_left(path: str, kind: str, body: dict[str, Any]) -> None:
    from asyncembed.server import create_app

    with fake_models(seconds=30) as fakes:
        app = create_app(getattr(asyncembed, kind)(MODEL, workers=1, max_batch_size=16))
        async with serving(app) as client:
            with anyio.CancelScope() as leaving:
                async with anyio.create_task_group() as group:
                    group.start_soon(partial(client.post, path, json=body))
                    await until(lambda: stats(app).queued > 0)
                    leaving.cancel()
            await until(lambda: app.state.service.meter.by_route[path, 499] == 1)
            await until(lambda: stats(app).queued == 0)
            fakes.seconds = 0
            await until(lambda: stats(app).in_flight == 0)
            assert (stats(app).batches, stats(app).items) == (1, 16)


async def test_who_comes_when_too_many_wait_is_told_when_to_come_back() -> None:
    from asyncembed.server import create_app

    with fake_models(seconds=30) as fakes:
        app = create_app(MODEL, workers=1, max_queued=1)
        async with serving(app) as client, anyio.create_task_group() as group:
            group.start_soon(ask, client, "it is being computed")
            await until(lambda: stats(app).in_flight == 1)
            group.start_soon(ask, client, "it waits")
            await until(lambda: stats(app).queued == 1)
            answer = await ask(client, "one too many")
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
            fakes.seconds = 0


async def test_a_query_goes_before_a_long_list_that_came_earlier_and_two_such_lists_are_too_many() -> None:
    from asyncembed.server import create_app

    answered: list[str] = []

    async def ask_and_note(client: httpx.AsyncClient, texts: list[str], name: str) -> None:
        answer = await client.post("/v1/embeddings", json={"input": texts})
        answered.append(f"{name} {answer.status_code}")

    with fake_models(seconds=30) as fakes:
        app = create_app(MODEL, workers=1, max_queued=200, max_batch_size=16)
        async with serving(app) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(ask_and_note, client, LONG_LIST, "list")
                await until(lambda: stats(app).queued_bulk > 100)
                await ask_and_note(client, [f"another {text}" for text in LONG_LIST[:100]], "another list")
                group.start_soon(ask_and_note, client, ["a query"], "query")
                await until(lambda: stats(app).queued_interactive == 1)
                fakes.seconds = 0.01
            await ask_and_note(client, [*LONG_LIST, "one more"], "a list alone")
    assert answered == ["another list 429", "query 200", "list 200", "a list alone 200"]


async def test_what_fails_is_a_500_that_tells_nothing_of_the_insides(caplog: pytest.LogCaptureFixture) -> None:
    from asyncembed.server import create_app

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret")

    with fake_models():
        app = create_app(MODEL)
        async with serving(app) as client:
            app.state.service.check_count = fail
            answer = await ask(client, "a text")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "ZeroDivisionError: secret" in caplog.text


async def test_a_request_is_a_line_of_the_log_where_those_are_wanted(caplog: pytest.LogCaptureFixture) -> None:
    from asyncembed.server import create_app

    caplog.set_level(logging.INFO, "asyncembed.server.requests")
    with fake_models():
        async with serving(create_app(MODEL, api_key="secret")) as client:
            await ask(client, "private")
    (record,) = [record for record in caplog.records if record.name == "asyncembed.server.requests"]
    fields: dict[str, Any] = record.__dict__["fields"]
    assert (fields["method"], fields["path"], fields["status"]) == ("POST", "/v1/embeddings", 401)
    assert record.getMessage().startswith("POST /v1/embeddings 401 in ")
    assert record.getMessage().endswith(" ms for 127.0.0.1")


async def test_a_line_of_the_log_names_the_route_and_not_what_was_written_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from asyncembed.server import create_app

    caplog.set_level(logging.INFO, "asyncembed.server.requests")
    with fake_models(dim=4):
        async with serving(create_app(MODEL)) as client:
            await client.post("/embed%0a", json={"inputs": "a text"})
    assert {record.fields["path"] for record in caplog.records if hasattr(record, "fields")} <= {"/embed"}
    assert not [record for record in caplog.records if "\n" in record.getMessage()]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"input": "\xe9"}', id="no UTF-8"),
        pytest.param(b'{"input": "a", "more": ' + 100_000 * b"[" + 100_000 * b"]" + b"}", id="deep, and not known"),
        pytest.param(
            b'{"query": "a", "documents": ["a"], "relevant_spans": {"a": '
            + 100_000 * b'{"a":'
            + b"1"
            + 100_000 * b"}"
            + b"}}",
            id="deep, and of any form",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v2/rerank", "/embed", "/", "/v1/rerank"])
async def test_what_no_decoder_takes_is_the_fault_of_its_sender(
    body: bytes, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    from asyncembed.server import create_app

    with fake_models(dim=4):
        async with serving(create_app(MODEL)) as client:
            answer = await client.post(path, content=body)
            # What the address alone takes is looked at before the rest is decoded.
            inner = await client.post("/", content=b'{"inputs": ' + 100_000 * b"[" + 100_000 * b"]" + b"}")
    assert answer.status_code in (400, 422)
    assert inner.status_code == 422
    assert not [record for record in caplog.records if record.name == "asyncembed.server"]


@pytest.mark.parametrize("value", [b"[]", b"{}", b'""', b"7"])
async def test_a_body_of_very_many_values_is_refused_before_they_are_made(value: bytes) -> None:
    from asyncembed.server import create_app

    with fake_models(dim=4):
        async with serving(create_app(MODEL)) as client:
            answer = await client.post("/v1/embeddings", content=b'{"input": [' + 2_000_000 * (value + b",") + b"7]}")
    assert answer.status_code == 400
    assert "values" in answer.json()["error"]["message"]


async def test_commas_within_texts_are_no_values() -> None:
    from asyncembed.server import create_app

    text = ',\\", [' * 500_000
    with fake_models(dim=4):
        async with serving(create_app(MODEL)) as client:
            answer = await client.post("/v1/embeddings", json={"input": [text, text, text]})
    assert answer.status_code == 200


async def test_no_request_is_sent_on_to_where_its_own_header_says() -> None:
    from asyncembed.server import create_app

    with fake_models(dim=4):
        async with serving(create_app(MODEL)) as client:
            answer = await client.get("/metrics/", headers={"host": "elsewhere.example"})
    assert answer.status_code == 404
    assert "location" not in answer.headers


async def test_routes_and_middlewares_of_ones_own_can_be_added() -> None:
    from asyncembed.server import create_app

    async def marked(request: Any, call_next: Any) -> Any:
        answer = await call_next(request)
        answer.headers["x-marked"] = "yes"
        return answer

    def mine() -> dict[str, int]:
        return {"mine": 1}

    with fake_models():
        app = create_app(MODEL)
        app.middleware("http")(marked)
        app.get("/mine")(mine)
        async with serving(app) as client:
            assert (await client.get("/mine")).json() == {"mine": 1}
            answer = await ask(client, "a text")
            assert (answer.status_code, answer.headers["x-marked"]) == (200, "yes")
            assert "/mine" in (await client.get("/openapi.json")).json()["paths"]
