"""What a run leaves behind goes back to the system."""

import sys

import numpy as np
import psutil
import pytest

from asyncembed.runtime.memory import release_free_memory


@pytest.mark.posix
def test_freed_memory_goes_back_to_the_system() -> None:
    # Blocks small enough for glibc's heap, the last of which keeps the others from being given back on their own.
    blocks = [np.ones(12_000) for _ in range(1000)]
    kept = blocks.pop()
    before = psutil.Process().memory_info().rss
    blocks.clear()
    release_free_memory()
    after = psutil.Process().memory_info().rss
    assert kept.all()
    assert after < before - 50_000_000 or not sys.platform.startswith("linux")
