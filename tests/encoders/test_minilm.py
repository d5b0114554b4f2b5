"""The dense encoder on the real all-MiniLM-L6-v2, exported from its safetensors weights."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asyncembed.catalogue.lookup import require_model
from asyncembed.catalogue.pipeline import spec_from_directory
from asyncembed.encoders import build
from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.export.graph_cache import ensure_graph
from asyncembed.runtime.session import Array, SessionOptions
from tests.support.minilm import MINILM

pytestmark = pytest.mark.slow  # 90 MB of weights

REFERENCE = Path(__file__).parents[1] / "export" / "data"


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_graph(MINILM, cache_dir=tmp_path_factory.mktemp("graphs"))


def embed(config: EncoderConfig, texts: Sequence[str]) -> Array:
    results = build(config).encode(texts, Call()).results
    assert isinstance(results, np.ndarray)
    return results


def test_a_repo_gives_the_vectors_of_sentence_transformers(graph: Path) -> None:
    texts = json.loads((REFERENCE / "texts.json").read_text(encoding="utf-8"))
    expected = np.load(REFERENCE / "minilm.npz")["vectors"]
    spec = replace(spec_from_directory(MINILM), model_file=str(graph))
    config = EncoderConfig(spec=spec, directory=MINILM, session=SessionOptions(device="cpu", threads=2))
    np.testing.assert_allclose(embed(config, texts), expected, atol=1e-5)


def test_the_catalogued_name_gives_the_vectors_of_fastembed(graph: Path) -> None:
    """Values that fastembed 0.9.1 gives for its own fp32 file of the model."""
    catalogued = require_model("sentence-transformers/all-MiniLM-L6-v2", "text")
    config = EncoderConfig(
        spec=replace(catalogued, model_file=str(graph)), directory=MINILM, session=SessionOptions(device="cpu")
    )
    vectors = embed(config, ["hello world", ""])
    np.testing.assert_allclose(
        vectors[0, :5], [-0.03447724, 0.03102317, 0.00673497, 0.02610898, -0.03936200], atol=1e-5
    )
    np.testing.assert_allclose(vectors[1, :3], [-0.11883827, 0.04829872, -0.00254814], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert list(build(config).encode(["hello world", "", "word " * 1000], Call(mode="count")).results) == [4, 2, 512]
