"""What every implementation of `Session` does, whatever runs the graph."""

from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from asyncembed.errors import ModelLoadError
from asyncembed.runtime.onnx import OnnxSession
from asyncembed.runtime.openvino import OpenVinoSession
from asyncembed.runtime.session import Array, Session, SessionOptions
from tests.support.graphs import DIM, GraphBuilder, write_text_graph

Open = Callable[[Path, SessionOptions], Session]

OPTIONS = SessionOptions(device="cpu")
DTYPES: dict[str, int] = {
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "uint8": TensorProto.UINT8,
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
}


def open_with_bound_outputs(path: Path, options: SessionOptions) -> Session:
    """A session as it runs where a GPU computes: the outputs stay where they are made, here in the CPU's memory."""
    session = OnnxSession(path, options)
    session._output_place = "cpu", 0
    return session


@pytest.fixture(
    params=[
        pytest.param(OnnxSession, id="onnxruntime"),
        pytest.param(OpenVinoSession, id="openvino", marks=pytest.mark.slow),
        pytest.param(open_with_bound_outputs, id="onnxruntime, outputs bound"),
    ]
)
def open_session(request: pytest.FixtureRequest) -> Open:
    """Opens a graph with one implementation after the other."""
    opener: Open = request.param
    return opener


@pytest.fixture
def session(open_session: Open, tmp_path: Path) -> Session:
    """A text graph whose outputs are named in another order than a caller might ask for them."""
    path = write_text_graph(tmp_path / "model.onnx", outputs=("last_hidden_state", "text_embeds"))
    return open_session(path, OPTIONS)


def feeds(*ids: int) -> dict[str, Array]:
    """One row of tokens, as the text graph takes it."""
    row = np.array([ids], np.int64)
    return {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": row * 0}


def test_inputs_and_outputs_are_named_in_the_graphs_order(session: Session) -> None:
    assert session.input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert session.output_names == ("last_hidden_state", "text_embeds")


def test_outputs_come_as_they_were_asked_for(session: Session) -> None:
    pooled, hidden = session.run(["text_embeds", "last_hidden_state"], feeds(5, 6, 7))
    assert (pooled.shape, hidden.shape) == ((1, DIM), (1, 3, DIM))
    np.testing.assert_array_equal(pooled, hidden[:, 0])
    (only,) = session.run(["text_embeds"], feeds(5, 6, 7))
    np.testing.assert_array_equal(only, pooled)


def test_one_session_takes_any_shape(session: Session) -> None:
    for length in (1, 4, 2):
        (hidden,) = session.run(["last_hidden_state"], feeds(*range(length)))
        assert hidden.shape == (1, length, DIM)
    (none,) = session.run(["last_hidden_state"], {name: row[:0] for name, row in feeds(1, 2).items()})
    assert none.shape == (0, 2, DIM)


def test_a_later_run_leaves_earlier_results_alone(session: Session) -> None:
    (first,) = session.run(["text_embeds"], feeds(5, 6))
    before = first.copy()
    session.run(["text_embeds"], feeds(8, 9))
    np.testing.assert_array_equal(first, before)


def test_inputs_need_not_lie_in_one_piece(session: Session) -> None:
    wide = {name: np.repeat(row, 2, axis=1)[:, ::2] for name, row in feeds(5, 6, 7).items()}
    assert not any(row.flags.c_contiguous for row in wide.values())
    (found,), (wanted,) = (session.run(["text_embeds"], some) for some in (wide, feeds(5, 6, 7)))
    np.testing.assert_array_equal(found, wanted)


def test_an_input_that_is_left_out_is_an_error(session: Session) -> None:
    session.run(["text_embeds"], feeds(5, 6))
    some = feeds(8, 9)
    del some["token_type_ids"]
    with pytest.raises(ValueError, match="token_type_ids"):
        session.run(["text_embeds"], some)


@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("batch", [None, 1])
def test_shapes_that_do_not_fit_are_an_error(
    open_session: Open, pools: bool, batch: int | None, tmp_path: Path
) -> None:
    """As those of a text that is longer than the positions of its model: whatever was computed before is no answer."""
    build = GraphBuilder()
    states = build.add("Gather", build.random(16, DIM), "input_ids")
    length = build.add("Shape", "input_ids", start=1, end=2)
    positions = build.add("Slice", build.random(4, DIM), build.constant(np.array([0])), length)
    output = build.add("Add", states, positions)
    shape: list[int | str] = [batch or "batch", "tokens", DIM]
    if pools:
        output, shape = build.add("ReduceMean", output, axes=[1], keepdims=0), [shape[0], DIM]
    build.add("Identity", output, output="result")
    infos = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, [batch or "batch", "tokens"]),
        helper.make_tensor_value_info("result", TensorProto.FLOAT, shape),
    ]
    session = open_session(build.save(tmp_path / "model.onnx", infos[:1], infos[1:]), OPTIONS)
    for _ in range(2):
        assert session.run(["result"], {"input_ids": np.array([[1, 2, 3]])})[0].shape[-1] == DIM
        with pytest.raises(Exception, match="broadcast|computed nothing"):
            session.run(["result"], {"input_ids": np.array([[1, 2, 3, 4, 5]])})


def test_results_of_threads_at_once_are_their_own(session: Session) -> None:
    """Although a session serves one at a time: no wrong number may come of a mistake."""
    wanted = [session.run(["text_embeds"], feeds(*range(length)))[0] for length in (20, 30)]
    found: list[list[Array]] = [[], []]

    def run(thread: int) -> None:
        for _ in range(20):
            found[thread] += session.run(["text_embeds"], feeds(*range(20 + 10 * thread)))

    threads = [Thread(target=run, args=(thread,)) for thread in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, one in zip(found, wanted, strict=True):
        assert len(results) == 20
        for result in results:
            np.testing.assert_array_equal(result, one)


def test_a_long_run_leaves_no_result_behind_that_changes(session: Session) -> None:
    """After it, memory goes back to the system."""
    rows = {name: np.repeat(row, 16, axis=0) for name, row in feeds(*range(80)).items()}
    (hidden,) = session.run(["last_hidden_state"], rows)
    before = hidden.copy()
    for _ in range(3):
        session.run(["last_hidden_state"], rows)
    np.testing.assert_array_equal(hidden, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_says_which_dtype_an_input_takes(open_session: Open, dtype: str, tmp_path: Path) -> None:
    build = GraphBuilder()
    build.add("Identity", "values", output="same")
    infos = [helper.make_tensor_value_info(name, DTYPES[dtype], ["n"]) for name in ("values", "same")]
    session = open_session(build.save(tmp_path / "model.onnx", infos[:1], infos[1:]), OPTIONS)
    assert session.input_dtype("values") == np.dtype(dtype)
    values: Any = np.array([1, 2], dtype)
    (same,) = session.run(["same"], {"values": values})
    assert same.dtype == values.dtype
    np.testing.assert_array_equal(same, values)


def test_what_one_thread_opened_another_may_run(session: Session) -> None:
    results: list[Array] = []
    thread = Thread(target=lambda: results.extend(session.run(["text_embeds"], feeds(5, 6))))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(results[0], session.run(["text_embeds"], feeds(5, 6))[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_no_result(open_session: Open, threads: int, tmp_path: Path) -> None:
    path = write_text_graph(tmp_path / "model.onnx")
    (hidden,) = open_session(path, SessionOptions(device="cpu", threads=threads)).run(
        ["last_hidden_state"], feeds(5, 6, 7)
    )
    (wanted,) = open_session(path, OPTIONS).run(["last_hidden_state"], feeds(5, 6, 7))
    np.testing.assert_allclose(hidden, wanted, atol=1e-5)


def test_weights_beside_the_graph_are_found(open_session: Open, tmp_path: Path) -> None:
    model = onnx.load(str(write_text_graph(tmp_path / "small.onnx")))
    onnx.save(
        model, str(tmp_path / "model.onnx"), save_as_external_data=True, location="model.onnx_data", size_threshold=1024
    )
    whole, split = (
        open_session(tmp_path / name, OPTIONS).run(["last_hidden_state"], feeds(5, 6, 7))[0]
        for name in ("small.onnx", "model.onnx")
    )
    np.testing.assert_array_equal(split, whole)


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_a_file_that_is_no_graph_is_named(open_session: Open, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "some.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"some\.onnx") as caught:
        open_session(path, OPTIONS)
    assert caught.value.model == str(path)


def test_it_says_what_it_runs_on(session: Session) -> None:
    assert session.providers
    assert session.runs_on_cpu
    assert session.warning is None


def test_shapes_are_known_as_far_as_the_graph_states_them(open_session: Open, tmp_path: Path) -> None:
    build = GraphBuilder()
    build.add("Identity", "values", output="same")
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("values", "same")]
    session = open_session(build.save(tmp_path / "model.onnx", infos[:1], infos[1:]), OPTIONS)
    assert session.input_shape("values") == (None, 3)
    assert session.output_shape("same") == (None, 3)
    assert session.output_type("same") == "float32"
