"""The window: driven step by step, without a process, a loop or a clock."""

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncembed.engine.scheduler import BatchKey, Item, Priority
from asyncembed.errors import InputError
from asyncembed.window import Entry, Room, Window

KEY = BatchKey(model=0, call=None, max_batch_tokens=64, max_batch_size=8)
SHARES = st.sampled_from([0.0, 1 / 8, 1 / 4, 1 / 2])
BYTES = st.one_of(st.integers(0, 40), st.integers(300, 3000))


class Nobody:
    """A sink that is never called: the window does not look at it."""

    def deliver(self, index: int, result: object) -> None:
        raise AssertionError

    def fail(self, index: int, error: Exception) -> None:
        raise AssertionError


def entry(index: int, *, tokens: int = 1, size_bytes: int = 1, is_refused: bool = False) -> Entry:
    if is_refused:
        return Entry(index, None, None, 0, size_bytes, InputError("no input"))
    return Entry(index, None, Item("text", tokens, KEY, Priority.BULK, Nobody(), index), tokens, size_bytes)


@dataclass
class Calls:
    """What the window told."""

    ready: int = 0
    room: int = 0


def make(
    *, max_items: int = 100, max_tokens: float = 1000, max_bytes: int = 1000, ordered: bool = True
) -> tuple[Window, Calls]:
    calls = Calls()

    def on_ready() -> None:
        calls.ready += 1

    def on_room() -> None:
        calls.room += 1

    window = Window(
        max_items=max_items,
        max_tokens=max_tokens,
        max_bytes=max_bytes,
        ordered=ordered,
        on_ready=on_ready,
        on_room=on_room,
    )
    return window, calls


def taken(window: Window) -> list[int]:
    found = []
    while (one := window.take()) is not None:
        found.append(one.index)
    return found


# ---------------------------------------------------------------- order


def test_entries_come_in_the_order_of_the_source() -> None:
    window, calls = make()
    assert [item.index for item in window.push([entry(index) for index in range(3)])] == [0, 1, 2]
    window.arrive(2, "c")
    window.arrive(1, "b")
    assert (taken(window), calls.ready) == ([], 0)
    window.arrive(0, "a")
    assert calls.ready == 1
    assert [(one.index, one.result) for _ in range(3) if (one := window.take())] == [(0, "a"), (1, "b"), (2, "c")]


def test_entries_come_in_the_order_of_their_answers_if_nobody_asked_for_another() -> None:
    window, calls = make(ordered=False)
    window.push([entry(0), entry(1, is_refused=True), entry(2)])
    window.arrive(2, "c")
    window.arrive(0, "a")
    assert taken(window) == [1, 2, 0]
    assert calls.ready == 3


def test_an_error_comes_in_the_place_of_the_result() -> None:
    window, _ = make()
    window.push([entry(0, is_refused=True), entry(1)])
    window.arrive(1, None, error := InputError("bad"))
    first, second = window.take(), window.take()
    assert first is not None
    assert isinstance(first.error, InputError)
    assert second is not None
    assert second.error is error


def test_an_input_has_one_answer() -> None:
    window, _ = make()
    window.push([entry(0), entry(1)])
    window.arrive(1, "b")
    with pytest.raises(AssertionError, match="one answer"):
        window.arrive(1, "again")


@pytest.mark.parametrize("ordered", [True, False])
def test_it_knows_whether_something_can_be_taken(ordered: bool) -> None:
    window, _ = make(ordered=ordered)
    assert not window.is_ready
    window.push([entry(0), entry(1)])
    assert not window.is_ready
    window.arrive(1, "result")
    assert window.is_ready is not ordered
    window.arrive(0, "result")
    while window.is_ready:
        assert window.take() is not None
    assert window.take() is None


def test_closing_gives_back_what_is_not_answered() -> None:
    window, _ = make()
    window.push([entry(index) for index in range(4)])
    window.arrive(1, "b")
    assert [item.index for item in window.close()] == [0, 2, 3]
    assert not window
    assert window.take() is None


# ---------------------------------------------------------------- room


def test_a_closed_window_has_no_room() -> None:
    """Or a feeder that hears of the end a turn later would read on."""
    window, calls = make(max_items=4)
    window.push([entry(0), entry(1)])
    window.close()
    assert window.is_full
    assert window.ask_room() is None
    assert calls.room == 0


@pytest.mark.parametrize("bound", ["max_items", "max_tokens", "max_bytes"])
def test_each_bound_alone_makes_a_window_full(bound: str) -> None:
    bounds = {"max_items": 1000, "max_tokens": 1000, "max_bytes": 1000, bound: 8}
    window, calls = make(max_items=bounds["max_items"], max_tokens=bounds["max_tokens"], max_bytes=bounds["max_bytes"])
    window.push([entry(index) for index in range(7)])
    assert not window.is_full
    window.push([entry(7)])
    assert window.is_full
    assert window.ask_room() is None
    window.arrive(0, "a")
    window.take()
    assert calls.room == 1
    assert not window.is_full


def test_an_answer_gives_tokens_back_and_only_taking_the_rest() -> None:
    window, calls = make(max_tokens=8, max_items=10)
    window.push([entry(index) for index in range(8)])
    assert window.ask_room() is None
    window.arrive(7, "h")
    assert calls.room == 1
    assert window.ask_room() == Room(2, 1, 992, 0)


def test_what_was_taken_and_is_held_counts_until_it_is_released() -> None:
    window, calls = make(max_items=8, max_bytes=100)
    window.push([entry(index, size_bytes=10) for index in range(8)])
    for index in range(8):
        window.arrive(index, "x")
    for _ in range(8):
        one = window.take()
        assert one is not None
        window.hold(one)
    assert window.is_full
    assert window.ask_room() is None
    window.release()
    assert calls.room == 1
    assert window.ask_room() == Room(8, 1000, 100, 0)
    window.push([entry(8, size_bytes=60)])
    window.arrive(8, "y", size_bytes=40)
    one = window.take()
    assert one is not None
    assert not window.is_full
    window.hold(one)
    assert window.is_full  # by its bytes


def test_whoever_waits_for_a_share_is_not_called_before_it_is_free() -> None:
    window, calls = make(max_items=16)
    window.push([entry(index) for index in range(16)])
    for index in range(16):
        window.arrive(index, "x")
    assert window.ask_room(1 / 4) is None
    for _ in range(3):
        window.take()
        assert calls.room == 0
    window.take()
    assert calls.room == 1
    for _ in range(12):
        window.take()
    assert calls.room == 1  # nobody waits any more


def test_results_count_as_they_come_and_before_that_as_the_earlier_ones() -> None:
    window, _ = make(max_bytes=1000)
    window.push([entry(0), entry(1), entry(2)])
    window.arrive(0, "a", size_bytes=400)
    # 3 of inputs, 400 of the result that waits, and two more of 400 are expected.
    assert window.is_full
    window.take()
    assert window.ask_room() == Room(98, 998, 1000 - 2 - 800, 400)


def test_the_first_input_may_be_loaded_whatever_its_size() -> None:
    window, calls = make(max_bytes=100)
    window.push([entry(0, size_bytes=60), entry(1, size_bytes=30)])
    assert window.may_load(0, 1000)
    assert window.may_load(1, 10)
    assert not window.may_load(1, 11)
    window.charge(0, 59)
    assert calls.room == 1
    assert window.may_load(1, 11)
    window.charge(7, 1000)  # that was taken already
    assert window.may_load(1, 11)


def test_a_feeder_that_asks_does_not_make_forget_what_is_to_be_loaded() -> None:
    window, calls = make(max_items=4, max_bytes=100)
    window.push([entry(index, size_bytes=20) for index in range(4)])
    window.arrive(0, "a")
    assert not window.may_load(3, 30)
    assert window.ask_room(1 / 2) is None
    window.take()
    assert calls.room == 1  # not enough for the feeder, which asks again
    assert window.may_load(3, 30)
    assert window.ask_room(1 / 2) is None


# ---------------------------------------------------------------- any order of anything


@dataclass
class Held:
    """What the test knows of an entry."""

    size_bytes: int
    tokens: int
    is_refused: bool
    is_answered: bool = False
    error: Exception | None = field(default=None)


class AnyOrder(RuleBasedStateMachine):
    """Reads, answers, takes, loads and closes as it comes, beside a plain book of what must be there."""

    @initialize(
        ordered=st.booleans(), items=st.integers(1, 12), tokens=st.integers(1, 60), size_bytes=st.integers(1, 2000)
    )
    def open(self, ordered: bool, items: int, tokens: int, size_bytes: int) -> None:
        self.window, self.calls = make(max_items=items, max_tokens=tokens, max_bytes=size_bytes, ordered=ordered)
        self.bounds = items, tokens, size_bytes
        self.ordered = ordered
        self.held: dict[int, Held] = {}
        self.arrivals: deque[int] = deque()
        self.read = self.taken = 0
        self.answers = self.answer_bytes = 0
        # The share of room that was asked for in vain, and the calls of `on_room` till then.
        self.waits_for: tuple[float, int] | None = None
        self.loads: tuple[int, int, int] | None = None
        self.found_nothing: int | None = None
        self.is_closed = False

    # ---- the book

    def expected_bytes(self) -> float:
        waiting = sum(not one.is_answered for one in self.held.values())
        size_bytes = sum(one.size_bytes for one in self.held.values())
        return size_bytes + (waiting * self.answer_bytes / self.answers if self.answer_bytes else 0)

    def waiting_tokens(self) -> int:
        return sum(one.tokens for one in self.held.values() if not one.is_answered)

    def has_room(self, share: float) -> bool:
        items, tokens, size_bytes = self.bounds
        return not self.held or (
            len(self.held) <= items - max(1, int(items * share))
            and self.waiting_tokens() < tokens * (1 - share)
            and self.expected_bytes() < size_bytes * (1 - share)
        )

    def next_one(self) -> int | None:
        if self.ordered:
            return self.taken if self.taken in self.held and self.held[self.taken].is_answered else None
        return self.arrivals[0] if self.arrivals else None

    def settle(self, index: int) -> None:
        self.held[index].is_answered = True
        self.arrivals.append(index)

    # ---- the feeder

    @precondition(lambda self: not self.is_closed)
    @rule(
        share=SHARES,
        sizes=st.lists(st.tuples(BYTES, st.integers(1, 20), st.integers(0, 9).map(lambda n: n == 0)), max_size=8),
    )
    def feed(self, share: float, sizes: list[tuple[int, int, bool]]) -> None:
        room = self.window.ask_room(share)
        assert (room is not None) == self.has_room(share)
        if room is None:
            self.waits_for = share, self.calls.room
            return
        self.waits_for = None
        assert room.items >= 1
        assert room.tokens > 0
        assert room.size_bytes > 0
        entries = []
        tokens, left = room.tokens, room.size_bytes
        for size_bytes, cost, is_refused in sizes[: room.items]:
            cost *= not is_refused
            entries.append(entry(self.read, tokens=cost, size_bytes=size_bytes, is_refused=is_refused))
            self.held[self.read] = Held(size_bytes, cost, is_refused)
            if is_refused:
                self.settle(self.read)
            self.read += 1
            self.check_bounds_but_for_the_last()
            tokens -= cost
            left -= size_bytes + room.result_bytes
            if tokens <= 0 or left <= 0:
                break
        items = self.window.push(entries)
        assert [item.index for item in items] == [one.index for one in entries if one.item is not None]

    def check_bounds_but_for_the_last(self) -> None:
        items, tokens, size_bytes = self.bounds
        last = self.held[self.read - 1]
        assert len(self.held) <= items
        assert self.waiting_tokens() - last.tokens < tokens
        if len(self.held) > 1:
            assert sum(one.size_bytes for one in self.held.values()) - last.size_bytes < size_bytes

    # ---- the pool

    @precondition(lambda self: any(not one.is_answered for one in self.held.values()))
    @rule(data=st.data(), size_bytes=BYTES, is_error=st.booleans())
    def answer(self, data: st.DataObject, size_bytes: int, is_error: bool) -> None:
        index = data.draw(st.sampled_from([index for index, one in self.held.items() if not one.is_answered]))
        size_bytes *= not is_error
        one = self.held[index]
        one.size_bytes += size_bytes
        one.error = InputError("bad") if is_error else None
        self.answers += 1
        self.answer_bytes += size_bytes
        self.settle(index)
        self.window.arrive(index, index, one.error, size_bytes)

    @precondition(lambda self: bool(self.held))
    @rule(data=st.data(), size_bytes=BYTES)
    def charge(self, data: st.DataObject, size_bytes: int) -> None:
        index = data.draw(st.sampled_from(sorted(self.held)))
        if not self.held[index].is_answered:
            self.held[index].size_bytes = size_bytes
            self.window.charge(index, size_bytes)

    @precondition(lambda self: bool(self.held))
    @rule(data=st.data(), size_bytes=BYTES)
    def load(self, data: st.DataObject, size_bytes: int) -> None:
        index = data.draw(st.sampled_from(sorted(self.held)))
        may = self.window.may_load(index, size_bytes)
        assert may == self.may_load(index, size_bytes)
        self.loads = None if may else (index, size_bytes, self.calls.room)

    def may_load(self, index: int, size_bytes: int) -> bool:
        held = sum(one.size_bytes for one in self.held.values())
        return held + size_bytes <= self.bounds[2] or min(self.held, default=index) == index

    # ---- the consumer

    @rule()
    def take(self) -> None:
        expected = self.next_one()
        found = self.window.take()
        if expected is None:
            assert found is None
            self.found_nothing = self.calls.ready
            return
        assert found is not None
        assert found.index == expected  # so each comes once, and in order
        held = self.held.pop(expected)
        self.arrivals.remove(expected)
        self.taken += 1
        if held.is_refused:
            assert isinstance(found.error, InputError)
        else:
            assert found.result == expected
            assert found.error is held.error

    @precondition(lambda self: not self.is_closed)
    @rule()
    def close(self) -> None:
        unanswered = [index for index, one in self.held.items() if not one.is_answered]
        assert [item.index for item in self.window.close()] == unanswered
        self.held.clear()
        self.arrivals.clear()
        self.waits_for = self.loads = None  # the feeder is cancelled, and nothing is loaded for it any more
        self.is_closed = True

    # ---- what always holds

    @invariant()
    def no_wake_up_is_lost(self) -> None:
        if self.waits_for is not None:
            share, calls = self.waits_for
            assert self.calls.room > calls or not self.has_room(share)
        if self.loads is not None:
            index, size_bytes, calls = self.loads
            assert self.calls.room > calls or (index not in self.held) or not self.may_load(index, size_bytes)
        if self.found_nothing is not None and not self.is_closed:
            assert self.calls.ready > self.found_nothing or self.next_one() is None

    @invariant()
    def an_empty_window_keeps_nobody_waiting(self) -> None:
        assert len(self.window) == len(self.held)
        if not self.held and self.waits_for is not None:
            assert self.calls.room > self.waits_for[1]


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=30, stateful_step_count=40)
