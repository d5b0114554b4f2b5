"""What stands on an encoder's hidden states: nothing, a classifier, the words of a vocabulary."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from asyncembed.export.blocks import ACTIVATIONS, layer_norm, linear
from asyncembed.export.construction import Answer, Construction, Weights
from asyncembed.export.onnx_builder import BOOL, FLOAT

HeadName = Literal["states", "scores", "words", "answer"]

Head = Literal["states", "scores", "words"] | Answer
"""What a graph gives: the hidden states of tokens; a text's scores; how much each word of the vocabulary is meant; how
likely an answer is."""


def name_of(head: Head) -> HeadName:
    """What a head is called among those of an architecture."""
    return "answer" if isinstance(head, Answer) else head


HeadBuilder = Callable[[Construction, str], None]
"""Declares the output that stands on the flat hidden states."""

# How many words' logits are computed at once: 64 MB for the longest text of 8,192 tokens.
_WORDS_AT_ONCE = 2048


def states(c: Construction, hidden: str, width: int) -> None:
    """Declare `last_hidden_state`, float32 (batch, tokens, width)."""
    c.graph.output(c.by_text(hidden, width), "last_hidden_state", ["batch", "tokens", width])


def first_token(c: Construction, hidden: str, width: int) -> str:
    """The state of each text's first real token, whichever side is padded: (batch, width)."""
    first = c.graph.node("ArgMax", c.mask, axis=1, keepdims=1)
    return c.graph.node("GatherND", c.by_text(hidden, width), first, batch_dims=1)


def last_token(c: Construction, hidden: str, real: str) -> str:
    """The state at the last place of each text where `real`, int64 (batch, tokens), is 1: (batch, width)."""
    graph, zero, one = c.graph, c.graph.constant(0), c.graph.constant(1)
    places = graph.node("Range", zero, graph.node("Squeeze", c.tokens, graph.constant([0])), one)
    last = graph.node("ReduceMax", graph.node("Mul", places, real), axes=[1], keepdims=0)
    count = graph.node("Gather", c.shape, zero, axis=0)
    starts = graph.node("Mul", graph.node("Range", zero, count, one), c.tokens)
    return graph.node("Gather", hidden, graph.node("Add", starts, last), axis=0)


def mean(c: Construction, flat: str, width: int) -> str:
    """The mean of what is given for the real tokens of each text: (batch, width)."""
    graph = c.graph
    real = graph.node("Cast", graph.node("Unsqueeze", c.mask, graph.constant([2])), to=FLOAT)
    total = graph.node("ReduceSum", graph.node("Mul", c.by_text(flat, width), real), graph.constant([1]), keepdims=0)
    count = graph.node("ReduceSum", real, graph.constant([1]), keepdims=0)
    return graph.node("Div", total, graph.node("Max", count, graph.constant(1.0)))


def scores(c: Construction, logits: str, labels: int) -> None:
    """Declare `logits`, float32 (batch, labels)."""
    c.graph.output(logits, "logits", ["batch", labels])


def words(
    c: Construction,
    states: str,
    decoder: str,
    embeddings: str,
    width: int,
    *,
    bias: str | None = None,
    tied: bool = True,
) -> None:
    """Declare `max_logits`, float32 (batch, vocabulary): the greatest logit of each word over a text's real tokens.

    A logit is the product of a token's state, of those in `states` (flat), with the word's row in the linear layer
    `decoder`, plus its bias there. Where the checkpoint has no such rows they are those of the tensor `embeddings`,
    if config.json says that the two are tied, or if it says nothing and `tied`; the bias may be called `bias` instead.
    """
    graph, own, stored = c.graph, c.all_weights, f"{decoder}.weight"
    is_own = own.has(stored) or not c.config.get("tie_word_embeddings", tied)
    rows = _Rows(own, stored) if is_own else _Rows(c.weights, embeddings)
    vocabulary = rows.weights.shape(rows.name, (None, width))[0]
    # Padding takes the place of a real token, which cannot be greater than itself: the maximum needs no mask.
    real = graph.node("Cast", graph.node("Unsqueeze", c.mask, graph.constant([2])), to=BOOL)
    first = graph.node("Unsqueeze", first_token(c, states, width), graph.constant([1]))
    kept = graph.node("Where", real, c.by_text(states, width), first)
    flat = graph.node("Reshape", kept, graph.constant([-1, width]))
    starts = range(0, vocabulary, _WORDS_AT_ONCE)
    blocks = [rows.greatest(c, flat, width, start, min(start + _WORDS_AT_ONCE, vocabulary)) for start in starts]
    greatest = graph.node("Concat", *blocks, axis=1)
    for name in (f"{decoder}.bias", bias):
        if name is not None and own.has(name):
            greatest = graph.node("Add", greatest, own.take(name, (vocabulary,)))
            break
    graph.output(greatest, "max_logits", ["batch", vocabulary])


@dataclass(frozen=True, slots=True)
class _Rows:
    """A tensor with a row per word. Logits of all words at once would be the largest value of the graph by far."""

    weights: Weights
    name: str

    def greatest(self, c: Construction, flat: str, width: int, start: int, stop: int) -> str:
        """The greatest product of some words with a text's states: (batch, words)."""
        shape = (stop - start, width)
        some = self.weights.made(self.name, shape, lambda array: array[start:stop], suffix=f".{start}")
        products = c.by_text(c.graph.node("Gemm", flat, some, transB=1), stop - start)
        return c.graph.node("ReduceMax", products, axes=[1], keepdims=0)


# Heads of BERT's family


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """What gives scores: a linear layer, an activation and a linear layer on the state of the first token.

    Attributes:
        dense, out: The linear layers.
        activation: Between them.
        activation_key: Where config.json may name another.
        is_inside: Whether `dense` is one of the encoder's tensors.
    """

    dense: str
    out: str = "classifier"
    activation: str = "tanh"
    activation_key: str | None = None
    is_inside: bool = False

    def __call__(self, c: Construction, hidden: str) -> None:
        weights = c.weights if self.is_inside else c.all_weights
        inner, width = weights.shape(f"{self.dense}.weight", (None, None))
        pooled = linear(weights, self.dense, first_token(c, hidden, width), width, inner, needs_bias=True)
        named = self.activation_key and c.config.get(self.activation_key)
        opened = ACTIVATIONS[named or self.activation](c.graph, pooled)
        labels = c.all_weights.shape(f"{self.out}.weight", (None, inner))[0]
        scores(c, linear(c.all_weights, self.out, opened, inner, labels, needs_bias=True), labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What gives words: a linear layer, an activation, a norm, and the words' embeddings again.

    Attributes:
        dense, norm, decoder, bias: Tensors; the latter two of the last linear layer.
        embeddings: The encoder's tensor that stands for the decoder's.
        activation: The only one there is; None: the one that config.json names.
        activation_key: There.
        default: The activation where config.json names none.
        eps: Of the norm where config.json has none.
        eps_key: There; None: it is fixed.
    """

    dense: str
    norm: str
    decoder: str
    bias: str
    embeddings: str
    activation: str | None = None
    activation_key: str = "hidden_act"
    default: str = "gelu"
    eps: float = 1e-12
    eps_key: str | None = "layer_norm_eps"

    def __call__(self, c: Construction, hidden: str) -> None:
        weights, config = c.all_weights, c.config
        inner, width = weights.shape(f"{self.dense}.weight", (None, None))
        activation = ACTIVATIONS[self.activation or config.get(self.activation_key, self.default)]
        opened = activation(c.graph, linear(weights, self.dense, hidden, width, inner, needs_bias=True))
        eps = float(config.get(self.eps_key, self.eps)) if self.eps_key else self.eps
        states = layer_norm(weights, self.norm, opened, inner, eps=eps, needs_bias=True)
        words(c, states, self.decoder, self.embeddings, inner, bias=self.bias)
