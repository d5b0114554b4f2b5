"""Compares the graphs of decoders with transformers, whose outputs were computed once: see `reference_decoders.py`."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from asyncembed.export.construction import Answer
from asyncembed.export.graph_cache import ensure_graph
from asyncembed.export.heads import Head

DATA = Path(__file__).parent / "data"

MODELS = sorted(path.name for path in DATA.iterdir() if path.name.startswith(("qwen", "gemma", "eurobert")))


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


def inputs_of(reference: Any, side: str) -> Inputs:
    return {key: reference[f"{side}_{key}"] for key in ("input_ids", "attention_mask")}


def one_by_one(inputs: Inputs) -> list[Inputs]:
    rows = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        real = mask == 1
        rows.append({"input_ids": ids[real][None], "attention_mask": mask[real][None]})
    return rows


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_those_of_transformers(name: str, side: str, run: Run) -> None:
    reference = np.load(DATA / name / "reference.npz")
    inputs = inputs_of(reference, side)
    expected = reference[f"{side}_last_hidden_state"]
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
    reference = np.load(DATA / name / "reference.npz")
    ids = reference["long_input_ids"]
    expected = reference["long_last_hidden_state"]
    found = run(name, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[:, ::37]
    size = np.abs(expected).max()
    np.testing.assert_allclose(found / size, expected / size, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", [name for name in MODELS if "scores" in name])
def test_scores_are_those_of_transformers(name: str, side: str, run: Run) -> None:
    """The first text ends with the padding's id: the state of the token before it counts."""
    reference = np.load(DATA / name / "reference.npz")
    inputs = inputs_of(reference, side)
    # transformers takes the first place for the first token, which padding on the left occupies.
    expected = reference["right_logits" if name == "eurobert_scores_bos" else f"{side}_logits"]
    np.testing.assert_allclose(run(name, inputs, "scores"), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["eurobert_words", "eurobert_words_tied"])
def test_the_greatest_logits_of_words_are_those_of_transformers(name: str, side: str, run: Run) -> None:
    reference = np.load(DATA / name / "reference.npz")
    inputs = inputs_of(reference, side)
    logits = np.where(inputs["attention_mask"][:, :, None] == 1, reference[f"{side}_logits"], -np.inf)
    np.testing.assert_allclose(
        run(name, inputs, "words"), logits.max(axis=1), atol=1e-5 * np.abs(logits[0]).max(), rtol=0
    )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("no", [17, None])
@pytest.mark.parametrize("name", ["qwen3_sliding", "qwen3_tied", "qwen2_tied"])
def test_an_answer_is_the_difference_of_two_words_logits(name: str, no: int | None, side: str, run: Run) -> None:
    reference = np.load(DATA / name / "reference.npz")
    inputs = inputs_of(reference, side)
    logits = reference[f"{side}_logits"]
    columns = np.arange(logits.shape[1])
    last = (inputs["attention_mask"] * columns).argmax(axis=1)
    at_end = logits[np.arange(len(logits)), last]
    expected = at_end[:, 9] - (0 if no is None else at_end[:, no])
    found = run(name, inputs, Answer(9, no))
    np.testing.assert_allclose(found, expected[:, None], atol=2e-5, rtol=0)
