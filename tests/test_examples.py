"""The examples run as their docstrings say, on little data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
