"""A graph under construction in 8 bits: its linear maps and its word table; all else stays float.

What is hard to quantise in the activations is found out once, by running the float graph over random tokens: they give
the same ranges as real texts do.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from asyncembed.errors import ModelLoadError
from asyncembed.export.onnx_builder import FLOAT, Graph
from asyncembed.export.quantized import (
    FloatArray,
    Rows8,
    Weights8,
    pair_safe,
    product,
    quantized_rows,
    quantized_table,
    smoothing,
)
from asyncembed.runtime.onnx_file import BY_ROW
from asyncembed.runtime.session import Array, SessionOptions, open_session

SEQUENCES, TOKENS = 32, 64
"""Random texts, and the length of each."""

TOKENIZER_FILE = "tokenizer.json"

_SEED = 18
_LARGEST = "largest "


@dataclass(frozen=True, slots=True)
class Frame:
    """What may stand in a text: ids up to `words`, between those `before` and `after`, at most `tokens` in all."""

    words: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    tokens: int = TOKENS


def frame_of(directory: Path, *, words: int, config: Mapping[str, Any]) -> Frame:
    """The frame of a model's texts: what its tokenizer puts around one. Blocks."""
    positions = config.get("max_position_embeddings")
    # Some architectures have two positions more than tokens.
    tokens = max(1, positions - 2) if type(positions) is int else TOKENS
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        return Frame(words, tokens=tokens)
    from tokenizers import Tokenizer

    try:
        read = Tokenizer.from_file(str(path))
        read.no_padding()
        read.no_truncation()
        none, some = (read.encode(text).ids for text in ("", "a"))
    except Exception:  # noqa: BLE001 (tokenizers raises nothing narrower; what it cannot read is told when it is used)
        return Frame(words, tokens=tokens)
    before = next((i for i, (a, b) in enumerate(zip(none, some, strict=False)) if a != b), len(none))
    return Frame(words, tuple(none[:before]), tuple(none[before:]), tokens)


def watch_activations(graph: Graph, *, last: int) -> None:
    """Have a graph also give the greatest absolute values of each channel that `quantize` smoothes."""
    for value, weights in _read_by_maps(graph, last).items():
        if graph.floor_of(value) is None:
            largest = graph.node("ReduceMax", graph.node("Abs", value), axes=[0], keepdims=0)
            graph.output(largest, f"{_LARGEST}{value}", [weights[0].inputs])


def activations(graph: Path, frame: Frame) -> dict[str, FloatArray]:
    """Those values, by the names of what has the channels: the graph runs over random texts. Blocks.

    Raises:
        ModelLoadError: The graph cannot be run, or gives NaN or infinity.
    """
    session = open_session(graph, SessionOptions(device="cpu"))
    names = [name for name in session.output_names if name.startswith(_LARGEST)]
    random = np.random.default_rng(_SEED)
    found: dict[str, FloatArray] = {}
    count = max(1, min(TOKENS, frame.tokens) - len(frame.before) - len(frame.after))
    for _ in range(SEQUENCES):
        ids = np.array([[*frame.before, *random.integers(0, frame.words, count), *frame.after]])
        inputs = {name: np.zeros_like(ids) for name in session.input_names}
        inputs |= {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        try:
            results = session.run(names, inputs)
        except Exception as error:
            raise ModelLoadError(f"the weights cannot be quantised, as the float graph fails: {error}") from error
        for name, largest in zip(names, results, strict=True):
            if not np.isfinite(largest).all():
                raise ModelLoadError("the weights cannot be quantised: they give NaN or infinity for random tokens")
            value = name.removeprefix(_LARGEST)
            found[value] = np.maximum(found.get(value, np.float32(0)), largest)
    return found


def quantize(graph: Graph, largest: Mapping[str, FloatArray], *, last: int) -> None:
    """Bring the linear maps among the first `last` nodes, and the word table, to 8 bits.

    `largest` is what `activations` has found in a graph of the same nodes. Each weight is computed when it is written.
    """
    smoothed = _smoothed(largest, _read_by_maps(graph, last))
    rows: dict[str, Rows8] = {}

    def replace(operator: str, inputs: Sequence[str]) -> str | None:
        read = graph.reader_of(inputs[1]) if operator == "Gemm" else None
        if read is None:
            return _table(graph, *inputs) if operator == "Gather" and inputs[1] == "input_ids" else None
        value, smooth, floor = inputs[0], smoothed.get(inputs[0]), graph.floor_of(inputs[0])
        if value not in rows:
            divisor = None
            if smooth is not None:
                divisor = graph.weight(f"{smooth.name}.divisor", (smooth.channels,), smooth.divisor)
            rows[value] = quantized_rows(graph, value, floor=floor, divisor=divisor)
        return _product(graph, rows[value], inputs[1:], _Map(inputs[1], *read), smooth, floor)

    graph.rewrite(replace, last=last)
    graph.metadata[BY_ROW] = "1"


@dataclass(frozen=True, slots=True)
class _Map:
    """The weight of a linear map, (N, K)."""

    name: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Array]]

    @property
    def inputs(self) -> int:
        return self.shape[1]

    def read(self) -> FloatArray:
        return np.concatenate([np.asarray(block, np.float32) for block in self.blocks()])


class _Smoothing:
    """What the channels of some values, called `name`, are divided by, and their weights are multiplied with."""

    def __init__(self, name: str, largest: FloatArray, maps: Sequence[_Map]) -> None:
        self.name, self._largest, self._maps = name, largest, maps
        self.channels = len(largest)

    @cached_property
    def factor(self) -> FloatArray:
        return smoothing(self._largest, (each.read() for each in self._maps))

    def divisor(self) -> FloatArray:
        return np.reciprocal(self.factor)


def _smoothed(largest: Mapping[str, FloatArray], read: Mapping[str, Sequence[_Map]]) -> dict[str, _Smoothing]:
    """How each value is smoothed: alike where layers share their weights, which are stored once then."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for value, maps in read.items():
        if value in largest:
            alike.setdefault(tuple(each.name for each in maps), []).append(value)
    found: dict[str, _Smoothing] = {}
    for values in alike.values():
        greatest = np.maximum.reduce([largest[value] for value in values])
        found |= dict.fromkeys(values, _Smoothing(values[0], greatest, read[values[0]]))
    return found


def _read_by_maps(graph: Graph, last: int) -> dict[str, list[_Map]]:
    """What the linear maps among the first nodes read, each with their weights."""
    found: dict[str, list[_Map]] = {}

    def look(operator: str, inputs: Sequence[str]) -> None:
        if operator == "Gemm" and (read := graph.reader_of(inputs[1])):
            found.setdefault(inputs[0], []).append(_Map(inputs[1], *read))

    graph.rewrite(look, last=last)
    return found


def _product(
    graph: Graph, rows: Rows8, weight: Sequence[str], map_: _Map, smooth: _Smoothing | None, floor: float | None
) -> str:
    """A linear map in 8 bits; `weight` are the names of its weight and, where it has one, its bias."""
    made: list[Weights8] = []
    bias = graph.reader_of(weight[1]) if len(weight) > 1 else None

    def values() -> Array:
        read = map_.read()
        made.append(pair_safe(read if smooth is None else read * smooth.factor))
        return made[0].values

    def shift() -> Array:
        given = None if bias is None else _Map(weight[1], *bias).read()
        return made.pop().bias(given, floor=floor)

    outputs, inputs = map_.shape
    # What reads a weight says how it is smoothed, so that one that is smoothed in several ways is made for each.
    name = f"{weight[0]} of {floor if smooth is None else smooth.name}"
    # In the order in which they are written: the bias is the last that needs what was made.
    names = (
        graph.weight(f"{name}.int8", (inputs, outputs), values, dtype="i1"),
        graph.weight(f"{name}.scale", (outputs,), lambda: made[0].scale),
        graph.weight(f"{name}.shift", (outputs,), shift),
    )
    return product(graph, rows, *names)


def _table(graph: Graph, table: str, ids: str) -> str | None:
    """Rows of a table in 8 bits; None where it is no weight."""
    read = graph.reader_of(table)
    if read is None:
        return None
    count, width = read[0]
    scales: list[FloatArray] = []

    def values() -> Iterable[Array]:
        for block in read[1]():
            integers, scale = quantized_table(np.asarray(block, np.float32))
            scales.append(scale)
            yield integers

    integers = graph.weight_in_blocks(f"{table}.int8", (count, width), values, dtype="i1")
    scale = graph.weight(f"{table}.scale", (count, 1), lambda: np.concatenate(scales))
    wide = graph.node("Cast", graph.node("Gather", integers, ids), to=FLOAT)
    return graph.node("Mul", wide, graph.node("Gather", scale, ids))
