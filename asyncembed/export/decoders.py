"""The graphs of language models that read on, and of encoders that are built like them.

They are Llama, Mistral, Qwen2, Qwen3, Gemma3 and EuroBERT. Layers normalise before attention and before a gated map
(Gemma3: after them, too), positions rotate, and several heads of queries share one of keys and values. Sources: Touvron
et al. 2023 (the layer), Ainslie et al. 2023 (shared heads), Jiang et al. 2023 (Mistral), Gemma Team 2025, Boizard et
al. 2025 (EuroBERT), and, for names and defaults, the `transformers` library. Each architecture is a `Decoder` record.
Biases are where the checkpoint has them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.export.attention import CAUSAL, EVERYTHING, Reach, Seen, attention, repeated, seen
from asyncembed.export.blocks import ACTIVATIONS, gated, linear, rms_norm
from asyncembed.export.construction import Construction, Weights
from asyncembed.export.heads import HeadBuilder, HeadName, first_token, last_token, mean, scores, words
from asyncembed.export.objections import activation_objections, eps_objections, is_size, size_objections
from asyncembed.export.onnx_builder import INT64
from asyncembed.export.rotary import Turn, parameters, rotated, rotation, rotation_objections, turn
from asyncembed.repo_files import quoted
from asyncembed.runtime.session import Array

_FULL, _SLIDING = "full_attention", "sliding_attention"

_WINDOW = 4096  # where config.json has none

_POOLINGS = ("late", "bos", "mean")  # of EuroBERT's classifiers


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """One architecture.

    Attributes:
        heads: What may stand on its hidden states.
        reads_on: Whether a token sees those before it only, unless config.json says otherwise.
        own_code: The class of the code that its repos may bring, which computes the same.
        sliding: Which layers see only those tokens that are near: those that config.json says, none, or all, unless
            its window is null.
        head_size: Numbers per head where config.json has none; None: the width divided by the number of heads.
        activation: Of the gated map, where config.json names none.
        activation_key: Where it names one.
        has_biases: Whether the maps to queries, keys and values have biases whatever config.json says.
        normalizes_heads: Whether queries and keys are normalised, head by head.
        norm_eps, theta: Of the norms and of the rotation, where config.json has none.
        is_gemma: Whether scales are 1 + weight, what a layer's two halves give is normalised as well, embeddings are
            scaled, and queries are scaled by a number of config.json's.
    """

    heads: Mapping[HeadName, HeadBuilder]
    reads_on: bool = True
    own_code: str | None = None
    sliding: Literal["some", "none", "all"] = "some"
    head_size: int | None = None
    activation: str = "silu"
    activation_key: str = "hidden_act"
    has_biases: bool = False
    normalizes_heads: bool = False
    norm_eps: float = 1e-6
    theta: float = 10000.0
    is_gemma: bool = False
    prefixes: tuple[str, ...] = ("model.",)
    word_embeddings: str = "embed_tokens.weight"

    @property
    def brings_code(self) -> bool:
        return self.own_code is not None

    def width(self, config: Mapping[str, Any]) -> int:
        return int(config["hidden_size"])

    def objections(self, config: Mapping[str, Any]) -> Iterator[str]:
        yield from size_objections(config, "hidden_size", "num_hidden_layers", "num_attention_heads")
        optional = ("num_key_value_heads", "head_dim", "query_pre_attn_scalar")
        yield from size_objections(config, *(key for key in optional if config.get(key) is not None))
        size = self._head_size(config)
        if config["num_attention_heads"] % _shared(config) or size < 2 or size % 2:
            yield "has numbers of heads and of their sizes that do not fit each other"
        yield from activation_objections(self.activation_key, config.get(self.activation_key, self.activation))
        yield from eps_objections("rms_norm_eps", config.get("rms_norm_eps", self.norm_eps))
        yield from self._use_objections(config)
        yield from self._kind_objections(config)

    def _use_objections(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Likewise, of what some checkpoints ask for."""
        own = config.get("auto_map")
        named = own.get("AutoModel") if isinstance(own, dict) else None
        if self.brings_code and named is not None and not str(named).endswith(f".{self.own_code}"):
            yield f"says that the model brings code of its own (auto_map: {quoted(named)})"
        if self.is_gemma and config.get("query_pre_attn_scalar", 256) is None:
            yield "has no usable query_pre_attn_scalar"
        if config.get("attn_logit_softcapping") is not None:
            yield "bounds the scores of attention (attn_logit_softcapping), and only scores as they are are computed"
        padding, pooling = config.get("pad_token_id"), config.get("classifier_pooling", "late")
        if padding is not None and not (type(padding) is int and -(2**31) < padding < 2**31):
            yield f"has pad_token_id = {quoted(padding)}"
        if pooling not in _POOLINGS:
            yield f"has classifier_pooling = {quoted(pooling)}, and only {', '.join(_POOLINGS)} are computed"
        if config.get("layer_types") is not None and not isinstance(config["layer_types"], list):
            yield "has layer_types that are no list"
        counts = ("max_window_layers", "sliding_window_pattern", "_sliding_window_pattern")
        yield from size_objections(config, *(key for key in counts if config.get(key) is not None), least=0)

    def _kind_objections(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Likewise, of how far layers see, and how they rotate."""
        if self.is_gemma and config.get("is_causal") is False and not config.get("use_bidirectional_attention"):
            yield "has is_causal = False, and of this architecture only use_bidirectional_attention is computed"
        if self.sliding != "some" and config.get("use_bidirectional_attention") and self._reads_on(config):
            yield "has use_bidirectional_attention, and of this architecture only is_causal is computed"
        kinds = self._kinds(config)
        if len(kinds) != config["num_hidden_layers"] or not all(kind in (_FULL, _SLIDING) for kind in kinds):
            yield "has layer_types that are not one of full_attention and sliding_attention for each layer"
        for key in ("rope_theta", "rope_local_base_freq"):
            if key in config and not _is_base(config[key]):
                yield f"has no usable {key}"
        if _SLIDING in kinds and not is_size(config.get("sliding_window", _WINDOW)):
            yield "has no usable sliding_window"
        for kind in dict.fromkeys(kinds):
            said = self._rotary(config, kind)
            if {**config, **said}.get("partial_rotary_factor", 1) != 1:
                yield "rotates a part of each head (partial_rotary_factor), and only whole heads are computed"
            yield from rotation_objections(said, config.get("max_position_embeddings"))

    def encode(self, c: Construction) -> str:
        graph, config, weights = c.graph, c.config, c.weights
        width = self.width(config)
        if c.all_weights.has("linear.weight"):
            reason = "whose hidden states are projected by a tensor linear.weight, and that has not been verified"
            raise UnsupportedModelError(f"{weights.model} is a model {reason}: use a repo that has an ONNX file")
        hidden = graph.node("Gather", weights.take(self.word_embeddings, (None, width)), c.ids)
        hidden = graph.node("Reshape", hidden, graph.constant([-1, width]))
        if self.is_gemma:
            hidden = graph.node("Mul", hidden, graph.constant(math.sqrt(width)))
        kinds = self._kinds(config)
        views = {kind: self._view(c, kind) for kind in dict.fromkeys(kinds)}
        for i, kind in enumerate(kinds):
            hidden = self._layer(c, weights.under(f"layers.{i}."), hidden, views[kind])
        return self._norm(c, weights, "norm", hidden, width)

    # What layers of one kind have in common

    def _view(self, c: Construction, kind: str) -> "_View":
        config, size = c.config, self._head_size(c.config)
        said = self._rotary(config, kind)
        turned = rotation(
            said, size=size, theta=self._theta(config, kind), longest=config.get("max_position_embeddings")
        )
        return _View(seen(c, self._reach(config, kind)), turn(c, turned))

    def _kinds(self, config: Mapping[str, Any]) -> list[str]:
        """The kind of each layer."""
        layers = config["num_hidden_layers"]
        if self.sliding != "some":
            slides = self.sliding == "all" and config.get("sliding_window", _WINDOW) is not None
            return [_SLIDING if slides else _FULL] * layers
        if isinstance(types := config.get("layer_types"), list):
            return types
        if self.is_gemma:
            every = config.get("sliding_window_pattern", config.get("_sliding_window_pattern"))
            every = every if is_size(every) else 6
            return [_SLIDING if (i + 1) % every else _FULL for i in range(layers)]
        if not config.get("use_sliding_window"):
            return [_FULL] * layers
        first = config.get("max_window_layers")
        return [_SLIDING if i >= (28 if first is None else first) else _FULL for i in range(layers)]

    def _reads_on(self, config: Mapping[str, Any]) -> bool:
        return self.reads_on and config.get("is_causal") is not False

    def _reach(self, config: Mapping[str, Any], kind: str) -> Reach:
        reads_on = self._reads_on(config) and not config.get("use_bidirectional_attention")
        if kind == _FULL:
            return CAUSAL if reads_on else EVERYTHING
        window = config.get("sliding_window", _WINDOW)
        if reads_on:
            return Reach(before=window - 1, after=0)
        half = window // 2 if self.is_gemma else window
        return Reach(before=half, after=half)

    def _rotary(self, config: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
        """What config.json says of the rotation in layers of this kind."""
        said = parameters(config, kind)
        # Older files of Gemma3 have one object, for the layers that see everything.
        return {} if self.is_gemma and kind == _SLIDING and said is config.get("rope_scaling") else said

    def _theta(self, config: Mapping[str, Any], kind: str) -> float:
        if not self.is_gemma:
            return float(config.get("rope_theta", self.theta))
        keys = {_FULL: ("rope_theta", 1e6), _SLIDING: ("rope_local_base_freq", 1e4)}
        return float(config.get(*keys[kind]))

    # One layer

    def _layer(self, c: Construction, weights: Weights, hidden: str, view: "_View") -> str:
        width = self.width(c.config)
        after, before = "post_attention_layernorm", "pre_feedforward_layernorm"

        def added(part: str, hidden: str, norm: str) -> str:
            return c.graph.node("Add", hidden, self._norm(c, weights, norm, part, width) if self.is_gemma else part)

        inner = self._norm(c, weights, "input_layernorm", hidden, width)
        hidden = added(self._attention(c, weights.under("self_attn."), inner, view), hidden, after)
        inner = self._norm(c, weights, before if self.is_gemma else after, hidden, width)
        activation = ACTIVATIONS[c.config.get(self.activation_key, self.activation)]
        outer = gated(weights, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", inner, width, activation=activation)
        return added(outer, hidden, "post_feedforward_layernorm")

    def _attention(self, c: Construction, weights: Weights, hidden: str, view: "_View") -> str:
        config, width, size = c.config, self.width(c.config), self._head_size(c.config)
        heads, shared = config["num_attention_heads"], _shared(config)

        query = rotated(c, self._heads(c, weights, "q", hidden, heads), view.turn, size)
        key = rotated(c, self._heads(c, weights, "k", hidden, shared), view.turn, size)
        key = c.graph.node("Transpose", key, perm=[0, 1, 3, 2])
        value = self._heads(c, weights, "v", hidden, shared)
        context = attention(
            c,
            query,
            repeated(c, key, shared, heads // shared),
            repeated(c, value, shared, heads // shared),
            seen=view.seen,
            divisor=math.sqrt(config.get("query_pre_attn_scalar", 256) if self.is_gemma else size),
            width=heads * size,
        )
        return linear(weights, "o_proj", context, heads * size, width)

    def _heads(self, c: Construction, weights: Weights, name: str, hidden: str, count: int) -> str:
        """The queries, keys or values: (batch, count, tokens, size)."""
        size, needs_bias = self._head_size(c.config), self.has_biases or c.config.get("attention_bias") is True
        flat = linear(weights, f"{name}_proj", hidden, self.width(c.config), count * size, needs_bias=needs_bias)
        apart = c.split_heads(flat, count, size)
        if not self.normalizes_heads or name == "v":
            return apart
        return self._norm(c, weights, f"{name}_norm", apart, size)

    def _norm(self, c: Construction, weights: Weights, name: str, value: str, width: int) -> str:
        eps = float(c.config.get("rms_norm_eps", self.norm_eps))
        return rms_norm(weights, name, value, width, eps=eps, plus_one=self.is_gemma)

    def _head_size(self, config: Mapping[str, Any]) -> int:
        size = config.get("head_dim") or self.head_size or config["hidden_size"] // config["num_attention_heads"]
        return int(size)


@dataclass(frozen=True, slots=True)
class _View:
    """What layers of one kind see, and how they rotate."""

    seen: Seen
    turn: Turn


def _shared(config: Mapping[str, Any]) -> int:
    """How many heads of keys and values there are."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def _is_base(value: object) -> bool:
    return isinstance(value, int | float) and 1 < value < 2**63


# What may stand on the hidden states


def _classifier(c: Construction, hidden: str) -> None:
    """One linear map of the state at the rightmost id that is not the padding's; the mask does not count."""
    width = c.config["hidden_size"]
    padding = c.config.get("pad_token_id")
    real = c.mask
    if padding is not None:
        differs = c.graph.node("Not", c.graph.node("Equal", c.ids, c.graph.constant(padding)))
        real = c.graph.node("Cast", differs, to=INT64)
    labels = c.all_weights.shape("score.weight", (None, width))[0]
    scores(c, linear(c.all_weights, "score", last_token(c, hidden, real), width, labels), labels)


def _late_classifier(c: Construction, hidden: str) -> None:
    """EuroBERT's: two maps, of the first token's state, of the mean, or of all with the mean of what they give."""
    width = c.config["hidden_size"]
    pooling = c.config.get("classifier_pooling", "late")
    labels = c.all_weights.shape("classifier.weight", (None, width))[0]
    if pooling == "bos":
        hidden = first_token(c, hidden, width)
    elif pooling == "mean":
        hidden = mean(c, hidden, width)
    inner = ACTIVATIONS["gelu"](c.graph, linear(c.all_weights, "dense", hidden, width, width, needs_bias=True))
    logits = linear(c.all_weights, "classifier", inner, width, labels, needs_bias=True)
    scores(c, mean(c, logits, labels) if pooling == "late" else logits, labels)


def _words(c: Construction, hidden: str) -> None:
    """EuroBERT's masked language model: a linear map to the words."""
    words(c, hidden, "lm_head", f"embed_tokens.{_WEIGHT}", c.config["hidden_size"], tied=False)


def _answer(c: Construction, hidden: str) -> None:
    """How much likelier one word is to come next than another, by two rows of the matrix of words."""
    asked, width = c.answer, c.config["hidden_size"]
    assert asked is not None, "what is asked goes with this head"
    matrix = _word_matrix(c)
    vocabulary = matrix.shape(_WEIGHT, (None, width))[0]
    if not 0 <= asked.yes < vocabulary or not 0 <= (asked.no or 0) < vocabulary:
        raise ModelLoadError(f"{c.weights.model} has {vocabulary} words, and none of the id {asked.yes} or {asked.no}")

    yes, no = (None if id_ is None else matrix.reader(_WEIGHT, slice(id_, id_ + 1)) for id_ in (asked.yes, asked.no))

    def difference() -> Array:
        assert yes is not None, "there is always one"
        row = yes().astype(np.float32)
        return row if no is None else row - no().astype(np.float32)

    row = c.graph.weight(f"{matrix.prefix}{_WEIGHT} {asked}", (1, width), difference)
    scores(c, c.graph.node("Gemm", last_token(c, hidden, c.mask), row, transB=1), 1)


_WEIGHT = "weight"


def _word_matrix(c: Construction) -> Weights:
    """Where the matrix of the words to come is: a head that is stored comes before the words that are read."""
    if c.all_weights.has("lm_head.weight") or c.config.get("tie_word_embeddings") is not True:
        return c.all_weights.under("lm_head.")
    return c.weights.under("embed_tokens.")


QWEN3 = Decoder(head_size=128, normalizes_heads=True, heads={"scores": _classifier, "answer": _answer})

QWEN2 = Decoder(has_biases=True, heads={"scores": _classifier, "answer": _answer})

GEMMA3 = Decoder(
    head_size=256,
    normalizes_heads=True,
    activation="gelu_pytorch_tanh",
    activation_key="hidden_activation",
    is_gemma=True,
    heads={"scores": _classifier},
)

LLAMA = Decoder(sliding="none", heads={"scores": _classifier, "answer": _answer})

# Nvidia's embedders. What stands on its rerankers is another head.
LLAMA_BIDIRECTIONAL = Decoder(reads_on=False, own_code="LlamaBidirectionalModel", sliding="none", heads={})

MISTRAL = Decoder(sliding="all", heads={"scores": _classifier, "answer": _answer})

EUROBERT = Decoder(
    reads_on=False,
    own_code="EuroBertModel",
    norm_eps=1e-5,
    theta=250000.0,
    heads={"scores": _late_classifier, "words": _words},
)
