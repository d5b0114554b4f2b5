"""What is loaded, seen in fresh interpreters."""

import json
from pathlib import Path

import pytest

from tests.support import programs

HEAVY = ("onnxruntime", "httpx", "PIL", "tokenizers", "onnx")


def loaded_after(source: str, directory: Path) -> set[str]:
    """The top-level modules that a program has loaded in the end."""
    done = programs.run(f"{source}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))", directory)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_the_package_loads_next_to_nothing(tmp_path: Path) -> None:
    modules = loaded_after("import asyncembed", tmp_path)
    assert not modules & {*HEAVY, "numpy", "anyio", "asyncio", "huggingface_hub"}


def test_every_public_name_can_be_imported_without_a_runtime(tmp_path: Path) -> None:
    modules = loaded_after("import asyncembed\nfor name in asyncembed.__all__: getattr(asyncembed, name)", tmp_path)
    assert "numpy" in modules
    assert not modules & set(HEAVY)


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
