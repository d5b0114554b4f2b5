"""Jina's interface for reranking, on a real server."""

from typing import Any

import httpx
import pytest

from tests.support.served_fakes import fakes_of_all_kinds

pytestmark = pytest.mark.slow

DOCUMENTS = ["nothing", {"text": "a word"}, "word"]


async def answer(client: httpx.AsyncClient, **body: Any) -> Any:
    answered = await client.post("/v1/rerank", json={"query": "word", "documents": DOCUMENTS, **body})
    assert answered.status_code == 200, answered.text
    return answered.json()


async def test_documents_are_ranked_best_first_and_given_back(all_kinds: httpx.AsyncClient) -> None:
    found = await answer(all_kinds)
    assert [one["document"]["text"] for one in found["results"]] == ["word", "a word", "nothing"]
    assert [one["index"] for one in found["results"]] == [2, 1, 0]
    assert all(0 < one["relevance_score"] < 1 for one in found["results"])
    assert found["model"] == "cross_encoder"
    assert found["usage"] == {"total_tokens": 7, "prompt_tokens": 7}


async def test_as_many_as_are_wanted_and_without_their_texts(all_kinds: httpx.AsyncClient) -> None:
    found = await answer(all_kinds, top_n=1, return_documents=False)
    assert [set(one) for one in found["results"]] == [{"index", "relevance_score"}]


async def test_raw_scores_are_the_models_own(all_kinds: httpx.AsyncClient) -> None:
    model: Any = fakes_of_all_kinds()["cross_encoder"]
    async with model:
        expected = await model.rank("word", ["nothing", "a word", "word"])
    found = await answer(all_kinds, raw_scores=True)
    assert [(one["index"], pytest.approx(one["relevance_score"])) for one in found["results"]] == expected


@pytest.mark.parametrize(
    ("path", "field"),
    [("/v1/rerank", "documents"), ("/v2/rerank", "documents"), ("/rerank", "documents"), ("/rerank", "texts")],
)
async def test_an_instruction_says_what_to_look_for_on_every_route(
    all_kinds: httpx.AsyncClient, path: str, field: str
) -> None:
    body = {"query": "absent", field: ["nothing", "word"]}
    firsts = []
    for more in ({}, {"instruction": "word"}):
        ranked = (await all_kinds.post(path, json={**body, **more})).json()
        firsts.append((ranked if isinstance(ranked, list) else ranked["results"])[0]["index"])
    assert firsts == [0, 1]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"documents": []}, 400),
        ({"documents": ["a"] * 9}, 400),
        ({"documents": [{"image": "http://example.org/a.png"}]}, 422),
        ({"top_n": 0}, 422),
        ({"query": None}, 422),
        ({"model": "none"}, 404),
        ({"model": "text"}, 422),
    ],
)
async def test_refusals_are_a_sentence(all_kinds: httpx.AsyncClient, body: dict[str, Any], status: int) -> None:
    answered = await all_kinds.post("/v1/rerank", json={"query": "a", "documents": ["a"], **body})
    assert answered.status_code == status, answered.text
    assert set(answered.json()) == {"detail"}
