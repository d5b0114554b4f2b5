"""Late interaction models of every kind: the data of the real ones, over small tokenizers and graphs."""

from pathlib import Path
from typing import Any

from asyncembed.catalogue.spec import LocalSource, ModelSpec
from tests.support.graphs import DIM
from tests.support.models import MODEL_FILE, write_model
from tests.support.tokenizers import byte_level_bpe, unigram, wordpiece

COLBERT = {
    "query_marker_id": 1,
    "document_marker_id": 2,
    "mask_token": "[MASK]",
    "query_pad_length": 31,
    "reserved_markers": 1,
    "skip_punctuation": True,
    "skip_padding_id": True,
}
JINA = COLBERT | {
    "query_marker_id": 250002,
    "document_marker_id": 250003,
    "mask_token": "<mask>",
    "query_mask_attended": True,
}
LATEON = {
    "query_marker_id": 50368,
    "document_marker_id": 50369,
    "skip_punctuation": True,
    "normalize_queries": True,
}
MLATEON = {"query_marker_id": 256000, "document_marker_id": 256001, "normalize_queries": True}

KINDS: dict[str, tuple[dict[str, Any], str, bool]] = {
    "colbert-ir/colbertv2.0": (COLBERT, "wordpiece", True),
    "jinaai/jina-colbert-v2": (JINA, "unigram", True),
    "lightonai/LateOn": (LATEON, "wordpiece", True),
    "lightonai/mLateOn": (MLATEON, "byte_level_bpe", True),
    "jinaai/jina-embeddings-v2-small-en-tokens": ({}, "wordpiece", False),
}
"""Name → settings, tokenizer, whether documents are scaled to unit length."""

MODEL_FILES = {
    "colbert-ir/colbertv2.0": "model.onnx",
    "lightonai/LateOn": "model.onnx",
    "lightonai/mLateOn": "model.onnx",
}


def write_late_interaction_model(directory: Path, name: str, **graph: Any) -> ModelSpec:
    """A small model of the kind of `name`, with the files where the reference looks for them."""
    settings, tokenizer, normalizes = KINDS[name]
    make = {"wordpiece": wordpiece, "unigram": unigram, "byte_level_bpe": byte_level_bpe}[tokenizer]
    pad = "[PAD]" if tokenizer == "wordpiece" else "<pad>"
    mask = "[MASK]" if tokenizer == "wordpiece" else "<mask>"
    file = MODEL_FILES.get(name, MODEL_FILE)
    write_model(
        directory,
        tokenizer=make(),
        tokenizer_options={"pad_token": pad, "special_tokens": {"pad_token": pad, "mask_token": mask}},
        model_file=file,
        wrap_ids=True,
        **({"token_types": False} | graph),
    )
    return ModelSpec(
        name=name,
        family="late_interaction",
        encoder="colbert",
        sources=(LocalSource(directory),),
        model_file=file,
        dim=DIM,
        normalize=normalizes,
        settings=settings,
    )
