"""Sparse embeddings, and dense ones beside them, in LangChain's Qdrant store."""

from pathlib import Path

import anyio
import pytest
from langchain_core.documents import Document
from langchain_qdrant import QdrantVectorStore, RetrievalMode
from langchain_qdrant.sparse_embeddings import SparseVector
from qdrant_client import models

from asyncembed import SparseTextEmbedding, TextEmbedding, sync
from asyncembed.errors import OptionError, UsageError
from asyncembed.integrations.langchain import AsyncembedEmbeddings, AsyncembedSparse
from asyncembed.testing import Fakes, fake_model, fake_models
from tests.support import snippets
from tests.support.sparse_models import BM25
from tests.support.waiting import until

pytestmark = pytest.mark.slow  # the framework takes seconds to import

TEXTS = [
    "a slow consumer slows its producer: that is backpressure",
    "bread is made of flour",
    "what a producer makes, a consumer takes",
]
DOCUMENTS = [Document(text, metadata={"number": number}) for number, text in enumerate(TEXTS)]
DENSE = fake_model(dim=8)
SPARSE = fake_model("sparse")
STOP_WORDS = ["a", "is", "of", "that", "what"]


def bm25() -> AsyncembedSparse:
    return AsyncembedSparse(BM25, stopwords=STOP_WORDS, workers=0)


def hybrid(dense: AsyncembedEmbeddings, sparse: AsyncembedSparse) -> QdrantVectorStore:
    return QdrantVectorStore.from_documents(
        DOCUMENTS,
        embedding=dense,
        sparse_embedding=sparse,
        retrieval_mode=RetrievalMode.HYBRID,
        sparse_vector_params={"modifier": models.Modifier.IDF},
        location=":memory:",
    )


async def test_documents_and_queries_are_those_of_the_model() -> None:
    async with SparseTextEmbedding(BM25, stopwords=STOP_WORDS, workers=0) as model:
        sparse = AsyncembedSparse(model)
        documents, query = await sparse.aembed_documents(TEXTS), await sparse.aembed_query(TEXTS[1])
        wanted, wanted_query = await model.embed(TEXTS).collect(), await model.embed_query(TEXTS[1])
    assert documents == [SparseVector(indices=[*one.indices], values=[*one.values]) for one in wanted]
    assert query == SparseVector(indices=[*wanted_query.indices], values=[*wanted_query.values])
    assert query != documents[1]
    assert {type(index) for index in query.indices} == {int}
    assert {type(value) for value in documents[0].values} == {float}


def test_a_thread_gets_what_a_coroutine_gets() -> None:
    sparse = bm25()

    async def both() -> tuple[list[SparseVector], SparseVector]:
        return await sparse.aembed_documents(TEXTS), await sparse.aembed_query(TEXTS[1])

    assert (sparse.embed_documents(TEXTS), sparse.embed_query(TEXTS[1])) == anyio.run(both)


async def test_nothing_is_nothing() -> None:
    assert await bm25().aembed_documents([]) == []
    assert await bm25().aembed_query("") == SparseVector(indices=[], values=[])


def test_a_model_for_programs_without_a_loop_is_taken_too() -> None:
    with sync.SparseTextEmbedding(SPARSE) as model:
        assert AsyncembedSparse(model).embed_query(TEXTS[0]) == AsyncembedSparse(SPARSE).embed_query(TEXTS[0])


def test_a_hybrid_store_is_filled_and_searched_by_threads() -> None:
    store = hybrid(AsyncembedEmbeddings(DENSE), bm25())
    found = store.similarity_search("flour", k=1)
    assert [hit.page_content for hit in found] == [TEXTS[1]]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_hybrid_store_is_filled_and_searched_by_coroutines_with_models_of_their_loop() -> None:
    async with TextEmbedding(DENSE) as dense, SparseTextEmbedding(SPARSE) as sparse:
        # The store's constructor embeds in the thread that it is called in.
        store = await anyio.to_thread.run_sync(hybrid, AsyncembedEmbeddings(dense), AsyncembedSparse(sparse))
        await store.aadd_documents([Document("water is wet")])
        found = await store.asimilarity_search("is water wet?", k=1)
        assert [hit.page_content for hit in found] == ["water is wet"]
        assert sparse.stats().items == len(TEXTS) + 2


def test_the_snippet_of_the_readme_answers() -> None:
    snippet = snippets.of_integration((Path(__file__).parents[2] / "README.md").read_text("utf-8"), "langchain_qdrant")
    with fake_models():
        sparse: AsyncembedSparse = eval(snippet)
        assert len(sparse.embed_query("two words").indices) == 2


async def test_cancelling_withdraws_what_waits() -> None:
    fakes = Fakes(seconds=60)
    async with SparseTextEmbedding(fake_model("sparse", fakes=fakes), max_batch_size=1) as model:
        sparse = AsyncembedSparse(model)
        async with anyio.create_task_group() as group:
            group.start_soon(sparse.aembed_documents, TEXTS * 10)
            group.start_soon(sparse.aembed_query, "a query")
            await until(lambda: model.stats().in_flight > 0)
            group.cancel_scope.cancel()
        await until(lambda: model.stats().queued == 0)
        fakes.seconds = 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_call_that_blocks_a_running_loop_warns_once_and_never_waits_for_itself() -> None:
    sparse = bm25()
    with pytest.warns(RuntimeWarning, match="await aembed_query") as caught:
        sparse.embed_query(TEXTS[0])
    sparse.embed_documents(TEXTS)  # again it would be an error here
    assert [warning.filename for warning in caught] == [__file__]
    async with SparseTextEmbedding(SPARSE) as model:
        with pytest.raises(UsageError, match="await aembed_documents"):
            AsyncembedSparse(model).embed_documents(TEXTS)


def test_options_are_those_of_the_class(tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        AsyncembedSparse(BM25, k=-1)
    with pytest.raises(OptionError, match="SparseTextEmbedding"):
        AsyncembedSparse(TextEmbedding(DENSE))  # type: ignore[arg-type]
    assert repr(AsyncembedSparse("a/model")) == "AsyncembedSparse('a/model')"
