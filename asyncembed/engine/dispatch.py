"""Which worker is given what, and what its answers and its death mean: decided in plain code.

No await, no clock, no process. Time comes in as numbers; what is to be done comes out as values, which the supervisor
acts on: orders to send, slots whose worker is to be ended, items that failed. The mutable state is the slots, the
batches that were put back, and the scheduler; only the methods of `Dispatcher` change it, each as a whole.

What holds between any two calls:

- An item that was added is in one place: it waits, is in a batch that was put back, held or in flight, or it was
  answered, by its result or as a `FailedItem`. One that was withdrawn may be in those places too; its answer goes to
  nobody.
- Whatever waits, was put back or is held is for a model that is known; with its model it goes. What is in flight may
  outlive its model, and is answered all the same.
- No batch is empty.
- Answers come in the order of sending, so what is in flight is a queue, and the first of it is what a worker computes.
- Every item's size is positive, and so are what it costs and the time that any batch takes, once one was measured.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from math import ceil, inf
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from asyncembed.engine.model import PooledModel, Stats
from asyncembed.engine.scheduler import SPLIT_FLOOR_TOKENS, Batch, Item, Priority, Scheduler
from asyncembed.engine.slot import ROUND_TRIP_SECONDS, Death, Order, Slot
from asyncembed.errors import (
    AsyncEmbedError,
    EncodeError,
    InputError,
    ModelLoadError,
    OverloadedError,
    StateError,
    WorkerCrashed,
    WorkerError,
)

if TYPE_CHECKING:
    from asyncembed.encoders.encoder import Encoded, EncoderConfig, ModelInfo

LOAD_TIMEOUT_SECONDS = 900.0

COMPANY_SHARE = 0.1
"""While the round trip is a smaller part of what is in flight than this, interactive work waits for its end: callers
that come until then share its batch. Only a full batch, which nobody could join, does not wait."""

WORTH_SHARING_SECONDS = 0.005
"""Work that takes no longer is not shared out among idle workers: to send a batch costs tenths of a millisecond."""

WORTH_LEAVING_TOKENS = 32
"""Fewer are not left to a worker that is busy still: to run a graph has a fixed cost."""

LONG_IN_BULK_SECONDS = 0.25
"""Where interactive work is expected, an express worker is started after so much of an ingest, before the two meet: its
start takes longer than queries have to wait without it."""

EXPECTED_AFTER_SECONDS = 1.0
"""Interactive work that came for no longer was no more than a first try before the ingest: none is expected again."""

BULK_PAUSE_SECONDS = 1.0
"""Bulk work that comes after a longer pause is another ingest."""

EXPRESS_IDLE_SECONDS = 300.0
"""How long the express worker is kept after the last interactive batch: 40 MB that nobody uses, against the half second
in which queries wait for the next one to start."""

EXPRESS_REST_SECONDS = 10.0
"""For each time in a row, but the first, that the express worker died: how long none is started. Others compute."""

OVERDUE_TIMES = 4
"""An input that takes longer than a batch may is overdue after as many times what it should take by those before it."""

KILLS_BEFORE_SPLITTING = 2
MAX_LOAD_CRASHES = 3


class FailedItem(NamedTuple):
    """An item that gets no result, and why."""

    item: Item
    error: AsyncEmbedError


class Dispatcher:
    """All that decides over the workers of a pool and over what is to be computed; see the module's docstring."""

    def __init__(
        self,
        workers: int,
        reserved: int = 0,
        *,
        batch_timeout: float | None = None,
        load_timeout: float | None = LOAD_TIMEOUT_SECONDS,
        max_queued: int | None = None,
        may_call_express: bool = False,
    ) -> None:
        self.slots: list[Slot] = [Slot(index, is_reserved=index >= workers) for index in range(workers + reserved)]
        self.bulk_makes_way: bool = False
        """Whether the workers for all work are to be lowered: one for interactive work alone has begun to compute."""
        self._may_call_express = may_call_express
        self._express: Slot | None = None
        self._express_deaths = 0
        self._express_rests_until = -inf
        # Since when there is bulk work, and when a worker was last sent some or answered it.
        self._bulk_since = self._bulk_seen = -inf
        self.models: dict[int, PooledModel] = {}
        self._batch_timeout = batch_timeout
        self._load_timeout = load_timeout
        self._max_queued = max_queued
        # Places for interactive items that are yet to be added: by whether they have yet to be fetched or read.
        self._places = {False: 0, True: 0}
        self._scheduler = Scheduler()
        # What comes before all that waits, and whether interactive work went before the first bulk batch of it.
        self._retries: list[Batch] = []
        self._has_yielded = False
        self._next_key = 0
        self._restarts = 0
        # Why there is nobody to wait for, and why the last worker could not be started.
        self._failure: AsyncEmbedError | None = None
        self._start_error: AsyncEmbedError | None = None

    # ---------------------------------------------------------------- models

    def add_model(self, config: "EncoderConfig") -> PooledModel:
        """Know a model from now on."""
        model = PooledModel(self._next_key, config)
        self._next_key += 1
        self.models[model.key] = model
        return model

    def remove_model(self, model: PooledModel) -> tuple[list[FailedItem], list[Slot]]:
        """Forget a model: what waited for it in vain, and whose workers are to drop it."""
        if self.models.pop(model.key, None) is None:
            return [], []
        failed = self._fail_model(model, StateError(f"{model.name} was closed"))
        having = [slot for slot in self.slots if slot.is_usable and model.key in slot.loaded]
        for slot in having:
            slot.loaded.discard(model.key)
        return failed, having

    def want_everywhere(self, model: PooledModel) -> None:
        """Have every worker load `model` ahead of its first batch, whatever came of that before."""
        model.is_wanted = model.is_warming = True
        model.load_error = None
        model.load_crashes = 0

    def is_loaded_everywhere(self, model: PooledModel) -> bool:
        """Whether all workers that can be waited for have loaded `model`.

        Raises:
            AsyncEmbedError: They never will.
        """
        if model.key not in self.models:
            raise StateError(f"the worker pool was closed while {model.name} was being loaded")
        error = self._failure or model.load_error
        if error is not None:
            raise error
        return all(model.key in slot.loaded for slot in self.slots if not (slot.is_given_up or slot.is_express))

    def _is_loaded_somewhere(self, model: PooledModel) -> bool:
        return any(model.key in slot.loaded for slot in self.slots)

    # ---------------------------------------------------------------- what waits

    def reserve(self, model: PooledModel, count: int, *, are_absent: bool = False) -> None:
        """Keep places for `count` interactive items of `model` until they are added: all, or none.

        Those that have yet to be fetched or read count by themselves: what waits for somebody else's server must not
        take the places of what could be computed.

        Raises:
            OverloadedError: There are not as many left.
            InputError: There never are as many.
        """
        limit = self._max_queued
        if limit is None:
            return
        queued = self._places[are_absent] + (0 if are_absent else self._queued(Priority.INTERACTIVE))
        if queued + count > limit:
            model.refused += count
            if count > limit:
                raise InputError(
                    f"{count} inputs in one call are more than max_queued={limit} ever lets wait: hand over fewer at a "
                    "time, or embed them as a stream, which is bulk work and bounded by its window"
                )
            raise OverloadedError(
                f"the queue is full: {queued} of at most max_queued={limit} inputs wait, and this call has {count}; "
                "try again later (a web app answers with the status 503), or give the pool more workers",
                retry_after_seconds=self._seconds_queued(),
            )
        self._places[are_absent] += count

    def release(self, count: int, *, are_absent: bool = False) -> None:
        """Give places back, as their items are added now, or never will be."""
        if self._max_queued is not None:
            self._places[are_absent] -= count
            assert self._places[are_absent] >= 0, "places are given back once"

    def _seconds_queued(self) -> float | None:
        """About how long the interactive items that wait take all workers together; None if that is not known yet."""
        leader = self._scheduler.oldest(Priority.INTERACTIVE)
        workers = sum(slot.is_usable for slot in self.slots)
        if leader is None or not workers:
            return None
        speed = self.models[leader.batch_key.model].speed(leader.batch_key)
        cost = self._scheduler.waiting_cost(Priority.INTERACTIVE)
        return speed.seconds(cost) / workers if speed.is_known else None

    def _queued(self, priority: Priority) -> int:
        """How many items of this priority wait for a worker, those in batches that were put back included."""
        put_back = (item for batch in self._put_back() if batch.priority is priority for item in batch.items)
        return self._scheduler.waiting(priority) + sum(item.sink is not NOBODY for item in put_back)

    def add(self, items: Iterable[Item]) -> list[FailedItem]:
        """Let items wait; returns those that would wait in vain."""
        if self._failure is not None:
            return [FailedItem(item, self._failure) for item in items]
        items = list(items)
        gone = {item.batch_key.model for item in items} - self.models.keys()
        if not gone:
            self._scheduler.add(items)
            return []
        self._scheduler.add(item for item in items if item.batch_key.model not in gone)
        error = StateError("the worker pool, or the embedder, was closed")
        return [FailedItem(item, error) for item in items if item.batch_key.model in gone]

    def withdraw(self, items: Sequence[Item]) -> None:
        """Forget `items`: those that wait are not computed, and what a worker computes already is dropped."""
        for item in items:
            item.sink = NOBODY
        self._scheduler.withdraw(items)

    def slots_with_room(self) -> Iterator[Slot]:
        """Whose workers may be given something that waits."""
        return (slot for slot in self.slots if slot.is_ready and self._has_room(slot) and self._may_follow(slot))

    def _has_room(self, slot: Slot) -> bool:
        """Whether one more batch may be sent: of bulk work ahead, where there is much and others do what is urgent."""
        if slot.has_room:
            return True
        if not (self._scheduler.turn() is Priority.BULK and slot.may_run_ahead):
            return False
        has_others = self._may_call_express or any(other.is_reserved for other in self.slots)
        return has_others and self._fills_batches(Priority.BULK, len(self.slots))

    def may_be_joined(self, slot: Slot) -> bool:
        """Whether what an idle worker would be given may grow within a turn of the loop, by those answered just now."""
        is_interactive = self._scheduler.turn() is Priority.INTERACTIVE
        return slot.is_idle and is_interactive and not self._fills_batches(Priority.INTERACTIVE)

    # ---------------------------------------------------------------- the express worker

    def call_express(self, now: float) -> Slot | None:
        """The place of an express worker, to be started now, if interactive work waits for bulk work and there is none.

        Else None: then too, the one that is there may have learnt that it needs another model.
        """
        if not self._may_call_express:
            return None
        needing = [model for model in self.models.values() if self._lacks_express(model, now)]
        for model in needing:
            model.needs_express = True
        if not needing or self._express is not None or now < self._express_rests_until:
            return None
        index = 1 + max(slot.index for slot in self.slots)
        self._express = Slot(index, is_reserved=True, is_express=True, needed=now)
        self.slots.append(self._express)
        return self._express

    def _lacks_express(self, model: PooledModel, now: float) -> bool:
        """Whether an express worker would be of use for the model, and there is none that has it, or will have."""
        if (self._express is not None and model.needs_express) or model.info.is_accelerated:
            return False
        leader = self._scheduler.oldest(Priority.INTERACTIVE)
        if leader is not None and leader.batch_key.model == model.key:
            return self._waits_for_bulk(model, now)
        return _is_expected(model, now) and self._is_ingesting(now)

    def _waits_for_bulk(self, model: PooledModel, now: float) -> bool:
        """Whether interactive work of this model waits for bulk work, or for a worker that makes way for others."""
        usable = [
            slot for slot in self.slots if slot.is_usable and self._may_take(slot, Priority.INTERACTIVE, model.key)
        ]
        if any(slot.is_idle and not slot.is_lowered for slot in usable):
            return False
        return any(slot.is_lowered or slot.is_long_in_bulk(now) for slot in usable)

    def _is_ingesting(self, now: float) -> bool:
        """Whether bulk work has kept the workers busy for some time, and more of it waits than they can take."""
        is_long = now - self._bulk_since >= LONG_IN_BULK_SECONDS
        return is_long and self._fills_batches(Priority.BULK) and any(slot.is_long_in_bulk(now) for slot in self.slots)

    def _note_bulk(self, now: float) -> None:
        if now - self._bulk_seen > BULK_PAUSE_SECONDS:
            self._bulk_since = now
        self._bulk_seen = now

    def retire(self, slot: Slot, now: float) -> list[FailedItem]:
        """Learn that the express worker is gone; what it had is put back, and its place goes with it."""
        failed = [] if slot.death is None else self.bury(slot)
        self.slots.remove(slot)
        self._express = None
        for model in self.models.values():
            model.needs_express = False
        self.bulk_makes_way = False
        if slot.death is not Death.NOT_NEEDED:
            rest = EXPRESS_REST_SECONDS * self._express_deaths
            self._express_deaths += 1
            self._express_rests_until = now + min(rest, EXPRESS_IDLE_SECONDS)
        return failed + self._fail_without_workers()

    # ---------------------------------------------------------------- what comes next

    def begin(self, slot: Slot) -> None:
        """Learn that a new worker runs."""
        assert not slot.in_flight, "what the last worker had was put back"
        slot.is_ready, slot.death, slot.death_details = True, None, ""
        slot.is_lowered = False
        slot.loaded.clear()
        if slot.is_given_up:
            slot.is_given_up, self._failure = False, None

    def next_order(self, slot: Slot) -> Order | None:
        """What the worker has room for: models to load first, then batches. It counts once it was `sent`."""
        if slot.death is not None or slot.is_loading:
            return None
        missing = self._missing_model(slot)
        if missing is not None:
            return Order(missing)
        batch = slot.held = self._next_batch(slot)
        if batch is None:
            return None
        assert batch.batch_key.model in self.models, "whatever is to be computed is for a model that is known"
        model = self.models[batch.batch_key.model]
        if model.key not in slot.loaded:
            model.load_error = None
            return Order(model)
        cost = batch.cost
        assert cost > 0, "a speed is by cost"
        return Order(model, batch, speed=model.speed(batch.batch_key), cost=cost)

    def sent(self, slot: Slot, order: Order, now: float) -> None:
        """Learn that the worker was given its order."""
        if order.batch is not None:
            assert order.batch is slot.held
            slot.held = None
            if order.batch.priority is Priority.INTERACTIVE:
                if now - order.model.asked > EXPRESS_IDLE_SECONDS:
                    order.model.asked_since = now
                order.model.asked = slot.needed = now
                if slot.is_reserved and not self.bulk_makes_way:
                    self.bulk_makes_way = any(other.has_bulk for other in self.slots)
            else:
                self._note_bulk(now)
        order.started = now
        slot.in_flight.append(order)

    def _missing_model(self, slot: Slot) -> PooledModel | None:
        """A model that is to be loaded ahead of its first batch, and is not loaded here.

        One that killed the worker while it was loaded comes last: the others need not suffer.
        """
        missing = [
            model
            for model in self.models.values()
            if slot.wants(model) and model.key not in slot.loaded and model.load_error is None
        ]
        return min(missing, key=lambda model: model.key == slot.fatal_model, default=None)

    def _next_batch(self, slot: Slot) -> Batch | None:
        if slot.held is not None and _drop_withdrawn(slot.held):
            return slot.held
        if slot.has_suspect or not self._has_room(slot):
            return None
        retry = self._first_retry(slot)
        if retry is None:
            self._has_yielded = False
            return self._new_batch(slot, self._scheduler.turn())
        if self._must_yield(retry):
            batch = self._new_batch(slot, Priority.INTERACTIVE)
            if batch is not None:
                self._has_yielded = True
                return batch
            # It is left to others, whose answers are no reason to ask this worker again.
        # A batch that a worker died of runs with nothing else in flight, so that the next death is its own.
        if retry.kills and slot.in_flight:
            return None
        self._has_yielded = False
        self._retries.remove(retry)
        return retry

    def _new_batch(self, slot: Slot, turn: Priority | None) -> Batch | None:
        """One of what waits: of the priority whose turn it is, if this worker is there for that."""
        if turn is None:
            return None
        priority = turn if self._may_take(slot, turn) else Priority.INTERACTIVE
        if priority is Priority.INTERACTIVE and self.left_to(slot) is not None:
            priority = Priority.BULK
        leader = self._scheduler.oldest(priority)
        if leader is None or not self._may_take(slot, priority, leader.batch_key.model):
            return None
        model = leader.batch_key.model
        idle = sum(other.is_idle and self._may_take(other, priority, model) for other in self.slots)
        if priority is Priority.INTERACTIVE and self._express is not None:
            free = self._free_of_queries()
            if not slot.in_flight and free < 1:
                return None
            idle = min(idle, free)
        if slot.in_flight and (idle or not self._may_follow(slot)):
            return None  # an idle worker begins at once, while here it would only wait
        seconds = self._seconds_waiting(priority)
        if seconds:
            idle = min(idle, 1 + int(seconds / WORTH_SHARING_SECONDS))
        most_tokens = self._share(slot) if priority is Priority.INTERACTIVE and idle == 1 else None
        return self._scheduler.next_batch(idle, priority=priority, most_tokens=most_tokens)

    def _may_follow(self, slot: Slot) -> bool:
        """Whether the next batch may be sent already, or waits for the end of those in flight; see COMPANY_SHARE.

        Bulk work does not wait: nobody comes back with more of it when others are answered.
        """
        if not slot.in_flight or self._scheduler.waiting(Priority.BULK) or self._fills_batches(Priority.INTERACTIVE):
            return True
        return slot.in_flight_seconds < ROUND_TRIP_SECONDS / COMPANY_SHARE

    def _fills_batches(self, priority: Priority, number: int = 1) -> bool:
        """Whether as much waits as so many batches may take."""
        leader = self._scheduler.oldest(priority)
        if leader is None:
            return False
        cost, count = self._scheduler.waiting_cost(priority), self._scheduler.waiting(priority)
        return cost >= number * leader.batch_key.max_batch_tokens or count >= number * leader.batch_key.max_batch_size

    def _share(self, slot: Slot) -> int | None:
        """What an interactive batch may cost to leave the busy workers as much as this one has; None: take all.

        Else callers who are answered together would come back together for ever: many at one worker, few at another.
        """
        busy = [other for other in self.slots if other is not slot and other.is_usable and not other.is_loading]
        cost = self._scheduler.cost + sum(order.cost for other in busy for order in other.in_flight)
        share = max(WORTH_LEAVING_TOKENS, ceil(cost / (1 + len(busy))))
        leader = self._scheduler.oldest(Priority.INTERACTIVE)
        if leader is None:
            return None
        left = self._scheduler.waiting_cost(Priority.INTERACTIVE) - share
        speed = self.models[leader.batch_key.model].speed(leader.batch_key)
        return share if left >= WORTH_LEAVING_TOKENS and speed.seconds(left) > WORTH_SHARING_SECONDS else None

    def _seconds_waiting(self, priority: Priority) -> float:
        """About how long all that waits would take one worker, by the speed of what comes next; 0 if not known yet."""
        leader = self._scheduler.oldest(priority)
        if leader is None:
            return 0.0
        return self.models[leader.batch_key.model].speed(leader.batch_key).seconds(self._scheduler.cost)

    def _first_retry(self, slot: Slot) -> Batch | None:
        self._retries = [batch for batch in self._retries if _drop_withdrawn(batch)]
        retries = self._retries
        return next((one for one in retries if self._may_take(slot, one.priority, one.batch_key.model)), None)

    def _must_yield(self, retry: Batch) -> bool:
        """Whether interactive work goes before `retry`: in turn, as it may take many deaths to find a bad input."""
        interactive_waits = self._scheduler.waiting(Priority.INTERACTIVE) > 0
        return retry.priority is Priority.BULK and interactive_waits and not self._has_yielded

    def _may_take(self, slot: Slot, priority: Priority, model: int | None = None) -> bool:
        """Whether the worker is there for work of this priority, and of this model, if one is given.

        A reserved one takes bulk work if no other is left; an express one takes nothing that it would have to load a
        model for while others have it.
        """
        if not slot.is_reserved:
            return True
        no_other_is_left = all(other.is_reserved or other.is_given_up for other in self.slots)
        if slot.is_express and model is not None and model not in slot.loaded and not no_other_is_left:
            return False
        return priority is Priority.INTERACTIVE or no_other_is_left

    def _free_of_queries(self) -> int:
        """How many more may compute interactive work: without bulk work, no more than there are without an express one.

        For that many there are cores.
        """
        if self._scheduler.waiting(Priority.BULK) or any(slot.has_bulk for slot in self.slots):
            return len(self.slots)
        regular = sum(slot.is_usable and not slot.is_reserved for slot in self.slots)
        return max(1, regular) - sum(slot.is_usable and bool(slot.in_flight) for slot in self.slots)

    def left_to(self, slot: Slot) -> Slot | None:
        """To which idle worker a lowered one leaves interactive work that is too little to share; it may sleep."""
        leader = self._scheduler.oldest(Priority.INTERACTIVE)
        if leader is None or not slot.is_lowered:
            return None
        model, lane = leader.batch_key.model, Priority.INTERACTIVE
        count, cost = self._scheduler.waiting(lane), self._scheduler.waiting_cost(lane)
        is_little = count == 1 or (cost <= SPLIT_FLOOR_TOKENS and count <= leader.batch_key.max_batch_size)
        fit = (
            other for other in self.slots if other.is_reserved and other.is_idle and self._may_take(other, lane, model)
        )
        return next(fit, None) if is_little else None

    # ---------------------------------------------------------------- answers

    def take_answer(self, slot: Slot, now: float) -> tuple[Order, float]:
        """The order that the worker has just answered, and how long it took."""
        order = slot.in_flight.popleft()
        seconds = now - order.started
        if slot.in_flight:
            slot.in_flight[0].started = now
        if order.batch is not None:
            order.speed.measure(seconds, order.cost)
            if order.batch.priority is Priority.BULK:
                self._note_bulk(now)
        return order, seconds

    def loaded(self, slot: Slot, model: PooledModel, info: "ModelInfo") -> bool:
        """Learn that the worker has loaded `model`; returns whether that is wanted still, or it is to be dropped."""
        if model.key not in self.models:
            return False
        slot.loaded.add(model.key)
        model.info = info
        model.load_crashes = 0
        return True

    def load_failed(self, slot: Slot, model: PooledModel, error: AsyncEmbedError) -> list[FailedItem]:
        """Learn that the worker cannot load `model`."""
        if not model.is_warming and self._is_loaded_somewhere(model):
            # Others compute with it, so it is this worker that something is wrong with: no input has to pay for that.
            slot.die(Death.CANNOT_LOAD, str(error))
            return []
        return self._fail_load(model, error)

    def computed(self, slot: Slot, order: Order, answer: "Encoded", seconds: float) -> None:
        """Learn that a batch was computed, with a result or an error for each of its items."""
        assert order.batch is not None
        slot.crashes_in_a_row = 0
        if slot.is_express:
            self._express_deaths = 0
        order.model.record(order.batch, answer, seconds)

    def batch_failed(self, slot: Slot, batch: Batch, error: AsyncEmbedError) -> list[FailedItem]:
        """Learn that a batch has failed as a whole, and killed nobody."""
        slot.crashes_in_a_row = 0
        if isinstance(error, EncodeError | InputError) and len(batch.items) > 1:
            # One of the inputs may be to blame: the halves tell.
            return self._retry(batch.halves(kills=batch.kills), error)
        return self._fail_batch(batch, error)

    def seconds_left(self, slot: Slot, now: float) -> float:
        """Until what the worker does is overdue, or an express one was of no use for long."""
        if not slot.in_flight:
            is_last = all(other.is_given_up or other is slot for other in self.slots)
            return slot.needed + EXPRESS_IDLE_SECONDS - now if slot.is_express and not is_last else inf
        order = slot.in_flight[0]
        limit = self._load_timeout if order.batch is None else self._batch_timeout
        if limit is None:
            return inf
        if order.batch is not None and order.cost > order.batch.batch_key.max_batch_tokens:
            # One input, over the budget of a batch: its length may ask for more time than any batch is given.
            limit = max(limit, OVERDUE_TIMES * order.model.most_seconds(order.cost))
        return order.started + limit - now

    def check_time(self, slot: Slot, now: float) -> None:
        """End a worker whose time is over."""
        if self.seconds_left(slot, now) <= 0:
            slot.die(Death.TIMED_OUT if slot.in_flight else Death.NOT_NEEDED)

    # ---------------------------------------------------------------- deaths

    def end(self, slot: Slot) -> None:
        """Learn that the worker runs no more, or is not to."""
        slot.is_ready = False

    def bury(self, slot: Slot) -> list[FailedItem]:
        """Put back what the dead worker had; the batch that it was computing is the one under suspicion."""
        assert not slot.is_ready
        self._restarts += slot.death is not Death.NOT_NEEDED
        slot.crashes_in_a_row += 1
        slot.loaded.clear()
        slot.fatal_model = None
        orders, slot.in_flight = list(slot.in_flight), deque()
        innocent = [order.batch for order in orders[1:] if order.batch is not None]
        if slot.held is not None:
            innocent.append(slot.held)
            slot.held = None
        failed = self._retry(innocent, WorkerError(f"the worker {slot.reason}"), first=True)
        if not orders:
            return failed
        suspect = orders[0]
        if suspect.batch is not None:
            return failed + self._blame(suspect.batch, slot.reason)
        slot.fatal_model = suspect.model.key
        return failed + self._blame_load(suspect.model, slot.reason)

    def _retry(self, batches: Sequence[Batch], error: AsyncEmbedError, *, first: bool = False) -> list[FailedItem]:
        """Have `batches` computed before anything that waits; those of a model that is gone fail with `error`."""
        known = [batch for batch in batches if batch.batch_key.model in self.models]
        self._retries = [*known, *self._retries] if first else [*self._retries, *known]
        gone = [batch for batch in batches if batch.batch_key.model not in self.models]
        return [FailedItem(item, error) for batch in gone for item in batch.items]

    def _blame(self, batch: Batch, reason: str) -> list[FailedItem]:
        batch.kills += 1
        if not _drop_withdrawn(batch):
            return []
        error = WorkerCrashed(f"the worker {reason} each time this input was computed, at last with it alone")
        if batch.kills < KILLS_BEFORE_SPLITTING:
            return self._retry([batch], error)
        if len(batch.items) > 1:
            # One kill to their name already: the next one splits them again.
            return self._retry(batch.halves(kills=KILLS_BEFORE_SPLITTING - 1), error)
        return self._fail_batch(batch, error)

    def _blame_load(self, model: PooledModel, reason: str) -> list[FailedItem]:
        if not model.is_warming and self._is_loaded_somewhere(model):
            return []  # it is this worker that something is wrong with; it tries again, ever more slowly
        model.load_crashes += 1
        if model.load_crashes < MAX_LOAD_CRASHES * len(self.slots):
            return []
        model.load_crashes = 0
        text = f"workers die while they load {model.name} (the last one {reason}); is there memory for it?"
        return self._fail_load(model, ModelLoadError(text, model=model.name))

    def give_up(self, slot: Slot, error: AsyncEmbedError) -> list[FailedItem]:
        """Wait for this slot no more, until a worker runs here after all; with the last one, all that waits fails."""
        slot.is_given_up = True
        self._start_error = error
        return self._fail_without_workers()

    def _fail_without_workers(self) -> list[FailedItem]:
        if self._start_error is None or not all(slot.is_given_up for slot in self.slots):
            return []
        self._failure = self._start_error
        return self._fail_waiting(self._failure)

    def compute_alone(self) -> None:
        """Start only one more worker for all work, and those kept free: threads, which nobody can end in time."""
        self._may_call_express = False
        self.slots = [slot for slot in self.slots if slot.index == 0 or slot.is_reserved or slot.is_ready]
        self._batch_timeout = self._load_timeout = None

    def close(self, error: AsyncEmbedError) -> list[FailedItem]:
        """Forget all models; whatever has no answer yet fails with `error`."""
        failed = self._fail_waiting(error)
        for slot in self.slots:
            for order in slot.in_flight:
                failed += [FailedItem(item, error) for item in (order.batch.items if order.batch is not None else ())]
            slot.in_flight.clear()
        self.models.clear()
        return failed

    def _fail_waiting(self, error: AsyncEmbedError) -> list[FailedItem]:
        return [failed for model in self.models.values() for failed in self._fail_model(model, error)]

    def _fail_load(self, model: PooledModel, error: AsyncEmbedError) -> list[FailedItem]:
        model.load_error = error
        return self._fail_model(model, error)

    def _fail_model(self, model: PooledModel, error: AsyncEmbedError) -> list[FailedItem]:
        """Fail all that waits for `model`; what a worker has is computed all the same."""
        items = self._scheduler.withdraw_model(model.key)
        for batch in self._put_back():
            if batch.batch_key.model == model.key:
                items += batch.items
        self._retries = [batch for batch in self._retries if batch.batch_key.model != model.key]
        for slot in self.slots:
            if slot.held is not None and slot.held.batch_key.model == model.key:
                slot.held = None
        return [FailedItem(item, error) for item in items]

    def _fail_batch(self, batch: Batch, error: AsyncEmbedError) -> list[FailedItem]:
        model = self.models.get(batch.batch_key.model)
        if model is not None:
            model.failed += len(batch.items)
        return [FailedItem(item, error) for item in batch.items]

    # ---------------------------------------------------------------- looking

    def _put_back(self) -> Iterator[Batch]:
        """Batches that were formed, and that no worker has."""
        return chain(self._retries, (slot.held for slot in self.slots if slot.held is not None))

    def stats(self, model: PooledModel | None = None) -> Stats:
        """A snapshot of the whole pool, or of one model; the queue and the workers are always the pool's."""
        models = [model] if model is not None else list(self.models.values())
        seconds = [value for known in models for value in known.batch_seconds]
        return Stats(
            queued_interactive=self._queued(Priority.INTERACTIVE),
            queued_bulk=self._queued(Priority.BULK),
            in_flight=sum(len(slot.in_flight) for slot in self.slots),
            batches=sum(known.batches for known in models),
            items=sum(known.items for known in models),
            failed=sum(known.failed for known in models),
            tokens=sum(known.tokens for known in models),
            padded_tokens=sum(known.padded_tokens for known in models),
            batch_seconds=median(seconds) if seconds else 0.0,
            workers=len(self.slots),
            workers_interactive=sum(slot.is_reserved for slot in self.slots),
            workers_ready=sum(slot.is_ready for slot in self.slots),
            workers_restarted=self._restarts,
            refused=sum(known.refused for known in models),
            truncated=sum(known.truncated for known in models),
            deduplicated=sum(known.deduplicated for known in models),
            cache_hits=sum(known.cache_hits for known in models),
            cache_misses=sum(known.cache_misses for known in models),
        )


class _Nobody:
    """The sink of items that were withdrawn."""

    def deliver(self, index: int, result: object) -> None:
        """Drop the result."""

    def fail(self, index: int, error: Exception) -> None:
        """Drop the error."""


NOBODY = _Nobody()


def _drop_withdrawn(batch: Batch) -> bool:
    """Drop the items that nobody waits for any more; returns whether any are left."""
    batch.items = [item for item in batch.items if item.sink is not NOBODY]
    return bool(batch.items)


def _is_expected(model: PooledModel, now: float) -> bool:
    """Whether interactive work of the model is likely to come: it did lately, and over more than a moment."""
    is_lasting = model.asked - model.asked_since > EXPECTED_AFTER_SECONDS
    return is_lasting and now - model.asked < EXPRESS_IDLE_SECONDS
