"""Reading a message of protocol buffers just as far as one wants to know it; what is skipped is never read.

Wire format: https://protobuf.dev/programming-guides/encoding/
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def open_message(path: Path) -> Iterator[mmap.mmap]:
    """The bytes of a file, mapped; ValueError for an empty one."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number and byte range of each length-delimited field of the message in `data[start:end]`.

    Raises:
        ValueError, IndexError: This is no such message.
    """
    position = start
    while position < end:
        key, position = _varint(data, position)
        match key & 7:
            case 2:
                length, position = _varint(data, position)
                yield key >> 3, position, position + length
                position += length
            case 0:
                _, position = _varint(data, position)
            case 1:
                position += 8
            case 5:
                position += 4
            case other:
                raise ValueError(f"no protobuf message: wire type {other}")


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
