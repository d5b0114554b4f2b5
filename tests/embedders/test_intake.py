"""What becomes of a record before any worker sees it: without a pool, a loop or a process."""

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncembed import WorkerPool
from asyncembed.embedders.intake import Accept, Intake, accept_pair, accept_text, as_source, check_source
from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.engine.model import PooledModel
from asyncembed.engine.pool import engine_of
from asyncembed.engine.scheduler import Priority
from asyncembed.errors import InputError
from tests.support.encoders import ECHO

POOL = WorkerPool(workers=1)


def intake(accept: Accept = accept_text, key: Any = None, **config: Any) -> Intake:
    model = PooledModel(0, EncoderConfig(spec=ECHO, directory=Path(), **config))
    return Intake(accept, engine_of(POOL), model, Call(), Priority.BULK, key)


def take(record: object, index: int = 3, **options: Any) -> tuple[Any, int]:
    sink: Any = object()
    return intake(**options).item(record, index, sink)


@pytest.mark.slow
@given(st.text())
def test_a_text_waits_as_it_is_and_counts_with_its_characters(text: str) -> None:
    item, size_bytes = take(text)
    assert (item.value, item.units, item.index) == (text, len(text), 3)
    assert size_bytes == sys.getsizeof(text)
    assert item.size >= 1


def test_a_subclass_of_str_waits_as_str_itself() -> None:
    class Part(str):
        __slots__ = ("document",)

    item, _ = take(Part("text"))
    assert type(item.value) is str
    pair, _ = take([Part("query"), Part("document")], accept=accept_pair)
    assert [type(text) for text in pair.value] == [str, str]


def test_what_is_cut_counts_with_the_limit_and_teaches_nothing() -> None:
    item, _ = take("word " * 1000, max_length=16)
    assert (item.size, item.units) == (16, 0)


@given(st.text(), st.text())
def test_a_pair_counts_with_both_its_texts(query: str, document: str) -> None:
    item, _ = take((query, document), accept=accept_pair)
    assert item.value == (query, document)
    assert item.units == len(query) + len(document)


@pytest.mark.parametrize("value", [5, None, b"bytes", ["a", "list"]], ids=str)
def test_what_is_no_text_is_refused_with_its_index(value: object) -> None:
    with pytest.raises(InputError, match="expected a str") as caught:
        take(value)
    assert caught.value.index == 3


@pytest.mark.parametrize("value", ["text", ("one",), ("a", "b", "c"), ("a", 5)], ids=str)
def test_what_is_no_pair_is_refused_with_its_index(value: object) -> None:
    with pytest.raises(InputError) as caught:
        take(value, accept=accept_pair)
    assert caught.value.index == 3


def test_an_error_that_a_source_hands_over_several_times_has_an_index_each_time() -> None:
    error = InputError("broken record")
    indices = []
    for index in (1, 2):
        with pytest.raises(InputError) as caught:
            take(error, index)
        indices.append(caught.value.index)
        assert "broken record" in str(caught.value)
    assert indices == [1, 2]


@pytest.mark.parametrize("error", [KeyError("text"), MemoryError(), GeneratorExit()], ids=repr)
def test_whatever_key_raises_is_the_error_of_its_record(error: BaseException) -> None:
    def key(record: object) -> str:
        raise error

    with pytest.raises(InputError, match="key= failed") as caught:
        take({}, key=key)
    assert caught.value.index == 3
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_is_no_error_of_a_record(error: type[BaseException]) -> None:
    def key(record: object) -> str:
        raise error

    with pytest.raises(error):
        take({}, key=key)


def test_failures_before_the_worker_are_counted_by_the_model() -> None:
    model = PooledModel(0, EncoderConfig(spec=ECHO, directory=Path()))
    one = Intake(accept_text, engine_of(POOL), model, Call(), Priority.BULK, None)
    one.count_failure()
    assert model.failed == 1


def test_what_is_taken_for_a_source() -> None:
    assert as_source("one text") == ["one text"]
    taken: tuple[Any, ...] = (["a"], ("a",), iter("a"), {"a"}, {}.keys(), range(3))
    for source in taken:
        check_source(source)
    for refused in (b"bytes", bytearray(), {"a": 1}, 5, None):
        with pytest.raises(InputError):
            check_source(refused)
