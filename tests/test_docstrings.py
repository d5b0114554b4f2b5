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
SIGNS = ("```", ">>> ")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def docstrings() -> list[tuple[str, str, str]]:
    """Module, name and docstring of everything in the package that shows an example."""
    return list(_docstrings())


def _documented(node: Documented) -> Iterator[Documented]:
    """It, and the classes and functions that stand in it."""
    yield node
    for inner in node.body:
        if isinstance(inner, DOCUMENTED):
            yield from _documented(inner)


def _docstrings() -> Iterator[tuple[str, str, str]]:
    for path in sorted((ROOT / "asyncembed").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if not any(sign in source for sign in SIGNS):
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in _documented(ast.parse(source)):
            if text := ast.get_docstring(node):
                yield module, getattr(node, "name", ""), text


RUN_ELSEWHERE = {"asyncembed.integrations.ray"}
"""Modules whose examples the module's own tests run, as they need what takes long to start."""


def kin_of(module: str) -> str:
    """Whose examples a module's are run with, in one program: what both import takes longer than what they do."""
    match module.split("."):
        case [_, "integrations", name]:
            return name.removesuffix("_qdrant")
        case [_, "embedders" | "sync" as name, *_]:
            return name
    return "the rest"


EXAMPLES = [
    (kin_of(module), f"{module}:{name}", snippet, module)
    for module, name, text in docstrings()
    if module not in RUN_ELSEWHERE
    for snippet in snippets.fenced(text)
]

ONE_BY_ONE = """
import os, runpy, sys

for folder in sys.argv[1:]:
    os.chdir(folder)
    runpy.run_path("example.py", run_name="__main__")
    print("END", flush=True)
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.mark.slow
@pytest.mark.timeout(60)  # some frameworks take many seconds to import
@pytest.mark.parametrize("kin", dict.fromkeys(kin for kin, *_ in EXAMPLES))
def test_examples_run_and_come_to_what_they_say(
    kin: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in a folder of its own, which an error's traceback names."""
    examples = {name: (snippet, module) for of, name, snippet, module in EXAMPLES if of == kin}
    snippets.prepare(hub, "\n".join(snippet for snippet, _ in examples.values()), tmp_path, monkeypatch)
    for name, (snippet, module) in examples.items():
        snippets.write_inputs(tmp_path / name.replace(":", "-"))
        program = snippets.as_program(snippet, module)
        (tmp_path / name.replace(":", "-") / "example.py").write_text(program, "utf-8")
    done = programs.run(ONE_BY_ONE, tmp_path, *(str(tmp_path / name.replace(":", "-")) for name in examples))
    assert done.returncode == 0, done.stderr
    for (snippet, _), output in zip(examples.values(), done.stdout.split("END\n"), strict=False):
        snippets.assert_printed(output, snippet)


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
