"""Waiting for what other processes and threads do, which sends no event: bounded, and never for a fixed time."""

import gc
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from multiprocessing import resource_tracker
from typing import TypeVar

import anyio
import psutil

WAIT_SECONDS = 30.0

T = TypeVar("T")

_IDLE_THREADS = ("AnyIO worker thread", "Trio thread")
"""Kept by the backends for later calls."""


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition()` holds."""
    with anyio.fail_after(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110 (what is waited for knows no event)
            await anyio.sleep(0.005)


def worker_processes(pid: int | None = None, *, and_their_server: bool = False) -> list[psutil.Process]:
    """The children of a process that are workers: not multiprocessing's resource tracker, nor what forks workers."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = []
    for child in children:
        try:
            command = " ".join(child.cmdline())
            is_helper = "resource_tracker" in command or (_is_server(child, command) and not and_their_server)
            if not is_helper and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def _is_server(process: psutil.Process, command: str) -> bool:
    """Whether it forks workers; these are called like it."""
    parent = process.parent()
    return "fork_server" in command and parent is not None and "fork_server" not in " ".join(parent.cmdline())


def threads() -> set[str]:
    """Names of the threads that do something."""
    return {
        f"{thread.name} {thread.ident}"
        for thread in threading.enumerate()
        if not thread.name.startswith(_IDLE_THREADS) and "Trio thread" not in thread.name
    }


# multiprocessing's own process, for the life of this one: no test is the one that starts it.
resource_tracker.ensure_running()


def open_files(pid: int | None = None) -> int:
    """How many a process has open, this one without a number: files, sockets and pipes."""
    process = psutil.Process(pid)
    if sys.platform == "win32":
        return process.num_handles()
    return process.num_fds()


def _open_files() -> int:
    gc.collect()
    return open_files()


@asynccontextmanager
async def nothing_left_behind() -> AsyncGenerator[None]:
    """Check that the block leaves no process, task, thread or open file."""
    await anyio.to_thread.run_sync(int)  # the backend's first thread has files of its own
    tasks, files = len(anyio.get_running_tasks()), _open_files()
    processes, running = {child.pid for child in worker_processes(and_their_server=True)}, threads()
    yield
    await until(lambda: {child.pid for child in worker_processes(and_their_server=True)} <= processes)
    await until(lambda: len(anyio.get_running_tasks()) <= tasks)
    await until(lambda: threads() <= running)
    await until(lambda: _open_files() <= files)


def run_in_a_loop_of_its_own(function: Callable[[], Awaitable[T]], backend: str) -> T:
    """Run `function` on another event loop, in a thread, as this one may have a loop already."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(lambda: anyio.run(function, backend=backend)).result(WAIT_SECONDS)
