"""Whose URL is fetched next, so that servers that are slow to answer keep nobody else's images waiting for long.

Plain and synchronous: no clock of its own, nothing to await. There are so many places; whoever has the fewest of them
is next. Where none is free, a URL that has had its time is put back, to be fetched once more later, if somebody waits
who has none, or at least two fewer.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Turn:
    """One URL that waits to be fetched, or is being fetched.

    Attributes:
        owner: Whose it is: a stream, or a call.
        seconds: How long it may have a place though others wait.
        on_begin: Called when it has a place.
        on_end: Called when it is to give its place back, as soon as it can: by `Turns.leave`.
        began_at: Since when it has one.
        is_ending: Whether it was told to end.
    """

    owner: object
    seconds: float
    on_begin: Callable[[], object]
    on_end: Callable[[], object]
    began_at: float = 0.0
    is_ending: bool = False


class Turns:
    """All turns of one fetcher. Those whose turn it is are told within the calls, which must not be made again then."""

    def __init__(self, places: int) -> None:
        self._places = places
        # In the order in which they came, and began.
        self._waiting: dict[Turn, None] = {}
        self._running: dict[Turn, None] = {}
        self._places_of: Counter[object] = Counter()

    def ask(self, turn: Turn, now: float) -> None:
        """Let a URL wait for its turn, which may be now."""
        self._waiting[turn] = None
        self.look(now)

    def leave(self, turn: Turn, now: float) -> None:
        """Forget a URL: it was fetched, or is to be no more, or was told to end."""
        self._waiting.pop(turn, None)
        if turn in self._running:
            del self._running[turn]
            self._places_of -= Counter((turn.owner,))  # which forgets owners of none
        self.look(now)

    def look(self, now: float) -> None:
        """See whose turn it is; as time goes by, for as long as anybody waits."""
        while self._waiting and len(self._running) < self._places:
            self._begin(self._next, now)
        # One at a time: with its place others come to theirs.
        if self._waiting and not any(turn.is_ending for turn in self._running):
            self._end_one(self._places_of[self._next.owner], now)

    @property
    def _next(self) -> Turn:
        return min(self._waiting, key=lambda turn: self._places_of[turn.owner])

    def _begin(self, turn: Turn, now: float) -> None:
        del self._waiting[turn]
        self._running[turn] = None
        self._places_of[turn.owner] += 1
        turn.began_at = now
        turn.on_begin()

    def _end_one(self, places_of_next: int, now: float) -> None:
        """Put back one of those with the most places that have had their time, if that is fair."""
        over = [turn for turn in self._running if now - turn.began_at >= turn.seconds]
        turn = max(over, key=lambda turn: self._places_of[turn.owner], default=None)
        fewest = places_of_next + (2 if places_of_next else 1)
        if turn is not None and self._places_of[turn.owner] >= fewest:
            turn.is_ending = True
            turn.on_end()
