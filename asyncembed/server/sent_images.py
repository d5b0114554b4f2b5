"""Images as clients send them: a URL, or the file itself in a data URI. Never a path, which would be the server's.

A URL is fetched by the model, which connects to public addresses only (see `asyncembed.images.urls`).
"""

from base64 import b64decode
from binascii import Error
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from asyncembed.errors import InputError
from asyncembed.images.inputs import is_url

THREAD_CHARACTERS = 256 * 1024
"""Data URIs of more than this are taken apart in a thread: some 3 ms a megabyte that the event loop would wait."""


def is_large(images: Sequence[str]) -> bool:
    """Whether `images_of` takes so long that it belongs into a thread."""
    return sum(map(len, images)) > THREAD_CHARACTERS


def images_of(images: Sequence[str]) -> list[str | bytes]:
    """What the classes that take images are given for each: its URL, or its bytes.

    Raises:
        InputError: One is neither a URL nor a data URI nor base64.
    """
    return [_image_of(text, index) for index, text in enumerate(images)]


def _image_of(text: str, index: int) -> str | bytes:
    if is_url(text):
        return text
    if text[:5].lower() == "data:":
        kind, comma, data = text[5:].partition(",")
        if not comma:
            raise InputError("the data URI has no comma, after which its data begin", index=index)
        return _decoded(data, index) if kind.lower().endswith(";base64") else unquote_to_bytes(data)
    return _decoded(text, index)


def _decoded(text: str, index: int) -> bytes:
    try:
        # Also without the filling at its end, which some clients leave out.
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (Error, ValueError) as error:
        raise InputError(
            f"an image is a URL (http or https), a data URI, or base64 of its file: {error}", index=index
        ) from error
