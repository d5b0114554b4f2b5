"""What frameworks ask of OpenAI, asked of the server: the embeddings of LangChain and of LlamaIndex."""

from functools import partial

import httpx
import numpy as np
import pytest
from anyio import to_thread
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai import OpenAIEmbedding
from pydantic import SecretStr

from tests.support.served_fakes import fakes_of_all_kinds

pytestmark = pytest.mark.slow

TEXTS = ["a text", "another text"]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The frameworks' own."""
    return "asyncio"


@pytest.fixture
def url(all_kinds: httpx.AsyncClient) -> str:
    return f"{str(all_kinds.base_url).rstrip('/')}/v1"


async def test_langchain_embeds_documents_and_a_query(url: str) -> None:
    async with fakes_of_all_kinds()["text"] as model:
        expected = await model.embed(TEXTS).collect()  # type: ignore[attr-defined]
    # Otherwise it sends the token ids of OpenAI's models, which mean something else to others.
    embeddings = OpenAIEmbeddings(
        model="text", base_url=url, api_key=SecretStr("any"), check_embedding_ctx_length=False
    )
    np.testing.assert_allclose(await embeddings.aembed_documents(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(await embeddings.aembed_query(TEXTS[0]), expected[0], atol=1e-6)
    found = await to_thread.run_sync(embeddings.embed_documents, TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    await embeddings.async_client._client.close()
    embeddings.client._client.close()


async def test_llama_index_embeds_documents_and_a_query(url: str) -> None:
    async with fakes_of_all_kinds()["text"] as model:
        expected = await model.embed(TEXTS).collect()  # type: ignore[attr-defined]
    embedding = OpenAIEmbedding(model_name="text", api_base=url, api_key="any")
    np.testing.assert_allclose(await embedding.aget_text_embedding_batch(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(await embedding.aget_query_embedding(TEXTS[0]), expected[0], atol=1e-6)
    found = await to_thread.run_sync(partial(embedding.get_text_embedding_batch, TEXTS))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    await embedding._get_aclient().close()
    embedding._get_client().close()
