"""The graph of a BERT-like encoder: embeddings, then layers that normalise after each residual sum.

Sources: Vaswani et al. 2017 (the layer), Devlin et al. 2019 (BERT), Liu et al. 2019 (RoBERTa), Sanh et al.
2019 (DistilBERT), Song et al. 2020 (MPNet), and, for names and defaults, the `transformers` library. An
architecture of this kind is a `BertLike` record: the keys of its config.json and the names of its tensors.

Nodes are laid out so that onnxruntime's own fusions find them (Attention, SkipLayerNormalization, BiasGelu,
FastGelu); nothing but standard operators is used, so any ONNX runtime takes the graph.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.export.graph import Graph
from asyncembed.runtime.safetensors import Tensors
from asyncembed.runtime.session import Array

# onnxruntime's fusion of BERT attention matches the operators as opset 12 has them: from 13 on, where
# Unsqueeze takes its axes as an input, it matches nothing. OpenVINO takes 12 as well.
OPSET = 12

# Added to the scores of padding before softmax. The lowest float32: its exponential is exactly 0, whereas the
# customary -10000 can lose against large scores, and -inf gives NaN in a row that is all padding.
_MASKED = float(np.finfo(np.float32).min)

# Keys of config.json with the only value that is computed; no such key means the same.
_COMPUTED: Mapping[str, object] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "quantization_config": None,
}

_WORDS = "embeddings.word_embeddings.weight"
_WIDENING = "embeddings_project"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigKeys:
    """What config.json calls the numbers, by what they are here."""

    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    hidden: str = "hidden_size"
    activation: str = "hidden_act"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """What the checkpoint calls the modules of one layer, without the layer's own prefix."""

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
    """

    prefix: str
    keys: ConfigKeys = field(default_factory=ConfigKeys)
    names: TensorNames = field(default_factory=TensorNames)
    positions: Literal["absolute", "after_padding"] = "absolute"
    relative_bias: str | None = None
    norm_eps: float = 1e-12
    padding_id: int = 0

    def check(self, config: Mapping[str, object], model: str) -> None:
        """Raise `UnsupportedModelError` where `config` asks for something that `build` does not compute."""
        _Numbers.read(self, config, model)

    def build(self, config: Mapping[str, object], tensors: Tensors, model: str) -> Graph:
        """The graph of the encoder that `config` describes, with the weights `tensors`.

        Inputs, int64 (batch, tokens): `input_ids`, `attention_mask` (1 for a real token, 0 for padding), and,
        if the checkpoint has more than one token type, `token_type_ids`. Output: `last_hidden_state`, float32
        (batch, tokens, dim).

        Raises:
            UnsupportedModelError: The config asks for something that this graph does not compute.
            ModelLoadError: A weight is missing, or has a shape that does not fit.
        """
        return _Builder(self, _Numbers.read(self, config, model), tensors, model).build()


@dataclass(frozen=True, slots=True)
class _Numbers:
    """What the graph needs of config.json; all other sizes are those of the tensors."""

    layers: int
    heads: int
    hidden: int
    activation: Callable[[Graph, str], str]
    norm_eps: float
    padding_id: int

    @classmethod
    def read(cls, architecture: BertLike, config: Mapping[str, object], model: str) -> "_Numbers":
        """Raises `UnsupportedModelError` where the graph would not be the encoder that `config` describes."""

        def refuse(reason: str) -> UnsupportedModelError:
            return UnsupportedModelError(
                f"no ONNX graph can be built of {model}: its config.json {reason}; use a repo that has an ONNX file",
                model=model,
            )

        def size(key: str, default: int | None = None) -> int:
            value = config.get(key, default)
            if not isinstance(value, int) or value < 0:
                raise refuse(f"has no usable {key}")
            return value

        for key, computed in _COMPUTED.items():
            if config.get(key) not in (None, computed):
                raise refuse(f"has {key} = {config[key]!r}, and only {computed!r} is computed")
        keys = architecture.keys
        heads, hidden = size(keys.heads), size(keys.hidden)
        if heads == 0 or hidden % heads:
            raise refuse(f"divides {hidden} dimensions among {heads} heads")
        name = config.get(keys.activation, "gelu")
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise refuse(f"has the activation {name!r}, and those computed are {', '.join(ACTIVATIONS)}")
        eps = config.get("layer_norm_eps", architecture.norm_eps)
        if not isinstance(eps, float | int):
            raise refuse("has no usable layer_norm_eps")
        return cls(
            layers=size(keys.layers),
            heads=heads,
            hidden=hidden,
            activation=ACTIVATIONS[name],
            norm_eps=float(eps),
            padding_id=size("pad_token_id", architecture.padding_id),
        )


class _Builder:
    """One build: what all its steps share."""

    def __init__(self, architecture: BertLike, numbers: _Numbers, tensors: Tensors, model: str) -> None:
        self.architecture = architecture
        self.names = architecture.names
        self.numbers = numbers
        self.tensors = tensors
        self.model = model
        self.graph = Graph(OPSET)
        # A checkpoint that was saved with a task's head around the encoder has a prefix before every name.
        self.prefix = architecture.prefix if architecture.prefix + _WORDS in tensors else ""

    def build(self) -> Graph:
        graph = self.graph
        ids = graph.input("input_ids", ["batch", "tokens"])
        mask = graph.input("attention_mask", ["batch", "tokens"])
        hidden = self._embeddings(ids)
        bias = self._score_bias(ids, mask)
        for i in range(self.numbers.layers):
            hidden = self._layer(self.names.layer.format(i), hidden, bias)
        graph.output(hidden, "last_hidden_state", ["batch", "tokens", self.numbers.hidden])
        return graph

    # From tokens to the first hidden state

    def _embeddings(self, ids: str) -> str:
        graph = self.graph
        words = graph.node("Gather", self._weight(_WORDS), ids)
        total = words
        if f"{self.prefix}embeddings.token_type_embeddings.weight" in self.tensors:
            types = self._weight("embeddings.token_type_embeddings.weight")
            if self._shape("embeddings.token_type_embeddings.weight")[0] > 1:
                chosen = graph.input("token_type_ids", ["batch", "tokens"])
            else:
                chosen = graph.constant([0])  # every token has the only type
            total = graph.node("Add", total, graph.node("Gather", types, chosen))
        total = graph.node("Add", total, self._position_embeddings(ids))
        hidden = self._norm("embeddings.LayerNorm", total)
        if f"{self.prefix}{_WIDENING}.weight" in self.tensors:
            return self._linear(_WIDENING, hidden)
        return hidden

    def _position_embeddings(self, ids: str) -> str:
        graph = self.graph
        table = self._weight("embeddings.position_embeddings.weight")
        if self.architecture.positions == "absolute":
            return str(graph.node("Slice", table, graph.constant([0]), self._token_count(ids), graph.constant([0])))
        padding = graph.constant(self.numbers.padding_id)
        real = graph.node("Cast", graph.node("Not", graph.node("Equal", ids, padding)), to=7)
        counted = graph.node("Mul", graph.node("CumSum", real, graph.constant(1)), real)
        return str(graph.node("Gather", table, graph.node("Add", counted, padding)))

    def _token_count(self, ids: str) -> str:
        """The length of the padded batch, int64 (1,)."""
        graph = self.graph
        return str(graph.node("Gather", graph.node("Shape", ids), graph.constant([1]), axis=0))

    # What is added to the attention scores of every layer

    def _score_bias(self, ids: str, mask: str) -> str:
        """What hides the padding, and favours some distances; broadcasts to (batch, heads, tokens, tokens)."""
        graph = self.graph
        wide = graph.node("Unsqueeze", graph.node("Unsqueeze", mask, axes=[1]), axes=[2])
        padding = graph.node("Sub", graph.constant(1.0), graph.node("Cast", wide, to=1))
        bias = str(graph.node("Mul", padding, graph.constant(_MASKED)))
        if self.architecture.relative_bias is not None:
            bias = str(graph.node("Add", self._distance_bias(self.architecture.relative_bias, ids), bias))
        return bias

    def _distance_bias(self, name: str, ids: str) -> str:
        """A bias per head and distance from the query's token to the key's, float32 (heads, tokens, tokens)."""
        graph, tensors, full_name = self.graph, self.tensors, self.prefix + name
        buckets, heads = self._shape(name)
        longest = self._shape("embeddings.position_embeddings.weight")[0]

        def load() -> Array:
            """Column i holds the bias of the distance i - (longest - 1)."""
            return tensors[full_name][_distance_buckets(longest, buckets)].T

        table = graph.weight(name, (heads, 2 * longest - 1), load)
        tokens = graph.node("Squeeze", self._token_count(ids), axes=[0])
        at = graph.node("Range", graph.constant(0), tokens, graph.constant(1))
        distance = graph.node("Sub", at, graph.node("Unsqueeze", at, axes=[1]))
        return str(graph.node("Gather", table, graph.node("Add", distance, graph.constant(longest - 1)), axis=1))

    # One layer

    def _layer(self, prefix: str, hidden: str, bias: str) -> str:
        graph, names = self.graph, self.names
        attended = self._linear(prefix + names.attention_output, self._attention(prefix, hidden, bias))
        hidden = self._norm(prefix + names.attention_norm, graph.node("Add", attended, hidden))
        inner = self.numbers.activation(graph, self._linear(prefix + names.intermediate, hidden))
        outer = self._linear(prefix + names.output, inner)
        return self._norm(prefix + names.output_norm, graph.node("Add", outer, hidden))

    def _attention(self, prefix: str, hidden: str, bias: str) -> str:
        graph, names = self.graph, self.names
        size = self.numbers.hidden // self.numbers.heads
        split = graph.constant([0, 0, self.numbers.heads, size])

        def heads(name: str, order: list[int]) -> str:
            flat = self._linear(prefix + name, hidden)
            return str(graph.node("Transpose", graph.node("Reshape", flat, split), perm=order))

        query, key = heads(names.query, [0, 2, 1, 3]), heads(names.key, [0, 2, 3, 1])
        value = heads(names.value, [0, 2, 1, 3])
        scores = graph.node("Div", graph.node("MatMul", query, key), graph.constant(math.sqrt(size)))
        weights = graph.node("Softmax", graph.node("Add", scores, bias), axis=3)
        context = graph.node("Transpose", graph.node("MatMul", weights, value), perm=[0, 2, 1, 3])
        return str(graph.node("Reshape", context, graph.constant([0, 0, self.numbers.hidden])))

    def _linear(self, name: str, value: str) -> str:
        """`value` · weightᵀ + bias: the checkpoint keeps the weight as (outputs, inputs)."""
        product = self.graph.node("MatMul", value, self._weight(f"{name}.weight", transpose=True))
        return str(self.graph.node("Add", product, self._weight(f"{name}.bias")))

    def _norm(self, name: str, value: str) -> str:
        """Layer normalisation over the last axis (Ba et al. 2016), for which opset 12 has no operator."""
        graph = self.graph
        centred = graph.node("Sub", value, graph.node("ReduceMean", value, axes=[-1]))
        square = graph.node("Pow", centred, graph.constant(2.0))
        variance = graph.node("ReduceMean", square, axes=[-1])
        deviation = graph.node("Sqrt", graph.node("Add", variance, graph.constant(self.numbers.norm_eps)))
        scaled = graph.node("Mul", graph.node("Div", centred, deviation), self._norm_weight(name, "weight"))
        return str(graph.node("Add", scaled, self._norm_weight(name, "bias")))

    # Weights and config

    def _norm_weight(self, name: str, part: Literal["weight", "bias"]) -> str:
        # Checkpoints that came from TensorFlow keep its names.
        old = {"weight": "gamma", "bias": "beta"}[part]
        return self._weight(f"{name}.{old if f'{self.prefix}{name}.{old}' in self.tensors else part}")

    def _weight(self, name: str, *, transpose: bool = False) -> str:
        shape = self._shape(name)
        tensors, full_name = self.tensors, self.prefix + name

        def load() -> Array:
            return tensors[full_name].T if transpose else tensors[full_name]

        return self.graph.weight(name, shape[::-1] if transpose else shape, load)

    def _shape(self, name: str) -> tuple[int, ...]:
        try:
            return self.tensors.shape(self.prefix + name)
        except KeyError:
            raise ModelLoadError(
                f"{self.model} cannot be exported: the tensor {self.prefix}{name} is missing",
                model=self.model,
            ) from None


def _distance_buckets(longest: int, buckets: int) -> npt.NDArray[np.int64]:
    """The bucket of every distance from 1 - longest to longest - 1, key's position minus query's.

    One half of the buckets is for keys before the query, one for keys after it. In each, the first half holds one
    distance per bucket, the second half distances up to 128 in logarithmic steps, and the last bucket all beyond.
    Source: Raffel et al. 2020 (T5), section 2.1, bidirectional, as in MPNet.
    """
    farthest = 128
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


def _gelu(graph: Graph, value: str) -> str:
    """Compute x · Φ(x) with the exact normal distribution (Hendrycks and Gimpel 2016)."""
    error = graph.node("Erf", graph.node("Div", value, graph.constant(math.sqrt(2.0))))
    doubled = graph.node("Mul", value, graph.node("Add", error, graph.constant(1.0)))
    return str(graph.node("Mul", doubled, graph.constant(0.5)))


def _gelu_tanh(graph: Graph, value: str) -> str:
    """The same approximated: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))."""
    cubic = graph.node("Mul", graph.node("Pow", value, graph.constant(3.0)), graph.constant(0.044715))
    inner = graph.node("Mul", graph.node("Add", value, cubic), graph.constant(math.sqrt(2.0 / math.pi)))
    tanh = graph.node("Add", graph.node("Tanh", inner), graph.constant(1.0))
    return str(graph.node("Mul", graph.node("Mul", value, graph.constant(0.5)), tanh))


def _relu(graph: Graph, value: str) -> str:
    return str(graph.node("Relu", value))


def _silu(graph: Graph, value: str) -> str:
    return str(graph.node("Mul", value, graph.node("Sigmoid", value)))


ACTIVATIONS: Mapping[str, Callable[[Graph, str], str]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": _relu,
    "silu": _silu,
    "swish": _silu,
}

BERT = BertLike(prefix="bert.")

ROBERTA = BertLike(prefix="roberta.", positions="after_padding", padding_id=1)

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
)

# Its embeddings may be narrower than its layers: `embeddings_project` then widens them.
ELECTRA = BertLike(prefix="electra.")
