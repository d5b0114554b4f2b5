"""Ctrl-C at any moment of opening: the program ends with it, and nothing is left running."""

import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.support import posix, programs
from tests.support.waiting import worker_processes

pytestmark = pytest.mark.slow

SWEEP = """
import dis, os, signal, sys, threading
import anyio
from asyncembed.embedders.text import TextEmbedding
from tests.support.encoders import ECHO

backend, first, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

class CtrlC:
    '''Comes at the n-th moment at which the interpreter looks for signals: after a call, at a jump back.'''
    def __init__(self, n):
        self.left, self.before = n, {}

    def __call__(self, frame, event, argument):
        frame.f_trace_opcodes = True
        if event == "opcode":
            code, at = frame.f_code.co_code, frame.f_lasti
            name, number = self.before.get(id(frame), ("", 0))
            self.before[id(frame)] = dis.opname[code[at]], code[at + 1]
            if name.startswith("CALL") or name == "JUMP_BACKWARD" or (name == "RESUME" and number < 2):
                self.left -= 1
                if self.left == 0:
                    sys.settrace(None)
                    signal.raise_signal(signal.SIGINT)
                    return None
        return self

async def main(ctrl_c):
    sys.settrace(ctrl_c)
    async with TextEmbedding(ECHO, workers=0) as model:
        sys.settrace(None)
        await model.embed_query("a")

def give_up(where):
    print("hangs", where, flush=True)
    os._exit(1)

n = first
while True:
    ctrl_c = CtrlC(n)
    watch = threading.Timer(20, give_up, [n])
    watch.start()
    try:
        anyio.run(main, ctrl_c, backend=backend)
    except KeyboardInterrupt:
        pass
    except BaseException as error:
        print(n, type(error).__name__, error)
    finally:
        sys.settrace(None)
        watch.cancel()
    if ctrl_c.left > 0:
        break
    n += step
print("done after", n > 1000)
"""


@pytest.mark.parametrize("first", [1, 45, 89])
def test_ctrl_c_at_any_moment_of_opening_ends_the_program(first: int, tmp_path: Path, anyio_backend: str) -> None:
    """On trio it may come between any two instructions; tasks were left then that nobody ran, and nobody ended."""
    done = programs.run(SWEEP, tmp_path, anyio_backend, str(first), "131")
    assert done.stdout == "done after True\n"


OPENING = """
import sys
import anyio
from asyncembed.embedders.text import TextEmbedding
from tests.support.encoders import ECHO

async def main():
    print("opens", flush=True)
    async with TextEmbedding(ECHO, workers=2):
        await anyio.sleep_forever()

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("seed", range(4))
def test_ctrl_c_while_workers_start_ends_them_too(seed: int, tmp_path: Path, anyio_backend: str) -> None:
    program = programs.start(OPENING, tmp_path, anyio_backend, new_session=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "opens\n"
    time.sleep(random.Random(seed).uniform(0, 0.6))  # whatever it is doing by then
    workers = worker_processes(program.pid)
    posix.press_ctrl_c(program.pid)
    _, errors = program.communicate(timeout=30)
    assert program.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
