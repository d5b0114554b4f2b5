"""A text model's graph: which inputs it takes, which output counts, and whether it can be batched at all."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.encoders.encoder import EncoderConfig
from asyncembed.encoders.microbatch import (
    ACCELERATOR_RUN_OVERHEAD_TOKENS,
    CPU_RUN_OVERHEAD_TOKENS,
    MicroBatch,
    plan_microbatches,
)
from asyncembed.encoders.tokenization import IntArray
from asyncembed.errors import UnsupportedModelError
from asyncembed.runtime.onnx import OnnxSession
from asyncembed.runtime.quantization import is_dynamically_quantized
from asyncembed.runtime.session import Array, Session

# What a graph may ask for and gets made up from the ids; whatever else it asks for, a family must supply.
_KNOWN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


class TextGraph:
    """The graph of `config`, fed with token ids.

    Attributes:
        session: Where it runs.
        output: Name of the output that `spec.output` means.
        is_dynamically_quantized: Whether a result would depend on its neighbours in the run.
    """

    def __init__(self, config: EncoderConfig, *, extra_inputs: Sequence[str] = ()) -> None:
        """Load the graph; `extra_inputs` are those that each run will bring along.

        Raises:
            UnsupportedModelError: The graph takes inputs that nobody feeds, or lacks the output.
            RuntimeMissingError: onnxruntime or the execution provider asked for is not installed.
            ModelLoadError: The file cannot be loaded.
        """
        spec = config.spec
        if spec.model_file is None:
            raise UnsupportedModelError("the model has no ONNX file: say onnx_file=", model=spec.name)
        path = config.directory / spec.model_file
        self.session = OnnxSession(path, config.session)
        names = self.session.input_names
        if "input_ids" not in names or set(names).difference(_KNOWN_INPUTS, extra_inputs):
            raise UnsupportedModelError(
                f"the graph {spec.model_file} takes {', '.join(names)}; a text encoder has input_ids, and "
                f"besides nothing but {', '.join((*_KNOWN_INPUTS[1:], *extra_inputs))}",
                model=spec.name,
            )
        self.output = find_output(self.session, spec)
        self._dtypes: Mapping[str, np.dtype[Any]] = {name: self.session.input_dtype(name) for name in names}
        self._max_tokens = config.max_batch_tokens
        self._max_size = config.max_batch_size
        self.is_dynamically_quantized = is_dynamically_quantized(path)
        if config.batch_invariant and self.is_dynamically_quantized:
            self._max_size = 1
        if "attention_mask" not in names:
            # The graph takes padding for text: inputs share a run only if they are equally long, as only
            # padding could make up for the cost of a run.
            self._run_overhead = 0
        elif self.session.runs_on_cpu:
            self._run_overhead = CPU_RUN_OVERHEAD_TOKENS
        else:
            self._run_overhead = ACCELERATOR_RUN_OVERHEAD_TOKENS

    def plan(self, lengths: Sequence[int]) -> list[MicroBatch]:
        """Cut inputs of these lengths into runs; an input of a dynamically quantised graph runs alone."""
        return plan_microbatches(
            lengths,
            max_tokens=self._max_tokens,
            max_size=self._max_size,
            run_overhead_tokens=self._run_overhead,
        )

    def run(self, ids: IntArray, mask: IntArray, **extra: Array) -> Array:
        """The chosen output for `ids` and `mask`, both (batch, tokens); token types are zeros."""
        return self.run_outputs([self.output], ids, mask, **extra)[0]

    def run_outputs(self, outputs: Sequence[str], ids: IntArray, mask: IntArray, **extra: Array) -> list[Array]:
        """Several outputs by name, as the graph gives them."""
        feeds: dict[str, Array] = {"input_ids": ids}
        if "attention_mask" in self._dtypes:
            feeds["attention_mask"] = mask
        if "token_type_ids" in self._dtypes:
            feeds["token_type_ids"] = np.zeros_like(ids)
        if "position_ids" in self._dtypes:
            feeds["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)
        feeds.update(extra)
        return self.session.run(
            outputs, {name: array.astype(self._dtypes[name], copy=False) for name, array in feeds.items()}
        )


def find_output(session: Session, spec: ModelSpec) -> str:
    """Name of the graph's output that `spec` means.

    Raises:
        UnsupportedModelError: The graph has no such output.
    """
    names = session.output_names
    wanted = spec.output
    preferred = spec.settings.get("output_name")
    if preferred in names:
        return str(preferred)
    if isinstance(wanted, str) and wanted in names:
        return wanted
    if isinstance(wanted, int) and wanted < len(names):
        return names[wanted]
    raise UnsupportedModelError(
        f"the graph {spec.model_file} has no output {wanted!r}, only {', '.join(names)}", model=spec.name
    )
