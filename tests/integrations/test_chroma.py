"""Chroma's own collections, in memory and on disk, with an embedding function that they keep."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings

from asyncembed import SparseTextEmbedding, TextEmbedding, sync
from asyncembed.errors import InputError, OptionError, UsageError
from asyncembed.integrations.chroma import AsyncembedEmbeddingFunction, AsyncembedSparseFunction
from asyncembed.testing import Fakes, fake_model, fake_models
from tests.support import snippets
from tests.support.turns import loop_goes_on_during

pytestmark = pytest.mark.slow  # the framework takes seconds to import

NAME = "BAAI/bge-small-en-v1.5"
TEXTS = ["how cats sleep", "a full queue makes its writer wait", "the way home"]


@pytest.fixture
def fakes() -> Iterator[Fakes]:
    with fake_models() as switched_on:
        yield switched_on


def client_of(folder: Path) -> Any:
    return chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False))


def add(collection: Any) -> None:
    collection.add(ids=[str(number) for number in range(len(TEXTS))], documents=TEXTS)


def search(collection: Any) -> Any:
    return collection.query(query_texts=["cats sleep"], n_results=1)


def test_a_collection_is_searched_by_meaning(fakes: Fakes, tmp_path: Path) -> None:
    collection = client_of(tmp_path).create_collection("texts", embedding_function=AsyncembedEmbeddingFunction(NAME))
    add(collection)
    assert collection.query(query_texts=["cats sleep", "a writer's queue"], n_results=1)["ids"] == [["0"], ["1"]]
    kept = collection.get(ids=["2"], include=["embeddings"])["embeddings"]
    with sync.TextEmbedding(NAME) as model:
        assert np.allclose(kept, model.embed_documents(TEXTS[2:]))
    assert collection.configuration["hnsw"]["space"] == "cosine"


def test_a_collection_keeps_the_function_and_gives_it_back(fakes: Fakes, tmp_path: Path) -> None:
    function = AsyncembedEmbeddingFunction(NAME, prompts={"query": "find: "}, keep_alive=60.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client_of(tmp_path).create_collection("texts", embedding_function=function)
        again = client_of(tmp_path).get_collection("texts")
    add(again)
    assert again.query(query_texts="cats sleep", n_results=1)["ids"] == [["0"]]
    kept = again.configuration["embedding_function"]
    assert kept.get_config() == {"model": NAME, "prompts": {"query": "find: "}, "keep_alive": 60.0}


def test_queries_have_the_prompt_of_queries(fakes: Fakes) -> None:
    function = AsyncembedEmbeddingFunction(NAME, prompts={"query": "find: ", "passage": "kept: "})
    with sync.TextEmbedding(NAME, prompts={"query": "find: ", "passage": "kept: "}) as model:
        assert np.allclose(function.embed_query(["cats"]), [model.embed_query("cats")])
        assert np.allclose(function(["cats"]), model.embed_documents(["cats"]))
    assert not np.allclose(function(["cats"]), function.embed_query(["cats"]))


async def test_an_open_model_serves_from_other_threads_and_is_not_kept(anyio_backend: str) -> None:
    from anyio import to_thread

    async with TextEmbedding(fake_model(dim=8)) as model:
        function = AsyncembedEmbeddingFunction(model)
        (vector,) = await to_thread.run_sync(function, ["cats"])
        assert np.allclose(vector, await model.embed_query("cats"))
        assert function.is_legacy()


async def test_the_loop_goes_on_while_a_thread_fills_and_searches_a_collection(tmp_path: Path) -> None:
    from anyio import to_thread

    slow = Fakes(dim=8)
    async with TextEmbedding(fake_model(fakes=slow)) as model:
        client = client_of(tmp_path)
        collection = client.create_collection("texts", embedding_function=AsyncembedEmbeddingFunction(model))
        await loop_goes_on_during(lambda: to_thread.run_sync(add, collection), slow)
        found = await loop_goes_on_during(lambda: to_thread.run_sync(search, collection), slow)
        assert found["ids"] == [["0"]]


async def test_on_the_loop_of_an_open_model_it_is_refused_and_never_waits() -> None:
    async with TextEmbedding(fake_model(dim=8)) as model:
        with pytest.raises(UsageError, match=r"await model.embed_documents\(...\)"):
            AsyncembedEmbeddingFunction(model)(["cats"])


async def test_in_a_loops_thread_it_warns_once(fakes: Fakes) -> None:
    function = AsyncembedEmbeddingFunction(NAME)
    with pytest.warns(RuntimeWarning, match=r"await model.embed_documents\(...\)"):
        function(["cats"])
    function(["cats"])


def test_a_text_by_itself_is_one_text(fakes: Fakes) -> None:
    function = AsyncembedEmbeddingFunction(fake_model(dim=4))
    sparse = AsyncembedSparseFunction(fake_model("sparse"))
    text: Any = "a few words"
    wrong: Any = {"a": "b"}
    for call in (function, function.embed_query, sparse, sparse.embed_query):
        assert len(call(text)) == 1
        with pytest.raises(InputError, match="the source is a dict"):
            call(wrong)


def test_what_cannot_be_embedded_is_an_error_of_ours(fakes: Fakes, tmp_path: Path) -> None:
    fakes.failures["cats"] = InputError("refused")
    collection = client_of(tmp_path).create_collection("texts", embedding_function=AsyncembedEmbeddingFunction(NAME))
    with pytest.raises(ValueError, match="input 0: refused"):
        add(collection)
    with pytest.raises(OptionError):
        AsyncembedEmbeddingFunction(NAME, workers=-1)


async def test_vectors_of_a_programs_own_go_into_a_collection_without_blocking(fakes: Fakes, tmp_path: Path) -> None:
    """What the module recommends to programs with a loop."""
    async with TextEmbedding(NAME) as model:
        collection = client_of(tmp_path).create_collection("texts", embedding_function=None)
        collection.add(ids=["a", "b", "c"], documents=TEXTS, embeddings=list(await model.embed_documents(TEXTS)))
        found = collection.query(query_embeddings=[await model.embed_query("cats sleep")], n_results=1)
        assert found["ids"] == [["a"]]


def test_the_snippet_of_the_readme_is_a_function_that_chroma_keeps(fakes: Fakes) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    function: AsyncembedEmbeddingFunction = eval(snippets.of_integration(readme, "chroma"), globals())
    assert not function.is_legacy()
    assert function(["one"])[0].shape == (384,)


# ---------------------------------------------------------------- sparse

SPARSE = "prithivida/Splade_PP_en_v1"


def schema_of(function: AsyncembedSparseFunction) -> Any:
    config = chromadb.SparseVectorIndexConfig(embedding_function=function, source_key="#document")
    return chromadb.Schema().create_index(config, key="terms")


def test_sparse_vectors_are_those_of_the_model_in_ascending_order(fakes: Fakes) -> None:
    function = AsyncembedSparseFunction(SPARSE)
    with sync.SparseTextEmbedding(SPARSE) as model:
        pairs = [
            (function(TEXTS), model.embed_documents(TEXTS)),
            (function.embed_query(TEXTS), model.query_embed(TEXTS)),
        ]
        for found, wanted in pairs:
            for one, other in zip(found, wanted, strict=True):
                assert one.indices == sorted(other.indices.tolist())
                assert dict(zip(one.indices, one.values, strict=True)) == dict(
                    zip(other.indices.tolist(), other.values.tolist(), strict=True)
                )


def test_a_schema_keeps_the_sparse_function_and_gives_it_back(fakes: Fakes) -> None:
    function = AsyncembedSparseFunction(SPARSE, keep_alive=60.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = chromadb.Schema.deserialize_from_json(schema_of(function).serialize_to_json())
    terms: Any = again.keys["terms"].sparse_vector
    kept = terms.sparse_vector_index.config.embedding_function
    assert isinstance(kept, AsyncembedSparseFunction)
    assert kept.get_config() == {"model": SPARSE, "keep_alive": 60.0}
    assert kept(TEXTS[:1]) == function(TEXTS[:1])
    with pytest.raises(UsageError, match="name"):
        AsyncembedSparseFunction(fake_model("sparse")).get_config()


async def test_a_sparse_function_never_blocks_the_loop_for_a_thread() -> None:
    from anyio import to_thread

    slow = Fakes()
    async with SparseTextEmbedding(fake_model("sparse", fakes=slow)) as model:
        function = AsyncembedSparseFunction(model)
        (vector,) = await loop_goes_on_during(lambda: to_thread.run_sync(function, ["cats sleep"]), slow)
        assert len(vector.indices) == 2
        with pytest.raises(UsageError, match=r"await model.embed_query\(...\)"):
            function.embed_query(["cats"])
