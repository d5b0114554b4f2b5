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
from typing import Any, BinaryIO

from PIL import Image

from asyncembed.errors import InputError
from asyncembed.images.inputs import MAX_SLOW_PIXELS, READ_FORMATS, check_decoder, check_pixels

_PLUGINS = ("Jpeg", "Png", "Gif", "Bmp", "Ppm", "WebP", "Tiff", "Avif", "Jpeg2K", "Ico")
"""Pillow's modules for `READ_FORMATS`."""

MAX_SCANNED_PIXELS = 4_000_000_000
"""Scans of a JPEG times its pixels: about 5 s. A progressive photograph has some 10 scans."""

BYTES_PER_PIXEL = 8
"""What decoding takes at most, for a pixel, in the formats that `_BYTES_PER_PIXEL` does not name."""

MOST_BYTES_PER_PIXEL = 20

_BYTES_PER_PIXEL = {"JPEG": 4, "MPO": 4, "WEBP": 16, "AVIF": 16, "HEIF": 16, "JPEG2000": MOST_BYTES_PER_PIXEL}
"""As measured, of an image of 50 million pixels."""

MAX_READS = 100_000
"""Reads from a file, beside one for each `BYTES_PER_READ` of it: Pillow goes through metadata in Python, which takes a
read at least, and some microseconds, for each piece."""

BYTES_PER_READ = 512

MAX_EXIF_PIECES = 64
"""Pillow joins them one by one, as it does a GIF's comments."""

MAX_GIF_EXTENSION_BYTES = 256 * 1024
MAX_TIFF_FIELDS = 4096
MAX_TIFF_PARTS = 65_536
"""Strips or tiles, each of which Pillow decodes on its own."""

_TIFF_PART_TAGS = (273, 324)
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


class MeteredFile:
    """A file that fails when it is read too often: what makes a decoder read is metadata in countless pieces."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._exif_pieces = 0
        size_bytes = file.seek(0, 2)
        file.seek(0)
        self.reads_left: int = MAX_READS + size_bytes // BYTES_PER_READ

    def read(self, size: int = -1, /) -> bytes:
        """As of any file. Raises `InputError`."""
        data = self._file.read(size)
        self.reads_left -= 1
        if data[:6] == b"Exif\0\0":
            self._exif_pieces += 1
        if self.reads_left < 0 or self._exif_pieces > MAX_EXIF_PIECES:
            raise InputError("the image consists of too many pieces to be read")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def check_unopened(file: BinaryIO) -> None:
    """Raise `InputError` for what would take long, or much memory, before an image is so much as opened."""
    header = file.read(8)
    if header[:4] == b"\0\0\1\0":
        _check_icon(file)
    elif header[:3] == b"GIF":
        _check_gif(file)
    elif header[:2] in (b"II", b"MM"):
        _check_tiff(file, header)
    file.seek(0)


def _check_icon(file: BinaryIO) -> None:
    """Pillow decodes an icon while it opens it, at whatever size the picture in it has."""
    file.seek(4)
    (count,) = struct.unpack("<H", file.read(2).ljust(2, b"\0"))
    entries = file.read(16 * count)
    for start in range(0, len(entries) - 15, 16):
        (offset,) = struct.unpack_from("<I", entries, start + 12)
        file.seek(offset)
        width, height = _size_of_icon(file.read(24))
        if width * height > MAX_SLOW_PIXELS:
            raise InputError(f"an icon with a picture of {width}x{height} pixels is not read")


def _check_gif(file: BinaryIO) -> None:
    """What comes before the first picture: comments, which Pillow joins piece by piece."""
    file.seek(10)
    flags = file.read(1)
    colours = 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0
    file.seek(13 + colours)
    while file.read(1) == b"!":
        file.seek(1, 1)
        while size := file.read(1)[:1].strip(b"\0"):
            file.seek(size[0], 1)
        if file.tell() > MAX_GIF_EXTENSION_BYTES:
            raise InputError(f"a GIF with more than {MAX_GIF_EXTENSION_BYTES} bytes of comments is not read")


def _check_tiff(file: BinaryIO, header: bytes) -> None:
    """How many fields its first directory has, and in how many parts the picture comes."""
    order = "<" if header[:2] == b"II" else ">"
    is_big = header[2:4] in (b"+\0", b"\0+")
    offset, count, field = ("Q", "Q", "HHQ8x") if is_big else ("I", "H", "HHI4x")
    file.seek(8 if is_big else 4)
    try:
        file.seek(*struct.unpack(order + offset, file.read(struct.calcsize(order + offset))))
        (fields,) = struct.unpack(order + count, file.read(struct.calcsize(order + count)))
    except (struct.error, OverflowError, ValueError, OSError):
        return  # broken, as Pillow will say
    if fields > MAX_TIFF_FIELDS:
        raise InputError(f"a TIFF of {fields} fields is not read")
    size = struct.calcsize(order + field)
    directory = file.read(size * fields)
    for start in range(0, len(directory) - size + 1, size):
        tag, _, parts = struct.unpack_from(order + field, directory, start)
        if tag in _TIFF_PART_TAGS and parts > MAX_TIFF_PARTS:
            raise InputError(f"a TIFF in {parts} parts is not read; save it in fewer strips or tiles")


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
