"""What the tests of the export share: the real weights, and random models of each architecture."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent / "data"

Variant = Callable[..., Path]


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    """A function that copies one of the small models and changes its config; None removes a key."""

    def copy(name: str, **config: Any) -> Path:
        directory = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(DATA / name, directory)
        path = directory / "config.json"
        changed = json.loads(path.read_bytes()) | config
        path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}), "utf-8")
        return directory

    return copy
