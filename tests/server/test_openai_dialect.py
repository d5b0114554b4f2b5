"""OpenAI's interface, asked by its own client where that is there."""

import base64
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from asyncembed import TextEmbedding
from asyncembed.testing import fake_models
from tests.support.asgi_servers import serving
from tests.support.images import encoded, picture
from tests.support.served_fakes import fakes_of_all_kinds

pytestmark = pytest.mark.slow

MODEL = "BAAI/bge-small-en-v1.5"


@pytest.fixture(autouse=True)
def _fakes() -> Iterator[None]:
    with fake_models():
        yield


@pytest.fixture
async def client() -> AsyncGenerator[httpx.AsyncClient]:
    from asyncembed.server import create_app

    async with serving(create_app({"small": MODEL})) as client:
        yield client


async def test_vectors_are_those_of_the_library_as_numbers_and_as_base64(client: httpx.AsyncClient) -> None:
    texts = ["a text", "another longer text"]
    async with TextEmbedding(MODEL) as model:
        expected = await model.embed(texts).collect()
    for asked in (texts, texts[0]):
        numbers = (await client.post("/v1/embeddings", json={"input": asked})).json()
        packed = (await client.post("/v1/embeddings", json={"input": asked, "encoding_format": "base64"})).json()
        for index, (one, other) in enumerate(zip(numbers["data"], packed["data"], strict=True)):
            assert one["index"] == other["index"] == index
            np.testing.assert_array_equal(np.array(one["embedding"], np.float32), expected[index])
            np.testing.assert_array_equal(np.frombuffer(base64.b64decode(other["embedding"]), "<f4"), expected[index])


async def test_usage_is_the_tokens_that_were_computed(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/embeddings", json={"input": ["two words", "now three words"]})
    assert answer.json()["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


async def test_vectors_can_be_asked_for_that_are_shorter(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/embeddings", json={"input": "a text", "dimensions": 100})
    vector = np.array(answer.json()["data"][0]["embedding"])
    assert vector.shape == (100,)
    assert np.linalg.norm(vector) == pytest.approx(1)


# ---------------------------------------------------------------- what others have added to it


def closed(name: str) -> Any:
    return fakes_of_all_kinds()[name]


async def vectors_of(client: httpx.AsyncClient, **body: Any) -> Any:
    answer = await client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    return [one["embedding"] for one in answer.json()["data"]]


async def test_a_text_may_be_a_query_or_a_passage(all_kinds: httpx.AsyncClient) -> None:
    async with closed("text") as model:
        query, passage = await model.embed_query("a text"), await model.embed_documents(["a text"])
    found = await vectors_of(all_kinds, input="a text", input_type="query")
    np.testing.assert_allclose(found[0], query, atol=1e-6)
    found = await vectors_of(all_kinds, input="a text", input_type="document")
    np.testing.assert_allclose(found, passage, atol=1e-6)


@pytest.mark.parametrize("form", ["float", "base64"])
async def test_late_interaction_gives_a_matrix_for_each_text(all_kinds: httpx.AsyncClient, form: str) -> None:
    async with closed("late_interaction") as model:
        expected = await model.embed_documents(["two words", "one"])
    found = await vectors_of(
        all_kinds, model="late_interaction", input=["two words", "one"], input_type="document", encoding_format=form
    )
    for rows, matrix in zip(found, expected, strict=True):
        np.testing.assert_allclose(rows, matrix, atol=1e-6)


async def test_images_are_embedded_as_infinity_and_jina_have_them(all_kinds: httpx.AsyncClient) -> None:
    images = [encoded(picture(20, 10, seed=seed), "PNG") for seed in range(2)]
    uris = ["data:image/png;base64," + base64.b64encode(image).decode() for image in images]
    async with closed("image") as model:
        expected = await model.embed_images(images)
    for body in ({"input": uris, "modality": "image"}, {"input": [{"image": uri} for uri in uris]}):
        found = await vectors_of(all_kinds, model="image", **body)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    found = await vectors_of(all_kinds, input=uris[0], modality="image")
    np.testing.assert_allclose(found, expected[:1], atol=1e-6)


async def test_pages_and_queries_have_matrices_of_one_model(all_kinds: httpx.AsyncClient) -> None:
    name = "late_interaction_multimodal"
    image = encoded(picture(20, 10), "PNG")
    async with closed(name) as model:
        query, (page,) = await model.embed_query("a text"), await model.embed_images([image])
    found = await vectors_of(all_kinds, model=name, input=[{"text": "a text"}])
    np.testing.assert_allclose(found[0], query, atol=1e-6)
    found = await vectors_of(all_kinds, model=name, input=[{"image": base64.b64encode(image).decode()}])
    np.testing.assert_allclose(found[0], page, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        {"input": ["a", 1]},
        {"input": ["a", {"image": "aaaa"}]},
        {"input": [{}]},
        {"input": [{"text": "a", "image": "aaaa"}]},
        {"input": [{"text": ""}]},
        {"input": [1, 2], "modality": "image"},
        {"input": [], "modality": "image"},
        {"input": "/etc/passwd", "modality": "image"},
        {"input": "http://127.0.0.1/a.png", "modality": "image"},
        {"input": "a", "input_type": "image"},
        {"input": "a", "model": "late_interaction", "dimensions": 3},
        {"input": "a", "model": "sparse"},
        {"input": "a", "model": "image"},
        {"input": "a", "model": "text", "modality": "image"},
    ],
)
async def test_what_is_no_input_of_the_model_is_refused(all_kinds: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await all_kinds.post("/v1/embeddings", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
