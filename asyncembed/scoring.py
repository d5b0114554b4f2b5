"""How alike vectors are: the best rows of a matrix for a query, cosines, and MaxSim for late interaction.

```python
indices, scores = top_k(np.array([1.0, 0.0]), np.array([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]]), 2)
print(indices.tolist())  # [1, 2]
```

Queries and matrices are of any numbers, also float16 or int8, and may lie in a file (`numpy.memmap`): all is computed
in float32, some rows at a time, so that a large matrix is never there twice. Plain functions that compute where they
are called: on an event loop, call them in a thread for more than a few thousand rows, or a few hundred documents.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from asyncembed.checks import check_choice, check_count, check_number
from asyncembed.errors import OptionError

if TYPE_CHECKING:
    from asyncembed.results import HybridEmbedding, SparseEmbedding

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Similarity: TypeAlias = Literal["dot", "cosine"]

CHUNK_ROWS = 16384
"""Document vectors compared at once: bounds the memory (with 32 query vectors, 2 MiB of similarities)."""

CHUNK_NUMBERS = 2**22
"""What is computed with at once, rows and similarities alike: 16 MiB."""


# ---------------------------------------------------------------- a vector per text


def top_k(
    query: npt.NDArray[Any], matrix: npt.NDArray[Any], k: int, *, similarity: Similarity = "dot"
) -> tuple[IntArray, FloatArray]:
    """The `k` rows of `matrix` that are most like the query, best first.

    Args:
        query: One query (dim,), or several (queries, dim).
        matrix: (n, dim).
        k: How many; if there are no more than `k` rows, all of them are given.
        similarity: "dot", the dot product, which is the cosine where vectors have unit length, as those of most models;
            or "cosine" for vectors of any length.

    Returns:
        Positions of rows, int64, and their scores, float32: both (k,) for one query, (queries, k) for several. The
        earlier of two equal scores comes first.

    Raises:
        OptionError: A shape does not fit, `k` is no positive number, or something is not a number.
    """
    check_count("k", k, minimum=1, may_be_none=False)
    check_choice("similarity", similarity, get_args(Similarity))
    queries = _queries(query, matrix, is_unit=similarity == "cosine")
    best = [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
    for start, scores in _products(queries, matrix, is_unit=similarity == "cosine"):
        best = [_merge(one, row, start, k) for one, row in zip(best, scores, strict=True)]
    width = min(k, len(matrix))
    indices = np.array([positions for positions, _ in best], dtype=np.int64).reshape(len(best), width)
    values = np.array([scores for _, scores in best], dtype=np.float32).reshape(len(best), width)
    return (indices[0], values[0]) if np.ndim(query) == 1 else (indices, values)


def cosine(query: npt.NDArray[Any], matrix: npt.NDArray[Any]) -> FloatArray:
    """The cosine of the angle between the query and each row of `matrix`, float32, -1 to 1.

    `query` is (dim,) or (queries, dim), `matrix` (n, dim); the result is (n,) or (queries, n). With a vector of zeros
    it is 0.

    ```python
    cosine(np.array([3.0, 0.0]), np.array([[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])).tolist()  # [1, -1, 0]
    ```

    Raises:
        OptionError: A shape does not fit, or something is not a number.
    """
    queries = _queries(query, matrix, is_unit=True)
    cosines = np.empty((len(queries), len(matrix)), dtype=np.float32)
    for start, scores in _products(queries, matrix, is_unit=True):
        cosines[:, start : start + scores.shape[1]] = scores
    return cosines[0] if np.ndim(query) == 1 else cosines


def _queries(query: npt.NDArray[Any], matrix: npt.NDArray[Any], *, is_unit: bool) -> FloatArray:
    """The queries as rows, after all that can be wrong with the arrays but single rows."""
    if np.ndim(matrix) != 2:
        raise OptionError(f"the matrix has the shape {np.shape(matrix)}; expected (n, dim)")
    dim = np.shape(matrix)[1]
    if np.ndim(query) not in (1, 2) or np.shape(query)[-1] != dim:
        raise OptionError(f"the query has the shape {np.shape(query)}; expected ({dim},) or (queries, {dim})")
    for what, vectors in (("query", query), ("matrix", matrix)):
        if np.asarray(vectors[:0]).dtype.kind not in "fiu":
            raise OptionError(f"the {what} has the dtype {np.asarray(vectors[:0]).dtype}; expected numbers")
    if not np.isfinite(query).all():
        raise OptionError("the query has values that are not finite")
    return _floats(np.atleast_2d(query), is_unit=is_unit)


def _products(queries: FloatArray, matrix: npt.NDArray[Any], *, is_unit: bool) -> Iterator[tuple[int, FloatArray]]:
    """Where some rows begin, and the dot products of all queries with them, (queries, rows): for all rows in turn."""
    rows = max(1, CHUNK_NUMBERS // max(1, *queries.shape))
    for start in range(0, len(matrix), rows):
        with np.errstate(over="ignore", invalid="ignore"):
            scores = queries @ _floats(matrix[start : start + rows], is_unit=is_unit).T
        # A row with a number that is not finite has no finite product with anything.
        if not np.isfinite(scores).all():
            row = start + int(np.isfinite(scores).all(axis=0).argmin())
            raise OptionError(f"row {row} of the matrix has values that are not finite, or too large for float32")
        yield start, scores.clip(-1, 1, out=scores) if is_unit else scores


def _floats(vectors: npt.NDArray[Any], *, is_unit: bool) -> FloatArray:
    """float32 rows, of unit length if asked for; zeros stay zeros."""
    floats: FloatArray = np.asarray(vectors, dtype=np.float32)
    if not is_unit or not floats.size:
        return floats
    # Divided by the largest number first: the squares of very large or small ones are no float32.
    peaks = np.abs(floats).max(axis=1, keepdims=True)
    scaled = np.divide(floats, np.where(peaks > 0, peaks, 1), dtype=np.float32)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    units: FloatArray = np.divide(scaled, np.where(norms > 0, norms, 1), dtype=np.float32)
    return units


def _merge(best: tuple[IntArray, FloatArray], scores: FloatArray, start: int, k: int) -> tuple[IntArray, FloatArray]:
    """The best `k` of those so far and of the rows from `start` on, as positions and scores."""
    positions, values = best
    # Once there are k, a later row must be better than the last of them.
    fresh = np.flatnonzero(scores > values[-1]) if len(values) == k else np.arange(len(scores))
    if not len(fresh):
        return best
    values = np.concatenate([values, scores[fresh]])
    chosen = _best(values, k)
    return np.concatenate([positions, fresh + start])[chosen], values[chosen]


def _best(scores: FloatArray, k: int) -> IntArray:
    """Positions of the `k` largest, largest first, the earlier of two equals first."""
    candidates = np.arange(len(scores))
    if k < len(scores):
        candidates = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    chosen: IntArray = candidates[(-scores[candidates]).argsort(kind="stable")[:k]]
    return chosen


# ---------------------------------------------------------------- a matrix per text


def maxsim(query: npt.NDArray[Any], document: npt.NDArray[Any]) -> float:
    """MaxSim: the sum, over the query's vectors, of the largest dot product with any of the document's.

    Source: Khattab and Zaharia 2020, https://arxiv.org/abs/2004.12832, section 3.3.

    `query` is (tokens, dim), `document` (other tokens, dim). The vectors of our models have unit length, so the
    similarity of two tokens is their cosine. A document without vectors gives -inf.

    ```python
    maxsim(np.eye(2), np.array([[1.0, 0.0], [0.6, 0.8]]))  # max(1, 0.6) + max(0, 0.8) = 1.8
    ```

    Raises:
        OptionError: The arrays are not matrices with the same number of columns.
    """
    return float(maxsim_scores(query, [document])[0])


def maxsim_scores(query: npt.NDArray[Any], documents: Sequence[npt.NDArray[Any]]) -> FloatArray:
    """`maxsim` of one query with many documents, float32 (len(documents),), in their order.

    One matrix product for many documents at once: some ten times as fast as a loop where documents are short.

    Raises:
        OptionError: An array is not a matrix with the query's number of columns.
    """
    _check(query, query.shape[-1] if query.ndim else 0, "the query")
    for index, document in enumerate(documents):
        _check(document, query.shape[1], f"document {index}")
    scores = np.full(len(documents), -np.inf, dtype=np.float32)
    vectors = query.astype(np.float32, copy=False)
    chunk: list[int] = []
    rows = 0
    for index, document in enumerate(documents):
        if len(document) == 0:
            continue
        if rows + len(document) > CHUNK_ROWS and chunk:
            scores[chunk] = _score_chunk(vectors, [documents[member] for member in chunk])
            chunk, rows = [], 0
        chunk.append(index)
        rows += len(document)
    if chunk:
        scores[chunk] = _score_chunk(vectors, [documents[member] for member in chunk])
    return scores


def _score_chunk(query: FloatArray, documents: list[npt.NDArray[Any]]) -> FloatArray:
    """Scores of documents that all have vectors."""
    lengths = np.array([len(document) for document in documents])
    starts = np.concatenate([[0], lengths.cumsum()[:-1]])
    together = np.concatenate(documents).astype(np.float32, copy=False)
    # (document vectors, query vectors): the maximum is then taken over neighbouring rows, which numpy does fastest.
    similarities = together @ query.T
    scores: FloatArray = np.maximum.reduceat(similarities, starts, axis=0).sum(axis=1)
    return scores


def _check(vectors: npt.NDArray[Any], dim: int, what: str) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise OptionError(f"{what} has the shape {vectors.shape}; expected (tokens, {dim or 'dim'})")


# ---------------------------------------------------------------- words, and several results of a text


def sparse_scores(query: "SparseEmbedding", documents: "Sequence[SparseEmbedding]") -> FloatArray:
    """The dot products of one sparse vector with many, float32 (len(documents),), in their order.

    That is the sum, over the indices that both have, of the products of their values.

    ```python
    one = SparseEmbedding.from_dict({3: 2.0, 7: 1.0})
    sparse_scores(one, [SparseEmbedding.from_dict({7: 0.5, 3: 1.0, 9: 4.0})]).tolist()  # 2 * 1 + 1 * 0.5 = [2.5]
    ```
    """
    scores = np.zeros(len(documents), dtype=np.float32)
    if not len(query) or not documents:
        return scores
    order = query.indices.argsort(kind="stable")
    known, values = query.indices[order], query.values[order].astype(np.float32, copy=False)
    indices = np.concatenate([document.indices for document in documents])
    owners = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    # An index may come several times in either: all its pairs count.
    first, last = np.searchsorted(known, indices, "left"), np.searchsorted(known, indices, "right")
    totals = np.concatenate([[0.0], values.cumsum(dtype=np.float64)])
    products = (totals[last] - totals[first]) * np.concatenate([document.values for document in documents])
    sums: FloatArray = np.bincount(owners, products, len(documents)).astype(np.float32)
    return sums


def hybrid_scores(
    query: "HybridEmbedding[Any]",
    documents: "Sequence[HybridEmbedding[Any]]",
    *,
    dense: float = 0.4,
    sparse: float = 0.2,
    late_interaction: float = 0.4,
) -> FloatArray:
    """How well documents answer a query by all their results, float32 (len(documents),): the weighted mean of three.

    These are the dot product of the dense vectors, that of the sparse ones, and MaxSim over the number of the query's
    tokens. Source: Chen et al. 2024, https://arxiv.org/abs/2402.03216, sections 3.2 and 4; the weights are those that
    bge-m3's authors show. What has the weight 0 is not looked at, so need not be there.

    Raises:
        OptionError: A weight is no number of at least 0, or all are 0; shapes do not fit.
        StateError: A result that has a weight was not asked for when the texts were embedded (`outputs=`).
    """
    weights = {"dense": dense, "sparse": sparse, "late_interaction": late_interaction}
    for name, weight in weights.items():
        check_number(name, weight, minimum=0)
    if not (total := sum(weights.values())):
        raise OptionError("one of dense, sparse and late_interaction must be more than 0")
    scores = np.zeros(len(documents), dtype=np.float32)
    if not documents:
        return scores
    if dense:
        for start in range(0, len(documents), CHUNK_ROWS):
            rows = np.stack([document.dense for document in documents[start : start + CHUNK_ROWS]])
            for first, products in _products(_queries(query.dense, rows, is_unit=False), rows, is_unit=False):
                scores[start + first : start + first + products.shape[1]] += dense * products[0]
    if sparse:
        scores += sparse * sparse_scores(query.sparse, [document.sparse for document in documents])
    if late_interaction:
        matrices = [document.late_interaction for document in documents]
        scores += (
            late_interaction * maxsim_scores(query.late_interaction, matrices) / max(1, len(query.late_interaction))
        )
    mean: FloatArray = scores / np.float32(total)
    return mean
