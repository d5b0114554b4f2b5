"""The place of one worker: whether it has room for another batch, and when the next worker comes."""

from pathlib import Path

import pytest

from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.engine.dispatch import NOBODY
from asyncembed.engine.model import PooledModel
from asyncembed.engine.scheduler import Batch, BatchKey, Item, Priority
from asyncembed.engine.slot import MAX_BACKOFF_SECONDS, MAX_DEPTH, ROUND_TRIP_SECONDS, Order, Slot
from tests.support.encoders import ECHO

CONFIG = EncoderConfig(spec=ECHO, directory=Path())


def in_flight(seconds: float, count: int, *, size: int = 10) -> Slot:
    """A slot with so many batches, of a kind that takes so long."""
    model = PooledModel(0, CONFIG)
    slot = Slot(0, is_ready=True)
    for _ in range(count):
        batch_key = BatchKey(0, Call(), 100, 8)
        speed = model.speed(batch_key)
        if seconds:
            speed.measure(seconds, size)
        slot.in_flight.append(Order(model, Batch(batch_key, []), speed=speed, cost=size))
    return slot


def test_a_worker_with_nothing_to_do_has_room() -> None:
    assert in_flight(1.0, 0).has_room


def test_while_no_batch_was_measured_one_is_kept_in_flight() -> None:
    assert not in_flight(0.0, 1).has_room


@pytest.mark.parametrize(
    ("seconds", "kept"),
    [
        (1.0, 1),
        (0.1, 1),
        (ROUND_TRIP_SECONDS * 2, 2),
        (ROUND_TRIP_SECONDS / 1.5, 3),
        (ROUND_TRIP_SECONDS / 100, MAX_DEPTH),
    ],
)
def test_as_many_batches_are_in_flight_as_hide_the_round_trip(seconds: float, kept: int) -> None:
    assert in_flight(seconds, kept - 1).has_room
    assert not in_flight(seconds, kept).has_room


def test_a_batch_much_larger_than_those_measured_leaves_no_room() -> None:
    slot = in_flight(ROUND_TRIP_SECONDS, 1)
    assert slot.has_room
    slot.in_flight[0].cost = 10_000
    assert not slot.has_room


@pytest.mark.parametrize(
    ("seconds", "count", "priority", "expected"),
    [
        (0.06, 1, Priority.BULK, True),
        (0.06, 1, Priority.INTERACTIVE, False),
        (0.06, 2, Priority.BULK, False),
        (0.06, 0, Priority.BULK, False),
        (1.0, 1, Priority.BULK, False),
        (0.0, 1, Priority.BULK, False),
    ],
    ids=["one", "urgent", "two", "nothing", "long", "unknown"],
)
def test_one_batch_may_be_sent_ahead_behind_a_short_one_of_bulk_work(
    seconds: float, count: int, priority: Priority, expected: bool
) -> None:
    slot = in_flight(seconds, count)
    for order in slot.in_flight:
        batch_key = BatchKey(0, Call(), 100, 8)
        order.batch = Batch(batch_key, [Item("text", 10, batch_key, priority, NOBODY, 0)])
    assert slot.may_run_ahead is expected


def test_crashes_in_a_row_delay_the_next_start_more_and_more() -> None:
    slot = Slot(0)
    delays = []
    for crashes in range(20):
        slot.crashes_in_a_row = crashes
        delays.append(slot.backoff_seconds(0))
    assert delays[0] == 0
    assert delays == sorted(delays)
    assert delays[-1] == MAX_BACKOFF_SECONDS
    assert Slot(0).backoff_seconds(1) > 0
