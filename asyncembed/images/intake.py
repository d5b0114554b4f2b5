"""A caller's images, on their way to a worker: what is one, what it costs, and what is to be read or fetched first.

Nothing is decoded here. Paths are opened by the worker; URLs are fetched and file objects read on this side.
"""

import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable, iscoroutine
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeVar, Union, cast

import anyio
import numpy as np

from asyncembed.errors import InputError
from asyncembed.images.inputs import (
    MAX_IMAGE_PIXELS,
    PillowImage,
    check_array,
    check_pixels,
    describe,
    is_pillow_image,
    most_bytes,
)
from asyncembed.images.urls import UrlFetcher, is_url
from asyncembed.threads import start_thread
from asyncembed.wakeup import completion

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

    from asyncembed.stream import Source

ImageInput: TypeAlias = Union[
    str, "os.PathLike[str]", bytes, bytearray, memoryview, IO[bytes], "Image.Image", "npt.NDArray[np.uint8]"
]
"""A path or URL (http or https), a file's bytes, a file object, an image of Pillow's, or uint8 pixels: (height, width)
or (height, width, 1, 3 or 4)."""

ImageT = TypeVar("ImageT", bound=ImageInput)

ENCODED_BYTES_PER_TOKEN = 4096
PIXEL_BYTES_PER_TOKEN = 32768
"""What decoding or moving an image costs, in tokens: both as slow as some 2 MB/s of a 12-layer model's tokens."""

UNREAD_BYTES = 1024 * 1024
"""What an image that is yet to be fetched or read is taken to need, for the window of its stream."""


READ_BYTES = 1024 * 1024
"""Of a file object, at a time."""


def measure_image(value: object, max_pixels: int = MAX_IMAGE_PIXELS) -> tuple[int, int]:
    """Tokens that it costs to decode or to move an image, beyond what its model takes for it; and its bytes.

    Raises:
        InputError: It is no image, too large, or raises when it is looked at.
    """
    with _its_own_error("the image cannot be looked at"):
        return _measure(value, max_pixels)


def _measure(value: object, max_pixels: int) -> tuple[int, int]:
    match value:
        case str():
            return 0, (UNREAD_BYTES if is_url(value) else sys.getsizeof(value))
        case os.PathLike():
            return 0, sys.getsizeof(value)
        case bytes() | bytearray() | memoryview():
            return _measure_encoded(memoryview(value).nbytes, max_pixels)
        case BytesIO():
            return _measure_encoded(BytesIO.getbuffer(value).nbytes, max_pixels)
        case np.ndarray():
            check_array(value, max_pixels)
            return value.nbytes // PIXEL_BYTES_PER_TOKEN, value.nbytes
    if is_pillow_image(value):
        image = cast("Image.Image", value)
        check_pixels(image.width, image.height, max_pixels)
        size = PillowImage(image).nbytes
        return size // PIXEL_BYTES_PER_TOKEN, size
    if hasattr(value, "read"):
        return 0, UNREAD_BYTES
    raise InputError(
        "an image is a path, a URL, bytes, a file object, a PIL image or an array of pixels; "
        f"got {type(value).__name__}"
    )


def _measure_encoded(size_bytes: int, max_pixels: int) -> tuple[int, int]:
    if size_bytes > most_bytes(max_pixels):
        raise InputError(f"{size_bytes} bytes are more than an image of max_image_pixels={max_pixels} can be")
    return size_bytes // ENCODED_BYTES_PER_TOKEN, size_bytes


@dataclass(frozen=True, slots=True)
class Absent:
    """An image that is yet to be fetched or read: `bring` gives its bytes, or raises `InputError`."""

    bring: Callable[[], Awaitable[bytes]]


class ImagePacker:
    """From a caller's image to the form in which a worker takes it, or to how that can be had.

    A worker takes paths as `str`, bytes, arrays and `PillowImage`. URLs and file objects are `Absent`.
    """

    def __init__(self, fetcher: UrlFetcher, *, max_pixels: int, timeout_seconds: float) -> None:
        self.max_pixels = max_pixels
        self._fetcher = fetcher
        self._timeout_seconds = timeout_seconds

    def __call__(self, value: object) -> object:
        """Pack an image that `measure_image` accepted.

        Raises:
            InputError: It raises, as a path may that is an object of its own.
        """
        with _its_own_error("the image cannot be sent"):
            return self._pack(value)

    def _pack(self, value: object) -> object:
        match value:
            case str():
                return Absent(partial(self._fetcher.fetch, value)) if is_url(value) else _absolute(value)
            case os.PathLike():
                return _absolute(os.fsdecode(os.fspath(value)))
            case bytes() | bytearray() | memoryview():
                return bytes(value)
            case BytesIO():
                return BytesIO.getvalue(value)
            case np.ndarray():
                return np.asarray(value)  # without what a class made of it brings along
        if is_pillow_image(value):
            return PillowImage(cast("Image.Image", value))
        return Absent(partial(self._read, value))

    async def _read(self, file: object) -> bytes:
        """What a file object holds. The thread that reads it is left behind where it does not answer in time."""
        reading = _Reading(file, most_bytes(self.max_pixels))
        try:
            with anyio.fail_after(self._timeout_seconds):
                return await completion(start_thread(reading.read))
        except TimeoutError:
            raise InputError(f"the file object did not answer within url_timeout={self._timeout_seconds:g} s") from None
        finally:
            reading.is_over = True


class _Reading:
    """The reading of one file object, in a thread."""

    def __init__(self, file: Any, max_bytes: int) -> None:
        self.is_over = False
        self._file = file
        self._max_bytes = max_bytes

    def read(self) -> bytes:
        """All of it, from its beginning where it can be moved there."""
        with _its_own_error("the file object cannot be read"):
            if hasattr(self._file, "seekable") and self._file.seekable():
                self._file.seek(0)
            content = bytearray()
            while not self.is_over and (part := self._read_part()):
                content += part
                if len(content) > self._max_bytes:
                    raise InputError(f"the file object gives more than {self._max_bytes} bytes")
            return bytes(content)

    def _read_part(self) -> bytes | bytearray:
        part = self._file.read(READ_BYTES)
        if isawaitable(part):
            if iscoroutine(part):
                part.close()
            raise InputError("the file object is an asynchronous one: give what `await file.read()` gives")
        if not isinstance(part, bytes | bytearray):
            raise InputError(f"the file object gives {type(part).__name__}; open the file in binary mode")
        return part


def _absolute(path: str) -> str:
    # The worker's current directory need not be this process's.
    return str(Path(path).absolute())


@contextmanager
def _its_own_error(what: str) -> Iterator[None]:
    """Make whatever an input raises that input's error: it is the caller's users' as often as the caller's.

    Not `KeyboardInterrupt`, which is somebody at the keyboard, and no input.
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:
        raise InputError(f"{what}: {describe(error)}") from error


def as_images(images: "Source[Any] | ImageInput") -> "Source[Any]":
    """One image is one image, not what iterating over it gives; an array of four dimensions is several."""
    is_one = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview) or (
        images.ndim < 4 if isinstance(images, np.ndarray) else is_pillow_image(images) or hasattr(images, "read")
    )
    return cast("Source[Any]", [images] if is_one else images)
