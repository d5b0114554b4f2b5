"""MUVERA: the numbers of the reference, bit by bit."""

import numpy as np
import pytest
from fastembed.postprocess import Muvera as ReferenceMuvera

from asyncembed.errors import OptionError
from asyncembed.muvera import Muvera

SMALL = {"dim": 4, "k_sim": 2, "dim_proj": 2, "r_reps": 2, "random_seed": 42}
THREE = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.5]], np.float32)


def test_known_encodings() -> None:
    muvera = Muvera(**SMALL)
    root = 0.35355339
    document = [1, 3, -2, 2, 1, 3, 2, -2, -2, 2, -2, 2, -2, 2, -0.5, 0.5]
    query = [1, 3, -2, 2, 0, 0, 2, -2, -2, 2, 0, 0, 0, 0, -1, 1]
    np.testing.assert_allclose(muvera.process_document(THREE), root * np.array(document), atol=1e-7)
    np.testing.assert_allclose(muvera.process_query(THREE), root * np.array(query), atol=1e-7)
    assert muvera.embedding_size == 16


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        {"dim": 128},
        {"dim": 96, "k_sim": 3, "dim_proj": 96, "r_reps": 4, "random_seed": 7},
        {"dim": 8, "k_sim": 6, "dim_proj": 5, "r_reps": 3, "random_seed": 0},
        {"dim": 1, "k_sim": 1, "dim_proj": 1, "r_reps": 1},
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_encodings_equal_the_reference_bit_by_bit(arguments: dict[str, int], dtype: type[np.floating]) -> None:
    ours, reference = Muvera(**arguments), ReferenceMuvera(**arguments)
    assert ours.embedding_size == reference.embedding_size
    generator = np.random.default_rng(1)
    for tokens in (1, 2, 33, 200):
        vectors = generator.normal(size=(tokens, arguments["dim"])).astype(dtype)
        for fill in (False, True):
            for average in (False, True):
                expected = reference.process(vectors, fill, average)
                result = ours.process(vectors, fill, average)
                assert result.dtype == expected.dtype == np.float64
                assert np.array_equal(result, expected)


def test_the_encodings_approximate_maxsim() -> None:
    """A document that holds the query's vectors scores higher than one that does not."""
    generator = np.random.default_rng(3)
    muvera = Muvera(32)

    def unit(*shape: int) -> np.ndarray:
        vectors: np.ndarray = generator.normal(size=shape)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    query, other = unit(10, 32), unit(60, 32)
    relevant = np.concatenate([query, unit(50, 32)])
    encoded = muvera.process_query(query)
    assert encoded @ muvera.process_document(relevant) > 1.5 * (encoded @ muvera.process_document(other))


def test_the_dimension_may_come_from_a_model() -> None:
    class Model:
        embedding_size = 16

    assert Muvera.from_multivector_model(Model(), k_sim=2).embedding_size == 20 * 4 * 16


def test_values_that_cannot_work() -> None:
    for arguments in ({"dim": 4, "dim_proj": 5}, {"dim": 0}, {"dim": 32, "k_sim": -1}, {"dim": 32, "r_reps": 0}):
        with pytest.raises(OptionError):
            Muvera(**arguments)
    for vectors in (np.zeros((0, 32)), np.zeros((3, 31)), np.zeros(32)):
        with pytest.raises(OptionError, match="32"):
            Muvera(32).process_document(vectors)
