"""The soak tells what grows from what varies, notes what is lost or wrong, and finds nothing in a short time."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import soak, soak_books
from benchmarks.soak import Account, Sample, report, row

pytestmark = pytest.mark.slow


def held(what: str, values: list[float]) -> list[Sample]:
    """What one process held, two rounds of a warm-up aside."""
    return [Sample(10.0 * place, {what: value}) for place, value in enumerate([1.0, 2.0, *values])]


@pytest.mark.parametrize(
    ("what", "values"),
    [
        ("descriptors", [40, 40, 41, 41, 42, 42]),
        ("memory, MB", [50 + 0.4 * place for place in range(12)]),
        ("objects", [60_000 + 200 * place for place in range(12)]),
    ],
)
def test_what_grows_all_the_time_is_told(what: str, values: list[float]) -> None:
    assert row(what, held(what, values)).grows


@pytest.mark.parametrize(
    ("what", "values"),
    [
        ("descriptors", [40, 42, 40, 40, 40, 42, 42, 42, 40]),
        ("memory, MB", [50, 51.4, 50.2, 51.1, 50.8, 51.3]),
        ("descriptors", [40, 44]),
    ],
    ids=["now and then", "a heap", "too few rounds"],
)
def test_what_varies_does_not_grow(what: str, values: list[float]) -> None:
    assert not row(what, held(what, values)).grows


def test_the_slope_is_that_of_a_minute() -> None:
    found = row("descriptors", held("descriptors", [10, 10, 10, 16, 16, 16]))
    assert (found.first, found.last, found.a_minute) == (10, 16, 9)


async def test_lost_wrong_and_swapped_answers_are_noted(tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text('["a", "b"]', encoding="utf-8")
    vectors = np.array([[1.0, 2.0], [2.0, 1.0]], np.float32)
    np.savez(tmp_path / "expected.npz", steady=vectors)
    books = soak_books.Books(tmp_path, seed=1)
    books.check("right", "steady", [0, 1], vectors)
    assert not books.problems
    books.check("lost", "steady", [0, 1], vectors[:1])
    books.check("swapped", "steady", [1, 0], vectors)
    books.check("wrong", "steady", [0], vectors[:1] + 0.01)
    assert list(books.problems) == [
        "lost: 1 answers for 2 texts",
        "swapped: wrong vectors of steady",
        "wrong: wrong vectors of steady",
    ]


def test_a_problem_and_a_process_that_never_rests_are_no_good_end(capsys: pytest.CaptureFixture[str]) -> None:
    account = Account("program", samples=held("tasks", [3.0] * 6))
    assert report([account], 60)
    account.problems["query_turn hangs"] += 2
    assert not report([account], 60)
    assert "PROBLEM, 2 times: query_turn hangs" in capsys.readouterr().out
    assert not report([Account("server")], 60)


@pytest.mark.timeout(300)
def test_in_a_short_soak_all_is_answered_and_nothing_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(minutes=0.15, model=None, seed=20), capsys.readouterr().out
