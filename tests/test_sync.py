"""The classes that block: the same results as the asynchronous ones, from threads without an event loop."""

import asyncio
import gc
import inspect
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.lowlevel
import numpy as np
import pytest

import asyncembed
from asyncembed import HybridBatch, HybridEmbedding, sync
from asyncembed.catalogue.spec import ModelSpec
from asyncembed.embedders.cross_encoder import CrossEncoderKeywords
from asyncembed.embedders.sparse import SparseKeywords
from asyncembed.errors import InputError, ModelLoadError, OptionError, StateError, UsageError
from asyncembed.feeding import FIRST_READ
from asyncembed.options import OptionKeywords
from tests.support.encoders import ECHO, with_settings
from tests.support.every_encoder import WRITE
from tests.support.images import picture
from tests.support.models import TEXTS
from tests.support.waiting import threads, until

FAMILIES = [
    "TextEmbedding",
    "SparseTextEmbedding",
    "LateInteractionTextEmbedding",
    "HybridTextEmbedding",
    "ImageEmbedding",
    "LateInteractionMultimodalEmbedding",
    "TextCrossEncoder",
]


def wait_until(condition: Callable[[], bool]) -> None:
    anyio.run(until, condition)


@pytest.fixture
def model() -> Iterator[sync.TextEmbedding]:
    with sync.TextEmbedding(ECHO, workers=0) as model:
        yield model


@pytest.fixture
def narrow() -> Iterator[sync.TextEmbedding]:
    """A model whose streams read at most eight inputs ahead, and compute one at a time."""
    with sync.TextEmbedding(ECHO, workers=0, max_in_flight=8, max_batch_size=1) as model:
        yield model


def texts(count: int) -> list[str]:
    return [f"#{i}" for i in range(count)]


def number(result: Any) -> int:
    return int(result[2])


def numbers(results: Any) -> list[int]:
    return [number(result) for result in results]


def is_idle(model: sync.TextEmbedding) -> bool:
    stats = model.stats()
    return stats.queued + stats.in_flight == 0


class Source:
    """An endless source, which counts what is read of it and says when it is closed."""

    def __init__(self, more: str = "") -> None:
        self.pulled = 0
        self._more = more
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[str]:
        try:
            while True:
                self.pulled += 1
                yield f"#{self.pulled - 1}{self._more}"
        finally:
            self.closed.set()

    def generator(self) -> Iterator[str]:
        yield from self


# ---------------------------------------------------------------- the same as the asynchronous classes


@pytest.mark.parametrize("name", FAMILIES)
def test_a_class_has_all_that_the_asynchronous_one_has(name: str) -> None:
    """But what opens and closes it, and the faces that lead here."""
    without = {"aclose", "on_any_loop", "family"}
    there = {member for member in dir(getattr(asyncembed, name)) if not member.startswith("_")} - without
    assert there <= set(dir(getattr(sync, name)))


def test_a_stream_has_all_that_the_asynchronous_one_has() -> None:
    there = {member for member in dir(asyncembed.EmbeddingStream) if not member.startswith("_")} - {"aclose"}
    assert there <= set(dir(sync.EmbeddingStream))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_method_says_what_the_asynchronous_one_says(name: str) -> None:
    ours, theirs = getattr(sync, name), getattr(asyncembed, name)
    for member, method in inspect.getmembers(theirs, inspect.isfunction):
        if member.startswith(("embed", "query", "passage", "rerank", "rank", "token")):
            assert inspect.getdoc(getattr(ours, member)) == inspect.getdoc(method)
            assert inspect.signature(getattr(ours, member)) == inspect.signature(method)
            assert not inspect.iscoroutinefunction(getattr(ours, member))


@pytest.mark.parametrize(
    ("kind", "keywords"),
    [(asyncembed.SparseTextEmbedding, SparseKeywords), (asyncembed.TextCrossEncoder, CrossEncoderKeywords)],
)
def test_the_keywords_for_signatures_are_those_of_the_constructor(kind: type, keywords: Any) -> None:
    parameters = inspect.signature(kind).parameters.values()
    own = {one.name: one.annotation for one in parameters if one.kind is one.KEYWORD_ONLY}
    named = {name: one for name, one in keywords.__annotations__.items() if name not in OptionKeywords.__annotations__}
    assert own.keys() == named.keys()


Calls = Callable[[Any], list[Any]]
"""Makes calls of a model of either kind; gives streams, and coroutines or results."""


def text_calls(model: Any) -> list[Any]:
    return [
        model.embed(TEXTS),
        model.query_embed(TEXTS),
        model.passage_embed(list(enumerate(TEXTS)), key=lambda record: record[1]).with_inputs(),
        model.embed(iter([*TEXTS, "last"])).batches(3),
        model.embed_query(TEXTS[0]),
        model.embed_documents(TEXTS[:2]),
        model.token_count(TEXTS),
    ]


def image_calls(model: Any) -> list[Any]:
    images = [picture(300, 227), picture(30, 90)]
    return [model.embed(images), model.embed_image(images[0]), model.embed_images(images)]


def page_calls(model: Any) -> list[Any]:
    images = [picture(300, 227), picture(30, 90)]
    return [
        model.embed_image(images),
        model.embed_text(TEXTS),
        model.embed_query(TEXTS[0]),
        model.embed_images(images),
        model.embed_one_image(images[1]),
        model.token_count(TEXTS, include_extension=True),
    ]


def score_calls(model: Any) -> list[Any]:
    return [
        model.rerank("how long is the day", TEXTS),
        model.rerank_pairs([("a", text) for text in TEXTS], activation="sigmoid"),
        model.rank("how long is the day", TEXTS, top_k=3),
        model.rank("a", list(enumerate(TEXTS)), key=lambda record: record[1]),
        model.token_count([("a", "b")]),
    ]


CALLS: dict[str, tuple[str, Calls]] = {
    "TextEmbedding": ("dense", text_calls),
    "SparseTextEmbedding": ("splade", text_calls),
    "LateInteractionTextEmbedding": ("colbert", text_calls),
    "HybridTextEmbedding": ("hybrid", text_calls),
    "ImageEmbedding": ("image", image_calls),
    "LateInteractionMultimodalEmbedding": ("colmodernvbert", page_calls),
    "TextCrossEncoder": ("cross_encoder", score_calls),
}


async def awaited(name: str, spec: ModelSpec, calls: Calls) -> list[Any]:
    async with getattr(asyncembed, name)(spec, workers=1) as model:
        found = []
        for made in calls(model):
            if hasattr(made, "__anext__"):
                found.append([result async for result in made])
            else:
                found.append(await made)
        return found


def blocked(name: str, spec: ModelSpec, calls: Calls) -> list[Any]:
    with getattr(sync, name)(spec, workers=1) as model:
        return [list(made) if hasattr(made, "__next__") else made for made in calls(model)]


def assert_equal(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, HybridEmbedding):
        assert ours.outputs == theirs.outputs
        assert_equal(*[[getattr(each, name) for name in each.outputs] for each in (ours, theirs)])
    elif isinstance(theirs, HybridBatch):
        assert type(ours) is HybridBatch
        assert_equal(list(ours), list(theirs))
    elif isinstance(theirs, list | tuple):
        assert type(ours) is type(theirs)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    elif hasattr(theirs, "indices"):
        assert_equal([ours.indices, ours.values], [theirs.indices, theirs.values])
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
    else:
        assert ours == pytest.approx(theirs, abs=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_results_equal_those_of_the_asynchronous_class(name: str, tmp_path: Path) -> None:
    encoder, calls = CALLS[name]
    spec = WRITE[encoder](tmp_path)
    assert_equal(blocked(name, spec, calls), anyio.run(awaited, name, spec, calls))


def test_a_stream_is_an_iterator_of_results_in_order(model: sync.TextEmbedding) -> None:
    stream = model.embed(texts(1000))
    assert iter(stream) is stream
    assert numbers(stream) == list(range(1000))
    assert next(stream, None) is None
    assert numbers(model.embed(iter(texts(1000)))) == list(range(1000))


def test_a_stream_has_the_ways_out_of_the_asynchronous_one(model: sync.TextEmbedding) -> None:
    assert model.embed(texts(3)).collect().shape == (3, 3)
    assert [batch.shape for batch in model.embed(texts(10)).batches(4)] == [(4, 3), (4, 3), (2, 3)]
    records = [{"id": i, "text": f"#{i}"} for i in range(5)]
    pairs = model.embed(records, key=lambda record: str(record["text"])).with_inputs()
    assert [(record["id"], number(vector)) for record, vector in pairs] == [(i, i) for i in range(5)]
    with model.embed(records, key=lambda record: str(record["text"])).with_inputs().batches(3) as batches:
        rows, vectors = next(batches)
    assert [row["id"] for row in rows] == numbers(vectors) == [0, 1, 2]
    assert numbers(model.embed(texts(3)).take_some(2)) <= [0, 1]


def test_ways_out_can_be_mixed(narrow: sync.TextEmbedding) -> None:
    """No result is lost that was fetched already, and none keeps the window full."""
    stream = narrow.embed(texts(50))
    assert number(next(stream)) == 0
    assert numbers(next(stream.batches(5))) == [1, 2, 3, 4, 5]
    assert number(next(stream)) == 6
    assert numbers(stream.collect()) == list(range(7, 50))


def test_an_async_iterable_is_a_source(model: sync.TextEmbedding) -> None:
    async def source() -> AsyncIterator[str]:
        for text in texts(20):
            await anyio.lowlevel.checkpoint()
            yield text

    assert numbers(model.embed(source())) == list(range(20))


# ---------------------------------------------------------------- the window


@pytest.mark.slow
@pytest.mark.parametrize("kind", [list, iter])
def test_a_slow_loop_slows_its_source(kind: Callable[[list[str]], Any], narrow: sync.TextEmbedding) -> None:
    pulled = 0

    def key(text: str) -> str:
        nonlocal pulled
        pulled += 1
        return text

    for taken, vector in enumerate(narrow.embed(kind(texts(100)), key=key), start=1):
        wait_until(lambda: is_idle(narrow))
        assert number(vector) == taken - 1
        assert pulled <= taken + 8


def test_large_inputs_are_read_less_far_ahead() -> None:
    """What was fetched at once counts with all its bytes until the loop comes for more."""
    source = Source(" " + "x" * 10_000)
    with sync.TextEmbedding(ECHO, workers=0, max_in_flight_bytes=100_000) as model:
        with model.embed(source) as stream:
            for taken in range(1, 50):
                next(stream)
                wait_until(lambda: is_idle(model))
                # How large the records of a thread are is known only when the first of them have been read.
                assert source.pulled <= taken + (11 if taken > FIRST_READ else FIRST_READ)


def test_nothing_is_read_before_the_first_result_is_asked_for(narrow: sync.TextEmbedding) -> None:
    source = Source()
    stream = narrow.embed(source)
    assert narrow.embed_query("#1") is not None
    assert source.pulled == 0
    stream.close()
    assert source.pulled == 0


# ---------------------------------------------------------------- leaving


def test_leaving_a_loop_closes_the_source_and_withdraws_what_waits(narrow: sync.TextEmbedding) -> None:
    source = Source()
    for vector in narrow.embed(source.generator()):
        assert number(vector) == 0
        break
    assert source.closed.wait(10)
    wait_until(lambda: is_idle(narrow))


@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_a_stream_ends_in_every_way(how: str, narrow: sync.TextEmbedding, gate: Path) -> None:
    source = Source()

    def blocked() -> Iterator[str]:
        yield from ("#1", f"wait:{gate}")
        yield from source

    stream = narrow.embed(blocked())
    next(stream)
    wait_until(lambda: narrow.stats().queued > 0)
    if how == "close":
        stream.close()
        assert source.closed.is_set()
        assert next(stream, None) is None
    elif how == "with":
        with pytest.raises(KeyError, match="my own"), stream:
            raise KeyError("my own")
    else:
        del stream
    assert source.closed.wait(10)
    wait_until(lambda: narrow.stats().queued == 0)
    gate.touch()


@pytest.mark.parametrize("call", ["embed_query", "embed_documents", "stream", "collect", "batches"])
def test_ctrl_c_withdraws_what_waits(call: str, narrow: sync.TextEmbedding, gate: Path) -> None:
    """The main thread gets the signal while it waits for a result."""
    source = [f"wait:{gate}", *texts(5)]

    def press() -> None:
        wait_until(lambda: narrow.stats().in_flight == 1)
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    kept: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        match call:
            case "embed_query":
                narrow.embed_query(source[0])
            case "embed_documents":
                narrow.embed_documents(source)
            case "stream":
                kept.append(narrow.embed(source))
                next(kept[0])
            case "collect":
                kept.append(narrow.embed(source))
                kept[0].collect()
            case _:
                kept.append(narrow.embed(source).batches(3))
                next(kept[0])
    pressing.join()
    wait_until(lambda: narrow.stats().queued == 0)
    assert not kept or next(kept[0], None) is None
    gate.touch()
    assert number(narrow.embed_query("#7")) == 7


# ---------------------------------------------------------------- errors


def test_an_input_that_cannot_be_embedded_ends_the_stream_in_its_turn(model: sync.TextEmbedding) -> None:
    stream = model.embed(cast(list[str], ["#0", "#1", 7, "#3"]))
    assert [number(next(stream)), number(next(stream))] == [0, 1]
    with pytest.raises(InputError) as caught:
        next(stream)
    assert caught.value.index == 2
    skipping = model.embed(["#0", "bad", "#2"], on_error="skip")
    assert numbers(skipping) == [0, 2]
    assert skipping.skipped == 1
    assert [isinstance(one, InputError) for one in model.embed(["#0", "bad"], on_error="return")] == [False, True]
    with pytest.raises(InputError, match="refused"):
        model.embed_query("bad")


def test_choices_are_checked_at_once(model: sync.TextEmbedding) -> None:
    with pytest.raises(OptionError, match="on_error"):
        model.embed(texts(3), on_error=cast(Any, "ignore"))
    with pytest.raises(OptionError, match="batches form by themselves"):
        model.embed(texts(3), batch_size=3)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="'nonsense'"):
        sync.TextEmbedding(ECHO, nonsense=3)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="keep_alive"):
        sync.TextEmbedding(ECHO, keep_alive=-1)
    with pytest.raises(OptionError, match="allow_in_loop"):
        sync.TextEmbedding(ECHO, allow_in_loop=cast(Any, "yes"))


def test_an_exception_of_the_source_comes_after_all_earlier_results(model: sync.TextEmbedding) -> None:
    def source() -> Iterator[str]:
        yield "#0"
        raise LookupError("of the source")

    stream = model.embed(source())
    assert number(next(stream)) == 0
    with pytest.raises(LookupError, match="of the source"):
        next(stream)


def test_a_source_that_raises_a_cancellation_ends_its_stream_and_nothing_else(model: sync.TextEmbedding) -> None:
    def source() -> Iterator[str]:
        yield "#0"
        raise asyncio.CancelledError("of the source")

    stream = model.embed(source())
    assert number(next(stream)) == 0
    with pytest.raises(asyncio.CancelledError, match="of the source"):
        next(stream)
    assert number(model.embed_query("#1")) == 1


def test_failed_records_go_to_a_function_in_the_thread_that_takes(model: sync.TextEmbedding) -> None:
    failed: list[tuple[object, object, int]] = []

    def note(record: str, error: Exception) -> None:
        model.embed_query("it may make calls of its own")
        failed.append((record, cast(InputError, error).index, threading.get_ident()))

    here = threading.get_ident()
    assert numbers(model.embed(["#0", "bad", "#2", "bad"], on_error=note)) == [0, 2]
    assert len(model.embed(["#0", "bad"], on_error=note).collect()) == 1
    assert failed == [("bad", 1, here), ("bad", 3, here), ("bad", 1, here)]


def test_a_function_for_failed_records_that_fails_ends_the_stream(model: sync.TextEmbedding) -> None:
    def refuse(record: str, error: Exception) -> None:
        raise ZeroDivisionError

    stream = model.embed(iter(["bad", *texts(9)]), on_error=refuse)
    with pytest.raises(ZeroDivisionError):
        list(stream)

    async def forget(record: str, error: Exception) -> None:
        raise AssertionError

    with pytest.raises(UsageError, match="plain function"):
        list(model.embed(["bad"], on_error=forget))


def test_a_model_that_cannot_be_opened_says_so_with_every_call(tmp_path: Path) -> None:
    reason = tmp_path / "reason"
    reason.touch()
    model = sync.TextEmbedding(with_settings(refuse_if=str(reason)), workers=0)
    for _ in range(2):
        with pytest.raises(ModelLoadError, match="told to refuse"):
            model.embed_query("#1")
    reason.unlink()
    assert number(model.embed_query("#1")) == 1
    model.close()


# ---------------------------------------------------------------- opening and closing


def test_the_first_call_opens_a_model_and_closing_ends_it() -> None:
    model = sync.TextEmbedding(ECHO, workers=0)
    assert repr(model) == "<TextEmbedding 'echo' not open>"
    with pytest.raises(StateError, match="not open"):
        model.stats()
    assert number(model.embed_query("#3")) == 3
    assert model.stats().items == 1
    stream = model.embed(Source())
    next(stream)
    model.close()
    model.close()
    assert repr(model) == "<TextEmbedding 'echo' not open>"
    with pytest.raises(StateError, match="closed"):
        list(stream)
    for call in (model.open, lambda: model.embed_query("#3"), lambda: model.embed(["a"]), model.__enter__):
        with pytest.raises(StateError, match="was closed: make another one"):
            call()


def test_models_of_one_name_are_one_engine(tmp_path: Path) -> None:
    spec = with_settings(load_log=str(tmp_path / "log"))
    with sync.TextEmbedding(spec, workers=0) as first:
        with sync.TextEmbedding(spec, workers=0) as second:
            second.embed_query("#1")
        assert number(first.embed_query("#2")) == 2
        assert first.stats().items == 2
    assert len((tmp_path / "log").read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.slow
def test_a_model_that_is_dropped_ends_its_engine() -> None:
    before = threads()
    model = sync.TextEmbedding(ECHO, workers=0)
    assert numbers(sync.TextEmbedding(ECHO, workers=0).embed(texts(3))) == [0, 1, 2]
    model.embed_query("#1")
    del model
    gc.collect()
    wait_until(lambda: {one for one in threads() - before if "asyncembed-loop" not in one} == set())


def test_an_unloaded_model_is_opened_again_by_the_next_call(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with sync.TextEmbedding(with_settings(load_log=str(log)), workers=0) as model:
        model.embed_query("#1")
        model.unload()
        assert "not open" in repr(model)
        assert number(model.embed_query("#2")) == 2
    assert len(log.read_text(encoding="utf-8").splitlines()) == 2


def test_a_model_that_nobody_uses_is_unloaded_after_a_time_and_a_stream_uses_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with sync.TextEmbedding(with_settings(load_log=str(log)), workers=0, keep_alive=0.01, max_in_flight=2) as model:
        stream = model.embed(texts(100))
        next(stream)
        assert numbers(stream) == list(range(1, 100))
        wait_until(lambda: "not open" in repr(model))  # though the stream is still at hand
        assert number(model.embed_query("#2")) == 2
    assert len(log.read_text(encoding="utf-8").splitlines()) == 2


def test_models_may_share_a_pool() -> None:
    with sync.WorkerPool(workers=0) as pool:
        with sync.TextEmbedding(ECHO, pool=pool) as first, sync.TextEmbedding(ECHO, pool=pool, max_length=5) as second:
            assert numbers([first.embed_query("#1"), second.embed_query("#2")]) == [1, 2]
            assert pool.stats().items == 2
    with pytest.raises(StateError):
        sync.TextEmbedding(ECHO, pool=pool).embed_query("#1")


async def test_a_pool_is_not_opened_where_an_event_loop_runs() -> None:
    with pytest.raises(UsageError, match="would block"), sync.WorkerPool(workers=0):
        raise AssertionError


def test_what_is_known_of_a_model_needs_no_opening() -> None:
    model = sync.TextEmbedding("BAAI/bge-small-en-v1.5")
    assert (model.model_name, model.embedding_size) == ("BAAI/bge-small-en-v1.5", 384)
    assert sync.TextEmbedding.get_embedding_size("BAAI/bge-small-en-v1.5") == 384
    assert sync.TextEmbedding.list_supported_models() == asyncembed.TextEmbedding.list_supported_models()
    unknown = sync.TextEmbedding(replace(ECHO, dim=None), workers=0)
    assert unknown.embedding_size == 3
    unknown.close()


def test_names_of_other_libraries_are_answered(model: sync.TextEmbedding) -> None:
    with pytest.raises(AttributeError, match=r"`embed\(texts\)` is a stream, for `for` or `.collect\(\)`; `embed_doc"):
        model.encode("a")  # type: ignore[attr-defined]


# ---------------------------------------------------------------- threads


def test_single_calls_of_many_threads_are_batched_together(tmp_path: Path, gate: Path) -> None:
    log = tmp_path / "log"
    with (
        sync.TextEmbedding(with_settings(log=str(log)), workers=0) as model,
        ThreadPoolExecutor(8) as executor,
    ):
        first = executor.submit(model.embed_query, f"wait:{gate}")
        wait_until(lambda: model.stats().in_flight == 1)
        with ThreadPoolExecutor(8) as many:
            others = [many.submit(model.embed_query, f"#{i}") for i in range(8)]
            wait_until(lambda: model.stats().queued_interactive == 8)
            gate.touch()
            assert numbers(other.result() for other in others) == list(range(8))
        first.result()
    assert [line.split()[0] for line in log.read_text(encoding="utf-8").splitlines()] == ["1", "8"]


def test_several_threads_may_take_from_one_stream(narrow: sync.TextEmbedding) -> None:
    stream = narrow.embed(texts(500))
    with ThreadPoolExecutor(4) as executor:
        parts = [executor.submit(numbers, stream) for _ in range(4)]
        found = [part.result() for part in parts]
    assert sorted(chain(*found)) == list(range(500))
    assert all(part == sorted(part) for part in found)


def test_each_thread_may_have_streams_of_its_own(model: sync.TextEmbedding) -> None:
    with ThreadPoolExecutor(8) as executor:
        found = executor.map(lambda _: numbers(model.embed(iter(texts(100)))), range(8))
        assert all(part == list(range(100)) for part in found)


def test_a_source_sees_the_context_variables_of_its_consumer(model: sync.TextEmbedding) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="#0")
    variable.set("#42")

    def source() -> Iterator[str]:
        yield variable.get()

    assert numbers(model.embed(source())) == [42]


# ---------------------------------------------------------------- beside event loops


async def test_a_call_that_would_block_an_event_loop_is_refused() -> None:
    model = sync.TextEmbedding(ECHO, workers=0)
    for call in (model.open, lambda: model.embed_query("#1"), lambda: model.embed(["#1"]), model.__enter__):
        with pytest.raises(UsageError, match=r"await the same call of the class of this name in `asyncembed`"):
            call()
    assert number(await anyio.to_thread.run_sync(model.embed_query, "#1")) == 1
    stream = await anyio.to_thread.run_sync(model.embed, texts(3))
    with pytest.raises(UsageError, match="would block"):
        next(stream)
    model.close()  # without waiting
    await until(lambda: "not open" in repr(model))


async def test_a_stream_is_closed_where_an_event_loop_runs_too() -> None:
    """A finalizer that does so may come in any thread."""
    source = Source()
    model = sync.TextEmbedding(ECHO, workers=0)
    stream = await anyio.to_thread.run_sync(model.embed, source.generator())
    await anyio.to_thread.run_sync(next, stream)
    stream.close()
    assert await anyio.to_thread.run_sync(source.closed.wait, 10)
    await until(lambda: is_idle(model))
    model.close()


async def test_a_notebook_may_allow_it() -> None:
    with sync.TextEmbedding(ECHO, workers=0, allow_in_loop=True) as model:
        assert numbers(model.embed(iter(texts(3)))) == [0, 1, 2]
        assert numbers(model.embed(texts(3))) == [0, 1, 2]
        assert number(model.embed_query("#7")) == 7


def test_a_callback_of_an_event_loop_is_refused_too(model: sync.TextEmbedding) -> None:
    async def main() -> object:
        outcome: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def call() -> None:
            try:
                outcome.set_result(model.embed_query("#1"))
            except UsageError as error:
                outcome.set_exception(error)

        asyncio.get_running_loop().call_soon(call)
        return await outcome

    with pytest.raises(UsageError, match="would block"):
        asyncio.run(main())


def test_a_key_that_calls_its_own_model_locks_nothing_up() -> None:
    with sync.TextEmbedding(ECHO, workers=0, allow_in_loop=True) as model:
        with pytest.raises(InputError, match="UsageError"):
            list(model.embed(["#1"], key=lambda text: str(model.embed_query(text))))
        assert number(model.embed_query("#7")) == 7


async def test_what_is_asynchronous_is_answered() -> None:
    model = sync.TextEmbedding(ECHO, workers=0, allow_in_loop=True)
    with pytest.raises(UsageError, match="asyncembed.TextEmbedding"):
        async with model:  # type: ignore[attr-defined]
            raise AssertionError
    with pytest.raises(UsageError, match="for `for`"):
        async for _ in model.embed(["#1"]):  # type: ignore[attr-defined]
            raise AssertionError
    model.close()
