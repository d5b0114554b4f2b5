import json
from pathlib import Path
from typing import Any

import pytest

from asyncembed.errors import UnsupportedModelError
from asyncembed.export.answers import read_answer
from asyncembed.export.construction import Answer


def write(directory: Path, **tokenizer: Any) -> Path:
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    return directory


def test_tokens_are_looked_up_in_the_vocabulary_and_among_added_ones(tmp_path: Path) -> None:
    write(tmp_path, model={"vocab": {"yes": 5, "no": 6}}, added_tokens=[{"content": "no", "id": 9}, 7, {"id": 3}])
    assert read_answer(tmp_path, "yes", "no") == Answer(5, 9)
    assert read_answer(tmp_path, "yes", None) == Answer(5)


def test_ids_need_no_tokenizer(tmp_path: Path) -> None:
    assert read_answer(tmp_path, 1, 2) == Answer(1, 2)


@pytest.mark.parametrize(
    "tokenizer", [{}, {"model": []}, {"model": {"vocab": [["yes", 0.5]]}}, {"model": {"vocab": {"yes": "5"}}}]
)
def test_a_vocabulary_without_the_token_is_no_reranker_s(tokenizer: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="has no token 'yes', by which its score is told"):
        read_answer(write(tmp_path, **tokenizer), "yes", "no")
