"""Whole programs that use the package, and their ends in every way."""

import json
import signal
from pathlib import Path

import psutil
import pytest

from tests.support import posix, programs
from tests.support.waiting import worker_processes

pytestmark = pytest.mark.slow

PROGRAM = """
import sys, threading, time
import anyio
from asyncembed.embedders.text import TextEmbedding
from tests.support.encoders import ECHO

is_busy = threading.Event()

def source():
    yield "first"
    is_busy.wait()
    {blocking}
    while True:
        yield "more"

async def main():
    async with TextEmbedding(ECHO, workers=2) as model:
        async for vector in model.embed(source()):
            if not is_busy.is_set():
                print("busy", flush=True)
                is_busy.set()
            {then}

anyio.run(main, backend=sys.argv[1])
"""

ENDLESS = PROGRAM.format(blocking="", then="")
STUCK_SOURCE = PROGRAM.format(blocking="time.sleep(3600)", then="")
STUCK_WORKER = PROGRAM.format(blocking="yield 'hang'", then="")


@pytest.mark.posix
@pytest.mark.parametrize("source", [ENDLESS, STUCK_SOURCE, STUCK_WORKER], ids=["busy", "stuck source", "stuck worker"])
def test_ctrl_c_ends_a_program_cleanly(source: str, tmp_path: Path, anyio_backend: str) -> None:
    """As in a terminal, the whole process group gets the signal; only the program itself answers it."""
    program = programs.start(source, tmp_path, anyio_backend, new_session=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "busy\n"
    workers = worker_processes(program.pid)
    assert len(workers) == 2
    posix.press_ctrl_c(program.pid)
    _, errors = program.communicate(timeout=10)
    assert program.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "_process_worker" not in errors, "a worker wrote a traceback of its own"
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive


def test_a_program_may_exit_inside_the_block(tmp_path: Path, anyio_backend: str) -> None:
    done = programs.run(PROGRAM.format(blocking="", then="sys.exit(3)"), tmp_path, anyio_backend)
    assert (done.returncode, done.stdout, done.stderr) == (3, "busy\n", "")


def test_a_program_may_end_while_a_task_embeds(tmp_path: Path) -> None:
    source = """
import asyncio
from asyncembed.embedders.text import TextEmbedding
from tests.support.encoders import ECHO

async def embed(started):
    async with TextEmbedding(ECHO, workers=2) as model:
        async for _ in model.embed(str(i) for i in range(10**9)):
            started.set()

async def main():
    started = asyncio.Event()
    main.task = asyncio.ensure_future(embed(started))
    await started.wait()

asyncio.run(main())
print("done")
"""
    done = programs.run(source, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_program_that_forgets_to_close_ends(tmp_path: Path) -> None:
    source = """
import asyncio
from asyncembed.embedders.text import TextEmbedding
from tests.support.encoders import ECHO

async def main():
    model = TextEmbedding(ECHO, workers=2)
    await model.__aenter__()
    print(len(await model.embed_documents(["a", "b"])))

asyncio.run(main())
"""
    done = programs.run(source, tmp_path)
    # It has come to its end, and so have its workers: they hold the other end of its stderr.
    assert (done.returncode, done.stdout) == (0, "2\n")


def test_a_program_may_leave_its_loop_as_it_is(tmp_path: Path) -> None:
    source = """
from asyncembed.embedders.text import TextEmbedding
from tests.support.encoders import ECHO
model = TextEmbedding(ECHO, workers=1)
await model.open()
print(len(await model.embed_documents(["a", "b"])))
"""
    done = programs.run(source, tmp_path, how="-m asyncio")
    assert (done.returncode, "2\n" in done.stdout, "Traceback" in done.stderr) == (0, True, False)


def test_importing_and_embedding_changes_nothing_in_the_process(tmp_path: Path) -> None:
    source = """
import json, logging, multiprocessing, os, signal, sys, warnings
import anyio, numpy  # what they do is theirs
def state():
    return [dict(os.environ), logging.getLogger().level, logging.getLogger("asyncembed").level, len(warnings.filters),
            multiprocessing.get_start_method(allow_none=True), str(signal.getsignal(signal.SIGINT)), sys.argv]
before = state()
import asyncio
from asyncembed.embedders.text import TextEmbedding
from tests.support.encoders import ECHO
async def main():
    async with TextEmbedding(ECHO, workers=1) as model:
        await model.embed_query("a")
asyncio.run(main())
print(json.dumps([before, state()]))
"""
    done = programs.run(source, tmp_path)
    before, after = json.loads(done.stdout)
    assert before == after


def test_a_program_reads_its_own_stdin(tmp_path: Path) -> None:
    """A source may be what is typed; workers do not take it away."""
    source = """
import asyncio, sys
from asyncembed.embedders.text import TextEmbedding
from tests.support.encoders import ECHO

async def main():
    async with TextEmbedding(ECHO, workers=2) as model:
        async for line, vector in model.embed(sys.stdin, key=str.strip).with_inputs():
            print(line.strip(), int(vector[0]), flush=True)

asyncio.run(main())
"""
    program = programs.start(source, tmp_path)
    assert program.stdin is not None
    assert program.stdout is not None
    for line in ("a", "bb"):
        program.stdin.write(f"{line}\n")
        program.stdin.flush()
        assert program.stdout.readline() == f"{line} {len(line)}\n"
    _, errors = program.communicate(timeout=programs.PROGRAM_SECONDS)
    assert (program.returncode, errors) == (0, "")


def test_program_runs_are_independent(tmp_path: Path) -> None:
    source = """
import sys
import anyio
from asyncembed.embedders.text import TextEmbedding
from tests.support.encoders import ECHO
model = TextEmbedding(ECHO, workers=1)
async def main():
    async with model:
        return int((await model.embed_query("abc"))[0])
print(anyio.run(main, backend="asyncio"), anyio.run(main, backend="trio"))
"""
    done = programs.run(source, tmp_path)
    assert (done.stdout, done.stderr) == ("3 3\n", "")
