"""No work twice: equal inputs are computed once, and what was computed may be kept in a cache.

Stands between intakes and the pool: what they submit and withdraw goes through here, and answers come back through
here. All of its state changes on the event loop only.

What holds between any two calls:

- Each item that was submitted is a member of one `_Work`, which is its sink, until it is answered or withdrawn.
- A work has one item in the pool at most, whichever of its members still wait: the one that it was begun with.
- `_under_way` has the works that further items may join; a work that has no members is not among them.
"""

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from hashlib import blake2b
from itertools import islice
from logging import Logger, getLogger
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar, cast

from anyio import current_effective_deadline, get_cancelled_exc_class, move_on_after, sleep
from anyio.abc import TaskGroup

from asyncembed.engine.lifetime import owned_task_group
from asyncembed.engine.scheduler import BatchKey, Item, Priority, Sink
from asyncembed.engine.supervisor import Supervisor
from asyncembed.errors import OF_ONE_INPUT, in_words
from asyncembed.files import in_disk_thread
from asyncembed.fingerprint import call_words
from asyncembed.observing import ObservedCall
from asyncembed.packing import FORMAT_VERSION, Damaged, pack, unpack
from asyncembed.vector_cache import CacheChoice, VectorCache, as_cache

if TYPE_CHECKING:
    from asyncembed.engine.model import PooledModel

T = TypeVar("T")
ArgumentT = TypeVar("ArgumentT")

KEY_BYTES = 20

MOST_COMPARED = 2**18
"""Characters or bytes: what is larger is not looked for among the others, as to hash it would hold up the loop."""

HASHED_ON_LOOP = 2**14
"""Likewise, for keys of the cache: the inputs of one look into it; more are hashed in a thread."""

LOOKED_UP_AT_ONCE = 256
KEPT_AT_ONCE = 512

KEEP_SECONDS = 0.1
"""How long results may wait for others, to be written together."""

MAX_UNKEPT = 16384
MAX_UNKEPT_BYTES = 2**26
"""Results that may wait to be written: a cache that is slower than the model misses the rest."""

MAX_SEEDS = 64
"""Calls whose part of a key is remembered."""

CACHE_SECONDS = 10.0
"""What takes longer, of a cache, has failed."""

RETRY_SECONDS = 60.0
"""How long a cache that has failed is left alone."""

_KINDS: Mapping[object, type] = {"image": bytes, "pair": tuple}
"""Types of what says all of an input, by modes, where it is not a text: a path may lead to another image later on."""

logger: Logger = getLogger("asyncembed")


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
        self._under_way: dict[tuple[BatchKey, object], _Work] = {}

    @asynccontextmanager
    async def keeping(self, given: CacheChoice, digest: str) -> AsyncGenerator[None]:
        """Keep results in a cache until the block ends, and find them there; `digest` identifies the model."""
        cache, own = as_cache(given)
        keeper: Keeper | None = None
        try:
            async with owned_task_group() as group:
                keeper = self.keeper = Keeper(cache, digest, self.model.name, group)
                try:
                    yield
                finally:
                    self.keeper = None
        finally:
            with move_on_after(CACHE_SECONDS, shield=True):
                if keeper is not None:
                    await keeper.aclose(self)
                if own is not None:
                    await own.aclose()

    def submit(self, items: Sequence[Item]) -> None:
        """As `Supervisor.submit`, for those that nothing equal is under way for, or kept. All are of one call."""
        if not items:
            return
        mode = getattr(items[0].batch_key.call, "mode", None)
        kind = _KINDS.get(mode, str)
        keeper = self.keeper if self.keeper is not None and self.keeper.is_usable and mode != "count" else None
        fresh: list[Item] = []
        sought: list[_Work] = []
        for item in items:
            if type(item.value) is not kind:
                fresh.append(item)
            elif (work := self._begun(item)) is not None:
                fresh.append(item)
                sought.append(work)
        if keeper is None:
            self.engine.submit(fresh)
            return
        keeper.seek(self, sought)
        if len(fresh) > len(sought):
            self.engine.submit([item for item in fresh if type(item.value) is not kind])

    def _begun(self, item: Item) -> "_Work | None":
        """The work that an item begins; None: it has joined another one."""
        if not self._deduplicates or _size_of(item.value) > MOST_COMPARED:
            return _Work(self, None, item)
        key = (item.batch_key, item.value)
        work = self._under_way.get(key)
        if work is not None and work.item.priority <= item.priority:
            work.join(item)
            self.model.deduplicated += 1
            return None
        begun = self._under_way[key] = _Work(self, key, item)
        if work is not None:
            # It may not wait in the lane of the bulk items: whichever is computed first is the result of both.
            begun.twin, work.twin = work, begun
        return begun

    def withdraw(self, items: Sequence[Item]) -> None:
        """As `Supervisor.withdraw`; others that wait for the same result get it all the same."""
        gone: list[Item] = []
        for item in items:
            work = item.sink
            if not isinstance(work, _Work):
                gone.append(item)
            elif work.drop(item):
                self.forget(work)
                gone.append(work.item)
        self.engine.withdraw(gone)

    def forget(self, work: "_Work") -> None:
        """Nothing joins this work any more."""
        if work.key is not None and self._under_way.get(work.key) is work:
            del self._under_way[work.key]


class _Work:
    """Something that is computed once: the sink of the item that it is computed for, and all who wait for the result.

    Attributes:
        key: What items must have that join it; None: none may.
        item: What the pool computes.
        digest: What its result is kept under; None: it is not.
    """

    __slots__ = ("_others", "_reuse", "_sink", "digest", "item", "key", "twin")

    def __init__(self, reuse: Reuse, key: tuple[BatchKey, object] | None, item: Item) -> None:
        self.key = key
        self.item: Item = item
        self.digest: bytes | None = None
        self.twin: _Work | None = None
        """The same, in the other lane."""
        self._reuse = reuse
        self._sink: Sink | None = item.sink
        self._others: dict[Item, Sink] | None = None
        item.sink = self

    @property
    def observed(self) -> object:
        """The call that it is computed for: see `asyncembed.observing`."""
        return getattr(self._sink, "observed", None)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for it."""
        return self._sink is not None or bool(self._others)

    def join(self, item: Item) -> None:
        """Have another item, which is equal, wait for the result."""
        if self._others is None:
            self._others = {}
        self._others[item] = item.sink
        item.sink = self

    def drop(self, item: Item) -> bool:
        """Have an item wait no more; whether it was the last one."""
        if item is self.item:
            self._sink = None
        elif self._others is not None:
            self._others.pop(item, None)
        if self.is_wanted:
            return False
        self._part()
        return True

    def deliver(self, index: int, result: object) -> None:
        """See `asyncembed.engine.scheduler.Sink`: the pool has computed it."""
        reuse, count = self._reuse, self.item.count
        if self.digest is not None and reuse.keeper is not None:
            reuse.keeper.keep(self.digest, result, count)
        if self._sink is not None:
            self._sink.deliver(index, result)  # and stays: observers are yet to ask whose it was
        self._answer_others(result, count)

    def found(self, result: object, count: int) -> None:
        """Take the result from the cache."""
        self._join_itself()
        self._answer_others(result, count)

    def _join_itself(self) -> None:
        if self._sink is not None:
            self._others = {self.item: self._sink, **(self._others or {})}
            self._sink = None

    def _answer_others(self, result: object, count: int) -> None:
        """Give the result to those that it was not computed for."""
        reuse = self._reuse
        reuse.forget(self)
        others, self._others = self._others, None
        for item, sink in (others or {}).items():
            item.count = count
            if reuse.model.observers is not None:
                _note(sink, count)
            sink.deliver(item.index, result)
        if (twin := self._part()) is not None:
            reuse.engine.withdraw([twin.item])
            twin.found(result, count)

    def fail(self, index: int, error: Exception) -> None:
        """See `asyncembed.engine.scheduler.Sink`; each has an error of its own."""
        self._reuse.forget(self)
        self._part()
        sink, self._sink = self._sink, None
        others, self._others = self._others, None
        if sink is not None:
            sink.fail(index, error)
        for item, other in (others or {}).items():
            own = copy(error)
            if isinstance(own, OF_ONE_INPUT):
                own.index = item.index
            other.fail(item.index, own)

    def _part(self) -> "_Work | None":
        """Be the twin of none any more; gives the one that it was."""
        twin = self.twin
        if twin is not None:
            self.twin = twin.twin = None
        return twin


def _note(sink: Sink, count: int) -> None:
    """Let observers know of a result that was not computed for this call."""
    observed = getattr(sink, "observed", None)
    if isinstance(observed, ObservedCall):
        observed.inputs += 1
        observed.tokens += abs(count)


def _size_of(value: Any) -> int:
    """Characters, or bytes."""
    return sum(map(len, value)) if type(value) is tuple else len(value)


# ---------------------------------------------------------------- the cache


class Keeper:
    """What one opening of a model asks of its cache: looks into it, and writes, some results at a time.

    Args:
        cache: Where results are kept.
        fingerprint: Of the model.
        model_name: For the log.
        group: Of the tasks that do it.
    """

    def __init__(self, cache: VectorCache, fingerprint: str, model_name: str, group: TaskGroup) -> None:
        self._cache = cache
        self._fingerprint = fingerprint
        self._model_name = model_name
        self._group = group
        self._seeds: dict[object, Any] = {}
        # By priority: those that were not looked for yet.
        self._sought: tuple[deque[_Work], ...] = tuple(deque() for _ in Priority)
        # By their keys: results that are not written yet, and what was computed for them.
        self._unkept: dict[bytes, tuple[object, int]] = {}
        self._unkept_bytes = 0
        self._is_seeking = self._is_writing = False
        self._failed_at = -inf
        self._is_damage_told = False

    @property
    def is_usable(self) -> bool:
        """Whether it has not failed lately."""
        return self._failed_at == -inf or perf_counter() - self._failed_at >= RETRY_SECONDS

    # ---------------------------------------------------------------- looking

    def seek(self, reuse: Reuse, works: Iterable[_Work]) -> None:
        """Look for their results, and have those computed that there are none of."""
        for work in works:
            self._sought[work.item.priority].append(work)
            if reuse.engine.is_bounded and work.item.priority is Priority.INTERACTIVE:
                reuse.engine.reserve(reuse.model, 1)  # the place that it has just given back
        if not self._is_seeking:
            self._is_seeking = True
            self._group.start_soon(self._seek_all, reuse)

    async def _seek_all(self, reuse: Reuse) -> None:
        try:
            while works := self._next_sought():
                try:
                    values = await self._look_up(works)
                finally:
                    self._release(reuse, works)
                self._settle(reuse, works, values)
        finally:
            self._is_seeking = False

    def _next_sought(self) -> list[_Work]:
        works: list[_Work] = []
        for lane in self._sought:
            while lane and len(works) < LOOKED_UP_AT_ONCE:
                works.append(lane.popleft())
        return works

    def _release(self, reuse: Reuse, works: Iterable[_Work]) -> None:
        if reuse.engine.is_bounded:
            reuse.engine.release(sum(work.item.priority is Priority.INTERACTIVE for work in works))

    def _settle(self, reuse: Reuse, works: Sequence[_Work], values: Sequence[tuple[object, int] | None]) -> None:
        """Answer what was found, and have the rest computed."""
        missing = []
        for work, value in zip(works, values, strict=True):
            if not work.is_wanted:
                continue
            if value is None:
                reuse.model.cache_misses += 1
                missing.append(work.item)
            else:
                reuse.model.cache_hits += 1
                work.found(*value)
        if missing:
            reuse.engine.submit(missing)

    async def _look_up(self, works: Sequence[_Work]) -> list[tuple[object, int] | None]:
        """The results that are kept, with what was computed for them."""
        await self._take_digests(works)
        keys = [cast(bytes, work.digest) for work in works]
        values = [self._unkept.get(key) for key in keys]
        asked = [key for key, value in zip(keys, values, strict=True) if value is None]
        if not asked or not self.is_usable:
            return values
        kept = await self._asked(self._get, asked)
        if kept is None:
            return values
        size_bytes = sum(len(value) for value in kept if value is not None)
        if size_bytes > HASHED_ON_LOOP:
            found, damaged = await in_disk_thread(_unpacked, asked, kept)
        else:
            found, damaged = _unpacked(asked, kept)
        if damaged is not None:
            self._tell_damage(damaged)
        return [found.get(key) if value is None else value for key, value in zip(keys, values, strict=True)]

    async def _get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        values = await self._cache.get(keys)
        if len(values) != len(keys) or not all(value is None or isinstance(value, bytes) for value in values):
            raise TypeError(f"get() of {type(self._cache).__name__} gave something else than bytes, or None, per key")
        return values

    async def _take_digests(self, works: Sequence[_Work]) -> None:
        seeds = [self._seed(work.item.batch_key.call) for work in works]
        if sum(_size_of(work.item.value) for work in works) > HASHED_ON_LOOP:
            await in_disk_thread(_take_digests, works, seeds)
        else:
            _take_digests(works, seeds)

    def _seed(self, call: object) -> Any:
        """A hash of all but the input."""
        seed = self._seeds.get(call)
        if seed is None:
            if len(self._seeds) >= MAX_SEEDS:
                self._seeds.clear()
            words = f"{FORMAT_VERSION}\n{self._fingerprint}\n{call_words(call)}\n"
            seed = self._seeds[call] = blake2b(words.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES)
        return seed

    # ---------------------------------------------------------------- writing

    def keep(self, digest: bytes, result: object, count: int) -> None:
        """Have a result written, some time soon."""
        size_bytes = getattr(result, "nbytes", 0)
        if self._unkept_bytes + size_bytes > MAX_UNKEPT_BYTES or len(self._unkept) >= MAX_UNKEPT:
            return
        self._unkept[digest] = result, count
        self._unkept_bytes += size_bytes
        if not self._is_writing:
            self._is_writing = True
            self._group.start_soon(self._write_all)

    async def _write_all(self) -> None:
        try:
            while self._unkept:
                if len(self._unkept) < KEPT_AT_ONCE:
                    await sleep(KEEP_SECONDS)
                await self._write_some()
        finally:
            self._is_writing = False

    async def _write_some(self) -> None:
        entries = list(islice(self._unkept.items(), KEPT_AT_ONCE))
        if self.is_usable:
            packed = await in_disk_thread(_packed, entries)
            if packed:
                await self._asked(self._cache.put, packed)
        for key, (result, _) in entries:
            del self._unkept[key]
            self._unkept_bytes -= getattr(result, "nbytes", 0)

    async def aclose(self, reuse: Reuse) -> None:
        """Write what is not written yet; after its tasks have ended."""
        for lane in self._sought:
            self._release(reuse, lane)
            lane.clear()
        while self._unkept:
            await self._write_some()

    # ---------------------------------------------------------------- what may go wrong

    async def _asked(self, function: Callable[[ArgumentT], Awaitable[T]], argument: ArgumentT) -> T | None:
        """What the cache answers; None if it fails, in whatever way."""
        problem: BaseException = TimeoutError(f"it takes longer than {CACHE_SECONDS:.0f} s")
        try:
            with move_on_after(CACHE_SECONDS):
                return await function(argument)
        except get_cancelled_exc_class() as error:
            # On asyncio it may be the cache's own, as of a task that it waits for.
            if current_effective_deadline() == -inf:
                raise
            problem = error
        except Exception as error:  # noqa: BLE001 (it may be anybody's class; inputs are computed without it)
            problem = error
        self._failed_at = perf_counter()
        logger.warning(
            "%s: the cache of vectors failed, and is left alone for %.0f s: %s",
            self._model_name,
            RETRY_SECONDS,
            in_words(problem),
        )
        return None

    def _tell_damage(self, damage: Damaged) -> None:
        if not self._is_damage_told:
            self._is_damage_told = True
            logger.warning(
                "%s: the cache of vectors is damaged (%s); what is, is computed again", self._model_name, damage
            )


def _take_digests(works: Sequence[_Work], seeds: Sequence[Any]) -> None:
    for work, seed in zip(works, seeds, strict=True):
        digest = seed.copy()
        value: Any = work.item.value
        parts = value if type(value) is tuple else (value,)
        for part in parts[:-1]:
            # Its length as well: another pair may be the same text, cut elsewhere.
            digest.update(len(part).to_bytes(8, "little"))
        for part in parts:
            digest.update(part if type(part) is bytes else part.encode("utf-8", "surrogatepass"))
        work.digest = digest.digest()


def _unpacked(
    keys: Sequence[bytes], values: Sequence[bytes | None]
) -> tuple[dict[bytes, tuple[Any, int]], Damaged | None]:
    """The results that are there by their keys, and what is wrong with one that is not what it should be."""
    found: dict[bytes, tuple[Any, int]] = {}
    damaged: Damaged | None = None
    for key, value in zip(keys, values, strict=False):
        if value is not None:
            try:
                found[key] = unpack(key, value)
            except Damaged as error:
                damaged = error
    return found, damaged


def _packed(entries: Sequence[tuple[bytes, tuple[object, int]]]) -> list[tuple[bytes, bytes]]:
    packed = [(key, pack(key, result, count)) for key, (result, count) in entries]
    return [(key, data) for key, data in packed if data is not None]
