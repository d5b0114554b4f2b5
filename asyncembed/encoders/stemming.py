"""From words to the indices of sparse vectors: stop words, stems, and the hash of a term.

BM25, BM42 and miniCOIL share it. The stems are those of Snowball 2, the hash is MurmurHash3: vectors that other tools
have put into a database with the same models stay comparable.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from asyncembed.errors import ModelLoadError, OptionError

LANGUAGES = (
    "arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek", "hungarian", "italian",
    "norwegian", "portuguese", "romanian", "russian", "spanish", "swedish", "tamil", "turkish",
)  # fmt: skip

WORD = re.compile(r"\w+")
"""A run of letters, digits and "_", as Python understands them. Combining marks are none of these."""

MAX_CACHED_WORDS = 1 << 17
"""Words whose stem is remembered: about 25 MB when full, and more than nearly any corpus uses often."""

LARGEST_INDEX = 2**31 - 1


class Stemmer(Protocol):
    """Cuts a lower-cased word down to its stem; an empty stem drops the word."""

    def stem_word(self, word: str, /) -> str:
        """The stem of `word`."""
        ...


def snowball(language: str) -> Stemmer:
    """The Snowball stemmer of `language`.

    Raises:
        OptionError: There is none.
    """
    if language not in LANGUAGES:
        raise OptionError(
            f"no stemmer for language={language!r}: choose one of {', '.join(LANGUAGES)}, give a stemmer= of your own, "
            "or say disable_stemmer=True"
        )
    from py_rust_stemmers import SnowballStemmer

    stemmer: Stemmer = SnowballStemmer(language)
    return stemmer


def read_stop_words(path: Path) -> frozenset[str]:
    """The lines of `path`; none if there is no such file.

    Raises:
        ModelLoadError: It is no text in UTF-8.
    """
    if not path.is_file():
        return frozenset()
    try:
        return frozenset(path.read_text(encoding="utf-8").splitlines())
    except ValueError as error:
        raise ModelLoadError(f"{path} is not a list of words in UTF-8: {error}", model=str(path.parent)) from error


def is_punctuation_mark(word: str) -> bool:
    """Whether `word` is a single character that Unicode calls punctuation."""
    return len(word) == 1 and unicodedata.category(word).startswith("P")


def hash_term(term: str) -> int:
    """The absolute value of the signed MurmurHash3 (x86, 32 bits, seed 0) of the term's UTF-8 bytes: 0 to 2**31."""
    from mmh3 import hash as murmur3

    return abs(int(murmur3(term)))


def term_index(term: str) -> int:
    """The index of a term: its hash, 0 to 2**31 - 1.

    The one hash in 2**32 whose absolute value does not fit int32 shares the largest index, as terms of equal hash
    share theirs.
    """
    return min(hash_term(term), LARGEST_INDEX)


class Terms:
    """From words to the stems that stand for them, and from stems to indices; the latest are remembered.

    Attributes:
        stem: From a lower-cased word to its stem; empty for a word that does not count.
        index: From a stem to its index.
    """

    def __init__(self, stemmer: Stemmer | None, *, is_dropped: Callable[[str], bool] | None = None) -> None:
        """Stem with `stemmer`, or not at all; words for which `is_dropped` do not count."""

        def stem(word: str) -> str:
            if is_dropped is not None and is_dropped(word):
                return ""
            return word if stemmer is None else stemmer.stem_word(word)

        self.stem: Callable[[str], str] = lru_cache(MAX_CACHED_WORDS)(stem)
        self.index: Callable[[str], int] = lru_cache(MAX_CACHED_WORDS)(term_index)
