"""Sentences: every character is in one, white space aside, and a text of any length takes time by its length."""

import re
import sys

import pytest

from asyncembed.encoders.sentences import BLOCK_CHARACTERS, _splitter, check_sentences, sentences
from asyncembed.errors import RuntimeMissingError


def texts_of(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


def test_a_sentence_ends_with_its_full_stop_or_its_line_in_any_language() -> None:
    assert texts_of("He paid 3.15 p.m. prices. Why?  No!\n\nA heading\nMore. 他来了!好的。") == [
        "He paid 3.15 p.m. prices.",
        "Why?",
        "No!",
        "A heading",
        "More.",
        "他来了!",
        "好的。",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t ",
        "no end",
        "One. " * 3000,
        "word " * 3000,
        "x" * 3 * BLOCK_CHARACTERS,
        f"Short. {'long ' * 1000}. Short.\r\n" * 3,
        " " * BLOCK_CHARACTERS + "late",
    ],
    ids=["none", "white", "open", "many", "endless", "one word", "long ones", "far"],
)
def test_every_character_is_in_one_sentence(text: str) -> None:
    spans = list(sentences(text))
    assert all(start < end for start, end in spans)
    bounds = [0, *(position for span in spans for position in span), len(text)]
    assert bounds == sorted(bounds)
    between = [text[end:start] for end, start in zip(bounds[::2], bounds[1::2], strict=True)]
    assert not "".join(between).strip()
    assert re.sub(r"\s", "", "".join(text[start:end] for start, end in spans)) == re.sub(r"\s", "", text)
    assert max((end - start for start, end in spans), default=0) <= BLOCK_CHARACTERS


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "semantic_text_splitter", None)
    _splitter.cache_clear()
    with pytest.raises(RuntimeMissingError, match=r'pip install "asyncembed\[sentences\]"'):
        check_sentences()


def test_a_sentence_is_the_same_wherever_the_blocks_end() -> None:
    assert set(texts_of("Each of them is like the one before. " * 500)) == {"Each of them is like the one before."}
