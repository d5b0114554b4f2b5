"""The parent's end of one worker: start it, send it calls, end it.

A worker is one process (an executor with a single process of its own, so that a crash or a hang concerns nobody else)
or, with `workers=0`, one thread. Both take the same calls and give `concurrent.futures` futures whose values are the
answers of `asyncembed.engine.child`. All methods that may block say so; they are for a thread, never for the loop.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeAlias, TypeVar

from asyncembed.engine import child, spawn
from asyncembed.errors import StateError, WorkerError

if TYPE_CHECKING:
    from asyncembed.encoders.encoder import Encoded, EncoderConfig
    from asyncembed.engine.fork_server import ForkServer

STOP_GRACE_SECONDS = 2.0
"""How long an idle worker may take to end by itself."""

P = ParamSpec("P")
T = TypeVar("T")
Answer: TypeAlias = "Future[Encoded | child.Failed]"
LoadAnswer: TypeAlias = "Future[child.Loaded | child.Failed]"


class WorkerGone(WorkerError):  # noqa: N818 (reads as the event it reports)
    """The worker's process ended; whatever it was computing has no answer."""


class Worker(Protocol):
    """What the supervisor needs of a worker."""

    @property
    def pid(self) -> int | None:
        """Process id, or None for a thread."""
        ...

    @property
    def death_fd(self) -> int | None:
        """File descriptor that becomes readable when the worker dies, where there is one."""
        ...

    def start(self) -> "Future[child.Hello]":
        """Start it; the future is its first word. Blocks for some milliseconds.

        Raises:
            WorkerError: It cannot be started now.
            WorkersImpossible: It never can be, here.
        """
        ...

    def load(self, key: int, config: "EncoderConfig") -> LoadAnswer:
        """Have it load a model. Raises `WorkerGone` at once if it is dead already."""
        ...

    def unload(self, key: int) -> None:
        """Have it drop a model, some time."""
        ...

    def run(self, key: int, values: Sequence[object], call: Hashable) -> Answer:
        """Have it compute a batch. Raises `WorkerGone` at once if it is dead already."""
        ...

    def kill(self) -> None:
        """End it at once, whatever it does. A thread cannot be killed: it is left behind."""
        ...

    def stop(self) -> None:
        """Let it end, or end it after a grace period. Blocks, but not for longer than that."""
        ...


class ProcessWorker:
    """A worker process: spawned, without the caller's main module, out of Ctrl-C's reach."""

    def __init__(
        self, threads: int, imports: Sequence[str] = (), server: "Callable[[], ForkServer | None] | None" = None
    ) -> None:
        """`imports` are modules that it imports as soon as it runs; `server` gives, in a thread, what is to fork it."""
        self._server = server
        self._threads = threads
        self._imports = tuple(imports)
        self._context = spawn.WorkerContext()
        self._executor: ProcessPoolExecutor | None = None

    @property
    def pid(self) -> int | None:
        process = self._context.process
        return None if process is None else process.pid

    @property
    def death_fd(self) -> int | None:
        process = self._context.process
        return None if process is None or process.pid is None else process.sentinel

    def start(self) -> "Future[child.Hello]":
        spawn.check_daemonic()
        with spawn.launching(None if self._server is None else self._server()):
            with spawn.making_queues():
                self._executor = ProcessPoolExecutor(
                    1, mp_context=self._context, initializer=child.initialize, initargs=(self._threads,)
                )
            greeting = self._executor.submit(child.hello)
            if self._imports:
                with suppress(BrokenProcessPool):  # it has ended already, as the greeting will tell
                    self._executor.submit(child.import_ahead, self._imports)
            self._context.close_result_writer()
        return greeting

    def load(self, key: int, config: "EncoderConfig") -> LoadAnswer:
        return self.call(child.load, key, config)

    def unload(self, key: int) -> None:
        with suppress(WorkerGone):
            self.call(child.unload, key)

    def run(self, key: int, values: Sequence[object], call: Hashable) -> Answer:
        return self.call(child.run, key, values, call)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Have it call an importable function."""
        if self._executor is None:
            raise StateError("the worker has not been started")
        try:
            return self._executor.submit(function, *args, **kwargs)
        except (BrokenProcessPool, RuntimeError) as error:
            raise WorkerGone("the worker process has ended") from error

    def kill(self) -> None:
        process = self._context.process
        if process is not None and process.pid is not None:
            with suppress(OSError, ValueError):
                process.kill()

    def stop(self) -> None:
        if self._executor is None:
            return
        # The executor's own threads are waited for too, so that nothing is left when this returns.
        killer = threading.Timer(STOP_GRACE_SECONDS, self.kill)
        killer.daemon = True
        try:
            killer.start()
        except RuntimeError:
            self.kill()  # there is no thread that could do it later
        with suppress(RuntimeError, OSError):  # as where its own threads could not be started
            self._executor.shutdown(wait=True, cancel_futures=True)
        killer.cancel()
        if killer.is_alive():
            killer.join()
        self._reap()

    def _reap(self) -> None:
        """End the process, if an executor that failed to start has left it behind."""
        process = self._context.process
        if process is not None and process.pid is not None and process.exitcode is None:
            self.kill()
            process.join(STOP_GRACE_SECONDS)


class ThreadWorker:
    """The same encoders in a thread of this process.

    Its thread is a daemon: a batch that never ends does not keep the interpreter from exiting.
    """

    pid: int | None = None
    death_fd: int | None = None

    def __init__(self) -> None:
        self._host = child.Host()
        self._is_ended = False
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="asyncembed-worker", daemon=True)

    def start(self) -> "Future[child.Hello]":
        try:
            self._thread.start()
        except RuntimeError as error:
            raise WorkerError(f"the thread that computes cannot be started ({error})") from error
        return self._call(child.hello)

    def load(self, key: int, config: "EncoderConfig") -> LoadAnswer:
        return self._call(self._host.load, key, config)

    def unload(self, key: int) -> None:
        with suppress(WorkerGone):
            self._call(self._host.unload, key)

    def run(self, key: int, values: Sequence[object], call: Hashable) -> Answer:
        return self._call(self._host.run, key, values, call)

    def kill(self) -> None:
        self._is_ended = True
        self._calls.put(None)

    def stop(self) -> None:
        self.kill()
        if self._thread.is_alive():
            self._thread.join(STOP_GRACE_SECONDS)

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        if self._is_ended:
            raise WorkerGone("the worker has ended")
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 (the future carries it, as an executor's would)
                future.set_exception(error)

        self._calls.put(run)
        return future

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
