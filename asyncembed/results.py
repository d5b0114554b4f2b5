"""Result types, and how many results become one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import sleep
from typing import TYPE_CHECKING, Any, Generic, Self, TypeAlias, TypeVar, overload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import TypeVar as TypeVarWithDefault

    from asyncembed.errors import InputFailure

    ScalarT = TypeVarWithDefault("ScalarT", bound=np.generic, default=np.float32)
else:
    # Only type checkers read the default, which `typing` knows since Python 3.13.
    ScalarT = TypeVar("ScalarT")

Vector: TypeAlias = "npt.NDArray[np.float32]"
"""One embedding: float32 (dim,) unless `dtype=` or `output=` asks otherwise."""

Matrix: TypeAlias = "npt.NDArray[np.float32]"
"""Embeddings as rows: float32 (n, dim)."""

Scores: TypeAlias = "npt.NDArray[np.float32]"
"""Scores of a reranker: float32 (n,)."""

PORTION_BYTES = 1024 * 1024
"""What is copied at once. A thread that copies keeps the event loop from going on until it stops for a moment."""

PORTION_RESULTS = 256
"""Likewise, for results that are copied one by one."""

ResultT = TypeVar("ResultT")
CollectedT = TypeVar("CollectedT")


@dataclass(frozen=True, slots=True, eq=False)
class SparseEmbedding:
    """A sparse vector: the terms that count, and how much.

    The order of the entries carries no meaning. Two are equal if they hold the same entries in the same order.

    Attributes:
        indices: int32 (entries,), each 0 or more. Every index comes once, except in miniCOIL's vectors, where two rare
            words can share one.
        values: float32 (entries,).
    """

    indices: "npt.NDArray[np.int32]"
    values: "npt.NDArray[np.float32]"

    def as_object(self) -> "dict[str, npt.NDArray[Any]]":
        """The two arrays by name, as vector databases take them."""
        return {"indices": self.indices, "values": self.values}

    def as_dict(self) -> dict[int, float]:
        """From index to value, as plain Python numbers."""
        return dict(zip(self.indices.tolist(), self.values.tolist(), strict=True))

    @classmethod
    def from_dict(cls, entries: Mapping[int, float]) -> Self:
        """The vector with these entries, in their order."""
        import numpy as np

        return cls(
            np.fromiter(entries.keys(), np.int32, len(entries)), np.fromiter(entries.values(), np.float32, len(entries))
        )

    @property
    def nbytes(self) -> int:
        """Bytes that the entries take."""
        return self.indices.nbytes + self.values.nbytes

    def __len__(self) -> int:
        return len(self.indices)

    def __eq__(self, other: object) -> bool:
        import numpy as np

        if not isinstance(other, SparseEmbedding):
            return NotImplemented
        return np.array_equal(self.indices, other.indices) and np.array_equal(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]


class SparseBatch(Sequence[SparseEmbedding]):
    """Many sparse vectors in three arrays: what a worker sends back for a batch.

    An element is a view: it keeps the whole batch in memory.

    Attributes:
        indices: The indices of all vectors, one after the other: int32 (entries,).
        values: Their values: float32 (entries,).
        offsets: Where each vector begins, and where the last one ends: int64 (n + 1,).
    """

    __slots__ = ("_bounds", "indices", "offsets", "values")

    def __init__(
        self, indices: "npt.NDArray[np.int32]", values: "npt.NDArray[np.float32]", offsets: "npt.NDArray[np.int64]"
    ) -> None:
        self.indices = indices
        self.values = values
        self.offsets = offsets
        # As plain numbers: elements are asked for one by one.
        self._bounds: list[int] = offsets.tolist()

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), (self.indices, self.values, self.offsets)

    @classmethod
    def join(cls, indices: "Sequence[npt.NDArray[Any]]", values: "Sequence[npt.NDArray[Any]]") -> Self:
        """Put vectors, given as their indices and their values, into one batch."""
        import numpy as np

        offsets = np.zeros(len(indices) + 1, dtype=np.int64)
        np.cumsum([len(some) for some in indices], out=offsets[1:])
        return cls(
            np.concatenate([np.empty(0, np.int32), *indices], dtype=np.int32, casting="same_kind"),
            np.concatenate([np.empty(0, np.float32), *values], dtype=np.float32, casting="same_kind"),
            offsets,
        )

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, position: int) -> SparseEmbedding: ...
    @overload
    def __getitem__(self, position: slice) -> list[SparseEmbedding]: ...
    def __getitem__(self, position: int | slice) -> SparseEmbedding | list[SparseEmbedding]:
        if isinstance(position, slice):
            return [self[i] for i in range(len(self))[position]]
        if position < 0:
            position += len(self)
            if position < 0:
                raise IndexError("no such vector")
        start, end = self._bounds[position], self._bounds[position + 1]
        return SparseEmbedding(self.indices[start:end], self.values[start:end])


@dataclass(frozen=True, slots=True)
class Output(Generic[ResultT, CollectedT]):
    """How a family's results leave a stream.

    Attributes:
        own: From a part of a batch's result to a result that keeps nothing else alive.
        assemble: From several results to what `collect` and `batches` give.
    """

    own: Callable[[Any], ResultT]
    assemble: Callable[[list[ResultT]], CollectedT]

    def returning(self) -> "Output[ResultT | InputFailure, list[ResultT | InputFailure]]":
        """The same where errors come in the place of results: several are always a list."""
        own: Callable[[Any], Any] = self.own
        return Output(own=own, assemble=partial(own_each, own=own))

    def paired(self) -> "Output[tuple[Any, ResultT], tuple[list[Any], CollectedT]]":
        """The same for (input, result) pairs."""
        return Output(
            own=lambda pair: (pair[0], self.own(pair[1])),
            assemble=lambda pairs: ([pair[0] for pair in pairs], self.assemble([pair[1] for pair in pairs])),
        )


def own_row(row: Any) -> Any:
    """A copy of one row, so that keeping it does not keep its whole batch; an error stays itself."""
    return row if isinstance(row, Exception) else row.copy()


def stack_rows(rows: list[Any], *, dim: int, dtype: str) -> Any:
    """Rows (dim,) as one array (n, dim), none as (0, dim)."""
    import numpy as np

    if not rows:
        return np.empty((0, dim), dtype)
    matrix = np.empty((len(rows), *rows[0].shape), rows[0].dtype)
    at_once = max(1, PORTION_BYTES // max(1, rows[0].nbytes))
    for start in range(0, len(rows), at_once):
        if start:
            sleep(0)
        part = rows[start : start + at_once]
        np.concatenate(part, out=matrix[start : start + len(part)].reshape(-1))
    return matrix


def own_each(results: list[Any], own: Callable[[Any], Any]) -> list[Any]:
    """Copies of results, as a list."""
    copies: list[Any] = []
    for start in range(0, len(results), PORTION_RESULTS):
        if start:
            sleep(0)
        copies += map(own, results[start : start + PORTION_RESULTS])
    return copies


def own_sparse(vector: Any) -> Any:
    """A copy of a vector of a batch; an error stays itself."""
    if isinstance(vector, Exception):
        return vector
    return SparseEmbedding(vector.indices.copy(), vector.values.copy())


def own_score(score: Any) -> Any:
    """A score as a Python float; an error stays itself."""
    return score if isinstance(score, Exception) else float(score)


def stack_scores(scores: list[Any]) -> Any:
    """Scores as one float32 array (n,); a list if errors are among them."""
    import numpy as np

    if any(isinstance(score, Exception) for score in scores):
        return [own_score(score) for score in scores]
    return np.array(scores, dtype=np.float32)


def dense(dim: int, dtype: str) -> Output[Vector, Matrix]:
    """The output of a dense model whose vectors have `dim` elements of `dtype`."""
    return Output(own=own_row, assemble=partial(stack_rows, dim=dim, dtype=dtype))


MATRICES: Output[Any, list[Any]] = Output(own=own_row, assemble=partial(own_each, own=own_row))
SPARSE: Output[SparseEmbedding, list[SparseEmbedding]] = Output(
    own=own_sparse, assemble=partial(own_each, own=own_sparse)
)
SCORE: Output[float, Scores] = Output(own=own_score, assemble=stack_scores)
COUNT: Output[int, int] = Output(own=int, assemble=sum)
