from pathlib import Path

import numpy as np
import pytest

from asyncembed.encoders.tokenization import TextTokenizer
from asyncembed.encoders.word_pieces import WordPieces
from tests.support.tokenizers import wordpiece, write_tokenizer


@pytest.mark.parametrize(
    ("tokens", "words", "starts"),
    [
        (["[CLS]", "word", "##s", "the", "##x", "##y", "[SEP]"], ["[CLS]", "words", "thexy", "[SEP]"], [0, 1, 3, 6]),
        (["##s", "##x", "the"], ["sx", "the"], [0, 2]),
        (["the"], ["the"], [0]),
        ([], [], []),
    ],
)
def test_pieces_make_up_words(tokens: list[str], words: list[str], starts: list[int], tmp_path: Path) -> None:
    write_tokenizer(tmp_path, wordpiece())
    tokenizer = TextTokenizer(tmp_path)
    ids = np.array([tokenizer._library.token_to_id(token) for token in tokens], dtype=np.int64)
    found, positions = WordPieces(tokenizer).words(ids)
    assert found == words
    assert positions.tolist() == starts
