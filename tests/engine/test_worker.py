"""The parent's end of one worker: real processes, and the programs that start them."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo
from asyncembed.engine import child
from asyncembed.engine.worker import ProcessWorker, ThreadWorker, Worker, WorkerGone
from asyncembed.errors import StateError
from tests.support import posix, programs
from tests.support.encoders import ECHO
from tests.support.programs import HowRun
from tests.support.waiting import worker_processes

pytestmark = pytest.mark.slow

CONFIG = EncoderConfig(spec=ECHO, directory=Path())
ANSWER_SECONDS = 30


@pytest.fixture
def worker() -> Iterator[ProcessWorker]:
    worker = ProcessWorker(threads=1)
    worker.start().result(ANSWER_SECONDS)
    yield worker
    worker.kill()
    worker.stop()


@pytest.mark.parametrize("make", [lambda: ProcessWorker(threads=1), ThreadWorker], ids=["process", "thread"])
def test_a_worker_loads_computes_and_stops(make: type[ThreadWorker]) -> None:
    worker: Worker = make()
    threads = threading.active_count()
    worker.start().result(ANSWER_SECONDS)
    assert worker.load(5, CONFIG).result(ANSWER_SECONDS) == child.Loaded(ModelInfo(dim=3))
    answer = worker.run(5, ["a", "bad", "abc"], Call()).result(ANSWER_SECONDS)
    assert isinstance(answer, Encoded)
    assert [row[0] for row in answer.results] == [1, 3, 3]
    assert str(answer.failures[1]) == "refused"
    worker.unload(5)
    assert isinstance(worker.run(5, ["a"], Call()).result(ANSWER_SECONDS), child.Failed)
    pid = worker.pid
    worker.stop()
    assert threading.active_count() == threads
    assert pid is None or not psutil.pid_exists(pid)


def test_a_worker_is_another_process(worker: ProcessWorker) -> None:
    assert worker.call(child.hello).result(ANSWER_SECONDS) == child.Hello(worker.pid or 0)
    assert worker.pid != os.getpid()


@pytest.mark.posix
def test_a_worker_ignores_ctrl_c(worker: ProcessWorker) -> None:
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGINT)
    assert worker.call(os.getpid).result(ANSWER_SECONDS) == worker.pid
    # Blocked only while it started: what the encoder starts in its turn can be interrupted.
    assert worker.call(posix.blocked_signals).result(ANSWER_SECONDS) == set()


def test_sigint_is_blocked_from_the_first_moment_of_the_first_worker(tmp_path: Path) -> None:
    """Between its start and its first statement a worker would die of Ctrl-C, with a traceback."""
    source = """
import multiprocessing.spawn, multiprocessing.util, os, signal
from asyncembed.engine.worker import ProcessWorker
launch = multiprocessing.util.spawnv_passfds
def spy(path, args, fds):
    if "--multiprocessing-fork" in [arg.decode() if isinstance(arg, bytes) else arg for arg in args]:
        print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    return launch(path, args, fds)
multiprocessing.util.spawnv_passfds = spy
worker = ProcessWorker(threads=1)
worker.start().result()
worker.stop()
print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    done = programs.run(source, tmp_path)
    assert (done.stdout, done.stderr) == ("True\nFalse\n", "")


def test_numeric_libraries_find_their_thread_count_in_the_environment() -> None:
    worker = ProcessWorker(threads=3)
    worker.start().result(ANSWER_SECONDS)
    assert worker.call(os.getenv, "OMP_NUM_THREADS").result(ANSWER_SECONDS) == "3"
    assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"] != "3"
    worker.stop()


def test_a_killed_worker_says_so(worker: ProcessWorker) -> None:
    worker.load(0, CONFIG).result(ANSWER_SECONDS)
    answer = worker.run(0, ["hang"], Call())
    worker.kill()
    with pytest.raises(Exception, match="terminated abruptly"):
        answer.result(ANSWER_SECONDS)
    with pytest.raises(WorkerGone):
        worker.run(0, ["a"], Call())
    worker.unload(0)  # no news to anybody


@pytest.mark.posix
def test_a_large_call_to_a_worker_that_is_killed_does_not_block_its_end(worker: ProcessWorker) -> None:
    """More than the pipe holds: the thread that writes it must not wait for a reader that is dead."""
    assert worker.pid is not None
    posix.halt(worker.pid)
    answer = worker.run(0, [bytes(10_000_000)], Call())
    worker.kill()
    with pytest.raises(Exception, match="terminated abruptly"):
        answer.result(ANSWER_SECONDS)


def test_stopping_ends_a_worker_that_is_stuck(worker: ProcessWorker) -> None:
    worker.load(0, CONFIG).result(ANSWER_SECONDS)
    worker.run(0, ["hang"], Call())
    pid = worker.pid
    worker.stop()
    assert pid is not None
    assert not psutil.pid_exists(pid)


def test_stopping_a_thread_that_is_stuck_leaves_it_behind(gate: Path) -> None:
    worker = ThreadWorker()
    worker.start()
    worker.load(0, CONFIG).result(ANSWER_SECONDS)
    answer = worker.run(0, [f"wait:{gate}"], Call())
    worker.stop()
    assert not answer.done()
    gate.touch()
    answer.result(ANSWER_SECONDS)


def test_a_worker_that_was_never_started_can_be_stopped() -> None:
    for worker in (ProcessWorker(threads=1), ThreadWorker()):
        worker.kill()
        worker.stop()
    with pytest.raises(StateError):
        ProcessWorker(threads=1).call(os.getpid)


def test_a_process_that_may_have_no_children_is_told_so(tmp_path: Path) -> None:
    source = """
import multiprocessing
def inside(report):
    from asyncembed.engine.worker import ProcessWorker
    worker = ProcessWorker(threads=1)
    try:
        worker.start()
    except Exception as error:
        report.put(f"{type(error).__name__}: {error}")
    worker.stop()
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    report = context.Queue()
    context.Process(target=inside, args=(report,), daemon=True).start()
    print(report.get(timeout=30))
"""
    done = programs.run(source, tmp_path)
    assert "WorkersImpossible: this process is daemonic" in done.stdout
    assert "workers=0" in done.stdout


# ---------------------------------------------------------------- the caller's main module

PROGRAM = """
import os, sys
with open("runs", "a", encoding="utf-8") as file:
    file.write("run ")
import asyncio, json
from asyncembed.embedders.text import TextEmbedding
from tests.support.encoders import ECHO

async def main():
    async with TextEmbedding(ECHO, workers=2) as model:
        return [int(vector[0]) async for vector in model.embed(["a", "bb", "ccc"])]

print(json.dumps(asyncio.run(main())))
"""


@pytest.mark.parametrize("how", ["script", "stdin", "-c", "-m"])
def test_a_program_without_a_main_guard_runs_once(how: HowRun, tmp_path: Path) -> None:
    done = programs.run(PROGRAM, tmp_path, how=how)
    assert done.stderr == ""
    assert json.loads(done.stdout) == [1, 2, 3]
    assert (tmp_path / "runs").read_text("utf-8") == "run "


def test_other_processes_still_get_their_main_module(tmp_path: Path) -> None:
    """Only our own workers are launched differently; multiprocessing works as ever beside them."""
    source = """
import multiprocessing
def work(x):
    return 2 * x
if __name__ == "__main__":
    from asyncembed.engine.worker import ProcessWorker
    worker = ProcessWorker(threads=1)
    worker.start().result()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(work, [1, 2]))
    worker.stop()
"""
    done = programs.run(source, tmp_path)
    assert (done.stdout, done.stderr) == ("[2, 4]\n", "")


def test_what_a_worker_prints_goes_to_stderr(tmp_path: Path) -> None:
    """Stdout may carry the parent's protocol."""
    source = PROGRAM.replace('"ccc"', '"ccc print"').replace("int(vector[0])", "1")
    done = programs.run(source, tmp_path)
    assert done.stdout == "[1, 1, 1]\n"
    assert done.stderr == "a word on stdout\n"


# ---------------------------------------------------------------- the end of the parent

ENDLESS = """
import asyncio, sys
from asyncembed.embedders.text import TextEmbedding
from tests.support.encoders import ECHO

async def main():
    async with TextEmbedding(ECHO, workers=2) as model:
        print("open", flush=True)
        await model.embed_query(sys.argv[1])
        await asyncio.sleep(3600)

asyncio.run(main())
"""


@pytest.mark.parametrize("text", ["idle", "hang"])
def test_no_worker_outlives_a_parent_that_is_killed(text: str, tmp_path: Path) -> None:
    parent = programs.start(ENDLESS, tmp_path, text)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "open\n"
    workers = worker_processes(parent.pid)
    assert len(workers) == 2
    parent.kill()
    parent.communicate()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive


def test_no_worker_outlives_a_parent_that_has_forked_and_is_killed(tmp_path: Path) -> None:
    """The forked child holds the pipe open whose end would tell a worker."""
    source = """
import os, sys, time, warnings
warnings.simplefilter("ignore")
from asyncembed.engine.worker import ProcessWorker
worker = ProcessWorker(threads=1)
worker.start().result()
child = os.fork()
if not child:
    os.close(1), os.close(2)
    time.sleep(3600)
print(worker.pid, child, flush=True)
time.sleep(3600)
"""
    parent = programs.start(source, tmp_path)
    assert parent.stdout is not None
    worker, child = map(psutil.Process, map(int, parent.stdout.readline().split()))
    parent.kill()
    parent.wait()
    try:
        _, alive = psutil.wait_procs([worker], timeout=10)
        assert not alive
    finally:
        child.kill()
        parent.communicate()
