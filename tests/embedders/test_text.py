"""`TextEmbedding` as a user calls it: real workers, against fastembed on the same small directories."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import fastembed
import numpy as np
import pytest
from fastembed.common.model_description import ModelSource, PoolingType

from asyncembed import EmbeddingStream, TextEmbedding, WorkerPool
from asyncembed.catalogue.lookup import require_model
from asyncembed.errors import InputError, OptionError
from asyncembed.runtime.session import Array
from tests.encoders.test_dense import CATALOGUED, stacked
from tests.support.models import TEXTS, forget_registered_models, write_model

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
JINA = "jinaai/jina-embeddings-v3"
NOMIC = "nomic-ai/nomic-embed-text-v1.5"


@pytest.fixture
async def pool() -> AsyncGenerator[WorkerPool]:
    async with WorkerPool(workers=1) as pool:
        yield pool


def write_catalogued(directory: Path, name: str, **graph: Any) -> Path:
    """A directory with a small graph in the place of a catalogued model's."""
    spec = require_model(name, "text")
    assert spec.model_file is not None
    return write_model(directory, model_file=spec.model_file, dim=spec.dim, **graph)


def assert_close(ours: Array, theirs: Array, name: str) -> None:
    """Within 1e-5, or a few steps of float32 where components are large, as unnormalised ones may be."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=TOLERANCE, err_msg=name)


async def test_every_kind_of_catalogued_model_gives_fastembeds_numbers(pool: WorkerPool, tmp_path: Path) -> None:
    for name, graph in CATALOGUED.items():
        directory = write_catalogued(tmp_path / name, name, **graph)
        theirs = fastembed.TextEmbedding(name, specific_model_path=str(directory), cuda=False)
        async with TextEmbedding(name.upper(), model_path=directory, pool=pool) as model:
            for ours, expected in (
                (model.embed(TEXTS), theirs.embed(TEXTS)),
                (model.query_embed(TEXTS), theirs.query_embed(TEXTS)),
                (model.passage_embed(TEXTS), theirs.passage_embed(TEXTS)),
            ):
                assert_close(await ours.collect(), stacked(expected), name)
            alone = await model.embed_query(TEXTS[0])
            assert_close(alone, stacked(theirs.query_embed(TEXTS[0]))[0], name)
            assert await model.token_count(TEXTS) == theirs.token_count(list(TEXTS))
            assert model.embedding_size == theirs.embedding_size


async def test_queries_and_passages_have_tasks_of_their_own(pool: WorkerPool, tmp_path: Path) -> None:
    directory = write_catalogued(tmp_path, JINA, task_count=5)
    theirs = fastembed.TextEmbedding(JINA, specific_model_path=str(directory), task_id=4)
    async with TextEmbedding(JINA, model_path=directory, pool=pool, task="text-matching") as model:
        matching = await model.embed(TEXTS).collect()
        np.testing.assert_allclose(matching, stacked(theirs.embed(TEXTS)), atol=TOLERANCE)
        queries = await model.query_embed(TEXTS).collect()
        np.testing.assert_allclose(queries, stacked(theirs.query_embed(TEXTS)), atol=TOLERANCE)
        passages = await model.embed_documents(TEXTS)
        np.testing.assert_allclose(passages, stacked(theirs.passage_embed(TEXTS)), atol=TOLERANCE)
        # A call may still ask for another one, by name or number.
        np.testing.assert_array_equal(await model.embed_query(TEXTS[0], task="text-matching"), matching[0])
        np.testing.assert_array_equal(await model.embed_query(TEXTS[0], task=4), matching[0])
        with pytest.raises(OptionError, match="no task 'poetry'; it has 'retrieval.query'"):
            await model.embed_query("x", task="poetry")
        with pytest.raises(OptionError, match="task must be"):
            await model.embed_query("x", task=True)


async def test_a_task_for_a_model_without_tasks_is_told(pool: WorkerPool, tmp_path: Path) -> None:
    directory = write_model(tmp_path)
    async with TextEmbedding(directory, pool=pool, pooling="cls", normalize=True, task="poetry") as model:
        with pytest.raises(OptionError, match="has no tasks"):
            await model.embed_query("x")


async def test_prompts_are_off_on_or_ones_own(pool: WorkerPool, tmp_path: Path) -> None:
    directory = write_catalogued(tmp_path, NOMIC)

    def opened(**keywords: Any) -> TextEmbedding:
        return TextEmbedding(NOMIC, model_path=directory, pool=pool, **keywords)

    async with opened() as off, opened(prompts=True) as on, opened(prompts={"query": "find "}) as own:
        plain = await off.embed_query("the day")
        assert np.array_equal(await on.embed_query("the day"), await off.embed_query("search_query: the day"))
        assert np.array_equal(
            await on.embed_documents(["the day"]), await off.embed(["search_document: the day"]).collect()
        )
        assert np.array_equal(await on.embed_query("the day", prompt=""), plain)
        assert np.array_equal((await on.embed(["the day"]).collect())[0], plain)
        # Named, also where they are off; one's own take the place of all the model has.
        assert np.array_equal(
            await off.embed_query("the day", prompt_name="clustering"), await off.embed_query("clustering: the day")
        )
        assert np.array_equal(await own.embed_query("the day"), await off.embed_query("find the day"))
        assert np.array_equal((await own.embed_documents(["the day"]))[0], plain)
        with pytest.raises(OptionError, match="no prompt is called 'clustering'; known are: query"):
            own.embed(["the day"], prompt_name="clustering")
        with pytest.raises(OptionError, match="prompt must be a text"):
            await own.embed_query("the day", prompt=5)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("declared", "default", "query", "passage", "plain"),
    [
        ({"query": "find ", "document": ""}, "query", "find ", "", "find "),
        ({"query": "", "document": "the "}, "document", "", "the ", "the "),
        ({"query": "find "}, "query", "find ", "", "find "),
        ({"make": "make "}, "make", "", "", "make "),
        ({"query": "", "document": ""}, None, "", "", ""),
        ({"query": "find ", "passage": "the "}, None, "find ", "the ", ""),
        ({"corpus": "the "}, None, "", "the ", ""),
        ({"document": "", "passage": "the ", "corpus": "make "}, None, "", "", ""),
        ({"query": "find ", "embed": "make "}, None, "find ", "", ""),
    ],
)
@pytest.mark.parametrize("are_own", [False, True])
async def test_a_role_gets_its_own_prompt_the_empty_one_included_and_never_the_default_one(
    declared: dict[str, str], default: str | None, query: str, passage: str, plain: str, are_own: bool, tmp_path: Path
) -> None:
    """As `encode_query` and `encode_document` of sentence-transformers do; the default is for `encode`."""
    directory = as_sentence_transformers(write_model(tmp_path, dim=32))
    config = {
        "prompts": {default: "not this one "} if are_own and default else declared,
        "default_prompt_name": default,
    }
    (directory / "config_sentence_transformers.json").write_text(json.dumps(config), "utf-8")
    async with TextEmbedding(directory, workers=0, prompts=declared if are_own else None) as model:
        expected = {prompt: await model.embed_query("day", prompt=prompt) for prompt in (query, passage, plain)}
        assert np.array_equal(await model.embed_query("day"), expected[query])
        assert np.array_equal((await model.embed_documents(["day"]))[0], expected[passage])
        assert np.array_equal((await model.embed(["day"]).collect())[0], expected[plain])
        for name, prompt in declared.items():
            named = await model.embed_query("day", prompt_name=name)
            assert np.array_equal(named, await model.embed_query("day", prompt=prompt))


async def test_a_repo_that_keeps_some_components_is_heard_unless_the_caller_says_otherwise(tmp_path: Path) -> None:
    """As a model that was saved with `truncate_dim=` is by sentence-transformers."""
    directory = as_sentence_transformers(write_model(tmp_path, dim=32))
    (directory / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": 8}), "utf-8")
    async with TextEmbedding(directory, workers=0) as model:
        assert model.embedding_size == 8
        short = await model.embed(["day", "night"]).collect()
        whole = await model.embed(["day", "night"], truncate_dim=32).collect()
        assert whole.shape == (2, 32)
        expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
        np.testing.assert_allclose(short, expected, rtol=1e-5)
        assert (await model.embed_query("day")).shape == (8,)
    async with TextEmbedding(directory, workers=0, truncate_dim=16) as model:
        assert model.embedding_size == 16
        assert (await model.embed_documents(["day"])).shape == (1, 16)


def as_sentence_transformers(directory: Path) -> Path:
    kinds = {"Transformer": "", "Pooling": "1_Pooling"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds.items()]
    (directory / "modules.json").write_text(json.dumps(modules), "utf-8")
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}), "utf-8")
    return directory


async def test_wrong_input_is_told_which_and_why(pool: WorkerPool, tmp_path: Path) -> None:
    directory = write_model(tmp_path, dim=32)
    async with TextEmbedding(directory, pool=pool, pooling="mean", normalize=True) as model:
        for wrong, why in (
            (None, "expected a str, got NoneType"),
            (b"bytes", "expected a str, got bytes; decode it first"),
            ("lone \udc00", r"lone surrogate \(U\+DC00\) at character 5"),
        ):
            with pytest.raises(InputError, match=f"^input 1: .*{why}") as caught:
                await model.embed(["fine", wrong, "fine"]).collect()  # type: ignore[list-item]
            assert caught.value.index == 1
            with pytest.raises(InputError, match=f"^(?!input).*{why}") as caught:
                await model.embed_query(wrong)  # type: ignore[arg-type]
            assert caught.value.index is None
        with pytest.raises(InputError, match="^input 1: longer than the model's limit of 64 tokens"):
            await model.embed(["fine", "the " * 100], long="error").collect()
        whole = await model.embed(["fine", "the " * 100 + "day " * 300], long="mean").with_tokens().collect()
        assert whole.tokens.tolist()[1] == 400 + 2 * 7
        assert not whole.is_cut.any()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.timeout(60)  # texts of 10 MB
async def test_what_is_odd_but_a_text_has_a_vector(tmp_path: Path) -> None:
    directory = write_model(tmp_path, dim=32)
    async with TextEmbedding(directory, workers=1, pooling="mean", normalize=True) as model:
        vectors = await model.embed(["", "nul\0in it", "x" * 10_000_000, "the " * 2_500_000]).collect()
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (None, "iterable"),
        (5, "iterable"),
        (b"bytes", "decode it first"),
        ({"text": "a record"}, "is a dict"),
    ],
)
async def test_a_source_that_can_only_be_a_mistake_is_refused(
    source: Any, why: str, pool: WorkerPool, tmp_path: Path
) -> None:
    directory = write_model(tmp_path, dim=32)
    async with TextEmbedding(directory, pool=pool, pooling="mean", normalize=True) as model:
        for ask in (model.embed, model.query_embed, model.embed_documents, model.token_count):
            with pytest.raises(InputError, match=why):
                found = ask(source)
                await (found.collect() if isinstance(found, EmbeddingStream) else found)


@pytest.mark.parametrize(
    ("keywords", "dim", "dtype"),
    [
        ({}, 32, "float32"),
        ({"dtype": "float16", "truncate_dim": 12}, 12, "float16"),
        ({"output": "binary", "truncate_dim": 12}, 2, "int8"),
        ({"output": "int8", "int8_ranges": np.stack([-np.ones(32), np.ones(32)])}, 32, "int8"),
    ],
)
async def test_nothing_collects_to_no_rows_of_the_right_kind(
    keywords: Any, dim: int, dtype: str, pool: WorkerPool, tmp_path: Path
) -> None:
    """So that it can be stacked with other vectors, and multiplied with a query."""
    directory = write_model(tmp_path, dim=32)
    async with TextEmbedding(directory, pool=pool, pooling="mean", normalize=True, **keywords) as model:
        none, some = await model.embed(iter(())).collect(), await model.embed_documents(["the day"])
        assert (*none.shape, none.dtype.name) == (0, dim, dtype)
        assert (*some.shape, some.dtype.name) == (1, dim, dtype)


async def test_a_custom_model_may_be_described_with_fastembeds_own_objects(pool: WorkerPool, tmp_path: Path) -> None:
    directory = write_model(tmp_path, dim=32, outputs=("last_hidden_state", "sentence_embedding"))
    try:
        for pooling, output in ((PoolingType.CLS, None), (PoolingType.DISABLED, "sentence_embedding")):
            name = f"tests/{pooling.value}"
            TextEmbedding.add_custom_model(
                name, pooling, True, ModelSource(hf="tests/custom", url="https://tests/custom.tar.gz"), 32,
                model_file="onnx/model.onnx", additional_files=["tokenizer.json"], output_name=output,
            )  # fmt: skip
            async with (
                TextEmbedding(name.upper(), model_path=directory, pool=pool) as model,
                TextEmbedding(
                    directory, pool=pool, pooling="cls" if output is None else "mean", normalize=True
                ) as same,
            ):
                np.testing.assert_allclose(
                    await model.embed(TEXTS).collect(), await same.embed(TEXTS).collect(), atol=TOLERANCE
                )
            listed = next(entry for entry in TextEmbedding.list_supported_models() if entry["model"] == name)
            assert listed["sources"] == {"hf": "tests/custom", "url": "https://tests/custom.tar.gz"}
        with pytest.raises(OptionError, match="pooling must be one of"):
            TextEmbedding.add_custom_model("tests/x", "average", True, "tests/custom", 32)
        with pytest.raises(OptionError, match="dim must be"):
            TextEmbedding.add_custom_model("tests/x", "mean", True, "tests/custom", 0)
    finally:
        forget_registered_models()
