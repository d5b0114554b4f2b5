"""LlamaIndex's own indexes, pipelines, retrievers and query engines on models of asyncembed."""

import asyncio
import pickle
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import anyio
import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from asyncembed import SparseTextEmbedding, TextCrossEncoder, TextEmbedding, WorkerPool, sync
from asyncembed.catalogue.spec import Family, ModelSpec
from asyncembed.errors import InputError, OptionError, StateError, UsageError
from asyncembed.integrations.llama_index import AsyncembedEmbedding, AsyncembedRerank, AsyncembedSparseEmbedding
from asyncembed.testing import Fakes, fake_model, fake_models
from tests.support import snippets
from tests.support.waiting import until

pytestmark = pytest.mark.slow  # it takes seconds to import LlamaIndex

README = Path(__file__).parents[2] / "README.md"
DIM = 8
PROMPTS = {"query": "query: ", "document": "passage: "}
TEXTS = ["the cat sat on a mat", "backpressure slows a source", "rain in the mountains", "a mat for cats"]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """LlamaIndex is asyncio's."""
    return "asyncio"


@pytest.fixture
def fakes() -> Iterator[Fakes]:
    """Models by name are fakes."""
    with fake_models(dim=DIM) as fakes:
        yield fakes


def spec(family: Family = "text", fakes: Fakes | None = None) -> ModelSpec:
    return fake_model(family, dim=None if family == "cross_encoder" else DIM, prompts=PROMPTS, fakes=fakes)


@pytest.fixture
async def opened() -> AsyncGenerator[TextEmbedding[Any]]:
    async with TextEmbedding(spec()) as model:
        yield model


def nodes(texts: list[str] | None = None) -> list[TextNode]:
    return [TextNode(text=text, id_=str(i)) for i, text in enumerate(TEXTS if texts is None else texts)]


def texts_of(found: list[NodeWithScore]) -> list[str]:
    return [node.node.get_content() for node in found]


async def vectors_of(model: TextEmbedding[Any], texts: list[str] = TEXTS) -> list[list[float]]:
    lists: list[list[float]] = (await model.embed_documents(texts)).tolist()
    return lists


def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return anyio.to_thread.run_sync(function, *arguments)


# ---------------------------------------------------------------- the six methods


async def test_queries_and_texts_have_their_own_prompts(opened: TextEmbedding[Any]) -> None:
    embedding = AsyncembedEmbedding(opened)
    query, passage = (await opened.embed_query("cats")).tolist(), (await vectors_of(opened, ["cats"]))[0]
    assert query != passage
    assert await embedding.aget_query_embedding("cats") == query
    assert await embedding.aget_text_embedding("cats") == passage
    assert await embedding.aget_text_embedding_batch(["cats", "cats"]) == [passage, passage]


async def test_a_thread_gets_what_a_coroutine_gets(opened: TextEmbedding[Any]) -> None:
    embedding = AsyncembedEmbedding(opened)
    assert await in_thread(embedding.get_query_embedding, "cats") == await embedding.aget_query_embedding("cats")
    assert await in_thread(embedding.get_text_embedding, "cats") == await embedding.aget_text_embedding("cats")
    assert await in_thread(embedding.get_text_embedding_batch, TEXTS) == await vectors_of(opened)


async def test_embeddings_are_lists_of_floats(opened: TextEmbedding[Any]) -> None:
    embedding = AsyncembedEmbedding(opened)
    batch = await embedding.aget_text_embedding_batch(TEXTS)
    for vector in [*batch, await embedding.aget_query_embedding("x"), await embedding.aget_text_embedding("x")]:
        assert type(vector) is list
        assert len(vector) == DIM
        assert {type(number) for number in vector} == {float}


async def test_no_texts_have_no_embeddings(opened: TextEmbedding[Any]) -> None:
    embedding = AsyncembedEmbedding(opened)
    assert await embedding.aget_text_embedding_batch([]) == []
    assert await embedding._aget_text_embeddings([]) == []
    assert await in_thread(embedding._get_text_embeddings, []) == []


async def test_many_texts_come_in_order(opened: TextEmbedding[Any]) -> None:
    texts = [f"text {i} " * (i % 7 + 1) for i in range(700)]
    embedding = AsyncembedEmbedding(opened)
    assert embedding.embed_batch_size == 256
    assert await embedding.aget_text_embedding_batch(texts) == await vectors_of(opened, texts)


@pytest.mark.parametrize("kind", [AsyncembedEmbedding, AsyncembedSparseEmbedding])
def test_a_bare_text_is_one_text_and_what_holds_no_texts_is_refused(kind: type[Any], fakes: Fakes) -> None:
    """LlamaIndex itself would take a `str` apart into characters, and a dict into its keys."""
    embedding = kind("Qdrant/bm25" if kind is AsyncembedSparseEmbedding else "BAAI/bge-small-en-v1.5", workers=0)
    query, passage = embedding.get_query_embedding("two words"), embedding.get_text_embedding("two words")
    assert embedding.get_text_embedding_batch("two words") == [passage]
    assert asyncio.run(embedding.aget_text_embedding_batch("two words")) == [passage]
    assert embedding.get_text_embedding_batch(text for text in ["two words", "two words"]) == [passage, passage]
    assert embedding.get_agg_embedding_from_queries("two words") == query
    assert asyncio.run(embedding.aget_agg_embedding_from_queries("two words")) == query
    for wrong in ({"a": "b"}, b"ab", None):
        for refused in (embedding.get_text_embedding_batch, embedding.get_agg_embedding_from_queries):
            with pytest.raises(InputError, match="the source"):
                refused(wrong)
        for awaited in (embedding.aget_text_embedding_batch, embedding.aget_agg_embedding_from_queries):
            with pytest.raises(InputError, match="the source"):
                asyncio.run(awaited(wrong))


@pytest.mark.parametrize("kind", [AsyncembedEmbedding, AsyncembedSparseEmbedding])
def test_a_text_that_fails_has_its_number_among_all_of_a_call(kind: type[Any], fakes: Fakes) -> None:
    """And not that in what LlamaIndex hands over at once; also where it knows some from its cache."""
    name = "Qdrant/bm25" if kind is AsyncembedSparseEmbedding else "BAAI/bge-small-en-v1.5"
    embedding = kind(name, workers=0, embed_batch_size=2)
    if kind is AsyncembedEmbedding:
        embedding.embeddings_cache = SimpleKVStore()
        embedding.get_text_embedding_batch(["a", "d"])
    fakes.failures["rotten"] = InputError("refused")
    texts = ["a", "b", "c", "d", "e", "rotten"]
    with pytest.raises(InputError, match="input 5: refused"):
        embedding.get_text_embedding_batch(texts)
    with pytest.raises(InputError, match="input 5: refused"):
        asyncio.run(embedding.aget_text_embedding_batch(texts))


def test_a_name_is_opened_with_the_first_call(fakes: Fakes) -> None:
    embedding = AsyncembedEmbedding("BAAI/bge-base-en-v1.5", prompts={"query": "q: "}, workers=0)
    assert embedding.model_name == "BAAI/bge-base-en-v1.5"
    with sync.TextEmbedding("BAAI/bge-base-en-v1.5", prompts={"query": "q: "}, workers=0) as model:
        assert embedding.get_query_embedding("cats") == model.embed_query("cats").tolist()
        assert model.stats().items == 2, "one engine for both"


def test_without_a_model_it_is_the_default_one(fakes: Fakes) -> None:
    assert AsyncembedEmbedding().model_name == "BAAI/bge-small-en-v1.5"
    assert len(AsyncembedEmbedding(model_name="BAAI/bge-base-en-v1.5").get_text_embedding("x")) == 768


def test_a_model_of_the_synchronous_face_will_do() -> None:
    with sync.TextEmbedding(spec()) as model:
        embedding = AsyncembedEmbedding(model)
        assert embedding.get_text_embedding_batch(TEXTS) == model.embed_documents(TEXTS).tolist()
        assert asyncio.run(embedding.aget_text_embedding_batch(TEXTS)) == model.embed_documents(TEXTS).tolist()


@pytest.mark.parametrize("kind", [AsyncembedEmbedding, AsyncembedSparseEmbedding, AsyncembedRerank])
def test_what_is_no_model_or_no_keyword_is_refused(kind: type[Any]) -> None:
    with pytest.raises(OptionError, match="model= takes a"):
        kind(7)
    with pytest.raises(OptionError, match="worker_count"):
        kind("Qdrant/bm25", worker_count=2)
    family: Family = "sparse" if kind is AsyncembedEmbedding else "text"
    other = SparseTextEmbedding(spec(family)) if family == "sparse" else TextEmbedding(spec(family))
    with pytest.raises(OptionError, match="model= takes a"):
        kind(other)
    if kind is not AsyncembedEmbedding:
        with pytest.raises(OptionError, match="model= takes a"):
            kind()


# ---------------------------------------------------------------- loops and threads


async def ticks_during(call: Callable[[], Any], fakes: Fakes, release_after: int) -> tuple[int, Any]:
    """How often the loop came round during a call whose batch ends only once it did so often; and its result."""
    count, done, result = 0, anyio.Event(), None

    async def run() -> None:
        nonlocal result
        result = await call()
        done.set()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        while not done.is_set():
            count += 1
            if count == release_after:
                fakes.seconds = 0.0
            await anyio.sleep(0.001)
    return count, result


@pytest.mark.parametrize(
    "call",
    [
        lambda embedding: embedding.aget_query_embedding("cats"),
        lambda embedding: embedding.aget_text_embedding("cats"),
        lambda embedding: embedding.aget_text_embedding_batch(TEXTS),
        lambda embedding: embedding.acall(nodes()),
    ],
)
async def test_the_loop_goes_on_while_a_slow_worker_computes(call: Callable[[AsyncembedEmbedding], Any]) -> None:
    # The batch takes an hour, unless the loop goes on: a call that blocks it never comes back.
    slow = Fakes(dim=DIM, seconds=3600)
    async with TextEmbedding(fake_model(fakes=slow)) as model:
        count, _ = await ticks_during(lambda: call(AsyncembedEmbedding(model)), slow, release_after=20)
    assert count >= 20


async def test_the_loop_goes_on_with_a_model_given_by_name(fakes: Fakes) -> None:
    fakes.seconds = 3600
    embedding = AsyncembedEmbedding("BAAI/bge-small-en-v1.5")
    count, result = await ticks_during(lambda: embedding.aget_text_embedding_batch(TEXTS), fakes, release_after=20)
    assert count >= 20
    assert len(result) == len(TEXTS)


async def test_concurrent_queries_are_batched_together(opened: TextEmbedding[Any]) -> None:
    embedding = AsyncembedEmbedding(opened)
    before = opened.stats()
    await asyncio.gather(*(embedding.aget_query_embedding(f"query {i}") for i in range(64)))
    after = opened.stats()
    assert after.items - before.items == 64
    assert after.batches - before.batches < 32


@pytest.mark.parametrize("method", ["aget_query_embedding", "aget_text_embedding", "aget_text_embedding_batch"])
async def test_a_cancelled_call_withdraws_its_texts(method: str) -> None:
    slow = Fakes(dim=DIM, seconds=3600)
    async with TextEmbedding(fake_model(fakes=slow), max_batch_tokens=64) as model:
        embedding = AsyncembedEmbedding(model)
        argument = [f"text {i} of many" * 3 for i in range(600)] if method.endswith("batch") else "cats"
        blocker = asyncio.create_task(model.embed_query("first"))
        await until(lambda: model.stats().in_flight > 0)
        call = asyncio.create_task(getattr(embedding, method)(argument))
        await until(lambda: model.stats().queued > 0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: model.stats().queued == 0)
        slow.seconds = 0.0
        await blocker
        assert model.stats().items == 1


async def test_a_synchronous_call_in_a_coroutine_warns_once(fakes: Fakes) -> None:
    embedding = AsyncembedEmbedding("BAAI/bge-small-en-v1.5")
    with pytest.warns(RuntimeWarning, match="await aget_text_embedding"):
        vector = embedding.get_text_embedding("cats")
    assert embedding.get_text_embedding("cats") == vector  # a warning would be an error
    assert embedding.get_text_embedding_batch(["cats"]) == [vector]
    embedding.get_query_embedding("cats")


async def test_a_synchronous_call_on_the_models_own_loop_says_what_to_await(opened: TextEmbedding[Any]) -> None:
    embedding = AsyncembedEmbedding(opened)
    with pytest.raises(UsageError, match="await aget_query_embedding"):
        embedding.get_query_embedding("cats")
    with pytest.raises(UsageError, match="await aget_text_embedding_batch"):
        VectorStoreIndex(nodes(), embed_model=embedding)
    index = VectorStoreIndex([], embed_model=embedding)
    await index.ainsert_nodes(nodes())
    with pytest.raises(UsageError, match="await aget_query_embedding"):
        index.as_retriever().retrieve("cats")


async def test_another_loop_in_another_thread_may_await_it(opened: TextEmbedding[Any]) -> None:
    embedding = AsyncembedEmbedding(opened)
    there = await in_thread(lambda: asyncio.run(embedding.aget_text_embedding_batch(TEXTS)))
    assert there == await vectors_of(opened)


async def test_errors_are_those_of_the_model(opened: TextEmbedding[Any]) -> None:
    fakes = Fakes(dim=DIM, failures={"bad": InputError("refused")})
    async with TextEmbedding(fake_model(fakes=fakes)) as model:
        embedding = AsyncembedEmbedding(model)
        with pytest.raises(InputError) as caught:
            await embedding.aget_text_embedding_batch(["good", "bad"])
        assert caught.value.index == 1
    with pytest.raises(StateError):
        await embedding.aget_query_embedding("cats")


# ---------------------------------------------------------------- indexes, pipelines, retrievers


async def test_an_index_is_filled_and_asked_in_coroutines(opened: TextEmbedding[Any]) -> None:
    index = VectorStoreIndex([], embed_model=AsyncembedEmbedding(opened))
    await index.ainsert_nodes(nodes())
    found = await index.as_retriever(similarity_top_k=2).aretrieve("cats and a mat")
    matrix, query = await opened.embed_documents(TEXTS), await opened.embed_query("cats and a mat")
    best = (matrix @ query).argsort()[::-1][:2]
    assert texts_of(found) == [TEXTS[position] for position in best]
    assert found[0].score == pytest.approx(float((matrix @ query).max()), abs=1e-6)


@pytest.mark.parametrize("use_async", [False, True])
def test_an_index_is_filled_and_asked_without_a_loop(fakes: Fakes, use_async: bool) -> None:
    embedding = AsyncembedEmbedding("BAAI/bge-small-en-v1.5")
    index = VectorStoreIndex.from_documents(
        [Document(text=text) for text in TEXTS], embed_model=embedding, use_async=use_async
    )
    (found,) = index.as_retriever(similarity_top_k=1).retrieve(TEXTS[2])
    assert found.node.get_content() == TEXTS[2]


async def test_an_index_is_filled_in_a_thread_of_the_models_loop(opened: TextEmbedding[Any]) -> None:
    index = await in_thread(lambda: VectorStoreIndex(nodes(), embed_model=AsyncembedEmbedding(opened)))
    (found,) = await index.as_retriever(similarity_top_k=1).aretrieve(TEXTS[1])
    assert found.node.get_content() == TEXTS[1]


async def test_a_query_engine_without_an_llm_retrieves_and_reranks(opened: TextEmbedding[Any]) -> None:
    async with TextCrossEncoder(spec("cross_encoder")) as reranker:
        index = VectorStoreIndex([], embed_model=AsyncembedEmbedding(opened))
        await index.ainsert_nodes(nodes())
        engine = RetrieverQueryEngine(
            index.as_retriever(similarity_top_k=4),
            NoText(llm=MockLLM()),
            node_postprocessors=[AsyncembedRerank(reranker, top_n=2)],
        )
        answer = await engine.aquery("cats on a mat")
        ranked = await reranker.rank("cats on a mat", TEXTS, 2)
    assert [(node.node.get_content(), node.score) for node in answer.source_nodes] == [
        (TEXTS[position], score) for position, score in ranked
    ]


async def test_a_pipeline_runs_in_a_coroutine(opened: TextEmbedding[Any]) -> None:
    splitter = SentenceSplitter(chunk_size=64, chunk_overlap=0)
    pipeline = IngestionPipeline(transformations=[splitter, AsyncembedEmbedding(opened)])
    done = await pipeline.arun(documents=[Document(text=text) for text in TEXTS])
    assert [node.embedding for node in done] == await vectors_of(opened)


def test_a_pipeline_runs_without_a_loop(fakes: Fakes) -> None:
    pipeline = IngestionPipeline(transformations=[AsyncembedEmbedding("BAAI/bge-small-en-v1.5")])
    done = pipeline.run(nodes=nodes())
    with sync.TextEmbedding("BAAI/bge-small-en-v1.5") as model:
        assert [node.embedding for node in done] == model.embed_documents(TEXTS).tolist()


@pytest.mark.timeout(120)  # its processes import LlamaIndex
@pytest.mark.parametrize("run", ["run", "arun"])
def test_a_pipeline_takes_it_into_processes_of_its_own(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCEMBED_FAKE", "1")
    embedding = AsyncembedEmbedding("BAAI/bge-small-en-v1.5", prompts={"document": "passage: "}, workers=0)
    pipeline = IngestionPipeline(transformations=[embedding])
    if run == "run":
        done = pipeline.run(nodes=nodes(), num_workers=2)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads
            done = asyncio.run(pipeline.arun(nodes=nodes(), num_workers=2))
    assert [node.embedding for node in done] == embedding.get_text_embedding_batch(TEXTS)


async def test_the_readmes_snippet_runs(opened: TextEmbedding[Any]) -> None:
    snippet = snippets.of_integration(README.read_text(encoding="utf-8"), "llama_index")
    index = eval(snippet, globals() | {"model": opened})
    await index.ainsert_nodes(nodes())
    assert len(await index.as_retriever(similarity_top_k=3).aretrieve("cats")) == 3


# ---------------------------------------------------------------- as configuration


def test_a_pickle_is_the_configuration(fakes: Fakes) -> None:
    embedding = AsyncembedEmbedding(
        "BAAI/bge-small-en-v1.5", prompts=PROMPTS, embed_batch_size=7, num_workers=3, callback_manager=CallbackManager()
    )
    embedding.get_query_embedding("cats")
    twin = pickle.loads(pickle.dumps(embedding))
    assert (twin.model_name, twin.embed_batch_size, twin.num_workers) == ("BAAI/bge-small-en-v1.5", 7, 3)
    assert twin.get_query_embedding("cats") == embedding.get_query_embedding("cats")


async def test_an_open_model_pickles_as_what_it_was_made_of(opened: TextEmbedding[Any]) -> None:
    embedding = AsyncembedEmbedding(opened)
    twin = pickle.loads(pickle.dumps(embedding))
    assert await twin.aget_query_embedding("cats") == await embedding.aget_query_embedding("cats")
    assert opened.stats().items == 1, "the twin has an engine of its own"


async def test_a_deep_copy_has_the_same_model(opened: TextEmbedding[Any]) -> None:
    twin = deepcopy(AsyncembedEmbedding(opened))
    await twin.aget_query_embedding("cats")
    assert opened.stats().items == 1


def test_a_dict_is_the_configuration(fakes: Fakes) -> None:
    embedding = AsyncembedEmbedding("BAAI/bge-small-en-v1.5", prompts=PROMPTS, embed_batch_size=7)
    twin = AsyncembedEmbedding.from_json(embedding.to_json())
    assert twin.to_dict() == embedding.to_dict()
    assert twin.embed_batch_size == 7
    assert twin.get_query_embedding("cats") == embedding.get_query_embedding("cats")


def test_a_dict_cannot_hold_a_model_that_was_handed_over() -> None:
    model = TextEmbedding(spec())
    data = AsyncembedEmbedding(model).to_dict()
    with pytest.raises(OptionError, match="from_dict"):
        AsyncembedEmbedding.from_dict(data)
    assert AsyncembedEmbedding.from_dict(data, model=model).to_dict() == data


def test_what_a_pipeline_has_cached_is_not_taken_for_another_model() -> None:
    def key(model: TextEmbedding[Any]) -> str:
        return get_transformation_hash(nodes(), AsyncembedEmbedding(model))

    plain, cut = TextEmbedding("BAAI/bge-small-en-v1.5"), TextEmbedding("BAAI/bge-small-en-v1.5", truncate_dim=64)
    assert key(plain) != key(cut)
    assert key(plain) == key(TextEmbedding("BAAI/bge-small-en-v1.5"))
    pool = WorkerPool(workers=0)
    in_pool = AsyncembedEmbedding(TextEmbedding("BAAI/bge-small-en-v1.5", pool=pool))
    other = AsyncembedEmbedding(TextEmbedding("BAAI/bge-small-en-v1.5", pool=pool, truncate_dim=64))
    assert get_transformation_hash(nodes(), in_pool) == get_transformation_hash(nodes(), in_pool)
    assert get_transformation_hash(nodes(), in_pool) != get_transformation_hash(nodes(), other)


# ---------------------------------------------------------------- what LlamaIndex is told


class Seen(BaseCallbackHandler):
    """The events of a callback manager, as they begin and end."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.events: list[tuple[str, CBEventType, dict[str, Any]]] = []

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **_: Any,
    ) -> str:
        self.events.append(("start", event_type, payload or {}))
        return event_id

    def on_event_end(
        self, event_type: CBEventType, payload: dict[str, Any] | None = None, event_id: str = "", **_: Any
    ) -> None:
        self.events.append(("end", event_type, payload or {}))

    def start_trace(self, trace_id: str | None = None) -> None: ...

    def end_trace(self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None) -> None: ...


class SeenEvents(BaseEventHandler):
    """The events of LlamaIndex's instrumentation."""

    names: list[str]

    def handle(self, event: Any, **_: Any) -> None:
        self.names.append(event.class_name())


@contextmanager
def seen_events() -> Iterator[list[str]]:
    root, handler = get_dispatcher(), SeenEvents(names=[])
    root.add_event_handler(handler)
    try:
        yield handler.names
    finally:
        root.event_handlers.remove(handler)


async def test_each_batch_is_one_event(opened: TextEmbedding[Any]) -> None:
    seen = Seen()
    embedding = AsyncembedEmbedding(opened, embed_batch_size=3, callback_manager=CallbackManager([seen]))
    with seen_events() as names:
        await embedding.aget_text_embedding_batch(TEXTS)
    ends = [payload for kind, name, payload in seen.events if (kind, name) == ("end", CBEventType.EMBEDDING)]
    assert [payload[EventPayload.CHUNKS] for payload in ends] == [TEXTS[:3], TEXTS[3:]]
    assert [vector for payload in ends for vector in payload[EventPayload.EMBEDDINGS]] == await vectors_of(opened)
    assert sorted(names) == ["EmbeddingEndEvent"] * 2 + ["EmbeddingStartEvent"] * 2


async def test_the_callbacks_of_an_index_hear_of_queries(opened: TextEmbedding[Any]) -> None:
    seen = Seen()
    manager = CallbackManager([seen])
    index = VectorStoreIndex(
        [], embed_model=AsyncembedEmbedding(opened, callback_manager=manager), callback_manager=manager
    )
    await index.ainsert_nodes(nodes())
    await index.as_retriever().aretrieve("cats")
    chunks = [payload[EventPayload.CHUNKS] for kind, _, payload in seen.events if EventPayload.CHUNKS in payload]
    assert chunks == [TEXTS, ["cats"]]


async def test_the_cache_of_embeddings_is_asked_first(opened: TextEmbedding[Any]) -> None:
    embedding = AsyncembedEmbedding(opened, embeddings_cache=SimpleKVStore())
    first = await embedding.aget_text_embedding_batch(TEXTS)
    computed = opened.stats().items
    assert await embedding.aget_text_embedding_batch(TEXTS) == first
    assert opened.stats().items == computed


# ---------------------------------------------------------------- sparse


async def test_sparse_embeddings_are_dicts_of_weights() -> None:
    async with SparseTextEmbedding(spec("sparse")) as model:
        embedding = AsyncembedSparseEmbedding(model)
        documents, query = await model.embed_documents(TEXTS), await model.embed_query("cats")
        expected = [dict(zip(one.indices.tolist(), one.values.tolist(), strict=True)) for one in [*documents, query]]
        assert await embedding.aget_text_embedding_batch(TEXTS) == expected[:-1]
        assert await in_thread(embedding.get_text_embedding_batch, TEXTS) == expected[:-1]
        assert await embedding.aget_text_embedding(TEXTS[0]) == expected[0]
        assert await in_thread(embedding.get_text_embedding, TEXTS[0]) == expected[0]
        assert await embedding.aget_query_embedding("cats") == expected[-1]
        found = await in_thread(embedding.get_query_embedding, "cats")
        assert found == expected[-1]
        assert {(type(index), type(weight)) for index, weight in found.items()} == {(int, float)}


def test_a_sparse_embedding_pickles_as_configuration(fakes: Fakes) -> None:
    embedding = AsyncembedSparseEmbedding("Qdrant/bm25", language="german", embed_batch_size=5)
    twin = pickle.loads(pickle.dumps(embedding))
    assert (twin.model_name, twin.embed_batch_size, twin.options) == ("Qdrant/bm25", 5, {"language": "german"})
    assert twin.get_query_embedding("katzen") == embedding.get_query_embedding("katzen")


def test_the_functions_for_the_qdrant_store_give_columns() -> None:
    with sync.SparseTextEmbedding(spec("sparse")) as model:
        embedding = AsyncembedSparseEmbedding(model)
        for function, vectors in [
            (embedding.sparse_doc_fn, model.embed_documents(TEXTS)),
            (embedding.sparse_query_fn, list(model.query_embed(TEXTS))),
        ]:
            indices, values = function(TEXTS)
            assert indices == [vector.indices.tolist() for vector in vectors]
            assert values == [vector.values.tolist() for vector in vectors]
            assert function([]) == ([], [])


# ---------------------------------------------------------------- reranking


async def test_nodes_come_best_first_with_the_rerankers_scores() -> None:
    async with TextCrossEncoder(spec("cross_encoder")) as model:
        given = [NodeWithScore(node=node, score=0.5) for node in nodes()]
        ranked = await model.rank("cats on a mat", TEXTS)
        for reranker in [AsyncembedRerank(model), AsyncembedRerank(model, top_n=2)]:
            expected = [(TEXTS[position], score) for position, score in ranked][: reranker.top_n]
            awaited = await reranker.apostprocess_nodes(given, query_str="cats on a mat")
            blocked = await in_thread(lambda one=reranker: one.postprocess_nodes(given, QueryBundle("cats on a mat")))
            for found in (awaited, blocked):
                assert [(node.node.get_content(), node.score) for node in found] == expected
        assert [node.score for node in given] == [0.5] * 4, "as they came"


async def test_a_reranker_needs_a_query_and_no_nodes() -> None:
    async with TextCrossEncoder(spec("cross_encoder")) as model:
        reranker = AsyncembedRerank(model, top_n=2)
        assert await reranker.apostprocess_nodes([], query_str="cats") == []
        with pytest.raises(ValueError, match="query_str"):
            await reranker.apostprocess_nodes([NodeWithScore(node=nodes()[0])])
        with pytest.raises(UsageError, match="await apostprocess_nodes"):
            reranker.postprocess_nodes([NodeWithScore(node=nodes()[0])], query_str="cats")


async def test_the_loop_goes_on_while_nodes_are_reranked() -> None:
    slow = Fakes(seconds=3600)
    async with TextCrossEncoder(fake_model("cross_encoder", fakes=slow)) as model:
        given = [NodeWithScore(node=node) for node in nodes()]
        reranker = AsyncembedRerank(model)
        count, found = await ticks_during(lambda: reranker.apostprocess_nodes(given, query_str="x"), slow, 20)
    assert count >= 20
    assert len(found) == 4


async def test_reranking_is_told() -> None:
    seen = Seen()
    async with TextCrossEncoder(spec("cross_encoder")) as model:
        reranker = AsyncembedRerank(model, top_n=1, callback_manager=CallbackManager([seen]))
        with seen_events() as names:
            found = await reranker.apostprocess_nodes([NodeWithScore(node=one) for one in nodes()], query_str="cats")
    (_, start, began), (_, end, ended) = seen.events
    assert start == end == CBEventType.RERANKING
    assert (began[EventPayload.QUERY_STR], began[EventPayload.TOP_K]) == ("cats", 1)
    assert ended[EventPayload.NODES] == found
    assert names == ["ReRankStartEvent", "ReRankEndEvent"]


def test_a_reranker_pickles_as_configuration(fakes: Fakes) -> None:
    reranker = AsyncembedRerank("Xenova/ms-marco-MiniLM-L-6-v2", top_n=2, activation="sigmoid")
    given = [NodeWithScore(node=node) for node in nodes()]
    for twin in [pickle.loads(pickle.dumps(reranker)), AsyncembedRerank.from_json(reranker.to_json())]:
        assert twin.top_n == 2
        found = twin.postprocess_nodes(given, query_str="cats")
        assert [node.score for node in found] == [
            node.score for node in reranker.postprocess_nodes(given, query_str="cats")
        ]
