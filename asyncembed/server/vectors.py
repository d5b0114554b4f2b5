"""Vectors as bytes of an answer: they never pass through Python's lists of numbers."""

from binascii import b2a_base64
from typing import TYPE_CHECKING, Any

import orjson
from anyio.lowlevel import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from asyncembed.results import SparseEmbedding

NUMBERS_AT_ONCE = 16384
"""Written in one turn of the event loop, as it is for this long that everybody else waits: about half a millisecond."""


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


async def each_as(write: "Callable[[NDArray[Any]], bytes]", vectors: "Iterable[NDArray[Any]]") -> list[bytes]:
    """Each of some vectors, or of some matrices, written by one of these, in steps that let the event loop go on."""
    written: list[bytes] = []
    numbers = 0
    for vector in vectors:
        if numbers >= NUMBERS_AT_ONCE:
            await checkpoint()
            numbers = 0
        written.append(write(vector))
        numbers += vector.size
    return written
