"""Whole programs without an event loop of their own, and their ends in every way."""

import signal
from pathlib import Path

import psutil
import pytest

from tests.support import posix, programs
from tests.support.waiting import worker_processes

pytestmark = pytest.mark.slow

HEAD = """
import sys, threading, time
from asyncembed.sync import TextEmbedding
from tests.support.encoders import ECHO

def endless():
    number = 0
    while True:
        yield f"#{number}"
        number += 1

"""

IN_A_LOOP = """
with TextEmbedding(ECHO, workers=2) as model:
    for vector in model.embed(endless()):
        if vector[2] == 0:
            print("busy", flush=True)
"""
IN_A_QUERY = """
model = TextEmbedding(ECHO, workers=2)
model.embed_query("a")
print("busy", flush=True)
model.embed_query("hang")
"""
IN_COLLECT = """
model = TextEmbedding(ECHO, workers=2)
model.embed_query("a")
print("busy", flush=True)
model.embed(endless()).collect()
"""
WITH_THREADS = """
model = TextEmbedding(ECHO, workers=2)
model.embed_query("a")
for _ in range(4):
    threading.Thread(target=lambda: sum(1 for _ in model.embed(endless())), daemon=True).start()
print("busy", flush=True)
model.embed_query("hang")
"""


@pytest.mark.posix
@pytest.mark.parametrize(
    "body", [IN_A_LOOP, IN_A_QUERY, IN_COLLECT, WITH_THREADS], ids=["loop", "query", "collect", "threads"]
)
def test_ctrl_c_ends_a_program_cleanly(body: str, tmp_path: Path) -> None:
    """As in a terminal, the whole process group gets the signal; only the program itself answers it."""
    program = programs.start(HEAD + body, tmp_path, new_session=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "busy\n"
    workers = worker_processes(program.pid)
    assert len(workers) == 2
    posix.press_ctrl_c(program.pid)
    _, errors = program.communicate(timeout=15)
    assert program.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert errors.count("Traceback") == 1
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive


EXIT_IN_THE_LOOP = """
    for vector in model.embed(endless()):
        print(int(vector[2]))
        sys.exit(3)
"""
BREAK = """
    for vector in model.embed(endless()):
        print(int(vector[2]))
        break
"""
THREADS = """
    found = []
    def ask(number):
        found.append(int(model.embed_query(f"#{number}")[2]))
    asking = [threading.Thread(target=ask, args=[number]) for number in range(16)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    print(sorted(found)[0])
"""
STREAM_AT_HAND = """
    stream = model.embed(endless())
    print(int(next(stream)[2]))
"""


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "never closed"])
@pytest.mark.parametrize(
    ("body", "status"),
    [(EXIT_IN_THE_LOOP, 3), (BREAK, 0), (THREADS, 0), (STREAM_AT_HAND, 0)],
    ids=["exit in the loop", "break", "threads", "a stream at hand"],
)
def test_a_program_ends_without_a_word(body: str, status: int, is_closed: bool, tmp_path: Path) -> None:
    made = "TextEmbedding(ECHO, workers=1)"
    head = f"with {made} as model:" if is_closed else f"model = {made}\nif True:"
    done = programs.run(HEAD + head + body, tmp_path)
    # It has come to its end, and so have its workers: they hold the other end of its stderr.
    assert (done.returncode, done.stdout, done.stderr) == (status, "0\n", "")


AT_EXIT = """
import atexit
def last():
    stream.close()
    model.unload()
    model.close()
    print(0)
atexit.register(last)
model = TextEmbedding(ECHO, workers=1)
stream = model.embed(endless())
next(stream)
"""
IN_DEL = """
class Store:
    def __init__(self):
        self.model = TextEmbedding(ECHO, workers=1)
        self.stream = self.model.embed(endless())
        next(self.stream)
    def __del__(self):
        self.stream.close()
        self.model.unload()
        self.model.close()
        print(0)
store = Store()
"""
OF_ANY_LOOP = """
import asyncio, atexit, asyncembed
model = asyncembed.TextEmbedding(ECHO, workers=1).on_any_loop()
async def last():
    await model.unload()
    await model.aclose()
    print(0)
atexit.register(lambda: asyncio.run(last()))
asyncio.run(model.embed_query("a"))
"""


@pytest.mark.parametrize("body", [AT_EXIT, IN_DEL, OF_ANY_LOOP], ids=["atexit", "__del__", "on any loop"])
def test_what_closes_a_model_at_the_very_end_finds_it_closed(body: str, tmp_path: Path) -> None:
    done = programs.run(HEAD + body, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_an_exception_of_the_program_comes_out_as_itself(tmp_path: Path) -> None:
    body = """
model = TextEmbedding(ECHO, workers=1)
for vector in model.embed(endless()):
    raise LookupError("of the program")
"""
    done = programs.run(HEAD + body, tmp_path)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("LookupError: of the program")
    assert done.stderr.count("Traceback") == 1


def test_a_program_reads_its_own_stdin(tmp_path: Path) -> None:
    """Each line has its vector before the next one is read."""
    body = """
with TextEmbedding(ECHO, workers=1) as model:
    for line, vector in model.embed(sys.stdin, key=str.strip).with_inputs():
        print(line.strip(), int(vector[0]), flush=True)
"""
    program = programs.start(HEAD + body, tmp_path)
    assert program.stdin is not None
    assert program.stdout is not None
    for line in ("a", "bb"):
        program.stdin.write(f"{line}\n")
        program.stdin.flush()
        assert program.stdout.readline() == f"{line} {len(line)}\n"
    _, errors = program.communicate(timeout=programs.PROGRAM_SECONDS)
    assert (program.returncode, errors) == (0, "")
