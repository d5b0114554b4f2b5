"""`asyncembed embed`, with models without weights, and once with a real one."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import asyncembed.sync
from asyncembed.cli.commands import main
from asyncembed.errors import EncodeError
from asyncembed.testing import Fakes, fake_models
from tests.support.posix import make_pipe

pytestmark = pytest.mark.slow

MODEL = "BAAI/bge-small-en-v1.5"
TEXTS = ["one", "two words", "three words here", "zwölf", "five"]


@pytest.fixture(autouse=True)
def fakes() -> Iterator[Fakes]:
    with fake_models(dim=8, failures={"broken": EncodeError("no vector")}) as fakes:
        yield fakes


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, code: int = 0, stdin: str | bytes | None = None, model: str = MODEL) -> Result:
    done = CliRunner().invoke(main, ["embed", model, *arguments], input=stdin)
    assert done.exit_code == code, done.output
    return done


def lines(path: str | Path) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def expected(texts: list[str], **keywords: Any) -> Any:
    with asyncembed.sync.TextEmbedding(MODEL) as model:
        return model.passage_embed(texts, **keywords).collect()


def write_lines(*texts: str) -> None:
    Path("in.txt").write_text("\n".join(texts), encoding="utf-8")


def write_records(*records: Any) -> None:
    Path("in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def rows(name: str, column: str = "embedding") -> Any:
    import pyarrow.parquet as pq

    return np.array(pq.read_table(name)[column].to_pylist(), np.float32)


# ---------------------------------------------------------------- what goes in, and what comes out


def test_lines_of_text_become_records_with_their_vectors() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_lines(*TEXTS)
    for name in ("out.jsonl", "out.parquet", "out.npy"):
        run("in.txt", "-o", name)
    vectors = expected(TEXTS)
    records = lines("out.jsonl")
    assert [record["text"] for record in records] == TEXTS
    assert (np.array([record["embedding"] for record in records], np.float32) == vectors).all()
    assert pq.read_table("out.parquet")["text"].to_pylist() == TEXTS
    assert pq.read_schema("out.parquet").field("embedding").type == pa.list_(pa.float32(), len(vectors[0]))
    assert (rows("out.parquet") == vectors).all()
    matrix = np.load("out.npy")
    assert matrix.dtype == np.float32
    assert (matrix == vectors).all()
    assert not list(Path().glob("*.partial"))


def test_without_a_file_it_is_from_stdin_to_stdout() -> None:
    done = run(stdin="one\ntwo words\n")
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["one", "two words"]
    assert "2 records" in done.stderr
    records = run("-", "--format=jsonl", "--quiet", stdin='{"text": "one", "id": 7}\n')
    assert json.loads(records.stdout)["id"] == 7
    assert records.stderr == ""
    csv = run("--format=csv", "--column=b", stdin="a,b\n1,one\n2,two\n")
    assert [json.loads(line)["a"] for line in csv.stdout.splitlines()] == ["1", "2"]


def test_the_fields_of_a_record_are_kept_and_one_with_the_name_of_the_vector_is_replaced() -> None:
    record = {"id": 12345678901234567890, "body": "zwölf", "tags": ["a", None], "embedding": "old"}
    write_records(record)
    run("in.jsonl", "-o", "out.jsonl", "--column", "body")
    (written,) = lines("out.jsonl")
    assert list(written) == ["id", "body", "tags", "embedding"]
    assert len(written["embedding"]) == 384
    assert {**written, "embedding": "old"} == record
    run("in.jsonl", "-o", "out.jsonl", "--column=body", "--into=vector")
    (written,) = lines("out.jsonl")
    assert (written["embedding"], len(written["vector"])) == ("old", 384)


@pytest.mark.parametrize("source", ["in.jsonl", "in.csv", "in.parquet"])
@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_what_was_embedded_can_be_embedded_again(source: str, name: str) -> None:
    import pyarrow.parquet as pq

    write_records({"text": "one", "id": 1})
    Path("in.csv").write_text("embedding,text,id\nold,one,1\n", encoding="utf-8")
    if source != "in.csv":
        run("in.jsonl", "-o", "again" + Path(source).suffix, "--prompt", "another: ")
        Path("again" + Path(source).suffix).replace(source)
    run(source, "-o", name)
    (record,) = pq.read_table(name).to_pylist() if name == "out.parquet" else lines(name)
    assert list(record) == ["text", "id", "embedding"]
    assert record["embedding"] == pytest.approx(expected(["one"])[0].tolist())


def test_json_of_any_shape_goes_into_parquet() -> None:
    import pyarrow.parquet as pq

    write_records(
        {"text": "one", "n": 1, "mixed": 1, "nested": {"a": 1}, "late": None, "empty": {}},
        {"text": "two", "n": 2.5, "mixed": "1", "nested": {"b": [1]}, "big": 2**70},
        {"text": "three", "late": "here", "half": "\ud83d"},
    )
    run("in.jsonl", "-o", "out.parquet")
    first, second, third = pq.read_table("out.parquet").drop_columns("embedding").to_pylist()
    assert [first["n"], second["n"], third["n"]] == [1, 2.5, None]
    assert [first["mixed"], second["mixed"]] == ["1", "1"]
    assert (first["late"], third["late"]) == (None, "here")
    assert (first["empty"], second["big"], third["half"]) == ("{}", str(2**70), "?")
    assert second["nested"] is not None


def test_types_of_a_field_that_differ_only_later_find_a_common_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    records = [{"text": str(n), "a": n, "b": n} for n in range(300)]
    write_records(*records, {"text": "x", "a": 0.5, "b": "text"}, {"text": "y", "c": [1]})
    run("in.jsonl", "-o", "out.parquet")
    table = pq.read_table("out.parquet")
    assert table.num_rows == 302
    assert table["a"].to_pylist()[299:] == [299.0, 0.5, None]
    assert table["b"].to_pylist()[299:] == ["299", "text", None]
    assert table["c"].to_pylist()[300:] == [None, [1]]


def test_csv_has_whatever_is_said_between_its_fields() -> None:
    Path("in.csv").write_text("id;text\n1;one, two\n", encoding="utf-8")
    for source, stdin in (("in.csv", None), ("-", Path("in.csv").read_bytes())):
        run(source, "--format=csv", "--delimiter=;", "-o", "out.jsonl", stdin=stdin)
        (record,) = lines("out.jsonl")
        assert (record["id"], record["text"]) == ("1", "one, two")


@pytest.mark.parametrize("name", ["in.csv", "in.tsv"])
def test_a_field_of_csv_may_be_a_whole_book(name: str) -> None:
    before = csv.field_size_limit()
    book = "word " * 100_000
    Path(name).write_text(f'text\n"{book}"\nnext\n', encoding="utf-8")
    run(name, "-o", "out.jsonl")
    assert [record["text"] for record in lines("out.jsonl")] == [book, "next"]
    assert csv.field_size_limit() == before


def test_csv_and_tsv_keep_their_columns() -> None:
    import pyarrow.parquet as pq

    Path("in.csv").write_text('id,text\n1,"one\nline"\n2,two\n', encoding="utf-8")
    Path("in.tsv").write_text("id\ttext\n1\tone\n", encoding="utf-8")
    run("in.csv", "-o", "out.parquet")
    assert pq.read_table("out.parquet").drop_columns("embedding").to_pylist() == [
        {"id": "1", "text": "one\nline"},
        {"id": "2", "text": "two"},
    ]
    run("in.tsv", "-o", "out.jsonl")
    assert lines("out.jsonl")[0]["id"] == "1"


def test_parquet_keeps_its_columns_as_they_are() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "text": pa.array([f"text {n}" for n in range(3000)]).dictionary_encode(),
            "when": pa.array(range(3000), pa.timestamp("ns")),
            "blob": [b"\xff"] * 3000,
            "embedding": ["old"] * 3000,
        }
    )
    pq.write_table(table, "in.parquet", row_group_size=700)
    run("in.parquet", "-o", "out.parquet")
    written = pq.read_table("out.parquet")
    assert written.column_names == ["text", "when", "blob", "embedding"]
    assert written["when"].type == pa.timestamp("ns")
    assert written["when"].to_pylist() == table["when"].to_pylist()
    assert written["text"].to_pylist() == table["text"].to_pylist()
    assert len(written["embedding"][2999].as_py()) == 384
    run("in.parquet", "-o", "out.jsonl")
    assert lines("out.jsonl")[1]["when"].startswith("1970-01-01")
    assert lines("out.jsonl")[1]["blob"] == "/w=="


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out.npy"])
@pytest.mark.parametrize("kind", ["in.txt", "in.jsonl"])
def test_nothing_becomes_nothing(name: str, kind: str) -> None:
    import pyarrow.parquet as pq

    Path(kind).touch()
    run(kind, "-o", name)
    if name == "out.npy":
        assert np.load(name).shape == (0, 384)
    elif name == "out.jsonl":
        assert lines(name) == []
    else:
        assert pq.read_table(name).num_rows == 0


def test_sparse_vectors_are_indices_and_values() -> None:
    import pyarrow.parquet as pq

    write_lines("one two", "three")
    run("in.txt", "-o", "out.jsonl", "--sparse", model="Qdrant/bm25")
    run("in.txt", "-o", "out.parquet", "--sparse", model="Qdrant/bm25")
    with asyncembed.sync.SparseTextEmbedding("Qdrant/bm25") as model:
        first = model.passage_embed(["one two", "three"]).collect()[0]
    for vector in (lines("out.jsonl")[0]["embedding"], pq.read_table("out.parquet")["embedding"][0].as_py()):
        assert vector["indices"] == first.indices.tolist()
        assert np.array(vector["values"], np.float32).tolist() == first.values.tolist()
    assert "dense vectors only" in run("in.txt", "-o", "x.npy", "--sparse", code=2).stderr
    assert "sparse vectors know no --prompt" in run("in.txt", "--sparse", "--prompt=x", code=2).stderr


def test_prompts_roles_and_dimensions_reach_the_model() -> None:
    write_lines("one")
    run("in.txt", "-o", "out.npy", "--prompt", "query: ", "--truncate-dim", "4")
    assert (np.load("out.npy") == expected(["one"], prompt="query: ", truncate_dim=4)).all()
    assert "no prompt is called 'nosuch'" in run("in.txt", "-o", "x.npy", "--prompt-name=nosuch", code=2).stderr
    run("in.txt", "-o", "plain.npy", "--role=plain")
    assert not Path("x.npy.partial").exists()


def test_numbers_have_all_digits_without_orjson_too(monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(*TEXTS)
    monkeypatch.setitem(sys.modules, "orjson", None)
    run("in.txt", "-o", "out.jsonl")
    assert (np.array([record["embedding"] for record in lines("out.jsonl")], np.float32) == expected(TEXTS)).all()


def test_the_last_word_is_json_if_asked_for() -> None:
    write_lines(*TEXTS)
    report = json.loads(run("in.txt", "-o", "out.npy", "--json").stdout)
    assert report.pop("seconds") > 0
    assert report == {"output": "out.npy", "read": 5, "written": 5, "failed": 0, "cut": 0, "resumed_after": 0}


def test_the_last_word_says_how_many_texts_were_cut() -> None:
    write_lines(*TEXTS, "a text of several words " * 50)
    said = run("in.txt", "-o", "out.npy", "--max-length", "8").stderr
    (cut,) = re.findall(r", (\d+) longer than the model's limit of tokens, and cut there, ", said)
    assert 0 < int(cut) <= len(TEXTS) + 1
    assert "cut" not in run("in.txt", "-o", "out.npy", "--restart", "--max-length", "8", "--long", "mean").stderr
    assert "cut" not in run("in.txt", "-o", "out.npy", "--restart", "--max-length", "400").stderr


@pytest.mark.posix
def test_a_pipe_with_a_name_is_read_once(here: Path) -> None:
    import pyarrow.parquet as pq

    make_pipe(here / "in.csv")
    source = "import sys; open('in.csv', 'w').write('id,text\\n1,one\\n')"
    with subprocess.Popen([sys.executable, "-c", source]) as writer:
        run("in.csv", "-o", "out.parquet")
        assert writer.wait(10) == 0
    assert pq.read_table("out.parquet")["id"].to_pylist() == ["1"]


# ---------------------------------------------------------------- what fails


def test_a_record_that_fails_ends_it_and_it_can_be_gone_on_with() -> None:
    write_records({"text": "one"}, {"text": "broken", "id": 2}, {"text": "three"})
    said = run("in.jsonl", "-o", "out.jsonl", code=1).stderr
    assert "input 1: no vector" in said
    assert "Records done so far: 1; --resume goes on" in said
    assert "To go on past what fails: --on-error" in said
    assert not Path("out.jsonl").exists()
    run("in.jsonl", "-o", "out.jsonl", "--resume", "--on-error=skip")
    assert [record["text"] for record in lines("out.jsonl")] == ["one", "three"]


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out.npy"])
def test_failed_records_go_into_a_file_of_their_own(name: str) -> None:
    Path("in.jsonl").write_text(
        '{"text": "one"}\n{"text": \n{"id": 3}\n{"text": 4}\n{"text": "broken"}\n"six"\n[7]\n', "utf-8"
    )
    report = json.loads(run("in.jsonl", "-o", name, "--on-error", "failed.jsonl", "--json").stdout)
    assert (report["read"], report["written"], report["failed"]) == (7, 2, 5)
    failed = lines("failed.jsonl")
    assert [record["failure"]["index"] for record in failed] == [1, 2, 3, 4, 6]
    assert [record["failure"]["error"] for record in failed] == ["InputError"] * 3 + ["EncodeError", "InputError"]
    assert "line 2 is no JSON" in failed[0]["failure"]["message"]
    assert "no field 'text'; --column names another one: id" in failed[1]["failure"]["message"]
    assert (failed[1]["id"], failed[3]["text"]) == (3, "broken")
    run("in.jsonl", "-o", name, "--on-error", "skip")
    assert sorted(path.name for path in Path().iterdir() if "meta" not in path.name) == sorted(
        [name, "failed.jsonl", "in.jsonl"]
    )


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_text_of_parquet_that_is_no_utf_8_fails_alone(name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.support.arrow import no_utf_8

    pq.write_table(pa.table({"text": no_utf_8("one", b"\xff", "two"), "n": no_utf_8("1", "2", b"a\xfe")}), "in.parquet")
    run("in.parquet", "-o", name, "--on-error", "failed.jsonl")
    assert len(lines(name) if name == "out.jsonl" else rows(name)) == 2
    (failed,) = lines("failed.jsonl")
    assert (failed["text"], failed["n"], failed["failure"]["index"]) == ("\\xff", "2", 1)
    assert "can't decode byte 0xff" in failed["failure"]["message"]
    if name == "out.jsonl":
        assert [line["n"] for line in lines(name)] == ["1", "a\\xfe"]


def test_failed_records_of_parquet_and_csv_keep_their_fields() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["one", None, "broken"], "n": [1, 2, 3]}), "in.parquet")
    run("in.parquet", "-o", "out.parquet", "--on-error", "failed.jsonl")
    assert [record["n"] for record in lines("failed.jsonl")] == [2, 3]
    assert pq.read_table("out.parquet")["n"].to_pylist() == [1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch.txt", "-o", "out.npy"], "No such file or directory: 'nosuch.txt'"),
        (["in.txt", "-o", "out.txt"], "must end with .jsonl, .parquet, .npy"),
        (["in.txt", "-o", "nosuch/out.npy"], "there is no directory nosuch"),
        (["in.txt", "-o", "folder.npy"], "it is a directory"),
        pytest.param(["in.txt", "-o", "pipe.npy"], "it is no file", marks=pytest.mark.posix),
        (["in.jsonl", "-o", "in.jsonl"], "is what is read: write to another file"),
        (["in.txt", "-o", "out.jsonl", "--on-error=out.jsonl"], "is written already by -o"),
        (["in.txt", "-o", "out.npy", "--on-error=out.npy.meta.json"], "is written already by -o"),
        (["in.jsonl", "-o", "folder.npy/../in.jsonl"], "is what is read: write to another file"),
        (["in.txt", "--column=x", "-o", "out.npy"], "lines of text have no columns"),
        (["in.csv", "--column=x", "-o", "out.npy"], "has no column 'x'; --column names another one: text, b"),
        (["semicolons.csv", "-o", "out.npy"], "seems to have ';' between its fields: say so with --delimiter ';'"),
        (["tabs.csv", "-o", "out.npy"], "seems to have a tab between its fields: say so with --format tsv"),
        (["in.csv", "--delimiter=--", "-o", "out.npy"], "--delimiter must be a single character"),
        (["in.jsonl", "--delimiter=;", "-o", "out.npy"], "--delimiter is for CSV"),
        (["in.txt", "--format=parquet", "-o", "out.npy"], "is no Parquet"),
        (["--format=parquet", "-o", "out.npy"], "Parquet is read from a file"),
        (["in.txt", "--resume"], "--resume needs a file"),
        (["in.txt", "--on-error=f.jsonl"], "needs another one for the rest"),
        (["in.txt", "-o", "out.npy", "--resume", "--restart"], "either --resume or --restart"),
        (["in.txt", "-o", "out.npy", "--workers=-1"], "workers must be"),
        (["in.txt", "-o", "out.npy", "--max-length=0"], "max_length must be"),
    ],
)
def test_what_cannot_work_is_said_before_a_model_is_opened(arguments: list[str], said: str, fakes: Fakes) -> None:
    fakes.opening_error = EncodeError("it was opened")
    write_lines("one")
    write_records({"text": "one"})
    Path("in.csv").write_text("text,b\none,1\n", encoding="utf-8")
    Path("semicolons.csv").write_text("text;b\none;1\n", encoding="utf-8")
    Path("tabs.csv").write_text("text\tb\none\t1\n", encoding="utf-8")
    Path("folder.npy").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe.npy")
    files = set(Path().iterdir())
    done = CliRunner().invoke(main, ["embed", MODEL, *arguments], input="one\n")
    assert done.exit_code == (1 if "No such file" in said else 2)
    assert said in done.stderr
    assert set(Path().iterdir()) == files


def test_parquet_without_pyarrow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines("one")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert 'pip install "asyncembed[cli]"' in run("in.txt", "-o", "out.parquet", code=1).stderr


def test_a_model_that_does_not_open_leaves_nothing_behind(fakes: Fakes) -> None:
    write_lines("one")
    fakes.opening_error = EncodeError("it cannot be opened")
    assert "it cannot be opened" in run("in.txt", "-o", "out.npy", code=1).stderr
    assert [path.name for path in Path().iterdir()] == ["in.txt"]


# ---------------------------------------------------------------- going on


def interrupted(name: str, *texts: str) -> None:
    """Leave the draft of a run that came to the text "broken"."""
    write_lines(*texts)
    run("in.txt", "-o", name, code=1)
    assert Path(f"{name}.partial").is_dir()


def test_what_was_left_is_neither_thrown_away_nor_gone_on_with_unasked() -> None:
    interrupted("out.jsonl", "one", "broken")
    assert "--resume, or throw it away by --restart" in run("in.txt", "-o", "out.jsonl", code=2).stderr
    write_lines("other")
    run("in.txt", "-o", "out.jsonl", "--restart")
    assert [record["text"] for record in lines("out.jsonl")] == ["other"]


def test_resuming_where_nothing_was_left_begins() -> None:
    write_lines("one")
    run("in.txt", "-o", "out.jsonl", "--resume")
    assert len(lines("out.jsonl")) == 1


def test_resuming_what_is_whole_does_nothing(fakes: Fakes) -> None:
    write_lines("one")
    for name in ("out.jsonl", "out.parquet", "out.npy"):
        run("in.txt", "-o", name)
    fakes.opening_error = EncodeError("it was opened")
    for name in ("out.jsonl", "out.parquet", "out.npy"):
        before = Path(name).stat()
        report = json.loads(run("in.txt", "-o", name, "--resume", "--json").stdout)
        assert (report["written"], report["resumed_after"]) == (1, 1)
        assert Path(name).stat().st_mtime_ns == before.st_mtime_ns
        assert not Path(f"{name}.partial").exists()
        said = run("in.txt", "-o", name, "--resume", "--role=query", code=2).stderr
        assert "was made with role 'passage' and not 'query'" in said
    about = Path("out.jsonl.meta.json")
    kept = json.loads(about.read_text("utf-8"))
    about.write_text(json.dumps({name: value for name, value in kept.items() if name != "records"}), "utf-8")
    assert "nothing says how far it is" in run("in.txt", "-o", "out.jsonl", "--resume", code=2).stderr
    about.unlink()
    assert "is there already" in run("in.txt", "-o", "out.jsonl", "--resume", code=2).stderr


def test_other_options_are_not_mixed_into_what_was_left() -> None:
    interrupted("out.npy", "one", "broken")
    said = run("in.txt", "-o", "out.npy", "--resume", "--prompt=x", "--precision=int8", code=2).stderr
    assert "precision None and not 'int8', prompt None and not 'x'" in said
    run("in.txt", "-o", "out.npy", "--resume", "--max-batch-size=4", "--workers=0", "--on-error=skip")


@pytest.mark.parametrize("changed", [["two", "broken"], []])
def test_another_source_is_not_mixed_into_what_was_left(changed: list[str]) -> None:
    interrupted("out.npy", "one", "broken")
    write_lines(*changed)
    assert "are not those that an interrupted run has read" in run("in.txt", "-o", "out.npy", "--resume", code=2).stderr


def test_a_source_that_has_grown_is_gone_on_with() -> None:
    interrupted("out.jsonl", "one", "broken")
    write_lines("one", "two", "three")
    run("in.txt", "-o", "out.jsonl", "--resume")
    assert [record["text"] for record in lines("out.jsonl")] == ["one", "two", "three"]


def test_stdin_is_gone_on_with_if_it_brings_the_same_again() -> None:
    run("-", "-o", "out.jsonl", stdin="one\nbroken\n", code=1)
    run("-", "-o", "out.jsonl", "--resume", stdin="one\ntwo\n")
    assert [record["text"] for record in lines("out.jsonl")] == ["one", "two"]


def test_numbers_of_failed_records_count_from_the_beginning_of_the_source() -> None:
    interrupted("out.jsonl", "one", "two", "broken")
    assert "input 2: no vector" in run("in.txt", "-o", "out.jsonl", "--resume", code=1).stderr
    run("in.txt", "-o", "out.jsonl", "--resume", "--on-error=failed.jsonl")
    assert lines("failed.jsonl")[0]["failure"]["index"] == 2


def test_an_older_file_stays_until_the_new_one_is_whole() -> None:
    Path("out.jsonl").write_text("older", encoding="utf-8")
    interrupted("out.jsonl", "one", "broken")
    assert Path("out.jsonl").read_text("utf-8") == "older"
    run("in.txt", "-o", "out.jsonl", "--resume", "--on-error=skip")
    assert len(lines("out.jsonl")) == 1


def test_stdin_is_read_as_bytes() -> None:
    done = run("-o", "out.jsonl", "--on-error=failed.jsonl", stdin=BytesIO(b"one\nb\xffd\n").getvalue())
    assert done.exit_code == 0
    assert "line 2 is no utf-8" in lines("failed.jsonl")[0]["failure"]["message"]
