"""SPLADE: a weight for every word of the vocabulary, from a masked language model's logits.

SPLADE++ computes documents and queries alike (Formal et al. 2022, "From Distillation to Hard Negative Sampling"); its
inference-free variant looks queries up (Geng et al. 2024, "Towards Competitive Search Relevance For Inference-Free
Learned Sparse Retrievers"), and takes the logarithm twice (Shen et al. 2025, "Exploring l0 Sparsification for
Inference-free Sparse Retrievers").
"""

from functools import partial
from math import isfinite
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asyncembed.catalogue.limits import tokenizer_limit
from asyncembed.encoders.encoder import Encoder, EncoderConfig
from asyncembed.encoders.settings import InferenceFreeSettings, SpladeSettings, read_settings
from asyncembed.encoders.sparse_graph import Entries, SparseEncoder
from asyncembed.encoders.tokenization import IntArray, TextTokenizer
from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.repo_files import read_json, read_object
from asyncembed.runtime.safetensors import read_tensors
from asyncembed.runtime.session import Array

MAX_LOGITS_BYTES = 64 * 1024 * 1024
"""Most memory that what the graph gives in one run may take: for each word of the vocabulary a float32 for each token,
or for each text."""


def splade(config: EncoderConfig) -> Encoder:
    """Load a SPLADE model; see `build` for the errors."""
    settings = read_settings(SpladeSettings, config.spec, config.keywords)
    tokenizer = _tokenizer(config, settings)
    weighting = partial(weigh, settings=settings)
    return SparseEncoder(config, settings, tokenizer, weighting, max_rows=_within_memory(tokenizer))


def inference_free_splade(config: EncoderConfig) -> Encoder:
    """Load an inference-free model: its graph computes documents, a table gives the weights of a query's tokens."""
    settings = read_settings(InferenceFreeSettings, config.spec, config.keywords)
    tokenizer = _tokenizer(config, settings)
    query_tokenizer = _query_tokenizer(config, settings) or tokenizer
    special_ids = sorted(set(tokenizer.special_ids.values())) if settings.drops_special_tokens else []
    dropped = np.array(special_ids, dtype=np.int64)
    table = QueryTable(config.directory, query_tokenizer, settings, dropped=dropped)
    return SparseEncoder(
        config,
        settings,
        tokenizer,
        partial(weigh, settings=settings, dropped=dropped),
        lookup=table.lookup,
        query_tokenizer=query_tokenizer,
        max_rows=_within_memory(tokenizer),
    )


_SPLADE_PP = SpladeSettings()
_SUMMED_TOKENS = 64
_NOTHING = np.empty(0, dtype=np.int64)


def weigh(
    ids: IntArray,
    output: Array,
    real: slice,
    *,
    is_query: bool,  # noqa: ARG001 (see `Weighting`)
    settings: SpladeSettings = _SPLADE_PP,
    dropped: IntArray = _NOTHING,
) -> Entries:
    """SPLADE's entries: the weight of each word where it is not 0, by ascending index.

    `output` are the logits (tokens, words), or the largest of them (words,), where the graph gives no more; `dropped`
    are words that never count.
    """
    if not len(ids):
        return _NOTHING, np.empty(0, dtype=np.float32)
    if settings.word_pooling == "sum":
        # Of all tokens at once they would take several times what the logits do.
        starts = range(real.start, real.stop, _SUMMED_TOKENS)
        blocks = (np.maximum(output[start : min(start + _SUMMED_TOKENS, real.stop)], 0) for start in starts)
        weights = np.asarray(sum(_weights(block, settings).sum(axis=0) for block in blocks))
    else:
        # The largest logit is taken first: the logarithm grows with it.
        weights = _weights(largest_logits(output if output.ndim == 1 else output[real]), settings)
    weights[dropped] = 0
    indices = weights.nonzero()[0]
    return strongest(indices, weights[indices], settings)


def largest_logits(logits: Array) -> npt.NDArray[np.float32]:
    """Of logits (tokens, words), or the largest of them (words,), the largest of each word, or 0: float32 (words,)."""
    largest: Array = logits.max(axis=0, initial=0) if logits.ndim > 1 else np.maximum(logits, 0)
    return largest.astype(np.float32, copy=False)


def _weights(logits: Array, settings: SpladeSettings) -> Array:
    """The weights that logits of 0 and more give, in their shape."""
    if settings.activation == "log1p_relu":
        # In float64, because that decides which tiny logits are entries.
        return np.asarray(np.log1p(np.log1p(logits.astype(np.float64))))
    # Not log1p: a logit so small that 1 + logit is 1 in float32 is no entry.
    return np.asarray(np.log(np.float32(1) + logits.astype(np.float32, copy=False)))


def strongest(indices: IntArray, values: Array, settings: SpladeSettings) -> Entries:
    """Those of a vector's entries that are kept, in their order; of equal ones the first.

    By a share of the largest, as OpenSearch prunes by "max_ratio", and by their number, as sentence-transformers does.
    """
    most, share = settings.max_active_dims, settings.pruning
    if (most is None and share is None) or not len(values) or not np.isfinite(values).all():
        return indices, values
    strength = np.abs(values)
    is_kept = strength >= (share or 0) * strength.max()
    if most is not None and is_kept.sum() > most:
        is_kept = np.isin(np.arange(len(values)), np.argsort(-strength, kind="stable")[:most])
    return indices[is_kept], values[is_kept]


class QueryTable:
    """The weights of a query's tokens, which need no graph."""

    def __init__(
        self, directory: Path, tokenizer: TextTokenizer, settings: InferenceFreeSettings, *, dropped: IntArray
    ) -> None:
        """Read the table in `directory`; the tokens `dropped` get no weight.

        Raises:
            UnsupportedModelError: There is no such file.
            ModelLoadError: It cannot be read.
        """
        vocabulary = tokenizer.vocabulary
        self._settings = settings
        self._weights = np.full(max(vocabulary.values(), default=-1) + 1, np.nan, dtype=np.float32)
        if settings.query_weights is None:
            for token, weight in _read_weights(directory / settings.idf_file).items():
                if token in vocabulary:
                    self._weights[vocabulary[token]] = weight
        else:
            weights = _read_tensor(directory / settings.query_weights)[: len(self._weights)]
            self._weights[: len(weights)] = weights
        if settings.query_folder is not None:
            self._weights[self._weights == 0] = np.nan  # which sentence-transformers does not tell from no weight
        self._weights[dropped] = np.nan

    def lookup(self, ids: IntArray) -> Entries:
        """A query's entries: the weight of each of its tokens that has one, by ascending index."""
        indices = np.unique(ids)
        weights = self._weights[indices]
        has_weight = ~np.isnan(weights)
        return strongest(indices[has_weight], weights[has_weight], self._settings)


def _tokenizer(config: EncoderConfig, settings: SpladeSettings) -> TextTokenizer:
    return TextTokenizer(
        config.directory / settings.folder,
        max_length=config.max_length or config.spec.max_length,
        lower_case=settings.lower_case,
    )


def _query_tokenizer(config: EncoderConfig, settings: InferenceFreeSettings) -> TextTokenizer | None:
    """That of queries, where they have one of their own: it has a limit of its own, too."""
    if settings.query_folder is None:
        return None
    folder = config.directory / settings.query_folder
    declared = tokenizer_limit(read_object(folder / "tokenizer_config.json"))
    limit = config.max_length or declared or config.spec.max_length
    return TextTokenizer(folder, max_length=limit, add_special_tokens=False, pads=False)


def _within_memory(tokenizer: TextTokenizer) -> int:
    """Most rows of a run's output."""
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


def _read_tensor(path: Path) -> Array:
    """The weights (ids,) of static embedding's file."""
    with read_tensors(path) as tensors:
        if "weight" not in tensors or len(tensors.shape("weight")) != 1:
            raise ModelLoadError(f"{path} has no tensor `weight` with a number for each token", model=str(path.parent))
        weights: Array = tensors["weight"].astype(np.float32)
    if not np.isfinite(weights).all():
        raise ModelLoadError(f"{path}: one of its numbers is not finite", model=str(path.parent))
    return weights
