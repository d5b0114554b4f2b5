"""What a pool offers its users, and what becomes of its options."""

import os
from pathlib import Path

import pytest

from asyncembed import TextEmbedding, WorkerPool
from asyncembed.engine import pool as pool_module
from asyncembed.engine.pool import GIGABYTE, MAX_WORKERS_BY_DEFAULT, engine_of, workers_by_default
from asyncembed.engine.supervisor import WorkerPlan
from tests.support import programs
from tests.support.encoders import ECHO


def test_a_pool_offers_no_more_than_its_users_need() -> None:
    assert {name for name in dir(WorkerPool) if not name.startswith("_")} == {
        "aclose",
        "open",
        "size",
        "stats",
        "worker_pids",
    }


async def test_each_opening_has_an_engine_of_its_own() -> None:
    pool = WorkerPool(workers=0)
    engines = [engine_of(pool)]
    for _ in range(2):
        async with pool:
            engines.append(engine_of(pool))
            assert engine_of(pool).stats() == pool.stats()
    assert len(set(map(id, engines))) == 3


def test_a_pool_that_is_not_open_can_be_looked_at() -> None:
    pool = WorkerPool(workers=2, interactive_workers=1)
    assert pool.size == pool.stats().workers == 3
    assert pool.stats().workers_ready == 0
    assert pool.worker_pids() == []


async def test_a_pool_says_how_it_is_doing() -> None:
    pool = WorkerPool(workers=0)
    assert repr(pool) == "<WorkerPool not open>"
    async with pool, TextEmbedding(ECHO, pool=pool) as model:
        await model.embed_query("one")
        assert repr(pool) == (
            "<WorkerPool open: 1 of 1 workers, 1 inputs in 1 batches; 0 waiting, 0 batches in flight>"
        )
    assert repr(pool) == "<WorkerPool closed>"
    assert repr(object.__new__(WorkerPool)) == "<WorkerPool not open>"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_can_look_at_its_parents_pool_whatever_went_on_there(tmp_path: Path) -> None:
    source = """
import os, threading
from asyncembed import WorkerPool
from asyncembed.engine.pool import engine_of

pool = WorkerPool(workers=0)
is_held, is_over = threading.Event(), threading.Event()

def decide():
    with engine_of(pool)._lock:
        is_held.set()
        is_over.wait()

thread = threading.Thread(target=decide)
thread.start()
is_held.wait()
child = os.fork()
if child == 0:
    print(repr(pool), pool.stats().workers, flush=True)
    os._exit(0)
os.waitpid(child, 0)
is_over.set()
thread.join()
"""
    assert programs.run(source, tmp_path).stdout == "<WorkerPool not open> 1\n"


@pytest.mark.parametrize(
    ("options", "cores", "workers", "threads"),
    [
        ({}, 2, 2, 1),
        ({}, 16, 16, 1),
        ({}, 64, MAX_WORKERS_BY_DEFAULT, 4),
        ({"workers": 1}, 8, 1, 8),
        ({"workers": 3, "threads": 2}, 8, 3, 2),
        ({"device_ids": [4, 7, 9]}, 8, 3, 2),
        ({"workers": 0}, 8, 1, 8),
        ({"workers": 16}, 4, 16, 1),
    ],
)
def test_workers_and_threads_are_chosen_from_the_cores(
    options: dict[str, object], cores: int, workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "available_cores", lambda: cores)
    monkeypatch.setattr(pool_module, "available_memory", lambda: 64 * GIGABYTE)
    plan = planned(options)
    assert (plan.workers, plan.threads) == (workers, threads)
    assert plan.in_thread is (options.get("workers") == 0)


@pytest.mark.parametrize(("gigabytes", "workers"), [(0.5, 4), (6.0, 6), (100.0, 8), (0.0, 4)])
def test_more_than_a_few_workers_want_memory(gigabytes: float, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "available_memory", lambda: gigabytes * GIGABYTE)
    assert workers_by_default(8) == workers
    assert workers_by_default(2) == 2


@pytest.mark.parametrize(
    ("options", "comes", "most"),
    [
        ({"workers": 2}, True, 3),
        ({"workers": 2, "interactive_workers": 0}, False, 2),
        ({"workers": 2, "interactive_workers": 2}, False, 4),
        ({"workers": 0}, False, 1),
        ({"device_ids": [0, 1]}, False, 2),
    ],
)
def test_an_express_worker_comes_where_that_is_left_to_the_pool(
    options: dict[str, object], comes: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "has_tight_quota", lambda: False)
    plan = planned(options)
    assert (plan.may_call_express, plan.most_workers) == (comes, most)
    monkeypatch.setattr(pool_module, "has_tight_quota", lambda: True)
    assert not planned(options).may_call_express


def test_a_pool_may_do_without_processes_only_where_their_number_is_left_to_it() -> None:
    assert planned({}).threads_alone is not None
    assert planned({"workers": 2}).threads_alone is None


def test_a_thread_has_no_time_limit_as_nobody_could_end_it() -> None:
    assert planned({"workers": 0, "batch_timeout": 5.0}).batch_timeout is None
    assert planned({"workers": 1, "batch_timeout": 5.0}).batch_timeout == 5.0


def planned(options: dict[str, object]) -> WorkerPlan:
    return engine_of(WorkerPool(**options)).plan  # type: ignore[arg-type]
