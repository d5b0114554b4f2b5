"""OpenAI's interface, asked by its own client where that is there."""

import base64
from collections.abc import AsyncGenerator, Iterator

import httpx
import numpy as np
import pytest

from asyncembed import TextEmbedding
from asyncembed.testing import fake_models
from tests.support.asgi_servers import serving

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
