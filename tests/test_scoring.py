"""MaxSim, against its definition."""

import numpy as np
import pytest

from asyncembed.errors import OptionError
from asyncembed.scoring import CHUNK_ROWS, maxsim, maxsim_scores


def test_the_worked_example() -> None:
    assert maxsim(np.eye(2), np.array([[1.0, 0.0], [0.6, 0.8]])) == pytest.approx(1.8)


def test_many_documents_score_as_each_alone() -> None:
    generator = np.random.default_rng(0)
    query = generator.normal(size=(7, 16)).astype(np.float32)
    lengths = [1, 5, CHUNK_ROWS + 3, 2, CHUNK_ROWS // 2, CHUNK_ROWS // 2, 40, 1]
    documents = [generator.normal(size=(length, 16)).astype(np.float32) for length in lengths]
    scores = maxsim_scores(query, documents)
    expected = [(query @ document.T).max(axis=1).sum() for document in documents]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert maxsim(query, documents[1]) == pytest.approx(expected[1], rel=1e-5)


def test_half_precision_and_nothing_at_all() -> None:
    query = np.eye(3, dtype=np.float16)
    scores = maxsim_scores(query, [np.empty((0, 3), np.float16), np.eye(3, dtype=np.float16)])
    assert scores.tolist() == [-np.inf, 3.0]
    assert maxsim_scores(query, []).shape == (0,)


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(OptionError, match="document 1"):
        maxsim_scores(np.eye(3), [np.eye(3), np.ones((2, 4))])
    with pytest.raises(OptionError, match="the query"):
        maxsim(np.ones(3), np.eye(3))
