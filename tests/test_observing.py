"""What observers hear of a model, and that nothing they do harms it."""

import asyncio
import logging
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, cast

import anyio
import pytest

from asyncembed import TextEmbedding, WorkerPool
from asyncembed.errors import EncodeError, InputError, OptionError
from asyncembed.observing import BatchEnded, CallBegan, CallEnded, Event, ModelClosed, ModelOpened
from tests.support.encoders import ECHO
from tests.support.models import write_model
from tests.support.waiting import until

EventT = TypeVar("EventT")


class Heard:
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def heard() -> Heard:
    return Heard()


async def test_an_observer_hears_of_a_model_from_opening_to_closing(heard: Heard) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[heard]) as model:
        await model.embed_query("#1 one")
        assert len(await model.embed(["#1", "#2"]).collect()) == 2
    kinds = [type(event) for event in heard.events]
    assert kinds == [ModelOpened, *[CallBegan, BatchEnded, CallEnded] * 2, ModelClosed]
    query, stream = (event.call for event in heard.of(CallEnded))
    assert (query.mode, query.priority, query.inputs, query.tokens) == ("query", "interactive", 1, 6)
    assert (stream.mode, stream.priority, stream.inputs, stream.tokens) == ("embed", "bulk", 2, 4)
    assert query.failed == stream.failed == 0
    assert query.error is stream.error is None
    assert query.seconds > 0
    (opened,) = heard.of(ModelOpened)
    assert (opened.model.name, opened.model.dim) == ("echo", 3)
    assert opened.model.stats().items == 3  # closed or not


async def test_no_event_holds_an_input_or_a_result(heard: Heard) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[heard]) as model:
        await model.embed_query("secret")
    assert "secret" not in repr(heard.events)
    assert "array" not in repr(heard.events)


async def test_a_batch_knows_whose_inputs_are_in_it(heard: Heard, gate: Path) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[heard]) as model:
        async with anyio.create_task_group() as group:
            group.start_soon(model.embed_query, f"wait:{gate}")
            await until(lambda: model.stats().in_flight == 1)
            for number in range(3):
                group.start_soon(model.embed_query, f"#{number}")
            await until(lambda: model.stats().queued == 3)
            gate.touch()
    first, second = heard.of(BatchEnded)
    assert (len(first.calls), first.inputs) == (1, 1)
    assert (len(second.calls), second.inputs) == (3, 3)
    assert second.tokens == sum(call.tokens for call in second.calls) == 6
    assert second.padded_tokens >= second.tokens
    assert second.seconds > 0


async def test_the_tokens_of_a_call_are_those_of_its_own_inputs(heard: Heard, tmp_path: Path) -> None:
    """Whatever they share a batch with."""
    texts = ["the way", "they said that there was a way", "time"] * 4
    options: Any = {"pooling": "mean", "normalize": True, "workers": 0, "deduplicate": False}
    async with TextEmbedding(write_model(tmp_path), observers=[heard], **options) as model:
        async with anyio.create_task_group() as group:
            for text in texts:
                group.start_soon(model.embed_query, text)
        expected = [await model.token_count(text) for text in texts]
    assert any(len(batch.calls) > 1 for batch in heard.of(BatchEnded))
    found = [event.call.tokens for event in heard.of(CallEnded) if event.call.mode == "query"]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("on_error", ["skip", "return"])
async def test_a_stream_counts_the_inputs_that_failed(on_error: str, heard: Heard) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[heard]) as model:
        await model.embed(["#1", "bad", cast(Any, 5)], on_error=cast(Any, on_error)).collect()
    (ended,) = heard.of(CallEnded)
    assert (ended.call.inputs, ended.call.failed, ended.call.error) == (2, 2, None)


async def test_a_call_that_fails_ends_with_its_error(heard: Heard) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[heard]) as model:
        for text in ("bad", cast(Any, 5)):
            with pytest.raises(InputError):
                await model.embed_query(text)
        with pytest.raises(InputError):
            await model.embed(["#1", "bad"]).collect()
    for ended in heard.of(CallEnded):
        assert isinstance(ended.call.error, InputError)
        assert ended.call.failed == 1


async def test_a_batch_that_failed_as_a_whole_says_why(heard: Heard) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[heard]) as model:
        with pytest.raises(EncodeError):
            await model.embed_query("raise")
    (batch,) = heard.of(BatchEnded)
    assert isinstance(batch.error, EncodeError)
    assert batch.tokens == 0


async def test_a_cancelled_call_has_ended(heard: Heard, gate: Path) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[heard]) as model:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(model.embed_query, f"wait:{gate}")
                await until(lambda: model.stats().in_flight == 1)
                scope.cancel()
        (ended,) = heard.of(CallEnded)
        assert isinstance(ended.call.error, anyio.get_cancelled_exc_class())
        assert ended.call.failed == 0
        gate.touch()
        await until(lambda: len(heard.of(BatchEnded)) == 1)
    assert heard.of(BatchEnded)[0].calls == ()


async def test_a_stream_is_observed_from_its_first_result_to_its_last_or_to_its_closing(heard: Heard) -> None:
    async with TextEmbedding(ECHO, workers=0, observers=[heard], max_in_flight=4) as model:
        await model.embed(["#1"]).aclose()
        assert not heard.of(CallBegan)
        async with model.embed([f"#{number}" for number in range(20)]).with_inputs() as stream:
            await anext(stream)
            assert len(heard.of(CallBegan)) == 1
            assert not heard.of(CallEnded)
        (ended,) = heard.of(CallEnded)
        assert 1 <= ended.call.inputs < 20
        assert ended.call.error is None


async def test_a_call_begins_in_the_context_of_its_caller() -> None:
    who = ContextVar("who", default="nobody")
    seen: list[tuple[str, str]] = []

    def note(event: Event) -> None:
        if isinstance(event, CallBegan):
            seen.append((event.call.mode, who.get()))

    async with TextEmbedding(ECHO, workers=0, observers=[note]) as model:

        async def call(name: str) -> None:
            who.set(name)
            await model.embed_query("#1")
            await model.embed(["#1"]).collect()

        async with anyio.create_task_group() as group:
            group.start_soon(call, "ann")
            group.start_soon(call, "bob")
    assert sorted(seen) == [("embed", "ann"), ("embed", "bob"), ("query", "ann"), ("query", "bob")]


async def test_an_observer_that_fails_harms_nobody(heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError("no disk")

    with caplog.at_level(logging.ERROR, "asyncembed"):
        async with TextEmbedding(ECHO, workers=0, observers=[fail, heard]) as model:
            assert (await model.embed_query("#5"))[2] == 5
    assert len(heard.events) == len(caplog.records) == 5
    assert "echo: an observer failed at ModelOpened" in caplog.text


class OfItsOwn(BaseException):
    """As those of test frameworks are, which no `except Exception` catches."""


@pytest.mark.parametrize("error", [OfItsOwn, SystemExit, asyncio.CancelledError])
async def test_whatever_an_observer_raises_the_pool_goes_on(error: type[BaseException], heard: Heard) -> None:
    def fail(event: Event) -> None:
        raise error

    async with WorkerPool(workers=0) as pool, TextEmbedding(ECHO, pool=pool) as unobserved:
        async with TextEmbedding(ECHO, pool=pool, observers=[fail, heard]) as model:
            assert (await model.embed_query("#5"))[2] == 5
            assert len(await model.embed(["#1", "bad"], on_error="skip").collect()) == 1
        assert (await unobserved.embed_query("#6"))[2] == 6
    assert [type(event) for event in heard.events][-3:] == [BatchEnded, CallEnded, ModelClosed]


async def test_models_of_one_pool_are_observed_apart(heard: Heard) -> None:
    others = Heard()
    async with (
        WorkerPool(workers=0) as pool,
        TextEmbedding(ECHO, pool=pool, observers=(heard,)) as one,
        TextEmbedding(ECHO, pool=pool, observers=(others,)) as other,
        TextEmbedding(ECHO, pool=pool) as unobserved,
    ):
        await one.embed_query("#1")
        await other.embed_documents(["#1", "#2"])
        await unobserved.embed_query("#1")
    assert [event.inputs for event in heard.of(BatchEnded)] == [1]
    assert [event.inputs for event in others.of(BatchEnded)] == [2]


@pytest.mark.parametrize("observers", [print, "print", [1], None])
def test_observers_are_a_list_of_functions(observers: Sequence[Any]) -> None:
    with pytest.raises(OptionError, match="observers must be a list of functions"):
        TextEmbedding("BAAI/bge-small-en-v1.5", observers=observers)
