from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed import SparseTextEmbedding as Reference
from fastembed.common.utils import get_all_punctuation, remove_non_alphanumeric
from fastembed.sparse.utils.tokenizer import SimpleTokenizer
from hypothesis import given
from hypothesis import strategies as st

from asyncembed.encoders import build
from asyncembed.encoders.bm25 import split_words
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig
from asyncembed.encoders.stemming import LANGUAGES
from asyncembed.errors import ModelLoadError, OptionError
from asyncembed.results import Ragged, SparseEmbedding
from tests.support.sparse_models import BM25, catalogued, write_bm25
from tests.support.stemmers import FirstLetters

QUERY = Call(mode="query")

TEXTS = (
    "The quick brown foxes, jumping over the lazy dogs; the dogs didn't mind.",
    "",
    "... !!! ___ _",
    "Don't C++ 3.14 snake_case __init__ ½ ² № x" + "x" * 40,
    "café cafe\u0301 naïve İstanbul ΣΑΣ ΣΑΣ'Σ ΟΔΟΣ. Ⅳ ⅳ",
    "generously generous generousness run running runs ran",
    "Наши собаки бежали быстрее других собак; и в лесу бегают волки",
    "Die Häuser und der Häuserkampf gehören zu den größten Straßen",
    "في البيت الكبير من المدن العربية والكتب",
    "குழந்தைகள் பள்ளிக்கு செல்கிறார்கள்",
    "東京は日本の首都です。 東京は大きい",
    "tab\tnew\nline\u2028separator\u00a0space",
    "lone \udc80 surrogate",
)


def load(directory: Path, **settings: Any) -> Any:
    return build(EncoderConfig(spec=catalogued(BM25), directory=directory, keywords=settings))


def vectors(encoded: Encoded) -> Ragged[SparseEmbedding]:
    assert isinstance(encoded.results, Ragged)
    return encoded.results


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bm25(tmp_path_factory.mktemp("bm25"))


@pytest.fixture(autouse=True, scope="module")
def _quick_reference() -> Iterator[None]:
    """Have fastembed collect all punctuation of Unicode once, not with each model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastembed.sparse.bm25.get_all_punctuation", cache(get_all_punctuation))
        yield


def assert_same(directory: Path, texts: tuple[str, ...] = TEXTS, **settings: Any) -> None:
    theirs = Reference(BM25, specific_model_path=str(directory), **settings)
    ours = load(directory, **settings)
    for text in ([*texts], [texts[0]]):
        for found, expected in zip(vectors(ours.encode(text, Call())), theirs.embed(text), strict=True):
            assert found.indices.tolist() == expected.indices.tolist()
            np.testing.assert_allclose(found.values, expected.values, rtol=1e-6)
            assert (found.indices.dtype.name, found.values.dtype.name) == ("int32", "float32")
        for found, expected in zip(vectors(ours.encode(text, QUERY)), theirs.query_embed(text), strict=True):
            assert sorted(found.indices.tolist()) == sorted(expected.indices.tolist())
            assert found.values.tolist() == expected.values.tolist()
    assert sum(ours.encode(texts, Call(mode="count")).results) == theirs.token_count(list(texts))


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_gives_the_vectors_of_fastembed(language: str, directory: Path) -> None:
    assert_same(directory, language=language)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"k": 0.9, "b": 0.2, "avg_len": 7.0},
        {"k": 0, "b": 1, "avg_len": 5},
        {"token_max_length": 4},
        {"disable_stemmer": True},
        {"disable_stemmer": True, "language": "klingon", "stopwords": {"DOGS", "the"}},
        {"stemmer": FirstLetters()},
        {"stemmer": FirstLetters(), "language": "klingon"},
        {"stopwords": set()},
        {"stopwords": {"Fox", "quick"}, "language": "german"},
    ],
    ids=", ".join,
)
def test_every_keyword_means_what_it_means_in_fastembed(settings: dict[str, Any], directory: Path) -> None:
    assert_same(directory, **settings)


@pytest.mark.slow
def test_a_directory_without_stop_words_has_none(tmp_path: Path) -> None:
    assert_same(tmp_path)


def test_values_computed_by_hand(tmp_path: Path) -> None:
    encoder = load(tmp_path, stopwords=())
    one, two, twelve = vectors(encoder.encode(["hello", "hello world", "cat cat a b c d e f g h i j"], Call()))
    assert one.as_dict() == {613153351: np.float32(1.6877434821696136)}
    assert two.as_dict() == {613153351: np.float32(1.6832038254632398), 74040069: np.float32(1.6832038254632398)}
    assert twelve.as_dict()[1751422759] == np.float32(1.8785857238158774)
    assert twelve.values[1:].tolist() == [np.float32(1.6391152502910362)] * 10
    query = vectors(encoder.encode(["東京 running runs run"], QUERY))[0]
    assert query.as_dict() == {1765863102: 1.0, 243905464: 1.0}


def test_a_text_has_the_same_vector_alone_and_in_any_batch(directory: Path) -> None:
    encoder = load(directory)
    together = vectors(encoder.encode(TEXTS, Call()))
    for position, text in enumerate(TEXTS):
        assert vectors(encoder.encode([text], Call()))[0] == together[position]


# Two words with one hash, and a word whose hash is -2**31.
TWINS = ("elephant", "aueqjgte")
EDGE = "akqlrggi"


def test_the_one_hash_beyond_int32_becomes_the_largest_index(directory: Path) -> None:
    encoder = load(directory, disable_stemmer=True)
    for call in (Call(), QUERY):
        assert vectors(encoder.encode([EDGE], call))[0].indices.tolist() == [2**31 - 1]


def test_of_two_words_with_one_hash_the_later_counts(directory: Path) -> None:
    first, second = TWINS
    assert_same(directory, (f"{first} middle {second} {second}", f"{second} {first}"), disable_stemmer=True)


def test_input_that_is_no_text_fails_alone(directory: Path) -> None:
    inputs: list[Any] = ["a fox", None, b"bytes", 3, "a fox"]
    encoded = load(directory).encode(inputs, Call())
    assert sorted(encoded.failures) == [1, 2, 3]
    assert "got NoneType" in str(encoded.failures[1])
    assert vectors(encoded)[0] == vectors(encoded)[4]
    assert [len(some) for some in vectors(encoded)] == [1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": "English"}, "choose one of arabic"),
        ({"langauge": "english"}, "no keyword 'langauge'.*language"),
        ({"k": "1"}, "k must be a number"),
        ({"b": 1.5}, "b must be a number from 0 to 1"),
        ({"avg_len": 0}, "avg_len must be"),
        ({"k": float("nan")}, "k must be"),
        ({"token_max_length": True}, "token_max_length must be"),
        ({"stopwords": "the"}, "not one string"),
        ({"stemmer": FirstLetters(), "disable_stemmer": True}, "not both"),
    ],
)
def test_a_keyword_that_cannot_work_is_refused(settings: dict[str, Any], message: str, directory: Path) -> None:
    with pytest.raises(OptionError, match=message):
        load(directory, **settings)


def test_a_list_of_stop_words_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "german.txt").write_bytes("für\n".encode("latin-1"))
    with pytest.raises(ModelLoadError, match=r"german\.txt is not a list of words in UTF-8"):
        load(tmp_path, language="german")


@given(st.text())
def test_words_are_those_of_fastembed(text: str) -> None:
    assert split_words(text) == SimpleTokenizer.tokenize(remove_non_alphanumeric(text))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 0x110000, 0x10000))
def test_every_character_is_read_as_fastembed_reads_it(first: int) -> None:
    text = "".join(f"a{chr(code)}b " for code in range(first, first + 0x10000))
    assert split_words(text) == SimpleTokenizer.tokenize(remove_non_alphanumeric(text))
