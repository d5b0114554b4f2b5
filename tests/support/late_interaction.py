"""Late interaction models of every kind: the data of the real ones, over small tokenizers and graphs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from asyncembed.catalogue.lookup import require_model
from asyncembed.catalogue.spec import LocalOrigin, ModelSpec
from tests.support.graphs import DIM
from tests.support.models import write_model
from tests.support.tokenizers import byte_level_bpe, unigram, wordpiece

TOKENIZERS = {
    "colbert-ir/colbertv2.0": "wordpiece",
    "jinaai/jina-colbert-v2": "unigram",
    "lightonai/LateOn": "wordpiece",
    "lightonai/mLateOn": "byte_level_bpe",
    "jinaai/jina-embeddings-v2-small-en-tokens": "wordpiece",
}
"""The name of one model of each kind → the tokenizer that it gets here."""


def write_late_interaction_model(directory: Path, name: str, **graph: Any) -> ModelSpec:
    """A small model of the kind of `name`, with the files where the reference looks for them."""
    tokenizer = TOKENIZERS.get(name, "wordpiece")
    make = {"wordpiece": wordpiece, "unigram": unigram, "byte_level_bpe": byte_level_bpe}[tokenizer]
    pad, mask = ("[PAD]", "[MASK]") if tokenizer == "wordpiece" else ("<pad>", "<mask>")
    spec = require_model(name, "late_interaction")
    assert spec.model_file is not None
    write_model(
        directory,
        tokenizer=make(),
        tokenizer_options={"pad_token": pad, "special_tokens": {"pad_token": pad, "mask_token": mask}},
        model_file=spec.model_file,
        wrap_ids=True,
        **({"token_types": False} | graph),
    )
    return replace(spec, sources=(LocalOrigin(directory),), dim=DIM)
