"""Images at the door: looked at once, and a path, bytes, pixels or something to fetch from then on."""

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from asyncembed.errors import InputError
from asyncembed.images.inputs import (
    ENCODED_BYTES_PER_TOKEN,
    PIXEL_BYTES_PER_TOKEN,
    UNREAD_BYTES,
    PillowImage,
    ToFetch,
    accept_image,
    is_one_image,
)

FORMS = (str, bytes, np.ndarray, PillowImage, ToFetch)


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("a.png", Path("a.png")):
        assert accept_image(path) == (str(tmp_path / "a.png"), 0, sys.getsizeof(path))


@pytest.mark.parametrize("url", ["http://a/b.png", "HTTPS://a/b.png"])
def test_a_url_is_to_be_fetched(url: str) -> None:
    assert accept_image(url) == (ToFetch(url), 0, UNREAD_BYTES)


@given(st.binary(max_size=3 * ENCODED_BYTES_PER_TOKEN))
def test_bytes_in_every_form_are_the_same_bytes(data: bytes) -> None:
    expected = (data, len(data) // ENCODED_BYTES_PER_TOKEN, len(data))
    for form in (data, bytearray(data), memoryview(data), BytesIO(data)):
        assert accept_image(form) == expected


@pytest.mark.slow
@given(arrays(np.uint8, st.tuples(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3, 4]))))
def test_pixels_cost_what_moving_them_costs(pixels: Any) -> None:
    form, tokens, size_bytes = accept_image(pixels)
    size = int(pixels.size)
    assert form is pixels
    assert (tokens, size_bytes) == (size // PIXEL_BYTES_PER_TOKEN, size)


def test_an_image_of_pillows_and_a_file_object() -> None:
    form, _, size_bytes = accept_image(Image.new("RGB", (20, 10)))
    assert isinstance(form, PillowImage)
    assert size_bytes == 600
    with Path(__file__).open("rb") as file:
        assert accept_image(file) == (ToFetch(file), 0, UNREAD_BYTES)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((2000, 2000), np.uint8),
        Image.new("L", (2000, 2000)),
        np.zeros((3, 3), np.float32),
        np.zeros((3, 3, 2), np.uint8),
        5,
        None,
        ["a.png"],
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_image_or_too_large_is_refused(value: object) -> None:
    with pytest.raises(InputError):
        accept_image(value, max_pixels=1_000_000)


@given(st.one_of(st.none(), st.integers(), st.text(), st.binary(), st.lists(st.text()), st.floats()))
def test_whatever_comes_has_a_form_or_an_error_of_its_own(value: object) -> None:
    try:
        form, tokens, size_bytes = accept_image(value)
    except InputError:
        return
    assert isinstance(form, FORMS)
    assert tokens >= 0
    assert size_bytes >= 0


def test_several_images_are_not_one() -> None:
    one = np.zeros((3, 3, 3), np.uint8)
    for image in ("a.png", Path("a.png"), b"", BytesIO(), one, Image.new("L", (1, 1))):
        assert is_one_image(image)
    several: tuple[Any, ...] = ([], (), iter([one]), np.stack([one, one]))
    for images in several:
        assert not is_one_image(images)
