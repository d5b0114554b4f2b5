"""OpenAI's interface, asked by its own client where that is there."""

import base64
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tokenizers import Tokenizer

from asyncembed import TextEmbedding
from asyncembed.testing import fake_models
from tests.support.asgi_servers import serving
from tests.support.images import encoded, picture
from tests.support.models import write_self_describing_model
from tests.support.served_fakes import fakes_of_all_kinds

pytestmark = pytest.mark.slow

MODEL = "BAAI/bge-small-en-v1.5"


@pytest.fixture
async def client() -> AsyncGenerator[httpx.AsyncClient]:
    from asyncembed.server import create_app

    with fake_models():
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
    for word in ("dimensions", "output_dimension"):  # as Voyage calls them
        answer = await client.post("/v1/embeddings", json={"input": "a text", word: 100})
        vector = np.array(answer.json()["data"][0]["embedding"])
        assert vector.shape == (100,)
        assert np.linalg.norm(vector) == pytest.approx(1)


@pytest.mark.parametrize("asked", [{"output_dtype": "int8"}, {"embedding_type": "binary"}, {"late_chunking": True}])
async def test_other_vectors_than_there_are_here_are_refused(client: httpx.AsyncClient, asked: dict[str, Any]) -> None:
    """What clients of others ask for by fields that OpenAI does not have."""
    answer = await client.post("/v1/embeddings", json={"input": "a text", **asked})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, *asked)


async def test_token_ids_stand_for_the_texts_that_they_are_of(tmp_path: Path) -> None:
    from asyncembed.server import create_app

    directory = write_self_describing_model(tmp_path)
    ids = Tokenizer.from_file(str(directory / "tokenizer.json")).encode("the day").ids
    async with serving(create_app({"own": directory}, workers=0)) as client:

        async def vectors(asked: object) -> list[list[float]]:
            answer = await client.post("/v1/embeddings", json={"input": asked})
            return [one["embedding"] for one in answer.json()["data"]]

        as_text = await vectors("the day")
        assert await vectors(ids) == as_text
        assert await vectors([ids, ids]) == [*as_text, *as_text]
        refused: list[object] = [[99_999_999], [-1], ["the day", 1], [[]], [["the"]]]
        for wrong in refused:
            answer = await client.post("/v1/embeddings", json={"input": wrong})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input"), answer.text


async def test_a_model_of_late_interaction_answers_a_list_of_vectors(all_kinds: httpx.AsyncClient) -> None:
    asked = {"input": ["two words", "one"], "model": "late_interaction", "encoding_format": "base64"}
    answer = (await all_kinds.post("/v1/embeddings", json=asked)).json()
    for one in answer["data"]:
        assert np.array(one["embedding"]).ndim == 2
    answer = await all_kinds.post("/v1/embeddings", json={**asked, "dimensions": 2})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "dimensions")


async def test_a_query_can_be_told_from_a_passage(all_kinds: httpx.AsyncClient) -> None:
    found = []
    for kind in ("query", "passage", None):
        answer = await all_kinds.post("/v1/embeddings", json={"input": "a text", "input_type": kind})
        found.append(answer.json()["data"][0]["embedding"])
    assert found[0] != found[1]


async def test_many_vectors_are_as_right_as_one(client: httpx.AsyncClient) -> None:
    texts = [f"the text number {number}" for number in range(500)]
    answer = await client.post("/v1/embeddings", json={"input": texts})
    data = answer.json()["data"]
    assert [one["index"] for one in data] == list(range(500))
    alone = await client.post("/v1/embeddings", json={"input": texts[499]})
    np.testing.assert_allclose(data[499]["embedding"], alone.json()["data"][0]["embedding"], atol=1e-6)


# ---------------------------------------------------------------- what others have added to it


def closed(name: str) -> Any:
    return fakes_of_all_kinds()[name]


async def vectors_of(client: httpx.AsyncClient, **body: Any) -> Any:
    answer = await client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    return [one["embedding"] for one in answer.json()["data"]]


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


async def test_the_version_may_be_left_out_as_infinity_does_it(all_kinds: httpx.AsyncClient) -> None:
    for method, path in (("GET", "/models"), ("POST", "/embeddings")):
        asked = {"input": "a"} if method == "POST" else None
        found = [await all_kinds.request(method, f"{prefix}{path}", json=asked) for prefix in ("", "/v1")]
        assert found[0].json() == found[1].json()


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/embeddings", {"input": "a", "input_type": "text"}, "'query', 'document', 'passage'"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "'float', 'base64'"),
        ("/v2/embed", {"texts": ["a"], "input_type": "text"}, "'search_document', 'search_query'"),
    ],
)
async def test_a_word_that_a_field_does_not_know_is_answered_with_those_that_it_knows(
    all_kinds: httpx.AsyncClient, path: str, body: dict[str, Any], said: str
) -> None:
    answer = await all_kinds.post(path, json=body)
    assert answer.status_code == 400
    assert said in answer.text


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/embeddings", {"input": "a"}, "dimensions"),
        ("/v1/embeddings", {"input": ["a", "b"]}, "dimensions"),
        ("/embed", {"inputs": "a"}, "dimensions"),
        ("/v2/embed", {"texts": ["a"]}, "output_dimension"),
    ],
)
async def test_more_dimensions_than_the_model_has_are_refused_in_the_word_of_the_dialect(
    all_kinds: httpx.AsyncClient, path: str, body: dict[str, Any], field: str
) -> None:
    answer = await all_kinds.post(path, json={**body, field: 9999})
    assert answer.status_code in (400, 422)
    assert f"{field} is 9999: vectors of this model have" in answer.text
    assert "truncate_dim" not in answer.text
