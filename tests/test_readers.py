"""Readers: what they give, in order, broken records in their places, and closed when nobody wants more."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncembed import TextEmbedding, readers, sources
from asyncembed.errors import InputError, OptionError
from asyncembed.readers import csv_records, image_paths, json_lines, text_lines
from tests.support.models import spec_for, write_model
from tests.support.waiting import open_files

LONG = "long " * 256 * 1024

without_deadline = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def everything(source: Iterable[Any]) -> list[Any]:
    return list(source)


def failures(records: Iterable[Any]) -> dict[int, str]:
    """Where errors are, and what they say."""
    return {position: str(record) for position, record in enumerate(records) if isinstance(record, InputError)}


def test_the_images_of_a_folder_in_order(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", "c/d.webp", "c/e/f.tiff", "c.jpeg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [path.relative_to(tmp_path).as_posix() for path in everything(image_paths(tmp_path))]
    assert found == ["a.png", "b.JPG", "c.jpeg", "c/d.webp", "c/e/f.tiff"]
    assert len(everything(image_paths(str(tmp_path), recursive=False))) == 3
    assert len(everything(image_paths(tmp_path, suffixes={".txt"}))) == 1
    with pytest.raises(NotADirectoryError):
        everything(image_paths(tmp_path / "a.png"))


@pytest.mark.posix
def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "again").symlink_to(tmp_path)
    assert everything(image_paths(tmp_path)) == [tmp_path / "a.png"]


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\nzwölf\n".encode() + LONG.encode() + b"\n last")
    assert everything(text_lines(path)) == ["one", "zwölf", LONG, " last"]
    path.write_bytes("zwölf".encode("latin-1"))
    assert everything(text_lines(path, encoding="latin-1")) == ["zwölf"]
    (broken,) = everything(text_lines(path))
    assert isinstance(broken, InputError)
    assert str(broken).endswith("a.txt: line 1 is no utf-8: byte 0xf6 at 2")
    path.write_bytes(b"")
    assert everything(text_lines(path)) == []
    with pytest.raises(FileNotFoundError):
        everything(text_lines(tmp_path / "missing"))


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records: list[Any] = [{"text": "é\n", "n": n} for n in range(5000)] + [LONG, [1], None, 7]
    path.write_text("\n\n".join(json.dumps(record) for record in records), encoding="utf-8")
    assert everything(json_lines(path)) == records
    path.write_text('{"a": 1}\n\n{"a": \n', "utf-8")
    first, broken = everything(json_lines(path))
    assert first == {"a": 1}
    assert isinstance(broken, InputError)
    assert "line 3 is no JSON" in str(broken)
    assert isinstance(broken.__cause__, ValueError)


@pytest.mark.slow
def test_csv_records(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [{"id": str(n), "text": f'say "{n}",\nthen\r\ngo; é'} for n in range(9000)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"])
        writer.writeheader()
        writer.writerows(rows)
    assert everything(csv_records(path)) == rows
    path.write_text("a;b\r\n1;2\r\n\r\n3;4\r\n", "utf-8")
    assert everything(csv_records(path, delimiter=";")) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    path.write_text("a,b\n1,2\n3\n4,5\n", "utf-8")
    first, broken, last = everything(csv_records(path))
    assert (first, last) == ({"a": "1", "b": "2"}, {"a": "4", "b": "5"})
    assert str(broken).endswith("a.csv: line 3: 1 fields, but the header has 2")


def test_the_former_module_has_the_same_readers() -> None:
    assert sources.csv_records is csv_records
    assert sources.image_paths is image_paths


# ---------------------------------------------------------------- broken records


def test_columns_of_one_name_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b,a,,a.1,,a\n1,2,3,4,5,6,7\n", "utf-8")
    (record,) = everything(csv_records(path))
    assert record == {"a": "1", "b": "2", "a.2": "3", "": "4", "a.1": "5", ".1": "6", "a.3": "7"}


@pytest.mark.parametrize("behind", ["", '5000,"in quotes"\n', '5000,"in quotes"\n' * 9 + LONG])
@pytest.mark.parametrize(
    ("lines", "text"),
    [(0, "x"), (3, "x"), (4000, "x"), (4000, "x" * 40)],
    ids=["last line", "short", "long", "over the limit"],
)
def test_a_quote_that_is_not_closed_costs_its_line_alone(lines: int, text: str, behind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        'id,text\n1,one\n2,"never closed\n' + "".join(f"{n},{text}\n" for n in range(lines)) + behind, "utf-8"
    )
    records = everything(csv_records(path))
    assert records[0] == {"id": "1", "text": "one"}
    assert "line 3: a quote is not closed that begins there; quotechar=None" in str(records[1])
    assert records[2 : 2 + lines] == [{"id": str(n), "text": text} for n in range(lines)]
    assert records[2 + lines :][:9] == [{"id": "5000", "text": "in quotes"}] * min(9, behind.count("in quotes"))


def test_quotes_that_are_never_closed_do_not_have_a_file_read_for_ever(tmp_path: Path) -> None:
    """Each line closes the quote of the one before, and begins another."""
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + 'a","\n' * 3000, "utf-8")
    records = everything(csv_records(path))
    assert len(records) == len(failures(records)) < 100


def test_a_quote_inside_a_field_loses_no_row(tmp_path: Path) -> None:
    path = tmp_path / "pipes.csv"
    path.write_text('id,text\n1,5" pipe\n2,a valve\n3,6" pipe\n4,a "quoted" word\n', "utf-8")
    texts = [record["text"] for record in csv_records(path) if not isinstance(record, InputError)]
    assert texts == ['5" pipe', "a valve", '6" pipe', 'a "quoted" word']


def test_a_broken_line_is_the_failure_of_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    deep = "[" * 100_000
    path.write_bytes(b'1\n{"a": \n"\xff"\n2\n' + deep.encode() + b"\n\xef\xbb\xbf3\n4")
    records = everything(json_lines(path))
    assert [record for record in records if not isinstance(record, InputError)] == [1, 2, 3, 4]
    assert list(failures(records)) == [1, 2, 4]
    path.write_bytes("é\n".encode() + b"\xe9\nb\n")
    records = everything(text_lines(path))
    assert [records[0], records[2]] == ["é", "b"]
    assert list(failures(records)) == [1]
    path.write_bytes(b"a,b\n1,2\n3,\xff\n\xfe\n4,5\n")
    records = everything(csv_records(path))
    assert [records[0]["a"], records[3]["a"]] == ["1", "4"]
    assert list(failures(records)) == [1, 2]


@pytest.mark.slow
def test_a_field_over_the_limit_of_csv_fails_alone(tmp_path: Path) -> None:
    """Also one of many lines, some of which look like records."""
    path = tmp_path / "a.csv"
    article = "like,a record\n" * 200_000
    rows = [["1", "short"], ["2", LONG], ["3", article], ["4", f'"{LONG}",\n"x","y"\n'], ["5", "end"]]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *rows])
    records = everything(csv_records(path))
    assert [records[0], records[4]] == [{"id": "1", "text": "short"}, {"id": "5", "text": "end"}]
    said = failures(records)
    assert list(said) == [1, 2, 3]
    assert "line 3: field larger than field limit (131072); csv.field_size_limit() sets it" in said[1]
    assert "lines 4 to 200004: field larger" in said[2]


def test_a_broken_header_is_the_files_failure(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,\xff\n1,2\n")
    with pytest.raises(InputError, match=r"a\.csv: line 1 is no utf-8"):
        everything(csv_records(path))
    path.write_text(f"a,{LONG}\n1,2\n", "utf-8")
    with pytest.raises(InputError, match="line 1: field larger"):
        everything(csv_records(path))


def test_a_file_that_cannot_be_decoded_any_further_ends_with_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one\ntwo\n".encode("utf-16") + b"\x00")
    read = text_lines(path, encoding="utf-16")
    with pytest.raises(InputError, match=r"a\.txt: no utf-16"):
        everything(read)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "utf-16-le", "cp1252"])
def test_encodings_and_byte_order_marks(encoding: str, mark: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    if mark and encoding not in ("utf-8", "UTF8"):
        mark = ""
    path.write_bytes(f"{mark}näme;b\r\n1;é\r\n".encode(encoding))
    assert everything(csv_records(path, encoding=encoding, delimiter=";")) == [{"näme": "1", "b": "é"}]
    assert everything(text_lines(path, encoding=encoding)) == ["näme;b", "1;é"]


@pytest.mark.parametrize(
    "options", [{"encoding": "no-such"}, {"encoding": 3}, {"delimiter": ""}, {"delimiter": 5}, {"quotechar": "ab"}]
)
def test_what_csv_cannot_read_is_refused_at_once(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        csv_records(tmp_path / "a.csv", **options)


def test_quotes_may_be_ordinary_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tn\n"Hello," he said\t1\n"\t2\n', "utf-8")
    records = everything(csv_records(path, delimiter="\t", quotechar=None))
    assert records == [{"text": '"Hello," he said', "n": "1"}, {"text": '"', "n": "2"}]


# ---------------------------------------------------------------- CSV against `csv`


@without_deadline
@given(
    text=st.text(st.sampled_from('ab",;\r\n é\0'), max_size=60),
    delimiter=st.sampled_from(",;"),
    quotechar=st.sampled_from(['"', "'", None]),
)
def test_any_text_gives_what_csv_gives(text: str, delimiter: str, quotechar: str | None, tmp_path: Path) -> None:
    """Unbalanced and unterminated quotes, lone carriage returns, empty lines: row by row."""
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8", newline="")
    dialect: dict[str, Any] = {"delimiter": delimiter, "quotechar": quotechar}
    if quotechar is None:
        dialect["quoting"] = csv.QUOTE_NONE
    header, *rows = list(rows_of(list(StringIO(text, newline="")), dialect)) or [[]]
    if header is None:
        with pytest.raises(InputError):
            everything(csv_records(path, delimiter=delimiter, quotechar=quotechar))
        return
    expected = [None if row is None or len(row) != len(header) else row for row in rows]
    records = everything(csv_records(path, delimiter=delimiter, quotechar=quotechar))
    assert [None if isinstance(record, InputError) else list(record.values()) for record in records] == expected


def rows_of(lines: list[str], dialect: dict[str, Any]) -> Iterator[list[str] | None]:
    """What `csv` reads; None for a line whose quote takes others in, and does not end as one should."""
    while lines:
        taken = iter(lines)
        row = next(csv.reader(taken, **dialect))
        rest = list(taken)
        record = lines[: len(lines) - len(rest)]
        try:
            list(csv.reader(record, strict=True, **dialect))
        except csv.Error:
            if len(record) > 1 or next(csv.reader([*lines, "z"], **dialect)) != row:
                yield None
                lines = lines[1:]
                continue
        if row:
            yield row
        lines = rest


field_texts = st.text(st.sampled_from('ab",\r\n é'), max_size=30)


@pytest.mark.slow
@without_deadline
@given(rows=st.lists(st.tuples(field_texts, field_texts), max_size=12), huge=st.sets(st.integers(0, 11)))
def test_what_csv_writes_comes_back_but_for_the_fields_over_its_limit(
    rows: list[tuple[str, str]], huge: set[int], tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    written = [(a, f"{b}x\n" * 200) if i in huge else (a, b) for i, (a, b) in enumerate(rows)]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("a", "b"), *written])
    limit = csv.field_size_limit(150)
    try:
        records = everything(csv_records(path))
    finally:
        csv.field_size_limit(limit)
    assert list(failures(records)) == [i for i in sorted(huge) if i < len(rows)]
    for record, (a, b) in zip(records, written, strict=True):
        assert isinstance(record, InputError) or record == {"a": a, "b": b}


@without_deadline
@given(lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=10))
def test_each_line_of_any_file_is_a_value_or_an_error(lines: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(line + b"\n{}\n" for line in lines))
    records = everything(json_lines(path))
    assert len([record for record in records if record == {}]) >= len(lines)
    assert len(records) <= 2 * len(lines)


# ---------------------------------------------------------------- in a stream


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "model")


async def test_a_stream_passes_a_broken_record_as_any_other_input(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": \n{"text": "three"}\n', "utf-8")

    def text_of(record: Any) -> str:
        return str(record["text"])

    async with TextEmbedding(spec_for(model_path, pooling="mean"), workers=0) as model:
        stream = model.embed(json_lines(path), key=text_of, on_error="skip").with_inputs()
        records, vectors = await stream.collect()
        assert records == [{"text": "one"}, {"text": "three"}]
        assert (len(vectors), stream.skipped, model.stats().failed) == (2, 1, 1)
        results = await model.embed(json_lines(path), key=text_of, on_error="return").collect()
        assert isinstance(results[1], InputError)
        assert results[1].index == 1
        stream = model.embed(json_lines(path), key=text_of).with_inputs()
        assert (await anext(stream))[0] == {"text": "one"}
        with pytest.raises(InputError, match="input 1: .*line 2 is no JSON"):
            await anext(stream)


@pytest.mark.slow
async def test_a_stream_reads_no_further_than_its_window_and_closes_the_file(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(20_000):
            file.write(json.dumps({"text": f"the {number}"}) + "\n")
    spec = spec_for(model_path, pooling="mean")
    read: list[Any] = []

    def text_of(record: Any) -> str:
        read.append(record)
        return str(record["text"])

    async with TextEmbedding(spec, workers=0, max_in_flight=50) as model:
        before = open_files()
        stream = model.embed(json_lines(path), key=text_of).with_inputs()
        async for record, _ in stream:
            if record["text"] == "the 99":
                break
        assert open_files() == before + 1
        await stream.aclose()
        assert open_files() == before
    assert 100 <= len(read) <= 150


@pytest.mark.parametrize("read", [text_lines, json_lines])
def test_a_line_without_end_is_no_record_and_is_not_kept(
    read: Callable[[Path], Iterator[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LONGEST_LINE", 10)
    path = tmp_path / "lines"
    path.write_text('"first"\n"' + "x" * 35 + '"\n"' + "y" * 7 + '"\n"last"', encoding="utf-8")
    first, long, whole, last = read(path)
    assert [str(each).strip('"') for each in (first, whole, last)] == ["first", "y" * 7, "last"]
    assert isinstance(long, InputError)
    assert "line 2 has over" in str(long)
