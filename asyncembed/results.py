"""Result types, and how many results become one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Vector: TypeAlias = "npt.NDArray[np.float32]"
"""One embedding: float32 (dim,) unless `dtype=` or `output=` asks otherwise."""

Matrix: TypeAlias = "npt.NDArray[np.float32]"
"""Embeddings as rows: float32 (n, dim)."""

ROWS_PER_COPY = 1024

ResultT = TypeVar("ResultT")
CollectedT = TypeVar("CollectedT")


@dataclass(frozen=True, slots=True)
class Output(Generic[ResultT, CollectedT]):
    """How a family's results leave a stream.

    Attributes:
        own: From a part of a batch's result to a result that keeps nothing else alive.
        assemble: From several results to what `collect` and `batches` give.
    """

    own: Callable[[Any], ResultT]
    assemble: Callable[[list[ResultT]], CollectedT]

    def paired(self) -> "Output[tuple[Any, ResultT], tuple[list[Any], CollectedT]]":
        """The same for (input, result) pairs."""
        return Output(
            own=lambda pair: (pair[0], self.own(pair[1])),
            assemble=lambda pairs: ([pair[0] for pair in pairs], self.assemble([pair[1] for pair in pairs])),
        )


def own_row(row: Any) -> Any:
    """A copy of one row, so that keeping it does not keep its whole batch; an error stays itself."""
    return row if isinstance(row, Exception) else row.copy()


def stack_rows(rows: list[Any]) -> Any:
    """Rows (dim,) as one array (n, dim); a list if errors are among them, an empty array (0, 0) if there are none."""
    import numpy as np

    if not rows:
        return np.empty((0, 0), np.float32)
    if any(isinstance(row, Exception) for row in rows):
        return [own_row(row) for row in rows]
    matrix = np.empty((len(rows), *rows[0].shape), rows[0].dtype)
    # In parts, since numpy keeps the event loop's thread waiting for as long as one copy takes.
    for start in range(0, len(rows), ROWS_PER_COPY):
        part = rows[start : start + ROWS_PER_COPY]
        np.concatenate(part, out=matrix[start : start + len(part)].reshape(-1))
    return matrix


DENSE: Output[Vector, Matrix] = Output(own=own_row, assemble=stack_rows)

COUNT: Output[int, int] = Output(own=int, assemble=sum)
