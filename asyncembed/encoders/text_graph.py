"""A model's graph: what it takes, which output counts, and which inputs run together once their lengths are known."""

import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from asyncembed.encoders.encoder import EncoderConfig, ModelInfo
from asyncembed.encoders.finite import Finite
from asyncembed.encoders.graph_inputs import Filler, filler_of, has_past, width_of
from asyncembed.encoders.graph_output import find_output
from asyncembed.encoders.run_cost import ATTENTION_WIDTHS, cost_of, measure_runs
from asyncembed.encoders.settings import GraphSettings
from asyncembed.encoders.tokenization import Ids, IntArray, TextTokenizer
from asyncembed.errors import OptionError, UnsupportedModelError
from asyncembed.runtime.onnx_file import read_onnx_file
from asyncembed.runtime.session import Array, Session, open_session

# Those with a place for each token. What else a graph asks for is made up, or a family supplies it.
_TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")

# More than any two runs can save by padding less.
_FEWEST_RUNS = 2**40

# What one run of a graph costs on top of its tokens, expressed in tokens. On a CPU a run of a 6-layer, 384-wide
# encoder takes 2 to 3 ms more than its tokens alone, and a token 0.15 to 0.3 ms; larger models have the same ratio.
CPU_RUN_OVERHEAD_TOKENS = 12
# On an accelerator a small run costs as much as one of a few thousand tokens; where that can be measured, it is.
ACCELERATOR_RUN_OVERHEAD_TOKENS = 1024

# Of the texts that a measurement is made with.
_MEASURED_LENGTH = 128

# What takes longer for a shape that it has not met compiles the graph for each (TensorRT), so it is not measured.
_COMPILING_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The inputs of one run.

    Attributes:
        rows: Positions in the sequence of lengths that was planned.
        length: Tokens of the longest of them.
    """

    rows: tuple[int, ...]
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """What bounds the runs of one graph: the one place that every family asks which inputs run together.

    Attributes:
        max_tokens: Most tokens of a run, padding included, long inputs by what they cost, unless a single one has more.
        max_size: Most inputs of a run; None: no limit.
        run_overhead_tokens: What a run costs on top of its tokens; 0 where inputs of one length alone may share a run.
        attention_tokens: From which a length gives its cost: see `cost_of`.
    """

    max_tokens: int
    max_size: int | None = None
    run_overhead_tokens: int = CPU_RUN_OVERHEAD_TOKENS
    attention_tokens: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether it may put inputs together as it sees fit."""
        return self.max_size != 1 and self.max_tokens < sys.maxsize

    def plan(self, lengths: Sequence[int], *, max_size: int | None = None) -> list[MicroBatch]:
        """Cut inputs of these lengths into the runs that cost least together, longest first.

        A run costs `run_overhead_tokens + cost_of(longest) * count`; it holds no more inputs than `max_size`, this
        one's and the planner's, and its inputs cost at most `max_tokens`, padding included, unless a single input alone
        costs more: that one runs by itself.

        Once sorted, the best runs are neighbours, so the cheapest cut is found exactly: `best[i]`, the least cost
        of the first i inputs, is the minimum over the start j of the last run of `best[j] + overhead +
        cost_of(length[j]) * (i - j)`.
        """
        size_limit = min((size for size in (self.max_size, max_size) if size is not None), default=len(lengths))
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        sorted_costs = np.array([cost_of(lengths[row], self.attention_tokens) for row in order], dtype=np.int64)
        count = len(order)
        best = np.zeros(count + 1, dtype=np.int64)
        start_of_run = [0] * (count + 1)
        # Earliest start from which a run may reach as far as i: it only moves forward, as the inputs get shorter.
        first = 0
        starts = np.arange(count, dtype=np.int64)
        for end in range(1, count + 1):
            while first < end - 1 and (
                sorted_costs[first] * (end - first) > self.max_tokens or end - first > size_limit
            ):
                first += 1
            window = slice(first, end)
            costs = best[window] + sorted_costs[window] * (end - starts[window])
            cheapest = int(costs.argmin())
            best[end] = costs[cheapest] + self.run_overhead_tokens
            start_of_run[end] = first + cheapest
        runs: list[MicroBatch] = []
        end = count
        while end > 0:
            start = start_of_run[end]
            runs.append(MicroBatch(tuple(order[start:end]), lengths[order[start]]))
            end = start
        runs.reverse()
        return runs

    def plan_alike(self, kinds: Sequence[Hashable], lengths: Sequence[int]) -> list[MicroBatch]:
        """Likewise, where only inputs of one kind can share a run: images of one shape, which are equally long."""
        by_kind: dict[Hashable, list[int]] = {}
        for row, kind in enumerate(kinds):
            by_kind.setdefault(kind, []).append(row)
        return [
            MicroBatch(tuple(rows[row] for row in run.rows), run.length)
            for rows in by_kind.values()
            for run in self.plan([lengths[row] for row in rows])
        ]


class Graph:
    """The graph of `config`, of any kind.

    A graph made for batches of one size gets such: the last input fills the places that are left, and what it gives
    for them is dropped.

    Attributes:
        session: Where it runs.
        output: Name of the output that `spec.graph_output` means.
        planner: Which inputs run together.
        info: What the engine should know of where and how it runs.
        finite: Finds results that must not be handed on.
    """

    def __init__(self, config: EncoderConfig, settings: GraphSettings, *, max_tokens: int | None = None) -> None:
        """Load the graph; `max_tokens` bounds its runs beside the token budget.

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
        self.session: Session = open_session(path, config.session, prepared=config.prepared)
        self.output: str = find_output(self.session, spec, settings)
        self._is_dynamically_quantized = read_onnx_file(path).is_dynamically_quantized
        names = self.session.input_names
        self._dtypes: Mapping[str, np.dtype[Any]] = {name: self.session.input_dtype(name) for name in names}
        self._batch_sizes = {name: self.fixed_dimension(0, name) for name in names}
        self._batch_size = self._batch_sizes["input_ids" if "input_ids" in names else names[0]]
        # An image's attention is part of what an image costs.
        width = width_of(config.directory / spec.folder) if "input_ids" in names else None
        elsewhere = None if self.session.runs_on_cpu else config.accelerated_batch_tokens
        budget = config.max_batch_tokens if elsewhere is None else elsewhere
        self.info: ModelInfo = ModelInfo(
            providers=self.session.providers,
            max_batch_tokens=budget,
            attention_tokens=None if width is None else ATTENTION_WIDTHS * width,
            dynamically_quantized=self._is_dynamically_quantized,
            warning=self.session.warning,
        )
        self.finite: Finite = Finite(
            spec, element=self.session.output_type(self.output), provider=self.session.providers[0]
        )
        self.planner: Planner = self._planner(config, budget if max_tokens is None else min(budget, max_tokens))

    def run(self, feeds: Mapping[str, Array]) -> Array:
        """The output, from all inputs by name, brought to the element types that the graph takes."""
        (output,) = self.run_outputs([self.output], feeds)
        return output

    def run_outputs(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Likewise several outputs, by name, of one run."""
        count = len(next(iter(feeds.values())))
        inputs = {
            name: self._filled(name, array.astype(self._dtypes[name], copy=False)) for name, array in feeds.items()
        }
        results = self.session.run(outputs, inputs)
        return results if self._batch_size is None else [result[:count] for result in results]

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

    def _planner(self, config: EncoderConfig, max_tokens: int) -> Planner:
        sizes = [size for size in (config.max_batch_size, self._batch_size) if size is not None]
        if config.batch_invariant and self._is_dynamically_quantized:
            # In a batch of fixed size its neighbours are copies of itself.
            sizes.append(1)
        overhead = self._run_overhead()
        if self._batch_size is not None:
            # Each run computes the whole batch, however much of it is in use: the fewest runs cost least.
            max_tokens, overhead = sys.maxsize, _FEWEST_RUNS if overhead else 0
        return Planner(
            max_tokens=max_tokens,
            max_size=min(sizes, default=None),
            run_overhead_tokens=overhead,
            attention_tokens=self.info.attention_tokens,
        )

    def _run_overhead(self) -> int:
        return CPU_RUN_OVERHEAD_TOKENS if self.session.runs_on_cpu else ACCELERATOR_RUN_OVERHEAD_TOKENS

    def _filled(self, name: str, array: Array) -> Array:
        size = self._batch_sizes[name]
        if size is None or not array.ndim or len(array) >= size:
            return array
        return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


@dataclass(frozen=True, slots=True)
class TextRun:
    """Texts that run together, as the graph takes them.

    Attributes:
        rows: Which of the texts they are.
        ids, mask: Both int64 (len(rows), tokens); the mask is 1 for a real token, 0 for padding.
    """

    rows: tuple[int, ...]
    ids: IntArray
    mask: IntArray


class TextGraph(Graph):
    """The graph of a text model, fed with token ids.

    Attributes:
        tokenizer: That of its texts, with the limit that applies.
        fixed_length: The one length in tokens that all texts are padded to; None: none.
    """

    def __init__(
        self,
        config: EncoderConfig,
        settings: GraphSettings,
        tokenizer: TextTokenizer,
        *,
        extra_inputs: Sequence[str] = (),
        max_tokens: int | None = None,
        pads_to_limit: bool = False,
        markers: int = 0,
    ) -> None:
        """Load the graph.

        Args:
            config: The model.
            settings: What its spec says of the graph.
            tokenizer: Made for this model; the graph may lower its limit.
            extra_inputs: Names of those inputs that each run will bring along.
            max_tokens: Bounds its runs beside the token budget.
            pads_to_limit: Whether it was made for texts that are padded to the limit.
            markers: How many tokens the encoder itself puts into each text.

        Raises:
            UnsupportedModelError: The graph takes inputs that nobody can feed, or lacks the output.
            OptionError: The caller's `max_length` is more than a graph of one length takes.
            RuntimeMissingError: onnxruntime or the execution provider asked for is not installed.
            ModelLoadError: The file cannot be loaded.
        """
        super().__init__(config, settings, max_tokens=max_tokens)
        names = self.session.input_names
        if "input_ids" not in names:
            raise self.unsupported(f"takes {', '.join(names)}; a text encoder has input_ids")
        self._fillers = self._made_up([name for name in names if name not in extra_inputs], config)
        length = self.fixed_dimension(1, *[name for name in _TOKEN_INPUTS if self._is_row_of_tokens(name)])
        if length is not None and not self._has_mask and not pads_to_limit:
            raise self.unsupported(
                f"takes texts of exactly {length} tokens and no attention_mask, so that it would take the "
                "padding of a shorter text for text: export it with an attention_mask, or for any length"
            )
        if length is not None and config.max_length is not None and config.max_length > length:
            raise OptionError(
                f"max_length={config.max_length} is more than the {length} tokens that the graph was made for"
            )
        self.tokenizer: TextTokenizer = tokenizer if length is None else tokenizer.limited(length - markers)
        if has_past(self.session) and not self._pools_by_itself:
            # Wherever the mask has it, onnxruntime's attention with a past takes padding for what is behind a text;
            # there no token of the text sees it.
            self.tokenizer = self.tokenizer.padding_behind()
        self.fixed_length: int | None = self.tokenizer.limit if length is None and pads_to_limit else length
        self.info: ModelInfo = replace(
            self.info,
            max_length=self.tokenizer.limit + markers,
            special_tokens=self.tokenizer.special_tokens() + markers,
        )
        if not self.session.runs_on_cpu and not extra_inputs and self.planner.is_open:
            self._measure(config)

    def _measure(self, config: EncoderConfig) -> None:
        """Learn what runs cost on what has come up here, and how large they are worth making."""
        length = self.fixed_length or min(_MEASURED_LENGTH, self.tokenizer.limit)
        try:
            self._seconds(length, 1)  # which makes ready what is needed once
            if self._seconds(length, 2, runs=1) > _COMPILING_SECONDS:
                return
            cost = measure_runs(partial(self._seconds, length), length, self.planner.max_tokens)
        except Exception:  # noqa: BLE001 (a graph that does not run says so with its first batch)
            return
        self.planner = replace(self.planner, run_overhead_tokens=cost.overhead_tokens if self._bears_padding else 0)
        if config.accelerated_batch_tokens is not None:
            self.info = replace(self.info, max_batch_tokens=cost.max_tokens)
            self.planner = replace(self.planner, max_tokens=min(self.planner.max_tokens, cost.max_tokens))

    def _seconds(self, length: int, count: int, runs: int = 3) -> float:
        """How long a run of so many texts of that length takes: the shortest of several."""
        some = self.tokenizer.ids_within("the way")[:1] or [self.tokenizer.pad_id]
        ids = np.full((count, length), some[0], dtype=np.int64)
        seconds = []
        for _ in range(runs):
            started = perf_counter()
            self.run_text(ids, np.ones_like(ids))
            seconds.append(perf_counter() - started)
        return min(seconds)  # the first one of a shape chooses how to compute, and takes memory

    def runs(self, texts: Sequence[Ids], *, max_size: int | None = None) -> list[TextRun]:
        """Put texts, given as their token ids, into runs of at most `max_size` texts."""
        lengths = [self.fixed_length or len(ids) for ids in texts]
        runs = []
        for run in self.planner.plan(lengths, max_size=max_size):
            # Else no padding may be put in, not even up to a round number of tokens.
            length = self.fixed_length or (None if self._bears_padding else run.length)
            runs.append(TextRun(run.rows, *self.tokenizer.pad([texts[row] for row in run.rows], length=length)))
        return runs

    def run_text(self, ids: IntArray, mask: IntArray, **extra: Array) -> Array:
        """The chosen output for `ids` and `mask`, both (batch, tokens); token types are zeros."""
        return self.run({**self.feeds(ids, mask), **extra})

    def feeds(self, ids: IntArray, mask: IntArray) -> dict[str, Array]:
        """What the graph takes for them."""
        feeds: dict[str, Array] = {"input_ids": ids}
        if self._has_mask:
            feeds["attention_mask"] = mask
        return feeds | {name: filler(ids, mask) for name, filler in self._fillers.items()}

    def _made_up(self, names: Sequence[str], config: EncoderConfig) -> Mapping[str, Filler]:
        """What makes up those of the inputs `names` that are neither ids nor mask."""
        fillers: dict[str, Filler] = {}
        for name in names:
            if name in ("input_ids", "attention_mask"):
                continue
            filler = filler_of(name, self.session, config.directory / config.spec.folder)
            if filler is None:
                shape = ", ".join("any" if size is None else str(size) for size in self.session.input_shape(name))
                raise self.unsupported(
                    f"takes the input {name} of the shape ({shape}), and neither it nor config.json says what that is "
                    "for a text alone"
                )
            fillers[name] = filler
        return fillers

    def _is_row_of_tokens(self, name: str) -> bool:
        return name in self.session.input_names and len(self.session.input_shape(name)) == 2

    @property
    def _bears_padding(self) -> bool:
        """Whether padding changes nothing.

        Without a mask it is taken for text. A graph with a past that pools by itself may want the end of a text at the
        last place, where its attention may take padding before a text for text.
        """
        return self._has_mask and not (has_past(self.session) and self._pools_by_itself)

    @property
    def _pools_by_itself(self) -> bool:
        return len(self.session.output_shape(self.output)) == 2

    @property
    def _has_mask(self) -> bool:
        return "attention_mask" in self.session.input_names

    def _run_overhead(self) -> int:
        # Inputs then share a run only if they are equally long, as only padding could make up for the cost of a run.
        return super()._run_overhead() if self._bears_padding else 0
