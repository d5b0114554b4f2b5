"""Work that may never end, in threads that nobody has to wait for."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar, TypeVarTuple

T = TypeVar("T")
Args = TypeVarTuple("Args")


def start_thread(function: Callable[[*Args], T], *args: *Args) -> "Future[T]":
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

    threading.Thread(target=work, name="asyncembed-image", daemon=True).start()
    return future
