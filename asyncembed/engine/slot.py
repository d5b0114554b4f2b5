"""The place of one worker in a pool: what it has in flight, whether it has room for more, and why it ends.

Plain, as `dispatch` is, which decides over all places; only the dispatcher and the supervisor change one.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from math import ceil

from asyncembed.engine.model import PooledModel, Speed
from asyncembed.engine.scheduler import Batch, Priority

ROUND_TRIP_SECONDS = 0.0006
"""From one answer to the start of the next batch, when the worker waits for it: two queue hops and a loop wake-up."""

BUSY_ROUND_TRIP_SECONDS = 0.003
"""The same while every core computes, and the loop has to wait for one."""

ROUND_TRIP_SHARE = 0.02
"""While the round trip is a smaller part of a batch than this, no second batch is kept in flight."""

MAX_DEPTH = 4

WORTH_AN_EXPRESS_SECONDS = 0.005
"""Interactive work that waits no longer than this for bulk work needs no worker of its own."""

CRASHES_BEFORE_BACKOFF = 4
MAX_BACKOFF_SECONDS = 5.0


class Death(Enum):
    """Why a worker is done; the value completes "the worker ..."."""

    ENDED = "ended unexpectedly"
    TIMED_OUT = "did not answer in time"
    CANNOT_LOAD = "cannot load a model that others have loaded"
    NOT_NEEDED = "is needed no more"

    @property
    def is_ours(self) -> bool:
        """Whether the worker still runs, and is to be killed."""
        return self in (Death.TIMED_OUT, Death.CANNOT_LOAD)


@dataclass(slots=True, eq=False)
class Order:
    """What a worker is to do: compute `batch`, or without one, load `model`."""

    model: PooledModel
    batch: Batch | None = None
    started: float = 0.0
    """When it was sent, or became the first in flight."""
    speed: Speed = field(default_factory=Speed)
    cost: int = 0
    """Of the batch, in tokens of short texts."""


@dataclass(slots=True, eq=False)
class Slot:
    """The place of one worker, and of those that replace it: what it has in flight and what it has loaded."""

    index: int
    is_reserved: bool = False
    """Whether it is kept free for interactive work."""
    is_express: bool = False
    """Whether it is there only while interactive work would else wait for bulk work; it is reserved, too."""
    is_lowered: bool = False
    """Whether its worker makes way for others, for as long as it runs."""
    needed: float = 0.0
    """When it was last sent interactive work, or called for that."""
    is_ready: bool = False
    """Whether a worker runs here."""
    in_flight: deque[Order] = field(default_factory=deque)
    loaded: set[int] = field(default_factory=set)
    held: Batch | None = None
    """A batch that was taken for this worker and is not sent yet: its model may have to be loaded first."""
    death: Death | None = None
    death_details: str = ""
    crashes_in_a_row: int = 0
    fatal_model: int | None = None
    """The model whose loading killed the last worker."""
    is_given_up: bool = False
    """Whether nobody waits for it any more, as it could not be started several times."""

    @property
    def is_usable(self) -> bool:
        """Whether its worker runs, as far as is known."""
        return self.is_ready and self.death is None

    @property
    def is_idle(self) -> bool:
        """Whether its worker has nothing to do."""
        return self.is_usable and not self.in_flight

    @property
    def is_loading(self) -> bool:
        """Whether a model is the last that was sent: what comes next depends on how that ends."""
        return bool(self.in_flight) and self.in_flight[-1].batch is None

    @property
    def has_suspect(self) -> bool:
        """Whether it computes a batch that a worker died of."""
        return any(order.batch is not None and order.batch.kills for order in self.in_flight)

    @property
    def has_room(self) -> bool:
        """Whether one more batch may be sent: as many are in flight as hide the round trip, and no more."""
        if not self.in_flight:
            return True
        if len(self.in_flight) >= MAX_DEPTH or not all(order.speed.is_known for order in self.in_flight):
            return False
        typical_seconds = sum(order.speed.batch_seconds for order in self.in_flight) / len(self.in_flight)
        if len(self.in_flight) > ceil(ROUND_TRIP_SECONDS / typical_seconds):
            return False
        # By cost, too: what was computed lately may have been much smaller than what is in flight.
        return self.in_flight_seconds < ROUND_TRIP_SECONDS / ROUND_TRIP_SHARE

    @property
    def may_run_ahead(self) -> bool:
        """Whether one more batch of bulk work hides the round trip while every core computes, without `has_room`.

        Interactive work would wait for both, so this is for where it has a worker of its own.
        """
        if len(self.in_flight) != 1:
            return False
        first = self.in_flight[0]
        is_bulk = first.batch is not None and first.batch.priority is Priority.BULK
        is_short = self.in_flight_seconds < BUSY_ROUND_TRIP_SECONDS / ROUND_TRIP_SHARE
        return is_bulk and is_short and first.speed.is_known and not first.model.info.is_accelerated

    @property
    def has_bulk(self) -> bool:
        """Whether it computes bulk work."""
        return any(order.batch is not None and order.batch.priority is Priority.BULK for order in self.in_flight)

    def is_long_in_bulk(self, now: float) -> bool:
        """Whether interactive work would wait for the bulk work that it has, for longer than is worth nothing."""
        if not self.has_bulk:
            return False
        return max(self.in_flight_seconds, now - self.in_flight[0].started) >= WORTH_AN_EXPRESS_SECONDS

    def wants(self, model: PooledModel) -> bool:
        """Whether the worker loads it ahead of its first batch: an express one does what it was called for."""
        return model.needs_express if self.is_express else model.is_wanted

    @property
    def in_flight_seconds(self) -> float:
        """About how long all takes that it has in flight, from the start of the first."""
        return sum(order.speed.seconds(order.cost) for order in self.in_flight)

    def die(self, death: Death, details: str = "") -> None:
        """Give the worker no more; the first reason is the one that counts."""
        if self.death is None:
            self.death, self.death_details = death, details

    @property
    def reason(self) -> str:
        """Why its worker is done, to complete "the worker ..."."""
        death = self.death or Death.ENDED
        return f"{death.value} ({self.death_details})" if self.death_details else death.value

    def backoff_seconds(self, failed_starts: int) -> float:
        """How long to wait before the next worker is started here."""
        return backoff_seconds(max(failed_starts, self.crashes_in_a_row - CRASHES_BEFORE_BACKOFF))


def backoff_seconds(failures: int) -> float:
    """How long to wait after so many failures in a row."""
    return 0.0 if failures <= 0 else min(MAX_BACKOFF_SECONDS, 0.05 * 2.0 ** min(failures, 10))
