"""The examples run as their docstrings say, on little data."""

import os
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from examples.quickstart import stdlib_docstrings
from tests.support.sparse_models import write_reranker

ROOT = Path(__file__).parents[1]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"HF_HOME": str(tmp_path), "ASYNCEMBED_CACHE": str(tmp_path), "PYTHONIOENCODING": "utf-8"}


def run(environment: dict[str, str], *arguments: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        input=typed,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=100,
        check=True,
    )


def test_the_quickstart_answers_typed_queries_best_first(environment: dict[str, str]) -> None:
    done = run(environment, "examples/quickstart.py", "-n", "40", "--ask", typed="numbers drawn by chance\n\n")
    assert re.search(r"^40 docstrings, \d+ tokens in .* s with \d+ workers", done.stdout, re.MULTILINE)
    scores = [float(score) for score in re.findall(r"^  (\d\.\d\d)  [\w.]+$", done.stdout, re.MULTILINE)]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_the_quickstart_answers_queries_from_the_command_line(environment: dict[str, str]) -> None:
    done = run(environment, "examples/quickstart.py", "-n", "25", "first query", "second query")
    assert "\nfirst query\n" in done.stdout
    assert "\nsecond query\n" in done.stdout


def test_hybrid_search_finds_a_document_by_a_word_that_no_other_has(environment: dict[str, str]) -> None:
    documents = list(islice(stdlib_docstrings(), 60))
    words = [set(re.findall(r"\w{5,}", document.text.lower())) for document in documents]
    name, word = next(
        (document.name, word)
        for document, own in zip(documents, words, strict=True)
        for word in sorted(own)
        if sum(word[:5] in document.text.lower() for document in documents) == 1
    )
    done = run(environment, "-m", "examples.hybrid_search", "-n", "60", word, "a time limit")
    assert done.stdout.startswith("no --reranker")
    assert re.search(r"^60 docstrings in .* with \d+ workers$", done.stdout, re.MULTILINE)
    hits = re.findall(r"^ +\d\.\d\d  ([\w.]+)$", done.stdout, re.MULTILINE)
    assert len(hits) == 6
    assert name in hits[:3]


def test_hybrid_search_puts_hits_in_the_rerankers_order(environment: dict[str, str], tmp_path: Path) -> None:
    reranker = write_reranker(tmp_path / "reranker")
    done = run(environment, "-m", "examples.hybrid_search", "-n", "30", "--reranker", str(reranker), "a time limit")
    scores = [float(score) for score in re.findall(r"^ +(-?\d+\.\d\d)  [\w.]+$", done.stdout, re.MULTILINE)]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert "no --reranker" not in done.stdout
