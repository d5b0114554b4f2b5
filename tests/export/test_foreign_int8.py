"""Graphs of others in 8 bits: near the float ones, and the same bits whatever a text's neighbours are.

Of the graphs in `tests/runtime/exported` its test says how they were made.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from asyncembed.errors import UnsupportedModelError
from asyncembed.export.foreign_int8 import write_in_8_bits
from asyncembed.export.graph_cache import ensure_int8_graph, find_int8_graph, kept_graphs
from asyncembed.runtime.chunked_attention import save_with_chunks
from asyncembed.runtime.onnx import OnnxSession
from asyncembed.runtime.onnx_file import read_onnx_file
from asyncembed.runtime.session import SessionOptions
from tests.support.graphs import GraphBuilder, write_text_graph

pytestmark = pytest.mark.slow

CPU = SessionOptions(device="cpu")
EXPORTED = sorted((Path(__file__).parents[1] / "runtime" / "exported").glob("*.onnx"))
LENGTHS = (5, 17, 9, 2)


def made(source: Path, directory: Path) -> Path:
    directory.mkdir()
    write_in_8_bits(source, source.parent, directory / "model_int8.onnx", directory / "model.onnx_data")
    assert {path.name for path in directory.iterdir()} == {"model_int8.onnx", "model.onnx_data"}
    return directory / "model_int8.onnx"


def texts(names: tuple[str, ...]) -> list[dict[str, npt.NDArray[np.int64]]]:
    """Texts, each alone, and then all together."""
    random = np.random.default_rng(0)
    ids = np.zeros((len(LENGTHS), max(LENGTHS)), np.int64)
    mask = ids.copy()
    for row, length in enumerate(LENGTHS):
        ids[row, :length], mask[row, :length] = random.integers(5, 90, length), 1
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}
    alone = [{name: feeds[name][i : i + 1, :length] for name in names} for i, length in enumerate(LENGTHS)]
    return [*alone, {name: feeds[name] for name in names}]


def states(session: OnnxSession) -> list[npt.NDArray[np.float32]]:
    return [session.run(["last_hidden_state"], feeds)[0] for feeds in texts(session.input_names)]


@pytest.mark.parametrize("path", EXPORTED, ids=lambda path: path.stem)
def test_a_text_has_the_same_bits_in_any_batch_and_is_near_its_float_one(path: Path, tmp_path: Path) -> None:
    graph = made(path, tmp_path / "made")
    *alone, together = states(OnnxSession(graph, CPU))
    for row, (found, exact) in enumerate(zip(alone, states(OnnxSession(path, CPU)), strict=False)):
        assert found[0].tobytes() == together[row, : found.shape[1]].tobytes()
        cosines = (found * exact).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(exact, axis=-1)
        assert cosines.min() > 0.99
    assert not read_onnx_file(graph).is_dynamically_quantized
    kinds, before = (Counter(node.op_type for node in onnx.load(each).graph.node) for each in (graph, path))
    assert kinds["MatMulInteger"] == {"modernbert": 8}.get(path.stem, 6)
    assert kinds["MatMul"] == (4 if path.stem == "modernbert" else 2)
    # What GELU gives has a floor, so that no sign is needed; ModernBERT multiplies it with something else.
    assert kinds["QuantizeLinear"] - (kinds["Abs"] - before["Abs"]) == (0 if path.stem == "modernbert" else 1)


def test_its_long_texts_are_computed_in_chunks_as_those_of_float_graphs(tmp_path: Path) -> None:
    graph = made(EXPORTED[0], tmp_path / "made")
    (tmp_path / "prepared").mkdir()
    note = save_with_chunks(graph, tmp_path / "prepared" / "model.onnx", "model.onnx.data")
    assert "in chunks" in (note or "")


def test_its_products_do_not_saturate(tmp_path: Path) -> None:
    """On processors without VNNI two products are added in 16 bits: this setting computes them otherwise."""
    graph = made(EXPORTED[0], tmp_path / "made")
    results = []
    for exactly in ("0", "1"):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", exactly)
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        names = tuple(value.name for value in session.get_inputs())
        results.append(session.run(None, texts(names)[-1])[0])
    assert results[0].tobytes() == results[1].tobytes()


def write_layers(path: Path, *, gemm: bool = False, head: bool = False, types: bool = True) -> Path:
    """Two layers that are one linear map and an activation each, and what may stand on them."""
    build = GraphBuilder()
    hidden = build.add("Gather", build.random(100, 16), "input_ids")
    for _ in range(2):
        if gemm:
            flat = build.add("Reshape", hidden, build.constant([-1, 16]))
            flat = build.add("Gemm", flat, build.random(16, 16), build.random(16), transB=1)
            hidden = build.add("Reshape", flat, build.add("Shape", hidden))
        else:
            hidden = build.add("Add", build.random(16), build.add("MatMul", hidden, build.random(16, 16)))
        hidden = build.add("Relu", hidden)
    if head:
        hidden = build.add("MatMul", hidden, build.random(16, 24))
    build.add("Identity", hidden, output="last_hidden_state")
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])]
    outputs = [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", None])]
    return build.save(path, inputs, outputs)


@pytest.mark.parametrize("form", [{"gemm": True}, {"gemm": False}, {"head": True}], ids=str)
def test_maps_of_all_forms_are_found_and_heads_left_as_they_are(form: Mapping[str, Any], tmp_path: Path) -> None:
    path = write_layers(tmp_path / "graph.onnx", **form)
    graph = made(path, tmp_path / "made")
    kinds = Counter(node.op_type for node in onnx.load(graph, load_external_data=False).graph.node)
    assert (kinds["MatMulInteger"], kinds["MatMul"], kinds["Gemm"]) == (2, 1 if "head" in form else 0, 0)
    *_, found = states(OnnxSession(graph, CPU))
    *_, exact = states(OnnxSession(path, CPU))
    np.testing.assert_allclose(found, exact, atol=0.03 * np.abs(exact).max())


def test_what_is_of_no_usual_form_is_refused_with_the_reason(tmp_path: Path) -> None:
    one = write_text_graph(tmp_path / "one.onnx")
    with pytest.raises(UnsupportedModelError, match="no linear maps of the usual form are found"):
        made(one, tmp_path / "a")
    more = write_text_graph(tmp_path / "more.onnx", task_count=3)
    with pytest.raises(UnsupportedModelError, match="it takes task_id"):
        made(more, tmp_path / "b")
    whole = onnx.load(EXPORTED[0])
    onnx.save(convert_float_to_float16(whole, keep_io_types=True), tmp_path / "half.onnx")
    with pytest.raises(UnsupportedModelError, match="no float32 table of words"):
        made(tmp_path / "half.onnx", tmp_path / "c")
    assert list((tmp_path / "a").iterdir()) == []


def test_it_is_made_once_and_so_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    source, refused = EXPORTED[0], write_text_graph(tmp_path / "one.onnx")
    assert find_int8_graph(source, tmp_path, cache_dir=cache) is None
    graph = ensure_int8_graph(source, tmp_path, cache_dir=cache)
    with pytest.raises(UnsupportedModelError):
        ensure_int8_graph(refused, tmp_path, cache_dir=cache)
    monkeypatch.setattr("asyncembed.export.graph_cache.write_in_8_bits", None)  # it is not called again
    assert ensure_int8_graph(source, tmp_path, cache_dir=cache) == graph
    with pytest.raises(UnsupportedModelError, match="no linear maps"):
        find_int8_graph(refused, tmp_path, cache_dir=cache)
    assert kept_graphs(cache_dir=cache) == [graph.parent]
    (refusal,) = cache.rglob("refusal.txt")
    refusal.write_bytes(b"\xff")
    assert find_int8_graph(refused, tmp_path, cache_dir=cache) is None, "what cannot be read is found out again"
