"""What the engine counts on in every encoder, whatever it computes."""

import pickle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from asyncembed.catalogue.lookup import list_models
from asyncembed.encoders import build
from asyncembed.encoders.encoder import Call, Encoded, Encoder, EncoderConfig, Long, Mode, ModelInfo
from asyncembed.encoders.registry import ROWS
from asyncembed.errors import InputError
from asyncembed.results import HybridEmbedding, SparseEmbedding
from tests.support.every_encoder import WRITE
from tests.support.images import encoded as image_file
from tests.support.images import picture
from tests.support.models import TEXTS

if TYPE_CHECKING:
    from pathlib import Path

    from asyncembed.catalogue.spec import ModelSpec

MODES: dict[str, tuple[Mode, ...]] = {
    "cross_encoder": ("pair",),
    "causal_reranker": ("pair",),
    "image": ("image",),
    "colpali": ("query", "image"),
    "colmodernvbert": ("query", "image"),
}
TEXT_MODES: tuple[Mode, ...] = ("embed", "query")

EVERY_MODE = [(name, mode) for name in WRITE for mode in MODES.get(name, TEXT_MODES)]
COUNTING = [(name, mode) for name, mode in EVERY_MODE if mode != "image"]

Load = Callable[..., Encoder]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Loads the small model of an encoder, once for each set of limits."""
    models: dict[str, tuple[ModelSpec, Path]] = {}
    loaded: dict[tuple[str, frozenset[tuple[str, int]]], Encoder] = {}

    def load(name: str, **limits: int) -> Encoder:
        key = name, frozenset(limits.items())
        if name not in models:
            directory = tmp_path_factory.mktemp(name)
            models[name] = WRITE[name](directory), directory
        if key not in loaded:
            spec, directory = models[name]
            loaded[key] = build(EncoderConfig(spec=spec, directory=directory, **limits))  # type: ignore[arg-type]
        return loaded[key]

    return load


def inputs_for(mode: Mode) -> Sequence[object]:
    match mode:
        case "pair":
            return [(query, text) for query, text in zip(TEXTS, reversed(TEXTS), strict=True)]
        case "image":
            sizes = [(40, 30), (7, 9), (64, 64), (30, 100)]
            return [image_file(picture(*size, seed=seed), "PNG") for seed, size in enumerate(sizes)]
        case _:
            return TEXTS


def wrong_input_for(mode: Mode) -> object:
    return {"pair": ("a query", 3), "image": b"no image"}.get(mode, 3)


def assert_same(found: Any, wanted: Any) -> None:
    """Two results are the same within 1e-5, whatever they are."""
    if isinstance(wanted, HybridEmbedding):
        assert found.outputs == wanted.outputs
        for name in wanted.outputs:
            assert_same(getattr(found, name), getattr(wanted, name))
        return
    if isinstance(wanted, SparseEmbedding):
        np.testing.assert_array_equal(found.indices, wanted.indices)
        found, wanted = found.values, wanted.values
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def encode(encoder: Encoder, mode: Mode, inputs: Sequence[object]) -> Encoded:
    encoded = encoder.encode(inputs, Call(mode=mode))
    assert len(encoded.results) == len(inputs)
    return encoded


def test_no_encoder_is_forgotten() -> None:
    assert ROWS.keys() == WRITE.keys()
    assert {spec.encoder for spec in list_models()} <= ROWS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITE)
def test_it_says_what_it_knows_of_its_model(load: Load, name: str) -> None:
    """The engine reads it once, in the parent."""
    encoder = load(name)
    assert type(encoder.info) is ModelInfo
    assert pickle.loads(pickle.dumps(encoder.info)) == encoder.info
    assert bool(encoder.info.tokens_per_image) == ("image" in MODES.get(name, ()))
    assert bool(encoder.info.providers) == (ROWS[name].needs_graph and name not in ("inference_free_splade", "bm42"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), COUNTING)
def test_the_special_tokens_that_it_states_are_those_of_an_empty_input(load: Load, name: str, mode: Mode) -> None:
    encoder, empty = load(name), ("", "") if mode == "pair" else ""
    # ColBERT's marker is in every text; what makes a query of a text for ColPali is not.
    extended = not name.startswith("col") or name == "colbert"
    (count,) = encoder.encode([empty], Call(mode="count", include_extension=extended)).results
    assert count == encoder.info.special_tokens


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), EVERY_MODE)
def test_an_input_has_the_same_result_alone_and_at_any_place_of_a_batch(load: Load, name: str, mode: Mode) -> None:
    encoder, inputs = load(name), inputs_for(mode)
    together = encode(encoder, mode, inputs)
    backwards = encode(encoder, mode, inputs[::-1])
    assert not together.failures
    for position, value in enumerate(inputs):
        alone = encode(encoder, mode, [value]).results[0]
        assert_same(together.results[position], alone)
        assert_same(backwards.results[-1 - position], alone)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), EVERY_MODE)
def test_smaller_runs_give_the_same_results(load: Load, name: str, mode: Mode) -> None:
    inputs = inputs_for(mode)
    wanted = encode(load(name), mode, inputs).results
    for limits in ({"max_batch_tokens": 1}, {"max_batch_size": 2}):
        found = encode(load(name, **limits), mode, inputs).results
        for position in range(len(inputs)):
            assert_same(found[position], wanted[position])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), EVERY_MODE)
def test_a_wrong_input_is_a_failure_of_its_own(load: Load, name: str, mode: Mode) -> None:
    encoder, good, bad = load(name), list(inputs_for(mode)), wrong_input_for(mode)
    wanted = encode(encoder, mode, good)
    found = encode(encoder, mode, [bad, good[0], bad, *good[1:], bad])
    wrong = {0, 2, len(good) + 2}
    assert found.failures.keys() == wrong
    assert all(isinstance(error, InputError) for error in found.failures.values())
    right = [position for position in range(len(good) + 3) if position not in wrong]
    for position, result in zip(right, wanted.results, strict=True):
        assert_same(found.results[position], result)
    assert (found.tokens, found.padded_tokens) == (wanted.tokens, wanted.padded_tokens)


@pytest.mark.parametrize(("name", "mode"), EVERY_MODE)
def test_a_batch_of_wrong_inputs_and_a_batch_of_none_are_batches(load: Load, name: str, mode: Mode) -> None:
    encoder, bad = load(name), wrong_input_for(mode)
    assert encode(encoder, mode, [bad, bad]).failures.keys() == {0, 1}
    assert encode(encoder, mode, [bad]).tokens == 0
    assert encode(encoder, mode, []).failures == {}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), EVERY_MODE)
def test_what_it_computed_is_counted(load: Load, name: str, mode: Mode) -> None:
    encoder, inputs = load(name), inputs_for(mode)
    together = encode(encoder, mode, inputs)
    assert 0 < together.tokens <= together.padded_tokens
    assert together.tokens == sum(encode(encoder, mode, [value]).tokens for value in inputs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), EVERY_MODE)
def test_each_input_has_the_tokens_that_it_has_alone(load: Load, name: str, mode: Mode) -> None:
    encoder, inputs = load(name), inputs_for(mode)
    counts = encode(encoder, mode, [wrong_input_for(mode), *inputs]).counts
    assert counts is not None
    assert counts[0] == 0
    assert list(counts[1:]) == [encode(encoder, mode, [value]).tokens * _sign(encoder, mode, value) for value in inputs]
    assert {type(count) for count in counts} == {int}


def _sign(encoder: Encoder, mode: Mode, value: object) -> int:
    """-1 for an input that is over the limit."""
    return -1 if mode != "image" and encoder.encode([value], Call(mode=mode, long="error")).failures else 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name, mode in COUNTING if name != "bm25"])
def test_whole_inputs_are_counted_whether_they_are_within_the_limit_or_not(load: Load, name: str, mode: Mode) -> None:
    """Within it the two counts agree; over it, one word more is one token more."""
    encoder = load(name)
    limit = encoder.info.max_length
    assert limit is not None

    def count(words: int, *, truncated: bool = True, long: Long = "truncate") -> int:
        text = "the " * words
        value: object = (text, text) if mode == "pair" else text
        call = Call(mode="count", include_extension=True, role="query", truncated=truncated, long=long)
        return int(encoder.encode([value], call).results[0])

    step = 2 if mode == "pair" else 1
    assert count(3, truncated=False) == count(3)
    assert count(10_000) <= limit < count(10_000, truncated=False)
    assert count(10_001, truncated=False) - count(10_000, truncated=False) == step
    assert count(10_000, truncated=False) == count(9_000, truncated=False) + 1000 * step
    assert count(10_000, truncated=False, long="error") == count(10_000, truncated=False)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), EVERY_MODE)
def test_what_it_answers_survives_the_way_to_another_process(load: Load, name: str, mode: Mode) -> None:
    encoded = encode(load(name), mode, [*inputs_for(mode), wrong_input_for(mode)])
    results, failures = pickle.loads(pickle.dumps((encoded.results, encoded.failures)))
    for position, result in enumerate(encoded.results):
        assert_same(results[position], result)
    assert {position: str(error) for position, error in failures.items()} == {
        position: str(error) for position, error in encoded.failures.items()
    }


@pytest.mark.parametrize(("name", "mode"), COUNTING)
def test_tokens_are_counted_one_number_per_input(load: Load, name: str, mode: Mode) -> None:
    encoder, inputs = load(name), inputs_for(mode)
    encoded = encode(encoder, "count", [*inputs, wrong_input_for(mode)])
    assert encoded.failures.keys() == {len(inputs)}
    counts = [int(count) for count in encoded.results]
    assert counts[:-1] == [int(encode(encoder, "count", [value]).results[0]) for value in inputs]
    assert len(encode(encoder, "count", []).results) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name, mode in COUNTING if name != "bm25"])
def test_an_input_over_the_limit_is_cut_or_refused_as_the_call_says(load: Load, name: str, mode: Mode) -> None:
    """BM25 has no limit."""
    encoder = load(name)
    text, long_text = "how many", "more " * 3000
    short: object = text if mode != "pair" else (text, text)
    long: object = long_text if mode != "pair" else (text, long_text)
    assert not encode(encoder, mode, [short, long]).failures
    refused = encoder.encode([short, long], Call(mode=mode, long="error"))
    assert refused.failures.keys() == {1}
    assert len(refused.results) == 2
    assert encoder.encode([long], Call(mode="count", long="error")).failures.keys() == {0}
