"""What decoding a file may cost: checked from its headers, before anything is decoded.

Images come from anybody. Most of what a decoder does is bounded by the number of pixels, and so is its memory. What is
not bounded by the pixels that a file declares is looked at here: scans, tiles, icons, what Pillow decodes in Python.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module, util
from threading import Condition
from typing import BinaryIO

from PIL import Image

from asyncembed.encoders.image_input import MAX_SLOW_PIXELS, READ_FORMATS, check_decoder, check_pixels
from asyncembed.errors import InputError

_PLUGINS = ("Jpeg", "Png", "Gif", "Bmp", "Ppm", "WebP", "Tiff", "Avif", "Jpeg2K", "Ico")
"""Pillow's modules for `READ_FORMATS`."""

MAX_SCANNED_PIXELS = 4_000_000_000
"""Scans of a JPEG times its pixels: about 5 s. A progressive photograph has some 10 scans."""

BYTES_PER_PIXEL = 8
"""What decoding takes at most, for a pixel, in the formats that `_BYTES_PER_PIXEL` does not name."""

MOST_BYTES_PER_PIXEL = 20

_BYTES_PER_PIXEL = {"JPEG": 4, "MPO": 4, "WEBP": 16, "AVIF": 16, "HEIF": 16, "JPEG2000": MOST_BYTES_PER_PIXEL}
"""As measured, of an image of 50 million pixels."""

_CHUNK_BYTES = 1024 * 1024
_TIFF_TILE_TAGS = (322, 323)
_JPEG_SOF = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_JPEG_SEQUENTIAL = frozenset({0xC0, 0xC1})
_JPEG_SOS = 0xDA


@cache
def readable_formats() -> tuple[str, ...]:
    """Those of `READ_FORMATS` that this Pillow can read."""
    for name in _PLUGINS:
        if util.find_spec(f"PIL.{name}ImagePlugin"):
            import_module(f"PIL.{name}ImagePlugin")
    if util.find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in READ_FORMATS if name in Image.OPEN)


def check_unopened(file: BinaryIO) -> None:
    """Raise `InputError` for an icon whose pictures are larger than its directory can say.

    Pillow decodes an icon while it opens it, at whatever size the picture in it has.
    """
    header = file.read(6)
    if header[:4] == b"\0\0\1\0":
        (count,) = struct.unpack("<H", header[4:].ljust(2, b"\0"))
        entries = file.read(16 * count)
        for start in range(0, len(entries) - 15, 16):
            (offset,) = struct.unpack_from("<I", entries, start + 12)
            file.seek(offset)
            width, height = _size_of_icon(file.read(24))
            if width * height > MAX_SLOW_PIXELS:
                raise InputError(f"an icon with a picture of {width}x{height} pixels is not read")
    file.seek(0)


def _size_of_icon(picture: bytes) -> tuple[int, int]:
    """Width and height of a picture in an icon, a PNG or a bitmap, from its first 24 bytes."""
    if len(picture) < 24:
        return 0, 0
    if picture.startswith(b"\x89PNG"):
        width, height = struct.unpack_from(">II", picture, 16)
    elif picture.startswith(b"\x0c\0\0\0"):
        width, height = struct.unpack_from("<HH", picture, 4)
    else:
        width, height = struct.unpack_from("<ii", picture, 4)
    return abs(width), abs(height)


def check_opened(image: Image.Image, file: BinaryIO, max_pixels: int) -> None:
    """Raise `InputError` if decoding `image`, which was opened from `file`, would cost more than it may."""
    check_pixels(*image.size, max_pixels)
    check_decoder(image)
    pixels = image.width * image.height
    if image.format == "TIFF":
        width, length = (_whole_number(getattr(image, "tag_v2", {}).get(tag)) for tag in _TIFF_TILE_TAGS)
        if width * length > max_pixels:
            raise InputError(f"an image in tiles of {width}x{length} pixels is over max_image_pixels={max_pixels}")
        has_scans = "jpeg" in str(image.info.get("compression"))
    else:
        has_scans = image.format in ("JPEG", "MPO") and _may_have_scans(file)
    if has_scans:
        scans = _count_scans(file)
        if scans * pixels > MAX_SCANNED_PIXELS:
            raise InputError(f"an image of {scans} scans, each over {pixels} pixels, takes too long to decode")


def _whole_number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _may_have_scans(file: BinaryIO) -> bool:
    """Whether a JPEG may have more than one scan: it is progressive, or its first scan has not all components."""
    file.seek(2)
    components = None
    while True:
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF:
            return True
        marker, length = head[1], int.from_bytes(head[2:], "big")
        if marker == _JPEG_SOS:
            return file.read(1) != components
        if marker in _JPEG_SOF:
            frame = file.read(6)
            if marker not in _JPEG_SEQUENTIAL:
                return True
            components = frame[5:]
            length -= 6
        if marker == 0xFF or length < 2:
            return True
        file.seek(length - 2, 1)


def _count_scans(file: BinaryIO) -> int:
    """How many scans the file begins at most: those of thumbnails and further pictures count, too."""
    file.seek(0)
    count, last = 0, b""
    while chunk := file.read(_CHUNK_BYTES):
        count += (last + chunk).count(b"\xff\xda")
        last = chunk[-1:]
    return count


class DecodingMemory:
    """What the threads of a worker may take together to decode: as much as the costliest image alone."""

    def __init__(self, max_pixels: int) -> None:
        self._most_bytes = MOST_BYTES_PER_PIXEL * max_pixels
        self._taken_bytes = 0
        self._changed = Condition()

    @contextmanager
    def taken_for(self, image: Image.Image) -> Iterator[None]:
        """Wait until there is room to decode `image`, and keep it while the block lasts."""
        size = _BYTES_PER_PIXEL.get(image.format or "", BYTES_PER_PIXEL) * image.width * image.height
        with self._changed:
            self._changed.wait_for(lambda: not self._taken_bytes or self._taken_bytes + size <= self._most_bytes)
            self._taken_bytes += size
        try:
            yield
        finally:
            with self._changed:
                self._taken_bytes -= size
                self._changed.notify_all()
