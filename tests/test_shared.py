"""One engine for all who ask for the same model."""

import copy
import gc
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from asyncembed import background, sync
from asyncembed.embedders.image import ImageEmbedding
from asyncembed.embedders.sparse import SparseTextEmbedding
from asyncembed.embedders.text import TextEmbedding
from asyncembed.engine.lifetime import Openable
from asyncembed.engine.pool import WorkerPool
from asyncembed.errors import ModelLoadError, StateError, UsageError
from asyncembed.shared import Lease
from tests.support import posix
from tests.support.encoders import ECHO
from tests.support.waiting import until

pytestmark = pytest.mark.slow  # each test opens an engine and sees it go


def echo(**settings: Any) -> TextEmbedding[np.float32]:
    return TextEmbedding(replace(ECHO, settings=settings), workers=0)


def embed(lease: Lease[TextEmbedding[np.float32]], text: str = "four") -> int:
    vector = background.run(lease.call, lambda model: model.embed_query(text))
    return int(vector[0])


@pytest.fixture(autouse=True)
def _no_engine_stays() -> Iterator[None]:
    """Every lease of a test is gone with it."""
    yield
    gc.collect()


def test_the_first_call_opens_the_engine_and_the_last_lease_closes_it() -> None:
    first, second = Lease(echo()), Lease(echo())
    assert first.model is None
    assert embed(first) == 4
    assert first.model is second.model is not None
    background.run(first.aclose)
    assert embed(second) == 4
    with pytest.raises(StateError, match="closed"):
        embed(first)
    background.run(second.aclose)
    assert second.model is None


async def test_a_lease_that_is_dropped_is_given_back() -> None:
    lease, watcher = Lease(echo()), Lease(echo())
    await background.run_async(lease.call, lambda model: model.embed_query("four"))
    model = lease.model
    assert model is not None
    watcher.close()
    assert lease.model is model
    del lease
    gc.collect()
    with pytest.raises(StateError):
        await until(lambda: model.stats() is None)


def test_what_is_written_differently_and_is_the_same_is_one_engine(tmp_path: Path) -> None:
    one = Lease(
        TextEmbedding(tmp_path, prompts={"query": "q: ", "document": "d: "}, providers=["CPUExecutionProvider"])
    )
    other = Lease(
        TextEmbedding(
            tmp_path, prompts={"document": "d: ", "query": "q: "}, providers=("CPUExecutionProvider",), progress=False
        )
    )
    assert one._share is other._share


def test_what_differs_in_class_name_or_options_is_not_shared(tmp_path: Path) -> None:
    leases = [
        Lease[Openable[Any]](model)
        for model in (
            TextEmbedding(tmp_path),
            TextEmbedding(tmp_path / "other"),
            TextEmbedding(tmp_path, workers=0),
            TextEmbedding(tmp_path, workers=1),
            TextEmbedding(tmp_path, truncate_dim=1),
            TextEmbedding(tmp_path, dtype="float16"),
            SparseTextEmbedding(tmp_path),
        )
    ]
    assert len({id(lease._share) for lease in leases}) == len(leases)


async def test_a_model_goes_to_another_process_as_one_that_opens_its_own() -> None:
    """As the function of a process pool brings it along, or a job of Spark: also one that is open here."""
    async with echo() as opened:
        anywhere, blocking = echo().on_any_loop(keep_alive=9), sync.TextEmbedding(replace(ECHO, settings={}), workers=0)
        await anywhere.embed_query("four")
        await anyio.to_thread.run_sync(blocking.embed_query, "four")
        for model in (opened, anywhere, blocking):
            for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
                assert "not open" in repr(twin)
                told: Any = twin.on_any_loop() if isinstance(twin, TextEmbedding) else twin
                assert (await asked(told, "twin"))[0] == 4
                assert told.stats().workers == 1
        assert (await opened.embed_query("still"))[0] == 5
    image = pickle.loads(pickle.dumps(ImageEmbedding("a/b", url_timeout=3.0)))
    assert Lease(image)._share is Lease(ImageEmbedding("a/b", url_timeout=3.0))._share
    with pytest.raises(UsageError, match="make another one"):
        pickle.dumps(WorkerPool(workers=0))


async def asked(model: Any, text: str) -> Any:
    if isinstance(model, sync.TextEmbedding):
        return await anyio.to_thread.run_sync(model.embed_query, text)
    return await model.embed_query(text)


def test_a_hundred_first_calls_open_once(tmp_path: Path) -> None:
    log = tmp_path / "loads"
    with ThreadPoolExecutor(20) as executor:
        leases = [Lease(echo(load_log=log)) for _ in range(100)]
        assert set(executor.map(embed, leases)) == {4}
    assert len(log.read_text(encoding="utf-8").splitlines()) == 1


def test_an_engine_that_could_not_be_opened_is_tried_again(tmp_path: Path) -> None:
    obstacle = tmp_path / "obstacle"
    obstacle.touch()
    leases = [Lease(echo(refuse_if=obstacle)) for _ in range(5)]
    with ThreadPoolExecutor(5) as executor:
        errors = [executor.submit(embed, lease).exception() for lease in leases]
    assert {type(error) for error in errors} == {ModelLoadError}
    obstacle.unlink()
    assert embed(leases[0]) == 4


async def test_a_caller_that_gives_up_while_it_opens_does_not_take_it_from_the_others(gate: Path) -> None:
    lease = Lease(echo(load_when=gate))

    async def call() -> None:
        await background.run_async(lease.call, lambda model: model.embed_query("four"))

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        with anyio.move_on_after(0.1) as impatient:
            await call()
        assert impatient.cancelled_caught
        gate.touch()
    assert lease.model is not None


async def test_an_opening_that_nobody_waits_for_any_more_is_given_up(gate: Path) -> None:
    lease = Lease(echo(load_when=gate))
    with anyio.move_on_after(0.1) as scope:
        await background.run_async(lease.call, lambda model: model.embed_query("four"))
    assert scope.cancelled_caught
    assert lease._share._current() is None
    gate.touch()
    assert await background.run_async(lease.call, lambda model: model.embed_query("four")) is not None


async def test_an_engine_that_nobody_used_for_a_while_is_closed_and_opened_again_by_the_next_call(
    tmp_path: Path,
) -> None:
    log = tmp_path / "loads"
    lease = Lease(echo(load_log=log), keep_alive=0.05)

    async def call() -> int:
        vector = await background.run_async(lease.call, lambda model: model.embed_query("four"))
        return int(vector[0])

    assert await call() == 4
    await until(lambda: lease.model is None)
    assert await call() == 4
    assert len(log.read_text(encoding="utf-8").splitlines()) == 2


async def test_an_engine_stays_while_it_is_used_and_while_one_lease_wants_it_longer() -> None:
    short, long = Lease(echo(), keep_alive=0.01), Lease(echo())
    use = await background.run_async(short.use)
    await background.run_async(anyio.sleep, 0.1)
    assert short.model is use.model
    background.post(use.end)
    await background.run_async(anyio.sleep, 0.1)
    assert short.model is use.model
    long.close()
    await until(lambda: short.model is None)


def test_unloading_ends_what_runs_with_an_error_and_the_next_call_loads_again(tmp_path: Path) -> None:
    lease = Lease(echo())
    embed(lease)
    with ThreadPoolExecutor(1) as executor:
        call = executor.submit(embed, lease, f"mark:{tmp_path / 'begun'} wait:{tmp_path / 'gate'}")
        while not (tmp_path / "begun").exists():
            pass
        unloaded = executor.submit(background.run, lease.unload)
        with pytest.raises(StateError, match="closed"):
            background.run(lease.unload)
            call.result(10)
        (tmp_path / "gate").touch()
        unloaded.result(10)
    assert embed(lease) == 4


@pytest.mark.slow
@pytest.mark.posix
def test_a_forked_child_opens_an_engine_of_its_own() -> None:
    lease = Lease(echo())
    embed(lease)
    child = posix.fork()
    if child == 0:
        try:
            is_new = lease.model is None
            assert embed(lease) == 4
            background.run(lease.aclose)
            os._exit(7 if is_new else 2)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert embed(lease) == 4
