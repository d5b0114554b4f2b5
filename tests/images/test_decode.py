"""Decoding: every kind of image has a defined result or is refused with a reason."""

import pickle
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from asyncembed.errors import InputError
from asyncembed.images.decode import DecodeOptions, decode
from asyncembed.images.inputs import PillowImage, Unreadable, check_array, is_pillow_image
from tests.support import posix
from tests.support.images import MODES, encoded, picture
from tests.support.waiting import open_files

PLAIN = DecodeOptions()


def pixels(value: object, options: DecodeOptions = PLAIN) -> "np.ndarray[Any, Any]":
    image = decode(value, options)
    assert image.mode == "RGB"
    return np.asarray(image)


def as_rgb(image: Image.Image) -> "np.ndarray[Any, Any]":
    return np.asarray(image.convert("RGB"))


# ---------------------------------------------------------------- the forms of an input


def test_path_bytes_array_and_pillow_image_give_the_same(tmp_path: Path) -> None:
    image = picture(31, 20)
    path = tmp_path / "a.png"
    image.save(path)
    expected = np.asarray(image)
    for value in (str(path), path.read_bytes(), expected, PillowImage(image)):
        np.testing.assert_array_equal(pixels(value), expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_pillow_image_of_any_mode_survives_the_way_to_the_worker(mode: str) -> None:
    image = picture(31, 20, mode)
    arrived = pickle.loads(pickle.dumps(PillowImage(image)))
    np.testing.assert_array_equal(pixels(arrived), as_rgb(image))
    assert PillowImage(image).nbytes >= 31 * 20


@pytest.mark.slow
def test_an_image_that_was_opened_and_not_decoded_travels_as_its_file(tmp_path: Path) -> None:
    """Decoding is the worker's work, and the file is much smaller than the pixels."""
    path = tmp_path / "a.jpg"
    picture(900, 700).save(path, quality=50)
    with Image.open(path) as image:
        data = pickle.dumps(PillowImage(image))
        assert len(data) < path.stat().st_size + 200
        position = image.fp.tell()  # type: ignore[union-attr]
        np.testing.assert_array_equal(pixels(pickle.loads(data)), pixels(str(path)))
        assert image.fp.tell() == position  # type: ignore[union-attr]
    with Image.open(BytesIO(path.read_bytes())) as image:
        assert pickle.loads(pickle.dumps(PillowImage(image))) == path.read_bytes()
    with Image.open(path) as image:
        image.load()
        assert len(pickle.dumps(PillowImage(image))) > 900 * 700 * 3


@pytest.mark.slow
def test_an_image_set_to_another_frame_or_scale_travels_as_what_is_seen(tmp_path: Path) -> None:
    frames = [picture(20, 20, seed=seed) for seed in range(3)]
    path = tmp_path / "a.tiff"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with Image.open(path) as image:
        image.seek(2)
        np.testing.assert_array_equal(pixels(pickle.loads(pickle.dumps(PillowImage(image)))), np.asarray(frames[2]))
    with Image.open(BytesIO(encoded(picture(800, 600)))) as image:
        image.draft("RGB", (100, 100))
        arrived = pixels(pickle.loads(pickle.dumps(PillowImage(image))))
        assert arrived.shape == (150, 200, 3)


def test_a_closed_pillow_image_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture(20, 20).save(path)
    image = Image.open(path)
    image.close()
    arrived = pickle.loads(pickle.dumps(PillowImage(image)))
    assert isinstance(arrived, Unreadable)
    with pytest.raises(InputError, match="cannot be read"):
        decode(arrived, PLAIN)


def test_a_palette_with_transparency_survives_the_way_to_the_worker(tmp_path: Path) -> None:
    image = picture(20, 20, "P")
    image.info["transparency"] = bytes(range(256))
    arrived = pickle.loads(pickle.dumps(PillowImage(image)))
    np.testing.assert_array_equal(pixels(arrived), np.asarray(image.convert("RGBA"))[:, :, :3])


def test_arrays() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for array in (grey, grey[:, :, None], np.repeat(grey[:, :, None], 3, axis=2), np.repeat(grey[:, :, None], 4, 2)):
        check_array(array)
        np.testing.assert_array_equal(pixels(array), np.repeat(grey[:, :, None], 3, axis=2))
    colour = np.asarray(picture(31, 20))
    np.testing.assert_array_equal(pixels(colour[::2, ::-1]), colour[::2, ::-1])
    for wrong in (grey.astype(np.float32), grey[0], np.zeros((3, 4, 2), np.uint8), np.zeros((2, 3, 4, 3), np.uint8)):
        with pytest.raises(InputError, match="uint8"):
            check_array(wrong)
    with pytest.raises(InputError, match="empty"):
        decode(np.zeros((0, 4, 3), np.uint8), PLAIN)


def test_what_is_a_pillow_image() -> None:
    assert is_pillow_image(picture(2, 2))
    assert not is_pillow_image("a.png")


# ---------------------------------------------------------------- kinds of images


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "P", {}),
        ("PNG", "P", {"transparency": bytes(range(256))}),
        ("PNG", "P", {"transparency": 3}),
        ("PNG", "1", {}),
        ("PNG", "LA", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "I;16", {}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("TIFF", "CMYK", {}),
        ("TIFF", "F", {}),
        ("ICO", "RGBA", {}),
        ("PPM", "RGB", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_each_kind_is_converted_as_pillow_does(kind: str, mode: str, options: dict[str, Any]) -> None:
    data = encoded(picture(64, 48, mode), kind, **options)
    with Image.open(BytesIO(data)) as image:
        expected = as_rgb(image)
    np.testing.assert_array_equal(pixels(data), expected)


def test_transparency_is_dropped_not_blended() -> None:
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert pixels(encoded(image, "PNG"))[0, 0].tolist() == [10, 20, 30]


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_tag_counts_only_if_asked_for(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(40, 24)
    data = encoded(image, "PNG", exif=exif)
    with Image.open(BytesIO(data)) as opened:
        turned = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(pixels(data), np.asarray(image))
    upright = DecodeOptions(apply_orientation=True)
    np.testing.assert_array_equal(pixels(data, upright), turned)
    with Image.open(BytesIO(data)) as opened:
        opened.load()
        arrived = pickle.loads(pickle.dumps(PillowImage(opened)))
    np.testing.assert_array_equal(pixels(arrived, upright), turned)


@pytest.mark.slow
def test_a_reduced_jpeg_stays_larger_than_what_is_asked_for() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(800, 500), "JPEG", exif=exif)
    asked: list[tuple[int, int]] = []

    def reduce_to(size: tuple[int, int]) -> tuple[int, int]:
        asked.append(size)
        return (175, 110) if size[0] > size[1] else (110, 175)

    assert pixels(data, DecodeOptions(reduce_to=reduce_to)).shape == (125, 200, 3)
    upright = DecodeOptions(reduce_to=reduce_to, apply_orientation=True)
    assert pixels(data, upright).shape == (200, 125, 3)
    assert asked == [(800, 500), (500, 800)]
    assert pixels(encoded(picture(800, 500), "PNG"), DecodeOptions(reduce_to=reduce_to)).shape == (500, 800, 3)


def test_an_image_of_the_caller_is_never_reduced_in_place() -> None:
    with Image.open(BytesIO(encoded(picture(800, 600)))) as image:
        decode(PillowImage(image), DecodeOptions(reduce_to=lambda size: (10, 10)))
        assert image.size == (800, 600)


# ---------------------------------------------------------------- what is refused


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be large and has nothing behind its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "not an image"),
        (b"hello", "not an image"),
        (encoded(picture(300, 200))[:3000], "truncated"),
        (encoded(picture(300, 200), "PNG")[:3000], "truncated|broken"),
        (encoded(picture(300, 200), "GIF")[:40], "cannot be|not an image"),
        (_png_header(60_000, 60_000), "too large"),
        ("no/such/file.png", "No such file"),
        ("nul\0byte", "null"),
        (7, "expected an image"),
    ],
)
def test_each_broken_image_has_a_reason(value: object, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        decode(value, PLAIN)


def test_a_directory_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?i)directory|permission"):
        decode(str(tmp_path), PLAIN)


@pytest.mark.posix
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "a.jpg"
    posix.make_pipe(pipe)
    (tmp_path / "link.jpg").symlink_to(pipe)
    for path in (pipe, tmp_path / "link.jpg", Path("/dev/zero"), Path("/dev/tty")):
        with pytest.raises(InputError, match=r"not a file|No such"):
            decode(str(path), PLAIN)


def test_an_array_is_looked_at_before_it_is_copied() -> None:
    """Broadcast, it is a byte that says it is a terabyte."""
    array = np.broadcast_to(np.uint8(0), (500_000, 500_000, 3))
    with pytest.raises(InputError, match="max_image_pixels"):
        decode(array, PLAIN)
    with pytest.raises(InputError, match="max_image_pixels"):
        check_array(array)
    check_array(np.zeros((10, 10), np.uint8), 100)


def test_an_image_over_the_pixel_limit_is_not_decoded() -> None:
    limited = DecodeOptions(max_pixels=10_000)
    assert pixels(encoded(picture(100, 100)), limited).shape == (100, 100, 3)
    for value in (_png_header(101, 100), np.zeros((101, 100, 3), np.uint8), PillowImage(picture(101, 100))):
        with pytest.raises(InputError, match="max_image_pixels"):
            decode(value, limited)


def test_no_file_stays_open(tmp_path: Path) -> None:
    paths = []
    for kind, name in (("TIFF", "a.tiff"), ("GIF", "a.gif"), ("JPEG", "a.jpg"), ("PNG", "broken.png")):
        path = tmp_path / name
        data = encoded(picture(50, 50), kind)
        path.write_bytes(data[:200] if "broken" in name else data)
        paths.append(path)
    before = open_files()
    for path in paths:
        try:
            decode(str(path), PLAIN)
        except InputError:
            assert "broken" in path.name
    assert open_files() == before
