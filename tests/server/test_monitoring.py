"""Health and numbers of a server."""

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from asyncembed.testing import fake_models
from tests.support.asgi_servers import serving

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _fakes() -> Iterator[None]:
    with fake_models():
        yield


def numbers(text: str) -> dict[str, float]:
    """Name and labels → value, as Prometheus reads them."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_the_numbers_are_those_of_requests_and_of_models_by_the_names_they_are_served_under() -> None:
    from asyncembed.server import create_app

    async with serving(create_app({"small": "BAAI/bge-small-en-v1.5"})) as client:
        await client.post("/v1/embeddings", json={"input": ["two words", "one"]})
        await client.post("/v1/embeddings", json={"input": ""})
        answer = await client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        found = numbers(answer.text)
        assert found["asyncembed_requests_total /v1/embeddings 200"] == 1
        assert found["asyncembed_requests_total /v1/embeddings 400"] == 1
        assert found["asyncembed_request_seconds_count"] == 1
        assert found["asyncembed_request_seconds_bucket +Inf"] == 1
        assert found["asyncembed_tokens_total small"] == 3
        assert found["asyncembed_workers_ready small"] >= 1


async def test_two_servers_in_a_process_have_numbers_of_their_own_and_those_of_one_go_on_when_it_starts_again() -> None:
    from asyncembed.server import create_app

    app = create_app({"a": "BAAI/bge-small-en-v1.5"})
    async with serving(app) as first, serving(create_app({"b": "BAAI/bge-small-en-v1.5"})) as second:
        await first.post("/v1/embeddings", json={"input": "one"})
        assert "asyncembed_inputs_total a" not in numbers((await second.get("/metrics")).text)
    async with serving(app) as client:
        await client.post("/v1/embeddings", json={"input": "one"})
        assert numbers((await client.get("/metrics")).text)["asyncembed_inputs_total a"] == 2


async def test_lazy_models_are_healthy_and_shown_and_each_is_loaded_by_its_first_request() -> None:
    from asyncembed.server import create_app

    names = ["BAAI/bge-small-en-v1.5", "Xenova/ms-marco-MiniLM-L-6-v2"]
    async with serving(create_app(names, lazy=True, max_queued=100)) as client:
        assert (await client.get("/health")).status_code == 200
        assert len((await client.get("/v1/models")).json()["data"]) == 2
        assert [model["runs_on"] for model in (await client.get("/page.json")).json()["models"]] == [
            "not loaded yet",
            "not loaded yet",
        ]
        answer = await client.post("/v1/embeddings", json={"input": ["one"], "encoding_format": "float"})
        assert len(answer.json()["data"][0]["embedding"]) == 384
        states = [model["runs_on"] for model in (await client.get("/page.json")).json()["models"]]
        assert states[0] != "not loaded yet"
        assert states[1] == "not loaded yet"
        assert (await client.get("/info")).json()["models"][1]["max_input_length"] == 512
