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
from asyncembed.errors import OptionError, StateError
from asyncembed.results import HybridEmbedding, SparseEmbedding
from asyncembed.scoring import (
    CHUNK_ROWS,
    Similarity,
    cosine,
    hybrid_scores,
    maxsim,
    maxsim_scores,
    sparse_scores,
    top_k,
)

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


# ---------------------------------------------------------------- words, and several results of a text


def sparse(entries: dict[int, float]) -> SparseEmbedding:
    return SparseEmbedding.from_dict(entries)


def test_sparse_scores_are_the_products_of_what_both_have() -> None:
    query = sparse({7: 1.0, 3: 2.0})
    documents = [sparse({3: 1.0, 9: 4.0, 7: 0.5}), sparse({}), sparse({4: 1.0}), sparse({7: 3.0})]
    scores = sparse_scores(query, documents)
    assert scores.dtype == np.float32
    assert scores.tolist() == [2.5, 0, 0, 3]
    assert sparse_scores(sparse({}), documents).tolist() == [0, 0, 0, 0]
    assert sparse_scores(query, []).shape == (0,)


def test_an_index_that_comes_twice_counts_twice() -> None:
    """As in miniCOIL's vectors."""
    twice = SparseEmbedding(np.array([5, 5], np.int32), np.array([1, 2], np.float32))
    assert sparse_scores(twice, [sparse({5: 10.0}), twice]).tolist() == [30, 9]


@given(st.lists(st.dictionaries(st.integers(0, 9), st.floats(0.125, 8, width=16), max_size=6), min_size=1, max_size=5))
def test_sparse_scores_are_dot_products(entries: list[dict[int, float]]) -> None:
    query, *documents = map(sparse, entries)
    right = [sum(value * entries[0].get(index, 0) for index, value in each.items()) for each in entries[1:]]
    np.testing.assert_allclose(sparse_scores(query, documents), right, rtol=1e-5)


def hybrid_embedding(angle: float, word: int) -> HybridEmbedding:
    direction = np.array([np.cos(angle), np.sin(angle)], np.float32)
    return HybridEmbedding(dense=direction, sparse=sparse({word: 2.0}), late_interaction=np.stack([direction] * 3))


def test_hybrid_scores_are_the_weighted_mean_of_three() -> None:
    """By hand: the cosine of the angle, 4 for the same word, and the cosine again, as every token has it."""
    query, documents = hybrid_embedding(0.0, 1), [hybrid_embedding(0.5, 1), hybrid_embedding(1.0, 2)]
    cosines = np.cos([0.5, 1.0])
    right = 0.4 * cosines + 0.2 * np.array([4, 0]) + 0.4 * cosines
    np.testing.assert_allclose(hybrid_scores(query, documents), right, rtol=1e-6)
    right = (cosines + 0.3 * np.array([4, 0]) + cosines) / 2.3
    np.testing.assert_allclose(
        hybrid_scores(query, documents, dense=1, sparse=0.3, late_interaction=1), right, rtol=1e-6
    )
    np.testing.assert_allclose(
        hybrid_scores(query, documents, dense=0, sparse=0, late_interaction=7), cosines, rtol=1e-6
    )
    assert hybrid_scores(query, []).shape == (0,)


def test_a_result_without_a_weight_need_not_be_there() -> None:
    query, document = HybridEmbedding(sparse=sparse({1: 2.0})), HybridEmbedding(sparse=sparse({1: 1.5}))
    assert hybrid_scores(query, [document], dense=0, late_interaction=0).tolist() == [3]
    with pytest.raises(StateError, match="no dense result here"):
        hybrid_scores(query, [document])
    with pytest.raises(OptionError, match="must be more than 0"):
        hybrid_scores(query, [document], dense=0, sparse=0, late_interaction=0)
    with pytest.raises(OptionError, match="sparse must be a number"):
        hybrid_scores(query, [document], sparse=-1)
