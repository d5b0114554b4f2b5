"""The graph of a BERT-like encoder: embeddings, then layers that normalise after each residual sum.

Sources: Vaswani et al. 2017 (the layer), Devlin et al. 2019 (BERT), Liu et al. 2019 (RoBERTa), Sanh et al.
2019 (DistilBERT), Song et al. 2020 (MPNet), Lan et al. 2020 (ALBERT), and, for names and defaults, the `transformers`
library. An architecture of this kind is a `BertLike` record: the keys of its config.json and the names of its tensors.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from asyncembed.export.attention import Seen, attention, distances, hidden_padding, seen
from asyncembed.export.blocks import ACTIVATIONS, layer_norm, linear
from asyncembed.export.construction import Construction, Weights
from asyncembed.export.heads import Classifier, HeadBuilder, HeadName, Vocabulary
from asyncembed.export.objections import activation_objections, eps_objections, other_objections, size_objections
from asyncembed.export.onnx_builder import INT64

# Keys of config.json with the only value that is computed; no such key means the same.
_COMPUTED: Mapping[str, tuple[object, ...]] = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}

# MPNet's relative attention bias: these are fixed in its definition, not in config.json.
_BUCKETS = 32
_FARTHEST = 128

_WORDS = "embeddings.word_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"

_MOST_LAYERS = 2**12  # of shared weights; each of its own weights has to be there


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigKeys:
    """What config.json calls the numbers, by what they are here."""

    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    hidden: str = "hidden_size"
    activation: str = "hidden_act"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """What the checkpoint calls what widens embeddings, and the modules of one layer, without the layer's prefix."""

    widening: str = "embeddings_project"
    layer: str = "encoder.layer.{}."
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    intermediate: str = "intermediate.dense"
    output: str = "output.dense"
    output_norm: str = "output.LayerNorm"


@dataclass(frozen=True, slots=True, kw_only=True)
class BertLike:
    """One architecture.

    Attributes:
        prefix: What precedes every tensor name in a checkpoint with a task's head around the encoder.
        keys: Names in config.json.
        names: Names of tensors.
        positions: "absolute" counts from 0; "after_padding" counts the tokens that are not padding, from one
            above the padding token's id, which itself is the position of padding.
        relative_bias: Tensor with a bias per bucket of distances and head, shared by all layers; None: none.
        norm_eps: Epsilon of the layer norms where config.json has none.
        padding_id: Id of the padding token where config.json has none.
        activation: Of the layers where config.json names none.
        shares_layers: Whether layers fall into groups that compute with the same weights, each several layers long,
            and something always widens the embeddings. The group and the place in it are in a layer's name then.
        heads: What may stand on the hidden states besides themselves.
    """

    prefix: str
    keys: ConfigKeys = field(default_factory=ConfigKeys)
    names: TensorNames = field(default_factory=TensorNames)
    positions: Literal["absolute", "after_padding"] = "absolute"
    relative_bias: str | None = None
    norm_eps: float = 1e-12
    padding_id: int = 0
    activation: str = "gelu"
    shares_layers: bool = False
    heads: Mapping[HeadName, HeadBuilder] = field(default_factory=dict)

    @property
    def prefixes(self) -> tuple[str, ...]:
        return (self.prefix,)

    @property
    def word_embeddings(self) -> str:
        return _WORDS

    @property
    def brings_code(self) -> bool:
        return False

    def width(self, config: Mapping[str, Any]) -> int:
        return int(config[self.keys.hidden])

    def objections(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Why the graph would not be the encoder that `config` describes. Whoever goes on after one must not."""
        keys = self.keys
        yield from other_objections(config, _COMPUTED)
        yield from size_objections({"pad_token_id": self.padding_id, **config}, keys.layers, "pad_token_id", least=0)
        yield from size_objections(config, keys.heads, keys.hidden)
        heads, hidden = config[keys.heads], config[keys.hidden]
        if hidden % heads:
            yield f"has {keys.heads} = {heads}, which does not divide {keys.hidden} = {hidden}"
        yield from activation_objections(keys.activation, config.get(keys.activation, self.activation))
        yield from eps_objections("layer_norm_eps", config.get("layer_norm_eps", self.norm_eps))
        if self.shares_layers:
            yield from _sharing_objections(config, config[keys.layers])

    def encode(self, c: Construction) -> str:
        """The flat hidden states after the last layer.

        Takes, if the checkpoint has more than one token type, the input `token_type_ids` (batch, tokens) as well.
        """
        sizes = _Sizes.of(self, c.config)
        hidden = _embeddings(self, sizes, c)
        visible = _seen(self, sizes, c)
        for name in self._layers(c.config):
            hidden = _layer(self.names, sizes, c, c.weights.under(name), hidden, visible)
        return hidden

    def _layers(self, config: Mapping[str, Any]) -> Iterator[str]:
        """What stands before the names of each layer's tensors."""
        count, name = config[self.keys.layers], self.names.layer
        if not self.shares_layers:
            yield from map(name.format, range(count))
            return
        groups, inner = _sharing(config)
        for i in range(count):
            group = int(i / (count / groups))  # also where they are not equally many
            yield from (name.format(group, place) for place in range(inner))


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What config.json says; all other sizes are those of the tensors."""

    layers: int
    heads: int
    hidden: int
    activation: str
    eps: float
    padding_id: int

    @classmethod
    def of(cls, architecture: BertLike, config: Mapping[str, Any]) -> "_Sizes":
        keys = architecture.keys
        return cls(
            layers=config[keys.layers],
            heads=config[keys.heads],
            hidden=config[keys.hidden],
            activation=config.get(keys.activation, architecture.activation),
            eps=float(config.get("layer_norm_eps", architecture.norm_eps)),
            padding_id=config.get("pad_token_id", architecture.padding_id),
        )


def _sharing(config: Mapping[str, Any]) -> tuple[int, int]:
    """How many groups share their weights, and how many layers of its own one has."""
    return config.get("num_hidden_groups", 1), config.get("inner_group_num", 1)


def _sharing_objections(config: Mapping[str, Any], layers: int) -> Iterator[str]:
    """Why layers cannot share their weights like that."""
    groups, inner = _sharing(config)
    yield from size_objections({"num_hidden_groups": groups}, "num_hidden_groups", below=layers + 1)
    yield from size_objections({"inner_group_num": inner}, "inner_group_num", below=_MOST_LAYERS // layers + 1)


# From tokens to the first hidden state


def _embeddings(architecture: BertLike, sizes: _Sizes, c: Construction) -> str:
    graph, weights = c.graph, c.weights
    width = weights.shape(_WORDS, (None, None))[1]
    total = graph.node("Gather", weights.take(_WORDS, (None, width)), c.ids)
    if weights.has(_TYPES):
        types = weights.take(_TYPES, (None, width))
        if weights.shape(_TYPES, (None, width))[0] > 1:
            chosen = graph.input("token_type_ids", ["batch", "tokens"])
        else:
            chosen = graph.constant([0])  # every token has the only type
        total = graph.node("Add", total, graph.node("Gather", types, chosen))
    total = graph.node("Add", total, _position_embeddings(architecture, sizes, c, width))
    hidden = layer_norm(weights, "embeddings.LayerNorm", total, width, eps=sizes.eps, needs_bias=True)
    hidden = graph.node("Reshape", hidden, graph.constant([-1, width]))
    widening = architecture.names.widening
    if architecture.shares_layers or weights.has(f"{widening}.weight"):
        return linear(weights, widening, hidden, width, sizes.hidden, needs_bias=True)
    return hidden


def _position_embeddings(architecture: BertLike, sizes: _Sizes, c: Construction, width: int) -> str:
    graph = c.graph
    table = c.weights.take(_POSITIONS, (None, width))
    if architecture.positions == "absolute":
        return graph.node("Slice", table, graph.constant([0]), c.tokens, graph.constant([0]))
    padding = graph.constant(sizes.padding_id)
    real = graph.node("Cast", graph.node("Not", graph.node("Equal", c.ids, padding)), to=INT64)
    counted = graph.node("Mul", graph.node("CumSum", real, graph.constant(1)), real)
    return graph.node("Gather", table, graph.node("Add", counted, padding))


# What is added to the attention scores of every layer


def _seen(architecture: BertLike, sizes: _Sizes, c: Construction) -> Seen:
    """What hides the padding and favours some distances."""
    if architecture.relative_bias is None:
        return seen(c)
    favoured = _distance_bias(architecture.relative_bias, sizes, c)
    # Its table ends where its positions end, long before chunks would pay.
    return Seen(c.graph.node("Add", favoured, hidden_padding(c)))


def _distance_bias(name: str, sizes: _Sizes, c: Construction) -> str:
    """A bias per head and distance from the query's token to the key's: (heads, tokens, tokens)."""
    graph, heads = c.graph, sizes.heads
    c.weights.shape(name, (_BUCKETS, heads))
    longest = c.weights.shape(_POSITIONS, (None, None))[0]
    # Column i holds the bias of the distance i - (longest - 1).
    shape = (heads, 2 * longest - 1)
    columns = buckets_of_distances(longest, buckets=_BUCKETS, farthest=_FARTHEST)
    table = c.weights.made(name, shape, lambda array: array[columns].T)
    column = graph.node("Add", distances(c, None), graph.constant(longest - 1))
    return graph.node("Gather", table, column, axis=1)


# One layer


def _layer(names: TensorNames, sizes: _Sizes, c: Construction, weights: Weights, hidden: str, visible: Seen) -> str:
    graph, width, eps = c.graph, sizes.hidden, sizes.eps
    attended = _attended(names, sizes, c, weights, hidden, visible)
    attended = linear(weights, names.attention_output, attended, width, width, needs_bias=True)
    hidden = layer_norm(
        weights, names.attention_norm, graph.node("Add", attended, hidden), width, eps=eps, needs_bias=True
    )
    inner_width = weights.shape(f"{names.intermediate}.weight", (None, width))[0]
    inner = linear(weights, names.intermediate, hidden, width, inner_width, needs_bias=True)
    activated = ACTIVATIONS[sizes.activation](graph, inner)
    outer = linear(weights, names.output, activated, inner_width, width, needs_bias=True)
    return layer_norm(weights, names.output_norm, graph.node("Add", outer, hidden), width, eps=eps, needs_bias=True)


def _attended(names: TensorNames, sizes: _Sizes, c: Construction, weights: Weights, hidden: str, visible: Seen) -> str:
    width, count = sizes.hidden, sizes.heads
    size = width // count

    def heads(name: str, *, transposed: bool = False) -> str:
        flat = linear(weights, name, hidden, width, width, needs_bias=True)
        return c.split_heads(flat, count, size, transposed=transposed)

    query, key, value = heads(names.query), heads(names.key, transposed=True), heads(names.value)
    return attention(c, query, key, value, seen=visible, divisor=math.sqrt(size), width=width)


def buckets_of_distances(longest: int, *, buckets: int, farthest: int) -> npt.NDArray[np.int64]:
    """The bucket of every distance from 1 - longest to longest - 1, key's position minus query's.

    One half of the buckets is for keys before the query, one for keys after it. In each, the first half holds
    one distance per bucket, the second half distances up to `farthest` in logarithmic steps, the last all beyond.
    Source: Raffel et al. 2020 (T5), section 2.1, bidirectional, as in MPNet.
    """
    half = buckets // 2
    exact = half // 2
    distance = np.arange(1 - longest, longest)
    size = np.abs(distance)
    # float32 throughout, like the original: on a bucket's border the last bit decides.
    scale = np.float32(math.log(farthest / exact))
    with np.errstate(divide="ignore"):
        steps = np.log(size.astype(np.float32) / np.float32(exact)) / scale * np.float32(half - exact)
    logarithmic = exact + np.where(size < exact, 0, steps).astype(np.int64)
    bucket = np.where(size < exact, size, np.minimum(logarithmic, half - 1))
    return np.asarray(bucket + np.where(distance > 0, half, 0), np.int64)


_LM_HEAD = Vocabulary(
    dense="lm_head.dense",
    norm="lm_head.layer_norm",
    decoder="lm_head.decoder",
    bias="lm_head.bias",
    embeddings=_WORDS,
    activation="gelu",
)

BERT = BertLike(
    prefix="bert.",
    heads={
        "scores": Classifier(dense="pooler.dense", is_inside=True),
        "words": Vocabulary(
            dense="cls.predictions.transform.dense",
            norm="cls.predictions.transform.LayerNorm",
            decoder="cls.predictions.decoder",
            bias="cls.predictions.bias",
            embeddings=_WORDS,
        ),
    },
)

ROBERTA = BertLike(
    prefix="roberta.",
    positions="after_padding",
    padding_id=1,
    heads={"scores": Classifier(dense="classifier.dense", out="classifier.out_proj"), "words": _LM_HEAD},
)

DISTILBERT = BertLike(
    prefix="distilbert.",
    keys=ConfigKeys(layers="n_layers", heads="n_heads", hidden="dim", activation="activation"),
    names=TensorNames(
        layer="transformer.layer.{}.",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        attention_norm="sa_layer_norm",
        intermediate="ffn.lin1",
        output="ffn.lin2",
        output_norm="output_layer_norm",
    ),
    heads={
        "scores": Classifier(dense="pre_classifier", activation="relu"),
        "words": Vocabulary(
            dense="vocab_transform",
            norm="vocab_layer_norm",
            decoder="vocab_projector",
            bias="vocab_projector.bias",
            embeddings=_WORDS,
            activation_key="activation",
            eps_key=None,
        ),
    },
)

MPNET = BertLike(
    prefix="mpnet.",
    names=TensorNames(
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attention_output="attention.attn.o",
        attention_norm="attention.LayerNorm",
    ),
    positions="after_padding",
    padding_id=1,
    relative_bias="encoder.relative_attention_bias.weight",
    heads={
        "scores": Classifier(dense="classifier.dense", out="classifier.out_proj"),
        "words": _LM_HEAD,
    },
)

# Its embeddings may be narrower than its layers: `embeddings_project` then widens them.
ELECTRA = BertLike(
    prefix="electra.",
    heads={
        "scores": Classifier(dense="classifier.dense", out="classifier.out_proj", activation="gelu"),
        "words": Vocabulary(
            dense="generator_predictions.dense",
            norm="generator_predictions.LayerNorm",
            decoder="generator_lm_head",
            bias="generator_lm_head.bias",
            embeddings=_WORDS,
            activation="gelu",
        ),
    },
)

# A layer of its config.json is all layers of a group, one after the other.
ALBERT = BertLike(
    prefix="albert.",
    names=TensorNames(
        widening="encoder.embedding_hidden_mapping_in",
        layer="encoder.albert_layer_groups.{}.albert_layers.{}.",
        query="attention.query",
        key="attention.key",
        value="attention.value",
        attention_output="attention.dense",
        attention_norm="attention.LayerNorm",
        intermediate="ffn",
        output="ffn_output",
        output_norm="full_layer_layer_norm",
    ),
    activation="gelu_new",
    shares_layers=True,
    heads={
        "scores": Classifier(dense="pooler", is_inside=True),
        "words": Vocabulary(
            dense="predictions.dense",
            norm="predictions.LayerNorm",
            decoder="predictions.decoder",
            bias="predictions.bias",
            embeddings=_WORDS,
            default="gelu_new",
        ),
    },
)
