"""Attention: which keys a query sees, and softmax(query · keyᵀ · scale + bias) · value, in chunks for long texts.

The scores of a text grow with the square of its length. A text of more than `LONGEST_WHOLE` tokens is therefore
computed in chunks of queries, one after the other: the same operators on fewer rows, so that where every query sees
every key the result is equal bit for bit. Its length in the padded batch alone decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from asyncembed.export.construction import Construction
from asyncembed.export.onnx_builder import FLOAT, Graph

LONGEST_WHOLE = 511
"""Tokens up to which all scores are computed at once."""

_CHUNKS = 16

# Added to the scores of what is not seen. The lowest float32: its exponential is exactly 0, whereas the customary
# -10000 can lose against large scores, and -inf gives NaN in a row that sees nothing.
_MASKED = float(np.finfo(np.float32).min)


@dataclass(frozen=True, slots=True)
class Rows:
    """Some queries, from `start` to before `stop`, and the keys `first` to before `last`; each a value, int64 (1,)."""

    start: str
    stop: str
    first: str
    last: str


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a query sees, in tokens.

    Attributes:
        before, after: The farthest key before and after it; None: all of them.
    """

    before: int | None = None
    after: int | None = None

    @property
    def is_bounded(self) -> bool:
        return self.before is not None or self.after is not None


class Favour(Protocol):
    """What a layer adds to query · key, before the division, for reasons of its own."""

    def whole(self, query: str, key: str) -> str:
        """For all tokens: broadcasts to (batch, heads, queries, keys)."""

    def chunks(self, queries: Sequence[str], key: str) -> Sequence[str]:
        """For the queries of each chunk and all keys."""


EVERYTHING = Reach()
CAUSAL = Reach(after=0)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the layers of one kind see, as values of the graph.

    Attributes:
        is_long: Whether the text is computed in chunks, a boolean scalar; None: it never is.
        whole: What is added to the scores when all are computed at once; broadcasts to (batch, heads, tokens, tokens).
        sizes: How many queries each chunk has, int64 (chunks,).
        chunks: The same for each chunk, to (batch, heads, queries, keys).
        keys: The first key of a chunk and the one after the last; empty: each chunk sees all.
    """

    whole: str
    is_long: str | None = None
    sizes: str = ""
    chunks: tuple[str, ...] = ()
    keys: tuple[tuple[str, str], ...] = ()


def hidden_padding(c: Construction) -> str:
    """What hides padding, added to scores: float32 (batch, 1, 1, tokens)."""
    graph = c.graph
    wide = graph.node("Cast", graph.node("Unsqueeze", c.mask, graph.constant([1, 2])), to=FLOAT)
    return graph.node("Mul", graph.node("Sub", graph.constant(1.0), wide), graph.constant(_MASKED))


def seen(c: Construction, reach: Reach = EVERYTHING) -> Seen:
    """What hides padding and what is out of `reach`, once for all layers that see alike."""
    graph, padding = c.graph, hidden_padding(c)

    def added(rows: Rows | None) -> str:
        hidden = padding if rows is None else graph.node("Slice", padding, rows.first, rows.last, graph.constant([3]))
        return graph.node("Add", _out_of_reach(c, reach, rows), hidden) if reach.is_bounded else hidden

    if not c.in_chunks:
        return Seen(added(None))
    is_long = graph.node("Greater", graph.node("Squeeze", c.tokens), graph.constant(LONGEST_WHOLE))
    usual = graph.node("Div", c.tokens, graph.constant([_CHUNKS]))
    rest = graph.node("Sub", c.tokens, graph.node("Mul", usual, graph.constant([_CHUNKS - 1])))
    sizes = graph.node("Concat", *[usual] * (_CHUNKS - 1), rest, axis=0)
    if not reach.is_bounded:
        return Seen(padding, is_long, sizes, (padding,) * _CHUNKS)
    nothing, nowhere = graph.constant([[[[0.0]]]]), graph.constant([0])

    def long() -> list[str]:
        rows = [_rows_of(c, reach, usual, i) for i in range(_CHUNKS)]
        return [nothing, *map(added, rows), *(end for each in rows for end in (each.first, each.last))]

    def short() -> list[str]:
        return [added(None), *[nothing] * _CHUNKS, *[nowhere] * (2 * _CHUNKS)]

    whole, *others = graph.choose(is_long, long, short)
    chunks, ends = others[:_CHUNKS], others[_CHUNKS:]
    return Seen(whole, is_long, sizes, tuple(chunks), tuple(zip(ends[::2], ends[1::2], strict=True)))


def rows_of_chunks(c: Construction) -> list[Rows]:
    """The queries of each chunk of a long text, with all keys."""
    usual = c.graph.node("Div", c.tokens, c.graph.constant([_CHUNKS]))
    return [_rows_of(c, EVERYTHING, usual, i) for i in range(_CHUNKS)]


def _rows_of(c: Construction, reach: Reach, usual: str, i: int) -> Rows:
    """The queries of chunk `i`, and the keys that they see."""
    graph = c.graph
    start = graph.node("Mul", usual, graph.constant([i]))
    stop = graph.node("Mul", usual, graph.constant([i + 1])) if i < _CHUNKS - 1 else c.tokens
    first, last = graph.constant([0]), c.tokens
    if reach.before is not None:
        first = graph.node("Max", first, graph.node("Sub", start, graph.constant([reach.before])))
    if reach.after is not None:
        last = graph.node("Min", last, graph.node("Add", stop, graph.constant([reach.after])))
    return Rows(start, stop, first, last)


def _out_of_reach(c: Construction, reach: Reach, rows: Rows | None) -> str:
    """What hides the keys that a query does not see: float32 (queries, keys)."""
    graph = c.graph
    distance = distances(c, rows)  # key's position minus query's
    hidden = []
    if reach.before is not None:
        hidden.append(graph.node("Less", distance, graph.constant(-reach.before)))
    if reach.after is not None:
        hidden.append(graph.node("Greater", distance, graph.constant(reach.after)))
    either = hidden[0] if len(hidden) == 1 else graph.node("Or", *hidden)
    return graph.node("Mul", graph.node("Cast", either, to=FLOAT), graph.constant(_MASKED))


def distances(c: Construction, rows: Rows | None) -> str:
    """The position of each key minus that of each query: int64 (queries, keys)."""
    graph = c.graph
    zero = graph.constant([0])
    queries = _range(graph, zero, c.tokens) if rows is None else _range(graph, rows.start, rows.stop)
    keys = queries if rows is None else _range(graph, rows.first, rows.last)
    return graph.node("Sub", keys, graph.node("Unsqueeze", queries, graph.constant([1])))


def _range(graph: Graph, start: str, stop: str) -> str:
    axis = graph.constant([0])
    return graph.node("Range", graph.node("Squeeze", start, axis), graph.node("Squeeze", stop, axis), graph.constant(1))


def repeated(c: Construction, heads: str, count: int, times: int) -> str:
    """Heads of keys or values, (batch, count, a, b), each `times` times in place: (batch, count · times, a, b)."""
    if times == 1:
        return heads
    graph = c.graph
    shape = graph.node("Shape", heads)
    batch, rest = (graph.node("Slice", shape, *map(graph.constant, ends)) for ends in (([0], [1]), ([2], [4])))
    wide = graph.node("Concat", batch, graph.constant([count, times]), rest, axis=0)
    flat = graph.node("Concat", batch, graph.constant([count * times]), rest, axis=0)
    apart = graph.node("Unsqueeze", heads, graph.constant([2]))
    return graph.node("Reshape", graph.node("Expand", apart, wide), flat)


def attention(
    c: Construction,
    query: str,
    key: str,
    value: str,
    *,
    seen: Seen,
    divisor: float,
    width: int,
    favour: Favour | None = None,
) -> str:
    """Compute softmax((query · key + what is favoured) / divisor + what hides) · value.

    `query` and `value` are (batch, heads, tokens, size), `key` is (batch, heads, size, tokens), the result is flat:
    (batch · tokens, width), where width is heads times size. Only where every query sees every key may some be
    favoured.
    """
    graph, root = c.graph, c.graph.constant(divisor)
    assert favour is None or not seen.keys, "a chunk that sees some keys would be favoured for all"

    def rows(query: str, key: str, value: str, hidden: str, favoured: str | None) -> str:
        products = graph.node("MatMul", query, key)
        if favoured is not None:
            products = graph.node("Add", products, favoured)
        scores = graph.node("Div", products, root)
        return graph.node("MatMul", graph.node("Softmax", graph.node("Add", scores, hidden), axis=-1), value)

    def whole() -> list[str]:
        return [rows(query, key, value, seen.whole, None if favour is None else favour.whole(query, key))]

    def in_chunks() -> list[str]:
        done, queries = [], graph.split(query, seen.sizes, _CHUNKS, axis=2)
        favoured = [None] * _CHUNKS if favour is None else favour.chunks(queries, key)
        for i, chunk in enumerate(queries):
            keys, values = key, value
            if seen.keys:
                keys = graph.node("Slice", key, *seen.keys[i], graph.constant([3]))
                values = graph.node("Slice", value, *seen.keys[i], graph.constant([2]))
            done.append(rows(chunk, keys, values, seen.chunks[i], favoured[i]))
        return [graph.node("Concat", *done, axis=2)]

    context = whole()[0] if seen.is_long is None else graph.choose(seen.is_long, in_chunks, whole)[0]
    return graph.node("Reshape", graph.node("Transpose", context, perm=[0, 2, 1, 3]), graph.constant([-1, width]))
