"""MaxSim: how well a query's token vectors find themselves again in a document's.

Khattab and Zaharia 2020, https://arxiv.org/abs/2004.12832, section 3.3. Plain functions that compute where they are
called: for more than a few hundred documents, call them in a thread.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from asyncembed.errors import OptionError

FloatArray = npt.NDArray[np.float32]

CHUNK_ROWS = 16384
"""Document vectors compared at once: bounds the memory (with 32 query vectors, 2 MiB of similarities)."""


def maxsim(query: npt.NDArray[Any], document: npt.NDArray[Any]) -> float:
    """The sum, over the query's vectors, of the largest dot product with any of the document's.

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
