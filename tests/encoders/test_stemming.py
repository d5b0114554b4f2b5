from pathlib import Path

import pytest

from asyncembed.encoders.stemming import Terms, hash_term, is_punctuation_mark, read_stop_words, snowball, term_index
from asyncembed.errors import ModelLoadError, OptionError


@pytest.mark.parametrize(
    ("term", "value"),
    [
        ("hello", 613153351),
        ("world", 74040069),
        ("cat", 1751422759),
        ("run", 243905464),
        ("the", 1132748958),
        ("東京", 1765863102),
        ("", 0),
        ("akqlrggi", 2**31),
    ],
)
def test_hashes_are_those_that_databases_hold(term: str, value: int) -> None:
    assert hash_term(term) == value
    assert term_index(term) == min(value, 2**31 - 1)


@pytest.mark.parametrize(
    ("word", "stem"),
    [("running", "run"), ("unbelievably", "unbeliev"), ("sentence", "sentenc"), ("generously", "generous")],
)
def test_stems_are_those_of_snowball(word: str, stem: str) -> None:
    assert snowball("english").stem_word(word) == stem


def test_a_language_without_a_stemmer_names_the_ways_out() -> None:
    with pytest.raises(OptionError, match="'klingon': choose one of arabic.*stemmer=.*disable_stemmer"):
        snowball("klingon")


def test_a_word_that_is_dropped_has_no_stem() -> None:
    terms = Terms(snowball("english"), is_dropped={"cats"}.__contains__)
    assert [terms.stem(word) for word in ("cats", "dogs", "cats")] == ["", "dog", ""]
    assert Terms(None).stem("cats") == "cats"


@pytest.mark.parametrize(("word", "expected"), [("_", True), ("、", True), ("+", False), ("..", False), ("", False)])
def test_punctuation_is_what_unicode_says(word: str, expected: bool) -> None:
    assert is_punctuation_mark(word) is expected


def test_stop_words_are_the_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "german.txt"
    assert read_stop_words(path) == frozenset()
    path.write_bytes("der\nfür\r\n".encode())
    assert read_stop_words(path) == {"der", "für"}
    path.write_bytes(b"\xff")
    with pytest.raises(ModelLoadError, match=r"german\.txt"):
        read_stop_words(path)
