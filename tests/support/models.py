"""Model directories: a graph, a tokenizer, and the configs beside them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from asyncembed.catalogue import lookup
from asyncembed.catalogue.spec import LocalOrigin, ModelSpec
from tests.support.graphs import DIM, write_text_graph
from tests.support.safetensors_files import write_tensors
from tests.support.tokenizers import wordpiece, write_tokenizer

if TYPE_CHECKING:
    from tests.hub.server import Content

MODEL_FILE = "onnx/model.onnx"

TEXTS = (
    "how can you make it long",
    "",
    "x",
    "they said that there was a way to write about it, and that they would have time if you can see the day",
    "Zebra 42!",
    "the the the the",
    " ".join(["more"] * 100),
)


def write_model(
    directory: Path,
    *,
    tokenizer: Tokenizer | None = None,
    tokenizer_options: dict[str, Any] | None = None,
    model_file: str = MODEL_FILE,
    **graph: Any,
) -> Path:
    """A directory with the files of a small text model; `graph` goes to `write_text_graph`."""
    write_tokenizer(directory, tokenizer or wordpiece(), **(tokenizer_options or {}))
    (directory / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    write_text_graph(directory / model_file, **graph)
    return directory


def write_self_describing_model(directory: Path, **graph: Any) -> Path:
    """The same, which says itself how it pools, so that it can be opened by its directory alone."""
    write_model(directory, model_file="model.onnx", **graph)
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (directory / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    return directory


def write_bert_weights(directory: Path, *, dim: int = DIM) -> Path:
    """The weights of a BERT of one layer in place of the graph of a model that `write_model` has written."""
    (directory / MODEL_FILE).unlink(missing_ok=True)
    random = np.random.default_rng(4)
    words = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab_size()
    layer, shapes = (
        "encoder.layer.0.",
        {"word_embeddings": words, "position_embeddings": 512, "token_type_embeddings": 2},
    )
    tensors = {f"embeddings.{name}.weight": random.standard_normal((rows, dim)) for name, rows in shapes.items()}
    maps = [f"attention.self.{name}" for name in ("query", "key", "value")]
    for name in (*maps, "attention.output.dense", "intermediate.dense", "output.dense"):
        tensors[f"{layer}{name}.weight"] = random.standard_normal((dim, dim)) / dim**0.5
        tensors[f"{layer}{name}.bias"] = random.standard_normal(dim)
    for norm in ("embeddings.LayerNorm", f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"):
        tensors |= {f"{norm}.weight": np.ones(dim), f"{norm}.bias": np.zeros(dim)}
    write_tensors(directory / "model.safetensors", {name: each.astype(np.float32) for name, each in tensors.items()})
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": dim, "vocab_size": words}
    (directory / "config.json").write_text(json.dumps({"model_type": "bert", **sizes}), encoding="utf-8")
    return directory


def spec_for(directory: Path, **fields: Any) -> ModelSpec:
    """A spec of a dense text model whose files lie in `directory`."""
    defaults: dict[str, Any] = {
        "name": "tests/small",
        "family": "text",
        "encoder": "dense",
        "sources": (LocalOrigin(directory),),
        "model_file": MODEL_FILE,
        "dim": DIM,
    }
    return ModelSpec(**(defaults | fields))


def files_of(directory: Path) -> dict[str, "Content"]:
    """A directory's files by their path in it, as a hub serves them."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def forget_registered_models() -> None:
    """Leave the models that the package brings, and no other."""
    lookup._catalogue.cache_clear()
