"""Results as bytes, for a cache of vectors, and back: plain arrays, so that a file of a stranger's can do no harm.

What is kept under a key ends with a checksum of the key and of itself, so that nothing is taken for what it is not.
"""

import struct
from hashlib import blake2b
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncembed.results import HYBRID_OUTPUTS, HybridEmbedding, SparseEmbedding

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT_VERSION = 1
"""Raised when the bytes of the same result change: those of before are then computed again."""

CHECKSUM_BYTES = 16

_HEADER = struct.Struct("<BBBxi")
"""Version, what it is a result of, how many arrays; and what was computed for it (see `Item.count`)."""

_ARRAY = struct.Struct("<BBxxII")
"""Type, number of dimensions, and the lengths of two of them."""

_ARRAY_KIND, _SPARSE_KIND = 0, 1
_HYBRID_KINDS = 2
"""And above: a bit for each of `HYBRID_OUTPUTS`, times two."""

_TYPES = tuple(np.dtype(name) for name in ("<f4", "<f2", "i1", "<i4", "<f8"))


class Damaged(ValueError):  # noqa: N818 (reads as what the bytes are)
    """These bytes are not what was kept under their key."""


def pack(key: bytes, result: object, count: int) -> bytes | None:
    """The bytes to be kept under a key; None for a result of a kind that is not known here."""
    kind, arrays = _taken_apart(result)
    if any(array.dtype not in _TYPES or array.ndim > 2 for array in arrays) or not arrays:
        return None
    parts = [_HEADER.pack(FORMAT_VERSION, kind, len(arrays), count)]
    parts += [_ARRAY.pack(_TYPES.index(one.dtype), one.ndim, *(*one.shape, 1, 1)[:2]) for one in arrays]
    parts += [np.ascontiguousarray(array).tobytes() for array in arrays]
    body = b"".join(parts)
    return body + _checksum(key, body)


def unpack(key: bytes, data: bytes) -> tuple[Any, int]:
    """The result, whose arrays cannot be written to, and the count.

    Raises:
        Damaged: These are not the bytes that `pack` gave for this key.
    """
    body = data[:-CHECKSUM_BYTES]
    if _checksum(key, body) != data[-CHECKSUM_BYTES:]:
        raise Damaged("the checksum is another one")
    try:
        version, kind, parts, count = _HEADER.unpack_from(body)
        if version != FORMAT_VERSION:
            raise Damaged(f"the format is {version}, not {FORMAT_VERSION}")
        heads = [_ARRAY.unpack_from(body, _HEADER.size + part * _ARRAY.size) for part in range(parts)]
        return _put_together(kind, _arrays(body, heads, _HEADER.size + parts * _ARRAY.size)), count
    except (
        struct.error,
        ValueError,
        IndexError,
        TypeError,
        OverflowError,
    ) as error:  # made so on purpose: its checksum is right
        raise Damaged(str(error)) from error


def _checksum(key: bytes, body: bytes) -> bytes:
    return blake2b(body, digest_size=CHECKSUM_BYTES, key=key[: blake2b.MAX_KEY_SIZE]).digest()


def _arrays(body: bytes, heads: list[tuple[int, int, int, int]], offset: int) -> "list[NDArray[Any]]":
    arrays = []
    for kind, dimensions, *lengths in heads:
        shape = lengths[:dimensions]
        array = np.frombuffer(body, _TYPES[kind], prod(shape), offset).reshape(shape)
        offset += array.nbytes
        arrays.append(array)
    return arrays


def _taken_apart(result: object) -> "tuple[int, list[NDArray[Any]]]":
    if isinstance(result, np.ndarray | np.generic | float):
        return _ARRAY_KIND, [np.asarray(result)]
    if isinstance(result, SparseEmbedding):
        return _SPARSE_KIND, [result.indices, result.values]
    if isinstance(result, HybridEmbedding):
        outputs = result.outputs
        bits = sum(1 << position for position, name in enumerate(HYBRID_OUTPUTS) if name in outputs)
        parts = [_taken_apart(getattr(result, name))[1] for name in outputs]
        return _HYBRID_KINDS * bits, [array for part in parts for array in part]
    return _ARRAY_KIND, []


def _put_together(kind: int, arrays: "list[NDArray[Any]]") -> Any:
    if kind == _ARRAY_KIND:
        (array,) = arrays
        return array
    if kind == _SPARSE_KIND:
        return SparseEmbedding(*arrays)
    parts: dict[str, Any] = {}
    rest = iter(arrays)
    for position, name in enumerate(HYBRID_OUTPUTS):
        if kind // _HYBRID_KINDS & 1 << position:
            parts[name] = SparseEmbedding(next(rest), next(rest)) if name == "sparse" else next(rest)
    return HybridEmbedding(**parts)
