"""Results as bytes: what comes back is what was kept, or nothing does."""

import contextlib
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncembed.encoders.encoder import Call
from asyncembed.results import HybridEmbedding, SparseEmbedding
from asyncembed.reuse import packing
from asyncembed.reuse.packing import Damaged, check_form, pack, unpack

KEY = bytes(range(20))
ROW = np.array([1, -2.5, 3], np.float32)
SPARSE = SparseEmbedding(np.array([7, 2], np.int32), np.array([0.5, 1.5], np.float32))
RESULTS = [
    ROW,
    ROW.astype(np.float16),
    ROW.astype(np.int8),
    np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2],
    np.empty((0, 4), np.float32),
    SPARSE,
    SparseEmbedding(np.empty(0, np.int32), np.empty(0, np.float32)),
    HybridEmbedding(dense=ROW, sparse=SPARSE, late_interaction=np.ones((2, 3), np.float32)),
    HybridEmbedding(sparse=SPARSE, late_interaction=np.ones((0, 3), np.float16)),
    0.1,
    np.float32(0.1),
]


@pytest.mark.parametrize("result", RESULTS, ids=repr)
def test_a_result_comes_back_bit_for_bit(result: Any) -> None:
    data = pack(KEY, result, -7)
    assert data is not None
    found, count = unpack(KEY, data)
    assert count == -7
    if isinstance(result, np.ndarray):
        assert (found.dtype, found.shape, found.tobytes()) == (result.dtype, result.shape, result.tobytes())
    else:
        assert found == result
        assert type(found) in (type(result), np.ndarray)


@pytest.mark.parametrize("result", ["a text", {"a": 1}, np.array([1j]), np.zeros((2, 2, 2), np.float32), object()])
def test_what_is_no_result_of_ours_is_not_kept(result: object) -> None:
    assert pack(KEY, result, 1) is None


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(position: int, change: int) -> None:
    data = bytearray(pack(KEY, RESULTS[7], 3) or b"")
    data[position % len(data)] ^= change
    with pytest.raises(Damaged):
        unpack(KEY, bytes(data))


@given(st.binary(max_size=64))
def test_bytes_of_a_stranger_are_damaged_and_no_more(data: bytes) -> None:
    with pytest.raises(Damaged):
        unpack(KEY, data)


@given(st.binary(max_size=64))
@example(struct.pack("<BBBxiBBxxII", 1, 0, 1, 3, 0, 2, 2**32 - 1, 2**32 - 1))
@example(struct.pack("<BBBxiBBxxIIf", 1, 1, 1, 3, 0, 1, 1, 1, 0))
def test_also_those_with_a_right_checksum(body: bytes) -> None:
    """Made so on purpose: they may be a result, but nothing else happens."""
    with contextlib.suppress(Damaged):
        unpack(KEY, body + packing._checksum(KEY, body))


def test_another_key_has_another_checksum() -> None:
    with pytest.raises(Damaged):
        unpack(KEY[::-1], pack(KEY, ROW, 3) or b"")


@pytest.mark.parametrize(
    ("family", "result"),
    [
        ("text", np.zeros(5, np.float32)),
        ("text", np.zeros((3, 4), np.float32)),
        ("text", np.full(4, np.nan, np.float32)),
        ("text", np.zeros(4, np.int32)),
        ("late_interaction", np.zeros(4, np.float32)),
        ("cross_encoder", np.zeros(1, np.float32)),
        ("sparse", np.zeros(4, np.float32)),
        ("sparse", SparseEmbedding(np.array([-1], np.int32), np.ones(1, np.float32))),
        ("sparse", SparseEmbedding(np.array([1, 2], np.int32), np.ones(1, np.float32))),
        ("hybrid", HybridEmbedding(dense=np.zeros((2, 2), np.float32))),
    ],
)
def test_what_no_call_of_the_model_gives_is_damaged(family: Any, result: object) -> None:
    call = Call(outputs=("dense",)) if family == "hybrid" else Call()
    with pytest.raises(Damaged):
        check_form(result, family, call, 4)
