"""The vision tower of CLIP ViT-B/32 as an ONNX file, with random weights: right in size and shape, in nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, LAYERS, HEADS, PATCH, EDGE, DIM = 768, 12, 12, 32, 224, 512

PREPROCESSING = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": {"shortest_edge": 224},
}


class _Builder:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)
        self._count = 0

    def weight(self, *shape: int, scale: float | None = None) -> str:
        size = 1 / np.sqrt(shape[0]) if scale is None else scale
        return self.constant((self._random.standard_normal(shape) * size).astype(np.float32))

    def constant(self, value: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        self._count += 1
        name = output or f"n{self._count}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def norm(self, hidden: str) -> str:
        ones, zeros = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
        return self.add("LayerNormalization", hidden, self.constant(ones), self.constant(zeros), epsilon=1e-5)

    def linear(self, hidden: str, size_in: int, size_out: int) -> str:
        product = self.add("MatMul", hidden, self.weight(size_in, size_out))
        return self.add("Add", product, self.weight(size_out, scale=0.01))


def write_vision_tower(directory: Path) -> Path:
    """Write `model.onnx` (88 million parameters, 350 MB) and `preprocessor_config.json`, unless they are there."""
    path = directory / "model.onnx"
    if path.exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    build = _Builder()
    patches = (EDGE // PATCH) ** 2
    kernel = build.weight(WIDTH, 3, PATCH, PATCH, scale=1 / np.sqrt(3 * PATCH * PATCH))
    hidden = build.add("Conv", "pixel_values", kernel, kernel_shape=[PATCH, PATCH], strides=[PATCH, PATCH])
    hidden = build.add("Reshape", hidden, build.constant(np.array([0, WIDTH, patches], np.int64)))
    hidden = build.add("Transpose", hidden, perm=[0, 2, 1])
    # The class token, in front of the patches of each image of the batch.
    first = build.add("Slice", hidden, *(build.constant(np.array([edge], np.int64)) for edge in (0, 1, 1)))
    first = build.add(
        "Add", build.add("Mul", first, build.constant(np.float32(0))), build.weight(1, 1, WIDTH, scale=0.02)
    )
    hidden = build.add("Concat", first, hidden, axis=1)
    hidden = build.norm(build.add("Add", hidden, build.weight(1, patches + 1, WIDTH, scale=0.02)))
    for _ in range(LAYERS):
        hidden = build.add("Add", hidden, _attention(build, build.norm(hidden), patches + 1))
        inner = build.linear(build.norm(hidden), WIDTH, 4 * WIDTH)
        gate = build.add("Sigmoid", build.add("Mul", inner, build.constant(np.float32(1.702))))
        hidden = build.add("Add", hidden, build.linear(build.add("Mul", inner, gate), 4 * WIDTH, WIDTH))
    pooled = build.add("Gather", build.norm(hidden), build.constant(np.int64(0)), axis=1)
    build.add("MatMul", pooled, build.weight(WIDTH, DIM), output="image_embeds")
    graph = helper.make_graph(
        build.nodes,
        "vision",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, EDGE, EDGE])],
        [helper.make_tensor_value_info("image_embeds", TensorProto.FLOAT, ["batch", DIM])],
        build.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (directory / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING), "utf-8")
    onnx.save(model, str(path.with_suffix(".part")))
    path.with_suffix(".part").rename(path)
    return directory


def _attention(build: _Builder, hidden: str, tokens: int) -> str:
    split = build.constant(np.array([0, tokens, HEADS, WIDTH // HEADS], np.int64))

    def heads(perm: list[int]) -> str:
        return build.add("Transpose", build.add("Reshape", build.linear(hidden, WIDTH, WIDTH), split), perm=perm)

    scores = build.add("MatMul", heads([0, 2, 1, 3]), heads([0, 2, 3, 1]))
    scale = build.constant(np.float32((WIDTH // HEADS) ** -0.5))
    weights = build.add("Softmax", build.add("Mul", scores, scale), axis=-1)
    mixed = build.add("Transpose", build.add("MatMul", weights, heads([0, 2, 1, 3])), perm=[0, 2, 1, 3])
    joined = build.add("Reshape", mixed, build.constant(np.array([0, tokens, WIDTH], np.int64)))
    return build.linear(joined, WIDTH, WIDTH)
