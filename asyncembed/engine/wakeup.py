"""Waking the event loop from another thread, without that thread ever waiting for the loop."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol, TypeVar, TypeVarTuple, cast

from anyio import Event, NoEventLoopError
from anyio.lowlevel import current_token

Args = TypeVarTuple("Args")
T = TypeVar("T")


class _AsyncioLoop(Protocol):
    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any) -> object: ...


class _TrioToken(Protocol):
    def run_sync_soon(self, sync_fn: Callable[..., Any], *args: Any) -> None: ...


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

    def is_running_here(self) -> bool:
        """Whether the caller runs on this very loop."""
        try:
            return current_token().native_token is self._native
        except NoEventLoopError:
            return False


async def completion(future: Future[T]) -> T:
    """Wait for a future of another thread, without a thread of its own; gives its result or raises its exception.

    Cancelling the waiter does not stop the work.
    """
    loop = Loop()
    done = Event()
    future.add_done_callback(lambda _: loop.post(done.set))
    await done.wait()
    return future.result()
