"""Columns of pyarrow's as files of others may have them."""

from typing import Any

import pyarrow as pa


def no_utf_8(*values: str | bytes | None) -> Any:
    """A column of strings, some of which are none."""
    return pa.array([value.encode() if isinstance(value, str) else value for value in values], pa.binary()).view(
        pa.string()
    )
