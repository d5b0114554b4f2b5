"""The engine behind a pool: gives each worker with room a batch, hands answers on, and replaces workers that die.

Every worker has one task (`_serve`), which starts it, feeds it and ends it. All bookkeeping happens on the event loop
between two awaits; a worker's answers arrive there through `Loop.post`. Nothing here knows what an encoder computes.
"""

import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import chain
from logging import Logger, getLogger
from math import ceil, inf
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio import CancelScope, CapacityLimiter, Event, to_thread

from asyncembed.encoders.encoder import Encoded
from asyncembed.engine import child
from asyncembed.engine.lifetime import owned_task_group, uninterrupted
from asyncembed.engine.model import PooledModel, Speed, Stats
from asyncembed.engine.scheduler import Batch, Item, Priority, Scheduler
from asyncembed.engine.worker import ProcessWorker, ThreadWorker, Worker, WorkerGone
from asyncembed.errors import (
    OF_ONE_INPUT,
    AsyncEmbedError,
    EncodeError,
    InputError,
    ModelLoadError,
    StateError,
    WorkerCrashed,
    WorkerError,
    WorkersImpossible,
)
from asyncembed.wakeup import Loop, completion

if TYPE_CHECKING:
    from concurrent.futures import Future

    from asyncembed.encoders.encoder import EncoderConfig

LOAD_TIMEOUT_SECONDS = 900.0

START_TIMEOUT_SECONDS = 60.0
"""A worker that does not say hello by then is given up: the interpreter alone takes 0.1 s."""

DEATH_GRACE_SECONDS = 1.0
"""How long the last answers of a worker that died, and the word that there are no more, may take to arrive."""

ROUND_TRIP_SECONDS = 0.0006
"""From one answer to the start of the next batch, when the worker waits for it: two queue hops and a loop wake-up."""

ROUND_TRIP_SHARE = 0.02
"""While the round trip is a smaller part of a batch than this, no second batch is kept in flight."""

MAX_DEPTH = 4

WORTH_SHARING_SECONDS = 0.005
"""Work that takes no longer is not shared out among idle workers: to send a batch costs tenths of a millisecond."""

KILLS_BEFORE_SPLITTING = 2

MAX_FAILED_STARTS = 5
"""After so many in a row nobody waits for a worker any more; it is tried again all the same, and may come back."""

MAX_LOAD_CRASHES = 3
CRASHES_BEFORE_BACKOFF = 4
MAX_BACKOFF_SECONDS = 5.0

T = TypeVar("T")

logger: Logger = getLogger("asyncembed")


@dataclass(slots=True, eq=False)
class _Running:
    """A call that a worker has and has not answered; `batch` is None for the loading of `model`."""

    model: PooledModel
    batch: Batch | None
    future: "Future[Encoded | child.Failed] | Future[child.Loaded | child.Failed]"
    started: float
    speed: Speed = field(default_factory=Speed)
    size: int = 0


@dataclass(slots=True, eq=False)
class _Slot:
    """The place of one worker: what it has in flight and what it has loaded. Only its own task changes it."""

    index: int
    is_reserved: bool = False
    """Whether it is kept free for interactive work."""
    worker: Worker | None = None
    in_flight: deque[_Running] = field(default_factory=deque)
    loaded: set[int] = field(default_factory=set)
    held: Batch | None = None
    """A batch that waits until its model is loaded here."""
    changed: Event = field(default_factory=Event)
    death: str | None = None
    """Why the worker is no longer usable."""
    crashes_in_a_row: int = 0
    fatal_model: int | None = None
    """The model whose loading killed the last worker."""
    is_given_up: bool = False
    """Whether nobody waits for it any more, as it could not be started several times."""

    @property
    def is_idle(self) -> bool:
        return self.worker is not None and not self.in_flight and self.death is None

    @property
    def has_room(self) -> bool:
        """Whether one more batch may be sent: as many are in flight as hide the round trip, and no more."""
        if not self.in_flight:
            return True
        if len(self.in_flight) >= MAX_DEPTH or not all(running.speed.is_known for running in self.in_flight):
            return False
        typical_seconds = sum(running.speed.batch_seconds for running in self.in_flight) / len(self.in_flight)
        if len(self.in_flight) > ceil(ROUND_TRIP_SECONDS / typical_seconds):
            return False
        # By size, too: what was computed lately may have been much smaller than what is in flight.
        in_flight_seconds = sum(running.speed.seconds(running.size) for running in self.in_flight)
        return in_flight_seconds < ROUND_TRIP_SECONDS / ROUND_TRIP_SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    """How many workers of which kind a pool has: what became of its options.

    Attributes:
        workers: Those for all work; with `in_thread` the one thread.
        reserved: Those kept free for interactive work, besides.
        threads: That each worker computes with.
        in_thread: Compute in threads of this process.
        threads_alone: That a worker computes with when it has to do for all, in this process; None: it must not.
        device_ids: Devices, dealt out in turn.
        batch_timeout: Seconds after which a worker that has not answered is killed and replaced; None waits for ever.
    """

    workers: int
    reserved: int
    threads: int
    in_thread: bool
    threads_alone: int | None
    device_ids: Sequence[int]
    batch_timeout: float | None


class Supervisor:
    """The workers of one opening of a pool, and what is to be computed: what embedders and streams call.

    It lives once, inside `running`.
    """

    def __init__(self, plan: WorkerPlan) -> None:
        self._plan = plan
        self._in_thread = plan.in_thread
        self._threads = plan.threads
        self._batch_timeout = plan.batch_timeout
        self._slots = [_Slot(index, is_reserved=index >= plan.workers) for index in range(plan.workers + plan.reserved)]
        self._scheduler = Scheduler()
        # What comes before all that waits, and whether interactive work went before the first bulk batch of it.
        self._retries: list[Batch] = []
        self._has_yielded = False
        self._models: dict[int, PooledModel] = {}
        self._next_key = 0
        self._restarts = 0
        self._failure: AsyncEmbedError | None = None
        self._limiter: CapacityLimiter | None = None
        self._loop: Loop | None = None
        self._is_open = False

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """From the start of the workers to their end."""
        self._loop = Loop()
        self._limiter = CapacityLimiter(inf)
        self._is_open = True
        try:
            async with owned_task_group() as group:
                for slot in self._slots:
                    group.start_soon(self._serve, slot)
                yield
        finally:
            self._is_open = False
            self._fail_all(StateError("the worker pool was closed"))
            for model in self._models.values():
                model.notify()
            self._models.clear()

    # ---------------------------------------------------------------- what embedders call

    @property
    def size(self) -> int:
        """How many workers it has."""
        return len(self._slots)

    @uninterrupted
    def add_model(self, config: "EncoderConfig") -> PooledModel:
        """Make a model known; workers load it when `warm` asks, or with its first batch."""
        self.check_open()
        model = PooledModel(self._next_key, config)
        self._next_key += 1
        self._models[model.key] = model
        return model

    @uninterrupted
    def remove_model(self, model: PooledModel) -> None:
        """Forget a model; its waiting items get a `StateError`, and the workers drop it."""
        if self._models.pop(model.key, None) is None:
            return
        self._fail_model(model, StateError(f"{model.config.spec.name} was closed"))
        for slot in self._slots:
            if slot.worker is not None and slot.death is None and model.key in slot.loaded:
                slot.loaded.discard(model.key)
                slot.worker.unload(model.key)

    @uninterrupted
    async def warm(self, model: PooledModel) -> None:
        """Wait until every worker has loaded `model`.

        Raises:
            ModelLoadError: A worker cannot load it; the message is the worker's own.
        """
        self.check_open()
        model.is_wanted = model.is_warming = True
        model.load_error = None
        model.load_crashes = 0
        for slot in self._slots:
            slot.changed.set()
        try:
            while True:
                if model.key not in self._models:
                    raise StateError(f"the worker pool was closed while {model.config.spec.name} was being loaded")
                if self._failure is not None:
                    raise self._failure
                if model.load_error is not None:
                    raise model.load_error
                alive = [slot for slot in self._slots if not slot.is_given_up]
                if all(model.key in slot.loaded for slot in alive):
                    return
                await model.changed.wait()
        finally:
            model.is_warming = False

    @uninterrupted
    def submit(self, items: Iterable[Item]) -> None:
        """Let items wait for a worker. Their sinks hear of each of them exactly once, unless withdrawn.

        It never raises: an item that cannot be computed, as the pool or its model was closed, hears so by its sink.
        """
        if self._failure is not None:
            for item in items:
                _fail_item(item, self._failure)
            return
        known = []
        for item in items:
            if item.batch_key.model in self._models:
                known.append(item)
            else:
                _fail_item(item, StateError("the worker pool, or the embedder, was closed"))
        self._scheduler.add(known)
        self._wake_idle()

    @uninterrupted
    def withdraw(self, items: Sequence[Item]) -> None:
        """Forget `items`: those that wait are not computed, and what a worker computes already is dropped."""
        for item in items:
            item.sink = _NOBODY
        self._scheduler.withdraw(items)

    def stats(self, model: PooledModel | None = None) -> Stats:
        """A snapshot of the whole pool, or of one model; the queue and the workers are always the pool's."""
        models = [model] if model is not None else list(self._models.values())
        seconds = [value for known in models for value in known.batch_seconds]
        queued = {priority: self._scheduler.waiting(priority) for priority in Priority}
        for batch in self._batches_put_back():
            for item in batch.items:
                queued[item.priority] += 1
        return Stats(
            queued_interactive=queued[Priority.INTERACTIVE],
            queued_bulk=queued[Priority.BULK],
            in_flight=sum(len(slot.in_flight) for slot in self._slots),
            batches=sum(known.batches for known in models),
            items=sum(known.items for known in models),
            failed=sum(known.failed for known in models),
            tokens=sum(known.tokens for known in models),
            padded_tokens=sum(known.padded_tokens for known in models),
            batch_seconds=median(seconds) if seconds else 0.0,
            workers=len(self._slots),
            workers_ready=sum(slot.worker is not None for slot in self._slots),
            workers_restarted=self._restarts,
        )

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run now; empty with `workers=0`."""
        return [slot.worker.pid for slot in self._slots if slot.worker is not None and slot.worker.pid is not None]

    def check_open(self) -> None:
        """Raise `StateError` unless it is open, on the caller's event loop."""
        if not self._is_open:
            state = "was closed and is not open" if self._loop is not None else "is not open"
            raise StateError(f"the worker pool {state}: use it inside `async with`")
        self.loop.check()

    @property
    def loop(self) -> Loop:
        """The event loop on which it was opened."""
        assert self._loop is not None, "asked for by those who have seen it open"
        return self._loop

    @property
    def limiter(self) -> CapacityLimiter:
        """For threads that wait. Not anyio's default: that belongs to the program, which may have filled it."""
        assert self._limiter is not None, "asked for by those who have seen it open"
        return self._limiter

    # ---------------------------------------------------------------- the life of one worker

    @uninterrupted
    async def _serve(self, slot: _Slot) -> None:
        failed_starts = 0
        while True:
            await anyio.sleep(_backoff_seconds(max(failed_starts, slot.crashes_in_a_row - CRASHES_BEFORE_BACKOFF)))
            worker: Worker = ThreadWorker() if self._in_thread else ProcessWorker(self._threads)
            try:
                try:
                    await self._start(worker)
                except WorkerError as error:
                    failed_starts += 1
                    if self._may_try_again(slot, error, failed_starts):
                        continue
                    return
                if slot.is_given_up:
                    self._take_back(slot)
                failed_starts = 0
                await self._drive(slot, worker)
            finally:
                # Whatever it still has, nobody waits for any more; an idle worker ends by itself.
                if slot.worker is None or slot.in_flight:
                    worker.kill()
                slot.worker = None
                with CancelScope(shield=True):
                    await self._stop(worker)
            self._after_death(slot, worker)

    async def _start(self, worker: Worker) -> None:
        """Start `worker` and wait for its first word."""
        try:
            greeting = await self._in_own_thread(worker.start)
        except (RuntimeError, OSError, MemoryError) as error:
            raise WorkerError(f"no thread can be started that would start a worker ({error})") from error
        try:
            with anyio.fail_after(START_TIMEOUT_SECONDS):
                await completion(greeting)
        except TimeoutError:
            raise WorkerError(f"a worker did not start within {START_TIMEOUT_SECONDS:.0f} s") from None
        except BrokenProcessPool as error:
            raise WorkerError("a worker process ended while it started; see its stderr") from error

    async def _stop(self, worker: Worker) -> None:
        """End `worker`; while there is no thread that could wait for its end, only kill it."""
        for attempt in range(MAX_FAILED_STARTS):
            try:
                await self._in_own_thread(worker.stop)
                return
            except (RuntimeError, OSError, MemoryError):
                worker.kill()
                await anyio.sleep(_backoff_seconds(attempt + 1))

    async def _drive(self, slot: _Slot, worker: Worker) -> None:
        """Feed `worker` and take its answers until it dies."""
        slot.worker, slot.death = worker, None
        slot.loaded.clear()
        async with owned_task_group() as watch:
            watch.start_soon(self._watch_death, slot, worker)
            while True:
                self._dispatch(slot, worker)
                if slot.death is not None:
                    break
                with anyio.move_on_after(self._seconds_left(slot)):
                    await slot.changed.wait()
                slot.changed = Event()
                self._take_answers(slot)
                if slot.death is not None:
                    break
                if self._seconds_left(slot) <= 0:
                    slot.death = "did not answer in time"
                    worker.kill()
                    break

    @uninterrupted
    async def _watch_death(self, slot: _Slot, worker: Worker) -> None:
        # A worker with work in flight reports its death through its futures, after the answers that it sent before; an
        # idle one only here.
        if worker.death_fd is not None and os.name == "posix":
            await anyio.wait_readable(worker.death_fd)
            if slot.in_flight:
                await anyio.sleep(DEATH_GRACE_SECONDS)
            slot.death = slot.death or "ended unexpectedly"
            slot.changed.set()

    def _dispatch(self, slot: _Slot, worker: Worker) -> None:
        """Give the worker what it has room for: models to load first, then batches."""
        try:
            while slot.death is None:
                if slot.in_flight and slot.in_flight[-1].batch is None:
                    return  # it loads a model; what comes next depends on how that ends
                missing = self._missing_model(slot)
                if missing is not None:
                    self._send_load(slot, worker, missing)
                    return
                batch = self._next_batch(slot)
                if batch is None:
                    return
                model = self._models[batch.batch_key.model]
                slot.held = batch
                if model.key not in slot.loaded:
                    model.load_error = None
                    self._send_load(slot, worker, model)
                    return
                self._send_batch(slot, worker, model)
        except WorkerGone:
            slot.death = slot.death or "ended unexpectedly"

    def _missing_model(self, slot: _Slot) -> PooledModel | None:
        """A model that is to be loaded ahead of its first batch, and is not loaded here.

        One that killed the worker while it was loaded comes last: the others need not suffer.
        """
        missing = [
            model
            for model in self._models.values()
            if model.is_wanted and model.key not in slot.loaded and model.load_error is None
        ]
        return min(missing, key=lambda model: model.key == slot.fatal_model, default=None)

    def _next_batch(self, slot: _Slot) -> Batch | None:
        if slot.held is not None:
            batch, slot.held = slot.held, None
            if _drop_withdrawn(batch):
                return batch
        has_suspect = any(running.batch is not None and running.batch.kills for running in slot.in_flight)
        if has_suspect or not slot.has_room:
            return None
        retry = self._first_retry(slot)
        if retry is not None and not self._must_yield(retry):
            # A batch that a worker died of runs with nothing else in flight, so that the next death is its own.
            if retry.kills and slot.in_flight:
                return None
            self._has_yielded = False
            self._retries.remove(retry)
            return retry
        self._has_yielded = retry is not None
        priority = self._scheduler.turn() if retry is None else Priority.INTERACTIVE
        if priority is None:
            return None
        if not self._may_take(slot, priority):
            priority = Priority.INTERACTIVE
        idle = sum(other.is_idle and self._may_take(other, priority) for other in self._slots)
        if slot.in_flight and idle:
            return None  # those begin at once, while here it would only wait
        seconds = self._seconds_waiting(priority)
        if seconds:
            idle = min(idle, 1 + int(seconds / WORTH_SHARING_SECONDS))
        return self._scheduler.next_batch(idle, priority=priority)

    def _seconds_waiting(self, priority: Priority) -> float:
        """About how long all that waits would take one worker, by the speed of what comes next; 0 if not known yet."""
        leader = self._scheduler.oldest(priority)
        if leader is None:
            return 0.0
        return self._models[leader.batch_key.model].speed(leader.batch_key).seconds(self._scheduler.tokens)

    def _first_retry(self, slot: _Slot) -> Batch | None:
        self._retries = [batch for batch in self._retries if _drop_withdrawn(batch)]
        return next((batch for batch in self._retries if self._may_take(slot, batch.priority)), None)

    def _must_yield(self, retry: Batch) -> bool:
        """Whether interactive work goes before `retry`: in turn, as it may take many deaths to find a bad input."""
        interactive_waits = self._scheduler.waiting(Priority.INTERACTIVE) > 0
        return retry.priority is Priority.BULK and interactive_waits and not self._has_yielded

    def _may_take(self, slot: _Slot, priority: Priority) -> bool:
        """Whether the worker is there for work of this priority: a reserved one takes bulk work if no other is left."""
        if priority is Priority.INTERACTIVE or not slot.is_reserved:
            return True
        return all(other.is_reserved or other.is_given_up for other in self._slots)

    def _send_load(self, slot: _Slot, worker: Worker, model: PooledModel) -> None:
        devices = self._plan.device_ids
        device_id = devices[slot.index % len(devices)] if devices else None
        session = replace(model.config.session, threads=self._threads)
        if device_id is not None:
            session = replace(session, device_id=device_id)
        future = worker.load(model.key, replace(model.config, session=session))
        self._track(slot, _Running(model, None, future, anyio.current_time()))

    def _send_batch(self, slot: _Slot, worker: Worker, model: PooledModel) -> None:
        assert slot.held is not None
        batch = slot.held
        future = worker.run(model.key, [item.value for item in batch.items], batch.batch_key.call)
        slot.held = None
        speed = model.speed(batch.batch_key)
        self._track(slot, _Running(model, batch, future, anyio.current_time(), speed, batch.size))

    def _track(self, slot: _Slot, running: _Running) -> None:
        slot.in_flight.append(running)
        loop = self.loop
        running.future.add_done_callback(lambda _: loop.post(_wake, slot))

    def _take_answers(self, slot: _Slot) -> None:
        while slot.in_flight and slot.in_flight[0].future.done():
            running = slot.in_flight[0]
            error = running.future.exception()
            if isinstance(error, BrokenProcessPool):
                slot.death = slot.death or "ended unexpectedly"
                return
            slot.in_flight.popleft()
            now = anyio.current_time()
            answer: object = running.future.result() if error is None else _as_failure(error)
            if slot.in_flight:
                slot.in_flight[0].started = now
            if running.batch is None:
                self._on_loaded(slot, running.model, answer)
            else:
                running.speed.measure(now - running.started, running.size)
                self._on_computed(slot, running.model, running.batch, answer, now - running.started)

    def _on_loaded(self, slot: _Slot, model: PooledModel, answer: object) -> None:
        if isinstance(answer, child.Loaded):
            if model.key not in self._models:
                assert slot.worker is not None
                slot.worker.unload(model.key)  # it was removed while it was being loaded
                return
            slot.loaded.add(model.key)
            warning = answer.info.warning
            if warning is not None and warning != model.info.warning:
                logger.warning("%s: %s", model.config.spec.name, warning)
            model.info = answer.info
            model.load_crashes = 0
            model.notify()
            return
        assert isinstance(answer, child.Failed)
        if not model.is_warming and self._is_loaded_somewhere(model):
            # Others compute with it, so it is this worker that something is wrong with: no input has to pay for that.
            assert slot.worker is not None
            slot.death = f"cannot load a model that others have loaded ({answer.error})"
            slot.worker.kill()
            return
        self._fail_load(model, answer.error)

    def _on_computed(self, slot: _Slot, model: PooledModel, batch: Batch, answer: object, seconds: float) -> None:
        slot.crashes_in_a_row = 0
        if isinstance(answer, Encoded):
            model.record(batch, answer, seconds)
            for position, item in enumerate(batch.items):
                if answer.failures and position in answer.failures:
                    _fail_item(item, answer.failures[position])
                else:
                    item.sink.deliver(item.index, answer.results[position])
            return
        assert isinstance(answer, child.Failed)
        if isinstance(answer.error, (EncodeError, InputError)) and len(batch.items) > 1:
            # One of the inputs may be to blame: the halves tell.
            self._retry(batch.halves(kills=batch.kills), answer.error)
            return
        model.failed += len(batch.items)
        for item in batch.items:
            _fail_item(item, answer.error)

    def _is_loaded_somewhere(self, model: PooledModel) -> bool:
        return any(model.key in slot.loaded for slot in self._slots)

    def _seconds_left(self, slot: _Slot) -> float:
        """Until the call at the head is overdue."""
        if not slot.in_flight:
            return inf
        head = slot.in_flight[0]
        limit = LOAD_TIMEOUT_SECONDS if head.batch is None else self._batch_timeout
        return inf if limit is None or self._in_thread else head.started + limit - anyio.current_time()

    # ---------------------------------------------------------------- deaths

    def _after_death(self, slot: _Slot, worker: Worker) -> None:
        """Put back what the dead worker had; the batch it was computing is the one under suspicion."""
        reason = slot.death or "ended unexpectedly"
        logger.warning("worker %d (pid %s) %s and is replaced", slot.index, worker.pid, reason)
        self._restarts += 1
        slot.crashes_in_a_row += 1
        slot.loaded.clear()
        slot.fatal_model = None
        running, slot.in_flight = list(slot.in_flight), deque()
        held, slot.held = slot.held, None
        innocent = [call.batch for call in running[1:] if call.batch is not None]
        if held is not None:
            innocent.append(held)
        self._retry(innocent, WorkerError(f"the worker {reason}"), first=True)
        if running:
            head = running[0]
            if head.batch is None:
                slot.fatal_model = head.model.key
                self._blame_load(head.model, reason)
            else:
                self._blame(head.batch, reason)
        self._wake_idle()

    def _retry(self, batches: Sequence[Batch], error: AsyncEmbedError, *, first: bool = False) -> None:
        """Have `batches` computed before anything that waits; those of a model that is gone get `error`."""
        known = [batch for batch in batches if batch.batch_key.model in self._models]
        for batch in batches:
            if batch.batch_key.model not in self._models:
                for item in batch.items:
                    _fail_item(item, error)
        self._retries = [*known, *self._retries] if first else [*self._retries, *known]
        self._wake_idle()

    def _blame(self, batch: Batch, reason: str) -> None:
        batch.kills += 1
        if not _drop_withdrawn(batch):
            return
        error = WorkerCrashed(f"the worker {reason} each time this input was computed, at last with it alone")
        if batch.kills < KILLS_BEFORE_SPLITTING:
            self._retry([batch], error)
        elif len(batch.items) > 1:
            # One kill to their name already: the next one splits them again.
            self._retry(batch.halves(kills=KILLS_BEFORE_SPLITTING - 1), error)
        else:
            if batch.batch_key.model in self._models:
                self._models[batch.batch_key.model].failed += 1
            _fail_item(batch.items[0], error)

    def _blame_load(self, model: PooledModel, reason: str) -> None:
        if not model.is_warming and self._is_loaded_somewhere(model):
            return  # it is this worker that something is wrong with; it tries again, ever more slowly
        model.load_crashes += 1
        if model.load_crashes >= MAX_LOAD_CRASHES * len(self._slots):
            model.load_crashes = 0
            self._fail_load(
                model,
                ModelLoadError(
                    f"workers die while they load {model.config.spec.name} (the last one {reason}); "
                    "is there memory for it?",
                    model=model.config.spec.name,
                ),
            )

    def _may_try_again(self, slot: _Slot, error: WorkerError, failed_starts: int) -> bool:
        """What comes of a worker that could not be started: most shortages pass, sooner or later."""
        if isinstance(error, WorkersImpossible):
            if self._plan.threads_alone is not None and not self._in_thread:
                self._compute_in_threads(error, self._plan.threads_alone)
            if self._in_thread:
                return slot in self._slots
            self._give_up(slot, error)
            return False
        if failed_starts <= MAX_FAILED_STARTS:
            logger.warning("worker %d: %s", slot.index, error)
        if failed_starts == MAX_FAILED_STARTS:
            self._give_up(slot, error)
        return True

    def _compute_in_threads(self, error: WorkersImpossible, threads: int) -> None:
        """Do without processes, from now on: the user has left it to the pool."""
        logger.warning("computing in a thread of this process, as with workers=0: %s", error)
        self._in_thread, self._threads, self._batch_timeout = True, threads, None
        self._slots = [slot for slot in self._slots if slot.index == 0 or slot.is_reserved]

    def _give_up(self, slot: _Slot, error: AsyncEmbedError) -> None:
        slot.is_given_up = True
        if all(other.is_given_up for other in self._slots):
            self._failure = error
            self._fail_all(error)
        for model in self._models.values():
            model.notify()
        self._wake_idle()  # a reserved worker may be the only one left for what waits

    def _take_back(self, slot: _Slot) -> None:
        logger.warning("worker %d could be started again", slot.index)
        slot.is_given_up = False
        self._failure = None

    def _fail_load(self, model: PooledModel, error: AsyncEmbedError) -> None:
        model.load_error = error
        self._fail_model(model, error)
        model.notify()

    def _fail_model(self, model: PooledModel, error: AsyncEmbedError) -> None:
        """Give `error` to all that waits for `model`; what a worker has is computed all the same."""
        items = self._scheduler.withdraw_model(model.key)
        for batch in self._batches_put_back():
            if batch.batch_key.model == model.key:
                items += batch.items
                batch.items = []
        for item in items:
            _fail_item(item, error)

    def _fail_all(self, error: AsyncEmbedError) -> None:
        for model in list(self._models.values()):
            self._fail_model(model, error)
        for slot in self._slots:
            for running in slot.in_flight:
                for item in running.batch.items if running.batch is not None else []:
                    _fail_item(item, error)
            slot.in_flight.clear()

    # ---------------------------------------------------------------- small things

    def _batches_put_back(self) -> Iterator[Batch]:
        """Those that were formed, and that no worker has."""
        return chain(self._retries, (slot.held for slot in self._slots if slot.held is not None))

    def _wake_idle(self) -> None:
        for slot in self._slots:
            if slot.worker is not None and slot.has_room:
                slot.changed.set()

    async def _in_own_thread(self, function: Callable[[], T]) -> T:
        return await to_thread.run_sync(function, limiter=self._limiter)


class _Nobody:
    """The sink of items that were withdrawn while a worker had them."""

    def deliver(self, index: int, result: object) -> None:
        """Drop the result."""

    def fail(self, index: int, error: Exception) -> None:
        """Drop the error."""


_NOBODY = _Nobody()


def _backoff_seconds(failures: int) -> float:
    return 0.0 if failures <= 0 else min(MAX_BACKOFF_SECONDS, 0.05 * 2.0 ** min(failures, 10))


def _wake(slot: _Slot) -> None:
    slot.changed.set()


def _drop_withdrawn(batch: Batch) -> bool:
    """Drop the items that nobody waits for any more; returns whether any are left."""
    batch.items = [item for item in batch.items if item.sink is not _NOBODY]
    return bool(batch.items)


def _fail_item(item: Item, error: AsyncEmbedError) -> None:
    """Hand `error` to the item's sink, as an error of its own; one that concerns a single input names this one."""
    own = copy(error)
    if isinstance(own, OF_ONE_INPUT):
        own.index = item.index
    item.sink.fail(item.index, own)


def _as_failure(error: BaseException) -> child.Failed:
    # What the executor itself could not do (pickle an input or a result), or an exit inside the encoder.
    return child.Failed(
        EncodeError(
            f"the batch could not be computed, or not sent (it travels by pickle): {type(error).__name__}: {error}"
        )
    )
