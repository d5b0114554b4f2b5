"""How near a graph in 8 bits is to its float one: the figures, and that `bench` prints and keeps them."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from asyncembed.cli.accuracy import compared
from asyncembed.cli.commands import main
from asyncembed.export.graph_cache import delete_graph
from tests.support.models import write_bert_weights, write_self_describing_model


def test_the_same_vectors_are_as_near_as_can_be() -> None:
    vectors = np.eye(4, 3, dtype=np.float32) + np.float32(0.1)
    accuracy = compared(vectors, vectors)
    assert (accuracy.texts, accuracy.nearest_shared) == (4, 1.0)
    assert accuracy.cosine_mean == pytest.approx(1)


def test_what_differs_is_told_in_each_figure() -> None:
    """One text of two dozen has turned into another; what is narrower ends in zeros, as sparse vectors may."""
    exact = np.linalg.qr(np.random.default_rng(2).standard_normal((24, 24)))[0].astype(np.float32)
    found = exact.copy()
    found[0] = exact[1]
    accuracy = compared(exact, found)
    assert accuracy.cosine_mean == pytest.approx(23 / 24)
    assert accuracy.cosine_min == pytest.approx(0, abs=1e-6)
    assert accuracy.nearest_shared < 1
    assert compared(np.eye(24, dtype=np.float32), np.eye(24, 23, dtype=np.float32)).cosine_min == 0


@pytest.mark.slow
def test_bench_prints_the_accuracy_of_a_graph_in_8_bits_and_keeps_it_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCEMBED_CACHE", str(tmp_path / "cache"))
    model = write_bert_weights(write_self_describing_model(tmp_path / "model"))
    (model / "model.onnx").unlink()
    command = ["bench", str(model), "--seconds", "0.2", "--workers", "0", "--json"]
    assert json.loads(CliRunner().invoke(main, command).stdout)["accuracy"] is None
    done = CliRunner().invoke(main, [*command, "--precision", "int8"])
    accuracy = json.loads(done.stdout)["accuracy"]
    assert accuracy["texts"] == 300
    assert 0.99 < accuracy["cosine_min"] <= accuracy["cosine_mean"] < 1
    (kept,) = (tmp_path / "cache").rglob("accuracy.json")
    assert json.loads(kept.read_bytes()) == accuracy
    delete_graph(kept.parent)
    assert not kept.parent.exists()
