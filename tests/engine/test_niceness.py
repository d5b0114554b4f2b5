"""Processes that make way for others, and come back."""

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from asyncembed.engine.niceness import LOWER_BY, LOWEST, lower, raise_again

pytestmark = [pytest.mark.slow, pytest.mark.posix]

SOURCE = """
import threading
for _ in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print(flush=True)
input()
"""


@pytest.fixture
def process() -> Iterator[psutil.Process]:
    """One with some threads."""
    with subprocess.Popen([sys.executable, "-c", SOURCE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        program.stdout.readline()
        yield psutil.Process(program.pid)
        program.kill()


def levels(process: psutil.Process) -> set[int]:
    """Of its threads, where each has one of its own."""
    if sys.platform != "linux":
        return {int(process.nice())}
    return {int(psutil.Process(thread.id).nice()) for thread in process.threads()}


def test_all_threads_of_a_process_make_way_and_come_back_where_that_is_allowed(process: psutil.Process) -> None:
    (before,) = levels(process)
    assert lower(process.pid) == before
    lowered = min(before + LOWER_BY, LOWEST)
    assert levels(process) == {lowered}
    assert raise_again(process.pid, before) is (levels(process) == {before})


def test_a_process_that_is_gone_is_no_trouble(process: psutil.Process) -> None:
    process.kill()
    process.wait()
    assert lower(process.pid) is None
    assert raise_again(process.pid, 0)
