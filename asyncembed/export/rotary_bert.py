"""The graph of BERT with rotary positions and gated layers: Alibaba's GTE (model types "new" and "gte") and NomicBERT.

Sources: Zhang et al. 2024 (mGTE) and Nussbaum et al. 2024 (Nomic Embed), and, for names and defaults, their repos'
own code and the `transformers` library. Layers normalise after each residual sum, as BERT's do.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from asyncembed.export.attention import Seen, attention, seen
from asyncembed.export.blocks import ACTIVATIONS, layer_norm, linear
from asyncembed.export.construction import Construction, Weights
from asyncembed.export.heads import Classifier, HeadBuilder, HeadName, Vocabulary
from asyncembed.export.objections import activation_objections, eps_objections, is_size, other_objections
from asyncembed.export.rotary import Turn, is_scale, parameters, rotated, rotation, rotation_objections, turn

_WORDS = "embeddings.word_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """What the checkpoint calls the modules, those of one layer without the layer's own prefix.

    Attributes:
        up, gate: Linear maps, with the part of it where both are one.
    """

    embeddings_norm: str
    layer: str
    query_key_value: str
    attention_output: str
    attention_norm: str
    up: tuple[str, tuple[int, int]]
    gate: tuple[str, tuple[int, int]]
    down: str
    output_norm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryBert:
    """One architecture.

    Attributes:
        prefixes: What may precede every tensor name in a checkpoint with a task's head around the encoder.
        names: Names of tensors.
        keys: What config.json may call a number, by what it is here: the first that is there counts.
        computed: Keys of config.json with the values that are computed; no such key means the same.
        theta: Base of the rotary positions where config.json has none.
        heads: What may stand on the hidden states besides themselves.
    """

    prefixes: tuple[str, ...]
    names: TensorNames
    keys: Mapping[str, tuple[str, ...]]
    computed: Mapping[str, tuple[object, ...]]
    theta: float
    heads: Mapping[HeadName, HeadBuilder]

    @property
    def word_embeddings(self) -> str:
        return _WORDS

    @property
    def brings_code(self) -> bool:
        return True

    def width(self, config: Mapping[str, Any]) -> int:
        return int(self.said(config, "hidden"))

    def said(self, config: Mapping[str, Any], what: str, default: Any = None) -> Any:
        """What config.json says, under whichever name."""
        return next((config[key] for key in self.keys[what] if config.get(key) is not None), default)

    def objections(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Why the graph would not be the encoder that `config` describes. Whoever goes on after one must not."""
        yield from other_objections(config, self.computed)
        for what in ("layers", "heads", "hidden"):
            if not is_size(self.said(config, what)):
                yield f"has no usable {self.keys[what][0]}"
        heads, hidden = self.said(config, "heads"), self.said(config, "hidden")
        if hidden % (2 * heads):
            yield f"has {heads} heads, which do not divide the width {hidden} into even parts"
        yield from eps_objections(self.keys["eps"][0], self.said(config, "eps", 1e-12))
        theta = self.said(config, "theta", self.theta)
        if not is_scale(theta) or not theta > 1:
            yield f"has no usable {self.keys['theta'][0]}"
        yield from activation_objections(self.keys["activation"][0], self._activation(config))
        yield from rotation_objections(parameters(config), self.said(config, "positions"))

    def encode(self, c: Construction) -> str:
        """The flat hidden states after the last layer.

        Takes, if the checkpoint has more than one token type, the input `token_type_ids` (batch, tokens) as well.
        """
        config = c.config
        width, heads = self.width(config), self.said(config, "heads")
        turned = rotation(
            parameters(config),
            size=width // heads,
            theta=float(self.said(config, "theta", self.theta)),
            longest=self.said(config, "positions"),
        )
        layer = _Layer(
            self.names, c, width=width, heads=heads, activation=self._activation(config),
            eps=float(self.said(config, "eps", 1e-12)), visible=seen(c), turn=turn(c, turned),
        )  # fmt: skip
        hidden = layer.embeddings()
        for i in range(self.said(config, "layers")):
            hidden = layer(c.weights.under(self.names.layer.format(i)), hidden)
        return hidden

    def _activation(self, config: Mapping[str, Any]) -> str:
        named = self.said(config, "activation", "gelu")
        # "swiglu" is the gated layer with this activation (Shazeer 2020).
        return "silu" if named == "swiglu" else str(named)


@dataclass(frozen=True, slots=True)
class _Layer:
    """What all layers of one graph have in common."""

    names: TensorNames
    c: Construction
    width: int
    heads: int
    activation: str
    eps: float
    visible: Seen
    turn: Turn

    def embeddings(self) -> str:
        """The first hidden states."""
        graph, weights, width = self.c.graph, self.c.weights, self.width
        total = graph.node("Gather", weights.take(_WORDS, (None, width)), self.c.ids)
        if weights.has(_TYPES):
            several = weights.shape(_TYPES, (None, width))[0] > 1
            # A checkpoint with a single type has it on every token.
            chosen = graph.input("token_type_ids", ["batch", "tokens"]) if several else graph.constant([0])
            total = graph.node("Add", total, graph.node("Gather", weights.take(_TYPES, (None, width)), chosen))
        hidden = self._norm(weights, self.names.embeddings_norm, total)
        return graph.node("Reshape", hidden, graph.constant([-1, width]))

    def __call__(self, weights: Weights, hidden: str) -> str:
        graph, names, width = self.c.graph, self.names, self.width
        attended = linear(weights, names.attention_output, self._attended(weights, hidden), width, width)
        hidden = self._norm(weights, names.attention_norm, graph.node("Add", attended, hidden))
        inner = weights.shape(f"{names.down}.weight", (width, None))[1]
        up, gate = (linear(weights, name, hidden, width, inner, part=part) for name, part in (names.up, names.gate))
        product = graph.node("Mul", ACTIVATIONS[self.activation](graph, gate), up)
        outer = linear(weights, names.down, product, inner, width)
        return self._norm(weights, names.output_norm, graph.node("Add", outer, hidden))

    def _attended(self, weights: Weights, hidden: str) -> str:
        c, width, size = self.c, self.width, self.width // self.heads
        query, key, value = (
            c.split_heads(
                linear(weights, self.names.query_key_value, hidden, width, width, part=(i, 3)), self.heads, size
            )
            for i in range(3)
        )
        query, key = (rotated(c, each, self.turn, size) for each in (query, key))
        key = c.graph.node("Transpose", key, perm=[0, 1, 3, 2])
        return attention(c, query, key, value, seen=self.visible, divisor=math.sqrt(size), width=width)

    def _norm(self, weights: Weights, name: str, value: str) -> str:
        return layer_norm(weights, name, value, self.width, eps=self.eps, needs_bias=True)


_NO = (False,)

_SIZES = {
    "layers": ("num_hidden_layers",),
    "heads": ("num_attention_heads",),
    "hidden": ("hidden_size",),
    "activation": ("hidden_act",),
    "eps": ("layer_norm_eps",),
    "positions": ("max_position_embeddings",),
    "theta": ("rope_theta",),
}

GTE = RotaryBert(
    prefixes=("new.", "gte."),
    names=TensorNames(
        embeddings_norm="embeddings.LayerNorm",
        layer="encoder.layer.{}.",
        query_key_value="attention.qkv_proj",
        attention_output="attention.o_proj",
        attention_norm="attn_ln",
        up=("mlp.up_gate_proj", (0, 2)),
        gate=("mlp.up_gate_proj", (1, 2)),
        down="mlp.down_proj",
        output_norm="mlp_ln",
    ),
    keys=_SIZES,
    computed={
        "position_embedding_type": ("rope",),
        "layer_norm_type": ("layer_norm",),
        "pack_qkv": (True,),
        "logn_attention_scale": _NO,
    },
    theta=10_000.0,
    heads={
        "scores": Classifier(dense="pooler.dense", is_inside=True),
        "words": Vocabulary(
            dense="lm_head.dense",
            norm="lm_head.norm",
            decoder="lm_head.decoder",
            bias="lm_head.bias",
            embeddings=_WORDS,
            activation="gelu",
        ),
    },
)

NOMIC = RotaryBert(
    prefixes=("nomic_bert.", "bert."),
    names=TensorNames(
        embeddings_norm="emb_ln",
        layer="encoder.layers.{}.",
        query_key_value="attn.Wqkv",
        attention_output="attn.out_proj",
        attention_norm="norm1",
        up=("mlp.fc11", (0, 1)),
        gate=("mlp.fc12", (0, 1)),
        down="mlp.fc2",
        output_norm="norm2",
    ),
    keys={
        "layers": ("n_layer", "num_hidden_layers"),
        "heads": ("n_head", "num_attention_heads"),
        "hidden": ("n_embd", "hidden_size"),
        "activation": ("activation_function", "hidden_act"),
        "eps": ("layer_norm_epsilon", "layer_norm_eps"),
        "positions": ("n_positions", "max_position_embeddings"),
        "theta": ("rotary_emb_base", "rope_theta"),
    },
    computed={
        "activation_function": ("swiglu",),
        "rotary_emb_fraction": (1,),
        "rotary_emb_interleaved": _NO,
        "rotary_emb_scale_base": (),
        "rotary_scaling_factor": (),
        "prenorm": _NO,
        "parallel_block": _NO,
        "causal": _NO,
        "use_rms_norm": _NO,
        "moe_every_n_layers": (0,),
    },
    theta=1_000.0,
    heads={
        "scores": Classifier(dense="pooler.dense", is_inside=True),
        "words": Vocabulary(
            dense="cls.predictions.transform.dense",
            norm="cls.predictions.transform.layer_norm",
            decoder="cls.predictions.decoder",
            bias="cls.predictions.bias",
            embeddings=_WORDS,
            activation="silu",
            eps_key=None,
        ),
    },
)
