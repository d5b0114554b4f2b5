"""Every input of a batch has its place again, whichever of them could be used."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asyncembed.encoders.batch import Usable, read_pair, read_text, split
from asyncembed.errors import InputError

INPUTS = st.lists(st.text(max_size=3) | st.none() | st.integers() | st.just("\udc80"))


def texts_of(inputs: Sequence[object]) -> Usable[str]:
    return split(map(read_text, inputs))


@given(INPUTS)
def test_each_input_is_a_value_or_a_failure(inputs: list[object]) -> None:
    texts = texts_of(inputs)
    assert texts.batch_size == len(inputs)
    assert sorted([*texts.positions, *texts.failures]) == list(range(len(inputs)))
    assert list(texts.values) == [inputs[position] for position in texts.positions]
    for value in texts.values:
        value.encode()


@given(INPUTS)
def test_results_go_to_the_places_of_their_inputs(inputs: list[object]) -> None:
    texts = texts_of(inputs)
    lengths = texts.in_batch(map(len, texts.values), -1)
    rows = texts.scatter(np.array([[len(value)] * 2 for value in texts.values], np.float32).reshape(-1, 2))
    outcomes = texts.outcomes(texts.values)
    assert len(lengths) == len(rows) == len(outcomes) == len(inputs)
    for position, value in enumerate(inputs):
        if position in texts.failures:
            assert outcomes[position] is texts.failures[position]
            assert (lengths[position], rows[position].tolist()) == (-1, [0, 0])
        else:
            assert outcomes[position] == value
            assert rows[position].tolist() == [lengths[position]] * 2 == [len(str(value))] * 2


@given(INPUTS, st.data())
def test_what_is_refused_later_is_a_failure_like_the_others(inputs: list[object], data: st.DataObject) -> None:
    texts = texts_of(inputs)
    are_refused = data.draw(st.lists(st.booleans(), min_size=len(texts.values), max_size=len(texts.values)))
    left = texts.without(are_refused, "too long")
    refused = [position for position, is_refused in zip(texts.positions, are_refused, strict=True) if is_refused]
    assert left.failures.keys() == {*texts.failures, *refused}
    assert all(str(left.failures[position]) == "too long" for position in refused)
    assert all(left.failures[position] is error for position, error in texts.failures.items())
    assert left.batch_size == len(inputs)
    assert list(left.values) == [inputs[position] for position in left.positions]


def test_a_pair_is_as_good_as_its_texts() -> None:
    assert read_pair(["a", "b"]) == ("a", "b")
    for pair, message in (
        (("a", 3), "got int"),
        (("\udc80", "b"), "lone surrogate"),
        ("ab", "got str"),
        (("a",), "pair"),
    ):
        error = read_pair(pair)
        assert isinstance(error, InputError)
        assert message in str(error)
