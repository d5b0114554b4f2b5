"""From an input to an RGB image: paths, encoded bytes, arrays and Pillow's images, in the worker.

What can be wrong with an image is an `InputError`. Defined results, all as Pillow's `convert("RGB")` has them: grey is
repeated in three channels, palettes are looked up, transparency is dropped (not blended), CMYK is converted without a
colour profile, values of more than 8 bits are clipped at 255, of an animation the first frame counts. Orientation tags
are ignored unless asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from asyncembed.encoders.image_input import MAX_IMAGE_PIXELS, PillowImage, Unreadable, describe
from asyncembed.errors import InputError

_ORIENTATION_TAG = 0x0112
# By the number in the tag: see "Orientation" in the EXIF standard, which counts from the first row and column.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_EDGES = frozenset({_TURNS[number] for number in (5, 6, 7, 8)})


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeOptions:
    """How images are decoded.

    Attributes:
        apply_orientation: Turn the image as its EXIF tag says.
        max_pixels: Refuse images of more pixels than this, before they are decoded.
        reduce_to: From an image's width and height to the size to which a JPEG may be reduced while it is decoded; the
            result is at least that large. None: never reduce.
    """

    apply_orientation: bool = False
    max_pixels: int = MAX_IMAGE_PIXELS
    reduce_to: Callable[[tuple[int, int]], tuple[int, int] | None] | None = None


def decode(value: object, options: DecodeOptions) -> Image.Image:
    """The RGB image of an input: a path as `str`, encoded `bytes`, an array, or a `PillowImage`.

    Raises:
        InputError: It is none, cannot be read, is broken, or too large.
    """
    if isinstance(value, np.ndarray):
        return _from_array(value, options)
    try:
        if isinstance(value, PillowImage):
            return _finish(value.image, options)
        if isinstance(value, str):
            return _from_path(value, options)
        if isinstance(value, bytes):
            return _from_file(BytesIO(value), options)
        if isinstance(value, Unreadable):
            raise InputError(value.reason)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{_name(value)} does not fit into memory") from error
    # Pillow's decoders raise whatever they stumble over.
    except Exception as error:
        raise InputError(f"{_name(value)} cannot be decoded: {describe(error)}") from error
    raise InputError(f"expected an image, got {type(value).__name__}")


def _from_path(path: str, options: DecodeOptions) -> Image.Image:
    try:
        # Opened here rather than by Pillow, which keeps the files of some formats open as long as the image lives.
        with Path(path).open("rb") as file:
            return _from_file(file, options, path)
    except FileNotFoundError as error:
        raise InputError(f"{path!r} cannot be read: {error.strerror}") from error


def _from_file(file: BinaryIO, options: DecodeOptions, path: str | None = None) -> Image.Image:
    name = "the image" if path is None else repr(path)
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        raise InputError(f"{name} is not an image, or of a kind that Pillow cannot read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name} is too large: {error}") from error
    return _finish(image, options, may_reduce=True)


def _finish(image: Image.Image, options: DecodeOptions, *, may_reduce: bool = False) -> Image.Image:
    """Decode `image`, turn it, and bring it to RGB; `may_reduce` says that it is ours, to be decoded at any scale."""
    width, height = image.size
    if width * height > options.max_pixels:
        raise InputError(f"an image of {width}x{height} pixels is over max_image_pixels={options.max_pixels}")
    if width * height == 0:
        raise InputError(f"an image of {width}x{height} pixels is empty")
    turn = _turn(image) if options.apply_orientation else None
    if may_reduce and options.reduce_to is not None:
        least = options.reduce_to((height, width) if turn in _SWAPS_EDGES else (width, height))
        if least is not None:
            image.draft(None, least[::-1] if turn in _SWAPS_EDGES else least)
    return _to_rgb(image if turn is None else image.transpose(turn))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings an image upright, by its EXIF tag."""
    number = image.getexif().get(_ORIENTATION_TAG)
    return _TURNS.get(number) if isinstance(number, int) else None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        # The same colours, without Pillow's warning that their transparency is lost.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _from_array(array: "np.ndarray[Any, Any]", options: DecodeOptions) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _finish(Image.fromarray(np.ascontiguousarray(array)), options)


def _name(value: object) -> str:
    return repr(value) if isinstance(value, str) else "the image"
