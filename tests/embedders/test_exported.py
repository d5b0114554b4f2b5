"""Models whose graphs are built from their weights, beside what sentence-transformers gives for the same directory.

Which script made a directory's `reference.npz` stands in `tests/export/make_reference.py`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from asyncembed import SparseTextEmbedding, TextCrossEncoder, TextEmbedding
from asyncembed.errors import RuntimeMissingError
from tests.export import reference_bert_family as bert_family
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


async def test_the_vectors_of_gte_as_on_the_hub_with_linear_layers_that_add_their_input(tmp_path: Path) -> None:
    directory = REPOS / "gte_embedder"
    expected = np.load(directory / "reference.npz")["vectors"]
    async with TextEmbedding(directory, cache_dir=tmp_path, workers=1) as model:
        vectors = [vector async for vector in model.embed(bert_family.TEXTS)]
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["bert_reranker", "deberta_reranker"])
@pytest.mark.parametrize(
    ("tokenizer_class", "expected"), [(None, "scores"), ("TokenizersBackend", "scores_without_types")]
)
async def test_the_scores_of_a_reranker_with_the_token_types_that_its_tokenizer_declares(
    name: str, tokenizer_class: str | None, expected: str, tmp_path: Path
) -> None:
    directory = tmp_path / name
    shutil.copytree(REPOS / name, directory)
    if tokenizer_class is not None:
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {"tokenizer_class": tokenizer_class}), "utf-8")
    scores_of_torch = np.load(directory / "reference.npz")[expected]
    async with TextCrossEncoder(directory, cache_dir=tmp_path / "cache", workers=1) as model:
        scores = [score async for score in model.rerank(bert_family.QUERY, bert_family.TEXTS)]
    np.testing.assert_allclose(scores, scores_of_torch, rtol=0, atol=2e-6)


async def test_the_weights_of_a_modernbert_splade(tmp_path: Path) -> None:
    directory = REPOS / "modernbert_splade"
    expected = np.load(directory / "reference.npz")["weights"]
    async with SparseTextEmbedding(directory, cache_dir=tmp_path, workers=1) as model:
        found = [vector async for vector in model.embed(TEXTS)]
    for vector, row in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.sort(vector.indices), np.flatnonzero(row))
        np.testing.assert_allclose(vector.values, row[vector.indices], rtol=0, atol=1e-5)


async def test_openvino_gets_a_graph_without_branches(tmp_path: Path) -> None:
    """It computes wrong numbers where a graph has some."""
    directory = REPOS / "modernbert_embedder"
    with pytest.raises(RuntimeMissingError, match="OpenVINO"):
        async with TextEmbedding(directory, cache_dir=tmp_path, workers=1, providers=["openvino"]):
            pass
    (graph,) = tmp_path.rglob("model.onnx")
    assert "If" not in {node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}
