"""Which connection is a laggard, without any connection."""

from itertools import pairwise

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncembed.hub.access import DownloadPolicy
from asyncembed.hub.pace import Stretch, find_laggards, find_slowest

POLICY = DownloadPolicy()
MB = 2**20
SECONDS = 20


def run(*rates: float, size: int = 1000 * MB, seconds: int = SECONDS) -> list[Stretch]:
    """Connections that bring so many bytes per second, after some seconds."""
    stretches = [Stretch(n * size, (n + 1) * size, POLICY) for n in range(len(rates))]
    for stretch in stretches:
        stretch.connection = anyio.CancelScope()
        stretch.connected(0)
    go_on(stretches, *rates, start=0, seconds=seconds)
    return stretches


def go_on(stretches: list[Stretch], *rates: float, start: int, seconds: int) -> None:
    for now in range(start + 1, start + seconds + 1):
        for stretch, rate in zip(stretches, rates, strict=True):
            stretch.received += int(rate)
            stretch.sample(now)


async def test_one_that_is_far_slower_than_its_siblings_is_a_laggard() -> None:
    stretches = run(10 * MB, 9 * MB, 2000, 8 * MB)
    assert find_laggards(stretches, [], SECONDS) == [stretches[2]]


async def test_most_of_them_may_be_laggards() -> None:
    stretches = run(2000, 3000, 2000, 8 * MB)
    assert find_laggards(stretches, [], SECONDS) == stretches[:3]


async def test_one_that_is_far_slower_than_those_that_are_done_is_a_laggard() -> None:
    (stretch,) = run(2000)
    assert find_laggards([stretch], [], SECONDS) == []
    assert find_laggards([stretch], [10.0 * MB, 9.0 * MB], SECONDS) == [stretch]


async def test_one_that_is_far_slower_than_before_is_a_laggard_where_it_is_alone() -> None:
    stretches = run(10 * MB)
    go_on(stretches, 2000, start=SECONDS, seconds=10)
    assert find_laggards(stretches, [], SECONDS + 10) == stretches


async def test_a_line_that_gets_slow_as_a_whole_has_no_laggards() -> None:
    stretches = run(10 * MB, 10 * MB, 10 * MB)
    go_on(stretches, 2000, 3000, 2500, start=SECONDS, seconds=10)
    assert find_laggards(stretches, [], SECONDS + 10) == []


async def test_a_connection_is_not_judged_before_it_had_time() -> None:
    stretches = run(10 * MB, 2000, seconds=int(POLICY.lag_seconds) - 1)
    assert find_laggards(stretches, [], POLICY.lag_seconds - 1) == []


async def test_what_is_done_soon_is_left_alone() -> None:
    stretches = run(10 * MB, 100_000)
    stretches[1].end = stretches[1].received + 200_000
    assert find_laggards(stretches, [], SECONDS) == []
    assert find_slowest(stretches[1:], []) is None


async def test_a_connection_is_replaced_ever_more_seldom() -> None:
    stretches = run(10 * MB, 2000)
    replaced = []
    for now in range(SECONDS, SECONDS + 400):
        go_on(stretches, 10 * MB, 2000, start=now - 1, seconds=1)
        for stretch in find_laggards(stretches, [10.0 * MB], now):
            stretch.replace(now)
            replaced.append(now)
            stretch.connected(now)
            stretch.connection = anyio.CancelScope()
    waits = [after - before for before, after in pairwise(replaced)]
    assert len(waits) >= 4
    assert waits == sorted(waits)
    assert waits[-1] > 8 * POLICY.lag_seconds


async def test_replacing_a_connection_ends_it() -> None:
    (stretch,) = run(2000)
    assert stretch.connection is not None
    stretch.replace(SECONDS)
    assert stretch.connection.cancel_called


@pytest.mark.parametrize(
    ("rates", "slowest"),
    [
        ([2000], 0),  # nothing to compare it with: half of it is a try
        ([2000, 2000], None),  # a slow line: each would be slower
        ([2000, 9000], 0),
        ([3 * MB, 2 * MB, 3 * MB], 1),  # a fast one, and large
        ([0, 3 * MB], 0),
    ],
)
async def test_an_idle_connection_helps_the_slowest_that_it_can_help(rates: list[float], slowest: int | None) -> None:
    stretches = run(*rates)
    assert find_slowest(stretches, []) is (None if slowest is None else stretches[slowest])


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_halves_are_the_whole(position: int, received: int, left: int) -> None:
    stretch = Stretch(position, position + received + left, POLICY)
    stretch.received = position + received
    rest = stretch.halve()
    assert (stretch.position, rest.end) == (position, position + received + left)
    assert stretch.received <= stretch.end == rest.position
    assert rest.left + stretch.left == left
    assert 0 <= stretch.left - rest.left <= 1
