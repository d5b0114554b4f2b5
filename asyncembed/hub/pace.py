"""Which of a file's connections is a laggard, and who takes over what is left to it: plain decisions, no clock, no I/O.

A connection that brings two kilobytes a second trips no timeout, and holds up a file for hours when all others are
done. It is told by what its siblings bring (or, where it has none, by what it brought before), and then its rest is
asked for anew, on another connection. Where connections are idle, the stretch that would take longest is halved.
"""

from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from asyncembed.hub.access import DownloadPolicy

if TYPE_CHECKING:
    from anyio import CancelScope

FAR = 8
"""A laggard is so many times slower than its siblings: twice slower is usual among connections."""

HELP_MINIMUM_BYTES = 16 * 2**10
"""No connection is asked for less, as another one's help."""

HEALTHY_BYTES_PER_SECOND = 64 * 2**10
"""Below it, one more connection helps a laggard only: on a slow line all would be slower, and too slow at last."""


class Stretch:
    """What one stream has to fetch, `[position, end)`, and how fast its connection is.

    Attributes:
        position: Up to here all is on disk.
        received: Up to here all has come.
        connection: Cancelled, it ends the stream's present connection; None while there is none.
    """

    def __init__(self, position: int, end: int, policy: DownloadPolicy) -> None:
        self.position = position
        self.received: int = position
        self.end: int = end
        self._policy = policy
        self.connection: CancelScope | None = None
        self._samples: deque[tuple[float, int]] = deque()
        self._best = 0.0
        self._replaced = 0
        self._may_be_replaced_at = 0.0

    @property
    def left(self) -> int:
        """Bytes that are still to come."""
        return max(0, self.end - self.received)

    def connected(self, now: float) -> None:
        """A new connection begins to bring the stretch."""
        self.received = self.position
        self._samples.clear()
        self._samples.append((now, self.received))

    def sample(self, now: float) -> None:
        """Note how far it is; called now and then."""
        if self.connection is None or not self._samples:
            return
        self._samples.append((now, self.received))
        while now - self._samples[1][0] >= self._policy.lag_seconds:
            self._samples.popleft()
        self._best = max(self._best, self.rate() or 0.0)

    def rate(self) -> float | None:
        """Bytes per second of the present connection, lately; None before that can be said."""
        if self.connection is None or len(self._samples) < 2:
            return None
        (start, low), (end, high) = self._samples[0], self._samples[-1]
        return (high - low) / (end - start) if end - start >= self._policy.lag_seconds else None

    def average_rate(self, now: float) -> float:
        """Bytes per second of a connection that ends now, lately or, where it was here for less, in all its time."""
        start, low = self._samples[0] if self._samples else (now, self.received)
        return (self.received - low) / max(
            now - start, self._policy.watch_seconds
        )  # what lay in buffers comes at any speed

    def seconds_left(self) -> float:
        """How long it takes at its present speed; 0.0 where that is not known."""
        rate = self.rate()
        if rate is None:
            return 0.0
        return self.left / rate if rate else float("inf")

    def siblings_rate(self, siblings: Collection["Stretch"], finished: Sequence[float]) -> float | None:
        """What the fastest other connection of the file brings, or brought; None where there is none to compare with.

        The fastest, and not the one in the middle: most of them may be laggards.
        """
        rates = [rate for other in siblings if other is not self and (rate := other.rate()) is not None]
        return max([*rates, *finished], default=None)

    def replace(self, now: float) -> None:
        """Ask for the rest on a new connection; the next time only after twice as long a while."""
        self._replaced += 1
        self._may_be_replaced_at = now + self._policy.lag_seconds * 2**self._replaced
        self._samples.clear()
        if self.connection is not None:
            self.connection.cancel()

    def is_laggard(self, siblings_rate: float | None, now: float) -> bool:
        """Whether another connection is likely to be done with the rest long before this one."""
        rate = self.rate()
        usual = self._best if siblings_rate is None else siblings_rate
        is_slow = rate is not None and rate * FAR < usual
        return is_slow and self.seconds_left() > self._policy.lag_seconds and now >= self._may_be_replaced_at

    def can_be_helped(self, siblings_rate: float | None) -> bool:
        """Whether an idle connection is likely to make it faster."""
        rate = self.rate()
        if rate is None or self.left < 2 * HELP_MINIMUM_BYTES or self.seconds_left() <= self._policy.long_seconds:
            return False
        return siblings_rate is None or rate * 2 < siblings_rate or rate >= HEALTHY_BYTES_PER_SECOND

    def halve(self) -> "Stretch":
        """Give the second half of what is left away."""
        middle = self.end - self.left // 2
        rest = Stretch(middle, self.end, self._policy)
        self.end = middle
        return rest


def find_laggards(stretches: Collection[Stretch], finished: Sequence[float], now: float) -> list[Stretch]:
    """Those whose connection is to be replaced; `finished` are the speeds of connections that are done."""
    return [stretch for stretch in stretches if stretch.is_laggard(stretch.siblings_rate(stretches, finished), now)]


def find_slowest(stretches: Collection[Stretch], finished: Sequence[float]) -> Stretch | None:
    """The stretch that an idle connection should share; None: none needs it."""
    helpable = [s for s in stretches if s.can_be_helped(s.siblings_rate(stretches, finished))]
    return max(helpable, key=Stretch.seconds_left, default=None)
