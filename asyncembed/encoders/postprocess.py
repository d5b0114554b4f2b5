"""What a call may ask for on top of an embedding: fewer dimensions, half precision, or a quantised form."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.encoders.batch import Usable
from asyncembed.encoders.encoder import Call, Encoded
from asyncembed.encoders.finite import Finite
from asyncembed.encoders.pooling import FloatArray, normalize
from asyncembed.errors import OptionError, UnsupportedModelError
from asyncembed.results import matrix_batch
from asyncembed.runtime.session import Array


def finish(vectors: FloatArray, call: Call) -> Array:
    """Bring float32 vectors (n, dim) into the form that `call` asks for.

    Returns:
        float32 or float16 (n, dim); int8 (n, dim) for "int8"; int8 (n, ceil(dim / 8)) for "binary".

    Raises:
        OptionError: `truncate_dim` is over the model's dim, or "int8" has no ranges.
    """
    if call.truncate_dim is not None:
        if not 0 < call.truncate_dim <= vectors.shape[1]:
            raise OptionError(f"truncate_dim={call.truncate_dim} must be between 1 and the model's {vectors.shape[1]}")
        vectors = normalize(vectors[:, : call.truncate_dim])
    match call.output:
        case "int8":
            return quantize_int8(vectors, _ranges(call, vectors.shape[1]))
        case "binary":
            return quantize_binary(vectors)
        case "float":
            return np.ascontiguousarray(vectors, dtype=call.dtype)


def encoded_rows(
    vectors: FloatArray, call: Call, finite: Finite, inputs: Usable[Any], *, counts: Sequence[int], padded_tokens: int
) -> Encoded:
    """The answer to a batch: `vectors`, float32 (n, dim), one per usable input, as are `counts` (see `Encoded`)."""
    results = finish(vectors, call)
    not_finite = finite.failures(vectors, inputs.positions, results=results)
    return Encoded(
        inputs.scatter(results),
        {**inputs.failures, **not_finite},
        padded_tokens=padded_tokens,
        counts=inputs.in_batch(counts, 0),
    )


def encoded_matrices(
    matrices: Sequence[Array],
    call: Call,
    finite: Finite,
    inputs: Usable[Any],
    *,
    scales: bool = False,
    counts: Sequence[int],
    padded_tokens: int,
) -> Encoded:
    """Likewise for a matrix (rows, dim) per usable input, with rows of unit length if it `scales` them."""
    dim = matrices[0].shape[1] if matrices else finite.spec.dim or 0
    check_dim(finite.spec, dim)
    vectors = np.concatenate([np.empty((0, dim), np.float32), *matrices], dtype=np.float32, casting="same_kind")
    if scales:
        vectors = normalize(vectors)
    results = finish(vectors, call)
    rows = inputs.in_batch(map(len, matrices), 0)
    not_finite = finite.failures(vectors, np.repeat(np.arange(len(rows)), rows), results=results)
    return Encoded(
        matrix_batch(results, rows),
        {**inputs.failures, **not_finite},
        padded_tokens=padded_tokens,
        counts=inputs.in_batch(counts, 0),
    )


def check_dim(spec: ModelSpec, dim: int) -> None:
    """See that vectors are as long as the model is declared to have them."""
    if spec.dim not in (None, dim):
        raise UnsupportedModelError(
            f"the model is declared with dim={spec.dim}, but its vectors have {dim}", model=spec.name
        )


def quantize_int8(vectors: FloatArray, ranges: FloatArray) -> Array:
    """Spread each component's range over -128…127.

    `ranges` is (2, dim): the smallest and largest value of each component over a sample of the corpus. It is
    fixed beforehand, so that a vector does not depend on its batch. What lies outside is clipped, as in
    sentence-transformers' `quantize_embeddings(..., precision="int8", ranges=ranges)`.
    """
    low, high = ranges
    steps = (high - low) / np.float32(255)
    steps = np.where(steps == 0, np.float32(1), steps)
    levels: Array = np.clip(np.floor((vectors - low) / steps), 0, 255)
    return (levels - 128).astype(np.int8)


def quantize_binary(vectors: FloatArray) -> Array:
    """One bit per component, set where it is positive.

    Eight to a byte, the first one highest, and each byte minus 128, as int8: as sentence-transformers'
    `quantize_embeddings(..., precision="binary")`.
    """
    bits = np.packbits(vectors > 0, axis=1)
    return (bits.astype(np.int16) - 128).astype(np.int8)


def _ranges(call: Call, dim: int) -> FloatArray:
    if call.int8_ranges is None:
        raise OptionError(
            'output="int8" needs the range of each component, from the float embeddings of some hundred '
            "documents: int8_ranges=np.stack([sample.min(0), sample.max(0)])"
        )
    values = np.frombuffer(call.int8_ranges, dtype=np.float32)
    if values.size != 2 * dim:
        raise OptionError(f"int8_ranges must have the shape (2, {dim}), the smallest and largest values")
    return values.reshape(2, dim)
