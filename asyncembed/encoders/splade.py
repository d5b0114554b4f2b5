"""SPLADE: a weight for every word of the vocabulary, from a masked language model's logits.

SPLADE++ computes documents and queries alike (Formal et al. 2022, "From Distillation to Hard Negative Sampling"); its
inference-free variant looks queries up (Geng et al. 2024, "Towards Competitive Search Relevance For Inference-Free
Learned Sparse Retrievers").
"""

from math import isfinite
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asyncembed.encoders.encoder import Encoder, EncoderConfig
from asyncembed.encoders.settings import InferenceFreeSettings, SparseSettings, read_settings
from asyncembed.encoders.sparse_graph import Entries, SparseEncoder
from asyncembed.encoders.tokenization import IntArray, TextTokenizer, tokenizer_of
from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.repo_files import read_json
from asyncembed.runtime.session import Array

MAX_LOGITS_BYTES = 64 * 1024 * 1024
"""Most memory that the logits of one run may take: a float32 for each token and each word of the vocabulary."""


def splade(config: EncoderConfig) -> Encoder:
    """Load a SPLADE++ model; see `build` for the errors."""
    settings = read_settings(SparseSettings, config.spec, config.keywords)
    tokenizer = tokenizer_of(config)
    return SparseEncoder(config, settings, tokenizer, weigh, max_tokens=_within_memory(tokenizer))


def inference_free_splade(config: EncoderConfig) -> Encoder:
    """Load an inference-free model: its graph computes documents, a table gives the weights of a query's tokens."""
    settings = read_settings(InferenceFreeSettings, config.spec, config.keywords)
    tokenizer = tokenizer_of(config)
    weighting = InferenceFree(tokenizer, config.directory / settings.idf_file)
    max_tokens = _within_memory(tokenizer)
    return SparseEncoder(config, settings, tokenizer, weighting, lookup=weighting.lookup, max_tokens=max_tokens)


def weigh(ids: IntArray, output: Array, real: slice, *, is_query: bool) -> Entries:  # noqa: ARG001 (see `Weighting`)
    """SPLADE++'s entries: `max over tokens of ln(1 + relu(logit))`, where that is not 0, by ascending index.

    `output` are the logits (tokens, words). The largest logit is taken first: the logarithm grows with it.
    """
    # Not log1p: a logit so small that 1 + logit is 1 in float32 is no entry.
    scores = np.log(np.float32(1) + largest_logits(output[real]))
    indices = scores.nonzero()[0]
    return indices, scores[indices]


def largest_logits(logits: Array) -> npt.NDArray[np.float32]:
    """Of logits (tokens, words) the largest of each word, or 0: float32 (words,)."""
    largest: npt.NDArray[np.float32] = logits.max(axis=0, initial=0).astype(np.float32, copy=False)
    return largest


class InferenceFree:
    """The weighting of inference-free SPLADE: special tokens never count, and a query needs no graph."""

    def __init__(self, tokenizer: TextTokenizer, idf_file: Path) -> None:
        """Join the weights in `idf_file`, an object of tokens, to the vocabulary.

        Raises:
            UnsupportedModelError: There is no such file.
            ModelLoadError: It cannot be read.
        """
        vocabulary = tokenizer.vocabulary
        self._special_ids = np.array(sorted(set(tokenizer.special_ids.values())), dtype=np.int64)
        self._idf = np.full(max(vocabulary.values(), default=-1) + 1, np.nan, dtype=np.float32)
        for token, weight in _read_weights(idf_file).items():
            if token in vocabulary:
                self._idf[vocabulary[token]] = weight
        self._idf[self._special_ids] = np.nan

    def __call__(self, ids: IntArray, output: Array, real: slice, *, is_query: bool) -> Entries:  # noqa: ARG002
        """A document's entries: `ln(1 + ln(1 + relu(largest logit)))`, where that is not 0, by ascending index."""
        # In float64, because that decides which tiny logits are entries; it is one row.
        scores = np.log1p(np.log1p(largest_logits(output[real]).astype(np.float64)))
        scores[self._special_ids] = 0
        indices = scores.nonzero()[0]
        return indices, scores[indices]

    def lookup(self, ids: IntArray) -> Entries:
        """A query's entries: the weight of each of its tokens that has one, by ascending index."""
        indices = np.unique(ids)
        weights = self._idf[indices]
        has_weight = ~np.isnan(weights)
        return indices[has_weight], weights[has_weight]


def _within_memory(tokenizer: TextTokenizer) -> int:
    """Most tokens of a run."""
    row_bytes = 4 * max(1, len(tokenizer.vocabulary))
    return max(1, MAX_LOGITS_BYTES // row_bytes)


def _read_weights(path: Path) -> dict[str, float]:
    if not path.is_file():
        raise UnsupportedModelError(f"{path} with the weights of query tokens is missing", model=str(path.parent))
    weights = read_json(path)
    try:
        numbers = {str(token): float(weight) for token, weight in weights.items()}
        if not all(map(isfinite, numbers.values())):
            raise ValueError("one of its numbers is not finite")
        return numbers
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ModelLoadError(f"{path} is no object of numbers: {error}", model=str(path.parent)) from error
