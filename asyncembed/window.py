"""The window of a stream: what was read from its source and is not taken yet, in which order, and how much more may be.

Plain and synchronous: no pool, no event, nothing to await. What others may wait for is told by two callbacks, which
are called between two lines of this module and must not call back.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from asyncembed.engine.scheduler import Item


class Entry:
    """A record that was read, then also its result or error; and what it holds of the window's bounds.

    `item` is what a worker is to compute: None once there is a result, or an error in its place. `tokens` are
    estimated, `count` is what was computed for the result (see `Item`).
    """

    __slots__ = ("count", "error", "index", "item", "record", "result", "size_bytes", "tokens")

    result: Any

    def __init__(
        self,
        index: int,
        record: Any,
        item: Item | None,
        tokens: float,
        size_bytes: int,
        error: Exception | None = None,
    ) -> None:
        self.index: int = index
        self.record: Any = record
        self.item: Item | None = item
        self.tokens: float = tokens
        self.size_bytes: int = size_bytes
        self.error: Exception | None = error
        self.count: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """What a window has room for, all of it more than nothing: reading goes on until the first of these is used up.

    Attributes:
        items: Inputs.
        tokens: Their estimated tokens.
        size_bytes: Their bytes, each with those of the result that is expected of it.
        result_bytes: Expected of each input.
    """

    items: int
    tokens: float
    size_bytes: float
    result_bytes: float


class Window:
    """Holds at most its bounds and one record.

    Nothing may be read while it is full, and of what is read meanwhile each record counts before the next one is read.
    Results count as they come, and before that as the average of the earlier ones.

    Whoever reads the source asks for room (`ask_room`) and pushes what it has read; whoever computes lets each answer
    `arrive` once; whoever consumes takes. All of them on one thread.

    Args:
        max_items: Bound of the records.
        max_tokens: Bound of the estimated tokens of those without an answer.
        max_bytes: Bound of the bytes of inputs, records kept beside them, and results.
        ordered: Whether entries are taken in the order in which they were read, or in which their answers came.
        on_ready: Called when `take` has something that it had not before.
        on_room: Called when there is what was asked for in vain. Whoever it wakes asks again.

    Attributes:
        max_tokens: As above; it may be set as long as nothing was read.
        answered: How many entries had an answer so far, of those that had to be computed.
        tokens: That were computed for all results so far.
        truncated: Results so far whose inputs were cut at the length limit.
    """

    def __init__(
        self,
        *,
        max_items: int,
        max_tokens: float,
        max_bytes: int,
        ordered: bool,
        on_ready: Callable[[], None],
        on_room: Callable[[], None],
    ) -> None:
        self._max_items = max_items
        self.max_tokens: float = max_tokens
        self._max_bytes = max_bytes
        self.on_ready = on_ready
        self._on_room = on_room
        self._entries: dict[int, Entry] = {}
        # Less those that `close` forgot.
        self._pushed = 0
        # The index that is next, or what has come in its order.
        self._next = 0
        self._arrivals: deque[Entry] | None = None if ordered else deque()
        self._bytes = 0
        # Those that were taken and are held; their bytes are among the others.
        self._held = 0
        self._held_bytes = 0
        # Those without an answer.
        self._waiting = 0
        self._waiting_tokens = 0.0
        # Of all answers so far, to know what to expect of the next ones.
        self.tokens: int = 0
        self.truncated: int = 0
        self.answered: int = 0
        self._answer_bytes = 0
        # What somebody waits to be within, and from how many entries on that is worth a look, which is all that most
        # answers and takings cost. -1: nobody waits.
        self._wanted: tuple[int, float, float] = (0, 0.0, 0.0)
        self._wants_bytes = False
        self._look_from = -1
        self._is_closed = False

    @property
    def taken(self) -> int:
        """How many entries were taken."""
        return self._pushed - len(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_ready(self) -> bool:
        """Whether `take` has something."""
        if self._arrivals is not None:
            return bool(self._arrivals)
        entry = self._entries.get(self._next)
        return entry is not None and entry.item is None

    # ---------------------------------------------------------------- room

    @property
    def is_full(self) -> bool:
        """Whether nothing may be read now."""
        return not self._is_within(self._max_items - 1, self.max_tokens, self._max_bytes)

    def ask_room(self, share: float = 0.0) -> Room | None:
        """What may be read now, if this share of the window, and at least one place, is free; else `on_room` follows.

        An empty window has any share below 1 free, so whoever waits waits for no more than that all is taken.
        """
        most = self._max_items - max(1, int(self._max_items * share))
        self._wanted = most, self.max_tokens * (1 - share), self._max_bytes * (1 - share)
        if not self._is_within(*self._wanted):
            self._look_from = max(self._look_from, most)
            return None
        return Room(
            self._max_items - len(self._entries) - self._held,
            self.max_tokens - self._waiting_tokens,
            self._max_bytes - self._expected_bytes(),
            self._answer_bytes / self.answered if self.answered else 0.0,
        )

    def may_load(self, index: int, size_bytes: int) -> bool:
        """Whether an input may be fetched or read for which so many bytes may come; if not, `on_room` follows.

        The one that is to be taken first always may: everything else may be waiting for it.
        """
        if self._bytes + size_bytes <= self._max_bytes or next(iter(self._entries), index) == index:
            return True
        self._wants_bytes = True
        self._look_from = sys.maxsize
        return False

    def _is_within(self, items: int, tokens: float, size_bytes: float) -> bool:
        """Whether no more than `items` entries are there, with less than so many tokens and bytes; or none at all."""
        count = len(self._entries) + self._held
        if not count:
            return not self._is_closed
        return count <= items and self._waiting_tokens < tokens and self._expected_bytes() < size_bytes

    def _expected_bytes(self) -> float:
        if not self._answer_bytes:
            return self._bytes
        return self._bytes + self._waiting * self._answer_bytes / self.answered

    def _look(self) -> None:
        if self._wants_bytes or self._is_within(*self._wanted):
            self._wants_bytes = False
            self._look_from = -1
            self._on_room()

    # ---------------------------------------------------------------- in

    def push(self, entries: Iterable[Entry]) -> list[Item]:
        """Take in what was read, in the order of the source; returns what is to be computed of it."""
        items: list[Item] = []
        for entry in entries:
            self._entries[entry.index] = entry
            self._bytes += entry.size_bytes
            self._waiting_tokens += entry.tokens
            if entry.item is None:
                self._settle(entry)
            else:
                items.append(entry.item)
            self._pushed += 1
        self._waiting += len(items)
        return items

    def charge(self, index: int, size_bytes: int) -> None:
        """Learn how many bytes an input really keeps that was fetched or read after it had been pushed."""
        entry = self._entries.get(index)
        if entry is not None:
            self._bytes += size_bytes - entry.size_bytes
            entry.size_bytes = size_bytes
            if len(self._entries) <= self._look_from:
                self._look()

    def arrive(self, index: int, result: object, error: Exception | None = None, size_bytes: int = 0) -> None:
        """Take the result of an entry that waits, of so many bytes, or the error in its place."""
        entries = self._entries
        entry = entries[index]
        item = entry.item
        assert item is not None, "each input has one answer"
        entry.item = None
        entry.count = count = item.count
        if count < 0:
            self.truncated += 1
            count = -count
        self.tokens += count
        entry.result = result
        entry.error = error
        entry.size_bytes += size_bytes
        self._bytes += size_bytes
        self._waiting -= 1
        self._waiting_tokens -= entry.tokens
        self.answered += 1
        self._answer_bytes += size_bytes
        if index == self._next or self._arrivals is not None:
            self._settle(entry)
        if len(entries) <= self._look_from:
            self._look()

    def _settle(self, entry: Entry) -> None:
        """Let an entry with its answer be taken: now, or when its turn comes."""
        if self._arrivals is not None:
            self._arrivals.append(entry)
        elif entry.index != self._next:
            return
        self.on_ready()

    # ---------------------------------------------------------------- out

    def take(self) -> Entry | None:
        """The next entry, if it has its answer."""
        if self._arrivals is None:
            entry = self._entries.get(self._next)
            if entry is None or entry.item is not None:
                return None
            self._next += 1
        elif self._arrivals:
            entry = self._arrivals.popleft()
        else:
            return None
        del self._entries[entry.index]
        self._bytes -= entry.size_bytes
        if len(self._entries) <= self._look_from:
            self._look()
        return entry

    def hold(self, entry: Entry) -> None:
        """Let an entry that was just taken count on: whoever took it has not used it yet."""
        self._held += 1
        self._held_bytes += entry.size_bytes
        self._bytes += entry.size_bytes

    def release(self) -> None:
        """Let nothing that was taken count any more."""
        self._bytes -= self._held_bytes
        self._held = self._held_bytes = 0
        if self._look_from >= 0:
            self._look()

    def close(self) -> list[Item]:
        """Forget everything; returns what is not answered yet. From now on nothing may arrive, and there is no room.

        Whoever reads hears of the end a turn of the loop later, and must not take what is forgotten for room.
        """
        self._is_closed = True
        items = [entry.item for entry in self._entries.values() if entry.item is not None]
        self._pushed -= len(self._entries)
        self._entries.clear()
        if self._arrivals is not None:
            self._arrivals.clear()
        self._bytes = self._held = self._held_bytes = self._waiting = 0
        self._waiting_tokens = 0.0
        return items
