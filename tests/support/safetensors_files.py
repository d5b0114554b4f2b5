"""Safetensors files, written byte by byte."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

NAMES = {
    "f8": "F64",
    "f4": "F32",
    "f2": "F16",
    "i8": "I64",
    "i4": "I32",
    "i2": "I16",
    "i1": "I8",
    "u1": "U8",
    "b1": "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]], *, bfloat16: bool = False) -> Path:
    """Write arrays as one file; with `bfloat16`, cut each float32 down to its upper half."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, array in tensors.items():
        if bfloat16:
            dtype, raw = "BF16", (np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
        else:
            dtype, raw = NAMES[array.dtype.str[1:]], array.tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    return write_raw(path, header, body)


def write_raw(path: Path, header: object, body: bytes) -> Path:
    """Write a file with any header."""
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path
