"""LanceDB's own tables, synchronous and asynchronous, with a function of its registry."""

import json
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.embeddings import EmbeddingFunctionConfig, get_registry
from PIL import Image

from asyncembed import TextEmbedding, sync
from asyncembed.errors import InputError, OptionError
from asyncembed.integrations.lancedb import AsyncembedFunction, AsyncembedImageFunction
from asyncembed.testing import Fakes, fake_models
from tests.support import snippets
from tests.support.images import picture
from tests.support.turns import loop_goes_on_during

pytestmark = pytest.mark.slow  # the framework takes seconds to import

NAME = "BAAI/bge-small-en-v1.5"
TEXTS = ["how cats sleep", "a full queue makes its writer wait", "the way home"]


@pytest.fixture
def fakes() -> Iterator[Fakes]:
    with fake_models() as switched_on:
        yield switched_on


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """LanceDB's asynchronous tables know asyncio only."""
    return "asyncio"


def described(**keywords: Any) -> tuple[pa.Schema, list[Any]]:
    """A schema, and what fills its vectors."""
    function = get_registry().get("asyncembed").create(model=NAME, **keywords)
    schema = pa.schema([("text", pa.string()), ("vector", pa.list_(pa.float32(), function.ndims()))])
    return schema, [EmbeddingFunctionConfig(source_column="text", vector_column="vector", function=function)]


def made(folder: Path, **keywords: Any) -> Any:
    schema, functions = described(**keywords)
    return lancedb.connect(folder).create_table("texts", schema=schema, embedding_functions=functions)


def test_a_table_is_searched_by_meaning(fakes: Fakes, tmp_path: Path) -> None:
    table = made(tmp_path)
    table.add(pa.table({"text": TEXTS}))
    assert table.search("cats sleep").limit(1).to_list()[0]["text"] == TEXTS[0]
    kept = np.stack(table.to_arrow()["vector"].to_pylist())
    with sync.TextEmbedding(NAME) as model:
        assert np.allclose(kept, model.embed_documents(TEXTS))


def test_a_table_that_is_opened_again_has_its_function_with_its_parameters_only(fakes: Fakes, tmp_path: Path) -> None:
    made(tmp_path, prompts={"query": "find: "}, keep_alive=60.0)
    again = lancedb.connect(tmp_path).open_table("texts")
    (kept,) = json.loads(again.schema.metadata[b"embedding_functions"])
    assert kept["name"] == "asyncembed"
    assert kept["model"] == {"model": NAME, "prompts": {"query": "find: "}, "keep_alive": 60.0}
    again.add([{"text": text} for text in TEXTS])
    assert again.search("cats sleep").limit(1).to_list()[0]["text"] == TEXTS[0]


async def test_an_asynchronous_table_calls_it_beside_the_loop(fakes: Fakes, tmp_path: Path) -> None:
    schema, functions = described()
    connection = await lancedb.connect_async(tmp_path)
    table = await connection.create_table("texts", schema=schema, embedding_functions=functions)
    await table.add([{"text": text} for text in TEXTS])
    found = await (await table.search("cats sleep")).limit(1).to_list()
    assert found[0]["text"] == TEXTS[0]


async def test_the_loop_goes_on_while_an_asynchronous_table_is_filled_and_searched(
    fakes: Fakes, tmp_path: Path
) -> None:
    schema, functions = described()
    connection = await lancedb.connect_async(tmp_path)
    table = await connection.create_table("texts", schema=schema, embedding_functions=functions)

    async def search() -> list[dict[str, Any]]:
        return await (await table.search("cats sleep")).limit(1).to_list()

    await loop_goes_on_during(lambda: table.add([{"text": text} for text in TEXTS]), fakes)
    (found,) = await loop_goes_on_during(search, fakes)
    assert found["text"] == TEXTS[0]


def test_queries_have_the_prompt_of_queries(fakes: Fakes) -> None:
    prompts = {"query": "find: ", "passage": "kept: "}
    function = AsyncembedFunction.create(model=NAME, prompts=prompts)
    with sync.TextEmbedding(NAME, prompts=prompts) as model:
        assert np.allclose(function.compute_query_embeddings("cats"), [model.embed_query("cats")])
        assert np.allclose(function.compute_source_embeddings(["cats"]), model.embed_documents(["cats"]))
    assert not np.allclose(function.compute_query_embeddings("cats"), function.compute_source_embeddings(["cats"]))


@pytest.mark.parametrize("form", [list, np.array, pa.array, lambda texts: pa.chunked_array([texts[:1], texts[1:]])])
def test_texts_come_as_lists_or_arrays_and_those_that_are_none_have_no_vector(fakes: Fakes, form: Any) -> None:
    function = AsyncembedFunction.create(model=NAME)
    rows = function.compute_source_embeddings(form(["a", None, "b"]))
    assert [None if row is None else row.shape for row in rows] == [(384,), None, (384,)]


@pytest.mark.parametrize("form", [list, np.array, pa.array])
def test_a_text_that_fails_has_the_number_of_its_row(form: Any, fakes: Fakes) -> None:
    fakes.failures["rotten"] = InputError("refused")
    with pytest.raises(InputError, match="input 3: refused"):
        AsyncembedFunction.create(model=NAME).compute_source_embeddings(form([None, "a", None, "rotten"]))


def test_a_bare_text_is_one_text_and_what_holds_no_texts_is_refused(fakes: Fakes) -> None:
    function = AsyncembedFunction.create(model=NAME)
    for call in (function.compute_source_embeddings, function.generate_embeddings):
        assert len(call("abc")) == 1
        assert len(call(text for text in "abc")) == 3
        with pytest.raises(InputError, match="dict"):
            call({"a": 1})


def test_a_permanent_error_comes_at_once_and_as_it_is(fakes: Fakes, tmp_path: Path) -> None:
    fakes.failures["cats"] = InputError("refused")
    function = AsyncembedFunction.create(model=NAME)
    assert function.max_retries == 0
    with pytest.raises(InputError, match="input 0: refused"):
        function.compute_source_embeddings_with_retry(TEXTS)
    with pytest.raises(ValueError, match="workers"):
        AsyncembedFunction.create(model=NAME, workers=-1)
    with pytest.raises(ValueError, match="model"):
        AsyncembedFunction.create(model=TextEmbedding(NAME))


def test_many_threads_share_one_engine(fakes: Fakes) -> None:
    function = AsyncembedFunction.create(model=NAME)
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(function.compute_query_embeddings("cats")[0])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(np.array_equal(one, found[0]) for one in found)


async def test_in_a_loops_thread_it_warns_once(fakes: Fakes) -> None:
    function = AsyncembedFunction.create(model=NAME)
    with pytest.warns(RuntimeWarning, match="blocks the event loop"):
        function.compute_query_embeddings("cats")
    function.compute_query_embeddings("cats")


def test_functions_are_equal_where_their_parameters_are() -> None:
    assert AsyncembedFunction.create(model=NAME, threads=1) == AsyncembedFunction.create(model=NAME, threads=1)
    assert AsyncembedFunction.create(model=NAME, threads=1) != AsyncembedFunction.create(model=NAME, threads=2)
    assert len({AsyncembedFunction.create(model=NAME), AsyncembedFunction.create(model=NAME)}) == 1


def test_the_snippet_of_the_readme_is_a_function_of_lancedbs(fakes: Fakes) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert eval(snippets.of_integration(readme, "lancedb"), globals()).ndims() == 384


# ---------------------------------------------------------------- images


def pictures(folder: Path) -> list[Path]:
    """Three files."""
    paths = [folder / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        picture(20, 30, seed=number).save(path)
    return paths


def gallery(folder: Path, column: pa.DataType, **keywords: Any) -> Any:
    function = get_registry().get("asyncembed-image").create(**keywords)
    schema = pa.schema([("image", column), ("vector", pa.list_(pa.float32(), function.ndims()))])
    config = EmbeddingFunctionConfig(source_column="image", vector_column="vector", function=function)
    return lancedb.connect(folder).create_table("images", schema=schema, embedding_functions=[config])


def test_a_table_of_image_files_is_searched_by_an_image(fakes: Fakes, tmp_path: Path) -> None:
    paths = pictures(tmp_path)
    gallery(tmp_path / "tables", pa.binary()).add([{"image": path.read_bytes()} for path in paths])
    again = lancedb.connect(tmp_path / "tables").open_table("images")
    with Image.open(paths[1]) as query:
        found = again.search(query).limit(1).to_list()
    assert found[0]["image"] == paths[1].read_bytes()
    again.add([{"image": None}], on_bad_vectors="null")
    assert again.to_arrow()["vector"].to_pylist()[-1] is None


def test_images_come_as_bytes_paths_or_uris(fakes: Fakes, tmp_path: Path) -> None:
    path = pictures(tmp_path)[0]
    function = AsyncembedImageFunction.create(workers=0)
    with sync.ImageEmbedding(function.model) as model:
        wanted = model.embed_image(path)
    locations = [str(path), path.as_uri(), None]
    for form in ([path.read_bytes(), None], locations, pa.array(locations), pa.chunked_array([locations])):
        rows = function.compute_source_embeddings(form)
        assert rows.pop() is None
        assert all(np.array_equal(row, wanted) for row in rows)
    for alone in (path.read_bytes(), str(path), path.as_uri()):
        np.testing.assert_array_equal(function.compute_source_embeddings(alone), [wanted])
    with Image.open(path) as image:
        for query in (path, path.read_bytes(), image, np.asarray(image)):
            assert function.compute_query_embeddings(query)[0].shape == (512,)


def test_a_text_finds_images_by_a_model_of_the_same_space(fakes: Fakes, tmp_path: Path) -> None:
    name = "Qdrant/clip-ViT-B-32-text"
    table = gallery(tmp_path / "tables", pa.string(), text_model=name, keep_alive=60.0)
    table.add([{"image": str(path)} for path in pictures(tmp_path)])
    (kept,) = json.loads(table.schema.metadata[b"embedding_functions"])
    assert kept["model"] == {"text_model": name, "keep_alive": 60.0}
    assert len(table.search("a cat").limit(2).to_list()) == 2
    function = AsyncembedImageFunction.create(text_model=name)
    with sync.TextEmbedding(name) as model:
        np.testing.assert_array_equal(function.compute_query_embeddings("a cat")[0], model.embed_query("a cat"))
    with pytest.raises(OptionError, match="text_model="):
        AsyncembedImageFunction.create().compute_query_embeddings_with_retry("a cat")


def test_a_broken_image_is_an_error_of_ours_at_once(fakes: Fakes) -> None:
    with pytest.raises(InputError, match="input 2"):
        AsyncembedImageFunction.create(workers=0).compute_source_embeddings_with_retry([png(), None, b"no image"])
    with pytest.raises(ValueError, match="workers"):
        AsyncembedImageFunction.create(workers=-1)


def png() -> bytes:
    file = BytesIO()
    picture(20, 30, seed=1).save(file, "png")
    return file.getvalue()
