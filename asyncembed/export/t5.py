"""The graph of T5's encoder: layers that normalise before attention and before what follows it, without positions.

Instead, attention adds a bias per head and bucket of distances to the scores, which are not divided; all layers share
the first one's. Sources: Raffel et al. 2020 (T5), Shazeer 2020 (the gated map of T5 1.1), and, for names and defaults,
the `transformers` library.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from asyncembed.export.attention import Rows, Seen, attention, distances, rows_of_chunks, seen
from asyncembed.export.bert_like import buckets_of_distances
from asyncembed.export.blocks import ACTIVATIONS, gated, linear, rms_norm
from asyncembed.export.construction import Construction, Weights
from asyncembed.export.heads import HeadBuilder, HeadName
from asyncembed.export.objections import activation_objections, eps_objections, other_objections, size_objections
from asyncembed.repo_files import quoted

_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"

_GATED = "gated-"

# The only value of these that is computed; no such key means the same.
_COMPUTED: Mapping[str, tuple[object, ...]] = {"is_decoder": (False,)}


class T5Encoder:
    """One architecture, of which config.json says all that varies."""

    prefixes: tuple[str, ...] = ("transformer.",)
    word_embeddings: str = "shared.weight"
    brings_code: bool = False
    heads: Mapping[HeadName, HeadBuilder] = MappingProxyType({})

    def width(self, config: Mapping[str, Any]) -> int:
        return int(config["d_model"])

    def objections(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Why the graph would not be the encoder that `config` describes. Whoever goes on after one must not."""
        yield from other_objections(config, _COMPUTED)
        yield from size_objections(config, "d_model", "d_kv", "num_layers", "num_heads")
        yield from eps_objections("layer_norm_epsilon", _eps(config))
        yield from _distance_objections(config)
        yield from _map_objections(config)

    def encode(self, c: Construction) -> str:
        """The flat hidden states after the last layer."""
        graph, weights, width = c.graph, c.weights, self.width(c.config)
        hidden = graph.node("Gather", weights.take(self.word_embeddings, (None, width)), c.ids)
        hidden = graph.node("Reshape", hidden, graph.constant([-1, width]))
        visible = seen(c)
        favoured = _Favoured(c, visible)
        for i in range(c.config["num_layers"]):
            hidden = _layer(c, weights.under(f"encoder.block.{i}."), hidden, visible, favoured)
        return rms_norm(weights, "encoder.final_layer_norm", hidden, width, eps=_eps(c.config))


T5 = T5Encoder()


# What config.json must say


def _eps(config: Mapping[str, Any]) -> Any:
    return config.get("layer_norm_epsilon", 1e-6)


def _distances(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """How many buckets there are, and the distance from which on all are in the last one."""
    return config.get("relative_attention_num_buckets", 32), config.get("relative_attention_max_distance", 128)


def _distance_objections(config: Mapping[str, Any]) -> Iterator[str]:
    """Why the biases of distances cannot be computed."""
    keys = ("relative_attention_num_buckets", "relative_attention_max_distance")
    said = dict(zip(keys, _distances(config), strict=True))
    yield from size_objections(said, keys[0], least=4, below=2**15)
    # Up to a quarter of the buckets, each distance has its own.
    yield from size_objections(said, keys[1], least=said[keys[0]] // 4 + 1, below=2**15)


def _activation(config: Mapping[str, Any]) -> tuple[Any, bool]:
    """What the map after attention is opened with, and whether it is gated."""
    named = config.get("feed_forward_proj", "relu")
    if not isinstance(named, str) or not named.startswith(_GATED):
        return named, False
    # The only gate of this name is the approximated one.
    return {"gelu": "gelu_new"}.get(opened := named.removeprefix(_GATED), opened), True


def _map_objections(config: Mapping[str, Any]) -> Iterator[str]:
    """Why the map after attention cannot be computed."""
    activation, is_gated = _activation(config)
    yield from activation_objections("feed_forward_proj", activation)
    for key, meant in (("dense_act_fn", activation), ("is_gated_act", is_gated)):
        if config.get(key) not in (None, meant):
            yield f"has {key} = {quoted(config[key])}, which is not what its feed_forward_proj means"


# What is added to the attention scores of every layer


class _Favoured:
    """The biases of distances, from the query's token to the key's, for each head."""

    def __init__(self, c: Construction, visible: Seen) -> None:
        buckets, farthest = _distances(c.config)
        heads = c.config["num_heads"]
        c.weights.shape(_BIAS, (buckets, heads))
        # Column i holds the bias of the distance i - farthest.
        columns = buckets_of_distances(farthest + 1, buckets=buckets, farthest=farthest)
        self._c, self._farthest = c, farthest
        self._table = c.weights.made(_BIAS, (heads, len(columns)), lambda array: array[columns].T)
        self._whole = self._of_all(visible)

    def whole(self, query: str, key: str) -> str:  # noqa: ARG002
        """For all tokens, the same in every layer: (heads, queries, keys)."""
        return self._whole

    def chunks(self, queries: Sequence[str], key: str) -> list[str]:  # noqa: ARG002
        """The same for some of the queries after the other, made anew in every layer: all would be a text's largest."""
        return [self._of(rows) for rows in rows_of_chunks(self._c)]

    def _of_all(self, visible: Seen) -> str:
        """Nothing, of a text that is computed in chunks."""
        graph = self._c.graph
        if visible.is_long is None:
            return self._of(None)
        nothing = graph.constant([[[0.0]]])
        return graph.choose(visible.is_long, lambda: [nothing], lambda: [self._of(None)])[0]

    def _of(self, rows: Rows | None) -> str:
        graph, farthest = self._c.graph, self._farthest
        near = graph.node("Clip", distances(self._c, rows), graph.constant(-farthest), graph.constant(farthest))
        return graph.node("Gather", self._table, graph.node("Add", near, graph.constant(farthest)), axis=1)


# One layer


def _layer(c: Construction, weights: Weights, hidden: str, visible: Seen, favoured: _Favoured) -> str:
    graph, width, eps = c.graph, c.config["d_model"], _eps(c.config)
    inner = rms_norm(weights, "layer.0.layer_norm", hidden, width, eps=eps)
    attended = _attended(c, weights.under("layer.0.SelfAttention."), inner, visible, favoured)
    hidden = graph.node("Add", hidden, attended)
    inner = rms_norm(weights, "layer.1.layer_norm", hidden, width, eps=eps)
    return graph.node("Add", hidden, _mapped(c, weights.under("layer.1.DenseReluDense."), inner))


def _attended(c: Construction, weights: Weights, hidden: str, visible: Seen, favoured: _Favoured) -> str:
    width, count, size = c.config["d_model"], c.config["num_heads"], c.config["d_kv"]

    def heads(name: str, *, transposed: bool = False) -> str:
        return c.split_heads(linear(weights, name, hidden, width, count * size), count, size, transposed=transposed)

    query, key, value = heads("q"), heads("k", transposed=True), heads("v")
    context = attention(c, query, key, value, seen=visible, divisor=1.0, width=count * size, favour=favoured)
    return linear(weights, "o", context, count * size, width)


def _mapped(c: Construction, weights: Weights, hidden: str) -> str:
    width, (name, is_gated) = c.config["d_model"], _activation(c.config)
    activation = ACTIVATIONS[name]
    if is_gated:
        return gated(weights, "wi_0", "wi_1", "wo", hidden, width, activation=activation)
    inner = weights.shape("wi.weight", (None, width))[0]
    return linear(weights, "wo", activation(c.graph, linear(weights, "wi", hidden, width, inner)), inner, width)
