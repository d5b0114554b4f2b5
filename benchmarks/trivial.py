"""An encoder that computes next to nothing: what remains is the engine's own cost."""

from collections.abc import Sequence

import numpy as np

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig

DIM = 8
TRIVIAL = ModelSpec(name="trivial", family="text", encoder="benchmarks.trivial:TrivialEncoder", sources=(), dim=DIM)


class TrivialEncoder:
    """Gives zeros."""

    def __init__(self, config: EncoderConfig) -> None:
        """Load nothing."""

    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:  # noqa: ARG002
        """A row of zeros per input."""
        count = len(inputs)
        return Encoded(np.zeros((count, DIM), np.float32), padded_tokens=8 * count, counts=[8] * count)
