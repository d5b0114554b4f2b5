"""The README's snippets run as they stand, and print what they say; a local hub serves a small model for the real."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.server import HubServer
from tests.support import programs, snippets

pytestmark = pytest.mark.slow

README = Path(__file__).parents[1] / "README.md"
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
