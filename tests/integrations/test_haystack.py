"""The components in Haystack's real pipelines, sync and async, and alone on both kinds of event loop."""

import asyncio
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from haystack import Document, Pipeline, component
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.core.errors import DeserializationError, SerializationError
from haystack.dataclasses import SparseEmbedding
from haystack.document_stores.in_memory import InMemoryDocumentStore

from asyncembed import SparseTextEmbedding, TextCrossEncoder, TextEmbedding, sync
from asyncembed.errors import InputError, OptionError, StateError, UsageError
from asyncembed.integrations.haystack import (
    AsyncembedDocumentEmbedder,
    AsyncembedRanker,
    AsyncembedSparseDocumentEmbedder,
    AsyncembedSparseTextEmbedder,
    AsyncembedTextEmbedder,
)
from asyncembed.testing import Fakes, fake_model, fake_models
from tests.support.waiting import until

pytestmark = pytest.mark.slow  # the framework takes seconds to import

TEXTS = [
    "a slow consumer slows its producer: that is backpressure",
    "bread is made of flour",
    "what a producer makes, a consumer takes",
    "pressure in the back of the room",
]
QUERY = "what is backpressure?"
TEXT = "BAAI/bge-small-en-v1.5"
SPARSE = "Qdrant/bm25"
RERANKER = "Xenova/ms-marco-MiniLM-L-6-v2"
PROMPTED = fake_model(dim=8, prompts={"query": "query: ", "document": "passage: "})

FIVE: dict[str, tuple[Any, dict[str, Any]]] = {
    "text": (lambda: AsyncembedTextEmbedder(TEXT), {"text": QUERY}),
    "documents": (lambda: AsyncembedDocumentEmbedder(TEXT), {"documents": [Document(content=text) for text in TEXTS]}),
    "sparse text": (lambda: AsyncembedSparseTextEmbedder(SPARSE), {"text": QUERY}),
    "sparse documents": (
        lambda: AsyncembedSparseDocumentEmbedder(SPARSE),
        {"documents": [Document(content=text) for text in TEXTS]},
    ),
    "ranker": (
        lambda: AsyncembedRanker(RERANKER),
        {"query": QUERY, "documents": [Document(content=text) for text in TEXTS]},
    ),
}
every_component = pytest.mark.parametrize("name", FIVE)


@pytest.fixture(autouse=True)
def fakes() -> Iterator[Fakes]:
    with fake_models() as fakes:
        yield fakes


def documents() -> list[Document]:
    return [Document(content=text, meta={"number": number}) for number, text in enumerate(TEXTS)]


# ---------------------------------------------------------------- pipelines


def indexing(store: InMemoryDocumentStore) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("dense", AsyncembedDocumentEmbedder(TEXT))
    pipeline.add_component("sparse", AsyncembedSparseDocumentEmbedder(SPARSE))
    pipeline.add_component("writer", DocumentWriter(store))
    pipeline.connect("dense.documents", "sparse.documents")
    pipeline.connect("sparse.documents", "writer.documents")
    return pipeline


@component
class SparseRetriever:
    """What stores with sparse vectors offer; Haystack's own store has none."""

    def __init__(self, store: InMemoryDocumentStore) -> None:
        self.store = store

    @component.output_types(documents=list[Document])
    def run(self, query_sparse_embedding: SparseEmbedding) -> dict[str, Any]:
        asked = set(query_sparse_embedding.indices)

        def score(document: Document) -> float:
            vector = document.sparse_embedding
            assert vector is not None
            return sum(value for index, value in zip(vector.indices, vector.values, strict=True) if index in asked)

        return {"documents": sorted(self.store.filter_documents(), key=score, reverse=True)[:2]}


def searching(store: InMemoryDocumentStore) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("dense", AsyncembedTextEmbedder(TEXT))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=3))
    pipeline.add_component("ranker", AsyncembedRanker(RERANKER, top_k=2))
    pipeline.add_component("sparse", AsyncembedSparseTextEmbedder(SPARSE))
    pipeline.add_component("sparse_retriever", SparseRetriever(store))
    pipeline.connect("dense.embedding", "retriever.query_embedding")
    pipeline.connect("retriever.documents", "ranker.documents")
    pipeline.connect("sparse.sparse_embedding", "sparse_retriever.query_sparse_embedding")
    return pipeline


ASKED = {"dense": {"text": QUERY}, "ranker": {"query": QUERY}, "sparse": {"text": QUERY}}


def assert_found(result: dict[str, Any]) -> None:
    best, second = result["ranker"]["documents"]
    assert best.content == TEXTS[0]
    assert best.score > second.score
    assert result["sparse_retriever"]["documents"][0].content == TEXTS[0]
    assert result["dense"]["meta"]["model"] == TEXT


def test_a_pipeline_without_a_loop() -> None:
    store = InMemoryDocumentStore()
    given = documents()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = indexing(store).run({"dense": {"documents": given}})
    assert result["writer"] == {"documents_written": 4}
    assert result["dense"]["meta"] == {"model": TEXT, "usage": {"prompt_tokens": 28, "total_tokens": 28}}
    assert all(document.embedding is None for document in given)
    stored = store.filter_documents()
    assert {type(document.embedding) for document in stored} == {list}
    assert {type(number) for document in stored for number in document.embedding or []} == {float}
    pipeline = searching(store)
    assert_found(pipeline.run(ASKED))
    pipeline.close()
    assert_found(pipeline.run(ASKED))
    pipeline.close()


def test_a_pipeline_on_a_loop() -> None:
    async def run() -> None:
        store = InMemoryDocumentStore()
        await indexing(store).run_async({"dense": {"documents": documents()}})
        pipeline = searching(store)
        results = await asyncio.gather(*(pipeline.run_async(ASKED) for _ in range(8)))
        for result in results:
            assert_found(result)
        parts = [part async for part in pipeline.run_async_generator(ASKED)]
        assert {name for part in parts for name in part} >= {"ranker", "sparse_retriever"}
        handle = pipeline.stream(ASKED)
        assert [chunk async for chunk in handle] == [], "nothing here streams chunks"
        assert_found(handle.result)
        await pipeline.close_async()

    asyncio.run(run())


def test_a_pipeline_with_a_model_that_the_program_has_opened() -> None:
    async def run() -> None:
        store = InMemoryDocumentStore()
        async with TextEmbedding(TEXT) as model:
            embedder = AsyncembedDocumentEmbedder(model)
            pipeline = Pipeline()
            pipeline.add_component("embedder", embedder)
            pipeline.add_component("writer", DocumentWriter(store))
            pipeline.connect("embedder.documents", "writer.documents")
            await pipeline.run_async({"embedder": {"documents": documents()}})
            await pipeline.close_async()
            assert model.stats().items == 4, "it is the program's to close"
            await anyio.to_thread.run_sync(embedder.run, documents())
            with pytest.raises(UsageError, match="for ever"):
                embedder.run(documents())

    asyncio.run(run())


def test_a_pipeline_is_written_down_and_read_again() -> None:
    store = InMemoryDocumentStore()
    indexing(store).run({"dense": {"documents": documents()}})
    pipeline = Pipeline()
    for name, (make, _) in FIVE.items():
        pipeline.add_component(name, make())
    written = pipeline.dumps()
    with pytest.raises(DeserializationError, match="allowlist"):
        Pipeline.loads(written)
    again = Pipeline.loads(written, allowed_modules=["asyncembed.*"])
    assert again.dumps() == written
    result = again.run({name: inputs for name, (_, inputs) in FIVE.items()})
    assert result["ranker"]["documents"][0].content == TEXTS[0]
    again.close()


# ---------------------------------------------------------------- each alone


@every_component
async def test_threads_and_coroutines_get_the_same(name: str) -> None:
    make, inputs = FIVE[name]
    embedder = make()
    awaited = await embedder.run_async(**inputs)
    assert await anyio.to_thread.run_sync(lambda: embedder.run(**inputs)) == awaited
    await embedder.close_async()


@every_component
async def test_warming_up_opens_the_engine_once_and_closing_ends_it(name: str) -> None:
    make, inputs = FIVE[name]
    embedder = make()
    for _ in range(2):
        await embedder.warm_up_async()
        await anyio.to_thread.run_sync(embedder.warm_up)
        assert embedder._model.anywhere.stats().items == 0
        await embedder.close_async()
        with pytest.raises(StateError):
            embedder._model.anywhere.stats()
    await embedder.run_async(**inputs)
    assert embedder._model.anywhere.stats().items > 0
    await anyio.to_thread.run_sync(embedder.close)
    with pytest.raises(StateError):
        embedder._model.anywhere.stats()


async def test_a_model_that_cannot_be_opened_is_tried_again(fakes: Fakes) -> None:
    embedder = AsyncembedTextEmbedder(TEXT)
    fakes.opening_error = StateError("not today")
    with pytest.raises(StateError, match="not today"):
        await embedder.warm_up_async()
    fakes.opening_error = None
    await embedder.warm_up_async()
    await embedder.close_async()


@every_component
async def test_the_loop_goes_on_while_a_component_works(name: str, fakes: Fakes) -> None:
    """A worker that is slow for as long as the loop has not had its turns."""
    make, inputs = FIVE[name]
    embedder = make()
    await embedder.warm_up_async()
    fakes.seconds = 0.2
    done = False

    async def work() -> None:
        nonlocal done
        await embedder.run_async(**inputs)
        done = True

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
            assert not done
    await embedder.close_async()


@every_component
async def test_a_run_that_is_cancelled_is_withdrawn(name: str, fakes: Fakes) -> None:
    make, inputs = FIVE[name]
    embedder = make()
    await embedder.warm_up_async()
    fakes.seconds = 60
    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(lambda: embedder.run_async(**inputs))
        await until(lambda: embedder._model.anywhere.stats().in_flight > 0)
        group.cancel_scope.cancel()
    await until(lambda: embedder._model.anywhere.stats().queued == 0)
    fakes.seconds = 0
    await embedder.close_async()


@every_component
async def test_blocking_a_loop_is_warned_of_once(name: str) -> None:
    make, inputs = FIVE[name]
    embedder = make()

    def twice() -> None:
        embedder.run(**inputs)
        embedder.run(**inputs)

    with pytest.warns(RuntimeWarning, match=r"await run_async\(") as caught:
        twice()
    assert [warning.filename for warning in caught] == [__file__]
    await embedder.close_async()


# ---------------------------------------------------------------- texts and vectors


async def test_queries_and_documents_have_their_own_prompts() -> None:
    async with TextEmbedding(PROMPTED) as model:
        query = (await AsyncembedTextEmbedder(model).run_async("a text"))["embedding"]
        document = (await AsyncembedDocumentEmbedder(model).run_async([Document(content="a text")]))["documents"][0]
        assert query == (await model.embed_query("a text")).tolist()
        assert document.embedding == (await model.passage_embed(["a text"]).collect())[0].tolist()
        assert query != document.embedding


async def test_what_of_a_document_is_embedded() -> None:
    document = Document(content="text", meta={"title": "Title", "page": 3, "author": None})
    async with TextEmbedding(fake_model(dim=8)) as model, SparseTextEmbedding(fake_model("sparse")) as sparse:
        expected = await model.embed_query("> Title|3|text <")
        fields = ["title", "author", "page", "editor"]
        settings: dict[str, Any] = {"meta_fields_to_embed": fields, "prefix": "> ", "suffix": " <"}
        for embedder in (
            AsyncembedDocumentEmbedder(model, embedding_separator="|", **settings),
            AsyncembedSparseDocumentEmbedder(sparse, embedding_separator="|", **settings),
        ):
            (embedded,) = (await embedder.run_async([document]))["documents"]
            assert (embedded.id, embedded.content, embedded.meta) == (document.id, document.content, document.meta)
        (embedded,) = (
            await AsyncembedDocumentEmbedder(model, embedding_separator="|", **settings).run_async([document])
        )["documents"]
        assert embedded.embedding == expected.tolist()
        query = await AsyncembedTextEmbedder(model, prefix="> ", suffix=" <").run_async("Title|3|text")
        assert query["embedding"] == expected.tolist()
        (empty,) = (await AsyncembedDocumentEmbedder(model).run_async([Document(content=None)]))["documents"]
        assert len(empty.embedding) == 8
        assert (await AsyncembedDocumentEmbedder(model).run_async([]))["documents"] == []


async def test_a_sparse_vector_has_the_models_entries() -> None:
    async with SparseTextEmbedding(fake_model("sparse")) as model:
        embedding = (await AsyncembedSparseTextEmbedder(model).run_async("full queue"))["sparse_embedding"]
        expected = await model.embed_query("full queue")
    assert isinstance(embedding, SparseEmbedding)
    assert dict(zip(embedding.indices, embedding.values, strict=True)) == expected.as_dict()
    assert {type(one) for one in embedding.indices} == {int}


async def test_the_ranker_gives_the_best_first() -> None:
    given = documents()
    async with TextCrossEncoder(fake_model("cross_encoder")) as model:
        expected = await model.rank(QUERY, TEXTS)
        ranked = (await AsyncembedRanker(model).run_async(QUERY, [*given, given[2]]))["documents"]
        assert [(document.meta["number"], document.score) for document in ranked] == expected
        assert all(document.score is None for document in given)
        for ranker, top_k, count in [
            (AsyncembedRanker(model, top_k=2), None, 2),
            (AsyncembedRanker(model, top_k=2), 3, 3),
            (AsyncembedRanker(model, top_k=None), None, 4),
            (AsyncembedRanker(model, score_threshold=expected[1][1]), None, 2),
        ]:
            assert len((await ranker.run_async(QUERY, given, top_k))["documents"]) == count
        (one,) = (await AsyncembedRanker(model, meta_fields_to_embed=["number"]).run_async(QUERY, given[:1]))[
            "documents"
        ]
        assert one.score == (await model.rank(QUERY, [f"0\n{TEXTS[0]}"]))[0][1]
        assert (await AsyncembedRanker(model).run_async(QUERY, []))["documents"] == []


async def test_a_synchronous_model_serves_too() -> None:
    embedder = AsyncembedTextEmbedder(sync.TextEmbedding(fake_model(dim=8)))
    assert len((await embedder.run_async(QUERY))["embedding"]) == 8


async def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(InputError, match="expected a str, got list"):
        await AsyncembedTextEmbedder(fake_model()).run_async(documents())  # type: ignore[arg-type]
    for wrong in ("text", ["text"], Document(content="text")):
        with pytest.raises(InputError, match="list of Haystack's documents"):
            await AsyncembedDocumentEmbedder(fake_model()).run_async(wrong)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="list of Haystack's documents"):
            await AsyncembedRanker(fake_model("cross_encoder")).run_async(QUERY, wrong)  # type: ignore[arg-type]
    for keywords in ({"prefix": None}, {"meta_fields_to_embed": "title"}, {"progress_bar": 1}, {"no_such": 1}):
        with pytest.raises(OptionError, match=next(iter(keywords))):
            AsyncembedDocumentEmbedder(TEXT, **keywords)
    for keywords in ({"top_k": 0}, {"score_threshold": "0.5"}):
        with pytest.raises(OptionError, match=next(iter(keywords))):
            AsyncembedRanker(RERANKER, **keywords)
    with pytest.raises(OptionError, match="takes a TextEmbedding"):
        AsyncembedTextEmbedder(TextCrossEncoder(RERANKER))  # type: ignore[arg-type]


# ---------------------------------------------------------------- written down


def test_options_are_written_down_with_the_parameters(tmp_path: Path) -> None:
    embedder = AsyncembedDocumentEmbedder(
        TEXT, prefix="> ", meta_fields_to_embed=("title",), keep_alive=60.0, truncate_dim=64, cache_dir=tmp_path
    )
    written = embedder.to_dict()
    assert written == {
        "type": "asyncembed.integrations.haystack.AsyncembedDocumentEmbedder",
        "init_parameters": {
            "model": TEXT,
            "truncate_dim": 64,
            "cache_dir": str(tmp_path),
            "keep_alive": 60.0,
            "prefix": "> ",
            "suffix": "",
            "meta_fields_to_embed": ["title"],
            "embedding_separator": "\n",
            "progress_bar": False,
        },
    }
    again = AsyncembedDocumentEmbedder.from_dict(written)
    assert again.to_dict() == written
    assert len(again.run(documents())["documents"][0].embedding) == 64
    again.close()


def test_what_no_file_can_hold_is_not_written_down() -> None:
    with pytest.raises(UsageError, match="name and options"):
        AsyncembedTextEmbedder(TextEmbedding(TEXT)).to_dict()
    pipeline = Pipeline()
    pipeline.add_component("embedder", AsyncembedTextEmbedder(TEXT, observers=[print]))
    with pytest.raises(SerializationError, match="observers|builtin"):
        pipeline.dumps()
