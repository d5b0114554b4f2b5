"""Cross-encoders: one score for a query and a document that the graph reads together."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from asyncembed.encoders.dense import counted
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, Failures, ModelInfo
from asyncembed.encoders.finite import quietly
from asyncembed.encoders.settings import NoSettings, read_settings
from asyncembed.encoders.text_graph import TextGraph
from asyncembed.encoders.tokenization import IntArray, TextTokenizer
from asyncembed.errors import UnsupportedModelError
from asyncembed.runtime.session import Array


class CrossEncoder:
    """The encoder of rerankers: inputs are pairs (query, document), results float32 (n,), one logit each.

    Of the call's settings it reads `activation`: "sigmoid" maps the logits to 0..1. Of `spec.settings` it reads
    `column`: which output is the score, for a graph with several.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Load tokenizer and graph; see `build` for the errors."""
        read_settings(config, NoSettings)
        self._spec = config.spec
        self._tokenizer = TextTokenizer(config.directory, max_length=config.max_length or config.spec.max_length)
        self._graph = TextGraph(config)
        self._graph.fit(self._tokenizer, config.max_length)
        self._finite = self._graph.finite
        self._takes_types = "token_type_ids" in self._graph.session.input_names
        self._column = config.spec.settings.get("column")
        self.info: ModelInfo = replace(
            self._graph.info,
            max_length=self._tokenizer.limit,
            special_tokens=self._tokenizer.special_tokens(is_pair=True),
        )
        # One short run: it tells whether there is one score, and spares the first caller the first allocations.
        self.encode([("", "")], Call(mode="pair"))

    @quietly
    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Score pairs, or with mode "count" count their tokens; a pair that cannot be tokenized is a failure."""
        done = self._tokenizer.encode_pairs(inputs, truncate=call.truncate)
        if call.mode == "count":
            return counted(len(inputs), done)
        scores = np.zeros(len(inputs), dtype=np.float32)
        positions = np.array(done.positions, dtype=np.intp)
        padded = 0
        for run in self._graph.plan(done.lengths):
            encodings = [done.encodings[row] for row in run.rows]
            ids, mask = self._tokenizer.pad(encodings, length=self._graph.fixed_length)
            padded += ids.size
            types = {"token_type_ids": self._pad_types(encodings, mask)} if self._takes_types else {}
            scores[positions[list(run.rows)]] = self._scores(self._graph.run_text(ids, mask, **types))
        # Before the sigmoid, which turns infinity into a number. What could not be tokenized has the score 0.
        failures: Failures = {**done.failures, **self._finite.failures(scores, range(len(scores)))}
        if ("activation", "sigmoid") in call.settings:
            scores = sigmoid(scores)
        return Encoded(scores, failures, tokens=sum(done.lengths), padded_tokens=padded)

    def _pad_types(self, encodings: Sequence[Encoding], mask: IntArray) -> IntArray:
        """Which text of its pair each token belongs to, as wide as `mask`."""
        types = np.full(mask.shape, self._tokenizer.pad_type_id, dtype=np.int64)
        # Row by row, the real positions of the mask are those of the encodings.
        types[mask == 1] = [type_id for encoding in encodings for type_id in encoding.type_ids]
        return types

    def _scores(self, output: Array) -> Array:
        """One number per pair from the graph's output, (n,), (n, 1), or (n, labels) where `column` says which."""
        if output.ndim == 2:
            if self._column is not None:
                column: Array = output[:, int(str(self._column))]
                return column
            if output.shape[1] == 1:
                first: Array = output[:, 0]
                return first
        if output.ndim == 1:
            return output
        raise UnsupportedModelError(
            f"{self._spec.model_file} gives an output of shape {output.shape}, but a reranker gives one score for "
            "each pair: is this a classifier of several labels?",
            model=self._spec.name,
        )


def sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """`1 / (1 + exp(-x))`, without overflow; the dtype stays."""
    # exp of a number that is not positive; the two halves of the curve mirror each other.
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(logits.dtype, copy=False)
