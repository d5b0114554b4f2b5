"""What is printed: texts of strangers are shown, and never obeyed."""

import json

import pytest

from asyncembed.cli.output import print_json, print_table, say, visible

STRANGE = "a\x1b]0;title\x07\x9b31m\u202eb\tc\udcff\ud800"
"""With halves of characters, which have no bytes, at its end."""


def test_a_terminal_does_nothing_that_a_text_says(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("TEXT", "N"), [(STRANGE, "1")])
    say(STRANGE)
    printed = capsys.readouterr().out
    assert printed.count(r"a\x1b]0;title\x07\x9b31m\u202eb") == 2
    assert not any(character < " " and character not in "\t\n" for character in printed)


def test_in_json_it_is_what_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": STRANGE})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"text": STRANGE}
    assert not set("\x1b\x07\x9b\u202e") & set(printed)


def test_a_cell_is_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME",), [("a\nb",)])
    assert capsys.readouterr().out == "NAME\na\\nb\n"


def test_letters_of_all_languages_stay() -> None:
    assert visible("é 日本 🙂 مرحبا\n") == "é 日本 🙂 مرحبا\n"
