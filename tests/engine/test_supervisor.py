"""The worker pool with real workers: what they compute, and what becomes of it when they die."""

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import FrozenInstanceError, replace
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import anyio
import psutil
import pytest

from asyncembed.embedders.text import TextEmbedding
from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.engine import dispatch, niceness
from asyncembed.engine import pool as pool_module
from asyncembed.engine import slot as slot_module
from asyncembed.engine.cores import available_cores
from asyncembed.engine.model import Stats
from asyncembed.engine.pool import WorkerPool, engine_of
from asyncembed.engine.scheduler import BatchKey, Item, Priority
from asyncembed.errors import (
    EncodeError,
    InputError,
    ModelLoadError,
    OptionError,
    StateError,
    WorkerCrashed,
)
from tests.support import programs
from tests.support.encoders import ECHO, with_settings
from tests.support.killing import kill
from tests.support.waiting import WAIT_SECONDS, nothing_left_behind, until

if TYPE_CHECKING:
    from asyncembed.options import OptionKeywords

pytestmark = pytest.mark.slow


class Inbox:
    """A sink that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: dict[int, object] = {}

    def deliver(self, index: int, result: object) -> None:
        assert index not in self.heard, "heard twice"
        self.heard[index] = result

    def fail(self, index: int, error: Exception) -> None:
        self.deliver(index, error)


async def numbers(model: TextEmbedding, texts: Sequence[str]) -> list[object]:
    """The number in each result, or its error."""
    stream = model.embed(texts, on_error="return")
    return [result if isinstance(result, Exception) else int(result[2]) async for result in cast(Any, stream)]


@pytest.fixture(scope="module")
async def pool(anyio_backend: str) -> AsyncGenerator[WorkerPool]:
    """Two workers for tests that kill none."""
    async with WorkerPool(workers=2) as pool:
        yield pool


def numbered(count: int, **special: str) -> list[str]:
    """Texts with their index; `at_3="crash"` puts a word into one of them."""
    return [f"#{i} {special.get(f'at_{i}', '')}" for i in range(count)]


def only_error(results: Sequence[object], index: int) -> object:
    """The error at `index`, after a check that all others have their results."""
    assert [result for result in results if isinstance(result, int)] == [i for i in range(len(results)) if i != index]
    return results[index]


# ---------------------------------------------------------------- deaths


async def test_an_idle_worker_that_is_killed_is_replaced() -> None:
    async with nothing_left_behind(), WorkerPool(workers=2) as pool, TextEmbedding(ECHO, pool=pool) as model:
        before = pool.worker_pids()
        kill(before[0])
        await until(lambda: len(set(pool.worker_pids()) - set(before)) == 1)
        assert before[1] in pool.worker_pids()
        assert model.stats().workers_restarted == 1
        assert await numbers(model, numbered(20)) == list(range(20))


async def test_a_worker_killed_at_work_loses_nothing(tmp_path: Path, gate: Path) -> None:
    mark = tmp_path / "mark"
    texts = numbered(50, at_7=f"mark:{mark} wait:{gate}")
    async with nothing_left_behind(), WorkerPool(workers=2) as pool, TextEmbedding(ECHO, pool=pool) as model:
        results: list[object] = []

        async def consume() -> None:
            results.extend(await numbers(model, texts))

        async with anyio.create_task_group() as group:
            group.start_soon(consume)
            await until(lambda: mark.exists() and bool(mark.read_text("utf-8")))
            gate.touch()
            kill(int(mark.read_text("utf-8")))
        assert results == list(range(50))


async def test_all_workers_killed_at_once_lose_nothing(tmp_path: Path, gate: Path) -> None:
    async with WorkerPool(workers=2) as pool, TextEmbedding(ECHO, pool=pool, max_batch_size=5) as model:
        marks = [tmp_path / "mark0", tmp_path / "mark1"]
        results: list[object] = []

        async def consume() -> None:
            texts = [f"{text} wait:{gate} mark:{marks[i % 2]}" for i, text in enumerate(numbered(50))]
            results.extend(await numbers(model, texts))

        async with anyio.create_task_group() as group:
            group.start_soon(consume)
            await until(lambda: model.stats().in_flight == 2)
            for pid in pool.worker_pids():
                kill(pid)
            gate.touch()
        assert results == list(range(50))
        assert model.stats().workers_restarted == 2


async def test_a_poisonous_input_fails_alone() -> None:
    """It kills every worker that computes it; its neighbours in the batch are computed all the same."""
    async with nothing_left_behind(), TextEmbedding(ECHO, workers=2) as model:
        error = only_error(await numbers(model, numbered(10, at_6="crash")), 6)
        assert isinstance(error, WorkerCrashed)
        assert error.index == 6
        assert model.stats().failed == 1
        assert await numbers(model, numbered(5)) == list(range(5))


async def test_an_input_that_kills_once_is_computed(tmp_path: Path) -> None:
    async with TextEmbedding(ECHO, workers=1) as model:
        texts = numbered(5, at_2=f"crash-once:{tmp_path / 'crashed'}")
        assert await numbers(model, texts) == list(range(5))
        assert model.stats().workers_restarted == 1


async def test_a_query_that_hangs_ends_at_the_batch_timeout() -> None:
    async with nothing_left_behind(), TextEmbedding(ECHO, workers=2, batch_timeout=0.5) as model:
        with pytest.raises(WorkerCrashed, match="did not answer in time") as caught:
            await model.embed_query("hang")
        assert caught.value.index is None
        assert await numbers(model, numbered(5)) == list(range(5))


async def test_a_worker_that_dies_in_the_middle_of_its_answer_is_replaced() -> None:
    """As one that is killed while a result is on its way, which is longer than a pipe holds."""
    async with nothing_left_behind(), TextEmbedding(ECHO, workers=1, batch_timeout=None) as model:
        error = only_error(await numbers(model, numbered(3, at_1="die-answering")), 1)
        assert isinstance(error, WorkerCrashed)


def has_been_replaced(model: TextEmbedding, restarts_before: int) -> bool:
    stats = model.stats()
    return stats.workers_restarted == restarts_before + 1 and stats.workers_ready == 1


async def test_a_worker_killed_after_its_last_answer_is_replaced_at_once(gate: Path) -> None:
    """Before that answer is taken, so that it still counts as work in flight."""
    async with WorkerPool(workers=1) as pool, TextEmbedding(ECHO, pool=pool) as model:
        for _ in range(3):
            before = model.stats().workers_restarted
            gate.unlink(missing_ok=True)
            async with anyio.create_task_group() as group:
                group.start_soon(model.embed_query, f"wait:{gate}")
                await until(lambda: model.stats().in_flight == 1)
                gate.touch()
                worker = psutil.Process(pool.worker_pids()[0])
                # The loop stands still meanwhile, as in a busy program.
                while not engine_of(pool)._lives[0].futures[0].done():
                    pass
                worker.kill()
                with suppress(psutil.NoSuchProcess):
                    while worker.status() != psutil.STATUS_ZOMBIE:
                        pass
            await until(partial(has_been_replaced, model, before))


async def test_a_query_does_not_wait_until_a_bad_input_is_found() -> None:
    """That may take many deaths, and each of them as long as a batch may take."""
    options: dict[str, Any] = {"workers": 1, "interactive_workers": 0, "batch_timeout": 0.4}
    async with TextEmbedding(ECHO, **options) as model, anyio.create_task_group() as group:
        group.start_soon(numbers, model, numbered(32, at_20="hang"))
        await until(lambda: model.stats().in_flight == 1)
        assert (await model.embed_query("#7"))[2] == 7
        stats = model.stats()
        assert stats.workers_restarted == 1
        assert stats.in_flight or stats.queued_bulk, "the rest is put back, and counted"
        group.cancel_scope.cancel()


async def test_a_bad_input_is_found_while_queries_never_end() -> None:
    options: dict[str, Any] = {"workers": 1, "interactive_workers": 0, "batch_timeout": 0.3}
    async with TextEmbedding(ECHO, **options) as model, anyio.create_task_group() as group:

        async def ask() -> None:
            while True:
                await model.embed_query("#1")

        for _ in range(8):
            group.start_soon(ask)
        error = only_error(await numbers(model, numbered(4, at_2="hang")), 2)
        assert isinstance(error, WorkerCrashed)
        group.cancel_scope.cancel()


async def test_an_input_withdrawn_after_it_killed_a_worker_is_not_tried_again(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    async with TextEmbedding(ECHO, workers=1) as model:
        async with anyio.create_task_group() as group:
            group.start_soon(model.embed_query, f"mark:{mark} hang")
            await until(mark.exists)
            group.cancel_scope.cancel()
        kill(int(mark.read_text("utf-8")))
        assert await numbers(model, numbered(5)) == list(range(5))
        assert model.stats().workers_restarted == 1


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("word", ["raise-KeyboardInterrupt", "raise-GeneratorExit", "raise-MemoryError", "raise-own"])
async def test_whatever_an_input_raises_it_fails_alone(word: str, workers: int) -> None:
    async with TextEmbedding(ECHO, workers=workers) as model:
        error = only_error(await numbers(model, numbered(4, at_2=word)), 2)
        assert isinstance(error, EncodeError)
        assert model.stats().workers_restarted == 0


# ---------------------------------------------------------------- shortages

SHORTAGE = """
import os, resource, signal, sys, threading
import anyio
from asyncembed.embedders.text import TextEmbedding
from asyncembed.errors import WorkerError
from tests.support.encoders import ECHO
from tests.support.killing import kill

def descriptors(is_short):
    most = len(os.listdir("/proc/self/fd")) + 2 if is_short else before[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))

def threads(is_short):
    threading.Thread.start = refuse if is_short else start

def refuse(thread):
    raise RuntimeError("can't start new thread")

before, start = resource.getrlimit(resource.RLIMIT_NOFILE), threading.Thread.start
shorten = globals()[sys.argv[1]]

async def main():
    async with TextEmbedding(ECHO, workers=1) as model:
        pool = model._opened.engine
        (pid,) = pool.worker_pids()
        shorten(True)
        kill(pid)
        try:
            with anyio.fail_after(30):
                await model.embed_query("a")
        except WorkerError as error:
            print(type(error).__name__, "cannot be started" in str(error) or "no thread can be started" in str(error))
        shorten(False)
        with anyio.fail_after(30):
            while not pool.worker_pids():
                await anyio.sleep(0.01)
            print(len(await model.embed_documents(["a", "b"])))

anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.parametrize(("what", "anyio_backend"), [("descriptors", "asyncio"), ("threads", "trio")])
def test_a_worker_that_dies_in_a_shortage_is_replaced_when_it_has_passed(
    what: str, tmp_path: Path, anyio_backend: str
) -> None:
    done = programs.run(SHORTAGE, tmp_path, what, anyio_backend)
    assert done.stdout == "WorkerError True\n2\n"
    assert "Traceback" not in done.stderr


LIMITED = """
import resource, sys
import anyio
from asyncembed.embedders.text import TextEmbedding
from asyncembed.errors import WorkerError
from tests.support.encoders import ECHO

async def main():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in map(int, sys.argv[2:]):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
        try:
            async with TextEmbedding(ECHO, workers=2) as model:
                print(len(await model.embed_documents(["a", "b"])))
        except WorkerError as error:
            print(2 if "workers=0" in str(error) else error)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

anyio.run(main, backend=sys.argv[1])
"""


def test_with_too_few_descriptors_opening_works_or_says_so(tmp_path: Path, anyio_backend: str) -> None:
    limits = [str(most) for most in (range(12, 29, 8) if anyio_backend == "asyncio" else range(16, 29, 8))]
    done = programs.run(LIMITED, tmp_path, anyio_backend, *limits)
    assert (done.returncode, done.stdout) == (0, "2\n" * len(limits)), done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- failures that kill nobody


@pytest.mark.parametrize(
    ("word", "kind", "message"),
    [
        ("raise", EncodeError, "told to fail"),
        ("raise-input", InputError, "told to refuse all"),
        ("exit", EncodeError, "SystemExit"),
        ("odd-count", EncodeError, "0 results for 1 inputs"),
        ("bad", InputError, "refused"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
async def test_an_input_that_fails_its_batch_fails_alone(
    word: str, kind: type[EncodeError | InputError], message: str, workers: int, pool: WorkerPool
) -> None:
    options: OptionKeywords = {"pool": pool} if workers else {"workers": 0}
    async with TextEmbedding(ECHO, **options) as model:
        error = only_error(await numbers(model, numbered(6, at_4=word)), 4)
        assert isinstance(error, kind)
        assert message in str(error)
        assert error.index == 4
        assert model.stats().workers_restarted == 0


async def test_a_result_that_cannot_be_pickled_fails_alone(pool: WorkerPool) -> None:
    async with TextEmbedding(ECHO, pool=pool) as model:
        error = only_error(await numbers(model, numbered(6, at_4="unpicklable")), 4)
        assert isinstance(error, EncodeError)
        assert "pickle" in str(error)


async def test_an_input_that_cannot_be_pickled_fails_alone(pool: WorkerPool) -> None:
    class Stubborn:
        def __reduce_ex__(self, protocol: object) -> str:
            raise TypeError("not over the wire")

    model = engine_of(pool).add_model(EncoderConfig(spec=ECHO, directory=Path()))
    inbox = Inbox()
    values: list[object] = ["#0", "#1", Stubborn(), "#3"]
    batch_key = BatchKey(model.key, Call(), 2048, 8)
    engine_of(pool).submit(
        [Item(value, 3, batch_key, Priority.BULK, inbox, index) for index, value in enumerate(values)]
    )
    await until(lambda: len(inbox.heard) == 4)
    engine_of(pool).remove_model(model)
    error = inbox.heard.pop(2)
    assert isinstance(error, EncodeError)
    assert "not over the wire" in str(error)
    assert {index: int(cast(Any, row)[2]) for index, row in inbox.heard.items()} == {0: 0, 1: 1, 3: 3}


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("workers", [0, 2])
async def test_a_model_that_cannot_load_fails_the_opening_with_the_workers_own_words(workers: int) -> None:
    async with nothing_left_behind():
        with pytest.raises(ModelLoadError, match="echo cannot be loaded: RuntimeError: no such tensor"):
            async with TextEmbedding(with_settings(refuse="no such tensor"), workers=workers):
                pytest.fail("it cannot open")


async def test_a_model_that_kills_its_workers_while_it_loads_fails_the_opening() -> None:
    async with nothing_left_behind():
        with pytest.raises(ModelLoadError, match="workers die while they load echo"):
            async with TextEmbedding(with_settings(die="now"), workers=1):
                pytest.fail("it cannot open")


async def test_giving_up_an_opening_ends_workers_that_load(tmp_path: Path) -> None:
    log = tmp_path / "loads"
    async with nothing_left_behind(), anyio.create_task_group() as group:
        model = TextEmbedding(with_settings(load_log=str(log), hang="yes"), workers=2)
        group.start_soon(model.__aenter__)
        await until(log.exists)
        group.cancel_scope.cancel()


@pytest.mark.parametrize("way", ["refuse_if", "die_if"])
async def test_a_worker_that_cannot_load_again_costs_no_input(way: str, tmp_path: Path) -> None:
    """A replaced worker may lack the memory that it had before: the others go on, and it tries again."""
    trouble = tmp_path / "trouble"
    spec = with_settings(**{way: str(trouble)})
    async with WorkerPool(workers=2) as pool, TextEmbedding(spec, pool=pool, max_batch_size=1) as model:
        trouble.touch()
        kill(pool.worker_pids()[0])
        await until(lambda: model.stats().workers_restarted >= 3)
        assert await numbers(model, numbered(20)) == list(range(20))
        trouble.unlink()
        with anyio.fail_after(WAIT_SECONDS):
            while len({int(row[1]) for row in await model.embed_documents(numbered(40))}) < 2:
                pass  # until both processes compute again


async def test_when_no_worker_can_load_again_the_inputs_fail_and_nothing_hangs(tmp_path: Path) -> None:
    trouble = tmp_path / "trouble"
    async with WorkerPool(workers=1) as pool, TextEmbedding(with_settings(die_if=str(trouble)), pool=pool) as model:
        trouble.touch()
        kill(pool.worker_pids()[0])
        with pytest.raises(ModelLoadError):
            await model.embed_query("#1")
        trouble.unlink()
        assert await numbers(model, numbered(3)) == list(range(3))


async def test_a_model_that_only_some_workers_can_load_fails_the_opening(tmp_path: Path) -> None:
    """As where there is memory for one copy and not for two."""
    spec = with_settings(only_first=str(tmp_path / "loaded"))
    async with nothing_left_behind():
        with pytest.raises(ModelLoadError, match="workers die while they load echo .* is there memory for it"):
            async with TextEmbedding(spec, workers=1, interactive_workers=1):
                pytest.fail("it cannot open")


async def test_a_model_opens_though_another_kills_a_worker_again_and_again(tmp_path: Path) -> None:
    trouble = tmp_path / "trouble"
    async with WorkerPool(workers=2) as pool, TextEmbedding(with_settings(die_if=str(trouble)), pool=pool) as model:
        trouble.touch()
        kill(pool.worker_pids()[0])
        await until(lambda: model.stats().workers_restarted >= 3)
        async with TextEmbedding(replace(ECHO, name="echo 2"), pool=pool) as other:
            assert await numbers(other, numbered(5)) == list(range(5))
        assert await numbers(model, numbered(5)) == list(range(5))


async def test_a_model_loads_with_its_first_batch_or_ahead_of_it(tmp_path: Path) -> None:
    log = tmp_path / "loads"
    config = EncoderConfig(spec=with_settings(load_log=str(log)), directory=Path())
    async with WorkerPool(workers=2) as pool:
        model = engine_of(pool).add_model(config)
        assert not log.exists()
        inbox = Inbox()
        engine_of(pool).submit([Item("#7", 3, BatchKey(model.key, Call(), 2048, 8), Priority.BULK, inbox, 0)])
        await until(lambda: 0 in inbox.heard)
        assert len(log.read_text("utf-8").splitlines()) == 1
        await engine_of(pool).warm(model)
        assert len(log.read_text("utf-8").splitlines()) == 2


async def test_devices_are_dealt_out_and_cores_shared(tmp_path: Path) -> None:
    log = tmp_path / "loads"
    async with TextEmbedding(with_settings(load_log=str(log)), device_ids=[4, 7]) as model:
        assert model.stats().workers == 2
    loads = [line.split() for line in log.read_text("utf-8").splitlines()]
    assert sorted(device for _, device, _ in loads) == ["4", "7"]
    threads = max(1, available_cores() // 2)
    assert {threads_of for _, _, threads_of in loads} == {str(threads)}


# ---------------------------------------------------------------- one pool, several embedders


async def test_two_models_share_a_pool_and_one_closes_without_disturbing_the_other(
    pool: WorkerPool, gate: Path
) -> None:
    async with TextEmbedding(ECHO, pool=pool) as lasting:
        stream = lasting.embed([f"{text} wait:{gate}" for text in numbered(30)])
        async with anyio.create_task_group() as group:
            group.start_soon(anext, stream)
            async with TextEmbedding(replace(ECHO, name="echo 2"), pool=pool) as passing:
                await until(lambda: lasting.stats().in_flight > 0)
                gate.touch()
                assert await numbers(passing, numbered(10)) == list(range(10))
                assert passing.stats().items == 10
        assert [int(row[2]) for row in await stream.collect()] == list(range(1, 30))
        assert lasting.stats().items == 30


async def test_an_embedder_waits_in_vain_for_a_pool_that_closes(tmp_path: Path) -> None:
    """The pool lives in another task: its end is an error there, and no hang."""
    log = tmp_path / "loads"
    errors: list[BaseException] = []

    async def open_there(pool: WorkerPool) -> None:
        try:
            async with TextEmbedding(with_settings(load_log=str(log), hang="yes"), pool=pool):
                pytest.fail("it cannot open")
        except StateError as error:
            errors.append(error)

    async with nothing_left_behind(), anyio.create_task_group() as group, WorkerPool(workers=1) as pool:
        group.start_soon(open_there, pool)
        await until(log.exists)
    assert len(errors) == 1


async def test_a_pool_that_closes_fails_what_waits_and_what_runs(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    inbox = Inbox()
    async with nothing_left_behind(), WorkerPool(workers=1) as pool:
        model = engine_of(pool).add_model(EncoderConfig(spec=ECHO, directory=Path()))
        batch_key = BatchKey(model.key, Call(), 2048, 1)
        engine_of(pool).submit(
            Item(text, 3, batch_key, Priority.BULK, inbox, i) for i, text in enumerate([f"mark:{mark} hang", "a"])
        )
        await until(mark.exists)
    assert [type(inbox.heard[i]) for i in (0, 1)] == [StateError, StateError]


async def test_an_embedder_of_an_earlier_opening_hears_that_it_was_closed() -> None:
    """And those of the later opening are not disturbed."""
    opened, again, errors = anyio.Event(), anyio.Event(), list[Exception]()

    async def outlive(pool: WorkerPool) -> None:
        async with TextEmbedding(ECHO, pool=pool) as model:
            opened.set()
            await again.wait()
            for ask in (model.embed_query("#1"), model.embed(["#1"]).collect()):
                with pytest.raises(StateError, match="was closed") as caught:
                    await ask
                errors.append(caught.value)

    async with nothing_left_behind(), anyio.create_task_group() as group:
        pool = WorkerPool(workers=1)
        async with pool:
            group.start_soon(outlive, pool)
            await opened.wait()
        async with pool, TextEmbedding(ECHO, pool=pool) as model:
            again.set()
            await until(lambda: len(errors) == 2)
            assert await numbers(model, numbered(5)) == list(range(5))


async def test_a_pool_can_be_opened_again() -> None:
    pool = WorkerPool(workers=1)
    for _ in range(2):
        async with pool, TextEmbedding(ECHO, pool=pool) as model:
            assert await numbers(model, numbered(3)) == list(range(3))
            with pytest.raises(StateError, match="open already"):
                await pool.__aenter__()
    with pytest.raises(StateError, match="not open"):
        engine_of(pool).add_model(EncoderConfig(spec=ECHO, directory=Path()))


async def test_a_mistake_of_the_engine_surfaces() -> None:
    """A sink must not raise; if one does, all requests fail, the block ends with that error, and nothing hangs."""

    class Broken(Inbox):
        def deliver(self, index: int, result: object) -> None:
            raise ZeroDivisionError("a bug")

    async with nothing_left_behind():
        with pytest.raises(ZeroDivisionError, match="a bug"):
            async with WorkerPool(workers=0) as pool:
                model = engine_of(pool).add_model(EncoderConfig(spec=ECHO, directory=Path()))
                engine_of(pool).submit([Item("a", 3, BatchKey(model.key, Call(), 2048, 8), Priority.BULK, Broken(), 0)])
                await until(lambda: "closed" in repr(pool))
                with pytest.raises(StateError, match="not open"):
                    await TextEmbedding(ECHO, pool=pool).open()


@pytest.mark.parametrize(
    "options",
    [
        {"workers": -1},
        {"workers": 1.5},
        {"threads": 0},
        {"interactive_workers": -1},
        {"interactive_workers": 1.5},
        {"batch_timeout": 0.0},
        {"device_ids": ["cuda:0"]},
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        WorkerPool(**options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- what is computed when


async def test_a_query_goes_before_what_an_ingest_has_waiting(tmp_path: Path, gate: Path) -> None:
    mark, log = tmp_path / "mark", tmp_path / "log"
    model = TextEmbedding(with_settings(log=str(log)), workers=0, max_batch_size=1)
    async with model, anyio.create_task_group() as group:
        texts = numbered(10, at_0=f"mark:{mark} wait:{gate}")
        group.start_soon(numbers, model, texts)
        await until(mark.exists)
        group.start_soon(model.embed_query, "query")
        await until(lambda: model.stats().queued_interactive == 1)
        gate.touch()
    order = [line.split()[1] for line in log.read_text("utf-8").splitlines()]
    assert order[:3] == ["#0", "query", "#1"]


async def test_concurrent_queries_become_few_batches(pool: WorkerPool) -> None:
    async with TextEmbedding(ECHO, pool=pool) as model:
        results: dict[int, int] = {}

        async def ask(i: int) -> None:
            results[i] = int((await model.embed_query(f"#{i}"))[2])

        async with anyio.create_task_group() as group:
            for i in range(64):
                group.start_soon(ask, i)
        assert results == {i: i for i in range(64)}
        assert model.stats().batches <= 6


async def test_cheap_batches_do_not_make_costly_ones_pile_up(tmp_path: Path, gate: Path) -> None:
    """What was learnt of a fast model in the same pool says nothing of a slow one: a query would wait for them all."""
    async with (
        WorkerPool(workers=1) as pool,
        TextEmbedding(ECHO, pool=pool, max_batch_size=1) as cheap,
        TextEmbedding(replace(ECHO, name="costly"), pool=pool, max_batch_size=1) as costly,
    ):
        for _ in range(3):
            await numbers(cheap, numbered(200))
        async with costly.embed([f"{text} wait:{gate}" for text in numbered(10)]) as stream:
            async with anyio.create_task_group() as group:
                group.start_soon(anext, stream)
                await until(lambda: costly.stats().in_flight > 0 and costly.stats().queued_bulk > 0)
                await anyio.wait_all_tasks_blocked()
                assert costly.stats().in_flight == 1
                gate.touch()


async def test_counting_tokens_says_nothing_of_embedding_them(gate: Path) -> None:
    async with WorkerPool(workers=1) as pool, TextEmbedding(ECHO, pool=pool, max_batch_size=1) as model:
        inbox, batch_key = Inbox(), BatchKey(cast(Any, model)._opened.model.key, Call(mode="count"), 2048, 1)
        engine_of(pool).submit([Item("a", 3, batch_key, Priority.BULK, inbox, index) for index in range(300)])
        await until(lambda: len(inbox.heard) == 300)
        async with model.embed([f"{text} wait:{gate}" for text in numbered(10)]) as stream:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anext, stream)
                await until(lambda: model.stats().in_flight > 0 and model.stats().queued_bulk > 0)
                await anyio.wait_all_tasks_blocked()
                assert model.stats().in_flight == 1
                gate.touch()


# ---------------------------------------------------------------- workers kept free for interactive work


@pytest.mark.parametrize("workers", [0, 2])
async def test_a_query_need_not_wait_for_an_ingest_where_a_worker_is_kept_free(workers: int, gate: Path) -> None:
    async with (
        TextEmbedding(ECHO, workers=workers, interactive_workers=1, max_batch_size=1) as model,
        model.embed(f"#{i} wait:{gate}" for i in range(20)) as stream,
        anyio.create_task_group() as group,
    ):
        group.start_soon(anext, stream)
        others = max(workers, 1)
        await until(lambda: model.stats().in_flight == others and model.stats().queued_bulk > 0)
        assert [int((await model.embed_query(f"#{i}"))[2]) for i in range(5)] == list(range(5))
        assert (model.stats().in_flight, model.stats().workers) == (others, others + 1)
        gate.touch()
        group.cancel_scope.cancel()


async def test_bulk_work_leaves_that_worker_alone() -> None:
    async with TextEmbedding(ECHO, workers=2, interactive_workers=1, max_batch_size=1) as model:
        computed_by = {int(row[1]) for row in await model.embed(numbered(200)).collect()}
        assert len(computed_by) == 2
        with anyio.fail_after(WAIT_SECONDS):
            while {int(row[1]) for row in await model.embed_documents(numbered(50))} <= computed_by:
                pass  # until it, too, has computed something


async def test_that_worker_takes_over_when_no_other_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    async with WorkerPool(workers=1, interactive_workers=1) as pool, TextEmbedding(ECHO, pool=pool) as model:
        one, other = pool.worker_pids()
        assert {int(row[1]) for row in await model.embed(numbered(20)).collect()} == {one}
        monkeypatch.setattr("multiprocessing.spawn._python_exe", b"/bin/false")
        kill(one)
        assert {int(row[1]) for row in await model.embed(numbered(20)).collect()} == {other}


async def test_a_query_that_killed_that_worker_is_computed_again(tmp_path: Path, gate: Path) -> None:
    async with TextEmbedding(ECHO, workers=1, interactive_workers=1, max_batch_size=1) as model:
        async with model.embed([f"#{i} wait:{gate}" for i in range(3)]) as stream, anyio.create_task_group() as group:
            group.start_soon(anext, stream)
            await until(lambda: model.stats().in_flight == 1)
            row = await model.embed_query(f"#7 crash-once:{tmp_path / 'crashed'}")
            assert int(row[2]) == 7
            assert model.stats().workers_restarted == 1
            gate.touch()
        assert model.stats().failed == 0


# ---------------------------------------------------------------- the express worker


@asynccontextmanager
async def ingest_at_a_gate(model: TextEmbedding, gate: Path) -> AsyncGenerator[None]:
    """All workers for all work compute an ingest that goes on when the gate opens, as it does at the end."""
    async with model.embed(f"#{i} wait:{gate}" for i in range(20)) as stream, anyio.create_task_group() as group:
        group.start_soon(anext, stream)
        await until(lambda: model.stats().in_flight == 2 and model.stats().queued_bulk > 0)
        yield
        gate.touch()
        group.cancel_scope.cancel()


def call_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an express worker called however short the batches are, and whatever quota there is."""
    monkeypatch.setattr(slot_module, "WORTH_AN_EXPRESS_SECONDS", 0.0)
    monkeypatch.setattr(pool_module, "has_tight_quota", lambda: False)


async def ask(model: TextEmbedding) -> None:
    assert [int((await model.embed_query(f"#{i}"))[2]) for i in range(5)] == list(range(5))


async def test_a_query_that_meets_an_ingest_gets_a_worker_that_goes_again(
    gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_at_once(monkeypatch)
    async with (
        nothing_left_behind(),
        WorkerPool(workers=2) as pool,
        TextEmbedding(ECHO, pool=pool, max_batch_size=1) as model,
    ):
        bulk = set(pool.worker_pids())
        async with ingest_at_a_gate(model, gate):
            await ask(model)
            stats = model.stats()
            assert (stats.workers, stats.workers_interactive, stats.in_flight) == (3, 1, 2)
            (express,) = set(pool.worker_pids()) - bulk
            kill(express)
            await until(lambda: model.stats().workers == 2)
            await ask(model)
            assert model.stats().workers == 3
        await end_express(model, monkeypatch)
        assert set(pool.worker_pids()) == bulk
        assert model.stats().workers_restarted == 1


async def test_it_comes_with_an_ingest_where_queries_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    call_at_once(monkeypatch)
    for name in ("LONG_IN_BULK_SECONDS", "EXPECTED_AFTER_SECONDS"):
        monkeypatch.setattr(dispatch, name, 0.0)
    async with TextEmbedding(ECHO, workers=2, max_batch_size=1) as model:
        await ask(model)
        await ask(model)
        assert model.stats().workers == 2
        assert len(await model.embed(numbered(3000)).collect()) == 3000
        await until(lambda: model.stats().workers_ready == 3)


@pytest.mark.posix
async def test_bulk_work_makes_way_for_that_worker_and_whoever_is_restarted_begins_from_the_first_level(
    gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_at_once(monkeypatch)
    level, lowered = level_of(os.getpid()), min(level_of(os.getpid()) + niceness.LOWER_BY, niceness.LOWEST)
    async with WorkerPool(workers=2) as pool, TextEmbedding(ECHO, pool=pool, max_batch_size=1) as model:
        bulk = set(pool.worker_pids())
        async with ingest_at_a_gate(model, gate):
            assert {level_of(pid) for pid in bulk} == {level}, "until then"
            await ask(model)
            (express,) = set(pool.worker_pids()) - bulk
            assert level_of(express) == level
            assert {level_of(pid) for pid in bulk} == {lowered}
            victim = min(bulk)
            kill(victim)
            await until(lambda: victim not in pool.worker_pids() and model.stats().workers_ready == 3)
            assert {level_of(pid) for pid in set(pool.worker_pids()) - {express}} == {lowered}
        await end_express(model, monkeypatch)
        assert {level_of(pid) for pid in pool.worker_pids()} in ({level}, {lowered}), "back, where that is allowed"


@pytest.mark.posix
async def test_where_workers_may_not_come_back_interactive_work_calls_for_one_that_never_left(
    gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_at_once(monkeypatch)

    set_level = cast(Any, os).setpriority

    def refuse(which: int, who: int, level: int) -> None:
        if level < level_of(who):
            raise PermissionError("as without the privilege")
        set_level(which, who, level)

    monkeypatch.setattr(os, "setpriority", refuse)
    level = level_of(os.getpid())
    async with WorkerPool(workers=2) as pool, TextEmbedding(ECHO, pool=pool, max_batch_size=1) as model:
        bulk = set(pool.worker_pids())
        async with ingest_at_a_gate(model, gate):
            await ask(model)
        await end_express(model, monkeypatch)
        assert level not in {level_of(pid) for pid in bulk}
        await ask(model)
        await until(lambda: model.stats().workers_ready == 3)
        assert {level_of(pid) for pid in set(pool.worker_pids()) - bulk} == {level}


def level_of(pid: int) -> int:
    return int(psutil.Process(pid).nice())


async def end_express(model: TextEmbedding, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "EXPRESS_IDLE_SECONDS", 0.0)
        await ask(model)
        await until(lambda: model.stats().workers == 2)


# ---------------------------------------------------------------- what is counted


async def test_stats_tell_what_was_computed(tmp_path: Path, gate: Path) -> None:
    mark = tmp_path / "mark"
    async with TextEmbedding(ECHO, workers=0, max_batch_size=2) as model:
        assert model.stats() == Stats(
            queued_interactive=0, queued_bulk=0, in_flight=0, batches=0, items=0, failed=0, tokens=0, padded_tokens=0,
            batch_seconds=0.0, workers=1, workers_ready=1, workers_restarted=0,
        )  # fmt: skip
        assert model.stats().padding_share == 0
        async with anyio.create_task_group() as group:
            group.start_soon(numbers, model, [f"mark:{mark} wait:{gate}", "bad", "a", "b", "c"])
            await until(mark.exists)
            await until(lambda: model.stats().queued == 3)
            assert model.stats().in_flight == 1
            gate.touch()
        stats = model.stats()
        assert (stats.items, stats.failed, stats.queued, stats.in_flight) == (5, 1, 0, 0)
        assert stats.tokens < stats.padded_tokens
        assert 0 < stats.padding_share < 1
        assert stats.batch_seconds > 0
        with pytest.raises(FrozenInstanceError):
            stats.items = 0  # type: ignore[misc]


async def test_stats_tell_how_many_inputs_were_cut() -> None:
    async with TextEmbedding(ECHO, workers=0) as model:
        await numbers(model, ["a cut", "b", "c cut"])
        await model.embed_query("d cut")
        assert model.stats().truncated == 3


async def test_the_estimate_of_tokens_follows_what_was_computed(pool: WorkerPool) -> None:
    """The echo's tokens are characters: two inputs of one budget no longer share a batch once that is known."""
    async with TextEmbedding(ECHO, pool=pool, max_batch_tokens=1000) as model:
        await numbers(model, ["x" * 900] * 10)
        learnt = model.stats()
        await numbers(model, ["x" * 900] * 50)
        assert model.stats().batches - learnt.batches == 50


# ---------------------------------------------------------------- workers that do not start

CANNOT_START = """
import asyncio, multiprocessing.resource_tracker, multiprocessing.spawn, sys
from asyncembed.embedders.text import TextEmbedding
from asyncembed.errors import WorkerError
from tests.support.encoders import ECHO

async def main():
    try:
        async with TextEmbedding(ECHO, workers=2):
            print("open")
    except WorkerError as error:
        print(type(error).__name__, error)

multiprocessing.resource_tracker.ensure_running()
multiprocessing.spawn.set_executable(sys.argv[1])
asyncio.run(main())
"""


def test_workers_that_never_start_fail_the_opening(tmp_path: Path) -> None:
    done = programs.run(CANNOT_START, tmp_path, "/bin/false")
    assert done.stdout == "WorkerError a worker process ended while it started; see its stderr\n"
    assert "Traceback" not in done.stderr


async def test_a_worker_that_hangs_at_its_start_does_not_delay_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, program = tmp_path / "mark", tmp_path / "python"
    program.write_text(f"#!/bin/sh\ntouch {mark}\nexec sleep 3600\n", "utf-8")
    program.chmod(0o755)
    resource_tracker.ensure_running()  # multiprocessing's own, before its program is replaced
    monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(program))
    async with nothing_left_behind(), WorkerPool(workers=1):
        await until(mark.exists)


def test_a_process_that_may_have_no_children_can_use_threads(tmp_path: Path) -> None:
    source = """
import multiprocessing
def inside(report):
    import asyncio
    from asyncembed.embedders.text import TextEmbedding
    from tests.support.encoders import ECHO
    async def main(workers):
        try:
            async with TextEmbedding(ECHO, workers=workers) as model:
                report.put(len(await model.embed_documents(["a", "b"])))
        except Exception as error:
            report.put(str(error))
    asyncio.run(main(1))
    asyncio.run(main(0))
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    report = context.Queue()
    process = context.Process(target=inside, args=(report,), daemon=True)
    process.start()
    print(report.get(timeout=30), "|", report.get(timeout=30))
    process.join()
"""
    done = programs.run(source, tmp_path)
    assert done.stdout == "this process is daemonic and may not start workers; use workers=0 here | 2\n"
