"""Graphs that ask for more than ids and mask give the vectors of the one that does not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from asyncembed.catalogue.spec import Pooling
from asyncembed.encoders import build
from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.errors import OptionError, UnsupportedModelError
from tests.support.decoder_graphs import HEADS, WIDTH, write_decoder_graph
from tests.support.graphs import DIM
from tests.support.models import MODEL_FILE, spec_for
from tests.support.tokenizers import byte_level_bpe, wordpiece, write_tokenizer

pytestmark = pytest.mark.slow

TEXTS = ("how can you make it long", "", "x", "they said that there was a way to write about it", "the the the")

CONFIG = {"model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": HEADS, "head_dim": WIDTH}
PAST = ("batch", HEADS, "past", WIDTH)
NAMELESS = ("batch", "heads", "past", "width")


def vectors_of(
    directory: Path,
    config: dict[str, Any] | None = None,
    *,
    side: str = "right",
    pooling: Pooling = "last_token",
    is_catalogued: bool = True,
    **graph: Any,
) -> Any:
    """The vectors of `TEXTS` by a graph that `graph` describes to `write_decoder_graph`."""
    if side == "right":
        write_tokenizer(directory, wordpiece())
    else:
        write_tokenizer(directory, byte_level_bpe(), pad_token="<pad>", padding_side=side)
    (directory / "config.json").write_text(json.dumps(config or {}), encoding="utf-8")
    write_decoder_graph(directory / MODEL_FILE, **graph)
    spec = spec_for(directory, pooling=pooling, is_catalogued=is_catalogued)
    encoder = build(EncoderConfig(spec=spec, directory=directory, max_length=40))
    together = encoder.encode(TEXTS, Call())
    assert not together.failures
    alone = [encoder.encode([text], Call()).results[0] for text in TEXTS]
    np.testing.assert_allclose(together.results, alone, atol=1e-5)
    return np.array(list(together.results))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("graph", "config"),
    [
        ({"past": PAST}, {}),
        ({"past": NAMELESS}, CONFIG),
        ({"past": NAMELESS}, {"num_attention_heads": HEADS, "hidden_size": DIM}),
        ({"past": NAMELESS}, {"text_config": CONFIG}),
        ({"past": PAST, "past_type": TensorProto.FLOAT16}, {}),
        ({"past": PAST, "numbers": True, "outputs": ("logits", "last_hidden_state")}, {}),
        ({"past": PAST, "fused": True}, {}),
        ({"positions": (3, "batch", "tokens")}, {}),
        ({"features": ("image_features", "audio_features", "video_features")}, {}),
        ({"images": ("images", 3, 8, 8)}, {}),
        ({"images": ("images", "channels", "height", "width")}, {"vision_config": {"image_size": 12}}),
    ],
)
def test_what_a_graph_takes_besides_changes_nothing(
    graph: dict[str, Any], config: dict[str, Any], side: str, tmp_path: Path
) -> None:
    expected = vectors_of(tmp_path / "plain", side=side)
    found = vectors_of(tmp_path / "more", config, side=side, is_catalogued=False, **graph)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"past": NAMELESS}, r"past_key_values\.0\.key of the shape \(any, any, any, any\).*config\.json"),
        ({"past": ("batch", HEADS, 3, WIDTH)}, r"past_key_values\.0\.key of the shape \(any, 1, 3, 8\)"),
        ({"features": ("image_features",), "feature_shape": ("features", "width")}, "image_features"),
        ({"features": ("depth_features",)}, r"depth_features of the shape \(any, 8\)"),
        ({"images": ("images", 3, "height", "width")}, "pixel_values"),
        ({"task": []}, r"task_id of the shape \(\)"),
    ],
)
def test_an_input_that_nobody_can_make_up_is_named(graph: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        vectors_of(tmp_path, **graph)


TASKS = {"task_input": "task_id", "tasks": {"query": 0, "passage": 3}, "default_task": 3}


@pytest.mark.parametrize("shape", [(1,), ("batch",)])
def test_a_task_is_a_scalar_or_a_row_as_the_graph_takes_it(shape: tuple[int | str, ...], tmp_path: Path) -> None:
    for task in (None, 0):
        scalar = _with_task(tmp_path / f"scalar {task}", (), task)
        np.testing.assert_array_equal(_with_task(tmp_path / f"row {task}", shape, task), scalar)


def _with_task(directory: Path, shape: tuple[int | str, ...], number: int | None) -> Any:
    write_tokenizer(directory, wordpiece())
    write_decoder_graph(directory / MODEL_FILE, task=shape)
    spec = replace(spec_for(directory, pooling="mean"), settings=TASKS)
    return build(EncoderConfig(spec=spec, directory=directory)).encode(TEXTS, Call(task=number)).results


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_graph_with_a_past_that_takes_the_last_place_gets_no_padding(side: str, tmp_path: Path) -> None:
    graph: dict[str, Any] = {"past": PAST, "fused": True, "outputs": ("sentence_embedding",)}
    found = vectors_of(tmp_path / "pooled", side=side, pooling="none", **graph)
    np.testing.assert_allclose(found, vectors_of(tmp_path / "states", side=side), atol=1e-6)


def test_hidden_states_are_found_by_their_name_and_logits_are_none(tmp_path: Path) -> None:
    for outputs in (("logits", "last_hidden_state"), ("sentence_embedding", "logits", "last_hidden_state")):
        found = vectors_of(tmp_path / str(len(outputs)), past=PAST, outputs=outputs, is_catalogued=False)
        np.testing.assert_array_equal(found, vectors_of(tmp_path / f"{len(outputs)} plain"))
    with pytest.raises(UnsupportedModelError, match="generates text: it gives logits, present"):
        vectors_of(tmp_path / "text", past=PAST, outputs=("logits",), is_catalogued=False)


def test_a_graph_of_one_task_does_not_ask_which(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, wordpiece())
    write_decoder_graph(tmp_path / MODEL_FILE)
    spec = spec_for(tmp_path, pooling="mean")
    plain, of_task = (
        build(EncoderConfig(spec=replace(spec, settings=settings), directory=tmp_path)) for settings in ({}, TASKS)
    )
    np.testing.assert_array_equal(of_task.encode(TEXTS, Call()).results, plain.encode(TEXTS, Call()).results)
    with pytest.raises(OptionError, match="no tasks"):
        of_task.encode(TEXTS, Call(task="query"))
