"""No text file is read or written in the encoding of the system at hand, which on Windows is another one."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

_ARGUMENTS = {"read_text": 1, "write_text": 2}
"""By method of a path: the arguments that it has where the last one is an encoding."""


def unnamed_encodings(source: str) -> Iterator[int]:
    """The lines of a program that read or write text in no encoding that they name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _is_about_text(node) and not _names_encoding(node):
            yield node.lineno


def _names_encoding(call: ast.Call) -> bool:
    return any(keyword.arg == "encoding" for keyword in call.keywords)


def _is_about_text(call: ast.Call) -> bool:
    constants = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
    given = [getattr(argument, "value", None) for argument in call.args]
    if isinstance(call.func, ast.Name):
        mode = given[1] if len(given) > 1 else constants.get("mode", "r")
        return call.func.id == "open" and "b" not in str(mode)
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if method == "open":  # of a path, as far as its mode says so
        return re.fullmatch(r"[rwax]\+?", str(given[0] if given else constants.get("mode"))) is not None
    if method in ("run", "Popen", "check_output"):
        return constants.get("text") is True
    return len(given) < _ARGUMENTS.get(method, 0)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["asyncembed", "tests", "benchmarks", "examples"])
def test_every_text_is_read_and_written_in_an_encoding_that_is_named(folder: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in (ROOT / folder).rglob("*.py")
        for line in unnamed_encodings(path.read_text("utf-8"))
    }
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "open(path)",
        "open(path, 'w')",
        "path.open('a')",
        "path.read_text()",
        "path.write_text(text)",
        "subprocess.run(command, check=True, text=True)",
    ],
)
def test_text_in_no_named_encoding_is_found(source: str) -> None:
    assert list(unnamed_encodings(source)) == [1]


@pytest.mark.parametrize("source", ["open(path, 'rb')", "path.open('xb')", "path.read_text('ascii')", "model.open()"])
def test_bytes_need_no_encoding(source: str) -> None:
    assert not list(unnamed_encodings(source))
