"""The parent's end of one worker: start it, send it calls, end it.

A worker is one process (an executor with a single process of its own, so that a crash or a hang concerns nobody else)
or, with `workers=0`, one thread. Both take the same calls and give `concurrent.futures` futures whose values are the
answers of `asyncembed.engine.child`. All methods that may block say so; they are for a thread, never for the loop.
"""

import functools
import multiprocessing
import signal
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker, spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeAlias, TypeVar

from asyncembed.engine import child
from asyncembed.errors import StateError, WorkerError

if TYPE_CHECKING:
    from asyncembed.encoders.encoder import EncoderConfig

STOP_GRACE_SECONDS = 2.0
"""How long an idle worker may take to end by itself."""

P = ParamSpec("P")
T = TypeVar("T")
Answer: TypeAlias = "Future[child.Computed | child.Failed]"
LoadAnswer: TypeAlias = "Future[child.Loaded | child.Failed]"


class WorkerGone(WorkerError):  # noqa: N818 (reads as the event it reports)
    """The worker's process ended; whatever it was computing has no answer."""


class WorkersImpossible(WorkerError):  # noqa: N818 (says what is the matter)
    """This process can have no worker processes, however often it is tried."""


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
            WorkerError: It cannot be started.
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

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._context = _WorkerContext()
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
        self._executor = ProcessPoolExecutor(
            1, mp_context=self._context, initializer=child.initialize, initargs=(self._threads,)
        )
        try:
            greeting = self._executor.submit(child.hello)
            self._context.close_result_writer()
            return greeting
        except AssertionError as error:  # multiprocessing's own check
            raise WorkersImpossible("this process is daemonic and may not start workers; use workers=0 here") from error
        except OSError as error:
            raise WorkerError(f"a worker process cannot be started: {error}") from error

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
        killer.start()
        self._executor.shutdown(wait=True, cancel_futures=True)
        killer.cancel()
        killer.join()


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
        self._thread.start()
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


# ---------------------------------------------------------------- processes that do not import the caller's main


class _WorkerProcess(SpawnProcess):
    """A process whose `__main__` stays empty: the caller's script is not run again in it.

    So scripts work without a main guard, from stdin, and without their heavy imports in every worker.
    """

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 (overrides multiprocessing's launching hook)
        _install_preparation_wrapper()
        # Launching starts this helper of multiprocessing's on demand, which would let SIGINT through again.
        resource_tracker.ensure_running()
        _launch.is_ours = True
        try:
            with _sigint_blocked():
                return SpawnProcess._Popen(process_obj)  # noqa: SLF001
        finally:
            _launch.is_ours = False


class _WorkerContext(SpawnContext):
    """The spawn context, with our process class; remembers the one process that its executor starts, and its results.

    The executor keeps a writing end of the pipe of results for itself. While that is open, the death of a worker in the
    middle of a result leaves the executor waiting for the rest of it, for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.process: _WorkerProcess | None = None
        self._results: Any = None

    def SimpleQueue(self) -> Any:  # noqa: N802 (what the executor calls, once)
        self._results = super().SimpleQueue()
        return self._results

    def close_result_writer(self) -> None:
        """Leave the worker the only writer of results, once it has been started."""
        if self._results is not None:
            self._results._writer.close()  # noqa: SLF001 (there is no public way)
            self._results = None

    def Process(self, *args: Any, **kwargs: Any) -> _WorkerProcess:  # type: ignore[override]  # noqa: N802
        self.process = _WorkerProcess(*args, **kwargs)
        return self.process


class _Launch(threading.local):
    is_ours = False


_launch = _Launch()
_install_lock = threading.Lock()


def _install_preparation_wrapper() -> None:
    # multiprocessing has no option for this: the two entries that make a spawned child re-run the main module come out
    # of one function. The wrapper drops them for a thread that is launching one of our workers, and for nobody else.
    with _install_lock:
        original = spawn.get_preparation_data
        if hasattr(original, "_knows_asyncembed"):
            return

        @functools.wraps(original)
        def get_preparation_data(name: str) -> dict[str, Any]:
            if not _launch.is_ours:
                return original(name)
            was_undecided = multiprocessing.get_start_method(allow_none=True) is None
            data = original(name)
            if was_undecided:
                # Asking for it has decided it; the program may still want to.
                multiprocessing.set_start_method(None, force=True)
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
            return data

        get_preparation_data._knows_asyncembed = True  # type: ignore[attr-defined]  # noqa: SLF001
        spawn.get_preparation_data = get_preparation_data


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    # A child inherits the mask of the thread that starts it; it lets SIGINT through again once it ignores it.
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
