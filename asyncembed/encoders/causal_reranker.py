"""Rerankers that are language models: how likely they would answer yes, asked about a query and a document."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from asyncembed.encoders.batch import Usable, read_pair, split
from asyncembed.encoders.chat_template import read_frames
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, Failures, ModelInfo
from asyncembed.encoders.finite import quietly
from asyncembed.encoders.pair_prompts import PROMPTS, PairPrompt, PairTokens, WholePrompt
from asyncembed.encoders.reranker import activated
from asyncembed.encoders.settings import CausalRerankerSettings, read_settings
from asyncembed.encoders.text_graph import TextGraph, TextRun
from asyncembed.encoders.tokenization import TextTokenizer, count_tokens
from asyncembed.errors import UnsupportedModelError
from asyncembed.repo_files import quoted
from asyncembed.runtime.session import Array


class CausalReranker:
    """The encoder of such models: inputs are pairs (query, document), results float32 (n,).

    A score is the logit of one token less that of another, or of one token alone, at the end of what the model reads.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Load tokenizer and graph; see `build` for the errors."""
        self._spec = spec = config.spec
        self._settings = settings = read_settings(CausalRerankerSettings, spec, config.keywords)
        tokenizer = TextTokenizer(
            config.directory,
            max_length=config.max_length or spec.max_length,
            add_special_tokens=False,
            truncation_side="right",
        )
        self._graph = TextGraph(config, settings, tokenizer)
        self._tokenizer = self._graph.tokenizer
        if settings.template is None:
            self._prompt: PairPrompt = WholePrompt(self._tokenizer, *read_frames(config.directory))
        else:
            self._prompt = PROMPTS[settings.template](self._tokenizer)
        self.info: ModelInfo = replace(self._graph.info, special_tokens=self._prompt.tokens)
        # One short run: it tells whether there is one score, and spares the first caller the first allocations.
        self.encode([("", "")], Call(mode="pair"))

    @quietly
    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Score pairs, or with mode "count" count their tokens; a pair that cannot be tokenized is a failure."""
        pairs = split(map(read_pair, inputs))
        instruction = call.instruction if call.instruction is not None else self._settings.instruction
        if call.mode == "count" and not call.truncated:
            return count_tokens(pairs.become(self._prompt.count(pairs.values, instruction)))
        done = pairs.become(self._prompt.encode(pairs.values, instruction))
        if call.long == "error":
            done = done.without([value.is_cut for value in done.values], self._tokenizer.too_long)
        if call.mode == "count":
            return count_tokens(done.become(list(map(len, done.values))))
        return self._scored(done, len(inputs), call)

    def _scored(self, done: Usable[PairTokens], count: int, call: Call) -> Encoded:
        scores = np.zeros(count, dtype=np.float32)
        positions = np.array(done.positions, dtype=np.intp)
        runs = self._graph.runs([value.ids for value in done.values])
        for run in runs:
            scores[positions[list(run.rows)]] = self._scores(self._graph.run_text(run.ids, run.mask), run)
        # Before the sigmoid, which turns infinity into a number. What could not be tokenized has the score 0.
        failures: Failures = {**done.failures, **self._graph.finite.failures(scores, range(count))}
        scores = activated(scores, call, self._settings, self._spec)
        counts = done.in_batch([-len(value) if value.is_cut else len(value) for value in done.values], 0)
        return Encoded(scores, failures, padded_tokens=sum(run.ids.size for run in runs), counts=counts)

    def _scores(self, output: Array, run: TextRun) -> Array:
        """One number per pair, from what the graph gives: that, (n, 1), or all logits, (n, tokens, words)."""
        if output.ndim == 2 and output.shape[1] == 1:
            scores: Array = output[:, 0]
            return scores
        if output.ndim != 3 or self._settings.yes is None:
            raise UnsupportedModelError(
                f"{self._spec.model_file} gives an output of shape {output.shape}, but a language model gives logits",
                model=self._spec.name,
            )
        if output.shape[1] not in (1, run.ids.shape[1]):
            raise UnsupportedModelError(
                f"{self._spec.model_file} gives logits of shape {output.shape} for ids of shape {run.ids.shape}; a "
                "language model has them for each token, or for the last one",
                model=self._spec.name,
            )
        columns = np.arange(output.shape[1])
        last = (run.mask[:, -output.shape[1] :] * columns).argmax(axis=1)
        logits: Array = output[np.arange(len(output)), last]
        yes = self._column(logits, self._settings.yes)
        return yes if self._settings.no is None else yes - self._column(logits, self._settings.no)

    def _column(self, logits: Array, token: int | str) -> Array:
        """The logits of one token, of those of all, (n, words)."""
        place = token if isinstance(token, int) else self._tokenizer.vocabulary.get(token, -1)
        if not 0 <= place < logits.shape[1]:
            raise UnsupportedModelError(
                f"{self._spec.model_file} gives the logits of {logits.shape[1]} tokens, and none of {quoted(token)}, "
                "by which its score is told",
                model=self._spec.name,
            )
        column: Array = logits[:, place]
        return column
