"""What is left after a kill: a file of lines of which the last whole one counts, and which records were read."""

import json
import os
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, closing, nullcontext
from inspect import isasyncgen, isgenerator
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

from filelock import BaseFileLock, Timeout

from asyncembed.errors import InputError, OptionError, UsageError


class Journal:
    """A file of JSON objects, a line each: the first says what it is of, the last how far that is. All of it blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether there is anything."""
        return self.path.exists()

    def ends(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The first line and the last one; None if there are not two. A line that was not written to its end is none.

        Raises:
            ValueError: They are no JSON objects.
        """
        lines = self._lines()
        return None if len(lines) < 2 else (_object(lines[0]), _object(lines[-1]))

    @staticmethod
    def line(value: Mapping[str, Any]) -> bytes:
        """As it stands in the file."""
        return json.dumps(value).encode() + b"\n"

    def write(self, value: Mapping[str, Any]) -> None:
        """Append a line. It is on the disk when this returns; where it cannot be, nothing of it is.

        Raises:
            OSError: It cannot be written, as on a full disk; names the file.
        """
        with self.path.open("ab", buffering=0) as file:
            end = file.tell()
            rest = self.line(value)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(end)  # the next line would go on behind the half of this one
                error.filename = str(self.path)
                raise

    def cut(self) -> None:
        """Cut off a line that a killed process has not written to its end."""
        if self.exists():
            with self.path.open("r+b") as file:
                file.truncate(sum(len(line) + 1 for line in self._lines()))

    def remove(self) -> None:
        """Have nothing of it stay."""
        self.path.unlink(missing_ok=True)

    def _lines(self) -> list[bytes]:
        try:
            return self.path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def take_lock(lock: BaseFileLock, taken: str) -> None:
    """Lock a file at once, where the file system has locks.

    Raises:
        OptionError: Another process has it; `taken` says so.
    """
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OptionError(taken) from error
    except NotImplementedError:  # a file system without locks
        pass


class Trail:
    """Which records were read: a checksum of all of them, so that the next run sees whether its source begins alike.

    An `InputError` in the place of a record counts, and says nothing more: its message may name a file, and the next
    run may name that otherwise. One thread reads, another may say what is done.
    """

    def __init__(self, text_of: Callable[[Any], str], *, read: int, checksum: int, changed: str) -> None:
        """`read` and `checksum` are of an earlier run; `changed` is what an error says.

        An `InputError` that `text_of` raises takes the place of its record.
        """
        self._text_of = text_of
        self._read = read
        self._checksum = checksum
        self._changed = changed
        # After each record that was read and is not done.
        self._ahead: deque[int] = deque()

    def follow(self, records: Iterable[Any]) -> Iterator[Any]:
        """What comes after the records that were read already.

        Raises:
            OptionError: The first ones are not those.
        """
        with _closing(records):
            rest = iter(records)
            checksum = count = 0
            for record in islice(rest, self._read):
                _, checksum = self._after(record, checksum)
                count += 1
            self._check(count, checksum)
            for record in rest:
                told, checksum = self._after(record, checksum)
                self._ahead.append(checksum)
                yield told

    async def follow_async(self, records: AsyncIterable[Any]) -> AsyncIterator[Any]:
        """Likewise."""
        async with _aclosing(records):
            checksum = count = 0
            async for record in records:
                if count == self._read:
                    self._check(count, checksum)
                told, checksum = self._after(record, checksum)
                count += 1
                if count > self._read:
                    self._ahead.append(checksum)
                    yield told
            if count <= self._read:
                self._check(count, checksum)

    def after(self, count: int) -> int:
        """The checksum of all records that are done, when so many more are.

        Raises:
            UsageError: So many have not been read.
        """
        if count > len(self._ahead):
            raise UsageError(f"{count} more records are said to be done, of {len(self._ahead)} that were read")
        return self._ahead[count - 1] if count else self._checksum

    def done(self, count: int) -> int:
        """The same, now that they are."""
        self._checksum = self.after(count)
        for _ in range(count):
            self._ahead.popleft()
        return self._checksum

    def _check(self, count: int, checksum: int) -> None:
        if (count, checksum) != (self._read, self._checksum):
            raise OptionError(self._changed)

    def _after(self, record: Any, before: int) -> tuple[Any, int]:
        """What stands for a record, and the checksum with it."""
        if isinstance(record, InputError):
            return record, before
        try:
            text = self._text_of(record)
        except InputError as error:
            return error, before
        return record, crc32(text.encode("utf-8", "surrogatepass"), before)


def _closing(records: object) -> AbstractContextManager[object]:
    if isgenerator(records):
        return closing(records)
    return nullcontext()


def _aclosing(records: object) -> AbstractAsyncContextManager[object]:
    if isasyncgen(records):
        return aclosing(records)
    return nullcontext()
