"""The batching policy alone: no process, no loop, no clock."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asyncembed.engine.scheduler import BULK_SHARE, SPLIT_FLOOR_TOKENS, Batch, BatchKey, Item, Priority, Scheduler

BUDGET = 100
KEYS = [BatchKey(0, "embed", BUDGET, 8), BatchKey(0, "query", BUDGET, 8), BatchKey(1, "embed", 2 * BUDGET, 3)]
SIZES = st.integers(1, 130)  # some are over the budget on their own


class Nobody:
    """A sink for items whose results nobody computes."""

    def deliver(self, index: int, result: object) -> None: ...

    def fail(self, index: int, error: Exception) -> None: ...


NOBODY = Nobody()


def make_item(size: int, index: int = 0, *, batch_key: BatchKey = KEYS[0], priority: Priority = Priority.BULK) -> Item:
    return Item(f"input {index}", size, batch_key, priority, NOBODY, index)


def make_items(*sizes: int, batch_key: BatchKey = KEYS[0], priority: Priority = Priority.BULK) -> list[Item]:
    return [make_item(size, index, batch_key=batch_key, priority=priority) for index, size in enumerate(sizes)]


def sizes_of(batch: Batch | None) -> list[int]:
    assert batch is not None
    return sorted(item.size for item in batch.items)


def drain(scheduler: Scheduler) -> list[Batch]:
    batches = []
    while (batch := scheduler.next_batch()) is not None:
        batches.append(batch)
    return batches


# ---------------------------------------------------------------- worked examples


def test_nothing_waits_at_first() -> None:
    scheduler = Scheduler()
    assert len(scheduler) == 0
    assert scheduler.next_batch() is None


def test_the_oldest_item_is_joined_by_those_of_nearest_size() -> None:
    scheduler = Scheduler()
    scheduler.add(make_items(20, 5, 19, 90, 21, 6, 22))
    # 22 * 4 <= 100, and a fifth would be 5 * 22.
    assert sizes_of(scheduler.next_batch()) == [19, 20, 21, 22]
    assert sizes_of(scheduler.next_batch()) == [5, 6]
    assert sizes_of(scheduler.next_batch()) == [90]


def test_padding_counts_towards_the_budget() -> None:
    scheduler = Scheduler()
    scheduler.add(make_items(50, 10, 10, 10))
    batch = scheduler.next_batch()
    assert sizes_of(batch) == [10, 50]
    assert batch is not None
    assert batch.size == 100


def test_an_item_over_the_budget_goes_alone() -> None:
    scheduler = Scheduler()
    scheduler.add(make_items(120, 1, 119))
    assert [sizes_of(batch) for batch in drain(scheduler)] == [[120], [1], [119]]


def test_an_interactive_item_goes_before_bulk_items_that_are_older() -> None:
    scheduler = Scheduler()
    scheduler.add(make_items(10, 10, 10))
    scheduler.add([make_item(10, 7, priority=Priority.INTERACTIVE)])
    first = scheduler.next_batch()
    assert first is not None
    assert [item.index for item in first.items] == [7]


def test_what_waits_is_shared_out_among_idle_workers() -> None:
    batch_key = BatchKey(0, None, 100 * SPLIT_FLOOR_TOKENS, 1000)
    scheduler = Scheduler()
    scheduler.add(make_items(*[SPLIT_FLOOR_TOKENS] * 12, batch_key=batch_key))
    counts = [len(sizes_of(scheduler.next_batch(idle_workers=idle))) for idle in (4, 3, 2, 1)]
    assert counts == [3, 3, 3, 3]


def test_little_work_is_not_shared_out() -> None:
    batch_key = BatchKey(0, None, 100 * SPLIT_FLOOR_TOKENS, 1000)
    scheduler = Scheduler()
    scheduler.add(make_items(*[SPLIT_FLOOR_TOKENS // 4] * 4, batch_key=batch_key))
    assert len(sizes_of(scheduler.next_batch(idle_workers=4))) == 4


def test_a_batch_takes_no_more_than_it_may_but_one_item_in_any_case() -> None:
    scheduler = Scheduler()
    scheduler.add(make_items(10, 10, 10))
    assert sizes_of(scheduler.next_batch(most_tokens=20)) == [10, 10]
    assert sizes_of(scheduler.next_batch(most_tokens=5)) == [10]


def test_a_group_hashes_and_compares_by_its_fields() -> None:
    assert BatchKey(0, "embed", BUDGET, 8) == KEYS[0]
    assert hash(BatchKey(0, "embed", BUDGET, 8)) == hash(KEYS[0])
    assert BatchKey(0, "embed", BUDGET, 9) != KEYS[0]


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_the_bulk_share_must_leave_both_lanes_something(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Scheduler(bulk_share=share)


def test_withdrawn_items_are_not_computed() -> None:
    scheduler = Scheduler()
    items = make_items(10, 20, 30, 40)
    scheduler.add(items)
    assert scheduler.withdraw([items[0], items[2]]) == 2
    assert scheduler.withdraw([items[0]]) == 0
    assert sorted(size for batch in drain(scheduler) for size in sizes_of(batch)) == [20, 40]


def test_withdrawing_a_model_leaves_the_others() -> None:
    scheduler = Scheduler()
    one, other = make_items(10, 20, batch_key=KEYS[0]), make_items(30, batch_key=KEYS[2])
    scheduler.add([other[0], *one])
    assert scheduler.withdraw_model(0) == one
    assert [sizes_of(batch) for batch in drain(scheduler)] == [[30]]


# ---------------------------------------------------------------- long items

SQUARE = BatchKey(0, "embed", 16_384, 100, attention_tokens=3072)


def test_a_long_item_takes_up_more_of_a_batch_than_its_tokens() -> None:
    scheduler = Scheduler()
    scheduler.add(make_items(*[512] * 33, batch_key=SQUARE))
    assert len(sizes_of(scheduler.next_batch())) == 32
    scheduler = Scheduler()
    scheduler.add(make_items(*[4096] * 4, batch_key=SQUARE))
    # With its attention each costs twice as much as eight texts of 512 tokens.
    batches = drain(scheduler)
    assert [sizes_of(batch) for batch in batches] == [[4096] * 2] * 2
    assert [batch.load for batch in batches] == [1.0, 1.0], "for turns, too"
    scheduler.add(make_items(*[4096] * 4, batch_key=replace(SQUARE, attention_tokens=None)))
    assert [sizes_of(batch) for batch in drain(scheduler)] == [[4096] * 4]


@given(st.lists(st.integers(1, 512), min_size=1, max_size=60), st.integers(1, 3))
def test_short_items_share_batches_as_if_nothing_grew_with_a_square(sizes: list[int], idle_workers: int) -> None:
    batches = []
    for attention_tokens in (None, 1536):
        batch_key = BatchKey(0, "embed", 2048, 8, attention_tokens)
        scheduler = Scheduler()
        scheduler.add(make_items(*sizes, batch_key=batch_key))
        found = [scheduler.next_batch(idle_workers) for _ in sizes]
        batches.append([[item.index for item in batch.items] for batch in found if batch is not None])
    assert batches[0] == batches[1]


def test_what_waits_is_shared_out_by_what_it_costs() -> None:
    """By tokens, one worker would get the two long texts, and the other one short texts that take a third of that."""
    scheduler = Scheduler()
    scheduler.add(make_items(*[4096] * 2, *[512] * 16, batch_key=SQUARE))
    assert sizes_of(scheduler.next_batch(idle_workers=2)) == [4096]


@given(st.lists(st.integers(1, 8192), min_size=1, max_size=40), st.integers(1, 3), st.data())
def test_long_items_lose_neither_order_nor_count(sizes: list[int], idle_workers: int, data: st.DataObject) -> None:
    scheduler = Scheduler()
    lanes = data.draw(st.lists(st.sampled_from(Priority), min_size=len(sizes), max_size=len(sizes)))
    items = [
        make_item(size, index, batch_key=SQUARE, priority=lane)
        for index, (size, lane) in enumerate(zip(sizes, lanes, strict=True))
    ]
    scheduler.add(items)
    computed: list[int] = []
    while (batch := scheduler.next_batch(idle_workers)) is not None:
        waiting = [item.index for item in items if item.priority is batch.priority and item.index not in computed]
        computed += [item.index for item in batch.items]
        assert waiting[0] in computed, "the oldest leads"
        assert batch.size <= batch.cost <= SQUARE.max_batch_tokens or len(batch.items) == 1
    assert sorted(computed) == list(range(len(sizes)))
    assert scheduler.cost == 0


def test_halves_keep_every_item() -> None:
    batch = Batch(KEYS[0], make_items(1, 2, 3))
    halves = batch.halves(kills=1)
    assert [[item.size for item in half.items] for half in halves] == [[1], [2, 3]]
    assert [half.kills for half in halves] == [1, 1]


# ---------------------------------------------------------------- properties


@st.composite
def waiting_items(draw: st.DrawFn) -> list[Item]:
    drawn = draw(st.lists(st.tuples(SIZES, st.sampled_from(KEYS), st.sampled_from(Priority)), min_size=1, max_size=60))
    return [make_item(size, i, batch_key=batch_key, priority=lane) for i, (size, batch_key, lane) in enumerate(drawn)]


@given(waiting_items())
def test_each_item_comes_exactly_once(items: list[Item]) -> None:
    scheduler = Scheduler()
    scheduler.add(items)
    computed = [item.index for batch in drain(scheduler) for item in batch.items]
    assert sorted(computed) == list(range(len(items)))
    assert len(scheduler) == 0


@given(waiting_items(), st.integers(1, 5))
def test_no_batch_is_over_a_limit_or_mixes_groups(items: list[Item], idle_workers: int) -> None:
    scheduler = Scheduler()
    scheduler.add(items)
    while (batch := scheduler.next_batch(idle_workers)) is not None:
        assert {(item.batch_key, item.priority) for item in batch.items} == {(batch.batch_key, batch.items[0].priority)}
        assert len(batch.items) <= batch.batch_key.max_batch_size
        assert batch.size <= batch.batch_key.max_batch_tokens or len(batch.items) == 1


@given(waiting_items())
def test_the_oldest_of_its_lane_is_in_the_next_batch(items: list[Item]) -> None:
    scheduler = Scheduler()
    scheduler.add(items)
    left = {lane: [item for item in items if item.priority is lane] for lane in Priority}
    while (batch := scheduler.next_batch()) is not None:
        lane = left[batch.items[0].priority]
        assert lane[0] in batch.items
        for item in batch.items:
            lane.remove(item)


@given(waiting_items())
def test_interactive_items_never_wait_for_more_than_one_bulk_batch_in_a_row(items: list[Item]) -> None:
    scheduler = Scheduler()
    scheduler.add(items)
    lanes = []
    while scheduler.waiting(Priority.INTERACTIVE):
        batch = scheduler.next_batch()
        assert batch is not None
        lanes.append(batch.items[0].priority)
    assert all(Priority.INTERACTIVE in pair for pair in pairwise(lanes))


@given(st.lists(SIZES, min_size=1, max_size=40))
def test_a_batch_leaves_out_nothing_nearer_than_what_it_takes(sizes: list[int]) -> None:
    """Neighbours in size: whatever lies between the smallest and the largest is in the batch, or of equal size."""
    scheduler = Scheduler()
    items = make_items(*sizes)
    scheduler.add(items)
    batch = scheduler.next_batch()
    assert batch is not None
    taken, longest = sizes_of(batch), max(item.size for item in batch.items)
    leader = items[0].size
    left = [item.size for item in items if item not in batch.items]
    assert not [size for size in left if taken[0] < size < taken[-1]]
    is_full = len(taken) == KEYS[0].max_batch_size
    farthest = max(abs(size - leader) for size in taken)
    for size in left:
        assert is_full or max(size, longest) * (len(taken) + 1) > BUDGET, "there was room for it"
        if max(size, longest) * len(taken) <= BUDGET:
            assert abs(size - leader) >= farthest, "it fitted in the place of one that is less near"


@given(waiting_items(), st.data())
def test_withdrawing_removes_exactly_those_items(items: list[Item], data: st.DataObject) -> None:
    scheduler = Scheduler()
    scheduler.add(items)
    gone = data.draw(st.lists(st.sampled_from(items), unique_by=id))
    assert scheduler.withdraw(gone) == len(gone)
    computed = {item.index for batch in drain(scheduler) for item in batch.items}
    assert computed == {item.index for item in items} - {item.index for item in gone}


@given(st.lists(st.integers(1, BUDGET), min_size=20, max_size=60), st.integers(1, BUDGET))
def test_bulk_work_keeps_its_share_while_interactive_work_never_ends(sizes: list[int], bulk_size: int) -> None:
    scheduler = Scheduler()
    batch_key = KEYS[0]
    scheduler.add(make_items(*[bulk_size] * 2000, batch_key=batch_key))
    work = dict.fromkeys(Priority, 0.0)
    for size in sizes * 10:
        while scheduler.waiting(Priority.INTERACTIVE) < 8:
            scheduler.add([make_item(size, priority=Priority.INTERACTIVE)])
        batch = scheduler.next_batch()
        assert batch is not None
        work[batch.items[0].priority] += batch.load
    assume(scheduler.waiting(Priority.BULK))
    # The debt lags behind by at most two full batches.
    assert abs(work[Priority.BULK] - BULK_SHARE * sum(work.values())) <= 2


@given(st.integers(1, 30))
def test_a_credit_of_bulk_work_ends_with_its_wait(count: int) -> None:
    """Bulk work that waited long ago gives no precedence to bulk work that comes later."""
    scheduler = Scheduler()
    bulk = make_item(10)
    scheduler.add([bulk])
    for _ in range(count):
        scheduler.add(make_items(BUDGET, priority=Priority.INTERACTIVE))
        batch = scheduler.next_batch()
        assert batch is not None
        if bulk in batch.items:
            break
    scheduler.withdraw([bulk])
    drain(scheduler)
    scheduler.add(make_items(BUDGET, BUDGET, priority=Priority.INTERACTIVE))
    scheduler.next_batch()
    scheduler.add(make_items(10))
    batch = scheduler.next_batch()
    assert batch is not None
    assert batch.items[0].priority is Priority.INTERACTIVE


class AnyUse(RuleBasedStateMachine):
    """Adding, taking and withdrawing in any order, against a list that keeps what should wait."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler()
        self.waiting: list[Item] = []
        self.index = 0

    @rule(size=SIZES, batch_key=st.sampled_from(KEYS), lane=st.sampled_from(Priority), count=st.integers(1, 5))
    def add(self, size: int, batch_key: BatchKey, lane: Priority, count: int) -> None:
        items = [make_item(size + i, self.index + i, batch_key=batch_key, priority=lane) for i in range(count)]
        self.index += count
        self.scheduler.add(items)
        self.waiting += items

    @precondition(lambda self: self.waiting)
    @rule(idle_workers=st.integers(1, 4))
    def take(self, idle_workers: int) -> None:
        batch = self.scheduler.next_batch(idle_workers)
        assert batch is not None
        lane = batch.items[0].priority
        assert next(item for item in self.waiting if item.priority is lane) in batch.items
        for item in batch.items:
            self.waiting.remove(item)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.waiting))
        assert self.scheduler.withdraw([item]) == 1
        self.waiting.remove(item)

    @rule(model=st.sampled_from([0, 1]))
    def withdraw_model(self, model: int) -> None:
        gone = [item for item in self.waiting if item.batch_key.model == model]
        assert self.scheduler.withdraw_model(model) == gone
        self.waiting = [item for item in self.waiting if item.batch_key.model != model]

    @invariant()
    def knows_what_waits(self) -> None:
        assert len(self.scheduler) == len(self.waiting)
        assert self.scheduler.cost == sum(item.size for item in self.waiting)
        for lane in Priority:
            assert self.scheduler.waiting(lane) == sum(item.priority is lane for item in self.waiting)


TestAnyUse = AnyUse.TestCase
