"""Opening and closing: once at a time, in one task, and with the caller's exceptions as they are."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from anyio import create_task_group, get_cancelled_exc_class, get_current_task
from anyio.abc import TaskGroup

from asyncembed.errors import StateError, UsageError


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

    async def __aenter__(self) -> Self:
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
    while the group closes, and raised afterwards. A failure of one of the group's tasks comes out unwrapped too.
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
        if failure is not None:
            raise failure from errors
        if len(errors.exceptions) > 1:
            raise
        raise errors.exceptions[0] from None
    if failure is not None:
        raise failure
