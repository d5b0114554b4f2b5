import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncembed.encoders.text_graph import MicroBatch, Planner

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


@given(LENGTHS, st.integers(1, 200), st.one_of(st.none(), st.integers(1, 10)), st.integers(0, 50))
def test_every_input_runs_once_and_within_the_bounds(
    lengths: list[int], max_tokens: int, max_size: int | None, overhead: int
) -> None:
    runs = Planner(max_tokens=max_tokens, max_size=max_size, run_overhead_tokens=overhead).plan(lengths)
    assert sorted(itertools.chain.from_iterable(run.rows for run in runs)) == list(range(len(lengths)))
    for run in runs:
        assert run.length == max(lengths[row] for row in run.rows)
        assert len(run.rows) == 1 or run.length * len(run.rows) <= max_tokens
        assert max_size is None or len(run.rows) <= max_size


@given(st.lists(st.integers(1, 30), max_size=7), st.integers(1, 80), st.integers(0, 40))
def test_no_other_cut_costs_less(lengths: list[int], max_tokens: int, overhead: int) -> None:
    runs = Planner(max_tokens=max_tokens, run_overhead_tokens=overhead).plan(lengths)
    ordered = sorted(lengths, reverse=True)

    def least(remaining: list[int]) -> int:
        if not remaining:
            return 0
        return min(
            overhead + remaining[0] * count + least(remaining[count:])
            for count in range(1, len(remaining) + 1)
            if count == 1 or remaining[0] * count <= max_tokens
        )

    assert sum(overhead + run.length * len(run.rows) for run in runs) == least(ordered)


def test_an_input_over_the_budget_runs_alone() -> None:
    assert Planner(max_tokens=100).plan([3, 900, 3]) == [
        MicroBatch((1,), 900),
        MicroBatch((0, 2), 3),
    ]


def test_inputs_of_one_length_keep_their_order_and_fill_the_budget() -> None:
    runs = Planner(max_tokens=20).plan([10] * 5)
    assert [row for run in runs for row in run.rows] == [0, 1, 2, 3, 4]
    assert len(runs) == 3


@pytest.mark.parametrize(("overhead", "count"), [(0, 3), (1000, 1)])
def test_a_costly_run_is_worth_some_padding(overhead: int, count: int) -> None:
    assert len(Planner(max_tokens=100, run_overhead_tokens=overhead).plan([10, 11, 12])) == count
