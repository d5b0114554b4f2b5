"""The encoder of fakes keeps what the engine counts on in every encoder."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from asyncembed.catalogue.spec import Family
from asyncembed.encoders import build
from asyncembed.encoders.encoder import Call, Encoder, EncoderConfig, Mode
from asyncembed.encoders.hashed import HashedEncoder
from asyncembed.errors import InputError
from asyncembed.testing import Fakes, fake_model
from tests.encoders.test_encoder_contract import assert_same, encode, inputs_for, wrong_input_for

MODES: dict[Family, tuple[Mode, ...]] = {
    "text": ("embed", "query", "passage"),
    "sparse": ("embed", "query"),
    "late_interaction": ("embed", "query"),
    "hybrid": ("embed", "query"),
    "image": ("image",),
    "late_interaction_multimodal": ("query", "image"),
    "cross_encoder": ("pair",),
}
EVERY_MODE = [(family, mode) for family in get_args(Family) for mode in MODES[family]]

every = pytest.mark.parametrize(("family", "mode"), EVERY_MODE)
of_texts = pytest.mark.parametrize(("family", "mode"), [each for each in EVERY_MODE if each[1] != "image"])


def fake(family: Family, *, max_length: int = 4, fakes: Fakes | None = None) -> Encoder:
    spec = fake_model(family, dim=16, max_length=max_length, fakes=fakes)
    encoder = build(EncoderConfig(spec=spec, directory=Path()))
    assert isinstance(encoder, HashedEncoder)
    return encoder


@every
def test_an_input_has_the_same_result_alone_and_at_any_place_of_a_batch(family: Family, mode: Mode) -> None:
    encoder, inputs = fake(family), inputs_for(mode)
    together = encode(encoder, mode, inputs)
    assert not together.failures
    for position, value in enumerate(inputs):
        assert_same(together.results[position], encode(encoder, mode, [value]).results[0])
    assert together.tokens == sum(encode(encoder, mode, [value]).tokens for value in inputs) <= together.padded_tokens


@every
def test_a_wrong_input_is_a_failure_of_its_own(family: Family, mode: Mode) -> None:
    encoder, good, bad = fake(family), list(inputs_for(mode)), wrong_input_for(mode)
    wanted = encode(encoder, mode, good)
    found = encode(encoder, mode, [bad, good[0], bad, *good[1:]])
    assert found.failures.keys() == {0, 2}
    for result, same in zip([found.results[1], *found.results[3:]], wanted.results, strict=True):
        assert_same(result, same)
    assert found.counts is not None
    assert list(found.counts) == [0, (wanted.counts or [])[0], 0, *(wanted.counts or [])[1:]]


@every
def test_a_batch_of_wrong_inputs_and_a_batch_of_none_are_batches(family: Family, mode: Mode) -> None:
    encoder, bad = fake(family), wrong_input_for(mode)
    assert encode(encoder, mode, [bad, bad]).failures.keys() == {0, 1}
    assert encode(encoder, mode, []).failures == {}


@of_texts
def test_what_is_cut_is_what_is_left_of_it(family: Family, mode: Mode) -> None:
    encoder = fake(family)
    long, short = "One two, three four five", "One two, three four"
    pair = mode == "pair"
    values: list[object] = [("", long), ("", short)] if pair else [long, short]
    done = encode(encoder, mode, values)
    assert_same(done.results[0], done.results[1])
    first, second = done.counts or (0, 0)
    assert first == -second < 0
    refused = encoder.encode(values, Call(mode=mode, long="error"))
    assert refused.failures.keys() == {0}
    whole = encoder.encode(values, Call(mode="count", truncated=False))
    assert list(whole.results) == [5, 4]


@of_texts
def test_an_input_fails_as_it_is_told_to(family: Family, mode: Mode) -> None:
    fakes = Fakes(failures={"poison": InputError("told to")})
    values: list[object] = [("a", "b poison"), ("a", "b")] if mode == "pair" else ["a poison", "a"]
    assert encode(fake(family, fakes=fakes), mode, values).failures.keys() == {0}


def test_short_words_count_less() -> None:
    encoder = fake("text", max_length=64)
    query, shares_a_word, shares_short_ones = np.asarray(
        encode(encoder, "embed", ["at a time of bread", "bread", "at a of"]).results
    )
    assert query @ shares_a_word > query @ shares_short_ones
