"""From word pieces back to words."""

import numpy as np
import numpy.typing as npt

from asyncembed.encoders.tokenization import IntArray, TextTokenizer

CONTINUATION = "##"
"""What WordPiece writes before a piece that continues a word, where the tokenizer does not say."""


class WordPieces:
    """The pieces of a vocabulary, and how they make up words."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        """Take the vocabulary of `tokenizer`."""
        vocabulary = tokenizer.vocabulary
        prefix = tokenizer.files.continuation or CONTINUATION
        size = max(vocabulary.values(), default=-1) + 1
        self._pieces = [""] * size
        self._continues = np.zeros(size, dtype=np.bool_)
        for token, id_ in vocabulary.items():
            self._continues[id_] = token.startswith(prefix)
            self._pieces[id_] = token.removeprefix(prefix)

    def words(self, ids: IntArray) -> tuple[list[str], npt.NDArray[np.intp]]:
        """The words that `ids` spell, and at which position each of them starts.

        A piece that continues a word, but has none before it, starts one.
        """
        if not len(ids):
            return [], np.empty(0, dtype=np.intp)
        is_start = ~self._continues[ids]
        is_start[0] = True
        starts = np.flatnonzero(is_start)
        pieces = [self._pieces[id_] for id_ in ids.tolist()]
        ends = [*starts[1:].tolist(), len(pieces)]
        return ["".join(pieces[start:end]) for start, end in zip(starts.tolist(), ends, strict=True)], starts
