"""Files as `torch.save` writes them, made without torch; and what else may be in such a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from numpy.typing import NDArray

STORAGES = {"<f4": "FloatStorage", "<f2": "HalfStorage", "<u2": "BFloat16Storage", "<f8": "DoubleStorage"}
"""By the type of the numbers; those of 16 bits without a sign stand for bfloat16."""


def write_torch_file(path: Path, tensors: Mapping[str, NDArray[Any]], **options: Any) -> Path:
    """Write a dictionary of tensors; the options are those of `write_archive`."""
    storages = {str(position): array.tobytes() for position, array in enumerate(tensors.values())}
    return write_archive(path, pickled(tensors), storages, **options)


def write_archive(
    path: Path,
    program: bytes,
    storages: Mapping[str, bytes],
    *,
    folder: str = "archive",
    byteorder: str | None = "little",
    compression: int = ZIP_STORED,
) -> Path:
    """Write a file with any pickle."""
    with ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", program)
        if byteorder is not None:
            archive.writestr(f"{folder}/byteorder", byteorder)
        for key, content in storages.items():
            archive.writestr(f"{folder}/data/{key}", content)
        archive.writestr(f"{folder}/version", "3\n")
    return path


def pickled(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """The pickle of a dictionary of tensors, of protocol 2."""
    parts = [b"\x80\x02", b"ccollections\nOrderedDict\n", b")R"]
    parts.append(b"(")
    for position, (name, array) in enumerate(tensors.items()):
        parts += [_plain(name), tensor(position, array)]
    parts.append(b"u.")
    return b"".join(parts)


def tensor(
    key: int | str,
    array: NDArray[Any],
    *,
    shape: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
    offset: int = 0,
    count: int | None = None,
    storage: str | None = None,
) -> bytes:
    """The instructions that make one tensor."""
    shape = array.shape if shape is None else shape
    if strides is None:
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    kind = storage or STORAGES[array.dtype.str]
    reference = b"".join((
        b"(", _plain("storage"), f"ctorch\n{kind}\n".encode(), _plain(str(key)), _plain("cpu"),
        _plain(array.size if count is None else count), b"tQ",
    ))  # fmt: skip
    return b"".join((
        b"ctorch._utils\n_rebuild_tensor_v2\n(", reference, _plain(offset), _plain(shape), _plain(strides),
        _plain(False), b"ccollections\nOrderedDict\n)R", b"tR",
    ))  # fmt: skip


def _plain(value: object) -> bytes:
    """The instructions that make a text, a number or a tuple of such."""
    match value:
        case str():
            return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            content = value.to_bytes(8, "little", signed=True)
            return b"\x8a\x08" + content
        case tuple():
            return b"(" + b"".join(map(_plain, value)) + b"t"
    raise TypeError(f"{value!r} is not written")
