"""Fewer vectors for a document: those that lie near each other become their mean.

Clavié, Chaffin and Adams 2024, "Reducing the Footprint of Multi-Vector Retrieval with Minimal Performance Impact via
Token Pooling", https://arxiv.org/abs/2409.14683, the hierarchical form. Clusters are Ward's on the cosine distances, as
PyLate (since 1.3.5) and sentence-transformers' `HierarchicalTokenPooling` have them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from asyncembed.encoders.pooling import FloatArray, normalize
from asyncembed.errors import RuntimeMissingError


@dataclass(frozen=True, slots=True)
class TokenPooling:
    """Pools the vectors of one document.

    Attributes:
        factor: How many vectors become one, on average; at least 1.
        protected: How many, from the first, stay as they are.
        normalizes: Whether all are scaled to unit length in the end.
    """

    factor: float
    protected: int
    normalizes: bool

    def __post_init__(self) -> None:
        if self.factor > 1:
            _hierarchy()  # whether it is there shows now

    def __call__(self, vectors: FloatArray) -> FloatArray:
        """From (tokens, dim), of unit length, to fewer rows: the protected ones first, then the means of clusters.

        Vectors that are not finite stay as they are.
        """
        if self.factor > 1 and np.isfinite(vectors).all():
            kept, pooled = vectors[: self.protected], vectors[self.protected :]
            clusters = max(int(len(pooled) // self.factor), 1)
            if clusters < len(pooled):
                vectors = np.concatenate([kept, _means(pooled, _labels(pooled, clusters))])
        return normalize(vectors) if self.normalizes else vectors


def _labels(vectors: FloatArray, clusters: int) -> Any:
    """The cluster of each vector, a number from 0 on; as many clusters as asked for, or fewer where distances tie."""
    from scipy.spatial.distance import squareform

    hierarchy = _hierarchy()
    # Distances, once each; rounding may have made one of them less than 0.
    condensed = squareform(np.maximum(1 - vectors @ vectors.T, 0), checks=False)
    found = hierarchy.fcluster(hierarchy.linkage(condensed, method="ward"), t=clusters, criterion="maxclust")
    return np.unique(found, return_inverse=True)[1]


def _means(vectors: FloatArray, labels: Any) -> FloatArray:
    sums = np.zeros((labels.max() + 1, vectors.shape[1]), np.float32)
    np.add.at(sums, labels, vectors)
    sums /= np.bincount(labels)[:, None]
    return sums


def _hierarchy() -> Any:
    try:
        from scipy.cluster import hierarchy
    except ImportError as error:
        raise RuntimeMissingError('pool_factor needs the package scipy: pip install "asyncembed[pooling]"') from error
    return hierarchy
