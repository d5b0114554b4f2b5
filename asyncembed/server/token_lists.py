"""The tokens of a text, one by one, for `/tokenize`; and back, for `/decode`.

What computes has no use for them, so a tokenizer of its own is loaded for those who ask, with their first question.
"""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer

from asyncembed.encoders.tokenizer_files import TokenizerFiles
from asyncembed.errors import InputError


class Token(NamedTuple):
    """A token and where it stands in its text, in bytes of UTF-8; nowhere, if it was put there."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class TokenLists:
    """The tokens of one model. For threads: each of its methods computes."""

    def __init__(self, directory: Path, *, lower_case: bool = False) -> None:
        """Read the tokenizer of the model in `directory`.

        Raises:
            UnsupportedModelError: It has none.
            ModelLoadError: It is broken.
        """
        self._library: Tokenizer = TokenizerFiles.read(directory, lower_case=lower_case).tokenizer
        self._library.no_truncation()
        self._library.no_padding()
        self._size = self._library.get_vocab_size()

    def tokens(self, text: str, *, add_special_tokens: bool = True) -> list[Token]:
        """The tokens of a text, however long: some hundred bytes for each."""
        return _tokens(text, self._library.encode(text, add_special_tokens=add_special_tokens))

    def texts(self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """What each list of ids stands for.

        Raises:
            InputError: One of the ids is no token's.
        """
        for index, some in enumerate(ids):
            if some and not (min(some) >= 0 and max(some) < self._size):
                raise InputError(f"the model has the tokens 0 to {self._size - 1}, and no others", index=index)
        return self._library.decode_batch([list(some) for some in ids], skip_special_tokens=skip_special_tokens)


def _tokens(text: str, encoding: Encoding) -> list[Token]:
    """The library counts characters where it is asked from Python; the dialect counts bytes."""
    places = range(len(text) + 1) if text.isascii() else _byte_offsets(text)
    return [
        Token(id_, token, special=True, start=None, stop=None)
        if special
        else Token(id_, text[start:stop], special=False, start=places[start], stop=places[stop])
        for id_, token, special, (start, stop) in zip(
            encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
        )
    ]


def _byte_offsets(text: str) -> list[int]:
    """Where in the UTF-8 of a text each of its characters begins, and where the last one ends."""
    return list(accumulate((len(character.encode()) for character in text), initial=0))
