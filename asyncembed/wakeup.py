"""Between the event loop and threads: waking the loop without ever waiting for it, and work that may never end."""

import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from importlib import import_module
from time import perf_counter
from typing import Any, Protocol, TypeVar, TypeVarTuple, cast

from anyio import Event, NoEventLoopError
from anyio.lowlevel import current_token

from asyncembed.errors import StateError

BURST_SECONDS = 0.001
"""Callers that come no further apart are taken for one burst, all in one turn of the loop."""

Args = TypeVarTuple("Args")
T = TypeVar("T")


class _AsyncioLoop(Protocol):
    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any) -> object: ...

    def is_closed(self) -> bool: ...

    def create_task(self, coroutine: Coroutine[Any, Any, None], *, name: str) -> "_AsyncioTask": ...


class _AsyncioTask(Protocol):
    def add_done_callback(self, callback: Callable[["_AsyncioTask"], object], /) -> object: ...

    def cancel(self) -> bool: ...

    def get_loop(self) -> Any: ...


class _TrioToken(Protocol):
    def run_sync_soon(self, sync_fn: Callable[..., Any], *args: Any) -> None: ...


_tasks: "dict[_AsyncioTask, int]" = {}
"""Those that were spawned here, each with its process: a forked child has its parent's, which do not run there."""


class Loop:
    """The event loop that was running when this was made."""

    def __init__(self) -> None:
        self._native = current_token().native_token
        if hasattr(self._native, "call_soon_threadsafe"):
            self._post: Callable[..., object] = cast(_AsyncioLoop, self._native).call_soon_threadsafe
        else:
            self._post = cast(_TrioToken, self._native).run_sync_soon

    def post(self, function: Callable[[*Args], object], *args: *Args) -> None:
        """Have the loop call `function(*args)` soon; from any thread, the loop's own included.

        Does nothing once the loop is closed: nobody waits there any more.
        """
        with suppress(RuntimeError):
            self._post(function, *args)

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Start a task that no other one waits for, nor cancels: the loop does when it ends. On this very loop.

        It runs in the caller's context. No exception may leave it but cancellation: on trio, the run would end.
        """
        if hasattr(self._native, "create_task"):
            task = cast(_AsyncioLoop, self._native).create_task(function(), name=name)
            _tasks[task] = os.getpid()  # asyncio itself may forget what it runs
            task.add_done_callback(_tasks.pop)
            _end_tasks_with_the_program()
        else:
            import_module("trio").lowlevel.spawn_system_task(function, name=name, context=copy_context())

    def is_closed(self) -> bool:
        """Whether it was closed, and runs nothing any more; a loop of trio's first ends all that it runs."""
        return hasattr(self._native, "is_closed") and cast(_AsyncioLoop, self._native).is_closed()

    def is_running_here(self) -> bool:
        """Whether the caller runs on this very loop."""
        try:
            return current_token().native_token is self._native
        except NoEventLoopError:
            return False

    def check(self) -> None:
        """Raise `StateError` unless the caller runs on this very loop."""
        if not self.is_running_here():
            raise StateError(
                "this was opened on another event loop, or none runs here: use it there, or open another one here; a "
                "model's `on_any_loop()` is for all of them"
            )


_is_hooked = False


def _end_tasks_with_the_program() -> None:
    global _is_hooked
    if not _is_hooked:
        with suppress(RuntimeError):  # a thread that outlives the main one has begun this, and ends it
            _is_hooked = before_threads_are_joined(_end_tasks_of_loops_that_stand)


def _end_tasks_of_loops_that_stand() -> None:
    """End what runs on loops that were left as they are, as that of `python -m asyncio` is.

    The interpreter waits for anyio's idle threads, and they for the task that used them.
    """
    wait: Callable[..., Coroutine[Any, Any, object]] = import_module("asyncio").wait
    for task, process in list(_tasks.items()):
        loop = task.get_loop()
        if process == os.getpid() and not loop.is_running() and not loop.is_closed():
            task.cancel()
            loop.run_until_complete(wait([task]))


def before_threads_are_joined(function: Callable[[], None]) -> bool:
    """Have the interpreter call a function at its end, before it waits for its threads; `atexit` comes after that.

    The hooks of `concurrent.futures`, after which no worker takes any call, come in the same place. The last one that
    was registered comes first, so theirs are registered before ours.

    Returns:
        Whether this interpreter has such a place.

    Raises:
        RuntimeError: It is ending.
    """
    import_module("concurrent.futures.thread")
    import_module("concurrent.futures.process")
    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        register(function)
    return register is not None


class Signal:
    """Wakes all who wait for a change; they look then whether it is the one that they wait for, and may wait again.

    Whoever looks and waits has no await between the two, so no change is missed.
    """

    def __init__(self) -> None:
        self._event: Event | None = None
        """Of those who wait since the last change."""

    def notify(self) -> None:
        """Wake them; on the event loop."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Wait for the next change."""
        if self._event is None:
            self._event = Event()
        await self._event.wait()


class Turnstile:
    """Lets some callers at a time begin: a turn of the loop in which a thousand begin would hold up everybody else.

    Who comes while others wait, waits behind them. Whoever comes alone passes at once.
    """

    def __init__(self, loop: Loop, per_turn: int) -> None:
        self._loop = loop
        self._per_turn = per_turn
        self._passed = 0
        self._last_came = 0.0
        # Those who wait, in groups that begin together; all but the last one are full.
        self._groups: deque[Event] = deque()
        self._in_last_group = 0

    async def enter(self) -> None:
        """Wait for a turn of the loop in which the caller may begin.

        Raises:
            StateError: The caller runs on another loop, and would wait for ever.
        """
        if not self._groups:
            now = perf_counter()
            if now - self._last_came > BURST_SECONDS:
                self._passed = 0
            self._last_came = now
            if self._passed < self._per_turn:
                self._passed += 1
                return
        if not self._groups or self._in_last_group == self._per_turn:
            self._loop.check()
            if not self._groups:
                self._loop.post(self._begin_turn)
            self._groups.append(Event())
            self._in_last_group = 0
        self._in_last_group += 1
        await self._groups[-1].wait()

    def _begin_turn(self) -> None:
        self._groups.popleft().set()
        self._last_came = perf_counter()
        self._passed = self._per_turn
        if self._groups:
            self._loop.post(self._begin_turn)


async def completion(future: Future[T]) -> T:
    """Wait for a future of another thread, without a thread of its own; gives its result or raises its exception.

    Cancelling the waiter does not stop the work.
    """
    loop = Loop()
    done = Event()
    future.add_done_callback(lambda _: loop.post(done.set))
    await done.wait()
    return future.result()


def start_thread(function: Callable[[*Args], T], *args: *Args, name: str = "asyncembed-image") -> "Future[T]":
    """Run `function` in a daemon thread of its own; the future has what comes of it, an exception included.

    Not in a thread of the program's executor or of anyio's limiter: what hangs would fill those, and keep the loop and
    the interpreter from ending.

    Raises:
        RuntimeError: There can be no more threads.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            result = function(*args)
        except BaseException as error:  # noqa: BLE001 (the future carries it)
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=work, name=name, daemon=True).start()
    return future
