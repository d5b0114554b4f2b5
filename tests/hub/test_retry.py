"""How long to stay away."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import anyio
import pytest

from asyncembed.errors import RateLimitedError, UnreachableError
from asyncembed.hub.access import DownloadPolicy
from asyncembed.hub.retry import RetryBudget, TransientError, requested_pause

POLICY = DownloadPolicy(first_wait_seconds=1.0)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "soon"}, None),
        ({"ratelimit": '"api";r=0;t=55', "retry-after": "7"}, 55.0),
        ({"ratelimit": '"api";r=12;t=55'}, None),
        ({"ratelimit": '"api";r=12;t=55', "retry-after": "7"}, 7.0),
    ],
)
def test_a_server_says_how_long_to_stay_away(headers: Mapping[str, str], seconds: float | None) -> None:
    assert requested_pause(headers) == seconds


@pytest.mark.parametrize(("hours", "expected"), [(1, 3600), (-1, 0)])
def test_a_date_is_a_pause_too(hours: int, expected: float) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=hours), usegmt=True)
    assert requested_pause({"retry-after": date}) == pytest.approx(expected, abs=30)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that would have been."""
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(anyio, "sleep", note)
    return waits


async def test_waits_grow_and_end(waits: list[float]) -> None:
    budget = RetryBudget(POLICY, "asking", "org/model")
    for _ in range(POLICY.try_limit - 1):
        await budget.wait(TransientError("no answer"))
    longest = [1, 2, 4, 8, POLICY.longest_wait_seconds]
    assert all(bound / 2 <= wait <= bound for bound, wait in zip(longest, waits, strict=True))
    with pytest.raises(UnreachableError, match="asking failed 6 times in a row, at last because no answer"):
        await budget.wait(TransientError("no answer"))


async def test_what_was_tried_once_is_not_said_to_have_failed_in_a_row() -> None:
    with pytest.raises(UnreachableError, match="asking failed because no answer; check the network"):
        await RetryBudget(DownloadPolicy(try_limit=1), "asking", "org/model").wait(TransientError("no answer"))


async def test_progress_starts_the_count_anew(waits: list[float]) -> None:
    budget = RetryBudget(POLICY, "asking", "org/model")
    for _ in range(4 * POLICY.try_limit):
        budget.refill()
        await budget.wait(TransientError("cut"))
    assert max(waits) <= 1.0


async def test_pauses_add_up_to_a_limit(waits: list[float]) -> None:
    budget = RetryBudget(POLICY, "asking", "org/model")
    await budget.wait(TransientError("wait", pause_seconds=200, status=429))
    with pytest.raises(RateLimitedError) as caught:
        await budget.wait(TransientError("wait", pause_seconds=200, status=429))
    assert waits == [200]
    assert caught.value.retry_after_seconds == 200
