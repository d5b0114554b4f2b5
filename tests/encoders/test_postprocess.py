import numpy as np
import pytest

from asyncembed.encoders.encoder import Call
from asyncembed.encoders.postprocess import finish, quantize_binary, quantize_int8
from asyncembed.errors import OptionError

VECTORS = np.array(
    [
        [0.612, -0.767, 0.125, -0.17, -0.136, -0.065, -0.606, -0.07, -0.26, 0.997],
        [0.068, -0.106, -0.084, -0.2, -0.317, -0.117, 0.145, -0.072, 0.287, -0.06],
        [0.007, 0.464, 0.164, -0.152, -0.055, 0.162, 0.581, -0.081, -0.073, 0.301],
        [-0.266, -0.088, 0.265, 0.174, 0.027, 0.201, -0.848, 0.306, -0.288, -0.501],
    ],
    dtype=np.float32,
)
# Some values lie outside, and the last component has no range at all.
RANGES = np.stack([np.full(10, -0.5), np.linspace(0.1, 1.0, 10)]).astype(np.float32)
RANGES[:, 9] = 0.25


def test_int8_is_that_of_sentence_transformers() -> None:
    # Reference values: quantize_embeddings(VECTORS, "int8", ranges=RANGES) of sentence-transformers 6.2.
    expected = [
        [127, -128, 71, -35, -36, -28, -128, -44, -85, -128],
        [113, 15, 4, -43, -82, -40, 9, -45, 15, -128],
        [87, 127, 83, -30, -15, 25, 101, -46, -51, -128],
        [-29, 22, 115, 62, 6, 34, -128, 30, -90, -128],
    ]
    quantized = quantize_int8(VECTORS, RANGES)
    assert quantized.dtype == np.int8
    assert quantized.tolist() == expected
    call = Call(output="int8", int8_ranges=RANGES.tobytes())
    assert finish(VECTORS, call).tolist() == expected


def test_binary_is_that_of_sentence_transformers() -> None:
    # Reference values: quantize_embeddings(VECTORS, "binary") of sentence-transformers 6.2.
    quantized = quantize_binary(VECTORS)
    assert quantized.dtype == np.int8
    assert quantized.tolist() == [[32, -64], [2, 0], [102, -64], [-67, -128]]


def test_int8_without_ranges_says_where_they_come_from() -> None:
    with pytest.raises(OptionError, match=r"int8_ranges=np\.stack"):
        finish(VECTORS, Call(output="int8"))
    with pytest.raises(OptionError, match=r"shape \(2, 10\)"):
        finish(VECTORS, Call(output="int8", int8_ranges=RANGES[:, :5].tobytes()))


def test_quantised_forms_follow_the_shortened_vector() -> None:
    assert finish(VECTORS, Call(output="binary", truncate_dim=8)).shape == (4, 1)
