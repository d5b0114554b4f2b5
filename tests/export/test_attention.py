"""Long texts are computed in chunks of queries: with the same numbers, and in less memory."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

import asyncembed.export.attention
from asyncembed.export.graph_cache import ensure_graph
from asyncembed.runtime.safetensors import read_tensors
from tests.export.conftest import Variant
from tests.support.safetensors_files import write_tensors

pytestmark = pytest.mark.slow

POSITIONS = 1300
_TABLE = "embeddings.position_embeddings.weight"


@pytest.fixture
def long_model(variant: Variant) -> Path:
    """The small BERT with more positions."""
    directory = variant("bert", max_position_embeddings=POSITIONS)
    path = directory / "model.safetensors"
    tensors = {name: array.copy() for name, array in read_tensors(path).items()}
    tensors[_TABLE] = np.random.default_rng(0).normal(size=(POSITIONS, 8)).astype(np.float32)
    path.unlink()
    write_tensors(path, tensors)
    return directory


def hidden_states(graph: Path, lengths: list[int]) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(len(lengths))
    inputs: dict[str, Any] = {
        "input_ids": rng.integers(1, 39, (len(lengths), max(lengths))),
        "attention_mask": (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64),
        "token_type_ids": np.zeros((len(lengths), max(lengths)), np.int64),
    }
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["last_hidden_state"], inputs)[0])


@pytest.mark.slow
def test_chunks_give_the_bits_that_all_at_once_gives(
    long_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunked = ensure_graph(long_model, cache_dir=tmp_path / "chunked")
    monkeypatch.setattr(asyncembed.export.attention, "LONGEST_WHOLE", POSITIONS)
    whole = ensure_graph(long_model, cache_dir=tmp_path / "whole")
    for lengths in ([12], [511], [512], [513, 40], [700], [1000, 999, 1], [POSITIONS]):
        np.testing.assert_array_equal(hidden_states(chunked, lengths), hidden_states(whole, lengths))


def test_a_graph_with_branches_passes_the_checker(long_model: Path, tmp_path: Path) -> None:
    onnx.checker.check_model(ensure_graph(long_model, cache_dir=tmp_path), full_check=True)
