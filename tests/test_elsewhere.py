"""The package without what macOS and Windows lack: whole programs, their workers included."""

import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.support import posix, programs
from tests.support.waiting import worker_processes

pytestmark = [pytest.mark.slow, pytest.mark.posix]

EVERY_MODULE = """
import importlib, pkgutil
import asyncembed
from tests.support.frameworks import FRAMEWORKS

of_frameworks = {f"asyncembed.integrations.{name}" for name in FRAMEWORKS}
for module in pkgutil.walk_packages(asyncembed.__path__, "asyncembed."):
    if "_pyinstaller" in module.name or module.name.endswith("__main__"):
        continue
    if module.name not in of_frameworks:
        importlib.import_module(module.name)
print("all")
"""

EMBEDS = """
import sys, anyio, psutil
from asyncembed import TextEmbedding, WorkerPool
from tests.support.encoders import ECHO
from tests.support.waiting import until

async def main():
    async with WorkerPool(workers=2) as pool, TextEmbedding(ECHO, pool=pool) as model:
        before = pool.worker_pids()
        psutil.Process(before[0]).kill()
        await until(lambda: len(set(pool.worker_pids()) - set(before)) == 1)
        print(len(await model.embed(map(str, range(200))).collect()), model.stats().workers_restarted)

anyio.run(main, backend=sys.argv[1])
"""

TOO_MANY = """
from asyncembed import TextEmbedding, WorkerPool
from asyncembed.errors import OptionError

WorkerPool(workers=60)
for make in (lambda: WorkerPool(workers=60, interactive_workers=1), lambda: TextEmbedding("a/b", workers=61)):
    try:
        make()
    except OptionError as error:
        print(error)
"""

OWN_LOOP = """
import asyncio, os
from asyncembed import background

class OfMainThread(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self):
        raise AssertionError("a loop of the program's")

async def kind():
    return type(asyncio.get_running_loop()).__name__

asyncio.set_event_loop_policy(OfMainThread())
print(background.run(kind))
"""

OPENING = """
import sys, anyio
from asyncembed import TextEmbedding
from tests.support.encoders import ECHO

async def main():
    print("opens", flush=True)
    async with TextEmbedding(ECHO, workers=2):
        await anyio.sleep_forever()

anyio.run(main, backend=sys.argv[1])
"""


def test_every_module_can_be_imported(tmp_path: Path) -> None:
    done = programs.run(EVERY_MODULE, tmp_path, elsewhere=True)
    assert (done.stdout, done.stderr) == ("all\n", "")


def test_workers_start_compute_and_are_replaced_when_they_die_idle(tmp_path: Path, anyio_backend: str) -> None:
    done = programs.run(EMBEDS, tmp_path, anyio_backend, elsewhere=True)
    assert done.stdout == "200 1\n", done.stderr


def test_there_are_at_most_60_workers_on_windows(tmp_path: Path) -> None:
    done = programs.run(TOO_MANY, tmp_path, elsewhere=True)
    assert (
        done.stdout.splitlines()
        == [
            "on Windows workers and interactive_workers may be 60 together; got 61",
        ]
        * 2
    ), done.stderr


def test_the_background_has_no_loop_of_the_programs_policy(tmp_path: Path) -> None:
    done = programs.run(OWN_LOOP, tmp_path, elsewhere=True)
    assert done.stdout == "_UnixSelectorEventLoop\n", done.stderr


@pytest.mark.parametrize("seed", range(3))
def test_a_ctrl_c_that_reaches_the_workers_too_is_answered_by_the_program_alone(
    seed: int, tmp_path: Path, anyio_backend: str
) -> None:
    """A console of Windows sends it to all processes, and there is no mask that keeps it from one that starts."""
    program = programs.start(OPENING, tmp_path, anyio_backend, new_session=True, elsewhere=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "opens\n"
    time.sleep(random.Random(seed).uniform(0.2, 1.0))  # whatever it is doing by then
    workers = worker_processes(program.pid)
    posix.press_ctrl_c(program.pid)
    _, errors = program.communicate(timeout=15)
    assert program.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive
