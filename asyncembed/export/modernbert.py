"""The graph of ModernBERT: rotary positions, norms before each layer, and windows in most layers.

Source: Warner et al. 2024, and, for names and defaults, the `transformers` library. mmBERT, Ettin and Granite's second
generation are of this kind, too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from asyncembed.export.attention import EVERYTHING, Reach, Seen, attention, seen
from asyncembed.export.blocks import ACTIVATIONS, layer_norm, linear
from asyncembed.export.construction import Construction, Weights
from asyncembed.export.heads import HeadBuilder, HeadName, first_token, mean, scores, words
from asyncembed.export.objections import activation_objections, eps_objections, size_objections
from asyncembed.export.rotary import Turn, rotated, rotation, rotation_objections, turn
from asyncembed.repo_files import quoted

_WORDS = "embeddings.tok_embeddings.weight"

# What a layer's queries see, with the base of its rotary positions where config.json has none, and that base's old key.
_FULL, _SLIDING = "full_attention", "sliding_attention"
_BASES = {_FULL: ("global_rope_theta", 160_000.0), _SLIDING: ("local_rope_theta", 10_000.0)}

# Where config.json has none: a window's tokens, to both sides together, and the longest text's.
_WINDOW = 128
_LONGEST = 8192

_SIZE_KEYS = (
    *("num_hidden_layers", "num_attention_heads", "hidden_size"),
    *("local_attention", "max_position_embeddings"),
)

_POOLINGS = ("cls", "mean")


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What config.json says; all other sizes are those of the tensors.

    Attributes:
        kinds: Of each layer.
        window: How far a query of a sliding layer sees, to either side.
    """

    heads: int
    hidden: int
    activation: str
    eps: float
    kinds: tuple[str, ...]
    window: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "_Sizes":
        return cls(
            heads=config["num_attention_heads"],
            hidden=config["hidden_size"],
            activation=config.get("hidden_activation", "gelu"),
            eps=_eps(config),
            kinds=tuple(_kinds(config)),
            window=config.get("local_attention", _WINDOW) // 2,
        )

    @property
    def size(self) -> int:
        """Of a head."""
        return self.hidden // self.heads


@dataclass(frozen=True, slots=True)
class _Sight:
    """What the layers of one kind have in common."""

    seen: Seen
    turn: Turn


class ModernBert:
    """One architecture, of which config.json says all that varies."""

    prefixes: tuple[str, ...] = ("model.",)
    word_embeddings: str = _WORDS
    brings_code: bool = False

    @property
    def heads(self) -> Mapping[HeadName, HeadBuilder]:
        return {"scores": _scores, "words": _words}

    def width(self, config: Mapping[str, Any]) -> int:
        return int(config["hidden_size"])

    def objections(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Why the graph would not be the encoder that `config` describes. Whoever goes on after one must not."""
        yield from _size_objections(config)
        yield from _kind_objections(config)
        for key in ("hidden_activation", "classifier_activation"):
            yield from activation_objections(key, config.get(key, "gelu"))
        if config.get("classifier_pooling", "cls") not in _POOLINGS:
            pooling = quoted(config["classifier_pooling"])
            yield f"has classifier_pooling = {pooling}, and only {' and '.join(_POOLINGS)} are computed"

    def encode(self, c: Construction) -> str:
        """The flat hidden states after the last layer."""
        sizes, graph = _Sizes.of(c.config), c.graph
        table = c.weights.take(_WORDS, (None, sizes.hidden))
        hidden = layer_norm(
            c.weights, "embeddings.norm", graph.node("Gather", table, c.ids), sizes.hidden, eps=sizes.eps
        )
        hidden = graph.node("Reshape", hidden, graph.constant([-1, sizes.hidden]))
        sights = {kind: _sight(c, sizes, kind) for kind in dict.fromkeys(sizes.kinds)}
        for i, kind in enumerate(sizes.kinds):
            hidden = _layer(sizes, c, c.weights.under(f"layers.{i}."), hidden, sights[kind], is_first=i == 0)
        return layer_norm(c.weights, "final_norm", hidden, sizes.hidden, eps=sizes.eps)


MODERNBERT = ModernBert()


def _eps(config: Mapping[str, Any]) -> float:
    return float(config.get("norm_eps", 1e-5))


# What config.json must say


def _size_objections(config: Mapping[str, Any]) -> Iterator[str]:
    yield from size_objections({"local_attention": _WINDOW, "max_position_embeddings": _LONGEST, **config}, *_SIZE_KEYS)
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    if hidden % (2 * heads):
        yield f"has num_attention_heads = {heads}, which does not divide hidden_size = {hidden} into heads of even size"
    yield from eps_objections("norm_eps", config.get("norm_eps", 1e-5))


def _kind_objections(config: Mapping[str, Any]) -> Iterator[str]:
    """Why what the layers see, and how they rotate it, cannot be computed."""
    every = config.get("global_attn_every_n_layers", 3)
    if config.get("layer_types") is None and not (isinstance(every, int) and every > 0):
        yield "has no usable global_attn_every_n_layers"
    kinds = _kinds(config)
    if len(kinds) != config["num_hidden_layers"] or any(kind not in list(_BASES) for kind in kinds):
        yield f"has layer_types that are not, for each layer, one of {', '.join(_BASES)}"
    for kind in _BASES:
        yield from rotation_objections(_turning(config, kind), config.get("max_position_embeddings", _LONGEST))


def _kinds(config: Mapping[str, Any]) -> list[Any]:
    """What each layer is; configs of the hub's older repos have only how often a layer sees everything."""
    named = config.get("layer_types")
    if named is not None:
        return named if isinstance(named, list) else []
    every = config.get("global_attn_every_n_layers", 3)
    return [_SLIDING if i % every else _FULL for i in range(config["num_hidden_layers"])]


def _turning(config: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """How positions are rotated in layers of `kind`: what is said of it, and then of all."""
    old_key, base = _BASES[kind]
    said = {"rope_theta": config.get(old_key, base)}
    by_kind, of_all = config.get("rope_parameters"), config.get("rope_scaling")
    if isinstance(by_kind, dict) and isinstance(by_kind.get(kind), dict):
        said |= by_kind[kind]
    if isinstance(of_all, dict):
        said |= {"rope_type": None, **of_all}  # older ones call it the type
    return said


# The encoder


def _sight(c: Construction, sizes: _Sizes, kind: str) -> _Sight:
    longest = c.config.get("max_position_embeddings", _LONGEST)
    turned = rotation(_turning(c.config, kind), size=sizes.size, theta=_BASES[kind][1], longest=longest)
    reach = EVERYTHING if kind == _FULL else Reach(before=sizes.window, after=sizes.window)
    return _Sight(seen(c, reach), turn(c, turned))


def _layer(sizes: _Sizes, c: Construction, weights: Weights, hidden: str, sight: _Sight, *, is_first: bool) -> str:
    graph, width = c.graph, sizes.hidden
    # The norm of the embeddings stands right before the first layer.
    normed = hidden if is_first else layer_norm(weights, "attn_norm", hidden, width, eps=sizes.eps)
    attended = linear(weights, "attn.Wo", _attended(sizes, c, weights, normed, sight), width, width)
    hidden = graph.node("Add", attended, hidden)
    normed = layer_norm(weights, "mlp_norm", hidden, width, eps=sizes.eps)
    inner = weights.shape("mlp.Wo.weight", (width, None))[1]
    opened, up = (linear(weights, "mlp.Wi", normed, width, inner, part=(i, 2)) for i in range(2))
    product = graph.node("Mul", ACTIVATIONS[sizes.activation](graph, opened), up)
    return graph.node("Add", linear(weights, "mlp.Wo", product, inner, width), hidden)


def _attended(sizes: _Sizes, c: Construction, weights: Weights, normed: str, sight: _Sight) -> str:
    width, size = sizes.hidden, sizes.size
    query, key, value = (
        c.split_heads(linear(weights, "attn.Wqkv", normed, width, width, part=(i, 3)), sizes.heads, size)
        for i in range(3)
    )
    query, key = (rotated(c, each, sight.turn, size) for each in (query, key))
    key = c.graph.node("Transpose", key, perm=[0, 1, 3, 2])
    return attention(c, query, key, value, seen=sight.seen, divisor=size**0.5, width=width)


# Heads


def _transformed(c: Construction, states: str) -> str:
    """What both heads begin with: a linear layer, an activation, a norm."""
    width = c.config["hidden_size"]
    inner = linear(c.all_weights, "head.dense", states, width, width)
    activated = ACTIVATIONS[c.config.get("classifier_activation", "gelu")](c.graph, inner)
    return layer_norm(c.all_weights, "head.norm", activated, width, eps=_eps(c.config))


def _scores(c: Construction, hidden: str) -> None:
    width, weights = c.config["hidden_size"], c.all_weights
    pooled = (mean if c.config.get("classifier_pooling") == "mean" else first_token)(c, hidden, width)
    labels = weights.shape("classifier.weight", (None, width))[0]
    scores(c, linear(weights, "classifier", _transformed(c, pooled), width, labels, needs_bias=True), labels)


def _words(c: Construction, hidden: str) -> None:
    words(c, _transformed(c, hidden), "decoder", _WORDS, c.config["hidden_size"])
