import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from asyncembed.errors import ModelLoadError, RuntimeMissingError
from asyncembed.runtime.onnx import OnnxSession
from asyncembed.runtime.session import SessionOptions
from tests.support.graphs import DIM, write_text_graph


def test_a_graph_runs_by_the_names_of_its_inputs_and_outputs(tmp_path: Path) -> None:
    path = write_text_graph(tmp_path / "model.onnx", outputs=("last_hidden_state", "text_embeds"))
    session = OnnxSession(path, SessionOptions(device="cpu"))
    assert session.input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert session.output_names == ("last_hidden_state", "text_embeds")
    assert session.input_dtype("input_ids") == np.int64
    ids = np.ones((2, 3), dtype=np.int64)
    pooled, hidden = session.run(
        ["text_embeds", "last_hidden_state"],
        {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids * 0},
    )
    assert hidden.shape == (2, 3, DIM)
    np.testing.assert_array_equal(pooled, hidden[:, 0])


def test_weights_beside_the_graph_are_found(tmp_path: Path) -> None:
    model = onnx.load(str(write_text_graph(tmp_path / "small.onnx")))
    onnx.save(
        model, str(tmp_path / "model.onnx"), save_as_external_data=True, location="model.onnx_data", size_threshold=1024
    )
    assert (tmp_path / "model.onnx_data").stat().st_size > (tmp_path / "model.onnx").stat().st_size
    ids = np.ones((1, 3), dtype=np.int64)
    feeds = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids * 0}
    whole, split = (
        OnnxSession(tmp_path / name, SessionOptions(device="cpu")).run(["last_hidden_state"], feeds)[0]
        for name in ("small.onnx", "model.onnx")
    )
    np.testing.assert_array_equal(split, whole)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no file .*absent\.onnx"):
        OnnxSession(tmp_path / "absent.onnx", SessionOptions())
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ModelLoadError, match=r"cannot load .*broken\.onnx"):
        OnnxSession(tmp_path / "broken.onnx", SessionOptions())


def test_cuda_on_a_machine_without_it_is_an_error(tmp_path: Path) -> None:
    path = write_text_graph(tmp_path / "model.onnx")
    options = SessionOptions(providers=(("TensorrtExecutionProvider", ()),))
    with pytest.raises(RuntimeMissingError, match="TensorrtExecutionProvider is not available"):
        OnnxSession(path, options)


@pytest.mark.slow
def test_without_onnxruntime_one_sentence_says_what_to_install() -> None:
    program = """
import sys
sys.modules["onnxruntime"] = None
from pathlib import Path
from asyncembed.errors import RuntimeMissingError
from asyncembed.runtime.onnx import OnnxSession
from asyncembed.runtime.session import SessionOptions
try:
    OnnxSession(Path("model.onnx"), SessionOptions())
except RuntimeMissingError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    assert "asyncembed[cpu]" in done.stdout
    assert "asyncembed[gpu]" in done.stdout
