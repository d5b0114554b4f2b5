"""Pydantic AI's own `Embedder` on our models."""

import asyncio
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic_ai import Embedder, InstrumentationSettings
from pydantic_ai.embeddings import EmbeddingSettings

from asyncembed import TextEmbedding, sync
from asyncembed.errors import InputError, OptionError
from asyncembed.integrations.pydantic_ai import (
    INTERACTIVE_INPUTS,
    AsyncembedEmbeddingModel,
    AsyncembedEmbeddingSettings,
)
from asyncembed.testing import Fakes, fake_models
from tests.support import snippets
from tests.support.encoders import ECHO, with_settings
from tests.support.waiting import until

pytestmark = pytest.mark.slow

NAME = "BAAI/bge-small-en-v1.5"
PROMPTS = {"query": "find: ", "passage": "text: ", "other": "else: "}


@pytest.fixture
def fakes() -> Iterator[Fakes]:
    with fake_models() as fakes:
        yield fakes


async def test_queries_and_documents_are_what_the_model_gives(fakes: Fakes) -> None:
    async with TextEmbedding(NAME, prompts=PROMPTS) as model:
        embedder = Embedder(AsyncembedEmbeddingModel(model))
        queries = await embedder.embed_query(["one", "another"])
        documents = await embedder.embed_documents("one")
        assert queries.embeddings == (await model.query_embed(["one", "another"]).collect()).tolist()
        assert documents.embeddings == (await model.embed_documents(["one"])).tolist()
        assert queries["another"] == queries.embeddings[1]
        assert queries["one"] != documents["one"], "each role has its prompt"
        with pytest.raises(InputError, match="the source is a dict"):
            await embedder.embed_documents({"a": "b"})  # type: ignore[arg-type]
    assert (queries.model_name, queries.provider_name, queries.input_type) == (NAME, "asyncembed", "query")
    assert json.loads(json.dumps(queries.embeddings)) == queries.embeddings


async def test_usage_is_the_tokens_that_were_computed(fakes: Fakes) -> None:
    embedder = Embedder(AsyncembedEmbeddingModel(NAME, max_length=3))
    result = await embedder.embed_documents(["one", "one two three four five", "a b"])
    assert result.usage.input_tokens == 1 + 3 + 2
    assert result.provider_details == {"cut": [1]}
    assert (await embedder.embed_documents("one")).provider_details is None
    query = await embedder.embed_query("one two three four five")
    assert (query.usage.input_tokens, query.provider_details) == (3, {"cut": [0]})
    queries = await embedder.embed_query(["one", "one two three four five"])
    assert (queries.usage.input_tokens, queries.provider_details) == (1 + 3, {"cut": [1]})
    assert (await embedder.embed_query("one")).provider_details is None
    assert await embedder.count_tokens("one two three four five") == 5
    assert await embedder.max_input_tokens() == 3


async def test_no_inputs_have_no_embeddings(fakes: Fakes) -> None:
    result = await Embedder(AsyncembedEmbeddingModel(NAME)).embed_documents([])
    assert result.embeddings == []
    assert result.usage.input_tokens == 0


async def test_settings_are_those_of_the_model_the_embedder_and_the_call(fakes: Fakes) -> None:
    model = AsyncembedEmbeddingModel(NAME, settings=EmbeddingSettings(dimensions=64), max_length=3, prompts=PROMPTS)
    embedder = Embedder(model, settings=AsyncembedEmbeddingSettings(asyncembed_prompt_name="other"))
    result = await embedder.embed_query("one")
    assert len(result["one"]) == 64
    prompt = AsyncembedEmbeddingSettings(asyncembed_prompt="else: ")
    own = Embedder(AsyncembedEmbeddingModel(NAME, max_length=3, prompts=PROMPTS, truncate_dim=64))
    assert result["one"] == (await own.embed_query("one", settings=prompt))["one"]
    assert len((await embedder.embed_query("one", settings={"dimensions": 32}))["one"]) == 32
    with pytest.raises(InputError, match="input 1"):
        await embedder.embed_documents(["a", "a b c d"], settings={"truncate": False})
    with pytest.raises(InputError, match="input 0"):
        await embedder.embed_query("a b c d", settings={"truncate": False})
    with pytest.raises(OptionError, match="no prompt is called 'nosuch'"):
        await embedder.embed_query("a", settings=AsyncembedEmbeddingSettings(asyncembed_prompt_name="nosuch"))


async def test_instrumentation_records_the_usage(fakes: Fakes) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = InstrumentationSettings(tracer_provider=provider, include_content=True)
    await Embedder(AsyncembedEmbeddingModel(NAME), instrument=settings).embed_query("one two")
    (span,) = exporter.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["gen_ai.usage.input_tokens"] == 2
    assert span.attributes["gen_ai.request.model"] == NAME


@pytest.mark.parametrize("given", [NAME, "open elsewhere", "sync"])
def test_the_synchronous_methods_work_in_any_thread(given: str, fakes: Fakes) -> None:
    found: list[Any] = []

    def ask(embedder: Embedder) -> None:
        found.append((embedder.embed_query_sync("one")["one"], embedder.count_tokens_sync("one two")))
        asyncio.get_event_loop_policy().get_event_loop().close()  # Pydantic AI leaves one in every thread

    def ask_in_threads(model: Any) -> None:
        threads = [threading.Thread(target=ask, args=[Embedder(AsyncembedEmbeddingModel(model))]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    async def ask_from_elsewhere() -> None:
        async with TextEmbedding(NAME) as model:
            await anyio.to_thread.run_sync(ask_in_threads, model)

    if given == "open elsewhere":
        anyio.run(ask_from_elsewhere)
    else:
        ask_in_threads(sync.TextEmbedding(NAME) if given == "sync" else given)
    assert len(found) == 4
    assert all(one == (found[0][0], 2) for one in found)


async def test_the_event_loop_goes_on_while_a_model_computes(gate: Path) -> None:
    """The loop counts its turns while the worker computes, which it does until the loop has had its turns."""
    model = AsyncembedEmbeddingModel(ECHO, workers=1)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while turns < 1000:
            turns += 1
            await anyio.lowlevel.checkpoint()
        gate.touch()

    async with anyio.create_task_group() as group:
        group.start_soon(count)
        result = await Embedder(model).embed_query(f"wait:{gate}")
    assert turns == 1000
    assert len(result.embeddings[0]) == 3


async def test_a_call_that_is_cancelled_is_withdrawn(gate: Path) -> None:
    async with TextEmbedding(ECHO, workers=1, max_batch_size=1) as opened:
        embedder = Embedder(AsyncembedEmbeddingModel(opened))
        async with anyio.create_task_group() as group:
            group.start_soon(embedder.embed_query, f"wait:{gate}")
            await until(lambda: opened.stats().in_flight == 1)
            group.start_soon(embedder.embed_documents, ["a", "b", "c"])
            await until(lambda: opened.stats().queued_interactive == 3)
            group.cancel_scope.cancel()
        await until(lambda: opened.stats().queued == 0)


async def test_a_large_call_lets_queries_pass(gate: Path) -> None:
    async with TextEmbedding(ECHO, workers=1) as opened:
        embedder = Embedder(AsyncembedEmbeddingModel(opened))
        async with anyio.create_task_group() as group:
            group.start_soon(embedder.embed_query, f"wait:{gate}")
            await until(lambda: opened.stats().in_flight == 1)
            group.start_soon(embedder.embed_documents, ["#1"] * (INTERACTIVE_INPUTS + 1))
            await until(lambda: opened.stats().queued_bulk > 0)
            assert opened.stats().queued_interactive == 0
            gate.touch()


async def test_concurrent_calls_are_batched_together(tmp_path: Path, gate: Path) -> None:
    async with TextEmbedding(with_settings(log=str(tmp_path / "log")), workers=1) as opened:
        embedder = Embedder(AsyncembedEmbeddingModel(opened))
        found: dict[int, float] = {}

        async def ask(number: int) -> None:
            found[number] = (await embedder.embed_query(f"#{number}")).embeddings[0][2]

        async with anyio.create_task_group() as group:
            group.start_soon(embedder.embed_query, f"wait:{gate}")
            await until(lambda: opened.stats().in_flight == 1)
            for number in range(10, 26):
                group.start_soon(ask, number)
            await until(lambda: opened.stats().queued_interactive == 16)
            gate.touch()
        assert found == {number: number for number in range(10, 26)}
        assert opened.stats().batches <= 4


async def test_a_pickled_one_opens_where_it_arrives(fakes: Fakes) -> None:
    model = AsyncembedEmbeddingModel(NAME, settings={"dimensions": 64}, max_length=3)
    again = pickle.loads(pickle.dumps(model))
    assert again.settings == {"dimensions": 64}
    result = await again.embed("one", input_type="query")
    np.testing.assert_array_equal(result["one"], (await model.embed("one", input_type="query"))["one"])
    await model.aclose()


async def test_the_snippet_of_the_readme_answers(fakes: Fakes) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    snippet = snippets.of_integration(readme, "pydantic_ai")
    async with TextEmbedding(NAME) as model:
        embedder: Embedder = eval(snippet, globals(), {"model": model})
        assert len((await embedder.embed_query("one"))["one"]) == 384


@pytest.mark.timeout(60)  # a whole program on the real model
def test_the_example_has_an_agent_find_docstrings(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.pydantic_ai_search", "-n", "60", "pick random elements"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"HF_HOME": str(tmp_path), "ASYNCEMBED_CACHE": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert re.match(
        r"60 docstrings, \d{3,} tokens\n\npick random elements\n  see [\w.]+, [\w.]+, [\w.]+\n$", done.stdout
    )
