"""Models whose graphs are built from their weights, beside what sentence-transformers gives for the same directory.

Which script made a directory's `reference.npz` stands in `tests/export/make_reference.py`.
"""

from pathlib import Path

import numpy as np
import pytest

from asyncembed import TextCrossEncoder, TextEmbedding
from tests.export.reference_modernbert import QUERY, REPOS, TEXTS

pytestmark = pytest.mark.slow


async def test_the_vectors_of_a_modernbert_embedder(tmp_path: Path) -> None:
    directory = REPOS / "modernbert_embedder"
    expected = np.load(directory / "reference.npz")["vectors"]
    async with TextEmbedding(directory, cache_dir=tmp_path, workers=1) as model:
        vectors = [vector async for vector in model.embed(TEXTS)]
        alone = await model.embed(TEXTS[-1:]).collect()
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(alone, expected[-1:], rtol=0, atol=1e-5)


async def test_the_scores_of_a_modernbert_reranker(tmp_path: Path) -> None:
    directory = REPOS / "modernbert_reranker"
    expected = np.load(directory / "reference.npz")["scores"]
    async with TextCrossEncoder(directory, cache_dir=tmp_path, workers=1) as model:
        scores = [score async for score in model.rerank(QUERY, TEXTS)]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
