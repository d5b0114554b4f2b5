"""Opening and closing: once at a time, in one task, and with the caller's exceptions as they are."""

import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from anyio import create_task_group, get_cancelled_exc_class, get_current_task
from anyio.abc import TaskGroup

from asyncembed.errors import StateError, UsageError

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


class Openable(ABC):
    """What is used inside `async with`: opened once at a time, and closed in the task that opened it."""

    _entered: tuple[AbstractAsyncContextManager[Any], int] | None = None
    """What is open, and the task that opened it."""

    @abstractmethod
    def _lifetime(self) -> AbstractAsyncContextManager[Any]:
        """From opening to closing."""

    if not TYPE_CHECKING:  # type checkers say it first

        def __enter__(self) -> NoReturn:
            raise UsageError(f"open it asynchronously: `async with {type(self).__name__}(...) as ...:`")

        def __exit__(self, *_: object) -> None:
            """Only beside `__enter__`."""

        def __await__(self) -> NoReturn:
            raise UsageError(f"it is opened by `async with {type(self).__name__}(...) as ...:`")

    @uninterrupted
    async def __aenter__(self) -> Self:
        _tell_trio()
        if self._entered is not None:
            raise StateError(f"this {type(self).__name__} is open already, or was never closed; make another one")
        lifetime = self._lifetime()
        self._entered = lifetime, get_current_task().id
        try:
            await lifetime.__aenter__()
        except BaseException:
            self._entered = None
            raise
        return self

    @uninterrupted
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if self._entered is None:
            raise StateError(f"this {type(self).__name__} is not open")
        lifetime, task = self._entered
        if get_current_task().id != task:
            # A task group cannot be left elsewhere.
            raise StateError(
                f"this {type(self).__name__} was opened in another task: enter and leave `async with` in one task "
                "(test fixtures do with anyio's pytest plugin)"
            )
        self._entered = None
        return await lifetime.__aexit__(kind, error, trace)


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
