"""Small models of the kinds of ColPali and ColModernVBERT."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from asyncembed.catalogue.lookup import require_model
from asyncembed.catalogue.spec import LocalOrigin, ModelSpec
from tests.support.graphs import VOCABULARY, GraphBuilder, linear, overflowing
from tests.support.images import COLPALI, SMALL_IDEFICS3
from tests.support.tokenizers import byte_level_bpe, unigram, write_tokenizer

COLPALI_NAME = "Qdrant/colpali-v1.3-fp16"
COLMODERNVBERT_NAME = "Qdrant/colmodernvbert"
NAMES = (COLPALI_NAME, COLMODERNVBERT_NAME)
TILE_TOKENS = 4


def write_multimodal_model(directory: Path, name: str, **graph: Any) -> ModelSpec:
    """A model of the kind of `name`; its images are tiles of 32 pixels if that is ColModernVBERT."""
    spec = require_model(name, "late_interaction_multimodal")
    assert spec.model_file is not None
    assert spec.dim is not None
    if name == COLPALI_NAME:
        write_tokenizer(directory, unigram(), pad_token="<pad>", limit=50)
        preprocessing, dimensions = COLPALI, 4
        (directory / "config.json").write_text(json.dumps({"model_type": "colpali"}), "utf-8")
    else:
        tokenizer = byte_level_bpe()
        marks = ["<|begin_of_text|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>", "<image>"]
        marks += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
        tokenizer.add_special_tokens(marks)
        write_tokenizer(directory, tokenizer, pad_token="<pad>", limit=2000)
        preprocessing, dimensions = SMALL_IDEFICS3, 5
        (directory / "processor_config.json").write_text(json.dumps({"image_seq_len": TILE_TOKENS}), "utf-8")
        (directory / "config.json").write_text(json.dumps({"vision_config": {"image_size": 32}}), "utf-8")
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessing), "utf-8")
    write_multimodal_graph(directory / spec.model_file, spec.dim, dimensions, **graph)
    return replace(spec, sources=(LocalOrigin(directory),), additional_files=())


def write_multimodal_graph(
    path: Path,
    dim: int,
    dimensions: int,
    *,
    dynamic_quantization: bool = False,
    overflows: int | None = None,
    fixed: tuple[int | None, int | None] = (None, None),
) -> Path:
    """Token vectors (batch, tokens, dim) of ids and pixels; pixels have 4 or, with tiles, 5 dimensions.

    Masked out tokens and blank tiles change nothing, and each token sees its neighbours and the image.
    """
    build = GraphBuilder(5)
    ids = build.add("Mod", "input_ids", build.constant(np.int64(VOCABULARY)))
    one = build.constant(np.array([1], np.int64))
    hidden = build.add("Gather", build.random(VOCABULARY, dim, scale=0.3), ids)
    mask = build.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    penalty = build.add("Mul", build.add("Sub", build.constant(np.float32(1)), mask), build.constant(np.float32(-1e9)))
    scores = build.add("MatMul", hidden, build.add("Transpose", hidden, perm=[0, 2, 1]))
    attention = build.add("Softmax", build.add("Add", scores, build.add("Unsqueeze", penalty, one)), axis=-1)
    hidden = build.add("Add", build.add("MatMul", attention, hidden), hidden)
    # Means over blocks of the image, weighted by where they are, so that position counts.
    rows = build.add("ReduceMean", "pixel_values", axes=[-1], keepdims=0)
    edge = 448 if dimensions == 4 else 32
    features = build.add("MatMul", rows, build.random(edge, dim, scale=0.1))  # (..., 3, dim)
    features = build.add("ReduceSum", features, build.constant(np.array([-2], np.int64)), keepdims=0)
    if dimensions == 5:
        features = build.add("ReduceSum", features, one, keepdims=0)
    hidden = build.add("Add", hidden, build.add("Unsqueeze", features, one))
    if dynamic_quantization:
        hidden = linear(build, hidden, dim, quantized=True)
    if overflows is not None:
        hidden = overflowing(build, ids, hidden, overflows, math.inf)
    norm = build.add("ReduceL2", hidden, axes=[2], keepdims=1)
    build.add("Div", hidden, norm, output="embeddings")
    batch, tokens = fixed[0] or "b", fixed[1] or "s"
    images: list[str | int | None] = [fixed[0] or "images", *(["tiles"] if dimensions == 5 else [])]
    pixel_shape = [*images, 3, edge, edge]
    describe = helper.make_tensor_value_info
    inputs = [describe(name, TensorProto.INT64, [batch, tokens]) for name in ("input_ids", "attention_mask")]
    inputs.append(describe("pixel_values", TensorProto.FLOAT, pixel_shape))
    return build.save(path, inputs, [describe("embeddings", TensorProto.FLOAT, [batch, tokens, dim])])
