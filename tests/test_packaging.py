"""The package where it is not installed: on a path of its own, or in a zip."""

import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import zipapp
from pathlib import Path

import pytest

import asyncembed
from tests.hub.server import HubServer
from tests.support.models import write_model

pytestmark = pytest.mark.slow

PROGRAM = textwrap.dedent(
    """
    import importlib.metadata, pickle, sys
    from pathlib import Path
    import anyio
    import asyncembed
    from asyncembed import SparseTextEmbedding, TextEmbedding, download
    from asyncembed.__main__ import main as command_line
    from asyncembed.errors import AsyncEmbedError

    async def main(directory):
        try:
            importlib.metadata.version("asyncembed")
        except importlib.metadata.PackageNotFoundError:
            print("not installed, in", Path(asyncembed.__file__).parents[1].name)
        async with SparseTextEmbedding("Qdrant/bm25", stopwords=[], workers=1) as model:
            print(len(await model.embed(["a text", "another text"], on_error="return").collect()))
        async with TextEmbedding(directory, pooling="cls", normalize=True, max_length=64, workers=1) as model:
            print((await model.embed_documents(["the day", "the way"])).shape)
        try:
            await download("a/b", cache_dir=Path(directory) / "cache", progress=False)
        except AsyncEmbedError as error:
            print(type(error).__name__)

    if __name__ == "__main__":
        anyio.run(main, sys.argv[1])
        command_line(["--version"], "asyncembed", standalone_mode=False)
    """
)


@pytest.fixture
def dependencies(tmp_path: Path) -> Path:
    """Everything that is installed beside this package, as links."""
    directory = tmp_path / "dependencies"
    directory.mkdir()
    for entry in Path(sysconfig.get_path("platlib")).iterdir():
        if "asyncembed" not in entry.name and entry.suffix != ".pth":
            (directory / entry.name).symlink_to(entry)
    return directory


def run(program: Path, model: Path, *path: Path) -> list[str]:
    with HubServer() as hub:
        done = subprocess.run(
            # Without `site`, which would find the installed package.
            [sys.executable, "-S", program, model],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, path)),
                "HF_ENDPOINT": hub.url,
            },
            cwd=model,
            capture_output=True,
            encoding="utf-8",
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", dim=32)


def expected(place: str) -> list[str]:
    return [
        f"not installed, in {place}",
        "2",
        "(2, 32)",
        "RepoNotFoundError",
        f"asyncembed, version {asyncembed.__version__}",
    ]


def package_in(directory: Path) -> Path:
    shutil.copytree(
        Path(asyncembed.__file__).parent, directory / "asyncembed", ignore=shutil.ignore_patterns("__pycache__")
    )
    return directory


def test_it_runs_from_a_folder_on_the_path(tmp_path: Path, dependencies: Path, model: Path) -> None:
    folder = package_in(tmp_path / "vendored")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    assert run(program, model, folder, dependencies) == expected("vendored")


def test_it_runs_from_a_zip(tmp_path: Path, dependencies: Path, model: Path) -> None:
    source = package_in(tmp_path / "source")
    (source / "__main__.py").write_text(PROGRAM, encoding="utf-8")
    archive = tmp_path / "app.pyz"
    zipapp.create_archive(source, archive, compressed=True)
    assert run(archive, model, dependencies) == expected("app.pyz")
