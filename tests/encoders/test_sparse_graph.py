"""The sparse models that have a graph, against fastembed on the same files."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed import SparseTextEmbedding as Reference
from fastembed.common.utils import get_all_punctuation

from asyncembed.encoders import build
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig
from asyncembed.encoders.splade import weigh
from asyncembed.errors import ModelLoadError, OptionError, UnsupportedModelError
from asyncembed.results import Ragged, SparseEmbedding
from tests.support.sparse_models import (
    BM42,
    IF_SPLADE,
    MINICOIL,
    SPLADE,
    TEXTS,
    catalogued,
    write_bm42,
    write_if_splade,
    write_minicoil,
    write_splade,
)

WRITERS: dict[str, Callable[..., Path]] = {
    SPLADE: write_splade,
    IF_SPLADE: write_if_splade,
    BM42: write_bm42,
    MINICOIL: write_minicoil,
}
QUERY = Call(mode="query")


def load(name: str, directory: Path, **options: Any) -> Any:
    return build(EncoderConfig(spec=catalogued(name), directory=directory, **options))


def vectors(encoded: Encoded) -> Ragged[SparseEmbedding]:
    assert isinstance(encoded.results, Ragged)
    return encoded.results


@pytest.fixture(autouse=True, scope="module")
def _quick_reference() -> Iterator[None]:
    """Have fastembed collect all punctuation of Unicode once, not with each model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastembed.sparse.utils.sparse_vectors_converter.get_all_punctuation", cache(get_all_punctuation))
        yield


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp("model")) for name, write in WRITERS.items()}


def assert_same(ours: Any, theirs: Reference, texts: tuple[str, ...] = TEXTS) -> None:
    for batch in (list(texts), [texts[0]]):
        for call, expected in ((Call(), theirs.embed(batch)), (QUERY, theirs.query_embed(batch))):
            for found, wanted in zip(vectors(ours.encode(batch, call)), expected, strict=True):
                assert found.indices.tolist() == wanted.indices.tolist()
                np.testing.assert_allclose(found.values, wanted.values, rtol=1e-4, atol=1e-5)
                assert (found.indices.dtype.name, found.values.dtype.name) == ("int32", "float32")
    assert sum(ours.encode(texts, Call(mode="count")).results) == theirs.token_count(list(texts))


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_documents_and_queries_are_those_of_fastembed(name: str, directories: dict[str, Path]) -> None:
    directory = directories[name]
    assert_same(load(name, directory), Reference(name, specific_model_path=str(directory)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [(BM42, {"alpha": 0.8}), (BM42, {"alpha": 1}), (MINICOIL, {"k": 0.7, "b": 0.3, "avg_len": 9.5})],
)
def test_keywords_mean_what_they_mean_in_fastembed(
    name: str, settings: dict[str, Any], directories: dict[str, Path]
) -> None:
    directory = directories[name]
    theirs = Reference(name, specific_model_path=str(directory), **settings)
    assert_same(load(name, directory, keywords=settings), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_the_side_that_is_padded_makes_no_difference(name: str, directories: dict[str, Path], tmp_path: Path) -> None:
    WRITERS[name](tmp_path, tokenizer_options={"padding_side": "left"})
    left = vectors(load(name, tmp_path).encode(TEXTS, Call()))
    for found, expected in zip(left, vectors(load(name, directories[name]).encode(TEXTS, Call())), strict=True):
        assert found.indices.tolist() == expected.indices.tolist()
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_text_has_the_same_vector_alone_and_in_any_batch(name: str, directories: dict[str, Path]) -> None:
    encoder = load(name, directories[name])
    for call in (Call(), QUERY):
        together = vectors(encoder.encode(TEXTS, call))
        for position, text in enumerate(TEXTS):
            alone = vectors(encoder.encode([text], call))[0]
            assert alone.indices.tolist() == together[position].indices.tolist()
            np.testing.assert_allclose(alone.values, together[position].values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", WRITERS)
def test_input_that_is_no_text_fails_alone(name: str, directories: dict[str, Path]) -> None:
    inputs: list[Any] = ["you write", None, "\ud800", "you write"]
    for call in (Call(), QUERY):
        encoded = load(name, directories[name]).encode(inputs, call)
        assert sorted(encoded.failures) == [1, 2]
        first, *middle, last = vectors(encoded)
        assert first == last
        assert len(first) > 0
        assert [len(some) for some in middle] == [0, 0]


@pytest.mark.parametrize("name", WRITERS)
def test_a_keyword_of_another_family_is_refused(name: str, directories: dict[str, Path]) -> None:
    with pytest.raises(OptionError, match="no keyword 'token_max_length'"):
        load(name, directories[name], keywords={"token_max_length": 3})


@pytest.mark.parametrize("name", [IF_SPLADE, BM42])
def test_queries_that_need_no_inference_need_no_graph_either(
    name: str, directories: dict[str, Path], tmp_path: Path
) -> None:
    WRITERS[name](tmp_path)
    (tmp_path / "model.onnx").unlink()
    encoder = load(name, tmp_path)
    expected = vectors(load(name, directories[name]).encode(TEXTS, QUERY))
    assert list(vectors(encoder.encode(TEXTS, QUERY))) == list(expected)
    with pytest.raises(ModelLoadError, match=r"model\.onnx"):
        encoder.encode(TEXTS, Call())


def test_splade_computed_by_hand() -> None:
    logits = np.array([[1, -2, 0, 1e-9], [0.5, -1, 0, 0], [9, 9, 9, 9]], dtype=np.float32)
    indices, values = weigh(np.array([5, 6]), logits, slice(0, 2), is_query=False)
    assert indices.tolist() == [0]
    np.testing.assert_allclose(values, [np.log(2)], rtol=1e-6)
    indices, values = weigh(np.array([5]), np.array([[3, 0, 1]], dtype=np.float16), slice(0, 1), is_query=True)
    np.testing.assert_allclose(values, [1.3862943649291992, 0.6931471824645996], rtol=1e-6)


def test_inference_free_splade_drops_special_tokens(directories: dict[str, Path]) -> None:
    encoder = load(IF_SPLADE, directories[IF_SPLADE])
    for call in (Call(), QUERY):
        for vector in vectors(encoder.encode(TEXTS, call)):
            assert not set(vector.indices.tolist()) & set(range(5))


def test_the_weights_of_queries_must_be_there(directories: dict[str, Path], tmp_path: Path) -> None:
    write_splade(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"idf\.json"):
        load(IF_SPLADE, tmp_path)
    (tmp_path / "idf.json").write_text('["no object"]', "utf-8")
    with pytest.raises(ModelLoadError, match=r"idf\.json is no object"):
        load(IF_SPLADE, tmp_path)


def test_bm42_takes_the_weightiest_word_of_a_stem(tmp_path: Path) -> None:
    write_bm42(tmp_path)
    encoder = load(BM42, tmp_path)
    (document,) = vectors(encoder.encode(["write writes write"], Call()))
    (query,) = vectors(encoder.encode(["write writes write"], QUERY))
    assert len(document) == len(query) == 1
    assert query.values.tolist() == [1.0]


@pytest.mark.slow
def test_words_of_minicoil_that_share_an_index_stay_apart(tmp_path: Path) -> None:
    """The twins have one hash; a database adds their entries up."""
    write_minicoil(tmp_path)
    theirs = Reference(MINICOIL, specific_model_path=str(tmp_path))
    assert_same(
        load(MINICOIL, tmp_path), theirs, ("elephant aueqjgte elephant", "there theres", "days [SEP] a day there")
    )


@pytest.mark.parametrize("damage", ["missing", "shape", "json"])
def test_broken_files_of_minicoil_are_named(damage: str, tmp_path: Path) -> None:
    write_minicoil(tmp_path)
    match damage:
        case "missing":
            (tmp_path / "minicoil.triplet.model.npy").unlink()
        case "shape":
            np.save(tmp_path / "minicoil.triplet.model.npy", np.zeros((2, 8, 4), np.float32))
        case "json":
            (tmp_path / "minicoil.triplet.model.vocab").write_text(json.dumps({"vocab": []}), "utf-8")
    with pytest.raises(ModelLoadError, match=r"minicoil\.triplet\.model"):
        load(MINICOIL, tmp_path)
