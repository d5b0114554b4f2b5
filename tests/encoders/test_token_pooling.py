"""Token pooling: which vectors become one, and what becomes of the others."""

import numpy as np
import pytest

from asyncembed.encoders.pooling import normalize
from asyncembed.encoders.token_pooling import TokenPooling

pytestmark = pytest.mark.slow  # SciPy takes half a second to import

DIRECTIONS = normalize(np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0.01], [1, 0.01, 0], [0, 0, 1]], np.float32))


def test_those_that_are_alike_become_their_mean() -> None:
    pooled = TokenPooling(2, protected=1, normalizes=False)(DIRECTIONS)
    assert pooled.dtype == np.float32
    np.testing.assert_array_equal(pooled[0], DIRECTIONS[0])
    means = {tuple(np.round(row, 5)) for row in pooled[1:].tolist()}
    # Two clusters of the four that may be merged: the pair, and the two that are left.
    expected = [DIRECTIONS[1:3].mean(0), DIRECTIONS[3:5].mean(0)]
    assert means == {tuple(np.round(row, 5)) for row in np.stack(expected).tolist()}


def test_means_are_scaled_where_that_is_asked_for() -> None:
    pooled = TokenPooling(4, protected=0, normalizes=True)(DIRECTIONS)
    assert len(pooled) == 1
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-6)
    assert np.linalg.norm(TokenPooling(4, protected=0, normalizes=False)(DIRECTIONS)) < 0.9


@pytest.mark.parametrize(("factor", "rows"), [(1, 5), (1.5, 3), (2, 3), (3, 2), (100, 2)])
def test_a_document_keeps_about_one_of_so_many(factor: float, rows: int) -> None:
    assert len(TokenPooling(factor, protected=1, normalizes=False)(DIRECTIONS)) == rows


@pytest.mark.parametrize("count", [0, 1, 2])
def test_what_is_too_short_to_pool_stays_as_it_is(count: int) -> None:
    pooling = TokenPooling(2, protected=1, normalizes=False)
    np.testing.assert_array_equal(pooling(DIRECTIONS[:count]), DIRECTIONS[:count])
    assert len(TokenPooling(2, protected=10, normalizes=False)(DIRECTIONS)) == 5


def test_equal_vectors_are_no_trouble() -> None:
    same = np.repeat(DIRECTIONS[:1], 6, axis=0)
    pooled = TokenPooling(2, protected=0, normalizes=False)(same)
    assert 1 <= len(pooled) <= 3
    np.testing.assert_allclose(pooled, same[: len(pooled)], atol=1e-6)


def test_vectors_that_are_not_finite_stay_for_whoever_reports_them() -> None:
    broken = DIRECTIONS.copy()
    broken[2] = np.nan
    assert len(TokenPooling(2, protected=0, normalizes=False)(broken)) == 5
