"""Token ids of texts, word by word from a table: several times faster than tokenizing each text anew.

Many tokenizers look at one word at a time. For those, and only for those, a text is the concatenation of its
words, and a word has the same ids wherever it stands; so each distinct word is tokenized once. This pays
where the tokenizer takes most of the time, as with static embeddings.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import TypeAlias

from asyncembed.encoders.long_texts import LOCAL_NORMALIZERS, LOCAL_PRE_TOKENIZERS, SPLITS_AT_SPACES
from asyncembed.encoders.tokenization import TextTokenizer
from asyncembed.encoders.tokenizer_files import TokenizerFiles

Ids: TypeAlias = tuple[int, ...]

# About 30 MB of words; a table that grows beyond it is emptied.
_MAX_WORDS = 100_000

# What BERT's normalizer and pre-tokenizer make of ASCII: words, and each punctuation mark alone.
_ASCII_WORDS = re.compile(r"[A-Za-z0-9]+|[^\sA-Za-z0-9]")
# Apart from these, which BERT's normalizer removes, so that their neighbours join.
_REMOVED_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# What every tokenizer that is accepted here takes for a space; words may still hold other ones.
_CHUNKS = re.compile(r"[^ \n\t\r]+")


class WordTable:
    """The ids that `tokenizer`, which adds no special tokens, gives to texts."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._words: dict[str, Ids] = {}
        files = tokenizer.files
        added = [token.content for token in files.tokenizer.get_added_tokens_decoder().values()]
        self._added = re.compile("|".join(map(re.escape, added))) if added else None
        self._is_word_local = not any(re.search(r"\s", content) for content in added) and _are_word_local(files)
        self._lower_case = False
        self._is_bert = False
        if self._is_word_local and [part["type"] for part in files.normalizers] == ["BertNormalizer"]:
            kinds = [part["type"] for part in files.pre_tokenizers]
            self._is_bert = kinds == ["BertPreTokenizer"] and files.normalizers[0]["clean_text"]
            self._lower_case = files.normalizers[0]["lowercase"]

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], bool]]:
        """The ids of each text, cut at the limit, and whether they were cut."""
        if not self._is_word_local:
            encodings = self._tokenizer.tokenize(texts)
            return [(encoding.ids, bool(encoding.overflowing)) for encoding in encodings]
        split = [self._split(text) for text in texts]
        table = self._words
        missing = {word for words in split for word in words if word not in table}
        if missing:
            self._learn(missing, split)
            table = self._words
        limit = self._tokenizer.limit
        results = []
        for words in split:
            ids = list(chain.from_iterable([table[word] for word in words]))
            is_cut = len(ids) > limit
            if is_cut:
                ids = ids[-limit:] if self._tokenizer.truncates_left else ids[:limit]
            results.append((ids, is_cut))
        return results

    def _split(self, text: str) -> list[str]:
        if (
            self._is_bert
            and text.isascii()
            and not _REMOVED_CONTROLS.search(text)
            and not (self._added and self._added.search(text))
        ):
            return _ASCII_WORDS.findall(text.lower() if self._lower_case else text)
        return _CHUNKS.findall(text)

    def _learn(self, missing: set[str], split: Sequence[Sequence[str]]) -> None:
        if len(self._words) + len(missing) > _MAX_WORDS:
            self._words = {}
            missing = {word for words in split for word in words}
        ordered = sorted(missing)
        for word, encoding in zip(ordered, self._tokenizer.tokenize(ordered), strict=True):
            ids = tuple(encoding.ids)
            if encoding.overflowing:
                # A word that is over the limit by itself was cut already: one id more, of whatever value,
                # says so.
                ids = (0, *ids) if self._tokenizer.truncates_left else (*ids, 0)
            self._words[word] = ids


def _are_word_local(files: TokenizerFiles) -> bool:
    """Whether a text's tokens are those of its parts between spaces, one after the other."""
    normalizers = {part["type"] for part in files.normalizers}
    pre_tokenizers = [part["type"] for part in files.pre_tokenizers]
    return (
        # A prefix comes once per text, not once per word.
        normalizers <= LOCAL_NORMALIZERS - {"Prepend"}
        and set(pre_tokenizers) <= LOCAL_PRE_TOKENIZERS - {"ByteLevel"}
        # All later parts see single words only.
        and pre_tokenizers[:1] != []
        and pre_tokenizers[0] in SPLITS_AT_SPACES
    )
