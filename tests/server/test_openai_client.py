"""OpenAI's own client, in both of its forms."""

from functools import partial

import httpx
import numpy as np
import openai
import pytest
from anyio import to_thread

from tests.support.asgi_servers import serving
from tests.support.served_fakes import fakes_of_all_kinds

pytestmark = pytest.mark.slow

TEXTS = ["a text", "another text"]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The client's own, besides trio, which its parts have too little of."""
    return "asyncio"


def url_of(client: httpx.AsyncClient) -> str:
    return f"{str(client.base_url).rstrip('/')}/v1"


async def test_vectors_are_those_of_the_library_however_they_travel(all_kinds: httpx.AsyncClient) -> None:
    async with fakes_of_all_kinds()["text"] as model:
        expected = await model.embed(TEXTS).collect()  # type: ignore[attr-defined]
    async with openai.AsyncOpenAI(base_url=url_of(all_kinds), api_key="any", max_retries=0) as client:
        by_default = await client.embeddings.create(model="text", input=TEXTS)
        as_numbers = await client.embeddings.create(model="text", input=TEXTS, encoding_format="float")
        for answer in (by_default, as_numbers):
            np.testing.assert_array_equal(np.array([one.embedding for one in answer.data], np.float32), expected)
            assert answer.usage.prompt_tokens == 4
        shorter = await client.embeddings.create(model="text", input="a text", dimensions=4)
        assert len(shorter.data[0].embedding) == 4
        rows = await client.embeddings.create(model="late_interaction", input="a text")
        assert np.array(rows.data[0].embedding).shape[1] == 4


async def test_errors_are_those_that_the_client_knows(all_kinds: httpx.AsyncClient) -> None:
    async with openai.AsyncOpenAI(base_url=url_of(all_kinds), api_key="any", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.embeddings.create(model="nosuch", input="a text")
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError, match="empty text"):
            await client.embeddings.create(model="text", input="")


async def test_a_model_is_retrieved_by_its_name() -> None:
    from asyncembed.server import create_app

    async with serving(create_app({"org/text": fakes_of_all_kinds()["text"]})) as server:
        async with openai.AsyncOpenAI(base_url=url_of(server), api_key="any", max_retries=0) as client:
            assert (await client.models.retrieve("org/text")).id == "org/text"
            with pytest.raises(openai.NotFoundError, match="nosuch"):
                await client.models.retrieve("nosuch")


async def test_a_client_without_the_key_is_told_so() -> None:
    from asyncembed.server import create_app

    async with serving(create_app({"text": fakes_of_all_kinds()["text"]}, api_key="right")) as server:
        for key, is_right in (("wrong", False), ("right", True)):
            async with openai.AsyncOpenAI(base_url=url_of(server), api_key=key, max_retries=0) as client:
                if is_right:
                    assert [model.id async for model in client.models.list()] == ["text"]
                else:
                    with pytest.raises(openai.AuthenticationError, match="API key"):
                        await client.models.list()


async def test_the_client_without_an_event_loop_is_served_as_well(all_kinds: httpx.AsyncClient) -> None:
    with openai.OpenAI(base_url=url_of(all_kinds), api_key="any", max_retries=0) as client:
        ask = partial(client.embeddings.create, model="text", input=TEXTS)
        answer = await to_thread.run_sync(ask)
        assert len(answer.data) == 2
