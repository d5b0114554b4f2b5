"""Results as bytes, for a cache of vectors, and back: plain arrays, so that a file of a stranger's can do no harm.

What is kept under a key ends with a checksum of the key and of itself, so that nothing is taken for what it is not.
"""

import struct
from collections.abc import Mapping
from hashlib import blake2b
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncembed.catalogue.spec import Family
from asyncembed.encoders.encoder import Call
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
    except (struct.error, ValueError, IndexError, TypeError, OverflowError) as error:  # made so, with its checksum
        raise Damaged(str(error)) from error


_DIMENSIONS: Mapping[Family, int] = {
    "text": 1, "image": 1, "late_interaction": 2, "late_interaction_multimodal": 2, "cross_encoder": 0,
}  # fmt: skip
"""Of the arrays that a family gives."""


def check_form(result: object, family: Family, call: Call, dim: int | None) -> None:
    """See that a result is of the form that a call gives, as a stranger may have written it with its checksum.

    Args:
        result: What `unpack` gave.
        family: Of the model.
        call: What is asked for.
        dim: Length of the model's vectors; None: not known.

    Raises:
        Damaged: It is of another.
    """
    if family == "sparse":
        _check_sparse(result)
    elif family == "hybrid":
        if not isinstance(result, HybridEmbedding) or set(result.outputs) != set(call.outputs or HYBRID_OUTPUTS):
            raise Damaged("it is no result of this call")
        for name in result.outputs:
            part = getattr(result, name)
            _check_sparse(part) if name == "sparse" else _check_array(part, 1 + (name == "late_interaction"))
    else:
        shape = _check_array(result, 2 if call.mode == "chunks" else _DIMENSIONS[family])
        is_whole = call.output == "float" and family in ("text", "image")
        if is_whole and dim is not None and shape[-1] != min(call.truncate_dim or dim, dim):
            raise Damaged(f"its length is {shape[-1]}")


def _check_array(array: object, dimensions: int) -> tuple[int, ...]:
    if not isinstance(array, np.ndarray) or array.ndim != dimensions:
        raise Damaged("it has another shape")
    if array.dtype == np.int32 or not np.isfinite(array).all():
        raise Damaged("its values are none of a model's")
    shape: tuple[int, ...] = array.shape
    return shape


def _check_sparse(result: object) -> None:
    if not isinstance(result, SparseEmbedding):
        raise Damaged("it is no sparse vector")
    indices, values = result.indices, result.values
    if indices.ndim != 1 or indices.shape != values.shape or indices.dtype != np.int32 or (indices < 0).any():
        raise Damaged("its indices are none of a sparse vector")
    _check_array(values, 1)


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
