"""Preprocessing: the reference's numbers, bit by bit, before any model sees them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed.image.transform.operators import Compose

from asyncembed.encoders.decoding import DecodeOptions, decode
from asyncembed.encoders.image_input import PillowImage
from asyncembed.encoders.preprocessing import Preprocessor
from asyncembed.errors import InputError, ModelLoadError, UnsupportedModelError
from tests.support.images import CLIP, CONFIGS, CONVNEXT, IDEFICS3, JINA_CLIP, MODES, SIGLIP, SIZES, picture


def assert_equals_reference(config: dict[str, Any], image: Any) -> None:
    metadata: dict[str, Any] = {}
    expected: Any = Compose.from_config(config)([image], metadata=metadata)[0]
    prepared = Preprocessor(config)(decode(PillowImage(image), DecodeOptions()))
    assert prepared.pixels.dtype == np.float32
    tiles = np.stack(expected) if isinstance(expected, list) else expected[None]
    np.testing.assert_array_equal(prepared.pixels, tiles.astype(np.float32))
    assert prepared.grid == metadata["image_grid"][0]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_equal_the_reference(name: str, size: tuple[int, int]) -> None:
    assert_equals_reference(CONFIGS[name], picture(*size))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_the_reference(mode: str) -> None:
    assert_equals_reference(CLIP, picture(301, 233, mode))


@pytest.mark.slow
def test_the_tiles_of_a_real_configuration() -> None:
    image = picture(457, 300)
    assert_equals_reference(IDEFICS3, image)
    prepared = Preprocessor(IDEFICS3)(image)
    assert prepared.grid == (3, 4)
    assert prepared.pixels.shape == (13, 3, 512, 512)


def test_resampling_by_name_and_number() -> None:
    for value in ("nearest", "Bilinear", "LANCZOS", "box", "hamming", 0, 1, 2, 3, 4, 5):
        assert_equals_reference(JINA_CLIP | {"interpolation": value}, picture(100, 80))


def test_one_number_for_all_channels() -> None:
    assert_equals_reference(CLIP | {"image_mean": 0.5, "image_std": 0.25}, picture(240, 260))


def test_a_bare_number_as_size_is_the_shorter_edge() -> None:
    """Older configs of CLIP have it so; the reference refuses them."""
    number, named = (Preprocessor(CLIP | {"size": size})(picture(300, 400)) for size in (224, {"shortest_edge": 224}))
    np.testing.assert_array_equal(number.pixels, named.pixels)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, "ViTImageProcessor"),
        (CLIP | {"size": {"longest_edge": 3}}, "shortest_edge"),
        ({"do_resize": True}, "size"),
        (CLIP | {"image_mean": [1, 2]}, "mean"),
        (CONVNEXT | {"size": {"height": 3}}, "shortest_edge"),
        (IDEFICS3 | {"size": {}}, "longest_edge"),
        (JINA_CLIP | {"interpolation": "cubic"}, "interpolation"),
        (CLIP | {"resample": 77}, "77"),
    ],
)
def test_a_config_that_cannot_work_names_file_and_reason(tmp_path: Path, config: dict[str, Any], word: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=f"preprocessor_config.json.*{word}"):
        Preprocessor.read(tmp_path)


def test_a_missing_or_broken_config(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no preprocessor_config\.json"):
        Preprocessor.read(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="cannot read"):
        Preprocessor.read(tmp_path)


def test_an_image_that_would_become_gigantic_is_refused() -> None:
    with pytest.raises(InputError, match="too long and thin"):
        Preprocessor(CLIP)(picture(1, 5000))
    assert Preprocessor(SIGLIP)(picture(1, 5000)).pixels.shape == (1, 3, 224, 224)


def test_the_size_that_the_graph_gets() -> None:
    sizes = {"siglip": (224, 224), "clip": (224, 224), "clip without a crop": None, "jina clip": (224, 224)}
    for name, size in sizes.items():
        assert Preprocessor(CONFIGS[name]).output_size == size
    assert Preprocessor(IDEFICS3).output_size == (512, 512)
