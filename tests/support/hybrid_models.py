"""The small model of `tests/encoders/reference_one_pass.py`, laid out as repos with several results for a text are."""

import shutil
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from asyncembed.catalogue.pipeline import spec_from_directory
from asyncembed.catalogue.spec import ModelSpec
from asyncembed.export.graph_cache import ensure_graph
from asyncembed.runtime.torch_file import read_torch_file
from tests.encoders.reference_one_pass import MORE_TEXTS, ROLES
from tests.support.external_data import move_weights_out
from tests.support.models import TEXTS, write_model
from tests.support.tokenizers import unigram
from tests.support.torch_files import write_torch_file

DATA = Path(__file__).parents[1] / "encoders" / "data" / "hybrid"

HYBRID_TEXTS = (*TEXTS, *MORE_TEXTS)
"""Those that there are reference values for."""

Layout: TypeAlias = Literal["weights", "own", "finished", "raw"]
"""Weights alone; BAAI/bge-m3's own, of a graph of hidden states; and two of graphs with all results as outputs."""

DIM = 8


def write_hybrid_model(directory: Path, layout: Layout = "own", cache_dir: Path | None = None) -> Path:
    """Write the model; the cache is for what has to be built on the way."""
    shutil.copytree(DATA, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("reference.npz"))
    if layout == "weights":
        return directory
    states = ensure_graph(DATA, cache_dir=cache_dir or directory / "cache")
    model = onnx.load(states)
    (directory / "model.safetensors").unlink()
    (directory / "onnx").mkdir()
    if layout == "own":
        _add(model, {"token_embeddings": _nodes_of_states(), "sentence_embedding": _nodes_of_dense(scales=True)})
    else:
        _add_all_results(model, directory, is_finished=layout == "finished")
        for name in ("sparse_linear.pt", "colbert_linear.pt", "modules.json", "1_Pooling/config.json"):
            (directory / name).unlink()
    path = directory / "onnx" / "model.onnx"
    onnx.save(model, path)
    move_weights_out(path)
    return directory


def write_bge_m3(directory: Path) -> Path:
    """One whose vectors are as long as those of BAAI/bge-m3, with all files that the catalogue knows of."""
    write_model(directory, tokenizer=unigram(), tokenizer_options=ROLES, token_types=False, dim=1024)
    move_weights_out(directory / "onnx" / "model.onnx")
    for name in ("modules.json", "1_Pooling/config.json"):
        (directory / "1_Pooling").mkdir(exist_ok=True)
        (directory / name).write_text((DATA / name).read_text("utf-8").replace("8", "1024"), "utf-8")
    for name, width in (("sparse_linear", 1), ("colbert_linear", 1024)):
        weight = np.random.default_rng(3).standard_normal((width, 1024)).astype(np.float32)
        write_torch_file(directory / f"{name}.pt", {"weight": weight, "bias": np.zeros(width, np.float32)})
    return directory


def hybrid_spec(directory: Path) -> ModelSpec:
    """The spec that is read from its files."""
    return spec_from_directory(directory, family="hybrid")


def expected(position: int) -> tuple[NDArray[np.float32], dict[int, float], NDArray[np.float32]]:
    """What the model's authors' own code gives for one of `HYBRID_TEXTS`: vector, weights by token, matrix."""
    arrays = np.load(DATA / "reference.npz")
    weights = zip(arrays[f"{position}_indices"].tolist(), arrays[f"{position}_values"].tolist(), strict=True)
    return arrays[f"{position}_dense"], dict(weights), arrays[f"{position}_rows"]


Nodes: TypeAlias = list[onnx.NodeProto]

STATES = "last_hidden_state"


def _nodes_of_states() -> tuple[Nodes, list[str | int]]:
    return [helper.make_node("Identity", [STATES], ["token_embeddings"])], ["batch", "tokens", DIM]


def _nodes_of_dense(*, scales: bool, output: str = "sentence_embedding") -> tuple[Nodes, list[str | int]]:
    nodes = [helper.make_node("Gather", [STATES, "first"], [f"{output}_raw"], axis=1)]
    operator = helper.make_node("LpNormalization", [f"{output}_raw"], [output], axis=-1, p=2)
    nodes.append(operator if scales else helper.make_node("Identity", [f"{output}_raw"], [output]))
    return nodes, ["batch", DIM]


def _add(model: onnx.ModelProto, outputs: dict[str, tuple[Nodes, list[str | int]]]) -> None:
    """Put these outputs in the place of the hidden states."""
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "first"))
    del graph.output[:]
    for name, (nodes, shape) in outputs.items():
        graph.node.extend(nodes)
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def _add_all_results(model: onnx.ModelProto, directory: Path, *, is_finished: bool) -> None:
    """Three results; finished: rows but the first, of unit length. Otherwise all rows, and nothing of unit length."""
    for name in ("sparse_linear", "colbert_linear"):
        tensors = read_torch_file(directory / f"{name}.pt")
        model.graph.initializer.append(numpy_helper.from_array(tensors["weight"].T.copy(), f"{name}.weight"))
        model.graph.initializer.append(numpy_helper.from_array(tensors["bias"], f"{name}.bias"))
    names = ("dense_vecs", "sparse_vecs", "colbert_vecs") if is_finished else ("dense", "sparse", "colbert")
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array([value], np.int64), name)
        for name, value in (("one", 1), ("end", 2**31), ("axis", 1), ("last", 2))
    )
    sparse = [
        helper.make_node("MatMul", [STATES, "sparse_linear.weight"], ["weighted"]),
        helper.make_node("Add", ["weighted", "sparse_linear.bias"], ["weights"]),
        helper.make_node("Relu", ["weights"], ["positive"]),
        helper.make_node("Identity", ["positive"], [names[1]])
        if is_finished
        else helper.make_node("Squeeze", ["positive", "last"], [names[1]]),
    ]
    colbert = [
        helper.make_node("MatMul", [STATES, "colbert_linear.weight"], ["projected"]),
        helper.make_node("Add", ["projected", "colbert_linear.bias"], ["vectors"]),
    ]
    if is_finished:
        colbert += [
            helper.make_node("Slice", ["vectors", "one", "end", "axis"], ["rest"]),
            helper.make_node("LpNormalization", ["rest"], [names[2]], axis=-1, p=2),
        ]
    else:
        colbert.append(helper.make_node("Identity", ["vectors"], [names[2]]))
    _add(
        model,
        {
            names[0]: _nodes_of_dense(scales=is_finished, output=names[0]),
            names[1]: (sparse, ["batch", "tokens", 1] if is_finished else ["batch", "tokens"]),
            names[2]: (colbert, ["batch", "rows", DIM]),
        },
    )
