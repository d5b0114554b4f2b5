"""`asyncembed rerank`, with models without weights."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import asyncembed.sync
from asyncembed.cli.commands import main
from asyncembed.errors import EncodeError
from asyncembed.testing import Fakes, fake_models

pytestmark = pytest.mark.slow

MODEL = "Xenova/ms-marco-MiniLM-L-6-v2"
QUERY = "what is backpressure"
TEXTS = ["cats sleep", "backpressure slows a producer", "what is a cat", "nothing"]


@pytest.fixture(autouse=True)
def fakes() -> Iterator[Fakes]:
    with fake_models(failures={"broken": EncodeError("no score")}) as fakes:
        yield fakes


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
    done = CliRunner().invoke(main, ["rerank", MODEL, QUERY, *arguments], input=stdin)
    assert done.exit_code == code, done.output
    return done


def ranked(*arguments: str, stdin: str | None = None) -> list[Any]:
    found = json.loads(run(*arguments, "--json", stdin=stdin).stdout)
    assert isinstance(found, list)
    return found


def expected(texts: list[str]) -> list[tuple[int, float]]:
    with asyncembed.sync.TextCrossEncoder(MODEL) as model:
        return model.rank(QUERY, texts)


def test_records_come_best_first_with_their_positions_and_scores() -> None:
    found = ranked(stdin="\n".join(TEXTS))
    best = expected(TEXTS)
    assert [one["index"] for one in found] == [index for index, _ in best]
    assert [one["score"] for one in found] == pytest.approx([score for _, score in best], rel=1e-6)
    assert [one["record"]["text"] for one in found] == [TEXTS[index] for index, _ in best]


def test_the_best_of_many_are_the_best_of_all() -> None:
    texts = [f"text {number} {'backpressure' * (number % 5 == 0)}" for number in range(1200)]
    Path("in.txt").write_text("\n".join(texts), encoding="utf-8")
    found = ranked("in.txt", "-k", "3")
    assert [one["index"] for one in found] == [index for index, _ in expected(texts)[:3]]


def test_a_table_shows_texts_on_a_line_each() -> None:
    Path("in.jsonl").write_text(json.dumps({"body": "what\nis it"}) + "\n", encoding="utf-8")
    header, row = run("in.jsonl", "--column=body").stdout.splitlines()
    assert header.split() == ["SCORE", "RECORD", "TEXT"]
    assert row.split()[1:] == ["0", "what", "is", "it"]


def test_equal_scores_are_in_the_order_of_the_source() -> None:
    assert [one["index"] for one in ranked("-k", "2", stdin="same\nsame\nsame\n")] == [0, 1]


def test_a_record_that_fails_ends_it_or_is_left_out_and_the_others_keep_their_positions() -> None:
    Path("in.jsonl").write_text('{"text": "one"}\n{"text": \n{"text": "broken"}\n{"text": "four"}\n', encoding="utf-8")
    assert "line 2 is no JSON" in run("in.jsonl", code=1).stderr
    assert {one["index"] for one in ranked("in.jsonl", "--on-error=skip")} == {0, 3}


def test_scores_between_0_and_1_if_asked_for() -> None:
    assert all(0 < one["score"] < 1 for one in ranked("--activation=sigmoid", stdin="one\ntwo"))


def test_nothing_is_nothing() -> None:
    assert ranked(stdin="") == []
    assert run(stdin="").stdout == "SCORE  RECORD\n"


def test_an_instruction_reaches_the_model() -> None:
    found = ranked("--instruction", "what holds a writer back", stdin="\n".join(TEXTS))
    with asyncembed.sync.TextCrossEncoder(MODEL) as model:
        best = model.rank(QUERY, TEXTS, instruction="what holds a writer back")
    assert [one["score"] for one in found] == pytest.approx([score for _, score in best], rel=1e-6)
    assert [score for _, score in best] != pytest.approx([score for _, score in expected(TEXTS)], rel=1e-6)
