"""What routes of several dialects share: token ids as inputs, and how much a request may ask for."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from asyncembed import TextCrossEncoder, TextEmbedding
from asyncembed.testing import fake_model
from tests.support.asgi_servers import serving
from tests.support.models import write_self_describing_model

pytestmark = pytest.mark.slow


async def vectors_of(client: httpx.AsyncClient, given: object) -> Any:
    answer = await client.post("/v1/embeddings", json={"input": given})
    assert answer.status_code == 200, answer.text
    return [one["embedding"] for one in answer.json()["data"]]


async def test_token_ids_are_the_text_that_they_stand_for(tmp_path: Path) -> None:
    from asyncembed.server import create_app

    model = TextEmbedding(write_self_describing_model(tmp_path), workers=0)
    async with serving(create_app({"m": model})) as client:
        (tokens,) = (await client.post("/tokenize", json={"inputs": "the day"})).json()
        ids = [token["id"] for token in tokens]
        expected = await vectors_of(client, ["the day"])
        np.testing.assert_allclose(await vectors_of(client, ids), expected, atol=1e-5)
        np.testing.assert_allclose(await vectors_of(client, [ids, ids]), expected * 2, atol=1e-5)
        answer = await client.post("/v1/embeddings", json={"input": [100_000]})
        assert answer.status_code == 400
        assert "the model has the tokens 0 to" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"query": "word " * 60, "texts": ["a", "b"]}),
        ("/predict", {"inputs": [["word " * 60, "a"], ["a", "word " * 60]]}),
        ("/v1/rerank", {"query": "word " * 60, "documents": ["a", "b"]}),
        ("/v2/rerank", {"query": "word " * 60, "documents": ["a", "b"]}),
    ],
)
async def test_pairs_have_at_most_so_many_tokens_together(path: str, body: dict[str, Any]) -> None:
    from asyncembed.server import Limits, create_app

    model = TextCrossEncoder(fake_model("cross_encoder"))
    async with serving(create_app({"m": model}, limits=Limits(max_tokens=100))) as client:
        answer = await client.post(path, json=body)
        assert answer.status_code in (400, 422)
        assert "tokens; one request may have 100" in answer.text
        assert model.stats().tokens == 0, "they were counted only"
