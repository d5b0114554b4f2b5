"""The OpenAPI document: that it has all routes, with bodies, answers, and who may ask."""

from typing import Any

import httpx
import pytest

from tests.support.asgi_servers import serving
from tests.support.served_fakes import fakes_of_all_kinds

pytestmark = pytest.mark.slow

ROUTES_OF_DIALECTS = {
    "openai": {"/v1/embeddings", "/v1/models", "/v1/models/{id}", "/embeddings", "/models", "/models/{id}"},
    "text-embeddings-inference": {"/", "/embed", "/embed_sparse", "/embed_all", "/similarity", "/rerank", "/predict"}
    | {"/tokenize", "/decode", "/info"},
    "cohere": {"/v2/embed", "/v2/rerank"},
    "jina": {"/v1/rerank"},
}


async def document_of(client: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get("/openapi.json")).json()
    return found


async def test_it_has_the_routes_of_each_dialect_with_their_bodies_and_answers(all_kinds: httpx.AsyncClient) -> None:
    found: dict[str, set[str]] = {}
    for path, operations in (await document_of(all_kinds))["paths"].items():
        for method, operation in operations.items():
            found.setdefault(operation["tags"][0], set()).add(path)
            assert ("requestBody" in operation) == (method == "post")
            assert set(operation["responses"]) == {"200", "default"}
    assert {name: found[name] for name in ROUTES_OF_DIALECTS} == ROUTES_OF_DIALECTS


async def test_every_reference_leads_somewhere(all_kinds: httpx.AsyncClient) -> None:
    document = await document_of(all_kinds)
    assert document["servers"] == [{"url": "."}]  # also where a proxy puts a path in front of all
    left: list[Any] = [document]
    for one in left:  # it grows on the way
        if isinstance(one, dict):
            left += one.values()
            name = one.get("$ref")
            if isinstance(name, str):
                assert name.removeprefix("#/components/schemas/") in document["components"]["schemas"]
        elif isinstance(one, list):
            left += one


async def test_what_needs_the_key_is_refused_without_it_in_json() -> None:
    from asyncembed.server import create_app

    async with serving(create_app(fakes_of_all_kinds(), api_key="secret")) as client:
        for path, operations in (await document_of(client))["paths"].items():
            for method, operation in operations.items():
                answer = await client.request(method, path, json={} if method == "post" else None)
                assert (answer.status_code == 401) == ("security" in operation), (method, path)
                if answer.status_code == 401:
                    assert answer.headers["www-authenticate"] == "Bearer"
                    assert "API key" in str(answer.json())
                    given = {"authorization": "Bearer secret"}
                    answer = await client.request(method, path, json={} if method == "post" else None, headers=given)
                    assert answer.status_code != 401
