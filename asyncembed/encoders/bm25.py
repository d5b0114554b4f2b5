"""BM25's part of a document: how often each term occurs in it, saturated. No graph, no runtime.

The other part, how rare a term is in the collection, is the database's: its index is to weigh with the IDF.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from asyncembed.checks import check_number
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo
from asyncembed.encoders.settings import Bm25Settings, read_settings
from asyncembed.encoders.stemming import WORD, Terms, is_punctuation_mark, read_stop_words, snowball
from asyncembed.errors import InputError
from asyncembed.results import Ragged, SparseEmbedding, bounds_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TermFrequency:
    """BM25's weight of a term that occurs n times in a document of L terms.

    `n (k + 1) / (n + k (1 - b + b L / avg_len))`: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework:
    BM25 and Beyond", section 3.

    Attributes:
        k: How late further occurrences stop to count.
        b: How much a long document is discounted, 0 to 1.
        avg_len: Terms of an average document of the collection.
    """

    k: float = 1.2
    b: float = 0.75
    avg_len: float = 256.0

    def __post_init__(self) -> None:
        check_number("k", self.k, minimum=0)
        check_number("b", self.b, minimum=0, maximum=1)
        check_number("avg_len", self.avg_len, minimum=1e-9)

    def __call__(self, counts: npt.NDArray[np.float64], lengths: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The weights of terms that occur `counts` times in documents of `lengths` terms."""
        return counts * (self.k + 1) / (counts + self.k * (1 - self.b + self.b * lengths / self.avg_len))


class Bm25Encoder:
    """The encoder of BM25: mode "query" gives each term the weight 1, any other mode the term's frequency."""

    info: ModelInfo = ModelInfo(special_tokens=0)

    def __init__(self, config: EncoderConfig) -> None:
        """Make the stemmer and read the stop words.

        Raises:
            OptionError: A keyword that BM25 does not have, or a value that cannot work.
            ModelLoadError: The list of stop words cannot be read.
        """
        settings = read_settings(Bm25Settings, config.spec, config.keywords)
        self._frequency = TermFrequency(k=settings.k, b=settings.b, avg_len=settings.avg_len)
        stemmer = settings.stemmer
        if stemmer is None and not settings.disable_stemmer:
            stemmer = snowball(settings.language)
        if settings.stopwords is not None:
            stop_words = frozenset(word.lower() for word in settings.stopwords)
        elif settings.disable_stemmer:
            stop_words = frozenset()
        else:
            stop_words = read_stop_words(config.directory / f"{settings.language}.txt")
        longest = settings.token_max_length
        self._terms = Terms(
            stemmer,
            is_dropped=lambda word: len(word) > longest or word in stop_words or is_punctuation_mark(word),
        )

    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Vectors of texts; an entry stands where its term first occurs. With mode "count", numbers of words."""
        failures = {
            position: InputError(f"expected a string, got {type(value).__name__}")
            for position, value in enumerate(inputs)
            if not isinstance(value, str)
        }
        words = [split_words(value) if isinstance(value, str) else [] for value in inputs]
        if call.mode == "count":
            return Encoded([len(some) for some in words], failures)
        counts = [Counter(filter(None, map(self._terms.stem, some))) for some in words]
        # Of two stems with one hash the later one counts.
        entries = [dict(zip(map(self._terms.index, some), some.values(), strict=True)) for some in counts]
        bounds = bounds_of(map(len, entries))
        indices = np.fromiter(chain.from_iterable(entries), dtype=np.int32, count=bounds[-1])
        if call.mode == "query":
            values = np.ones(len(indices), dtype=np.float32)
        else:
            values = self._weigh(entries, [some.total() for some in counts], bounds)
        lengths = list(map(len, words))
        batch = Ragged(SparseEmbedding, (indices, values), bounds)
        return Encoded(batch, failures, padded_tokens=sum(lengths), counts=lengths)

    def _weigh(
        self, entries: Sequence[Mapping[int, int]], lengths: Sequence[int], bounds: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        occurrences = chain.from_iterable(some.values() for some in entries)
        counts = np.fromiter(occurrences, dtype=np.float64, count=bounds[-1])
        weights = self._frequency(counts, np.repeat(np.array(lengths, dtype=np.float64), np.diff(bounds)))
        return weights.astype(np.float32)


# For the bytes of an ASCII text: what belongs to words in lower case, a space for all else.
_ASCII_WORDS = bytes(ord(chr(code).lower() if WORD.match(chr(code)) else " ") for code in range(128)) + bytes(128)


def split_words(text: str) -> list[str]:
    """The lower-cased words of a text: runs of letters, digits and "_" as Python understands them.

    No Unicode normalisation is done, and combining marks separate words.
    """
    if text.isascii():
        return text.encode().translate(_ASCII_WORDS).decode().split()
    # Lowered word by word: how a capital sigma is lowered depends on the characters beside it, punctuation included.
    lowered = " ".join(WORD.findall(text)).lower()
    # Of all letters only the dotted capital I is lowered to more than word characters: "i" and a combining dot.
    return WORD.findall(lowered) if "\u0130" in text else lowered.split()
