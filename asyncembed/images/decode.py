"""From an input to an RGB image: paths, encoded bytes, arrays and Pillow's images, in the worker.

Only some formats are read, and only what may be decoded in bounded time and memory: see `image_limits`. What is wrong
with an image is an `InputError`. Defined results, all as Pillow's `convert("RGB")` has them: grey is repeated in three
channels, palettes are looked up, transparency is dropped (not blended), CMYK is converted without a colour profile,
values of more than 8 bits are clipped at 255, of an animation the first frame counts. Orientation tags are ignored
unless asked for.
"""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from asyncembed.errors import InputError, in_words
from asyncembed.images.image_limits import MeteredFile, check_opened, check_unopened, readable_formats
from asyncembed.images.inputs import (
    MAX_IMAGE_PIXELS,
    READ_FORMATS,
    PillowImage,
    Unreadable,
    check_array,
    check_decoder,
    check_pixels,
    most_bytes,
)

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
        before_decoding: Called with an image that may be decoded, before it is.
        reduce_to: From an image's width and height to the size to which a JPEG may be reduced while it is decoded; the
            result is at least that large. None: never reduce.
    """

    apply_orientation: bool = False
    max_pixels: int = MAX_IMAGE_PIXELS
    before_decoding: Callable[[Image.Image], object] | None = None
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
            encoded = value.encoded_bytes()
            if encoded is not None:
                return _from_file(BytesIO(encoded), options)
            check_decoder(value.image)
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
        raise InputError(f"{_name(value)} cannot be decoded: {in_words(error)}") from error
    raise InputError(f"expected an image, got {type(value).__name__}")


def _from_path(path: str, options: DecodeOptions) -> Image.Image:
    try:
        # Opened here rather than by Pillow, which keeps the files of some formats open as long as the image lives.
        with open_regular_file(path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes > most_bytes(options.max_pixels):
                raise InputError(f"{path!r} is larger than an image of max_image_pixels={options.max_pixels} can be")
            return _from_file(file, options, path)
    except FileNotFoundError as error:
        raise InputError(f"{path!r} cannot be read: {error.strerror}") from error


@contextmanager
def open_regular_file(path: str) -> Iterator[BinaryIO]:
    """Open a file to read, without waiting for whatever a pipe or a device waits for.

    Raises:
        InputError: It is no regular file.
        OSError: It cannot be opened.
    """
    # Looked at before it is opened, which is enough to change some devices; and afterwards, as it may be another one.
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (any text, as it came)
        raise InputError(f"{path!r} is a directory, a pipe or a device, not a file")
    with open(path, "rb", opener=_open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InputError(f"{path!r} is a directory, a pipe or a device, not a file")
        yield file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _from_file(file: BinaryIO, options: DecodeOptions, path: str | None = None) -> Image.Image:
    name = "the image" if path is None else repr(path)
    check_unopened(file)
    metered = MeteredFile(file)
    try:
        image = Image.open(cast(BinaryIO, metered), formats=readable_formats())
    except UnidentifiedImageError:
        formats = ", ".join(READ_FORMATS)
        raise InputError(f"{name} is not an image, or of a kind that is not read; those that are: {formats}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name} is too large: {error}") from error
    position = file.tell()
    check_opened(image, file, options.max_pixels)
    file.seek(position)
    if any(tile[0] in Image.DECODERS for tile in image.tile):
        metered.reads_left = sys.maxsize  # Pillow's decoders in Python read byte by byte
    return _finish(image, options, may_reduce=True)


def _finish(image: Image.Image, options: DecodeOptions, *, may_reduce: bool = False) -> Image.Image:
    """Decode `image`, turn it, and bring it to RGB; `may_reduce` says that it is ours, to be decoded at any scale."""
    width, height = image.size
    check_pixels(width, height, options.max_pixels)
    if options.before_decoding is not None:
        options.before_decoding(image)
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
    check_array(array, options.max_pixels)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _finish(Image.fromarray(np.ascontiguousarray(array)), options)


def _name(value: object) -> str:
    return repr(value) if isinstance(value, str) else "the image"
