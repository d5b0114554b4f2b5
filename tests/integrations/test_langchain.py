"""The models as LangChain uses them: its standard tests, its stores and retrievers, in coroutines and in threads."""

import asyncio
import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import anyio
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from asyncembed import TextCrossEncoder, TextEmbedding, sync
from asyncembed.errors import InputError, OptionError, UsageError
from asyncembed.integrations.langchain import AsyncembedCrossEncoder, AsyncembedEmbeddings, AsyncembedReranker
from asyncembed.testing import Fakes, fake_model
from tests.support import programs, snippets
from tests.support.encoders import ECHO
from tests.support.models import write_self_describing_model
from tests.support.sparse_models import write_reranker
from tests.support.waiting import until

pytestmark = pytest.mark.slow  # the framework takes seconds to import

QUERY = "what is backpressure?"
TEXTS = [
    "a slow consumer slows its producer: that is backpressure",
    "bread is made of flour",
    "what a producer makes, a consumer takes",
    "pressure in the back of the room",
]
DOCUMENTS = [Document(text, id=str(number), metadata={"number": number}) for number, text in enumerate(TEXTS)]
PROMPTED = fake_model(dim=8, prompts={"query": "query: ", "document": "passage: "})
SCORER = fake_model("cross_encoder")


# ---------------------------------------------------------------- LangChain's own tests, on a real small model


class OnASmallModel:
    @pytest.fixture(autouse=True)
    def _model_files(self, tmp_path: Path) -> None:
        self.directory = write_self_describing_model(tmp_path)

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return AsyncembedEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": self.directory, "workers": 1}


class TestLangChainsUnitTests(OnASmallModel, EmbeddingsUnitTests):
    """They hold."""


class TestLangChainsIntegrationTests(OnASmallModel, EmbeddingsIntegrationTests):
    """They hold, on both event loops."""


# ---------------------------------------------------------------- embeddings


async def test_documents_and_queries_have_their_own_prompts_and_are_lists_of_floats() -> None:
    async with TextEmbedding(PROMPTED) as model:
        embeddings = AsyncembedEmbeddings(model)
        passages = await embeddings.aembed_documents(TEXTS)
        query = await embeddings.aembed_query(QUERY)
        wanted = await model.embed(TEXTS, prompt="passage: ").collect()
        (wanted_query,) = await model.embed([QUERY], prompt="query: ").collect()
        assert wanted_query.tolist() != (await model.embed([QUERY]).collect())[0].tolist()
    assert passages == wanted.tolist()
    assert query == wanted_query.tolist()
    assert all(type(number) is float for row in [*passages, query] for number in row)
    assert {type(row) for row in [passages, *passages, query]} == {list}


async def test_no_documents_have_no_vectors() -> None:
    assert await AsyncembedEmbeddings(PROMPTED).aembed_documents([]) == []


def test_a_thread_gets_what_a_coroutine_gets() -> None:
    embeddings = AsyncembedEmbeddings(PROMPTED)

    async def both() -> tuple[list[list[float]], list[float]]:
        return await embeddings.aembed_documents(TEXTS), await embeddings.aembed_query(QUERY)

    assert (embeddings.embed_documents(TEXTS), embeddings.embed_query(QUERY)) == anyio.run(both)
    assert embeddings.embed_documents([]) == []


def test_many_threads_share_one_model() -> None:
    embeddings = AsyncembedEmbeddings(PROMPTED)
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(embeddings.embed_query, TEXTS * 16))
    assert found == [embeddings.embed_query(text) for text in TEXTS] * 16


def test_a_model_for_programs_without_a_loop_is_taken_too() -> None:
    with sync.TextEmbedding(PROMPTED) as model:
        assert AsyncembedEmbeddings(model).embed_query(QUERY) == model.embed_query(QUERY).tolist()


async def test_threads_use_a_model_that_is_open_on_a_loop() -> None:
    async with TextEmbedding(PROMPTED) as model:
        embeddings = AsyncembedEmbeddings(model)
        before = model.stats().items
        found = await anyio.to_thread.run_sync(embeddings.embed_documents, TEXTS)
        assert model.stats().items == before + len(TEXTS)
        assert found == await embeddings.aembed_documents(TEXTS)


async def test_the_event_loop_runs_while_64_queries_wait(gate: Path) -> None:
    async with TextEmbedding(ECHO, workers=0) as model:
        embeddings = AsyncembedEmbeddings(model)
        found: list[list[float]] = []

        async def ask(number: int) -> None:
            found.append(await embeddings.aembed_query(f"wait:{gate} #{number}"))

        async with anyio.create_task_group() as group:
            for number in range(64):
                group.start_soon(ask, number)
            await until(lambda: model.stats().in_flight > 0)
            for _ in range(1000):  # turns of the loop; without them nobody opens the gate
                await anyio.lowlevel.checkpoint()
            assert not found
            gate.touch()
    assert sorted(row[2] for row in found) == list(range(64))


async def test_queries_of_many_tasks_are_computed_together(gate: Path) -> None:
    async with TextEmbedding(ECHO, workers=0) as model:
        embeddings = AsyncembedEmbeddings(model)
        async with anyio.create_task_group() as group:
            group.start_soon(embeddings.aembed_query, f"wait:{gate}")
            await until(lambda: model.stats().in_flight == 1)
            for number in range(32):
                group.start_soon(embeddings.aembed_query, f"#{number}")
            await until(lambda: model.stats().queued_interactive == 32)
            gate.touch()
        assert model.stats().batches < 8


async def test_a_query_goes_before_documents_that_wait(gate: Path) -> None:
    async with TextEmbedding(ECHO, workers=0, max_batch_size=1) as model:
        embeddings = AsyncembedEmbeddings(model)
        async with anyio.create_task_group() as group:
            group.start_soon(embeddings.aembed_documents, [f"wait:{gate}", *(f"#{number}" for number in range(100))])
            await until(lambda: model.stats().queued_bulk > 0)
            group.start_soon(embeddings.aembed_query, "#1")
            await until(lambda: model.stats().queued_interactive == 1)
            gate.touch()


@pytest.mark.parametrize("texts", [1, 50])
async def test_cancelling_withdraws_what_waits(gate: Path, texts: int) -> None:
    async with TextEmbedding(ECHO, workers=0) as model:
        embeddings = AsyncembedEmbeddings(model)
        async with anyio.create_task_group() as group:
            group.start_soon(embeddings.aembed_query, f"wait:{gate}")
            await until(lambda: model.stats().in_flight == 1)
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as inner:
                    inner.start_soon(embeddings.aembed_query, "#1")
                    inner.start_soon(embeddings.aembed_documents, ["#2"] * texts)
                    await until(lambda: model.stats().queued == texts + 1)
                    scope.cancel()
            await until(lambda: model.stats().queued == 0)
            gate.touch()
        assert model.stats().items == 1


def test_a_call_that_is_cancelled_withdraws_from_a_shared_model() -> None:
    fakes = Fakes()
    spec = fake_model(dim=4, fakes=fakes)
    embeddings = AsyncembedEmbeddings(spec, max_batch_size=1)
    with sync.TextEmbedding(spec, max_batch_size=1) as same:
        fakes.seconds = 60

        async def give_up() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(embeddings.aembed_documents, TEXTS * 10)
                await until(lambda: same.stats().queued > 0)
                group.cancel_scope.cancel()
            await until(lambda: same.stats().queued == 0)

        anyio.run(give_up)
        fakes.seconds = 0
        assert len(embeddings.embed_query(QUERY)) == 4
        assert same.stats().items < len(TEXTS * 10)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_call_that_blocks_a_running_loop_warns_once() -> None:
    embeddings = AsyncembedEmbeddings(PROMPTED)
    with pytest.warns(RuntimeWarning, match=r"await aembed_query") as caught:
        embeddings.embed_query(QUERY)
    # Again it would be an error here.
    embeddings.embed_query(QUERY)
    embeddings.embed_documents(TEXTS)
    assert [warning.filename for warning in caught] == [__file__]


async def test_a_call_that_would_wait_for_its_own_loop_names_the_one_to_await() -> None:
    async with TextEmbedding(PROMPTED) as model:
        embeddings = AsyncembedEmbeddings(model)
        with pytest.raises(UsageError, match="await aembed_documents"):
            embeddings.embed_documents(TEXTS)
        with pytest.raises(UsageError, match="await aembed_query"):
            embeddings.embed_query(QUERY)


async def test_an_input_that_is_refused_is_an_error_of_ours() -> None:
    async with TextEmbedding(ECHO, workers=0) as model:
        embeddings = AsyncembedEmbeddings(model)
        with pytest.raises(InputError) as caught:
            await embeddings.aembed_documents(["#1", "bad"])
        with pytest.raises(InputError):
            await embeddings.aembed_query("bad")
    assert caught.value.index == 1


def test_options_are_those_of_the_class() -> None:
    assert len(AsyncembedEmbeddings(PROMPTED, truncate_dim=3).embed_query(QUERY)) == 3
    with pytest.raises(OptionError):
        AsyncembedEmbeddings(PROMPTED, thread=4)  # type: ignore[call-arg]
    with pytest.raises(OptionError):
        AsyncembedEmbeddings(TextEmbedding(PROMPTED), truncate_dim=3)
    with pytest.raises(OptionError, match="TextEmbedding"):
        AsyncembedEmbeddings(TextCrossEncoder(SCORER))  # type: ignore[arg-type]


def test_it_says_what_it_is() -> None:
    assert repr(AsyncembedEmbeddings("BAAI/bge-small-en-v1.5")) == "AsyncembedEmbeddings('BAAI/bge-small-en-v1.5')"
    assert repr(AsyncembedCrossEncoder("a/reranker")) == "AsyncembedCrossEncoder('a/reranker')"
    assert repr(AsyncembedReranker("a/reranker", top_n=2)) == "AsyncembedReranker(model='a/reranker', top_n=2)"


def test_it_is_pickled_as_name_and_options(tmp_path: Path) -> None:
    directory = write_self_describing_model(tmp_path / "model")
    embeddings = AsyncembedEmbeddings(directory, workers=0, truncate_dim=4)
    vector = embeddings.embed_query("the way")
    assert pickle.loads(pickle.dumps(embeddings)).embed_query("the way") == vector
    assert deepcopy(embeddings).embed_query("the way") == vector


# ---------------------------------------------------------------- stores


async def test_a_store_is_filled_and_searched() -> None:
    async with TextEmbedding(PROMPTED) as model:
        store = InMemoryVectorStore(AsyncembedEmbeddings(model))
        assert await store.aadd_documents(DOCUMENTS) == ["0", "1", "2", "3"]
        (hit, score), *_ = await store.asimilarity_search_with_score(TEXTS[1], k=2)
        assert model.stats().items == len(TEXTS) + 1
    assert hit == DOCUMENTS[1]
    assert score < 1  # the prompts differ


def test_a_store_is_filled_and_searched_without_a_loop() -> None:
    store = InMemoryVectorStore.from_documents(DOCUMENTS, AsyncembedEmbeddings(PROMPTED))
    assert store.similarity_search(TEXTS[1], k=1) == [DOCUMENTS[1]]


async def test_the_snippet_of_the_readme_answers() -> None:
    snippet = snippets.of_integration((Path(__file__).parents[2] / "README.md").read_text("utf-8"), "langchain")
    async with TextEmbedding(PROMPTED) as model:
        store: InMemoryVectorStore = eval(snippet, globals(), {"model": model})
        await store.aadd_documents(DOCUMENTS)
        assert await store.asimilarity_search(TEXTS[1], k=1) == [DOCUMENTS[1]]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_retrievers_of_many_tasks_ask_one_model() -> None:
    async with TextEmbedding(PROMPTED) as model:
        store = InMemoryVectorStore(AsyncembedEmbeddings(model))
        await store.aadd_documents(DOCUMENTS)
        found = await asyncio.gather(*(store.as_retriever(search_kwargs={"k": 1}).ainvoke(text) for text in TEXTS))
    assert [hits[0].page_content for hits in found] == TEXTS


# ---------------------------------------------------------------- rerankers


async def best_of(model: TextCrossEncoder, count: int) -> list[tuple[str, float]]:
    return [(TEXTS[position], score) for position, score in await model.rank(QUERY, TEXTS, count)]


async def test_the_best_documents_come_first_with_their_scores() -> None:
    before = deepcopy(DOCUMENTS)
    async with TextCrossEncoder(SCORER) as model:
        kept = await AsyncembedReranker(model, top_n=2).acompress_documents(DOCUMENTS, QUERY)
        wanted = await best_of(model, 2)
    assert [(document.page_content, document.metadata["relevance_score"]) for document in kept] == wanted
    assert all(type(document.metadata["relevance_score"]) is float for document in kept)
    assert [document.metadata["number"] for document in kept] == [int(document.id or "") for document in kept]
    assert before == DOCUMENTS


async def test_three_documents_are_kept_unless_said_otherwise() -> None:
    async with TextCrossEncoder(SCORER) as model:
        assert len(await AsyncembedReranker(model).acompress_documents(DOCUMENTS, QUERY)) == 3
        every = await AsyncembedReranker(model, top_n=None).acompress_documents(tuple(DOCUMENTS), QUERY)
        assert len(every) == 4
        assert await AsyncembedReranker(model).acompress_documents([], QUERY) == []


def test_a_thread_reranks_as_a_coroutine_does(tmp_path: Path) -> None:
    reranker = AsyncembedReranker(write_reranker(tmp_path), top_n=2, workers=1)
    texts = ["the way", "a day", "time and more time", "so long"]
    documents = [Document(text) for text in texts]

    async def rerank() -> Any:
        return await reranker.acompress_documents(documents, "a day")

    assert reranker.compress_documents(documents, "a day") == anyio.run(rerank)
    assert reranker.compress_documents([], "a day") == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_retriever_reranks_what_another_one_finds() -> None:
    async with TextEmbedding(PROMPTED) as model, TextCrossEncoder(SCORER) as scorer:
        store = InMemoryVectorStore(AsyncembedEmbeddings(model))
        await store.aadd_documents(DOCUMENTS)
        retriever = ContextualCompressionRetriever(
            base_compressor=AsyncembedReranker(scorer, top_n=2), base_retriever=store.as_retriever()
        )
        kept = await retriever.ainvoke(QUERY)
        wanted = await best_of(scorer, 2)
        in_thread = await anyio.to_thread.run_sync(retriever.invoke, QUERY)
    assert [(document.page_content, document.metadata["relevance_score"]) for document in kept] == wanted
    assert in_thread == kept


async def test_cancelling_withdraws_documents_that_wait_for_their_scores() -> None:
    fakes = Fakes(seconds=60)
    async with TextCrossEncoder(fake_model("cross_encoder", fakes=fakes), max_batch_size=1) as model:
        reranker = AsyncembedReranker(model)
        async with anyio.create_task_group() as group:
            group.start_soon(reranker.acompress_documents, DOCUMENTS, QUERY)
            await until(lambda: model.stats().in_flight > 0)
            group.cancel_scope.cancel()
        await until(lambda: model.stats().queued == 0)
        fakes.seconds = 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_reranker_that_blocks_a_running_loop_warns_once() -> None:
    reranker = AsyncembedReranker(SCORER)
    with pytest.warns(RuntimeWarning, match="await acompress_documents") as caught:
        reranker.compress_documents(DOCUMENTS, QUERY)
    reranker.compress_documents(DOCUMENTS, QUERY)  # again it would be an error here
    assert [warning.filename for warning in caught] == [__file__]


def test_a_reranker_keeps_at_least_one() -> None:
    with pytest.raises(OptionError, match="top_n"):
        AsyncembedReranker(SCORER, top_n=0)


def test_a_reranker_is_copied_and_pickled(tmp_path: Path) -> None:
    reranker = AsyncembedReranker(write_reranker(tmp_path), top_n=1, workers=0)
    kept = reranker.compress_documents(DOCUMENTS, QUERY)
    assert reranker.model_copy().compress_documents(DOCUMENTS, QUERY) == kept
    assert pickle.loads(pickle.dumps(reranker)).compress_documents(DOCUMENTS, QUERY) == kept


async def test_pairs_are_scored_in_their_order() -> None:
    pairs = [(QUERY, text) for text in TEXTS]
    async with TextCrossEncoder(SCORER) as model:
        scores = await AsyncembedCrossEncoder(model).ascore(pairs)
        wanted = await model.rerank_pairs(pairs).collect()
    assert scores == wanted.tolist()
    in_thread = AsyncembedCrossEncoder(SCORER)
    assert await anyio.to_thread.run_sync(in_thread.score, pairs) == scores
    assert await anyio.to_thread.run_sync(in_thread.score, []) == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_langchains_own_reranker_takes_the_cross_encoder() -> None:
    async with TextCrossEncoder(SCORER) as model:
        reranker = CrossEncoderReranker(model=AsyncembedCrossEncoder(model), top_n=2)
        kept = await reranker.acompress_documents(DOCUMENTS, QUERY)
        wanted = await best_of(model, 2)
    assert [document.page_content for document in kept] == [text for text, _ in wanted]


# ---------------------------------------------------------------- without the framework


@pytest.mark.parametrize(
    ("package", "wanted", "extra"),
    [
        ("langchain_core", "AsyncembedEmbeddings", "langchain"),
        ("langchain_qdrant", "AsyncembedSparse", "langchain-qdrant"),
    ],
)
def test_without_the_package_the_import_names_the_extra(package: str, wanted: str, extra: str, tmp_path: Path) -> None:
    done = programs.run(
        f"import sys\nsys.modules[{package!r}] = None\nfrom asyncembed.integrations.langchain import {wanted}", tmp_path
    )
    assert done.stderr.splitlines()[-1].startswith("ImportError: asyncembed.integrations.langchain")
    assert done.stderr.splitlines()[-1].endswith(f'needs a package: pip install "asyncembed[{extra}]"')


def test_the_name_of_the_sparse_embeddings_alone_takes_their_package(tmp_path: Path) -> None:
    done = programs.run(
        "import sys\nimport asyncembed.integrations.langchain\nprint('langchain_qdrant' in sys.modules)", tmp_path
    )
    assert done.stdout == "False\n", done.stderr
