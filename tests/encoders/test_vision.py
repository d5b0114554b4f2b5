"""Image models: the numbers of the reference, whatever the batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed import ImageEmbedding

from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.encoders.vision import ImageEncoder
from asyncembed.errors import UnsupportedModelError
from asyncembed.runtime.session import SessionOptions
from tests.support.images import IMAGE_MODELS, encoded, picture, write_image_graph, write_image_model

NAME = "Qdrant/clip-ViT-B-32-vision"
FIELDS: dict[str, Any] = {"max_batch_tokens": 700}


def write_pictures(directory: Path) -> list[str]:
    paths = []
    for number, (size, mode) in enumerate(
        [((300, 227), "RGB"), ((64, 200), "L"), ((250, 250), "RGBA"), ((231, 400), "CMYK"), ((10, 12), "P")]
    ):
        suffix = "jpg" if mode in ("RGB", "CMYK", "L") else "png"
        path = directory / f"{number}.{suffix}"
        picture(*size, mode, seed=number).save(path)
        paths.append(str(path))
    return paths


def load(directory: Path, name: str = NAME, **fields: Any) -> ImageEncoder:
    spec = write_image_model(directory, name)
    return ImageEncoder(EncoderConfig(spec=spec, directory=directory, **fields))


def results(encoder: ImageEncoder, inputs: Sequence[object], call: Call = Call(mode="image")) -> Any:  # noqa: B008
    encoded_batch = encoder.encode(inputs, call)
    assert not encoded_batch.failures
    assert isinstance(encoded_batch.results, np.ndarray)
    return encoded_batch.results


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_vectors_equal_the_reference(tmp_path: Path, name: str) -> None:
    paths = write_pictures(tmp_path)
    vectors = results(load(tmp_path, name, **FIELDS), paths)
    reference = ImageEmbedding(name, specific_model_path=str(tmp_path))
    expected = np.stack(list(reference.embed(paths))).astype(np.float32)
    assert vectors.dtype == np.float32
    assert vectors.shape == expected.shape
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


@pytest.mark.slow
def test_threads_and_batches_change_nothing(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path)
    alone = np.concatenate([results(load(tmp_path), [path]) for path in paths])
    for fields in (FIELDS, {"max_batch_size": 2}, {"session": SessionOptions(threads=2)}):
        np.testing.assert_allclose(results(load(tmp_path, **fields), paths), alone, atol=1e-6)


@pytest.mark.slow
def test_a_broken_image_fails_alone(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path)
    encoder = load(tmp_path, session=SessionOptions(threads=2))
    whole = results(encoder, paths)
    batch: Any = encoder.encode([paths[0], b"no image", paths[1], str(tmp_path / "missing.jpg")], Call(mode="image"))
    assert sorted(batch.failures) == [1, 3]
    np.testing.assert_allclose(np.stack([batch.results[0], batch.results[2]]), whole[:2], atol=1e-6)
    assert sorted(encoder.encode([b""], Call(mode="image")).failures) == [0]


def test_images_of_different_sizes_run_apart_where_the_model_takes_them_as_they_are(tmp_path: Path) -> None:
    import json

    spec = write_image_model(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_resize": False}), "utf-8")
    encoder = ImageEncoder(EncoderConfig(spec=spec, directory=tmp_path))
    files = [encoded(picture(*size), "PNG") for size in ((50, 60), (70, 40), (50, 60))]
    together = results(encoder, files)
    np.testing.assert_allclose(together, np.concatenate([results(encoder, [file]) for file in files]), atol=1e-6)


def test_forms_of_a_vector(tmp_path: Path) -> None:
    encoder = load(tmp_path)
    files = [encoded(picture(100, 90))]
    assert results(encoder, files, Call(mode="image", dtype="float16")).dtype == np.float16
    short = results(encoder, files, Call(mode="image", truncate_dim=16))
    assert short.shape == (1, 16)
    assert np.linalg.norm(short[0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_fast_decoding_changes_little(tmp_path: Path) -> None:
    file = encoded(picture(500, 375).resize((2000, 1500)), quality=90)
    exact = results(load(tmp_path), [file])
    fast = results(load(tmp_path, keywords={"fast_decode": True}), [file])
    assert not np.array_equal(exact, fast)
    assert float(exact[0] @ fast[0]) > 0.99


def test_the_size_of_an_image_is_its_patches(tmp_path: Path) -> None:
    encoder = load(tmp_path)
    assert encoder.info.tokens_per_image == 14 * 14
    batch = encoder.encode([encoded(picture(100, 90))] * 3, Call(mode="image"))
    assert batch.tokens == batch.padded_tokens == 3 * 14 * 14


def test_a_graph_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    spec = write_image_model(tmp_path)
    write_image_graph(tmp_path / "model.onnx", 7)
    with pytest.raises(UnsupportedModelError, match="dim=512"):
        ImageEncoder(EncoderConfig(spec=spec, directory=tmp_path))
