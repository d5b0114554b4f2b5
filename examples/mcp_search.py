"""A server for agents, by the Model Context Protocol: search a folder of texts by meaning.

    uv run -m examples.mcp_search ~/notes      # as an agent's configuration starts it; it talks on stdin and stdout
    uv run -m examples.mcp_search ~/notes --model BAAI/bge-small-en-v1.5 --keep-alive 60

Starting costs nothing: the first search opens the model and embeds the folder, a later one only what has changed since.
After `--keep-alive` seconds without a search the model goes, with its workers, until the next one: a desktop may have
many such servers that are hardly ever asked. Searches of several agents at once are batched together.

Only the protocol goes to stdout. Logs and progress bars of the model go to stderr, and so does what its workers print.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import numpy as np
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel

from asyncembed import TextEmbedding, top_k
from asyncembed.errors import AsyncEmbedError
from examples.quickstart import demo_model

SUFFIXES = {".md", ".rst", ".txt"}


class Hit(BaseModel):
    """A passage that was found."""

    file: str
    text: str
    score: float


class Passage(NamedTuple):
    """A paragraph, and where it stands."""

    file: str
    text: str


class Embedded(NamedTuple):
    """The passages of a file as it was when it was read, and their vectors: (n, dim)."""

    changed: int
    passages: list[Passage]
    vectors: np.ndarray


class Index:
    """The passages of a folder, as they were at the last search."""

    def __init__(self, folder: Path, model: TextEmbedding[np.float32]) -> None:
        self._folder = folder
        self._model = model
        self._files: dict[Path, Embedded] = {}
        self._lock = anyio.Lock()

    async def search(self, query: str, limit: int) -> list[Hit]:
        async with self._lock:  # who comes meanwhile finds it done
            await self._refresh()
            files = list(self._files.values())
        passages = [passage for file in files for passage in file.passages]
        if not passages:
            return []
        vector = await self._model.embed_query(query)
        matrix = np.concatenate([file.vectors for file in files if file.passages])
        # Not on the event loop, as a folder may be large.
        best, scores = await anyio.to_thread.run_sync(lambda: top_k(vector, matrix, limit, similarity="cosine"))
        return [
            Hit(file=passages[row].file, text=passages[row].text, score=round(float(score), 4))
            for row, score in zip(best, scores, strict=True)
        ]

    async def _refresh(self) -> None:
        """Embed the files that are new or changed, and forget those that are gone."""
        known = {path: file.changed for path, file in self._files.items()}
        there, changed = await anyio.to_thread.run_sync(lambda: read_folder(self._folder, known))
        self._files = {path: file for path, file in self._files.items() if path in there}
        passages = [passage for found in changed.values() for passage in found]
        # Bulk work: a query of somebody else goes first.
        vectors = await self._model.passage_embed(passages, key=lambda passage: passage.text).collect()
        start = 0
        for path, found in changed.items():
            self._files[path] = Embedded(there[path], found, vectors[start : start + len(found)])
            start += len(found)


def read_folder(folder: Path, known: dict[Path, int]) -> tuple[dict[Path, int], dict[Path, list[Passage]]]:
    """When each file has changed, and the passages of those for which that is not known."""
    there = {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES}
    return there, {
        path: [Passage(path.relative_to(folder).as_posix(), text) for text in paragraphs(path)]
        for path, changed in there.items()
        if known.get(path) != changed
    }


def paragraphs(path: Path) -> Iterator[str]:
    for paragraph in path.read_text(encoding="utf-8", errors="replace").split("\n\n"):
        if text := paragraph.strip():
            yield text


def serve(folder: Path, model_name: str | Path, keep_alive: float) -> MCPServer:
    server = MCPServer("asyncembed-search", instructions=f"Searches the texts in {folder} by meaning.")
    # Opens nothing; and whatever event loop the server runs, this may be awaited there.
    index = Index(folder, TextEmbedding(model_name, progress=False).on_any_loop(keep_alive=keep_alive))

    @server.tool()
    async def search(query: str, limit: int = 5) -> list[Hit]:
        """Find the passages that are nearest in meaning to a query, best first; `limit` is how many."""
        try:
            return await index.search(query, max(1, limit))
        except AsyncEmbedError as error:  # an agent is told what is wrong; of any other error, that there was one
            raise ToolError(str(error)) from error

    return server


def main() -> None:
    parser = argparse.ArgumentParser(description="Search a folder of texts, for agents.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=None, help="a name or a directory; without it, all-MiniLM-L6-v2")
    parser.add_argument(
        "--keep-alive", type=float, default=300.0, help="seconds without a search, until the model goes"
    )
    arguments = parser.parse_args()
    serve(arguments.folder, arguments.model or demo_model(), arguments.keep_alive).run("stdio")


if __name__ == "__main__":
    main()
