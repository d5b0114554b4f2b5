"""Late interaction end to end, through real workers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed import LateInteractionTextEmbedding as ReferenceEmbedding

from asyncembed import LateInteractionTextEmbedding, Muvera, maxsim, maxsim_scores
from asyncembed.errors import InputError, OptionError
from tests.support.late_interaction import write_late_interaction_model
from tests.support.models import TEXTS

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
    async with LateInteractionTextEmbedding(spec, workers=0, truncate=False) as model:
        long = "the " * 500
        inputs: list[Any] = ["the", 3, long, "way"]
        assert len(await model.embed(inputs, on_error="skip").collect()) == 2
        with pytest.raises(InputError) as caught:
            await model.embed(["the", long]).collect()
        assert caught.value.index == 1


def test_sizes_and_options() -> None:
    assert LateInteractionTextEmbedding.get_embedding_size(NAME.upper()) == 128
    assert LateInteractionTextEmbedding(NAME).embedding_size == 128
    assert len(LateInteractionTextEmbedding.list_supported_models()) == 6
    with pytest.raises(OptionError, match="truncate"):
        LateInteractionTextEmbedding(NAME, truncated=True)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="dtype"):
        LateInteractionTextEmbedding(NAME, dtype="int8")  # type: ignore[call-overload]


# ---------------------------------------------------------------- repos that say themselves how they are computed


REPOS = Path(__file__).parent / "data" / "multi_vector"
REPO_TEXTS: list[str] = json.loads((REPOS / "texts.json").read_bytes())


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
