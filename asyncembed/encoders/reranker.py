"""Cross-encoders: one score for a query and a document that the graph reads together."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, Failures, ModelInfo
from asyncembed.encoders.finite import quietly
from asyncembed.encoders.pooling import FloatArray
from asyncembed.encoders.projection import sigmoid
from asyncembed.encoders.settings import RerankerSettings, ScoreSettings, read_settings
from asyncembed.encoders.text_graph import TextGraph, TextRun
from asyncembed.encoders.tokenization import Tokenized, count_tokens, tokenizer_of
from asyncembed.errors import OptionError, UnsupportedModelError
from asyncembed.repo_files import shown
from asyncembed.runtime.session import Array


def activated(scores: FloatArray, call: Call, settings: ScoreSettings, spec: ModelSpec) -> FloatArray:
    """Logits, or what the call makes of them.

    Raises:
        UnsupportedModelError: The call leaves it to the model's authors, and they do something that is not computed.
    """
    wanted = settings.own_activation if call.activation == "auto" else call.activation
    if wanted not in ("none", "sigmoid"):
        raise UnsupportedModelError(
            f"{spec.name} has scores that pass through {shown(wanted)}, which is not computed: say activation=",
            model=spec.name,
        )
    return sigmoid(scores) if wanted == "sigmoid" else scores


class CrossEncoder:
    """The encoder of rerankers: inputs are pairs (query, document), results float32 (n,), one logit each."""

    def __init__(self, config: EncoderConfig) -> None:
        """Load tokenizer and graph; see `build` for the errors."""
        self._spec = spec = config.spec
        self._settings = read_settings(RerankerSettings, spec, config.keywords)
        self._graph = TextGraph(config, self._settings, tokenizer_of(config))
        self._tokenizer = self._graph.tokenizer
        self._takes_types = "token_type_ids" in self._graph.session.input_names and self._tokenizer.files.declares_types
        self.info: ModelInfo = replace(self._graph.info, special_tokens=self._tokenizer.special_tokens(is_pair=True))
        # One short run: it tells whether there is one score, and spares the first caller the first allocations.
        self.encode([("", "")], Call(mode="pair"))

    @quietly
    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Score pairs, or with mode "count" count their tokens; a pair that cannot be tokenized is a failure.

        Raises:
            OptionError: The call brings an instruction.
        """
        if call.instruction is not None:
            raise OptionError(f"{self._spec.name} takes no instruction; leave out instruction=")
        if call.mode == "count":
            return count_tokens(self._tokenizer.count_pairs(inputs, call, prefix=self._settings.prompt))
        done = self._tokenizer.encode_pairs(inputs, prefix=self._settings.prompt, long=call.long)
        scores = np.zeros(len(inputs), dtype=np.float32)
        positions = np.array(done.positions, dtype=np.intp)
        runs = self._graph.runs([encoding.ids for encoding in done.values])
        for run in runs:
            types = {"token_type_ids": self._types(done, run)} if self._takes_types else {}
            scores[positions[list(run.rows)]] = self._scores(self._graph.run_text(run.ids, run.mask, **types))
        # Before the sigmoid, which turns infinity into a number. What could not be tokenized has the score 0.
        failures: Failures = {**done.failures, **self._graph.finite.failures(scores, range(len(scores)))}
        scores = activated(scores, call, self._settings, self._spec)
        counts = done.in_batch(self._tokenizer.computed(done), 0)
        return Encoded(scores, failures, padded_tokens=sum(run.ids.size for run in runs), counts=counts)

    def _types(self, pairs: Tokenized, run: TextRun) -> Array:
        """Which text of its pair each token of a run belongs to."""
        rows = [pairs.values[row].type_ids for row in run.rows]
        return self._tokenizer.pad(rows, length=run.ids.shape[1], filler=self._tokenizer.pad_type_id)[0]

    def _scores(self, output: Array) -> Array:
        """One number per pair from the graph's output, (n,), (n, 1), or (n, labels) where `column` says which."""
        if output.ndim == 2:
            if self._settings.column is not None:
                column: Array = output[:, self._settings.column]
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
