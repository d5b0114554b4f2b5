"""Scores against their definitions, computed the long way."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from asyncembed import scoring
from asyncembed.errors import OptionError
from asyncembed.scoring import CHUNK_ROWS, Similarity, cosine, maxsim, maxsim_scores, top_k

Array = npt.NDArray[Any]
DTYPES = [np.int8, np.uint8, np.float16, np.float32, np.float64]


def best_by_sorting(query: Array, matrix: Array, k: int) -> list[tuple[int, float]]:
    scores = [sum(int(one) * int(other) for one, other in zip(query, row, strict=True)) for row in matrix]
    return [(index, float(score)) for score, index in sorted((-score, index) for index, score in enumerate(scores))][:k]


@st.composite
def searches(draw: st.DrawFn) -> tuple[Array, Array, int]:
    """Queries, matrix and k. Small whole numbers: products are exact, and many are equal."""
    dim = draw(st.integers(1, 4))
    matrix = draw(
        arrays.arrays(draw(st.sampled_from(DTYPES)), (draw(st.integers(0, 40)), dim), elements=st.integers(0, 3))
    )
    shape = draw(st.sampled_from([(dim,), (0, dim), (1, dim), (3, dim)]))
    query = draw(arrays.arrays(draw(st.sampled_from(DTYPES)), shape, elements=st.integers(0, 3)))
    return query, matrix, draw(st.integers(1, 45))


@given(searches(), st.sampled_from([1, 20, 2**22]))
def test_top_k_is_sorting_all_and_taking_the_first(search: tuple[Array, Array, int], chunk: int) -> None:
    query, matrix, k = search
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "CHUNK_NUMBERS", chunk)
        indices, scores = top_k(query, matrix, k)
    assert indices.dtype == np.int64
    assert scores.dtype == np.float32
    assert indices.shape == scores.shape == (*query.shape[:-1], min(k, len(matrix)))
    queries = np.atleast_2d(query)
    for one, row, values in zip(queries, np.atleast_2d(indices), np.atleast_2d(scores), strict=True):
        expected = best_by_sorting(one, matrix, k)
        assert list(zip(row.tolist(), (-values).tolist(), strict=True)) == expected


numbers = st.floats(-(2.0**127), 2.0**127, width=32)


@given(st.data(), st.sampled_from([1, 20, 2**22]))
def test_cosine_is_that_of_the_definition(data: st.DataObject, chunk: int) -> None:
    dim = data.draw(st.integers(1, 4))
    matrix = data.draw(arrays.arrays(np.float32, (data.draw(st.integers(0, 12)), dim), elements=numbers))
    query = data.draw(arrays.arrays(np.float32, data.draw(st.sampled_from([(dim,), (2, dim)])), elements=numbers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "CHUNK_NUMBERS", chunk)
        cosines = cosine(query, matrix)
    exact = query.astype(np.longdouble) @ matrix.astype(np.longdouble).T
    lengths = np.outer(norms(np.atleast_2d(query)), norms(matrix)).reshape(exact.shape)
    expected = np.where(lengths > 0, exact / np.where(lengths > 0, lengths, 1), 0)
    assert cosines.dtype == np.float32
    assert cosines.shape == (*query.shape[:-1], len(matrix))
    assert np.all(np.abs(cosines) <= 1)
    np.testing.assert_allclose(cosines, expected.astype(np.float64), atol=1e-6)


def norms(rows: Array) -> Array:
    lengths: Array = np.sqrt((rows.astype(np.longdouble) ** 2).sum(axis=1))
    return lengths


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_top_k_gives_the_scores_that_all_have_whatever_the_type(similarity: Similarity, dtype: type) -> None:
    generator = np.random.default_rng(0)
    queries: Array = generator.normal(size=(5, 24)).astype(dtype)
    matrix: Array = generator.normal(size=(700, 24)).astype(dtype)
    scores = cosine(queries, matrix)
    if similarity == "dot":
        scores = queries.astype(np.float32) @ matrix.astype(np.float32).T
    indices, values = top_k(queries, matrix, 10, similarity=similarity)
    np.testing.assert_array_equal(indices, np.argsort(-scores, axis=1, kind="stable")[:, :10])
    np.testing.assert_allclose(values, np.take_along_axis(scores, indices, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(top_k(queries[2], matrix, 10, similarity=similarity)[0], indices[2])


def test_a_matrix_may_lie_in_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", np.eye(5, dtype=np.float16))
    matrix = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    assert isinstance(matrix, np.memmap)
    assert top_k(np.array([0, 0, 3, 0, 1]), matrix, 2)[0].tolist() == [2, 4]


def test_what_is_no_search_says_why() -> None:
    matrix = np.eye(3, dtype=np.float32)
    refused: list[tuple[Array, Array, str]] = [
        (np.ones(4), matrix, r"query has the shape \(4,\); expected \(3,\) or \(queries, 3\)"),
        (np.ones((1, 1, 3)), matrix, "query has the shape"),
        (np.array(1.0), matrix, "query has the shape"),
        (np.ones(3), np.ones(3), r"matrix has the shape \(3,\); expected \(n, dim\)"),
        (np.array(["a", "b", "c"]), matrix, "query has the dtype <U1; expected numbers"),
        (np.ones(3), np.full((2, 3), None), "matrix has the dtype object"),
        (np.ones(3, dtype=bool), matrix, "query has the dtype bool"),
        (np.array([1, np.nan, 1]), matrix, "query has values that are not finite"),
        (np.ones(3), np.array([[0, 0, 0], [0, np.inf, 0]]), "row 1 of the matrix"),
        (np.zeros(3), np.array([[0, 0, 0], [0, np.nan, 0]]), "row 1 of the matrix"),
        (np.ones(3), np.array([[3e38, 3e38, 0]]), "row 0 of the matrix.* too large for float32"),
    ]
    for query, rows, message in refused:
        with pytest.raises(OptionError, match=message):
            top_k(query, rows, 1)
    for query, rows in [(np.ones(4), matrix), (np.ones(3), np.array([[np.inf, 0, 0]]))]:
        with pytest.raises(OptionError):
            cosine(query, rows)
    for k in (0, -1, 2.0, None, True):
        with pytest.raises(OptionError, match="k must be a whole number, 1 or more"):
            top_k(np.ones(3), matrix, k)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="similarity must be one of 'dot', 'cosine'"):
        top_k(np.ones(3), matrix, 1, similarity="l2")  # type: ignore[arg-type]


# ---------------------------------------------------------------- maxsim


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
