"""Text Embeddings Inference's interface on a real server: its answers, its errors, and what it does not say."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from asyncembed import TextEmbedding
from tests.support.asgi_servers import serving
from tests.support.models import write_self_describing_model
from tests.support.served_fakes import fakes_of_all_kinds

pytestmark = pytest.mark.slow

LONG = "word " * 600


async def answer(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    answered = await client.post(path, json=body)
    assert answered.status_code == 200, answered.text
    return answered.json()


async def refusal(client: httpx.AsyncClient, path: str, **body: Any) -> tuple[int, str, str]:
    answered = await client.post(path, json=body)
    told = answered.json()
    return answered.status_code, told["error_type"], told["error"]


def closed(name: str) -> Any:
    return fakes_of_all_kinds()[name]


# ---------------------------------------------------------------- vectors


async def test_vectors_are_those_of_the_library_for_one_text_and_for_several(all_kinds: httpx.AsyncClient) -> None:
    texts = ["a text", "another text"]
    async with closed("text") as model:
        expected = await model.embed(texts).collect()
    np.testing.assert_allclose(await answer(all_kinds, "/embed", inputs=texts), expected, atol=1e-6)
    np.testing.assert_allclose(await answer(all_kinds, "/embed", inputs=texts[0]), expected[:1], atol=1e-6)


async def test_a_prompt_is_taken_by_its_name_and_fewer_dimensions_by_their_number(all_kinds: httpx.AsyncClient) -> None:
    async with closed("text") as model:
        expected = await model.embed(["a text"], prompt_name="query", truncate_dim=3).collect()
    found = await answer(all_kinds, "/embed", inputs="a text", prompt_name="query", dimensions=3)
    np.testing.assert_allclose(found, expected, atol=1e-6)


async def test_a_model_whose_vectors_have_any_length_gives_them_scaled_or_as_they_are(tmp_path: Path) -> None:
    from asyncembed.server import create_app

    model = write_self_describing_model(tmp_path)
    async with TextEmbedding(model, workers=0) as embedder:
        expected = await embedder.embed_query("the day")
    async with serving(create_app({"m": TextEmbedding(model, workers=0)})) as client:
        (raw,) = await answer(client, "/embed", inputs="the day", normalize=False)
        (scaled,) = await answer(client, "/embed", inputs="the day")
    assert np.linalg.norm(expected) != pytest.approx(1)
    np.testing.assert_allclose(raw, expected, atol=1e-6)
    np.testing.assert_allclose(scaled, expected / np.linalg.norm(expected), atol=1e-6)


async def test_a_model_whose_vectors_have_unit_length_has_no_others(all_kinds: httpx.AsyncClient) -> None:
    status, kind, message = await refusal(all_kinds, "/embed", inputs="a", model="unit", normalize=False)
    assert (status, kind) == (422, "Validation")
    assert "normalize=false" in message


async def test_sparse_vectors_are_entries(all_kinds: httpx.AsyncClient) -> None:
    async with closed("sparse") as model:
        expected = await model.embed_documents(["a b a", ""])
    found = await answer(all_kinds, "/embed_sparse", inputs=["a b a", ""])
    for vector, entries in zip(expected, found, strict=True):
        assert [entry["index"] for entry in entries] == vector.indices.tolist()
        np.testing.assert_array_equal(np.array([entry["value"] for entry in entries], np.float32), vector.values)


async def test_a_vector_per_token_comes_from_late_interaction(all_kinds: httpx.AsyncClient) -> None:
    async with closed("late_interaction") as model:
        expected = await model.embed_documents(["two words", "one"])
        query = await model.embed_query("one")
    found = await answer(all_kinds, "/embed_all", inputs=["two words", "one"])
    for matrix, rows in zip(expected, found, strict=True):
        np.testing.assert_allclose(rows, matrix, atol=1e-6)
    found = await answer(all_kinds, "/embed_all", inputs="one", prompt_name="query")
    np.testing.assert_allclose(found, [query], atol=1e-6)


async def test_similarities_are_cosines(all_kinds: httpx.AsyncClient) -> None:
    inputs = {"source_sentence": "one two", "sentences": ["one two", "one", "three"]}
    found = await answer(all_kinds, "/similarity", inputs=inputs)
    assert found[0] == pytest.approx(1, abs=1e-6)
    assert found[0] > found[1] > found[2]


async def test_headers_say_what_was_computed(all_kinds: httpx.AsyncClient) -> None:
    answered = await all_kinds.post("/embed", json={"inputs": ["two words", "one"]})
    assert answered.headers["x-compute-characters"] == "12"
    assert answered.headers["x-compute-tokens"] == "3"
    assert int(answered.headers["x-total-time"]) >= 0


# ---------------------------------------------------------------- scores


async def test_ranks_are_best_first_between_0_and_1_or_as_the_model_has_them(all_kinds: httpx.AsyncClient) -> None:
    texts = ["nothing", "a word", "word"]
    async with closed("cross_encoder") as model:
        expected = await model.rank("word", texts)
    raw = await answer(all_kinds, "/rerank", query="word", texts=texts, raw_scores=True)
    ranks = await answer(all_kinds, "/rerank", query="word", texts=texts, return_text=True)
    assert [(rank["index"], pytest.approx(rank["score"])) for rank in raw] == expected
    assert [rank["text"] for rank in ranks] == [texts[index] for index, _ in expected]
    assert all(0 < rank["score"] < 1 for rank in ranks)


async def test_documents_are_ranked_as_infinity_does_it(all_kinds: httpx.AsyncClient) -> None:
    body = {"query": "word", "documents": ["nothing", {"text": "word"}], "top_n": 1}
    found = await answer(all_kinds, "/rerank", **body)
    assert [set(one) for one in found["results"]] == [{"index", "relevance_score"}]
    assert found["results"][0]["index"] == 1
    found = await answer(all_kinds, "/rerank", **body, return_documents=True)
    assert found["results"][0]["document"] == "word"
    assert found["usage"]["total_tokens"] == 4


async def test_pairs_are_predicted_alone_and_together(all_kinds: httpx.AsyncClient) -> None:
    alone = await answer(all_kinds, "/predict", inputs=["word", "a word"])
    together = await answer(all_kinds, "/predict", inputs=[["word", "a word"], ["word", "nothing"]])
    assert alone == together[0]
    assert [one["label"] for one in alone] == ["LABEL_0"]
    assert together[0][0]["score"] > together[1][0]["score"]
    raw = await answer(all_kinds, "/predict", inputs=["word", "nothing"], raw_scores=True)
    assert raw[0]["score"] < 0


@pytest.mark.parametrize("path", ["/predict", "/"])
@pytest.mark.parametrize("inputs", ["a text", ""])
async def test_a_text_alone_is_not_predicted_and_the_refusal_says_why(
    all_kinds: httpx.AsyncClient, path: str, inputs: str
) -> None:
    status, kind, message = await refusal(all_kinds, path, model="cross_encoder", inputs=inputs)
    assert (status, kind) == (422, "Validation")
    assert "models that classify a text alone are not served" in message


# ---------------------------------------------------------------- tokens


@pytest.fixture
async def tokens(tmp_path: Path) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of a server whose model has a tokenizer."""
    from asyncembed.server import create_app

    model = write_self_describing_model(tmp_path)
    prompts = {"query": "find "}
    async with serving(create_app({"m": TextEmbedding(model, workers=0, prompts=prompts)})) as client:
        yield client


async def test_tokens_come_with_their_places_and_go_back_to_the_text(tokens: httpx.AsyncClient) -> None:
    first, second = await answer(tokens, "/tokenize", inputs=["the day", "two"])
    assert first[1] == {"id": first[1]["id"], "text": "the", "special": False, "start": 0, "stop": 3}
    assert first[0] == {"id": first[0]["id"], "text": "[CLS]", "special": True, "start": None, "stop": None}
    ids = [[token["id"] for token in some] for some in (first, second)]
    assert await answer(tokens, "/decode", ids=ids) == ["the day", "two"]
    assert await answer(tokens, "/decode", ids=ids[1]) == ["two"]
    assert await answer(tokens, "/decode", ids=ids[1], skip_special_tokens=False) == ["[CLS] two [SEP]"]


async def test_tokens_are_those_of_a_prompt_too(tokens: httpx.AsyncClient) -> None:
    (found,) = await answer(tokens, "/tokenize", inputs="the", prompt_name="query", add_special_tokens=False)
    assert found[-1] == {"id": found[-1]["id"], "text": "the", "special": False, "start": 5, "stop": 8}
    assert (await refusal(tokens, "/tokenize", inputs="the", prompt_name="none"))[:2] == (422, "Validation")


async def test_token_ids_are_embedded_as_the_text_that_they_stand_for(tokens: httpx.AsyncClient) -> None:
    (found,) = await answer(tokens, "/tokenize", inputs="the day")
    ids = [token["id"] for token in found]
    expected = await answer(tokens, "/embed", inputs=["the day", "two"])
    np.testing.assert_allclose(await answer(tokens, "/embed", inputs=ids), expected[:1], atol=1e-6)
    np.testing.assert_allclose(await answer(tokens, "/embed", inputs=[ids, "two"]), expected, atol=1e-6)
    status, kind, _ = await refusal(tokens, "/embed", inputs=[1, "two"])
    assert (status, kind) == (422, "Validation")
    status, kind, message = await refusal(tokens, "/embed", inputs=[2**31])
    assert (status, kind) == (422, "Validation")
    assert "the model has the tokens 0 to" in message


async def test_a_request_has_at_most_so_many_tokens(tmp_path: Path) -> None:
    from asyncembed.server import Limits, create_app

    model = TextEmbedding(write_self_describing_model(tmp_path), workers=0)
    async with serving(create_app({"m": model}, limits=Limits(max_tokens=3000))) as client:
        (found,) = await answer(client, "/tokenize", inputs="the " * 2500)
        assert len(found) == 2502
        ids = [token["id"] for token in found]
        too_many: dict[str, dict[str, Any]] = {
            "/tokenize": {"inputs": ["the " * 2500, "the " * 2500]},
            "/decode": {"ids": [ids, ids]},
            "/embed": {"inputs": [ids, ids]},
        }
        for path, body in too_many.items():
            status, kind, message = await refusal(client, path, **body)
            assert (status, kind) == (422, "Validation")
            assert "tokens; one request may have 3000" in message
        assert (await refusal(client, "/tokenize", inputs="the" * 10_000))[:2] == (422, "Validation")


async def test_a_model_without_tokens_says_so(all_kinds: httpx.AsyncClient) -> None:
    assert (await refusal(all_kinds, "/tokenize", inputs="a"))[:2] == (424, "Backend")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/embed", {"inputs": []}, 400, "Empty"),
        ("/embed", {"inputs": ["a"] * 9}, 422, "Validation"),
        ("/embed", {"inputs": 1}, 422, "Validation"),
        ("/embed", {}, 422, "Validation"),
        ("/embed", {"inputs": "a", "prompt_name": "none"}, 422, "Validation"),
        ("/embed", {"inputs": "a", "dimensions": 9}, 422, "Validation"),
        ("/embed", {"inputs": "a", "model": "none"}, 404, "Backend"),
        ("/embed", {"inputs": "a", "model": "sparse"}, 422, "Validation"),
        ("/embed", {"inputs": "a", "truncate": True, "truncation_direction": "Left"}, 422, "Validation"),
        ("/embed_sparse", {"inputs": "a", "prompt_name": "none"}, 422, "Validation"),
        ("/rerank", {"query": "a"}, 422, "Validation"),
        ("/rerank", {"query": "a", "texts": []}, 400, "Empty"),
        ("/rerank", {"query": "a", "texts": ["a"] * 9}, 422, "Validation"),
        ("/predict", {"inputs": "a"}, 422, "Validation"),
        ("/predict", {"inputs": []}, 400, "Empty"),
        ("/predict", {"inputs": ["a", "b", "c"]}, 422, "Validation"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "Empty"),
        ("/tokenize", {"inputs": []}, 400, "Empty"),
        ("/decode", {"ids": []}, 400, "Empty"),
        ("/decode", {"ids": [-1]}, 422, "Validation"),
    ],
)
async def test_refusals_have_the_status_and_the_type_that_clients_expect(
    all_kinds: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, kind: str
) -> None:
    assert (await refusal(all_kinds, path, **body))[:2] == (status, kind)


@pytest.mark.parametrize("path", ["/embed", "/embed_sparse", "/embed_all"])
async def test_a_text_over_the_limit_is_cut_unless_it_must_not_be(all_kinds: httpx.AsyncClient, path: str) -> None:
    assert await answer(all_kinds, path, inputs=LONG) == await answer(all_kinds, path, inputs=LONG, truncate=True)
    status, kind, message = await refusal(all_kinds, path, inputs=["short", LONG], truncate=False)
    assert (status, kind) == (422, "Validation")
    assert message.startswith("input 1: longer than the model's limit of 512 tokens")


@pytest.mark.parametrize(
    ("path", "body"), [("/rerank", {"query": "a", "texts": ["b", LONG]}), ("/predict", {"inputs": [["a", LONG]]})]
)
async def test_so_is_a_pair(all_kinds: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    await answer(all_kinds, path, **body)
    assert (await refusal(all_kinds, path, **body, truncate=False))[:2] == (422, "Validation")


# ---------------------------------------------------------------- about models


async def test_info_is_that_of_the_first_model_and_of_all(all_kinds: httpx.AsyncClient) -> None:
    told = (await all_kinds.get("/info")).json()
    assert told["served_model_name"] == "text"
    assert told["max_input_length"] == 512
    assert told["max_client_batch_size"] == 8
    kinds = {one["served_model_name"]: one["model_type"] for one in told["models"]}
    assert list(kinds) == list(fakes_of_all_kinds())
    assert kinds["sparse"] == {"embedding": {"pooling": "splade"}}
    assert kinds["cross_encoder"] == {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": "a"}),
        ("/embed_sparse", {"inputs": "a", "model": "sparse"}),
        ("/embed_all", {"inputs": ["a"], "model": "late_interaction"}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
        ("/rerank", {"query": "a", "texts": ["b", "a"]}),
        ("/predict", {"inputs": [["a", "b"]], "model": "cross_encoder"}),
    ],
)
async def test_the_address_alone_does_what_the_model_is_for(
    all_kinds: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    assert await answer(all_kinds, "/", **body) == await answer(all_kinds, path, **body)


async def test_the_address_alone_refuses_what_is_for_no_model(all_kinds: httpx.AsyncClient) -> None:
    assert (await refusal(all_kinds, "/"))[:2] == (422, "Validation")
    assert (await refusal(all_kinds, "/", inputs="a", model="image"))[:2] == (422, "Validation")


async def test_a_server_without_a_model_for_a_route_says_so_as_these_servers_do() -> None:
    from asyncembed.server import create_app

    async with serving(create_app({"sparse": fakes_of_all_kinds()["sparse"]})) as client:
        assert (await refusal(client, "/embed", inputs="a"))[:2] == (424, "Backend")
        assert (await refusal(client, "/rerank", query="a", texts=["a"]))[:2] == (424, "Backend")
        assert len(await answer(client, "/", inputs="a")) == 1
