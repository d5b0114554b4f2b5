"""ColPali and ColModernVBERT: the numbers that the reference gives for each input alone."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed import LateInteractionMultimodalEmbedding

from asyncembed.encoders.colpali import colmodernvbert, colpali
from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.encoders.registry import build
from asyncembed.errors import UnsupportedModelError
from tests.support.images import SMALL_IDEFICS3, encoded, picture
from tests.support.models import TEXTS
from tests.support.multimodal import COLMODERNVBERT_NAME, COLPALI_NAME, NAMES, TILE_TOKENS, write_multimodal_model

SIZES = [(300, 227), (64, 200), (250, 250), (96, 30), (20, 20), (200, 64), (300, 228)]


def load(directory: Path, name: str, **fields: Any) -> Any:
    return build(EncoderConfig(spec=write_multimodal_model(directory, name), directory=directory, **fields))


def reference(directory: Path, name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about a new version of the model
        return LateInteractionMultimodalEmbedding(name, specific_model_path=str(directory))


def assert_equal(results: Any, expected: Any) -> None:
    assert len(results) == len(expected)
    for result, right in zip(results, expected, strict=True):
        assert result.dtype == np.float32
        assert result.shape == right.shape
        np.testing.assert_allclose(result, right, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_texts_equal_the_reference_one_by_one(tmp_path: Path, name: str) -> None:
    encoder = load(tmp_path, name, max_batch_tokens=5000)
    model = reference(tmp_path, name)
    expected = [next(iter(model.embed_text(text))) for text in TEXTS]
    assert len({len(matrix) for matrix in expected}) > 1
    assert_equal(encoder.encode(TEXTS, Call(mode="embed")).results, expected)
    assert_equal(encoder.encode(TEXTS, Call(mode="query")).results, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_images_equal_the_reference(tmp_path: Path, name: str) -> None:
    encoder = load(tmp_path, name, max_batch_tokens=5000)
    images = [picture(*size) for size in SIZES]
    expected = list(reference(tmp_path, name).embed_image(images))
    results = encoder.encode([encoded(image, "PNG") for image in images], Call(mode="image")).results
    assert_equal(results, expected)
    if name == COLPALI_NAME:
        assert {len(matrix) for matrix in expected} == {1030}


def test_a_split_image_has_rows_for_each_tile(tmp_path: Path) -> None:
    encoder = load(tmp_path, COLMODERNVBERT_NAME)
    wide, square = encoder.encode([picture_bytes(96, 30), picture_bytes(90, 90)], Call(mode="image")).results
    assert len(square) - len(wide) >= (9 - 3) * TILE_TOKENS


def test_an_image_that_is_not_split_equals_the_reference(tmp_path: Path) -> None:
    spec = write_multimodal_model(tmp_path, COLMODERNVBERT_NAME)
    config = SMALL_IDEFICS3 | {"do_image_splitting": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config), "utf-8")
    encoder = build(EncoderConfig(spec=spec, directory=tmp_path))
    image = picture(80, 50)
    expected = list(reference(tmp_path, COLMODERNVBERT_NAME).embed_image([image]))
    assert_equal(encoder.encode([encoded(image, "PNG")], Call(mode="image")).results, expected)


def picture_bytes(width: int, height: int) -> bytes:
    return encoded(picture(width, height), "PNG")


@pytest.mark.parametrize("name", NAMES)
def test_token_counts_equal_the_reference(tmp_path: Path, name: str) -> None:
    encoder = load(tmp_path, name)
    model = reference(tmp_path, name)
    for extended in (False, True):
        call = Call(mode="count", include_extension=extended)
        expected = [model.token_count(text, include_extension=extended) for text in TEXTS]
        assert list(encoder.encode(TEXTS, call).results) == expected


@pytest.mark.parametrize("name", NAMES)
def test_wrong_inputs_fail_alone(tmp_path: Path, name: str) -> None:
    encoder = load(tmp_path, name)
    texts = encoder.encode(["the way", None, "of it"], Call())
    assert sorted(texts.failures) == [1]
    assert_equal([texts.results[0], texts.results[2]], encoder.encode(["the way", "of it"], Call()).results)
    images = encoder.encode([b"?", picture_bytes(40, 30)], Call(mode="image"))
    assert sorted(images.failures) == [0]
    assert_equal([images.results[1]], encoder.encode([picture_bytes(40, 30)], Call(mode="image")).results)


def test_missing_files_and_settings_are_named(tmp_path: Path) -> None:
    spec = write_multimodal_model(tmp_path, COLMODERNVBERT_NAME)
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(UnsupportedModelError, match=r"processor_config\.json"):
        colmodernvbert(EncoderConfig(spec=spec, directory=tmp_path))
    with pytest.raises(UnsupportedModelError, match="query_prefix_ids"):
        colpali(EncoderConfig(spec=spec, directory=tmp_path))
