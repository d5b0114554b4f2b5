"""What is learnt of a model's speed."""

import pytest

from asyncembed.engine.model import Speed


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
