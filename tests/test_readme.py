"""The README's snippets run as they stand, and print what they say; a local hub serves a small model for the real."""

import inspect
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import fastembed
import numpy as np
import pytest
from fastembed.rerank.cross_encoder import TextCrossEncoder as FastembedReranker

from asyncembed import TextCrossEncoder, TextEmbedding, cosine
from asyncembed.errors import OptionError, StateError
from tests.hub.server import HubServer
from tests.support import programs, snippets

pytestmark = pytest.mark.slow

README = Path(__file__).parents[1] / "README.md"
MIGRATION = README.parent / "examples" / "MIGRATION.md"
SNIPPETS = snippets.fenced(README.read_text(encoding="utf-8"))


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.strip().splitlines()[0][:40])
def test_the_snippet_prints_what_its_comments_say(
    snippet: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snippets.prepare(hub, snippet, tmp_path, monkeypatch)
    done = programs.run(snippets.as_program(snippet), tmp_path, how="stdin")
    assert done.returncode == 0, done.stderr
    snippets.assert_printed(done.stdout, snippet)


# ---------------------------------------------------------------- for those who come from elsewhere


ROWS = [
    tuple(cell.strip().strip("`") for cell in line.strip("|").split("|"))
    for line in MIGRATION.read_text(encoding="utf-8")
    .partition("| fastembed | sentence-transformers |")[2]
    .partition("\n\n")[0]
    .splitlines()[2:]
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("models")
    snippets.SMALL["BAAI/bge-small-en-v1.5"](directory / "text")
    snippets.SMALL["Xenova/ms-marco-MiniLM-L-6-v2"](directory / "reranker")
    return {"text": directory / "text", "reranker": directory / "reranker"}


def given(places: dict[str, Path]) -> dict[str, Any]:
    texts = ["the way", "a day", "time"]
    return {
        "name": "BAAI/bge-small-en-v1.5",
        "path": str(places["text"]),
        "texts": texts,
        "query": "a way",
        "pairs": [("a way", text) for text in texts],
        "matrix": np.eye(3),
        "cosine": cosine,
    }


@pytest.fixture(scope="module")
async def opened(places: dict[str, Path], anyio_backend: str) -> AsyncIterator[dict[str, Any]]:
    async with (
        TextEmbedding("BAAI/bge-small-en-v1.5", model_path=places["text"], workers=1) as model,
        TextCrossEncoder("Xenova/ms-marco-MiniLM-L-6-v2", model_path=places["reranker"], workers=1) as reranker,
    ):
        yield {"model": model, "reranker": reranker, "TextEmbedding": TextEmbedding}


@pytest.mark.parametrize(("fastembed_way", "_", "our_way"), ROWS, ids=[row[2] for row in ROWS])
async def test_what_fastembeds_users_write_gives_the_same_here(
    fastembed_way: str, _: str, our_way: str, places: dict[str, Path], opened: dict[str, Any]
) -> None:
    ours = eval(our_way.removeprefix("await "), given(places) | opened)
    if our_way.startswith("await "):
        ours = await ours
    if not fastembed_way or not our_way.startswith("await "):
        return
    theirs = eval(
        fastembed_way,
        given(places)
        | {
            "model": fastembed.TextEmbedding("BAAI/bge-small-en-v1.5", specific_model_path=str(places["text"])),
            "reranker": FastembedReranker("Xenova/ms-marco-MiniLM-L-6-v2", specific_model_path=str(places["reranker"])),
        },
    )
    assert np.allclose(np.asarray(theirs), np.asarray(ours), atol=1e-5)


def of_sentence_transformers() -> list[tuple[str, str]]:
    """What their users write, and the row's own answer."""
    return [(theirs, ours) for _, theirs, ours in ROWS if theirs]


@pytest.mark.parametrize(("their_way", "our_way"), of_sentence_transformers())
async def test_what_sentence_transformers_users_write_is_taken_or_answered(
    their_way: str, our_way: str, places: dict[str, Path]
) -> None:
    """The words that stand in the row are those of the answer."""
    models = {
        "model": TextEmbedding("a/b"),
        "reranker": TextCrossEncoder("a/b"),
        "SentenceTransformer": TextEmbedding,
    }
    # The answer to the method, and to its keywords.
    answers = [said(way, given(places) | models) for way in (their_way, their_way.replace(".encode(", ".embed("))]
    words = re.findall(r"\w+=|[a-z]+_\w+(?=\()|\bembed\b|^cosine", our_way) or re.findall(r"\.(\w+)", our_way)
    assert not any(answers) or any(word in answer for word in words for answer in answers), (answers, words)


def said(way: str, names: dict[str, Any]) -> str:
    """What it is refused with; empty if it is taken."""
    try:
        result = eval(way, names)
        if inspect.iscoroutine(result):
            result.close()
    except (AttributeError, OptionError) as error:
        return str(error)
    except StateError:  # it is not open; what it was called with is taken
        pass
    return ""
