"""The graph of DeBERTa's second and third generation: layers like BERT's, whose scores also depend on distances.

A score adds to query · key what the query says to their distance and what the key says to it (He et al. 2021, sections
3 and 4). Distances fall into buckets, each with an embedding that all layers share; a layer's linear maps make keys
and queries of it, here once, when the graph is written. Names and defaults are those of the `transformers` library.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from asyncembed.export.attention import Rows, Seen, attention, distances, rows_of_chunks, seen
from asyncembed.export.blocks import ACTIVATIONS, layer_norm, linear, norm_names
from asyncembed.export.construction import Construction, Weights
from asyncembed.export.heads import Classifier, HeadBuilder, HeadName, Vocabulary
from asyncembed.export.objections import activation_objections, eps_objections, size_objections
from asyncembed.export.onnx_builder import FLOAT
from asyncembed.repo_files import quoted
from asyncembed.runtime.session import Array

_WORDS = "embeddings.word_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"
_DISTANCES = "encoder.rel_embeddings.weight"

# What a score may consist of beside query · key: "c2p", query · distance, and "p2c", key · distance.
_TERMS = ("c2p", "p2c")


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What config.json says; all other sizes are those of the tensors.

    Attributes:
        terms: Those of the scores that depend on distances.
        buckets: How many there are for one direction; None: a distance each.
        farthest: The distance from which on all are the same.
        shares_maps: Whether a layer's own maps of queries and keys are those of distances, too.
        normalises_distances: Whether the embeddings of distances pass through a layer norm.
    """

    layers: int
    heads: int
    hidden: int
    activation: str
    eps: float
    terms: tuple[str, ...]
    is_relative: bool
    buckets: int | None
    farthest: int
    shares_maps: bool
    normalises_distances: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "_Sizes":
        buckets, farthest = config.get("position_buckets", -1), config.get("max_relative_positions", -1)
        return cls(
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            hidden=config["hidden_size"],
            activation=config.get("hidden_act", "gelu"),
            eps=_eps(config),
            terms=_terms(config),
            is_relative=bool(config.get("relative_attention", False)),
            buckets=buckets if buckets > 0 else None,
            farthest=farthest if farthest > 0 else config.get("max_position_embeddings", 512),
            shares_maps=bool(config.get("share_att_key", False)),
            normalises_distances="layer_norm" in _parts(config.get("norm_rel_ebd")),
        )

    @property
    def size(self) -> int:
        """Of a head."""
        return self.hidden // self.heads

    @property
    def span(self) -> int:
        """Half as many embeddings of distances as there are."""
        return self.buckets or self.farthest


class DebertaV2:
    """One architecture, of which config.json says all that varies."""

    prefixes: tuple[str, ...] = ("deberta.",)
    word_embeddings: str = _WORDS
    brings_code: bool = False

    @property
    def heads(self) -> Mapping[HeadName, HeadBuilder]:
        return {"scores": _SCORES, "words": _words}

    def width(self, config: Mapping[str, Any]) -> int:
        return int(config["hidden_size"])

    def objections(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Why the graph would not be the encoder that `config` describes. Whoever goes on after one must not."""
        yield from _size_objections(config)
        yield from _distance_objections(config)
        for key, default in (("hidden_act", "gelu"), ("pooler_hidden_act", "gelu"), ("conv_act", "tanh")):
            yield from activation_objections(key, config.get(key, default))
        if _kernel(config) and _kernel(config) % 2 == 0:
            yield f"has conv_kernel_size = {_kernel(config)}, and only odd ones are computed"

    def encode(self, c: Construction) -> str:
        """The flat hidden states after the last layer.

        Takes, if the checkpoint has more than one token type, the input `token_type_ids` (batch, tokens) as well.
        """
        sizes, visible = _Sizes.of(c.config), seen(c)
        real = c.graph.node("Cast", c.graph.node("Reshape", c.mask, c.graph.constant([-1, 1])), to=FLOAT)
        hidden = embedded = _embeddings(sizes, c, real)
        for i in range(sizes.layers):
            hidden = _layer(sizes, c, c.weights.under(f"encoder.layer.{i}."), hidden, visible)
            if i == 0 and _kernel(c.config):
                hidden = _convolution(sizes, c, embedded, hidden, real)
        return hidden


DEBERTA_V2 = DebertaV2()

_SCORES = Classifier(dense="pooler.dense", activation="gelu", activation_key="pooler_hidden_act")


def _words(c: Construction, hidden: str) -> None:
    # The later form is the original code's; the other one is that of earlier versions of transformers.
    is_later = c.config.get("legacy", True) is False
    stem = "lm_predictions.lm_head." if is_later else "cls.predictions."
    inner = stem if is_later else f"{stem}transform."
    Vocabulary(
        dense=f"{inner}dense", norm=f"{inner}LayerNorm", decoder=f"{stem}decoder", bias=f"{stem}bias",
        embeddings=_WORDS, eps=_eps(c.config),
    )(c, hidden)  # fmt: skip


# What config.json must say


def _eps(config: Mapping[str, Any]) -> float:
    return float(config.get("layer_norm_eps", 1e-7))


def _kernel(config: Mapping[str, Any]) -> int:
    """How many tokens the convolution beside the first layer sees; 0: there is none."""
    return int(config.get("conv_kernel_size") or 0)


def _parts(said: object) -> list[str]:
    """The words of a list, or of a string that has | between them."""
    parts = said.split("|") if isinstance(said, str) else said if isinstance(said, list) else []
    return [part.strip().lower() for part in parts if isinstance(part, str)]


def _terms(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(term for term in _TERMS if term in _parts(config.get("pos_att_type")))


def _size_objections(config: Mapping[str, Any]) -> Iterator[str]:
    yield from size_objections(config, "num_hidden_layers", "num_attention_heads", "hidden_size")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    if hidden % heads:
        yield f"has num_attention_heads = {heads}, which does not divide hidden_size = {hidden}"
    if config.get("attention_head_size", hidden // heads) != hidden // heads:
        yield f"has attention_head_size = {quoted(config['attention_head_size'])}, which is not hidden_size by heads"
    yield from eps_objections("layer_norm_eps", config.get("layer_norm_eps", 1e-7))
    convolution = {"conv_kernel_size": 1, "conv_groups": 1, **config}
    yield from size_objections(convolution, "conv_kernel_size", least=0, below=2**15)
    yield from size_objections(convolution, "conv_groups", below=2**15)
    if hidden % config.get("conv_groups", 1):
        yield f"has conv_groups = {config['conv_groups']}, which does not divide hidden_size = {hidden}"


def _distance_objections(config: Mapping[str, Any]) -> Iterator[str]:
    """Why what depends on distances cannot be computed."""
    if unknown := [term for term in _parts(config.get("pos_att_type")) if term not in (*_TERMS, "")]:
        yield f"has {quoted(unknown[0])} in pos_att_type, and those computed are {' and '.join(_TERMS)}"
    for key in ("position_buckets", "max_relative_positions", "max_position_embeddings"):
        if type(config.get(key, 1)) is not int or config.get(key, 1) >= 2**15:
            yield f"has no usable {key}"
    sizes = _Sizes.of(config)
    if sizes.buckets is not None and (sizes.buckets % 2 or sizes.buckets >= 2 * sizes.farthest - 2):
        yield f"has position_buckets = {sizes.buckets}, and only even numbers are computed, of fewer than all distances"


# From tokens to the first hidden state


def _embeddings(sizes: _Sizes, c: Construction, real: str) -> str:
    """The first hidden states, flat; those of padding are 0."""
    graph, weights = c.graph, c.weights
    width = weights.shape(_WORDS, (None, None))[1]
    total = graph.node("Gather", weights.take(_WORDS, (None, width)), c.ids)
    if c.config.get("position_biased_input", True):
        table = weights.take(_POSITIONS, (None, width))
        places = graph.node("Slice", table, graph.constant([0]), c.tokens, graph.constant([0]))
        total = graph.node("Add", total, places)
    if c.config.get("type_vocab_size", 0):
        types = weights.take(_TYPES, (None, width))
        several = weights.shape(_TYPES, (None, width))[0] > 1
        chosen = graph.input("token_type_ids", ["batch", "tokens"]) if several else graph.constant([0])
        total = graph.node("Add", total, graph.node("Gather", types, chosen))
    hidden = graph.node("Reshape", total, graph.constant([-1, width]))
    if width != sizes.hidden:
        hidden = linear(weights, "embeddings.embed_proj", hidden, width, sizes.hidden)
    hidden = layer_norm(weights, "embeddings.LayerNorm", hidden, sizes.hidden, eps=sizes.eps, needs_bias=True)
    return graph.node("Mul", hidden, real)


# One layer


def _layer(sizes: _Sizes, c: Construction, weights: Weights, hidden: str, visible: Seen) -> str:
    graph, width = c.graph, sizes.hidden

    def mapped(name: str, value: str, inputs: int, outputs: int) -> str:
        return linear(weights, name, value, inputs, outputs, needs_bias=True)

    def normed(name: str, value: str) -> str:
        return layer_norm(
            weights, f"{name}.LayerNorm", graph.node("Add", value, hidden), width, eps=sizes.eps, needs_bias=True
        )

    attended = _attended(sizes, c, weights.under("attention.self."), hidden, visible)
    hidden = normed("attention.output", mapped("attention.output.dense", attended, width, width))
    inner = weights.shape("intermediate.dense.weight", (None, width))[0]
    opened = ACTIVATIONS[sizes.activation](graph, mapped("intermediate.dense", hidden, width, inner))
    return normed("output", mapped("output.dense", opened, inner, width))


def _attended(sizes: _Sizes, c: Construction, weights: Weights, hidden: str, visible: Seen) -> str:
    width, count = sizes.hidden, sizes.heads

    def heads(name: str, *, transposed: bool = False) -> str:
        flat = linear(weights, f"{name}_proj", hidden, width, width, needs_bias=True)
        return c.split_heads(flat, count, sizes.size, transposed=transposed)

    return attention(
        c,
        heads("query"),
        heads("key", transposed=True),
        heads("value"),
        seen=visible,
        divisor=math.sqrt(sizes.size * (1 + len(sizes.terms))),
        width=width,
        favour=_Distances(sizes, c, weights) if sizes.is_relative and sizes.terms else None,
    )


def _convolution(sizes: _Sizes, c: Construction, embedded: str, hidden: str, real: str) -> str:
    """What follows the first layer: its result and a convolution over what it was given."""
    graph, weights, width, kernel = c.graph, c.weights.under("encoder.conv."), sizes.hidden, _kernel(c.config)
    groups, beside = c.config.get("conv_groups", 1), (kernel - 1) // 2
    weight = weights.take("conv.weight", (width, width // groups, kernel))
    channels = graph.node("Transpose", c.by_text(embedded, width), perm=[0, 2, 1])
    seen = graph.node(
        "Conv", channels, weight, weights.take("conv.bias", (width,)), group=groups, pads=[beside, beside]
    )
    flat = graph.node("Reshape", graph.node("Transpose", seen, perm=[0, 2, 1]), graph.constant([-1, width]))
    opened = ACTIVATIONS[c.config.get("conv_act", "tanh")](graph, graph.node("Mul", flat, real))
    total = graph.node("Add", hidden, opened)
    normed = layer_norm(weights, "LayerNorm", total, width, eps=sizes.eps, needs_bias=True)
    return graph.node("Mul", normed, real)


# What depends on distances


class _Distances:
    """What a layer adds to query · key for the distance between the two tokens.

    With `buckets` keys and as many queries made of the embeddings of distances, scores are products of a token's
    query (key) with those of the distance's bucket. Of a short text, a row per distance is multiplied, and since a
    distance is the same along a diagonal, cutting the flat product at another width puts every one in its place.
    Of a long text, that would be twice as many rows as tokens; there the buckets are multiplied, and looked up.
    """

    def __init__(self, sizes: _Sizes, c: Construction, weights: Weights) -> None:
        self._sizes = sizes
        self._c = c
        maps = {"c2p": ("key_proj", "pos_key_proj"), "p2c": ("query_proj", "pos_query_proj")}
        self._tables = {
            term: _table(sizes, c, weights, maps[term][0 if sizes.shares_maps else 1]) for term in sizes.terms
        }
        self._lookup = c.graph.constant([int(each) for each in distance_buckets(sizes.buckets, sizes.farthest)])

    def whole(self, query: str, key: str) -> str:
        """For all tokens: (batch, heads, queries, keys)."""
        graph, terms = self._c.graph, []
        if "c2p" in self._tables:
            terms.append(self._diagonals(query, "c2p", backwards=True))
        if "p2c" in self._tables:
            by_key = self._diagonals(graph.node("Transpose", key, perm=[0, 1, 3, 2]), "p2c", backwards=False)
            terms.append(graph.node("Transpose", by_key, perm=[0, 1, 3, 2]))
        return terms[0] if len(terms) == 1 else graph.node("Add", *terms)

    def chunks(self, queries: Sequence[str], key: str) -> list[str]:
        """The same for some of the queries after the other."""
        graph, tables = self._c.graph, self._tables
        # (batch, heads, buckets, keys)
        by_key = graph.node("MatMul", tables["p2c"], key) if "p2c" in tables else ""
        done = []
        for query, rows in zip(queries, rows_of_chunks(self._c), strict=True):
            index, terms = self._buckets(rows, query), []
            if "c2p" in tables:
                by_query = graph.node("MatMul", query, graph.node("Transpose", tables["c2p"], perm=[0, 2, 1]))
                terms.append(graph.node("GatherElements", by_query, index, axis=3))
            if "p2c" in tables:
                terms.append(graph.node("GatherElements", by_key, index, axis=2))
            done.append(terms[0] if len(terms) == 1 else graph.node("Add", *terms))
        return done

    def _diagonals(self, tokens: str, term: str, *, backwards: bool) -> str:
        """Products of each token with the table's row for its distance to each: (batch, heads, tokens, tokens)."""
        graph, c = self._c.graph, self._c
        # With one column more than there are distances, so that the flat rows can be cut one number shorter.
        columns = graph.node("Mul", c.tokens, graph.constant([2]))
        width = graph.node("Sub", columns, graph.constant([1]))
        before = graph.node("Sub", c.tokens, graph.constant([1]))
        end = graph.node("Squeeze", columns, graph.constant([0]))
        distance = graph.node("Sub", graph.node("Range", graph.constant(0), end, graph.constant(1)), before)
        table = graph.node("Gather", self._tables[term], self._bucket_of(distance, is_negated=backwards), axis=1)
        product = graph.node("MatMul", tokens, graph.node("Transpose", table, perm=[0, 2, 1]))
        flat = graph.node("Reshape", product, graph.constant([0, 0, -1]))
        last = graph.node("Add", before, graph.node("Mul", c.tokens, width))
        cut = graph.node("Slice", flat, before, last, graph.constant([2]))
        shorter = graph.node("Reshape", cut, graph.node("Concat", graph.constant([0, 0]), c.tokens, width, axis=0))
        return graph.node("Slice", shorter, graph.constant([0]), c.tokens, graph.constant([3]))

    def _buckets(self, rows: Rows, query: str) -> str:
        """The bucket of every distance from some queries to all keys, int64 (batch, heads, queries, keys)."""
        graph = self._c.graph
        index = self._bucket_of(distances(self._c, rows), is_negated=True)
        shape = graph.node("Shape", query)
        heads = graph.node("Slice", shape, graph.constant([0]), graph.constant([3]))
        return graph.node("Expand", index, graph.node("Concat", heads, self._c.tokens, axis=0))

    def _bucket_of(self, distance: str, *, is_negated: bool) -> str:
        """The table's row for distances, query's position minus key's."""
        graph, farthest = self._c.graph, self._sizes.farthest
        if is_negated:
            distance = graph.node("Neg", distance)
        near = graph.node("Clip", distance, graph.constant(-farthest), graph.constant(farthest))
        return graph.node("Gather", self._lookup, graph.node("Add", near, graph.constant(farthest)))


def _table(sizes: _Sizes, c: Construction, weights: Weights, name: str) -> str:
    """What a layer's map makes of the embeddings of distances, by head: float32 (heads, buckets, size)."""
    width, rows = sizes.hidden, 2 * sizes.span
    weights.shape(f"{name}.weight", (width, width))
    weights.shape(f"{name}.bias", (width,))
    weight, bias, embeddings = (
        weights.reader(f"{name}.weight"),
        weights.reader(f"{name}.bias"),
        _embeddings_of_distances(sizes, c),
    )

    def load() -> Array:
        made = embeddings() @ weight().astype(np.float64).T + bias()
        return made.reshape(rows, sizes.heads, sizes.size).transpose(1, 0, 2).astype(np.float32)

    return c.graph.weight(f"{weights.prefix}{name}.distances", (sizes.heads, rows, sizes.size), load)


def _embeddings_of_distances(sizes: _Sizes, c: Construction) -> Callable[[], npt.NDArray[np.float64]]:
    weights, width, rows, eps = c.weights, sizes.hidden, 2 * sizes.span, sizes.eps
    weights.shape(_DISTANCES, (rows, width))
    embeddings = weights.reader(_DISTANCES)
    if not sizes.normalises_distances:
        return lambda: embeddings().astype(np.float64)
    names = norm_names(weights, "encoder.LayerNorm")
    for name in names:
        weights.shape(name, (width,))
    scale, shift = map(weights.reader, names)

    def normed() -> npt.NDArray[np.float64]:
        table = embeddings().astype(np.float64)
        table -= table.mean(axis=1, keepdims=True)
        return np.asarray(table / np.sqrt((table**2).mean(axis=1, keepdims=True) + eps) * scale() + shift())

    return normed


def distance_buckets(buckets: int | None, farthest: int) -> npt.NDArray[np.int64]:
    """The row of every distance from -farthest to farthest, query's position minus key's, in the table of embeddings.

    Up to half the `buckets` each distance has one of its own, the others get logarithmically wider ones up to
    `farthest`; None: each has one of its own. Source: He et al. 2021 (DeBERTa-V3), as in `transformers`.
    """
    distance = np.arange(-farthest, farthest + 1)
    span = farthest if buckets is None else buckets
    if buckets is not None:
        half = buckets // 2
        size = np.maximum(np.abs(distance), half).astype(np.float32)
        # float32 throughout, like the original: on a bucket's border the last bit decides.
        steps = np.log(size / np.float32(half)) / np.log(np.float32((farthest - 1) / half)) * np.float32(half - 1)
        far = (np.ceil(steps) + half).astype(np.int64) * np.sign(distance)
        distance = np.where(np.abs(distance) <= half, distance, far)
    return np.clip(distance + span, 0, 2 * span - 1)
