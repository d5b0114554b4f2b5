"""What one opening of a model asks of its cache: it looks into it before a worker computes, and writes afterwards.

A cache that fails, or is slow, or gives back what is damaged, costs a warning and no result.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from logging import Logger, getLogger
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from anyio import current_effective_deadline, get_cancelled_exc_class, move_on_after, sleep

from asyncembed.encoders.encoder import Call
from asyncembed.encoders.registry import row_of
from asyncembed.engine.scheduler import Item, Priority
from asyncembed.engine.supervisor import Supervisor
from asyncembed.errors import in_words
from asyncembed.files import in_disk_thread
from asyncembed.reuse.keys import digests_of, seed_of, size_of
from asyncembed.reuse.vector_cache import VectorCache
from asyncembed.wakeup import Signal

if TYPE_CHECKING:
    from asyncembed.engine.model import PooledModel
    from asyncembed.reuse.deduplication import Work
    from asyncembed.reuse.packing import Damaged

T = TypeVar("T")
ArgumentT = TypeVar("ArgumentT")

HASHED_ON_LOOP = 2**14
"""Characters or bytes: the inputs of one look into the cache; more are hashed in a thread."""

LOOKED_UP_AT_ONCE = 256
KEPT_AT_ONCE = 512

KEEP_SECONDS = 0.1
"""How long results may wait for others, to be written together."""

MAX_UNKEPT = 16384
MAX_UNKEPT_BYTES = 2**26
"""Results that may wait to be written: a cache that is slower than the model misses the rest."""

ROLES = ("query", "passage")
"""Of a text that is embedded as something; their prompts stand in the call."""

MAX_SEEDS = 64
"""Calls that differ in what they ask for, of which the hash is remembered."""

CACHE_SECONDS = 10.0
"""What takes longer, of a cache, has failed."""

RETRY_SECONDS = 60.0
"""How long a cache that has failed is left alone."""

logger: Logger = getLogger("asyncembed")

_Operation: TypeAlias = Literal["get", "put"]

Sought: TypeAlias = "tuple[Work, Item]"
"""A work to look for, and its item, which it has no more when nobody waits any longer."""


class Keeper:
    """Looks into a cache, and writes, some results at a time, while one opening of a model lasts.

    Args:
        cache: Where results are kept.
        engine: Computes what is not found.
        model: Whose results they are.
        digest: Identifies the model.
    """

    def __init__(self, cache: VectorCache, engine: Supervisor, model: "PooledModel", digest: str) -> None:
        self._cache = cache
        self._engine = engine
        self._model = model
        self._digest = digest
        self._seeds: dict[object, Any] = {}
        # By priority: those that were not looked for yet.
        self._sought: tuple[deque[Sought], ...] = tuple(deque() for _ in Priority)
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

    def seek(self, works: "Iterable[Work]") -> None:
        """Look for their results, and have those computed that there are none of."""
        for work in works:
            self._sought[work.item.priority].append((work, work.item))
            if self._engine.is_bounded and work.item.priority is Priority.INTERACTIVE:
                self._engine.reserve(self._model, 1)  # the place that it has just given back
        self._is_sought.notify()

    async def seek_on(self) -> None:
        """Look for all that is to be looked for, until cancelled."""
        while True:
            while some := self._next_sought():
                try:
                    values = await self._look_up(some)
                finally:
                    self._release(some)
                self._settle(some, values)
            await self._is_sought.wait()

    def _next_sought(self) -> list[Sought]:
        some: list[Sought] = []
        for lane in self._sought:
            while lane and len(some) < LOOKED_UP_AT_ONCE:
                some.append(lane.popleft())
        return some

    def _release(self, some: Iterable[Sought]) -> None:
        if self._engine.is_bounded:
            self._engine.release(sum(item.priority is Priority.INTERACTIVE for _, item in some))

    def _settle(self, some: Sequence[Sought], values: Sequence[tuple[object, int] | None]) -> None:
        """Answer what was found, and have the rest computed."""
        missing = []
        for (work, item), value in zip(some, values, strict=True):
            if not work.is_wanted:
                continue
            if value is None:
                self._model.cache_misses += 1
                missing.append(item)
            else:
                self._model.cache_hits += 1
                work.found(*value)
        if missing:
            self._engine.submit(missing)

    async def _look_up(self, some: Sequence[Sought]) -> list[tuple[object, int] | None]:
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
        damaged = _take_out_strange(self._model, found, dict(zip(keys, some, strict=True))) or damaged
        if damaged is not None:
            self._tell_damage(damaged)
        return [found.get(key) if value is None else value for key, value in zip(keys, values, strict=True)]

    async def _get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        values = await self._cache.get(keys)
        if len(values) != len(keys) or not all(value is None or isinstance(value, bytes) for value in values):
            raise TypeError(f"get() of {type(self._cache).__name__} gave something else than bytes, or None, per key")
        return values

    async def _digests(self, some: Sequence[Sought]) -> list[bytes]:
        values = [item.value for _, item in some]
        seeds = [self._seed(item.batch_key.call) for _, item in some]
        if sum(map(size_of, values)) > HASHED_ON_LOOP:
            return await in_disk_thread(digests_of, values, seeds)
        return digests_of(values, seeds)

    def _seed(self, call: object) -> Any:
        """A hash of all but the input."""
        seed = self._seeds.get(call)
        if seed is None:
            from asyncembed.reuse.fingerprint import call_words

            if len(self._seeds) >= MAX_SEEDS:
                self._seeds.clear()
            asked, spec = call, self._model.config.spec
            if isinstance(call, Call) and call.mode in ROLES and not row_of(spec).reads_roles_of(spec):
                asked = replace(call, mode="embed")  # what was computed of one is the others', too
            words = f"{self._digest}\n{call_words(asked)}\n"
            seed = self._seeds[call] = seed_of(words)
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

    async def aclose(self) -> None:
        """Write what is not written yet; after its tasks have ended."""
        for lane in self._sought:
            self._release(lane)
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
            *(self._model.name, operation, RETRY_SECONDS, in_words(problem)),
        )
        return None

    def _tell_damage(self, damage: "Damaged") -> None:
        if not self._is_damage_told:
            self._is_damage_told = True
            logger.warning(
                "%s: the cache of vectors is damaged (%s); what is, is computed again", self._model.name, damage
            )


def _unpacked(
    keys: Sequence[bytes], values: Sequence[bytes | None]
) -> "tuple[dict[bytes, tuple[Any, int]], Damaged | None]":
    """The results that are there by their keys, and what is wrong with one that is not what it should be."""
    from asyncembed.reuse.packing import Damaged, unpack

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
    model: "PooledModel", found: dict[bytes, tuple[Any, int]], sought: Mapping[bytes, Sought]
) -> "Damaged | None":
    """Leave what is a result of the calls that look for it; what is wrong with one that is none."""
    from asyncembed.reuse.packing import Damaged, check_form

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
    from asyncembed.reuse.packing import pack

    packed = [(key, pack(key, result, count)) for key, (result, count) in entries]
    return [(key, data) for key, data in packed if data is not None]
