"""What is loaded ahead, by a thread, while something else is read."""

import threading
from pathlib import Path

import pytest

from asyncembed.errors import ModelLoadError
from asyncembed.runtime.session import SessionOptions, open_session, opening_ahead
from tests.support.graphs import write_text_graph

pytestmark = pytest.mark.slow

OPTIONS = SessionOptions(device="cpu")


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_a_graph_that_was_begun_ahead_is_loaded_once_and_any_other_by_itself(tmp_path: Path) -> None:
    write_text_graph(tmp_path / "one.onnx")
    write_text_graph(tmp_path / "other.onnx")
    with opening_ahead(tmp_path / "one.onnx", OPTIONS):
        other = open_session(tmp_path / "other.onnx", OPTIONS)
        session = open_session(tmp_path / "one.onnx", OPTIONS)
        again = open_session(tmp_path / "one.onnx", OPTIONS)
    assert len({id(one) for one in (session, other, again)}) == 3
    assert session.input_names == again.input_names
    assert "asyncembed-session" not in names()


def test_its_error_comes_where_it_is_wanted_and_else_nowhere(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with opening_ahead(tmp_path / "broken.onnx", OPTIONS), pytest.raises(ModelLoadError):
        open_session(tmp_path / "broken.onnx", OPTIONS)
    with opening_ahead(tmp_path / "broken.onnx", OPTIONS):
        pass
    with pytest.raises(KeyError), opening_ahead(tmp_path / "broken.onnx", OPTIONS):
        raise KeyError
    assert "asyncembed-session" not in names()
