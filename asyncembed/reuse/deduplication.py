"""Equal inputs computed once: who waits for whose result, and what a cache is asked before anything is computed.

Stands between intakes and the pool: what they submit and withdraw goes through here, and answers come back through
here. All of its state changes on the event loop only.

What holds between any two calls:

- An item that was submitted has a `Work` as its sink, which has it in turn until it is answered or withdrawn.
- Of a work the pool has one item at most, whichever of them still wait: the one that it was begun with.
- Further items may join any work that stands among its peers, and it is wanted.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from copy import copy
from typing import TYPE_CHECKING, Any

from anyio import move_on_after

from asyncembed.engine.dispatch import NOBODY
from asyncembed.engine.lifetime import owned_task_group
from asyncembed.engine.scheduler import BatchKey, Item, Priority, Sink
from asyncembed.engine.supervisor import Supervisor
from asyncembed.errors import OF_ONE_INPUT
from asyncembed.observing import ObservedCall
from asyncembed.reuse.keeper import CACHE_SECONDS, Keeper
from asyncembed.reuse.keys import KINDS, size_of
from asyncembed.reuse.vector_cache import CacheChoice, as_cache

if TYPE_CHECKING:
    from asyncembed.engine.model import PooledModel

MOST_COMPARED = 2**18
"""Characters or bytes: what is larger is not looked for among the others, as to hash it would hold up the loop."""

MAX_CALLS = 64
"""Calls that differ in what they ask for, of which something is remembered."""


class Reuse:
    """What one opening of a model has under way, and the cache of its results, if it has one.

    Args:
        deduplicates: Whether items that are equal to one under way wait for its result.
    """

    def __init__(self, engine: Supervisor, model: "PooledModel", *, deduplicates: bool = True) -> None:
        self.engine = engine
        self.model = model
        self.keeper: Keeper | None = None
        self._deduplicates = deduplicates
        # By what they share a batch by, and their values: what others may join.
        self._under_way: dict[BatchKey, dict[object, Work]] = {}

    @asynccontextmanager
    async def keeping(self, given: CacheChoice, digest: str) -> AsyncGenerator[None]:
        """Keep results in a cache until the block ends, and find them there; `digest` identifies the model."""
        cache, own = as_cache(given)
        keeper: Keeper | None = None
        try:
            async with owned_task_group() as group:
                keeper = self.keeper = Keeper(cache, self.engine, self.model, digest)
                group.start_soon(keeper.seek_on)
                group.start_soon(keeper.write_on)
                try:
                    yield
                finally:
                    self.keeper = None
        finally:
            with move_on_after(CACHE_SECONDS, shield=True):
                if keeper is not None:
                    await keeper.aclose()
                if own is not None:
                    await own.aclose()

    def submit(self, items: Sequence[Item]) -> None:
        """As `Supervisor.submit`, for those that nothing equal is under way for, or kept. All are of one call."""
        if not items:
            return
        batch_key = items[0].batch_key
        mode = getattr(batch_key.call, "mode", None)
        kind = KINDS.get(mode, str)
        peers = self._peers_of(batch_key) if self._deduplicates else None
        fresh: list[Item] = []
        works: list[Work] = []
        for item in items:
            if type(item.value) is not kind:
                fresh.append(item)
            elif (work := self._work_for(item, peers)) is not None:
                works.append(work)
        if self.keeper is not None and self.keeper.is_usable and mode != "count":
            self.keeper.seek(works)
        else:
            fresh += [work.item for work in works]
        self.engine.submit(fresh)

    def _work_for(self, item: Item, peers: "dict[object, Work] | None") -> "Work | None":
        """What is to be computed for an item; None: it waits for the result of an equal one."""
        value: Any = item.value
        if peers is None or size_of(value) > MOST_COMPARED:
            return Work(self, item)
        work = peers.get(value)
        if work is None:
            work = peers[value] = Work(self, item)
            work.peers = peers
            return work
        if work.item.priority <= item.priority:
            work.join(item)
            self.model.deduplicated += 1
            return None
        # It may not wait in the lane of the bulk items: whichever is computed first is the result of both.
        return work.overtaken_by(item)

    def _peers_of(self, batch_key: BatchKey) -> "dict[object, Work]":
        peers = self._under_way.get(batch_key)
        if peers is None:
            if len(self._under_way) >= MAX_CALLS:
                self._under_way = {key: some for key, some in self._under_way.items() if some}
            peers = self._under_way[batch_key] = {}
        return peers

    def withdraw(self, items: Sequence[Item]) -> None:
        """As `Supervisor.withdraw`; others that wait for the same result get it all the same."""
        gone: list[Item] = []
        for item in items:
            work = item.sink
            if isinstance(work, Work):
                gone += work.drop(item)
            else:
                gone.append(item)
        self.engine.withdraw(gone)


class Work:
    """Something that is computed once: the sink of the item that it is computed for, and of all that are equal to it.

    Attributes:
        item: What the pool computes; that of nothing when it is answered, as each would keep the other in memory.
        peers: Where it stands by its value, for others to join it; None: none may.
        twin: The same in the other lane.
        digest: What its result is kept under; None: it is not.
    """

    __slots__ = ("_others", "_reuse", "_sink", "digest", "item", "peers", "twin")

    def __init__(self, reuse: Reuse, item: Item) -> None:
        self.item: Item = item
        self.peers: dict[object, Work] | None = None
        self.twin: Work | None = None
        self.digest: bytes | None = None
        self._reuse = reuse
        # Whom the item itself is for: None when it has left.
        self._sink: Sink | None = item.sink
        self._others: dict[Item, Sink] | None = None
        item.sink = self

    @property
    def observed(self) -> object:
        """The call that it is computed for: see `asyncembed.observing`, which asks after it was answered."""
        return getattr(self._sink, "observed", None)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for it."""
        return self.item is not _NOTHING and (self._sink is not None or bool(self._others))

    def join(self, item: Item) -> None:
        """Have another item, which is equal, wait for the result."""
        if self._others is None:
            self._others = {}
        self._others[item] = item.sink
        item.sink = self

    def overtaken_by(self, item: Item) -> "Work":
        """The same for an item that is more urgent: others join that one from now on."""
        twin = Work(self._reuse, item)
        assert self.peers is not None, "it was found there"
        self.peers[item.value] = twin
        twin.peers, self.peers = self.peers, None
        twin.twin, self.twin = self, twin
        return twin

    def drop(self, item: Item) -> list[Item]:
        """Have an item wait no more; what need not be computed any more."""
        if item is self.item:
            self._sink = None
        elif self._others is not None:
            self._others.pop(item, None)
        return [] if self.is_wanted or self.item is _NOTHING else [self._end()]

    def deliver(self, index: int, result: object) -> None:
        """See `asyncembed.engine.scheduler.Sink`: the pool has computed it."""
        if self.digest is not None and self._reuse.keeper is not None:
            self._reuse.keeper.keep(self.digest, result, self.item.count)
        if self._sink is not None:
            self._sink.deliver(index, result)
        if self._others is None and self.twin is None:
            self._end()
        else:
            self._answer_others(result)

    def found(self, result: object, count: int) -> None:
        """Take a result that was not computed for it."""
        self.item.count = count
        if self._sink is not None:
            self._others = {self.item: self._sink, **(self._others or {})}
            self._sink = None
        self._answer_others(result)

    def _answer_others(self, result: object) -> None:
        others, twin, reuse = self._others or {}, self.twin, self._reuse
        count = self._end().count
        for item, sink in others.items():
            item.count = count
            if reuse.model.observers is not None:
                _note(sink, count)
            sink.deliver(item.index, result)
        if twin is not None:
            reuse.engine.withdraw([twin.item])
            twin.found(result, count)

    def fail(self, index: int, error: Exception) -> None:
        """See `asyncembed.engine.scheduler.Sink`; each has an error of its own, and the twin an answer."""
        others = self._others or {}
        self._end()
        if self._sink is not None:
            self._sink.fail(index, error)
        for item, sink in others.items():
            own = copy(error)
            if isinstance(own, OF_ONE_INPUT):
                own.index = item.index
            sink.fail(item.index, own)

    def _end(self) -> Item:
        """Have nothing to do any more; gives the item that it had."""
        item, self.item, self._others = self.item, _NOTHING, None
        if self.peers is not None:
            del self.peers[item.value]
            self.peers = None
        if (twin := self.twin) is not None:
            self.twin = twin.twin = None
        return item


_NOTHING = Item(None, 1, BatchKey(-1, None, 1, 1), Priority.BULK, NOBODY, -1)


def _note(sink: Sink, count: int) -> None:
    """Let observers know of a result that was not computed for this call."""
    observed = getattr(sink, "observed", None)
    if isinstance(observed, ObservedCall):
        observed.inputs += 1
        observed.tokens += abs(count)
