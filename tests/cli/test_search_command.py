"""`asyncembed search` over what `asyncembed embed` wrote, with models without weights."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import asyncembed.sync
from asyncembed import cosine
from asyncembed.cli import vector_index
from asyncembed.cli.commands import main
from asyncembed.testing import Fakes, fake_models
from tests.support.graphs import write_text_graph
from tests.support.models import write_self_describing_model

pytestmark = pytest.mark.slow

MODEL = "org/model"
TEXTS = [f"text {number} of {number % 13} and {number % 7}" for number in range(300)]
QUERY = "text 77 of 5 and 1"
NAMES = ("out.jsonl", "out.parquet", "out.npy")


@pytest.fixture(autouse=True)
def fakes(request: pytest.FixtureRequest) -> Iterator[Fakes | None]:
    if "itself" in request.node.name:
        yield None
        return
    with fake_models(dim=8) as fakes:
        yield fakes


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("".join(json.dumps({"n": 2**70, "body": text}) + "\n" for text in TEXTS), "utf-8")


def embed(*arguments: str) -> None:
    done = CliRunner().invoke(main, ["embed", MODEL, "in.jsonl", "--column=body", *arguments])
    assert done.exit_code == 0, done.output


def search(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["search", *arguments])
    assert done.exit_code == code, done.output
    return done


def found(*arguments: str) -> list[Any]:
    listed = json.loads(search(*arguments, "--json").stdout)
    assert isinstance(listed, list)
    return listed


def expected(k: int, prompt: str | None = None, **keywords: Any) -> tuple[list[int], list[float]]:
    with asyncembed.sync.TextEmbedding(MODEL, **keywords) as model:
        scores = cosine(model.embed_query(QUERY, prompt=prompt), model.passage_embed(TEXTS).collect())
    order = (-scores).argsort(kind="stable")[:k]
    return order.tolist(), scores[order].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_the_nearest_of_all_come_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    embed("-o", name)
    monkeypatch.setattr(vector_index, "READ_AT_ONCE", 64)
    listed = found(name, QUERY, "-k", "12")
    positions, scores = expected(12)
    assert [one["index"] for one in listed] == positions
    assert [one["score"] for one in listed] == pytest.approx(scores, abs=1e-6)
    if name != "out.npy":
        assert [one["record"]["body"] for one in listed] == [TEXTS[position] for position in positions]
        assert all("embedding" not in one["record"] for one in listed)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_opened_as_it_was_for_the_index(name: str) -> None:
    embed("-o", name, "--truncate-dim=4", "--into=vector")
    positions, scores = expected(10, truncate_dim=4)
    listed = found(name, QUERY)
    assert [one["index"] for one in listed] == positions
    assert [one["score"] for one in listed] == pytest.approx(scores, abs=1e-6)


def test_a_prompt_goes_before_the_query() -> None:
    embed("-o", "out.npy")
    positions, _ = expected(5, prompt="query: ")
    assert [one["index"] for one in found("out.npy", QUERY, "-k5", "--prompt", "query: ")] == positions


def test_a_table_has_what_is_known() -> None:
    embed("-o", "out.npy")
    embed("-o", "out.parquet")
    assert search("out.npy", QUERY).stdout.splitlines()[0].split() == ["SCORE", "RECORD"]
    header, best, *others = search("out.parquet", QUERY, "-k", "3").stdout.splitlines()
    assert header.split() == ["SCORE", "RECORD", "TEXT"]
    assert best.split(None, 2)[2] == TEXTS[int(best.split()[1])]
    assert len(others) == 2


@pytest.mark.parametrize("name", NAMES)
def test_where_nothing_says_what_it_was_made_with_it_is_to_be_said(name: str) -> None:
    embed("-o", name)
    if name == "out.parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(name)
        lists = [row.as_py() for row in table["embedding"]]
        # As another tool would have written it: lists of any size.
        pq.write_table(table.replace_schema_metadata(None).set_column(2, "vector", [lists]), name)
    else:
        Path(f"{name}.meta.json").unlink()
    into = "--into=vector" if name == "out.parquet" else "--into=embedding"
    assert "give --model" in search(name, QUERY, into, code=2).stderr
    positions, _ = expected(10)
    assert [one["index"] for one in found(name, QUERY, into, "--model", MODEL)] == positions


@pytest.mark.parametrize("name", NAMES)
def test_in_nothing_nothing_is_found(name: str) -> None:
    Path("in.jsonl").write_text("", encoding="utf-8")
    embed("-o", name)
    assert found(name, QUERY) == []


def test_without_orjson_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    embed("-o", "out.jsonl")
    monkeypatch.setitem(sys.modules, "orjson", None)
    assert [one["index"] for one in found("out.jsonl", QUERY)] == expected(10)[0]


def test_what_is_no_index_is_said() -> None:
    Path("out.txt").touch()
    Path("bad.npy").write_bytes(b"no matrix")
    Path("bad.jsonl").write_text('{"embedding": [1, 2]}\n{"other": 1}\n', encoding="utf-8")
    np.save("wrong.npy", np.eye(3, dtype=np.float32))
    assert "must end with .npy, .jsonl, .parquet" in search("out.txt", QUERY, code=2).stderr
    assert "No such file" in search("nosuch.npy", QUERY, code=1).stderr
    assert "is no matrix of numpy" in search("bad.npy", QUERY, "--model=m/m", code=2).stderr
    assert "record 1 of bad.jsonl has no dense vector" in search("bad.jsonl", QUERY, "--model=m/m", code=2).stderr
    assert "expected (3,)" in search("wrong.npy", QUERY, "--model=m/m", code=2).stderr
    done = CliRunner().invoke(main, ["embed", "Qdrant/bm25", "in.jsonl", "--column=body", "--sparse", "-o", "s.jsonl"])
    assert done.exit_code == 0, done.output
    assert "search is for dense ones" in search("s.jsonl", QUERY, code=2).stderr


def test_a_model_that_is_no_more_itself_is_refused(tmp_path: Path) -> None:
    """By the same name it would give vectors that cannot be compared, and nobody would see it."""
    directory = write_self_describing_model(tmp_path / "model")
    arguments = ["in.jsonl", "--column=body", "--workers=0"]
    done = CliRunner().invoke(main, ["embed", str(directory), *arguments, "-o", "out.jsonl"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(Path("out.jsonl.meta.json").read_text("utf-8"))["fingerprint"]) == 20
    search("out.jsonl", QUERY)
    for long in ("mean", "error"):
        done = CliRunner().invoke(main, ["embed", str(directory), *arguments, "--long", long, "-o", f"{long}.jsonl"])
        assert done.exit_code == 0, done.output
        search(f"{long}.jsonl", QUERY)
    lines = Path("in.jsonl").read_text("utf-8").splitlines()
    Path("bad.jsonl").write_text("\n".join([*lines, "no record"]), "utf-8")
    broken = ["embed", str(directory), "bad.jsonl", *arguments[1:], "-o", "bad.out.jsonl"]
    assert CliRunner().invoke(main, broken).exit_code
    write_text_graph(directory / "model.onnx", seed=1)
    assert "its files have changed" in search("out.jsonl", QUERY, code=2).output
    assert "Warning: " in search("out.jsonl", QUERY, "--model", str(directory)).stderr
    assert "was made with fingerprint" in CliRunner().invoke(main, [*broken, "--resume"]).output
