"""The real all-MiniLM-L6-v2, against what sentence-transformers computes from the same weights with torch."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from tokenizers import Tokenizer

from asyncembed.export.graph_cache import ensure_graph
from tests.export.conftest import DATA
from tests.support.minilm import MINILM

pytestmark = pytest.mark.slow  # 90 MB of weights

TEXTS: list[str] = json.loads((DATA / "texts.json").read_bytes())


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Any:
    graph = ensure_graph(MINILM, cache_dir=tmp_path_factory.mktemp("cache"))
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


def embed(session: Any, texts: list[str]) -> npt.NDArray[np.float32]:
    """Mean pooling and normalisation, limit 256, as the model's own files say."""
    tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(texts)
    mask = np.array([encoding.attention_mask for encoding in encodings])
    inputs = {
        "input_ids": np.array([encoding.ids for encoding in encodings]),
        "attention_mask": mask,
        "token_type_ids": np.array([encoding.type_ids for encoding in encodings]),
    }
    (hidden,) = session.run(["last_hidden_state"], inputs)
    summed = (hidden * mask[..., None]).sum(axis=1, dtype=np.float32)
    return np.asarray(summed / np.linalg.norm(summed, axis=1, keepdims=True), np.float32)


def test_vectors_of_a_padded_batch_are_those_of_sentence_transformers(session: Any) -> None:
    expected = np.load(DATA / "minilm.npz")["vectors"]
    assert np.abs(embed(session, TEXTS) - expected).max() < 1e-5


def test_vectors_of_single_texts_are_those_of_sentence_transformers(session: Any) -> None:
    expected = np.load(DATA / "minilm.npz")["vectors"]
    alone = np.concatenate([embed(session, [text]) for text in TEXTS])
    assert np.abs(alone - expected).max() < 1e-5
    assert np.abs(alone - embed(session, TEXTS)).max() < 1e-6
