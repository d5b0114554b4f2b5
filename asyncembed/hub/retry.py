"""What is worth another try, and how long to wait before it."""

import logging
import random
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import anyio

from asyncembed.errors import RateLimitedError, UnreachableError

MAX_TRIES = 6
"""Tries in a row without progress, before we give up."""

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 10.0
"""Bounds of the exponential backoff; the wait is drawn from [half, whole] of it, so that clients spread."""

LONGEST_PAUSE_SECONDS = 330.0
"""The longest pause that a server may ask for: the hub counts requests in windows of 300 s."""

logger = logging.getLogger("asyncembed")


class TransientError(Exception):
    """A try failed in a way that another one may not.

    `pause_seconds` is what the server asked to wait, where it did.
    """

    def __init__(self, message: str, *, pause_seconds: float | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.pause_seconds = pause_seconds
        self.status = status


class Patience:
    """Counts failures in a row, waits between them, and ends it when there were too many."""

    def __init__(self, what: str, source: str) -> None:
        self._what = what
        self._source = source
        self._failures = 0
        self._paused_seconds = 0.0

    def progressed(self) -> None:
        """Something was gained: start counting anew."""
        self._failures = 0
        self._paused_seconds = 0.0

    async def after(self, error: TransientError) -> None:
        """Wait before the next try.

        Raises:
            RateLimitedError: The server wants a longer pause than we are ready for.
            UnreachableError: Too many tries have failed.
        """
        self._failures += 1
        pause = error.pause_seconds
        if pause is not None and self._paused_seconds + pause > LONGEST_PAUSE_SECONDS:
            raise RateLimitedError(
                f"{self._what}: the server limits the number of requests and asks to come back in "
                f"{pause:.0f} s; a token (HF_TOKEN) raises the limit",
                source=self._source,
                retry_after_seconds=pause,
            ) from error
        if self._failures >= MAX_TRIES:
            if error.status == 429:
                raise RateLimitedError(
                    f"{self._what}: the server limits the number of requests; try later, or with a token (HF_TOKEN)",
                    source=self._source,
                ) from error
            raise UnreachableError(
                f"{self._what} failed {self._failures} times in a row, at last because {error}; check the "
                "network, the proxy (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE) and the endpoint (HF_ENDPOINT)",
                source=self._source,
            ) from error
        if pause is None:
            longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (self._failures - 1))
            pause = random.uniform(longest / 2, longest)  # noqa: S311 (no secret)
        else:
            self._paused_seconds += pause
        logger.info("%s: %s; trying again in %.1f s", self._what, error, pause)
        await anyio.sleep(pause)


def requested_pause(headers: Mapping[str, str]) -> float | None:
    """How many seconds a server wants us to stay away; None if it does not say.

    The hub's `RateLimit: "api";r=0;t=55` (IETF draft-ietf-httpapi-ratelimit-headers) tells when the window
    ends; `Retry-After` is in seconds or a date (RFC 9110, 10.2.3).
    """
    limit = headers.get("ratelimit", "")
    left = re.search(r";\s*r=(\d+)", limit)
    reset = re.search(r";\s*t=(\d+)", limit)
    if left and reset and int(left[1]) == 0:
        return float(reset[1])
    after = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", after):
        return float(after)
    if after:
        try:
            until = parsedate_to_datetime(after)
        except ValueError:
            return None
        if until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    return None
