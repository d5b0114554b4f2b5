"""Result types, and how many results become one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from time import sleep
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeAlias, TypeVar, overload

from asyncembed.errors import StateError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import TypeVar as TypeVarWithDefault

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

DocumentT = TypeVar("DocumentT")
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

    __hash__: ClassVar[None] = None  # type: ignore[assignment]


HybridOutput: TypeAlias = Literal["dense", "sparse", "late_interaction"]
"""One of the results that a hybrid model has for a text."""

HYBRID_OUTPUTS: "tuple[HybridOutput, ...]" = ("dense", "sparse", "late_interaction")


class _Hybrid:
    """Results of several kinds, those that were asked for."""

    __slots__ = ("_dense", "_late_interaction", "_sparse")

    _dense: Any
    _sparse: Any
    _late_interaction: Any

    @property
    def outputs(self) -> tuple[HybridOutput, ...]:
        """Those of "dense", "sparse" and "late_interaction" that are there."""
        return tuple(name for name in HYBRID_OUTPUTS if getattr(self, f"_{name}") is not None)

    def _asked_for(self, name: HybridOutput) -> Any:
        if (part := getattr(self, f"_{name}")) is None:
            raise StateError(f"there is no {name} result here, only {', '.join(self.outputs)}: outputs= asks for them")
        return part


class HybridEmbedding(_Hybrid, Generic[ScalarT]):
    """What one pass through a model has made of a text: the results that were asked for by `outputs=`.

    Another one raises `StateError`. Two are equal if they hold the same results.
    """

    __slots__ = ()

    def __init__(
        self,
        *,
        dense: "npt.NDArray[ScalarT] | None" = None,
        sparse: SparseEmbedding | None = None,
        late_interaction: "npt.NDArray[ScalarT] | None" = None,
    ) -> None:
        self._dense = dense
        self._sparse = sparse
        self._late_interaction = late_interaction

    @property
    def dense(self) -> "npt.NDArray[ScalarT]":
        """One vector for the text: (dim,)."""
        vector: npt.NDArray[ScalarT] = self._asked_for("dense")
        return vector

    @property
    def sparse(self) -> SparseEmbedding:
        """The words that count, and how much."""
        vector: SparseEmbedding = self._asked_for("sparse")
        return vector

    @property
    def late_interaction(self) -> "npt.NDArray[ScalarT]":
        """A vector per token, to be compared by MaxSim: (tokens, dim)."""
        matrix: npt.NDArray[ScalarT] = self._asked_for("late_interaction")
        return matrix

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return sum(getattr(self, f"_{name}").nbytes for name in self.outputs)

    def __eq__(self, other: object) -> bool:
        import numpy as np

        if not isinstance(other, HybridEmbedding):
            return NotImplemented
        return (
            self.outputs == other.outputs
            and self._sparse == other._sparse
            and np.array_equal(self._dense, other._dense)
            and np.array_equal(self._late_interaction, other._late_interaction)
        )

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        sizes = {"sparse": f"{len(self.sparse)} entries"} if self._sparse is not None else {}
        shown = (f"{name}: {sizes.get(name) or getattr(self, name).shape}" for name in self.outputs)
        return f"<HybridEmbedding {', '.join(shown)}>"


class HybridBatch(_Hybrid, Sequence[HybridEmbedding[ScalarT]], Generic[ScalarT]):
    """The results of several texts: one by one as a sequence, or kind by kind, as databases take them."""

    __slots__ = ("_count",)

    def __init__(
        self,
        count: int,
        *,
        dense: "npt.NDArray[ScalarT] | None" = None,
        sparse: Sequence[SparseEmbedding] | None = None,
        late_interaction: "Sequence[npt.NDArray[ScalarT]] | None" = None,
    ) -> None:
        self._count = count
        self._dense = dense
        self._sparse = sparse
        self._late_interaction = late_interaction

    @property
    def dense(self) -> "npt.NDArray[ScalarT]":
        """A vector per text: (n, dim)."""
        vectors: npt.NDArray[ScalarT] = self._asked_for("dense")
        return vectors

    @property
    def sparse(self) -> Sequence[SparseEmbedding]:
        """A sparse vector per text."""
        vectors: Sequence[SparseEmbedding] = self._asked_for("sparse")
        return vectors

    @property
    def late_interaction(self) -> "Sequence[npt.NDArray[ScalarT]]":
        """A matrix per text: (tokens, dim)."""
        matrices: Sequence[npt.NDArray[ScalarT]] = self._asked_for("late_interaction")
        return matrices

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, position: int) -> HybridEmbedding[ScalarT]: ...
    @overload
    def __getitem__(self, position: slice) -> list[HybridEmbedding[ScalarT]]: ...
    def __getitem__(self, position: int | slice) -> HybridEmbedding[ScalarT] | list[HybridEmbedding[ScalarT]]:
        if isinstance(position, slice):
            return [self[index] for index in range(self._count)[position]]
        index = range(self._count)[position]
        return HybridEmbedding(**{name: getattr(self, f"_{name}")[index] for name in self.outputs})

    def __repr__(self) -> str:
        return f"<HybridBatch of {self._count}: {', '.join(self.outputs)}>"


class Ragged(Sequence[ResultT]):
    """Results of different lengths for a batch, one after the other in the same few arrays: what a worker sends back.

    So a batch travels between processes as these arrays and their bounds, whatever the number of its inputs. An element
    is a view: it keeps the whole batch in memory.

    Attributes:
        arrays: What the results are cut out of, all of the same length.
        bounds: Where in them each result begins, and where the last one ends: n + 1 positions.
    """

    __slots__ = ("_make", "arrays", "bounds")

    def __init__(
        self, make: Callable[..., ResultT], arrays: "tuple[npt.NDArray[Any], ...]", bounds: Sequence[int]
    ) -> None:
        """`make` is a function or class of a module, as pickle demands; it is given a slice of each array."""
        self._make = make
        self.arrays: tuple[np.ndarray[Any, Any], ...] = arrays
        self.bounds: Sequence[int] = bounds

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), (self._make, self.arrays, self.bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, position: int) -> ResultT: ...
    @overload
    def __getitem__(self, position: slice) -> list[ResultT]: ...
    def __getitem__(self, position: int | slice) -> ResultT | list[ResultT]:
        if isinstance(position, slice):
            return [self[index] for index in range(len(self))[position]]
        if position < 0:
            position = range(len(self))[position]
        start, end = self.bounds[position], self.bounds[position + 1]
        return self._make(*[array[start:end] for array in self.arrays])


def sparse_batch(
    indices: "Sequence[npt.NDArray[np.integer]]", values: "Sequence[npt.NDArray[np.floating]]"
) -> Ragged[SparseEmbedding]:
    """Sparse vectors, given as the indices of each and the values of each, as one batch."""
    import numpy as np

    joined = (
        np.concatenate([np.empty(0, np.int32), *indices], dtype=np.int32, casting="same_kind"),
        np.concatenate([np.empty(0, np.float32), *values], dtype=np.float32, casting="same_kind"),
    )
    return Ragged(SparseEmbedding, joined, bounds_of(map(len, indices)))


def matrix_batch(rows: "npt.NDArray[ScalarT]", counts: Sequence[int]) -> "Ragged[npt.NDArray[ScalarT]]":
    """Matrices (rows, dim), cut out of one array (sum(counts), dim), as one batch."""
    return Ragged(_itself, (rows,), bounds_of(counts))


def bounds_of(lengths: Iterable[int]) -> list[int]:
    """Where each of some things begins that lie one after the other, and where the last one ends."""
    return list(accumulate(lengths, initial=0))


def _itself(array: ResultT) -> ResultT:
    return array


@dataclass(frozen=True, slots=True, eq=False)
class Chunk(Generic[DocumentT, ScalarT]):
    """A part of a document, and its vector.

    Attributes:
        document: The record of the source that it is of.
        index: Which of its chunks, from 0 on.
        start, end: Where it is in the document's text, in characters, the end exclusive; white space around it is left
            out.
        tokens: Of the chunk itself: without special tokens and those of a prompt.
        vector: float32 (dim,) unless `dtype` or `output` asks otherwise.
    """

    document: DocumentT
    index: int
    start: int
    end: int
    tokens: int
    vector: "npt.NDArray[ScalarT]"

    @property
    def nbytes(self) -> int:
        """Bytes that the vector takes."""
        return self.vector.nbytes

    def __repr__(self) -> str:
        # Without the document, which may be a book.
        return f"<Chunk {self.index}: {self.start}..{self.end}, {self.tokens} tokens>"


class Counted(NamedTuple, Generic[ResultT]):
    """A result, and what its input cost.

    Attributes:
        result: The result; with `on_error="return"` an error may stand in its place.
        tokens: Tokens that the model has computed for it: of the text with its prompt, special tokens, and what else
            the model puts in (ColBERT's marker and mask tokens), but no padding. For a pair those of both texts, for
            BM25 words, for an image its patches of 16 x 16 pixels. 0 for an error, and where somebody else's encoder
            does not say.
        is_cut: Whether the input was longer than the model's `max_length`, and was cut.
    """

    result: ResultT
    tokens: int
    is_cut: bool


class CountedBatch(NamedTuple, Generic[CollectedT]):
    """Several results, and what each of their inputs cost; see `Counted`.

    Attributes:
        results: As they come without counts: an array for a dense model, else a list, or an array of scores.
        tokens: int32 (n,); `int(tokens.sum())` is what was used.
        is_cut: bool (n,).
    """

    results: CollectedT
    tokens: "npt.NDArray[np.int32]"
    is_cut: "npt.NDArray[np.bool_]"


def count_of(result: ResultT, count: int) -> Counted[ResultT]:
    """A result with the `count` of its item."""
    return Counted(result, abs(count), count < 0)


def counts_of(results: CollectedT, counts: Iterable[int]) -> CountedBatch[CollectedT]:
    """Several results with the `count` of each item."""
    import numpy as np

    signed = np.fromiter(counts, np.int32)
    return CountedBatch(results, np.abs(signed), signed < 0)


@dataclass(frozen=True, slots=True)
class Assembly(Generic[ResultT, CollectedT]):
    """How a family's results leave a stream, which sees to it that no error is among them.

    Attributes:
        detach: From a part of a batch's result to a result that keeps nothing else alive.
        assemble: From several parts of results to what `collect` and `batches` give.
    """

    detach: Callable[[Any], ResultT]
    assemble: Callable[[list[Any]], CollectedT]


def detach_each(results: list[Any], detach: Callable[[Any], ResultT]) -> list[ResultT]:
    """Results that keep nothing else alive, as a list."""
    copies: list[ResultT] = []
    for start in range(0, len(results), PORTION_RESULTS):
        if start:
            sleep(0)
        copies += map(detach, results[start : start + PORTION_RESULTS])
    return copies


def _detach_array(array: Any) -> Any:
    return array.copy()


def _detach_chunk(chunk: Chunk[Any, Any]) -> Chunk[Any, Any]:
    return replace(chunk, vector=chunk.vector.copy())


def _detach_sparse(vector: SparseEmbedding) -> SparseEmbedding:
    return SparseEmbedding(vector.indices.copy(), vector.values.copy())


def _stack_rows(rows: list[Any], *, dim: int, dtype: str) -> Any:
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


def _detach_hybrid(embedding: HybridEmbedding[ScalarT]) -> HybridEmbedding[ScalarT]:
    copies = {"dense": _detach_array, "sparse": _detach_sparse, "late_interaction": _detach_array}
    return HybridEmbedding(**{name: copies[name](getattr(embedding, name)) for name in embedding.outputs})


def _join_hybrid(
    embeddings: list[HybridEmbedding[Any]], *, outputs: Sequence[HybridOutput], dim: int, dtype: str
) -> HybridBatch[Any]:
    rows, sparse, matrices = None, None, None
    if "dense" in outputs:
        rows = _stack_rows([each.dense for each in embeddings], dim=dim, dtype=dtype)
    if "sparse" in outputs:
        sparse = detach_each([each.sparse for each in embeddings], _detach_sparse)
    if "late_interaction" in outputs:
        matrices = detach_each([each.late_interaction for each in embeddings], _detach_array)
    return HybridBatch(len(embeddings), dense=rows, sparse=sparse, late_interaction=matrices)


def stack_scores(scores: list[Any]) -> Scores:
    """Scores as one float32 array (n,)."""
    import numpy as np

    return np.array(scores, dtype=np.float32)


def dense(dim: int, dtype: str) -> Assembly[Vector, Matrix]:
    """That of a dense model whose vectors have `dim` elements of `dtype`."""
    return Assembly(detach=_detach_array, assemble=partial(_stack_rows, dim=dim, dtype=dtype))


def hybrid(outputs: Sequence[HybridOutput], dim: int, dtype: str) -> Assembly[HybridEmbedding[Any], HybridBatch[Any]]:
    """That of a hybrid model, asked for these results, whose dense vectors have `dim` elements of `dtype`."""
    return Assembly(detach=_detach_hybrid, assemble=partial(_join_hybrid, outputs=tuple(outputs), dim=dim, dtype=dtype))


MATRICES: Assembly[Any, list[Any]] = Assembly(_detach_array, partial(detach_each, detach=_detach_array))
CHUNKS: Assembly[Chunk[Any, Any], list[Chunk[Any, Any]]] = Assembly(
    _detach_chunk, partial(detach_each, detach=_detach_chunk)
)
SPARSE: Assembly[SparseEmbedding, list[SparseEmbedding]] = Assembly(
    _detach_sparse, partial(detach_each, detach=_detach_sparse)
)
SCORE: Assembly[float, Scores] = Assembly(detach=float, assemble=stack_scores)
COUNT: Assembly[int, int] = Assembly(detach=int, assemble=sum)
