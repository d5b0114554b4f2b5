"""The examples in docstrings run, and come to what their comments say."""

import ast
import doctest
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

import pytest

import asyncembed
from tests.hub.server import HubServer
from tests.support import programs, snippets

ROOT = Path(asyncembed.__file__).parents[1]
Documented: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def docstrings() -> list[tuple[str, str, str]]:
    """Module, name and docstring of everything in the package that has one."""
    return list(_docstrings())


def _documented(node: Documented) -> Iterator[Documented]:
    """It, and the classes and functions that stand in it."""
    yield node
    for inner in node.body:
        if isinstance(inner, DOCUMENTED):
            yield from _documented(inner)


def _docstrings() -> Iterator[tuple[str, str, str]]:
    for path in sorted((ROOT / "asyncembed").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in _documented(ast.parse(path.read_text(encoding="utf-8"))):
            if text := ast.get_docstring(node):
                yield module, getattr(node, "name", ""), text


RUN_ELSEWHERE = {"asyncembed.integrations.ray"}
"""Modules whose examples the module's own tests run, as they need what takes long to start."""

EXAMPLES = [
    pytest.param(snippet, module, id=f"{module}:{name}")
    for module, name, text in docstrings()
    if module not in RUN_ELSEWHERE
    for snippet in snippets.fenced(text)
]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.mark.slow
@pytest.mark.timeout(60)  # some frameworks take many seconds to import
@pytest.mark.parametrize(("snippet", "module"), EXAMPLES)
def test_an_example_runs_and_comes_to_what_it_says(
    snippet: str, module: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snippets.prepare(hub, snippet, tmp_path, monkeypatch)
    done = programs.run(snippets.as_program(snippet, module), tmp_path)
    assert done.returncode == 0, done.stderr
    snippets.assert_printed(done.stdout, snippet)


def test_the_lines_of_a_session_give_what_they_show() -> None:
    for module in sorted({module for module, _, text in docstrings() if ">>> " in text}):
        assert doctest.testmod(import_module(module)).failed == 0


def test_a_comment_that_is_wrong_is_noticed() -> None:
    program = snippets.as_program("maxsim(np.eye(2), np.eye(2))  # 1 + 1 = 2\n", "asyncembed.scoring")
    assert "check(maxsim(np.eye(2), np.eye(2)), '1 + 1 = 2')" in program
    import numpy as np

    snippets.check(2.0, "1 + 1 = 2")
    snippets.check([np.zeros((1, 128))], "a list of arrays (rows, 128)")
    snippets.check(np.zeros((3, 5)), "(tokens, dim)")
    for value, claim in [(2.1, "1 + 1 = 2"), (np.zeros((1, 64)), "(rows, 128)"), (np.zeros(3), "(tokens, dim)")]:
        with pytest.raises(AssertionError, match="is not"):
            snippets.check(value, claim)


def test_an_example_that_takes_too_much_for_granted_is_noticed() -> None:
    with pytest.raises(AssertionError, match="comes from nowhere"):
        snippets.as_program("print(nosuch)")
