"""What routes of several dialects share: how much a request may ask for."""

from typing import Any

import pytest

from asyncembed import TextCrossEncoder
from asyncembed.testing import fake_model
from tests.support.asgi_servers import serving

pytestmark = pytest.mark.slow


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
