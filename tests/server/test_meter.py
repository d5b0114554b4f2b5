"""What is counted of requests, without any."""

import pytest

from asyncembed.server.meter import SHORTEST_SECONDS, Meter


@pytest.mark.parametrize("seconds", [0.0001, 0.0123, 0.5, 30.0])
def test_a_time_is_told_within_5_percent(seconds: float) -> None:
    meter = Meter()
    meter.begin()
    meter.end("/embed", 200, seconds)
    ((told, count),) = meter.times()
    assert count == 1
    assert told == pytest.approx(seconds, rel=0.05)


def test_times_come_the_shortest_first_and_none_is_under_the_shortest() -> None:
    meter = Meter()
    for seconds in (2.0, 0.0, 2.0):
        meter.end("/embed", 200, seconds)
    (shortest, one), (longest, two) = meter.times()
    assert (one, two) == (1, 2)
    assert SHORTEST_SECONDS <= shortest < 2 * SHORTEST_SECONDS < longest


def test_what_was_refused_is_counted_by_its_status_and_has_no_time() -> None:
    meter = Meter()
    meter.begin()
    meter.begin()
    meter.end("/embed", 429, 1.0)
    assert meter.in_progress == 1
    meter.end("/rerank", 429, 1.0)
    meter.end("/embed", 499, 1.0)
    assert meter.by_status == {429: 2, 499: 1}
    assert meter.by_route["/embed", 429] == 1
    assert meter.times() == []
