"""The tasks of a pool: they start workers, send them what the dispatcher decides, and hand on what comes back.

Every slot has one task (`_serve`), which starts its worker, feeds it, ends it and begins again. Whatever is decided or
counted is the dispatcher's; here is what waits, and what processes and futures are needed for. A worker's answers
arrive on the event loop through `Loop.post`. Nothing here knows what an encoder computes.
"""

import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import repeat
from logging import Logger, getLogger
from math import inf
from multiprocessing import connection
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar, cast

import anyio
from anyio import CancelScope, CapacityLimiter, Event, to_thread
from anyio.lowlevel import checkpoint

from asyncembed.encoders.encoder import Encoded
from asyncembed.engine import child, fork_server, niceness, spawn
from asyncembed.engine.dispatch import LOAD_TIMEOUT_SECONDS, Dispatcher, FailedItem
from asyncembed.engine.lifetime import owned_task_group, uninterrupted
from asyncembed.engine.model import PooledModel, Stats
from asyncembed.engine.scheduler import Item
from asyncembed.engine.slot import Death, Order, Slot, backoff_seconds
from asyncembed.engine.worker import ProcessWorker, ThreadWorker, Worker, WorkerGone
from asyncembed.errors import OF_ONE_INPUT, EncodeError, StateError, WorkerError, WorkersImpossible
from asyncembed.wakeup import Loop, completion, start_thread

if TYPE_CHECKING:
    from asyncembed.encoders.encoder import EncoderConfig
    from asyncembed.engine.fork_server import ForkServer
    from asyncembed.engine.worker import Answer, LoadAnswer

START_TIMEOUT_SECONDS = 60.0
"""A worker that does not say hello by then is given up: the interpreter alone takes 0.1 s."""

DEATH_GRACE_SECONDS = 1.0
"""How long the last answers of a worker that died, and the word that there are no more, may take to arrive."""

MAX_FAILED_STARTS = 5
"""After so many in a row nobody waits for a worker any more; it is tried again all the same, and may come back."""

TURNS_TO_COME_BACK = 2
"""Turns of the loop in which a caller learns its result and asks the next: its batch then is that of those who wait."""

T = TypeVar("T")

logger: Logger = getLogger("asyncembed")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    """How many workers of which kind a pool has: what became of its options.

    Attributes:
        workers: Those for all work; with `in_thread` one, and as many as asked for where models are fakes.
        reserved: Those kept free for interactive work, besides.
        may_call_express: One more comes for interactive work, once that has to wait for bulk work, and goes again.
        threads: That each worker computes with.
        cores: That they were shared out of.
        in_thread: Compute in threads of this process.
        threads_alone: That a worker computes with when it has to do for all, in this process; None: it must not.
        device_ids: Devices, dealt out in turn.
        batch_timeout: Seconds after which a worker that has not answered is killed and replaced; None waits for ever.
        max_queued: How many interactive items may wait; None: any number.
        imports: Modules that workers import when they start, ahead of what they load.
    """

    workers: int
    reserved: int
    threads: int
    cores: int
    in_thread: bool
    threads_alone: int | None
    device_ids: Sequence[int]
    batch_timeout: float | None
    max_queued: int | None = None
    imports: Sequence[str] = ("numpy",)
    may_call_express: bool = False

    @property
    def most_workers(self) -> int:
        """How many may hold a model at a time."""
        return self.workers + self.reserved + self.may_call_express


@dataclass(slots=True, eq=False)
class _Life:
    """A worker that runs, and the futures of what it has in flight, in the order of its slot's `in_flight`."""

    worker: Worker
    futures: "deque[Answer | LoadAnswer]" = field(default_factory=deque)
    changed: Event = field(default_factory=Event)
    """Set when there may be something to do for its task."""
    level: int | None = None
    """The priority that its process had before it was lowered."""

    def wake(self) -> None:
        self.changed.set()


class Supervisor:
    """The workers of one opening of a pool, and what is to be computed: what embedders and streams call.

    It lives once, inside `running`; its plan changes where there can be no processes. Sinks hear on the event loop, and
    must not raise: an exception of theirs would end the task of a worker, and with it the whole pool.
    """

    def __init__(self, plan: WorkerPlan) -> None:
        self.plan: WorkerPlan = plan
        self._dispatcher = Dispatcher(
            plan.workers,
            plan.reserved,
            batch_timeout=plan.batch_timeout,
            load_timeout=None if plan.in_thread else LOAD_TIMEOUT_SECONDS,
            max_queued=plan.max_queued,
            may_call_express=plan.may_call_express,
        )
        # Held while anything is moved or counted, so that `stats` in another thread finds nothing half done. Only the
        # loop's thread changes anything, and waits here for no longer than a snapshot takes.
        self._lock = threading.RLock()
        self._process = os.getpid()
        # By the index of their slots: the workers that run now.
        self._lives: dict[int, _Life] = {}
        # Set, and made anew, when a model was loaded or cannot be.
        self._models_changed = Event()
        self._limiter: CapacityLimiter | None = None
        self._loop: Loop | None = None
        # The place of the express worker that is called, and the word that it is.
        self._called: Slot | None = None
        self._express_called = Event()
        # What forks the workers, once the first of them is to be started; asked for in their threads.
        self._fork_server: ForkServer | None = None
        self._has_asked_for_server = False
        self._server_lock = threading.Lock()
        self._is_open = False

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Supervisor"]:
        """From the start of the workers to their end."""
        self._loop = Loop()
        self._limiter = CapacityLimiter(inf)
        self._is_open = True
        try:
            async with owned_task_group() as group:
                for slot in self._dispatcher.slots:
                    group.start_soon(self._serve, slot)
                if self.plan.may_call_express:
                    group.start_soon(self._serve_express)
                yield self
        finally:
            self._is_open = False
            with CancelScope(shield=True):
                await self._stop_server()
            with self._lock:
                failed = self._dispatcher.close(StateError("the worker pool was closed"))
            _tell(failed)
            self._notify()

    def kill(self) -> None:
        """End the workers at once, without the event loop, which is gone; from any thread."""
        for life in list(self._lives.values()):
            life.worker.kill()
        if self._fork_server is not None:
            self._fork_server.stop()

    # ---------------------------------------------------------------- what embedders call

    @property
    def size(self) -> int:
        """How many workers it has."""
        return len(self._dispatcher.slots)

    @property
    def state(self) -> str:
        """Whether it is open, in words."""
        return "open" if self._is_open else "not open" if self._loop is None else "closed"

    @uninterrupted
    def add_model(self, config: "EncoderConfig") -> PooledModel:
        """Make a model known; workers load it when `warm` asks, or with its first batch."""
        self.check_open()
        with self._lock:
            return self._dispatcher.add_model(config)

    @uninterrupted
    def remove_model(self, model: PooledModel) -> None:
        """Forget a model; its waiting items get a `StateError`, and the workers drop it."""
        with self._lock:
            failed, having = self._dispatcher.remove_model(model)
        for slot in having:
            self._lives[slot.index].worker.unload(model.key)
        _tell(failed)

    @uninterrupted
    async def warm(self, model: PooledModel) -> None:
        """Wait until every worker has loaded `model`.

        Raises:
            ModelLoadError: A worker cannot load it; the message is the worker's own.
            WorkerError: No worker can be started.
            StateError: The pool, or the model, was closed meanwhile.
        """
        self.check_open()
        self._dispatcher.want_everywhere(model)
        for life in self._lives.values():
            life.wake()
        try:
            while not self._dispatcher.is_loaded_everywhere(model):
                await self._models_changed.wait()
        finally:
            model.is_warming = False

    @uninterrupted
    def submit(self, items: Iterable[Item]) -> None:
        """Let items wait for a worker. Their sinks hear of each of them exactly once, unless withdrawn.

        It never raises: an item that cannot be computed, as the pool or its model was closed, hears so by its sink.
        """
        with self._lock:
            failed = self._dispatcher.add(items)
            called = self._dispatcher.call_express(perf_counter())
        _tell(failed)
        if called is not None:
            self._called = called
            self._express_called.set()
        self._wake_those_with_room()

    @property
    def is_bounded(self) -> bool:
        """Whether interactive items need a place that was reserved before they are submitted."""
        return self.plan.max_queued is not None

    def reserve(self, model: PooledModel, count: int, *, are_absent: bool = False) -> None:
        """Keep places for `count` interactive items, which are yet to be submitted, or even to be fetched or read.

        Raises:
            OverloadedError: There are not as many left.
            InputError: There never are as many.
        """
        self._dispatcher.reserve(model, count, are_absent=are_absent)

    def release(self, count: int, *, are_absent: bool = False) -> None:
        """Give places back: of items that are submitted now, or never will be."""
        self._dispatcher.release(count, are_absent=are_absent)

    @uninterrupted
    def withdraw(self, items: Sequence[Item]) -> None:
        """Forget `items`: those that wait are not computed, and what a worker computes already is dropped."""
        with self._lock:
            self._dispatcher.withdraw(items)

    def stats(self, model: PooledModel | None = None) -> Stats:
        """A snapshot of the whole pool, or of one model; the queue and the workers are always the pool's.

        From any thread, at any time: nothing in it is from before what the rest is from after.
        """
        if os.getpid() != self._process:
            # A forked child, where nothing changes any more; a thread of the parent may have had the lock for ever.
            return self._dispatcher.stats(model)
        with self._lock:
            return self._dispatcher.stats(model)

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run now; empty with `workers=0`."""
        pids = (self._lives[index].worker.pid for index in sorted(self._lives))
        return [pid for pid in pids if pid is not None]

    def check_open(self) -> None:
        """Raise `StateError` unless it is open, on the caller's event loop."""
        if not self._is_open:
            state = "was closed and is not open" if self._loop is not None else "is not open"
            raise StateError(f"the worker pool {state}: use it inside `async with`, or after `await pool.open()`")
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
    async def _serve(self, slot: Slot) -> None:
        failed_starts = 0
        while True:
            await anyio.sleep(slot.backoff_seconds(failed_starts))
            worker: Worker = ThreadWorker() if self.plan.in_thread else self._new_process()
            try:
                await self._live(slot, worker)
            except WorkerError as error:
                failed_starts += 1
                if self._may_try_again(slot, error, failed_starts):
                    continue
                return
            failed_starts = 0
            logger.warning("worker %d (pid %s) %s and is replaced", slot.index, worker.pid, slot.reason)
            with self._lock:
                failed = self._dispatcher.bury(slot)
            self._go_on_without(failed)

    @uninterrupted
    async def _serve_express(self) -> None:
        """Whenever an express worker is called: from then to its end. There is one at a time."""
        while True:
            await self._express_called.wait()
            self._express_called = Event()
            slot, worker = self._called, self._new_process()
            assert slot is not None, "the word comes with a place"
            logger.info("interactive calls wait for bulk work: a worker of their own is started")
            try:
                await self._live(slot, worker)
                log = logger.info if slot.death is Death.NOT_NEEDED else logger.warning
                log("the worker for interactive calls (pid %s) %s", worker.pid, slot.reason)
            except WorkerError as error:
                logger.warning("interactive calls get no worker of their own: %s", error)
            with self._lock:
                failed = self._dispatcher.retire(slot, perf_counter())
                self._raise_bulk_again()
            self._go_on_without(failed)

    def _go_on_without(self, failed: Iterable[FailedItem]) -> None:
        """After a worker's end: tell who gets no result for it, and have the others compute the rest."""
        _tell(failed)
        self._notify()
        self._wake_those_with_room()

    async def _live(self, slot: Slot, worker: Worker) -> None:
        """One worker, from its start to its death.

        Raises:
            WorkerError: It cannot be started.
        """
        try:
            await self._start(worker)
            await self._drive(slot, worker)
        finally:
            # Whatever it still has, nobody waits for any more; an idle worker ends by itself.
            if not slot.is_ready or slot.in_flight:
                worker.kill()
            self._dispatcher.end(slot)
            self._lives.pop(slot.index, None)
            with CancelScope(shield=True):
                await self._stop(worker)

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

    def _new_process(self) -> ProcessWorker:
        plan = self.plan
        forks = plan.workers + plan.reserved > 1 and fork_server.is_possible(plan.threads)
        return ProcessWorker(plan.threads, plan.imports, self._server_of_workers if forks else None)

    def _server_of_workers(self) -> "ForkServer | None":
        """What forks them; in a thread."""
        with self._server_lock:
            if not self._has_asked_for_server:
                self._has_asked_for_server = True
                self._fork_server = spawn.start_server(self.plan.imports)
            return self._fork_server

    async def _stop_server(self) -> None:
        server = self._fork_server
        if server is not None:
            try:
                await self._in_own_thread(server.stop)
            except (RuntimeError, OSError, MemoryError):
                server.stop()  # there is no thread for it, and it does not take long

    async def _stop(self, worker: Worker) -> None:
        """End `worker`; while there is no thread that could wait for its end, only kill it."""
        for attempt in range(MAX_FAILED_STARTS):
            try:
                await self._in_own_thread(worker.stop)
                return
            except (RuntimeError, OSError, MemoryError):
                worker.kill()
                await anyio.sleep(backoff_seconds(attempt + 1))

    async def _drive(self, slot: Slot, worker: Worker) -> None:
        """Feed `worker` and take its answers until it dies."""
        life = self._lives[slot.index] = _Life(worker)
        if slot.is_given_up:
            logger.warning("worker %d could be started again", slot.index)
        self._dispatcher.begin(slot)
        self._lower_bulk()
        async with owned_task_group() as watch:
            watch.start_soon(self._watch_death, slot, life)
            while True:
                self._give_orders(slot, life)
                if slot.death is not None:
                    break
                with anyio.move_on_after(self._dispatcher.seconds_left(slot, perf_counter())):
                    await life.changed.wait()
                life.changed = Event()
                self._take_answers(slot, life)
                for _ in range(TURNS_TO_COME_BACK):
                    if self._dispatcher.may_be_joined(slot):
                        await checkpoint()
                self._dispatcher.check_time(slot, perf_counter())
                if slot.death is not None:
                    break
        if slot.death.is_ours:
            worker.kill()

    @uninterrupted
    async def _watch_death(self, slot: Slot, life: _Life) -> None:
        # A worker with work in flight reports its death through its futures, after the answers that it sent before; an
        # idle one only here.
        if life.worker.death_fd is not None:
            await _until_dead(life.worker.death_fd)
            if slot.in_flight:
                await anyio.sleep(DEATH_GRACE_SECONDS)
            slot.die(Death.ENDED)
            life.wake()

    def _give_orders(self, slot: Slot, life: _Life) -> None:
        # Without an await: between what is decided and what is sent, nothing may change.
        loop = self.loop
        try:
            while True:
                with self._lock:
                    order = self._dispatcher.next_order(slot)
                    if order is None:
                        other = self._dispatcher.left_to(slot)
                        if other is not None:
                            self._lives[other.index].wake()
                        return
                    future = self._send(slot, life.worker, order)
                    self._dispatcher.sent(slot, order, perf_counter())
                life.futures.append(future)
                if slot.is_reserved:
                    self._lower_bulk()
                future.add_done_callback(lambda _: loop.post(life.wake))
        except WorkerGone:
            slot.die(Death.ENDED)

    def _send(self, slot: Slot, worker: Worker, order: Order) -> "Answer | LoadAnswer":
        model, batch = order.model, order.batch
        if batch is not None:
            return worker.run(model.key, [item.value for item in batch.items], batch.batch_key.call)
        session = replace(model.config.session, threads=self.plan.threads)
        devices = self.plan.device_ids
        if devices:
            session = replace(session, device_id=devices[slot.index % len(devices)])
        return worker.load(model.key, replace(model.config, session=session))

    def _take_answers(self, slot: Slot, life: _Life) -> None:
        while life.futures and life.futures[0].done():
            future = life.futures[0]
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                slot.die(Death.ENDED)
                return
            assert len(life.futures) == len(slot.in_flight), "answers come in the order of sending"
            life.futures.popleft()
            answer = future.result() if error is None else _as_failure(error)
            with self._lock:
                order, seconds = self._take_answer(slot, life, answer)
            if order.batch is not None and order.model.observers is not None:
                told = answer.error if isinstance(answer, child.Failed) else cast(Encoded, answer)
                order.model.observers.batch_ended(order.batch.items, told, seconds)

    def _take_answer(self, slot: Slot, life: _Life, answer: object) -> tuple[Order, float]:
        order, seconds = self._dispatcher.take_answer(slot, perf_counter())
        if order.batch is None:
            self._on_loaded(slot, life, order.model, answer)
        elif isinstance(answer, Encoded):
            self._dispatcher.computed(slot, order, answer, seconds)
            _deliver(order.batch.items, answer)
        else:
            assert isinstance(answer, child.Failed)
            _tell(self._dispatcher.batch_failed(slot, order.batch, answer.error))
            self._wake_those_with_room()
        return order, seconds

    def _on_loaded(self, slot: Slot, life: _Life, model: PooledModel, answer: object) -> None:
        if isinstance(answer, child.Loaded):
            if answer.info.warning is not None and answer.info.warning != model.info.warning:
                logger.warning("%s: %s", model.name, answer.info.warning)
            if not self._dispatcher.loaded(slot, model, answer.info):
                life.worker.unload(model.key)
        else:
            assert isinstance(answer, child.Failed)
            _tell(self._dispatcher.load_failed(slot, model, answer.error))
        self._notify()

    def _may_try_again(self, slot: Slot, error: WorkerError, failed_starts: int) -> bool:
        """What comes of a worker that could not be started: most shortages pass, sooner or later."""
        if isinstance(error, WorkersImpossible):
            if self.plan.threads_alone is not None and not self.plan.in_thread:
                # Do without processes, from now on: the user has left it to the pool.
                logger.warning("computing in a thread of this process, as with workers=0: %s", error)
                threads = self.plan.threads_alone
                self.plan = replace(self.plan, workers=1, threads=threads, in_thread=True, batch_timeout=None)
                self._dispatcher.compute_alone()
            if self.plan.in_thread:
                return slot in self._dispatcher.slots
            self._give_up(slot, error)
            return False
        if failed_starts <= MAX_FAILED_STARTS:
            logger.warning("worker %d: %s", slot.index, error)
        if failed_starts == MAX_FAILED_STARTS:
            self._give_up(slot, error)
        return True

    def _give_up(self, slot: Slot, error: WorkerError) -> None:
        with self._lock:
            failed = self._dispatcher.give_up(slot, error)
        _tell(failed)
        self._notify()
        self._wake_those_with_room()  # a reserved worker may be the only one left for what waits

    # ---------------------------------------------------------------- who makes way

    def _lower_bulk(self) -> None:
        """Have the workers for all work make way for those that are there for interactive work alone."""
        if not self._dispatcher.bulk_makes_way or self.plan.in_thread:
            return
        for slot in self._dispatcher.slots:
            life = self._lives.get(slot.index)
            if not slot.is_reserved and not slot.is_lowered and life is not None and life.worker.pid is not None:
                life.level = niceness.lower(life.worker.pid)
                slot.is_lowered = life.level is not None

    def _raise_bulk_again(self) -> None:
        """Undo it, where this process may; else the next interactive call is for an express worker, too."""
        for slot in self._dispatcher.slots:
            life = self._lives.get(slot.index)
            if slot.is_lowered and life is not None and life.level is not None and life.worker.pid is not None:
                slot.is_lowered = not niceness.raise_again(life.worker.pid, life.level)

    # ---------------------------------------------------------------- small things

    def _notify(self) -> None:
        """Wake whoever waits for a model to be loaded."""
        self._models_changed.set()
        self._models_changed = Event()

    def _wake_those_with_room(self) -> None:
        for slot in self._dispatcher.slots_with_room():
            self._lives[slot.index].wake()

    async def _in_own_thread(self, function: Callable[[], T]) -> T:
        return await to_thread.run_sync(function, limiter=self._limiter)


async def _until_dead(process: int) -> None:
    """Wait until a process ends, by what its death makes readable or, on Windows, by its handle.

    No event loop waits for a handle, so a thread does; a process that is watched no more is one that is being ended.
    """
    if os.name == "posix":
        await anyio.wait_readable(process)
    else:
        await completion(start_thread(connection.wait, [process], name="asyncembed-death-watch"))


def _deliver(items: Sequence[Item], answer: Encoded) -> None:
    """Hand each item its result, or its own error."""
    counts = repeat(0, len(items)) if answer.counts is None else answer.counts
    for position, (item, result, count) in enumerate(zip(items, answer.results, counts, strict=True)):
        if answer.failures and position in answer.failures:
            _tell([FailedItem(item, answer.failures[position])])
        else:
            item.count = count
            item.sink.deliver(item.index, result)


def _tell(failed: Iterable[FailedItem]) -> None:
    """Hand each item its error, as one of its own; one that concerns a single input names this one."""
    for item, error in failed:
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
