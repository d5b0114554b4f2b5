"""The app on a real server, with fake models: what is served, to whom, and how it is refused."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from asyncembed import TextEmbedding
from asyncembed.errors import OptionError, UnsupportedModelError
from asyncembed.testing import fake_models
from tests.support.asgi_servers import serving
from tests.support.models import write_self_describing_model
from tests.support.waiting import until, worker_processes

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _fakes(request: pytest.FixtureRequest) -> Iterator[None]:
    if "tmp_path" in request.fixturenames:  # a model of the test's own
        yield
        return
    with fake_models():
        yield


@pytest.fixture
async def client() -> AsyncGenerator[httpx.AsyncClient]:
    from asyncembed.server import Limits, create_app

    app = create_app({"small": "BAAI/bge-small-en-v1.5"}, limits=Limits(max_inputs=3, max_tokens=600, max_bytes=20_000))
    async with serving(app) as client:
        yield client


async def test_a_server_is_healthy_once_its_models_are_open(client: httpx.AsyncClient) -> None:
    answer = await client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


async def test_a_path_that_is_not_there_is_refused_in_json(client: httpx.AsyncClient) -> None:
    answer = await client.get("/nowhere")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "/openapi.json has all" in answer.json()["error"]["message"]


async def test_a_route_without_its_model_says_which_kind_is_to_be_given_to_the_server(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post("/rerank", json={"query": "a", "texts": ["b"]})
    assert answer.status_code == 424
    assert "one of TextCrossEncoder, given to the server when it starts" in answer.json()["error"]


async def test_a_method_that_a_route_does_not_take_is_refused_with_the_one_it_takes(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/embeddings")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": ["a", "b", "c", "d"]}, 400, "input"),
        ({"input": ["a " * 1000, "b " * 1000]}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": ""}, 400, "input"),
        ({"input": "a", "model": "large"}, 404, "model"),
        ({"model": "small"}, 400, "input"),
        ({"input": 1}, 400, "input"),
        ({"input": "a", "dimensions": 9999}, 400, "dimensions"),
        ({"input": "a", "input_type": "text"}, 400, "input_type"),
    ],
)
async def test_what_cannot_be_served_is_refused_with_the_field_that_is_wrong(
    client: httpx.AsyncClient, body: dict[str, Any], status: int, param: str
) -> None:
    answer = await client.post("/v1/embeddings", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


async def test_a_refusal_does_not_send_all_of_a_long_value_back(client: httpx.AsyncClient) -> None:
    for body in ({"input": "a", "model": "\x01" * 3000}, {"input": "a", "encoding_format": "x" * 10_000}):
        message = (await client.post("/v1/embeddings", json=body)).json()["error"]["message"]
        assert " ... " in message
        assert len(message) < 3000


async def test_an_app_in_another_one_serves_where_that_one_enters_its_lifespan_and_says_so_elsewhere() -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    from asyncembed.server import create_app

    with fake_models():
        inner = create_app({"small": "BAAI/bge-small-en-v1.5"}, workers=1)
        forgotten = Starlette(routes=[Mount("/models", inner)])
        async with serving(forgotten) as outside:
            refused = await outside.post("/models/v1/embeddings", json={"input": "a"})
            assert (refused.status_code, "lifespan" in refused.text) == (503, True)

        @asynccontextmanager
        async def enter(_: object) -> AsyncGenerator[None]:
            async with inner.router.lifespan_context(inner):
                yield

        entered = Starlette(routes=[Mount("/models", inner)], lifespan=enter)
        async with serving(entered) as outside:
            answers = [await outside.get("/models/"), await outside.get("/models/v1/models/small")]
            answers.append(await outside.post("/models/v1/embeddings", json={"input": "a"}))
            assert [answer.status_code for answer in answers] == [200, 200, 200]


async def test_a_body_that_says_that_it_is_too_large_is_refused_before_it_is_read(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/embeddings", json={"input": "a" * 30_000})
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"


async def test_a_body_without_a_length_is_refused_once_it_is_too_large(client: httpx.AsyncClient) -> None:
    async def parts() -> AsyncGenerator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    answer = await client.post("/v1/embeddings", content=parts())
    assert answer.status_code == 413


async def test_only_who_has_a_key_is_served_but_anybody_may_ask_for_its_health() -> None:
    from asyncembed.server import create_app

    async with serving(create_app("BAAI/bge-small-en-v1.5", api_key=["one", "two"])) as client:
        assert (await client.get("/health")).status_code == 200
        for headers in ({}, {"Authorization": "Bearer three"}, {"Authorization": "Basic one"}):
            answer = await client.get("/v1/models", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (await client.get("/v1/models", headers={"Authorization": "bearer two"})).status_code == 200


async def test_models_are_served_by_their_own_names_unless_they_are_given_others() -> None:
    from asyncembed.server import create_app

    models: list[str | TextEmbedding] = [TextEmbedding("BAAI/bge-base-en-v1.5"), "BAAI/bge-small-en-v1.5"]
    async with serving(create_app(models)) as client:
        listed = (await client.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["BAAI/bge-base-en-v1.5", "BAAI/bge-small-en-v1.5"]
        answer = (await client.post("/v1/embeddings", json={"input": "a"})).json()
        assert (answer["model"], len(answer["data"][0]["embedding"])) == ("BAAI/bge-base-en-v1.5", 768)


@pytest.mark.parametrize("prefix", ["/v1/models", "/models"])
async def test_a_model_is_found_by_its_name_whose_slashes_may_stand_as_they_are(prefix: str) -> None:
    from asyncembed.server import create_app

    names = ["BAAI/bge-base-en-v1.5", "BAAI/bge-small-en-v1.5"]
    async with serving(create_app(names)) as client:
        listed = (await client.get("/v1/models")).json()
        for name in ("BAAI/bge-small-en-v1.5", "BAAI%2Fbge-small-en-v1.5"):
            answer = await client.get(f"{prefix}/{name}")
            assert (answer.status_code, answer.json()) == (200, listed["data"][1])
        assert (await client.head(f"{prefix}/{names[0]}")).status_code == 200
        assert (await client.get(f"{prefix}/")).json() == listed
        for missing in ("BAAI/bge-large-en-v1.5", "%7Bid%7D"):
            answer = await client.get(f"{prefix}/{missing}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert (await client.post(f"{prefix}/{names[0]}")).status_code == 405


@pytest.mark.parametrize("models", [[], ["a/b", "a/b"]])
def test_an_app_without_models_or_with_two_of_one_name_is_refused(models: list[str]) -> None:
    from asyncembed.server import create_app

    with pytest.raises(OptionError, match="model"):
        create_app(models)


def test_the_document_describes_what_routes_take_and_answer() -> None:
    from asyncembed.server import create_app

    document = create_app("BAAI/bge-small-en-v1.5").openapi()
    body = document["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/EmbeddingsRequest"}
    assert document["components"]["schemas"]["EmbeddingsRequest"]["required"] == ["input"]


async def test_requests_that_compute_are_counted_by_what_came_of_them() -> None:
    from asyncembed.server import create_app

    app = create_app("BAAI/bge-small-en-v1.5")
    async with serving(app) as client:
        await client.get("/health")
        for text in ("a", "b", ""):
            await client.post("/v1/embeddings", json={"input": text})
        meter = app.state.service.meter
        await until(lambda: meter.in_progress == 0)  # an answer is there before it is counted
        assert meter.by_route == {("/v1/embeddings", 200): 2, ("/v1/embeddings", 400): 1}
        assert sum(count for _, count in meter.times()) == 2


async def test_models_that_have_workers_of_their_own_are_served_without_any_more(tmp_path: Path) -> None:
    from asyncembed.server import create_app

    before = {worker.pid for worker in worker_processes()}
    model = TextEmbedding(write_self_describing_model(tmp_path), workers=1, interactive_workers=0)
    async with serving(create_app({"own": model})) as client:
        assert (await client.post("/v1/embeddings", json={"model": "own", "input": "a"})).status_code == 200
        assert len({worker.pid for worker in worker_processes()} - before) == 1


async def test_the_class_of_a_model_that_no_catalogue_knows_is_found_by_its_files(tmp_path: Path) -> None:
    from asyncembed.server import create_app

    app = create_app({"dense": write_self_describing_model(tmp_path)}, workers=0)
    async with serving(app):
        (model,) = app.state.service.models
        assert type(model.embedder) is TextEmbedding


async def test_a_server_whose_model_is_of_no_class_does_not_start(tmp_path: Path) -> None:
    from asyncembed.server import create_app

    app = create_app(tmp_path, workers=0)
    with pytest.raises(UnsupportedModelError, match="TextCrossEncoder"):
        async with app.router.lifespan_context(app):
            pass
    assert isinstance(app.state.service.failure, UnsupportedModelError)
