"""The package's face: its public names, and what importing them loads in fresh interpreters."""

import ast
import inspect
import json
from importlib import import_module, metadata
from pathlib import Path

import pytest

import asyncembed
from tests.support import programs

HEAVY = ("onnxruntime", "httpx", "PIL", "tokenizers", "onnx")


def names_for_type_checkers() -> dict[str, str]:
    """Public name → the module that `asyncembed/__init__.py` imports it from where types are checked."""
    tree = ast.parse(Path(asyncembed.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}


def test_type_checkers_and_programs_find_the_same_names_in_the_same_places() -> None:
    assert names_for_type_checkers() == asyncembed._HOMES
    assert sorted(asyncembed._HOMES) == asyncembed.__all__


@pytest.mark.parametrize("name", asyncembed.__all__)
def test_a_public_name_is_defined_where_it_is_said_to_be(name: str) -> None:
    value = getattr(asyncembed, name)
    assert value is getattr(import_module(asyncembed._HOMES[name]), name)
    assert name in dir(asyncembed)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__module__ == asyncembed._HOMES[name]
        assert value.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'asyncembed' has no attribute 'Embedding'"):
        asyncembed.Embedding  # type: ignore[attr-defined]  # noqa: B018 (mypy sees it, or says that it does not)


def test_the_version_is_that_of_the_installed_package() -> None:
    assert asyncembed.__version__ == metadata.version("asyncembed")


def loaded_after(source: str, directory: Path) -> set[str]:
    """The top-level modules that a program has loaded in the end."""
    done = programs.run(f"{source}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))", directory)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.slow
def test_importing_the_package_loads_next_to_nothing(tmp_path: Path) -> None:
    modules = loaded_after("import asyncembed", tmp_path)
    assert not modules & {*HEAVY, "numpy", "anyio", "asyncio", "huggingface_hub"}


@pytest.mark.slow
def test_a_class_is_there_before_what_takes_longest_to_import(tmp_path: Path) -> None:
    """Its workers can then start, while the process that opens it imports the rest."""
    modules = loaded_after("from asyncembed import TextEmbedding\nTextEmbedding('BAAI/bge-small-en-v1.5')", tmp_path)
    assert not modules & {*HEAVY, "numpy", "huggingface_hub"}


@pytest.mark.slow
def test_every_public_name_can_be_imported_without_a_runtime(tmp_path: Path) -> None:
    modules = loaded_after("import asyncembed\nfor name in asyncembed.__all__: getattr(asyncembed, name)", tmp_path)
    assert "numpy" in modules
    assert not modules & set(HEAVY)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_loads_no_runtime_in_the_parent(workers: int, tmp_path: Path) -> None:
    source = f"""
import asyncio
from asyncembed import TextEmbedding
from tests.support.encoders import ECHO

async def main():
    async with TextEmbedding(ECHO, workers={workers}) as model:
        assert len(await model.embed(["a", "b"]).collect()) == 2
        await model.embed_query("a")

asyncio.run(main())
"""
    assert not loaded_after(source, tmp_path) & set(HEAVY)
