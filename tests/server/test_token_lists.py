"""The tokens of a text, and back."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from asyncembed.errors import InputError, UnsupportedModelError
from tests.support.tokenizers import byte_level_bpe, unigram, wordpiece, write_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncembed.server.token_lists import TokenLists

pytestmark = pytest.mark.slow  # importing the server takes as long as all of these


@pytest.fixture(params=[wordpiece, byte_level_bpe, unigram])
def lists(request: pytest.FixtureRequest, tmp_path: Path) -> "TokenLists":
    make: Callable[[], Tokenizer] = request.param
    return written(tmp_path, make())


def written(directory: Path, tokenizer: Tokenizer) -> "TokenLists":
    from asyncembed.server.token_lists import TokenLists

    write_tokenizer(directory, tokenizer, pad_token="[PAD]" if tokenizer.token_to_id("[PAD]") == 0 else "<pad>")
    return TokenLists(directory)


def test_words_have_their_places_and_markers_have_none(tmp_path: Path) -> None:
    tokens = written(tmp_path, wordpiece()).tokens("the day")
    assert [(token.text, token.special, token.start, token.stop) for token in tokens] == [
        ("[CLS]", True, None, None),
        ("the", False, 0, 3),
        ("day", False, 4, 7),
        ("[SEP]", True, None, None),
    ]


def test_markers_are_left_out_where_they_are_not_wanted(tmp_path: Path) -> None:
    tokens = written(tmp_path, wordpiece()).tokens("the day", add_special_tokens=False)
    assert [token.text for token in tokens] == ["the", "day"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_places_are_those_in_the_utf8_of_the_text(lists: "TokenLists", text: str) -> None:
    whole = text.encode()
    for token in lists.tokens(text):
        if token.start is not None:
            assert whole[token.start : token.stop].decode() == token.text


def test_a_text_over_the_limit_keeps_all_of_its_tokens(tmp_path: Path) -> None:
    assert len(written(tmp_path, wordpiece()).tokens("the " * 1000)) == 1002


def test_ids_become_the_text_that_they_stand_for(tmp_path: Path) -> None:
    lists = written(tmp_path, wordpiece())
    ids = [token.id for token in lists.tokens("what will they write")]
    assert lists.texts([ids, []]) == ["what will they write", ""]
    assert lists.texts([ids], skip_special_tokens=False) == ["[CLS] what will they write [SEP]"]


def test_an_id_that_the_model_does_not_have_is_that_inputs_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="input 1: the model has the tokens 0 to") as error:
        written(tmp_path, wordpiece()).texts([[1], [2, 2**32 - 1]])
    assert error.value.index == 1


def test_a_model_without_a_tokenizer_has_no_tokens(tmp_path: Path) -> None:
    from asyncembed.server.token_lists import TokenLists

    with pytest.raises(UnsupportedModelError):
        TokenLists(tmp_path)
