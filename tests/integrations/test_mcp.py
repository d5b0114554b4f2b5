"""The example server answers the SDK's own client, over stdin and stdout."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from tests.support.models import write_self_describing_model
from tests.support.waiting import until, worker_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]  # a whole program, with workers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The client's: what is tested is in a program of its own, on its own loop."""
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "days.md").write_text("a day\n\nthe time of a day\n", encoding="utf-8")
    (folder / "deep" / "ways.txt").write_text("the way\n", encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


@asynccontextmanager
async def connected(folder: Path, *options: str) -> AsyncIterator[Client]:
    model = folder.parent / "model"
    write_self_describing_model(model)
    arguments = ["-m", "examples.mcp_search", str(folder), "--model", str(model), *options]
    environment = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "HF_", "COV"))}
    parameters = StdioServerParameters(command=sys.executable, args=arguments, env=environment, cwd=ROOT)
    async with Client(parameters) as client:
        yield client


async def found(client: Client, query: str, **arguments: Any) -> list[dict[str, Any]]:
    answer = await client.call_tool("search", {"query": query, **arguments})
    assert not answer.is_error, answer
    assert answer.structured_content is not None
    hits: list[dict[str, Any]] = answer.structured_content["result"]
    return hits


async def test_an_agent_finds_passages_by_meaning(folder: Path) -> None:
    async with connected(folder) as client:
        (tool,) = (await client.list_tools()).tools
        assert tool.name == "search"
        assert tool.input_schema["required"] == ["query"]
        hits = await found(client, "the way", limit=2)
        assert hits[0] == {"file": "deep/ways.txt", "text": "the way", "score": 1.0}
        assert [hit["score"] for hit in hits] == sorted([hit["score"] for hit in hits], reverse=True)
        assert {hit["file"] for hit in await found(client, "a day")} == {"days.md", "deep/ways.txt"}


async def test_it_finds_what_the_folder_has_now(folder: Path) -> None:
    async with connected(folder) as client:
        assert len(await found(client, "a day")) == 3
        (folder / "more.txt").write_text("a day and a way\n", encoding="utf-8")
        (folder / "days.md").unlink()
        assert {hit["file"] for hit in await found(client, "a day")} == {"deep/ways.txt", "more.txt"}
        (folder / "more.txt").unlink()
        (folder / "deep" / "ways.txt").unlink()
        assert await found(client, "a day") == []


async def test_the_model_opens_with_the_first_search_and_goes_when_idle(folder: Path) -> None:
    async with connected(folder, "--keep-alive", "0.2") as client:
        before = set(worker_processes())
        await client.list_tools()
        assert set(worker_processes()) == before, "nothing is loaded yet"
        await found(client, "a day")
        await until(lambda: set(worker_processes()) == before)
        assert await found(client, "a day"), "it opens again"


async def test_an_agent_is_told_why_a_model_cannot_be_opened(folder: Path) -> None:
    async with connected(folder, "--model", str(folder)) as client:
        answer = await client.call_tool("search", {"query": "a day"})
        assert answer.is_error
        assert str(folder) in str(answer.content)


async def test_nothing_but_the_protocol_is_on_stdout(folder: Path) -> None:
    """Whatever else stood there would be an exception in the client's stream of messages."""
    model = folder.parent / "model"
    write_self_describing_model(model)
    parameters = StdioServerParameters(
        command=sys.executable, args=["-m", "examples.mcp_search", str(folder), "--model", str(model)], cwd=ROOT
    )
    seen: list[object] = []

    @asynccontextmanager
    async def watched() -> AsyncIterator[Any]:
        async with stdio_client(parameters) as (received, to_send):
            receive = received.receive

            async def watching() -> Any:
                message = await receive()
                seen.append(message)
                return message

            received.receive = watching  # type: ignore[method-assign]
            yield received, to_send

    async with Client(watched()) as client:
        await found(client, "a day")
    assert len(seen) >= 2
    assert not [message for message in seen if isinstance(message, Exception)]
