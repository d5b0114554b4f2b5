"""Graphs in 8 bits, of the small models of each architecture and of the real all-MiniLM-L6-v2."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from tokenizers import Tokenizer

from asyncembed.errors import ModelLoadError
from asyncembed.export.graph_cache import DATA_FILE, ensure_graph, find_graph
from asyncembed.export.heads import Head
from asyncembed.export.int8_graph import frame_of
from asyncembed.runtime.onnx import save_optimized
from asyncembed.runtime.onnx_file import read_onnx_file
from asyncembed.runtime.safetensors import read_tensors
from tests.export.conftest import DATA
from tests.support.minilm import MINILM
from tests.support.safetensors_files import write_tensors

pytestmark = pytest.mark.slow

Arrays = dict[str, npt.NDArray[Any]]

# One of each kind of layer, and of each head that computes something for every token.
SMALL: dict[str, Head] = {
    **dict.fromkeys(
        ("albert", "bert", "bert_relu", "deberta_p2c", "gemma3", "gte", "modernbert", "qwen3", "t5"), "states"
    ),
    "roberta_words": "words",
    "gte_reranker": "scores",
}


def session_of(path: Path, *, is_prepared: bool = False, is_exact: bool = False) -> Any:
    """A session; `is_exact`: in which no sum of products can overflow, whatever the weights."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", str(int(is_exact)))
    if is_prepared:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds(session: Any, arrays: Arrays) -> Arrays:
    return {value.name: arrays[value.name].astype(np.int64) for value in session.get_inputs()}


def cosines(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray((one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1))


def test_each_architecture_is_near_its_float_graph_and_the_same_alone_as_in_a_batch(tmp_path: Path) -> None:
    for name, head in SMALL.items():
        paths = [ensure_graph(DATA / name, head=head, is_int8=int8, cache_dir=tmp_path) for int8 in (False, True)]
        exact, quantised = map(session_of, paths)
        arrays = feeds(exact, dict(np.load(DATA / name / "reference.npz")))
        (expected,), (found,) = exact.run(None, arrays), quantised.run(None, arrays)
        real = arrays["attention_mask"] == 1
        of_tokens = (real,) if head == "states" else (slice(None),)
        assert cosines(found[of_tokens], expected[of_tokens]).mean() > 0.995, name
        assert not np.array_equal(found[of_tokens], expected[of_tokens]), name
        for row, kept in enumerate(real):
            (alone,) = quantised.run(None, {key: array[row : row + 1, kept] for key, array in arrays.items()})
            np.testing.assert_array_equal(alone[0], found[row][kept] if head == "states" else found[row], name)
        assert not read_onnx_file(paths[1]).is_dynamically_quantized
        onnx.checker.check_model(paths[1], full_check=True)


def test_weights_that_layers_share_are_kept_once(tmp_path: Path) -> None:
    graph = onnx.load(ensure_graph(DATA / "albert_words", is_int8=True, cache_dir=tmp_path), load_external_data=False)
    kept = [each.name.split(" of ")[0] for each in graph.graph.initializer if each.name.endswith(".int8")]
    assert len(kept) == len(set(kept)) == 8  # a layer's six, and what reads words and widens them


def test_it_is_another_graph_than_the_float_one_and_found_again(tmp_path: Path) -> None:
    plain = ensure_graph(DATA / "bert", cache_dir=tmp_path)
    assert find_graph(DATA / "bert", is_int8=True, cache_dir=tmp_path) is None
    graph = ensure_graph(DATA / "bert", is_int8=True, cache_dir=tmp_path)
    assert graph.name == "model_int8.onnx"
    assert graph.parent != plain.parent
    assert find_graph(DATA / "bert", is_int8=True, cache_dir=tmp_path) == graph
    assert find_graph(DATA / "bert", cache_dir=tmp_path) == plain
    assert not list(tmp_path.rglob("tmp-*"))


def test_weights_that_give_no_numbers_are_refused(tmp_path: Path) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    (directory / "config.json").write_bytes((DATA / "bert" / "config.json").read_bytes())
    tensors = {name: array.copy() for name, array in read_tensors(DATA / "bert" / "model.safetensors").items()}
    tensors["embeddings.LayerNorm.bias"][0] = np.nan
    write_tensors(directory / "model.safetensors", tensors)
    with pytest.raises(ModelLoadError, match="cannot be quantised: they give NaN"):
        ensure_graph(directory, is_int8=True, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.onnx*"))


def test_the_frame_is_what_the_tokenizer_puts_around_a_text(tmp_path: Path) -> None:
    frame = frame_of(MINILM, words=30522, config={})
    assert (frame.before, frame.after, frame.tokens) == ((101,), (102,), 64)
    (tmp_path / "tokenizer.json").write_text("{}", "utf-8")
    frame = frame_of(tmp_path, words=9, config={"max_position_embeddings": 16})
    assert (frame.before, frame.after, frame.tokens) == ((), (), 14)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The real model's graphs: float, and 8 bits."""
    cache = tmp_path_factory.mktemp("cache")
    return ensure_graph(MINILM, cache_dir=cache), ensure_graph(MINILM, is_int8=True, cache_dir=cache)


def vectors(session: Any, texts: list[list[int]]) -> npt.NDArray[np.float32]:
    """Mean pooling and normalisation of one padded batch."""
    ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    summed = (session.run(None, inputs)[0] * mask[..., None]).sum(axis=1)
    return np.asarray(summed / np.linalg.norm(summed, axis=1, keepdims=True), np.float32)


def test_the_real_model_is_near_its_float_vectors_and_a_quarter_of_the_size(
    minilm: tuple[Path, Path], tmp_path: Path
) -> None:
    """Of texts of some words: those of one, and the empty one, have fewer tokens to average and give .993 and more."""
    tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    tokenizer.no_padding()
    written = [text for text in json.loads((DATA / "texts.json").read_bytes()) if " " in text]
    texts = [encoding.ids for encoding in tokenizer.encode_batch(written)]
    exact, quantised = map(session_of, minilm)
    found = np.concatenate([vectors(quantised, [text]) for text in texts])
    near = cosines(found, np.concatenate([vectors(exact, [text]) for text in texts]))
    assert near.mean() > 0.998
    assert near.min() > 0.995
    np.testing.assert_array_equal(vectors(quantised, texts), found)
    sizes = [(path.parent / DATA_FILE).stat().st_size for path in minilm]
    assert sizes[1] < 0.3 * sizes[0]
    save_optimized(minilm[1], tmp_path / "model.onnx", "model.onnx.data")
    prepared = session_of(tmp_path / "model.onnx", is_prepared=True)
    np.testing.assert_array_equal(vectors(prepared, texts), found)
    np.testing.assert_array_equal(vectors(session_of(minilm[1], is_exact=True), texts), found)
