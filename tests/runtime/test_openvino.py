"""What is OpenVINO's own, beside the contract that it shares: what it cannot do, and what it would do in silence."""

import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper

from asyncembed.catalogue.pipeline import spec_from_directory
from asyncembed.encoders import build
from asyncembed.encoders.encoder import Call, EncoderConfig
from asyncembed.errors import OptionError
from asyncembed.export.graph_cache import ensure_graph
from asyncembed.runtime.openvino import OpenVinoSession, import_openvino
from asyncembed.runtime.session import SessionOptions, open_session
from tests.support import programs
from tests.support.graphs import GraphBuilder, write_text_graph
from tests.support.minilm import MINILM
from tests.support.models import write_model

pytestmark = pytest.mark.slow  # they load OpenVINO

OPTIONS = SessionOptions(device="cpu", runtime="openvino")
TEXTS = json.loads((Path(__file__).parents[1] / "export" / "data" / "texts.json").read_text(encoding="utf-8"))


def test_what_it_cannot_read_onnxruntime_runs_and_says_so(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.nodes.append(helper.make_node("CDist", ["x", "x"], ["y"], domain="com.microsoft", metric="euclidean"))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "m"]) for name in ("x", "y")]
    session = open_session(graph.save(tmp_path / "model.onnx", infos[:1], infos[1:]), OPTIONS)
    assert session.providers == ("CPUExecutionProvider",)
    assert session.warning is not None
    assert "com.microsoft.CDist" in session.warning
    assert "\n" not in session.warning
    (distances,) = session.run(["y"], {"x": np.array([[0, 0], [3, 4]], np.float32)})
    assert distances[0, 1] == 5


def test_it_says_that_it_is_what_computes(tmp_path: Path) -> None:
    session = open_session(write_text_graph(tmp_path / "model.onnx"), OPTIONS)
    assert session.providers == ("OpenVINO CPU",)
    assert session.warning is None


def test_bfloat16_is_refused_where_the_cpu_lacks_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        import_openvino().Core, "get_property", lambda *_: ["FP32", "INT8"]
    )  # as of a CPU with AVX2 alone
    path = write_text_graph(tmp_path / "model.onnx")
    with pytest.raises(OptionError, match="bfloat16 in hardware"):
        open_session(path, replace(OPTIONS, bfloat16=True))
    assert open_session(path, OPTIONS).warning is None


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    graph = ensure_graph(MINILM, in_chunks=False, cache_dir=tmp_path_factory.mktemp("graphs"))
    spec = replace(spec_from_directory(MINILM), model_file=str(graph))
    return EncoderConfig(spec=spec, directory=MINILM, session=SessionOptions(device="cpu"))


def vectors(config: EncoderConfig, **session: Any) -> Any:
    return build(replace(config, session=replace(config.session, **session))).encode(TEXTS, Call()).results


def test_a_real_model_has_its_vectors(minilm: EncoderConfig) -> None:
    np.testing.assert_allclose(vectors(minilm, runtime="openvino"), vectors(minilm), rtol=0, atol=1e-6)


def test_bfloat16_keeps_the_direction_of_vectors(minilm: EncoderConfig) -> None:
    if "BF16" not in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16 in hardware")
    cosines = (vectors(minilm, runtime="openvino", bfloat16=True) * vectors(minilm)).sum(axis=1)
    assert cosines.min() >= 0.9999
    assert cosines.min() < 0.9999999, "it computes in float32"


def test_a_long_run_leaves_no_memory_behind(tmp_path: Path) -> None:
    session = OpenVinoSession(write_text_graph(tmp_path / "model.onnx"), OPTIONS)

    def memory_after(tokens: int) -> int:
        ids = np.ones((1, tokens), np.int64)
        session.run(["last_hidden_state"], dict.fromkeys(session.input_names, ids * 0) | {"input_ids": ids})
        gc.collect()
        return psutil.Process().memory_info().rss

    before = memory_after(100)
    assert memory_after(5000) < before + 30e6, "its attention alone is 100 MB"


PROGRAM = """
import os, sys
import anyio
from pathlib import Path
from asyncembed.embedders.text import TextEmbedding
from tests.support.models import spec_for

os.environ["HOME"] = os.environ["USERPROFILE"] = sys.argv[2]
for name in ("CI", "TF_BUILD", "JENKINS_URL"):
    os.environ.pop(name, None)

async def main():
    spec = spec_for(Path(sys.argv[1]), pooling="mean")
    options = {"runtime": "openvino", "workers": int(sys.argv[3])}
    async with TextEmbedding(spec, model_path=sys.argv[1], **options) as model:
        await model.embed_query("the way")
        print(repr(model))
    print([name for name in sys.modules if name.startswith("openvino")])

anyio.run(main)
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_it_reports_to_nobody(workers: int, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = programs.run(PROGRAM, tmp_path, str(write_model(tmp_path / "model")), str(home), str(workers))
    assert done.returncode == 0, done.stderr
    assert "OpenVINO CPU" in done.stdout
    assert "openvino_telemetry" not in done.stdout
    assert ("'openvino'" in done.stdout) == (workers == 0)
    assert [path for path in home.rglob("*") if "intel" in path.parts] == []


def test_without_the_package_one_sentence_says_what_to_install() -> None:
    program = """
import sys
sys.modules["openvino"] = None
from pathlib import Path
from asyncembed.errors import RuntimeMissingError
from asyncembed.runtime.session import SessionOptions, open_session
try:
    open_session(Path("model.onnx"), SessionOptions(runtime="openvino"))
except RuntimeMissingError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    assert "asyncembed[openvino]" in done.stdout
