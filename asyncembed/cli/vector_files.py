"""What `embed` writes: JSONL, Parquet or a matrix of numpy, by the name's ending.

Each is written in two steps: data that is appended to while the vectors come (a draft, see `draft`), and what makes the
file of it in the end.
"""

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from asyncembed.cli.draft import about_file
from asyncembed.cli.record_files import WITHOUT_ARROW, RecordFile, arrow, arrow_texts, as_json, opened_parquet
from asyncembed.errors import AsyncEmbedError, OptionError
from asyncembed.wakeup import start_thread

if TYPE_CHECKING:
    import pyarrow as pa

ABOUT_KEY = b"asyncembed"
"""Of the metadata of a Parquet file: what it was made with, as JSON."""

ROW_GROUP_BYTES = 64 * 1024 * 1024


class VectorFile(ABC):
    """One kind of file: `into` is the field that gets the vectors."""

    can_be_sparse: ClassVar[bool] = True
    has_about: ClassVar[bool] = False
    """Whether the file itself says what it was made with."""

    def __init__(self, source: RecordFile, into: str, *, is_sparse: bool) -> None:
        self._source = source
        self._into = into
        self._is_sparse = is_sparse

    def check(self) -> None:
        """Raise `OptionError` for what it cannot hold, or if what it needs is not installed."""
        if self._is_sparse and not self.can_be_sparse:
            raise OptionError("a .npy file holds dense vectors only; write sparse ones to .jsonl or .parquet")

    def header(self, dim: int | None) -> bytes:  # noqa: ARG002 (for those that need one)
        """What the data begins with; `dim` is None for sparse vectors."""
        return b""

    @abstractmethod
    def encoded(self, records: Sequence[Any], results: Any) -> "bytes | memoryview":
        """Some records with their results, as `batches` of a stream gives these."""

    def finish(self, data: Path, about: Mapping[str, Any]) -> Path:  # noqa: ARG002 (for those that say it)
        """The whole file, in the folder of `data`, which may be the same. May be called again."""
        return data

    def _kept(self, records: Sequence[Any]) -> Iterator[str]:
        """Records as JSON, without what stands where the vector comes."""
        for fields in self._source.fields(records):
            kept = fields
            if self._into in fields:
                kept = {name: value for name, value in fields.items() if name != self._into}
            yield as_json(kept)


def open_vectors(target: str, source: RecordFile, into: str, *, is_sparse: bool) -> VectorFile:
    """What writes a file of this name; "-" is JSONL on stdout. Raises `OptionError`."""
    ending = ".jsonl" if target == "-" else Path(target).suffix.lower()
    if ending not in _KINDS:
        raise OptionError(f"the name of {target} must end with {', '.join(_KINDS)}, which says what it is")
    found = _KINDS[ending](source, into, is_sparse=is_sparse)
    found.check()
    return found


_FACTS: dict[str, type] = {**dict.fromkeys(("model", "family", "column", "into"), str), "records": int, "failed": int}
"""Of what stands there, where it does."""


def made_with(path: Path) -> dict[str, Any] | None:
    """What a file was made with, as far as it or the file beside it says so; None: it does not.

    Raises:
        OptionError: What stands there is nothing that `embed` has written.
    """
    if path.suffix.lower() == ".parquet":
        with opened_parquet(path) as file:
            text, where = (file.schema_arrow.metadata or {}).get(ABOUT_KEY), path
    else:
        where = about_file(path)
        text = where.read_bytes() if where.exists() else None
    if text is None:
        return None
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or not all(
        isinstance(about.get(name, kind()), kind) for name, kind in _FACTS.items()
    ):
        raise OptionError(f"{where} does not say what {path} was made with, as embed writes it: it is broken")
    return cast("dict[str, Any]", about)


# ---------------------------------------------------------------- JSONL


class JsonVectors(VectorFile):
    """Each record on a line, with its vector: a list, or `{"indices": [...], "values": [...]}`."""

    def encoded(self, records: Sequence[Any], results: Any) -> bytes:
        if self._is_sparse:
            vectors = [
                f'{{"indices": {indices}, "values": {values}}}'
                for indices, values in zip(
                    _as_json_lists([vector.indices for vector in results]),
                    _as_json_lists([vector.values for vector in results]),
                    strict=True,
                )
            ]
        else:
            vectors = _as_json_lists(results)
        return "".join(map(self._line, self._kept(records), vectors)).encode()

    def _line(self, kept: str, vector: str) -> str:
        comma = "" if kept == "{}" else ", "
        return f"{kept[:-1]}{comma}{json.dumps(self._into, ensure_ascii=False)}: {vector}}}\n"


def _as_json_lists(arrays: Any) -> list[str]:
    """Each array (n,) of numbers, float32 with as many digits as tell it from its neighbours."""
    try:
        import orjson
    except ImportError:
        return ["[" + ",".join([f"{number:.9g}" for number in array.tolist()]) + "]" for array in arrays]
    option = orjson.OPT_SERIALIZE_NUMPY
    return [orjson.dumps(array, option=option).decode() for array in arrays]


# ---------------------------------------------------------------- numpy


class NumpyVectors(VectorFile):
    """The vectors alone, as a matrix (records, dim) of float32: a row for each record that has one, in their order."""

    can_be_sparse = False

    def header(self, dim: int | None) -> bytes:
        # Not valid before the end: zeros as long as the header will be.
        return bytes(len(_numpy_header(0, dim or 0)))

    def encoded(self, records: Sequence[Any], results: Any) -> memoryview:  # noqa: ARG002 (a matrix has none)
        return cast("memoryview", results.astype("<f4", order="C", copy=False).data)

    def finish(self, data: Path, about: Mapping[str, Any]) -> Path:
        header = _numpy_header(about["records"], about["dim"])
        with data.open("r+b") as file:
            file.write(header)
        return data


def _numpy_header(rows: int, dim: int) -> bytes:
    """Of the same length for any number of rows: numpy leaves room for them to grow."""
    from numpy.lib import format as numpy_format

    written = io.BytesIO()
    numpy_format.write_array_header_1_0(written, {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)})
    return written.getvalue()


# ---------------------------------------------------------------- Parquet


_JSON_COLUMN = "record"
"""Of the data, where the columns of the file are known only when all records are there."""


class ParquetVectors(VectorFile):
    """Each record as a row, with its vector: a list of fixed size, or a struct of `indices` and `values`.

    The data are record batches as Arrow streams them, since Parquet itself cannot be gone on with.
    """

    has_about = True

    def check(self) -> None:
        super().check()
        if find_spec("pyarrow") is None:
            raise AsyncEmbedError(WITHOUT_ARROW)
        # Beside the model, which takes longer: what is missing in the end is said when it is used.
        start_thread(self._import)

    def _import(self) -> None:
        import pyarrow.parquet

        if self._source.schema is None:
            pyarrow.array([0])  # imports pandas, where that is installed

    def header(self, dim: int | None) -> bytes:
        return bytes(self._schema(dim).serialize())

    def encoded(self, records: Sequence[Any], results: Any) -> bytes:
        pa = arrow()
        vectors = self._sparse(results) if self._is_sparse else self._dense(results)
        if self._source.schema is None:
            names, columns = [_JSON_COLUMN], [arrow_texts(list(self._kept(records)))]
        else:
            batch = self._source.batch(records)
            names = [name for name in batch.schema.names if name != self._into]
            columns = [batch.column(name) for name in names]
        schema = self._schema(None if self._is_sparse else results.shape[1])
        return bytes(pa.RecordBatch.from_arrays([*columns, vectors], schema=schema).serialize())

    def _schema(self, dim: int | None) -> "pa.Schema":
        pa = arrow()
        known = self._source.schema
        fields = [pa.field(_JSON_COLUMN, pa.string())] if known is None else [f for f in known if f.name != self._into]
        numbers = pa.float32()
        kind = (
            pa.list_(numbers, dim) if dim else pa.struct({"indices": pa.list_(pa.int32()), "values": pa.list_(numbers)})
        )
        return pa.schema([*fields, pa.field(self._into, kind)])

    def _dense(self, matrix: Any) -> "pa.Array":
        pa = arrow()
        numbers = matrix.astype("<f4", order="C", copy=False)
        values = pa.Array.from_buffers(pa.float32(), numbers.size, [None, pa.py_buffer(numbers)])
        return pa.FixedSizeListArray.from_arrays(values, matrix.shape[1])

    def _sparse(self, vectors: Sequence[Any]) -> "pa.Array":
        pa = arrow()
        return pa.StructArray.from_arrays(
            [
                pa.array([vector.indices for vector in vectors], pa.list_(pa.int32())),
                pa.array([vector.values for vector in vectors], pa.list_(pa.float32())),
            ],
            names=["indices", "values"],
        )

    def finish(self, data: Path, about: Mapping[str, Any]) -> Path:
        import pyarrow.parquet

        batches: Any = _Batches(data, is_json=self._source.schema is None)
        whole = data.with_name("whole")
        schema = batches.schema.with_metadata({ABOUT_KEY: json.dumps(about).encode()})
        others = [name for name in schema.names if name != self._into]
        with pyarrow.parquet.ParquetWriter(whole, schema, use_dictionary=others) as writer:  # no vector comes twice
            for table in batches.tables():
                writer.write_table(table.replace_schema_metadata(schema.metadata))
        return whole


class _Batches:
    """The data of a Parquet file, in portions of a row group; read more than once."""

    def __init__(self, data: Path, *, is_json: bool) -> None:
        self._data = data
        self._columns = _JsonColumns(self._read()) if is_json else None
        with arrow().OSFile(str(data)) as file:
            known = arrow().ipc.open_stream(file).schema
        self.schema = known if self._columns is None else arrow().schema([*self._columns.schema, *list(known)[1:]])

    def _read(self) -> Iterator["pa.RecordBatch"]:
        with arrow().OSFile(str(self._data)) as file:
            yield from arrow().ipc.open_stream(file)

    def tables(self) -> Iterator["pa.Table"]:
        pa = arrow()
        waiting: list[Any] = []
        for batch in self._read():
            waiting.append(batch if self._columns is None else self._columns.spread(batch, self.schema))
            if sum(one.nbytes for one in waiting) >= ROW_GROUP_BYTES:
                yield pa.Table.from_batches(waiting, self.schema)
                waiting = []
        if waiting:
            yield pa.Table.from_batches(waiting, self.schema)


class _JsonColumns:
    """The columns of records that were kept as JSON: of a type that holds all values of a field, else again as JSON."""

    def __init__(self, batches: Iterator["pa.RecordBatch"]) -> None:
        self._types: dict[str, Any] = {}
        for batch in batches:
            for name, values in self._values(batch).items():
                self._types[name] = _common_type(self._types.get(name), _type_of(values))
        self.schema = arrow().schema(list(self._types.items()))

    def _values(self, batch: "pa.RecordBatch", names: Sequence[str] | None = None) -> dict[str, list[Any]]:
        records = [json.loads(text) for text in batch.column(0).to_pylist()]
        if names is None:
            names = list(dict.fromkeys(name for record in records for name in record))
        return {name: [record.get(name) for record in records] for name in names}

    def spread(self, batch: "pa.RecordBatch", schema: "pa.Schema") -> "pa.RecordBatch":
        """The batch with these columns in the place of the JSON."""
        columns = [self._column(name, values) for name, values in self._values(batch, list(self._types)).items()]
        return arrow().RecordBatch.from_arrays([*columns, *batch.columns[1:]], schema=schema)

    def _column(self, name: str, values: list[Any]) -> Any:
        pa = arrow()
        if self._types[name] == pa.string():
            values = [value if value is None else _as_text(value) for value in values]
        return pa.array(values, self._types[name])


def _as_text(value: object) -> str:
    """A text itself, without what UTF-8 cannot hold, and anything else as JSON."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else as_json(value)


def _type_of(values: list[Any]) -> Any:
    """The type of a field's values, text for those that have none in common, or none that Parquet knows."""
    pa = arrow()
    try:
        found = pa.array(values).type
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return pa.string()
    return pa.string() if "struct<>" in str(found) else found


def _common_type(one: Any, other: Any) -> Any:
    """A type that holds the values of both, text if need be."""
    pa = arrow()
    if one is None or one == other:
        return other
    try:
        unified = pa.unify_schemas([pa.schema([("", one)]), pa.schema([("", other)])], promote_options="permissive")
    except pa.ArrowException:
        return pa.string()
    return unified.field(0).type


_KINDS: dict[str, type[VectorFile]] = {".jsonl": JsonVectors, ".parquet": ParquetVectors, ".npy": NumpyVectors}
