"""Names and JSON out of a stranger's files."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncembed.errors import ModelLoadError
from asyncembed.repo_files import inside, is_safe_path, read_json, read_object, shown


@pytest.mark.parametrize("path", ["config.json", "1_Pooling/config.json", "a/b/c.onnx_data", "..data/x", "ü.json"])
def test_a_file_below_the_directory_is_found_in_it(path: str, tmp_path: Path) -> None:
    assert inside(tmp_path, path) == tmp_path / path


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "a/",
        "C:/x",
        "a/c:x",
        "..\\x",
        "a\0b",
        "\ud800",
        "a" * 256,
        "a/" * 2500 + "b",
    ],
)
def test_a_name_that_leads_elsewhere_is_our_error(path: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError):
        inside(tmp_path, path)


@given(st.text(st.characters(codec=None) | st.sampled_from("./\\:\0")))
def test_whatever_counts_as_safe_stays_below(path: str) -> None:
    if is_safe_path(path):
        assert os.path.normpath(f"/folder/{path}") == f"/folder/{path}"
        assert not Path(f"/absent/{path}").exists()  # and can be asked for


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"1" * 5000, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_what_is_no_json_is_our_error(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(ModelLoadError, match="config.json"):
        read_json(file)


def test_a_file_larger_than_any_configuration_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with file.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(ModelLoadError, match="larger than 33,554,432 bytes"):
        read_json(file)


def test_an_absent_file_is_none_and_what_is_no_object_an_empty_one(tmp_path: Path) -> None:
    assert read_json(tmp_path / "absent.json") is None
    assert read_object(tmp_path / "absent.json") == {}
    file = tmp_path / "config.json"
    file.write_text(json.dumps([1]))
    assert read_json(file) == [1]
    assert read_object(file) == {}


def test_a_pipe_in_the_place_of_a_file_counts_as_absent(tmp_path: Path) -> None:
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "config.json")
    assert read_json(tmp_path / "config.json") is None


@pytest.mark.parametrize("value", ["x" * 10_000, "line\nbreak\x1b[31m", "\ud800", [[]], {}, 5, None])
def test_what_a_message_shows_of_a_file_is_short_and_printable(value: object) -> None:
    assert len(shown(value)) < 200
    assert shown(value).isprintable()
