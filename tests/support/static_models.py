"""Directories of small static models."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from tests.support.safetensors_files import write_tensors

if TYPE_CHECKING:
    from asyncembed.runtime.session import Array

DIM = 6
RANDOM = np.random.default_rng(0)


def write_static(directory: Path, tokenizer: Tokenizer, *, reduced: bool = False, dtype: Any = np.float32) -> Path:
    """A static model as model2vec saves it; `reduced`: with a mapping from tokens to fewer rows, and weights."""
    count = tokenizer.get_vocab_size()
    rows = 7 if reduced else count
    tensors: dict[str, Array] = {"embeddings": RANDOM.standard_normal((rows, DIM)).astype(dtype)}
    if reduced:
        tensors["mapping"] = RANDOM.integers(0, rows, count)
        tensors["weights"] = RANDOM.random(count)
    write_tensors(directory / "model.safetensors", tensors)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"model_type": "model2vec", "normalize": True, "hidden_dim": DIM}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory
