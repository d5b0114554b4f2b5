"""Hybrid search in LlamaIndex's Qdrant store, with its own in-memory clients."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from asyncembed import SparseTextEmbedding, TextEmbedding
from asyncembed.integrations.llama_index import AsyncembedEmbedding, AsyncembedSparseEmbedding
from asyncembed.integrations.llama_index_qdrant import AsyncembedQdrantVectorStore
from asyncembed.testing import Fakes, fake_model, fake_models
from tests.support import snippets
from tests.support.sparse_models import BM25
from tests.support.turns import loop_goes_on_during

pytestmark = pytest.mark.slow  # the framework takes seconds to import

TEXTS = ["how cats sleep", "a full queue makes its writer wait", "the way home", "a day at the sea"]
STOP_WORDS = ["a", "at", "how", "the"]
DENSE = fake_model(dim=8)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """LlamaIndex is asyncio's."""
    return "asyncio"


@pytest.fixture
async def bm25() -> AsyncGenerator[SparseTextEmbedding]:
    async with SparseTextEmbedding(BM25, stopwords=STOP_WORDS, workers=0) as model:
        yield model


def store_of(sparse: Any, **clients: Any) -> AsyncembedQdrantVectorStore:
    # Qdrant's store in memory has no index of payloads, and warns of it.
    return AsyncembedQdrantVectorStore("texts", sparse=sparse, index_doc_id=False, **clients)


def nodes() -> list[TextNode]:
    return [TextNode(text=text, id_=f"00000000-0000-0000-0000-{number:012}") for number, text in enumerate(TEXTS)]


async def test_an_open_model_serves_the_stores_coroutines_on_its_own_loop(bm25: SparseTextEmbedding) -> None:
    client = AsyncQdrantClient(":memory:")
    store = store_of(bm25, aclient=client)
    async with TextEmbedding(DENSE) as dense:
        index = VectorStoreIndex.from_vector_store(store, embed_model=AsyncembedEmbedding(dense))
        await index.ainsert_nodes(nodes())
        for mode, count in {"sparse": 1, "hybrid": 2, "default": 2}.items():
            retriever = index.as_retriever(vector_store_query_mode=mode, similarity_top_k=2, sparse_top_k=4)
            found = await retriever.aretrieve("a writer's queue")
            assert len(found) == count
            assert found[0].node.get_content() == TEXTS[1]
    points, _ = await client.scroll("texts", with_vectors=True)
    for text, vector in zip(TEXTS, await bm25.embed_documents(TEXTS), strict=True):
        (kept,) = [cast(Any, point.vector) for point in points if text in str(point.payload)]
        assert dict(zip(kept["text-sparse-new"].indices, kept["text-sparse-new"].values, strict=True)) == pytest.approx(
            dict(zip(vector.indices.tolist(), vector.values.tolist(), strict=True))
        )
    parameters = (await client.get_collection("texts")).config.params.sparse_vectors
    assert parameters is not None
    assert parameters["text-sparse-new"].modifier == models.Modifier.IDF


def test_without_a_loop_it_is_filled_and_searched_by_a_name() -> None:
    with fake_models():
        sparse = AsyncembedSparseEmbedding("prithivida/Splade_PP_en_v1")
        store = store_of(sparse, client=QdrantClient(":memory:"))
        index = VectorStoreIndex(
            nodes(),
            storage_context=StorageContext.from_defaults(vector_store=store),
            embed_model=AsyncembedEmbedding("BAAI/bge-small-en-v1.5"),
        )
        retriever = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=2, sparse_top_k=4)
        assert retriever.retrieve("cats sleep")[0].node.get_content() == TEXTS[0]
        parameters = store.client.get_collection("texts").config.params.sparse_vectors
        assert parameters["text-sparse-new"].modifier is None


async def test_the_loop_goes_on_while_nodes_are_stored_and_searched() -> None:
    fakes = Fakes()
    async with SparseTextEmbedding(fake_model("sparse", fakes=fakes)) as model, TextEmbedding(DENSE) as dense:
        store = store_of(model, aclient=AsyncQdrantClient(":memory:"))
        index = VectorStoreIndex.from_vector_store(store, embed_model=AsyncembedEmbedding(dense))
        retriever = index.as_retriever(vector_store_query_mode="sparse", similarity_top_k=1)
        await loop_goes_on_during(lambda: index.ainsert_nodes(nodes()), fakes)
        (found,) = await loop_goes_on_during(lambda: retriever.aretrieve("cats sleep"), fakes)
    assert found.node.get_content() == TEXTS[0]


async def test_concurrent_searches_have_each_their_own_vectors(bm25: SparseTextEmbedding) -> None:
    store = store_of(bm25, aclient=AsyncQdrantClient(":memory:"))
    async with TextEmbedding(DENSE) as dense:
        index = VectorStoreIndex.from_vector_store(store, embed_model=AsyncembedEmbedding(dense))
        await index.ainsert_nodes(nodes())
        retriever = index.as_retriever(vector_store_query_mode="sparse", similarity_top_k=1)
        found = await asyncio.gather(*map(retriever.aretrieve, TEXTS * 4))
    assert [one.node.get_content() for (one,) in found] == TEXTS * 4


def test_the_snippet_of_the_readme_is_a_store() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    with fake_models():
        names = {"client": AsyncQdrantClient(":memory:")}
        store = eval(snippets.of_integration(readme, "llama_index_qdrant"), globals(), names)
        assert store.enable_hybrid
