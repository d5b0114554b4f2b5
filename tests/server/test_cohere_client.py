"""Cohere's own client, asynchronous and not, against the server."""

import base64
from collections.abc import AsyncGenerator
from functools import partial

import cohere
import httpx
import numpy as np
import pytest
from anyio import to_thread

from tests.support.images import encoded, picture
from tests.support.served_fakes import fakes_of_all_kinds

pytestmark = pytest.mark.slow

TEXTS = ["a text", "another text"]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The client's own."""
    return "asyncio"


@pytest.fixture
async def client(all_kinds: httpx.AsyncClient) -> AsyncGenerator[cohere.AsyncClientV2]:
    client = cohere.AsyncClientV2(api_key="any", base_url=str(all_kinds.base_url).rstrip("/"))
    yield client
    await client._client_wrapper.httpx_client.httpx_client.aclose()


async def test_vectors_of_texts(client: cohere.AsyncClientV2) -> None:
    async with fakes_of_all_kinds()["text"] as model:
        expected = await model.query_embed(TEXTS).collect()  # type: ignore[attr-defined]
    found = await client.embed(
        model="text", input_type="search_query", texts=TEXTS, embedding_types=["float", "base64", "ubinary"]
    )
    assert found.embeddings.float_ is not None
    assert found.embeddings.base64 is not None
    assert found.embeddings.ubinary is not None
    np.testing.assert_allclose(found.embeddings.float_, expected, atol=1e-6)
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(found.embeddings.base64[1]), "<f4"), expected[1])
    assert found.meta is not None
    assert found.meta.billed_units is not None
    assert found.meta.billed_units.input_tokens == 6, "with those of the prompt"
    assert found.texts == TEXTS


async def test_vectors_of_images(client: cohere.AsyncClientV2) -> None:
    uri = "data:image/png;base64," + base64.b64encode(encoded(picture(9, 9), "PNG")).decode()
    found = await client.embed(model="image", input_type="image", images=[uri])
    assert found.embeddings.float_ is not None
    assert np.array(found.embeddings.float_).shape == (1, 6)


async def test_ranks(client: cohere.AsyncClientV2) -> None:
    found = await client.rerank(model="cross_encoder", query="word", documents=["nothing", "word"], top_n=1)
    assert [one.index for one in found.results] == [1]
    assert 0 < found.results[0].relevance_score < 1


async def test_refusals_are_the_errors_of_the_client(client: cohere.AsyncClientV2) -> None:
    with pytest.raises(cohere.NotFoundError, match="no model 'none' is served here"):
        await client.embed(model="none", input_type="search_query", texts=TEXTS)
    with pytest.raises(cohere.BadRequestError, match="nothing to compute"):
        await client.rerank(model="cross_encoder", query="word", documents=[])


async def test_the_synchronous_client_and_its_older_interface_for_ranks(all_kinds: httpx.AsyncClient) -> None:
    url = str(all_kinds.base_url).rstrip("/")
    newer, older = cohere.ClientV2(api_key="any", base_url=url), cohere.Client(api_key="any", base_url=url)
    for client in (newer, older):
        rerank = partial(client.rerank, model="cross_encoder", query="word", documents=["nothing", "word"], top_n=1)
        found = await to_thread.run_sync(rerank)
        assert [one.index for one in found.results] == [1]
        client._client_wrapper.httpx_client.httpx_client.close()
