"""What a text costs by its length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncembed.encoders.run_cost import LONGEST_RUN_SECONDS, SHORT_TOKENS, RunCost, cost_of, measure_runs

WIDTHS = st.none() | st.integers(1, 20_000)


@given(st.integers(1, SHORT_TOKENS), WIDTHS)
def test_a_short_text_costs_its_tokens(tokens: int, attention_tokens: int | None) -> None:
    assert cost_of(tokens, attention_tokens) == tokens


def test_beyond_that_the_square_counts() -> None:
    assert cost_of(4096, None) == 4096
    # 3,072 tokens: the attention takes as long as all else, where for 512 it takes a sixth of that.
    assert cost_of(3072, 3072) == 3072 * 2 * 3072 // (3072 + 512)


@given(st.integers(1, 100_000), WIDTHS)
def test_one_more_token_never_costs_less(tokens: int, attention_tokens: int | None) -> None:
    cost = cost_of(tokens, attention_tokens)
    assert tokens <= cost < cost_of(tokens + 1, attention_tokens)


# ---------------------------------------------------------------- measured


def measured(fixed: float, per_token: float, *, full_from: int = 0, most: int = 16384) -> tuple[RunCost, list[int]]:
    """Of a device where a run takes `fixed` seconds, and more by each token from `full_from` on; and its runs."""
    runs: list[int] = []

    def seconds_of(count: int) -> float:
        runs.append(count * 128)
        return fixed + per_token * max(0, count * 128 - full_from)

    return measure_runs(seconds_of, 128, most), runs


def test_a_device_that_is_idle_with_small_runs_gets_large_ones() -> None:
    cost, _ = measured(0.004, 1e-6, full_from=2048)
    assert cost.max_tokens == 16384
    assert 2000 < cost.overhead_tokens < 6000


def test_where_each_token_takes_its_time_runs_stay_small_and_cost_little_more() -> None:
    cost, runs = measured(0.0001, 1e-4)
    assert cost == RunCost(overhead_tokens=1, max_tokens=128)
    assert runs == [128, 256, 512], "more is not worth measuring"


def test_a_slow_device_gets_no_runs_that_a_query_would_wait_for_long() -> None:
    cost, runs = measured(0.02, 5e-5)
    assert 0.02 + 5e-5 * cost.max_tokens <= LONGEST_RUN_SECONDS
    assert 0.02 + 5e-5 * runs[-2] < LONGEST_RUN_SECONDS <= 0.02 + 5e-5 * runs[-1]
    assert cost.overhead_tokens == 400
    cost, runs = measured(1.0, 1e-3)
    assert (cost, runs) == (RunCost(overhead_tokens=0, max_tokens=128), [128])


def test_what_no_memory_is_there_for_is_not_asked_for_again() -> None:
    def seconds_of(count: int) -> float:
        if count > 8:
            raise RuntimeError("Failed to allocate memory")
        return 0.01

    assert measure_runs(seconds_of, 128, 16384) == RunCost(overhead_tokens=1024, max_tokens=1024)


def test_what_does_not_run_at_all_says_so() -> None:
    def seconds_of(count: int) -> float:
        raise RuntimeError(f"{count}: invalid graph")

    with pytest.raises(RuntimeError, match="1: invalid graph"):
        measure_runs(seconds_of, 128, 16384)


@given(st.lists(st.floats(0, 1), min_size=20, max_size=20), st.integers(1, 512), st.integers(1, 20_000))
def test_whatever_was_measured_is_within_the_bounds(seconds: list[float], length: int, most: int) -> None:
    """A clock may stand still, and another program take the device."""
    cost = measure_runs(lambda count: seconds[count.bit_length()], length, most)
    assert length <= cost.max_tokens <= max(length, most)
    assert cost.overhead_tokens >= 0
