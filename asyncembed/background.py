"""One event loop per process that runs in the background: in a daemon thread, with asyncio, from its first use on.

For programs that have no loop, several, or loops that come and go. `run(function, *args)` runs a coroutine function
on it and blocks the calling thread, `await run_async(function, *args)` does so from any asyncio or trio loop; see
`asyncembed.remote` for cancellation and errors. What shall live longer than a call is a task of its own there:
`start_task(function, *args)`, called on the loop.

It ends with the interpreter, after the threads that the interpreter waits for, as they may still call it, and before
the worker processes are waited for; its tasks are cancelled then, and have END_SECONDS to clean up. A forked child has
none of its parent's: its own begins with its first use.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from importlib import import_module
from multiprocessing.util import Finalize
from typing import Any, TypeVar, TypeVarTuple

import anyio
from anyio import Event
from anyio.abc import TaskGroup

from asyncembed.engine.lifetime import owned_task_group
from asyncembed.engine.spawn import kill_workers
from asyncembed.errors import StateError
from asyncembed.remote import Remote
from asyncembed.wakeup import before_threads_are_joined

END_SECONDS = 10.0
"""How long the loop may take to end with the interpreter; workers that still run then are killed."""

LOOK_SECONDS = 0.05
"""How often the ending interpreter looks which threads it waits for."""

Args = TypeVarTuple("Args")
T = TypeVar("T")


def run(function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
    """What `await function(*args)` gives on the background loop; blocks the calling thread.

    Ctrl-C in the main thread cancels the function, waits for its end and raises `KeyboardInterrupt`.

    Raises:
        UsageError: The calling thread is that of the background loop.
        StateError: The interpreter is ending.
    """
    try:
        return _home().call_blocking(function, *args)
    except StateError:
        if _is_abandoned():
            threading.Event().wait()
        raise


async def run_async(function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
    """The same, awaited from any asyncio or trio loop; cancelling the caller cancels the function.

    Raises:
        StateError: The interpreter is ending.
    """
    try:
        return await _home().call(function, *args)
    except StateError:
        if _is_abandoned():
            await anyio.sleep_forever()
        raise


def run_last(function: Callable[[*Args], Awaitable[object]], *args: *Args) -> None:
    """`run` for what gives something back: nothing happens where the loop has not begun, or has ended with it all."""
    if _is_here():
        try:
            run(function, *args)
        except StateError:
            if not _is_ending:
                raise


async def run_last_async(function: Callable[[*Args], Awaitable[object]], *args: *Args) -> None:
    """The same, awaited from any asyncio or trio loop."""
    if _is_here():
        try:
            await run_async(function, *args)
        except StateError:
            if not _is_ending:
                raise


def post(function: Callable[[*Args], object], *args: *Args) -> None:
    """Have the background loop call `function(*args)` soon, if there is one; from any thread, also a finalizer's."""
    background = _background
    if background is not None and background.process == os.getpid():
        background.remote.loop.post(function, *args)


def is_current_thread() -> bool:
    """Whether the caller runs in the thread of the background loop."""
    background = _background
    return background is not None and _is_here() and background.remote.is_current_thread


def start_task(function: Callable[[*Args], Coroutine[Any, Any, None]], *args: *Args) -> None:
    """Start a task that belongs to the background loop; call it there. It must handle its own errors."""
    assert _background is not None, "called on the loop"
    _background.group.start_soon(function, *args)


class _Background:
    """The loop of one process; made by one of its threads, which waits until it runs."""

    remote: Remote
    group: TaskGroup
    _end: Event

    def __init__(self) -> None:
        self.process = os.getpid()
        self._is_ready = threading.Event()
        """Or cannot begin."""
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=Context().run, args=(self._run,), name="asyncembed-loop", daemon=True)
        self._thread.start()
        self._is_ready.wait()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        # Not a loop of the program's policy, which may be bound to its main thread.
        factory = getattr(asyncio, "ProactorEventLoop", asyncio.SelectorEventLoop)
        try:
            anyio.run(self._main, backend="asyncio", backend_options={"loop_factory": factory})
        except Exception as error:
            if self._is_ready.is_set():
                raise
            self._failure = error
        finally:
            self._is_ready.set()

    async def _main(self) -> None:
        self._end = Event()
        async with owned_task_group() as self.group:
            self.remote = Remote(self.group)
            self._is_ready.set()
            try:
                await self._end.wait()
            finally:
                self.remote.close()

    def end(self) -> None:
        """Cancel all that runs, and wait for the thread."""
        self.remote.loop.post(self._end.set)
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            kill_workers()


_lock = threading.RLock()
"""Held while the two below change. Again by the same thread, as a finalizer may come at any time."""
_background: _Background | None = None
_is_ending = False
_of_parents: list[_Background] = []
"""What a forked child has of its parents' loops: never used, and never collected, since ending them is not its part."""


def _home() -> Remote:
    global _background
    background = _background
    if background is None:
        with _lock:
            if _is_ending:
                raise StateError("the interpreter is ending: call before the main program ends, not by `atexit`")
            if _background is None:
                _background = _begin()
            background = _background
    return background.remote


def _is_here() -> bool:
    """Whether this process has a loop."""
    background = _background
    return background is not None and background.process == os.getpid()


def _begin() -> _Background:
    end_after_threads()
    try:
        background = _Background()
    except (OSError, RuntimeError) as error:
        raise StateError(f"the background loop cannot be started now ({error}); free what it lacks") from error
    # Before `multiprocessing` waits for the children of a process that it has started.
    Finalize(None, _end, exitpriority=100)
    return background


# ---------------------------------------------------------------- the end of the interpreter


_is_hooked = False


def end_after_threads() -> None:
    """Have the loop end when the interpreter waits for its threads; for this process and its children, however often.

    Whoever may use the loop says so ahead of its first use, which may come in a thread that the main one does not wait
    for: then it is too late.

    Raises:
        StateError: The interpreter is ending.
    """
    global _is_hooked
    if _is_hooked:
        return
    try:
        if not before_threads_are_joined(_end):
            threading.Thread(target=_end_after_main, name="asyncembed-end").start()
    except RuntimeError as error:
        raise StateError(f"the interpreter is ending ({error}); have the main thread wait for this one") from error
    _is_hooked = True


def _end_after_main() -> None:
    threading.main_thread().join()
    _end()


def _end() -> None:
    """Once the threads are done that may use it, end the loop."""
    global _background, _is_ending
    if not _is_ending:
        with suppress(KeyboardInterrupt):
            _wait_for_threads()
    with _lock:
        _is_ending = True
        background, _background = _background, None
    if background is not None and background.process == os.getpid():
        background.end()


def _wait_for_threads() -> None:
    """Let those threads finish that the interpreter would wait for anyway: their calls need the loop."""
    main = threading.main_thread()
    # So it will be while the interpreter waits for them, and some of them end when they see that.
    vars(main)["is_alive"] = lambda: False
    finish = getattr(import_module("concurrent.futures.thread"), "_python_exit", None)
    if finish is not None:
        finish()  # the threads of executors, which take what was submitted to them
    while threads := [thread for thread in threading.enumerate() if _is_waited_for(thread)]:
        threads[0].join(LOOK_SECONDS)


def _is_waited_for(thread: threading.Thread) -> bool:
    """Whether the interpreter waits for the end of a thread, which comes by itself and neither here nor after ours."""
    if thread.daemon or thread is threading.current_thread() or thread is threading.main_thread():
        return False
    if type(thread).__module__ == "concurrent.futures.process":  # ends by a hook of its own, after this one
        return False
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 (documented)
    while frame is not None:
        waits = frame.f_code is threading.Thread.join.__code__ and frame.f_locals.get("timeout") is None
        if waits and frame.f_locals.get("self") is threading.main_thread():
            return False
        frame = frame.f_back
    return True


def _is_abandoned() -> bool:
    """Whether the caller is a daemon thread that the interpreter's end stops wherever it is, without a traceback."""
    return _is_ending and threading.current_thread().daemon


def _forget_parents() -> None:
    global _background, _lock, _is_ending
    _lock = threading.RLock()
    _is_ending = False
    if _background is not None:
        _of_parents.append(_background)
        _background = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents)
