"""An agent of Pydantic AI that looks things up in the docstrings of Python's standard library.

    uv run -m examples.pydantic_ai_search "run a coroutine with a time limit"
    uv run -m examples.pydantic_ai_search --llm anthropic:claude-sonnet-4-5 "run a coroutine with a time limit"

Without `--llm` no language model is needed: what stands in for it asks the tool, and says what that has found. Queries
are embedded on this machine. Nothing is opened before the first call, and nothing needs to be closed.
"""

import argparse
from itertools import islice
from typing import cast

import anyio
import numpy as np
from pydantic_ai import Agent, Embedder, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from asyncembed import top_k
from asyncembed.integrations.pydantic_ai import AsyncembedEmbeddingModel
from examples.quickstart import HITS, QUERIES, Document, demo_model, stdlib_docstrings


class Library:
    """Documents, and their vectors."""

    def __init__(self, embedder: Embedder, documents: list[Document]) -> None:
        self._embedder = embedder
        self._documents = documents
        self._matrix = np.empty((0, 0), np.float32)

    async def read(self) -> int:
        """Embed them all; gives the number of tokens."""
        result = await self._embedder.embed_documents([document.text for document in self._documents])
        self._matrix = np.array(result.embeddings, np.float32)
        return result.usage.input_tokens

    async def search(self, query: str) -> list[str]:
        result = await self._embedder.embed_query(query)
        best, _ = top_k(np.array(result[0], np.float32), self._matrix, HITS)
        return [self._documents[row].name for row in best]


async def search(context: RunContext[Library], query: str) -> list[str]:
    """Find the names in Python's standard library whose documentation is nearest in meaning to a query."""
    return await context.deps.search(query)


async def without_llm(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
    """Ask the tool for what the user has asked, and answer with what it says."""
    last = messages[-1].parts[-1]
    if isinstance(last, ToolReturnPart):
        return ModelResponse([TextPart(f"see {', '.join(cast(list[str], last.content))}")])
    assert isinstance(last, UserPromptPart)
    return ModelResponse([ToolCallPart("search", {"query": last.content})])


async def main() -> None:
    parser = argparse.ArgumentParser(description="An agent with a library.")
    parser.add_argument("questions", nargs="*", default=QUERIES)
    parser.add_argument("-n", "--documents", type=int, default=300)
    parser.add_argument("--llm", default=None, help="a language model, as Pydantic AI names it")
    arguments = parser.parse_args()

    embedder = Embedder(AsyncembedEmbeddingModel(demo_model()))
    library = Library(embedder, list(islice(stdlib_docstrings(), arguments.documents)))
    print(f"{arguments.documents} docstrings, {await library.read()} tokens")

    agent = Agent(arguments.llm or FunctionModel(without_llm), deps_type=Library, tools=[search])
    for question in arguments.questions:
        answer = await agent.run(question, deps=library)
        print(f"\n{question}\n  {answer.output}")


if __name__ == "__main__":
    anyio.run(main)
