"""BM42: a document's words, weighed by the attention that the model's first token pays to them."""

from collections.abc import Iterable
from string import punctuation

import numpy as np

from asyncembed.encoders.encoder import Encoder, EncoderConfig
from asyncembed.encoders.settings import Bm42Settings, read_settings
from asyncembed.encoders.sparse_graph import NOT_FINITE, Entries, SparseEncoder
from asyncembed.encoders.stemming import Terms, read_stop_words, snowball
from asyncembed.encoders.tokenization import IntArray, TextTokenizer, tokenizer_of
from asyncembed.encoders.word_pieces import WordPieces
from asyncembed.runtime.session import Array


def bm42(config: EncoderConfig) -> Encoder:
    """Load a BM42 model: its graph gives attentions (batch, heads, tokens, tokens), `stopwords.txt` the stop words."""
    settings = read_settings(Bm42Settings, config.spec, config.keywords)
    tokenizer = tokenizer_of(config)
    stop_words = read_stop_words(config.directory / "stopwords.txt") | set(punctuation)
    terms = Terms(snowball(settings.language), is_dropped=stop_words.__contains__)
    weighting = Bm42(tokenizer, terms, settings.alpha)
    return SparseEncoder(config, settings, tokenizer, weighting, lookup=weighting.lookup)


class Bm42:
    """The weighting of BM42. A query's words all weigh 1, so it needs no graph."""

    def __init__(self, tokenizer: TextTokenizer, terms: Terms, alpha: float) -> None:
        self._pieces = WordPieces(tokenizer)
        self._special_ids = np.array(sorted(set(tokenizer.special_ids.values())), dtype=np.int64)
        self._terms = terms
        self._alpha = alpha

    def __call__(self, ids: IntArray, output: Array, real: slice, *, is_query: bool) -> Entries:  # noqa: ARG002
        """A document's entries, in order of first occurrence.

        A word weighs what its pieces do together, a stem what its weightiest word does:
        `ln(1 + weight) ** alpha`. `output` is (heads, tokens, tokens).
        """
        attention = output[:, real, real][:, 0].astype(np.float32, copy=False).mean(axis=0).astype(np.float64)
        is_word = ~np.isin(ids, self._special_ids)
        words, starts = self._pieces.words(ids[is_word])
        sums = np.add.reduceat(attention[is_word], starts) if len(starts) else attention[:0]
        if not np.isfinite(sums).all():
            return NOT_FINITE
        weights: dict[str, float] = {}
        for word, weight in zip(words, sums.tolist(), strict=True):
            stem = self._terms.stem(word)
            if stem:
                weights[stem] = max(weights.get(stem, 0.0), weight)
        values = np.log(1.0 + np.fromiter(weights.values(), np.float64, len(weights))) ** self._alpha
        return self._hashed(weights, values.tolist())

    def lookup(self, ids: IntArray) -> Entries:
        """A query's entries: 1 for each stem, in order of first occurrence."""
        words, _ = self._pieces.words(ids[~np.isin(ids, self._special_ids)])
        stems = [stem for stem in map(self._terms.stem, words) if stem]
        return self._hashed(stems, [1.0] * len(stems))

    def _hashed(self, stems: Iterable[str], values: Iterable[float]) -> Entries:
        # Of two stems with one hash the later one counts.
        entries = dict(zip(map(self._terms.index, stems), values, strict=True))
        return np.fromiter(entries, np.int32, len(entries)), np.fromiter(entries.values(), np.float32, len(entries))
