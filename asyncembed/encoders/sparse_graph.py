"""Sparse vectors from a graph: what the families share. They differ in how a text's output becomes entries."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from asyncembed.encoders.dense import counted
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, Failures, ModelInfo
from asyncembed.encoders.finite import quietly
from asyncembed.encoders.text_graph import TextGraph
from asyncembed.encoders.tokenization import IntArray, TextTokenizer, Tokenized
from asyncembed.errors import EncodeError
from asyncembed.results import Ragged, SparseEmbedding, sparse_batch
from asyncembed.runtime.providers import is_gpu_package_installed
from asyncembed.runtime.session import Array

Entries: TypeAlias = tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.floating[Any]]]
"""Indices and values of one vector."""

Lookup: TypeAlias = Callable[[IntArray], Entries]
"""From the tokens of a query to its entries, without inference."""


NOT_FINITE: Entries = (np.zeros(1, dtype=np.int32), np.full(1, np.nan, dtype=np.float32))
"""The entries of a text for which the graph gave NaN or infinity, where its weighting would turn that into numbers."""


class Weighting(Protocol):
    """How the graph's output for one text becomes a sparse vector."""

    def __call__(self, ids: IntArray, output: Array, real: slice, *, is_query: bool) -> Entries:
        """The entries of a text with the tokens `ids`, padding left out; `NOT_FINITE` where `output` makes no sense.

        `output` is the graph's for this text alone; in its axis of tokens, `real` are the positions of `ids`.
        """
        ...


def sparse_tokenizer(config: EncoderConfig) -> TextTokenizer:
    """The tokenizer of the model, with the length limit that applies."""
    return TextTokenizer(config.directory, max_length=config.max_length or config.spec.max_length)


class SparseEncoder:
    """The encoder of the sparse models that have a graph.

    With a `lookup`, queries need no inference, and the first document loads the graph: a worker that sees nothing but
    queries needs neither a runtime nor the memory.
    """

    def __init__(
        self,
        config: EncoderConfig,
        tokenizer: TextTokenizer,
        weighting: Weighting,
        *,
        lookup: Lookup | None = None,
        most_tokens: int | None = None,
    ) -> None:
        """Load the graph if queries need it; `most_tokens` bounds its runs. See `build` for the errors."""
        self._config = config
        self._most_tokens = most_tokens
        self._tokenizer = tokenizer
        self._weighting = weighting
        self._lookup = lookup
        info = ModelInfo()
        if lookup is None or _may_be_accelerated(config):
            info = self._graph.info
            self._tokenizer = self._documents
        special_tokens = self._tokenizer.special_tokens()
        self.info: ModelInfo = replace(info, max_length=self._tokenizer.limit, special_tokens=special_tokens)

    @quietly
    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Vectors of texts, or with mode "count" their tokens; a text that cannot be tokenized is a failure."""
        is_query = call.mode == "query"
        lookup = self._lookup if is_query else None
        tokenizer = self._documents if lookup is None and call.mode != "count" else self._tokenizer
        done = tokenizer.encode(inputs, truncate=call.truncate)
        if call.mode == "count":
            return counted(len(inputs), done)
        if lookup is not None:
            entries = [lookup(np.array(encoding.ids, dtype=np.int64)) for encoding in done.encodings]
            padded = sum(done.lengths)
        else:
            entries, padded = self._compute(done, is_query=is_query)
        indices, values = [_NO_INDICES] * len(inputs), [_NO_VALUES] * len(inputs)
        for position, (own_indices, own_values) in zip(done.positions, entries, strict=True):
            indices[position] = own_indices.astype(np.int32, copy=False)
            values[position] = own_values.astype(np.float32, copy=False)
        batch = sparse_batch(indices, values)
        failures: Failures = {**done.failures, **self._not_finite(batch)}
        return Encoded(batch, failures, tokens=sum(done.lengths), padded_tokens=padded)

    @cached_property
    def _graph(self) -> TextGraph:
        return TextGraph(self._config, most_tokens=self._most_tokens)

    @cached_property
    def _documents(self) -> TextTokenizer:
        """The tokenizer of what the graph computes; that of queries without a graph stays as it is."""
        if self._graph.fixed_length is None:
            return self._tokenizer
        tokenizer = sparse_tokenizer(self._config)
        self._graph.fit(tokenizer, self._config.max_length)
        return tokenizer

    def _not_finite(self, batch: Ragged[SparseEmbedding]) -> dict[int, EncodeError]:
        _, values = batch.arrays
        if np.isfinite(values).all():
            return {}
        owners = np.repeat(np.arange(len(batch)), np.diff(batch.bounds))
        # Weights of queries are checked when they are read, so this comes from the graph.
        return self._graph.finite.failures(values, owners)

    def _compute(self, done: Tokenized, *, is_query: bool) -> tuple[list[Entries], int]:
        """The entries of each encoding, and the tokens computed for them."""
        entries: list[Entries] = [(_NO_INDICES, _NO_VALUES)] * len(done.encodings)
        padded = 0
        for run in self._graph.plan(done.lengths):
            encodings = [done.encodings[row] for row in run.rows]
            ids, mask = self._documents.pad(encodings, length=self._graph.fixed_length)
            padded += ids.size
            output = self._graph.run_text(ids, mask)
            for row, row_ids, row_output in zip(run.rows, ids, output, strict=True):
                length, width = len(done.encodings[row]), ids.shape[1]
                real = slice(width - length, width) if self._tokenizer.pads_left else slice(0, length)
                entries[row] = self._weighting(row_ids[real], row_output, real, is_query=is_query)
        return entries, padded


def _may_be_accelerated(config: EncoderConfig) -> bool:
    """Whether the graph may run elsewhere than on the CPU: then its first word decides how large batches are."""
    session = config.session
    if session.providers is None and session.device == "auto":
        return is_gpu_package_installed()
    return session.providers is not None or session.device != "cpu"


_NO_INDICES = np.empty(0, dtype=np.int32)
_NO_VALUES = np.empty(0, dtype=np.float32)
