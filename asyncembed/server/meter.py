"""How many requests there were, what came of them, and how long they took: counts that only grow.

Whoever reads them twice knows what was between. Everything here is called for every request, on the event loop.
"""

from collections import Counter
from collections.abc import Mapping
from math import log2

STEPS_PER_DOUBLING = 8
"""How finely times are told apart: a step is 9 % longer than the one before it."""

SHORTEST_SECONDS = 1e-5
"""What is shorter counts as this."""


class Meter:
    """The requests of one server that compute something: those with a body.

    Attributes:
        in_progress: Requests that are not answered yet.
        by_route: Path and status → requests that ended so. Who has left before the answer gets 499.
    """

    def __init__(self) -> None:
        self.in_progress: int = 0
        self.by_route: Counter[tuple[str, int]] = Counter()
        self._steps: Counter[int] = Counter()

    def begin(self) -> None:
        """Count a request that comes in."""
        self.in_progress += 1

    def end(self, path: str, status: int, seconds: float) -> None:
        """Count what came of it, and how long it took."""
        self.in_progress -= 1
        self.by_route[path, status] += 1
        if status < 400:
            longer = max(1.0, seconds / SHORTEST_SECONDS)
            self._steps[int(STEPS_PER_DOUBLING * log2(longer))] += 1

    @property
    def by_status(self) -> Mapping[int, int]:
        """Status → requests that ended so."""
        statuses: Counter[int] = Counter()
        for (_, status), count in self.by_route.items():
            statuses[status] += count
        return statuses

    def times(self) -> list[tuple[float, int]]:
        """Seconds, and how many requests that were served took about as long (within 5 %): the shortest first."""
        return [
            (SHORTEST_SECONDS * 2 ** ((step + 0.5) / STEPS_PER_DOUBLING), count)
            for step, count in sorted(self._steps.items())
        ]
