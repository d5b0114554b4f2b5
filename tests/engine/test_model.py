"""What is learnt of a model while it computes: how fast it is, and how many tokens an input has."""

from dataclasses import replace
from pathlib import Path

import pytest

from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, Mode
from asyncembed.engine.model import PooledModel, Speed
from asyncembed.engine.scheduler import Batch, Item, Priority
from asyncembed.errors import InputError
from tests.support.encoders import ECHO


def test_the_first_batch_tells_the_speed() -> None:
    speed = Speed()
    assert not speed.is_known
    assert speed.seconds(100) == 0
    speed.measure(0.2, 100)
    assert speed.is_known
    assert speed.seconds(50) == pytest.approx(0.1)
    assert speed.batch_seconds == 0.2


def test_later_batches_shift_it() -> None:
    speed = Speed()
    speed.measure(1.0, 10)
    for _ in range(30):
        speed.measure(0.1, 10)
    assert speed.batch_seconds == pytest.approx(0.1, rel=0.02)
    assert speed.seconds(10) == pytest.approx(0.1, rel=0.02)


def test_a_batch_without_tokens_is_no_division_by_zero() -> None:
    speed = Speed()
    speed.measure(0.5, 0)
    assert speed.seconds(2) == 1.0


# ---------------------------------------------------------------- how many tokens an input will have


class Nobody:
    """A sink that no answer reaches."""

    def deliver(self, index: int, result: object) -> None: ...

    def fail(self, index: int, error: Exception) -> None: ...


def pooled_model(limit: int | None = None, **info: int) -> PooledModel:
    model = PooledModel(0, EncoderConfig(spec=ECHO, directory=Path(), max_length=limit))
    model.info = replace(model.info, **info)  # type: ignore[arg-type]
    return model


def make_item(model: PooledModel, units: int, mode: Mode = "embed") -> Item:
    batch_key = model.batch_key(Call(mode=mode))
    return model.item_maker(batch_key, Priority.BULK).item("text", units, Nobody(), 0)


def compute(model: PooledModel, units: int, tokens: int, mode: Mode = "embed", *, failed: bool = False) -> None:
    """Have a batch of one input computed, again and again."""
    for _ in range(200):
        item = make_item(model, units, mode)
        answer = Encoded([0], {0: InputError("refused")} if failed else {}, tokens=tokens, padded_tokens=tokens)
        model.record(Batch(item.batch_key, [item]), answer, 0.1)


def test_the_estimate_of_tokens_is_that_of_english_at_first() -> None:
    assert make_item(pooled_model(), 100).size == 30 + 2


def test_the_estimate_follows_what_was_computed() -> None:
    model = pooled_model()
    compute(model, 100, 102)
    assert make_item(model, 50).size == pytest.approx(52, abs=1)


def test_queries_teach_nothing_of_passages() -> None:
    """They may be padded to a fixed length, or get a prompt."""
    model = pooled_model()
    compute(model, 10, 32, "query")
    assert make_item(model, 10, "query").size == pytest.approx(32, abs=1)
    assert make_item(model, 100, "passage").size == 32


@pytest.mark.parametrize("special_tokens", [0, 2, 3])
def test_special_tokens_are_those_that_the_encoder_puts_around_an_input(special_tokens: int) -> None:
    model = pooled_model(special_tokens=special_tokens)
    assert make_item(model, 100).size == 30 + special_tokens
    compute(model, 100, 50 + special_tokens)
    assert make_item(model, 1000).size == pytest.approx(500 + special_tokens, abs=5)


@pytest.mark.parametrize(("config", "info"), [(20, None), (None, 20), (20, 512)])
def test_an_input_over_the_limit_is_cut_and_teaches_nothing(config: int | None, info: int | None) -> None:
    model = pooled_model(config, **({} if info is None else {"max_length": info}))
    item = make_item(model, 1000)
    assert (item.size, item.units) == (20, 0)
    compute(model, 1000, 20)
    assert make_item(model, 50).size == 15 + 2


def test_a_batch_with_failures_teaches_nothing() -> None:
    model = pooled_model()
    compute(model, 100, 1000, failed=True)
    assert make_item(model, 100).size == 32
    assert (model.items, model.failed) == (200, 200)


def test_every_item_has_a_size() -> None:
    """Speeds are by size."""
    model = pooled_model(special_tokens=0)
    assert make_item(model, 0).size == 1
    maker = model.item_maker(model.batch_key(Call()), Priority.BULK)
    assert maker.sized_item("image", 0, Nobody(), 0).size == 1


def test_what_computes_says_how_large_a_batch_may_be() -> None:
    model = pooled_model()
    assert model.batch_key(Call()).max_batch_tokens == model.config.max_batch_tokens
    assert pooled_model(max_batch_tokens=9000).batch_key(Call()).max_batch_tokens == 9000


@pytest.mark.parametrize(
    ("mode", "expected"), [("embed", 3072), ("query", 3072), ("pair", 3072), ("image", None), ("count", None)]
)
def test_only_what_computes_attention_over_texts_costs_more_than_its_tokens(mode: Mode, expected: int | None) -> None:
    assert pooled_model(attention_tokens=3072).batch_key(Call(mode=mode)).attention_tokens == expected
    assert pooled_model().batch_key(Call(mode=mode)).attention_tokens is None
