"""How long to stay away."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import anyio
import pytest

from asyncembed.errors import RateLimitedError, UnreachableError
from asyncembed.hub import retry
from asyncembed.hub.retry import Patience, TransientError, requested_pause


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
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 1.0)
    return waits


async def test_waits_grow_and_end(waits: list[float]) -> None:
    patience = Patience("asking", "org/model")
    for _ in range(retry.MAX_TRIES - 1):
        await patience.after(TransientError("no answer"))
    longest = [1, 2, 4, 8, retry.LONGEST_WAIT_SECONDS]
    assert all(bound / 2 <= wait <= bound for bound, wait in zip(longest, waits, strict=True))
    with pytest.raises(UnreachableError, match="asking failed 6 times in a row, at last because no answer"):
        await patience.after(TransientError("no answer"))


async def test_progress_starts_the_count_anew(waits: list[float]) -> None:
    patience = Patience("asking", "org/model")
    for _ in range(4 * retry.MAX_TRIES):
        patience.progressed()
        await patience.after(TransientError("cut"))
    assert max(waits) <= 1.0


async def test_pauses_add_up_to_a_limit(waits: list[float]) -> None:
    patience = Patience("asking", "org/model")
    await patience.after(TransientError("wait", pause_seconds=200, status=429))
    with pytest.raises(RateLimitedError) as caught:
        await patience.after(TransientError("wait", pause_seconds=200, status=429))
    assert waits == [200]
    assert caught.value.retry_after_seconds == 200
