"""Compares the graphs of decoders with transformers, whose outputs were computed once: see `reference_decoders.py`."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.export.architectures import read_plan
from asyncembed.export.construction import Answer
from asyncembed.export.graph_cache import DATA_FILE, ensure_graph
from asyncembed.export.heads import Head
from asyncembed.runtime.safetensors import read_tensors
from tests.support.safetensors_files import write_tensors

pytestmark = pytest.mark.slow

DATA = Path(__file__).parent / "data"

MODELS = sorted(
    path.name for path in DATA.iterdir() if path.name.startswith(("qwen", "gemma", "eurobert", "llama", "mistral"))
)


Inputs = dict[str, npt.NDArray[np.int64]]
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What the graph of a model of `DATA` gives for some inputs."""
    cache_dir = tmp_path_factory.mktemp("cache")

    @cache
    def session_of(name: str, head: Head) -> Any:
        path = ensure_graph(DATA / name, head=head, cache_dir=cache_dir)
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    return lambda name, inputs, head="states": session_of(name, head).run(None, inputs)[0]


def reference_of(name: str, side: str = "right") -> dict[str, npt.NDArray[Any]]:
    """What transformers gives, which is the same on either side: see `reference_decoders.py`."""
    arrays = dict(np.load(DATA / name / "reference.npz"))
    if side == "left":
        by_token = [key for key, array in arrays.items() if array.shape[:2] == arrays["input_ids"].shape]
        lengths = arrays["attention_mask"].sum(axis=1)
        for key in by_token:
            rows = zip(arrays[key], lengths, strict=True)
            arrays[key] = np.stack([np.roll(row, len(row) - length, axis=0) for row, length in rows])
    return arrays


def inputs_of(reference: dict[str, npt.NDArray[Any]]) -> Inputs:
    return {key: reference[key].astype(np.int64) for key in ("input_ids", "attention_mask")}


def one_by_one(inputs: Inputs) -> list[Inputs]:
    rows = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        real = mask == 1
        rows.append({"input_ids": ids[real][None], "attention_mask": mask[real][None]})
    return rows


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_those_of_transformers(name: str, side: str, run: Run) -> None:
    reference = reference_of(name, side)
    inputs = inputs_of(reference)
    expected = reference["last_hidden_state"]
    size = np.abs(expected).max()
    found = run(name, inputs)
    real = inputs["attention_mask"] == 1
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[real] / size, expected[real] / size, atol=1e-5, rtol=0)
    for row, text in enumerate(one_by_one(inputs)):
        alone = run(name, text)[0]
        np.testing.assert_allclose(alone / size, expected[row][real[row]] / size, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_a_text_that_is_computed_in_chunks_has_the_states_of_transformers(name: str, run: Run) -> None:
    reference = reference_of(name)
    ids = reference["long_input_ids"].astype(np.int64)
    expected = reference["long_last_hidden_state"]
    found = run(name, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[:, ::37]
    size = np.abs(expected).max()
    np.testing.assert_allclose(found / size, expected / size, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", [name for name in MODELS if "scores" in name])
def test_scores_are_those_of_transformers(name: str, side: str, run: Run) -> None:
    """The first text ends with the padding's id: the state of the token before it counts."""
    reference = reference_of(name, side)
    inputs = inputs_of(reference)
    expected = reference["logits"]
    np.testing.assert_allclose(run(name, inputs, "scores"), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["eurobert_words", "eurobert_words_tied"])
def test_the_greatest_logits_of_words_are_those_of_transformers(name: str, side: str, run: Run) -> None:
    reference = reference_of(name, side)
    inputs = inputs_of(reference)
    logits = np.where(inputs["attention_mask"][:, :, None] == 1, reference["logits"], -np.inf)
    np.testing.assert_allclose(
        run(name, inputs, "words"), logits.max(axis=1), atol=1e-5 * np.abs(logits[0]).max(), rtol=0
    )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("no", [17, None])
@pytest.mark.parametrize("name", ["qwen3_sliding", "qwen3_tied", "qwen2_tied", "llama_tied"])
def test_an_answer_is_the_difference_of_two_words_logits(name: str, no: int | None, side: str, run: Run) -> None:
    reference = reference_of(name, side)
    inputs = inputs_of(reference)
    logits = reference["logits"]
    columns = np.arange(logits.shape[1])
    last = (inputs["attention_mask"] * columns).argmax(axis=1)
    at_end = logits[np.arange(len(logits)), last]
    expected = at_end[:, 9] - (0 if no is None else at_end[:, no])
    found = run(name, inputs, Answer(9, no))
    np.testing.assert_allclose(found, expected[:, None], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_bidirectional", "qwen3_sharded", "qwen3_sliding"])
def test_weights_written_in_blocks_are_those_written_whole(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ensure_graph(DATA / name, cache_dir=tmp_path / "whole")
    monkeypatch.setattr("asyncembed.export.construction.BLOCK_BYTES", 300)
    monkeypatch.setattr("asyncembed.export.onnx_builder.BLOCK_BYTES", 100)
    blocks = ensure_graph(DATA / name, cache_dir=tmp_path / "blocks")
    assert whole.read_bytes() == blocks.read_bytes()
    assert whole.with_name(DATA_FILE).read_bytes() == blocks.with_name(DATA_FILE).read_bytes()


@pytest.mark.parametrize(
    ("change", "objection"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "scales its positions by 'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "scales its positions by 'longrope'"),
        ({"rope_scaling": {"type": "linear"}}, "by linear with factor = None"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "by yarn with factor = '4'"),
        ({"rope_scaling": {"type": "llama3", "factor": 4}}, "with low_freq_factor = None"),
        ({"rope_scaling": {"type": ["linear"]}}, "scales its positions by"),
        ({"rope_parameters": {"rope_theta": "many"}}, "with rope_theta = 'many'"),
        ({"rope_theta": "10000"}, "has no usable rope_theta"),
        ({"partial_rotary_factor": 0.5}, "rotates a part of each head"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotates a part of each head"),
        ({"num_key_value_heads": 3}, "numbers of heads and of their sizes"),
        ({"num_key_value_heads": 0}, "has no usable num_key_value_heads"),
        ({"head_dim": 7}, "numbers of heads and of their sizes"),
        ({"num_hidden_layers": "2"}, "has no usable num_hidden_layers"),
        ({"layer_types": ["full_attention"]}, "has layer_types"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "has layer_types"),
        ({"layer_types": [["a"], {}]}, "has layer_types"),
        ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": -1}, "has no usable sliding_window"),
        ({"hidden_act": "swiglu"}, "has hidden_act = 'swiglu'"),
        ({"rms_norm_eps": "small"}, "has no usable rms_norm_eps"),
        ({"auto_map": {"AutoModel": "modeling.Model"}}, "brings code of its own"),
    ],
)
def test_what_is_not_computed_is_refused(change: dict[str, Any], objection: str, tmp_path: Path) -> None:
    config = json.loads((DATA / "qwen3" / "config.json").read_text("utf-8"))
    config.pop("layer_types", None)
    (tmp_path / "config.json").write_text(json.dumps(config | change), "utf-8")
    with pytest.raises(UnsupportedModelError) as refused:
        read_plan(tmp_path)
    assert objection in str(refused.value)


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("eurobert", "modeling_eurobert.EuroBertModel"),
        ("llama_bidirectional", "nvidia/x--llama_bidirectional_model.LlamaBidirectionalModel"),
    ],
)
def test_code_that_computes_the_same_is_accepted_by_its_name(model: str, code: str, tmp_path: Path) -> None:
    """Repos of EuroBERT from 2025 bring what transformers has since; others of its type change what it computes."""
    config = json.loads((DATA / model / "config.json").read_text("utf-8"))
    for name, is_known in ((code, True), ("modeling_own.OwnModel", False)):
        (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": name}}), "utf-8")
        if is_known:
            read_plan(tmp_path)
            continue
        with pytest.raises(UnsupportedModelError, match="brings code of its own"):
            read_plan(tmp_path)


def test_what_llama_and_mistral_say_of_layers_and_directions_is_read_as_transformers_does(tmp_path: Path) -> None:
    """They have no kinds of layers, and no key for both directions but `is_causal`."""

    def graph_of(model: str, **said: Any) -> bytes:
        directory = tmp_path / f"{model}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(DATA / model, directory)
        config = json.loads((directory / "config.json").read_text("utf-8")) | said
        (directory / "config.json").write_text(json.dumps(config), "utf-8")
        return ensure_graph(directory, cache_dir=directory / "cache").read_bytes()

    kinds = {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True}
    for model, window in (("llama", {"sliding_window": 4}), ("mistral", {})):
        assert graph_of(model, **kinds, **window) == graph_of(model)
        assert graph_of(model, is_causal=False) != graph_of(model)
        with pytest.raises(UnsupportedModelError, match="has use_bidirectional_attention"):
            graph_of(model, use_bidirectional_attention=True)
    assert graph_of("mistral", sliding_window=None) != graph_of("mistral")
    with pytest.raises(UnsupportedModelError, match="of which only states are built, not scores"):
        read_plan(DATA / "llama_bidirectional", "scores")


def test_a_projection_of_hidden_states_that_was_not_verified_is_refused(tmp_path: Path) -> None:
    """As voyage-4-nano has it."""
    shutil.copytree(DATA / "qwen3", tmp_path / "repo")
    weights = tmp_path / "repo" / "model.safetensors"
    tensors = {name: np.array(array) for name, array in read_tensors(weights).items()}
    write_tensors(weights, tensors | {"linear.weight": np.ones((4, 16), np.float32)})
    with pytest.raises(UnsupportedModelError, match="a tensor linear.weight, and that has not been verified"):
        ensure_graph(tmp_path / "repo", cache_dir=tmp_path / "cache")


def test_an_answer_that_is_no_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="has 40 words, and none of the id 5 or 40"):
        ensure_graph(DATA / "qwen3_tied", head=Answer(5, 40), cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["gemma3", "gemma3_causal"])
def test_older_files_of_gemma3_describe_the_same_model(name: str, tmp_path: Path) -> None:
    """Bases of the rotation and a scaling beside one another, and a pattern instead of the layers' kinds."""
    directory = tmp_path / "repo"
    shutil.copytree(DATA / name, directory)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    said = config.pop("rope_parameters")
    full, sliding = said["full_attention"], said["sliding_attention"]
    config |= {"rope_theta": full["rope_theta"], "rope_local_base_freq": sliding["rope_theta"]}
    if full["rope_type"] != "default":
        config["rope_scaling"] = {"type": full["rope_type"], "factor": full["factor"]}
    assert config.pop("layer_types") == ["sliding_attention", "full_attention", "sliding_attention"]
    del config["_sliding_window_pattern"]
    config["sliding_window_pattern"] = 2
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    graphs = [ensure_graph(path, cache_dir=tmp_path / "cache") for path in (DATA / name, directory)]
    assert graphs[0] != graphs[1]
    assert graphs[0].read_bytes() == graphs[1].read_bytes()


def test_older_files_of_qwen_say_which_layers_slide(tmp_path: Path) -> None:
    directory = tmp_path / "repo"
    shutil.copytree(DATA / "qwen3_sliding", directory)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    assert config.pop("layer_types") == ["full_attention", "sliding_attention"]
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    graphs = [ensure_graph(path, cache_dir=tmp_path / "cache") for path in (DATA / "qwen3_sliding", directory)]
    assert graphs[0] != graphs[1]
    assert graphs[0].read_bytes() == graphs[1].read_bytes()
    config["use_sliding_window"] = False
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    assert ensure_graph(directory, cache_dir=tmp_path / "cache").read_bytes() != graphs[0].read_bytes()
