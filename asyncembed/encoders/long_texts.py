"""Where a text may be cut before it is tokenized, so that what is left of it stays the same.

Tokenizing 10 MB for the 256 tokens that a model takes costs seconds and gigabytes. Two kinds of cuts are safe, and one
more of what is within a word:

- At a single space after a word, if the tokenizer looks at words one by one.
- Anywhere within a run of characters, if it can be shown that the tokens which count are settled by then. A model (BPE,
  Unigram) gives to the whole run the tokens of each of its beginnings that ends between two tokens; and of any stretch
  as long as the longest token, at least one character is such an end. So what all the beginnings that end within such a
  stretch have in common is what the whole run begins with, however it goes on.
- The middle of a word that is longer than WordPiece looks at: it is one unknown token, however long it is. And that of
  a long gap between words, which gives no tokens.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from itertools import takewhile
from typing import Any

from tokenizers import models

from asyncembed.encoders.tokenizer_files import TokenizerFiles

LOCAL_NORMALIZERS = frozenset(
    {
        "BertNormalizer",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Nmt",
        "Lowercase",
        "StripAccents",
        "Strip",
        "Precompiled",
        "Prepend",
    }
)
"""What is known to change each word without regard to what follows it."""

SPLITS_AT_SPACES = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
LOCAL_PRE_TOKENIZERS = SPLITS_AT_SPACES | {"Metaspace", "ByteLevel", "Digits", "Punctuation"}
_SPACE_PATTERNS = ({"String": " "}, {"Regex": " {2,}"})

# Letters, digits and marks that neither join with what is before them nor change it: printable ASCII; Latin, Greek and
# Cyrillic letters; kana, Chinese characters, Hangul syllables, and the punctuation between these.
_STARTERS = (
    "[!-~\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff\u0391-\u03a1\u03b1-\u03c9\u0400-\u045f\u3001\u3002"
    "\u3042-\u3096\u30a2-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uff01\uff0c\uff1f]"
)
# Compiled with the first long text, as that takes some milliseconds; `re` keeps what it has compiled.
_JOINTS = f"(?<={_STARTERS}) (?={_STARTERS})"
_JOINTS_OF_CHINESE = f"{_JOINTS}|(?<=[\u4e00-\u9fff])(?=[\u4e00-\u9fff])"
# How far back from the wanted end a cut is looked for.
_SEARCHED_CHARACTERS = 512
# A shorter word, and the two before it, may still be cut otherwise when it goes on ("'r" may become "'re").
_LONG_WORD = 8
_UNSETTLED_WORDS = 3
# What is left of each end of a word that is unknown as it is too long; and of how many different characters it is seen
# whether they are within words.
_ENDS_OF_WORD = 256
_MOST_CHARACTERS = 4096


class Cutter:
    """Finds ends of beginnings for one tokenizer, which must not change afterwards.

    Attributes:
        at_spaces: Whether a cut at a space after a word is safe.
        within_runs: Whether cuts elsewhere can be examined.
        skips_in_words: Whether words may be shortened that are too long to be known.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        """Look at what the parts of the tokenizer regard."""
        self._tokenizer = tokenizer = files.tokenizer
        normalizers, pre_tokenizers = files.normalizers, files.pre_tokenizers
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.content]
        self._longest_added = max(map(len, added), default=0)
        self._added = re.compile("|".join(map(re.escape, added)), re.IGNORECASE) if added else None
        self._prepends_once = any(part.get("prepend_scheme") == "first" for part in pre_tokenizers)
        is_local = all(map(_is_local, normalizers)) and all(
            part["type"] in LOCAL_PRE_TOKENIZERS for part in pre_tokenizers
        )
        self.within_runs: bool = is_local and self._has_known_model()
        self.at_spaces: bool = (
            is_local and any(map(_separates_words, pre_tokenizers)) and not any(" " in content for content in added)
        )
        self.skips_in_words: bool = (
            all(part["type"] == "BertNormalizer" for part in normalizers)
            and [part["type"] for part in pre_tokenizers] in [["BertPreTokenizer"], ["Whitespace"], ["WhitespaceSplit"]]
            and isinstance(tokenizer.model, models.WordPiece)
            and tokenizer.model.max_input_chars_per_word <= _ENDS_OF_WORD
            and self._longest_added <= _ENDS_OF_WORD
            and not any(map(self._is_within_words, added))
        )
        self._joints: str | None = None
        if self.at_spaces and not any(part["type"] == "Prepend" for part in normalizers):
            splits_chinese = any(part.get("handle_chinese_chars") for part in normalizers)
            self._joints = _JOINTS_OF_CHINESE if splits_chinese else _JOINTS

    def end(self, text: str, size: int, room: int) -> int | None:
        """Where to cut `text`, near `size` characters; None if nowhere there.

        A cut at a space need not leave more than `room` tokens: whether it does, the caller must see.
        """
        if self.at_spaces:
            end = text.rfind(" ", size // 2, size)
            while end > 0 and text[end - 1].isspace():
                end -= 1
            # Cutting exactly before a single space, with a word before it, cannot touch the tokens of that word.
            if end > 0 and text[end] == " ":
                return end
        if self.within_runs:
            starts = re.compile(_STARTERS).match
            for end in range(size, max(1, size - _SEARCHED_CHARACTERS), -1):
                if starts(text, end - 1) and starts(text, end):
                    return end if self._settled_tokens(text, end) > room else None
        return None

    def shortened(self, text: str) -> str:
        """A text of the same tokens: without the middles of words far too long to be known ones, and of long gaps."""
        characters = set(text) if self.skips_in_words and len(text) > 2 * _ENDS_OF_WORD else ()
        if not 0 < len(characters) <= _MOST_CHARACTERS:
            return text
        others = [one for one in sorted(characters) if not self._is_within_words(one)]
        blanks = [one for one in others if one.isspace() and self._words_around(one) == ["a", "a"]]
        many = f"{{{2 * _ENDS_OF_WORD + 1},}}"
        not_in_words = re.escape(" " + "".join(others))
        patterns = [f"(?<![^{not_in_words}])[^{not_in_words}]{many}"]
        if blanks:
            patterns.append(f"[{re.escape(''.join(blanks))}]{many}")
        return re.sub("|".join(patterns), lambda run: run[0][:_ENDS_OF_WORD] + run[0][-_ENDS_OF_WORD:], text)

    def _is_within_words(self, characters: str) -> bool:
        """Whether they neither end a word nor are dropped, whatever is around them."""
        words = self._words_around(characters)
        return len(words) == 1 and len(words[0]) >= len(characters) + 2

    def _words_around(self, characters: str) -> list[str]:
        """The words of a text with these characters between two letters `a`."""
        text = f"a{characters}a"
        if self._tokenizer.normalizer is not None:
            text = self._tokenizer.normalizer.normalize_str(text)
        pre_tokenizer = self._tokenizer.pre_tokenizer
        assert pre_tokenizer is not None, "there is one, of those that split at spaces"
        return [word for word, _ in pre_tokenizer.pre_tokenize_str(text)]

    def pieces(self, text: str, size: int) -> Iterator[str]:
        """Pieces of `size` characters or more whose tokens are together those of `text`; one if it has no joints."""
        start = 0
        joints = re.compile(self._joints).finditer(text, size) if self._joints is not None else iter(())
        for joint in joints:
            end = joint.start()
            if end - start >= size and len(text) - end >= size and not self._is_near_added(text, end):
                yield text[start:end]
                start = end
        yield text[start:]

    def _is_near_added(self, text: str, end: int) -> bool:
        reach = self._longest_added + 1
        return self._added is not None and self._added.search(text, max(0, end - reach), end + reach) is not None

    def _settled_tokens(self, text: str, end: int) -> int:
        """How many tokens of `text[:end]` are tokens of `text`, too."""
        start = 0
        if self._added is not None:
            for match in self._added.finditer(text, 0, end + self._longest_added):
                if match.end() > end:
                    return 0
                start = match.end()
        if start and self._prepends_once:
            return 0
        encoding = self._tokenizer.encode(text[:end], add_special_tokens=False)
        count = len(encoding) + sum(map(len, encoding.overflowing))
        return count - self._unsettled_tokens(text[start:end])

    def _unsettled_tokens(self, text: str) -> int:
        """How many of the last tokens of `text` may become others when it goes on."""
        tokenizer = self._tokenizer
        if tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        words = [text]
        if tokenizer.pre_tokenizer is not None:
            words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        if not words:
            return 0
        if len(words[-1]) < _LONG_WORD:
            return sum(len(tokenizer.model.tokenize(word)) for word in words[-_UNSETTLED_WORDS:])
        return self._unsettled_tokens_of_word(words[-1])

    def _unsettled_tokens_of_word(self, word: str) -> int:
        model = self._tokenizer.model
        ids = self._ids(word)
        if isinstance(model, models.WordPiece):
            # One unknown token if it is too long: no matter how much.
            return 0 if len(word) > model.max_input_chars_per_word else len(ids)
        if len(word) <= 2 * self._longest_token:
            return len(ids)
        settled = len(ids)
        for end in range(len(word) - self._longest_token, len(word)):
            others = self._ids(word[:end])
            pairs = zip(ids[:settled], others, strict=False)
            settled = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return len(ids) - settled

    def _ids(self, word: str) -> list[int]:
        return [token.id for token in self._tokenizer.model.tokenize(word)]

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._tokenizer.get_vocab(with_added_tokens=False)), default=1)

    def _has_known_model(self) -> bool:
        model = self._tokenizer.model
        if isinstance(model, models.BPE):
            # With a mark for the end of a word, the beginning of a word has other tokens than the word.
            return not model.dropout and not model.end_of_word_suffix and not model.continuing_subword_prefix
        return isinstance(model, models.WordPiece | models.Unigram)


def _is_local(normalizer: dict[str, Any]) -> bool:
    """Whether it changes a text piece by piece."""
    kind = normalizer["type"]
    return kind in LOCAL_NORMALIZERS or (kind == "Replace" and normalizer["pattern"] in _SPACE_PATTERNS)


def _separates_words(pre_tokenizer: dict[str, Any]) -> bool:
    match pre_tokenizer["type"]:
        case "Metaspace":
            return bool(pre_tokenizer.get("split", True))
        case "ByteLevel":
            return bool(pre_tokenizer.get("use_regex", True))
        case kind:
            return kind in SPLITS_AT_SPACES
