"""Tests of frameworks are collected where these are installed, and not in the fast half: imports take seconds."""

from pathlib import Path

import pytest

from tests.support.frameworks import FRAMEWORKS, has_program, is_installed
from tests.support.halves import is_fast_half


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what `FRAMEWORKS` says, and nothing else."""
    name = collection_path.stem.removeprefix("test_")
    is_left_out = name in FRAMEWORKS and (is_fast_half(config) or not is_installed(name) or not has_program(name))
    return True if is_left_out else None
