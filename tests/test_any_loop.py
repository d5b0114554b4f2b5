"""One model for every event loop and every thread."""

import gc
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from inspect import getattr_static, isfunction
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import anyio
import numpy as np
import pytest
from anyio.lowlevel import checkpoint

import asyncembed
from asyncembed import background
from asyncembed.any_loop import gives_stream
from asyncembed.embedders.base import Embedder
from asyncembed.embedders.text import TextEmbedding
from asyncembed.engine.lifetime import Openable
from asyncembed.errors import InputError, OptionError, StateError
from asyncembed.shared import Lease
from asyncembed.stream import BatchStream, EmbeddingStream
from tests.support.encoders import ECHO
from tests.support.models import write_model
from tests.support.waiting import run_in_a_loop_of_its_own, until

T = TypeVar("T")
Model = TextEmbedding[np.float32]


_numbers = count()


def echo(**settings: Any) -> Model:
    """A model that shares its engine with none of another test."""
    settings.setdefault("number", next(_numbers))
    return TextEmbedding(replace(ECHO, settings=settings), workers=0, max_batch_size=1)


@pytest.fixture
def model() -> Model:
    """A model that was never opened."""
    return echo()


@asynccontextmanager
async def open_elsewhere(model: Model, backend: str) -> AsyncGenerator[None]:
    """The model open on a loop in another thread."""
    opened, end = threading.Event(), threading.Event()

    async def live() -> None:
        async with model:
            opened.set()
            await until(end.is_set)

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, lambda: run_in_a_loop_of_its_own(live, backend))
        await until(opened.is_set)
        try:
            yield
        finally:
            end.set()


@pytest.fixture(params=["shared", "open on asyncio", "open on trio"])
async def anywhere(request: pytest.FixtureRequest, model: Model) -> AsyncGenerator[Model]:
    """The face of a model that is not open, or is open in another thread."""
    if request.param == "shared":
        yield model.on_any_loop()
    else:
        async with open_elsewhere(model, request.param.split()[-1]):
            yield model.on_any_loop()


async def numbers(results: AsyncIterator[Any]) -> list[int]:
    return [int(result[2]) async for result in results]


# ---------------------------------------------------------------- calls


async def test_calls_give_what_they_give_on_the_models_own_loop(anywhere: Model) -> None:
    assert (await anywhere.embed_query("four"))[0] == 4
    assert (await anywhere.embed_documents(["a", "bc"]))[:, 0].tolist() == [1, 2]
    assert anywhere.stats().items > 0
    assert anywhere.embedding_size == 3
    with pytest.raises(InputError, match="expected a str"):
        await anywhere.embed_query(7)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="promt"):
        await anywhere.embed_query("a", promt="b")  # type: ignore[call-overload]


async def test_an_asynchronous_source_may_be_the_argument_of_a_call(tmp_path: Path) -> None:
    face = TextEmbedding(write_model(tmp_path), pooling="mean", normalize=True, workers=0).on_any_loop()
    assert await face.token_count(texts()) == await face.token_count(["#0", "#1", "#2"]) > 0


async def texts() -> AsyncGenerator[str]:
    for text in ("#0", "#1", "#2"):
        await checkpoint()
        yield text


@pytest.mark.parametrize("backends", [("asyncio", "asyncio"), ("asyncio", "trio"), ("trio", "asyncio")])
def test_one_face_serves_loops_that_come_and_go(backends: tuple[str, str], model: Model) -> None:
    face = model.on_any_loop()

    async def embed() -> list[int]:
        assert (await face.embed_query("four"))[0] == 4
        return await numbers(face.embed(texts()))

    for backend in backends:
        assert run_in_a_loop_of_its_own(embed, backend) == [0, 1, 2]


async def test_on_the_models_own_loop_a_face_is_the_model(model: Model) -> None:
    async with model:
        face = model.on_any_loop()
        assert type(face.embed(["a"])) is EmbeddingStream
        assert (await face.embed_query("four"))[0] == 4
        assert isinstance(face, TextEmbedding)


@pytest.mark.slow
async def test_a_timeout_leaves_nothing_in_the_queue(anywhere: Model, tmp_path: Path, gate: Path) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anywhere.embed_query, f"mark:{tmp_path / 'busy'} wait:{gate}")
        await until((tmp_path / "busy").exists)
        with anyio.move_on_after(0.1) as scope:
            async with anyio.create_task_group() as impatient:
                for _ in range(20):
                    impatient.start_soon(anywhere.embed_query, "never computed")
                impatient.start_soon(anywhere.embed(["never computed"] * 100).collect)
        assert scope.cancelled_caught
        assert anywhere.stats().queued == 0
        gate.touch()
    assert anywhere.stats().items == 1


@pytest.mark.slow
async def test_a_model_that_closes_during_a_call_says_so(model: Model, gate: Path, anyio_backend: str) -> None:
    face = model.on_any_loop()
    async with anyio.create_task_group() as group:

        async def call() -> None:
            with pytest.raises(StateError, match="closed"):
                await face.embed_query(f"wait:{gate}")
            with pytest.raises(StateError, match="was closed"):
                await face.embed_query("a")
            with pytest.raises(StateError, match="was closed"):
                face.embed(["a"])

        async with open_elsewhere(model, anyio_backend):
            assert (await face.embed_query("a"))[0] == 1
            group.start_soon(call)
            await until(lambda: face.stats().in_flight == 1)
        gate.touch()


# ---------------------------------------------------------------- streams


@pytest.mark.slow
async def test_streams_give_results_in_order_and_with_their_inputs(anywhere: Model) -> None:
    records = [{"text": f"#{number}"} for number in range(2000)]
    count = 0
    async for record, vector in anywhere.embed(records, key=lambda record: record["text"]).with_inputs():
        assert record is records[count]
        assert vector[2] == count
        count += 1
    assert count == 2000


async def test_streams_give_results_with_their_tokens_and_say_how_far_they_are(anywhere: Model) -> None:
    stream = anywhere.embed(["a", "bc"])
    assert stream.progress().read == 0
    counted = stream.with_tokens()
    assert [await anext(counted), await anext(counted)][1].result[0] == 2
    assert counted.progress().done == 2
    assert [record async for record, _ in anywhere.embed(["a"]).with_tokens().with_inputs()] == ["a"]


@pytest.mark.slow
async def test_streams_come_in_batches_and_as_a_whole(anywhere: Model) -> None:
    source = [f"#{number}" for number in range(10)]
    assert [len(batch) async for batch in anywhere.embed(source).batches(4)] == [4, 4, 2]
    assert (await anywhere.embed(source).collect())[:, 2].tolist() == list(range(10))
    stream = anywhere.embed(source)
    some = [len(some) for _ in range(10) if (some := await stream.take_some(3))]
    assert sum(some) == 10
    assert max(some) <= 3
    assert await stream.take_some() == []


async def test_a_stream_treats_failed_inputs_as_it_was_told(anywhere: Model) -> None:
    source = ["#0", "bad", "#2"]
    stream = anywhere.embed(source, on_error="skip")
    assert await numbers(stream) == [0, 2]
    assert stream.skipped == 1
    returned = await anywhere.embed(source, on_error="return").collect()
    assert isinstance(returned[1], InputError)
    stream = anywhere.embed(source)
    assert (await anext(stream))[2] == 0
    with pytest.raises(InputError) as caught:
        await anext(stream)
    assert caught.value.index == 1


async def test_a_function_for_failed_records_is_called_on_the_loop_of_the_consumer(anywhere: Model) -> None:
    failed: list[tuple[object, int]] = []

    def note(record: object, error: object) -> None:
        failed.append((record, threading.get_ident()))

    assert await numbers(anywhere.embed(["#0", "bad", "#2"], on_error=note)) == [0, 2]
    assert failed == [("bad", threading.get_ident())]


@pytest.mark.slow
async def test_an_asynchronous_source_is_read_on_its_own_loop_in_one_task_and_closed_there(anywhere: Model) -> None:
    seen: set[tuple[int, int]] = set()

    async def endless() -> AsyncGenerator[str]:
        number = 0
        try:
            # Left in another task than it was entered, this would raise.
            with anyio.CancelScope():
                while True:
                    await checkpoint()
                    seen.add((threading.get_ident(), anyio.get_current_task().id))
                    yield f"#{number}"
                    number += 1
        finally:
            seen.add((threading.get_ident(), anyio.get_current_task().id))
            closed.append(number)

    closed: list[int] = []
    async with anywhere.embed(endless()) as stream:
        async for vector in stream:
            if vector[2] == 100:
                break
    assert len(seen) == 1
    assert next(iter(seen))[0] == threading.get_ident()
    assert closed


async def test_a_slow_consumer_slows_its_source(anyio_backend: str) -> None:
    face = TextEmbedding(ECHO, workers=0, max_in_flight=8).on_any_loop()
    read = 0

    async def endless() -> AsyncGenerator[str]:
        nonlocal read
        while True:
            yield f"#{read}"
            read += 1
            await checkpoint()

    async with face.embed(endless()) as stream:
        for taken in range(1, 50):
            await anext(stream)
            await checkpoint()
            assert read <= taken + 8 + 16 + 2


async def test_a_source_that_fails_ends_the_stream_after_what_came_before(anywhere: Model) -> None:
    async def failing() -> AsyncGenerator[str]:
        yield "#0"
        yield "#1"
        raise LookupError("no more")

    stream = anywhere.embed(failing())
    assert (await anext(stream))[2] == 0
    assert (await anext(stream))[2] == 1
    with pytest.raises(LookupError, match="no more"):
        await anext(stream)


@pytest.mark.slow
async def test_a_cancelled_consumer_loses_no_result(anywhere: Model, gate: Path) -> None:
    stream = anywhere.embed(["#0", f"#1 wait:{gate}", "#2"])
    assert (await anext(stream))[2] == 0
    with anyio.move_on_after(0.05) as scope:
        await anext(stream)
    assert scope.cancelled_caught
    gate.touch()
    assert await numbers(stream) == [1, 2]


@pytest.mark.slow
async def test_a_stream_that_is_dropped_ends(anywhere: Model, gate: Path) -> None:
    async for _ in anywhere.embed(["a", *[f"wait:{gate}"] * 1000]):
        break
    gc.collect()
    await until(lambda: anywhere.stats().queued == 0)


@pytest.mark.slow
async def test_a_source_of_a_dropped_stream_is_closed(anywhere: Model) -> None:
    closed = anyio.Event()

    async def endless() -> AsyncGenerator[str]:
        try:
            while True:
                await checkpoint()
                yield "a"
        finally:
            closed.set()

    async for _ in anywhere.embed(endless()):
        break
    gc.collect()
    with anyio.fail_after(10):
        await closed.wait()


@pytest.mark.slow
async def test_handles_that_have_passed_on_their_stream_say_so(anywhere: Model) -> None:
    stream = anywhere.embed(["#0"])
    pairs = stream.with_inputs()
    for use in (stream.collect, stream.__anext__, stream.take_some):
        with pytest.raises(StateError, match="another stream"):
            await use()
    del stream
    gc.collect()
    assert [record async for record, _ in pairs] == ["#0"]


# ---------------------------------------------------------------- the shared engine


@pytest.mark.slow
async def test_models_that_are_the_same_share_an_engine_until_the_last_one_goes() -> None:
    number = next(_numbers)
    first, second = echo(number=number), echo(number=number)
    async with first.on_any_loop() as face:
        assert (await second.on_any_loop().embed_query("four"))[0] == 4
        assert face.stats() == second.on_any_loop().stats()
    assert second.on_any_loop().stats().items == 1
    del second
    gc.collect()
    assert first.on_any_loop().embedding_size == 3
    with pytest.raises(StateError):
        first.on_any_loop().stats()


async def test_a_face_lets_its_model_stay_open_between_calls(model: Model) -> None:
    """As in a request handler that makes a face for each call."""
    await model.on_any_loop().embed_query("a")
    gc.collect()
    assert model.on_any_loop().stats().items == 1


@pytest.mark.slow
async def test_keep_alive_closes_an_idle_engine_and_the_next_call_opens_it(model: Model) -> None:
    face = model.on_any_loop(keep_alive=0.05)
    await face.embed_query("a")

    def is_closed() -> bool:
        try:
            face.stats()
        except StateError:
            return True
        return False

    await until(is_closed)
    assert (await face.embed_query("four"))[0] == 4
    with pytest.raises(OptionError, match="keep_alive"):
        model.on_any_loop(keep_alive=-1)


async def test_unload_closes_at_once_and_the_next_call_opens_it(model: Model) -> None:
    face = model.on_any_loop()
    await face.embed_query("a")
    stream = face.embed(["a"] * 10_000)
    await anext(stream)
    await model.unload()
    with pytest.raises(StateError):
        face.stats()
    with pytest.raises(StateError, match="closed"):
        while True:
            await anext(stream)
    assert (await face.embed_query("four"))[0] == 4
    await face.unload()


@pytest.mark.slow
async def test_a_stream_in_use_keeps_an_engine_alive(model: Model) -> None:
    face = model.on_any_loop(keep_alive=0.02)
    stream = face.embed(["a"] * 10_000)
    await anext(stream)
    await background.run_async(anyio.sleep, 0.1)
    assert (await anext(stream))[0] == 1
    await stream.aclose()
    lease = model._lease
    assert lease is not None
    await until(lambda: lease.model is None)


CLASSES = [
    kind
    for name in asyncembed.__all__
    if isinstance(kind := getattr(asyncembed, name), type) and issubclass(kind, Embedder) and "family" in vars(kind)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_the_same_model_is_the_same_engine_in_every_class(kind: type[Embedder], tmp_path: Path) -> None:
    one, other = Lease[Openable[Any]](kind(tmp_path)), Lease[Openable[Any]](kind(tmp_path))
    assert one._share is other._share


@pytest.mark.parametrize("kind", CLASSES)
def test_a_face_has_every_method_of_its_class(kind: type[Embedder]) -> None:
    face = type(kind(Path("model")).on_any_loop())
    own = {name for name, member in vars(face).items() if isfunction(member)}
    own |= set(vars(face.__mro__[1]))
    for name in dir(kind):
        if not name.startswith("_") and isfunction(getattr_static(kind, name)):
            assert name in own


@pytest.mark.parametrize("kind", CLASSES)
def test_what_gives_a_stream_is_known(kind: type[Embedder]) -> None:
    names = {
        name
        for name in dir(kind)
        if not name.startswith("_") and isfunction(method := getattr_static(kind, name)) and gives_stream(method)
    }
    assert names
    calls = {"rerank", "rerank_pairs", "embed_image", "embed_text", "query_embed", "passage_embed"}
    assert names <= calls | {"embed", "embed_chunks"}


@pytest.mark.parametrize("kind", [EmbeddingStream, BatchStream])
async def test_streams_elsewhere_have_every_method_of_streams(kind: type[Any], model: Model) -> None:
    stream: Any = model.on_any_loop().embed(["a"])
    if kind is BatchStream:
        stream = stream.batches(1)
    for name in dir(kind):
        member = getattr_static(kind, name)
        if not name.startswith("_") and (isfunction(member) or isinstance(member, property)):
            assert name in vars(type(stream)), f"{name} would look for what only a stream of this loop has"
