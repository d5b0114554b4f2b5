"""Files that say they are an index and are none, by accident or on purpose: a sentence, never a traceback."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncembed.cli.vector_files import made_with
from asyncembed.cli.vector_index import READ_AT_ONCE, open_index
from asyncembed.errors import OptionError

pytestmark = pytest.mark.slow  # Arrow takes a second to import

QUERY = np.ones(2, np.float32)


def searched(path: Path) -> None:
    open_index(path, None).nearest(QUERY, 1)


def numpy_file(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        numpy_file(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 2), }\n") + bytes(24),
        numpy_file(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3000000000, 2), }\n") + bytes(24),
        numpy_file(b"{'descr': '<f4', 'fortran_order': False, 'shape': (), }\n") + bytes(4),
        numpy_file(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n") + bytes(8),
        numpy_file(b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 2), }\n") + b"cos\nsystem\n(S'false'\ntR.",
        numpy_file(b"(" * 60_000),
    ],
    ids=["empty", "no header", "negative", "huge", "a number", "a vector", "a pickle", "deep"],
)
def test_a_broken_matrix(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    path.write_bytes(content)
    with pytest.raises(OptionError, match="no matrix"):
        searched(path)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_matrix_is_read_in_portions_or_whole(order: Any, tmp_path: Path) -> None:
    matrix = np.array(np.random.default_rng(1).random((READ_AT_ONCE + 5, 2)), "<f8", order=order)
    np.save(tmp_path / "out.npy", matrix)
    np.testing.assert_array_equal(np.concatenate(list(open_index(tmp_path / "out.npy", None).matrices())), matrix)


def test_a_matrix_that_gets_shorter_while_it_is_searched(tmp_path: Path) -> None:
    """A file that is mapped meanwhile would kill the process."""
    path = tmp_path / "out.npy"
    np.save(path, np.ones((READ_AT_ONCE + 5, 2), np.float32))
    matrices = open_index(path, None).matrices()
    assert len(next(matrices)) == READ_AT_ONCE
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(OptionError, match="got shorter"):
        next(matrices)


def test_an_archive_of_matrices(tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    with path.open("wb") as file:
        np.savez(file, a=np.ones((3, 2)))
    with pytest.raises(OptionError, match="no matrix"):
        searched(path)


@pytest.mark.parametrize(
    "line",
    [b"[1]", b"5", b"{", b"\xff", b'{"embedding": ' + 100_000 * b"[" + 100_000 * b"]" + b"}", b'{"embedding": [1]}'],
    ids=["a list", "a number", "no JSON", "no UTF-8", "deep", "of another length"],
)
def test_a_broken_line(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"embedding": [1, 2]}\n' + line + b"\n")
    with pytest.raises(OptionError, match="record 1 of"):
        searched(path)


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1" + 50 * b"\xff" + b"\xff\xff\xff\x7fPAR1"], ids=["empty", "cut", "lying"]
)
def test_a_broken_table(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "out.parquet"
    path.write_bytes(content)
    with pytest.raises(OptionError, match="no Parquet"):
        searched(path)


@pytest.mark.parametrize("vectors", [[[1.0], [2.0, 3.0, 4.0]], [[1.0, 2.0], None], [[], [1.0, 2.0]]])
def test_vectors_of_different_lengths_are_never_taken_for_others(vectors: Any, tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "out.parquet"
    parquet.write_table(pa.table({"embedding": pa.array(vectors)}), path)
    with pytest.raises(OptionError, match="no dense vector"):
        searched(path)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"5",
        b"[]",
        b"\xff",
        100_000 * b"[",
        b'{"model": 5}',
        b'{"column": ["a"]}',
        b'{"into": null}',
        b'{"records": "5"}',
    ],
    ids=["empty", "a number", "a list", "no UTF-8", "deep", "no name", "no column", "no field", "no count"],
)
def test_what_it_was_made_with_is_as_embed_writes_it_or_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "out.npy.meta.json").write_bytes(text)
    with pytest.raises(OptionError, match="it is broken"):
        made_with(tmp_path / "out.npy")
    (tmp_path / "out.npy.meta.json").write_text(json.dumps({"model": "m"}), "utf-8")
    assert made_with(tmp_path / "out.npy") == {"model": "m"}
