"""NaN and infinity never leave an encoder as a result, whatever the family and whatever form a call asks for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from tokenizers import Tokenizer

from asyncembed.embedders.text import TextEmbedding
from asyncembed.encoders import build
from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.encoders.finite import rows_not_finite
from asyncembed.encoders.pooling import normalize
from asyncembed.errors import EncodeError, InputError, ModelLoadError
from asyncembed.runtime.safetensors import read_tensors
from tests.encoders.test_static import static_encoder
from tests.encoders.test_text_graph import TEXT_FAMILIES, results_of
from tests.support.images import encoded, picture, write_image_model
from tests.support.models import spec_for, write_model
from tests.support.multimodal import NAMES, write_multimodal_model
from tests.support.safetensors_files import write_tensors
from tests.support.sparse_models import IF_SPLADE, catalogued, write_if_splade
from tests.support.static_models import write_static
from tests.support.tokenizers import byte_level_bpe, wordpiece

WORD = "day"
"""The word whose states overflow."""

WHOLE_WORD = "what"
"""The same where only common words are tokens."""


def texts_with(word: str) -> list[str | None]:
    return ["the way", f"a long {word}", None, "of it", f" {word}"]


TEXTS = texts_with(WORD)
GOOD, BAD, UNUSABLE = (0, 3), (1, 4), (2,)

BYTE_LEVEL = "dense, padded on the left"


def load(spec: Any, directory: Path, **fields: Any) -> Any:
    return build(EncoderConfig(spec=spec, directory=directory, **fields))


def overflowing_token(name: str) -> int:
    tokenizer, word = (byte_level_bpe(), WHOLE_WORD) if name == BYTE_LEVEL else (wordpiece(), WORD)
    (id_,) = tokenizer.encode(f" {word}", add_special_tokens=False).ids
    assert isinstance(id_, int)
    return id_


def encode(encoder: Any, name: str, texts: Any, **call: Any) -> Any:
    inputs = [text if text is None or name != "reranker" else (text, "the way") for text in texts]
    return encoder.encode(inputs, Call(**({"mode": "passage"} | call)))


def assert_fails_where_it_should(failures: Any) -> None:
    assert sorted(failures) == sorted((*BAD, *UNUSABLE))
    assert all(isinstance(failures[position], EncodeError) for position in BAD)
    assert all(isinstance(failures[position], InputError) for position in UNUSABLE)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_a_half_precision_graph_that_overflows_fails_the_texts_concerned(name: str, tmp_path: Path) -> None:
    spec = TEXT_FAMILIES[name](tmp_path, dtype="float16", overflows=overflowing_token(name))
    if name == BYTE_LEVEL:
        spec = replace(spec, pooling="mean")  # the last token's state does not overflow
    encoder = load(spec, tmp_path)
    texts = texts_with(WHOLE_WORD if name == BYTE_LEVEL else WORD)
    batch = encode(encoder, name, texts)
    assert_fails_where_it_should(batch.failures)
    message = str(batch.failures[BAD[0]])
    assert f"NaN or infinity for this input, computed from {spec.model_file}" in message
    assert "(float16) on CPUExecutionProvider" in message
    assert 'precision="fp32"' in message
    expected = results_of(encoder, name, [texts[position] for position in GOOD])
    for position, right in zip(GOOD, expected, strict=True):
        result = batch.results[position]
        np.testing.assert_allclose(getattr(result, "values", result), right, rtol=1e-2, atol=1e-3)
    # What is counted, or looked up, has nothing to overflow.
    assert sorted(encode(encoder, name, texts, mode="count").failures) == list(UNUSABLE)


@pytest.mark.parametrize("form", [{"output": "binary"}, {"output": "int8"}, {"truncate_dim": 2}, {"dtype": "float16"}])
def test_no_form_of_a_vector_hides_what_is_not_finite(form: dict[str, Any], tmp_path: Path) -> None:
    id_ = wordpiece().token_to_id(WORD)
    spec = spec_for(write_model(tmp_path, dtype="float16", overflows=id_), pooling="mean", normalize=True)
    ranges = np.array([[-1] * 8, [1] * 8], dtype=np.float32).tobytes()
    batch = load(spec, tmp_path).encode(TEXTS, Call(**form, int8_ranges=ranges))
    assert_fails_where_it_should(batch.failures)


def test_sigmoid_and_activations_hide_nothing(tmp_path: Path) -> None:
    spec = TEXT_FAMILIES["reranker"](tmp_path, dtype="float16", overflows=overflowing_token("reranker"))
    batch = encode(load(spec, tmp_path), "reranker", TEXTS, activation="sigmoid")
    assert_fails_where_it_should(batch.failures)


def test_a_projection_that_ends_in_tanh_hides_nothing(tmp_path: Path) -> None:
    write_model(tmp_path, dtype="float16", overflows=wordpiece().token_to_id(WORD))
    (tmp_path / "2_Dense").mkdir()
    config = {"activation_function": "torch.nn.modules.activation.Tanh"}
    (tmp_path / "2_Dense" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tensors(tmp_path / "2_Dense" / "model.safetensors", {"linear.weight": np.ones((3, 8), dtype=np.float32)})
    spec = spec_for(tmp_path, pooling="mean", dim=3, settings={"projections": ("2_Dense",)})
    assert_fails_where_it_should(load(spec, tmp_path).encode(TEXTS, Call()).failures)


def test_what_only_half_precision_cannot_hold_is_told_apart(tmp_path: Path) -> None:
    spec = spec_for(write_model(tmp_path, overflows=wordpiece().token_to_id(WORD)), pooling="mean")
    encoder = load(spec, tmp_path)
    assert sorted(encoder.encode(TEXTS, Call()).failures) == list(UNUSABLE)
    failures = encoder.encode(TEXTS, Call(dtype="float16")).failures
    assert_fails_where_it_should(failures)
    assert 'too large for dtype="float16"' in str(failures[BAD[0]])


def test_static_vectors_that_are_not_finite_fail_their_texts(tmp_path: Path) -> None:
    directory = write_static(tmp_path, wordpiece())
    tensors = {name: tensor.copy() for name, tensor in read_tensors(directory / "model.safetensors").items()}
    tensors["embeddings"][wordpiece().token_to_id(WORD), 2] = np.nan
    write_tensors(directory / "model.safetensors", tensors)
    for call in (Call(), Call(output="binary")):
        assert_fails_where_it_should(static_encoder(directory).encode(TEXTS, call).failures)


@pytest.mark.parametrize("name", NAMES)
def test_multimodal_vectors_that_are_not_finite_fail_their_texts(name: str, tmp_path: Path) -> None:
    write_multimodal_model(tmp_path, name)
    texts = texts_with(WHOLE_WORD)
    ids = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(f" {WHOLE_WORD}", add_special_tokens=False).ids
    encoder = load(write_multimodal_model(tmp_path, name, overflows=ids[-1]), tmp_path)
    batch = encoder.encode(texts, Call(mode="query"))
    assert_fails_where_it_should(batch.failures)
    expected = encoder.encode([texts[position] for position in GOOD], Call(mode="query")).results
    for position, right in zip(GOOD, expected, strict=True):
        np.testing.assert_allclose(batch.results[position], right, atol=1e-5)


def test_images_whose_vectors_are_not_finite_fail_alone(tmp_path: Path) -> None:
    encoder = load(write_image_model(tmp_path, overflows=True), tmp_path)
    fine = encoded(picture(90, 90), "PNG")
    black = encoded(Image.new("RGB", (90, 90)), "PNG")
    batch = encoder.encode([fine, black, b"no image", fine], Call(mode="image"))
    assert {position: type(error) for position, error in batch.failures.items()} == {1: EncodeError, 2: InputError}
    np.testing.assert_allclose(batch.results[3], encoder.encode([fine], Call(mode="image")).results[0], atol=1e-6)


def test_weights_of_words_must_be_numbers(tmp_path: Path) -> None:
    write_if_splade(tmp_path)
    for weight in ("NaN", "Infinity", "1e999", "1" * 400):
        (tmp_path / "idf.json").write_text(f'{{"the": {weight}}}', encoding="utf-8")
        with pytest.raises(ModelLoadError, match=r"idf\.json"):
            load(catalogued(IF_SPLADE), tmp_path)


def test_unit_length_is_found_for_vectors_whose_squares_overflow() -> None:
    vectors = np.array([[3e30, 4e30], [3, 4]], dtype=np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(normalize(vectors), [[0.6, 0.8], [0.6, 0.8]], atol=1e-6)


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5),
        elements=st.floats(width=32) | st.just(0.0),
    )
)
def test_the_rows_found_are_those_with_nan_or_infinity(values: Any) -> None:
    expected = [row for row, value in enumerate(values) if not np.all(np.isfinite(value))]
    assert rows_not_finite(values).tolist() == expected


@pytest.mark.slow
async def test_the_consumer_of_a_stream_sees_which_input_it_was(tmp_path: Path) -> None:
    file = "onnx/model_fp16.onnx"
    write_model(tmp_path, model_file=file, dtype="float16", overflows=wordpiece().token_to_id(WORD))
    spec = spec_for(tmp_path, pooling="mean", model_file=file)
    async with TextEmbedding(spec, workers=1, device="cpu") as model:
        texts = ["the way", f"a long {WORD}", "of it"]
        results = [result async for result in model.embed(texts, on_error="return")]
        assert [type(result) for result in results] == [np.ndarray, EncodeError, np.ndarray]
        assert model.stats().failed == 1
        with pytest.raises(EncodeError, match=r'input 1: .*model_fp16\.onnx \(fp16\) on CPU.*precision="fp32"'):
            await model.embed(texts).collect()
