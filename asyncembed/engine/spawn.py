"""Starting worker processes: without the caller's main module, out of Ctrl-C's reach, and from odd surroundings.

multiprocessing has no options for most of this. What is bent is bent for a thread that is launching one of our
workers, and for nobody else.

What is not documented and relied upon, as CPython 3.11 has it: `multiprocessing.spawn` asks its own
`get_preparation_data`, `get_executable` and `get_command_line` by these names; a process class is started by its
`_Popen`; the executor takes its results from the context's one `SimpleQueue`, whose `_writer` it needs no more once its
process runs. The tests of this module fail where a later version has it otherwise.
"""

import errno
import functools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import process, resource_tracker, spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any, TypeVar

from asyncembed.engine.fork_server import ForkedPopen, ForkServer, ForkServerGone
from asyncembed.errors import WorkerError, WorkersImpossible

_THREADS_OF_A_WORKER = 3
"""In this process: two of its executor, and one that ends it if it does not end by itself."""

_NO_SEMAPHORES = {errno.ENOSYS, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS}
"""What making a semaphore fails with where it always will; all else, as too many open files, may pass."""

_FILL_DESCRIPTORS = "import os;d=0\nwhile d<3:d=os.open(os.devnull,os.O_RDWR)\nos.close(d);del d\n"

_IGNORE_SIGINT = "import signal;signal.signal(signal.SIGINT,signal.SIG_IGN);"
"""A console of Windows sends its Ctrl-C to workers, too. They have no other moment as early as this one."""

T = TypeVar("T")


class _Launch(threading.local):
    is_ours = False
    interpreter: str | None = None
    server: ForkServer | None = None


_launch = _Launch()
_install_lock = threading.Lock()


@contextmanager
def launching(server: ForkServer | None = None) -> Iterator[None]:
    """Around all that starts a worker; the server forks it, if there is one, else it is spawned.

    Raises:
        WorkersImpossible: This process can have no worker processes.
        WorkerError: It cannot be started now; it may be worth another try.
    """
    try:
        interpreter = _interpreter()
        _fill_standard_descriptors()
        _check_threads()
        _install_wrappers()
        _launch.is_ours, _launch.interpreter, _launch.server = True, interpreter, server
        if os.name == "posix":
            # Launching starts this helper of multiprocessing's on demand, which would let SIGINT through again.
            resource_tracker.ensure_running()
        yield
    except WorkerError:
        raise
    except Exception as error:
        raise WorkerError(
            f"a worker process cannot be started ({type(error).__name__}: {error}); free what it lacks, ask for fewer "
            "workers, or use workers=0"
        ) from error
    finally:
        _launch.is_ours, _launch.interpreter, _launch.server = False, None, None


def start_server(imports: Sequence[str]) -> ForkServer | None:
    """A process that forks workers which have imported that; None where it cannot be started. Blocks."""
    server = ForkServer(imports)
    try:
        with launching(), _sigint_blocked():
            executable = os.fsdecode(spawn.get_executable())
            server.start([executable, *_flags()], _FILL_DESCRIPTORS)
    except (WorkerError, WorkersImpossible):
        return None
    return server


def _flags() -> list[str]:
    """Those of this interpreter, as multiprocessing hands them on."""
    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined,no-any-return]  # noqa: SLF001


@contextmanager
def making_queues() -> Iterator[None]:
    """Around what makes semaphores: some systems have none."""
    try:
        yield
    except (ImportError, NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_SEMAPHORES:
            raise
        raise WorkersImpossible(
            f"this system has no semaphores for worker processes, as without /dev/shm ({error}); use workers=0 here"
        ) from error


def check_daemonic() -> None:
    """Raise `WorkersImpossible` in a process that may have no children, as a worker of Celery or of a `Pool`."""
    if process.current_process().daemon:
        raise WorkersImpossible("this process is daemonic and may not start workers; use workers=0 here")


class WorkerProcess(SpawnProcess):
    """A process whose `__main__` stays empty: the caller's script is not run again in it.

    So scripts work without a main guard, from stdin, and without their heavy imports in every worker.
    """

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 (overrides multiprocessing's launching hook)
        if _launch.server is not None:
            with suppress(ForkServerGone):
                return ForkedPopen(process_obj, _launch.server)
        with _sigint_blocked():
            return SpawnProcess._Popen(process_obj)  # noqa: SLF001


class WorkerContext(SpawnContext):
    """The spawn context, with our process class; remembers the one process that its executor starts, and its results.

    The executor keeps a writing end of the pipe of results for itself. While that is open, the death of a worker in the
    middle of a result leaves the executor waiting for the rest of it, for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.process: WorkerProcess | None = None
        self._results: Any = None

    def SimpleQueue(self) -> Any:  # noqa: N802 (what the executor calls, once)
        self._results = super().SimpleQueue()
        return self._results

    def close_result_writer(self) -> None:
        """Leave the worker the only writer of results, once it has been started."""
        if self._results is not None:
            self._results._writer.close()  # noqa: SLF001 (there is no public way)
            self._results = None

    def Process(self, *args: Any, **kwargs: Any) -> WorkerProcess:  # type: ignore[override]  # noqa: N802
        self.process = WorkerProcess(*args, **kwargs)
        return self.process


def kill_workers() -> None:
    """End every worker of this process at once, whatever it does."""
    for worker in multiprocessing.active_children():
        if isinstance(worker, WorkerProcess):
            worker.kill()


def _disown_workers() -> None:
    # A forked child is not the parent of these, and would fail to wait for them at its end.
    children: set[process.BaseProcess] = process._children  # type: ignore[attr-defined]  # noqa: SLF001
    children -= {child for child in children if isinstance(child, WorkerProcess)}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_workers)


# ---------------------------------------------------------------- the surroundings


def _interpreter() -> str | None:
    """The Python to start workers with, or None for the one that multiprocessing knows.

    In a program that embeds Python, as uwsgi, `sys.executable` is that program, or empty.
    """
    chosen = os.fsdecode(spawn.get_executable() or "")
    if getattr(sys, "frozen", False) or (chosen and chosen != sys.executable):
        return None  # the program itself, or what the user has set
    if re.search("py|ython", Path(chosen).name, re.IGNORECASE) and os.path.isfile(chosen):  # noqa: PTH113 (no errors)
        return None
    for candidate in _interpreters():
        if os.access(candidate, os.X_OK):
            return str(candidate)
    raise WorkersImpossible(
        f"no Python to start workers with was found (sys.executable is {sys.executable!r}): name one by "
        "multiprocessing.set_executable(path), or use workers=0"
    )


def _interpreters() -> Iterator[Path]:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for prefix in dict.fromkeys((sys.exec_prefix, sys.base_exec_prefix)):
        if os.name == "nt":
            yield Path(prefix, "python.exe")
            yield Path(prefix, "Scripts", "python.exe")
        else:
            yield from (Path(prefix, "bin", name) for name in (version, "python3", "python"))


def _fill_standard_descriptors() -> None:
    # A program whose stdin, stdout or stderr is closed gives the free number to whatever it opens next. A pipe of ours
    # under it would get what a worker prints, and would not survive into the worker. They stay filled.
    if os.name != "posix":
        return
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= 2:
        os.set_inheritable(descriptor, True)
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)


def _check_threads() -> None:
    # An executor whose second thread cannot be started never answers.
    go_on = threading.Event()
    threads = [threading.Thread(target=go_on.wait, daemon=True) for _ in range(_THREADS_OF_A_WORKER)]
    started = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
    finally:
        go_on.set()
        for thread in started:
            thread.join()


def _install_wrappers() -> None:
    with _install_lock:
        for wrapper in (_get_preparation_data, _get_executable, _get_command_line):
            name = wrapper.__name__.removeprefix("_")
            original = getattr(spawn, name)
            if not hasattr(original, "_knows_asyncembed"):
                wrapped = functools.wraps(original)(functools.partial(_for_our_thread, original, wrapper))
                wrapped._knows_asyncembed = True  # type: ignore[attr-defined]  # noqa: SLF001
                setattr(spawn, name, wrapped)


def _for_our_thread(original: Callable[..., T], wrapper: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    return wrapper(original, *args, **kwargs) if _launch.is_ours else original(*args, **kwargs)


def _get_preparation_data(original: Callable[[str], dict[str, Any]], name: str) -> dict[str, Any]:
    # The entries that make a spawned child run the main module again come out of this function.
    was_undecided = multiprocessing.get_start_method(allow_none=True) is None
    try:
        data = original(name)
    except FileNotFoundError:  # the folder that this process runs in is gone; a child can do without the rest
        paths = [path or getattr(process, "ORIGINAL_DIR", None) or "" for path in sys.path]
        data = {"name": name, "authkey": process.current_process().authkey, "sys_path": paths, "sys_argv": sys.argv}
    if was_undecided:
        # Asking for it has decided it; the program may still want to.
        multiprocessing.set_start_method(None, force=True)
    data.pop("start_method", None)  # it may be that of a library, as joblib's, which a worker does not import
    data.pop("init_main_from_name", None)
    data.pop("init_main_from_path", None)
    return data


def _get_executable(original: Callable[[], Any]) -> Any:
    chosen = _launch.interpreter
    if chosen is None:
        return original()
    return chosen if os.name == "nt" else os.fsencode(chosen)


def _get_command_line(original: Callable[..., list[Any]], **kwargs: Any) -> list[Any]:
    command = original(**kwargs)
    if "-c" in command:
        # Filled also where a descriptor up to 2 is open here but not inherited, as an event loop's.
        first = _FILL_DESCRIPTORS if os.name == "posix" else _IGNORE_SIGINT
        command[command.index("-c") + 1] = first + command[command.index("-c") + 1]
    return command


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    # A child inherits the mask of the thread that starts it; it lets SIGINT through again once it ignores it.
    if sys.platform == "win32":  # which has no masks
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
