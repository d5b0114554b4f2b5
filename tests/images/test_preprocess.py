"""Preprocessing: the reference's numbers, bit by bit, before any model sees them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed.image.transform.operators import Compose
from PIL import Image

from asyncembed.errors import InputError, ModelLoadError, UnsupportedModelError
from asyncembed.images.decode import DecodeOptions, decode
from asyncembed.images.inputs import PillowImage
from asyncembed.images.preprocess import Preprocessor
from tests.support.images import (
    CLIP,
    CONFIGS,
    CONVNEXT,
    IDEFICS3,
    JINA_CLIP,
    MODES,
    SIGLIP,
    SIZES,
    SMALL_IDEFICS3,
    picture,
)


def assert_equals_reference(config: dict[str, Any], image: Any) -> None:
    metadata: dict[str, Any] = {}
    expected: Any = Compose.from_config(config)([image], metadata=metadata)[0]
    prepared = Preprocessor(config)(decode(PillowImage(image), DecodeOptions()))
    assert prepared.pixels.dtype == np.float32
    tiles = np.stack(expected) if isinstance(expected, list) else expected[None]
    np.testing.assert_array_equal(prepared.pixels, tiles.astype(np.float32))
    assert prepared.grid == metadata["image_grid"][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_equal_the_reference(name: str, size: tuple[int, int]) -> None:
    assert_equals_reference(CONFIGS[name], picture(*size))


@pytest.mark.slow
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
        ({"image_processor_type": "GLPNImageProcessor"}, "GLPNImageProcessor"),
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
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(UnsupportedModelError, match=f"preprocessor_config.json.*{word}"):
        Preprocessor.read(tmp_path)


# As `AutoImageProcessor` of transformers 5.24 makes them of a config that says nothing but its type.
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_DINO = {"image_mean": CONVNEXT["image_mean"], "image_std": CONVNEXT["image_std"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (("CLIPImageProcessor{}", "CLIPFeatureExtractor", "ChineseCLIPImageProcessor{}", "BitImageProcessor{}"), CLIP),
        (("SiglipImageProcessor{}",), SIGLIP | {"resample": 3}),
        (("ViTImageProcessor{}", "ViTFeatureExtractor"), SIGLIP),
        (("DINOv3ViTImageProcessor{}",), SIGLIP | _DINO),
        (
            ("DeiTImageProcessor{}", "DeiTFeatureExtractor"),
            CLIP | _HALF | {"size": {"height": 256, "width": 256}},
        ),
        (("ConvNextImageProcessor{}",), CONVNEXT | _HALF | {"size": {"shortest_edge": 384}}),
        (
            ("Idefics3ImageProcessor{}",),
            IDEFICS3 | {"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}},
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_every_name_of_a_processor_stands_for_its_steps(names: tuple[str, ...], steps: dict[str, Any]) -> None:
    """`...Fast` (4.x) and `...Pil` (5.x) are other implementations of the same; `...FeatureExtractor` is an old name.

    What a config leaves out is what the class does by default, but for the names that fastembed knows.
    """
    image = picture(301, 233)
    expected = Preprocessor(steps)(image)
    for name in (name.format(suffix) for name in names for suffix in ("", "Fast", "Pil")):
        written = steps | {"image_processor_type": name}
        np.testing.assert_array_equal(Preprocessor(written)(image).pixels, expected.pixels)
        if name not in CONFIGURED_BY_FASTEMBED:
            for config in ({"image_processor_type": name}, {"feature_extractor_type": name, "size": None}):
                prepared = Preprocessor(config)(image)
                np.testing.assert_array_equal(prepared.pixels, expected.pixels)
                assert prepared.grid == expected.grid


CONFIGURED_BY_FASTEMBED = {"CLIPImageProcessor", "SiglipImageProcessor", "Idefics3ImageProcessor"}


def test_one_number_is_both_edges_or_the_shorter_one() -> None:
    """By the kind: the configs of the first versions of these processors have it so."""
    image = picture(301, 233)
    sizes: list[tuple[str, dict[str, Any]]] = [
        ("ViTFeatureExtractor", {"height": 64, "width": 64}),
        ("CLIPFeatureExtractor", {"shortest_edge": 64}),
    ]
    for name, size in sizes:
        number, named = (
            Preprocessor({"feature_extractor_type": name, "crop_size": 64, "size": each})(image) for each in (64, size)
        )
        np.testing.assert_array_equal(number.pixels, named.pixels)
    number, named = (Preprocessor(CONVNEXT | {"size": size})(image) for size in (224, {"shortest_edge": 224}))
    np.testing.assert_array_equal(number.pixels, named.pixels)


@pytest.mark.parametrize(
    "config",
    [
        CLIP | {"size": {"shortest_edge": 10**9}},
        CLIP | {"size": {"height": 10**9, "width": 10**9}},
        CLIP | {"size": {"shortest_edge": 1e999}},
        CLIP | {"size": {"shortest_edge": "224"}},
        CLIP | {"size": -5},
        CLIP | {"crop_size": 10**9},
        CLIP | {"crop_size": {"height": 0, "width": 0}},
        CLIP | {"image_std": [0, 0, 0]},
        CLIP | {"image_mean": [1e999, 0, 0]},
        CONVNEXT | {"crop_pct": 0},
        CONVNEXT | {"crop_pct": 1e-9},
        CONVNEXT | {"size": {"shortest_edge": 10**6}},
        JINA_CLIP | {"size": 10**9},
        JINA_CLIP | {"fill_color": "no colour"},
        IDEFICS3 | {"size": {"longest_edge": 10**6}},
        IDEFICS3 | {"max_image_size": {"longest_edge": 0}},
        {"image_processor_type": ["CLIPImageProcessor"]},
        {"image_processor_type": 5},
        ["CLIPImageProcessor"],
    ],
    ids=str,
)
def test_a_config_may_not_ask_for_what_no_model_has(tmp_path: Path, config: object) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(UnsupportedModelError, match="preprocessor_config.json"):
        Preprocessor.read(tmp_path)


def test_the_config_may_lie_among_the_rest_of_a_processors(tmp_path: Path) -> None:
    """Transformers 5 writes it there; a file of its own goes first."""
    image = picture(100, 80)
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": SIGLIP, "image_seq_len": 64}), "utf-8"
    )
    nested = Preprocessor.read(tmp_path)(image)
    np.testing.assert_array_equal(nested.pixels, Preprocessor(SIGLIP)(image).pixels)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CLIP), "utf-8")
    np.testing.assert_array_equal(Preprocessor.read(tmp_path)(image).pixels, Preprocessor(CLIP)(image).pixels)


def test_a_missing_or_broken_config(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no preprocessor_config\.json"):
        Preprocessor.read(tmp_path)
    for text in ("{", "[" * 100_000):
        (tmp_path / "preprocessor_config.json").write_text(text, "utf-8")
        with pytest.raises(ModelLoadError, match="cannot read"):
            Preprocessor.read(tmp_path)


@pytest.mark.slow
def test_an_image_that_would_become_gigantic_is_refused() -> None:
    with pytest.raises(InputError, match="too long and thin"):
        Preprocessor(CLIP)(picture(1, 5000))
    assert Preprocessor(SIGLIP)(picture(1, 5000)).pixels.shape == (1, 3, 224, 224)
    for size in ((1, 3560), (3560, 1), (1, 700)):
        with pytest.raises(InputError, match="too long and thin"):
            Preprocessor(CLIP)(Image.new("RGB", size))
    assert Preprocessor(CLIP)(Image.new("RGB", (1, 600))).pixels.shape == (1, 3, 224, 224)


@pytest.mark.slow
def test_what_a_model_makes_of_an_image_is_bounded_whatever_the_steps() -> None:
    as_it_is = {"do_resize": False}
    with pytest.raises(InputError, match="too large"):
        Preprocessor(as_it_is)(Image.new("RGB", (6000, 6000)))
    uncut = SMALL_IDEFICS3 | {"do_resize": False}
    with pytest.raises(InputError, match="too long and thin"):
        Preprocessor(uncut)(Image.new("RGB", (2_000_000, 1)))
    with pytest.raises(InputError, match="cut into"):
        Preprocessor(uncut)(Image.new("RGB", (4000, 4000)))


def test_the_size_that_the_graph_gets() -> None:
    sizes = {"siglip": (224, 224), "clip": (224, 224), "clip without a crop": None, "jina clip": (224, 224)}
    for name, size in sizes.items():
        assert Preprocessor(CONFIGS[name]).output_size == size
    assert Preprocessor(IDEFICS3).output_size == (512, 512)
