"""Images as inputs: what is one, what it costs, and the form in which it reaches a worker.

An input is looked at once, at the door (`accept_image`): it is a path, encoded bytes, pixels, or what is to be fetched
or read first. Nothing is decoded here, and nothing here imports Pillow before it has to: the caller's process needs it
only if the caller uses it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeVar, Union, cast

import numpy as np

from asyncembed.errors import InputError, in_words

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

MAX_IMAGE_PIXELS = 50 * 1024 * 1024
"""The default: what today's cameras give. 200 MiB as decoded pixels; 1 GiB while the costliest kinds are decoded."""

MAX_ENCODED_BYTES = 512 * 1024 * 1024
"""Of a file, where `max_image_pixels` does not need more: some decoders read all of it first."""

MAX_SLOW_PIXELS = 2_000_000
"""Of what Pillow decodes in Python, at up to 2.5 us a pixel (plain PPM, RLE bitmaps); and of icons."""

READ_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000", "ICO", "HEIF")
"""The formats that are read, HEIF where the package pillow-heif is installed. Each further one is one more parser for
anybody's bytes, and some of Pillow's start another program (EPS)."""

_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, slots=True)
class ToFetch:
    """An image that is not at hand: the URL or the file object that its bytes come from."""

    source: object


def accept_image(value: object, max_pixels: int = MAX_IMAGE_PIXELS) -> tuple[object, int, int]:
    """The form in which a worker takes an image, or a `ToFetch`; what it costs; and its bytes.

    A worker takes paths as `str`, bytes, arrays and `PillowImage`. The cost is in tokens: of decoding or moving the
    image, beyond what its model takes for it.

    Raises:
        InputError: It is no image, too large, or raises when it is looked at.
    """
    with its_own_error("the image cannot be read"):
        match value:
            case str() if is_url(value):
                return ToFetch(value), 0, UNREAD_BYTES
            case str():
                return _absolute(value), 0, sys.getsizeof(value)
            case os.PathLike():
                return _absolute(os.fsdecode(os.fspath(value))), 0, sys.getsizeof(value)
            case bytes() | bytearray() | memoryview():
                size_bytes = _checked_size(memoryview(value).nbytes, max_pixels)
                return bytes(value), size_bytes // ENCODED_BYTES_PER_TOKEN, size_bytes
            case BytesIO():
                size_bytes = _checked_size(BytesIO.getbuffer(value).nbytes, max_pixels)
                return BytesIO.getvalue(value), size_bytes // ENCODED_BYTES_PER_TOKEN, size_bytes
            case np.ndarray():
                check_array(value, max_pixels)
                # Without what a class made of it brings along.
                return np.asarray(value), value.nbytes // PIXEL_BYTES_PER_TOKEN, value.nbytes
        if is_pillow_image(value):
            image = PillowImage(cast("Image.Image", value))
            check_pixels(image.image.width, image.image.height, max_pixels)
            return image, image.nbytes // PIXEL_BYTES_PER_TOKEN, image.nbytes
        if hasattr(value, "read"):
            return ToFetch(value), 0, UNREAD_BYTES
    raise InputError(
        "an image is a path, a URL, bytes, a file object, a PIL image or an array of pixels; "
        f"got {type(value).__name__}"
    )


@contextmanager
def its_own_error(what: str) -> Iterator[None]:
    """Make whatever an input raises that input's error: it is the caller's users' as often as the caller's.

    Not `KeyboardInterrupt`, which is somebody at the keyboard, and no input.
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:
        raise InputError(f"{what}: {in_words(error)}") from error


def is_one_image(images: object) -> bool:
    """Whether it is one image, not what iterating over it gives; an array of four dimensions is several."""
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return (
        isinstance(images, str | os.PathLike | bytes | bytearray | memoryview)
        or is_pillow_image(images)
        or hasattr(images, "read")
    )


def is_url(text: str) -> bool:
    """Whether a text is a URL to fetch, rather than a path."""
    return text[:8].lower().startswith(("http://", "https://"))


def _absolute(path: str) -> str:
    # The worker's current directory need not be this process's.
    return str(Path(path).absolute())


def _checked_size(size_bytes: int, max_pixels: int) -> int:
    if size_bytes > most_bytes(max_pixels):
        raise InputError(f"{size_bytes} bytes are more than an image of max_image_pixels={max_pixels} can be")
    return size_bytes


def most_bytes(max_pixels: int) -> int:
    """The most bytes of a file that may hold an image of `max_pixels`."""
    return max(MAX_ENCODED_BYTES, 8 * max_pixels)


def check_array(array: "np.ndarray[Any, Any]", max_pixels: int = MAX_IMAGE_PIXELS) -> None:
    """Raise `InputError` unless `array` is an image: uint8, (height, width) or (height, width, 1, 3 or 4).

    What an array claims costs nothing (numpy broadcasts one number to any shape) until it is copied, to be sent.
    """
    is_image = array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS))
    if not is_image:
        raise InputError(
            f"an image as an array is uint8 and (height, width) or (height, width, 1, 3 or 4); "
            f"got {array.dtype} {array.shape}"
        )
    check_pixels(array.shape[1], array.shape[0], max_pixels)


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise `InputError` unless an image has as many pixels as may be decoded, and one at least."""
    if width * height > max_pixels:
        raise InputError(f"an image of {width}x{height} pixels is over max_image_pixels={max_pixels}")
    if width * height == 0:
        raise InputError(f"an image of {width}x{height} pixels is empty")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What reaches the worker in the place of an image that could not be sent."""

    reason: str


class PillowImage:
    """An image of Pillow's on its way to a worker.

    One that has not been decoded yet travels as its encoded bytes, and is decoded there; any other as its pixels. Which
    of the two is decided when it is pickled, and that happens in a thread.
    """

    __slots__ = ("image",)

    def __init__(self, image: "Image.Image") -> None:
        self.image: Image.Image = image

    @property
    def nbytes(self) -> int:
        """About how many bytes it keeps in memory."""
        return self.image.width * self.image.height * len(self.image.getbands())

    def encoded_bytes(self) -> bytes | None:
        """The whole file of an image that was opened and not touched since; None for any other."""
        return _encoded_bytes(self.image)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        try:
            encoded = self.encoded_bytes()
            if encoded is not None:
                return bytes, (encoded,)
            image = self.image
            check_decoder(image)
            orientation = _exif_bytes(image)
            # Pillow's own pickling keeps no EXIF, and everything else that `info` holds, whatever that is.
            kept = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
            palette = (image.palette.mode, image.palette.tobytes()) if image.palette is not None else None
            return _from_pixels, (image.mode, image.size, image.tobytes(), palette, kept, orientation)
        except Exception as error:  # noqa: BLE001 (one bad image must not fail its batch)
            reason = str(error) if isinstance(error, InputError) else in_words(error)
            return Unreadable, (f"the image cannot be read: {reason}",)


def _from_pixels(
    mode: str,
    size: tuple[int, int],
    data: bytes,
    palette: tuple[str, bytes] | None,
    info: dict[str, object],
    exif: bytes,
) -> PillowImage:
    from PIL import Image

    image = Image.frombytes(mode, size, data)
    if palette is not None and mode in ("P", "PA"):
        image.putpalette(palette[1], palette[0])
        # `putpalette` loads the image, which is what Pillow wants before the mode is looked at.
    image.info.update(info)
    if exif:
        image.getexif().load(exif)
    return PillowImage(image)


def _encoded_bytes(image: "Image.Image") -> bytes | None:
    """The whole file of an image that was opened and not touched since; None for any other."""
    from PIL import ImageFile

    file = getattr(image, "fp", None)
    is_untouched = (
        isinstance(image, ImageFile.ImageFile)
        and bool(image.tile)
        and file is not None
        and not getattr(image, "decoderconfig", ())
        and image.tell() == 0
    )
    if not is_untouched:
        return None
    if isinstance(file, BytesIO):
        return file.getvalue()
    try:
        descriptor = file.fileno()  # type: ignore[union-attr]
    except (OSError, AttributeError):
        return None
    return _whole_file(descriptor)


def _whole_file(descriptor: int) -> bytes | None:
    """What an open file holds, read without moving its position, which belongs to the image; None where that cannot be.

    Raises:
        InputError: It is too large.
    """
    if sys.platform == "win32":
        return None
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes > MAX_ENCODED_BYTES:
        raise InputError(f"its file of {size_bytes} bytes is too large")
    return os.pread(descriptor, size_bytes, 0)


def check_decoder(image: "Image.Image") -> None:
    """Raise `InputError` if decoding `image` would take a reader that we do not use, or takes too long in Python."""
    from PIL import Image, ImageFile

    if not isinstance(image, ImageFile.ImageFile):
        return
    is_decoded = not image.tile and not isinstance(image, ImageFile.StubImageFile)
    if not is_decoded and image.format not in (*READ_FORMATS, "MPO", "DIB"):
        raise InputError(
            f"{image.format} images are not read, only {', '.join(READ_FORMATS)}; "
            "if you trust this one, load() it and give a copy()"
        )
    if image.width * image.height > MAX_SLOW_PIXELS and any(tile[0] in Image.DECODERS for tile in image.tile):
        raise InputError(
            f"a {image.format} image of this kind takes too long to decode at {image.width}x{image.height} pixels; "
            "save it as PNG"
        )


def _exif_bytes(image: "Image.Image") -> bytes:
    exif = image.getexif()
    return exif.tobytes() if exif else b""


def is_pillow_image(value: object) -> bool:
    """Whether `value` is an image of Pillow's, without importing Pillow."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)
