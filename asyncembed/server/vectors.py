"""Vectors as bytes of an answer: they never pass through Python's lists of numbers."""

from binascii import b2a_base64
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from numpy.typing import NDArray


def as_json(array: "NDArray[Any]") -> bytes:
    """Numbers as JSON, of any shape: `[0.1,0.2]`."""
    return orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)


def as_base64(vector: "NDArray[Any]") -> bytes:
    """The bytes of the numbers (float32 is little-endian) as base64 in quotes, which is JSON."""
    return b'"%b"' % b2a_base64(vector.data, newline=False)
