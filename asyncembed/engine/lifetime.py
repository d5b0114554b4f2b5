"""Opening and closing: once at a time, in any task of the loop, and with the caller's exceptions as they are."""

import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from copy import copy
from logging import Logger, getLogger
from os import getpid
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, Self, TypeVar
from warnings import warn

from anyio import (
    CancelScope,
    Event,
    create_task_group,
    get_cancelled_exc_class,
    get_current_task,
    get_running_tasks,
    sleep_forever,
)
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from asyncembed.errors import StateError, UsageError
from asyncembed.wakeup import Loop

logger: Logger = getLogger("asyncembed")


class Killable(Protocol):
    """What is used while something is open."""

    def kill(self) -> None:
        """End its processes at once, without its event loop, which is gone; from any thread."""
        ...


OpenedT = TypeVar("OpenedT", bound=Killable)
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_uninterrupted: list[Callable[..., Any]] = []
"""Those that trio has not been told of yet."""


def uninterrupted(function: FunctionT) -> FunctionT:
    """Let Ctrl-C raise nothing in the middle of `function`, and of what it calls, but at the main task's next await.

    So it is on asyncio. On trio it may come between any two instructions of any task: between the entering of a task
    group and what would leave it, or while a task is put into one. Then tasks are left that nobody ends, and the
    program runs for ever.
    """
    _uninterrupted.append(function)
    return function


def _tell_trio() -> None:
    trio = sys.modules.get("trio")  # imported if it runs here, and not for those who use asyncio
    if trio is not None and hasattr(trio, "lowlevel"):
        for function in _uninterrupted:
            trio.lowlevel.enable_ki_protection(function)
        _uninterrupted.clear()


class Openable(ABC, Generic[OpenedT]):
    """What is opened and closed: by `async with`, or by `open` and `aclose`, in any tasks of one event loop.

    While it is open, a task of the event loop itself is responsible for what it has, so no task of the program need
    stay for it. Nothing that runs refers to the object: dropped without being closed, it is closed, with a warning.
    """

    _owner: "_Owner[OpenedT] | None" = None
    """Of the present opening, or the last one."""

    @abstractmethod
    def _lifetime(self) -> AbstractAsyncContextManager[OpenedT]:
        """From opening to closing: it gives what is used in between, and must not refer to this object."""

    if not TYPE_CHECKING:  # type checkers say it first

        def __enter__(self) -> NoReturn:
            raise UsageError(f"open it asynchronously: `async with {type(self).__name__}(...) as ...:`, or `open()`")

        def __exit__(self, *_: object) -> None:
            """Only beside `__enter__`."""

        def __await__(self) -> NoReturn:
            raise UsageError(f"it is opened by `async with {type(self).__name__}(...) as ...:`, or `await ....open()`")

    @uninterrupted
    async def open(self) -> Self:
        """Open it; the same as entering `async with`. Until `aclose`, any task of this event loop may use it.

        The task that opens it may end, or be cancelled later: it stays open. Cancelled here, it does not open, and what
        had been started has ended. While another task closes it, this waits for that; after closing, it can be opened
        again. Without `aclose`, it ends with the event loop, or when it is collected, which gives a `ResourceWarning`.

        Returns:
            Itself.

        Raises:
            StateError: It is open already, or another task is opening it. Who opens it closes it: were this ignored,
                the first of two to close it would take it away from the other. Or: it was closed while it was opening.
            AsyncEmbedError: It cannot be opened; the class says what may be wrong.
        """
        _tell_trio()
        while self._owner is not None and not self._owner.has_ended():
            await self._owner.wait_closing()
        owner = self._owner = _Owner(self._lifetime(), type(self).__name__)
        await owner.wait_open()
        return self

    @uninterrupted
    async def aclose(self) -> None:
        """Close it, in any task of its event loop; the same as leaving `async with`.

        Streams and calls that are under way get a `StateError`. Returns when all that it had has ended, its workers
        included; also when cancelled meanwhile. If it is being opened, that is given up. On what is not open it does
        nothing.

        Raises:
            StateError: It is open on another event loop.
        """
        await self._close()
        await checkpoint()

    async def __aenter__(self) -> Self:
        return await self.open()

    @uninterrupted
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._close()
        except Exception as failure:
            if error is None:
                raise
            raise error from failure  # the caller's own comes first

    async def _close(self) -> None:
        owner = self._owner
        if owner is None:
            return
        if not owner.has_ended():
            owner.loop.check()
            owner.stop()
        if not owner.is_around_this_task():
            await owner.wait_closed()

    @property
    def _opened(self) -> OpenedT | None:
        """What is used while it is open, and None else."""
        owner = self._owner
        return owner.opened if owner is not None and owner.is_open else None

    @property
    def _last_opened(self) -> OpenedT | None:
        """The same after closing, until it is opened again: for what can be said of it then."""
        return None if self._owner is None else self._owner.opened

    @property
    def _closed_words(self) -> str:
        """Why it cannot be used: it is not open."""
        if self._owner is None:
            return "is not open"
        return "was closed" if self._owner.is_stopped else "is being opened"

    def __del__(self, _warn: Callable[..., None] = warn) -> None:
        # May run in any thread, or after the loop is gone: leave word and do no more.
        owner = self._owner
        if owner is not None and owner.leave_word_to_stop():
            _warn(
                f"a {type(self).__name__} was dropped while it was open: use `async with`, or `await ....aclose()`",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )


class _Owner(Generic[OpenedT]):
    """One opening: the task that opens, waits for the word to close, and closes.

    It is a task of the event loop itself. Its failures, too, are told as values: to who opens, or who closes.
    """

    def __init__(self, lifetime: AbstractAsyncContextManager[OpenedT], name: str) -> None:
        self.loop = Loop()
        self.opened: OpenedT | None = None
        self.is_open = False
        self.is_stopped = False
        self._is_ended = False
        self._lifetime = lifetime
        self._name = name
        self._process = getpid()
        self._task: int | None = None
        self._error: BaseException | None = None
        self._opening = CancelScope()
        self._word_to_stop = Event()
        self._has_opened = Event()
        """Or failed to."""
        self._has_ended = Event()
        self.loop.spawn(self._run, f"asyncembed-{name}")

    async def _run(self) -> None:
        self._task = get_current_task().id
        try:
            with self._opening:
                async with self._lifetime as opened:
                    self.opened = opened
                    self.is_open = not self.is_stopped
                    self._has_opened.set()
                    await self._word_to_stop.wait()
        except get_cancelled_exc_class():
            raise
        except BaseException as error:
            self._error = error
            if self.is_open and isinstance(error, Exception):
                logger.exception("%s failed and is closed", self._name, exc_info=error)
        finally:
            self.is_open = False
            self.is_stopped = self._is_ended = True
            self._has_opened.set()
            self._has_ended.set()

    def stop(self) -> None:
        """Have it close, or give up opening; on its loop."""
        if not self._has_opened.is_set():
            self._opening.cancel()
        self.is_open = False
        self.is_stopped = True
        self._word_to_stop.set()

    def leave_word_to_stop(self) -> bool:
        """The same from any thread, unless it was done: whether it was not."""
        if self.is_stopped or self._process != getpid():
            return False
        if not self.has_ended():
            self.loop.post(self.stop)
        return True

    def has_ended(self) -> bool:
        """Whether nothing of it is left: it has closed, or could not open; or its event loop is gone.

        A loop that was closed with tasks in it, as only old programs do, runs none of them again. And in a forked
        child there is no such loop; what is open there is the parent's.
        """
        is_of_parent = self._process != getpid()
        if not self._is_ended and (is_of_parent or self.loop.is_closed()):
            self.is_open, self.is_stopped, self._is_ended = False, True, True
            if self.opened is not None and not is_of_parent:
                self.opened.kill()
        return self._is_ended

    async def wait_open(self) -> None:
        """Wait until it is open; cancelled, give it up."""
        try:
            await self._has_opened.wait()
        except BaseException:
            self.stop()
            await self._wait_ended()
            raise
        if not self.is_open:
            await self._wait_ended()
            raise self._take_error() or StateError(f"this {self._name} was closed while it was being opened")

    def is_around_this_task(self) -> bool:
        """Whether the running task is one of those that end before this does: it reads the source of a stream."""
        parents = {task.id: task.parent_id for task in get_running_tasks()}
        task: int | None = get_current_task().id
        while task is not None and task != self._task:
            task = parents.get(task)
        return task is not None

    async def wait_closing(self) -> None:
        """Wait for the end of an opening that is being closed.

        Raises:
            StateError: It is not being closed, or it is on another event loop.
        """
        if not self.is_stopped:
            raise StateError(
                f"this {self._name} is open already, or is being opened: open it once, in the place that closes it, too"
            )
        self.loop.check()
        await self._has_ended.wait()

    async def wait_closed(self) -> None:
        """Wait until it has ended; raises what went wrong in it."""
        await self._wait_ended()
        error = self._take_error()
        if error is not None:
            raise error

    async def _wait_ended(self) -> None:
        cancellation: BaseException | None = None
        while not self._is_ended:
            try:
                with CancelScope(shield=True):
                    await self._has_ended.wait()
            except get_cancelled_exc_class() as error:
                cancellation = error  # asyncio's own, which no shield holds off: raised when all has ended
        if cancellation is not None:
            raise cancellation

    def _take_error(self) -> BaseException | None:
        error, self._error = self._error, None
        return error


ValueT = TypeVar("ValueT")


class Deferred(Generic[ValueT]):
    """What is opened when it is needed first, by a task of `group`, which closes it when the group is cancelled."""

    def __init__(self, group: TaskGroup, make: Callable[[], AbstractAsyncContextManager[ValueT]]) -> None:
        self._group = group
        self._make = make
        self._attempt: _Attempt[ValueT] | None = None

    async def get(self) -> ValueT | None:
        """Wait until it is open, and have it opened if need be; None: it was closed meanwhile.

        Whoever is cancelled here leaves it opening: others may wait, and the next one would begin anew.

        Raises:
            Exception: What opening it has raised, to all who wait for it. The next one tries again.
        """
        if self._attempt is None:
            self._attempt = _Attempt()
            self._group.start_soon(self._run, self._attempt)
        attempt = self._attempt
        await attempt.has_opened.wait()
        if attempt.error is not None:
            raise again(attempt.error)
        return attempt.value

    @uninterrupted
    async def _run(self, attempt: "_Attempt[ValueT]") -> None:
        try:
            async with self._make() as attempt.value:
                attempt.has_opened.set()
                await sleep_forever()
        except Exception as error:
            if attempt.has_opened.is_set():
                raise
            self._attempt, attempt.error = None, error
        finally:
            attempt.value = None
            attempt.has_opened.set()


class _Attempt(Generic[ValueT]):
    """One opening of what was deferred."""

    def __init__(self) -> None:
        self.value: ValueT | None = None
        self.error: Exception | None = None
        self.has_opened = Event()
        """Or failed to."""


def again(error: Exception) -> Exception:
    """The same error for one of several who wait: each raises its own."""
    try:
        return copy(error).with_traceback(error.__traceback__)
    except Exception:  # noqa: BLE001 (a class that cannot be copied)
        return error


@asynccontextmanager
async def owned_task_group() -> AsyncGenerator[TaskGroup]:
    """A task group that ends with the block, and whose block's exceptions come out as they are.

    A plain group would wrap whatever the caller's own code raises in an `ExceptionGroup`. So the exception is kept
    while the group closes, and raised afterwards. A failure of one of the group's tasks comes out unwrapped too, and
    what ends the program (Ctrl-C in a task, on trio) before all else.
    """
    failure: BaseException | None = None
    try:
        async with create_task_group() as group:
            try:
                yield group
            except get_cancelled_exc_class():
                raise
            except BaseException as error:  # noqa: BLE001 (raised again below)
                failure = error
            finally:
                group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        cause = _unwrapped(errors.subgroup((KeyboardInterrupt, SystemExit)) or errors)
        if failure is not None and not isinstance(cause, KeyboardInterrupt | SystemExit):
            raise failure from errors
        if cause is errors:
            raise
        raise cause from None
    if failure is not None:
        raise failure


def _unwrapped(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
