"""Sources for streams: a folder of images, and the records of JSONL, CSV and text files.

Each is an async iterator to be handed to `embed`. The stream pulls from it only while its window has room, so a file of
any length, or a folder of any size, takes the memory of one chunk; and neither disk nor parser runs on the event loop.

```python
stream = image_model.embed(image_paths("photos"), on_error="skip").with_inputs()
stream = text_model.embed(json_lines("articles.jsonl"), key=lambda record: record["text"]).with_inputs()
```
"""

import csv
import json
import os
from collections.abc import AsyncGenerator, Collection, Iterator
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from asyncembed.errors import InputError
from asyncembed.files import in_disk_thread, open_file

IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

CHUNK_BYTES = 256 * 1024
"""Read and parsed at a time: some hundred records, so that the change of threads (0.1 ms) does not count."""

ENTRIES_AT_A_TIME = 512
"""Paths found at a time."""

RecordT = TypeVar("RecordT")


async def image_paths(
    folder: str | os.PathLike[str], *, suffixes: Collection[str] = IMAGE_SUFFIXES, recursive: bool = True
) -> AsyncGenerator[Path]:
    """The image files of a folder by name, then those of the folders in it.

    Links to folders are not followed, and what cannot be listed is left out, as in `os.walk`.

    Args:
        folder: Where to look.
        suffixes: Which files count, by their ending in lower case.
        recursive: Whether the folders in it count too.

    Raises:
        NotADirectoryError: `folder` is none.
    """
    root = Path(folder)
    if not await in_disk_thread(root.is_dir):
        raise NotADirectoryError(f"{root} is no directory")
    found = _walk(root, frozenset(suffixes), recursive)
    while paths := await in_disk_thread(_take, found):
        for path in paths:
            yield path


def text_lines(path: str | os.PathLike[str], *, encoding: str = "utf-8") -> AsyncGenerator[str]:
    """The lines of a text file, without their ends; empty ones are left out.

    The encoding must be one in which a line ends with the byte 10, as all but UTF-16 and UTF-32.

    Raises:
        InputError: (while it is read) a line is not valid in this encoding.
        OSError: (while it is read) the file cannot be read.
    """
    return _records(path, _TextParser(encoding))


def json_lines(path: str | os.PathLike[str]) -> AsyncGenerator[Any]:
    """The values of a JSONL file, one for each line that is not empty.

    Raises:
        InputError: (while it is read) a line is no JSON.
        OSError: (while it is read) the file cannot be read.
    """
    return _records(path, _JsonParser())


def csv_records(
    path: str | os.PathLike[str], *, encoding: str = "utf-8", delimiter: str = ","
) -> AsyncGenerator[dict[str, str]]:
    """The records of a CSV file with a header line: column → field. Quoted fields may hold line ends.

    Raises:
        InputError: (while it is read) a record has not as many fields as the header.
        OSError: (while it is read) the file cannot be read.
    """
    return _records(path, _CsvParser(encoding, delimiter))


# ---------------------------------------------------------------- folders


def _walk(root: Path, suffixes: frozenset[str], recursive: bool) -> Iterator[Path]:
    for directory, folders, names in os.walk(root):
        if recursive:
            folders.sort()
        else:
            folders.clear()
        for name in sorted(names):
            if Path(name).suffix.lower() in suffixes:
                yield Path(directory, name)


def _take(paths: Iterator[Path]) -> list[Path]:
    return list(islice(paths, ENTRIES_AT_A_TIME))


# ---------------------------------------------------------------- files


class _Parser(Protocol[RecordT]):
    """From a file's lines to its records. Used in a thread, by one call at a time."""

    def parse(self, lines: list[bytes], first_number: int) -> list[RecordT]:
        """The records that end in these lines, of which the first has this number (from 1)."""
        ...

    def finish(self) -> None:
        """Learn that there are no more lines. Raises `InputError` if a record is unfinished."""
        ...


async def _records(path: str | os.PathLike[str], parser: _Parser[RecordT]) -> AsyncGenerator[RecordT]:
    chunks = _Chunks(Path(path), parser)
    async with open_file(Path(path)) as file:
        while block := await file.read(CHUNK_BYTES):
            for record in await in_disk_thread(chunks.feed, block):
                yield record
    for record in await in_disk_thread(chunks.feed, b""):
        yield record


class _Chunks(Generic[RecordT]):
    """Cuts blocks of a file into lines for a parser, and says in its errors where they are."""

    def __init__(self, path: Path, parser: _Parser[RecordT]) -> None:
        self._path = path
        self._parser = parser
        self._rest: list[bytes] = []
        self._count = 0

    def feed(self, block: bytes) -> list[RecordT]:
        """The records that end in `block`; b"" ends the file."""
        head, newline, tail = block.rpartition(b"\n")
        if block and not newline:
            # A line of several blocks is joined once, at its end.
            self._rest.append(block)
            return []
        whole = b"".join([*self._rest, head])
        self._rest = [tail] if tail else []
        lines = whole.split(b"\n") if whole or newline else []
        first, self._count = self._count + 1, self._count + len(lines)
        try:
            records = self._parser.parse(lines, first)
            if not block:
                self._parser.finish()
        except InputError as error:
            raise InputError(f"{self._path}: {error}") from error.__cause__
        return records


class _TextParser:
    def __init__(self, encoding: str) -> None:
        self._encoding = encoding

    def parse(self, lines: list[bytes], first_number: int) -> list[str]:
        texts = [_decode(line, number, self._encoding).rstrip("\r") for number, line in enumerate(lines, first_number)]
        return [text for text in texts if text]

    def finish(self) -> None:
        pass


class _JsonParser:
    def parse(self, lines: list[bytes], first_number: int) -> list[Any]:
        values = []
        for number, line in enumerate(lines, first_number):
            if line.strip():
                try:
                    values.append(json.loads(_without_mark(line, number)))
                except ValueError as error:
                    raise InputError(f"line {number} is no JSON: {error}") from error
        return values

    def finish(self) -> None:
        pass


class _CsvParser:
    def __init__(self, encoding: str, delimiter: str) -> None:
        self._encoding = encoding
        self._delimiter = delimiter
        self._header: list[str] | None = None
        self._open: list[str] = []
        self._quotes = 0

    def parse(self, lines: list[bytes], first_number: int) -> list[dict[str, str]]:
        records = []
        for number, line in enumerate(lines, first_number):
            text = _decode(line, number, self._encoding)
            self._open.append(text)
            self._quotes += text.count('"')
            if self._quotes % 2:
                continue  # a quoted field goes on in the next line
            whole = "\n".join(self._open)
            self._open.clear()
            self._quotes = 0
            if not whole.strip("\r\n"):
                continue
            try:
                fields = next(csv.reader(StringIO(whole, newline=""), delimiter=self._delimiter))
            except csv.Error as error:  # a field over `csv.field_size_limit`, which is the program's to set
                raise InputError(f"line {number}: {error}") from error
            if self._header is None:
                self._header = fields
            elif len(fields) != len(self._header):
                raise InputError(f"line {number}: {len(fields)} fields, but the header has {len(self._header)}")
            else:
                records.append(dict(zip(self._header, fields, strict=True)))
        return records

    def finish(self) -> None:
        if self._open:
            raise InputError("the file ends inside a quoted field")


def _decode(line: bytes, number: int, encoding: str) -> str:
    try:
        return _without_mark(line, number).decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"line {number} is no {encoding}: {error}") from error


def _without_mark(line: bytes, number: int) -> bytes:
    """A byte order mark at the start of a file, which some programs write, is no part of its text."""
    return line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
