"""A model's graph: what it takes, which output counts, and how many inputs one run of it may hold."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.encoders.encoder import EncoderConfig, ModelInfo
from asyncembed.encoders.finite import Finite
from asyncembed.encoders.microbatch import (
    ACCELERATOR_RUN_OVERHEAD_TOKENS,
    CPU_RUN_OVERHEAD_TOKENS,
    MicroBatch,
    Planner,
)
from asyncembed.encoders.tokenization import IntArray, TextTokenizer
from asyncembed.errors import OptionError, UnsupportedModelError
from asyncembed.runtime.onnx import OnnxSession
from asyncembed.runtime.onnx_file import read_onnx_file
from asyncembed.runtime.session import Array, Session

# What a graph may ask for and gets made up from the ids; whatever else it asks for, a family must supply.
_KNOWN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


_FINISHED_OUTPUTS = ("sentence_embedding", "sentence_embeddings", "text_embeds", "dense_vecs")
"""What exporters call the vector of a whole text. It is not `pooler_output`, which only served to train the model."""

# More than any two runs can save by padding less.
_FEWEST_RUNS = 2**40


class Graph:
    """The graph of `config`, of any kind.

    A graph made for batches of one size gets such: the last input fills the places that are left, and what it gives
    for them is dropped.

    Attributes:
        session: Where it runs.
        output: Name of the output that `spec.graph_output` means.
        planner: Which inputs run together.
        is_dynamically_quantized: Whether a result would depend on its neighbours in the run.
        info: What the engine should know of where and how it runs.
        finite: Finds results that must not be handed on.
    """

    def __init__(self, config: EncoderConfig, *, most_tokens: int | None = None) -> None:
        """Load the graph; `most_tokens` bounds its runs beside the token budget.

        Raises:
            UnsupportedModelError: There is no graph, or it lacks the output.
            RuntimeMissingError: onnxruntime or the execution provider asked for is not installed.
            ModelLoadError: The file cannot be loaded.
        """
        spec = config.spec
        if spec.model_file is None:
            raise UnsupportedModelError("the model has no ONNX file: say onnx_file=", model=spec.name)
        path = config.directory / spec.model_file
        self._spec = spec
        self.session: OnnxSession = OnnxSession(path, config.session)
        self.output: str = find_output(self.session, spec)
        self.is_dynamically_quantized: bool = read_onnx_file(path).is_dynamically_quantized
        names = self.session.input_names
        self._dtypes: Mapping[str, np.dtype[Any]] = {name: self.session.input_dtype(name) for name in names}
        self._batch_sizes = {name: self.fixed_dimension(0, name) for name in names}
        self._batch_size = self._batch_sizes["input_ids" if "input_ids" in names else names[0]]
        budget = self._budget(config)
        self.info: ModelInfo = ModelInfo(
            providers=self.session.providers,
            max_batch_tokens=budget,
            dynamically_quantized=self.is_dynamically_quantized,
            warning=self.session.warning,
        )
        element = self.session.output_type(self.output)
        self.finite: Finite = Finite(spec, element=element, provider=self.session.providers[0])
        self.planner: Planner = self._planner(config, budget if most_tokens is None else min(budget, most_tokens))

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Several outputs by name, from all inputs by name, brought to the element types that the graph takes."""
        count = len(next(iter(feeds.values())))
        inputs = {
            name: self._filled(name, array.astype(self._dtypes[name], copy=False)) for name, array in feeds.items()
        }
        results = self.session.run(outputs, inputs)
        return results if self._batch_size in (None, count) else [result[:count] for result in results]

    def fixed_dimension(self, axis: int, *names: str) -> int | None:
        """The length of an axis of the inputs `names`, where the graph takes no other."""
        for name in names:
            shape = self.session.input_shape(name)
            if axis < len(shape) and shape[axis] is not None:
                return shape[axis]
        return None

    def unsupported(self, reason: str) -> UnsupportedModelError:
        """The error of a graph that we cannot run."""
        return UnsupportedModelError(f"the graph {self._spec.model_file} {reason}", model=self._spec.name)

    def _budget(self, config: EncoderConfig) -> int:
        """Tokens of a run, by what has come up."""
        if self.session.runs_on_cpu or config.accelerated_batch_tokens is None:
            return config.max_batch_tokens
        return config.accelerated_batch_tokens

    def _planner(self, config: EncoderConfig, max_tokens: int) -> Planner:
        sizes = [size for size in (config.max_batch_size, self._batch_size) if size is not None]
        if config.batch_invariant and self.is_dynamically_quantized:
            # In a batch of fixed size its neighbours are copies of itself.
            sizes.append(1)
        overhead = self._run_overhead()
        if self._batch_size is not None:
            # Each run computes the whole batch, however much of it is in use: the fewest runs cost least.
            max_tokens, overhead = sys.maxsize, _FEWEST_RUNS if overhead else 0
        return Planner(max_tokens=max_tokens, max_size=min(sizes, default=None), run_overhead_tokens=overhead)

    def _run_overhead(self) -> int:
        return CPU_RUN_OVERHEAD_TOKENS if self.session.runs_on_cpu else ACCELERATOR_RUN_OVERHEAD_TOKENS

    def _filled(self, name: str, array: Array) -> Array:
        size = self._batch_sizes[name]
        if size is None or not array.ndim or len(array) >= size:
            return array
        return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


class TextGraph(Graph):
    """The graph of a text model, fed with token ids.

    Attributes:
        fixed_length: The one length that the graph takes, in tokens; None: any. All inputs are padded to it.
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        extra_inputs: Sequence[str] = (),
        most_tokens: int | None = None,
        takes_padding: bool = False,
    ) -> None:
        """Load the graph.

        Args:
            config: The model.
            extra_inputs: Names of those inputs that each run will bring along.
            most_tokens: Bounds its runs beside the token budget.
            takes_padding: Whether a graph without an attention mask was made for texts with padding.

        Raises:
            UnsupportedModelError: The graph takes inputs that nobody feeds, or lacks the output.
            RuntimeMissingError: onnxruntime or the execution provider asked for is not installed.
            ModelLoadError: The file cannot be loaded.
        """
        super().__init__(config, most_tokens=most_tokens)
        names = self.session.input_names
        if "input_ids" not in names or set(names).difference(_KNOWN_INPUTS, extra_inputs):
            raise self.unsupported(
                f"takes {', '.join(names)}; a text encoder has input_ids, and besides nothing but "
                f"{', '.join((*_KNOWN_INPUTS[1:], *extra_inputs))}"
            )
        own = [name for name in names if name in _KNOWN_INPUTS]
        self.fixed_length: int | None = self.fixed_dimension(1, *own)
        if self.fixed_length is not None and "attention_mask" not in names and not takes_padding:
            raise self.unsupported(
                f"takes texts of exactly {self.fixed_length} tokens and no attention_mask, so that it would take the "
                "padding of a shorter text for text: export it with an attention_mask, or for any length"
            )

    def fit(self, tokenizer: TextTokenizer, max_length: int | None, *, reserve: int = 0) -> None:
        """Lower the limit of `tokenizer` to what a graph of fixed length takes, less the `reserve` of the encoder.

        Raises:
            OptionError: The caller's `max_length` is above it.
        """
        if self.fixed_length is None:
            return
        if max_length is not None and max_length > self.fixed_length:
            raise OptionError(
                f"max_length={max_length} is more than the {self.fixed_length} tokens that the graph was made for"
            )
        tokenizer.lower_limit(self.fixed_length - reserve)

    def plan(self, lengths: Sequence[int], *, most: int | None = None) -> list[MicroBatch]:
        """Cut inputs of these lengths into runs; an input of a dynamically quantised graph runs alone."""
        if self.fixed_length is not None:
            lengths = [self.fixed_length] * len(lengths)
        return self.planner.plan(lengths, most=most)

    def run_text(self, ids: IntArray, mask: IntArray, **extra: Array) -> Array:
        """The chosen output for `ids` and `mask`, both (batch, tokens); token types are zeros."""
        feeds: dict[str, Array] = {"input_ids": ids}
        if "attention_mask" in self._dtypes:
            feeds["attention_mask"] = mask
        if "token_type_ids" in self._dtypes:
            feeds["token_type_ids"] = np.zeros_like(ids)
        if "position_ids" in self._dtypes:
            feeds["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)
        feeds.update(extra)
        return self.run([self.output], feeds)[0]

    def _run_overhead(self) -> int:
        # Without a mask the graph takes padding for text: inputs share a run only if they are equally long, as only
        # padding could make up for the cost of a run.
        return super()._run_overhead() if "attention_mask" in self.session.input_names else 0


def find_output(session: Session, spec: ModelSpec) -> str:
    """Name of the graph's output that `spec` means.

    Of `spec.settings` it reads:
        output_name: The output that is taken where the graph has it, rather than `spec.graph_output`.
        takes_finished: "any" takes a finished vector (batch, dim) where the graph has one.

    Raises:
        UnsupportedModelError: The graph has no such output.
    """
    names = session.output_names
    wanted = spec.graph_output
    preferred = spec.settings.get("output_name")
    if preferred in names:
        return str(preferred)
    if spec.settings.get("takes_finished") == "any" and (finished := _finished_output(session, spec.dim)):
        return finished
    if isinstance(wanted, str) and wanted in names:
        return wanted
    if isinstance(wanted, int) and wanted < len(names):
        return _with_states(session, names[wanted]) if _asks_for_states(spec) else names[wanted]
    raise UnsupportedModelError(
        f"the graph {spec.model_file} has no output {wanted!r}, only {', '.join(names)}", model=spec.name
    )


def is_finished(session: Session, spec: ModelSpec, output: str) -> bool:
    """Whether this output is a vector to which nothing of what the repo says is to be done, but unit length."""
    return bool(spec.settings.get("takes_finished")) and _may_be_vectors(session, output, spec.dim)


def _finished_output(session: Session, dim: int | None) -> str | None:
    names = session.output_names
    candidates = (*_FINISHED_OUTPUTS, *(names if len(names) == 1 else ()))
    return next((name for name in candidates if name in names and _may_be_vectors(session, name, dim)), None)


def _may_be_vectors(session: Session, output: str, dim: int | None) -> bool:
    shape = session.output_shape(output)
    if not shape:  # not stated: then the name has to do
        return output in _FINISHED_OUTPUTS
    return len(shape) == 2 and (dim is None or shape[1] in (None, dim))


def _asks_for_states(spec: ModelSpec) -> bool:
    """Whether hidden states are to be pooled, and nobody says which output they are."""
    is_named = spec.is_catalogued or spec.graph_output != 0 or spec.settings.get("takes_finished") == "named"
    return spec.pooling != "none" and not is_named


def _with_states(session: Session, output: str) -> str:
    """This output if it may have hidden states, else the first that has."""
    if len(session.output_shape(output)) != 2:
        return output
    return next((name for name in session.output_names if len(session.output_shape(name)) > 2), output)
