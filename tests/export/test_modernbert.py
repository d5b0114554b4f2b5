"""The numbers of ModernBERT's graphs, against torch's for the same weights; see `reference_modernbert.py`."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.export.graph_cache import ensure_graph
from asyncembed.export.heads import Head
from asyncembed.runtime.safetensors import read_tensors
from tests.export.conftest import DATA, Variant
from tests.support.safetensors_files import write_tensors

pytestmark = pytest.mark.slow

Arrays = dict[str, npt.NDArray[Any]]

MODELS = sorted(path.name for path in DATA.glob("modernbert*"))
OUTPUTS: dict[Head, str] = {"states": "last_hidden_state", "scores": "logits", "words": "max_logits"}


def compute(directory: Path, inputs: Arrays, cache_dir: Path, head: Head = "states") -> npt.NDArray[np.float32]:
    graph = ensure_graph(directory, head=head, cache_dir=cache_dir)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feeds = {name: inputs[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    (output,) = session.run([OUTPUTS[head]], feeds)
    return np.asarray(output, np.float32)


def rewrite(directory: Path, change: Callable[[Arrays], Arrays]) -> None:
    """Replace the weights of a model by what `change` makes of its dictionary of arrays."""
    path = directory / "model.safetensors"
    tensors = {name: array.copy() for name, array in read_tensors(path).items()}
    gc.collect()  # what has built a graph from them maps them as long as it is there, and Windows then keeps the file
    path.unlink()
    write_tensors(path, change(tensors))


def reference(name: str) -> Arrays:
    return dict(np.load(DATA / name / "reference.npz"))


def padded_on_the_left(arrays: Arrays) -> tuple[Arrays, npt.NDArray[np.bool_]]:
    """The same texts with their padding before them, and where their tokens are."""
    mask = arrays["attention_mask"]
    moved = np.argsort(mask, axis=1, kind="stable")
    inputs = {name: np.take_along_axis(arrays[name], moved, axis=1) for name in ("input_ids", "attention_mask")}
    return inputs, inputs["attention_mask"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_those_of_torch(name: str, tmp_path: Path) -> None:
    arrays = reference(name)
    hidden = compute(DATA / name, arrays, tmp_path)
    real = arrays["attention_mask"] == 1
    np.testing.assert_allclose(hidden[real], arrays["last_hidden_state"][real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["modernbert", "modernbert_old_keys"])
def test_padding_may_stand_on_either_side(name: str, tmp_path: Path) -> None:
    arrays = reference(name)
    inputs, real = padded_on_the_left(arrays)
    hidden = compute(DATA / name, inputs, tmp_path)
    expected = arrays["last_hidden_state"][arrays["attention_mask"] == 1]
    np.testing.assert_allclose(hidden[real], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["modernbert", "modernbert_wide_window"])
def test_long_texts_are_those_of_torch(name: str, tmp_path: Path) -> None:
    """Computed in chunks, of which one of a sliding layer looks at its window only."""
    arrays = reference(name)
    real = arrays["long_attention_mask"] == 1
    inputs = {key: arrays[f"long_{key}"] for key in ("input_ids", "attention_mask")}
    hidden = compute(DATA / name, inputs, tmp_path)
    np.testing.assert_allclose(hidden[real], arrays["long_last_hidden_state"][real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["modernbert_scores", "modernbert_scores_mean"])
def test_scores_are_those_of_torch(name: str, tmp_path: Path) -> None:
    arrays = reference(name)
    logits = compute(DATA / name, arrays, tmp_path, "scores")
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["modernbert_words", "modernbert_words_untied", "modernbert_old_keys"])
def test_the_greatest_logits_of_words_are_those_of_torch(name: str, tmp_path: Path) -> None:
    arrays = reference(name)
    real = arrays["attention_mask"][:, :, None] == 1
    expected = np.where(real, arrays["logits"], -np.inf).max(axis=1)
    logits = compute(DATA / name, arrays, tmp_path, "words")
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_a_stored_head_is_taken_before_the_embeddings(variant: Variant, tmp_path: Path) -> None:
    """Although config.json says that they are the same."""
    directory, arrays = variant("modernbert_words"), reference("modernbert_words")
    tied = compute(directory, arrays, tmp_path / "cache", "words")
    rewrite(directory, lambda tensors: tensors | {"decoder.weight": -tensors["model.embeddings.tok_embeddings.weight"]})
    assert np.abs(compute(directory, arrays, tmp_path / "cache", "words") - tied).max() > 0.1


def test_bfloat16_weights_are_widened(variant: Variant, tmp_path: Path) -> None:
    directory, arrays = variant("modernbert"), reference("modernbert")
    path = directory / "model.safetensors"
    whole = {name: array.copy() for name, array in read_tensors(path).items()}
    path.unlink()
    write_tensors(path, whole, bfloat16=True)
    brain = compute(directory, arrays, tmp_path / "cache")
    rewrite(directory, lambda tensors: tensors)  # what was read is float32: written as such
    np.testing.assert_array_equal(brain, compute(directory, arrays, tmp_path / "cache"))


def test_a_checkpoint_without_the_head_is_an_error_that_names_the_tensor(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"head\.dense\.weight"):
        ensure_graph(DATA / "modernbert", head="words", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layers.1.attn.Wqkv.weight", (24, 4)),
        ("layers.1.attn.Wqkv.weight", (16, 8)),
        ("layers.0.mlp.Wi.weight", (12, 8)),
        ("layers.2.attn_norm.weight", (9,)),
        ("embeddings.tok_embeddings.weight", (40, 9)),
    ],
)
def test_a_tensor_of_the_wrong_shape_is_named(
    name: str, shape: tuple[int, ...], variant: Variant, tmp_path: Path
) -> None:
    directory = variant("modernbert")
    rewrite(directory, lambda tensors: tensors | {name: np.zeros(shape, np.float32)})
    with pytest.raises(ModelLoadError, match=name):
        ensure_graph(directory, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"hidden_activation": "tanhshrink"}, "hidden_activation"),
        ({"hidden_activation": ["gelu"]}, "hidden_activation"),
        ({"classifier_activation": "tanhshrink"}, "classifier_activation"),
        ({"classifier_pooling": "max"}, "classifier_pooling"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"num_attention_heads": 8}, "num_attention_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9, "layer_types": None}, "num_hidden_layers"),
        ({"local_attention": -2}, "local_attention"),
        ({"norm_eps": "small"}, "norm_eps"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": "full"}, "layer_types"),
        ({"layer_types": ["full_attention", "linear_attention", "full_attention", []]}, "layer_types"),
        ({"layer_types": None, "global_attn_every_n_layers": 0}, "global_attn_every_n_layers"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, "longrope"),
        ({"rope_scaling": {"type": "linear"}}, "linear with factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": "x"}}, "yarn with beta_fast"),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": "much"}}}, "rope_theta"),
        ({"rope_parameters": None, "global_rope_theta": 0}, "rope_theta"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "modeling_other.OtherModel"}}, "auto_map"),
    ],
)
def test_what_the_graph_would_not_compute_is_refused(
    config: dict[str, Any], named: str, variant: Variant, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        ensure_graph(variant("modernbert", **config), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    "config",
    [
        {"position_embedding_type": "absolute", "layer_norm_eps": 1e-5, "reference_compile": True},
        {"position_embedding_type": "sans_pos"},  # Ettin, mmBERT
        {"sparse_prediction": True, "deterministic_flash_attn": True},
        {"layer_types": None, "rope_parameters": None, "norm_eps": None, "local_attention": 8},
    ],
)
def test_keys_without_a_meaning_and_defaults_change_nothing(
    config: dict[str, Any], variant: Variant, tmp_path: Path
) -> None:
    arrays = reference("modernbert")
    hidden = compute(variant("modernbert", **config), arrays, tmp_path / "cache")
    real = arrays["attention_mask"] == 1
    np.testing.assert_allclose(hidden[real], arrays["last_hidden_state"][real], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_graph_without_branches_computes_the_same(tmp_path: Path) -> None:
    """For runtimes that do not compute branches; windows are as wide, and all scores are computed at once."""
    arrays = reference("modernbert")
    whole = ensure_graph(DATA / "modernbert", in_chunks=False, cache_dir=tmp_path)
    assert whole != ensure_graph(DATA / "modernbert", cache_dir=tmp_path)
    assert "If" not in {node.op_type for node in onnx.load(whole).graph.node}
    session = onnxruntime.InferenceSession(whole, providers=["CPUExecutionProvider"])
    for prefix in ("", "long_"):
        feeds = {name: arrays[prefix + name].astype(np.int64) for name in ("input_ids", "attention_mask")}
        (hidden,) = session.run(["last_hidden_state"], feeds)
        real = feeds["attention_mask"] == 1
        np.testing.assert_allclose(
            np.asarray(hidden)[real], arrays[f"{prefix}last_hidden_state"][real], rtol=0, atol=1e-5
        )
