"""What is worth another try, and how long to wait before it."""

import logging
import math
import random
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import anyio

from asyncembed.errors import DownloadError, RateLimitedError, UnreachableError
from asyncembed.hub.access import DownloadPolicy

_LONGEST_TOLD_SECONDS = 366 * 24 * 3600.0
"""A server may ask for any pause, and a message shows it; what is longer than a year is a year."""

logger: logging.Logger = logging.getLogger("asyncembed")


class TransientError(Exception):
    """A try failed in a way that another one may not.

    `pause_seconds` is what the server asked to wait, where it did; `is_unresolved` says that no one knows the
    server's name.
    """

    def __init__(
        self,
        message: str,
        *,
        pause_seconds: float | None = None,
        status: int | None = None,
        is_unresolved: bool = False,
    ) -> None:
        super().__init__(message)
        self.pause_seconds = pause_seconds
        self.status = status
        self.is_unresolved = is_unresolved


class RetryBudget:
    """Counts failures in a row, waits between them, and ends it when there were too many."""

    def __init__(self, policy: DownloadPolicy, what: str, source: str, *, is_first_contact: bool = False) -> None:
        self._policy = policy
        self._what = what
        self._source = source
        self._is_first_contact = is_first_contact
        self._failures = 0
        self._paused_seconds = 0.0

    def refill(self) -> None:
        """Something was gained: start counting anew."""
        self._failures = 0
        self._paused_seconds = 0.0

    async def wait(self, error: TransientError) -> None:
        """Wait before the next try.

        Raises:
            RateLimitedError: The server wants a longer pause than we are ready for.
            UnreachableError: Too many tries have failed.
        """
        self._failures += 1
        pause = error.pause_seconds
        if pause is not None and self._paused_seconds + pause > self._policy.longest_pause_seconds:
            raise RateLimitedError(
                f"{self._what}: the server limits the number of requests and asks to come back in "
                f"{pause:.0f} s; a token (HF_TOKEN) raises the limit",
                source=self._source,
                retry_after_seconds=pause,
            ) from error
        is_offline = error.is_unresolved and self._is_first_contact
        if self._failures >= min(self._policy.try_limit, self._policy.resolve_try_limit if is_offline else math.inf):
            raise self._exhausted(error) from error
        if pause is None:
            longest = min(
                self._policy.longest_wait_seconds, self._policy.first_wait_seconds * 2 ** (self._failures - 1)
            )
            pause = random.uniform(longest / 2, longest)  # noqa: S311 (no secret)
        else:
            self._paused_seconds += pause
        logger.info("%s: %s; trying again in %.1f s", self._what, error, pause)
        await anyio.sleep(pause)

    def _exhausted(self, error: TransientError) -> DownloadError:
        if error.status == 429:
            return RateLimitedError(
                f"{self._what}: the server limits the number of requests; try later, or with a token (HF_TOKEN)",
                source=self._source,
            )
        again = "" if self._failures == 1 else f" {self._failures} times in a row, at last"
        return UnreachableError(
            f"{self._what} failed{again} because {error}; check the "
            "network, the proxy (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE) and the endpoint (HF_ENDPOINT)",
            source=self._source,
        )


def requested_pause(headers: Mapping[str, str]) -> float | None:
    """How many seconds a server wants us to stay away; None if it does not say, or not in a form that is one.

    The hub's `RateLimit: "api";r=0;t=55` (IETF draft-ietf-httpapi-ratelimit-headers) tells when the window
    ends; `Retry-After` is in seconds or a date (RFC 9110, 10.2.3).
    """
    limit = headers.get("ratelimit", "")
    reset = re.search(r";\s*t=([0-9]+)", limit)
    if reset and re.search(r";\s*r=0+(?![0-9])", limit):
        return min(float(reset[1]), _LONGEST_TOLD_SECONDS)
    after = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", after):
        return min(float(after), _LONGEST_TOLD_SECONDS)
    try:
        until = parsedate_to_datetime(after)
        left = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError, TypeError, IndexError):  # whatever the parser meets in what is no date
        return None
    return min(max(0.0, left), _LONGEST_TOLD_SECONDS)
