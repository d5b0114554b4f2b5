"""The page as it is sent, and what it asks for; what it does in a browser is in `test_page_in_browser`."""

import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256

import httpx
import pytest

from asyncembed.testing import fake_models
from tests.support.asgi_servers import serving

pytestmark = pytest.mark.slow

MODEL = "BAAI/bge-small-en-v1.5"


@pytest.fixture(autouse=True)
def _fakes() -> Iterator[None]:
    with fake_models():
        yield


def rules_of(answer: httpx.Response) -> dict[str, str]:
    rules = (rule.partition(" ") for rule in answer.headers["content-security-policy"].split("; "))
    return {name: what for name, _, what in rules}


async def test_the_page_may_run_its_own_script_and_ask_its_own_server_and_nothing_else() -> None:
    from asyncembed.server import create_app

    async with serving(create_app(MODEL)) as client:
        answer = await client.get("/")
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"
        rules = rules_of(answer)
        assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
        assert rules["connect-src"] == "'self'"
        assert "unsafe" not in str(rules)
        for name in ("script", "style"):
            ((content),) = re.findall(rf"<{name}[^>]*>(.*?)</{name}>", answer.text, re.DOTALL)
            digest = b64encode(sha256(content.encode()).digest()).decode()
            assert rules[f"{name}-src"] == f"'sha256-{digest}'"
        assert not re.search(r"\son\w+=|style=|innerHTML|https?://(?!www\.w3\.org/2000/svg)", answer.text)


async def test_the_page_is_for_everybody_and_what_it_shows_for_those_who_have_the_key() -> None:
    from asyncembed.server import create_app

    async with serving(create_app({"unseen": MODEL}, api_key="secret")) as client:
        answer = await client.get("/")
        assert answer.status_code == 200
        assert "unseen" not in answer.text
        assert (await client.get("/page.json")).status_code == 401
        answer = await client.get("/page.json", headers={"Authorization": "Bearer secret"})
        assert answer.json()["models"][0]["model"] == MODEL
        assert "secret" not in answer.text


async def test_without_the_page_there_is_nothing_to_get() -> None:
    from asyncembed.server import create_app

    async with serving(create_app(MODEL, page=False)) as client:
        assert (await client.get("/")).status_code == 405  # what is posted there is computed
        assert (await client.get("/page.json")).status_code == 404
        assert (await client.post("/", json={"inputs": "a text"})).status_code == 200


async def test_the_page_is_told_what_models_are_and_what_was_computed() -> None:
    from asyncembed.server import create_app
    from tests.support.served_fakes import fakes_of_all_kinds

    async with serving(create_app(fakes_of_all_kinds())) as client:
        before = (await client.get("/page.json")).json()
        models = {model["name"]: model for model in before["models"]}
        assert [models[name]["dim"] for name in ("text", "image", "sparse", "cross_encoder")] == [8, 6, None, None]
        assert [models[name]["kind"] for name in models if name != "unit"] == [
            name for name in models if name != "unit"
        ]
        assert models["text"]["max_length"] == 512
        assert before["pools"][0]["workers_ready"] == before["pools"][0]["workers"] > 0
        await client.post("/v1/embeddings", json={"input": ["a", "b c"], "model": "text"})
        await client.post("/v1/embeddings", json={"input": []})
        after = (await client.get("/page.json")).json()
        assert after["uptime_seconds"] > before["uptime_seconds"]
        assert after["requests"]["statuses"] == [[200, 1], [400, 1]]
        ((seconds, count),) = after["requests"]["times"]
        assert (count, 0 < seconds < 20) == (1, True)
        text = after["models"][0]
        assert (text["name"], text["inputs"], text["tokens"], text["batches"]) == ("text", 2, 3, 1)


async def test_models_in_one_pool_are_told_with_that_pool_once() -> None:
    from asyncembed.server import create_app

    async with serving(create_app({"one": MODEL, "two": MODEL})) as client:
        told = (await client.get("/page.json")).json()
        assert (len(told["models"]), len(told["pools"])) == (2, 1)


def test_the_document_says_that_the_page_is_html() -> None:
    from asyncembed.server import create_app

    paths = create_app(MODEL).openapi()["paths"]
    assert set(paths["/"]["get"]["responses"]["200"]["content"]) == {"text/html"}
    assert set(paths["/"]) == {"get", "post"}
    assert "security" in paths["/page.json"]["get"]
