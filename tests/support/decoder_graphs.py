"""Small graphs with the inputs of real exports of decoders and of models of several kinds of input."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from tests.support.graphs import DIM, VOCABULARY, GraphBuilder

HEADS, WIDTH = 1, DIM  # onnxruntime's fused attention wants a width of 8 at least
FEATURE_ID = 7
"""The token in whose place stands what another tower gives."""

Shape = Sequence[int | str]


def write_decoder_graph(
    path: Path,
    *,
    past: Shape | None = None,
    past_type: int = TensorProto.FLOAT,
    positions: Shape = ("batch", "tokens"),
    features: Sequence[str] = (),
    feature_shape: Shape = ("features", DIM),
    images: Shape | None = None,
    task: Shape | None = None,
    numbers: bool = False,
    fused: bool = False,
    outputs: Sequence[str] = ("last_hidden_state",),
) -> Path:
    """One causal layer over (batch, tokens) ids, of the same numbers whatever it takes besides.

    `past` is the shape of the keys and values of earlier tokens, `features` are inputs (n, DIM) that replace the states
    of the token `FEATURE_ID`, `images` the shape of pixels of which such are made, `task` that of a number that turns
    all states by a vector of its own, `numbers` adds those that generating text needs, and `fused` has onnxruntime's
    operator with a past be the attention, as most exports of decoders. Outputs are "last_hidden_state", "logits" and
    "sentence_embedding", the last state; with a past also what it becomes.
    """
    build = GraphBuilder()
    table, places, tasks = build.random(VOCABULARY, DIM), build.random(64, DIM), build.random(5, DIM)
    head, pixel = build.random(DIM, VOCABULARY), build.random(DIM, 3, 4, 4)
    batch: Shape = ("batch", "tokens")
    inputs = [_info("input_ids", TensorProto.INT64, batch), _info("attention_mask", TensorProto.INT64, batch)]
    inputs.append(_info("position_ids", TensorProto.INT64, positions))
    hidden = build.add("Gather", table, "input_ids")
    row = "position_ids" if len(positions) == 2 else build.add("Gather", "position_ids", _int(build, 2), axis=0)
    hidden = build.add("Add", hidden, build.add("Gather", places, row))
    for name in features:
        inputs.append(_info(name, TensorProto.FLOAT, feature_shape))
        hidden = _placed(build, hidden, name)
    if images is not None:
        inputs.append(_info("pixel_values", TensorProto.FLOAT, images))
        patches = build.add("Conv", "pixel_values", pixel, strides=[4, 4])
        hidden = _placed(build, hidden, build.add("ReduceMean", patches, axes=[2, 3], keepdims=0))
    if task is not None:
        inputs.append(_info("task_id", TensorProto.INT64, task))
        hidden = build.add("Mul", hidden, build.add("Gather", tasks, "task_id"))
    if numbers:
        inputs.append(_info("cache_position", TensorProto.INT64, ["tokens"]))
        inputs.append(_info("num_logits_to_keep", TensorProto.INT64, []))
        inputs.append(_info("use_cache_branch", TensorProto.BOOL, [1]))
        zero = build.add("Mul", build.add("Cast", "num_logits_to_keep", to=TensorProto.FLOAT), _float(build, 0))
        hidden = build.add("Add", hidden, zero)
        ones = build.add("Cast", "use_cache_branch", to=TensorProto.FLOAT)  # a row of one 0
        hidden = build.add("Add", hidden, build.add("ReduceSum", ones, _ints(build, 0), keepdims=0))
        later = build.add("Cast", "cache_position", to=TensorProto.FLOAT)
        column = build.add("Unsqueeze", build.add("Mul", later, _float(build, 0)), _ints(build, 1))
        hidden = build.add("Add", hidden, column)
    results = {"present.0.key": "", "present.0.value": ""}
    keys = values = _by_head(build, hidden)
    if past is not None:
        for name, present in (("key", "present.0.key"), ("value", "present.0.value")):
            inputs.append(_info(f"past_key_values.0.{name}", past_type, past))
            earlier = build.add("Cast", f"past_key_values.0.{name}", to=TensorProto.FLOAT)
            results[present] = build.add("Concat", earlier, _by_head(build, hidden), axis=2)
        keys, values = results["present.0.key"], results["present.0.value"]
    if fused:
        merged, results["present.0.key"], results["present.0.value"] = _fused_attention(build, hidden)
    else:
        mixed = _attention(build, _by_head(build, hidden), keys, values)
        merged = build.add("Reshape", build.add("Transpose", mixed, perm=[0, 2, 1, 3]), _ints(build, 0, 0, DIM))
    states = build.add("Add", hidden, merged)
    results["last_hidden_state"] = states
    results["logits"] = build.add("MatMul", states, head)
    results["sentence_embedding"] = build.add("Gather", states, _int(build, -1), axis=1)
    shapes: dict[str, Shape] = {
        "last_hidden_state": (*batch, DIM),
        "logits": (*batch, VOCABULARY),
        "sentence_embedding": ("batch", DIM),
    }
    infos = []
    for name in [*outputs, *(name for name in ("present.0.key", "present.0.value") if past is not None)]:
        build.add("Identity", results[name], output=name)
        infos.append(_info(name, TensorProto.FLOAT, shapes.get(name, ("batch", HEADS, "all", WIDTH))))
    return build.save(path, inputs, infos)


def _attention(build: GraphBuilder, queries: str, keys: str, values: str) -> str:
    scores = build.add("MatMul", queries, build.add("Transpose", keys, perm=[0, 1, 3, 2]))
    real = build.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    hidden = build.add("Mul", build.add("Sub", _float(build, 1), real), _float(build, -1e9))
    scores = build.add("Add", scores, build.add("Unsqueeze", hidden, _ints(build, 1, 2)))
    length = build.add("Gather", build.add("Shape", "attention_mask"), _int(build, 1))
    places = build.add("Range", _int(build, 0), length, _int(build, 1))
    rows = build.add("Unsqueeze", places, _ints(build, 1))
    is_later = build.add("Less", rows, build.add("Unsqueeze", places, _ints(build, 0)))
    scores = build.add("Where", is_later, _float(build, -1e9), scores)
    return build.add("MatMul", build.add("Softmax", scores, axis=-1), values)


def _fused_attention(build: GraphBuilder, hidden: str) -> tuple[str, str, str]:
    """States (batch, tokens, DIM), keys and values; it takes padding for what is behind a text, wherever it is."""
    counts = build.add("ReduceSum", "attention_mask", _ints(build, 1), keepdims=0)
    last = build.add("Cast", build.add("Sub", counts, _int(build, 1)), to=TensorProto.INT32)
    length = build.add("Gather", build.add("Shape", "attention_mask"), _int(build, 1))
    total = build.add("Cast", length, to=TensorProto.INT32)
    inputs = [hidden, hidden, hidden, "past_key_values.0.key", "past_key_values.0.value", last, total]
    outputs = ("merged", "keys", "values")
    build.nodes.append(
        helper.make_node(
            "GroupQueryAttention",
            inputs,
            list(outputs),
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=HEADS,
            scale=1.0,
        )
    )
    return outputs


def _by_head(build: GraphBuilder, hidden: str) -> str:
    split = build.add("Reshape", hidden, _ints(build, 0, 0, HEADS, WIDTH))
    return build.add("Transpose", split, perm=[0, 2, 1, 3])


def _placed(build: GraphBuilder, hidden: str, features: str) -> str:
    """The states, those of `FEATURE_ID` replaced by `features`."""
    found = build.add("NonZero", build.add("Equal", "input_ids", _int(build, FEATURE_ID)))
    return build.add("ScatterND", hidden, build.add("Transpose", found, perm=[1, 0]), features)


def _info(name: str, element: int, shape: Shape) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, element, list(shape))


def _int(build: GraphBuilder, value: int) -> str:
    return build.constant(np.int64(value))


def _ints(build: GraphBuilder, *values: int) -> str:
    return build.constant(np.array(values, dtype=np.int64))


def _float(build: GraphBuilder, value: float) -> str:
    return build.constant(np.float32(value))
