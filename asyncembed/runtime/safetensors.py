"""Weights in the safetensors format, mapped into memory and read tensor by tensor, without torch.

A file is an 8-byte little-endian length, that many bytes of JSON (name → dtype, shape, byte range), and the
raw little-endian, row-major tensors. Source: the format's description, github.com/huggingface/safetensors.
"""

import json
import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.repo_files import WEIGHTS, WEIGHTS_INDEX, is_safe_path, read_object, shown
from asyncembed.runtime.session import Array

# Far more than the header of any encoder, and few enough that parsing one cannot exhaust the memory.
MAX_HEADER_BYTES = 2**24
_MAX_DIMENSIONS = 32

_DTYPES: Mapping[str, np.dtype[np.generic]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # numpy has no bfloat16: see `Tensors.__getitem__`
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def find_weights(directory: Path) -> tuple[Path, ...]:
    """The safetensors files that hold a model's weights, in name order; empty where `directory` has none.

    A repo has either one `model.safetensors` or an index that names the files the weights are split into.

    Raises:
        ModelLoadError: The index is broken, or names a file that is missing.
    """
    if (single := directory / WEIGHTS).is_file():
        return (single,)
    names = find_shards(directory)
    for name in names:
        if not (directory / name).is_file():
            raise _broken(directory / WEIGHTS_INDEX, f"the file {name} that it names is missing")
    return tuple(directory / name for name in names)


def find_shards(directory: Path) -> tuple[str, ...]:
    """The names of the files that the index in `directory` names, in order; none where there is no index.

    Raises:
        ModelLoadError: The index is broken, or names a file elsewhere.
    """
    index = directory / WEIGHTS_INDEX
    if not index.is_file():
        return ()
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise _broken(index, "it is no index of safetensors files")
    for name in weight_map.values():
        # The index comes from a repo: it may name the files beside it, and nothing else on this machine.
        if not isinstance(name, str) or "/" in name or not is_safe_path(name):
            raise _broken(index, f"it names {shown(name)}, which is no file of the same directory")
    return tuple(sorted(set(weight_map.values())))


def read_tensors(*paths: Path) -> "Tensors":
    """The tensors of one file, or of all the files that a model is split into.

    Raises:
        ModelLoadError: A file is missing, cut short, or no safetensors file; or two files hold the same name.
    """
    return Tensors(paths)


class Tensors(Mapping[str, Array]):
    """Tensors by name. Nothing is read before a tensor is asked for.

    The arrays are read-only views of the mapped files, except that bfloat16 is widened to float32, exactly,
    in a copy. They stay valid as long as anything refers to them. On Windows a mapped file cannot be deleted: who needs
    no views any more closes it by `with`.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._entries: dict[str, _Entry] = {}
        self._maps: list[mmap.mmap] = []
        try:
            for path in paths:
                self._add(path)
        except BaseException:
            self._close()  # an error keeps alive what it has come through
            raise

    def _add(self, path: Path) -> None:
        self._maps.append(_map(path))
        for name, entry in _read_header(path, self._maps[-1]).items():
            if name in self._entries:
                raise _broken(path, f"the tensor {name} is in {self._entries[name].path.name} too")
            self._entries[name] = entry

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        """Let go of the files that no array is a view of; with the others this waits for their arrays."""
        for data in self._maps:
            with suppress(BufferError):
                data.close()

    def __getitem__(self, name: str) -> Array:
        """The tensor `name`.

        Raises:
            UnsupportedModelError: Its element type is one that numpy cannot hold (8-bit floats and smaller).
        """
        return self.rows(name, slice(None))

    def rows(self, name: str, rows: slice) -> Array:
        """Some rows of the tensor `name`, the only ones that are read; raises as for the whole."""
        entry = self._entries[name]
        if entry.dtype not in _DTYPES:
            raise UnsupportedModelError(
                f"tensor {name} in {entry.path} has the element type {entry.dtype}; "
                f"those that can be read are {', '.join(_DTYPES)}",
                model=str(entry.path.parent),
            )
        array = np.frombuffer(entry.data, _DTYPES[entry.dtype], math.prod(entry.shape), entry.start)
        array = array.reshape(entry.shape)
        if entry.shape:
            array = array[rows]
        if entry.dtype == "BF16":  # the upper half of a float32
            widened = array.astype("<u4")
            widened <<= 16
            array = widened.view("<f4")
        return array

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor `name`, without reading it."""
        return self._entries[name].shape

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # without reading the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where one tensor lies: `start` counts bytes from the beginning of the file."""

    path: Path
    data: mmap.mmap
    dtype: str
    shape: tuple[int, ...]
    start: int


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise _broken(path, f"it cannot be opened: {error}") from error


def _read_header(path: Path, data: mmap.mmap) -> dict[str, _Entry]:
    """Check the header against the file, so that no later access can reach beyond it."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(len(data) - 8, MAX_HEADER_BYTES):
        raise _broken(path, "it is cut short, or no safetensors file at all")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise _broken(path, "its header is no JSON") from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is no JSON object")
    header.pop("__metadata__", None)
    entries: dict[str, _Entry] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, fields in header.items():
        try:
            dtype, shape = fields["dtype"], tuple(map(_natural, fields["shape"]))
            begin, end = map(_natural, fields["data_offsets"])
        except (ValueError, LookupError, TypeError) as error:
            raise _broken(path, f"its header does not describe the tensor {shown(name)}") from error
        if not begin <= end <= len(data) - 8 - length:
            raise _broken(path, f"it is cut short: the tensor {shown(name)} ends beyond the end of the file")
        if not isinstance(dtype, str) or not _may_be_shape(shape, end - begin, _DTYPES.get(dtype)):
            described = f"{shown(dtype)} {list(shape[:8])}"
            raise _broken(path, f"the tensor {shown(name)} of {described} cannot be {end - begin} bytes long")
        entries[name] = _Entry(path, data, dtype, shape, 8 + length + begin)
        ranges.append((begin, end, name))
    _check_apart(path, ranges)
    return entries


def _check_apart(path: Path, ranges: list[tuple[int, int, str]]) -> None:
    """See that no two tensors share bytes: a small file would be a model of any size. The format forbids it, too."""
    reached = 0
    for begin, end, name in sorted(ranges):
        if begin < min(reached, end):
            raise _broken(path, f"the tensor {shown(name)} has bytes that another one has, too")
        reached = max(reached, end)


def _natural(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is no size")
    return value


def _may_be_shape(shape: tuple[int, ...], size_bytes: int, dtype: np.dtype[np.generic] | None) -> bool:
    """Whether a tensor of this shape takes so many bytes, as far as its element type is one that we know."""
    if len(shape) > _MAX_DIMENSIONS or math.prod(max(1, length) for length in shape) >= 2**60:
        return False  # numpy has no such arrays, not even empty ones
    return dtype is None or size_bytes == math.prod(shape) * dtype.itemsize


def _broken(path: Path, reason: str) -> ModelLoadError:
    return ModelLoadError(f"{path} cannot be read: {reason}; delete it and download it again", model=str(path.parent))
