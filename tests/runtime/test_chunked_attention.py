"""Long texts in graphs that others have exported: in chunks where that gives the same bits, else as they were.

The graphs in `exported/` are what torch 2.15 writes of models of transformers 5.24 (`torch.onnx.export(...,
dynamo=False)`, opset 14) with one layer, two of ModernBERT's, 8 wide, with 612 positions; `bert_before_2023` is the
same of a module as BERT was in transformers 4.20, opset 11.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from asyncembed.runtime import chunked_attention
from asyncembed.runtime.chunked_attention import save_with_chunks
from asyncembed.runtime.onnx import OnnxSession, save_optimized
from asyncembed.runtime.session import SessionOptions
from tests.support.graphs import GraphBuilder

pytestmark = pytest.mark.slow

CPU = SessionOptions(device="cpu")
EXPORTED = sorted(Path(__file__).with_name("exported").glob("*.onnx"))
BATCHES = ((1, 1), (2, 9), (1, 511), (1, 512), (1, 513), (2, 543), (2, 544), (3, 600))
WIDTH = 8


def saved(path: Path, directory: Path) -> tuple[Path, str | None]:
    directory.mkdir()
    note = save_with_chunks(path, directory / "model.onnx", "model.onnx.data")
    assert {each.name for each in directory.iterdir()} <= {"model.onnx", "model.onnx.data"}
    return directory / "model.onnx", note


def states(session: OnnxSession, count: int, tokens: int) -> npt.NDArray[np.float32]:
    """Of texts of which the first is padded."""
    ids = np.random.default_rng(tokens).integers(5, 90, (count, tokens))
    mask = np.ones_like(ids)
    mask[0, tokens // 2 + 1 :] = 0
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}
    (found,) = session.run(["last_hidden_state"], {name: feeds[name] for name in session.input_names})
    return np.asarray(found)


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


@pytest.mark.parametrize("path", EXPORTED, ids=lambda path: path.stem)
def test_exported_graphs_give_the_same_bits_in_chunks(path: Path, tmp_path: Path) -> None:
    graph, note = saved(path, tmp_path / "saved")
    assert note == "texts of more than 511 tokens are computed in chunks of queries"
    found = kinds(graph)
    assert (found["If"], found["Softmax"]) == (2 if path.stem == "modernbert" else 1, 0)
    chunked, plain = OnnxSession(path, CPU, prepared=graph), OnnxSession(path, CPU)
    assert chunked.warning is None
    for batch in BATCHES:
        assert states(chunked, *batch).tobytes() == states(plain, *batch).tobytes(), batch


def test_half_precision_is_cut_too(tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    whole = onnx.load(Path(__file__).with_name("exported") / "bert_before_2023.onnx")
    onnx.save(convert_float_to_float16(whole, keep_io_types=True), path)
    graph, note = saved(path, tmp_path / "saved")
    assert "in chunks" in (note or "")
    chunked, plain = OnnxSession(path, CPU, prepared=graph), OnnxSession(path, CPU)
    for batch in BATCHES:
        assert states(chunked, *batch).tobytes() == states(plain, *batch).tobytes(), batch


def write_graph(
    path: Path,
    *,
    positions: int | None = None,
    axis: int = -1,
    bias: bool = False,
    gives: str | None = None,
    shares: bool = False,
    cumulative: bool = False,
    pixels: bool = False,
) -> Path:
    """One attention without weights of its own, and one thing about it that may be unusual."""
    build = GraphBuilder()
    hidden = build.add("Gather", build.random(100, WIDTH), "input_ids")
    if positions is not None:
        tokens = build.add("Shape", "input_ids", start=1, end=2)
        first = build.add("Slice", build.random(positions, WIDTH), build.constant([0]), tokens, build.constant([0]))
        hidden = build.add("Add", hidden, build.add("Reshape", first, build.add("Shape", hidden, start=1)))
    if pixels:
        hidden = build.add("Add", hidden, "pixels")
    scores = build.add("MatMul", hidden, build.add("Transpose", hidden, perm=[0, 2, 1]), output="scores")
    if bias:
        scores = build.add("Add", scores, build.constant(np.float32(0.5)))
    if cumulative:
        scores = build.add("CumSum", scores, build.constant(np.int64(1)))
    seen = build.add("Softmax", scores, axis=axis, output="seen")
    mixed = build.add("MatMul", seen, hidden)
    if shares:
        mixed = build.add("Mul", mixed, build.add("ReduceMax", "scores", axes=[-1], keepdims=1))
    build.add("LayerNormalization", mixed, build.random(WIDTH), output="last_hidden_state")
    shapes: dict[str | None, list[str | int | None]] = {
        "last_hidden_state": ["batch", "tokens", WIDTH],
        gives: ["batch", "tokens", "keys"],
    }
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])]
    if pixels:
        inputs.append(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [WIDTH]))
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in shapes if name]
    return build.save(path, inputs, outputs)


def test_attention_without_a_mask_is_cut(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "graph.onnx", bias=True)
    graph, note = saved(path, tmp_path / "saved")
    assert "in chunks" in (note or "")
    assert kinds(graph)["If"] == 1
    chunked, plain = OnnxSession(path, CPU, prepared=graph), OnnxSession(path, CPU)
    for batch in BATCHES:
        assert states(chunked, *batch).tobytes() == states(plain, *batch).tobytes(), batch


UNUSUAL: dict[str, dict[str, Any]] = {
    "a softmax over the queries": {"axis": 1},
    "its probabilities are an output": {"gives": "seen"},
    "its scores are read elsewhere": {"shares": True},
    "takes something unknown": {"pixels": True},
    "takes short texts only": {"positions": 512},
}


@pytest.mark.parametrize("why", UNUSUAL)
def test_what_is_not_surely_recognised_is_left_as_it_is(why: str, tmp_path: Path) -> None:
    path = write_graph(tmp_path / "graph.onnx", **UNUSUAL[why])
    graph, note = saved(path, tmp_path / "saved")
    (tmp_path / "plain").mkdir()
    save_optimized(path, tmp_path / "plain" / "model.onnx", "model.onnx.data")
    assert graph.read_bytes() == (tmp_path / "plain" / "model.onnx").read_bytes()
    assert "in chunks" not in (note or "")
    assert (note is None) == why.startswith("takes")


def test_what_is_computed_otherwise_in_chunks_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would be if an operator were taken for one that it is not."""
    path = write_graph(tmp_path / "graph.onnx", cumulative=True)
    monkeypatch.setattr(chunked_attention, "_BY_ROWS", chunked_attention._BY_ROWS | {"CumSum"})
    graph, note = saved(path, tmp_path / "saved")
    assert note == "the scores of long texts are computed all at once: in chunks its numbers are others"
    assert kinds(graph)["If"] == 0
