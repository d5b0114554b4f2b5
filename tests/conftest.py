"""What all tests share: both backends, a time limit, and the line between the fast half and the rest."""

import gc
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import reach
from tests.support.halves import is_fast_half

# A shell that starts the tests in the background has them ignore Ctrl-C, which some tests press: programs inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Haystack would tell its makers of each pipeline that runs, over the network; programs inherit that, too.
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

settings.register_profile("whole", max_examples=200, deadline=None)
settings.register_profile("fast", max_examples=5, stateful_step_count=20, deadline=None)


def pytest_configure(config: pytest.Config) -> None:
    """The fast half tries fewer examples of each property."""
    settings.load_profile("fast" if is_fast_half(config) else "whole")


_ALL_SLOW = re.compile(r"^pytestmark = \[?pytest\.mark\.slow\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The fast half does not even import the modules whose tests are all slow."""
    is_test_module = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    if not is_test_module or not is_fast_half(config):
        return None
    return True if _ALL_SLOW.search(collection_path.read_text(encoding="utf-8")) else None


PROPERTY_SECONDS = 120
"""A property of a whole run tries 200 inputs, some of them hostile."""

SLOW_SECONDS = 60
"""What starts programs may wait for a busy machine. Tests of the fast half have the limit of pyproject.toml."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot be on this system, and give the others the time that they need."""
    if os.name != "posix":
        left_out = [item for item in items if item.get_closest_marker("posix")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if is_fast_half(config):
        return
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.timeout(PROPERTY_SECONDS))
        elif item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


# What is imported until the tests begin stays: the collector need not look at it, now or later.
gc.disable()


def pytest_collection_finish() -> None:
    """From here on there is garbage."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _a_small_heap() -> None:
    """What is left of modules before stays as well, and whoever looks for garbage finds that of one module only."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every async test runs on both backends; a module at a time, so that a module can share what it opens."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _fast_unless_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that is not marked slow starts no process and opens no socket: the mark cannot be forgotten."""
    with reach.watched() as seen:
        yield
    if request.node.get_closest_marker("slow") is None:
        assert not seen, f"mark this test with @pytest.mark.slow: {', '.join(sorted(set(seen)))}"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that an ordinary user reaches; pytest's own is closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that workers wait for (`wait:PATH`); whatever the test does, none waits longer than it lasts."""
    path = tmp_path / "gate"
    yield path
    path.touch()
