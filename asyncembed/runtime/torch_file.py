"""Tensors in a `.pt` file as `torch.save` writes it, read without torch and without running what the file says.

Such a file is a zip whose members are stored as they are: a pickle, which describes a dictionary of tensors, and the
raw little-endian numbers of each. A pickle is a program that may import and call anything, so `pickle` does not get it:
its few instructions are followed here, and a name in it is compared with those that torch writes, never looked up.
Sources: Python's `pickletools` for the instructions, torch's `serialization.py` for the layout.
"""

import io
import pickletools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np

from asyncembed.errors import ModelLoadError
from asyncembed.repo_files import shown
from asyncembed.runtime.session import Array

MAX_FILE_BYTES = 2**28
"""Far more than the heads of a model, which are what such files are read for."""

MAX_PICKLE_BYTES = 2**16
MAX_MEMBERS = 256
MAX_LIST_BYTES = 2**18
"""The names of all members, and what is said of them: `zipfile` makes thirty times as much of that."""

_STORAGES: Mapping[str, str] = {
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
    "torch BFloat16Storage": "<u2",
    "torch DoubleStorage": "<f8",
}
"""By the name of a storage's class: the type of its numbers."""

_REBUILD = "torch._utils _rebuild_tensor_v2"
_ORDERED_DICT = "collections OrderedDict"
_GLOBALS = frozenset({*_STORAGES, _REBUILD, _ORDERED_DICT})

_ERRORS = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError, RuntimeError),
    struct.error,
)
"""What `zipfile`, `pickletools` and this module raise where a file is broken."""

ReadStorage: TypeAlias = Callable[[str, str, int], Array]
"""From the type of its numbers, its key, and how many there are, to a storage."""


def read_torch_file(path: Path) -> dict[str, Array]:
    """The tensors of a file by name, read-only, as float32 or float64; half precision is widened.

    Raises:
        ModelLoadError: The file is missing or broken, of torch before 1.6, or holds anything but a dictionary of
            tensors of floats.
    """
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise ValueError(f"{size:,} bytes are more than the heads of a model have")
        with path.open("rb", buffering=0) as file, _Bounded(file) as bounded, ZipFile(bounded) as archive:
            bounded.most_at_once = None
            return _read_archive(archive)
    except BadZipFile as error:
        raise _broken(path, "it is no zip, as torch writes it since 1.6") from error
    except _ERRORS as error:
        raise _broken(path, str(error) or type(error).__name__) from error


class _Bounded(io.BufferedReader):
    """A file of which no more is read at once than the list of its members may be long: `zipfile` takes all of that."""

    most_at_once: int | None = MAX_LIST_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if self.most_at_once is None:
            return super().read(size)
        content = super().read(self.most_at_once + 1 if size is None or size < 0 else min(size, self.most_at_once + 1))
        if len(content) > self.most_at_once:
            raise ValueError("it has more in it than the heads of a model")
        return content


def _read_archive(archive: ZipFile) -> dict[str, Array]:
    members = archive.infolist()
    if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > MAX_FILE_BYTES:
        raise ValueError("it has more in it than the heads of a model")  # as members that lie in one another do
    pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("it has no member data.pkl, or several")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in archive.namelist() and _member(archive, f"{prefix}byteorder", 16) != b"little":
        raise ValueError("its numbers are not little-endian")

    storages: dict[str, bytes] = {}  # each is read once, however often the pickle refers to it

    def read_storage(dtype: str, key: str, count: int) -> Array:
        size_bytes = np.dtype(dtype).itemsize * count
        if key not in storages:
            storages[key] = _member(archive, f"{prefix}data/{key}", size_bytes)
        content = storages[key]
        if len(content) != size_bytes:
            raise ValueError(f"the storage {key} has {len(content)} bytes instead of {size_bytes}")
        return np.frombuffer(content, dtype)

    tensors = _Program(read_storage).run(_member(archive, pickles[0], MAX_PICKLE_BYTES))
    if not isinstance(tensors, dict) or not all(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
        raise ValueError("it is no dictionary of tensors")
    return tensors


def _member(archive: ZipFile, name: str, max_bytes: int) -> bytes:
    """A member of at most so many bytes, which is stored as it is: then it is no longer than the file."""
    info = archive.getinfo(name)
    if info.compress_type != ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"the member {shown(name)} is compressed, which torch does not do")
    if info.file_size > max_bytes:
        raise ValueError(
            f"the member {shown(name)} has {info.file_size:,} bytes, and at most {max_bytes:,} are expected"
        )
    return archive.read(info)


@dataclass(frozen=True, slots=True)
class _Name:
    """A name that the pickle would have imported."""

    text: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """Numbers of some tensors."""

    numbers: Array
    is_bfloat16: bool


class _Mark:
    """Where on the stack the parts of a tuple or of a dictionary begin."""


_MARK = _Mark()


class _Program:
    """The pickle of a dictionary of tensors, run on a stack: with the instructions that torch writes, no others."""

    def __init__(self, read_storage: ReadStorage) -> None:
        self._read_storage = read_storage
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._numbers = 0

    def run(self, program: bytes) -> object:
        """What it makes.

        Raises:
            ValueError: It has an instruction or a name that is not among those of such a dictionary. What else is wrong
                with it shows as another one of Python's own errors.
        """
        for operation, argument, _ in pickletools.genops(program):
            if operation.name == "STOP":
                return self._stack.pop()
            if operation.name in _CONSTANTS:
                self._stack.append(argument if operation.arg is not None else _CONSTANTS[operation.name])
            elif operation.name in _OPERATIONS:
                _OPERATIONS[operation.name](self, argument)
            else:
                raise ValueError(f"its pickle has the instruction {operation.name}, which no dictionary of tensors has")
        raise ValueError("its pickle has no end")

    # ---------------------------------------------------------------- the instructions, by what they leave on the stack

    def _protocol(self, version: int) -> None:
        if version != 2:
            raise ValueError(f"its pickle is of protocol {version}, and torch writes 2")

    def _empty_dict(self, _: None) -> None:
        self._stack.append({})

    def _mark(self, _: None) -> None:
        self._stack.append(_MARK)

    def _put(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def _get(self, place: int) -> None:
        self._stack.append(self._memo[place])

    def _name(self, text: str) -> None:
        if text not in _GLOBALS:
            raise ValueError(f"its pickle names {shown(text.replace(' ', '.'))}, which no dictionary of tensors needs")
        self._stack.append(_Name(text))

    def _tuple(self, _: None) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _tuple_of(self, count: int) -> None:
        parts = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        self._stack.append(tuple(parts))

    def _set_item(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._fill(self._stack[-1], [key, value])

    def _set_items(self, _: None) -> None:
        parts = self._since_mark()
        self._fill(self._stack[-1], parts)

    def _fill(self, target: object, parts: Sequence[object]) -> None:
        keys = parts[::2]
        if type(target) is not dict or not all(isinstance(key, str) for key in keys):
            raise ValueError("its pickle fills something other than a dictionary by name")
        target.update(zip(keys, parts[1::2], strict=True))

    def _build(self, _: None) -> None:
        """Attributes of a dictionary, of which none matters."""
        self._stack.pop()
        if type(self._stack[-1]) is not dict:
            raise ValueError("its pickle gives attributes to something other than a dictionary")

    def _persistent(self, _: None) -> None:
        """A storage: ("storage", its class, its key, the device that it was on, how many numbers)."""
        tag, kind, key, _device, count = self._stack.pop()
        if tag != "storage" or not isinstance(kind, _Name) or kind.text not in _STORAGES:
            raise ValueError("its pickle refers to something other than a storage of floats")
        if not isinstance(key, str) or not key.isdecimal() or not _is_size(count):
            raise ValueError(f"its pickle describes no storage: {shown(key)} of {shown(count)} numbers")
        numbers = self._read_storage(_STORAGES[kind.text], key, count)
        self._stack.append(_Storage(numbers, is_bfloat16=kind.text == "torch BFloat16Storage"))

    def _reduce(self, _: None) -> None:
        """A call, of one of two names."""
        arguments, name = self._stack.pop(), self._stack.pop()
        if name == _Name(_ORDERED_DICT) and arguments == ():
            self._stack.append({})
        elif name == _Name(_REBUILD):
            tensor = _tensor(*arguments[:4])
            self._numbers += tensor.size
            if self._numbers > MAX_FILE_BYTES // 2:
                raise ValueError("its pickle describes more numbers than it has")
            self._stack.append(tensor)
        else:
            raise ValueError("its pickle calls something that makes no tensor")

    def _since_mark(self) -> list[Any]:
        place = next((place for place in reversed(range(len(self._stack))) if self._stack[place] is _MARK), None)
        if place is None:
            raise ValueError("its pickle ends what it has not begun")
        parts = self._stack[place + 1 :]
        del self._stack[place:]
        return parts


def _tensor(storage: object, offset: object, shape: object, strides: object) -> Array:
    """A tensor that lies in one piece in its storage."""
    if not isinstance(storage, _Storage) or not _is_size(offset):
        raise ValueError("its pickle describes a tensor of no storage")
    if not isinstance(shape, tuple) or not all(map(_is_size, shape)) or len(shape) > 8:
        raise ValueError(f"its pickle describes a tensor of the shape {shown(shape)}")
    if strides != tuple(prod(shape[axis + 1 :]) for axis in range(len(shape))):
        raise ValueError("it has a tensor that does not lie in one piece: save it after .contiguous()")
    assert isinstance(offset, int)
    size = prod(shape)
    if offset + size > len(storage.numbers):
        raise ValueError("its pickle describes a tensor that reaches beyond its storage")
    numbers = storage.numbers[offset : offset + size]
    if storage.is_bfloat16:  # the upper half of a float32
        numbers = (numbers.astype("<u4") << 16).view("<f4")
    widened: Array = numbers.astype(np.float32) if numbers.dtype.itemsize < 4 else numbers
    return widened.reshape(shape)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**48


_CONSTANTS: Mapping[str, object] = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (),
    # Those with an argument are what that says.
    "BININT": None, "BININT1": None, "BININT2": None, "LONG1": None, "BINUNICODE": None,
}  # fmt: skip

_OPERATIONS: Mapping[str, Callable[[_Program, Any], None]] = {
    "PROTO": _Program._protocol,  # noqa: SLF001 (of this module, as all of these)
    "EMPTY_DICT": _Program._empty_dict,  # noqa: SLF001
    "MARK": _Program._mark,  # noqa: SLF001
    "BINPUT": _Program._put,  # noqa: SLF001
    "LONG_BINPUT": _Program._put,  # noqa: SLF001
    "BINGET": _Program._get,  # noqa: SLF001
    "LONG_BINGET": _Program._get,  # noqa: SLF001
    "GLOBAL": _Program._name,  # noqa: SLF001
    "TUPLE": _Program._tuple,  # noqa: SLF001
    "TUPLE1": lambda program, _: program._tuple_of(1),  # noqa: SLF001
    "TUPLE2": lambda program, _: program._tuple_of(2),  # noqa: SLF001
    "TUPLE3": lambda program, _: program._tuple_of(3),  # noqa: SLF001
    "SETITEM": _Program._set_item,  # noqa: SLF001
    "SETITEMS": _Program._set_items,  # noqa: SLF001
    "BUILD": _Program._build,  # noqa: SLF001
    "BINPERSID": _Program._persistent,  # noqa: SLF001
    "REDUCE": _Program._reduce,  # noqa: SLF001
}


def _broken(path: Path, reason: str) -> ModelLoadError:
    return ModelLoadError(
        f"{path} is not read: {reason}; only a dictionary of tensors is, as torch.save(layer.state_dict(), ...) writes",
        model=str(path.parent),
    )
