import pickle
from typing import Any

import numpy as np
import pytest
from fastembed import SparseEmbedding as Reference

from asyncembed import Chunk, SparseEmbedding
from asyncembed.errors import InputError
from asyncembed.results import CHUNKS, COUNT, MATRICES, SCORE, SPARSE, Assembly, dense, sparse_batch
from asyncembed.stream import returning

ENTRIES = {7: 0.5, 2**31 - 1: 2.0, 0: -1.25}


def vector(entries: dict[int, float]) -> SparseEmbedding:
    return SparseEmbedding.from_dict(entries)


def test_a_sparse_vector_reads_as_fastembeds_does() -> None:
    ours, theirs = vector(ENTRIES), Reference.from_dict(ENTRIES)
    assert ours.as_dict() == theirs.as_dict() == ENTRIES
    assert list(ours.as_dict()) == list(ENTRIES)
    assert ours.as_object().keys() == theirs.as_object().keys()
    assert ours.as_object()["indices"].tolist() == list(ENTRIES)
    assert [type(value) for entry in ours.as_dict().items() for value in entry] == [int, float] * 3
    assert len(ours) == 3
    assert ours.nbytes == 24


@pytest.mark.parametrize("entries", [ENTRIES, {}])
def test_the_types_of_a_sparse_vector_hold_for_an_empty_one_too(entries: dict[int, float]) -> None:
    found = vector(entries)
    assert (found.indices.dtype.name, found.values.dtype.name) == ("int32", "float32")
    assert found.as_dict() == entries
    assert pickle.loads(pickle.dumps(found)) == found


def test_sparse_vectors_are_equal_by_value() -> None:
    assert vector(ENTRIES) == vector(ENTRIES)
    assert vector(ENTRIES) != vector({7: 0.5})
    assert vector({7: 0.5}) != vector({7: 0.25})
    assert vector({}) != {}


def test_a_batch_of_sparse_vectors_gives_each_of_them() -> None:
    parts = [vector(ENTRIES), vector({}), vector({1: 1.0})]
    batch = sparse_batch([part.indices for part in parts], [part.values for part in parts])
    assert list(batch) == parts
    assert len(batch) == 3
    assert batch[-1] == parts[-1]
    assert batch[1:] == parts[1:]
    for outside in (3, -4):
        with pytest.raises(IndexError):
            batch[outside]
    assert list(sparse_batch([], [])) == []


def test_a_batch_travels_as_three_arrays() -> None:
    """A hundred vectors take their entries' bytes on the way, and little more."""
    parts = [vector(ENTRIES)] * 100
    batch = sparse_batch([part.indices for part in parts], [part.values for part in parts])
    sent = pickle.dumps(batch, protocol=pickle.HIGHEST_PROTOCOL)
    assert list(pickle.loads(sent)) == parts
    assert len(sent) < 100 * (parts[0].nbytes + 8) + 1000


def test_what_leaves_a_stream_keeps_no_batch_alive() -> None:
    batch = sparse_batch([np.arange(3, dtype=np.int32)] * 2, [np.ones(3, np.float32)] * 2)
    owned = SPARSE.detach(batch[0])
    (collected,) = SPARSE.assemble([batch[1]])
    for found in (owned, collected):
        assert found.indices.base is None
        assert found.values.base is None


def test_a_chunk_that_leaves_a_stream_keeps_its_document_and_no_window() -> None:
    window, document = np.ones((3, 4), np.float32), {"text": "a b"}
    chunk = Chunk(document, 1, 2, 3, 1, window[1])
    for left in (CHUNKS.detach(chunk), CHUNKS.assemble([chunk])[0]):
        assert left.vector.base is None
        assert left.document is document
        assert (left.index, left.start, left.end, left.tokens, left.nbytes) == (1, 2, 3, 1, 16)
        assert repr(left) == "<Chunk 1: 2..3, 1 tokens>"


def test_scores_are_floats_one_by_one_and_float32_together() -> None:
    scores = np.array([1.5, -2], np.float32)
    assert type(SCORE.detach(scores[0])) is float
    together = SCORE.assemble(list(scores))
    assert together.dtype == np.float32
    assert together.tolist() == [1.5, -2]
    assert SCORE.assemble([]).shape == (0,)
    assert SCORE.assemble([]).dtype == np.float32


def test_an_error_in_the_place_of_a_result_stays_itself() -> None:
    error = InputError("bad")
    sparse: list[Any] = [vector(ENTRIES), error]
    scores: list[Any] = [1.0, error]
    cases: list[tuple[Assembly[Any, Any], list[Any]]] = [(SPARSE, sparse), (SCORE, scores)]
    for assembly, results in cases:
        found: Any = returning(assembly).assemble(results)
        assert found == results
        assert found[1] is error
        own: Any = returning(assembly).detach(error)
        assert own is error


@pytest.mark.parametrize(
    ("assembly", "result"),
    [
        (dense(3, "float32"), np.zeros(3, np.float32)),
        (MATRICES, np.zeros((2, 3), np.float32)),
        (SPARSE, vector(ENTRIES)),
        (SCORE, np.float32(1.5)),
    ],
)
def test_where_errors_may_come_several_results_are_a_list(assembly: Assembly[Any, Any], result: Any) -> None:
    error = InputError("bad")
    cases: list[list[Any]] = [[], [result], [result, error], [error]]
    for results in cases:
        found = returning(assembly).assemble(results)
        assert type(found) is list
        assert [isinstance(one, InputError) for one in found] == [one is error for one in results]
    assert returning(assembly).detach(error) is error


def test_counts_add_up() -> None:
    assert COUNT.assemble([1, 2]) == 3
