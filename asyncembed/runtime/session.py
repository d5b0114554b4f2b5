"""A loaded graph: named numpy arrays in, named numpy arrays out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread, local
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from asyncembed.errors import ModelLoadError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from asyncembed.runtime.onnx import OnnxSession
    from asyncembed.runtime.openvino import OpenVinoSession

Array: TypeAlias = "npt.NDArray[Any]"
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Runtime: TypeAlias = Literal["onnxruntime", "openvino"]


class Session(Protocol):
    """A loaded graph, ready to run. One session serves one thread at a time."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the graph's inputs, in its order."""
        ...

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph's outputs, in its order."""
        ...

    @property
    def providers(self) -> tuple[str, ...]:
        """What came up to compute, by the runtime's own names, the one that computes first."""
        ...

    @property
    def runs_on_cpu(self) -> bool:
        """Whether the CPU computes; on anything else each run has a much higher fixed cost."""
        ...

    @property
    def warning(self) -> str | None:
        """What the user should know of where it runs; None: nothing."""
        ...

    def input_dtype(self, name: str) -> "np.dtype[Any]":
        """The element type that the input `name` takes."""
        ...

    def input_shape(self, name: str) -> tuple[int | None, ...]:
        """The shape that the input `name` takes; None for a dimension that may be of any length."""
        ...

    def output_shape(self, name: str) -> tuple[int | None, ...]:
        """The shape of the output `name`, None for a dimension of any length; empty also where it is not stated."""
        ...

    def output_type(self, name: str) -> str:
        """The element type that the output `name` has, by numpy's name where numpy has it."""
        ...

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """Compute `outputs`, in that order, from `inputs`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How a session is to run; checked once, travels to the worker by pickle.

    Attributes:
        threads: Threads that one run may use.
        device: "auto" takes CUDA where it is installed and works, "cuda" demands it, "cpu" never asks.
        device_id: Which device of that kind; None: the runtime's default.
        providers: Execution providers by name, each with its options, instead of `device`.
        runtime: What loads and runs the graph. OpenVINO runs it on the CPU, whatever the device.
        bfloat16: Compute in bfloat16 what is computed in float32 otherwise; OpenVINO alone can.
    """

    threads: int = 1
    device: Device = "auto"
    device_id: int | None = None
    providers: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] | None = None
    runtime: Runtime = "onnxruntime"
    bfloat16: bool = False


def open_session(path: Path, options: SessionOptions, *, prepared: Path | None = None) -> Session:
    """Load the graph at `path`, or what was prepared of it; blocks, as it reads the whole model.

    What OpenVINO cannot load onnxruntime runs instead; the session's `warning` says so.

    Raises:
        RuntimeMissingError: The runtime, or an execution provider that was asked for, is missing.
        ModelLoadError: The file is missing, broken, or needs a newer runtime.
        OptionError: The CPU cannot compute in bfloat16.
    """
    begun = _ahead.opening
    if begun is not None and begun.arguments == (path, options, prepared):
        _ahead.opening = None
        return begun.wait()
    if options.runtime == "openvino":
        try:
            return _open_with_openvino(path, options)
        except ModelLoadError as error:
            session = _open_with_onnxruntime(path, options, prepared)
            session.warning = f"onnxruntime runs it: {error}"
            return session
    return _open_with_onnxruntime(path, options, prepared)


def _open_with_openvino(path: Path, options: SessionOptions) -> "OpenVinoSession":
    from asyncembed.runtime.openvino import OpenVinoSession

    return OpenVinoSession(path, options)


def _open_with_onnxruntime(path: Path, options: SessionOptions, prepared: Path | None) -> "OnnxSession":
    from asyncembed.runtime.onnx import OnnxSession

    return OnnxSession(path, options, prepared=prepared)


# ---------------------------------------------------------------- while something else is read


@contextmanager
def opening_ahead(path: Path, options: SessionOptions, *, prepared: Path | None = None) -> Iterator[None]:
    """Begin in a thread what `open_session` with the same arguments, in the block and the calling thread, waits for.

    onnxruntime lets go of the interpreter's lock while it loads a graph. To parse a tokenizer holds it: so the two take
    no longer together than the longer one, where there is a core for each.
    """
    opening = _Opening(path, options, prepared)
    try:
        opening.thread.start()
    except RuntimeError:  # there can be no more threads
        yield
        return
    _ahead.opening = opening
    try:
        yield
    finally:
        _ahead.opening = None
        opening.thread.join()


class _Opening:
    def __init__(self, path: Path, options: SessionOptions, prepared: Path | None) -> None:
        self.arguments = path, options, prepared
        self.thread = Thread(target=self._run, name="asyncembed-session", daemon=True)
        self._session: Session | None = None
        self._error: BaseException | None = None

    def _run(self) -> None:
        path, options, prepared = self.arguments
        try:
            self._session = open_session(path, options, prepared=prepared)
        except BaseException as error:  # noqa: BLE001 (raised where it is waited for)
            self._error = error

    def wait(self) -> Session:
        self.thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error
        session, self._session = self._session, None
        assert session is not None, "there is one where there is no error"
        return session


class _Ahead(local):
    opening: _Opening | None = None


_ahead = _Ahead()
