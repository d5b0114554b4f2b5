import numpy as np
import numpy.typing as npt
import pytest

from asyncembed.catalogue.spec import Pooling
from asyncembed.encoders.pooling import normalize, pool

# Two rows of four positions and two components; the second row has one real token fewer on each side.
HIDDEN = np.array(
    [[[1, -1], [2, -2], [3, -3], [6, -6]], [[9, 9], [4, 0], [0, 8], [7, 7]]],
    dtype=np.float32,
)
MASK = np.array([[1, 1, 1, 1], [0, 1, 1, 0]], dtype=np.int64)

EXPECTED: dict[Pooling, list[list[float]]] = {
    "cls": [[1, -1], [4, 0]],
    "last_token": [[6, -6], [0, 8]],
    "mean": [[3, -3], [2, 4]],
    "max": [[6, -1], [4, 8]],
    "mean_sqrt_len": [[6, -6], [4 / 2**0.5, 8 / 2**0.5]],
    # (1·1 + 2·2 + 3·3 + 4·6) / 10 and (1·4 + 2·0) / 3, (1·0 + 2·8) / 3
    "weighted_mean": [[3.8, -3.8], [4 / 3, 16 / 3]],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("how", EXPECTED)
def test_pooling_uses_the_real_tokens_only(how: Pooling, dtype: npt.DTypeLike) -> None:
    pooled = pool(HIDDEN.astype(dtype), MASK, how)
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, EXPECTED[how], rtol=1e-6)


@pytest.mark.parametrize("how", EXPECTED)
def test_padding_and_its_side_change_nothing(how: Pooling) -> None:
    alone = pool(HIDDEN[1:, 1:3], MASK[1:, 1:3], how)
    left = pool(
        np.pad(HIDDEN[1:, 1:3], ((0, 0), (3, 0), (0, 0)), constant_values=99),
        np.array([[0, 0, 0, 1, 1]]),
        how,
    )
    right = pool(
        np.pad(HIDDEN[1:, 1:3], ((0, 0), (0, 3), (0, 0)), constant_values=99),
        np.array([[1, 1, 0, 0, 0]]),
        how,
    )
    np.testing.assert_allclose(left, alone, rtol=1e-6)
    np.testing.assert_allclose(right, alone, rtol=1e-6)


@pytest.mark.parametrize("how", ["mean", "mean_sqrt_len", "weighted_mean"])
def test_a_row_without_tokens_gives_zeros(how: Pooling) -> None:
    assert not pool(HIDDEN, np.zeros_like(MASK), how).any()


def test_the_mean_is_within_1e6_of_float64() -> None:
    random = np.random.default_rng(0)
    hidden = random.standard_normal((4, 700, 32)).astype(np.float32)
    mask = (np.arange(700) < np.array([[700], [512], [3], [1]])).astype(np.int64)
    exact = (hidden.astype(np.float64) * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
    assert np.abs(pool(hidden, mask, "mean") - exact).max() < 1e-6


def test_normalised_vectors_have_length_one_and_zeros_stay() -> None:
    unit = normalize(np.array([[3, 4], [0, 0], [1e-20, 0]], dtype=np.float32))
    np.testing.assert_allclose(unit[:2], np.array([[0.6, 0.8], [0.0, 0.0]]), rtol=1e-6)
    assert np.isfinite(unit).all()


def test_the_tokens_of_a_prompt_may_be_skipped() -> None:
    assert pool(HIDDEN, MASK, "cls", skip=1).tolist() == [[2, -2], [0, 8]]
    np.testing.assert_allclose(pool(HIDDEN, MASK, "mean", skip=1), [[11 / 3, -11 / 3], [0.0, 8.0]], rtol=1e-6)
    # Weights are those of the places in the whole text: (2·2 + 3·3 + 4·6) / 9 and the second token alone.
    expected = [[37 / 9, -37 / 9], [0.0, 8.0]]
    np.testing.assert_allclose(pool(HIDDEN, MASK, "weighted_mean", skip=1), expected, rtol=1e-6)
