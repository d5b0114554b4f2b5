"""Which of a repo's graphs is meant."""

import logging
import platform

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncembed.catalogue.onnx_choice import choose_onnx_file, precision_of, prefer
from asyncembed.errors import UnsupportedModelError

# As sentence-transformers/all-MiniLM-L6-v2 has them.
BY_CPU = [
    "onnx/model.onnx",
    *(f"onnx/model_O{level}.onnx" for level in range(1, 5)),
    "onnx/model_qint8_arm64.onnx",
    "onnx/model_qint8_avx512.onnx",
    "onnx/model_qint8_avx512_vnni.onnx",
    "onnx/model_quint8_avx2.onnx",
]
# As transformers.js' conversions have them.
BY_KIND = [
    f"onnx/model{suffix}.onnx" for suffix in ("", "_bnb4", "_fp16", "_int8", "_q4", "_q4f16", "_quantized", "_uint8")
]

FEW_BITS = [f"onnx/model_{kind}.onnx" for kind in ("q1", "q1f16", "q2", "q2f16", "q4")]


def test_a_file_of_few_bits_is_no_plain_one() -> None:
    with pytest.raises(UnsupportedModelError, match="no ONNX file of plain fp32"):
        choose_onnx_file(["onnx/model_q2.onnx"])
    assert choose_onnx_file([*FEW_BITS, "model.safetensors"]) is None


@pytest.mark.parametrize(
    ("cpu", "chosen"),
    [
        ("arm64", "qint8_arm64"),
        ("avx512_vnni", "qint8_avx512_vnni"),
        ("avx_vnni", "qint8_avx512_vnni"),
        ("avx512", "qint8_avx512"),
        ("avx2", "quint8_avx2"),
    ],
)
def test_the_file_for_this_cpu_is_taken(cpu: str, chosen: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "asyncembed"):
        assert choose_onnx_file(BY_CPU, precision="int8", model="org/x", cpu=cpu) == f"onnx/model_{chosen}.onnx"
    assert f"org/x: precision='int8' is onnx/model_{chosen}.onnx here (CPU: {cpu})" in caplog.text


@pytest.mark.parametrize("cpu", [None, "arm64", "avx512_vnni", "avx512", "avx2", "other"])
def test_an_int8_file_is_found_on_any_cpu_in_any_layout(cpu: str | None) -> None:
    assert choose_onnx_file(BY_CPU, precision="int8", cpu=cpu) in BY_CPU[5:]
    for name in ("int8", "q8"):
        assert choose_onnx_file(BY_KIND, precision=name, cpu=cpu) == "onnx/model_quantized.onnx"
    for path in BY_CPU[5:]:
        assert choose_onnx_file(["onnx/model.onnx", path], precision="int8", cpu=cpu) == path


@pytest.mark.parametrize(
    ("files", "precision", "chosen"),
    [
        (BY_KIND, "uint8", "onnx/model_uint8.onnx"),
        (BY_KIND, "fp16", "onnx/model_fp16.onnx"),
        (BY_KIND, "q4", "onnx/model_q4.onnx"),
        (BY_KIND, "q4f16", "onnx/model_q4f16.onnx"),
        (BY_KIND, "bnb4", "onnx/model_bnb4.onnx"),
        (BY_KIND, "fp32", "onnx/model.onnx"),
        (BY_CPU, "uint8", "onnx/model_quint8_avx2.onnx"),
        (BY_CPU, "fp16", "onnx/model_O4.onnx"),
        ([*BY_CPU, "onnx/model_fp16.onnx"], "fp16", "onnx/model_fp16.onnx"),
        ([*BY_KIND, "model_int8.onnx", "model_quantized.onnx"], "int8", "onnx/model_quantized.onnx"),
        (["model_int8.onnx", "vision_model_int8.onnx"], "int8", "model_int8.onnx"),
        (["my-model.v2_int8.onnx"], "int8", "my-model.v2_int8.onnx"),
        (FEW_BITS, "q2", "onnx/model_q2.onnx"),
        (FEW_BITS, "q2f16", "onnx/model_q2f16.onnx"),
        (FEW_BITS, "q1", "onnx/model_q1.onnx"),
        (FEW_BITS, "q1f16", "onnx/model_q1f16.onnx"),
    ],
)
def test_each_precision_is_one_file(files: list[str], precision: str, chosen: str) -> None:
    assert choose_onnx_file(files, precision=precision, cpu="avx2") == chosen


@pytest.mark.parametrize(
    ("graph", "files", "chosen"),
    [
        ("onnx/model.onnx", BY_KIND, "onnx/model_fp16.onnx"),
        ("onnx/model.onnx", BY_CPU, "onnx/model_O4.onnx"),
        ("model.onnx", BY_KIND, "model.onnx"),
        ("onnx/model.onnx", ["onnx/model.onnx", "onnx/model_int8.onnx"], "onnx/model.onnx"),
        ("onnx/model_quantized.onnx", BY_KIND, "onnx/model_quantized.onnx"),
        ("onnx/text_model.onnx", ["onnx/text_model_fp16.onnx", "onnx/model_fp16.onnx"], "onnx/text_model_fp16.onnx"),
    ],
)
def test_a_precision_is_preferred_where_a_file_of_it_lies_beside_the_plain_one(
    graph: str, files: list[str], chosen: str
) -> None:
    assert prefer("fp16", graph, files) == chosen


def test_files_of_several_models_are_asked_about() -> None:
    with pytest.raises(UnsupportedModelError, match="several ONNX files of precision int8.*onnx_file="):
        choose_onnx_file(["text_model_int8.onnx", "vision_model_int8.onnx"], precision="int8")


@pytest.mark.parametrize(
    ("path", "precision"),
    [
        ("onnx/model.onnx", "fp32"),
        ("model_optimized.onnx", "fp32"),
        ("onnx/model_O2.onnx", "fp32"),
        ("onnx/model_O4.onnx", "fp16"),
        ("onnx/model_uint8.onnx", "uint8"),
        ("onnx/model_quantized.onnx", "int8"),
        ("onnx/model_qint8_arm64.onnx", "int8"),
        ("onnx/model_quint8_avx2.onnx", "uint8"),
        ("onnx/model_q4f16.onnx", "q4f16"),
        ("onnx/model_q2.onnx", "q2"),
    ],
)
def test_a_name_tells_the_precision(path: str, precision: str) -> None:
    assert precision_of(path) == precision


def test_the_kind_of_this_machine_is_one_that_files_are_made_for() -> None:
    from asyncembed.catalogue.cpu import this_cpu

    is_arm = platform.machine().lower() in ("arm64", "aarch64")
    assert (this_cpu() == "arm64") == is_arm


@given(
    files=st.lists(st.sampled_from([*BY_CPU, *BY_KIND, "model.onnx", "vision_model.onnx", "config.json"]), unique=True),
    precision=st.sampled_from([None, "fp32", "fp16", "int8", "uint8", "q4", "q4f16", "bnb4"]),
    cpu=st.sampled_from(["arm64", "avx512_vnni", "avx_vnni", "avx512", "avx2", "other"]),
    data=st.data(),
)
def test_the_choice_is_of_the_precision_and_not_of_the_order_of_a_listing(
    files: list[str], precision: str | None, cpu: str, data: st.DataObject
) -> None:
    def choose(listing: list[str]) -> str | None:
        try:
            return choose_onnx_file(listing, precision=precision, cpu=cpu)
        except UnsupportedModelError:
            return None

    chosen = choose(files)
    assert choose(data.draw(st.permutations(files))) == chosen
    if chosen is not None:
        told = precision_of(chosen)
        assert chosen in files
        assert told == (precision or "fp32") or (told, precision) == ("uint8", "int8")
