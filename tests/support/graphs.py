"""Small ONNX graphs like those of real models; their numbers depend on every input they take."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY = 512
DIM = 8

_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


class GraphBuilder:
    """Nodes and constants, collected by name."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)
        self._count = 0

    def constant(self, values: Any) -> str:
        """A constant; its name."""
        self._count += 1
        name = f"c{self._count}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def random(self, *shape: int, scale: float = 1.0) -> str:
        """A float32 constant of normally distributed values; its name."""
        return self.constant((self._random.standard_normal(shape) * scale).astype(np.float32))

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """A node with one output; that output's name."""
        self._count += 1
        name = output or f"n{self._count}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def save(self, path: Path, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> Path:
        """Write the graph."""
        graph = helper.make_graph(self.nodes, "graph", list(inputs), list(outputs), self.constants)
        domains = sorted({node.domain for node in self.nodes} - {""})
        opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        onnx.checker.check_model(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, str(path))
        return path


def write_text_graph(
    path: Path,
    *,
    dim: int = DIM,
    mask: bool = True,
    token_types: bool = True,
    task_count: int | None = None,
    extra_inputs: Sequence[str] = (),
    outputs: Sequence[str] = ("last_hidden_state",),
    dtype: str = "float32",
    dynamic_quantization: bool = False,
    heads: int = 3,
    labels: int = 1,
    wrap_ids: bool = False,
    fixed: tuple[int | None, int | None] = (None, None),
    overflows: int | None = None,
    seed: int = 0,
) -> Path:
    """A one-layer attention encoder over (batch, tokens) ids; padding is masked out as in BERT.

    Its outputs are chosen by name:

    - "last_hidden_state" (batch, tokens, dim);
    - "pooler_output", the last position of a row, padding or not; "sentence_embedding", the masked mean; "text_embeds",
      the first position: (batch, dim);
    - "logits" (batch, tokens, VOCABULARY), as of a masked language model;
    - "attention_6" (batch, heads, tokens, tokens);
    - "scores" (batch, labels), or (batch,) with `labels` 0.

    `wrap_ids` lets any id stand for one of the vocabulary. `task_count` adds the scalar input task_id, which selects a
    vector that is added to every token. `fixed` is the one batch size and the one length that it takes. `overflows` is
    a token whose states are beyond what half precision holds.
    """
    batch, tokens = fixed[0] or "batch", fixed[1] or "tokens"
    build = GraphBuilder(seed)
    names = ["input_ids", *(["attention_mask"] if mask else []), *(["token_type_ids"] if token_types else [])]
    ids = build.add("Mod", "input_ids", build.constant(np.int64(VOCABULARY))) if wrap_ids else "input_ids"
    hidden = build.add("Gather", build.random(VOCABULARY, dim), ids)
    if token_types:
        hidden = build.add("Add", hidden, build.add("Gather", build.random(2, dim), "token_type_ids"))
    if task_count is not None:
        hidden = build.add("Add", hidden, build.add("Gather", build.random(task_count, dim), "task_id"))
    transposed = build.add("Transpose", hidden, perm=[0, 2, 1])
    scores = build.add("MatMul", hidden, transposed)
    weights_of_mask = None
    if mask:
        weights_of_mask = build.add("Cast", "attention_mask", to=TensorProto.FLOAT)
        row = build.add("Unsqueeze", weights_of_mask, build.constant(np.array([1], dtype=np.int64)))
        penalty = build.add(
            "Mul", build.add("Sub", build.constant(np.float32(1)), row), build.constant(np.float32(-1e9))
        )
        scores = build.add("Add", scores, penalty)
    attention = build.add("Softmax", scores, axis=-1)
    mixed = build.add("Add", build.add("MatMul", attention, hidden), hidden)
    hidden = linear(build, mixed, dim, quantized=dynamic_quantization)
    if overflows is not None:
        hidden = overflowing(build, ids, hidden, overflows, 1e6)
    element = _TYPES[dtype]
    results: dict[str, tuple[str, list[str | int]]] = {}
    results["last_hidden_state"] = (hidden, [batch, tokens, dim])
    first, last = build.constant(np.int64(0)), build.constant(np.int64(-1))
    results["text_embeds"] = (build.add("Gather", hidden, first, axis=1), [batch, dim])
    results["pooler_output"] = (build.add("Gather", hidden, last, axis=1), [batch, dim])
    averaged = None
    if weights_of_mask is not None:
        column = build.add("Unsqueeze", weights_of_mask, build.constant(np.array([2], dtype=np.int64)))
        summed = build.add(
            "ReduceSum",
            build.add("Mul", hidden, column),
            build.constant(np.array([1], dtype=np.int64)),
            keepdims=0,
        )
        count = build.add("ReduceSum", column, build.constant(np.array([1], dtype=np.int64)), keepdims=0)
        averaged = build.add("Div", summed, count)
        results["sentence_embedding"] = (averaged, [batch, dim])
    if "logits" in outputs:
        results["logits"] = (
            build.add("MatMul", hidden, build.random(dim, VOCABULARY)),
            [batch, tokens, VOCABULARY],
        )
    if "attention_6" in outputs:
        by_head = build.add("Unsqueeze", attention, build.constant(np.array([1], dtype=np.int64)))
        scale = build.constant(np.linspace(0.5, 1.5, heads, dtype=np.float32).reshape(1, heads, 1, 1))
        by_head = build.add("Mul", by_head, scale)
        if overflows is not None:
            by_head = overflowing(build, ids, by_head, overflows, 1e6, axes=(1, 2))
        results["attention_6"] = (by_head, [batch, heads, tokens, tokens])
    if "scores" in outputs:
        pooled = averaged or build.add("ReduceMean", hidden, axes=[1], keepdims=0)
        weights = build.random(dim, labels) if labels else build.random(dim)
        results["scores"] = (build.add("MatMul", pooled, weights), [batch, labels] if labels else [batch])
    infos = []
    for name in outputs:
        source, shape = results[name]
        build.add("Cast", source, output=name, to=element)
        infos.append(helper.make_tensor_value_info(name, element, shape))
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, [batch, tokens]) for name in names]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT64, [batch, tokens]) for name in extra_inputs]
    if task_count is not None:
        inputs.append(helper.make_tensor_value_info("task_id", TensorProto.INT64, []))
    return build.save(path, inputs, infos)


def overflowing(
    build: GraphBuilder, ids: str, values: str, id_: int, magnitude: float, axes: Sequence[int] = (2,)
) -> str:
    """What there is for each of `ids`, with `magnitude` added for the token `id_`; `axes` are those beside theirs."""
    is_it = build.add("Equal", ids, build.constant(np.int64(id_)))
    huge = build.add("Where", is_it, build.constant(np.float32(magnitude)), build.constant(np.float32(0)))
    return build.add("Add", values, build.add("Unsqueeze", huge, build.constant(np.array(axes, dtype=np.int64))))


def linear(build: GraphBuilder, hidden: str, dim: int, *, quantized: bool) -> str:
    """States times a constant matrix."""
    weights = np.random.default_rng(1).standard_normal((dim, dim)).astype(np.float32)
    if not quantized:
        return build.add("MatMul", hidden, build.constant(weights))
    # As onnxruntime's quantize_dynamic writes it: one scale for the whole activation tensor.
    scale = np.float32(np.abs(weights).max() / 127)
    build.nodes.append(helper.make_node("DynamicQuantizeLinear", [hidden], ["q", "q_scale", "q_zero"]))
    product = build.add(
        "MatMulInteger",
        "q",
        build.constant(np.round(weights / scale).astype(np.int8)),
        "q_zero",
        build.constant(np.int8(0)),
    )
    scales = build.add("Mul", "q_scale", build.constant(scale))
    return build.add("Mul", build.add("Cast", product, to=TensorProto.FLOAT), scales)
