"""What `embed` wrote, as something to search in: exact, in portions, so that it may be larger than the memory."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from asyncembed.cli.record_files import opened_parquet
from asyncembed.cli.vector_files import made_with
from asyncembed.errors import OptionError
from asyncembed.scoring import FloatArray, IntArray, top_k

READ_AT_ONCE = 4096
"""Vectors."""


class VectorIndex(ABC):
    """A file with a vector for each record."""

    def __init__(self, path: Path, into: str | None) -> None:
        self.path = path
        self.about: Mapping[str, Any] = made_with(path) or {}
        """What it was made with, where that is known."""
        self._into: str = into or self.about.get("into", "embedding")
        if self.about.get("family") == "sparse":
            raise OptionError(f"{path} has sparse vectors; search is for dense ones")

    @abstractmethod
    def matrices(self) -> Iterator[npt.NDArray[Any]]:
        """Its vectors, some (rows, dim) at a time."""

    def fields(self, positions: Collection[int]) -> dict[int, dict[str, Any]]:  # noqa: ARG002 (for those that have them)
        """What records have beside their vectors, by their positions; none where nothing is known."""
        return {}

    def nearest(self, query: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
        """Positions and cosines of the `k` nearest, best first."""
        positions, scores, start = np.empty(0, np.int64), np.empty(0, np.float32), 0
        for matrix in self.matrices():
            found, cosines = top_k(query, matrix, k, similarity="cosine")
            positions, scores = np.concatenate([positions, found + start]), np.concatenate([scores, cosines])
            order = (-scores).argsort(kind="stable")[:k]
            positions, scores = positions[order], scores[order]
            start += len(matrix)
        return positions, scores

    def _no_vector(self, position: int) -> OptionError:
        return OptionError(
            f"record {position} of {self.path} has no dense vector in the field {self._into!r}; --into names another"
        )


def open_index(path: Path, into: str | None) -> VectorIndex:
    """The index that a file is. Raises `OptionError` if it cannot be one, `OSError` if it cannot be read."""
    with path.open("rb"):
        pass
    kinds: dict[str, type[VectorIndex]] = {".npy": _Matrix, ".jsonl": _Lines, ".parquet": _Table}
    if path.suffix.lower() not in kinds:
        raise OptionError(f"the name of {path} must end with {', '.join(kinds)}, which says what it is")
    return kinds[path.suffix.lower()](path, into)


class _Matrix(VectorIndex):
    def matrices(self) -> Iterator[npt.NDArray[Any]]:
        try:
            matrix = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OverflowError) as error:
            raise OptionError(f"{self.path} is no matrix of numpy: {error}") from error
        if not isinstance(matrix, np.ndarray) or matrix.ndim != 2:
            raise OptionError(f"{self.path} is no matrix of numpy: it has not two dimensions")
        if not len(matrix):  # an empty file cannot be mapped, and has nothing to give
            return
        if isinstance(matrix, np.memmap) and matrix.flags.c_contiguous:
            (rows, dim), dtype, start = matrix.shape, matrix.dtype, matrix.offset
            del matrix
            yield from self._portions(rows, dim, dtype, start)
        else:  # its rows lie in pieces, all over the file
            yield np.load(self.path, allow_pickle=False)

    def _portions(self, rows: int, dim: int, dtype: np.dtype[Any], start: int) -> Iterator[npt.NDArray[Any]]:
        # Read and not mapped: a file that gets shorter kills whoever has it mapped.
        with self.path.open("rb") as file:
            file.seek(start)
            for position in range(0, rows, READ_AT_ONCE):
                count = min(READ_AT_ONCE, rows - position)
                numbers = np.fromfile(file, dtype, count * dim)
                if len(numbers) < count * dim:
                    raise OptionError(f"{self.path} has got shorter while it was read: search again when it is whole")
                yield numbers.reshape(count, dim)


class _Lines(VectorIndex):
    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from (line for line in file if line.strip())

    def matrices(self) -> Iterator[npt.NDArray[Any]]:
        lines, start = self._lines(), 0
        while some := list(islice(lines, READ_AT_ONCE)):
            vectors = [self._vector(line, start + position) for position, line in enumerate(some)]
            for position, vector in enumerate(vectors):
                if len(vector) != len(vectors[0]):
                    raise self._no_vector(start + position)
            yield np.stack(vectors)
            start += len(some)

    def _vector(self, line: bytes, position: int) -> FloatArray:
        try:
            vector = np.asarray(_parsed(line)[self._into], np.float32)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise self._no_vector(position) from error
        if vector.ndim != 1:
            raise self._no_vector(position)
        return vector

    def fields(self, positions: Collection[int]) -> dict[int, dict[str, Any]]:
        wanted = set(positions)
        found = {position: _parsed(line) for position, line in enumerate(self._lines()) if position in wanted}
        for record in found.values():
            del record[self._into]
        return found


def _parsed(line: bytes) -> Any:
    try:
        import orjson
    except ImportError:
        return json.loads(line)
    try:
        return orjson.loads(line)
    except ValueError:  # it takes no number of more than 64 bits
        return json.loads(line)


class _Table(VectorIndex):
    def _opened(self) -> Any:
        return opened_parquet(self.path)

    def matrices(self) -> Iterator[npt.NDArray[Any]]:
        start = 0
        with self._opened() as file:
            if self._into not in file.schema_arrow.names:
                raise self._no_vector(0)
            for batch in file.iter_batches(READ_AT_ONCE, columns=[self._into]):
                if len(batch):
                    yield self._matrix(batch.column(0), start)
                start += len(batch)

    def _matrix(self, column: Any, start: int) -> npt.NDArray[Any]:
        if column.null_count or not hasattr(column, "flatten") or not hasattr(column.type, "value_type"):
            raise self._no_vector(start)
        numbers = column.flatten().to_numpy(zero_copy_only=False)
        sizes = column.value_lengths().to_numpy(zero_copy_only=False)
        others = np.flatnonzero(sizes != len(numbers) // len(column))
        if len(others):
            raise self._no_vector(start + int(others[0]))
        return cast("npt.NDArray[Any]", numbers.reshape(len(column), -1))

    def fields(self, positions: Collection[int]) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        start = 0
        with self._opened() as file:
            others = [name for name in file.schema_arrow.names if name != self._into]
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                here = [position for position in positions if start <= position < end]
                if here:
                    rows = file.read_row_group(group, columns=others).take([position - start for position in here])
                    found |= zip(here, rows.to_pylist(), strict=True)
                start = end
        return found
