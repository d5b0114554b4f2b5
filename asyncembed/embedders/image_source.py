"""A caller's images, on their way to a worker: what is one, what it costs, and what is to be read or fetched first.

Nothing is decoded here. Paths are opened by the worker; URLs are fetched and file objects read on this side.
"""

import os
import sys
from collections.abc import Awaitable, Callable
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeVar, Union, cast

import numpy as np

from asyncembed.embedders.fetch import UrlFetcher, is_url
from asyncembed.encoders.image_input import PillowImage, check_array, is_pillow_image
from asyncembed.errors import InputError
from asyncembed.files import in_disk_thread
from asyncembed.stream import Source

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

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


def measure_image(value: object) -> tuple[int, int]:
    """Tokens that it costs to decode or to move an image, beyond what its model takes for it; and its bytes.

    Raises:
        InputError: It is no image.
    """
    match value:
        case str():
            return 0, (UNREAD_BYTES if is_url(value) else sys.getsizeof(value))
        case os.PathLike():
            return 0, sys.getsizeof(value)
        case bytes() | bytearray() | memoryview():
            size = memoryview(value).nbytes
            return size // ENCODED_BYTES_PER_TOKEN, size
        case np.ndarray():
            check_array(value)
            return value.nbytes // PIXEL_BYTES_PER_TOKEN, value.nbytes
    if is_pillow_image(value):
        size = PillowImage(cast("Image.Image", value)).nbytes
        return size // PIXEL_BYTES_PER_TOKEN, size
    if hasattr(value, "read"):
        return 0, UNREAD_BYTES
    raise InputError(
        "an image is a path, a URL, bytes, a file object, a PIL image or an array of pixels; "
        f"got {type(value).__name__}"
    )


def pack_image(value: object) -> object:
    """The form in which a worker takes an image that is at hand: `str` (a path), bytes, array or `PillowImage`."""
    match value:
        case str() | os.PathLike():
            # The worker's current directory need not be this process's.
            return str(Path(cast("str | os.PathLike[str]", value)).absolute())
        case bytearray() | memoryview():
            return bytes(value)
    return PillowImage(cast("Image.Image", value)) if is_pillow_image(value) else value


class ImageBringer:
    """Brings in what is not at hand: fetches URLs, reads file objects."""

    def __init__(self, fetcher: UrlFetcher) -> None:
        self._fetcher = fetcher

    def __call__(self, value: object) -> Callable[[], Awaitable[bytes]] | None:
        """How to get the bytes of an image that is not at hand; None for one that is."""
        if isinstance(value, str):
            return (lambda: self._fetcher.fetch(value)) if is_url(value) else None
        if isinstance(value, BytesIO):
            return lambda: in_disk_thread(value.getvalue)
        if hasattr(value, "read") and not isinstance(value, os.PathLike):
            return lambda: in_disk_thread(_read, value)
        return None


def _read(file: Any) -> bytes:
    try:
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)
        data = file.read()
    except Exception as error:
        raise InputError(f"the file object cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(data, bytes):
        raise InputError(f"the file object gives {type(data).__name__}; open the file in binary mode")
    return data


def as_images(images: Source[Any] | ImageInput) -> Source[Any]:
    """One image is one image, not what iterating over it gives; an array of four dimensions is several."""
    is_one = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview) or (
        images.ndim < 4 if isinstance(images, np.ndarray) else is_pillow_image(images) or hasattr(images, "read")
    )
    return cast("Source[Any]", [images] if is_one else images)
