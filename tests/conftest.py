"""What all tests share: both backends, and a time limit that no test may reach."""

import faulthandler
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

TEST_TIME_LIMIT_SECONDS = 120

# A shell that starts the tests in the background has them ignore Ctrl-C, which some tests press: programs inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every async test runs on both backends; a module at a time, so that a module can share what it opens."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _time_limit() -> Iterator[None]:
    """End the whole run, with the stack of every thread, rather than hang."""
    faulthandler.dump_traceback_later(TEST_TIME_LIMIT_SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that workers wait for (`wait:PATH`); whatever the test does, none waits longer than it lasts."""
    path = tmp_path / "gate"
    yield path
    path.touch()
