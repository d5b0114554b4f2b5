"""huggingface_hub's client, asynchronous and not, against the routes of Text Embeddings Inference."""

from functools import partial

import httpx
import numpy as np
import pytest
from anyio import to_thread
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.support.served_fakes import fakes_of_all_kinds

pytestmark = pytest.mark.slow

TEXTS = ["a text", "another text"]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The client's own."""
    return "asyncio"


@pytest.fixture
def url(all_kinds: httpx.AsyncClient) -> str:
    return str(all_kinds.base_url).rstrip("/")


@pytest.mark.parametrize("path", ["", "/embed"])
async def test_vectors_of_texts_by_the_address_or_the_route(url: str, path: str) -> None:
    async with fakes_of_all_kinds()["text"] as model:
        expected = await model.embed(TEXTS, prompt_name="query").collect()  # type: ignore[attr-defined]
    async with AsyncInferenceClient(model=f"{url}{path}") as client:
        found = await client.feature_extraction(
            TEXTS,  # it sends several, too
            prompt_name="query",
            normalize=True,
            truncate=True,
            truncation_direction="right",
        )
        one = await client.feature_extraction(TEXTS[0], prompt_name="query")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(one, expected[:1], atol=1e-6)


@pytest.mark.parametrize("path", ["", "/similarity"])
async def test_similarities(url: str, path: str) -> None:
    async with AsyncInferenceClient(model=f"{url}{path}") as client:
        near, far = await client.sentence_similarity("one two", other_sentences=["one two", "three"])
    assert near == pytest.approx(1, abs=1e-6)
    assert far < near


async def test_a_refusal_is_its_error_with_the_sentence(url: str) -> None:
    async with AsyncInferenceClient(model=f"{url}/embed") as client:
        with pytest.raises(HfHubHTTPError, match="no prompt is called 'none'"):
            await client.feature_extraction("a text", prompt_name="none")


async def test_the_synchronous_client(url: str) -> None:
    with InferenceClient(model=f"{url}/embed") as client:
        found = await to_thread.run_sync(partial(client.feature_extraction, "a text"))
    assert found.shape == (1, 8)
