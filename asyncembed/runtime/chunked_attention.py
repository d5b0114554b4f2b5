"""The attention of long texts in chunks of queries, in graphs that others have exported.

The scores of a text grow with the square of its length, and an exported graph holds all of them at once, several times.
Where attention is recognised in the graph as onnxruntime has optimised it, a long text is computed in chunks instead,
one after the other: the same nodes on fewer rows, in a branch that its length alone chooses. The other branch holds the
nodes that were there. What is recognised is tried beside what was there, and is kept if the numbers are equal bit for
bit; all else is left as it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asyncembed.runtime.onnx import open_as_it_is, save_optimized
from asyncembed.runtime.onnx_graph import Node, OnnxGraph, branch, tensor_inside
from asyncembed.runtime.session import Array

LONGEST_WHOLE = 511
"""Tokens up to which all scores are computed at once."""

_CHUNKS = 16

_OLDEST_OPSET = 10  # whose Slice takes its ends as inputs

# What they give for a query is made of what they take for it, in the same way whatever else is computed. That is not so
# of sums of rows: half precision, whose softmax onnxruntime takes apart, is left alone.
_BY_ROWS = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Cast", "IsNaN", "Softmax"})
_PRODUCTS = frozenset({("", "MatMul"), ("com.microsoft", "FusedMatMul")})
_MOST_BETWEEN = 16
_TRANSPOSES_QUERIES = ("transA", "transBatchA", "transBatchB")

# Batches to look at shapes with, as (texts, tokens): two of them, so that a length is told from a size.
_SHORT_BATCHES = ((2, 17), (3, 23))
# Long ones: the last chunk has more queries than the others, and the second text ends sooner.
_LONG_BATCH = (2, 529)

_PREFIX = "asyncembed/attention/"

_INTEGERS: Mapping[str, type[np.int64 | np.int32]] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}

_Shape = tuple[int, ...]
_Probe = tuple[int, Mapping[str, _Shape]]

_NOWHERE = -1


class _NotRecognisedError(Exception):
    """Why a graph is left as it is."""


@dataclass(frozen=True, slots=True)
class _Attention:
    """One attention: whatever reads the scores is a part of it.

    Attributes:
        scores: The product of queries and keys.
        between: What comes between it and the last product, in the order of the graph: the softmax, and more.
        mixed: The product of the probabilities and the values.
        sides: What else is read between: masks, biases, constants.
    """

    scores: Node
    between: tuple[Node, ...]
    mixed: Node
    sides: tuple[str, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.scores, *self.between, self.mixed)

    @property
    def query(self) -> str:
        return self.scores.inputs[0]


@dataclass(frozen=True, slots=True)
class _Recognised:
    """Attention that can be cut: the axis of its queries, and that of each value between which has one."""

    attention: _Attention
    axis: int
    axes: Mapping[str, int]


def save_with_chunks(source: Path, graph: Path, data_name: str) -> str | None:
    """Do as `save_optimized`, and put long texts' attention into chunks; what is to be said of that, if anything.

    Raises:
        ModelLoadError: The source cannot be loaded, or its optimised form not be written.
    """
    save_optimized(source, graph, data_name)
    rewritten = graph.with_name("rewritten.onnx")
    try:
        count = _rewrite(graph, rewritten)
        if count:
            rewritten.replace(graph)
    except Exception as error:  # noqa: BLE001 (whatever is odd about a stranger's graph, it stays as it is)
        return f"the scores of long texts are computed all at once: {' '.join(str(error).split())}"
    finally:
        rewritten.unlink(missing_ok=True)
    return f"texts of more than {LONGEST_WHOLE} tokens are computed in chunks of queries" if count else None


def _rewrite(path: Path, rewritten: Path) -> int:
    """Write the graph at `path` with its attention in chunks, and see that it computes the same.

    How many there are: 0 where it takes no long texts, or is no graph of a text encoder.
    """
    session = open_as_it_is(path)
    expected = _computed(session, _LONG_BATCH)
    if expected is None:
        return 0
    graph = OnnxGraph(path)
    found = list(_attentions(graph)) if graph.opset >= _OLDEST_OPSET else []
    probes = [_shapes(graph, found, rewritten, batch) for batch in _SHORT_BATCHES]
    recognised = [known for each in found if (known := _recognised(each, graph, probes)) is not None]
    if not recognised:
        raise _NotRecognisedError("no attention of the usual form is found")
    graph.write(rewritten, nodes=_with_branches(graph, recognised), tensors=_CONSTANTS)
    other = open_as_it_is(rewritten)
    for batch in (*_SHORT_BATCHES, _LONG_BATCH):
        plain = expected if batch == _LONG_BATCH else _computed(session, batch)
        if not _are_equal(plain, _computed(other, batch)):
            raise _NotRecognisedError("in chunks its numbers are others")
    return len(recognised)


def _attentions(graph: OnnxGraph) -> Iterator[_Attention]:
    """What looks like attention, by the names of operators and by what is read where."""
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.reads:
            readers.setdefault(name, []).append(node)
    for node in graph.nodes:
        if _is_product(node):
            found = _attention(node, graph, readers)
            if found is not None:
                yield found


def _attention(scores: Node, graph: OnnxGraph, readers: Mapping[str, Sequence[Node]]) -> _Attention | None:
    """The attention of which `scores` is the product of queries and keys: all that is made of them, up to one more."""
    mixed: Node | None = None
    between: dict[int, Node] = {}
    values = [*scores.outputs]
    while values:
        value = values.pop()
        for node in readers.get(value, ()):
            if _is_product(node) and node.inputs[0] == value and mixed in (None, node):
                mixed = node
            elif node.domain == "" and node.operator in _BY_ROWS and len(between) < _MOST_BETWEEN:
                values += node.outputs if id(node) not in between else ()
                between[id(node)] = node
            else:
                return None
    in_order = tuple(node for node in graph.nodes if id(node) in between)
    inner = {name for node in (scores, *in_order) for name in node.outputs}
    if mixed is None or inner.intersection((*graph.outputs, mixed.inputs[1])):
        return None
    if not any(node.operator == "Softmax" for node in in_order):
        return None
    sides = dict.fromkeys(name for node in in_order for name in node.inputs if name not in inner)
    return _Attention(scores, in_order, mixed, tuple(sides))


def _is_product(node: Node) -> bool:
    is_plain = not any(node.numbers.get(name) for name in _TRANSPOSES_QUERIES)
    return (node.domain, node.operator) in _PRODUCTS and len(node.inputs) == 2 and is_plain


def _shapes(graph: OnnxGraph, found: Sequence[_Attention], beside: Path, batch: tuple[int, int]) -> _Probe:
    """The tokens of a batch, and the shapes of what attention reads and gives in it."""
    names = {name for each in found for node in each.nodes for name in (*node.inputs, *node.outputs)}
    graph.write(beside, outputs=sorted(names.difference(graph.tensors, graph.outputs)))
    session = open_as_it_is(beside)
    values = _computed(session, batch)
    if values is None:
        raise _NotRecognisedError(f"it takes no texts of {batch[1]} tokens")
    shapes = {output.name: value.shape for output, value in zip(session.get_outputs(), values, strict=True)}
    return batch[1], {name: tensor.shape for name, tensor in graph.tensors.items()} | shapes


def _recognised(found: _Attention, graph: OnnxGraph, probes: Sequence[_Probe]) -> _Recognised | None:
    """What is cut, if all values have the shapes that attention has."""
    rank = len(probes[0][1][found.query])
    usual = -1 if graph.opset >= 13 else 1
    axes_of_softmax = {node.numbers.get("axis", usual) for node in found.between if node.operator == "Softmax"}
    if rank < 2 or not axes_of_softmax <= {-1, rank - 1}:
        return None
    for tokens, shapes in probes:
        inner = {shapes[name] for node in (found.scores, *found.between) for name in node.outputs}
        ends = {shapes[found.query], *inner, shapes[found.mixed.outputs[0]]}
        if len(inner) != 1 or any(len(shape) != rank or shape[-2] != tokens for shape in ends):
            return None
    places = {
        name: {_place_of_queries(shapes[name], rank, tokens) for tokens, shapes in probes} for name in found.sides
    }
    if any(len(each) != 1 or _NOWHERE in each for each in places.values()):
        return None
    axes = {name: place for name, (place,) in places.items() if place is not None}
    return _Recognised(found, rank - 2, axes)


def _place_of_queries(shape: _Shape, rank: int, tokens: int) -> int | None:
    """The axis at which a value has something for each query; None: it is one for all of them."""
    if len(shape) < 2 or shape[-2] == 1:
        return None if len(shape) <= rank else _NOWHERE
    return len(shape) - 2 if shape[-2] == tokens and len(shape) <= rank else _NOWHERE


def _with_branches(graph: OnnxGraph, recognised: Sequence[_Recognised]) -> list[Node]:
    """All nodes, with a branch in the place of each attention."""
    if any(
        name.startswith(_PREFIX) for name in (*graph.tensors, *(name for node in graph.nodes for name in node.reads))
    ):
        raise _NotRecognisedError("it has such names as ours")
    last = {id(each.attention.mixed): (f"{_PREFIX}{i}/", each) for i, each in enumerate(recognised)}
    moved = {id(node) for each in recognised for node in each.attention.nodes}
    nodes: list[Node] = []
    for node in graph.nodes:
        if id(node) in last:
            nodes += _choice(*last[id(node)])
        elif id(node) not in moved:
            nodes.append(node)
    return nodes


def _choice(at: str, known: _Recognised) -> list[Node]:
    """What takes the place of an attention: its own nodes, or those in chunks, by the number of its queries."""
    attention, mixed = known.attention, known.attention.mixed
    shape, tokens, is_long, whole = (at + name for name in ("shape", "tokens", "is_long", "whole"))
    nodes = [*attention.nodes[:-1], mixed.renamed(mixed.inputs, [whole])]
    return [
        Node.make("Shape", [attention.query], [shape]),
        Node.make("Gather", [shape, _constant(known.axis)], [tokens]),
        Node.make("Greater", [tokens, _constant(LONGEST_WHOLE)], [is_long]),
        Node.make(
            "If",
            [is_long],
            mixed.outputs,
            then_branch=branch(at + "long", list(_in_chunks(at, tokens, known)), [at + "together"]),
            else_branch=branch(at + "short", nodes, [whole]),
        ),
    ]


def _in_chunks(at: str, tokens: str, known: _Recognised) -> Iterator[Node]:
    """The nodes of an attention once for each chunk of queries: equally many, and in the last one the rest."""
    attention, usual, done = known.attention, at + "usual", []
    yield Node.make("Div", [tokens, _constant(_CHUNKS)], [usual])
    for i in range(_CHUNKS):
        here = f"{at}{i}/"
        start, stop = here + "start", here + "stop" if i < _CHUNKS - 1 else tokens
        yield Node.make("Mul", [usual, _constant(i)], [start])
        if stop != tokens:
            yield Node.make("Mul", [usual, _constant(i + 1)], [stop])
        yield Node.make("Slice", [attention.query, start, stop, _constant(known.axis)], [here + "query"])
        names = {name: here + name for node in attention.nodes for name in node.outputs}
        for name, axis in known.axes.items():
            names[name] = f"{here}of/{name}"
            yield Node.make("Slice", [name, start, stop, _constant(axis)], [names[name]])
        first, *between, mixed = attention.nodes
        yield first.renamed([here + "query", first.inputs[1]], [names[first.outputs[0]]])
        for node in between:
            yield node.renamed([names.get(name, name) for name in node.inputs], [names[node.outputs[0]]])
        done.append(names[mixed.outputs[0]])
        yield mixed.renamed([names[mixed.inputs[0]], mixed.inputs[1]], done[-1:])
    yield Node.make("Concat", done, [at + "together"], axis=known.axis)


def _constant(value: int) -> str:
    """The name of a number that the branches count with."""
    return f"{_PREFIX}{value}"


_CONSTANTS = [
    tensor_inside(_constant(value), np.array([value], np.int64)) for value in (*range(_CHUNKS + 1), LONGEST_WHOLE)
]


def _computed(session: Any, batch: tuple[int, int]) -> list[Array] | None:
    """All outputs for texts of the size (texts, tokens), of which the last is padded; None: it does not take them."""
    count, tokens = batch
    mask = np.ones(batch, np.int64)
    mask[-1, tokens * 3 // 4 :] = 0
    values = {
        "input_ids": np.random.default_rng(0).integers(5, 100, batch) * mask,
        "attention_mask": mask,
        "token_type_ids": np.zeros(batch, np.int64),
        "position_ids": np.tile(np.arange(tokens), (count, 1)),
    }
    inputs = session.get_inputs()
    if not all(value.name in values and value.type in _INTEGERS for value in inputs):
        return None
    feeds = {value.name: values[value.name].astype(_INTEGERS[value.type]) for value in inputs}
    try:
        return list(session.run(None, feeds))
    except Exception:  # noqa: BLE001 (onnxruntime raises several of its own)
        return None


def _are_equal(some: Sequence[Array] | None, others: Sequence[Array] | None) -> bool:
    if some is None or others is None:
        return False
    return all(a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in zip(some, others, strict=True))
