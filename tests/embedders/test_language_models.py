"""Language models that embed and rerank, opened by name as any user would: see `reference_language_models.py`."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncembed import TextCrossEncoder, TextEmbedding
from asyncembed.errors import OptionError, UnsupportedModelError
from asyncembed.sync import TextCrossEncoder as SyncTextCrossEncoder
from tests.support.sparse_models import RERANKER, write_reranker

DATA = Path(__file__).parent / "data"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def reference(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((DATA / name / "reference.json").read_text("utf-8"))
    return values


@pytest.mark.parametrize("name", ["qwen3_embedding", "embedding_gemma"])
async def test_vectors_are_those_of_sentence_transformers(name: str, cache_dir: Path) -> None:
    """From bfloat16 weights, with the repo's prompts, pooling, linear layers and limit."""
    expected = reference(name)
    texts = expected["texts"]
    async with TextEmbedding(DATA / name, cache_dir=cache_dir, prompts=True, workers=0) as model:
        plain = await model.embed(texts).collect()
        queries = await model.query_embed(texts).collect()
        documents = await model.passage_embed(texts).collect()
        alone = await model.embed_query(texts[2])
    for found, kind in ((plain, "plain"), (queries, "query"), (documents, "document")):
        np.testing.assert_allclose(found, expected[kind], atol=1e-5, rtol=0)
    np.testing.assert_allclose(alone, expected["query"][2], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen3_reranker", {"template": "qwen3-reranker"}),
        ("mxbai_rerank", {"template": "mxbai-rerank-v2"}),
        ("logit_score", {}),
        ("templated_classifier", {}),
    ],
)
async def test_rerankers_rank_as_their_authors_do(name: str, options: dict[str, Any], cache_dir: Path) -> None:
    expected = reference(name)
    pairs = [tuple(pair) for pair in expected["pairs"]]
    instruction = expected["instruction"]
    directory = DATA / name
    options = {"max_length": expected["limit"], "workers": 0, "cache_dir": cache_dir, **options}
    async with TextCrossEncoder(directory, **options) as model:
        plain = await model.rerank_pairs(pairs).collect()
        instructed = await model.rerank_pairs(pairs, instruction=instruction).collect()
        query, documents = pairs[0][0], [document for _, document in pairs]
        ranked = await model.rank(query, documents, instruction=instruction)
        stream = await model.rerank(query, documents, instruction=instruction).collect()
    np.testing.assert_allclose(plain, expected["plain"], atol=2e-5, rtol=0)
    np.testing.assert_allclose(instructed, expected["instructed"], atol=2e-5, rtol=0)
    assert stream[0] == pytest.approx(expected["instructed"][0], abs=2e-5)
    order = np.argsort(-stream, kind="stable").tolist()
    assert [position for position, _ in ranked] == order


def test_a_program_without_a_loop_gives_an_instruction_too(cache_dir: Path) -> None:
    expected = reference("logit_score")
    with SyncTextCrossEncoder(DATA / "logit_score", workers=0, cache_dir=cache_dir) as model:
        query, document = expected["pairs"][0]
        ((_, score),) = model.rank(query, [document], instruction=expected["instruction"])
    assert score == pytest.approx(expected["instructed"][0], abs=2e-5)


async def test_the_repo_s_default_prompt_is_the_instruction(tmp_path: Path, cache_dir: Path) -> None:
    expected = reference("logit_score")
    directory = tmp_path / "repo"
    shutil.copytree(DATA / "logit_score", directory)
    said = {"prompts": {"contradiction": expected["instruction"]}, "default_prompt_name": "contradiction"}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(said), "utf-8")
    async with TextCrossEncoder(directory, workers=0, cache_dir=cache_dir) as model:
        scores = await model.rerank_pairs([tuple(pair) for pair in expected["pairs"]]).collect()
    np.testing.assert_allclose(scores, expected["instructed"], atol=2e-5, rtol=0)


async def test_a_language_model_without_a_template_for_pairs_is_refused(tmp_path: Path, cache_dir: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"has no chat template.*template=\"qwen3-reranker\""):
        async with TextCrossEncoder(DATA / "qwen3_reranker", workers=0, cache_dir=cache_dir):
            pass
    directory = tmp_path / "repo"
    shutil.copytree(DATA / "logit_score", directory)
    (directory / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}{% endfor %}", "utf-8")
    with pytest.raises(UnsupportedModelError, match=r"does not put a query and a document.*template="):
        async with TextCrossEncoder(directory, workers=0, cache_dir=cache_dir):
            pass


async def test_a_reranker_that_reads_a_pair_as_it_is_takes_no_instruction(tmp_path: Path) -> None:
    directory = write_reranker(tmp_path)
    async with TextCrossEncoder(RERANKER, model_path=directory, workers=0) as model:
        with pytest.raises(OptionError, match="takes no instruction; leave out instruction="):
            await model.rank("a", ["b"], instruction="find b")
        with pytest.raises(OptionError, match="instruction must be a text"):
            await model.rank("a", ["b"], instruction=3)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="is no language model that answers; leave out template="):
        async with TextCrossEncoder(RERANKER, model_path=directory, workers=0, template="qwen3-reranker"):
            pass
    with pytest.raises(OptionError, match="template must be"):
        TextCrossEncoder(RERANKER, template="chatml")  # type: ignore[arg-type]
