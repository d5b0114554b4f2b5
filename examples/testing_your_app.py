"""Tests of a program that embeds, without a model: a small app, and its tests.

    uv run pytest examples/testing_your_app.py --asyncio-mode=auto                 # pytest-asyncio
    uv run pytest examples/testing_your_app.py -p no:asyncio -o anyio_mode=auto    # anyio's plugin: asyncio and trio

The fixture `asyncembed_fakes` comes with asyncembed. While it is in use, whatever embedder opens is a fake: it needs no
files and no network, opens in a millisecond, and gives the same vectors every time, of the model's own size. All else
is the real thing. `ASYNCEMBED_FAKE=1` does the same for a whole program, as a server that a test starts.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import numpy as np
import pytest

from asyncembed import TextEmbedding, sync
from asyncembed.errors import InputError, NotCachedError
from asyncembed.testing import Fakes

# ---------------------------------------------------------------- the app


class Search:
    """Finds texts by their meaning; knows nothing of tests."""

    def __init__(self) -> None:
        self.model = TextEmbedding("BAAI/bge-small-en-v1.5")
        self.texts: list[str] = []
        self.refused: list[str] = []
        self._vectors: list[Any] = []

    async def add(self, texts: list[str]) -> None:
        async with self.model.embed(texts, on_error=lambda text, _: self.refused.append(text)).with_inputs() as stream:
            async for text, vector in stream:
                self.texts.append(text)
                self._vectors.append(vector)

    async def find(self, query: str, *, within_seconds: float = 5.0) -> str:
        with anyio.fail_after(within_seconds):
            vector = await self.model.embed_query(query)
        return self.texts[int(np.argmax(np.stack(self._vectors) @ vector))]


def similarity(one: str, two: str) -> float:
    """The same without an event loop."""
    with sync.TextEmbedding("BAAI/bge-small-en-v1.5") as model:
        first, second = model.embed_documents([one, two])
    return float(first @ second)


# ---------------------------------------------------------------- its tests

TEXTS = ["a full queue makes its writer wait", "bread needs flour and time", "the ferry leaves at noon"]


@pytest.fixture
async def search(asyncembed_fakes: Fakes) -> AsyncIterator[Search]:
    """The app, opened for each test: that costs next to nothing."""
    search = Search()
    await search.model.open()
    yield search
    await search.model.aclose()


async def test_a_text_is_found_by_its_words(search: Search) -> None:
    await search.add(TEXTS)
    assert await search.find("when does the ferry leave?") == TEXTS[2]


async def test_a_text_that_cannot_be_embedded_is_put_aside(search: Search, asyncembed_fakes: Fakes) -> None:
    asyncembed_fakes.failures["flour"] = InputError("not today")
    await search.add(TEXTS)
    assert search.refused == [TEXTS[1]]
    assert len(search.texts) == 2


async def test_a_slow_model_is_not_waited_for(search: Search, asyncembed_fakes: Fakes) -> None:
    await search.add(TEXTS)
    asyncembed_fakes.seconds = 60.0
    with pytest.raises(TimeoutError):
        await search.find("a ferry", within_seconds=0.05)
    asyncembed_fakes.seconds = 0.0
    assert await search.find("a ferry") == TEXTS[2]


async def test_a_model_that_cannot_be_had(asyncembed_fakes: Fakes) -> None:
    asyncembed_fakes.opening_error = NotCachedError("no network here")
    with pytest.raises(NotCachedError):
        await Search().model.open()


def test_programs_without_a_loop_have_fakes_too(asyncembed_fakes: Fakes) -> None:
    assert similarity("a ferry", "a ferry") == pytest.approx(1)
    assert similarity("a ferry", "the ferry") > similarity("a ferry", "bread")


# ---------------------------------------------------------------- what lives as long as the whole run


@pytest.fixture(scope="session")
def anywhere(asyncembed_fakes_session: Fakes) -> Iterator[TextEmbedding]:
    """One model for all tests, whatever loop each of them runs on; the first call opens it."""
    model = TextEmbedding("BAAI/bge-small-en-v1.5").on_any_loop()
    yield model
    del model


@pytest.mark.parametrize("text", TEXTS)
async def test_each_test_has_a_loop_of_its_own(anywhere: TextEmbedding, text: str) -> None:
    assert (await anywhere.embed_query(text)).shape == (384,)
