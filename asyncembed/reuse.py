"""No work twice: equal inputs are computed once, and what was computed may be kept in a cache.

Stands between intakes and the pool: what they submit and withdraw goes through here, and answers come back through
here. All of its state changes on the event loop only.

What holds between any two calls:

- An item that was submitted has a `_Work` as its sink, which has it in turn until it is answered or withdrawn.
- Of a work the pool has one item at most, whichever of them still wait: the one that it was begun with.
- Further items may join any work that stands among its peers, and it is wanted.
"""

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from logging import Logger, getLogger
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from anyio import current_effective_deadline, get_cancelled_exc_class, move_on_after, sleep

from asyncembed.encoders.encoder import Call, TokenWindow
from asyncembed.encoders.registry import row_of
from asyncembed.engine.dispatch import NOBODY
from asyncembed.engine.lifetime import owned_task_group
from asyncembed.engine.scheduler import BatchKey, Item, Priority, Sink
from asyncembed.engine.supervisor import Supervisor
from asyncembed.errors import OF_ONE_INPUT, in_words
from asyncembed.files import in_disk_thread
from asyncembed.observing import ObservedCall
from asyncembed.vector_cache import CacheChoice, VectorCache, as_cache
from asyncembed.wakeup import Signal

if TYPE_CHECKING:
    from asyncembed.engine.model import PooledModel
    from asyncembed.packing import Damaged

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

MAX_CALLS = 64
"""Calls that differ in what they ask for, of which something is remembered."""

CACHE_SECONDS = 10.0
"""What takes longer, of a cache, has failed."""

RETRY_SECONDS = 60.0
"""How long a cache that has failed is left alone."""

_KINDS: Mapping[object, type] = {"image": bytes, "pair": tuple, "chunks": TokenWindow}
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
        # By what they share a batch by, and their values: what others may join.
        self._under_way: dict[BatchKey, dict[object, _Work]] = {}

    @asynccontextmanager
    async def keeping(self, given: CacheChoice, digest: str) -> AsyncGenerator[None]:
        """Keep results in a cache until the block ends, and find them there; `digest` identifies the model."""
        cache, own = as_cache(given)
        keeper: Keeper | None = None
        try:
            async with owned_task_group() as group:
                reads_roles = row_of(self.model.config.spec).reads_roles_of(self.model.config.spec)
                keeper = self.keeper = Keeper(cache, digest, self.model.name, reads_roles=reads_roles)
                group.start_soon(keeper.seek_on, self)
                group.start_soon(keeper.write_on)
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
        batch_key = items[0].batch_key
        mode = getattr(batch_key.call, "mode", None)
        kind = _KINDS.get(mode, str)
        peers = self._peers_of(batch_key) if self._deduplicates else None
        fresh: list[Item] = []
        works: list[_Work] = []
        for item in items:
            value: Any = item.value
            if type(value) is not kind:
                fresh.append(item)
            elif peers is None or _size_of(value) > MOST_COMPARED:
                works.append(_Work(self, item))
            elif (work := peers.get(value)) is None:
                work = peers[value] = _Work(self, item)
                work.peers = peers
                works.append(work)
            elif work.item.priority <= item.priority:
                work.join(item)
                self.model.deduplicated += 1
            else:
                # It may not wait in the lane of the bulk items: whichever is computed first is the result of both.
                works.append(work.overtaken_by(item))
        if self.keeper is not None and self.keeper.is_usable and mode != "count":
            self.keeper.seek(self, works)
        else:
            fresh += [work.item for work in works]
        self.engine.submit(fresh)

    def _peers_of(self, batch_key: BatchKey) -> "dict[object, _Work]":
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
            if isinstance(work, _Work):
                gone += work.drop(item)
            else:
                gone.append(item)
        self.engine.withdraw(gone)


class _Work:
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
        self.peers: dict[object, _Work] | None = None
        self.twin: _Work | None = None
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

    def overtaken_by(self, item: Item) -> "_Work":
        """The same for an item that is more urgent: others join that one from now on."""
        twin = _Work(self._reuse, item)
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


def _size_of(value: Any) -> int:
    """Characters, or bytes."""
    return len(value) if type(value) is str else sum(map(len, _parts_of(value)))


def _parts_of(value: Any) -> Sequence[str | bytes]:
    """What an input is made of; of the same kind of input, equal ones have equal parts."""
    if type(value) is tuple:
        return value
    if type(value) is TokenWindow:
        return value.spans_bytes, value.ids_bytes, *value.texts
    return (value,)


# ---------------------------------------------------------------- the cache


_Operation: TypeAlias = Literal["get", "put"]

_Sought: TypeAlias = tuple[_Work, Item]
"""A work to look for, and its item, which it has no more when nobody waits any longer."""


class Keeper:
    """What one opening of a model asks of its cache: looks into it, and writes, some results at a time.

    Args:
        cache: Where results are kept.
        fingerprint: Of the model.
        model_name: For the log.
        reads_roles: Whether a text's result depends on what it is, its prompt aside.
    """

    def __init__(self, cache: VectorCache, fingerprint: str, model_name: str, *, reads_roles: bool) -> None:
        self._cache = cache
        self._reads_roles = reads_roles
        self._fingerprint = fingerprint
        self._model_name = model_name
        self._seeds: dict[object, Any] = {}
        # By priority: those that were not looked for yet.
        self._sought: tuple[deque[_Sought], ...] = tuple(deque() for _ in Priority)
        # By their keys: results that are not written yet, and what was computed for them.
        self._unkept: dict[bytes, tuple[object, int]] = {}
        self._unkept_bytes = 0
        # There is something to look for, or to write: whoever says so may be a call of the loop, which starts no tasks.
        self._is_sought, self._is_unkept = Signal(), Signal()
        # When it did not look, or keep, what it was to.
        self._failed_at = {"get": -inf, "put": -inf}
        self._is_damage_told = False

    @property
    def is_usable(self) -> bool:
        """Whether to look into it has not failed lately."""
        return self._can("get")

    def _can(self, operation: _Operation) -> bool:
        failed_at = self._failed_at[operation]
        return failed_at == -inf or perf_counter() - failed_at >= RETRY_SECONDS

    # ---------------------------------------------------------------- looking

    def seek(self, reuse: Reuse, works: Iterable[_Work]) -> None:
        """Look for their results, and have those computed that there are none of."""
        for work in works:
            self._sought[work.item.priority].append((work, work.item))
            if reuse.engine.is_bounded and work.item.priority is Priority.INTERACTIVE:
                reuse.engine.reserve(reuse.model, 1)  # the place that it has just given back
        self._is_sought.notify()

    async def seek_on(self, reuse: Reuse) -> None:
        """Look for all that is to be looked for, until cancelled."""
        while True:
            while some := self._next_sought():
                try:
                    values = await self._look_up(reuse.model, some)
                finally:
                    self._release(reuse, some)
                self._settle(reuse, some, values)
            await self._is_sought.wait()

    def _next_sought(self) -> list[_Sought]:
        some: list[_Sought] = []
        for lane in self._sought:
            while lane and len(some) < LOOKED_UP_AT_ONCE:
                some.append(lane.popleft())
        return some

    def _release(self, reuse: Reuse, some: Iterable[_Sought]) -> None:
        if reuse.engine.is_bounded:
            reuse.engine.release(sum(item.priority is Priority.INTERACTIVE for _, item in some))

    def _settle(self, reuse: Reuse, some: Sequence[_Sought], values: Sequence[tuple[object, int] | None]) -> None:
        """Answer what was found, and have the rest computed."""
        missing = []
        for (work, item), value in zip(some, values, strict=True):
            if not work.is_wanted:
                continue
            if value is None:
                reuse.model.cache_misses += 1
                missing.append(item)
            else:
                reuse.model.cache_hits += 1
                work.found(*value)
        if missing:
            reuse.engine.submit(missing)

    async def _look_up(self, model: "PooledModel", some: Sequence[_Sought]) -> list[tuple[object, int] | None]:
        """The results that are kept, with what was computed for them."""
        keys = await self._digests(some)
        for (work, _), key in zip(some, keys, strict=True):
            work.digest = key
        values = [self._unkept.get(key) for key in keys]
        asked = [key for key, value in zip(keys, values, strict=True) if value is None]
        if not asked or not self.is_usable:
            return values
        kept = await self._asked("get", self._get, asked)
        if kept is None:
            return values
        size_bytes = sum(len(value) for value in kept if value is not None)
        if size_bytes > HASHED_ON_LOOP:
            found, damaged = await in_disk_thread(_unpacked, asked, kept)
        else:
            found, damaged = _unpacked(asked, kept)
        damaged = _take_out_strange(model, found, dict(zip(keys, some, strict=True))) or damaged
        if damaged is not None:
            self._tell_damage(damaged)
        return [found.get(key) if value is None else value for key, value in zip(keys, values, strict=True)]

    async def _get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        values = await self._cache.get(keys)
        if len(values) != len(keys) or not all(value is None or isinstance(value, bytes) for value in values):
            raise TypeError(f"get() of {type(self._cache).__name__} gave something else than bytes, or None, per key")
        return values

    async def _digests(self, some: Sequence[_Sought]) -> list[bytes]:
        values = [item.value for _, item in some]
        seeds = [self._seed(item.batch_key.call) for _, item in some]
        if sum(map(_size_of, values)) > HASHED_ON_LOOP:
            return await in_disk_thread(_digests, values, seeds)
        return _digests(values, seeds)

    def _seed(self, call: object) -> Any:
        """A hash of all but the input."""
        seed = self._seeds.get(call)
        if seed is None:
            from asyncembed.fingerprint import call_words

            if len(self._seeds) >= MAX_CALLS:
                self._seeds.clear()
            asked = call
            if not self._reads_roles and isinstance(call, Call) and call.mode == "query":
                asked = replace(call, mode="embed")  # what was computed of one is kept for the other
            words = f"{self._fingerprint}\n{call_words(asked)}\n"
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
        self._is_unkept.notify()

    async def write_on(self) -> None:
        """Write all that is to be kept, until cancelled."""
        while True:
            while self._unkept:
                if len(self._unkept) < KEPT_AT_ONCE:
                    await sleep(KEEP_SECONDS)
                await self._write_some()
            await self._is_unkept.wait()

    async def _write_some(self) -> None:
        entries = list(islice(self._unkept.items(), KEPT_AT_ONCE))
        if self._can("put"):
            packed = await in_disk_thread(_packed, entries)
            if packed:
                await self._asked("put", self._cache.put, packed)
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

    async def _asked(
        self, operation: _Operation, function: Callable[[ArgumentT], Awaitable[T]], argument: ArgumentT
    ) -> T | None:
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
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 (it may be anybody's class; inputs are computed without it)
            problem = error
        self._failed_at[operation] = perf_counter()
        logger.warning(
            "%s: the cache of vectors failed (%s), which is not tried again for %.0f s: %s",
            *(self._model_name, operation, RETRY_SECONDS, in_words(problem)),
        )
        return None

    def _tell_damage(self, damage: "Damaged") -> None:
        if not self._is_damage_told:
            self._is_damage_told = True
            logger.warning(
                "%s: the cache of vectors is damaged (%s); what is, is computed again", self._model_name, damage
            )


def _digests(values: Sequence[Any], seeds: Sequence[Any]) -> list[bytes]:
    return [_digest(value, seed.copy()) for value, seed in zip(values, seeds, strict=True)]


def _digest(value: Any, digest: Any) -> bytes:
    parts = _parts_of(value)
    for part in parts[:-1]:
        # Its length as well: another pair may be the same text, cut elsewhere.
        digest.update(len(part).to_bytes(8, "little"))
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
    key: bytes = digest.digest()
    return key


def _unpacked(
    keys: Sequence[bytes], values: Sequence[bytes | None]
) -> "tuple[dict[bytes, tuple[Any, int]], Damaged | None]":
    """The results that are there by their keys, and what is wrong with one that is not what it should be."""
    from asyncembed.packing import Damaged, unpack

    found: dict[bytes, tuple[Any, int]] = {}
    damaged: Damaged | None = None
    for key, value in zip(keys, values, strict=False):
        if value is not None:
            try:
                found[key] = unpack(key, value)
            except Damaged as error:
                damaged = error
    return found, damaged


def _take_out_strange(
    model: "PooledModel", found: dict[bytes, tuple[Any, int]], sought: Mapping[bytes, _Sought]
) -> "Damaged | None":
    """Leave what is a result of the calls that look for it; what is wrong with one that is none."""
    from asyncembed.packing import Damaged, check_form

    strange: Damaged | None = None
    for key, (result, _) in list(found.items()):
        call = sought[key][1].batch_key.call
        if isinstance(call, Call):
            try:
                check_form(result, model.config.spec.family, call, model.info.dim)
            except Damaged as error:
                strange = error
                del found[key]
    return strange


def _packed(entries: Sequence[tuple[bytes, tuple[object, int]]]) -> list[tuple[bytes, bytes]]:
    from asyncembed.packing import pack

    packed = [(key, pack(key, result, count)) for key, (result, count) in entries]
    return [(key, data) for key, data in packed if data is not None]
