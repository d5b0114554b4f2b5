"""The OpenAPI document against the server: whatever it allows, and much that it does not, is answered as it says."""

from functools import partial
from typing import Any

import httpx
import pytest
import schemathesis
from anyio import to_thread
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

pytestmark = pytest.mark.slow

DIALECTS = ("openai", "text-embeddings-inference", "cohere", "jina", "operations", "page")

EXAMPLES = 12


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One is enough: what is asked is the same."""
    return "asyncio"


async def test_the_document_has_all_dialects(all_kinds: httpx.AsyncClient) -> None:
    paths = (await all_kinds.get("/openapi.json")).json()["paths"].values()
    assert {operation["tags"][0] for path in paths for operation in path.values()} == set(DIALECTS)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_no_request_fails_and_all_answers_are_as_the_document_says(
    all_kinds: httpx.AsyncClient, dialect: str, mode: GenerationMode
) -> None:
    found = await to_thread.run_sync(partial(_found, str(all_kinds.base_url), dialect, mode))
    assert not found, found


def _found(url: str, dialect: str, mode: GenerationMode) -> str:
    """What is wrong, in words: Schemathesis raises it as a group, which a test's task group would take for its own."""
    try:
        _try_out(url, dialect, mode)
    except BaseExceptionGroup as failures:
        return "\n".join(map(str, failures.exceptions))
    return ""


def _try_out(url: str, dialect: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json").include(tag=dialect)
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]  # raises what is wrong with the document
        if mode is GenerationMode.NEGATIVE and operation.method == "get":
            continue  # it takes nothing that could be wrong

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy(generation_mode=mode))
        def try_one(case: Any) -> None:
            # What is right by its form may still ask for a model or a prompt that is not there.
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        try_one()
