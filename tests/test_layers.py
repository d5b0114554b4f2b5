"""The arrows between the package's layers point one way: read from the imports themselves."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import asyncembed

PACKAGE = Path(asyncembed.__file__).parent

EVERYBODYS = {"errors", "checks", "__version__"}

# What a layer may import of the package, besides itself and what is everybody's.
MAY_IMPORT = {
    "bars": set[str](),
    "errors": set[str](),
    "faking": set[str](),
    "checks": {"migration"},
    "migration": set[str](),
    "files": set[str](),
    "http": set[str](),
    "repo_files": set[str](),
    "results": set[str](),
    "wakeup": set[str](),
    "remote": {"wakeup"},
    "background": {"engine", "remote", "wakeup"},
    "shared": {"background", "engine", "faking", "wakeup"},
    "any_loop": {"background", "bars", "engine", "feeding", "remote", "results", "shared", "stream", "wakeup"},
    "sync": {
        "any_loop",
        "background",
        "bars",
        "checkpoint",
        "embedders",
        "engine",
        "feeding",
        "migration",
        "results",
        "shared",
        "stream",
    },
    "images": {"http", "repo_files", "wakeup"},
    "scoring": set[str](),
    "readers": set[str](),
    "journal": set[str](),
    "checkpoint": {"files", "journal"},
    "sources": {"readers"},
    "muvera": set[str](),
    "observing": set[str](),
    "catalogue": {"repo_files"},
    "runtime": {"files", "repo_files"},
    "encoders": {"catalogue", "faking", "images", "repo_files", "results", "runtime"},
    "engine": {"encoders", "faking", "wakeup"},
    "window": {"engine"},
    "feeding": {"bars", "engine", "observing", "wakeup", "window"},
    "stream": {"bars", "engine", "feeding", "results", "window"},
    "hub": {"bars", "catalogue", "faking", "files", "http", "repo_files", "runtime"},
    "export": {"files", "repo_files", "runtime"},
    "options": {"catalogue", "engine", "observing", "reuse", "runtime"},
    "reuse": {
        "catalogue",
        "encoders",
        "engine",
        "faking",
        "files",
        "observing",
        "repo_files",
        "results",
        "runtime",
        "wakeup",
    },
    "loading": {
        "catalogue",
        "encoders",
        "engine",
        "export",
        "faking",
        "files",
        "hub",
        "options",
        "repo_files",
        "runtime",
        "wakeup",
    },
    "integrations": {
        "any_loop",
        "background",
        "bars",
        "catalogue",
        "checkpoint",
        "embedders",
        "engine",
        "feeding",
        "observing",
        "readers",
        "results",
        "stream",
        "sync",
        "wakeup",
    },
    "server": {
        "catalogue",
        "embedders",
        "encoders",
        "engine",
        "images",
        "integrations",
        "loading",
        "observing",
        "options",
        "repo_files",
        "results",
        "wakeup",
    },
    "testing": {"catalogue", "faking"},
    "_pytest_plugin": {"testing"},
    "_pyinstaller": set[str](),
    "cli": {
        "catalogue",
        "embedders",
        "engine",
        "export",
        "faking",
        "files",
        "hub",
        "journal",
        "options",
        "readers",
        "runtime",
        "scoring",
        "server",
        "wakeup",
    },
    "__main__": {"cli"},
}

FOREIGN = {
    "encoders": {"asyncio", "anyio", "trio", "httpx", "huggingface_hub"},
    "runtime": {"asyncio", "anyio", "trio", "httpx", "huggingface_hub"},
    "catalogue": {"asyncio", "anyio", "trio", "httpx", "onnxruntime", "PIL"},
    "engine": {"numpy", "onnxruntime", "asyncio", "trio", "httpx", "PIL"},
    "window": {"numpy", "onnxruntime", "anyio", "asyncio", "trio", "httpx", "PIL"},
    "feeding": {"numpy", "onnxruntime", "asyncio", "trio", "httpx", "PIL"},
    "stream": {"numpy", "onnxruntime", "asyncio", "trio", "httpx", "PIL"},
    "embedders": {"onnxruntime", "asyncio", "trio", "httpx", "PIL"},
}


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def statements_of(path: Path) -> tuple[ast.AST, ...]:
    """All statements of a file that run: what is imported for types only is left out."""
    found: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    for node in found:  # it grows on the way
        is_for_types = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ("orelse",) if is_for_types else ("body", "orelse", "finalbody", "handlers", "cases"):
            below = getattr(node, inner, ())
            if isinstance(below, list):
                found += below
    return tuple(found)


@cache
def imports_of(path: Path) -> set[str]:
    """Every module that a file imports anywhere, those for types only excepted."""
    found: set[str] = set()
    for node in statements_of(path):
        match node:
            case ast.Import():
                found |= {alias.name for alias in node.names}
            case ast.ImportFrom(module=str(module), level=0):
                found |= {f"{module}.{alias.name}" for alias in node.names}
            case ast.ImportFrom():
                pytest.fail(f"{path} imports relatively, which this test does not read")
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def layers_used(path: Path) -> set[str]:
    """The other layers that a file imports, besides those that are everybody's."""
    used = {name.split(".")[1] for name in imports_of(path) if name.startswith("asyncembed.")}
    layer = layer_of(path)
    return used - {layer} - (set() if layer == "errors" else EVERYBODYS)


def test_no_import_points_back() -> None:
    unknown = {layer_of(path) for path in FILES} - MAY_IMPORT.keys() - {"embedders"}
    assert not unknown, "layers of their own: say above what they may import"
    back = {str(path): layers_used(path) - MAY_IMPORT.get(layer_of(path), layers_used(path)) for path in FILES}
    assert not {path: layers for path, layers in back.items() if layers}, "these may not know of these"


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_only_arrows_that_are_used_are_granted(layer: str) -> None:
    used = set[str]().union(*(layers_used(path) for path in FILES if layer_of(path) == layer))
    assert MAY_IMPORT[layer] <= used, "take the others away: they would be the next ones to be used"


def test_a_layer_knows_nothing_of_what_others_are_for() -> None:
    for path in FILES:
        used = {name.split(".")[0] for name in imports_of(path)}
        assert not used & FOREIGN.get(layer_of(path), set()), path


def uses_of_the_programs_threads(path: Path) -> Iterator[int]:
    """The lines on which a file takes a thread of anyio's default limiter."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="to_thread"), attr="run_sync"), keywords=keywords):
                if "limiter" not in {keyword.arg for keyword in keywords}:
                    yield node.lineno
            case ast.Attribute(value=ast.Name(id="anyio"), attr="Path" | "open_file" | "getaddrinfo" | "to_thread"):
                yield node.lineno
            case ast.ImportFrom(module="anyio", names=names):
                if {"Path", "open_file", "getaddrinfo"} & {alias.name for alias in names}:
                    yield node.lineno


def test_nothing_waits_for_the_threads_of_the_program() -> None:
    """The default limiter of anyio is the program's, which may have filled it, and which would wait for us in turn."""
    files = [path for path in FILES if "anyio" in path.read_text(encoding="utf-8")]
    used = {str(path): lines for path in files if (lines := [*uses_of_the_programs_threads(path)])}
    assert not used, "give these a limiter of ours"


def test_the_layers_are_all_there() -> None:
    assert {"catalogue", "runtime", "encoders", "engine", "stream", "embedders"} <= {layer_of(path) for path in FILES}


def test_the_arrows_have_no_cycle() -> None:
    left = {layer: set(below) for layer, below in MAY_IMPORT.items()}
    while left:
        lowest = {layer for layer, below in left.items() if not below & left.keys()}
        assert lowest, f"in a circle: {left}"
        left = {layer: below for layer, below in left.items() if layer not in lowest}
