"""What the dispatcher decides: no process, no loop, no clock. Workers are played by the tests."""

from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo
from asyncembed.engine.dispatch import (
    BULK_PAUSE_SECONDS,
    COMPANY_SHARE,
    EXPECTED_AFTER_SECONDS,
    EXPRESS_IDLE_SECONDS,
    EXPRESS_REST_SECONDS,
    KILLS_BEFORE_SPLITTING,
    LONG_IN_BULK_SECONDS,
    MAX_LOAD_CRASHES,
    NOBODY,
    OVERDUE_TIMES,
    WORTH_SHARING_SECONDS,
    Dispatcher,
    FailedItem,
)
from asyncembed.engine.model import PooledModel
from asyncembed.engine.scheduler import SPLIT_FLOOR_TOKENS, BatchKey, Item, Priority
from asyncembed.engine.slot import ROUND_TRIP_SECONDS, WORTH_AN_EXPRESS_SECONDS, Death, Order, Slot
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
from tests.support.encoders import ECHO

CONFIG = EncoderConfig(spec=ECHO, directory=Path())


class Answers:
    """The sink of all items of a test: what each of them was answered."""

    def __init__(self) -> None:
        self.heard: dict[int, object] = {}

    def deliver(self, index: int, result: object) -> None:
        assert index not in self.heard, "answered twice"
        self.heard[index] = result

    def fail(self, index: int, error: Exception) -> None:
        self.deliver(index, error)


class Rig:
    """A dispatcher, and what the supervisor would do around it."""

    def __init__(
        self,
        workers: int = 1,
        reserved: int = 0,
        *,
        batch_timeout: float | None = 10.0,
        max_queued: int | None = None,
        may_call_express: bool = False,
    ) -> None:
        self.dispatcher = Dispatcher(
            workers,
            reserved,
            batch_timeout=batch_timeout,
            max_queued=max_queued,
            may_call_express=may_call_express,
        )
        self.answers = Answers()
        self.now = 0.0
        self.count = 0

    @property
    def slots(self) -> list[Slot]:
        return self.dispatcher.slots

    def start_all(self) -> None:
        for slot in self.slots:
            self.dispatcher.begin(slot)

    def loaded_model(self) -> PooledModel:
        """A model that every worker has."""
        model = self.dispatcher.add_model(CONFIG)
        for slot in self.slots:
            self.dispatcher.loaded(slot, model, ModelInfo())
        return model

    def add(
        self, model: PooledModel, count: int = 1, *, size: int = 10, at_once: int = 1, bulk: bool = True
    ) -> list[Item]:
        """Items of `model`, `at_once` of which fill a batch."""
        batch_key = BatchKey(model.key, Call(), 10_000, at_once)
        priority = Priority.BULK if bulk else Priority.INTERACTIVE
        items = [Item("text", size, batch_key, priority, self.answers, self.count + i) for i in range(count)]
        self.count += count
        self.tell(self.dispatcher.add(items))
        return items

    def tell(self, failed: list[FailedItem]) -> None:
        for item, error in failed:
            item.sink.fail(item.index, error)

    def order(self, slot: Slot) -> Order | None:
        """The next order, sent."""
        order = self.dispatcher.next_order(slot)
        if order is not None:
            self.dispatcher.sent(slot, order, self.now)
        return order

    def batch(self, slot: Slot) -> list[int]:
        """The indices of the next batch, sent; none if there is none."""
        order = self.order(slot)
        if order is None:
            return []
        assert order.batch is not None, "a model was to be loaded"
        return [item.index for item in order.batch.items]

    def answer(self, slot: Slot, *, after: float = 1.0) -> None:
        """The worker answers what it does, `after` seconds later."""
        self.now += after
        order, seconds = self.dispatcher.take_answer(slot, self.now)
        if order.batch is None:
            self.dispatcher.loaded(slot, order.model, ModelInfo())
        else:
            self.dispatcher.computed(slot, order, Encoded([0] * len(order.batch.items)), seconds)
            for item in order.batch.items:
                item.sink.deliver(item.index, "computed")

    def answer_failing(self, slot: Slot, error: AsyncEmbedError) -> None:
        """What the worker does fails."""
        order, _ = self.dispatcher.take_answer(slot, self.now)
        if order.batch is None:
            self.tell(self.dispatcher.load_failed(slot, order.model, error))
        else:
            self.tell(self.dispatcher.batch_failed(slot, order.batch, error))

    def die(self, slot: Slot, death: Death = Death.ENDED, *, replaced: bool = True) -> None:
        """The worker ends, and another one takes its place."""
        slot.die(death)
        self.dispatcher.end(slot)
        self.tell(self.dispatcher.bury(slot))
        if replaced:
            self.dispatcher.begin(slot)


def ready_rig(workers: int = 1, reserved: int = 0) -> tuple[Rig, PooledModel]:
    """Workers that run, and a model that all of them have loaded."""
    rig = Rig(workers, reserved)
    rig.start_all()
    return rig, rig.loaded_model()


# ---------------------------------------------------------------- the express worker


def express_rig(workers: int = 1, *, waiting: int = 1) -> tuple[Rig, PooledModel]:
    """Workers that run, with a model and a bulk batch each, and more of it waiting."""
    rig = Rig(workers, may_call_express=True)
    rig.start_all()
    model = rig.loaded_model()
    rig.add(model, workers + waiting)
    assert all(rig.batch(slot) for slot in rig.slots)
    return rig, model


def called(rig: Rig, *, after: float = 1.0) -> Slot | None:
    rig.now += after
    return rig.dispatcher.call_express(rig.now)


def begun(rig: Rig, slot: Slot | None) -> Slot:
    """An express worker that was called, with the models that it is there for."""
    assert slot is not None
    rig.dispatcher.begin(slot)
    for model in rig.dispatcher.models.values():
        if model.needs_express:
            order = rig.order(slot)
            assert order is not None
            assert order.batch is None
            rig.answer(slot, after=0.0)
    return slot


def test_an_express_worker_is_called_once_when_interactive_work_waits_for_bulk_work() -> None:
    rig, model = express_rig()
    assert called(rig) is None
    rig.add(model, bulk=False)
    assert rig.dispatcher.stats().workers == 1
    express = begun(rig, called(rig))
    assert called(rig) is None
    assert (rig.dispatcher.stats().workers, rig.dispatcher.stats().workers_interactive) == (2, 1)
    assert rig.batch(express) == [2]
    assert rig.batch(express) == [], "bulk work is not for it"


def test_none_is_called_where_a_worker_is_idle_or_computes_interactive_work_or_will_soon_be_done() -> None:
    rig, model = express_rig(2, waiting=0)
    rig.answer(rig.slots[0])
    rig.add(model, 2, bulk=False)
    assert called(rig) is None, "one is idle"
    rig.batch(rig.slots[0])
    rig.answer(rig.slots[1])
    rig.batch(rig.slots[1])
    assert called(rig) is None, "they compute interactive work"
    rig, model = express_rig()
    rig.add(model, bulk=False)
    assert called(rig, after=WORTH_AN_EXPRESS_SECONDS / 2) is None, "it has just begun, and nobody knows for how long"
    assert called(rig, after=WORTH_AN_EXPRESS_SECONDS) is not None


def test_where_queries_came_lately_it_is_called_for_an_ingest_before_they_meet() -> None:
    rig = Rig(may_call_express=True)
    rig.start_all()
    model = rig.loaded_model()

    def compute(*, bulk: bool, after: float = 1.0) -> None:
        rig.add(model, bulk=bulk)
        rig.batch(rig.slots[0])
        rig.answer(rig.slots[0], after=after)

    compute(bulk=True)
    rig.add(model, 3)
    rig.batch(rig.slots[0])
    assert called(rig) is None, "no queries came"
    rig.answer(rig.slots[0], after=EXPRESS_IDLE_SECONDS)
    compute(bulk=False, after=EXPECTED_AFTER_SECONDS)
    rig.add(model, 3)
    rig.batch(rig.slots[0])
    assert called(rig, after=LONG_IN_BULK_SECONDS) is None, "one came, to try it"
    rig.add(model, bulk=False)
    for _ in range(6):
        rig.answer(rig.slots[0])
        rig.batch(rig.slots[0])
    rig.now += BULK_PAUSE_SECONDS + EXPRESS_IDLE_SECONDS / 2
    rig.add(model, 3)
    rig.batch(rig.slots[0])
    assert called(rig, after=LONG_IN_BULK_SECONDS / 2) is None, "it may be short"
    assert called(rig, after=EXPRESS_IDLE_SECONDS) is None, "they came long ago"
    rig.now -= EXPRESS_IDLE_SECONDS
    assert called(rig, after=LONG_IN_BULK_SECONDS / 2) is not None


def test_none_is_called_where_it_was_not_asked_for_or_an_accelerator_computes() -> None:
    rig, model = ready_rig()
    rig.add(model, 2)
    rig.batch(rig.slots[0])
    rig.add(model, bulk=False)
    assert called(rig) is None
    rig, model = express_rig()
    model.info = ModelInfo(providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    rig.add(model, bulk=False)
    assert called(rig) is None


def test_it_loads_only_models_whose_interactive_work_waited() -> None:
    rig, model = express_rig()
    other = rig.loaded_model()
    for each in (model, other):
        rig.dispatcher.want_everywhere(each)
    rig.add(model, bulk=False)
    express = begun(rig, called(rig))
    assert express.loaded == {model.key}
    assert rig.batch(express) == [2]
    rig.answer(express)
    rig.add(other, bulk=False)
    assert rig.batch(express) == [], "others have it: it is not loaded while somebody waits"
    assert called(rig) is None
    order = rig.order(express)
    assert order is not None
    assert (order.model, order.batch) == (other, None)
    assert rig.dispatcher.is_loaded_everywhere(other), "nobody waits for the express worker"


def test_it_ends_when_it_was_of_no_use_for_long_unless_it_is_the_last() -> None:
    rig, model = express_rig()
    rig.add(model, 2, bulk=False)
    express = begun(rig, called(rig))
    assert rig.batch(express) == [2]
    rig.answer(express, after=EXPRESS_IDLE_SECONDS / 2)
    assert rig.dispatcher.seconds_left(express, rig.now) == EXPRESS_IDLE_SECONDS / 2
    rig.die(rig.slots[0], replaced=False)
    rig.dispatcher.give_up(rig.slots[0], WorkerError("cannot be started"))
    assert rig.dispatcher.seconds_left(express, rig.now) == inf
    rig.dispatcher.begin(rig.slots[0])
    rig.dispatcher.check_time(express, rig.now + EXPRESS_IDLE_SECONDS)
    assert express.death is Death.NOT_NEEDED
    rig.dispatcher.end(express)
    assert rig.dispatcher.retire(express, rig.now) == []
    assert rig.slots == [rig.slots[0]]


def test_what_it_had_when_it_died_is_computed_by_the_next_one() -> None:
    rig, model = express_rig()
    rig.add(model, bulk=False)
    express = begun(rig, called(rig))
    assert rig.batch(express) == [2]
    retire(rig, express)
    assert rig.dispatcher.stats().workers_restarted == 1
    rig.add(model, bulk=False)
    express = begun(rig, called(rig))
    assert rig.batch(express) == [2]
    rig.answer(express)
    assert rig.batch(express) == [3]


def test_the_more_often_it_dies_while_it_loads_the_longer_none_is_started() -> None:
    rig, model = express_rig()
    rig.add(model, bulk=False)
    rests = []
    for _ in range(4):
        rests.append(rig.now)
        while (express := called(rig)) is None:
            pass
        rests[-1] = rig.now - rests[-1]
        rig.dispatcher.begin(express)
        assert rig.order(express) is not None
        retire(rig, express)
    assert rests == [1.0, 1.0, EXPRESS_REST_SECONDS, 2 * EXPRESS_REST_SECONDS]
    assert called(rig, after=EXPRESS_IDLE_SECONDS) is not None, "no longer than that"
    assert rig.answers.heard == {}, "another has loaded it: it is not the model's fault"


def test_what_waits_fails_when_it_was_the_last_worker() -> None:
    rig, model = express_rig()
    rig.add(model, bulk=False)
    express = begun(rig, called(rig))
    rig.die(rig.slots[0], replaced=False)
    rig.tell(rig.dispatcher.give_up(rig.slots[0], WorkerError("cannot be started")))
    for index in (2, 0):
        assert rig.batch(express) == [index], "it takes bulk work, too"
        rig.answer(express)
    retire(rig, express)
    assert isinstance(rig.answers.heard[1], WorkerError)


def test_bulk_work_makes_way_from_the_first_query_beside_it() -> None:
    rig, model = express_rig()
    assert not rig.dispatcher.bulk_makes_way
    rig.add(model, bulk=False)
    express = begun(rig, called(rig))
    assert not rig.dispatcher.bulk_makes_way
    rig.batch(express)
    assert rig.dispatcher.bulk_makes_way
    rig, model = ready_rig(1, reserved=1)
    rig.add(model, bulk=False)
    assert rig.batch(rig.slots[1]) == [0]
    assert not rig.dispatcher.bulk_makes_way, "there is none"
    rig.answer(rig.slots[1])
    rig.add(model)
    rig.batch(rig.slots[0])
    rig.add(model, bulk=False)
    assert rig.batch(rig.slots[1]) == [2]
    assert rig.dispatcher.bulk_makes_way


def test_a_worker_that_makes_way_leaves_a_query_to_an_idle_one_that_does_not_and_goes_on_with_bulk_work() -> None:
    rig, model = ready_rig(1, reserved=1)
    rig.slots[0].is_lowered = True
    rig.add(model, 2)
    rig.add(model, 2, bulk=False, size=SPLIT_FLOOR_TOKENS)
    assert rig.batch(rig.slots[0]) == [2], "there is more than one worker is for"
    rig.answer(rig.slots[0])
    assert rig.batch(rig.slots[0]) == [0]
    rig.answer(rig.slots[0])
    assert rig.batch(rig.slots[1]) == [3]
    rig.add(model, 1, bulk=False)
    assert rig.batch(rig.slots[0]) == [4], "the other one is busy"


def test_without_bulk_work_no_more_compute_than_there_are_cores_for() -> None:
    rig, model = express_rig(2, waiting=0)
    rig.add(model, 3, bulk=False)
    express = begun(rig, called(rig))
    assert rig.batch(express) == [2], "beside bulk work"
    for slot in rig.slots:
        rig.answer(slot)
        slot.is_lowered = not slot.is_reserved
    rig.add(model, 10, bulk=False)
    assert [len(rig.batch(slot)) for slot in rig.slots] == [1, 1, 0]
    rig.answer(rig.slots[0])
    assert rig.batch(express), "whichever is idle"
    assert not rig.batch(rig.slots[0])


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 6), st.booleans())
        | st.tuples(st.integers(0, 3), st.just(0), st.booleans()),
        max_size=30,
    ),
    st.integers(1, 3),
)
@example([(1, 6, False), (0, 0, True)], 1)
def test_no_worker_sleeps_while_something_waits_that_none_computes(
    events: list[tuple[int, int, bool]], workers: int
) -> None:
    """A worker is asked when something comes, when it has answered, when one is new, and when work is left to it.

    Events are a worker, and how many items come, of which lane; or none, and the worker answers or dies.
    """
    rig, model = express_rig(workers, waiting=0)
    rig.add(model, bulk=False)
    begun(rig, called(rig))
    for slot in rig.slots:
        slot.is_lowered = not slot.is_reserved

    def ask(slot: Slot) -> None:
        while rig.order(slot) is not None:
            pass
        other = rig.dispatcher.left_to(slot)
        if other is not None:
            ask(other)

    def ask_those_with_room() -> None:
        for slot in list(rig.dispatcher.slots_with_room()):
            ask(slot)

    for which, count, dies_or_bulk in [*events, *[(which, 0, False) for which in range(4)] * (1 + 6 * len(events))]:
        slot = rig.slots[which % len(rig.slots)]
        if count:
            rig.add(model, count, size=40, at_once=3, bulk=dies_or_bulk)
            ask_those_with_room()
        elif slot.in_flight and dies_or_bulk and not slot.is_reserved:
            rig.die(slot, replaced=False)
            ask_those_with_room()
            rig.dispatcher.begin(slot)
            rig.dispatcher.loaded(slot, model, ModelInfo())
            slot.is_lowered = True
            ask(slot)
        elif slot.in_flight:
            rig.answer(slot)
            ask(slot)
    assert len(rig.answers.heard) == rig.count


def test_an_idle_worker_that_makes_way_is_no_better_than_a_busy_one() -> None:
    rig, model = express_rig()
    rig.answer(rig.slots[0])
    rig.add(model, bulk=False)
    assert called(rig) is None
    rig.slots[0].is_lowered = True
    assert called(rig) is not None


def retire(rig: Rig, express: Slot) -> None:
    """The express worker ends, and none takes its place."""
    express.die(Death.ENDED)
    rig.dispatcher.end(express)
    rig.tell(rig.dispatcher.retire(express, rig.now))


# ---------------------------------------------------------------- whose turn, and what may it take?


def test_a_worker_that_loads_a_model_is_given_nothing() -> None:
    rig, _ = ready_rig()
    other = rig.dispatcher.add_model(CONFIG)
    rig.add(other)
    order = rig.order(rig.slots[0])
    assert order is not None
    assert order.batch is None
    assert rig.order(rig.slots[0]) is None
    rig.answer(rig.slots[0])
    assert rig.batch(rig.slots[0]) == [0]


def test_interactive_work_goes_first() -> None:
    rig, model = ready_rig()
    rig.add(model, 2)
    rig.add(model, 1, bulk=False)
    assert rig.batch(rig.slots[0]) == [2]


def test_a_reserved_worker_takes_no_bulk_work() -> None:
    rig, model = ready_rig(1, reserved=1)
    rig.add(model, 2)
    assert rig.batch(rig.slots[1]) == []
    rig.add(model, 1, bulk=False)
    assert rig.batch(rig.slots[1]) == [2]


def test_a_reserved_worker_takes_bulk_work_when_no_other_is_left() -> None:
    rig, model = ready_rig(1, reserved=1)
    rig.add(model, 1)
    rig.die(rig.slots[0], replaced=False)
    rig.tell(rig.dispatcher.give_up(rig.slots[0], WorkerError("never again")))
    assert rig.batch(rig.slots[1]) == [0]


def test_a_reserved_worker_takes_a_query_though_it_is_the_turn_of_bulk_work() -> None:
    rig, model = ready_rig(1, reserved=1)
    rig.add(model, 20)
    rig.add(model, 20, bulk=False)
    first = [rig.batch(rig.slots[1])]
    for _ in range(9):
        rig.answer(rig.slots[1])
        first.append(rig.batch(rig.slots[1]))
    assert first == [[index] for index in range(20, 30)]


def test_what_waits_is_shared_among_idle_workers() -> None:
    rig, model = ready_rig(2)
    rig.add(model, 200, size=100, at_once=1000)
    assert len(rig.batch(rig.slots[0])) < 200
    assert len(rig.batch(rig.slots[1])) > 0


def test_work_that_is_done_at_once_is_not_shared() -> None:
    rig, model = ready_rig(2)
    speed = model.speed(BatchKey(model.key, Call(), 10_000, 1000))
    speed.measure(0.001, 10_000)
    rig.add(model, 50, size=100, at_once=1000)
    assert len(rig.batch(rig.slots[0])) == 50


def test_a_busy_worker_leaves_work_to_an_idle_one() -> None:
    rig, model = ready_rig(2)
    rig.add(model, 3)
    model.speed(BatchKey(model.key, Call(), 10_000, 1)).measure(ROUND_TRIP_SECONDS / 10, 10)
    assert rig.batch(rig.slots[0]) == [0]
    assert rig.batch(rig.slots[0]) == [], "the other one would begin at once"
    assert rig.batch(rig.slots[1]) == [1]
    assert rig.batch(rig.slots[0]) == [2]


@pytest.mark.parametrize(
    "with_others", [{"may_call_express": True}, {"reserved": 1}, {}], ids=["express", "kept", "none"]
)
def test_where_others_do_what_is_urgent_much_bulk_work_is_sent_ahead(with_others: Any) -> None:
    """As the loop has to wait for a core, too. Where queries would have to wait for both, no second one is sent."""
    rig = Rig(2, **with_others)
    rig.start_all()
    model = rig.loaded_model()
    model.speed(BatchKey(model.key, Call(), 10_000, 1)).measure(0.06, 10)
    rig.add(model, 6)
    assert [rig.batch(slot) for slot in rig.slots[:2]] == [[0], [1]]
    assert [rig.batch(slot) for slot in rig.slots[:2]] == ([[2], [3]] if with_others else [[], []])
    assert [rig.batch(slot) for slot in rig.slots[:2]] == [[], []], "one is enough"
    rig.answer(rig.slots[0])
    assert rig.batch(rig.slots[0]) == ([] if with_others else [2]), "little is left, and is for whoever is done first"


# ---------------------------------------------------------------- whom may a batch wait for?


WORTH_WAITING_SECONDS = ROUND_TRIP_SECONDS / COMPANY_SHARE * 1.5


def busy_rig(workers: int = 1, *, count: int = 1, seconds: float = WORTH_WAITING_SECONDS) -> tuple[Rig, PooledModel]:
    """Workers the first of which computes `count` queries, each of which takes so long; 50 of them fill a batch."""
    rig, model = ready_rig(workers)
    model.speed(BatchKey(model.key, Call(), 10_000, 50)).measure(seconds, 10)
    rig.add(model, count, at_once=50, bulk=False)
    assert len(rig.batch(rig.slots[0])) == count
    return rig, model


def test_queries_wait_for_the_end_of_what_is_computed_and_those_that_come_meanwhile_join_them() -> None:
    rig, model = busy_rig()
    rig.add(model, 2, at_once=50, bulk=False)
    assert not list(rig.dispatcher.slots_with_room()), "nobody is woken in vain"
    assert rig.batch(rig.slots[0]) == []
    rig.add(model, 3, at_once=50, bulk=False)
    rig.answer(rig.slots[0])
    assert rig.batch(rig.slots[0]) == [1, 2, 3, 4, 5]


def test_queries_that_fill_a_batch_wait_for_nobody() -> None:
    rig, model = busy_rig()
    rig.add(model, 50, at_once=50, bulk=False)
    assert list(rig.dispatcher.slots_with_room()) == [rig.slots[0]]
    assert len(rig.batch(rig.slots[0])) == 50


def test_queries_do_not_wait_for_what_ends_within_some_round_trips() -> None:
    rig, model = busy_rig(seconds=ROUND_TRIP_SECONDS / COMPANY_SHARE / 1.5)
    rig.add(model, 2, at_once=50, bulk=False)
    assert rig.batch(rig.slots[0]) == [1, 2]


def test_bulk_work_waits_for_nobody_and_queries_in_its_midst_neither() -> None:
    rig, model = busy_rig()
    rig.add(model, 2, at_once=50)
    assert rig.batch(rig.slots[0]) == [1, 2]
    rig, model = busy_rig()
    rig.add(model, 2, at_once=50)
    rig.add(model, 1, at_once=50, bulk=False)
    assert rig.batch(rig.slots[0]) == [3]


def test_an_idle_worker_waits_for_those_who_may_join_queries_that_fill_no_batch() -> None:
    rig, model = ready_rig()
    slot = rig.slots[0]
    assert not rig.dispatcher.may_be_joined(slot), "there is nothing to join"
    rig.add(model, 1, at_once=2, bulk=False)
    assert rig.dispatcher.may_be_joined(slot)
    rig.add(model, 1, at_once=2, bulk=False)
    assert not rig.dispatcher.may_be_joined(slot)
    assert rig.batch(slot) == [0, 1]
    rig.add(model, 1, at_once=2, bulk=False)
    assert not rig.dispatcher.may_be_joined(slot), "it computes"
    rig.answer(slot)
    assert rig.batch(slot) == [2]
    rig.answer(slot)
    rig.add(model, 1, at_once=2)
    assert not rig.dispatcher.may_be_joined(slot), "bulk work waits for nobody"


def test_a_worker_leaves_a_busy_one_as_many_queries_as_it_takes() -> None:
    rig, model = busy_rig(2, count=2)
    rig.add(model, 14, at_once=50, bulk=False)
    assert len(rig.batch(rig.slots[1])) == 8
    rig.answer(rig.slots[0])
    rig.add(model, 2, at_once=50, bulk=False)
    assert len(rig.batch(rig.slots[0])) == 8, "as those who were answered have come back"


def test_a_worker_leaves_a_busy_one_no_query_if_that_has_much_to_do() -> None:
    rig, model = busy_rig(2, count=12)
    rig.add(model, 12, at_once=50, bulk=False)
    assert len(rig.batch(rig.slots[1])) == 12


def test_a_worker_leaves_a_busy_one_no_queries_that_are_done_at_once() -> None:
    rig, model = busy_rig(2, count=2, seconds=WORTH_SHARING_SECONDS / 7)
    rig.add(model, 14, at_once=50, bulk=False)
    assert len(rig.batch(rig.slots[1])) == 14


def test_a_worker_leaves_a_busy_one_no_few_queries() -> None:
    rig, model = busy_rig(2)
    rig.add(model, 3, at_once=50, bulk=False)
    assert len(rig.batch(rig.slots[1])) == 3


def test_a_worker_leaves_one_that_loads_a_model_no_queries() -> None:
    rig, model = ready_rig(2)
    rig.slots[0].loaded.clear()
    model.speed(BatchKey(model.key, Call(), 10_000, 50)).measure(1.0, 10)
    rig.add(model, 14, size=30, at_once=50, bulk=False)
    order = rig.order(rig.slots[0])
    assert order is not None
    assert order.batch is None
    held = rig.slots[0].held
    assert held is not None
    rig.add(model, 14, at_once=50, bulk=False)
    waiting = 28 - len(held.items)
    assert len(rig.batch(rig.slots[1])) == waiting


# ---------------------------------------------------------------- models


def test_a_wanted_model_is_loaded_ahead_of_its_first_batch() -> None:
    rig = Rig(2)
    model = rig.dispatcher.add_model(CONFIG)
    rig.dispatcher.want_everywhere(model)
    rig.start_all()
    for slot in rig.slots:
        assert not rig.dispatcher.is_loaded_everywhere(model)
        order = rig.order(slot)
        assert order is not None
        assert (order.model, order.batch) == (model, None)
        rig.answer(slot)
    assert rig.dispatcher.is_loaded_everywhere(model)
    assert all(rig.order(slot) is None for slot in rig.slots)


def test_a_model_that_is_not_wanted_ahead_is_loaded_with_its_first_batch() -> None:
    rig = Rig()
    rig.start_all()
    model = rig.dispatcher.add_model(CONFIG)
    assert rig.order(rig.slots[0]) is None
    rig.add(model)
    order = rig.order(rig.slots[0])
    assert order is not None
    assert order.batch is None
    assert rig.dispatcher.stats().queued == 1, "what is held back is counted"
    rig.answer(rig.slots[0])
    assert rig.batch(rig.slots[0]) == [0]


def test_the_model_that_killed_the_last_worker_is_loaded_last() -> None:
    rig = Rig()
    deadly, harmless = (rig.dispatcher.add_model(CONFIG) for _ in range(2))
    for model in (deadly, harmless):
        rig.dispatcher.want_everywhere(model)
    rig.start_all()
    order = rig.order(rig.slots[0])
    assert order is not None
    assert order.model is deadly
    rig.die(rig.slots[0])
    order = rig.order(rig.slots[0])
    assert order is not None
    assert order.model is harmless


def test_a_removed_model_fails_what_waits_and_what_was_put_back_or_held() -> None:
    rig, model = ready_rig(2)
    rig.add(model, 3)
    assert rig.batch(rig.slots[0]) == [0]
    rig.die(rig.slots[0], replaced=False)
    other = rig.dispatcher.add_model(CONFIG)
    rig.add(other)
    failed, having = rig.dispatcher.remove_model(model)
    assert sorted(one.item.index for one in failed) == [0, 1, 2]
    assert {type(one.error) for one in failed} == {StateError}
    assert having == [rig.slots[1]], "those whose worker is to drop it"
    assert rig.dispatcher.remove_model(model) == ([], [])


def test_what_a_worker_computes_of_a_removed_model_is_answered() -> None:
    rig, model = ready_rig()
    rig.add(model, 1)
    assert rig.batch(rig.slots[0]) == [0]
    rig.tell(rig.dispatcher.remove_model(model)[0])
    assert rig.answers.heard == {}
    rig.answer(rig.slots[0])
    assert rig.answers.heard == {0: "computed"}


def test_a_model_that_was_removed_while_it_was_loaded_is_dropped() -> None:
    rig = Rig()
    rig.start_all()
    model = rig.dispatcher.add_model(CONFIG)
    rig.add(model)
    rig.order(rig.slots[0])
    rig.tell(rig.dispatcher.remove_model(model)[0])
    rig.dispatcher.take_answer(rig.slots[0], 1.0)
    assert not rig.dispatcher.loaded(rig.slots[0], model, ModelInfo())
    assert rig.order(rig.slots[0]) is None


def test_items_of_a_model_that_is_gone_wait_in_vain() -> None:
    rig, model = ready_rig()
    rig.dispatcher.remove_model(model)
    rig.add(model)
    assert isinstance(rig.answers.heard[0], StateError)


def test_a_model_that_cannot_be_loaded_fails_what_waits_for_it() -> None:
    rig = Rig()
    rig.start_all()
    model = rig.dispatcher.add_model(CONFIG)
    rig.dispatcher.want_everywhere(model)
    rig.add(model)
    rig.order(rig.slots[0])
    rig.answer_failing(rig.slots[0], ModelLoadError("no such tensor", model="echo"))
    assert isinstance(rig.answers.heard[0], ModelLoadError)
    with pytest.raises(ModelLoadError):
        rig.dispatcher.is_loaded_everywhere(model)
    assert rig.slots[0].death is None


def test_a_worker_that_cannot_load_what_others_have_is_to_be_ended() -> None:
    rig, model = ready_rig(2)
    rig.slots[0].loaded.clear()
    rig.add(model)
    order = rig.order(rig.slots[0])
    assert order is not None
    assert order.batch is None
    rig.answer_failing(rig.slots[0], ModelLoadError("no memory", model="echo"))
    assert rig.slots[0].death is Death.CANNOT_LOAD
    assert rig.slots[0].reason == "cannot load a model that others have loaded (no memory)"
    assert rig.slots[0].death.is_ours
    rig.die(rig.slots[0])
    assert rig.batch(rig.slots[1]) == [0], "no input has to pay for that"


def test_a_model_whose_loading_kills_again_and_again_is_given_up() -> None:
    rig = Rig()
    rig.start_all()
    model = rig.dispatcher.add_model(CONFIG)
    rig.dispatcher.want_everywhere(model)
    for _ in range(MAX_LOAD_CRASHES):
        assert not rig.dispatcher.is_loaded_everywhere(model)
        rig.order(rig.slots[0])
        rig.die(rig.slots[0])
    with pytest.raises(ModelLoadError, match="workers die while they load echo .* is there memory for it"):
        rig.dispatcher.is_loaded_everywhere(model)


# ---------------------------------------------------------------- answers


def test_a_batch_is_timed_from_when_it_is_the_first_in_flight() -> None:
    rig, model = ready_rig()
    model.speed(BatchKey(model.key, Call(), 10_000, 1)).measure(ROUND_TRIP_SECONDS, 10)
    rig.add(model, 2)
    assert [rig.batch(rig.slots[0]), rig.batch(rig.slots[0])] == [[0], [1]]
    assert rig.dispatcher.seconds_left(rig.slots[0], 4.0) == 6.0
    rig.answer(rig.slots[0], after=4.0)
    assert rig.dispatcher.seconds_left(rig.slots[0], 4.0) == 10.0
    assert rig.dispatcher.seconds_left(rig.slots[0], 15.0) < 0
    rig.answer(rig.slots[0])
    assert rig.dispatcher.seconds_left(rig.slots[0], 1000.0) == inf


def long_rig(*, budget: int, size: int) -> tuple[Rig, PooledModel]:
    """A worker that computes an input of so many tokens, after one of 10 that took a second; the limit is 10 s."""
    rig, model = ready_rig()
    batch_key = BatchKey(model.key, Call(), budget, 1, attention_tokens=3072)
    for index, tokens in enumerate((10, size)):
        rig.tell(rig.dispatcher.add([Item("text", tokens, batch_key, Priority.BULK, rig.answers, index)]))
        assert rig.batch(rig.slots[0]) == [index]
        if not index:
            rig.answer(rig.slots[0], after=1.0)
    return rig, model


def test_an_input_over_the_budget_of_a_batch_has_time_by_what_it_costs() -> None:
    rig, _ = long_rig(budget=256, size=4096)
    seconds = rig.slots[0].in_flight_seconds
    assert seconds == pytest.approx(4096 * 2 / 10, rel=0.01), "its attention takes as long as all else"
    assert rig.dispatcher.seconds_left(rig.slots[0], rig.now) == pytest.approx(OVERDUE_TIMES * seconds)
    rig.answer(rig.slots[0], after=seconds)
    rig, _ = long_rig(budget=256, size=300)
    assert rig.dispatcher.seconds_left(rig.slots[0], rig.now) > OVERDUE_TIMES * 30 - 1e-6


def test_what_other_modes_take_tells_how_long_a_first_long_input_may() -> None:
    rig, model = ready_rig()
    model.speed(BatchKey(model.key, Call(mode="passage"), 256, 1)).measure(1.0, 10)
    batch_key = BatchKey(model.key, Call(mode="query"), 256, 1)
    rig.tell(rig.dispatcher.add([Item("text", 512, batch_key, Priority.INTERACTIVE, rig.answers, 0)]))
    assert rig.batch(rig.slots[0]) == [0]
    assert rig.dispatcher.seconds_left(rig.slots[0], rig.now) == pytest.approx(OVERDUE_TIMES * 51.2)


def test_a_batch_within_the_budget_has_the_time_that_was_said() -> None:
    rig, _ = long_rig(budget=10_000, size=4096)
    assert rig.dispatcher.seconds_left(rig.slots[0], rig.now) == 10.0


def test_a_long_input_that_should_be_quick_has_the_time_that_was_said() -> None:
    rig, model = long_rig(budget=256, size=4096)
    speed = model.speed(BatchKey(model.key, Call(), 256, 1))
    for _ in range(50):
        speed.measure(0.001, 10)
    assert rig.dispatcher.seconds_left(rig.slots[0], rig.now) == 10.0


def test_a_batch_that_fails_as_a_whole_is_halved_until_one_input_is_to_blame() -> None:
    rig, model = ready_rig()
    rig.add(model, 4, at_once=4)
    while (batch := rig.batch(rig.slots[0])) != []:
        if 2 in batch:
            rig.answer_failing(rig.slots[0], EncodeError("told to fail"))
        else:
            rig.answer(rig.slots[0])
    assert isinstance(rig.answers.heard.pop(2), EncodeError)
    assert rig.answers.heard == {0: "computed", 1: "computed", 3: "computed"}
    assert model.failed == 1


def test_an_error_that_no_input_is_to_blame_for_fails_the_whole_batch() -> None:
    rig, model = ready_rig()
    rig.add(model, 4, at_once=4)
    rig.batch(rig.slots[0])
    rig.answer_failing(rig.slots[0], StateError("unheard of"))
    assert {type(answer) for answer in rig.answers.heard.values()} == {StateError}
    assert len(rig.answers.heard) == 4


def test_withdrawn_items_are_not_computed_and_not_answered() -> None:
    rig, model = ready_rig()
    items = rig.add(model, 3)
    assert rig.batch(rig.slots[0]) == [0]
    rig.dispatcher.withdraw(items[:2])
    rig.answer(rig.slots[0])
    assert rig.batch(rig.slots[0]) == [2]
    rig.answer(rig.slots[0])
    assert rig.answers.heard == {2: "computed"}


# ---------------------------------------------------------------- deaths


def test_the_first_reason_of_a_death_counts() -> None:
    slot = Slot(0)
    slot.die(Death.TIMED_OUT)
    slot.die(Death.ENDED)
    assert slot.death is Death.TIMED_OUT
    assert slot.death.is_ours
    assert not Death.ENDED.is_ours


def test_what_a_dead_worker_had_comes_before_all_that_waits() -> None:
    rig, model = ready_rig()
    model.speed(BatchKey(model.key, Call(), 10_000, 1)).measure(ROUND_TRIP_SECONDS, 10)
    rig.add(model, 3)
    assert [rig.batch(rig.slots[0]), rig.batch(rig.slots[0])] == [[0], [1]]
    rig.die(rig.slots[0])
    rig.dispatcher.loaded(rig.slots[0], model, ModelInfo())
    assert rig.dispatcher.stats().workers_restarted == 1
    # The innocent one first, so that the next death is the other's.
    assert rig.batch(rig.slots[0]) == [1]
    assert rig.batch(rig.slots[0]) == [], "the suspect runs with nothing else in flight"
    rig.answer(rig.slots[0], after=ROUND_TRIP_SECONDS)
    assert rig.batch(rig.slots[0]) == [0]
    assert rig.batch(rig.slots[0]) == [], "and nothing else beside it"


def test_a_batch_that_killed_twice_is_split() -> None:
    rig, model = ready_rig()
    rig.add(model, 4, at_once=4)
    for _ in range(KILLS_BEFORE_SPLITTING):
        assert rig.batch(rig.slots[0]) == [0, 1, 2, 3]
        rig.die(rig.slots[0])
        rig.dispatcher.loaded(rig.slots[0], model, ModelInfo())
    assert rig.batch(rig.slots[0]) == [0, 1]
    rig.die(rig.slots[0])
    rig.dispatcher.loaded(rig.slots[0], model, ModelInfo())
    assert rig.batch(rig.slots[0]) == [2, 3], "in turn"


def test_an_item_withdrawn_after_it_killed_is_not_tried_again() -> None:
    rig, model = ready_rig()
    items = rig.add(model)
    rig.batch(rig.slots[0])
    rig.dispatcher.withdraw(items)
    rig.die(rig.slots[0])
    assert rig.order(rig.slots[0]) is None
    assert rig.answers.heard == {}


def test_queries_and_the_search_for_a_bad_input_take_turns() -> None:
    rig, model = ready_rig()
    rig.add(model, 4, at_once=4)
    rig.batch(rig.slots[0])
    rig.die(rig.slots[0])
    rig.dispatcher.loaded(rig.slots[0], model, ModelInfo())
    rig.add(model, 3, bulk=False)
    assert rig.batch(rig.slots[0]) == [4]
    rig.answer(rig.slots[0])
    assert rig.batch(rig.slots[0]) == [0, 1, 2, 3]
    rig.answer(rig.slots[0])
    assert rig.batch(rig.slots[0]) == [5]


def test_a_query_that_killed_its_worker_goes_before_other_queries() -> None:
    rig, model = ready_rig()
    rig.add(model, 1, bulk=False)
    rig.batch(rig.slots[0])
    rig.add(model, 1, bulk=False)
    rig.die(rig.slots[0])
    rig.dispatcher.loaded(rig.slots[0], model, ModelInfo())
    assert rig.batch(rig.slots[0]) == [0]


def test_what_a_dead_worker_had_of_a_removed_model_fails() -> None:
    rig, model = ready_rig()
    rig.add(model)
    rig.batch(rig.slots[0])
    rig.dispatcher.remove_model(model)
    rig.die(rig.slots[0])
    assert isinstance(rig.answers.heard[0], WorkerCrashed)
    assert rig.order(rig.slots[0]) is None


def test_when_no_worker_can_be_started_what_waits_and_what_comes_fails_until_one_runs() -> None:
    rig, model = ready_rig(2)
    rig.add(model, 1)
    for slot in rig.slots:
        rig.die(slot, replaced=False)
        assert rig.answers.heard == {}
        rig.tell(rig.dispatcher.give_up(slot, WorkerError("too many open files")))
    rig.add(model, 1)
    assert [type(rig.answers.heard[index]) for index in (0, 1)] == [WorkerError, WorkerError]
    with pytest.raises(WorkerError):
        rig.dispatcher.is_loaded_everywhere(model)
    rig.dispatcher.begin(rig.slots[0])
    rig.dispatcher.loaded(rig.slots[0], model, ModelInfo())
    rig.add(model, 1)
    assert rig.batch(rig.slots[0]) == [2]
    assert rig.dispatcher.is_loaded_everywhere(model), "the other one is not waited for"


def test_computing_in_threads_keeps_a_worker_that_still_runs() -> None:
    rig, model = ready_rig(3, reserved=1)
    rig.add(model, 1)
    assert rig.batch(rig.slots[1]) == [0]
    rig.die(rig.slots[2], replaced=False)
    rig.dispatcher.compute_alone()
    assert [slot.index for slot in rig.slots] == [0, 1, 3]
    assert rig.dispatcher.seconds_left(rig.slots[1], 1e9) == inf
    rig.tell(rig.dispatcher.close(StateError("closed")))
    assert len(rig.answers.heard) == 1


def test_closing_fails_what_waits_and_what_runs() -> None:
    rig, model = ready_rig()
    rig.add(model, 3)
    rig.batch(rig.slots[0])
    rig.tell(rig.dispatcher.close(StateError("closed")))
    assert [type(rig.answers.heard[index]) for index in range(3)] == [StateError] * 3
    rig.add(model)
    assert isinstance(rig.answers.heard[3], StateError)


# ---------------------------------------------------------------- properties


@settings(deadline=None)
@given(st.integers(1, 40), st.data())
def test_kills_split_down_to_the_inputs_that_kill(count: int, data: st.DataObject) -> None:
    deadly = data.draw(st.sets(st.integers(0, count - 1), max_size=3))
    workers = data.draw(st.integers(1, 3))
    rig, model = ready_rig(workers)
    rig.add(model, count, at_once=data.draw(st.integers(1, count)))
    while len(rig.answers.heard) < count:
        before = len(rig.answers.heard), rig.dispatcher.stats().workers_restarted
        for slot in rig.slots:
            while (order := rig.order(slot)) is not None and order.batch is None:
                rig.answer(slot)
            if not slot.in_flight:
                continue
            batch = slot.in_flight[0].batch
            assert batch is not None
            if deadly & {item.index for item in batch.items}:
                rig.die(slot)
            else:
                rig.answer(slot)
        assert (len(rig.answers.heard), rig.dispatcher.stats().workers_restarted) != before, "it goes on"
    failed = {index for index, answer in rig.answers.heard.items() if answer != "computed"}
    assert failed == deadly
    assert all(isinstance(rig.answers.heard[index], WorkerCrashed) for index in deadly)
    deaths_for_one = KILLS_BEFORE_SPLITTING + count.bit_length() + 1
    assert rig.dispatcher.stats().workers_restarted <= deaths_for_one * len(deadly)


class Life(RuleBasedStateMachine):
    """A pool's life in any order of events: every item is answered once, by then or at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(2, reserved=1, may_call_express=True)
        self.dispatcher = self.rig.dispatcher
        self.models: list[PooledModel] = []
        self.items: list[Item] = []
        self.withdrawn: set[int] = set()

    # ---- what embedders do

    @rule()
    @precondition(lambda self: len(self.models) < 4)
    def add_model(self) -> None:
        self.models.append(self.dispatcher.add_model(CONFIG))

    @rule(data=st.data())
    @precondition(lambda self: self.models)
    def want_model(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.models))
        self.dispatcher.want_everywhere(model)
        model.is_warming = data.draw(st.booleans())

    @rule(data=st.data())
    @precondition(lambda self: self.models)
    def remove_model(self, data: st.DataObject) -> None:
        failed, having = self.dispatcher.remove_model(data.draw(st.sampled_from(self.models)))
        assert all(slot.is_usable for slot in having)
        self.rig.tell(failed)

    @rule(
        data=st.data(),
        count=st.integers(1, 6),
        size=st.integers(1, 3000),
        at_once=st.integers(1, 4),
        bulk=st.booleans(),
    )
    @precondition(lambda self: self.models)
    def add_items(self, data: st.DataObject, count: int, size: int, at_once: int, bulk: bool) -> None:
        model = data.draw(st.sampled_from(self.models))
        self.items += self.rig.add(model, count, size=size, at_once=at_once, bulk=bulk)

    @rule(data=st.data())
    @precondition(lambda self: self.items)
    def withdraw(self, data: st.DataObject) -> None:
        items = data.draw(st.lists(st.sampled_from(self.items), max_size=8, unique_by=id))
        self.withdrawn |= {item.index for item in items if item.index not in self.rig.answers.heard}
        self.dispatcher.withdraw(items)

    # ---- what workers do

    def slots(self, *, ready: bool) -> list[Slot]:
        return [slot for slot in self.dispatcher.slots if slot.is_ready is ready]

    def busy(self) -> list[Slot]:
        return [slot for slot in self.dispatcher.slots if slot.is_usable and slot.in_flight]

    @rule(data=st.data())
    @precondition(lambda self: self.slots(ready=False))
    def begin(self, data: st.DataObject) -> None:
        self.dispatcher.begin(data.draw(st.sampled_from(self.slots(ready=False))))

    @rule(data=st.data())
    @precondition(lambda self: self.slots(ready=False))
    def give_up(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.slots(ready=False)))
        self.rig.tell(self.dispatcher.give_up(slot, WorkerError("cannot be started")))

    @rule(data=st.data())
    @precondition(lambda self: self.slots(ready=True))
    def order(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.slots(ready=True)))
        put_back = list(self.dispatcher._put_back())
        waiting = self.waiting()
        order = self.dispatcher.next_order(slot)
        if order is None:
            return
        assert slot.death is None
        batch = order.batch
        self.dispatcher.sent(slot, order, self.rig.now)
        if batch is None:
            return
        assert order.model.key in slot.loaded
        assert not any(item.sink is NOBODY for item in batch.items)
        if batch.kills:
            assert len(slot.in_flight) == 1, "the next death is its own"
        if batch not in put_back:
            oldest = min(item.age for item in waiting if item.priority is batch.priority)
            assert oldest in {item.age for item in batch.items}, "the oldest item leads"
        if slot.is_reserved and batch not in put_back:
            others = [other for other in self.dispatcher.slots if not other.is_reserved]
            assert batch.priority is Priority.INTERACTIVE or all(other.is_given_up for other in others)

    @rule(data=st.data(), seconds=st.sampled_from([0.0, 0.0001, 0.01, 3.0]))
    @precondition(lambda self: self.busy())
    def answer(self, data: st.DataObject, seconds: float) -> None:
        slot = data.draw(st.sampled_from(self.busy()))
        self.rig.answer(slot, after=seconds)

    @rule(
        data=st.data(), error=st.sampled_from([EncodeError("odd"), StateError("odd"), ModelLoadError("odd", model="m")])
    )
    @precondition(lambda self: self.busy())
    def answer_failing(self, data: st.DataObject, error: AsyncEmbedError) -> None:
        self.rig.answer_failing(data.draw(st.sampled_from(self.busy())), error)

    @rule(data=st.data(), death=st.sampled_from([Death.ENDED, Death.TIMED_OUT]))
    @precondition(lambda self: self.slots(ready=True))
    def die(self, data: st.DataObject, death: Death) -> None:
        slot = data.draw(st.sampled_from(self.slots(ready=True)))
        if slot.is_express:
            retire(self.rig, slot)
        else:
            self.rig.die(slot, death, replaced=False)

    @rule(later=st.sampled_from([0.0, 0.01, 100.0]))
    def call_express(self, later: float) -> None:
        self.rig.now += later
        express = self.dispatcher.call_express(self.rig.now)
        if express is not None:
            self.dispatcher.begin(express)

    @rule(data=st.data())
    @precondition(lambda self: self.slots(ready=True))
    def lower(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.slots(ready=True))).is_lowered = True

    @rule()
    def check_time(self) -> None:
        for slot in self.slots(ready=True):
            self.dispatcher.check_time(slot, self.rig.now)
            if slot.death is Death.NOT_NEEDED:
                retire(self.rig, slot)

    # ---- what holds

    def waiting(self) -> list[Item]:
        return [item for lane in self.dispatcher._scheduler._lanes for item in lane.by_age.values()]

    @invariant()
    def every_item_is_in_one_place(self) -> None:
        batches = [*self.dispatcher._put_back()]
        batches += [
            order.batch for slot in self.dispatcher.slots for order in slot.in_flight if order.batch is not None
        ]
        places = [item.index for item in self.waiting()]
        places += [item.index for batch in batches for item in batch.items]
        places += [index for index in self.rig.answers.heard if index not in self.withdrawn]
        assert len(places) == len(set(places)), "in one place"
        assert {item.index for item in self.items} - self.withdrawn <= set(places), "and in one"

    @invariant()
    def what_waits_is_for_a_known_model(self) -> None:
        batches = list(self.dispatcher._put_back())
        assert all(batch.items for batch in batches), "no batch is empty"
        keys = {item.batch_key for item in self.waiting()} | {batch.batch_key for batch in batches}
        assert {key.model for key in keys} <= self.dispatcher.models.keys()

    @invariant()
    def a_suspect_is_the_first_in_flight(self) -> None:
        for slot in self.dispatcher.slots:
            for order in list(slot.in_flight)[1:]:
                assert order.batch is None or not order.batch.kills

    @invariant()
    def what_is_counted_is_what_there_is(self) -> None:
        stats = self.dispatcher.stats()
        put_back = [item for batch in self.dispatcher._put_back() for item in batch.items if item.sink is not NOBODY]
        assert stats.queued == len(self.waiting()) + len(put_back)
        assert stats.in_flight == sum(len(slot.in_flight) for slot in self.dispatcher.slots)

    def teardown(self) -> None:
        self.rig.tell(self.dispatcher.close(StateError("closed")))
        answered = self.rig.answers.heard.keys()
        assert answered | self.withdrawn == {item.index for item in self.items}
        assert self.dispatcher.stats().queued == self.dispatcher.stats().in_flight == 0


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


# ---------------------------------------------------------------- too much to do


def bounded_rig(max_queued: int, workers: int = 1) -> tuple[Rig, PooledModel]:
    rig = Rig(workers, max_queued=max_queued)
    rig.start_all()
    return rig, rig.loaded_model()


def test_places_are_reserved_whole_or_not_at_all() -> None:
    rig, model = bounded_rig(3)
    rig.dispatcher.reserve(model, 2)
    with pytest.raises(OverloadedError, match="2 of at most max_queued=3 inputs wait, and this call has 2; try again"):
        rig.dispatcher.reserve(model, 2)
    rig.dispatcher.reserve(model, 1)
    rig.dispatcher.release(3)
    rig.dispatcher.reserve(model, 3)
    assert rig.dispatcher.stats(model).refused == 2


def test_what_waits_takes_places_and_what_a_worker_has_takes_none() -> None:
    rig, model = bounded_rig(2)
    rig.add(model, 3, bulk=False)
    with pytest.raises(OverloadedError):
        rig.dispatcher.reserve(model, 1)
    assert rig.batch(rig.slots[0]) == [0]
    with pytest.raises(OverloadedError):
        rig.dispatcher.reserve(model, 1)
    rig.answer(rig.slots[0])
    assert rig.batch(rig.slots[0]) == [1]
    rig.dispatcher.reserve(model, 1)


def test_bulk_work_takes_no_places() -> None:
    rig, model = bounded_rig(1)
    rig.add(model, 50)
    rig.dispatcher.reserve(model, 1)


def test_a_batch_that_was_put_back_takes_its_places_again() -> None:
    rig, model = bounded_rig(2)
    rig.add(model, 2, bulk=False, at_once=2)
    assert rig.batch(rig.slots[0]) == [0, 1]
    rig.die(rig.slots[0], replaced=False)
    assert rig.dispatcher.stats().queued_interactive == 2
    with pytest.raises(OverloadedError):
        rig.dispatcher.reserve(model, 1)


def test_what_was_withdrawn_after_it_was_put_back_takes_no_places() -> None:
    """While no worker can be started, nobody looks at what was put back."""
    rig, model = bounded_rig(2)
    items = rig.add(model, 2, bulk=False, at_once=2)
    assert rig.batch(rig.slots[0]) == [0, 1]
    rig.die(rig.slots[0], replaced=False)
    rig.dispatcher.withdraw(items[:1])
    assert rig.dispatcher.stats().queued_interactive == 1
    rig.dispatcher.reserve(model, 1)
    rig.dispatcher.withdraw(items[1:])
    assert rig.dispatcher.stats().queued_interactive == 0


def test_more_than_may_ever_wait_is_no_question_of_time() -> None:
    rig, model = bounded_rig(3)
    with pytest.raises(InputError, match="4 inputs in one call are more than max_queued=3 ever lets wait: hand over"):
        rig.dispatcher.reserve(model, 4)


@pytest.mark.parametrize(("workers", "seconds"), [(1, 6.0), (2, 3.0)])
def test_an_overload_tells_when_to_come_back_by_the_speed_measured(workers: int, seconds: float) -> None:
    rig, model = bounded_rig(3, workers)
    for slot in rig.slots:
        rig.add(model, 1, size=10, bulk=False)
        assert rig.order(slot) is not None
        rig.answer(slot, after=2.0)
    rig.add(model, 3, size=10, bulk=False)
    with pytest.raises(OverloadedError) as caught:
        rig.dispatcher.reserve(model, 1)
    assert caught.value.retry_after_seconds == pytest.approx(seconds)


def test_an_overload_tells_no_time_before_any_speed_is_known() -> None:
    rig, model = bounded_rig(1)
    rig.add(model, 1, bulk=False)
    with pytest.raises(OverloadedError) as caught:
        rig.dispatcher.reserve(model, 1)
    assert caught.value.retry_after_seconds is None


def test_without_a_bound_there_is_always_room() -> None:
    rig, model = ready_rig()
    rig.dispatcher.reserve(model, 10_000)
    rig.dispatcher.release(10_000)
