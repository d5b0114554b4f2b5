"""The numbers of the graphs, against torch's for the same weights; see `make_reference.py`."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.export.architectures import ARCHITECTURES, read_plan
from asyncembed.export.graph_cache import ensure_graph
from asyncembed.runtime.safetensors import read_tensors
from tests.export.conftest import DATA, Variant
from tests.support.safetensors_files import write_tensors

Arrays = dict[str, npt.NDArray[Any]]

MODELS = (
    "bert", "bert_gelu_new", "bert_relu", "bert_silu", "camembert", "distilbert", "electra", "mpnet", "roberta",
    "xlm-roberta",
)  # fmt: skip


def run(graph: Path, inputs: Arrays) -> npt.NDArray[np.float32]:
    """The hidden states, from those of `inputs` that the graph takes."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    (hidden,) = session.run(["last_hidden_state"], {name: inputs[name] for name in names})
    return np.asarray(hidden, np.float32)


def reference(name: str) -> Arrays:
    return dict(np.load(DATA / name / "reference.npz"))


def rewrite(directory: Path, change: Any) -> None:
    """Replace the weights of a model by what `change` makes of its dictionary of arrays."""
    path = directory / "model.safetensors"
    tensors = {name: array.copy() for name, array in read_tensors(path).items()}
    gc.collect()  # what has built a graph from them maps them as long as it is there, and Windows then keeps the file
    path.unlink()
    write_tensors(path, change(tensors))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_those_of_torch(name: str, tmp_path: Path) -> None:
    arrays = reference(name)
    hidden = run(ensure_graph(DATA / name, cache_dir=tmp_path), arrays)
    np.testing.assert_allclose(hidden, arrays["last_hidden_state"], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_padded_row_is_what_it_is_alone(name: str, tmp_path: Path) -> None:
    arrays = reference(name)
    graph = ensure_graph(DATA / name, cache_dir=tmp_path)
    together = run(graph, arrays)
    for row, length in enumerate(arrays["attention_mask"].sum(axis=1)):
        alone = run(graph, {key: array[row : row + 1, :length] for key, array in arrays.items()})
        np.testing.assert_allclose(together[row, :length], alone[0], rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_padding_has_no_influence_whatever_stands_there(name: str, tmp_path: Path) -> None:
    """Not even tokens with large scores: the mask decides, not the size of a penalty."""
    arrays = reference(name)
    real = arrays["attention_mask"] == 1
    graph = ensure_graph(DATA / name, cache_dir=tmp_path)
    before = run(graph, arrays)
    arrays["input_ids"] = np.where(real, arrays["input_ids"], 39)
    np.testing.assert_array_equal(run(graph, arrays)[real], before[real])


@pytest.mark.slow
def test_a_row_of_nothing_but_padding_has_finite_numbers(tmp_path: Path) -> None:
    arrays = reference("bert")
    arrays["attention_mask"][1] = 0
    assert np.isfinite(run(ensure_graph(DATA / "bert", cache_dir=tmp_path), arrays)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert", ["input_ids", "attention_mask", "token_type_ids"]),
        ("roberta", ["input_ids", "attention_mask"]),
        ("distilbert", ["input_ids", "attention_mask"]),
    ],
)
def test_token_types_are_an_input_only_where_there_are_several(name: str, expected: list[str], tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(ensure_graph(DATA / name, cache_dir=tmp_path))
    assert sorted(value.name for value in session.get_inputs()) == sorted(expected)
    assert {value.type for value in session.get_inputs()} == {"tensor(int64)"}


@pytest.mark.slow
def test_half_precision_weights_are_widened(variant: Variant, tmp_path: Path) -> None:
    arrays = reference("bert")
    directory = variant("bert")
    rewrite(directory, lambda tensors: {name: array.astype(np.float16) for name, array in tensors.items()})
    half = run(ensure_graph(directory, cache_dir=tmp_path), arrays)
    rewrite(directory, lambda tensors: {name: array.astype(np.float32) for name, array in tensors.items()})
    np.testing.assert_array_equal(half, run(ensure_graph(directory, cache_dir=tmp_path), arrays))
    np.testing.assert_allclose(half, arrays["last_hidden_state"], rtol=0, atol=0.05)


@pytest.mark.slow
def test_bfloat16_weights_are_widened(variant: Variant, tmp_path: Path) -> None:
    arrays = reference("bert")
    directory = variant("bert")
    path = directory / "model.safetensors"
    whole = {name: array.copy() for name, array in read_tensors(path).items()}
    path.unlink()
    write_tensors(path, whole, bfloat16=True)
    brain = run(ensure_graph(directory, cache_dir=tmp_path), arrays)
    rewrite(directory, lambda tensors: tensors)  # what was read is float32: written as such
    np.testing.assert_array_equal(brain, run(ensure_graph(directory, cache_dir=tmp_path), arrays))
    np.testing.assert_allclose(brain, arrays["last_hidden_state"], rtol=0, atol=0.3)


@pytest.mark.slow
def test_split_weights_give_the_same_numbers(variant: Variant, tmp_path: Path) -> None:
    arrays = reference("mpnet")
    directory = variant("mpnet")
    tensors = {name: array.copy() for name, array in read_tensors(directory / "model.safetensors").items()}
    (directory / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        write_tensors(directory / file, {name: tensors[name] for name in tensors if weight_map[name] == file})
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(str(index).replace("'", '"'), "utf-8")
    hidden = run(ensure_graph(directory, cache_dir=tmp_path), arrays)
    np.testing.assert_allclose(hidden, arrays["last_hidden_state"], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "mpnet", "electra"])
def test_a_prefix_before_the_names_of_tensors_changes_nothing(name: str, variant: Variant, tmp_path: Path) -> None:
    arrays = reference(name)
    directory = variant(name)
    rewrite(directory, lambda tensors: {f"{name}.{key}": array for key, array in tensors.items()})
    hidden = run(ensure_graph(directory, cache_dir=tmp_path), arrays)
    np.testing.assert_allclose(hidden, arrays["last_hidden_state"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_names_of_layer_norms_from_tensorflow_are_understood(variant: Variant, tmp_path: Path) -> None:
    arrays = reference("bert")
    directory = variant("bert")

    def old(key: str) -> str:
        return key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    rewrite(directory, lambda tensors: {old(key): array for key, array in tensors.items()})
    hidden = run(ensure_graph(directory, cache_dir=tmp_path), arrays)
    np.testing.assert_allclose(hidden, arrays["last_hidden_state"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_epsilon_of_the_layer_norms_comes_from_the_config(variant: Variant, tmp_path: Path) -> None:
    arrays = reference("bert")
    hidden = run(ensure_graph(variant("bert", layer_norm_eps=0.5), cache_dir=tmp_path), arrays)
    assert np.abs(hidden - arrays["last_hidden_state"]).max() > 0.01


def test_a_missing_tensor_is_named(variant: Variant, tmp_path: Path) -> None:
    directory = variant("bert")
    missing = "encoder.layer.1.output.dense.bias"
    rewrite(directory, lambda tensors: {name: array for name, array in tensors.items() if name != missing})
    with pytest.raises(ModelLoadError, match=missing):
        ensure_graph(directory, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.onnx"))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("encoder.layer.0.attention.self.query.weight", (8, 4)),
        ("encoder.layer.0.output.dense.weight", (12, 8)),
        ("encoder.layer.0.output.dense.bias", (1, 8)),
        ("embeddings.LayerNorm.weight", (9,)),
        ("embeddings.word_embeddings.weight", (8,)),
        ("embeddings.position_embeddings.weight", (24, 9)),
    ],
)
def test_a_tensor_of_the_wrong_shape_is_named(
    name: str, shape: tuple[int, ...], variant: Variant, tmp_path: Path
) -> None:
    directory = variant("bert")
    rewrite(directory, lambda tensors: tensors | {name: np.zeros(shape, np.float32)})
    with pytest.raises(ModelLoadError, match=r"\.weight|\.bias"):
        ensure_graph(directory, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    "config",
    [
        {"position_embedding_type": "relative_key"},
        {"position_embedding_type": "alibi"},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"hidden_act": "tanhshrink"},
        {"num_attention_heads": 3},
        {"num_attention_heads": 0},
        {"num_hidden_layers": None},
        {"num_hidden_layers": "2"},
        {"layer_norm_eps": "small"},
        {"auto_map": {"AutoModel": "modeling_other.OtherModel"}},
    ],
)
def test_what_the_graph_would_not_compute_is_refused(config: dict[str, Any], variant: Variant, tmp_path: Path) -> None:
    directory = variant("bert", **config)
    with pytest.raises(UnsupportedModelError, match=next(iter(config))):
        ensure_graph(directory, cache_dir=tmp_path / "cache")


def test_quantised_weights_are_refused(variant: Variant, tmp_path: Path) -> None:
    directory = variant("bert")
    name = "encoder.layer.1.output.dense.weight"
    rewrite(directory, lambda tensors: tensors | {name: tensors[name].astype(np.int8)})
    with pytest.raises(UnsupportedModelError, match=f"{name}.*int8"):
        ensure_graph(directory, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.onnx"))


@pytest.mark.parametrize("config", [{"num_hidden_layers": 3}, {"hidden_size": 16}])
def test_weights_that_do_not_fit_the_config_are_an_error(
    config: dict[str, Any], variant: Variant, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match="tensor"):
        ensure_graph(variant("bert", **config), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet", "electra"])
def test_known_architectures_can_be_exported(name: str) -> None:
    assert name in ARCHITECTURES
    assert read_plan(DATA / name).architecture is ARCHITECTURES[name]


@pytest.mark.parametrize("name", ["gpt2", "umt5", "", None, 3, ["bert"]])
def test_an_unknown_architecture_is_named_beside_the_known_ones(name: object, variant: Variant, tmp_path: Path) -> None:
    directory = variant("bert", model_type=name)
    with pytest.raises(UnsupportedModelError) as caught:
        ensure_graph(directory, cache_dir=tmp_path / "cache")
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in ARCHITECTURES)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_a_broken_config_is_a_load_error(text: str, variant: Variant, tmp_path: Path) -> None:
    directory = variant("bert")
    (directory / "config.json").write_text(text, "utf-8")
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        ensure_graph(directory, cache_dir=tmp_path / "cache")


def test_an_empty_directory_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        ensure_graph(tmp_path, cache_dir=tmp_path / "cache")


def test_a_directory_without_safetensors_is_refused(variant: Variant, tmp_path: Path) -> None:
    directory = variant("bert")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors"):
        ensure_graph(directory, cache_dir=tmp_path / "cache")
