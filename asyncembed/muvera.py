"""MUVERA: one vector of fixed length for a matrix of token vectors, so that any vector index can hold it.

Dhulipala et al. 2024, "MUVERA: Multi-Vector Retrieval via Fixed Dimensional Encodings",
https://arxiv.org/abs/2405.19504. The dot product of a query's and a document's encoding approximates their MaxSim.
"""

from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from asyncembed.checks import check_count
from asyncembed.errors import OptionError

DoubleArray = npt.NDArray[np.float64]

MAX_CLUSTER_BITS = 16
"""2**16 clusters times `dim` doubles are 64 MiB for a dim of 128, for each repetition."""


class _HasEmbeddingSize(Protocol):
    @property
    def embedding_size(self) -> int: ...


class Muvera:
    """Makes fixed dimensional encodings: float64 (r_reps * 2**k_sim * dim_proj,).

    Equal arguments give equal encodings, on any machine whose numpy has the generator PCG64, and the same ones as
    fastembed's class of this name. Query and document must be encoded with equal arguments.

    Each repetition cuts the space by `k_sim` random hyperplanes into 2**k_sim clusters, reduces the vectors of each
    cluster to one (a document's to their mean, a query's to their sum), and projects that to `dim_proj` components. A
    cluster in which a document has no vector gets one from the nearest cluster that has.

    Args:
        dim: Length of the token vectors.
        k_sim: Hyperplanes of each repetition.
        dim_proj: Components that remain of each cluster's vector; as many as `dim` leaves them unprojected.
        r_reps: Repetitions, each with hyperplanes of its own.
        random_seed: Seed of numpy's default generator.

    Raises:
        OptionError: A number is out of range; `dim_proj` must not be over `dim`.
    """

    def __init__(self, dim: int, k_sim: int = 5, dim_proj: int = 16, r_reps: int = 20, random_seed: int = 42) -> None:
        for name, value in {"dim": dim, "k_sim": k_sim, "dim_proj": dim_proj, "r_reps": r_reps}.items():
            check_count(name, value, minimum=0, may_be_none=False)
        check_count("random_seed", random_seed, minimum=0, may_be_none=False)
        if dim < 1 or r_reps < 1 or not 0 <= k_sim <= MAX_CLUSTER_BITS:
            raise OptionError(f"dim and r_reps are at least 1, and k_sim is 0 to {MAX_CLUSTER_BITS}")
        if not 1 <= dim_proj <= dim:
            raise OptionError(f"dim_proj={dim_proj} must be between 1 and dim={dim}")
        self.dim = dim
        self.k_sim = k_sim
        self.dim_proj = dim_proj
        self.r_reps = r_reps
        self.random_seed = random_seed
        # The order of the draws is part of the format: equal seeds must give equal encodings.
        generator = np.random.default_rng(random_seed)
        self._hyperplanes = [generator.normal(size=(dim, k_sim)) for _ in range(r_reps)]
        self._projections = generator.choice([-1, 1], size=(r_reps, dim, dim_proj)).astype(np.float64)
        clusters = np.arange(2**k_sim)
        self._bit_counts = np.sum(clusters[:, None] >> np.arange(max(1, k_sim)) & 1, axis=1)

    @classmethod
    def from_multivector_model(
        cls,
        model: _HasEmbeddingSize,
        k_sim: int = 5,
        dim_proj: int = 16,
        r_reps: int = 20,
        random_seed: int = 42,
    ) -> Self:
        """One for the vectors of `model`, whose `embedding_size` it takes."""
        return cls(model.embedding_size, k_sim, dim_proj, r_reps, random_seed)

    @property
    def embedding_size(self) -> int:
        """Length of an encoding."""
        return self.r_reps * (1 << self.k_sim) * self.dim_proj

    def process_document(self, vectors: npt.NDArray[Any]) -> DoubleArray:
        """The encoding of a document's token vectors (tokens, dim)."""
        return self.process(vectors, fill_empty_clusters=True, normalize_by_count=True)

    def process_query(self, vectors: npt.NDArray[Any]) -> DoubleArray:
        """The encoding of a query's token vectors (tokens, dim)."""
        return self.process(vectors, fill_empty_clusters=False, normalize_by_count=False)

    def process(
        self, vectors: npt.NDArray[Any], fill_empty_clusters: bool = True, normalize_by_count: bool = True
    ) -> DoubleArray:
        """The encoding of token vectors (tokens, dim), at least one of them.

        Args:
            vectors: Float array (tokens, dim).
            fill_empty_clusters: Whether an empty cluster gets the first vector of the nearest one that is not.
            normalize_by_count: Whether a cluster's vector is the mean of its vectors, rather than their sum.

        Raises:
            OptionError: There is no vector, or they have another length than `dim`.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dim or len(vectors) == 0:
            raise OptionError(f"expected at least one vector as (tokens, {self.dim}); got the shape {vectors.shape}")
        parts = []
        for hyperplanes, projection in zip(self._hyperplanes, self._projections, strict=True):
            clusters = (vectors @ hyperplanes > 0) @ (1 << np.arange(self.k_sim))
            centers = self._centers(vectors, clusters, fill=fill_empty_clusters, average=normalize_by_count)
            if self.dim_proj < self.dim:
                centers = (1 / np.sqrt(self.dim_proj)) * (centers @ projection)
            parts.append(centers.ravel())
        return np.concatenate(parts)

    def _centers(
        self, vectors: npt.NDArray[Any], clusters: npt.NDArray[np.int64], *, fill: bool, average: bool
    ) -> DoubleArray:
        """One vector per cluster, float64 (2**k_sim, dim)."""
        count = 2**self.k_sim
        # `bincount` adds in the order of its input, in float64: the order in which the vectors come.
        cells = clusters[:, None] * self.dim + np.arange(self.dim)
        sums = np.bincount(cells.ravel(), vectors.ravel(), minlength=count * self.dim)
        centers = np.asarray(sums, dtype=np.float64).reshape(count, self.dim)
        sizes = np.bincount(clusters, minlength=count)
        is_occupied = sizes > 0
        if average:
            centers[is_occupied] /= sizes[is_occupied, None]
        if fill and not is_occupied.all():
            occupied, firsts = np.unique(clusters, return_index=True)
            empty = np.flatnonzero(~is_occupied)
            distances = self._bit_counts[empty[:, None] ^ occupied]
            # Both are ascending, so the first of several nearest ones is the one with the smallest id.
            centers[empty] = vectors[firsts[distances.argmin(axis=1)]]
        return centers
