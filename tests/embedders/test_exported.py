"""Models whose graphs are built from their weights, beside what sentence-transformers gives for the same directory.

Which script made a directory's `reference.npz` stands in `tests/export/make_reference.py`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from asyncembed import SparseTextEmbedding, TextCrossEncoder, TextEmbedding
from asyncembed.catalogue.cpu import BFLOAT16, features
from asyncembed.errors import OptionError, RuntimeMissingError, UnsupportedModelError
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


@pytest.mark.parametrize(
    ("file", "said", "is_logit"),
    [
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.modules.activation.Sigmoid"}, False),
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.modules.linear.Identity"}, True),
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, True),
        ("config.json", {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, True),
        ("config.json", {}, False),
    ],
)
async def test_auto_is_the_activation_that_the_repo_names_or_that_of_sentence_transformers(
    file: str, said: dict[str, Any], is_logit: bool, tmp_path: Path
) -> None:
    directory = reranker_that_says(tmp_path, file, said)
    logits = np.load(directory / "reference.npz")["scores"]
    async with TextCrossEncoder(directory, cache_dir=tmp_path / "cache", workers=0, activation="auto") as model:
        scores = await model.rerank(bert_family.QUERY, bert_family.TEXTS).collect()
    np.testing.assert_allclose(scores, logits if is_logit else 1 / (1 + np.exp(-logits)), rtol=0, atol=2e-6)


async def test_auto_says_so_where_the_repo_names_what_is_not_computed(tmp_path: Path) -> None:
    said = {"activation_fn": "torch.nn.modules.activation.Softplus"}
    directory = reranker_that_says(tmp_path, "config_sentence_transformers.json", said)
    async with TextCrossEncoder(directory, cache_dir=tmp_path / "cache", workers=0) as model:
        assert len(await model.rerank(bert_family.QUERY, bert_family.TEXTS).collect()) == len(bert_family.TEXTS)
        with pytest.raises(UnsupportedModelError, match="Softplus"):
            await model.rerank(bert_family.QUERY, bert_family.TEXTS, activation="auto").collect()


async def test_the_default_prompt_of_a_reranker_s_repo_is_put_before_the_query(tmp_path: Path) -> None:
    """As sentence-transformers does, before the first text of a pair."""
    said = {"prompts": {"web": "search the web: "}, "default_prompt_name": "web"}
    directory = reranker_that_says(tmp_path, "config_sentence_transformers.json", said)
    documents, query = bert_family.TEXTS, bert_family.QUERY
    async with TextCrossEncoder(directory, cache_dir=tmp_path / "cache", workers=0) as model:
        prompted = await model.rerank(query, documents).collect()
        counted = await model.token_count([(query, "day")], truncated=False)
    (directory / "config_sentence_transformers.json").write_text("{}", "utf-8")
    async with TextCrossEncoder(directory, cache_dir=tmp_path / "cache", workers=0) as model:
        np.testing.assert_array_equal(prompted, await model.rerank(f"search the web: {query}", documents).collect())
        assert counted == await model.token_count([(f"search the web: {query}", "day")], truncated=False)
        assert not np.allclose(prompted, await model.rerank(query, documents).collect())


def reranker_that_says(tmp_path: Path, file: str, said: dict[str, Any]) -> Path:
    """A copy of a reranker's repo in which only this `file` says something of an activation."""
    directory = tmp_path / "reranker"
    shutil.copytree(REPOS / "bert_reranker", directory)
    (directory / "config_sentence_transformers.json").unlink()
    path = directory / file
    config = json.loads(path.read_bytes()) if path.exists() else {}
    path.write_text(json.dumps(config | said), "utf-8")
    return directory


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


async def test_openvino_computes_the_same(tmp_path: Path) -> None:
    directory = REPOS / "modernbert_embedder"
    expected = np.load(directory / "reference.npz")["vectors"]
    async with TextEmbedding(directory, cache_dir=tmp_path, workers=1, runtime="openvino") as model:
        np.testing.assert_allclose(await model.embed(TEXTS).collect(), expected, rtol=0, atol=1e-5)
        assert "OpenVINO CPU" in repr(model)


async def test_bfloat16_is_near_or_refused(tmp_path: Path) -> None:
    directory = REPOS / "modernbert_embedder"
    expected = np.load(directory / "reference.npz")["vectors"]
    model = TextEmbedding(directory, cache_dir=tmp_path, workers=1, runtime="openvino", precision="bf16")
    if BFLOAT16.isdisjoint(features()):
        with pytest.raises(OptionError, match="bfloat16 in hardware"):
            await model.open()
        return
    async with model:
        vectors = await model.embed(TEXTS).collect()
        assert "OpenVINO CPU in bfloat16" in repr(model)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((vectors * expected).sum(axis=1) / lengths).min() > 0.999
