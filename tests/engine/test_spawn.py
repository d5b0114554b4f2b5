"""Starting workers from odd surroundings: closed descriptors, no interpreter, no semaphores, a folder that is gone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support import programs
from tests.support.waiting import worker_processes

pytestmark = pytest.mark.slow

PROGRAM = """
import asyncio, sys
from asyncembed.embedders.text import TextEmbedding
from asyncembed.errors import AsyncEmbedError
from tests.support.encoders import ECHO
{before}
async def main():
    try:
        async with TextEmbedding(ECHO, workers={workers}) as model:
            report(len(await model.embed_documents(["a", "b print"])), model.stats().workers)
            {after}
    except AsyncEmbedError as error:
        report(type(error).__name__, error)

def report(*words):
    with open(sys.argv[1], "a", encoding="utf-8") as file:
        print(*words, file=file)

asyncio.run(main())
"""


def source_of(before: str = "", workers: int | None = 1, after: str = "") -> str:
    return PROGRAM.format(before=before, workers=workers, after=after)


def run(source: str, directory: Path) -> tuple[list[str], str]:
    """The lines that a program reported, and its stderr."""
    report = directory / "report"
    done = programs.run(source, directory, str(report))
    return (report.read_text("utf-8").splitlines() if report.exists() else []), done.stderr


# ---------------------------------------------------------------- descriptors 0 to 2


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
def test_a_program_with_closed_standard_streams_has_workers_that_live_and_end_with_it(
    closed: str, tmp_path: Path
) -> None:
    """Their numbers go to whatever is opened next: a pipe of ours under one of them would be written over."""
    script, report = tmp_path / "program.py", tmp_path / "report"
    script.write_text(source_of(workers=2, after="await asyncio.sleep(3600)"), "utf-8")
    parent = subprocess.Popen(
        ["sh", "-c", f'exec "$0" "$1" "$2" {closed}', sys.executable, script, report],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(programs.ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (report.exists() and report.read_text("utf-8").endswith("\n")):
            assert parent.poll() is None
            time.sleep(0.01)
        assert report.read_text("utf-8") == "2 2\n"
        workers = worker_processes(parent.pid)
        assert len(workers) == 2
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


# ---------------------------------------------------------------- the interpreter


@pytest.mark.parametrize("executable", ["''", "None", "'/usr/sbin/uwsgi'", "'/no/such/python3'"])
def test_a_program_that_embeds_python_starts_workers_with_the_python_beside_it(executable: str, tmp_path: Path) -> None:
    """Uwsgi calls itself `sys.executable`, and started with a worker's arguments it would be a server again."""
    before = f"import multiprocessing\nsys.executable = {executable}\nmultiprocessing.set_executable(sys.executable)"
    assert run(source_of(before), tmp_path)[0] == ["2 1"]


def test_without_any_python_to_start_the_error_says_what_to_do(tmp_path: Path) -> None:
    before = """
import multiprocessing.spawn
sys.executable = None
sys.exec_prefix = sys.base_exec_prefix = "/no/such"
multiprocessing.spawn.set_executable(None)
"""
    ((line,), _) = run(source_of(before), tmp_path)
    assert line.startswith("WorkersImpossible no Python to start workers with was found (sys.executable is None)")
    assert "set_executable" in line
    assert "workers=0" in line


def test_an_interpreter_that_the_program_has_set_is_taken(tmp_path: Path) -> None:
    mark, program = tmp_path / "mark", tmp_path / "interpreter"
    program.write_text(f'#!/bin/sh\ntouch {mark}\nexec {sys.executable} "$@"\n', "utf-8")
    program.chmod(0o755)
    before = f"import multiprocessing\nmultiprocessing.set_executable({str(program)!r})"
    assert run(source_of(before), tmp_path)[0] == ["2 1"]
    assert mark.exists()


# ---------------------------------------------------------------- semaphores

NO_SEMAPHORES = """
import _multiprocessing
class SemLock:
    SEM_VALUE_MAX = 2**31 - 1
    def __init__(self, *arguments): raise {error}
_multiprocessing.SemLock = SemLock
"""


@pytest.mark.parametrize(
    "error",
    ["FileNotFoundError(2, 'No such file')", "OSError(38, 'Function not implemented')", "PermissionError(13, '')"],
)
def test_a_system_without_semaphores_is_told_apart(error: str, tmp_path: Path) -> None:
    ((line,), _) = run(source_of(NO_SEMAPHORES.format(error=error)), tmp_path)
    assert line.startswith("WorkersImpossible this system has no semaphores for worker processes, as without /dev/shm")
    assert "workers=0" in line


def test_a_full_dev_shm_is_a_shortage(tmp_path: Path) -> None:
    ((line,), _) = run(source_of(NO_SEMAPHORES.format(error="OSError(28, 'No space left on device')")), tmp_path)
    assert line.startswith(
        "WorkerError a worker process cannot be started (OSError: [Errno 28] No space left on device)"
    )
    assert "workers=0" in line


# ---------------------------------------------------------------- workers=None leaves the choice to us


def test_where_no_process_can_be_had_the_default_is_a_thread_and_one_warning(tmp_path: Path) -> None:
    before = NO_SEMAPHORES.format(error="FileNotFoundError(2, 'No such file')")
    lines, errors = run(source_of(before, workers=None), tmp_path)
    assert lines == ["2 1"]
    (warning,) = [line for line in errors.splitlines() if "workers=0" in line]
    assert warning.startswith("computing in a thread of this process, as with workers=0: this system has no semaphores")


def test_a_daemonic_process_computes_in_a_thread_by_default(tmp_path: Path) -> None:
    """As a worker of Celery's or of a `multiprocessing.Pool`; again and again, and with a pool of its own, too."""
    source = """
import multiprocessing, os
os.environ.pop("WEB_CONCURRENCY", None)
def inside(report):
    import anyio
    from asyncembed import TextEmbedding, WorkerPool
    from tests.support.encoders import ECHO
    async def main():
        async with WorkerPool(interactive_workers=1) as pool, TextEmbedding(ECHO, pool=pool) as model:
            report.put((len(await model.embed_documents(["a", "b"])), pool.stats().workers))
        async with pool, TextEmbedding(ECHO, pool=pool) as model:
            report.put(len(await model.embed_documents(["a", "b", "c"])))
    for backend in ("asyncio", "trio"):
        anyio.run(main, backend=backend)
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    report = context.Queue()
    process = context.Process(target=inside, args=(report,), daemon=True)
    process.start()
    print([report.get(timeout=30) for _ in range(4)])
    process.join()
"""
    done = programs.run(source, tmp_path)
    assert done.stdout == "[(2, 2), 3, (2, 2), 3]\n"
    assert done.stderr.count("computing in a thread of this process") == 2, "once for each pool"


# ---------------------------------------------------------------- a folder that is gone


def test_a_program_whose_folder_is_gone_has_workers_all_the_same(tmp_path: Path) -> None:
    before = "import os\nos.mkdir('gone')\nos.chdir('gone')\nos.rmdir('../gone')"
    assert run(source_of(before), tmp_path) == (["2 1"], "a word on stdout\n")


@pytest.mark.posix
def test_a_process_with_the_start_method_of_another_library_has_workers(tmp_path: Path) -> None:
    """As one of joblib's: the method is known by a name that no fresh interpreter knows."""
    done = programs.run(
        """
import multiprocessing.context
from asyncembed.sync import TextEmbedding
from tests.support.encoders import ECHO

class Theirs(multiprocessing.context.ForkContext):
    _name = "theirs"

multiprocessing.context._concrete_contexts["theirs"] = Theirs()
multiprocessing.set_start_method("theirs")
with TextEmbedding(ECHO, workers=1) as model:
    print(int(model.embed_query("four")[0]), multiprocessing.get_start_method())
""",
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "4 theirs\n", "")
