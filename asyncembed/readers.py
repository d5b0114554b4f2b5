"""Files as sources: a folder of images, and the records of JSONL, CSV and text files, or of stdin.

Each is a plain generator on the standard library's own readers, to be handed to `embed`. A stream reads it in a thread
of its own, and only while its window has room: a file of any length takes the memory of some records, and neither disk
nor parser runs on the event loop.

```python
stream = image_model.embed(image_paths("photos"), on_error="skip").with_inputs()
stream = text_model.embed(json_lines("articles.jsonl"), key=lambda record: record["text"]).with_inputs()
```

A broken record is the failure of that record and of no other: an `InputError` comes in its place, which a stream treats
as any input's failure. A source of your own may do the same.
"""

import codecs
import csv
import json
import os
import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO, TypeAlias, TypeVar, cast

from asyncembed.errors import InputError, OptionError

IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

FilePath: TypeAlias = str | os.PathLike[str] | BinaryIO
"""A path, or an open file that gives bytes, as `sys.stdin.buffer`; that is read from where it is, and stays open."""

UTF8_MARK = codecs.BOM_UTF8
"""A byte order mark at the start of a file, which some programs write, is no part of its text."""

LONGEST_LINE = 2**26
"""Characters of a line of text, or bytes of one of JSONL; what is longer is no record, and would fill the memory."""

_READ_AGAIN = 16
"""How often, on an average, a line of CSV may be read again behind quotes that are never closed."""

_UNCLOSED = "a quote is not closed that begins there; quotechar=None takes quotes for ordinary characters"

_TOO_LONG = f" has over {LONGEST_LINE:,} characters"

TextT = TypeVar("TextT")

_UNDECODED = re.compile("[\udc80-\udcff]")
"""What the error handler "surrogateescape" puts in the place of bytes that are not of a file's encoding."""


def image_paths(
    folder: str | os.PathLike[str], *, suffixes: Collection[str] = IMAGE_SUFFIXES, recursive: bool = True
) -> Iterator[Path]:
    """The image files of a folder by name, then those of the folders in it.

    Links to folders are not followed, and what cannot be listed is left out, as in `os.walk`.

    Args:
        folder: Where to look.
        suffixes: Which files count, by their ending in lower case.
        recursive: Whether the folders in it count too.

    Raises:
        NotADirectoryError: (while it is read) `folder` is none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is no directory")
    for directory, folders, names in os.walk(root):
        if recursive:
            folders.sort()
        else:
            folders.clear()
        for name in sorted(names):
            if Path(name).suffix.lower() in suffixes:
                yield Path(directory, name)


def text_lines(path: FilePath, *, encoding: str = "utf-8") -> Iterator[str | InputError]:
    """The lines of a text file, without their ends; empty ones are left out.

    A line that is not valid in this encoding is an `InputError`.

    Raises:
        OptionError: There is no such encoding.
        OSError: (while it is read) the file cannot be read.
    """
    return _text_lines(path, _codec(encoding))


def json_lines(path: FilePath) -> Iterator[Any]:
    """The values of a JSONL file, one for each line that is not empty. A line that is no JSON is an `InputError`.

    Raises:
        OSError: (while it is read) the file cannot be read.
    """
    with _opened(path) as file:
        for number, line in enumerate(_whole_lines(file, b"\n"), 1):
            if line is None:
                yield _failure(path, f"line {number}{_TOO_LONG}")
                continue
            text = (line.removeprefix(UTF8_MARK) if number == 1 else line).strip()
            if text:
                try:
                    value = json.loads(text)
                except (ValueError, RecursionError) as error:
                    value = _failure(path, f"line {number} is no JSON: {error}", error)
                yield value


def csv_records(
    path: FilePath, *, encoding: str = "utf-8", delimiter: str = ",", quotechar: str | None = '"'
) -> Iterator[dict[str, str] | InputError]:
    """The records of a CSV file with a header line: column → field, as `csv.DictReader` reads them.

    Quoted fields may hold line ends; `quotechar=None` takes quotes for ordinary characters. A record that has not as
    many fields as the header, is not valid in this encoding, or has a field over `csv.field_size_limit()`, is an
    `InputError`. So is the line of a quote that is not closed, and the lines behind it are read. Of several columns of
    one name the second is "name.1".

    Raises:
        OptionError: There is no such encoding, or `delimiter` or `quotechar` is no single character.
        InputError: (while it is read) the header itself is broken.
        OSError: (while it is read) the file cannot be read.
    """
    dialect: dict[str, Any] = {"delimiter": delimiter, "quotechar": quotechar}
    if quotechar is None:
        dialect["quoting"] = csv.QUOTE_NONE
    try:
        csv.reader((), **dialect)
    except (TypeError, ValueError) as error:
        raise OptionError(f"delimiter and quotechar must be single characters: {error}") from error
    return _csv_records(path, _codec(encoding), dialect)


# ---------------------------------------------------------------- text


def texts_of_arrow(column: Any) -> list[Any]:
    """The values of a column of pyarrow's; an `InputError` in the place of a text of a file's that is no UTF-8."""
    try:
        return cast("list[Any]", column.to_pylist())
    except UnicodeDecodeError:
        return [_arrow_text(value) for value in column]


def _codec(encoding: str) -> str:
    """The name by which to decode a file: with its byte order mark, where it may have one."""
    try:
        name = codecs.lookup(encoding).name
    except (LookupError, TypeError, ValueError) as error:
        raise OptionError(f"there is no encoding {encoding!r}") from error
    return "utf-8-sig" if name == "utf-8" else name


def _text_lines(path: FilePath, encoding: str) -> Iterator[str | InputError]:
    with _opened_as_text(path, encoding, newline=None) as file:
        for number, line in enumerate(_decoded(_whole_lines(file, "\n"), path, encoding), 1):
            text = None if line is None else line.rstrip("\n")
            problem = _TOO_LONG if text is None else _undecoded(text, encoding)
            if problem is not None:
                yield _failure(path, f"line {number}{problem}")
            elif text:
                yield text


def _whole_lines(file: IO[AnyStr], end: AnyStr) -> Iterator[AnyStr | None]:
    """The lines of a file; None in the place of one that is too long to be one, which is read past and not kept."""
    while line := file.readline(LONGEST_LINE):
        if len(line) < LONGEST_LINE or line.endswith(end):
            yield line
            continue
        while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(end):
            pass
        yield None


def _decoded(file: Iterable[TextT], path: FilePath, encoding: str) -> Iterator[TextT]:
    """The lines of a file; raises `InputError` where its encoding leaves no way to go on."""
    try:
        yield from file
    except UnicodeError as error:
        raise _failure(path, f"no {encoding}: {error}") from error


def _undecoded(text: str, encoding: str) -> str | None:
    """What is wrong with a text of which some bytes could not be decoded."""
    # All ASCII is the rule, and known without a look at it.
    broken = None if text.isascii() else _UNDECODED.search(text)
    if broken is None:
        return None
    return f" is no {encoding.removesuffix('-sig')}: byte 0x{ord(broken[0]) - 0xDC00:02x} at {broken.start()}"


@contextmanager
def _opened(path: FilePath) -> Iterator[BinaryIO]:
    if isinstance(path, str | os.PathLike):
        with Path(path).open("rb") as file:
            yield file
    else:
        yield path


@contextmanager
def _opened_as_text(path: FilePath, encoding: str, newline: str | None) -> Iterator[TextIOWrapper]:
    with _opened(path) as file:
        text = TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline=newline)
        try:
            yield text
        finally:
            if file is path:
                text.detach()


def _failure(path: FilePath, problem: str, cause: BaseException | None = None) -> InputError:
    name = Path(path) if isinstance(path, str | os.PathLike) else getattr(path, "name", "the file")
    error = InputError(f"{name}: {problem}")
    error.__cause__ = cause
    return error


# ---------------------------------------------------------------- CSV


class _Lines:
    """The lines of a file, of which those of the record that is being read are kept, unless they are too many."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.number = 0
        self.of_record: list[str] = []
        self.has_ended = False
        """Whether a line was asked for that is not there."""
        self._lines = lines
        self._again: deque[str] = deque()
        self._characters = 0
        self._furthest = self._read_again = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines, None)
        if line is None:
            self.has_ended = True
            raise StopIteration
        self.number += 1
        self._characters += len(line)
        if self._characters <= LONGEST_LINE:
            self.of_record.append(line)
        return line

    def begin(self) -> None:
        """The next line is the first of a record."""
        self.of_record.clear()
        self.has_ended = False
        self._characters = 0

    def from_first(self) -> Iterator[str]:
        """Those of the record from its beginning, then the others, which are kept too."""
        return chain(tuple(self.of_record), self)

    def go_back(self) -> None:
        """Have all of the record read again but for its first line, unless that is too much."""
        rest = self.of_record[1:]
        self._furthest = max(self._furthest, self.number)
        self._read_again += len(rest)
        if self._characters <= LONGEST_LINE and self._read_again <= _READ_AGAIN * self._furthest:
            self._again.extendleft(reversed(rest))
            self.number -= len(rest)


def _csv_records(path: FilePath, encoding: str, dialect: dict[str, Any]) -> Iterator[dict[str, str] | InputError]:
    with _opened_as_text(path, encoding, newline="") as file:
        header: list[str] | None = None
        for place, row, error in _rows(_Lines(_decoded(file, path, encoding)), dialect):
            problem = _undecoded("\n".join(row), encoding)
            if error is not None:
                problem = f": {error}"
            elif header is not None and len(row) != len(header):
                problem = f": {len(row)} fields, but the header has {len(header)}"
            if problem is not None:
                failure = _failure(path, f"{place}{problem}", error)
                if header is None:
                    raise failure
                yield failure
            elif header is None:
                header = _told_apart(row)
            else:
                yield dict(zip(header, row, strict=True))


def _told_apart(names: list[str]) -> list[str]:
    """Columns of one name get numbers from the second on, as pandas gives them, so that none is lost."""
    taken, numbers, told = set(names), dict[str, int](), list[str]()
    for name in names:
        own = name
        while name in numbers and own in taken:
            numbers[name] += 1
            own = f"{name}.{numbers[name]}"
        numbers.setdefault(name, 0)
        taken.add(own)
        told.append(own)
    return told


def _rows(lines: _Lines, dialect: dict[str, Any]) -> Iterator[tuple[str, list[str], csv.Error | None]]:
    """The rows that are not empty, each with the lines where it stands, or with the error in its place."""
    rows = csv.reader(lines, **dialect)
    while True:
        lines.begin()
        first, failure, row = lines.number + 1, None, list[str]()
        try:
            row = next(rows)
            is_open = (lines.number > first or lines.has_ended) and not _is_strict(lines.of_record, dialect)
        except StopIteration:
            return
        except csv.Error as error:
            failure = csv.Error(f"{error}; csv.field_size_limit() sets it")
            is_open = _pass_by(lines, first, dialect)
        if is_open:
            failure = csv.Error(_UNCLOSED)
            lines.go_back()
        if row or failure is not None:
            place = f"line {first}" if lines.number == first else f"lines {first} to {lines.number}"
            yield place, row, failure


def _is_strict(record: list[str], dialect: dict[str, Any]) -> bool:
    """Whether each quote of a record of several lines ends a field that it began.

    Of others a quote that was never closed took the lines up to somebody else's.
    """
    try:
        return len(list(csv.reader(record, strict=True, **dialect))) == 1
    except csv.Error:
        return False


def _pass_by(lines: _Lines, first: int, dialect: dict[str, Any]) -> bool:
    """Have the lines read that still belong to a record of which one field is too large; True if its quote is open.

    The reader itself would take what follows inside that field for records. Line by line, and with every run of
    ordinary characters (which open and close nothing) as one, it tells whether a line ends inside a quoted field.
    """
    quote = dialect["quotechar"] or ""
    ordinary = re.compile(f"[^{re.escape(dialect['delimiter'] + quote)}\r\n]+")
    is_inside = False
    for line in lines.from_first():
        text = quote * is_inside + ordinary.sub("x", line)
        taken = iter((text, ""))
        with suppress(csv.Error):
            next(csv.reader(taken, **dialect))
        is_inside = next(taken, None) is None
        if not is_inside:
            return lines.number > first and not _is_strict([text], dialect)
    return True


def _arrow_text(value: Any) -> object:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        failure = InputError(f"no UTF-8: {error}")
        failure.__cause__ = error
        return failure
