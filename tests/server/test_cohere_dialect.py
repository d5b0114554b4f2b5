"""Cohere's interface on a real server: texts, images and ranks, and what it refuses."""

import base64
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

import asyncembed
from asyncembed import Family
from asyncembed.catalogue.lookup import CLASSES
from asyncembed.engine.model import Stats
from asyncembed.testing import fake_models
from tests.support.asgi_servers import serving
from tests.support.images import encoded, picture
from tests.support.served_fakes import fakes_of_all_kinds
from tests.support.waiting import until

pytestmark = pytest.mark.slow

TEXTS = ["a text", "another text"]


def data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


async def answer(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    answered = await client.post(path, json=body)
    assert answered.status_code == 200, answered.text
    return answered.json()


async def refusal(client: httpx.AsyncClient, path: str, **body: Any) -> tuple[int, str]:
    answered = await client.post(path, json=body)
    told = answered.json()
    assert set(told) == {"id", "message"}
    return answered.status_code, told["message"]


def closed(name: str) -> Any:
    return fakes_of_all_kinds()[name]


# ---------------------------------------------------------------- vectors


async def test_a_role_is_what_input_type_says(all_kinds: httpx.AsyncClient) -> None:
    async with closed("text") as model:
        expected = {
            "search_query": await model.query_embed(TEXTS).collect(),
            "search_document": await model.passage_embed(TEXTS).collect(),
            "clustering": await model.embed(TEXTS, prompt_name="clustering").collect(),
            "classification": await model.embed(TEXTS).collect(),
        }
    for role, vectors in expected.items():
        found = await answer(all_kinds, "/v2/embed", model="text", texts=TEXTS, input_type=role)
        np.testing.assert_array_equal(np.array(found["embeddings"]["float"], np.float32), vectors)


async def test_vectors_come_in_all_forms_that_need_no_corpus(all_kinds: httpx.AsyncClient) -> None:
    kinds = ["float", "base64", "binary", "ubinary"]
    found = await answer(all_kinds, "/v2/embed", model="text", texts=TEXTS, embedding_types=kinds)
    forms = found["embeddings"]
    vectors = np.array(forms["float"], np.float32)
    for text, vector, signed, unsigned in zip(forms["base64"], vectors, forms["binary"], forms["ubinary"], strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(text), "<f4"), vector)
        assert signed == [byte - 128 for byte in unsigned]
        assert np.unpackbits(np.array(unsigned, np.uint8)).tolist() == (vector > 0).tolist()
    assert set(forms) == set(kinds)


async def test_an_answer_says_what_it_is_of_and_what_it_cost(all_kinds: httpx.AsyncClient) -> None:
    found = await answer(all_kinds, "/v2/embed", model="text", texts=TEXTS)
    assert found["texts"] == TEXTS
    assert found["response_type"] == "embeddings_by_type"
    assert found["meta"]["billed_units"] == {"input_tokens": 4}


async def test_images_are_embedded_from_data_uris(all_kinds: httpx.AsyncClient, tmp_path: Path) -> None:
    images = [encoded(picture(20, 10, seed=seed), "PNG") for seed in range(2)]
    async with closed("image") as model:
        expected = await model.embed_images(images)
    uris = [data_uri(image) for image in images]
    contents = [{"content": [{"type": "image_url", "image_url": {"url": uri}}]} for uri in uris]
    for body in ({"images": uris, "input_type": "image"}, {"inputs": contents}):
        found = await answer(all_kinds, "/v2/embed", model="image", **body)
        np.testing.assert_array_equal(np.array(found["embeddings"]["float"], np.float32), expected)
        assert found["meta"]["billed_units"]["images"] == 2
        assert "texts" not in found


async def test_inputs_may_be_texts(all_kinds: httpx.AsyncClient) -> None:
    contents = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    found = await answer(all_kinds, "/v2/embed", model="text", inputs=contents, output_dimension=3)
    plain = await answer(all_kinds, "/v2/embed", model="text", texts=TEXTS, output_dimension=3)
    assert found["embeddings"] == plain["embeddings"]
    assert np.array(found["embeddings"]["float"]).shape == (2, 3)


async def test_an_image_of_a_private_address_is_not_fetched(all_kinds: httpx.AsyncClient) -> None:
    status, message = await refusal(all_kinds, "/v2/embed", model="image", images=[str(all_kinds.base_url)])
    assert status == 400
    assert "not public" in message


@pytest.mark.parametrize("path", ["/etc/passwd", "file:///etc/passwd", "./pyproject.toml"])
async def test_an_image_is_never_a_file_of_the_server(all_kinds: httpx.AsyncClient, path: str) -> None:
    status, message = await refusal(all_kinds, "/v2/embed", model="image", images=[path])
    assert status == 400
    assert "image" in message


async def test_a_text_over_the_limit_is_cut_at_its_end_or_refused(all_kinds: httpx.AsyncClient) -> None:
    texts = ["word " * 600, "short"]
    await answer(all_kinds, "/v2/embed", model="text", texts=texts, truncate="END", max_tokens=512)
    status, message = await refusal(all_kinds, "/v2/embed", model="text", texts=texts, truncate="NONE")
    assert status == 400
    assert message.startswith("input 0: longer than the model's limit")


IMAGE = {"type": "image_url", "image_url": {"url": data_uri(b"")}}
TEXT = {"type": "text", "text": "a"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"texts": []}, 400),
        ({"texts": ["a"] * 9}, 400),
        ({"texts": ["a"], "images": ["a"]}, 400),
        ({"texts": ["a"], "embedding_types": ["int8"]}, 400),
        ({"texts": ["a"], "embedding_types": ["bits"]}, 400),
        ({"texts": ["a"], "truncate": "START"}, 400),
        ({"texts": ["a"], "max_tokens": 100}, 400),
        ({"texts": ["a"], "output_dimension": 9}, 400),
        ({"texts": ["a"], "input_type": "image"}, 400),
        ({"texts": ["a"], "model": "none"}, 404),
        ({"texts": ["a"], "model": "image"}, 400),
        ({"images": [data_uri(b"no image")]}, 400),
        ({"images": [data_uri(encoded(picture(2, 2)))], "output_dimension": 3}, 400),
        ({"inputs": []}, 400),
        ({"inputs": [{"content": []}]}, 400),
        ({"inputs": [{"content": [TEXT, IMAGE]}]}, 400),
        ({"inputs": [{"content": [TEXT]}, {"content": [IMAGE]}]}, 400),
        ({"inputs": [{"content": [{"type": "sound"}]}]}, 400),
    ],
)
async def test_what_cannot_be_served_is_refused_in_its_form(
    all_kinds: httpx.AsyncClient, body: dict[str, Any], status: int
) -> None:
    assert (await refusal(all_kinds, "/v2/embed", **body))[0] == status


# ---------------------------------------------------------------- ranks


async def test_ranks_are_best_first_with_scores_of_0_to_1(all_kinds: httpx.AsyncClient) -> None:
    documents = ["nothing", "a word", "word"]
    async with closed("cross_encoder") as model:
        expected = await model.rank("word", documents, 2, activation="sigmoid")
    found = await answer(all_kinds, "/v2/rerank", model="cross_encoder", query="word", documents=documents, top_n=2)
    assert [(one["index"], pytest.approx(one["relevance_score"])) for one in found["results"]] == expected
    assert found["meta"]["billed_units"] == {"search_units": 1, "input_tokens": 7}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"documents": []}, 400),
        ({"documents": ["a"] * 9}, 400),
        ({"documents": ["a"], "top_n": 0}, 400),
        ({"documents": ["a"], "max_tokens_per_doc": 10}, 400),
        ({"documents": ["a"], "relevant_spans": {"mode": "on"}}, 400),
        ({"documents": ["a"], "model": "text"}, 400),
        ({"documents": ["a"], "model": "none"}, 404),
    ],
)
async def test_ranks_that_cannot_be_had_are_refused(
    all_kinds: httpx.AsyncClient, body: dict[str, Any], status: int
) -> None:
    assert (await refusal(all_kinds, "/v2/rerank", query="a", **body))[0] == status


async def test_what_is_asked_for_and_changes_nothing_is_taken(all_kinds: httpx.AsyncClient) -> None:
    body = {"query": "a", "documents": ["a", "b"], "max_tokens_per_doc": 4096, "priority": 0}
    assert len((await answer(all_kinds, "/v2/rerank", **body))["results"]) == 2


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/v2/embed", "text", {"texts": ["waits"]}),
        ("/v2/embed", "image", {"images": [data_uri(encoded(picture(2, 2)))]}),
        ("/v2/rerank", "cross_encoder", {"query": "a", "documents": ["waits"]}),
    ],
)
async def test_a_priority_above_0_lets_others_go_first_and_is_refused_sooner(
    path: str, kind: Family, body: dict[str, Any]
) -> None:
    from asyncembed.server import create_app

    answered: dict[str, int] = {}

    async def ask(client: httpx.AsyncClient, name: str, priority: int | None) -> None:
        answered[name] = (await client.post(path, json={**body, "priority": priority})).status_code

    def stats() -> Stats:
        (model,) = app.state.service.models
        found: Stats = model.embedder.stats()
        return found

    with fake_models(seconds=30) as fakes:
        app = create_app(
            {kind: getattr(asyncembed, CLASSES[kind])("nosuch/model", workers=1, max_queued=2, deduplicate=False)}
        )
        async with serving(app) as client, anyio.create_task_group() as group:
            group.start_soon(ask, client, "computed", 0)
            await until(lambda: stats().in_flight == 1)
            group.start_soon(ask, client, "low", 1)
            await until(lambda: stats().queued_bulk == 1)
            group.start_soon(ask, client, "lower", 999)
            await until(lambda: stats().queued_bulk == 2)
            await ask(client, "one too many", 5)
            group.start_soon(ask, client, "unsaid", None)
            await until(lambda: stats().queued_interactive == 1)
            fakes.seconds = 0
    assert next(iter(answered.items())) == ("one too many", 429)
    assert {name for name, status in answered.items() if status == 200} == {"computed", "low", "lower", "unsaid"}
