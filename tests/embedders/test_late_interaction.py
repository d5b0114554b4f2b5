"""Late interaction end to end, through real workers."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed import LateInteractionTextEmbedding as ReferenceEmbedding

from asyncembed import LateInteractionTextEmbedding, Muvera, maxsim, maxsim_scores
from asyncembed.catalogue.pipeline import spec_from_directory
from asyncembed.errors import InputError, OptionError, UnsupportedModelError
from tests.support.graphs import write_text_graph
from tests.support.late_interaction import write_late_interaction_model
from tests.support.models import TEXTS, forget_registered_models

pytestmark = pytest.mark.slow

NAME = "colbert-ir/colbertv2.0"


@pytest.mark.slow
async def test_documents_and_queries_equal_the_reference(tmp_path: Path) -> None:
    spec = write_late_interaction_model(tmp_path, NAME)
    reference = ReferenceEmbedding(NAME, specific_model_path=str(tmp_path))
    async with LateInteractionTextEmbedding(spec, workers=2, max_batch_tokens=200) as model:
        documents = await model.embed(TEXTS).collect()
        queries = await model.query_embed(TEXTS).collect()
        for results, expected in ((documents, reference.embed(TEXTS)), (queries, reference.query_embed(TEXTS))):
            for result, right in zip(results, expected, strict=True):
                assert result.dtype == np.float32
                np.testing.assert_allclose(result, right, atol=2e-6)
        np.testing.assert_allclose(await model.embed_query(TEXTS[0]), queries[0], atol=2e-6)
        few = await model.embed_documents(TEXTS[:2])
        np.testing.assert_allclose(few[1], documents[1], atol=2e-6)
        assert [len(batch) async for batch in model.passage_embed(TEXTS).batches(4)] == [4, 3]
        for is_doc in (True, False):
            for extended in (True, False):
                expected_count = reference.token_count(TEXTS, is_doc=is_doc, include_extension=extended)
                assert await model.token_count(TEXTS, is_doc=is_doc, include_extension=extended) == expected_count
        scores = maxsim_scores(queries[3], documents)
        assert scores[3] == pytest.approx(maxsim(queries[3], documents[3]), rel=1e-5)
        muvera = Muvera.from_multivector_model(model, dim_proj=4)
        assert muvera.process_document(documents[0]).shape == (muvera.embedding_size,)


async def test_results_keep_nothing_of_their_batch_alive(tmp_path: Path) -> None:
    spec = write_late_interaction_model(tmp_path, NAME)
    async with LateInteractionTextEmbedding(spec, workers=0, dtype="float16") as model:
        (matrix,) = await model.embed("the way").collect()
        assert matrix.base is None
        assert matrix.dtype == np.float16
        async for matrix in model.embed(TEXTS):
            assert matrix.base is None


async def test_a_wrong_input_is_skipped(tmp_path: Path) -> None:
    spec = write_late_interaction_model(tmp_path, NAME)
    async with LateInteractionTextEmbedding(spec, workers=0, long="error") as model:
        long = "the " * 500
        inputs: list[Any] = ["the", 3, long, "way"]
        assert len(await model.embed(inputs, on_error="skip").collect()) == 2
        with pytest.raises(InputError) as caught:
            await model.embed(["the", long]).collect()
        assert caught.value.index == 1


def test_sizes_and_options() -> None:
    assert LateInteractionTextEmbedding.get_embedding_size(NAME.upper()) == 128
    assert LateInteractionTextEmbedding(NAME).embedding_size == 128
    assert len(LateInteractionTextEmbedding.list_supported_models()) == 8
    with pytest.raises(OptionError, match="long"):
        LateInteractionTextEmbedding(NAME, truncated=True)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="dtype"):
        LateInteractionTextEmbedding(NAME, dtype="int8")  # type: ignore[call-overload]


# ---------------------------------------------------------------- repos that say themselves how they are computed


REPOS = Path(__file__).parent / "data" / "multi_vector"
REPO_TEXTS: list[str] = json.loads((REPOS / "texts.json").read_bytes())


KNOWN_WORDS = ["how can you make it long", "", "the day, (a long day)!"]
"""What PyLate takes every unknown token for, a skipped one, is its own."""


def kept(name: str, kind: str) -> list[Any]:
    """What the tool that saved a repo gives for each text."""
    arrays = np.load(REPOS / f"{name}.npz")
    return np.split(arrays[kind], np.cumsum(arrays[f"{kind}_rows"])[:-1])


def assert_alike(results: Any, expected: Any) -> None:
    assert [result.shape for result in results] == [right.shape for right in expected]
    for result, right in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, right, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pylate", "pylate_no_expansion", "stanford", "multi_vector", "multi_vector_pooled"])
async def test_a_repo_gives_what_the_tool_gives_that_saved_it(name: str, tmp_path: Path) -> None:
    async with LateInteractionTextEmbedding(REPOS / name, workers=0, cache_dir=tmp_path) as model:
        assert_alike(await model.embed(REPO_TEXTS).collect(), kept(name, "documents"))
        assert_alike(await model.query_embed(REPO_TEXTS).collect(), kept(name, "queries"))
        for text, document, query in zip(REPO_TEXTS, kept(name, "documents"), kept(name, "queries"), strict=True):
            assert_alike(await model.embed_documents([text]), [document])
            assert_alike([await model.embed_query(text)], [query])


@pytest.mark.slow
async def test_documents_are_pooled_as_pylate_pools_them(tmp_path: Path) -> None:
    async with LateInteractionTextEmbedding(REPOS / "pylate", workers=0, cache_dir=tmp_path, pool_factor=2) as model:
        assert_alike(await model.embed(REPO_TEXTS).collect(), kept("pylate", "pooled"))
        assert_alike(await model.query_embed(REPO_TEXTS).collect(), kept("pylate", "queries"))
    keywords: Any = {"cache_dir": tmp_path, "workers": 0, "dtype": "float16"}
    async with LateInteractionTextEmbedding(REPOS / "pylate", pool_factor=2, protected_tokens=100, **keywords) as model:
        pooled = await model.embed(REPO_TEXTS).collect()
        assert [len(matrix) for matrix in pooled] == [len(matrix) for matrix in kept("pylate", "documents")]
        assert pooled[0].dtype == np.float16


@pytest.mark.slow
async def test_a_pooling_that_the_repo_has_gives_way_to_the_callers(tmp_path: Path) -> None:
    async with LateInteractionTextEmbedding(
        REPOS / "multi_vector_pooled", workers=0, cache_dir=tmp_path, pool_factor=1
    ) as model:
        rows = [len(matrix) for matrix in await model.embed(REPO_TEXTS).collect()]
        assert sum(rows) > sum(len(matrix) for matrix in kept("multi_vector_pooled", "documents"))


@pytest.mark.slow
async def test_limits_of_queries_and_documents_are_those_of_the_repo(tmp_path: Path) -> None:
    long = "the " * 50
    async with LateInteractionTextEmbedding(REPOS / "pylate", workers=0, cache_dir=tmp_path) as model:
        assert model.max_length == 20
        assert (await model.embed_documents([long]))[0].shape == (20, 4)
        assert (await model.embed_query(long)).shape == (12, 4)
        assert await model.token_count(long) == 19
        assert await model.token_count(long, is_doc=False) == 11
        assert await model.token_count("the", is_doc=False, include_extension=True) == 12
        assert await model.token_count(long, truncated=False) == 52
    async with LateInteractionTextEmbedding(REPOS / "pylate", workers=0, cache_dir=tmp_path, max_length=8) as model:
        assert (await model.embed_documents([long]))[0].shape == (8, 4)
    async with LateInteractionTextEmbedding(REPOS / "pylate", workers=0, cache_dir=tmp_path, long="error") as model:
        assert len(await model.embed_documents(["the " * 15])) == 1
        with pytest.raises(InputError, match="limit"):
            await model.embed_query("the " * 15)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pylate_no_expansion", "multi_vector_pooled"])
async def test_padding_on_the_left_moves_no_vector_of_a_repo(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "repo"
    shutil.copytree(REPOS / name, directory)
    rewrite(directory / "tokenizer_config.json", padding_side="left")
    async with LateInteractionTextEmbedding(directory, workers=0, cache_dir=tmp_path) as model:
        assert_alike(await model.embed(REPO_TEXTS).collect(), kept(name, "documents"))
        assert_alike(await model.query_embed(REPO_TEXTS).collect(), kept(name, "queries"))


def rewrite(path: Path, **entries: object) -> None:
    """Change some entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_bytes()) | entries), encoding="utf-8")


def write_finished(directory: Path, *, dim: int) -> Path:
    """The repo `pylate` with a graph in the place of its weights, and what next-plaid says beside one."""
    shutil.copytree(REPOS / "pylate", directory)
    for folder in ("1_Dense", "2_Dense", "3_Dense"):
        shutil.rmtree(directory / folder)
    said = json.loads((directory / "config_sentence_transformers.json").read_bytes())
    for name in ("model.safetensors", "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (directory / name).unlink()
    keys = ("query_prefix", "document_prefix", "query_length", "document_length", "do_query_expansion",
            "attend_to_expansion_tokens", "skiplist_words")  # fmt: skip
    more = {"embedding_dim": dim, "model_type": "ColBERT", "uses_token_type_ids": False, "do_lower_case": False}
    (directory / "onnx_config.json").write_text(json.dumps({key: said[key] for key in keys} | more), "utf-8")
    write_text_graph(directory / "model.onnx", dim=dim, wrap_ids=True, token_types=False)
    return directory


async def test_a_finished_graph_is_taken_as_what_lies_beside_it_says(tmp_path: Path) -> None:
    directory = write_finished(tmp_path / "repo", dim=6)
    async with LateInteractionTextEmbedding(directory, workers=0) as model:
        assert model.embedding_size == 6
        documents = await model.embed(REPO_TEXTS).collect()
        queries = await model.query_embed(REPO_TEXTS).collect()
        assert [len(matrix) for matrix in documents] == [len(matrix) for matrix in kept("pylate", "documents")]
        assert [len(matrix) for matrix in queries] == [len(matrix) for matrix in kept("pylate", "queries")]
        np.testing.assert_allclose(np.linalg.norm(documents[0], axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("dim", "layers"), [(8, True), (4, False)])
async def test_layers_are_for_hidden_states_and_not_for_what_a_graph_has_made_of_them(
    dim: int, layers: bool, tmp_path: Path
) -> None:
    shutil.copytree(REPOS / "pylate", tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    write_text_graph(tmp_path / "model.onnx", dim=dim, wrap_ids=True, token_types=False)
    async with LateInteractionTextEmbedding(tmp_path, workers=0) as model:
        with_layers = await model.embed_query("the day")
    assert with_layers.shape == (12, 4)
    spec = spec_from_directory(tmp_path, family="late_interaction")
    settings = {name: value for name, value in spec.settings.items() if name != "projections"}
    async with LateInteractionTextEmbedding(replace(spec, settings=settings, dim=None), workers=0) as model:
        without = await model.embed_query("the day")
    assert (without.shape[1] == 4 and np.allclose(without, with_layers)) != layers


async def test_hidden_states_are_no_result_of_a_model_whose_layer_is_elsewhere(tmp_path: Path) -> None:
    shutil.copytree(REPOS / "stanford", tmp_path, dirs_exist_ok=True)
    write_text_graph(tmp_path / "model.onnx", dim=8, wrap_ids=True, token_types=False)
    async with LateInteractionTextEmbedding(tmp_path, workers=0) as model:
        with pytest.raises(UnsupportedModelError, match="hidden states"):
            await model.embed_query("the day")


async def test_prompts_of_a_repo_go_before_its_texts(tmp_path: Path) -> None:
    directory = write_finished(tmp_path / "repo", dim=6)
    async with LateInteractionTextEmbedding(directory, workers=0) as model:
        expected = await model.embed_query("how it is the day")
        document = (await model.embed_documents(["the day"]))[0]
    prompts = {"prompts": {"query": "how it is ", "document": ""}}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(prompts), "utf-8")
    async with LateInteractionTextEmbedding(directory, workers=0) as model:
        assert_alike([await model.embed_query("the day")], [expected])
        assert_alike(await model.embed_documents(["the day"]), [document])


@pytest.fixture
def forgetting() -> Iterator[None]:
    yield
    forget_registered_models()


async def test_a_model_of_ones_own_is_known_by_name(tmp_path: Path, forgetting: None) -> None:
    directory = write_finished(tmp_path / "repo", dim=6)
    async with LateInteractionTextEmbedding(directory, workers=0) as model:
        expected = [await model.embed_query("the day!"), *await model.embed_documents(KNOWN_WORDS)]
    (directory / "onnx_config.json").unlink()
    LateInteractionTextEmbedding.add_custom_model(
        "mine/colbert", sources=directory, dim=6, query_length=12, document_length=20
    )
    async with LateInteractionTextEmbedding("Mine/ColBERT", workers=0) as model:
        assert_alike([await model.embed_query("the day!"), *await model.embed_documents(KNOWN_WORDS)], expected)
    LateInteractionTextEmbedding.add_custom_model(
        "mine/plain", directory, 6, query_prefix=None, document_prefix="", query_length=None,
        do_query_expansion=False, skiplist_words=["the"],
    )  # fmt: skip
    async with LateInteractionTextEmbedding("mine/plain", workers=0) as model:
        assert len(await model.embed_query("the day!")) == 5
        assert len((await model.embed_documents(["the day!"]))[0]) == 4
    with pytest.raises(OptionError, match="already"):
        LateInteractionTextEmbedding.add_custom_model("mine/colbert", sources=directory, dim=6)
    with pytest.raises(OptionError, match="query_length"):
        LateInteractionTextEmbedding.add_custom_model("mine/other", sources=directory, dim=6, query_length=None)


async def test_a_token_that_is_to_mark_texts_must_be_there(tmp_path: Path) -> None:
    directory = write_finished(tmp_path / "repo", dim=6)
    rewrite(directory / "onnx_config.json", document_prefix="[X] ")
    with pytest.raises(UnsupportedModelError, match=r"\[X\]"):
        async with LateInteractionTextEmbedding(directory, workers=0):
            pass


@pytest.mark.parametrize(
    "wrong", [{"pool_factor": 0.5}, {"pool_factor": "2"}, {"protected_tokens": -1}, {"protected_tokens": 1.5}], ids=str
)
def test_a_pooling_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        LateInteractionTextEmbedding(NAME, **wrong)
