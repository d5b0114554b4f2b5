"""Rerankers through the public class, with real workers."""

import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed.rerank.cross_encoder import TextCrossEncoder as Reference

from asyncembed import TextCrossEncoder
from asyncembed.embedders import cross_encoder
from asyncembed.errors import InputError, OptionError, StateError, UnsupportedModelError
from tests.support.models import forget_registered_models
from tests.support.sparse_models import RERANKER, TEXTS, write_reranker

pytestmark = pytest.mark.slow

QUERY = "how long is the day"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reranker(tmp_path_factory.mktemp("reranker"))


@pytest.fixture(scope="module")
def expected(directory: Path) -> list[float]:
    return list(Reference(RERANKER, specific_model_path=str(directory)).rerank(QUERY, TEXTS))


async def test_scores_are_those_of_fastembed_in_input_order(directory: Path, expected: list[float]) -> None:
    async with TextCrossEncoder(RERANKER.lower(), model_path=directory, workers=2) as model:
        one_by_one = [score async for score in model.rerank(QUERY, TEXTS)]
        assert all(type(score) is float for score in one_by_one)
        together = await model.rerank(QUERY, TEXTS).collect()
        assert together.dtype == np.float32
        pairs = await model.rerank_pairs([(QUERY, text) for text in TEXTS]).collect()
        for found in (one_by_one, together, pairs):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        theirs = Reference(RERANKER, specific_model_path=str(directory))
        some = [(QUERY, TEXTS[0]), ("", TEXTS[-1])]
        assert await model.token_count(some) == theirs.token_count(some)


async def test_rank_gives_the_best_first(directory: Path, expected: list[float]) -> None:
    documents = [*TEXTS, TEXTS[0]]  # the same document twice: the earlier one first
    scores = [*expected, expected[0]]
    order = sorted(range(len(scores)), key=lambda position: -round(scores[position], 4))
    async with TextCrossEncoder(RERANKER, model_path=directory, workers=0) as model:
        ranked = await model.rank(QUERY, documents)
        assert [position for position, _ in ranked] == order
        assert [type(part) for part in ranked[0]] == [int, float]
        assert await model.rank(QUERY, documents, top_k=3) == ranked[:3]
        assert await model.rank(QUERY, [], top_k=3) == []
        records = [{"text": text} for text in documents]
        assert await model.rank(QUERY, records, 2, key=lambda record: record["text"]) == ranked[:2]
        with pytest.raises(OptionError, match="top_k"):
            await model.rank(QUERY, documents, top_k=0)


async def test_many_scores_are_sorted_off_the_loop(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[bool] = []
    here = threading.get_ident()

    def sorted_where(scores: list[Any], top_k: int | None) -> list[tuple[int, float]]:
        places.append(threading.get_ident() == here)
        return best(scores, top_k)

    best = cross_encoder._best
    monkeypatch.setattr(cross_encoder, "_best", sorted_where)
    async with TextCrossEncoder(RERANKER, model_path=directory, workers=0) as model:
        assert len(await model.rank(QUERY, TEXTS[:1] * 300, top_k=7)) == 7
        assert len(await model.rank(QUERY, TEXTS[:1] * 5)) == 5
    assert places == [False, True]


async def test_activation_is_chosen_by_the_model_or_by_the_call(directory: Path, expected: list[float]) -> None:
    probabilities = 1 / (1 + np.exp(-np.array(expected)))
    async with TextCrossEncoder(RERANKER, model_path=directory, workers=0, activation="sigmoid") as model:
        np.testing.assert_allclose(await model.rerank(QUERY, TEXTS).collect(), probabilities, rtol=1e-4)
        logits = await model.rerank(QUERY, TEXTS, activation="none").collect()
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
        with pytest.raises(OptionError, match="activation must be one of"):
            model.rerank(QUERY, TEXTS, activation="softmax")  # type: ignore[call-overload]


async def test_documents_are_read_no_further_than_the_window(directory: Path) -> None:
    read = 0

    async def documents() -> AsyncIterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "a day"

    async with TextCrossEncoder(RERANKER, model_path=directory, workers=0, max_in_flight=8) as model:
        stream = model.rerank(QUERY, documents())
        for taken in range(1, 30):
            await anext(stream)
            assert read <= taken + 8
        await stream.aclose()


async def test_records_travel_with_their_scores(directory: Path) -> None:
    records = [{"id": position, "text": text} for position, text in enumerate(TEXTS)]
    async with TextCrossEncoder(RERANKER, model_path=directory, workers=0) as model:
        whole = await model.rerank(QUERY, TEXTS).collect()
        stream = model.rerank(QUERY, records, key=lambda record: str(record["text"])).with_inputs()
        seen: list[Any] = []
        async for batch, scores in stream.batches(3):
            assert scores.dtype == np.float32
            seen += zip([record["id"] for record in batch], scores.tolist(), strict=True)
        assert [position for position, _ in seen] == list(range(len(TEXTS)))
        np.testing.assert_allclose([score for _, score in seen], whole, rtol=1e-4, atol=1e-5)


async def test_bad_input_is_named(directory: Path) -> None:
    documents: list[Any] = ["a day", None, "a day"]
    pairs: list[Any] = [(QUERY, "a day"), "no", (QUERY, 3), (QUERY,), [QUERY, "a day"]]
    async with TextCrossEncoder(RERANKER, model_path=directory, workers=1, long="error") as model:
        with pytest.raises(InputError, match="input 1: expected a str, got NoneType") as caught:
            await model.rerank(QUERY, documents).collect()
        assert caught.value.index == 1
        results = await model.rerank_pairs(pairs, on_error="return").collect()
        assert [type(result) for result in results] == [float, InputError, InputError, InputError, float]
        assert results[0] == results[4]
        with pytest.raises(InputError, match="put the document into a list"):
            model.rerank(QUERY, "a day")
        with pytest.raises(InputError, match="put the pair into a list"):
            model.rerank_pairs("a day")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="expected a pair"):
            await model.rerank_pairs((QUERY, "a day")).collect()  # type: ignore[arg-type]
        with pytest.raises(InputError, match="got int"):
            await model.rank(3, ["a day"])  # type: ignore[call-overload]
        with pytest.raises(InputError, match="limit of 64 tokens"):
            await model.rank(QUERY, [TEXTS[-1]])
    with pytest.raises(StateError, match="was closed"):
        model.rerank(QUERY, TEXTS)


async def test_a_custom_reranker_is_found_by_name(directory: Path, expected: list[float]) -> None:
    TextCrossEncoder.add_custom_model("mine/reranker", sources=directory)
    try:
        assert "mine/reranker" in [entry["model"] for entry in TextCrossEncoder.list_supported_models()]
        async with TextCrossEncoder("Mine/Reranker", workers=0) as model:
            scores = await model.rerank(QUERY, TEXTS).collect()
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    finally:
        forget_registered_models()


async def test_a_directory_outside_the_catalogue_works_with_one_label_only(
    directory: Path, expected: list[float], tmp_path: Path
) -> None:
    async with TextCrossEncoder(directory, workers=0) as model:
        np.testing.assert_allclose(await model.rerank(QUERY, TEXTS).collect(), expected, rtol=1e-4, atol=1e-5)
    write_reranker(tmp_path, labels=3)
    with pytest.raises(UnsupportedModelError, match="several labels"):
        async with TextCrossEncoder(tmp_path, workers=0):
            pass
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "no", "1": "maybe", "2": "yes"}}), "utf-8")
    with pytest.raises(UnsupportedModelError, match="3 labels"):
        async with TextCrossEncoder(tmp_path, workers=0):
            pass
