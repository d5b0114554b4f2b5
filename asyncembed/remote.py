"""Calls across event loops: a coroutine function runs on one loop, and who waits for it is on another, or on none.

`Remote` is the way to one loop. `await remote.call(function, *args)` comes from any asyncio or trio loop, and
`remote.call_blocking(function, *args)` from any thread without one. Both give what the function returns or raises, with
its traceback. A caller that is cancelled, or that gets Ctrl-C, cancels the function and waits until it has ended: then
nothing of it is left. There is no thread per call, and neither side waits for the other's loop to have time.
"""

import os
import sys
import threading
from asyncio import current_task
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from math import inf
from typing import Any, TypeVar, TypeVarTuple, cast

from anyio import CancelScope, Event, current_effective_deadline, get_cancelled_exc_class
from anyio.abc import TaskGroup

from asyncembed.errors import StateError, UsageError
from asyncembed.wakeup import Loop

POLL_SECONDS = 0.1
"""How often a thread that waits looks up on Windows, where Ctrl-C does not wake it."""

CANCEL_GRACE_SECONDS = 5.0
"""How long a thread that was interrupted waits for its call to end: workers that are being stopped take up to 2 s."""

LOOP_VARIABLE = "current_async_library_cvar"
"""The context variable by which anyio and sniffio tell asyncio from trio."""

Args = TypeVarTuple("Args")
T = TypeVar("T")


class Remote:
    """The way to the event loop on which it was made; calls become tasks of `group`.

    `close()` comes before the group is left. From then on calls raise `StateError`, and so do those that had not begun.
    """

    def __init__(self, group: TaskGroup) -> None:
        self.loop: Loop = Loop()
        self._group = group
        self._context = _context_of_this_loop()
        self._thread = threading.get_ident()
        self._process = os.getpid()
        self._is_closed = False
        self._waiting: set[_Call] = set()
        """Those that the loop has not heard of yet.

        Without a lock, as a finalizer may make a call in the middle of another one.
        """

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller runs in the thread of this loop."""
        return threading.get_ident() == self._thread

    async def call(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """What `await function(*args)` gives on this loop.

        Raises:
            StateError: The loop, or what its group belongs to, was closed, before the call or during it; or this
                process was forked from the one that has the loop.
        """
        if self.loop.is_running_here():
            return await function(*args)
        done, here = Event(), Loop()
        call = _Call(function, args, lambda: here.post(done.set))
        self._submit(call)
        try:
            await done.wait()
        except BaseException:
            self.loop.post(call.cancel)
            with CancelScope(shield=True):
                await done.wait()
            raise
        return cast(T, call.result())

    def call_blocking(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """The same for a thread, which waits.

        Raises:
            UsageError: The thread is that of the loop, which would wait for itself.
            StateError: As `call`.
        """
        if self.is_current_thread and self._process == os.getpid():
            raise UsageError(
                "this blocks the thread of the very event loop that would answer it: await the asynchronous call there"
            )
        done = threading.Lock()
        done.acquire()
        call = _Call(function, args, done.release)
        try:
            self._submit(call)
            _acquire(done)
        except StateError:
            raise
        except BaseException:  # Ctrl-C, maybe on the way there
            self.loop.post(self._withdraw, call)
            if not call.has_ended:  # else `done` may be taken already
                done.acquire(timeout=CANCEL_GRACE_SECONDS)
            raise
        return cast(T, call.result())

    def close(self) -> None:
        """Take no more calls; on the loop."""
        self._is_closed = True
        for call in list(self._waiting):
            call.refuse()
        self._waiting.clear()

    def _submit(self, call: "_Call") -> None:
        if self._process != os.getpid():
            raise StateError("this was opened before the process was forked; open another one in the child")
        self._waiting.add(call)
        if self._is_closed:
            self._waiting.discard(call)
            raise StateError("what this call needs was closed")
        self.loop.post(self._begin, call)

    def _begin(self, call: "_Call") -> None:
        if call not in self._waiting:
            return  # refused
        self._waiting.discard(call)
        call.has_begun = True
        # In the context of its caller (which has its trace, say), except for what names the kind of event loop there.
        for variable in [*call.context, *self._context]:
            if variable.name == LOOP_VARIABLE:
                call.context.run(variable.set, self._context.get(variable))
        call.context.run(self._group.start_soon, call.run)

    def _withdraw(self, call: "_Call") -> None:
        """Cancel it, and let its caller go if it has not come here, which it will not any more."""
        call.cancel()
        if not call.has_begun:
            self._waiting.discard(call)
            call.refuse()


class _Call:
    """One call: a task on one loop, and a word to who waits for it."""

    def __init__(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...], tell: Callable[[], Any]) -> None:
        self.context = copy_context()
        self._function = function
        self._args = args
        self._tell = tell
        self.has_begun: bool = False
        self.has_ended: bool = False
        self._scope: CancelScope | None = None
        self._is_cancelled = False
        self._result: Any = None
        self._error: BaseException | None = None

    # ---------------------------------------------------------------- on the loop

    async def run(self) -> None:
        """The task; it raises nothing but the cancellation of its group."""
        try:
            with CancelScope() as self._scope:
                if self._is_cancelled:
                    self._scope.cancel()
                self._error = _closed_meanwhile()  # unless something else becomes of it
                self._result = await self._function(*self._args)
                self._error = None
        except get_cancelled_exc_class() as error:
            if _is_cancelled_here():
                raise
            self._error = error  # its own, as that of a source, and nobody else's affair
        except BaseException as error:  # noqa: BLE001 (it is the caller's)
            self._error = error
        finally:
            self.has_ended = True
            self._tell()

    def cancel(self) -> None:
        self._is_cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    def refuse(self) -> None:
        if self._error is None:
            self._error = _closed_meanwhile()
            self.has_ended = True
            self._tell()

    # ---------------------------------------------------------------- of the caller

    def result(self) -> object:
        error, self._error = self._error, None
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error  # which refers to this frame


def _context_of_this_loop() -> Context:
    """This task's, with the name of its kind of event loop, which is not there under a plain `asyncio.run`.

    sniffio, where it is installed, knows asyncio by the current task, and a call begins outside of any.
    """
    context = copy_context()
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:
        context.run(sniffio.current_async_library_cvar.set, sniffio.current_async_library())
    return context


def _is_cancelled_here() -> bool:
    """Whether somebody has cancelled this task, when it has raised what cancellation raises; on asyncio anyone can."""
    if current_effective_deadline() == -inf:
        return True
    task = current_task()  # none but asyncio's comes here
    return task is not None and task.cancelling() > 0


def _closed_meanwhile() -> StateError:
    return StateError("what this call needs was closed before it had ended")


def _acquire(lock: threading.Lock) -> None:
    """Wait for `lock`, with an ear for Ctrl-C.

    On Windows nothing interrupts the wait; elsewhere a signal does, unless it comes in the moment before it begins.
    """
    while not lock.acquire(timeout=POLL_SECONDS):
        pass
