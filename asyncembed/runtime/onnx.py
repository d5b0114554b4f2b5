"""A graph on onnxruntime: the first implementation of `Session`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from asyncembed.errors import ModelLoadError, RuntimeMissingError, UnsupportedModelError
from asyncembed.runtime.memory import is_large, release_free_memory
from asyncembed.runtime.onnx_file import are_within_reach, check_links, read_onnx_file
from asyncembed.runtime.providers import (
    CPU,
    CUDA,
    INSTALL_HINT,
    ON_CPU,
    ProviderChoice,
    choose_providers,
    fallback_warning,
    missing_after_load,
)
from asyncembed.runtime.session import Array, SessionOptions

# The types that embedding graphs take as inputs, as onnxruntime writes them.
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(bool)": np.dtype(np.bool_),
}


class OnnxSession:
    """One ONNX file, loaded: see `open_session`, and `Session` for its attributes.

    `prepared` is what `prepared.prepare_graph` has made of it, and is loaded instead where only the CPU computes.
    """

    def __init__(self, path: Path, options: SessionOptions, *, prepared: Path | None = None) -> None:
        onnxruntime = import_onnxruntime()
        available = onnxruntime.get_available_providers()
        choice = choose_providers(options, available)
        if choice.uses_cuda and hasattr(onnxruntime, "preload_dlls"):
            # Finds the CUDA libraries that pip put into site-packages.
            onnxruntime.preload_dlls()
        session, objection = _loaded(onnxruntime, path, options, choice, prepared)
        active = session.get_providers()
        if missing := sorted(choice.required.difference(active)):
            raise missing_after_load(missing, active)
        self._session = session
        self._input_types = {value.name: value.type for value in session.get_inputs()}
        self.input_names: tuple[Any, ...] = tuple(self._input_types)
        self._output_types = {value.name: value.type for value in session.get_outputs()}
        self.output_names: tuple[Any, ...] = tuple(self._output_types)
        self._input_shapes = {value.name: tuple(map(_length, value.shape)) for value in session.get_inputs()}
        self._output_shapes = {value.name: tuple(map(_length, value.shape or ())) for value in session.get_outputs()}
        self.providers: tuple[str, ...] = tuple(active)
        self._output_place = _output_place(session)
        self._shrinking = onnxruntime.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.warning: str | None = fallback_warning(options, available, active) or objection
        release_free_memory()

    @property
    def runs_on_cpu(self) -> bool:
        """Whether the CPU computes; on anything else each run has a much higher fixed cost."""
        return self.providers[0] == CPU

    def input_dtype(self, name: str) -> np.dtype[Any]:
        """The element type that the input `name` takes."""
        kind = self._input_types[name]
        if kind not in _DTYPES:
            raise UnsupportedModelError(f"the graph's input {name} is a {kind}, which no family of models feeds")
        return _DTYPES[kind]

    def input_shape(self, name: str) -> tuple[int | None, ...]:
        """The shape that the input `name` takes; None for a dimension that may be of any length."""
        return self._input_shapes[name]

    def output_shape(self, name: str) -> tuple[int | None, ...]:
        """The shape of the output `name`, None for a dimension of any length; empty also where it is not stated."""
        return self._output_shapes[name]

    def output_type(self, name: str) -> str:
        """The element type that the output `name` has, by numpy's name where numpy has it."""
        kind = self._output_types[name]
        return _DTYPES[kind].name if kind in _DTYPES else kind

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """Compute `outputs`, in that order, from `inputs`."""
        if self._output_place is not None:
            return self._run_bound(outputs, inputs, self._output_place)
        cleans_up = self.runs_on_cpu and is_large(inputs)
        options = self._shrinking if cleans_up else None
        results: list[Array] = self._session.run(list(outputs), dict(inputs), options)
        if cleans_up:
            release_free_memory()
        return results

    def _run_bound(self, outputs: Sequence[str], inputs: Mapping[str, Array], place: tuple[str, int]) -> list[Array]:
        """Compute `outputs` into the memory of a device, and copy each from there to where it is used.

        A plain run of onnxruntime's copies them twice: to memory of its own, and from there.
        """
        if missing := [name for name in self.input_names if name not in inputs]:
            raise ValueError(f"the graph takes {missing[0]} as well")  # else it is told by the node that wants it
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in outputs:
            binding.bind_output(name, *place)
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        results: list[Array] = binding.copy_outputs_to_cpu()
        return results


def _output_place(session: Any) -> tuple[str, int] | None:
    """Kind and number of the device whose memory the outputs lie in; None: they are copied by onnxruntime itself."""
    if session.get_providers()[0] != CUDA:
        return None
    return "cuda", int(session.get_provider_options()[CUDA].get("device_id", 0))


def _length(dimension: object) -> int | None:
    """A dimension as onnxruntime states it: a number, a name, or nothing."""
    return dimension if isinstance(dimension, int) and dimension > 0 else None


def _loaded(
    onnxruntime: ModuleType, path: Path, options: SessionOptions, choice: ProviderChoice, prepared: Path | None
) -> tuple[Any, str | None]:
    """The session, as `_load_prepared` gives it, on the CPU where nobody insists on the GPU that is not there.

    Raises:
        ModelLoadError: There is no such file, or it cannot be loaded.
    """
    if not path.is_file():
        raise ModelLoadError(f"there is no file {path}", model=str(path))
    try:
        try:
            return _load_prepared(onnxruntime, path, options, choice, prepared)
        except Exception:
            if choice.required or not choice.uses_cuda:
                raise
            # CUDA may be wholly installed on a machine without a GPU: "auto" does not insist on it.
            return _load_prepared(onnxruntime, path, options, ON_CPU, prepared)
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"onnxruntime {onnxruntime.__version__} cannot load {path}: {error}", model=str(path)
        ) from error


def _load_prepared(
    onnxruntime: ModuleType, path: Path, options: SessionOptions, choice: ProviderChoice, prepared: Path | None
) -> tuple[Any, str | None]:
    """The session, from the prepared graph where there is one and only the CPU computes; and why not from that."""
    if prepared is None or choice.providers != ON_CPU.providers:
        return _load(onnxruntime, path, options, choice), None
    session_options = _session_options(onnxruntime, options.threads)
    # It was optimised when it was made; once more, graphs of half precision would not keep their bits.
    session_options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return _open(onnxruntime, prepared, session_options, choice), None
    except Exception as error:  # noqa: BLE001 (onnxruntime raises several of its own)
        session = _load(onnxruntime, path, options, choice)  # which raises if it is not the prepared one's fault
        from asyncembed.runtime.prepared import put_aside  # what makes them is none of a worker's business

        put_aside(prepared)
        return session, f"its prepared graph in {prepared.parent} cannot be loaded, and will be made again: {error}"


def save_optimized(source: Path, graph: Path, data_name: str) -> None:
    """Write the graph at `source` as this CPU computes it, its weights in their packed form beside it; blocks.

    Raises:
        ModelLoadError: It cannot be loaded, or not be written.
    """
    packed = {"session.save_external_prepacked_constant_initializers": "1"}
    _save(source, graph, data_name, level="ORT_ENABLE_ALL", beside_bytes=1024, more=packed)


def save_simplified(source: Path, graph: Path, data_name: str) -> None:
    """Write the graph at `source` with what is constant computed, its weights as they are beside it; blocks.

    Raises:
        ModelLoadError: It cannot be loaded, or not be written.
    """
    _save(source, graph, data_name, level="ORT_ENABLE_BASIC", beside_bytes=200, more={})


def _save(source: Path, graph: Path, data_name: str, *, level: str, beside_bytes: int, more: Mapping[str, str]) -> None:
    """Write a graph as it is at a level of optimisation; tensors of fewer bytes stay inside it."""
    onnxruntime = import_onnxruntime()
    session_options = _session_options(onnxruntime, threads=1)
    session_options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session_options.optimized_model_filepath = str(graph)
    entries = {
        "session.optimized_model_external_initializers_file_name": data_name,
        "session.optimized_model_external_initializers_min_size_in_bytes": str(beside_bytes),
        **more,
    }
    for key, value in entries.items():
        session_options.add_session_config_entry(key, value)
    try:
        _open(onnxruntime, source, session_options, ON_CPU)
    except Exception as error:
        raise ModelLoadError(
            f"onnxruntime {onnxruntime.__version__} cannot prepare {source}: {error}", model=str(source)
        ) from error


def open_as_it_is(path: Path) -> Any:
    """Open a session of onnxruntime's own on all cores of the CPU, which optimises nothing and is silent; blocks.

    Raises:
        ModelLoadError: It cannot be loaded.
    """
    onnxruntime = import_onnxruntime()
    session_options = _session_options(onnxruntime, threads=0)
    session_options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session_options.log_severity_level = 4
    try:
        return _open(onnxruntime, path, session_options, ON_CPU)
    except Exception as error:
        raise ModelLoadError(
            f"onnxruntime {onnxruntime.__version__} cannot load {path}: {error}", model=str(path)
        ) from error


def _load(onnxruntime: ModuleType, path: Path, options: SessionOptions, choice: ProviderChoice) -> Any:
    return _open(onnxruntime, path, _session_options(onnxruntime, options.threads), choice)


def _open(onnxruntime: ModuleType, path: Path, session_options: Any, choice: ProviderChoice) -> Any:
    weights = _weights_out_of_reach(path)  # held until the session has its copy
    if weights:
        session_options.add_external_initializers_from_files_in_memory(
            list(weights), list(weights.values()), [len(content) for content in weights.values()]
        )
    return onnxruntime.InferenceSession(
        str(path),
        session_options,
        providers=[name for name, _ in choice.providers],
        provider_options=[settings for _, settings in choice.providers],
        enable_fallback=0,
    )


def _session_options(onnxruntime: ModuleType, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Threads that spin while they wait would take the cores from the other workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A memory pattern is kept for every input shape that was ever seen, and here shapes never repeat. The
    # arena stays: it is as large as the largest run and no larger, and without it runs are a tenth slower and
    # the peak is higher.
    options.enable_mem_pattern = False
    # Errors only: warnings about graph optimisations mean nothing to the user of a finished model.
    options.log_severity_level = 3
    return options


def _weights_out_of_reach(path: Path) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    """The bytes of the files with the graph's weights, by name, if onnxruntime would refuse to open them."""
    names = read_onnx_file(path).weights
    if are_within_reach(path, names):
        return {}
    check_links(path, names)
    return {name: np.memmap(path.parent / name, mode="r") for name in names}


def import_onnxruntime() -> ModuleType:
    """The module, with its telemetry off.

    Raises:
        RuntimeMissingError: It is not installed.
    """
    # From 1.29 on it reports to its maker; nobody was asked. Read when the module is loaded, so set before that.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissingError(f"this model needs onnxruntime: {INSTALL_HINT}") from error
    module: ModuleType = onnxruntime
    return module
