"""The README's snippets run as they stand, and print what they say; a local hub serves a small model for the real."""

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.server import HubServer, Repo
from tests.support.models import files_of, write_model
from tests.support.sparse_models import write_bm25, write_reranker

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
DIM = 384


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    directory = write_model(tmp_path / "model", model_file="model_optimized.onnx", dim=DIM)
    with HubServer() as server:
        server.repos["Qdrant/bge-small-en-v1.5-onnx-Q"] = Repo(files_of(directory))
        for repo, directory in (
            ("Qdrant/bm25", write_bm25(tmp_path / "bm25")),
            ("Xenova/ms-marco-MiniLM-L-6-v2", write_reranker(tmp_path / "reranker")),
        ):
            server.repos[repo] = Repo(files_of(directory))
        yield server


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.strip().splitlines()[0][:40])
def test_the_snippet_prints_what_its_comments_say(snippet: str, hub: HubServer, tmp_path: Path) -> None:
    program = snippet if "anyio.run(" in snippet else as_program(snippet)
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-"], input=program, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    position = 0
    for expected in re.findall(r"print\(.*\)  # (.*)", snippet):
        assert expected in done.stdout[position:], done.stdout
        position = done.stdout.index(expected, position) + len(expected)


def as_program(snippet: str) -> str:
    """A snippet with `async with` at its top level, as a whole program."""
    imports = [line for line in snippet.splitlines() if line.startswith(("import ", "from "))]
    body = [line for line in snippet.splitlines() if line not in imports]
    return "\n".join(
        [
            "import anyio",
            "from asyncembed import TextEmbedding",
            *imports,
            "async def main():",
            textwrap.indent("\n".join(body), "    "),
            "anyio.run(main)",
        ]
    )
