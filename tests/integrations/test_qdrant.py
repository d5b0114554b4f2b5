"""Points for Qdrant, into its own store in memory, by its own asynchronous client."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from anyio.lowlevel import checkpoint
from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client.models import Distance, Fusion, FusionQuery, Modifier, PointStruct, SparseVector, VectorParams

from asyncembed import (
    Checkpoint,
    HybridTextEmbedding,
    ImageEmbedding,
    LateInteractionTextEmbedding,
    SparseTextEmbedding,
    TextCrossEncoder,
    TextEmbedding,
    WorkerPool,
)
from asyncembed.errors import InputError, OptionError, StateError, UsageError
from asyncembed.integrations.qdrant import Stored, collection_config, points, prefetch, upload
from asyncembed.testing import Fakes, fake_model, fake_models
from tests.support import snippets
from tests.support.encoders import ECHO
from tests.support.images import picture
from tests.support.sparse_models import BM25
from tests.support.turns import loop_goes_on_during
from tests.support.waiting import nothing_left_behind, until

pytestmark = pytest.mark.slow  # the framework is not imported in the fast half

RECORDS = [{"name": f"n{number}", "text": f"word{number} and what all have"} for number in range(150)]


def text_of(record: dict[str, str]) -> str:
    return record["text"]


@asynccontextmanager
async def three(fakes: Fakes | None = None) -> AsyncGenerator[dict[str, Any]]:
    """Fakes of three families in one pool, by the argument that takes them."""
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(WorkerPool(workers=0))
        dense = TextEmbedding(fake_model(dim=8, fakes=fakes, prompts={"passage": "p: ", "query": "q: "}), pool=pool)
        sparse = SparseTextEmbedding(fake_model("sparse"), pool=pool)
        multivector = LateInteractionTextEmbedding(fake_model("late_interaction", dim=4), pool=pool)
        yield {
            "dense": await stack.enter_async_context(dense),
            "sparse": await stack.enter_async_context(sparse),
            "multivector": await stack.enter_async_context(multivector),
        }


@asynccontextmanager
async def store(**models: Any) -> AsyncGenerator[AsyncQdrantClient]:
    client = AsyncQdrantClient(":memory:")
    try:
        await client.create_collection("things", **collection_config(**models))
        yield client
    finally:
        await client.close()


async def made(stream: AsyncIterator[list[PointStruct]]) -> list[PointStruct]:
    return [point async for batch in stream for point in batch]


async def counted(client: AsyncQdrantClient) -> int:
    return (await client.count("things")).count


# ---------------------------------------------------------------- points


@pytest.mark.parametrize("kind", ["list", "generator", "async generator"])
async def test_each_record_comes_once_and_in_order_with_what_each_model_gives_for_it_alone(kind: str) -> None:
    read: list[str] = []

    def generator() -> Iterator[dict[str, str]]:
        for record in RECORDS:
            read.append(record["name"])
            yield record

    async def async_generator() -> AsyncGenerator[dict[str, str]]:
        for record in generator():
            yield record
            await checkpoint()

    source: Any = {"list": RECORDS, "generator": generator(), "async generator": async_generator()}[kind]
    async with three() as models:
        found = await made(points(source, **models, key=text_of))
        if kind != "list":
            assert read == [record["name"] for record in RECORDS]
        assert [point.id for point in found] == list(range(150))
        assert [point.payload for point in found] == RECORDS
        for position in (0, 63, 64, 149):
            vector: Any = found[position].vector
            text = RECORDS[position]["text"]
            assert np.allclose(vector["dense"], (await models["dense"].embed_documents([text]))[0])
            (sparse,) = await models["sparse"].embed_documents([text])
            assert dict(zip(vector["sparse"].indices, vector["sparse"].values, strict=True)) == sparse.as_dict()
            assert np.allclose(vector["multivector"], (await models["multivector"].embed_documents([text]))[0])


async def test_a_hybrid_model_gives_a_point_all_its_vectors_in_one_pass() -> None:
    async with HybridTextEmbedding(fake_model("hybrid", dim=8)) as model, store(hybrid=model) as client:
        config = collection_config(hybrid=model)
        vectors: Any = config["vectors_config"]
        assert vectors["late_interaction"].multivector_config is not None
        assert config["sparse_vectors_config"] is not None
        assert config["sparse_vectors_config"]["sparse"].modifier is None
        assert (await upload(client, "things", points(RECORDS[:40], hybrid=model, key=text_of))).done == 40
        assert model.stats().items == 40
        searches = await prefetch("word7 of all", hybrid=model, limit=5)
        assert [search.using for search in searches] == ["dense", "sparse", "late_interaction"]
        found = await client.query_points("things", prefetch=searches, query=FusionQuery(fusion=Fusion.RRF), limit=1)
        assert found.points[0].id == 7
        with pytest.raises(OptionError, match="for the name 'sparse'"):
            points(RECORDS, hybrid=model, sparse=SparseTextEmbedding("a/b"))
    async with HybridTextEmbedding(fake_model("hybrid", dim=8), outputs=["dense"]) as model:
        assert collection_config(hybrid=model)["sparse_vectors_config"] is None
        assert [search.using for search in await prefetch("word", hybrid=model)] == ["dense"]
    with pytest.raises(OptionError, match="hybrid= is a HybridTextEmbedding"):
        points(RECORDS, hybrid=TextEmbedding("a/b"))  # type: ignore[arg-type]
    with pytest.raises(StateError):
        points(RECORDS, hybrid=HybridTextEmbedding("a/b"))


async def test_the_loop_goes_on_while_a_slow_model_computes() -> None:
    slow = Fakes(dim=8)
    async with three(slow) as models, store(**models) as client:
        stream = points(RECORDS, **models, key=text_of)
        await loop_goes_on_during(lambda: upload(client, "things", stream), slow)
        assert await counted(client) == 150
        assert len(await loop_goes_on_during(lambda: prefetch("word7", **models), slow)) == 3


async def test_a_model_goes_on_while_the_next_one_computes(gate: Path) -> None:
    async with TextEmbedding(fake_model(dim=8)) as first, TextEmbedding(ECHO, workers=0) as second:
        stream = points([f"wait:{gate}", *"abcdefg"], dense={"first": first, "second": second}, batch_size=8)
        async with stream, anyio.create_task_group() as group:
            group.start_soon(anext, stream)
            await until(lambda: second.stats().in_flight == 1 and first.stats().items == 8)
            gate.touch()


async def test_a_store_that_takes_its_time_slows_the_source() -> None:
    read = 0

    async def endless() -> AsyncGenerator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"text {read}"

    async with (
        TextEmbedding(fake_model(dim=8), max_in_flight=20) as dense,
        SparseTextEmbedding(fake_model("sparse"), max_in_flight=20) as sparse,
    ):
        async with points(endless(), dense=dense, sparse=sparse, batch_size=4) as stream:
            await anext(stream)
            await until(lambda: read >= 40)
            await anyio.wait_all_tasks_blocked()
            assert read <= 4 + 2 * 21 + 256  # what was taken, two windows, and what is on its way between the models


async def test_a_batch_is_given_with_what_is_there_when_its_time_has_come() -> None:
    async def trickling() -> AsyncGenerator[str]:
        yield "one"
        yield "two"
        await anyio.sleep_forever()

    async with three() as models, points(trickling(), **models, max_wait=0.01) as stream:
        ids: list[Any] = []
        while len(ids) < 2:
            ids += [point.id for point in await anext(stream)]
        assert ids == [0, 1]
        assert stream.records == 2
        assert stream.progress().read == 2


async def test_the_record_says_its_id_and_payload() -> None:
    async with TextEmbedding(fake_model(dim=8)) as dense:
        by_name = points(
            RECORDS,
            dense={"": dense},
            key=text_of,
            id=lambda record: int(record["name"][1:]) + 1000,
            payload=lambda record: {"called": record["name"]} if record["name"] == "n0" else None,
        )
        found = await made(by_name)
        assert [point.id for point in found] == list(range(1000, 1150))
        assert [found[0].payload, found[1].payload] == [{"called": "n0"}, None]
        assert isinstance(found[0].vector, list)  # the one without a name
        (text,) = await made(points("one text", dense=dense))
        assert text.payload == {"text": "one text"}


async def test_images_are_records_too(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        picture(20, 20, seed=number).save(path)
    (tmp_path / "3.png").write_bytes(b"no image")
    async with ImageEmbedding(fake_model("image", dim=6)) as images:
        stream = points([*paths, tmp_path / "3.png"], dense=images, on_error="skip")
        assert [(point.id, point.payload) for point in await made(stream)] == [(0, None), (1, None), (2, None)]


# ---------------------------------------------------------------- records that fail

BAD = [{"text": "fine"}, {"text": "wrong"}, {"no": "text"}, InputError("torn"), {"text": "fine again"}]


def failing() -> Fakes:
    return Fakes(failures={"wrong": InputError("refused")})


@pytest.mark.parametrize("first_fails", [True, False])
async def test_failed_records_go_to_the_function_in_order_and_the_rest_goes_on(first_fails: bool) -> None:
    aside: list[tuple[object, str]] = []
    async with (
        TextEmbedding(fake_model(dim=8, fakes=failing() if first_fails else None)) as one,
        TextEmbedding(fake_model(dim=8, fakes=None if first_fails else failing())) as other,
        SparseTextEmbedding(fake_model("sparse")) as sparse,
    ):
        stream = points(
            BAD, dense={"one": one, "other": other}, sparse=sparse, key=text_of,
            on_error=lambda record, error: aside.append((record, str(error))),
        )  # fmt: skip
        assert [point.id for point in await made(stream)] == [0, 4]
    assert aside == [
        (BAD[1], "input 1: refused"),
        (BAD[2], "input 2: key= failed: KeyError: 'text'"),
        (BAD[3], "input 3: torn"),
    ]
    done = stream.progress()
    assert (done.read, done.done, done.failed, done.total) == (5, 2, 3, 5)
    assert stream.records == 5


async def test_an_error_comes_behind_the_points_before_it_and_ends_the_stream() -> None:
    async with three(failing()) as models:
        stream = points([{"text": "a"}, {"text": "b"}, *BAD], **models, key=text_of)
        assert [point.id for point in await anext(stream)] == [0, 1, 2]
        assert stream.records == 3
        with pytest.raises(InputError, match="input 3: refused"):
            await anext(stream)
        with pytest.raises((StopAsyncIteration, StateError)):
            await anext(stream)


async def test_an_id_or_payload_that_cannot_be_fails_its_record_alone() -> None:
    aside: list[str] = []
    ids: dict[str, Any] = {"a": None, "b": 7}
    async with TextEmbedding(fake_model(dim=8)) as dense:
        stream = points(
            ["a", "b", "c"],
            dense=dense,
            id=ids.__getitem__,
            on_error=lambda record, error: aside.append(str(error)),
        )
        assert [point.id for point in await made(stream)] == [7]
    assert aside[0].startswith("input 0: the record makes no point: ")
    assert aside[1:] == ["input 2: the record makes no point: KeyError: 'c'"]


async def test_what_the_function_raises_ends_the_stream() -> None:
    """So does a coroutine that it gives, which nothing would wait for."""

    def refuse(record: object, error: Exception) -> None:
        raise LookupError("enough")

    async def put_aside(record: object) -> None:
        """Never begun."""

    for on_error, problem in ((refuse, LookupError), (lambda record, error: put_aside(record), UsageError)):
        async with nothing_left_behind(), three(failing()) as models:
            stream = points(BAD, **models, key=text_of, on_error=on_error)
            with pytest.raises(problem):
                await made(stream)


# ---------------------------------------------------------------- into the store


async def test_an_upload_goes_on_behind_what_its_checkpoint_has(tmp_path: Path) -> None:
    async with three() as models, store(**models) as client:
        async with Checkpoint(tmp_path / "done") as done:
            await upload(client, "things", points(RECORDS[:100], **models, key=text_of), checkpoint=done)
        async with Checkpoint(tmp_path / "done") as done:
            assert done.records == 100
            rest = points(RECORDS, **models, key=text_of, start=done)
            assert (await upload(client, "things", rest, checkpoint=done)).done == 50
        assert await counted(client) == 150


async def test_an_upload_is_refused_that_its_checkpoint_would_misplace(tmp_path: Path) -> None:
    """By points of another source, or of the rest alone, whose numbers would be those of what is stored."""
    async with three() as models, store(**models) as client:

        async def uploaded(records: Any, start: Any) -> None:
            await upload(client, "things", points(records, **models, key=text_of, start=start), checkpoint=done)

        path = tmp_path / "done"
        async with Checkpoint(path, key=text_of) as done:
            await uploaded(RECORDS[:100], done)
        async with Checkpoint(path, key=text_of) as done:
            with pytest.raises(UsageError, match="start behind record 0, the checkpoint is at 100: .* start="):
                await uploaded(done.rest(RECORDS), 0)
        async with Checkpoint(path, key=text_of) as done:
            with pytest.raises(OptionError, match="the first 100 records are not those"):
                await uploaded(RECORDS[1:], done)
        async with Checkpoint(path, key=text_of) as done:
            with pytest.raises(UsageError, match="has a key=, and has not seen the records"):
                await uploaded(RECORDS, done.records)
        assert await counted(client) == 100
        async with Checkpoint(path, key=text_of) as done:
            await uploaded(RECORDS, done)
            assert done.records == 150
        assert await counted(client) == 150


async def test_an_upload_stores_all_and_says_how_far_the_store_is() -> None:
    told: list[Stored] = []

    async def keep(stored: Stored) -> None:
        assert await counted(client) == stored.points
        told.append(stored)

    async with three() as models, store(**models) as client:
        done = await upload(client, "things", points(RECORDS, **models, key=text_of), checkpoint=keep)
        assert await counted(client) == 150
        assert (done.read, done.done, done.failed, done.total) == (150, 150, 0, 150)
        assert done.tokens > 150 * 3
    assert [(stored.records, stored.points, stored.last_id) for stored in told] == [
        (64, 64, 63),
        (128, 128, 127),
        (150, 150, 149),
    ]


async def test_an_upload_that_broke_off_goes_on_where_the_store_was() -> None:
    """With records that have failed before and after."""
    aside: list[object] = []
    told: list[Stored] = []
    sources: list[Any] = [*RECORDS[:10], {"text": "wrong"}, *RECORDS[10:100], {"text": "wrong"}]

    def breaking() -> Iterator[object]:
        yield from sources[:40]
        raise OSError("the disk is gone")

    async with three(failing()) as models, store(**models) as client:

        def run(source: Any, start: int) -> Any:
            stream = points(
                source, **models, key=text_of, batch_size=16, start=start,
                on_error=lambda record, error: aside.append(record),
            )  # fmt: skip
            return upload(client, "things", stream, checkpoint=told.append)

        with pytest.raises(OSError, match="the disk is gone"):
            await run(breaking(), 0)
        assert told[-1].records >= 32
        done = await run(sources, told[-1].records)
        assert await counted(client) == 100
        assert told[-1].records == len(sources) == 102
        assert done.total == done.done + done.failed
        found = await client.retrieve("things", list(range(102)), with_payload=True)
        assert {point.payload["name"] for point in found if point.payload} == {one["name"] for one in RECORDS[:100]}
    assert aside == [{"text": "wrong"}] * 2


async def test_an_asynchronous_source_is_passed_over_likewise_and_closed() -> None:
    closed = False

    async def source() -> AsyncGenerator[str]:
        nonlocal closed
        try:
            for number in range(10):
                yield f"text {number}"
        finally:
            closed = True

    async with TextEmbedding(fake_model(dim=8)) as dense:
        found = await made(points(source(), dense=dense, start=7))
        assert [(point.id, point.payload) for point in found] == [(n, {"text": f"text {n}"}) for n in (7, 8, 9)]
    assert closed


async def test_what_the_store_refuses_ends_the_upload_without_a_checkpoint() -> None:
    told: list[Stored] = []
    async with nothing_left_behind(), three() as models, store(dense=models["dense"]) as client:
        with pytest.raises(ValueError, match="sparse"):
            await upload(client, "things", points(RECORDS, **models, key=text_of), checkpoint=told.append)
        assert told == []


async def test_a_cancelled_upload_closes_its_source_and_withdraws_what_waits(gate: Path) -> None:
    closed = anyio.Event()

    async def source() -> AsyncGenerator[str]:
        try:
            yield f"wait:{gate}"
            while True:
                yield "text"
        finally:
            closed.set()

    async with (
        TextEmbedding(fake_model(dim=8)) as first,
        TextEmbedding(ECHO, workers=0, max_batch_size=1) as second,
        store(dense={"first": first, "second": second}) as client,
    ):
        async with anyio.create_task_group() as group:
            stream = points(source(), dense={"first": first, "second": second})
            group.start_soon(upload, client, "things", stream)
            await until(lambda: second.stats().queued_bulk > 0)
            group.cancel_scope.cancel()
        await closed.wait()
        assert second.stats().queued_bulk == 0
        gate.touch()


async def test_a_synchronous_client_is_refused() -> None:
    with QdrantClientClosing() as client:
        async with TextEmbedding(fake_model(dim=8)) as dense:
            with pytest.raises(UsageError, match="AsyncQdrantClient; got QdrantClient"):
                await upload(client, "things", points(["a"], dense=dense))  # type: ignore[arg-type]


class QdrantClientClosing:
    def __enter__(self) -> QdrantClient:
        self.client = QdrantClient(":memory:")
        return self.client

    def __exit__(self, *_: object) -> None:
        self.client.close()


# ---------------------------------------------------------------- the collection, and queries


def test_the_collection_is_as_the_models_are() -> None:
    """None of them needs to be open, where the catalogue knows it."""
    config = collection_config(
        dense={
            "text": TextEmbedding("BAAI/bge-small-en-v1.5"),
            "picture": ImageEmbedding("Qdrant/clip-ViT-B-32-vision"),
        },
        sparse={"bm25": SparseTextEmbedding(BM25), "splade": SparseTextEmbedding("prithivida/Splade_PP_en_v1")},
        multivector=LateInteractionTextEmbedding("answerdotai/answerai-colbert-small-v1"),
    )
    vectors, terms = config["vectors_config"], config["sparse_vectors_config"]
    assert isinstance(vectors, dict)
    assert terms is not None
    assert {name: (params.size, params.distance) for name, params in vectors.items()} == {
        "text": (384, Distance.COSINE),
        "picture": (512, Distance.COSINE),
        "multivector": (96, Distance.COSINE),
    }
    assert vectors["text"].multivector_config is None
    assert vectors["multivector"].multivector_config.comparator == "max_sim"
    assert {name: params.modifier for name, params in terms.items()} == {"bm25": Modifier.IDF, "splade": None}
    alone = collection_config(dense={"": TextEmbedding("BAAI/bge-small-en-v1.5")}, distance=Distance.DOT)
    assert alone == {
        "vectors_config": VectorParams(size=384, distance=Distance.DOT),
        "sparse_vectors_config": None,
    }


async def test_a_hybrid_query_finds_what_is_near_and_what_shares_a_rare_word() -> None:
    """BM25 is the real one; the index weighs its terms."""
    texts = ["the cat sat here", "the dog sat here", "the cat and the zebra", *(f"the other {n}" for n in range(20))]
    async with (
        WorkerPool(workers=0) as pool,
        TextEmbedding(fake_model(dim=32), pool=pool) as dense,
        SparseTextEmbedding(BM25, stopwords=["the"], pool=pool) as sparse,
        LateInteractionTextEmbedding(fake_model("late_interaction", dim=16), pool=pool) as multivector,
    ):
        models: dict[str, Any] = {"dense": dense, "sparse": sparse, "multivector": multivector}
        async with store(**models) as client:
            await upload(client, "things", points(texts, **models))
            searches = await prefetch("a zebra", **models, limit=5)
            assert [search.using for search in searches] == ["dense", "sparse", "multivector"]
            assert isinstance(searches[1].query, SparseVector)
            found = await client.query_points(
                "things", prefetch=searches, query=FusionQuery(fusion=Fusion.RRF), with_payload=True
            )
            assert found.points[0].payload == {"text": "the cat and the zebra"}
            (search,) = await prefetch("zebra", sparse=sparse)
            terms = await client.query_points("things", query=search.query, using="sparse")
            assert [point.id for point in terms.points] == [2]
            assert terms.points[0].score > 2  # log of how rare it is


async def test_queries_have_the_prompt_of_queries() -> None:
    async with three() as models:
        (search,) = await prefetch("zebra", dense=models["dense"])
        assert np.allclose(np.asarray(search.query), await models["dense"].embed_query("zebra"))
        assert not np.allclose(np.asarray(search.query), (await models["dense"].embed_documents(["zebra"]))[0])


async def test_a_model_on_another_loop_serves_as_well() -> None:
    with fake_models():
        model = TextEmbedding("BAAI/bge-small-en-v1.5").on_any_loop()
        sparse = SparseTextEmbedding(BM25).on_any_loop()
        async with store(dense=model, sparse=sparse) as client:
            await upload(client, "things", points(RECORDS, dense=model, sparse=sparse, key=text_of))
            assert await counted(client) == 150
        await model.aclose()
        await sparse.aclose()


# ---------------------------------------------------------------- what is refused


async def test_arguments_that_cannot_work_are_refused_at_once() -> None:
    with pytest.raises(StateError, match="not open"):
        points(["a"], dense=TextEmbedding("BAAI/bge-small-en-v1.5"))
    async with TextEmbedding(fake_model(dim=8)) as dense, SparseTextEmbedding(fake_model("sparse")) as sparse:
        reranker: Any = TextCrossEncoder(fake_model("cross_encoder"))
        images: Any = ImageEmbedding(fake_model("image"))
        with pytest.raises(OptionError, match="say what the vectors are of"):
            points(["a"])
        with pytest.raises(OptionError, match="dense= is a TextEmbedding or ImageEmbedding"):
            points(["a"], dense=reranker)
        with pytest.raises(OptionError, match="two models have vectors of the name 'x'"):
            points(["a"], dense={"x": dense}, sparse={"x": sparse})
        with pytest.raises(OptionError, match="no error can be in the place"):
            points(["a"], dense=dense, on_error="return")  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="start"):
            points(["a"], dense=dense, start=-1)
        with pytest.raises(InputError, match="the source is a dict"):
            points({"a": 1}, dense=dense)
        with pytest.raises(OptionError, match="has no vectors of texts"):
            await prefetch("a", dense=images)


async def test_the_snippet_of_the_readme_stores_what_it_is_given() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    async with TextEmbedding(fake_model(dim=8)) as model, store(dense=model) as client:
        await client.create_collection("articles", **collection_config(dense=model))
        names = {"client": client, "documents": ["one", "two"], "model": model}
        done = await eval(snippets.of_integration(readme, "qdrant"), globals(), names)
        assert done.done == (await client.count("articles")).count == 2
