"""Directories of small sparse models and rerankers, with the files of the real ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from asyncembed.catalogue.lookup import require_model
from asyncembed.catalogue.spec import Family, ModelSpec
from tests.support.graphs import DIM
from tests.support.models import write_model
from tests.support.tokenizers import wordpiece

BM25 = "Qdrant/bm25"
BM42 = "Qdrant/bm42-all-minilm-l6-v2-attentions"
MINICOIL = "Qdrant/minicoil-v1"
SPLADE = "prithivida/Splade_PP_en_v1"
IF_SPLADE = "opensearch-project/opensearch-neural-sparse-encoding-doc-v3-gte"
RERANKER = "Xenova/ms-marco-MiniLM-L-6-v2"

# Words with inflections, stop words, punctuation, repetitions, special tokens, an empty text and one over the limit.
TEXTS = (
    "how can you make it long, and longer; longest?",
    "",
    "x",
    "They said that there was a way to write about it: writing, writes, written (and rewriting).",
    "Zebra-crossings' 42nd day... snake_case!",
    "the the the the word words wordy",
    "[MASK] a day [SEP] ##ing many days",
    " ".join(["more times have days"] * 40),
)

STOP_WORDS = {
    "arabic": ("في", "من"), "danish": ("og", "i"), "dutch": ("de", "en"), "english": ("the", "a", "and", "is"),
    "finnish": ("ja", "on"), "french": ("le", "la", "et"), "german": ("der", "die", "und"), "greek": ("και", "το"),
    "hungarian": ("a", "az", "és"), "italian": ("il", "la", "e"), "norwegian": ("og", "i"),
    "portuguese": ("o", "a", "e"), "romanian": ("și", "la"), "russian": ("и", "в"), "spanish": ("el", "la", "y"),
    "swedish": ("och", "i"), "turkish": ("ve", "bir"),
}  # fmt: skip


def catalogued(name: str, family: Family = "sparse") -> ModelSpec:
    """The spec that the package has."""
    return require_model(name, family)


def write_bm25(directory: Path) -> Path:
    """BM25's files: an empty config and a list of stop words for each language but Tamil."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}", encoding="utf-8")
    for language, words in STOP_WORDS.items():
        (directory / f"{language}.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return directory


def write_splade(directory: Path, **options: Any) -> Path:
    """SPLADE++'s files."""
    return write_model(directory, model_file="model.onnx", outputs=("logits",), **options)


def write_if_splade(directory: Path, **options: Any) -> Path:
    """The files of inference-free SPLADE; some tokens have no weight, and some weights no token."""
    write_splade(directory, **options)
    tokens = sorted(wordpiece().get_vocab())
    weights = {token: 0.5 + position / 7 for position, token in enumerate(tokens) if position % 5}
    (directory / "idf.json").write_text(json.dumps(weights | {"[CLS]": 3.0, "nosuchtoken": 1.0}), encoding="utf-8")
    return directory


def write_bm42(directory: Path, **options: Any) -> Path:
    """BM42's files."""
    write_model(directory, model_file="model.onnx", outputs=("last_hidden_state", "attention_6"), **options)
    (directory / "stopwords.txt").write_text("the\na\nand\nit\nis\n", encoding="utf-8")
    return directory


def write_minicoil(directory: Path, **options: Any) -> Path:
    """The files of miniCOIL; the stop word "there" is in the vocabulary, which has "theres" as its relative."""
    write_model(directory, **options)
    (directory / "stopwords.txt").write_text("the\na\nand\nit\nis\nthere\n", encoding="utf-8")
    words = ["word", "day", "write", "there", "long", "make"]
    stems = {"word": "word", "wordi": "word", "day": "day", "write": "write", "longest": "long", "theres": "there"}
    vocabulary = {"vocab": words, "stem_mapping": stems}
    (directory / "minicoil.triplet.model.vocab").write_text(json.dumps(vocabulary), encoding="utf-8")
    weights = np.random.default_rng(3).normal(scale=0.1, size=(len(words) + 1, DIM, 4)).astype(np.float32)
    weights[2] = 0  # a word whose vector has no length
    np.save(directory / "minicoil.triplet.model.npy", weights)
    return directory


def write_reranker(directory: Path, **options: Any) -> Path:
    """A cross-encoder's files."""
    return write_model(directory, outputs=("scores",), **options)
