"""Where the files of a tokenizer disagree: what transformers makes of them; and files of any content."""

import json
from pathlib import Path

import pytest

from asyncembed.encoders.tokenization import TextTokenizer
from tests.support.tokenizer_files import CASES, TEXTS, write_case

REFERENCE = json.loads((Path(__file__).parent / "data" / "tokenizers.json").read_text(encoding="utf-8"))["ids"]


def test_every_case_has_its_reference() -> None:
    assert list(REFERENCE) == list(CASES)
    assert all(REFERENCE.values())


@pytest.mark.parametrize("name", CASES)
def test_files_that_disagree_give_the_tokens_of_transformers(name: str, tmp_path: Path) -> None:
    ours = TextTokenizer(write_case(tmp_path, CASES[name]))
    assert [encoding.ids for encoding in ours.encode(TEXTS).encodings] == REFERENCE[name]
