"""Late interaction: the numbers of the reference, for every kind of model, whatever the batch."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed import LateInteractionTextEmbedding
from fastembed.late_interaction.token_embeddings import TokenEmbeddingsModel

from asyncembed.encoders.colbert import LateInteractionEncoder
from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.errors import InputError, UnsupportedModelError
from asyncembed.results import matrix_batch
from tests.support.late_interaction import TOKENIZERS, write_late_interaction_model
from tests.support.models import TEXTS

DOCUMENTS = (*TEXTS, "Hello, world! (a)", "a [PAD] b <pad> c", "?", "[MASK] it. <mask>")


def load(directory: Path, name: str, **fields: Any) -> Any:
    spec = write_late_interaction_model(directory, name)
    return LateInteractionEncoder(EncoderConfig(spec=spec, directory=directory, **fields))


def reference(directory: Path, name: str) -> Any:
    if name.endswith("-tokens"):
        return TokenEmbeddingsModel(name, specific_model_path=str(directory))
    return LateInteractionTextEmbedding(name, specific_model_path=str(directory))


def assert_equal(results: Any, expected: Any) -> None:
    assert len(results) == len(expected)
    for result, right in zip(results, expected, strict=True):
        assert isinstance(result, np.ndarray)
        assert result.dtype == np.float32
        assert result.shape == right.shape
        np.testing.assert_allclose(result, right, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_documents_equal_the_reference(tmp_path: Path, name: str) -> None:
    encoder = load(tmp_path, name, max_batch_tokens=150)
    expected = list(reference(tmp_path, name).embed(list(DOCUMENTS)))
    encoded = encoder.encode(DOCUMENTS, Call())
    assert_equal(encoded.results, expected)
    assert encoded.padded_tokens >= encoded.tokens > 0
    assert_equal(encoder.encode(DOCUMENTS, Call(mode="passage")).results, expected)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if not name.endswith("-tokens")])
def test_queries_equal_the_reference_although_they_share_a_batch(tmp_path: Path, name: str) -> None:
    encoder = load(tmp_path, name)
    expected = list(reference(tmp_path, name).query_embed(list(DOCUMENTS)))
    assert len({len(matrix) for matrix in expected}) > 1
    assert_equal(encoder.encode(DOCUMENTS, Call(mode="query")).results, expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["embed", "query"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_batch_equals_its_inputs_alone(tmp_path: Path, name: str, mode: Any) -> None:
    encoder = load(tmp_path, name)
    call = Call(mode=mode)
    alone = [encoder.encode([text], call).results[0] for text in DOCUMENTS]
    assert_equal(encoder.encode(DOCUMENTS, call).results, alone)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["embed", "query"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_padding_on_the_left_moves_no_vector(tmp_path: Path, name: str, mode: Any) -> None:
    spec = write_late_interaction_model(tmp_path, name)
    right = LateInteractionEncoder(EncoderConfig(spec=spec, directory=tmp_path))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["padding_side"] = "left"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    left = LateInteractionEncoder(EncoderConfig(spec=spec, directory=tmp_path))
    assert left.tokenizer.pads_left
    call = Call(mode=mode)
    assert_equal(left.encode(DOCUMENTS, call).results, right.encode(DOCUMENTS, call).results)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_token_counts_equal_the_reference(tmp_path: Path, name: str) -> None:
    encoder = load(tmp_path, name)
    counter = reference(tmp_path, name)
    for role in ("document", "query"):
        for extended in (False, True):
            call = Call(mode="count", include_extension=extended, role=role)
            counts = encoder.encode(DOCUMENTS, call).results
            if name.endswith("-tokens"):
                assert sum(counts) == counter.token_count(list(DOCUMENTS))
                continue
            expected = [
                counter.token_count(text, is_doc=role == "document", include_extension=extended) for text in DOCUMENTS
            ]
            assert list(counts) == expected


def test_six_rows_for_a_text_with_punctuation(tmp_path: Path) -> None:
    """Start, marker, two words, "a" and the end; commas and brackets have no vector."""
    encoder = load(tmp_path, "colbert-ir/colbertv2.0")
    (matrix,) = encoder.encode(["the, of! (a)"], Call()).results
    assert np.shape(matrix) == (6, 8)


def test_a_graph_with_token_types_works(tmp_path: Path) -> None:
    """The reference fails on such a graph, as it does not lengthen the token types by the marker."""
    spec = write_late_interaction_model(tmp_path, "colbert-ir/colbertv2.0", token_types=True)
    encoder: Any = LateInteractionEncoder(EncoderConfig(spec=spec, directory=tmp_path))
    assert len(encoder.encode(["the way"], Call(mode="query")).results[0]) == 32


def test_a_wrong_input_fails_alone(tmp_path: Path) -> None:
    encoder = load(tmp_path, "colbert-ir/colbertv2.0")
    encoded = encoder.encode(["the way", 7, "of it"], Call())
    assert list(encoded.failures) == [1]
    assert isinstance(encoded.failures[1], InputError)
    alone = [encoder.encode([text], Call()).results[0] for text in ("the way", "of it")]
    assert_equal([encoded.results[0], encoded.results[2]], alone)
    assert encoder.encode([7], Call()).failures


def test_max_length_counts_the_marker(tmp_path: Path) -> None:
    for name in TOKENIZERS:
        encoder = load(tmp_path / name, name, max_length=12)
        assert encoder.info.max_length == 12
        assert encoder.encode(["the " * 50], Call()).tokens == 12


def test_a_tokenizer_without_the_mask_token_is_refused(tmp_path: Path) -> None:
    write_late_interaction_model(tmp_path, "jinaai/jina-colbert-v2")
    spec = write_late_interaction_model(tmp_path, "colbert-ir/colbertv2.0")
    write_late_interaction_model(tmp_path, "lightonai/mLateOn")
    with pytest.raises(UnsupportedModelError, match="MASK"):
        LateInteractionEncoder(EncoderConfig(spec=spec, directory=tmp_path))


def test_a_batch_of_matrices_travels_as_one_array() -> None:
    vectors = np.arange(24, dtype=np.float32).reshape(6, 4)
    batch = matrix_batch(vectors, [1, 0, 3, 2])
    copy = pickle.loads(pickle.dumps(batch))
    assert len(pickle.dumps(batch)) < vectors.nbytes + 400
    assert [len(matrix) for matrix in copy] == [1, 0, 3, 2]
    np.testing.assert_array_equal(copy[2], vectors[1:4])
    np.testing.assert_array_equal(copy[-1], vectors[4:])
    assert len(copy[1:3]) == 2
    with pytest.raises(IndexError):
        copy[4]
