"""What a signature or a docstring of the public face names can be imported from a public place."""

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import pytest

import asyncembed

INTEGRATIONS = [
    f"asyncembed.integrations.{path.stem}"
    for path in sorted((Path(asyncembed.__file__).parent / "integrations").glob("[!_]*.py"))
]

PUBLIC_MODULES = (
    "asyncembed",
    "asyncembed.errors",
    "asyncembed.hub",
    "asyncembed.observing",
    "asyncembed.readers",
    "asyncembed.server",
    "asyncembed.sync",
    "asyncembed.testing",
    *INTEGRATIONS,
)


@cache
def public_names() -> set[str]:
    found = set(asyncembed.__all__)
    for name in PUBLIC_MODULES[1:]:
        if name in INTEGRATIONS:
            found |= names_listed_by(name)
            continue
        module = import_module(name)
        found |= set(getattr(module, "__all__", None) or (each for each in vars(module) if not each.startswith("_")))
    return found


def names_listed_by(module: str) -> set[str]:
    """What a module defines, or has in `__all__`: read, since its framework may not be installed, or take seconds."""
    path = Path(asyncembed.__file__).parents[1] / f"{module.replace('.', '/')}.py"
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                return set(ast.literal_eval(node.value))
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found |= {name} if name[0] != "_" else set()
    return found


@cache
def definitions() -> list[tuple[str, ast.AST, str]]:
    """Public name, the statement that defines it (and those of its bases), and the module where it stands."""
    return list(_definitions())


@cache
def statements_of(module: str) -> list[ast.stmt]:
    return ast.parse(Path(str(import_module(module).__file__)).read_text(encoding="utf-8")).body


def _definitions() -> Iterator[tuple[str, ast.AST, str]]:
    for name in asyncembed.__all__:
        value = getattr(asyncembed, name)
        for owner in inspect.getmro(value) if inspect.isclass(value) else (value,):
            module = getattr(owner, "__module__", "")
            if not module.startswith("asyncembed") or not hasattr(owner, "__qualname__"):
                continue
            for node in statements_of(module):
                if getattr(node, "name", None) == owner.__name__:
                    yield name, node, module


def signatures(definition: ast.AST) -> Iterator[ast.expr]:
    """The annotations that a caller sees: of public methods, and of fields."""
    body = definition.body if isinstance(definition, ast.ClassDef) else [definition]
    for node in body:
        if isinstance(node, ast.AnnAssign) and not ast.unparse(node.target).startswith("_"):
            yield node.annotation
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
            not node.name.startswith("_") or node.name == "__init__"
        ):
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.kwarg)
            yield from (one.annotation for one in arguments if one is not None and one.annotation is not None)
            if node.returns is not None:
                yield node.returns


def names_in(annotation: ast.expr) -> Iterator[str]:
    for node in ast.walk(annotation):
        match node:
            case ast.Name(id=name):
                yield name
            case ast.Constant(value=str(text)) if re.fullmatch(r"[\w.\[\], |]+", text):
                yield from re.findall(r"[A-Z]\w+", text)


INTERNAL = {"Assembly", "StreamState", "TaskGroup", "AnyStream", "Key"}
"""Of constructors that only the package calls, and of implementations behind overloads."""


@pytest.mark.parametrize("name", asyncembed.__all__)
def test_every_type_in_a_public_signature_is_public(name: str) -> None:
    known = public_names()
    for owner, definition, module in definitions():
        if owner != name:
            continue
        namespace = vars(import_module(module))
        for annotation in signatures(definition):
            for used in names_in(annotation):
                value = namespace.get(used)
                is_ours = str(getattr(value, "__module__", "")).startswith("asyncembed")
                if is_ours and not isinstance(value, TypeVar) and used not in INTERNAL and used[0] != "_":
                    assert used in known, f"{module} names {used} in {ast.unparse(annotation)}"


@pytest.mark.parametrize("name", asyncembed.__all__)
def test_docstrings_send_readers_to_public_places_only(name: str) -> None:
    for owner, definition, _ in definitions():
        if owner != name:
            continue
        for node in ast.walk(definition):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not (
                node.name.startswith("_") and node.name != "__init__"
            ):
                for place in re.findall(r"`(asyncembed(?:\.\w+)*)`", ast.get_docstring(node) or ""):
                    module, _, last = place.rpartition(".")
                    assert place in PUBLIC_MODULES or (
                        module in PUBLIC_MODULES and hasattr(import_module(module), last)
                    )
