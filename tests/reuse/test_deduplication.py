"""No work twice: who shares a result with whom, and what a cache gives back."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from asyncembed import (
    HybridTextEmbedding,
    ImageEmbedding,
    LateInteractionTextEmbedding,
    SparseTextEmbedding,
    TextCrossEncoder,
    TextEmbedding,
    VectorCacheFile,
)
from asyncembed.embedders.base import Embedder, opened_model
from asyncembed.errors import EncodeError, InputError, OptionError
from asyncembed.observing import CallEnded, Event
from asyncembed.testing import Fakes, fake_model
from tests.support.encoders import ECHO
from tests.support.images import encoded, picture
from tests.support.static_models import write_static
from tests.support.tokenizers import wordpiece
from tests.support.waiting import until


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@pytest.fixture
async def model(tmp_path: Path) -> AsyncGenerator[TextEmbedding]:
    """One thread that does what its inputs say, and computes equal ones once."""
    spec = replace(ECHO, settings={"log": tmp_path / "log"})
    async with TextEmbedding(spec, workers=0, deduplicate=True, max_batch_size=1) as opened:
        yield opened


async def held(model: TextEmbedding, gate: Path) -> None:
    """Return when the thread is at work on an input that ends with the gate: what comes now waits."""
    marked = gate.with_name("marked")
    await until(marked.exists)


def holding(gate: Path) -> str:
    return f"mark:{gate.with_name('marked')} wait:{gate}"


# ---------------------------------------------------------------- equal inputs


async def test_equal_inputs_of_a_stream_are_computed_once(model: TextEmbedding, gate: Path) -> None:
    gate.touch()
    texts = [holding(gate), *["#1", "#2", "#1"] * 5]
    vectors = await model.embed(texts).collect()
    assert vectors[1:, 2].tolist() == [1, 2, 1] * 5
    stats = model.stats()
    assert (stats.items, stats.deduplicated) == (3, 13)


async def test_calls_side_by_side_share_a_result_and_each_has_its_own_copy(model: TextEmbedding, gate: Path) -> None:
    results: list[Any] = []

    async def ask(text: str, **call: Any) -> None:
        results.append(await model.embed_query(text, with_tokens=True, **call))

    async with anyio.create_task_group() as group:
        group.start_soon(ask, holding(gate))
        await held(model, gate)
        for _ in range(3):
            group.start_soon(ask, "#7")
        # Another call is another matter.
        group.start_soon(lambda: ask("#7", prompt="say: "))
        await until(lambda: model.stats().queued == 2)
        gate.touch()
    assert model.stats().deduplicated == 2
    assert [result.tokens for result in results[1:]] == [2] * 4
    results[1].result[2] = 0
    assert [int(result.result[2]) for result in results[2:]] == [7] * 3


@pytest.mark.parametrize("leaver", [0, 1])
async def test_who_leaves_takes_nobody_elses_result_along(model: TextEmbedding, gate: Path, leaver: int) -> None:
    """Also not the one for whom it was to be computed."""
    scopes = [anyio.CancelScope(), anyio.CancelScope()]
    results: list[float] = []

    async def ask(position: int) -> None:
        with scopes[position]:
            results.append((await model.embed_query("#7"))[2])

    async with anyio.create_task_group() as group:
        group.start_soon(model.embed_query, holding(gate))
        await held(model, gate)
        group.start_soon(ask, 0)
        await until(lambda: model.stats().queued == 1)
        group.start_soon(ask, 1)
        await until(lambda: model.stats().deduplicated == 1)
        scopes[leaver].cancel()
        await until(lambda: scopes[leaver].cancelled_caught)
        gate.touch()
    assert results == [7]


async def test_what_nobody_waits_for_any_more_is_not_computed(model: TextEmbedding, gate: Path) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(model.embed_query, holding(gate))
        await held(model, gate)
        async with model.embed(["#7"] * 4) as stream, anyio.create_task_group() as others:
            others.start_soon(model.embed_query, "#7")
            others.start_soon(anext, stream)
            await until(lambda: model.stats().deduplicated == 3)
            others.cancel_scope.cancel()
        await until(lambda: model.stats().queued == 0)
        gate.touch()
    assert model.stats().items == 1
    assert (await model.embed_query("#7"))[2] == 7


async def test_an_error_goes_to_all_and_names_each_ones_index(model: TextEmbedding, gate: Path) -> None:
    gate.touch()
    errors = await model.embed([holding(gate), "bad", "#1", "bad"], on_error="return").collect()
    assert isinstance(errors[1], InputError)
    assert isinstance(errors[3], InputError)
    assert (errors[1].index, errors[3].index) == (1, 3)
    assert model.stats().deduplicated == 1


async def test_a_query_does_not_wait_in_the_lane_of_an_ingest(model: TextEmbedding, gate: Path, tmp_path: Path) -> None:
    """The ingest gets the query's result, and its own input is not computed any more."""
    async with anyio.create_task_group() as group:
        group.start_soon(model.embed_query, holding(gate))
        await held(model, gate)
        bulk = model.query_embed(["#1", "#2", "#3"])
        vectors: list[Any] = []

        async def ingest() -> None:
            vectors.append(await bulk.collect())

        group.start_soon(ingest)
        await until(lambda: model.stats().queued_bulk == 3)
        group.start_soon(model.embed_query, "#3")
        await until(lambda: model.stats().queued_interactive == 1)
        gate.touch()
    computed = [line.split()[-1] for line in (tmp_path / "log").read_text("utf-8").splitlines()]
    assert computed[1] == "#3" or computed[1:3] == ["#1", "#3"]
    assert computed.count("#3") == 1
    assert vectors[0][:, 2].tolist() == [1, 2, 3]


async def test_without_it_each_input_is_computed(tmp_path: Path) -> None:
    async with TextEmbedding(fake_model(dim=4), deduplicate=False) as model:
        await model.embed(["same"] * 8).collect()
        assert (model.stats().items, model.stats().deduplicated) == (8, 0)
    async with TextEmbedding(ECHO, workers=0) as model:  # nobody knows whether its results are equal
        await model.embed(["#1"] * 8).collect()
        assert model.stats().deduplicated == 0


async def test_observers_hear_of_all_inputs_of_a_call() -> None:
    calls: list[Any] = []

    def hear(event: Event) -> None:
        if isinstance(event, CallEnded):
            calls.append(event.call)

    async with TextEmbedding(fake_model(), observers=[hear]) as model:
        await model.embed(["two words"] * 8).collect()
    assert [(call.inputs, call.tokens) for call in calls] == [(8, 16)]


# ---------------------------------------------------------------- the cache

PICTURES = [encoded(picture(8, 8, seed=seed), "PNG") for seed in range(6)]
KINDS: dict[str, tuple[type[Embedder], str, Sequence[Any]]] = {
    "text": (TextEmbedding, "embed", [f"text {n}" for n in range(6)]),
    "sparse": (SparseTextEmbedding, "embed", [f"text {n}" for n in range(6)]),
    "late_interaction": (LateInteractionTextEmbedding, "embed", ["", *[f"text {n}" for n in range(5)]]),
    "hybrid": (HybridTextEmbedding, "embed", [f"text {n}" for n in range(6)]),
    "image": (ImageEmbedding, "embed", PICTURES),
    "cross_encoder": (TextCrossEncoder, "rerank_pairs", [("a query", f"text {n}") for n in range(6)]),
}


class Kept(dict[bytes, bytes]):
    """A cache in memory, as a program may have one."""

    async def get(self, keys: Sequence[bytes], /) -> Sequence[bytes | None]:  # type: ignore[override]
        await anyio.lowlevel.checkpoint()
        return [super(Kept, self).get(key) for key in keys]

    async def put(self, entries: Sequence[tuple[bytes, bytes]], /) -> None:
        self.update(entries)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_computed_once_is_found_the_next_time(kind: str, tmp_path: Path) -> None:
    family, method, inputs = KINDS[kind]
    seen = []
    for _ in range(2):
        async with family(fake_model(kind), cache=tmp_path / "cache") as model:  # type: ignore[arg-type]
            results = [one async for one in getattr(model, method)(inputs).with_tokens()]
            seen.append((results, model.stats()))
    (first, computed), (second, found) = seen
    assert (computed.cache_hits, computed.cache_misses, computed.items) == (0, 6, 6)
    assert (found.cache_hits, found.cache_misses, found.items) == (6, 0, 0)
    for one, other in zip(first, second, strict=True):
        assert (one.tokens, one.is_cut) == (other.tokens, other.is_cut)
        assert (
            np.array_equal(one.result, other.result)
            if isinstance(one.result, np.ndarray)
            else (one.result == other.result)
        )
        assert type(one.result) is type(other.result)


def test_inputs_of_any_source_are_found_under_asyncio_itself() -> None:
    """Those that a thread reads come by a call of the loop, in no task: there, nothing tells anyio where it runs."""

    async def ask() -> None:
        async with TextEmbedding(fake_model(dim=4), cache=Kept()) as model:
            for embed in (model.embed, model.embed, model.embed_chunks, model.embed_chunks):
                await embed(f"text {number}" for number in range(5)).collect()
            assert (model.stats().cache_hits, model.stats().cache_misses) == (10, 10)

    asyncio.run(ask())


async def test_a_query_and_a_document_share_a_result_where_only_their_prompts_differ(tmp_path: Path) -> None:
    directory = write_static(tmp_path, wordpiece())
    async with TextEmbedding(directory, workers=0, prompts={"query": "say: "}, cache=Kept()) as model:
        await model.embed_documents(["a text"])
        query = await model.query_embed(["a text"], prompt="").collect()
        await model.embed(["a text"]).collect()
        assert (model.stats().cache_hits, model.stats().cache_misses) == (2, 1)
        await model.embed_query("a text")
        assert (model.stats().cache_hits, model.stats().cache_misses) == (2, 2)
        assert np.array_equal(query, await model.embed_documents(["a text"]))


async def test_a_result_is_found_for_the_same_call_of_the_same_model_alone() -> None:
    cache = Kept()
    async with TextEmbedding(fake_model(dim=4), cache=cache) as model:
        await model.embed_query("text")
        await model.embed_query("text")
        await model.embed_query("text", prompt="say: ")
        await model.embed_query("text ")
        await model.embed_documents(["text"])
        await model.token_count("text")
        assert (model.stats().cache_hits, model.stats().cache_misses) == (1, 4)
    async with TextEmbedding(fake_model(dim=4, max_length=3), cache=cache) as model:
        await model.embed_query("text")
        assert model.stats().cache_hits == 0


async def test_a_pair_is_not_another_one_that_is_cut_elsewhere() -> None:
    async with TextCrossEncoder(fake_model("cross_encoder"), cache=Kept()) as model:
        await model.rerank_pairs([("ab", "c")]).collect()
        await model.rerank_pairs([("a", "bc")]).collect()
        assert model.stats().cache_misses == 2


async def test_paths_of_images_are_computed_each_time(tmp_path: Path) -> None:
    """The file may be another one the next time."""
    path = tmp_path / "image.png"
    path.write_bytes(PICTURES[0])
    async with ImageEmbedding(fake_model("image"), cache=Kept()) as model:
        await model.embed_images([path, path])
        assert (model.stats().items, model.stats().cache_misses) == (2, 0)


async def test_what_failed_is_not_kept() -> None:
    cache = Kept()
    fakes = Fakes(failures={"bad": EncodeError("told to")})
    for failed in (1, 0):
        async with TextEmbedding(fake_model(fakes=fakes), cache=cache) as model:
            await model.embed(["good", "bad"], on_error="skip").collect()
            assert model.stats().failed == failed
        fakes.failures.clear()
        assert len(cache) == 2 - failed


async def test_places_of_a_bounded_queue_come_back_from_the_cache() -> None:
    async with TextEmbedding(fake_model(), cache=Kept(), max_queued=4) as model:
        for _ in range(4):
            await model.embed_documents([f"text {n}" for n in range(4)])
        with anyio.CancelScope() as scope:
            scope.cancel()
            await model.embed_documents([f"new {n}" for n in range(4)])
        _, engine = opened_model(model)
        await until(lambda: not any(engine._dispatcher._places.values()))  # that were looked for meanwhile
        await model.embed_documents([f"newer {n}" for n in range(4)])
        assert model.stats().cache_hits == 12
        with pytest.raises(InputError, match="max_queued"):
            await model.embed_documents(["too", "many", "for", "the", "queue"])


class Failing(Kept):
    async def get(self, keys: Sequence[bytes], /) -> Sequence[bytes | None]:  # type: ignore[override]
        raise ConnectionError("out of reach")


class Violent(Kept):
    async def get(self, keys: Sequence[bytes], /) -> Sequence[bytes | None]:  # type: ignore[override]
        raise BaseExceptionGroup("of a driver", [GeneratorExit()])


class Odd(Kept):
    async def get(self, keys: Sequence[bytes], /) -> Sequence[bytes | None]:  # type: ignore[override]
        return ["no bytes"] * len(keys)  # type: ignore[list-item]


class ReadOnly(Kept):
    async def put(self, entries: Sequence[tuple[bytes, bytes]], /) -> None:
        raise PermissionError("read only")


async def test_what_cannot_be_written_to_is_looked_into_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    cache = ReadOnly()
    async with TextEmbedding(fake_model(), cache=(full := Kept())) as model:
        await model.embed(["a", "b"]).collect()
    cache.update(full)
    async with TextEmbedding(fake_model(), cache=cache) as model:
        for text in ("new", "a", "newer", "b"):
            await model.embed_query(text) if text.startswith("n") else await model.embed([text]).collect()
        assert (model.stats().cache_hits, model.stats().cache_misses) == (2, 2)
    assert caplog.text.count("cache of vectors failed") == 1


@pytest.mark.parametrize("cache", [Failing(), Violent(), Odd()])
async def test_a_cache_that_fails_costs_a_warning(cache: Kept, caplog: pytest.LogCaptureFixture) -> None:
    async with TextEmbedding(fake_model(), cache=cache) as model:
        for _ in range(3):
            await model.embed([f"text {n}" for n in range(100)]).collect()
        assert model.stats().items == 300
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len([message for message in warnings if "cache of vectors failed (get)" in message]) == 1


@pytest.mark.parametrize("damage", [lambda value: value[:-1] + b"?", lambda value: b"", lambda value: value[8:]])
async def test_what_is_damaged_is_computed_again(damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    cache = Kept()
    async with TextEmbedding(fake_model(), cache=cache) as model:
        vectors = await model.embed(["a", "b", "c"]).collect()
    key = next(iter(cache))
    cache[key] = damage(cache[key])
    for items in (1, 0):
        async with TextEmbedding(fake_model(), cache=cache) as model:
            assert np.array_equal(await model.embed(["a", "b", "c"]).collect(), vectors)
            assert model.stats().items == items
    assert sum("is damaged" in record.getMessage() for record in caplog.records) == 1


async def test_values_under_one_anothers_keys_are_taken_for_damaged() -> None:
    cache = Kept()
    async with TextEmbedding(fake_model(), cache=cache) as model:
        vectors = await model.embed(["a", "b"]).collect()
    one, other = cache
    cache[one], cache[other] = cache[other], cache[one]
    async with TextEmbedding(fake_model(), cache=cache) as model:
        assert np.array_equal(await model.embed(["a", "b"]).collect(), vectors)


@pytest.mark.parametrize("content", [b"no database " * 1000, b"", None])
async def test_a_broken_file_costs_a_warning_and_stays(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache"
    if content is None:  # somebody else's
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE mine (number)")
        other.close()
        content = path.read_bytes()
    else:
        path.write_bytes(content)
    async with TextEmbedding(fake_model(), cache=path) as model:
        assert len(await model.embed(["a", "b"]).collect()) == 2
    if content:
        assert path.read_bytes() == content
        assert "cache of vectors failed" in caplog.text
    else:
        assert VectorCacheFile(path).path == path
        assert path.stat().st_size
        assert "cache" not in caplog.text


def test_what_cannot_be_a_cache_is_refused() -> None:
    with pytest.raises(OptionError, match="cache must be a path"):
        TextEmbedding(cache={})  # type: ignore[call-overload]
