"""miniCOIL: BM25 whose known words carry a small vector of their meaning in this text.

Each word of a fixed vocabulary has a matrix that projects the mean of its token states to a few components, which take
as many entries; any other word gets one entry by its hash, as in BM25. See Qdrant's "miniCOIL: on the Road to Usable
Sparse Neural Retrieval" (2025).
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asyncembed.encoders.bm25 import TermFrequency
from asyncembed.encoders.encoder import Encoder, EncoderConfig
from asyncembed.encoders.settings import MiniCoilSettings, read_settings
from asyncembed.encoders.sparse_graph import Entries, SparseEncoder
from asyncembed.encoders.stemming import (
    LARGEST_INDEX,
    WORD,
    Terms,
    hash_term,
    is_punctuation_mark,
    read_stop_words,
    snowball,
)
from asyncembed.encoders.tokenization import IntArray, tokenizer_of
from asyncembed.encoders.word_pieces import WordPieces
from asyncembed.errors import ModelLoadError
from asyncembed.repo_files import read_object
from asyncembed.runtime.session import Array

VOCABULARY_FILE = "minicoil.triplet.model.vocab"
WEIGHTS_FILE = "minicoil.triplet.model.npy"

# Hashed words begin at a multiple of this, well above the entries of the vocabulary.
_BLOCK = 32_000
_LONGEST_STEM = 40
_MARKERS = frozenset({"[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"})
# Below this length a word's vector is not scaled.
_MIN_NORM = 1e-8


def minicoil(config: EncoderConfig) -> Encoder:
    """Load a miniCOIL model; see `build` for the errors."""
    settings = read_settings(MiniCoilSettings, config.spec, config.keywords)
    tokenizer = tokenizer_of(config)
    stop_words = read_stop_words(config.directory / "stopwords.txt")
    weighting = MiniCoil(
        WordPieces(tokenizer),
        Vocabulary.read(config.directory, stop_words, Terms(snowball(settings.language))),
        TermFrequency(k=settings.k, b=settings.b, avg_len=settings.avg_len),
    )
    return SparseEncoder(config, settings, tokenizer, weighting)


class Vocabulary:
    """The words that have a matrix, and which of them a word of a text stands for.

    Attributes:
        words: The words; the first has the id 1.
        weights: Their matrices: float (at least len(words) + 1, hidden, components).
        stop_words: Words that never count.
        terms: Stems of words.
    """

    def __init__(
        self,
        words: list[str],
        stem_mapping: Mapping[str, str],
        weights: npt.NDArray[np.floating],
        stop_words: frozenset[str],
        terms: Terms,
    ) -> None:
        self.words = words
        self.weights = weights
        self.stop_words = stop_words
        self.terms = terms
        ids = {word: position + 1 for position, word in enumerate(words)}
        self._ids = {stem: ids[word] for stem, word in stem_mapping.items()} | ids
        self._id_of_stem = {stem: ids[word] for stem, word in stem_mapping.items()}

    @classmethod
    def read(cls, directory: Path, stop_words: frozenset[str], terms: Terms) -> "Vocabulary":
        """Read the two files of the model.

        Raises:
            ModelLoadError: One of them is missing or broken.
        """
        try:
            record = read_object(directory / VOCABULARY_FILE)
            # Mapped, so that the workers share its memory.
            weights = np.load(directory / WEIGHTS_FILE, mmap_mode="r")
            vocabulary = cls(record["vocab"], record["stem_mapping"], weights, stop_words, terms)
        except (OSError, EOFError, OverflowError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelLoadError(
                f"cannot read {VOCABULARY_FILE} and {WEIGHTS_FILE}: {error!r}", model=str(directory)
            ) from error
        if weights.ndim != 3 or weights.dtype.kind != "f" or len(weights) <= len(vocabulary.words):
            raise ModelLoadError(
                f"{WEIGHTS_FILE} of shape {weights.shape} does not fit {len(vocabulary.words)} words",
                model=str(directory),
            )
        return vocabulary

    @property
    def components(self) -> int:
        """Entries that a word of the vocabulary takes."""
        return int(self.weights.shape[2])

    def id_of(self, word: str) -> int:
        """The id of the word of the vocabulary that `word` stands for, 0 if there is none."""
        if word in self.stop_words:
            return 0
        return self._ids.get(word) or self._id_of_stem.get(self.terms.stem(word), 0)


class MiniCoil:
    """The weighting of miniCOIL. Queries need the graph too, but not the frequencies."""

    def __init__(self, pieces: WordPieces, vocabulary: Vocabulary, frequency: TermFrequency) -> None:
        self._pieces = pieces
        self._vocabulary = vocabulary
        self._frequency = frequency
        size = (len(vocabulary.words) + 1) * vocabulary.components
        self._first_hashed = (size // _BLOCK + 2) * _BLOCK

    def __call__(self, ids: IntArray, output: Array, real: slice, *, is_query: bool) -> Entries:
        """A text's entries: known words by ascending id, then the other ones in order of first occurrence.

        `output` are the token states (tokens, hidden).
        """
        words, starts = self._pieces.words(ids)
        word_ids = np.fromiter(map(self._vocabulary.id_of, words), np.int64, len(words))
        known, components = self._meanings(word_ids, starts, output[real])
        counts = self._counts(words, word_ids, known.tolist())
        is_kept = np.array([name in counts for name in known.tolist()], dtype=np.bool_)
        known, components = known[is_kept], components[is_kept]
        hashed = [self._hashed(name) for name in counts if isinstance(name, str)]
        occurrences = np.fromiter(counts.values(), np.float64, len(counts))
        if is_query:
            weights = np.ones(len(counts))
        else:
            weights = self._frequency(occurrences, np.full(len(counts), occurrences.sum()))
        size = self._vocabulary.components
        indices = (known[:, np.newaxis] * size + np.arange(size)).ravel()
        values = (components * weights[: len(known), np.newaxis]).ravel()
        return (
            np.concatenate([indices, np.array(hashed, dtype=np.int64)]),
            np.concatenate([values, weights[len(known) :]]),
        )

    def _meanings(
        self, word_ids: IntArray, starts: npt.NDArray[np.intp], states: Array
    ) -> tuple[IntArray, npt.NDArray[np.float64]]:
        """The ids of the known words, ascending, and the components of each, scaled to unit length."""
        by_token = np.repeat(word_ids, np.diff(starts, append=len(states)))
        order = by_token.argsort(kind="stable")
        order = order[np.searchsorted(by_token[order], 1) :]  # id 0: no word of the vocabulary
        ids, firsts, counts = np.unique(by_token[order], return_index=True, return_counts=True)
        if not len(ids):
            return ids, np.empty((0, self._vocabulary.components))
        sums = np.add.reduceat(states[order].astype(np.float32, copy=False), firsts, axis=0)
        means = sums / counts[:, np.newaxis].astype(np.float32)
        means[~np.isfinite(means)] = np.nan  # of infinity tanh would make 1
        components = np.tanh(np.einsum("wh,whc->wc", means, self._vocabulary.weights[ids])).astype(np.float64)
        norms = np.sqrt((components**2).sum(axis=1, keepdims=True))
        return ids, np.divide(components, norms, out=components, where=norms >= _MIN_NORM)

    def _counts(self, words: list[str], word_ids: IntArray, known: list[int]) -> dict[int | str, int]:
        """How often each id occurs, and each stem of the words that have none; in the order of the entries.

        A stem that is a word of the vocabulary, and of this text, counts as that word.
        """
        unknown = Counter(word for word, id_ in zip(words, word_ids.tolist(), strict=True) if id_ == 0)
        known_counts = Counter(word_ids.tolist())
        counts: dict[int | str, int] = {}
        names: dict[str, int | str] = {}
        for id_ in known:
            word = self._vocabulary.words[id_ - 1]
            # Known only through a relative, while it stands in the text as the stop word that it is.
            if word not in unknown:
                counts[id_] = known_counts[id_]
                names[word] = id_
        for word, count in unknown.items():
            for stem in self._stems(word):
                name = names.setdefault(stem, stem)
                counts[name] = counts.get(name, 0) + count
        return counts

    def _stems(self, word: str) -> list[str]:
        """What a word outside the vocabulary counts as: the stems of its parts."""
        if self._is_unwanted(word):
            return []
        stems = map(self._vocabulary.terms.stem, WORD.findall(word))
        return [stem for stem in stems if len(stem) <= _LONGEST_STEM and not self._is_unwanted(stem)]

    def _is_unwanted(self, word: str) -> bool:
        return word in _MARKERS or word in self._vocabulary.stop_words or is_punctuation_mark(word)

    def _hashed(self, stem: str) -> int:
        return self._first_hashed + hash_term(stem) % (LARGEST_INDEX - self._first_hashed)
