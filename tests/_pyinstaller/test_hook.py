"""Programs packed by the real PyInstaller, without a word of theirs about workers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncembed._pyinstaller import get_hook_dirs
from asyncembed.catalogue.lookup import require_model
from tests.support import programs
from tests.support.models import write_model
from tests.support.sparse_models import write_bm25

NAME = "BAAI/bge-small-en-v1.5"

PROGRAM = """
import sys
print("started", flush=True)
import anyio
from asyncembed import SparseTextEmbedding, TextEmbedding

async def main(workers):
    async with TextEmbedding(sys.argv[1], model_path=sys.argv[2], workers=workers) as model:
        vectors = await model.embed(["a", "b", "c"]).collect()
    async with SparseTextEmbedding("Qdrant/bm25", model_path=sys.argv[3], workers=workers) as sparse:
        print(vectors.shape, len(await sparse.embed_documents(["a cat"])))

for workers in (2, 0):
    anyio.run(main, workers)
"""

NOT_NEEDED = """
    IPython _pytest aiohttp cryptography django fastapi fastembed grpc gunicorn hypothesis jinja2 mcp mypy onnx openvino
    opentelemetry pandas polars prometheus_client psycopg pyarrow pydantic pygments pytest redis requests rich scipy
    setuptools skimage tkinter torch trio uvicorn xarray yaml
"""
"""Installed beside it for tests, and used if they are there by some that it needs: most of the time went to these."""

ANSWER = "(3, 384) 1\n"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, packed into a folder: once for the module, as it takes half a minute."""
    directory = tmp_path_factory.mktemp("packed")
    (directory / "program.py").write_text(PROGRAM, "utf-8")
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=WARN"]
    command += [f"--exclude-module={name}" for name in NOT_NEEDED.split()]
    done = subprocess.run(
        [*command, "program.py"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(programs.ROOT), "PYINSTALLER_CONFIG_DIR": str(directory / "cache")},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return directory / "dist" / "program" / "program"


def test_the_hooks_are_where_pyinstaller_looks() -> None:
    (directory,) = get_hook_dirs()
    assert Path(directory, "hook-asyncembed.py").is_file()


@pytest.mark.slow
@pytest.mark.timeout(300)  # PyInstaller packs a program first
def test_a_packed_program_has_what_it_needs_and_its_workers_are_not_the_program_again(
    packed: Path, tmp_path: Path
) -> None:
    spec = require_model(NAME, "text")
    assert spec.model_file is not None
    text = write_model(tmp_path / "text", model_file=spec.model_file, dim=spec.dim)
    sparse = write_bm25(tmp_path / "sparse")
    done = subprocess.run(
        [packed, NAME, text, sparse], capture_output=True, encoding="utf-8", timeout=programs.PROGRAM_SECONDS
    )
    assert (done.stdout, done.stderr) == ("started\n" + 2 * ANSWER, "")
