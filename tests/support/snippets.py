"""Examples of the README and of docstrings, made into programs; a hub of our own serves small models for the real ones.

An example may use names that it does not define: those of its own module, the package's public ones, and the few things
that every reader has in mind (`GIVEN`). Its comments are held to what they say: what `print` prints, the number that an
expression comes to, and the shape of an array.
"""

import ast
import builtins
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import asyncembed
from asyncembed.catalogue.lookup import list_models
from asyncembed.catalogue.spec import HubOrigin
from tests.hub.server import HubServer, Repo
from tests.support.hybrid_models import write_bge_m3
from tests.support.images import picture, write_image_model
from tests.support.late_interaction import write_late_interaction_model
from tests.support.models import files_of, write_model
from tests.support.multimodal import write_multimodal_model
from tests.support.sparse_models import write_bm25, write_reranker

if TYPE_CHECKING:
    import pytest

SMALL: Mapping[str, Callable[[Path], object]] = {
    "BAAI/bge-small-en-v1.5": lambda path: write_model(path, model_file="model_optimized.onnx", dim=384),
    "jinaai/jina-embeddings-v2-small-en": lambda path: write_model(path, model_file="onnx/model.onnx", dim=512),
    "Qdrant/bm25": write_bm25,
    "Xenova/ms-marco-MiniLM-L-6-v2": write_reranker,
    "Qdrant/clip-ViT-B-32-vision": write_image_model,
    "answerdotai/answerai-colbert-small-v1": lambda path: write_late_interaction_model(
        path, "answerdotai/answerai-colbert-small-v1", dim=96
    ),
    "BAAI/bge-m3": write_bge_m3,
    "Qdrant/colmodernvbert": lambda path: write_multimodal_model(path, "Qdrant/colmodernvbert"),
}
"""The models that examples use → writes a small one of its kind."""

GIVEN: Mapping[str, str] = {
    "np": "import numpy as np",
    "Path": "from pathlib import Path",
    "documents": "documents = ['a text about it', 'another', 'words words words']",
    "texts": "texts = ['a text about it', 'another', 'words words words']",
    "paths": "from pathlib import Path; paths = sorted(Path('photos').iterdir())",
    "index": "def index(indices, values): assert len(indices) == len(values) > 0",
    "text_model": "text_model = await opened.enter_async_context(TextEmbedding('BAAI/bge-small-en-v1.5'))",
    "sparse_model": "sparse_model = await opened.enter_async_context(SparseTextEmbedding('Qdrant/bm25'))",
    "image_model": "image_model = await opened.enter_async_context(ImageEmbedding('Qdrant/clip-ViT-B-32-vision'))",
}
"""What an example may take for granted → how its program comes by it; there are `photos/` and `articles.jsonl`, too."""


def fenced(text: str) -> list[str]:
    """The Python examples of a text."""
    return [textwrap.dedent(found) for found in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


def of_integration(readme: str, name: str) -> str:
    """What the README's table of integrations has for one of them: an expression."""
    (row,) = re.findall(rf"^\| \[`{name}`\].*\| `([^`]+)` \|$", readme, re.MULTILINE)
    return str(row)


def serve(hub: HubServer, snippet: str, directory: Path) -> None:
    """Put small models on the hub for all that the snippet names."""
    for spec in list_models():
        if spec.name in SMALL and spec.name in " ".join([snippet, *GIVEN.values()]):
            folder = directory / spec.name.replace("/", "--")
            SMALL[spec.name](folder)
            (repo, *_) = [source.repo for source in spec.sources if isinstance(source, HubOrigin)]
            hub.repos[repo] = Repo(files_of(folder))


def prepare(hub: HubServer, snippet: str, directory: Path, monkeypatch: "pytest.MonkeyPatch") -> None:
    """Have programs that start in `directory` find models, photos and articles."""
    serve(hub, snippet, directory / "models")
    write_inputs(directory)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(directory / "home"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")


def write_inputs(directory: Path) -> None:
    """The photos and articles that every reader has."""
    (directory / "photos").mkdir(parents=True)
    for number in range(3):
        picture(40 + number, 30, seed=number).save(directory / "photos" / f"{number}.png")
    (directory / "articles.jsonl").write_text('{"text": "one"}\n{"text": "another"}\n', encoding="utf-8")


def as_program(snippet: str, module: str = "asyncembed") -> str:
    """An example of a docstring of `module` (or of the README) as a whole program."""
    if "anyio.run(" in snippet:
        return snippet
    body = ast.unparse(_with_checks(snippet))
    if re.search(r"asyncembed\.(sync|integrations\.(chroma|lancedb|ray))\b", f"{module} {snippet}"):
        return "\n".join(
            [
                "from tests.support.snippets import check",
                *(GIVEN.get(name) or _import_of(name, module) for name in _missing_names(snippet)),
                body,
            ]
        )
    return "\n".join(
        [
            "import anyio, contextlib",
            "from asyncembed import ImageEmbedding, SparseTextEmbedding, TextEmbedding",
            "from tests.support.snippets import check",
            *(_import_of(name, module) for name in _missing_names(snippet) if name not in GIVEN),
            "async def main():",
            "    async with contextlib.AsyncExitStack() as opened:",
            *(f"        {GIVEN[name]}" for name in _missing_names(snippet) if name in GIVEN),
            textwrap.indent(body, " " * 8),
            "anyio.run(main)",
        ]
    )


def assert_printed(output: str, snippet: str) -> None:
    """What the comments behind `print(...)` say stands in the output, in that order."""
    position = 0
    for expected in re.findall(r"print\(.*\)  # (.*)", snippet):
        assert expected in output[position:], output
        position = output.index(expected, position) + len(expected)


def check(value: Any, claim: str) -> None:
    """Hold a value to the comment behind it, if that says a number or a shape: "... = 1.8", "(tokens, 128)"."""
    if found := re.search(r"= (-?\d[\d.]*)$", claim):
        assert np.isclose(value, float(found[1])), f"{value} is not {claim}"
    elif found := re.fullmatch(r"(a list of arrays )?\(([\w, ]+)\)", claim):
        assert not found[1] or isinstance(value, list), f"{type(value)} is not {claim}"
        sizes = [size.strip() for size in found[2].split(",") if size.strip()]
        for array in value if found[1] else [value]:
            assert array.ndim == len(sizes), f"{array.shape} is not {claim}"
            for size, wanted in zip(array.shape, sizes, strict=True):
                assert not wanted.isdigit() or size == int(wanted), f"{array.shape} is not {claim}"


def _with_checks(snippet: str) -> ast.Module:
    """The snippet's tree; a statement with a comment behind it is followed by a check of its value."""
    comments = {
        number: found[1]
        for number, line in enumerate(snippet.splitlines(), 1)
        if (found := re.search(r"  # (.*)", line))
    }

    class AddChecks(ast.NodeTransformer):
        def visit_Expr(self, node: ast.Expr) -> Any:
            if node.lineno not in comments or _is_print(node):
                return node
            return ast.parse(f"check({ast.unparse(node.value)}, {comments[node.lineno]!r})").body

        def visit_Assign(self, node: ast.Assign) -> Any:
            if node.lineno not in comments or not isinstance(node.targets[0], ast.Name):
                return node
            return [node, *ast.parse(f"check({node.targets[0].id}, {comments[node.lineno]!r})").body]

    tree: ast.Module = AddChecks().visit(ast.parse(snippet))
    return ast.fix_missing_locations(tree)


def _is_print(node: ast.Expr) -> bool:
    return isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "print"


def _missing_names(snippet: str) -> Iterator[str]:
    """The names that a snippet uses and does not make, in their order."""
    nodes = list(ast.walk(ast.parse(snippet)))
    made = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    made |= {
        (alias.asname or alias.name).partition(".")[0]
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    made |= {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    made |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    used = dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    yield from (name for name in used if name not in made and not hasattr(builtins, name))


def _import_of(name: str, module: str) -> str:
    if hasattr(import_module(module), name):
        return f"from {module} import {name}"
    assert name in asyncembed.__all__, f"an example of {module} uses {name}, which comes from nowhere"
    return f"from asyncembed import {name}"
