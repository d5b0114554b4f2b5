"""Graphs made ready once: the same numbers, one file for all, and no harm from a bad one."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from asyncembed.errors import ModelLoadError
from asyncembed.runtime.onnx import OnnxSession, save_optimized
from asyncembed.runtime.prepared import (
    DATA_FILE,
    FACTS_FILE,
    Source,
    delete_prepared,
    find_prepared,
    kept_prepared,
    made_of,
    note_of,
    prepare_graph,
)
from asyncembed.runtime.session import SessionOptions
from tests.support.graphs import write_text_graph

CPU = SessionOptions(device="cpu")
MONTHS_SECONDS = 60 * 24 * 3600


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = write_text_graph(tmp_path / "model.onnx")
    return Source.of(path, machine="this one", cache_dir=tmp_path / "cache")


def prepared(source: Source) -> Path:
    return prepare_graph(source, save_optimized)


def hidden_states(session: OnnxSession) -> npt.NDArray[np.float32]:
    ids = np.arange(1, 13, dtype=np.int64).reshape(3, 4)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids * 0}
    return np.asarray(session.run(["last_hidden_state"], feeds)[0])


def test_it_gives_the_bits_of_the_graph_that_it_was_made_of(source: Source) -> None:
    session = OnnxSession(source.path, CPU, prepared=prepared(source))
    assert session.warning is None
    np.testing.assert_array_equal(hidden_states(session), hidden_states(OnnxSession(source.path, CPU)))


def test_it_is_found_by_the_content_of_its_source(source: Source, tmp_path: Path) -> None:
    assert find_prepared(source) is None
    graph = prepared(source)
    assert find_prepared(source) == graph
    copy = shutil.copy(source.path, tmp_path / "copy.onnx")
    same = Source.of(Path(copy), machine="this one", cache_dir=tmp_path / "cache")
    assert find_prepared(same) == graph
    model = onnx.load(source.path)
    model.graph.node[0].name = "renamed"
    onnx.save(model, copy)
    assert find_prepared(Source.of(Path(copy), machine="this one", cache_dir=tmp_path / "cache")) is None
    assert find_prepared(Source.of(source.path, machine="another", cache_dir=tmp_path / "cache")) is None


def test_a_graph_with_weights_beside_it_can_be_prepared(source: Source, tmp_path: Path) -> None:
    onnx.save(
        onnx.load(source.path), tmp_path / "split.onnx", save_as_external_data=True, location="w", size_threshold=1024
    )
    split = Source.of(tmp_path / "split.onnx", machine="this one", cache_dir=tmp_path / "cache")
    assert split.weights == (tmp_path / "w",)
    session = OnnxSession(split.path, CPU, prepared=prepared(split))
    np.testing.assert_array_equal(hidden_states(session), hidden_states(OnnxSession(source.path, CPU)))


def test_preparing_twice_leaves_one(source: Source, tmp_path: Path) -> None:
    assert prepared(source) == prepared(source)
    assert kept_prepared(cache_dir=tmp_path / "cache") == [find_prepared(source).parent]  # type: ignore[union-attr]
    assert [path for path in source.root.iterdir() if path.name.startswith("tmp-")] == []


def test_one_that_lacks_a_file_is_made_again(source: Source) -> None:
    """It would be made at each opening otherwise, and never be kept."""
    graph = prepared(source)
    (graph.parent / FACTS_FILE).unlink()
    assert find_prepared(source) is None
    assert prepared(source) == graph == find_prepared(source)


@pytest.mark.parametrize("damage", ["cut", "absent"])
def test_one_that_cannot_be_loaded_is_put_aside_and_the_source_serves(damage: str, source: Source) -> None:
    graph = prepared(source)
    data = graph.with_name(DATA_FILE)
    if damage == "cut":
        content = data.read_bytes()[:100]
        data.unlink()
        data.write_bytes(content)
    else:
        data.unlink()
    session = OnnxSession(source.path, CPU, prepared=graph)
    assert "will be made again" in (session.warning or "")
    np.testing.assert_array_equal(hidden_states(session), hidden_states(OnnxSession(source.path, CPU)))
    assert find_prepared(source) is None
    assert not graph.parent.exists()


def test_a_source_that_is_no_graph_leaves_nothing_behind(source: Source) -> None:
    source.path.write_bytes(b"no model")
    with pytest.raises(ModelLoadError, match="cannot prepare"):
        prepared(source)
    assert [path.name for path in source.root.iterdir()] in ([], ["digests"])


def test_what_nobody_used_for_weeks_goes_when_the_next_is_made(source: Source, tmp_path: Path) -> None:
    old = prepared(source).parent
    foreign = source.root / "somebody's"
    foreign.mkdir()
    left = source.root / "tmp-left"
    (left / "made").mkdir(parents=True)
    (left / "made" / DATA_FILE).write_bytes(b"half")
    past = time.time() - MONTHS_SECONDS
    for path in (old / FACTS_FILE, left):
        os.utime(path, (past, past))
    prepared(Source.of(source.path, machine="another", cache_dir=tmp_path / "cache"))
    assert not old.exists()
    assert not left.exists()
    assert foreign.exists()


def test_a_use_is_noted(source: Source) -> None:
    facts = prepared(source).with_name(FACTS_FILE)
    past = time.time() - MONTHS_SECONDS
    os.utime(facts, (past, past))
    find_prepared(source)
    assert time.time() - facts.stat().st_mtime < MONTHS_SECONDS / 2


def test_it_says_what_it_was_made_of_and_can_be_deleted(source: Source, tmp_path: Path) -> None:
    folder = prepared(source).parent
    assert made_of(folder) == source.path
    (folder / FACTS_FILE).write_bytes(b"[")
    assert made_of(folder) is None
    delete_prepared(folder)
    assert kept_prepared(cache_dir=tmp_path / "cache") == []


def test_what_was_to_be_said_when_it_was_made_is_kept(source: Source) -> None:
    def saying(path: Path, graph: Path, data_name: str) -> str:
        save_optimized(path, graph, data_name)
        return "it was large"

    assert note_of(prepare_graph(source, saying)) == "it was large"
    delete_prepared(source.folder())
    assert note_of(prepared(source)) is None


def test_small_graphs_are_not_worth_it(source: Source) -> None:
    assert not source.pays(workers=None)


FORGED = ("[" * 100_000, "[]", "{}", '{"source": 5}', '{"source": "\\ud800"}', '{"source": "\\u0000"}')


@pytest.mark.parametrize("facts", FORGED)
def test_what_a_graph_was_made_of_is_not_known_where_somebody_else_wrote_it_down(facts: str, tmp_path: Path) -> None:
    (tmp_path / "prepared.json").write_text(facts, "utf-8")
    assert made_of(tmp_path) is None
