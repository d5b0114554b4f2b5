"""Sparse vectors from a graph: what the families share. They differ in how a text's output becomes entries."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, Failures, ModelInfo
from asyncembed.encoders.finite import Finite, quietly
from asyncembed.encoders.settings import SparseSettings
from asyncembed.encoders.text_graph import TextGraph
from asyncembed.encoders.tokenization import IntArray, TextTokenizer, Tokenized, count_tokens
from asyncembed.errors import EncodeError
from asyncembed.results import Ragged, SparseEmbedding, sparse_batch
from asyncembed.runtime.providers import is_gpu_package_installed
from asyncembed.runtime.session import Array

Entries: TypeAlias = tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.floating[Any]]]
"""Indices and values of one vector."""

Lookup: TypeAlias = Callable[[IntArray], Entries]
"""From the tokens of a query to its entries, without inference."""


MAX_LOGITS = "max_logits"
"""The output of the graphs that we build for SPLADE: of each word the largest logit at a text's tokens."""

NOT_FINITE: Entries = (np.zeros(1, dtype=np.int32), np.full(1, np.nan, dtype=np.float32))
"""The entries of a text for which the graph gave NaN or infinity, where its weighting would turn that into numbers."""


NO_ENTRIES: Entries = (np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))


class Weighting(Protocol):
    """How the graph's output for one text becomes a sparse vector."""

    def __call__(self, ids: IntArray, output: Array, real: slice, *, is_query: bool) -> Entries:
        """The entries of a text with the tokens `ids`, padding left out; `NOT_FINITE` where `output` makes no sense.

        `output` is the graph's for this text alone; in its axis of tokens, `real` are the positions of `ids`.
        """
        ...


class SparseEncoder:
    """The encoder of the sparse models that have a graph.

    With a `lookup`, queries need no inference, and the first document loads the graph: a worker that sees nothing but
    queries needs neither a runtime nor the memory.
    """

    def __init__(
        self,
        config: EncoderConfig,
        settings: SparseSettings,
        tokenizer: TextTokenizer,
        weighting: Weighting,
        *,
        lookup: Lookup | None = None,
        query_tokenizer: TextTokenizer | None = None,
        max_rows: int | None = None,
    ) -> None:
        """Load the graph if queries need it; see `build` for the errors.

        Args:
            config: The model.
            settings: What its spec says of the graph.
            tokenizer: Of texts that the graph computes.
            weighting: What is made of the graph's output.
            lookup: What is made of a query instead.
            query_tokenizer: Of texts that are looked up; None: the same.
            max_rows: Most rows that the graph may give in one run: for each token one, or for each text, where the
                graph is one of ours.
        """
        max_tokens = None if config.is_exported else max_rows
        self._max_texts: int | None = max_rows if config.is_exported else None
        self._open_graph = partial(TextGraph, config, settings, tokenizer, max_tokens=max_tokens)
        self._tokenizer = tokenizer
        self._query_tokenizer = query_tokenizer or tokenizer
        self._weighting = weighting
        self._lookup = lookup
        self.info: ModelInfo = ModelInfo(max_length=tokenizer.limit, special_tokens=tokenizer.special_tokens())
        if lookup is None or _may_be_accelerated(config):
            self.info = self._graph.info
            self._tokenizer = self._graph.tokenizer

    @quietly
    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Vectors of texts, or with mode "count" their tokens; a text that cannot be tokenized is a failure."""
        if call.mode == "count":
            return count_tokens(self._tokenizer.count(inputs, call))
        is_query = call.mode == "query"
        lookup = self._lookup if is_query else None
        tokenizer = self._graph.tokenizer if lookup is None else self._query_tokenizer
        done = tokenizer.encode(inputs, prefix=call.prompt or "", long=call.long)
        if lookup is not None:
            entries = [lookup(np.array(encoding.ids, dtype=np.int64)) for encoding in done.values]
            padded = sum(map(len, done.values))
        else:
            entries, padded = self._compute(done, is_query=is_query)
        vectors = done.in_batch(entries, NO_ENTRIES)
        batch = sparse_batch([indices for indices, _ in vectors], [values for _, values in vectors])
        failures: Failures = {**done.failures, **self._not_finite(batch)}
        return Encoded(batch, failures, padded_tokens=padded, counts=done.in_batch(tokenizer.computed(done), 0))

    @cached_property
    def _graph(self) -> TextGraph:
        graph = self._open_graph()
        if len(graph.session.output_shape(graph.output)) == 2 and graph.output != MAX_LOGITS:
            raise graph.unsupported(
                f"gives one vector for a text ({graph.output}), not numbers for each of its tokens: say output_name="
            )
        return graph

    def _not_finite(self, batch: Ragged[SparseEmbedding]) -> dict[int, EncodeError]:
        _, values = batch.arrays
        if np.isfinite(values).all():
            return {}
        # Weights of queries are checked when they are read, so this comes from the graph.
        return failures_of_entries(batch, self._graph.finite)

    def _compute(self, done: Tokenized, *, is_query: bool) -> tuple[list[Entries], int]:
        """The entries of each encoding, and the tokens computed for them."""
        rows = [encoding.ids for encoding in done.values]
        entries: list[Entries] = [NO_ENTRIES] * len(rows)
        runs = self._graph.runs(rows, max_size=self._max_texts)
        for run in runs:
            output = self._graph.run_text(run.ids, run.mask)
            for row, ids, row_output in zip(run.rows, run.ids, output, strict=True):
                real = self._graph.tokenizer.places(len(rows[row]), len(ids))
                entries[row] = self._weighting(ids[real], row_output, real, is_query=is_query)
        return entries, sum(run.ids.size for run in runs)


def failures_of_entries(batch: Ragged[SparseEmbedding], finite: Finite) -> dict[int, EncodeError]:
    """An error for each of the vectors, given as one batch, that is not finite."""
    _, values = batch.arrays
    return finite.failures(values, np.repeat(np.arange(len(batch)), np.diff(batch.bounds)))


def _may_be_accelerated(config: EncoderConfig) -> bool:
    """Whether the graph may run elsewhere than on the CPU: then its first word decides how large batches are."""
    session = config.session
    if session.providers is None and session.device == "auto":
        return is_gpu_package_installed()
    return session.providers is not None or session.device != "cpu"
