"""Whose URL is fetched next: by a clock that the tests turn."""

from collections.abc import Hashable

from asyncembed.images.fetch_turns import Turn, Turns


class Fetches:
    """Some turns, and which of them were told what; a turn that is told to end leaves when it is asked to."""

    def __init__(self, places: int) -> None:
        self.turns = Turns(places)
        self.running: list[Turn] = []
        self.ending: list[Turn] = []

    def ask(self, owner: Hashable, *, now: float = 0.0, seconds: float = 2.0) -> Turn:
        turn = Turn(owner, seconds, lambda: self.running.append(turn), lambda: self.ending.append(turn))
        self.turns.ask(turn, now)
        return turn

    def leave(self, turn: Turn, *, now: float = 0.0) -> None:
        self.running.remove(turn)
        self.turns.leave(turn, now)

    @property
    def owners(self) -> list[Hashable]:
        return [turn.owner for turn in self.running]


def test_who_has_the_fewest_places_is_next_and_then_who_came_first() -> None:
    fetches = Fetches(3)
    first, *_ = [fetches.ask("a") for _ in range(6)]
    fetches.ask("b")
    fetches.ask("c")
    assert fetches.owners == ["a", "a", "a"]
    for _ in range(3):
        fetches.leave(fetches.running[0])
    assert fetches.owners == ["b", "c", "a"]
    assert first not in fetches.running


def test_what_is_slow_makes_room_for_who_has_fewer_once_it_has_had_its_time() -> None:
    fetches = Fetches(3)
    for _ in range(4):
        fetches.ask("slow")
    fetches.turns.look(now=100.0)
    assert not fetches.ending  # nobody else waits
    fetches.ask("b", now=1.9)
    assert not fetches.ending
    fetches.turns.look(now=2.0)
    fetches.turns.look(now=2.0)
    (ended,) = fetches.ending
    assert fetches.running[0] is ended
    fetches.leave(ended, now=2.0)
    assert fetches.owners == ["slow", "slow", "b"]
    fetches.ask("b", now=2.0)  # one each would be two and one the other way round
    assert len(fetches.ending) == 1
    fetches.ask("c", now=2.0)
    fetches.leave(fetches.ending[1], now=2.0)
    assert fetches.owners == ["slow", "b", "c"]


def test_where_everybody_has_one_they_take_turns() -> None:
    fetches = Fetches(2)
    slow = fetches.ask("a")
    fetches.ask("b", seconds=8.0)
    fetches.ask("c")
    fetches.turns.look(now=4.0)
    fetches.leave(slow, now=4.0)
    assert fetches.owners == ["b", "c"]
    fetches.ask("a", now=4.0)
    fetches.turns.look(now=6.0)
    assert [turn.owner for turn in fetches.ending] == ["a", "c"]


def test_who_waits_no_more_gets_no_place() -> None:
    fetches = Fetches(1)
    running = fetches.ask("a")
    gone = fetches.ask("b")
    fetches.turns.leave(gone, 0.0)
    fetches.turns.look(now=9.0)
    assert not fetches.ending
    fetches.leave(running)
    assert not fetches.running
    fetches.ask("c")
    assert fetches.owners == ["c"]
