"""Sparse models through the public class, with real workers."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed import SparseTextEmbedding as Reference

from asyncembed import SparseEmbedding, SparseTextEmbedding, WorkerPool
from asyncembed.errors import InputError, ModelLoadError, OptionError
from tests.support.graphs import write_text_graph
from tests.support.models import forget_registered_models
from tests.support.sparse_models import (
    BM25,
    BM42,
    IF_SPLADE,
    MINICOIL,
    SPLADE,
    TEXTS,
    write_bm25,
    write_bm42,
    write_if_splade,
    write_minicoil,
    write_splade,
)
from tests.support.stemmers import FirstLetters

ROOT = Path(__file__).parents[1]
REPOS = Path(__file__).parent / "data" / "sparse"
WRITERS = {
    BM25: write_bm25,
    BM42: write_bm42,
    MINICOIL: write_minicoil,
    SPLADE: write_splade,
    IF_SPLADE: write_if_splade,
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp("model")) for name, write in WRITERS.items()}


def assert_equal(found: SparseEmbedding, expected: Any) -> None:
    assert isinstance(found, SparseEmbedding)
    assert sorted(found.as_dict()) == sorted(expected.as_dict())
    order, wanted = found.indices.argsort(kind="stable"), expected.indices.argsort(kind="stable")
    np.testing.assert_allclose(found.values[order], expected.values[wanted], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
async def test_all_families_in_one_pool_give_the_vectors_of_fastembed(directories: dict[str, Path]) -> None:
    async with WorkerPool(workers=2) as pool:
        for name, directory in directories.items():
            theirs = Reference(name.upper(), specific_model_path=str(directory))
            async with SparseTextEmbedding(name.lower(), model_path=directory, pool=pool) as ours:
                documents = await ours.embed(TEXTS).collect()
                queries = [vector async for vector in ours.query_embed(TEXTS)]
                for found, expected in zip(documents, theirs.embed(list(TEXTS)), strict=True):
                    assert_equal(found, expected)
                for found, expected in zip(queries, theirs.query_embed(list(TEXTS)), strict=True):
                    assert_equal(found, expected)
                assert_equal(await ours.embed_query(TEXTS[0]), next(iter(theirs.query_embed(TEXTS[0]))))
                assert await ours.embed_documents(TEXTS[:2]) == documents[:2]
                assert await ours.passage_embed(TEXTS[0]).collect() == documents[:1]
                assert await ours.token_count(TEXTS) == theirs.token_count(list(TEXTS))
                assert await ours.token_count("one word") == theirs.token_count("one word")


@pytest.mark.slow
async def test_records_travel_with_their_vectors_in_batches(directories: dict[str, Path]) -> None:
    async def records() -> AsyncIterator[dict[str, Any]]:
        for position in range(25):
            yield {"id": position, "text": f"word number{position}"}

    sizes: list[int] = []
    ids: list[int] = []
    async with SparseTextEmbedding(BM25, model_path=directories[BM25], workers=0) as model:
        stream = model.embed(records(), key=lambda record: str(record["text"])).with_inputs()
        async for batch, vectors in stream.batches(10):
            sizes.append(len(vectors))
            ids += [record["id"] for record in batch]
            for record, vector in zip(batch, vectors, strict=True):
                assert vector == (await model.embed_documents([record["text"]]))[0]
    assert sizes == [10, 10, 5]
    assert ids == list(range(25))


@pytest.mark.slow
async def test_what_is_no_text_or_over_the_limit_gets_an_error_of_its_own(directories: dict[str, Path]) -> None:
    texts: list[Any] = ["word", 7, TEXTS[-1], "word"]
    async with SparseTextEmbedding(BM42, model_path=directories[BM42], workers=1, long="error") as model:
        results: list[Any] = await model.embed(texts, on_error="return").collect()
        assert [type(result) for result in results] == [SparseEmbedding, InputError, InputError, SparseEmbedding]
        assert "got int" in str(results[1])
        assert "limit of 64 tokens" in str(results[2])
        assert [error.index for error in results[1:3]] == [1, 2]
        assert len(await model.embed(texts, on_error="skip").collect()) == 2
        with pytest.raises(InputError, match="input 1: expected a str, got int"):
            await model.embed(texts).collect()
        with pytest.raises(InputError, match="got bytes"):
            await model.embed_query(b"word")  # type: ignore[call-overload]


async def test_bm25_with_stop_words_of_ones_own_needs_no_files() -> None:
    async with SparseTextEmbedding(BM25, stopwords=["The"], workers=0, local_files_only=True) as model:
        assert len((await model.embed_documents(["the cat"]))[0]) == 1
    async with SparseTextEmbedding(BM25, disable_stemmer=True, workers=0, local_files_only=True) as model:
        assert len((await model.embed_documents(["the cat cats"]))[0]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["splade", "splade_mlm", "router", "idf"])
async def test_weights_alone_give_the_vectors_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    texts: list[str] = json.loads((REPOS / "texts.json").read_text("utf-8"))
    expected = np.load(REPOS / f"{name}.npz")

    def assert_near(found: SparseEmbedding, wanted: Any) -> None:
        assert found.indices.tolist() == wanted.nonzero()[0].tolist()
        np.testing.assert_allclose(found.values, wanted[found.indices], atol=1e-5)

    async with SparseTextEmbedding(REPOS / name, cache_dir=tmp_path, workers=1) as model:
        for role, embed in (("documents", model.embed), ("queries", model.query_embed)):
            for found, wanted in zip(await embed(texts).collect(), expected[role], strict=True):
                assert_near(found, wanted)
            for text, wanted in zip(texts, expected[role], strict=True):
                (alone,) = await embed([text]).collect()
                assert_near(alone, wanted)
    async with SparseTextEmbedding(REPOS / name, cache_dir=tmp_path, workers=0, max_active_dims=3) as model:
        for found, wanted in zip(await model.embed_documents(texts), expected["three_words"], strict=True):
            assert_near(found, wanted)


@pytest.mark.slow
async def test_a_repo_with_a_table_for_queries_opens_as_it_is(tmp_path: Path) -> None:
    repo = shutil.copytree(REPOS / "router", tmp_path / "router")
    write_text_graph(repo / "document_0_Transformer" / "onnx" / "model.onnx", outputs=("logits",))
    async with SparseTextEmbedding(repo, workers=1) as model:
        (query,) = await model.query_embed(["the day of writing"]).collect()
        (document,) = await model.embed_documents(["the day of writing"])
        assert len(document) == 9  # as the repo says
        assert set(query.indices) > set((await model.embed_query("the day")).indices)
    async with SparseTextEmbedding(repo, workers=1, max_active_dims=2) as model:
        few = await model.embed_query("the day of writing")
        assert set(few.values) == set(sorted(query.values)[-2:])
        assert [len(vector) for vector in await model.embed_documents(TEXTS)] == [2] * len(TEXTS)
    async with SparseTextEmbedding(repo, workers=1, max_active_dims=500, pruning=0.5) as model:
        (pruned,) = await model.embed_documents(["the day of writing"])
        assert pruned.values.min() >= pruned.values.max() / 2


async def test_the_prompts_of_a_repo_are_put_before_texts(tmp_path: Path) -> None:
    repo = shutil.copytree(REPOS / "router", tmp_path / "router")
    write_text_graph(repo / "document_0_Transformer" / "onnx" / "model.onnx", outputs=("logits",))
    async with SparseTextEmbedding(repo, workers=0) as model:
        query = await model.embed_query("write the day")
        documents = await model.embed_documents(["a long day"])
        count = await model.token_count(["a long day"])
    prompts = {"prompts": {"query": "write ", "corpus": "a long "}}
    (repo / "config_sentence_transformers.json").write_text(json.dumps(prompts | {"max_active_dims": 9}), "utf-8")
    async with SparseTextEmbedding(repo, workers=0) as model:
        assert await model.embed_query("the day") == query
        assert await model.embed_documents(["day"]) == documents
        assert await model.token_count(["day"]) == count


@pytest.mark.slow
async def test_keywords_reach_the_workers(directories: dict[str, Path]) -> None:
    settings: dict[str, Any] = {"k": 0.9, "avg_len": 3, "language": "german", "stemmer": FirstLetters()}
    theirs = Reference(BM25, specific_model_path=str(directories[BM25]), **settings)
    async with SparseTextEmbedding(BM25, model_path=directories[BM25], workers=1, **settings) as model:
        for found, expected in zip(await model.embed(TEXTS).collect(), theirs.embed(list(TEXTS)), strict=True):
            assert_equal(found, expected)


@pytest.mark.slow
async def test_a_keyword_that_the_model_does_not_have_fails_the_opening(directories: dict[str, Path]) -> None:
    with pytest.raises(OptionError, match=r"no keyword 'alpha': it takes only k, b, avg_len"):
        async with SparseTextEmbedding(BM25, model_path=directories[BM25], alpha=0.5, workers=1):
            pass


def test_a_keyword_that_nobody_has_is_refused_at_once() -> None:
    with pytest.raises(OptionError, match="did you mean 'language'"):
        SparseTextEmbedding(BM25, langauge="german")  # type: ignore[call-arg]
    with pytest.raises(OptionError, match="not one string"):
        SparseTextEmbedding(BM25, stopwords="the")


@pytest.mark.slow
def test_neither_bm25_nor_queries_without_inference_load_a_runtime(directories: dict[str, Path]) -> None:
    """In a process of its own, whose thread is the worker: what it has loaded can be looked at from inside."""
    program = textwrap.dedent(
        """
        import sys, anyio
        from asyncembed import SparseTextEmbedding
        async def main():
            for name, directory in zip(sys.argv[1::2], sys.argv[2::2]):
                async with SparseTextEmbedding(name, model_path=directory, workers=0) as model:
                    assert len(await model.embed_query("some words to write"))
                    if name == "Qdrant/bm25":
                        assert len((await model.embed_documents(["some words to write"]))[0])
                    assert "onnxruntime" not in sys.modules, name
                    await model.embed_documents(["some words to write"])
        anyio.run(main)
        """
    )
    # The one that ends with documents on a graph comes last.
    arguments = [part for name in (BM25, IF_SPLADE) for part in (name, str(directories[name]))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment, capture_output=True, encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_stemmer_that_workers_could_not_import_is_refused() -> None:
    program = textwrap.dedent(
        """
        from asyncembed import SparseTextEmbedding
        class Own:
            def stem_word(self, word):
                return word
        SparseTextEmbedding("Qdrant/bm25", stemmer=Own(), workers=0)
        SparseTextEmbedding("Qdrant/bm25", stemmer=Own())
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60, check=False,
        capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert "OptionError: the class of stemmer=" in done.stderr
    assert "line 7" in done.stderr


@pytest.mark.slow
async def test_custom_splade_models_are_found_by_name(directories: dict[str, Path]) -> None:
    SparseTextEmbedding.add_custom_model("mine/splade", sources=directories[SPLADE])
    SparseTextEmbedding.add_custom_model("mine/free", sources=directories[IF_SPLADE], kind="inference_free_splade")
    try:
        with pytest.raises(OptionError, match="already"):
            SparseTextEmbedding.add_custom_model("MINE/Splade", sources=directories[SPLADE])
        with pytest.raises(OptionError, match="kind must be one of"):
            SparseTextEmbedding.add_custom_model("mine/other", sources="a/b", kind="bm25")  # type: ignore[arg-type]
        for name, original in (("Mine/SPLADE", SPLADE), ("mine/free", IF_SPLADE)):
            theirs = Reference(original, specific_model_path=str(directories[original]))
            async with SparseTextEmbedding(name, workers=0) as model:
                assert_equal((await model.embed_documents([TEXTS[3]]))[0], next(iter(theirs.embed(TEXTS[3]))))
                assert_equal(await model.embed_query(TEXTS[3]), next(iter(theirs.query_embed(TEXTS[3]))))
    finally:
        forget_registered_models()


@pytest.mark.slow
async def test_a_directory_with_a_masked_language_model_is_splade(directories: dict[str, Path]) -> None:
    theirs = Reference(SPLADE, specific_model_path=str(directories[SPLADE]))
    async with SparseTextEmbedding(directories[SPLADE], workers=0) as model:
        assert_equal(await model.embed_query(TEXTS[3]), next(iter(theirs.embed(TEXTS[3]))))


@pytest.mark.slow
async def test_a_missing_graph_is_named_by_the_first_document(directories: dict[str, Path], tmp_path: Path) -> None:
    write_bm42(tmp_path)
    graph = tmp_path / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:50])
    async with SparseTextEmbedding(BM42, model_path=tmp_path, workers=1) as model:
        assert len(await model.embed_query("a word"))
        with pytest.raises(ModelLoadError, match=r"model\.onnx"):
            await model.embed_documents(["a word"])
        assert len(await model.embed_query("a word"))


def test_the_catalogue_says_what_the_database_must_do() -> None:
    listed = {entry["model"]: entry for entry in SparseTextEmbedding.list_supported_models()}
    assert set(WRITERS) <= set(listed)
    for entry in Reference.list_supported_models():
        if entry["model"] in listed:
            ours = listed[entry["model"]]
            assert bool(ours["requires_idf"]) == bool(entry["requires_idf"])
            assert (ours["vocab_size"] or 0) == (entry["vocab_size"] or 0)
