"""What is remembered of files lies where others may write, and where a machine may lose its power."""

import os
from pathlib import Path

import pytest

from asyncembed.runtime.digests import file_digest, known_digest

NOTHING_OF = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file without a byte, which has not been changed for long, as far as the clock says."""
    path = tmp_path / "file"
    path.touch()
    monkeypatch.setattr("asyncembed.runtime.digests.time.time", lambda: path.stat().st_ctime + 60)
    return path


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"0" * 63, b"0" * 65, b"Z" * 64, b"0" * 63 + b"\n"])
def test_a_note_that_is_no_digest_is_taken_anew(content: bytes, empty: Path, tmp_path: Path) -> None:
    """All files whose notes are empty would be the same one otherwise, and one model get the graph of another."""
    known = tmp_path / "known"
    assert file_digest(empty, known) == NOTHING_OF
    (note,) = known.iterdir()
    note.write_bytes(content)
    with pytest.raises(OSError, match="was not seen"):
        known_digest(empty, known)
    assert file_digest(empty, known) == NOTHING_OF
    assert known_digest(empty, known) == NOTHING_OF


def test_a_pipe_in_the_place_of_a_note_does_not_hang(empty: Path, tmp_path: Path) -> None:
    known = tmp_path / "known"
    file_digest(empty, known)
    (note,) = known.iterdir()
    note.unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(note)
    assert file_digest(empty, known) == NOTHING_OF
    assert note.is_file()
