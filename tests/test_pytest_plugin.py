"""The fixtures, in runs of pytest as users start them: with pytest-asyncio and with anyio's plugin."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import programs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

ROOT = Path(__file__).parents[1]

PYTEST_ASYNCIO = ("--asyncio-mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")
ANYIO = ("-p", "no:asyncio", "-o", "anyio_mode=auto")


def run_pytest(*arguments: str, directory: Path = ROOT) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, encoding="utf-8", timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("plugin", "passed"), [(PYTEST_ASYNCIO, 8), (ANYIO, 15)], ids=["pytest-asyncio", "anyio"])
def test_the_guide_to_tests_passes(plugin: tuple[str, ...], passed: int) -> None:
    assert f"\n{passed} passed" in run_pytest("examples/testing_your_app.py", *plugin)


SESSION = """
import pytest
from asyncembed import TextEmbedding

@pytest.fixture(scope="session", autouse=True)
def no_model(asyncembed_fakes_session):
    return asyncembed_fakes_session

@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"

@pytest.fixture(scope="session"{more})
async def model():
    async with TextEmbedding("nobody/knows-it") as model:
        yield model

{mark}
async def test_one(model):
    assert (await model.embed_query("a")).shape == (384,)

{mark}
async def test_two(model, asyncembed_fakes):
    asyncembed_fakes.dim = 8
    assert (await model.embed_query("a")).shape == (384,)
    async with TextEmbedding("nobody/knows-it") as other:
        assert (await other.embed_query("a")).shape == (8,)
"""


@pytest.mark.parametrize("plugin", [PYTEST_ASYNCIO, ANYIO], ids=["pytest-asyncio", "anyio"])
def test_a_model_may_live_as_long_as_the_run(plugin: tuple[str, ...], tmp_path: Path) -> None:
    is_anyio = plugin is ANYIO
    source = SESSION.replace("{more}", "" if is_anyio else ", loop_scope='session'")
    source = source.replace("{mark}", "" if is_anyio else "@pytest.mark.asyncio(loop_scope='session')")
    if not is_anyio:
        source = source.replace("import pytest\n", "import pytest, pytest_asyncio\n", 1)
        source = source.replace(
            '@pytest.fixture(scope="session", loop', '@pytest_asyncio.fixture(scope="session", loop'
        )
    (tmp_path / "test_it.py").write_text(source, encoding="utf-8")
    assert "\n2 passed" in run_pytest(*plugin, directory=tmp_path)


def test_the_plugin_imports_nothing_until_a_fixture_is_used(tmp_path: Path) -> None:
    program = "import sys, pytest\nbefore = set(sys.modules)\nimport asyncembed._pytest_plugin\n"
    done = programs.run(f"{program}print(sorted(set(sys.modules) - before))", tmp_path)
    assert done.stdout.splitlines() == ["['asyncembed', 'asyncembed._pytest_plugin']"], done.stderr
