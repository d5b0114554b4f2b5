"""What stands on an encoder's hidden states: nothing, a classifier, the words of a vocabulary."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from asyncembed.export.construction import Construction

Head = Literal["states", "scores", "words"]
"""What a graph gives: the hidden states of tokens; a text's scores; how much each word of the vocabulary is meant."""

HeadBuilder = Callable[[Construction, str], None]
"""Declares the output that stands on the flat hidden states."""

# Element types as `onnx.TensorProto` numbers them.
_BOOL = 9

_LOWEST = float(np.finfo(np.float32).min)


def states(c: Construction, hidden: str, width: int) -> None:
    """Declare `last_hidden_state`, float32 (batch, tokens, width)."""
    c.graph.output(c.by_text(hidden, width), "last_hidden_state", ["batch", "tokens", width])


def first_token(c: Construction, hidden: str, width: int) -> str:
    """The state of each text's first token: (batch, width)."""
    return c.graph.node("Gather", c.by_text(hidden, width), c.graph.constant(0), axis=1)


def scores(c: Construction, logits: str, labels: int) -> None:
    """Declare `logits`, float32 (batch, labels)."""
    c.graph.output(logits, "logits", ["batch", labels])


def words(c: Construction, logits: str, vocabulary: int) -> None:
    """Declare `max_logits`, float32 (batch, vocabulary): the greatest of `logits`, flat, over a text's real tokens."""
    graph = c.graph
    real = graph.node("Cast", graph.node("Unsqueeze", c.mask, graph.constant([2])), to=_BOOL)
    masked = graph.node("Where", real, c.by_text(logits, vocabulary), graph.constant(_LOWEST))
    graph.output(graph.node("ReduceMax", masked, axes=[1], keepdims=0), "max_logits", ["batch", vocabulary])
