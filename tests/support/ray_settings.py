"""Where a cluster of Ray's that a test starts, or a program of it, leaves nothing: not in /tmp/ray, nor at home."""

from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex
from tempfile import TemporaryDirectory

from tests.support.programs import ROOT


@contextmanager
def ray_settings() -> Iterator[dict[str, str]]:
    """Variables of the environment for whoever starts one; they are to be there when Ray is imported."""
    # Paths of its sockets lie below it, and may not be long. Its processes may write there when it has ended.
    with TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        yield {
            "RAY_TMPDIR": folder,
            "RAY_AUTH_TOKEN": token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # its processes are to have this environment, and none that uv makes
            "PYTHONPATH": str(ROOT),
        }
