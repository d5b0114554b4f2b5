"""The numbers of ALBERT, DeBERTa, GTE, NomicBERT, T5 and of the heads of BERT's family, against torch's.

See `reference_bert_family.py`.
"""

import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.export import attention, heads
from asyncembed.export.deberta import distance_buckets
from asyncembed.export.graph_cache import ensure_graph
from asyncembed.export.heads import HeadName
from asyncembed.runtime.safetensors import read_tensors
from tests.export.conftest import DATA, Variant
from tests.support.safetensors_files import write_tensors

pytestmark = pytest.mark.slow

Arrays = dict[str, npt.NDArray[Any]]

ENCODERS = sorted(
    path.name for path in DATA.iterdir() if path.name.startswith(("albert", "deberta", "gte", "nomic", "t5"))
)
WITH_HEADS = ("albert", "bert", "roberta", "distilbert", "electra", "mpnet", "deberta", "gte", "nomic_bert")
RERANKERS = [f"{name}_reranker" for name in WITH_HEADS]
WORDS = [f"{name}_words" for name in (*WITH_HEADS, "deberta_new")]

OUTPUTS = {"states": "last_hidden_state", "scores": "logits", "words": "max_logits"}


def run(directory: Path, inputs: Arrays, head: HeadName, cache_dir: Path) -> npt.NDArray[np.float32]:
    assert head != "answer"
    session = onnxruntime.InferenceSession(ensure_graph(directory, head=head, cache_dir=cache_dir))
    names = [value.name for value in session.get_inputs()]
    (output,) = session.run([OUTPUTS[head]], {name: inputs[name] for name in names})
    return np.asarray(output, np.float32)


def reference(name: str) -> Arrays:
    return dict(np.load(DATA / name / "reference.npz"))


def left(arrays: Arrays) -> Arrays:
    """The same texts, padded at their beginning."""
    moved: Arrays = {}
    lengths = arrays["attention_mask"].sum(axis=1)
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        if key in arrays:
            moved[key] = np.array([np.roll(row, -length) for row, length in zip(arrays[key], lengths, strict=True)])
    return moved


def rename(directory: Path, change: Callable[[str], str]) -> None:
    """Call the tensors of a model otherwise."""
    path = directory / "model.safetensors"
    tensors = {change(name): array.copy() for name, array in read_tensors(path).items()}
    gc.collect()  # whatever maps them, as Windows then keeps the file
    path.unlink()
    write_tensors(path, tensors)


@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states_are_those_of_torch_whichever_side_is_padded(name: str, tmp_path: Path) -> None:
    arrays = reference(name)
    for inputs, expected in ((arrays, "last_hidden_state"), (left(arrays), "left_hidden_state")):
        real = inputs["attention_mask"] == 1
        hidden = run(DATA / name, inputs, "states", tmp_path)
        np.testing.assert_allclose(hidden[real], arrays[expected][real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", RERANKERS)
def test_scores_are_those_of_torch(name: str, tmp_path: Path) -> None:
    arrays = reference(name)
    scores = run(DATA / name, arrays, "scores", tmp_path)
    assert scores.shape == (3, 1)
    np.testing.assert_allclose(scores, arrays["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*WORDS, "bert_words_untied"])
def test_greatest_logits_of_words_are_those_of_torch(name: str, tmp_path: Path) -> None:
    arrays = reference(name)
    words = run(DATA / name, arrays, "words", tmp_path)
    np.testing.assert_allclose(words, arrays["max_logits"], rtol=1e-6, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_a_padded_row_is_what_it_is_alone_whatever_stands_in_the_padding(name: str, tmp_path: Path) -> None:
    arrays = reference(name)
    real = arrays["attention_mask"] == 1
    arrays["input_ids"] = np.where(real, arrays["input_ids"], 31)
    together = run(DATA / name, arrays, "states", tmp_path)
    for row, length in enumerate(real.sum(axis=1)):
        alone = {key: array[row : row + 1, :length] for key, array in arrays.items() if array.ndim == 2}
        states = run(DATA / name, alone, "states", tmp_path)
        np.testing.assert_allclose(together[row, :length], states[0], rtol=0, atol=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["deberta_reranker", "deberta_words", "gte_words", "nomic_bert_reranker", "bert_words"]
)
def test_padding_changes_nothing_for_a_head(name: str, tmp_path: Path) -> None:
    """Whatever token stands there, and for positions that only count as distances on whichever side."""
    head: HeadName = "scores" if name.endswith("reranker") else "words"
    arrays = reference(name)
    before = run(DATA / name, arrays, head, tmp_path)
    if not name.startswith("bert"):
        np.testing.assert_allclose(run(DATA / name, left(arrays), head, tmp_path), before, rtol=0, atol=1e-5)
    arrays["input_ids"] = np.where(arrays["attention_mask"] == 1, arrays["input_ids"], 31)
    np.testing.assert_allclose(run(DATA / name, arrays, head, tmp_path), before, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_long_texts_in_chunks_are_what_they_are_as_a_whole(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = reference(name)
    real = arrays["attention_mask"] == 1
    whole = run(DATA / name, arrays, "states", tmp_path / "whole")
    monkeypatch.setattr(attention, "LONGEST_WHOLE", 15)
    chunked = run(DATA / name, arrays, "states", tmp_path / "chunks")
    np.testing.assert_allclose(chunked[real], whole[real], rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["deberta_reranker", "gte", "nomic_bert"])
def test_a_graph_without_branches_gives_the_same(name: str, tmp_path: Path) -> None:
    arrays = reference(name)
    graph = ensure_graph(DATA / name, in_chunks=False, cache_dir=tmp_path)
    assert "If" not in {node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}
    session = onnxruntime.InferenceSession(graph)
    inputs = {value.name: arrays[value.name] for value in session.get_inputs()}
    np.testing.assert_array_equal(session.run(None, inputs)[0], run(DATA / name, arrays, "states", tmp_path))


def test_words_of_a_large_vocabulary_are_computed_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_WORDS_AT_ONCE", 10)
    arrays = reference("bert_words")
    words = run(DATA / "bert_words", arrays, "words", tmp_path)
    np.testing.assert_allclose(words, arrays["max_logits"], rtol=1e-6, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("gte_words", "gte.", "new."),
        ("gte", "", "gte."),
        ("nomic_bert_reranker", "nomic_bert.", "bert."),
        ("albert", "", "albert."),
        ("deberta_c2p", "", "deberta."),
        ("deberta_reranker", "LayerNorm.weight", "LayerNorm.gamma"),
    ],
)
def test_tensors_may_be_called_otherwise(name: str, old: str, new: str, variant: Variant, tmp_path: Path) -> None:
    arrays, directory = reference(name), variant(name)

    def change(tensor: str) -> str:
        if not old:
            return new + tensor
        changed = tensor.replace(old, new)
        return changed.replace("LayerNorm.bias", "LayerNorm.beta") if new.endswith("gamma") else changed

    rename(directory, change)
    hidden = run(directory, arrays, "states", tmp_path / "cache")
    real = arrays["attention_mask"] == 1
    np.testing.assert_allclose(hidden[real], arrays["last_hidden_state"][real], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("t5", {"feed_forward_proj": "gated-tanhshrink"}),
        ("t5", {"feed_forward_proj": ["relu"]}),
        ("t5", {"dense_act_fn": "gelu"}),
        ("t5", {"is_gated_act": True}),
        ("t5", {"num_heads": 0}),
        ("t5", {"d_kv": "6"}),
        ("t5", {"layer_norm_epsilon": None, "relative_attention_num_buckets": 3}),
        ("t5", {"relative_attention_max_distance": 8}),
        ("t5", {"relative_attention_max_distance": 2**40}),
        ("t5", {"is_decoder": True}),
        ("albert", {"num_hidden_groups": 4}),
        ("albert", {"num_hidden_groups": 0}),
        ("albert", {"num_hidden_groups": None, "inner_group_num": 2**11}),
        ("albert", {"inner_group_num": "2"}),
        ("deberta_reranker", {"hidden_act": "tanhshrink"}),
        ("deberta_reranker", {"pooler_hidden_act": 3}),
        ("deberta_reranker", {"num_attention_heads": 3}),
        ("deberta_reranker", {"attention_head_size": 5}),
        ("deberta_reranker", {"pos_att_type": "p2c|p2p"}),
        ("deberta_reranker", {"position_buckets": 5}),
        ("deberta_reranker", {"position_buckets": 200}),
        ("deberta_reranker", {"position_buckets": "4"}),
        ("deberta_reranker", {"max_relative_positions": 2**40}),
        ("deberta_reranker", {"layer_norm_eps": "small"}),
        ("deberta_convolution", {"conv_kernel_size": 4}),
        ("deberta_convolution", {"conv_act": "selu"}),
        ("gte", {"position_embedding_type": "absolute"}),
        ("gte", {"layer_norm_type": "rms_norm"}),
        ("gte", {"logn_attention_scale": True}),
        ("gte", {"pack_qkv": False}),
        ("gte", {"hidden_size": 0}),
        ("gte", {"layer_norm_eps": None, "hidden_act": "softplus"}),
        ("nomic_bert", {"rotary_emb_interleaved": True}),
        ("nomic_bert", {"rotary_emb_fraction": 0.5}),
        ("nomic_bert", {"rotary_scaling_factor": 2}),
        ("nomic_bert", {"prenorm": True}),
        ("nomic_bert", {"moe_every_n_layers": 2}),
        ("nomic_bert", {"activation_function": "gelu"}),
        ("nomic_bert", {"n_head": 8}),
    ],
)
def test_what_the_graph_would_not_compute_is_refused(
    name: str, config: dict[str, Any], variant: Variant, tmp_path: Path
) -> None:
    key = next(key for key, value in config.items() if value is not None)
    with pytest.raises(UnsupportedModelError, match="8 heads" if key == "n_head" else key):
        ensure_graph(variant(name, **config), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("scaled", [{"rope_type": "dynamic", "factor": 2.0}, {"type": "longrope", "factor": 2.0}])
def test_positions_that_depend_on_the_longest_text_of_a_batch_are_refused(
    scaled: dict[str, Any], variant: Variant, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=next(iter(scaled.values()))):
        ensure_graph(variant("gte", rope_parameters=None, rope_scaling=scaled), cache_dir=tmp_path / "cache")


def test_a_head_that_a_checkpoint_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"classifier|pooler"):
        ensure_graph(DATA / "deberta_words", head="scores", cache_dir=tmp_path)
    with pytest.raises(ModelLoadError, match=r"cls\.predictions"):
        ensure_graph(DATA / "bert_reranker", head="words", cache_dir=tmp_path)


def test_a_head_whose_own_matrix_is_missing_does_not_take_the_embeddings(variant: Variant, tmp_path: Path) -> None:
    directory = variant("bert_words", tie_word_embeddings=False)
    with pytest.raises(ModelLoadError, match=r"cls\.predictions\.decoder\.weight"):
        ensure_graph(directory, head="words", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(("buckets", "farthest"), [(4, 12), (32, 128), (256, 512), (None, 24)])
def test_distances_far_apart_share_a_bucket(buckets: int | None, farthest: int) -> None:
    rows = distance_buckets(buckets, farthest)
    span = buckets or farthest
    assert rows[farthest] == span
    assert (rows[0], rows[-1]) == (0, 2 * span - 1)
    assert (np.diff(rows) >= 0).all()
    half = (buckets or 2 * farthest) // 2
    for distance in range(half + 1):
        assert rows[farthest + distance] == min(span + distance, 2 * span - 1)
    if buckets is not None:
        for distance in range(half + 1, farthest - 1):
            steps = math.log(distance / half) / math.log((farthest - 1) / half) * (half - 1)
            assert abs(rows[farthest + distance] - span - half - steps) < 1 + 1e-4
