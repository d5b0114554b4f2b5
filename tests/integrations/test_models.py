"""What adapters share: whatever model they are handed, it answers coroutines on any loop and threads without one."""

import copy
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import numpy as np
import pytest

from asyncembed import TextCrossEncoder, TextEmbedding, sync
from asyncembed.errors import OptionError, StateError, UsageError
from asyncembed.integrations._models import LISTED_AT_ONCE, Model, as_lists
from asyncembed.testing import Fakes, fake_model, fake_models
from tests.support.frameworks import FRAMEWORKS, is_installed
from tests.support.waiting import until

NAME = "BAAI/bge-small-en-v1.5"


@pytest.fixture
def fakes() -> Iterator[Fakes]:
    with fake_models() as fakes:
        yield fakes


GIVEN: dict[str, Callable[[], object]] = {
    "a name": lambda: NAME,
    "a spec": fake_model,
    "a model that is not open": lambda: TextEmbedding(NAME),
    "a model on any loop": lambda: TextEmbedding(NAME).on_any_loop(),
    "a synchronous model": lambda: sync.TextEmbedding(NAME),
}
every_given = pytest.mark.parametrize("given", GIVEN)


async def query(model: TextEmbedding[Any]) -> Any:
    return await model.embed_query("what is it?")


async def test_frameworks_are_installed_all_or_none() -> None:
    """Else tests would be missing in silence: they are left out only where the whole group of dependencies is."""
    missing = [name for name in FRAMEWORKS if not is_installed(name)]
    assert not missing or not is_installed("langchain")


@every_given
async def test_coroutines_and_threads_are_answered_alike(given: str, fakes: Fakes) -> None:
    model = Model(TextEmbedding, GIVEN[given]())
    awaited = await query(model.anywhere)
    blocking = await anyio.to_thread.run_sync(lambda: model.run(query, instead="aquery"))
    assert awaited.shape == (384,) if given != "a spec" else (32,)
    np.testing.assert_array_equal(awaited, blocking)
    streamed = await model.anywhere.query_embed(["what is it?"]).collect()
    np.testing.assert_array_equal(streamed[0], awaited)


async def test_a_model_that_the_program_has_opened_is_used_on_its_own_loop(fakes: Fakes) -> None:
    async with TextEmbedding(NAME) as opened:
        model = Model(TextEmbedding, opened)
        await query(model.anywhere)
        await anyio.to_thread.run_sync(lambda: model.run(query, instead="aquery"))
        assert opened.stats().items == 2
        await model.aclose()
        assert opened.stats().items == 2, "it is the program's to close"
    with pytest.raises(StateError, match="was closed"):
        await query(model.anywhere)


async def test_a_closed_synchronous_model_stays_closed(fakes: Fakes) -> None:
    given = sync.TextEmbedding(NAME)
    model = Model(TextEmbedding, given)
    await query(model.anywhere)
    await anyio.to_thread.run_sync(given.close)
    with pytest.raises(StateError, match="was closed"):
        await query(model.anywhere)


async def test_an_engine_closes_with_its_adapter_and_opens_again(fakes: Fakes) -> None:
    # An engine that no other test has.
    model, other = Model(TextEmbedding, NAME, max_length=77), TextEmbedding(NAME, max_length=77).on_any_loop()
    await query(model.anywhere)
    await model.aclose()
    with pytest.raises(StateError):
        model.anywhere.stats()
    await query(model.anywhere)
    assert model.anywhere.stats().items == 1
    await query(other)
    await model.aclose()
    assert other.stats().items == 2, "others use it"
    await anyio.to_thread.run_sync(model.close)


async def test_a_call_that_blocks_a_loop_says_so_once(fakes: Fakes) -> None:
    model = Model(TextEmbedding, NAME)

    def embed_query() -> Any:
        return model.run(query, instead="aembed_query")

    def twice() -> list[Any]:
        return [embed_query(), embed_query()]

    with pytest.warns(RuntimeWarning, match=r"blocks the event loop.*await aembed_query\(") as caught:
        first, second = twice()
    assert [warning.filename for warning in caught] == [__file__], "where the adapter was called"
    np.testing.assert_array_equal(first, second)


async def test_whoever_allows_it_is_not_warned(fakes: Fakes) -> None:
    model = Model(TextEmbedding, sync.TextEmbedding(NAME, allow_in_loop=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.run(query, instead="aembed_query")


async def test_threads_are_not_warned(fakes: Fakes) -> None:
    model = Model(TextEmbedding, NAME)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await anyio.to_thread.run_sync(lambda: model.run(query, instead="aquery"))


async def test_a_call_that_would_wait_for_its_own_loop_is_refused(fakes: Fakes) -> None:
    async with TextEmbedding(NAME) as opened:
        model = Model(TextEmbedding, opened)
        with pytest.raises(UsageError, match=r"for ever: `await aembed_query\("):
            model.run(query, instead="aembed_query")


async def test_a_call_that_is_cancelled_is_withdrawn(fakes: Fakes) -> None:
    model = Model(TextEmbedding, NAME, workers=1)
    await query(model.anywhere)
    fakes.seconds = 60
    with anyio.move_on_after(0.05):
        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(model.anywhere.embed_query, f"text {number}")
    await until(lambda: model.anywhere.stats().queued == 0)
    fakes.seconds = 0


@every_given
async def test_it_is_pickled_as_what_it_was_made_of(given: str, fakes: Fakes) -> None:
    model = Model(TextEmbedding, GIVEN[given]())
    before = await query(model.anywhere)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(await query(again.anywhere), before)


async def test_an_open_model_is_pickled_as_what_it_was_made_of(fakes: Fakes) -> None:
    async with TextEmbedding(NAME, truncate_dim=64) as opened:
        pickled = pickle.dumps(Model(TextEmbedding, opened))
    again: Model[TextEmbedding[Any]] = pickle.loads(pickled)
    assert (await query(again.anywhere)).shape == (64,)


@every_given
def test_a_copy_is_the_same_object(given: str) -> None:
    model = Model(TextEmbedding, GIVEN[given]())
    assert copy.copy(model) is copy.deepcopy(model) is model


def test_what_was_named_can_be_written_down(tmp_path: Path) -> None:
    model = Model(TextEmbedding, NAME, truncate_dim=64, keep_alive=5.0)
    written = model.configuration()
    assert written == {"model": NAME, "truncate_dim": 64, "keep_alive": 5.0}
    assert Model(TextEmbedding, **written).configuration() == written
    assert Model(TextEmbedding, tmp_path).configuration() == {"model": str(tmp_path)}
    with pytest.raises(UsageError, match="name and options"):
        Model(TextEmbedding, TextEmbedding(NAME)).configuration()


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(OptionError, match=r"model= takes a TextEmbedding.*got 7"):
        Model(TextEmbedding, 7)
    for reranker in (TextCrossEncoder, sync.TextCrossEncoder):
        with pytest.raises(OptionError, match=r"model= takes a TextEmbedding.*TextCrossEncoder"):
            Model(TextEmbedding, reranker("Xenova/ms-marco-MiniLM-L-6-v2"))
    with pytest.raises(OptionError, match="unknown"):
        Model(TextEmbedding, NAME, no_such=1)


@pytest.mark.parametrize("given", [TextEmbedding(NAME), sync.TextEmbedding(NAME)])
def test_options_go_with_a_name(given: object) -> None:
    with pytest.raises(OptionError, match=r"^truncate_dim, keep_alive: give this to the model's constructor"):
        Model(TextEmbedding, given, truncate_dim=64, keep_alive=5)


def test_several_threads_have_one_engine(fakes: Fakes) -> None:
    models = [Model(TextEmbedding, NAME) for _ in range(4)]

    async def ask(model: TextEmbedding[Any]) -> Any:
        return await model.embed_query(f"query {next(numbers)}")  # equal ones would be computed once

    numbers = count()
    threads = [threading.Thread(target=model.run, args=(ask,), kwargs={"instead": ""}) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert models[0].anywhere.stats().items == 4


async def test_lists_are_made_in_steps_between_which_the_loop_goes_on() -> None:
    matrix = np.arange(40 * LISTED_AT_ONCE, dtype=np.float32).reshape(-1, 128)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(count)
        lists = await as_lists(matrix)
        group.cancel_scope.cancel()
    assert lists == matrix.tolist()
    assert turns >= 35
    assert await as_lists(matrix[:0]) == []
    assert await as_lists(matrix[0]) == matrix[0].tolist()
