"""Workers that are forked by a process of their own, and spawned where that cannot be."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from asyncembed.embedders.text import TextEmbedding
from asyncembed.engine import fork_server, spawn
from asyncembed.engine.fork_server import ForkServerGone
from asyncembed.engine.pool import WorkerPool
from tests.support import programs
from tests.support.encoders import ECHO
from tests.support.killing import kill
from tests.support.waiting import nothing_left_behind, until, worker_processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not fork_server.is_possible(1), reason="this system has no descriptors of processes"),
]


def parents(pool: WorkerPool) -> set[int]:
    return {psutil.Process(pid).ppid() for pid in pool.worker_pids()}


async def test_the_workers_of_a_pool_are_forked_by_one_process_which_ends_with_them() -> None:
    async with nothing_left_behind():
        async with WorkerPool(workers=2, threads=1) as pool, TextEmbedding(ECHO, pool=pool) as model:
            (server,) = parents(pool)
            assert psutil.Process(server).ppid() == os.getpid()
            assert psutil.Process(server).num_threads() == 1
            first, _ = pool.worker_pids()
            kill(first)
            assert len(await model.embed_documents([f"#{i}" for i in range(10)])) == 10
            await until(lambda: len(pool.worker_pids()) == 2 and first not in pool.worker_pids())
            assert parents(pool) == {server}
        assert not psutil.pid_exists(server)


async def test_one_worker_alone_or_one_of_several_threads_is_spawned() -> None:
    async with WorkerPool(workers=1) as pool, TextEmbedding(ECHO, pool=pool):
        assert parents(pool) == {os.getpid()}
    async with WorkerPool(workers=2, threads=2) as pool, TextEmbedding(ECHO, pool=pool):
        assert parents(pool) == {os.getpid()}


async def test_without_the_process_that_forks_them_workers_are_spawned_and_no_input_is_lost() -> None:
    async with WorkerPool(workers=2, threads=1) as pool, TextEmbedding(ECHO, pool=pool) as model:
        (server,) = parents(pool)
        os.kill(server, signal.SIGKILL)
        assert (await model.embed_documents([f"#{i}" for i in range(40)]))[:, 2].tolist() == list(range(40))
        await until(lambda: len(pool.worker_pids()) == 2 and parents(pool) == {os.getpid()})


async def test_a_worker_has_the_environment_of_the_moment_that_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with WorkerPool(workers=2, threads=1) as pool, TextEmbedding(ECHO, pool=pool):
        before = pool.worker_pids()
        monkeypatch.setenv("ASYNCEMBED_TEST_OF_WORKERS", "changed")
        kill(before[0])
        await until(lambda: len(pool.worker_pids()) == 2 and before[0] not in pool.worker_pids())
        (new,) = set(pool.worker_pids()) - set(before)
        assert psutil.Process(new).environ()["ASYNCEMBED_TEST_OF_WORKERS"] == "changed"


def test_where_a_library_has_threads_nothing_is_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be missing in the fork, with the locks that they hold."""
    source = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    (tmp_path / "with_a_thread.py").write_text(source, "utf-8")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    server = spawn.start_server(["with_a_thread"])
    assert server is not None
    theirs, ours = os.pipe()
    try:
        with pytest.raises(ForkServerGone):
            server.fork([theirs])
    finally:
        server.stop()
        os.close(theirs)
        os.close(ours)


KILLED = """
import os, time
import anyio
from asyncembed.embedders.text import TextEmbedding
from tests.support.encoders import ECHO

async def main():
    async with TextEmbedding(ECHO, workers=2, threads=1):
        if os.fork() == 0:
            time.sleep(3600)
        print("ready", flush=True)
        await anyio.sleep(3600)

anyio.run(main)
"""


def test_they_end_with_a_program_that_is_killed_also_if_it_has_forked_a_child(tmp_path: Path) -> None:
    """That child holds whatever would tell them of the program's end."""
    program = programs.start(KILLED, tmp_path)
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        everybody = worker_processes(program.pid, and_their_server=True)
        (child,) = [one for one in everybody if "fork_server" not in " ".join(one.cmdline())]
        program.kill()
        _, left = psutil.wait_procs([one for one in everybody if one != child], timeout=15)
        assert not left
        child.kill()
    finally:
        program.kill()
        program.communicate()
