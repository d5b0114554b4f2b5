"""The event loop in the background, and its end with the interpreter."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import psutil
import pytest
from anyio.lowlevel import checkpoint

from asyncembed import background
from asyncembed.errors import UsageError
from tests.support import programs
from tests.support.waiting import worker_processes


async def thread_of_the_loop() -> int:
    await checkpoint()
    return threading.get_ident()


async def test_there_is_one_loop_for_all_threads_and_loops() -> None:
    with ThreadPoolExecutor(8) as executor:
        threads = set(executor.map(lambda _: background.run(thread_of_the_loop), range(50)))
    assert {await background.run_async(thread_of_the_loop)} == threads
    assert threading.get_ident() not in threads
    assert not background.is_current_thread()


def test_a_call_that_would_wait_for_itself_is_refused() -> None:
    async def again() -> None:
        assert background.is_current_thread()
        background.run(thread_of_the_loop)

    with pytest.raises(UsageError, match="await"):
        background.run(again)


def test_ctrl_c_cancels_what_a_blocked_main_thread_waits_for() -> None:
    ended = threading.Event()

    async def stay() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        background.run(stay)
    assert ended.is_set()


@pytest.mark.slow
@pytest.mark.posix
def test_a_loop_that_cannot_begin_says_so_and_begins_when_it_can(tmp_path: Path) -> None:
    body = """
import os, resource
from asyncembed import background
from asyncembed.errors import StateError

async def one():
    return 1

_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))
background.end_after_threads()
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    os.close(held.pop())
try:
    background.run(one)
except StateError as error:
    print(error)
for descriptor in held:
    os.close(descriptor)
print(background.run(one))
"""
    done = programs.run(body, tmp_path)
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[1:]) == (0, ["1"]), done.stderr
    assert "Too many open files" in lines[0]


# ---------------------------------------------------------------- the interpreter's end

BEGINNING = """
import os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from asyncembed import background
from asyncembed.embedders.text import TextEmbedding
from asyncembed.shared import Lease
from tests.support.encoders import ECHO

lease = Lease(TextEmbedding(ECHO, workers=1))

def embed(text="four"):
    return int(background.run(lease.call, lambda model: model.embed_query(text))[0])

assert embed() == 4
"""

ENDS = {
    "closed": ("background.run(lease.aclose)", 0, ""),
    "dropped": ("del lease", 0, ""),
    "left open": ("", 0, ""),
    "exit": ("sys.exit(3)", 3, ""),
    "exception": ("raise LookupError", 1, "LookupError"),
    "a call that runs": ("threading.Thread(target=embed, args=('hang',), daemon=True).start(); time.sleep(0.1)", 0, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_the_interpreter_ends_and_leaves_nothing(end: str, tmp_path: Path) -> None:
    code, returncode, last_words = ENDS[end]
    program = programs.start(BEGINNING + "print('open', flush=True)\nsys.stdin.readline()\n" + code, tmp_path)
    assert program.stdout is not None
    assert program.stdout.readline() == "open\n"
    workers = worker_processes(program.pid)
    assert len(workers) == 1
    output, errors = program.communicate("\n", timeout=15)
    assert (program.returncode, output) == (returncode, "")
    assert errors.rstrip().splitlines()[-1:] == ([last_words] if last_words else []), errors
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive


IN_AN_EXECUTOR = """
pool = ThreadPoolExecutor(4)
for number in range(12):
    pool.submit(work, number)
"""

IN_THREADS = """
for number in range(12):
    threading.Thread(target=work, args=(number,)).start()
while called < 12:
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", [IN_AN_EXECUTOR, IN_THREADS], ids=["executor", "threads"])
def test_the_interpreter_waits_for_threads_that_still_call(start: str, tmp_path: Path) -> None:
    """As it does for any thread that is no daemon; the engine stays for as long."""
    source = """
called = 0

def work(number):
    global called
    embed()
    called += 1
    threading.main_thread().join(0.3)
    sys.stdout.write(str(embed("a" * (number + 1))) + " ")
"""
    done = programs.run(BEGINNING + source + start, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(map(int, done.stdout.split())) == list(range(1, 13))


FIRST_USE_AFTER_MAIN = """
def work():
    threading.main_thread().join(0.2)
    print(embed(), flush=True)
threading.Thread(target=work).start()
"""

A_THREAD_OF_A_THREAD = """
def begin():
    threading.main_thread().join(0.2)
    threading.Thread(target=lambda: print(embed(), flush=True)).start()
threading.Thread(target=begin).start()
"""

WHILE_MAIN_IS_ALIVE = """
def work():
    while threading.main_thread().is_alive():
        embed()
    print(4, flush=True)
threading.Thread(target=work).start()
"""

WAITS_FOR_MAIN = """
def work():
    embed()
    threading.main_thread().join()
    print(4, flush=True)
threading.Thread(target=work).start()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "end",
    [FIRST_USE_AFTER_MAIN, A_THREAD_OF_A_THREAD, WHILE_MAIN_IS_ALIVE, WAITS_FOR_MAIN],
    ids=["first use after main", "thread of a thread", "while main is alive", "waits for main"],
)
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "not open"])
def test_threads_that_outlive_the_main_one_end_in_their_own_ways(end: str, is_open: bool, tmp_path: Path) -> None:
    """Whether they look after the main thread, or use the loop only when that has come to its end."""
    head = BEGINNING if is_open else BEGINNING.replace("assert embed() == 4", "background.end_after_threads()")
    done = programs.run(head + end, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


@pytest.mark.slow
def test_executors_that_end_after_the_loop_are_not_waited_for(tmp_path: Path) -> None:
    body = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from asyncembed import background

if __name__ == "__main__":
    background.end_after_threads()
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    print(pool.submit(abs, -4).result())
"""
    done = programs.run(body, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


@pytest.mark.slow
def test_what_is_new_when_the_interpreter_is_ending_is_refused(tmp_path: Path) -> None:
    """Nobody has said before that the loop may be used, so that nobody waits for it."""
    body = """
import threading
from asyncembed.errors import StateError

def late():
    threading.main_thread().join()
    from asyncembed import background
    try:
        background.end_after_threads()
    except StateError as error:
        print(error)

threading.Thread(target=late).start()
"""
    done = programs.run(body, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("the interpreter is ending")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("use", ["pass", "embed()"])
def test_a_forked_child_ends_by_itself_and_its_parent_goes_on(use: str, tmp_path: Path) -> None:
    done = programs.run(
        BEGINNING
        + f"""
child = os.fork()
if child == 0:
    {use}
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert embed() == 4
""",
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("daemon", [False, True])
def test_a_process_of_multiprocessing_ends_by_itself(method: str, daemon: bool, tmp_path: Path) -> None:
    """It waits for its children before its threads. A daemonic one may have none, and computes in a thread."""
    done = programs.run(
        f"""
import multiprocessing
def work():
    from asyncembed import background
    from asyncembed.embedders.text import TextEmbedding
    from asyncembed.shared import Lease
    from tests.support.encoders import ECHO
    global lease
    lease = Lease(TextEmbedding(ECHO, workers={None if daemon else 1}))
    assert background.run(lease.call, lambda model: model.embed_query("four"))[0] == 4

if __name__ == "__main__":
    process = multiprocessing.get_context({method!r}).Process(target=work, daemon={daemon})
    process.start()
    process.join(15)
    print(process.exitcode)
    process.kill()
""",
        tmp_path,
    )
    assert done.stdout == "0\n", done.stderr
    if not daemon:
        assert done.stderr == ""
