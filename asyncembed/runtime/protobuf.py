"""Reading a message of protocol buffers just as far as one wants to know it; what is skipped is never read.

A file may come from anybody: each range is checked to lie in the one around it, and the fields of a file are counted,
so that reading ends in a second or two whatever the bytes are.

Wire format: https://protobuf.dev/programming-guides/encoding/
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asyncembed.errors import ModelLoadError

MAX_FIELDS = 1_000_000
"""A large graph without its weights is a megabyte at most, of some ten bytes a field."""

_MAX_VARINT_BYTES = 10


class Message:
    """The bytes of a file, as ranges of fields within fields.

    `fields` raises ValueError where the bytes are no such message, and ModelLoadError once it has met more than
    `MAX_FIELDS` fields in all, whether these are nested or side by side.
    """

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.size = len(data)
        self._data = data
        self._path = path
        self._fields_left = MAX_FIELDS

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Number and byte range of each length-delimited field of the message in the range from `start` to `end`."""
        position = start
        while position < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise ModelLoadError(
                    f"{self._path} has more than {MAX_FIELDS:,} parts; it is no graph of an embedding model",
                    model=str(self._path),
                )
            key, position = self._varint(position, end)
            match key & 7:
                case 2:
                    length, position = self._varint(position, end)
                    if length > end - position:
                        raise ValueError("no protobuf message: a field is longer than what it is in")
                    yield key >> 3, position, position + length
                    position += length
                case 0:
                    _, position = self._varint(position, end)
                case 1:
                    position += 8
                case 5:
                    position += 4
                case other:
                    raise ValueError(f"no protobuf message: wire type {other}")

    def content(self, start: int, end: int, *, max_bytes: int) -> bytes:
        """The bytes of a range, up to `max_bytes` of them."""
        return self._data[start : min(end, start + max_bytes)]

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        if position < end and (byte := self._data[position]) < 0x80:  # nearly all of them
            return byte, position + 1
        value = 0
        for shift in range(0, 7 * min(_MAX_VARINT_BYTES, end - position), 7):
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise ValueError("no protobuf message: a number does not end")


@contextmanager
def open_message(path: Path) -> Iterator[Message]:
    """The message in a file, mapped; ValueError for an empty one."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield Message(data, path)
