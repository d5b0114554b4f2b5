"""Where commands read records from: lines of text, JSONL, CSV and Parquet, in a file or on stdin.

A record is whatever its kind of file has; the kind knows where its text is, and how it goes into another file.
"""

import csv
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, TypeVar, cast

import click

from asyncembed.errors import AsyncEmbedError, InputError, OptionError
from asyncembed.readers import csv_records, json_lines, text_lines, texts_of_arrow

if TYPE_CHECKING:
    import pyarrow as pa

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

DEFAULT_COLUMN = "text"

COUNTED_BYTES = 256 * 1024 * 1024
"""Of larger files no lines are counted for the bar: that would take more than a moment."""

READ_AT_ONCE = 1024
"""Rows of Parquet."""

FIELD_CHARACTERS = 16 * 1024 * 1024
"""Of one field of CSV: a quote that nobody closes takes no more memory than that."""


class RecordFile(ABC):
    """A file of records; `path` is None for stdin. All of it blocks."""

    kind: ClassVar[str]

    def __init__(self, path: Path | None, column: str | None) -> None:
        self.path = path
        self.column: str = column or DEFAULT_COLUMN

    @property
    def name(self) -> str:
        return "stdin" if self.path is None else str(self.path)

    def check(self) -> None:
        """Find out before anything else whether it can be read at all.

        Raises:
            OptionError: It has not that column.
            OSError: It cannot be opened.
        """
        if self.path is not None and not self.path.is_fifo():  # whose writer would see its reader go
            with self.path.open("rb"):
                pass

    @abstractmethod
    def records(self) -> Iterator[Any]:
        """Its records; an `InputError` in the place of a broken one."""

    def text_of(self, record: Any) -> Any:
        """The text of a record, or what is in its place. Raises `InputError` where there is no such field."""
        if not isinstance(record, Mapping):
            raise InputError(f"the record is no object with the field {self.column!r}, but {type(record).__name__}")
        try:
            return record[self.column]
        except KeyError:
            raise InputError(
                f"the record has no field {self.column!r}; --column names another one: {', '.join(map(str, record))}"
            ) from None

    def fields(self, records: Sequence[Any]) -> list[dict[str, Any]]:
        """Records as what JSON can say."""
        return list(records)

    def count(self) -> int | None:
        """About how many records there are, if that can be known in a moment."""
        if self.path is None or not self.path.is_file() or self.path.stat().st_size > COUNTED_BYTES:
            return None
        lines, last = 0, b"\n"
        with self.path.open("rb") as file:
            while chunk := file.read(1024 * 1024):
                lines, last = lines + chunk.count(b"\n"), chunk[-1:]
        return lines + (last != b"\n")

    @cached_property
    def schema(self) -> "pa.Schema | None":
        """The columns for Parquet; None where only all records together can tell."""
        return None

    def batch(self, records: Sequence[Any]) -> "pa.RecordBatch":
        """Records as columns of that schema: texts, unless said otherwise."""
        rows, schema = self.fields(records), cast("pa.Schema", self.schema)
        columns = [arrow_texts([row.get(name) for row in rows]) for name in schema.names]
        return arrow().RecordBatch.from_arrays(columns, schema=schema)

    @property
    def _source(self) -> "Path | BinaryIO":
        return sys.stdin.buffer if self.path is None else self.path


class TextFile(RecordFile):
    """A text on each line; empty lines are left out."""

    kind = "text"

    def check(self) -> None:
        super().check()
        if self.column != DEFAULT_COLUMN:
            raise OptionError("lines of text have no columns; --format says what it is else")

    def records(self) -> Iterator[Any]:
        return text_lines(self._source)

    def text_of(self, record: Any) -> Any:
        return record

    def fields(self, records: Sequence[Any]) -> list[dict[str, Any]]:
        return [{DEFAULT_COLUMN: record} for record in records]

    @cached_property
    def schema(self) -> "pa.Schema | None":
        pa = arrow()
        return pa.schema([(DEFAULT_COLUMN, pa.string())])


class JsonFile(RecordFile):
    """An object on each line, or a text."""

    kind = "jsonl"

    def records(self) -> Iterator[Any]:
        for record in json_lines(self._source):
            yield {self.column: record} if isinstance(record, str) else record

    def fields(self, records: Sequence[Any]) -> list[dict[str, Any]]:
        return [record if isinstance(record, dict) else {self.column: record} for record in records]


_DELIMITERS = ",;\t|"


class CsvFile(RecordFile):
    """A record on each line (or several, where a field in quotes has line ends), below their names."""

    kind = "csv"
    delimiter: str = ","

    def check(self) -> None:
        super().check()
        if len(self.delimiter) != 1:
            raise OptionError(f"--delimiter must be a single character, not {self.delimiter!r}")
        if self.path is not None and self.path.is_file():
            self._check_header(self._header())

    def _check_header(self, names: Sequence[str]) -> None:
        others = [delimiter for delimiter in _DELIMITERS if delimiter != self.delimiter and delimiter in names[0]]
        if len(names) == 1 and names[0] != self.column and others:
            name = "a tab" if others[0] == "\t" else repr(others[0])
            option = "--format tsv" if others[0] == "\t" else f"--delimiter '{others[0]}'"
            raise OptionError(f"{self.name} seems to have {name} between its fields: say so with {option}")
        _check_column(self.column, names, self.name)

    def _header(self) -> list[str]:
        """The names of its columns, which are nothing before the first record is read: none where there is none."""
        for record in self.records():
            if not isinstance(record, InputError):
                return list(record)
        return [self.column]

    def count(self) -> int | None:
        lines = super().count()
        return None if lines is None else max(0, lines - 1)

    def records(self) -> Iterator[Any]:
        before = csv.field_size_limit(FIELD_CHARACTERS)
        try:
            yield from csv_records(self._source, delimiter=self.delimiter)
        finally:
            csv.field_size_limit(before)

    @cached_property
    def schema(self) -> "pa.Schema | None":
        if self.path is None or not self.path.is_file():  # its header can be read once
            return None
        pa = arrow()
        return pa.schema([(name, pa.string()) for name in self._header()])


class TsvFile(CsvFile):
    """CSV with tabs."""

    kind = "tsv"
    delimiter = "\t"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of Parquet: its text, and where the others of its columns are."""

    text: Any
    batch: Any
    position: int


class ParquetFile(RecordFile):
    """A row each, with all of its columns."""

    kind = "parquet"

    def check(self) -> None:
        arrow()
        super().check()
        if self.path is None:
            raise OptionError("Parquet is read from a file, not from stdin")
        _check_column(self.column, self._opened().schema_arrow.names, self.name)

    def _opened(self) -> Any:
        assert self.path is not None, "it was checked"
        return opened_parquet(self.path)

    def records(self) -> Iterator[Any]:
        with self._opened() as file:
            for batch in file.iter_batches(READ_AT_ONCE):
                plain = _without_dictionaries(batch)
                for position, text in enumerate(texts_of_arrow(plain.column(self.column))):
                    yield Row(text, plain, position)

    def text_of(self, record: Any) -> Any:
        if isinstance(record.text, InputError):
            raise record.text
        return record.text

    def fields(self, records: Sequence[Any]) -> list[dict[str, Any]]:
        rows = self.batch(records)
        try:
            return cast("list[dict[str, Any]]", rows.to_pylist())
        except UnicodeDecodeError:
            columns = [[_legible(value) for value in column] for column in rows.columns]
            return [dict(zip(rows.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]

    def count(self) -> int | None:
        with self._opened() as file:
            return int(file.metadata.num_rows)

    @cached_property
    def schema(self) -> "pa.Schema | None":
        with self._opened() as file:
            return _plain_schema(file.schema_arrow)

    def batch(self, records: Sequence[Any]) -> "pa.RecordBatch":
        pa = arrow()
        parts, start = [], 0
        for end in range(1, len(records) + 1):
            # As many rows together as follow one another in a batch.
            first, last = records[start], records[end - 1]
            following = records[end] if end < len(records) else None
            if following is None or following.batch is not first.batch or following.position != last.position + 1:
                parts.append(first.batch.slice(first.position, end - start))
                start = end
        return pa.Table.from_batches(parts).combine_chunks().to_batches()[0]


def _legible(value: Any) -> Any:
    r"""A value of pyarrow's as Python has it; in a text, a byte that is no UTF-8 as `\xff`."""
    try:
        return value.as_py()
    except UnicodeDecodeError:
        if not hasattr(value, "as_buffer"):
            raise
        return value.as_buffer().to_pybytes().decode("utf-8", "backslashreplace")


_KINDS: dict[str, type[RecordFile]] = {kind.kind: kind for kind in (TextFile, JsonFile, CsvFile, TsvFile, ParquetFile)}

_ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}


def source_options(command: CommandT) -> CommandT:
    """FILE and the options that say what is in it: the command gets `file`, `kind`, `column` and `delimiter`."""
    for option in (
        click.option(
            "--column", help=f"The field that has the text, except in lines of text.  [default: {DEFAULT_COLUMN}]"
        ),
        click.option(
            "--format",
            "kind",
            type=click.Choice(list(_KINDS)),
            help="What FILE is. By default what its name ends with.",
        ),
        click.option("--delimiter", metavar="CHARACTER", help="What is between the fields of CSV.  [default: a comma]"),
        click.argument("file", default="-"),
    ):
        command = option(command)
    return command


def open_records(file: str, kind: str | None, column: str | None, delimiter: str | None = None) -> RecordFile:
    """The records of a file, or of stdin ("-"), which is lines of text unless `kind` says otherwise.

    Raises:
        OptionError: It cannot be what it is said to be.
        OSError: It cannot be opened.
    """
    path = None if file == "-" else Path(file)
    chosen = kind or ("text" if path is None else _ENDINGS.get(path.suffix.lower(), "text"))
    found = _KINDS[chosen](path, column)
    if delimiter is not None:
        if not isinstance(found, CsvFile):
            raise OptionError(f"--delimiter is for CSV, and {found.name} is read as {chosen}: --format says otherwise")
        found.delimiter = delimiter
    found.check()
    return found


def _check_column(column: str, names: Sequence[str], name: str) -> None:
    if column not in names:
        raise OptionError(f"{name} has no column {column!r}; --column names another one: {', '.join(names)}")


# ---------------------------------------------------------------- pyarrow


def arrow() -> Any:
    """The module, where it is installed. Raises `AsyncEmbedError` where it is not."""
    try:
        import pyarrow
    except ImportError as error:
        raise AsyncEmbedError(WITHOUT_ARROW) from error
    return pyarrow


def opened_parquet(path: Path) -> Any:
    """A Parquet file. Raises `OptionError` if it is none."""
    pa = arrow()
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except pa.ArrowException as error:
        raise OptionError(f"{path} is no Parquet: {error}") from error


WITHOUT_ARROW = 'Parquet needs pyarrow: pip install "asyncembed[cli]"'

MOST_BYTES_OF_TEXTS = 2**31 - 1
"""Where one ends in the bytes of all is an int32."""


def arrow_texts(values: Sequence[str | None]) -> "pa.Array":
    """The same as `pyarrow.array`, which imports pandas first, where that is installed: half a second."""
    import numpy as np

    pa = arrow()
    texts = [value.encode() for value in values if value is not None]
    ends = np.cumsum([0, *map(len, texts)])
    if len(texts) < len(values) or ends[-1] > MOST_BYTES_OF_TEXTS:
        return pa.array(values, pa.string())
    buffers = [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


def _plain_schema(schema: Any) -> Any:
    """Without dictionaries, which a record batch alone does not carry, and without what other tools say of it."""
    pa = arrow()
    return pa.schema(
        [pa.field(field.name, _plain_type(field.type), field.nullable) for field in schema.remove_metadata()]
    )


def _plain_type(kind: Any) -> Any:
    return kind.value_type if arrow().types.is_dictionary(kind) else kind


def _without_dictionaries(batch: Any) -> Any:
    return batch.cast(_plain_schema(batch.schema))


def as_json(value: object) -> str:
    """A value on a line, which UTF-8 can hold; what JSON does not know becomes text."""
    text = json.dumps(value, ensure_ascii=False, default=_as_text)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a character, which another escape has brought in
        return json.dumps(value, default=_as_text)
    return text


def _as_text(value: object) -> str:
    if isinstance(value, bytes):
        from base64 import b64encode

        return b64encode(value).decode()
    return str(value)
