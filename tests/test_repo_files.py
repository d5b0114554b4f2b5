"""Names and JSON out of a stranger's files, and what every reader of such a file makes of them."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncembed.catalogue.described import Overrides
from asyncembed.catalogue.pipeline import spec_from_directory
from asyncembed.catalogue.spec import Family
from asyncembed.encoders.projection import read_projections
from asyncembed.errors import AsyncEmbedError, ModelLoadError
from asyncembed.export.architectures import ARCHITECTURES, read_plan
from asyncembed.images.preprocess import Preprocessor
from asyncembed.repo_files import inside, is_name_on_windows, is_safe_path, read_json, read_object, shown
from asyncembed.runtime.safetensors import find_weights, read_tensors
from tests.export.conftest import DATA
from tests.support.any_json import spoilt
from tests.support.safetensors_files import write_raw, write_tensors


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
    "name",
    ["con", "CON", "nul.json", "aux.tar.gz", "com1", "LPT9.txt", "con .txt", "conin$", "model.onnx:stream", "C:",
     "a?", "a*b", "a<b", "a>b", 'a"b', "a|b", "a\nb", "a\x07", "a.", "a ", "...", ".. "],
)  # fmt: skip
def test_what_windows_takes_for_something_else_is_no_name_there(name: str) -> None:
    assert not is_name_on_windows(name)


@pytest.mark.parametrize(
    "name",
    ["config.json", "console.json", "com10", "auxiliary", ".gitattributes", "a b", "ü.json", "1_Pooling", "nul-1"],
)
def test_other_names_are_names_on_windows(name: str) -> None:
    assert is_name_on_windows(name)


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
    file.write_text(json.dumps([1]), "utf-8")
    assert read_json(file) == [1]
    assert read_object(file) == {}


def test_a_pipe_in_the_place_of_a_file_counts_as_absent(tmp_path: Path) -> None:
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "config.json")
    assert read_json(tmp_path / "config.json") is None


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000, "line\nbreak\x1b[31m", "\ud800", "\u202e", ["x" * 999] * 99, {"a" * 999: [[[[[]]]]]}, 10**999, None],
)
def test_what_a_message_shows_of_a_file_is_short_and_printable(value: object) -> None:
    assert len(shown(value)) < 700
    assert shown(value).isprintable()


# ---------------------------------------------------------------- every reader, on JSON of any shape

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

LINEAR = "sentence_transformers.models.Dense"
REPO: Mapping[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": LINEAR},
        {"idx": 3, "name": "3", "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "1_Pooling/config.json": {"word_embedding_dimension": 8, "pooling_mode": ["mean"], "include_prompt": True},
    "2_Dense/config.json": {"in_features": 8, "out_features": 4, "activation_function": "Tanh", "bias": True},
    "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": False},
    "config_sentence_transformers.json": {"prompts": {"query": "find "}, "default_prompt_name": "query"},
    "config.json": {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "hidden_size": 8,
        "max_position_embeddings": 512,
        "id2label": {"0": "LABEL_0"},
    },
    "tokenizer_config.json": {"model_max_length": 512},
    "preprocessor_config.json": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}},
}


@contextmanager
def directory_of(files: Mapping[str, Any]) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        for path, value in files.items():
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        yield Path(folder)


def read_as_each_family(directory: Path) -> None:
    for family in get_args(Family):
        for overrides in (Overrides(), Overrides(pooling="cls", normalize=True)):
            with only_our_errors():
                spec_from_directory(directory, family=family, overrides=overrides)


@contextmanager
def only_our_errors() -> Iterator[None]:
    message = ""
    try:
        yield
    except AsyncEmbedError as error:
        message = str(error)
    assert len(message) < 3000


@pytest.mark.slow
@pytest.mark.parametrize("path", REPO)
@FUZZ
@given(data=st.data())
def test_whatever_a_file_of_a_repo_says_the_error_is_ours(path: str, data: st.DataObject) -> None:
    content = data.draw(spoilt(REPO[path]))
    files = {**REPO, path: content, "onnx/model.onnx": b"", "2_Dense/model.safetensors": b""}
    with directory_of(files) as directory:
        read_as_each_family(directory)


@pytest.mark.slow
@pytest.mark.parametrize("path", REPO)
@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"a":' * 200_000, b"\xff\xfe", b"", b'"\\ud800"', b"1e999"])
def test_whatever_bytes_a_file_of_a_repo_has_the_error_is_ours(path: str, content: bytes) -> None:
    with directory_of({**REPO, path: content, "onnx/model.onnx": b"", "2_Dense/model.safetensors": b""}) as directory:
        read_as_each_family(directory)


@pytest.mark.slow
@FUZZ
@given(st.lists(st.text(st.characters(codec=None), max_size=30)), st.sampled_from(get_args(Family)))
def test_whatever_names_a_listing_has_the_error_is_ours(files: list[str], family: Family) -> None:
    with directory_of(REPO) as directory, only_our_errors():
        spec_from_directory(directory, files=[*files, "onnx/model.onnx"], family=family)


INDEX = {"metadata": {"total_size": 5}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
READERS: Mapping[str, tuple[str, Any, Callable[[Path], object]]] = {
    "shards": ("model.safetensors.index.json", INDEX, find_weights),
    "projection": (
        "2_Dense/config.json",
        {"activation_function": "torch.nn.modules.linear.Identity"},
        lambda directory: read_projections(directory, ("2_Dense",)),
    ),
    "preprocessor": (
        "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "resample": 3,
            "rescale_factor": 0.00392,
            "size": {"shortest_edge": 224},
        },
        Preprocessor.read,
    ),
    **{
        f"export of {name}": ("config.json", json.loads((DATA / name / "config.json").read_bytes()), read_plan)
        for name in ARCHITECTURES
        if (DATA / name).is_dir()
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
@FUZZ
@given(data=st.data())
def test_whatever_a_reader_reads_its_error_is_ours(reader: str, data: st.DataObject) -> None:
    path, valid, read = READERS[reader]
    content = data.draw(spoilt(valid))
    with directory_of({path: content}) as directory, only_our_errors():
        read(directory)


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"a":' * 200_000, b"\xff", b"9" * 5000])
@pytest.mark.parametrize("reader", READERS)
def test_whatever_bytes_a_reader_reads_its_error_is_ours(reader: str, content: bytes) -> None:
    path, _, read = READERS[reader]
    with directory_of({path: content}) as directory, only_our_errors():
        read(directory)


HEADER = {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
HUGE = 2**62


@pytest.mark.slow
@FUZZ
@given(
    spoilt(HEADER)
    | st.lists(st.sampled_from((0, 1, 2, HUGE, 10**400)), max_size=70).map(
        lambda shape: {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0 if 0 in shape else 16]}}
    )
)
def test_whatever_a_header_of_weights_says_the_error_is_ours(header: object) -> None:
    with TemporaryDirectory() as folder, only_our_errors():
        tensors = read_tensors(write_raw(Path(folder, "model.safetensors"), header, bytes(16)))
        for name in tensors:
            with only_our_errors():
                assert tensors[name].shape == tensors.shape(name)


@pytest.mark.slow
def test_a_shape_of_a_million_huge_lengths_is_refused_at_once(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2**62] * 500_000, "data_offsets": [0, 16]}
    with pytest.raises(ModelLoadError, match="cannot be 16 bytes long"):
        read_tensors(write_raw(tmp_path / "model.safetensors", {"a": entry}, bytes(16)))


@pytest.mark.slow
@FUZZ
@given(st.lists(st.integers(0, 3), max_size=4), st.lists(st.integers(0, 3), max_size=3))
def test_a_linear_layer_of_any_shape_is_computed_or_our_error(weight: list[int], bias: list[int]) -> None:
    with directory_of({"2_Dense/config.json": {}}) as directory, only_our_errors():
        tensors = {"linear.weight": np.zeros(weight, np.float32), "linear.bias": np.zeros(bias, np.float32)}
        write_tensors(directory / "2_Dense/model.safetensors", tensors)
        (layer,) = read_projections(directory, ("2_Dense",))
        assert layer(np.zeros((2, 2), np.float32)).shape == (2, weight[0])
