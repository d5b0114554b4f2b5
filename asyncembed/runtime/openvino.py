"""A graph on OpenVINO: the second implementation of `Session`, for CPUs that compute bfloat16 in hardware.

OpenVINO is silent where others raise. Shapes that do not fit leave the results of the run before in place, an input
that is left out keeps its last value, and two threads on one request mix their results. So each run has a request of
its own, which costs nothing that could be measured; and where nothing was computed, its outputs show it.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from asyncembed.errors import EncodeError, ModelLoadError, OptionError, RuntimeMissingError, UnsupportedModelError
from asyncembed.runtime.memory import is_large, release_free_memory
from asyncembed.runtime.onnx_file import are_within_reach, check_links, read_onnx_file
from asyncembed.runtime.session import Array, SessionOptions

INSTALL_HINT = 'pip install "asyncembed[openvino]"'

# The types that embedding graphs take as inputs, as OpenVINO writes them.
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "i64": np.dtype(np.int64),
    "i32": np.dtype(np.int32),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "f64": np.dtype(np.float64),
    "u8": np.dtype(np.uint8),
    "i8": np.dtype(np.int8),
    "boolean": np.dtype(np.bool_),
}


class OpenVinoSession:
    """One ONNX file, loaded: see `open_session`, and `Session` for its attributes."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        openvino = import_openvino()
        if not path.is_file():
            raise ModelLoadError(f"there is no file {path}", model=str(path))
        core = openvino.Core()
        if options.bfloat16:
            _check_bfloat16(core)
        file = read_onnx_file(path)
        if file.has_branches:
            # As of attention in chunks: with 2026.4 some of the results are NaN now and then, others wrong.
            raise ModelLoadError(f"OpenVINO computes graphs with branches wrongly, as {path} is", model=str(path))
        if not are_within_reach(path, file.weights):
            check_links(path, file.weights)
        try:
            model = core.read_model(str(path))
            self._compiled = core.compile_model(model, "CPU", _settings(options))
        except Exception as error:
            version = openvino.__version__.partition("-")[0]
            raise ModelLoadError(f"OpenVINO {version} cannot load {path}: {_reason(error)}", model=str(path)) from error
        # Of the model, as a compiled one also has other names for its outputs.
        self._inputs = {_name(port): port for port in model.inputs}
        self._outputs = {_name(port): port for port in model.outputs}
        self.input_names: tuple[str, ...] = tuple(self._inputs)
        self.output_names: tuple[str, ...] = tuple(self._outputs)
        self._positions = {name: position for position, name in enumerate(self.output_names)}
        self._of_certain_length = frozenset(
            position
            for name, position in self._positions.items()
            if None not in self.output_shape(name) and self.output_type(name).startswith("float")
        )
        self.providers: tuple[str, ...] = ("OpenVINO CPU in bfloat16" if options.bfloat16 else "OpenVINO CPU",)
        self.runs_on_cpu: bool = True
        self.warning: str | None = None
        release_free_memory()

    def input_dtype(self, name: str) -> np.dtype[Any]:
        """The element type that the input `name` takes."""
        kind = self._inputs[name].element_type.get_type_name()
        if kind not in _DTYPES:
            raise UnsupportedModelError(f"the graph's input {name} is a {kind}, which no family of models feeds")
        return _DTYPES[kind]

    def input_shape(self, name: str) -> tuple[int | None, ...]:
        """The shape that the input `name` takes; None for a dimension that may be of any length."""
        return _shape(self._inputs[name])

    def output_shape(self, name: str) -> tuple[int | None, ...]:
        """The shape of the output `name`, None for a dimension of any length; empty also where it is not stated."""
        return _shape(self._outputs[name])

    def output_type(self, name: str) -> str:
        """The element type that the output `name` has, by numpy's name where numpy has it."""
        kind: str = self._outputs[name].element_type.get_type_name()
        return _DTYPES[kind].name if kind in _DTYPES else kind

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """Compute `outputs`, in that order, from `inputs`.

        Raises:
            ValueError: An input is missing.
            EncodeError: Nothing was computed, as of texts that are too long.
        """
        if missing := [name for name in self.input_names if name not in inputs]:
            raise ValueError(f"the graph takes {missing[0]} as well")
        request = self._compiled.create_infer_request()
        positions = [self._positions[name] for name in outputs]
        for position in self._of_certain_length.intersection(positions):
            request.get_output_tensor(position).data[...] = np.nan
        computed = request.infer(dict(inputs), share_inputs=True, share_outputs=True)
        results: list[Array] = [computed[position] for position in positions]
        if not all(map(self._is_computed, positions, results)) and all(array.size for array in inputs.values()):
            shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
            raise EncodeError(f"OpenVINO has computed nothing of inputs of these shapes: {shapes}")
        if is_large(inputs):
            self._compiled.release_memory()
            release_free_memory()
        return results

    def _is_computed(self, position: int, result: Array) -> bool:
        """An output of any length is empty until it is computed; one of a certain length was filled."""
        return bool(result.size) and not (position in self._of_certain_length and np.isnan(result).all())


def import_openvino() -> ModuleType:
    """The module; its import, which otherwise tells its maker of itself, tells nobody.

    Raises:
        RuntimeMissingError: It is not installed.
    """
    try:
        with _without_telemetry():
            import openvino
    except ImportError as error:
        raise RuntimeMissingError(f'runtime="openvino" needs the package openvino: {INSTALL_HINT}') from error
    module: ModuleType = openvino
    return module


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Without the package that tells, OpenVINO takes a stub of its own."""
    name = "openvino_telemetry"
    if name in sys.modules:  # the program has it loaded or taken away by itself
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def _check_bfloat16(core: Any) -> None:
    """Raise OptionError where OpenVINO would take the wish for bfloat16, and compute in float32 without a word."""
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise OptionError(
            'precision="bf16" needs a CPU that computes bfloat16 in hardware (AMX or AVX512-BF16), which this one does '
            "not: leave precision= out"
        )


def _reason(error: Exception) -> str:
    """What an error of OpenVINO says, in one line, without the places in its source that it comes from."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("Exception from ", "Check '")))


def _settings(options: SessionOptions) -> dict[str, object]:
    return {
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": 1,
        # Several workers would be pinned to the same cores.
        "ENABLE_CPU_PINNING": False,
        # Said in any case: where the CPU has bfloat16, that is what OpenVINO takes by itself.
        "INFERENCE_PRECISION_HINT": "bf16" if options.bfloat16 else "f32",
    }


def _name(port: Any) -> str:
    """The name of an input or output of a model, which has others where its values are passed on under several."""
    own: str = port.get_node().get_friendly_name().rpartition("/sink_port_")[0]
    return own if own in port.names else str(port.any_name)


def _shape(port: Any) -> tuple[int | None, ...]:
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        return ()
    return tuple(dimension.get_length() if dimension.is_static else None for dimension in shape)
