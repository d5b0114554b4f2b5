"""Static models against fastembed on the same small directories."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed import TextEmbedding

from asyncembed.catalogue.lookup import require_model
from asyncembed.catalogue.pipeline import spec_from_directory
from asyncembed.catalogue.spec import ModelSpec
from asyncembed.encoders import build
from asyncembed.encoders.encoder import Call, Encoder, EncoderConfig
from asyncembed.errors import ModelLoadError, OptionError, UnsupportedModelError
from asyncembed.runtime.session import Array
from tests.support.models import TEXTS
from tests.support.safetensors_files import write_tensors
from tests.support.static_models import DIM, write_static
from tests.support.tokenizers import byte_level_bpe, unigram, wordpiece

RANDOM = np.random.default_rng(0)
NAME = "minishlab/potion-base-8M"

MIXED = (*TEXTS, "日本 the", "the way " * 700, "[MASK] of Été", "日本", "of " * 9000)


def static_encoder(directory: Path, **fields: Any) -> Encoder:
    spec = require_model(NAME, "text")
    known = {field: getattr(spec, field) for field in ModelSpec.__dataclass_fields__}
    return build(EncoderConfig(spec=ModelSpec(**(known | {"dim": DIM} | fields)), directory=directory))


def vectors(encoder: Encoder, texts: Any = MIXED, **call: Any) -> Array:
    encoded = encoder.encode(texts, Call(**call))
    assert not encoded.failures
    assert isinstance(encoded.results, np.ndarray)
    return encoded.results


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("tokenizer", [wordpiece, unigram, byte_level_bpe])
def test_vectors_are_those_of_fastembed(tokenizer: Any, reduced: bool, dtype: Any, tmp_path: Path) -> None:
    write_static(tmp_path, tokenizer(), reduced=reduced, dtype=dtype)
    theirs = TextEmbedding(NAME, specific_model_path=str(tmp_path))
    ours = static_encoder(tmp_path)
    expected: Array = np.stack([np.asarray(vector) for vector in theirs.embed(MIXED)])
    assert vectors(ours).dtype == np.float32
    np.testing.assert_allclose(vectors(ours), expected, atol=1e-5)
    alone = np.concatenate([vectors(ours, [text]) for text in MIXED])
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    counts = ours.encode(MIXED, Call(mode="count")).results
    assert list(counts) == [theirs.token_count([text]) for text in MIXED]


def test_a_text_without_known_tokens_gives_zeros(tmp_path: Path) -> None:
    write_static(tmp_path, wordpiece())
    assert not vectors(static_encoder(tmp_path), ["", "日本"]).any()


def test_wrong_texts_fail_alone(tmp_path: Path) -> None:
    write_static(tmp_path, wordpiece())
    encoder = static_encoder(tmp_path)
    encoded = encoder.encode(["the", 1, "\ud800", "the " * 513, "the " * 9000, "the " * 512], Call(long="error"))
    assert set(encoded.failures) == {1, 2, 3, 4}
    assert isinstance(encoded.results, np.ndarray)
    np.testing.assert_allclose(encoded.results[[0, 5]], vectors(encoder, ["the", "the"]), atol=1e-5)
    assert vectors(encoder, []).shape == (0, DIM)


def test_prompts_and_forms_are_those_of_other_models(tmp_path: Path) -> None:
    write_static(tmp_path, wordpiece())
    encoder = static_encoder(tmp_path)
    np.testing.assert_array_equal(vectors(encoder, ["day"], prompt="the "), vectors(encoder, ["the day"]))
    assert vectors(encoder, truncate_dim=2, dtype="float16").dtype == np.float16
    with pytest.raises(OptionError, match="no tasks"):
        vectors(encoder, task=1)


def test_the_static_module_of_sentence_transformers_averages_all_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "0_StaticEmbedding"
    folder.mkdir()
    tokenizer = wordpiece()
    matrix = RANDOM.standard_normal((tokenizer.get_vocab_size(), DIM)).astype(np.float32)
    write_tensors(folder / "model.safetensors", {"embedding.weight": matrix})
    tokenizer.save(str(folder / "tokenizer.json"))
    module = "sentence_transformers.models.StaticEmbedding"
    modules = [{"idx": 0, "name": "0", "path": folder.name, "type": module}]
    (tmp_path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    encoder = build(EncoderConfig(spec=spec_from_directory(tmp_path), directory=tmp_path))
    text = "the way 日本 of the"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    np.testing.assert_allclose(vectors(encoder, [text]), [matrix[ids].mean(axis=0, dtype=np.float64)], atol=1e-5)
    long = "the way " * 2000
    ids = tokenizer.encode(long, add_special_tokens=False).ids
    np.testing.assert_allclose(vectors(encoder, [long]), [matrix[ids].mean(axis=0, dtype=np.float64)], atol=1e-5)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_static(tmp_path, wordpiece())
    with pytest.raises(UnsupportedModelError, match="dim=5"):
        static_encoder(tmp_path, dim=5)
    write_tensors(tmp_path / "model.safetensors", {"vectors": np.zeros((2, 2), dtype=np.float32)})
    with pytest.raises(ModelLoadError, match="no tensor `embeddings`, only vectors"):
        static_encoder(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"embeddings": np.zeros(DIM, np.float32)},
        {"embeddings": np.zeros((7, DIM, 1), np.float32)},
        {"weights": np.zeros((5, 5), np.float32)},
        {"mapping": np.zeros((5, 5), np.int64)},
        {"mapping": np.full(90, 7, np.int64)},
        {"mapping": np.full(90, -1, np.int64)},
        {"mapping": np.zeros(90, np.float32)},
    ],
)
def test_tensors_of_shapes_that_do_not_fit_are_a_load_error(changed: dict[str, Array], tmp_path: Path) -> None:
    write_static(tmp_path, wordpiece(), reduced=True)
    write_tensors(tmp_path / "model.safetensors", {"embeddings": np.zeros((7, DIM), np.float32)} | changed)
    with pytest.raises(ModelLoadError, match="no matrix with a row for each token"):
        static_encoder(tmp_path)


def test_a_long_text_taken_whole_has_all_its_tokens(tmp_path: Path) -> None:
    write_static(tmp_path, wordpiece())
    whole = vectors(static_encoder(tmp_path), ["the " * 600 + "day " * 300, "the"], long="mean")
    free = vectors(static_encoder(tmp_path, max_length=10_000), ["the " * 600 + "day " * 300, "the"])
    np.testing.assert_allclose(whole, free, atol=1e-5)
