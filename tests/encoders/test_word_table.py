from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from asyncembed.encoders.tokenization import TextTokenizer
from asyncembed.encoders.word_table import WordTable
from tests.support.tokenizers import WORDS, byte_level_bpe, unigram, wordpiece, write_tokenizer


def cased() -> Tokenizer:
    tokenizer = wordpiece()
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    return tokenizer


KINDS = {
    "wordpiece": (wordpiece(), "[PAD]", True),
    "cased": (cased(), "[PAD]", True),
    "unigram": (unigram(), "<pad>", True),
    "bpe": (byte_level_bpe(), "<pad>", False),
}

_PARTS = [
    *WORDS[:9],
    "The",
    "[MASK]",
    "[mask]",
    "<mask>",
    "İ",
    "ﬁ",
    "é",
    "e\u0301",
    "\u0301",
    "日本",
    "x" * 120,
]
_PARTS += [" ", "  ", "\n", "\t", "\r", "\x0b", "\x1c", "\x85", "\u00a0", "\u200b", "\x00", "_", "-", "."]

TEXTS = st.one_of(
    st.text(),
    st.text(alphabet=st.characters(max_codepoint=127)),
    st.lists(
        st.sampled_from(_PARTS),
        max_size=40,
    ).map("".join),
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ids_from_the_table_are_those_of_the_tokenizer(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    library, pad_token, is_word_local = KINDS[kind]
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory, library, pad_token=pad_token)
    tokenizer = TextTokenizer(directory, max_length=20, add_special_tokens=False)
    table = WordTable(tokenizer)
    assert table._is_word_local == is_word_local

    @given(st.lists(TEXTS, max_size=4))
    def check(texts: list[str]) -> None:
        texts = [text.encode("utf-8", "ignore").decode() for text in texts]
        expected = tokenizer._library.encode_batch_fast(texts, add_special_tokens=False)
        assert table.encode(texts) == [(encoding.ids, bool(encoding.overflowing)) for encoding in expected]

    check()


def test_a_table_that_grew_too_large_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncembed.encoders.word_table._MAX_WORDS", 3)
    write_tokenizer(tmp_path, wordpiece())
    tokenizer = TextTokenizer(tmp_path, add_special_tokens=False)
    table = WordTable(tokenizer)
    for text in ("the a of", "the and to", "in is it you that"):
        assert table.encode([text]) == [(tokenizer._library.encode(text, add_special_tokens=False).ids, False)]
