"""The graph of a BERT-like encoder: embeddings, then layers that normalise after each residual sum.

Sources: Vaswani et al. 2017 (the layer), Devlin et al. 2019 (BERT), Liu et al. 2019 (RoBERTa), Sanh et al.
2019 (DistilBERT), Song et al. 2020 (MPNet), and, for names and defaults, the `transformers` library. An
architecture of this kind is a `BertLike` record: the keys of its config.json and the names of its tensors.

Hidden states are flat, (batch · tokens, dim), so that each linear layer is one Gemm that adds its bias as it
goes. Nothing but standard operators is used, so that any ONNX runtime takes the graph.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.export.onnx_builder import Graph
from asyncembed.repo_files import quoted, read_json
from asyncembed.runtime.safetensors import Tensors
from asyncembed.runtime.session import Array

# The first with LayerNormalization, and one that onnxruntime and OpenVINO have long known. At opset 12, and
# with MatMul and Add for Gemm, onnxruntime's optimiser makes its own Attention operator of the same graph: on
# a CPU that measured 3 to 6 % faster for one text of 512 tokens, and up to 5 % slower for batches of shorter ones.
OPSET = 17

# Element types as `onnx.TensorProto` numbers them.
_FLOAT = 1
_INT64 = 7

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

# MPNet's relative attention bias: these are fixed in its definition, not in config.json.
_BUCKETS = 32
_FARTHEST = 128

_WORDS = "embeddings.word_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"
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


@dataclass(frozen=True, slots=True)
class BertConfig:
    """What the graph needs of config.json; all other sizes are those of the tensors. `model` is for messages."""

    model: str
    architecture: BertLike
    layers: int
    heads: int
    hidden: int
    activation: Callable[[Graph, str], str]
    norm_eps: float
    padding_id: int

    def build(self, tensors: Tensors) -> Graph:
        """The graph of this encoder, with the weights `tensors`.

        Inputs, int64 (batch, tokens): `input_ids`, `attention_mask` (1 for a real token, 0 for padding), and,
        if the checkpoint has more than one token type, `token_type_ids`. Output: `last_hidden_state`, float32
        (batch, tokens, dim).

        Raises:
            UnsupportedModelError: A weight is quantised.
            ModelLoadError: A weight is missing, or has a shape that does not fit.
        """
        return _Builder(self, tensors).build()


def read_config(directory: Path) -> BertConfig:
    """What the `config.json` of `directory` asks for.

    Raises:
        ModelLoadError: There is no config.json, or it is broken.
        UnsupportedModelError: The architecture is not known, or the graph would not be the encoder that is described.
    """
    model = str(directory)
    config = read_json(directory / "config.json")
    if not isinstance(config, dict):
        raise ModelLoadError(f"{directory / 'config.json'} cannot be read: it is no JSON object", model=model)
    for objection in _objections(config):
        raise UnsupportedModelError(
            f"{model} has no ONNX file, and none can be built: its config.json {objection}; use a repo that has one",
            model=model,
        )
    architecture = ARCHITECTURES[config["model_type"]]
    keys = architecture.keys
    return BertConfig(
        model=model,
        architecture=architecture,
        layers=config[keys.layers],
        heads=config[keys.heads],
        hidden=config[keys.hidden],
        activation=ACTIVATIONS[config.get(keys.activation, "gelu")],
        norm_eps=float(config.get("layer_norm_eps", architecture.norm_eps)),
        padding_id=config.get("pad_token_id", architecture.padding_id),
    )


def _objections(config: Mapping[str, Any]) -> Iterator[str]:
    """Why the graph would not be the encoder that `config` describes. Whoever goes on after one must not."""
    name = config.get("model_type")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        yield f"names the architecture {quoted(name)}, and those known are {', '.join(ARCHITECTURES)}"
    custom = config.get("auto_map")
    if isinstance(custom, dict) and "AutoModel" in custom:
        yield f"says that the model brings code of its own (auto_map: {quoted(custom['AutoModel'])})"
    for key, computed in _COMPUTED.items():
        if config.get(key) not in (None, computed):
            yield f"has {key} = {quoted(config[key])}, and only {computed!r} is computed"
    architecture = ARCHITECTURES[config["model_type"]]
    keys = architecture.keys
    sizes = {"pad_token_id": architecture.padding_id, **config}
    for key in (keys.layers, keys.heads, keys.hidden, "pad_token_id"):
        if not isinstance(sizes.get(key), int) or not 0 <= sizes[key] < 2**31:
            yield f"has no usable {key}"
    heads, hidden = config[keys.heads], config[keys.hidden]
    if heads == 0 or hidden % heads:
        yield f"has {keys.heads} = {heads}, which does not divide {keys.hidden} = {hidden}"
    activation = config.get(keys.activation, "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        yield f"has {keys.activation} = {quoted(activation)}, and those computed are {', '.join(ACTIVATIONS)}"
    eps = config.get("layer_norm_eps", architecture.norm_eps)
    if not isinstance(eps, float | int) or not 0 <= eps <= 1:
        yield "has no usable layer_norm_eps"


class _Builder:
    """One build: what all its steps share. Hidden states are float32 (batch · tokens, dim) throughout."""

    def __init__(self, config: BertConfig, tensors: Tensors) -> None:
        self.architecture = architecture = config.architecture
        self.names = architecture.names
        self.config = config
        self.tensors = tensors
        self.graph = Graph(OPSET)
        # A checkpoint that was saved with a task's head around the encoder has a prefix before every name.
        self.prefix = architecture.prefix if architecture.prefix + _WORDS in tensors else ""

    def build(self) -> Graph:
        graph, config = self.graph, self.config
        ids = graph.input("input_ids", ["batch", "tokens"])
        mask = graph.input("attention_mask", ["batch", "tokens"])
        shape = graph.node("Shape", ids)
        tokens = graph.node("Gather", shape, graph.constant([1]), axis=0)
        hidden = self._embeddings(ids, tokens)
        bias = self._score_bias(mask, tokens)
        per_head = graph.constant([config.heads, config.hidden // config.heads])
        per_head = graph.node("Concat", shape, per_head, axis=0)
        for i in range(config.layers):
            hidden = self._layer(self.names.layer.format(i), hidden, bias, per_head)
        whole = graph.node("Concat", shape, graph.constant([config.hidden]), axis=0)
        hidden = graph.node("Reshape", hidden, whole)
        graph.output(hidden, "last_hidden_state", ["batch", "tokens", config.hidden])
        return graph

    # From tokens to the first hidden state

    def _embeddings(self, ids: str, tokens: str) -> str:
        graph = self.graph
        width = self._checked_shape(_WORDS, (None, None))[1]
        total = graph.node("Gather", self._weight(_WORDS, (None, width)), ids)
        if self._has(_TYPES):
            types = self._weight(_TYPES, (None, width))
            if self._shape(_TYPES)[0] > 1:
                chosen = graph.input("token_type_ids", ["batch", "tokens"])
            else:
                chosen = graph.constant([0])  # every token has the only type
            total = graph.node("Add", total, graph.node("Gather", types, chosen))
        total = graph.node("Add", total, self._position_embeddings(ids, tokens, width))
        hidden = self._norm("embeddings.LayerNorm", total, width)
        hidden = graph.node("Reshape", hidden, graph.constant([-1, width]))
        if self._has(f"{_WIDENING}.weight"):
            return self._linear(_WIDENING, hidden, width, self.config.hidden)
        return hidden

    def _position_embeddings(self, ids: str, tokens: str, width: int) -> str:
        graph = self.graph
        table = self._weight(_POSITIONS, (None, width))
        if self.architecture.positions == "absolute":
            return graph.node("Slice", table, graph.constant([0]), tokens, graph.constant([0]))
        padding = graph.constant(self.config.padding_id)
        real = graph.node("Cast", graph.node("Not", graph.node("Equal", ids, padding)), to=_INT64)
        counted = graph.node("Mul", graph.node("CumSum", real, graph.constant(1)), real)
        return graph.node("Gather", table, graph.node("Add", counted, padding))

    # What is added to the attention scores of every layer

    def _score_bias(self, mask: str, tokens: str) -> str:
        """What hides the padding and favours some distances; broadcasts to (batch, heads, tokens, tokens)."""
        graph = self.graph
        wide = graph.node("Cast", graph.node("Unsqueeze", mask, graph.constant([1, 2])), to=_FLOAT)
        padding = graph.node("Sub", graph.constant(1.0), wide)
        bias = graph.node("Mul", padding, graph.constant(_MASKED))
        if self.architecture.relative_bias is None:
            return bias
        return graph.node("Add", self._distance_bias(self.architecture.relative_bias, tokens), bias)

    def _distance_bias(self, name: str, tokens: str) -> str:
        """A bias per head and distance from the query's token to the key's: (heads, tokens, tokens)."""
        graph, tensors, full_name = self.graph, self.tensors, self.prefix + name
        heads = self.config.heads
        self._checked_shape(name, (_BUCKETS, heads))
        longest = self._shape(_POSITIONS)[0]

        def load() -> Array:
            """Column i holds the bias of the distance i - (longest - 1)."""
            return tensors[full_name][_distance_buckets(longest)].T

        table = graph.weight(name, (heads, 2 * longest - 1), load)
        end = graph.node("Squeeze", tokens, graph.constant([0]))
        at = graph.node("Range", graph.constant(0), end, graph.constant(1))
        distance = graph.node("Sub", at, graph.node("Unsqueeze", at, graph.constant([1])))
        column = graph.node("Add", distance, graph.constant(longest - 1))
        return graph.node("Gather", table, column, axis=1)

    # One layer

    def _layer(self, prefix: str, hidden: str, bias: str, per_head: str) -> str:
        graph, names, width = self.graph, self.names, self.config.hidden
        attended = self._attention(prefix, hidden, bias, per_head)
        attended = self._linear(prefix + names.attention_output, attended, width, width)
        hidden = self._norm(prefix + names.attention_norm, graph.node("Add", attended, hidden), width)
        inner_width = self._checked_shape(f"{prefix}{names.intermediate}.weight", (None, width))[0]
        inner = self._linear(prefix + names.intermediate, hidden, width, inner_width)
        outer = self._linear(prefix + names.output, self.config.activation(graph, inner), inner_width, width)
        return self._norm(prefix + names.output_norm, graph.node("Add", outer, hidden), width)

    def _attention(self, prefix: str, hidden: str, bias: str, per_head: str) -> str:
        """Compute softmax(query · keyᵀ / √size + bias) · value per head; `per_head` is the shape of the split."""
        graph, names, width = self.graph, self.names, self.config.hidden

        def heads(name: str, order: list[int]) -> str:
            flat = self._linear(prefix + name, hidden, width, width)
            return graph.node("Transpose", graph.node("Reshape", flat, per_head), perm=order)

        query, key = heads(names.query, [0, 2, 1, 3]), heads(names.key, [0, 2, 3, 1])
        value = heads(names.value, [0, 2, 1, 3])
        root = graph.constant(math.sqrt(width // self.config.heads))
        scores = graph.node("Div", graph.node("MatMul", query, key), root)
        weights = graph.node("Softmax", graph.node("Add", scores, bias), axis=-1)
        context = graph.node("Transpose", graph.node("MatMul", weights, value), perm=[0, 2, 1, 3])
        return graph.node("Reshape", context, graph.constant([-1, width]))

    def _linear(self, name: str, value: str, inputs: int, outputs: int) -> str:
        """`value` · weightᵀ + bias: the checkpoint keeps the weight as (outputs, inputs)."""
        weight = self._weight(f"{name}.weight", (outputs, inputs))
        return self.graph.node("Gemm", value, weight, self._weight(f"{name}.bias", (outputs,)), transB=1)

    def _norm(self, name: str, value: str, width: int) -> str:
        # Checkpoints that came from TensorFlow keep its names.
        old = self._has(f"{name}.gamma")
        scale = self._weight(f"{name}.{'gamma' if old else 'weight'}", (width,))
        shift = self._weight(f"{name}.{'beta' if old else 'bias'}", (width,))
        return self.graph.node("LayerNormalization", value, scale, shift, epsilon=self.config.norm_eps)

    # Weights

    def _weight(self, name: str, expected: tuple[int | None, ...]) -> str:
        # Not `self`, which has the graph that has this function: a circle would keep the weights mapped.
        tensors, full_name, model = self.tensors, self.prefix + name, self.config.model

        def load() -> Array:
            array = tensors[full_name]
            if array.dtype.kind != "f":
                reason = f"has the element type {array.dtype}, and quantised weights are not computed; use a repo that"
                raise UnsupportedModelError(_about(model, full_name, f"{reason} has an ONNX file"), model=model)
            return array

        return self.graph.weight(name, self._checked_shape(name, expected), load)

    def _checked_shape(self, name: str, expected: tuple[int | None, ...]) -> tuple[int, ...]:
        """The shape of a tensor, which must be `expected` where that is not None."""
        shape = self._shape(name)
        if len(shape) != len(expected) or any(e not in (None, s) for e, s in zip(expected, shape, strict=True)):
            reason = f"has the shape {list(shape)}, which does not fit config.json and the other tensors"
            raise ModelLoadError(_about(self.config.model, self.prefix + name, reason), model=self.config.model)
        return shape

    def _shape(self, name: str) -> tuple[int, ...]:
        if not self._has(name):
            model, reason = self.config.model, "is not among its weights"
            raise ModelLoadError(_about(model, self.prefix + name, reason), model=model)
        return self.tensors.shape(self.prefix + name)

    def _has(self, name: str) -> bool:
        return self.prefix + name in self.tensors


def _about(model: str, name: str, reason: str) -> str:
    return f"no ONNX graph can be built of {model}: the tensor {name} {reason}"


def _distance_buckets(longest: int) -> npt.NDArray[np.int64]:
    """The bucket of every distance from 1 - longest to longest - 1, key's position minus query's.

    One half of the buckets is for keys before the query, one for keys after it. In each, the first half holds
    one distance per bucket, the second half distances up to `_FARTHEST` in logarithmic steps, the last all beyond.
    Source: Raffel et al. 2020 (T5), section 2.1, bidirectional, as in MPNet.
    """
    half = _BUCKETS // 2
    exact = half // 2
    distance = np.arange(1 - longest, longest)
    size = np.abs(distance)
    # float32 throughout, like the original: on a bucket's border the last bit decides.
    scale = np.float32(math.log(_FARTHEST / exact))
    with np.errstate(divide="ignore"):
        steps = np.log(size.astype(np.float32) / np.float32(exact)) / scale * np.float32(half - exact)
    logarithmic = exact + np.where(size < exact, 0, steps).astype(np.int64)
    bucket = np.where(size < exact, size, np.minimum(logarithmic, half - 1))
    return np.asarray(bucket + np.where(distance > 0, half, 0), np.int64)


def _gelu(graph: Graph, value: str) -> str:
    """Compute x · Φ(x) with the exact normal distribution (Hendrycks and Gimpel 2016)."""
    error = graph.node("Erf", graph.node("Div", value, graph.constant(math.sqrt(2.0))))
    doubled = graph.node("Mul", value, graph.node("Add", error, graph.constant(1.0)))
    return graph.node("Mul", doubled, graph.constant(0.5))


def _gelu_tanh(graph: Graph, value: str) -> str:
    """The same approximated: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))."""
    cubic = graph.node("Mul", graph.node("Pow", value, graph.constant(3.0)), graph.constant(0.044715))
    inner = graph.node("Mul", graph.node("Add", value, cubic), graph.constant(math.sqrt(2.0 / math.pi)))
    tanh = graph.node("Add", graph.node("Tanh", inner), graph.constant(1.0))
    return graph.node("Mul", graph.node("Mul", value, graph.constant(0.5)), tanh)


def _silu(graph: Graph, value: str) -> str:
    return graph.node("Mul", value, graph.node("Sigmoid", value))


ACTIVATIONS: Mapping[str, Callable[[Graph, str], str]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda graph, value: graph.node("Relu", value),
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

ARCHITECTURES: Mapping[str, BertLike] = {
    "bert": BERT,
    "camembert": ROBERTA,
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "mpnet": MPNET,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
}
"""By the `model_type` of config.json."""
