"""Chroma's own collections, in memory and on disk, with an embedding function that they keep."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings

from asyncembed import TextEmbedding, sync
from asyncembed.errors import InputError, OptionError
from asyncembed.integrations.chroma import AsyncembedEmbeddingFunction
from asyncembed.testing import Fakes, fake_model, fake_models
from tests.support import snippets

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


async def test_in_a_loops_thread_it_warns_once(fakes: Fakes) -> None:
    function = AsyncembedEmbeddingFunction(NAME)
    with pytest.warns(RuntimeWarning, match=r"await model.embed_documents\(...\)"):
        function(["cats"])
    function(["cats"])


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
