"""The batching policy: which waiting inputs are computed together, and when whose turn it is.

A plain object: no await, no clock, no process, no numpy. The mutable state is the two lanes and the debt to the
bulk lane; only the methods of `Scheduler` change it, and nothing can run in between.
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from asyncembed.encoders.run_cost import SHORT_TOKENS, cost_of

BULK_SHARE = 0.25
"""The part of the work, in full batches, that bulk items keep while interactive work never ends."""

SPLIT_FLOOR_TOKENS = 128
"""Work for idle workers is not cut into smaller batches than this: a run of the graph has a fixed cost."""


class Priority(IntEnum):
    """Which lane an item waits in; the lower value goes first."""

    INTERACTIVE = 0
    BULK = 1


class Sink(Protocol):
    """Whom a result concerns. Called on the event loop, once per item, and must not raise."""

    def deliver(self, index: int, result: object) -> None:
        """Take the result of the input at `index`."""
        ...

    def fail(self, index: int, error: Exception) -> None:
        """Learn that the input at `index` has no result, and why."""
        ...


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What items must have in common to share a batch, and how large that may be.

    Attributes:
        model: Key of the model.
        call: What is asked of it beyond the inputs.
        max_batch_tokens: Bound of `longest * count` over the estimated sizes, long ones by what they cost.
        max_batch_size: Bound of the count.
        attention_tokens: From which a size gives its cost: see `cost_of`.
    """

    model: int
    call: Hashable
    max_batch_tokens: int
    max_batch_size: int
    attention_tokens: int | None = None
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Looked up once per item, and a call has many fields: hashed once.
        own_hash = hash((self.model, self.call, self.max_batch_tokens, self.max_batch_size, self.attention_tokens))
        object.__setattr__(self, "_hash", own_hash)

    def __hash__(self) -> int:
        return self._hash

    @property
    def minimum_size(self) -> float:
        """The size below which an item takes up no less of a batch, as that is full by count."""
        return self.max_batch_tokens / self.max_batch_size

    def cost(self, size: int) -> int:
        """What an item of this size costs, in tokens of short texts."""
        return size if size <= SHORT_TOKENS else cost_of(size, self.attention_tokens)


class Item:
    """One waiting input.

    `size` is its estimated number of tokens, and `units` what that was estimated from (characters of a text), or 0 if
    it tells nothing of how units become tokens. `age` is set when it is added, `count` before its result is delivered:
    the tokens that were computed for it, less than 0 (-n for n) if it was cut at the limit; 0: not known.
    """

    __slots__ = ("age", "batch_key", "count", "index", "priority", "sink", "size", "units", "value")

    def __init__(
        self, value: object, size: int, batch_key: BatchKey, priority: Priority, sink: Sink, index: int, units: int = 0
    ) -> None:
        self.value: object = value
        self.size: int = size
        self.batch_key: BatchKey = batch_key
        self.priority: Priority = priority
        self.sink: Sink = sink
        self.index: int = index
        self.units: int = units
        self.age: int = -1
        self.count: int = 0

    def __repr__(self) -> str:
        return f"<Item {self.index} size={self.size} {self.priority.name.lower()} age={self.age}>"


@dataclass(slots=True, eq=False)
class Batch:
    """Items to compute in one go; `kills` counts the workers that died of it."""

    batch_key: BatchKey
    items: list[Item]
    kills: int = 0

    @property
    def priority(self) -> Priority:
        """The lane that its items waited in."""
        return self.items[0].priority

    @property
    def size(self) -> int:
        """Estimated tokens, padding included."""
        return max(item.size for item in self.items) * len(self.items)

    @property
    def cost(self) -> int:
        """What it costs, in tokens of short texts, padding included."""
        return self.batch_key.cost(max(item.size for item in self.items)) * len(self.items)

    @property
    def load(self) -> float:
        """The part of a full batch that this one is; it may be full by tokens or by count."""
        longest = self.batch_key.cost(max(item.size for item in self.items))
        return len(self.items) * max(longest, self.batch_key.minimum_size) / self.batch_key.max_batch_tokens

    def halves(self, kills: int) -> list["Batch"]:
        """The same items as two batches that start with `kills`."""
        middle = len(self.items) // 2
        return [Batch(self.batch_key, part, kills) for part in (self.items[:middle], self.items[middle:]) if part]


_Entry = tuple[int, int, Item]  # (size, age, item): sorts by size, then age; ages are unique


@dataclass(slots=True)
class _Lane:
    """The waiting items of one priority: all by age, and those of each batch key by size; and what they cost."""

    by_age: OrderedDict[int, Item] = field(default_factory=OrderedDict)
    by_size: dict[BatchKey, list[_Entry]] = field(default_factory=dict)
    cost: int = 0

    def add(self, item: Item) -> None:
        self.by_age[item.age] = item
        size = item.size
        insort(self.by_size.setdefault(item.batch_key, []), (size, item.age, item))
        # Nothing is called for a short item, here and below: of static models there are 100,000 a second.
        self.cost += size if size <= SHORT_TOKENS else item.batch_key.cost(size)

    def take(self, batch_key: BatchKey, low: int, high: int) -> list[Item]:
        """Remove the entries `low:high` of `batch_key`, which are of neighbouring sizes."""
        entries = self.by_size[batch_key]
        items = [entry[2] for entry in entries[low:high]]
        del entries[low:high]
        if not entries:
            del self.by_size[batch_key]
        for item in items:
            del self.by_age[item.age]
            size = item.size
            self.cost -= size if size <= SHORT_TOKENS else batch_key.cost(size)
        return items

    def remove(self, item: Item) -> bool:
        """Remove `item`, if it waits here."""
        if self.by_age.pop(item.age, None) is None:
            return False
        entries = self.by_size[item.batch_key]
        del entries[bisect_left(entries, (item.size, item.age))]
        if not entries:
            del self.by_size[item.batch_key]
        self.cost -= item.batch_key.cost(item.size)
        return True


class Scheduler:
    """Holds what waits, and forms one batch whenever a worker has room.

    The rule, in four sentences. Interactive items go before bulk items, except that bulk work keeps `bulk_share` of
    the work while both wait. The oldest item of the chosen lane leads the batch, so nothing starves. The batch
    is filled with the items of the same batch key whose sizes are nearest to the leader's, from whatever stream or
    caller, so hardly anything is padded. `longest * count` stays within the key's token budget, where a long item
    counts as what it costs, and the count within its size limit; an item that alone is over the budget goes alone.
    """

    def __init__(self, bulk_share: float = BULK_SHARE) -> None:
        if not 0 < bulk_share < 1:
            raise ValueError("bulk_share must be between 0 and 1")
        # By the value of `Priority`: a dict would call the enum's own `__hash__` for every item.
        self._lanes = tuple(_Lane() for _ in Priority)
        self._next_age = 0
        self._bulk_share = bulk_share
        # What bulk work is owed for the interactive batches that went before it, in full batches.
        self._bulk_debt = 0.0

    def __len__(self) -> int:
        return sum(len(lane.by_age) for lane in self._lanes)

    def waiting(self, priority: Priority) -> int:
        """How many items of this priority wait."""
        return len(self._lanes[priority].by_age)

    def waiting_cost(self, priority: Priority) -> int:
        """What all that waits of this priority costs, in tokens of short texts, without padding."""
        return self._lanes[priority].cost

    def oldest(self, priority: Priority) -> Item | None:
        """The item of this priority that leads its next batch."""
        return next(iter(self._lanes[priority].by_age.values()), None)

    @property
    def cost(self) -> int:
        """What all that waits costs, in tokens of short texts, without padding."""
        return sum(lane.cost for lane in self._lanes)

    def add(self, items: Iterable[Item]) -> None:
        """Let `items` wait; they are younger than all that wait already."""
        for item in items:
            item.age = self._next_age
            self._next_age += 1
            self._lanes[item.priority].add(item)

    def withdraw(self, items: Iterable[Item]) -> int:
        """Forget those of `items` that still wait; returns how many did."""
        return sum(self._lanes[item.priority].remove(item) for item in items)

    def withdraw_model(self, model: int) -> list[Item]:
        """Remove and return all waiting items of `model`, oldest first."""
        found: list[Item] = []
        for lane in self._lanes:
            own = [item for item in lane.by_age.values() if item.batch_key.model == model]
            for item in own:
                lane.remove(item)
            found += own
        return sorted(found, key=lambda item: item.age)

    def turn(self) -> Priority | None:
        """Whose turn it is: the priority that the next batch will have, or None if nothing waits."""
        interactive, bulk = self.waiting(Priority.INTERACTIVE), self.waiting(Priority.BULK)
        if interactive and bulk:
            return Priority.BULK if self._bulk_debt > 1 else Priority.INTERACTIVE
        if interactive:
            return Priority.INTERACTIVE
        return Priority.BULK if bulk else None

    def next_batch(
        self, idle_workers: int = 1, *, priority: Priority | None = None, most_tokens: int | None = None
    ) -> Batch | None:
        """Form the next batch, or return None if nothing waits.

        Args:
            idle_workers: How many workers, the asking one included, have nothing to do. What waits is shared out among
                them: a batch then takes no more than its part of what that costs.
            priority: Take items of this priority, whosever turn it is.
            most_tokens: Take what costs no more than that, but one item in any case; the rest is left to other workers.
        """
        if priority is None:
            priority = self.turn()
        leader = None if priority is None else self.oldest(priority)
        if priority is None or leader is None:
            return None
        lane = self._lanes[priority]
        batch_key = leader.batch_key
        budget = batch_key.max_batch_tokens
        if idle_workers > 1:
            share = max(SPLIT_FLOOR_TOKENS, -(-lane.cost // idle_workers))
            budget = min(budget, share)
        if most_tokens is not None:
            budget = min(budget, most_tokens)
        batch = Batch(batch_key, self._fill(lane, leader, budget))
        self._settle(batch)
        return batch

    def _fill(self, lane: _Lane, leader: Item, budget: int) -> list[Item]:
        entries = lane.by_size[leader.batch_key]
        low = bisect_left(entries, (leader.size, leader.age))
        high = low + 1
        cost = leader.batch_key.cost
        longest = cost(leader.size)
        for count in range(2, leader.batch_key.max_batch_size + 1):
            below = entries[low - 1][0] if low > 0 else None
            above = entries[high][0] if high < len(entries) else None
            fits_below = below is not None and longest * count <= budget
            fits_above = above is not None and (above if above <= SHORT_TOKENS else cost(above)) * count <= budget
            if fits_above and fits_below:
                assert above is not None
                assert below is not None
                fits_below = leader.size - below <= above - leader.size
            if fits_below:
                low -= 1
            elif fits_above:
                assert above is not None
                high += 1
                longest = above if above <= SHORT_TOKENS else cost(above)
            else:
                break
        return lane.take(leader.batch_key, low, high)

    def _settle(self, batch: Batch) -> None:
        if not self.waiting(Priority.BULK):
            self._bulk_debt = 0.0  # whoever was kept waiting has been served
        elif batch.priority is Priority.BULK:
            # However small it was: the next batch is an interactive one.
            self._bulk_debt = min(1.0, max(0.0, self._bulk_debt - batch.load))
        else:
            self._bulk_debt += batch.load * self._bulk_share / (1 - self._bulk_share)
