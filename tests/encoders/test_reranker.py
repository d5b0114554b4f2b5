from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed.rerank.cross_encoder import TextCrossEncoder as Reference

from asyncembed.encoders import build
from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.encoders.projection import sigmoid
from asyncembed.errors import UnsupportedModelError
from tests.support.sparse_models import RERANKER, TEXTS, catalogued, write_reranker
from tests.support.tokenizers import byte_level_bpe

QUERY = "how long is the day"
LONG_QUERY = "more words " * 40
PAIRS = [(query, text) for query in (QUERY, "", LONG_QUERY) for text in TEXTS]


def load(directory: Path, **options: Any) -> Any:
    return build(EncoderConfig(spec=catalogued(RERANKER, "cross_encoder"), directory=directory, **options))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"token_types": False},
        {"mask": False, "token_types": False, "tokenizer_options": {"limit": 6}},
        {"tokenizer": byte_level_bpe(), "tokenizer_options": {"pad_token": "<pad>", "padding_side": "left"}},
        {"dtype": "float16"},
    ],
    ids=["bert", "no types", "no mask", "bpe", "fp16"],
)
def test_scores_are_those_of_fastembed(options: dict[str, Any], tmp_path: Path) -> None:
    directory = write_reranker(tmp_path, **options)
    theirs = Reference(RERANKER, specific_model_path=str(directory))
    # One by one: a graph without a mask mixes padding into the scores.
    expected = [next(iter(theirs.rerank_pairs([pair]))) for pair in PAIRS]
    encoder = load(directory, max_batch_size=None if options.get("mask", True) else 1)
    encoded = encoder.encode(PAIRS, Call(mode="pair"))
    assert encoded.results.dtype == np.float32
    np.testing.assert_allclose(encoded.results, expected, rtol=1e-3 if "dtype" in options else 1e-4, atol=1e-5)
    tokens = encoder.encode(PAIRS, Call(mode="count")).results
    assert sum(tokens) == theirs.token_count(PAIRS) == encoded.tokens


def test_a_batch_is_scored_as_fastembed_scores_a_batch(tmp_path: Path) -> None:
    directory = write_reranker(tmp_path)
    expected = list(Reference(RERANKER, specific_model_path=str(directory)).rerank(QUERY, TEXTS))
    found = load(directory).encode([(QUERY, text) for text in TEXTS], Call(mode="pair")).results
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_pair_far_over_the_limit_is_cut_without_a_difference(tmp_path: Path) -> None:
    """Texts of many times the limit are not tokenized whole; what is left of a pair is the same."""
    directory = write_reranker(tmp_path, tokenizer_options={"limit": 16})
    endless = "many words make it long " * 60
    letters = "x" * 600
    pairs = [(a, b) for a in (QUERY, endless, letters) for b in ("day", endless, letters, " " * 1200 + "day")]
    theirs = Reference(RERANKER, specific_model_path=str(directory))
    encoded = load(directory).encode(pairs, Call(mode="pair"))
    np.testing.assert_allclose(encoded.results, list(theirs.rerank_pairs(pairs)), rtol=1e-4, atol=1e-5)
    assert encoded.tokens == theirs.token_count(pairs)


def test_sigmoid_maps_to_the_unit_interval_and_keeps_the_order(tmp_path: Path) -> None:
    encoder = load(write_reranker(tmp_path))
    logits = encoder.encode(PAIRS, Call(mode="pair")).results
    activated = encoder.encode(PAIRS, Call(mode="pair", activation="sigmoid")).results
    assert activated.dtype == np.float32
    np.testing.assert_allclose(activated, 1 / (1 + np.exp(-logits.astype(np.float64))), rtol=1e-5)
    extremes = sigmoid(np.array([-1e4, -90, 0, 90, 1e4], dtype=np.float32))
    assert extremes.tolist() == [0, pytest.approx(8.19e-40, rel=1e-2), 0.5, 1, 1]


def test_input_that_is_no_pair_of_texts_fails_alone(tmp_path: Path) -> None:
    inputs: list[Any] = [(QUERY, "day"), "ab", (QUERY, None), (QUERY,), (QUERY, "\ud800"), [QUERY, "day"]]
    encoded = load(write_reranker(tmp_path)).encode(inputs, Call(mode="pair"))
    assert sorted(encoded.failures) == [1, 2, 3, 4]
    assert encoded.results[0] == encoded.results[5]


def test_a_flat_output_is_taken_and_several_labels_are_not(tmp_path: Path) -> None:
    pairs = [(QUERY, "day")]
    flat = load(write_reranker(tmp_path / "flat", labels=0)).encode(pairs, Call(mode="pair")).results
    assert flat.shape == (1,)
    directory = write_reranker(tmp_path / "three", labels=3)
    with pytest.raises(UnsupportedModelError, match="several labels"):
        load(directory).encode(pairs, Call(mode="pair"))
    spec = replace(catalogued(RERANKER, "cross_encoder"), settings={"column": 0})
    chosen = build(EncoderConfig(spec=spec, directory=directory)).encode(pairs, Call(mode="pair")).results
    expected = list(Reference(RERANKER, specific_model_path=str(directory)).rerank_pairs(pairs))
    np.testing.assert_allclose(np.asarray(chosen), expected, rtol=1e-4)
