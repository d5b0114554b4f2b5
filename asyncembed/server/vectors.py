"""Vectors as bytes of an answer: they never pass through Python's lists of numbers."""

from binascii import b2a_base64
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from asyncembed.results import SparseEmbedding


def as_json(array: "NDArray[Any]") -> bytes:
    """Numbers as JSON, of any shape: `[0.1,0.2]`."""
    return orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)


def as_base64(vector: "NDArray[Any]") -> bytes:
    """The bytes of the numbers (float32 is little-endian) as base64 in quotes, which is JSON."""
    return b'"%b"' % b2a_base64(vector.data, newline=False)


def as_sparse_json(vector: "SparseEmbedding") -> bytes:
    """A sparse vector as JSON: `[{"index":1012,"value":0.5}]`."""
    if not len(vector):
        return b"[]"
    indices, values = (as_json(array)[1:-1].split(b",") for array in (vector.indices, vector.values))
    entries = (b'{"index":%b,"value":%b}' % entry for entry in zip(indices, values, strict=True))
    return b"[%b]" % b",".join(entries)
