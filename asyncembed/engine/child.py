"""What runs inside a worker: encoders by key, and answers that are always data.

The module is imported by every worker before anything else, so it imports nothing heavy: threads of numeric
libraries are settled by the environment, which must stand before they load.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import parent_process
from typing import TYPE_CHECKING, TypeVar

from asyncembed.errors import AsyncEmbedError, EncodeError, ModelLoadError

if TYPE_CHECKING:
    from asyncembed.encoders.encoder import Encoded, Encoder, EncoderConfig, ModelInfo

AnswerT = TypeVar("AnswerT")

PARENT_GONE_EXIT_CODE = 70

PARENT_WATCH_SECONDS = 1.0
"""How long a worker may outlive a parent that was killed and has children of its own."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker's first word."""

    pid: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model is ready; `info` is what its encoder says of it."""

    info: "ModelInfo"


@dataclass(frozen=True, slots=True)
class Failed:
    """The whole call failed; `error` is one of ours, so it survives the way back."""

    error: AsyncEmbedError


class Host:
    """The encoders of one worker. Used by one thread at a time."""

    def __init__(self) -> None:
        self._encoders: dict[int, Encoder] = {}

    def load(self, key: int, config: "EncoderConfig") -> Loaded | Failed:
        """Load a model, unless it is there already."""
        try:
            from asyncembed.encoders import build
            from asyncembed.encoders.encoder import ModelInfo

            if key not in self._encoders:
                self._encoders[key] = build(config)
            return Loaded(_own(ModelInfo, getattr(self._encoders[key], "info", ModelInfo())))
        except AsyncEmbedError as error:
            return Failed(error)
        except BaseException as error:  # noqa: BLE001 (a foreign error travels as text: it may not survive pickling)
            return Failed(
                ModelLoadError(f"{config.spec.name} cannot be loaded: {_describe(error)}", model=config.spec.name)
            )

    def unload(self, key: int) -> None:
        """Drop a model that no embedder uses any more."""
        self._encoders.pop(key, None)

    def run(self, key: int, values: Sequence[object], call: Hashable) -> "Encoded | Failed":
        """Compute one batch."""
        try:
            from asyncembed.encoders.encoder import Encoded

            encoded = _own(Encoded, self._encoders[key].encode(values, call))  # type: ignore[arg-type]
            if len(encoded.results) != len(values):
                raise ValueError(f"{len(encoded.results)} results for {len(values)} inputs")
            if encoded.counts is not None and len(encoded.counts) != len(values):
                raise ValueError(f"tokens of {len(encoded.counts)} inputs for {len(values)}")
        except AsyncEmbedError as error:
            return Failed(error)
        except BaseException as error:  # noqa: BLE001 (as above; an exit is the input's that asked for it, too)
            return Failed(
                EncodeError(f"the encoder failed: {_describe(error)}", worker_traceback=traceback.format_exc())
            )
        return encoded


def _own(kind: type[AnswerT], answer: object) -> AnswerT:
    """What an encoder says, if it is of our own class: others may not be known where it goes."""
    if type(answer) is kind:
        return answer
    raise TypeError(f"an encoder gave a {type(answer).__name__} instead of {kind.__name__}")


def _describe(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# ---------------------------------------------------------------- in a worker process: one host per process

_host = Host()


def initialize(threads: int) -> None:
    """Make this process a worker: deaf to Ctrl-C, quiet on stdout, gone with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        # The parent started this process with SIGINT blocked, so that none could arrive before the line above.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    settle_environment(threads)
    # Stdout may be the parent's protocol (an MCP server's, a pipe's); nothing of a worker belongs there.
    with suppress(OSError):
        os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, name="asyncembed-parent-watch", daemon=True).start()


def settle_environment(threads: int) -> None:
    """Bound the threads of what will be imported, and keep it from reporting to its makers."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    # Here too, and not only where we import it: somebody's own encoder may import onnxruntime by itself.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def hello() -> Hello:
    """Say that the process runs, and which one it is."""
    return Hello(os.getpid())


def import_ahead(modules: Sequence[str]) -> None:
    """Import what this process will need, while the parent has yet to say what it is to load."""
    for name in modules:
        with suppress(Exception):  # what is missing is told when it is needed
            import_module(name)


def load(key: int, config: "EncoderConfig") -> Loaded | Failed:
    """`Host.load` of this process."""
    return _host.load(key, config)


def unload(key: int) -> None:
    """`Host.unload` of this process."""
    _host.unload(key)


def run(key: int, values: Sequence[object], call: Hashable) -> "Encoded | Failed":
    """`Host.run` of this process."""
    return _host.run(key, values, call)


def _end_with_parent() -> None:
    # An executor's worker holds the write end of its own call queue, so it would wait for ever for the next call of a
    # parent that was killed. Linux's parent-death signal follows the starting *thread*, which may be short-lived.
    parent = parent_process()
    if parent is None:
        return
    adopted_by = os.getppid()
    # What tells of the parent's end is a pipe, and a process that the parent has forked holds it open as well. So the
    # parent's id is looked at, too; on Windows that never changes.
    while parent.is_alive() and os.getppid() == adopted_by:
        parent.join(PARENT_WATCH_SECONDS)
    os._exit(PARENT_GONE_EXIT_CODE)
