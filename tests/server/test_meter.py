"""What is counted of requests, without any."""

from time import perf_counter

import pytest

from asyncembed.server.meter import SHORTEST_SECONDS, Meter


@pytest.mark.parametrize("seconds", [0.0001, 0.0123, 0.5, 30.0])
def test_a_time_is_told_within_5_percent(seconds: float) -> None:
    meter = Meter()
    meter.begin()
    meter.end(perf_counter() - seconds, "/embed", 200)
    ((told, count),) = meter.times()
    assert count == 1
    assert told == pytest.approx(seconds, rel=0.055)


def test_times_come_the_shortest_first_and_none_is_under_the_shortest() -> None:
    meter = Meter()
    for seconds in (2.0, -1.0, 2.0):
        meter.end(perf_counter() - seconds, "/embed", 200)
    (shortest, one), (longest, two) = meter.times()
    assert (one, two) == (1, 2)
    assert SHORTEST_SECONDS <= shortest < 2 * SHORTEST_SECONDS < longest


def test_what_was_refused_is_counted_by_its_status_and_has_no_time() -> None:
    meter = Meter()
    began = meter.begin()
    meter.begin()
    meter.end(began, "/embed", 429)
    assert meter.in_progress == 1
    meter.end(began, "/rerank", 429)
    meter.end(began, "/embed", 499)
    assert meter.by_status == {429: 2, 499: 1}
    assert meter.by_route["/embed", 429] == 1
    assert meter.times() == []
