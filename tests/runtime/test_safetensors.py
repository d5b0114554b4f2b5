import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncembed.errors import ModelLoadError, UnsupportedModelError
from asyncembed.repo_files import WEIGHTS_INDEX
from asyncembed.runtime.safetensors import find_weights, read_tensors
from tests.support.minilm import MINILM
from tests.support.safetensors_files import write_raw, write_tensors

MATRIX = np.array([[1.5, -2.25, 3.0], [0.0, 65504.0, -0.5]], np.float32)


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1"])
def test_every_element_type_comes_back_as_it_was(tmp_path: Path, dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    tensors = read_tensors(write_tensors(tmp_path / "model.safetensors", {"a": array}))
    assert tensors["a"].dtype == array.dtype
    np.testing.assert_array_equal(tensors["a"], array)


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    values = np.array([[1.0, -2.5, 3.0e38], [np.inf, -0.0, 2.0**-120]], np.float32)
    tensors = read_tensors(write_tensors(tmp_path / "model.safetensors", {"a": values}, bfloat16=True))
    assert tensors["a"].dtype == np.float32
    expected = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    np.testing.assert_array_equal(tensors["a"], expected)


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    arrays = {"scalar": np.array(7.0, np.float32), "none": np.zeros((0, 4), np.float32)}
    tensors = read_tensors(write_tensors(tmp_path / "model.safetensors", arrays))
    assert tensors["scalar"].shape == ()
    assert tensors["scalar"] == 7.0
    assert tensors["none"].shape == tensors.shape("none") == (0, 4)


def test_the_mapping_has_the_names_and_shapes_of_the_file(tmp_path: Path) -> None:
    tensors = read_tensors(write_tensors(tmp_path / "model.safetensors", {"b": MATRIX, "a": MATRIX[0]}))
    assert list(tensors) == ["b", "a"]
    assert len(tensors) == 2
    assert tensors.shape("b") == (2, 3)
    with pytest.raises(KeyError, match="missing"):
        tensors["missing"]


def test_arrays_outlive_the_mapping_and_cannot_be_written(tmp_path: Path) -> None:
    array = read_tensors(write_tensors(tmp_path / "model.safetensors", {"a": MATRIX}))["a"]
    np.testing.assert_array_equal(array, MATRIX)
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1.0


def test_files_are_closed_that_no_array_needs(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "model.safetensors", {"a": MATRIX, "b": MATRIX})
    with read_tensors(path) as tensors:
        array = tensors["a"]
    np.testing.assert_array_equal(array, MATRIX)
    with read_tensors(path) as tensors:
        tensors["a"].sum()
    with pytest.raises(ValueError, match="closed"):
        tensors["b"]


def test_a_file_that_is_refused_can_be_deleted_at_once(tmp_path: Path) -> None:
    """As the error says; on Windows it must not be mapped any more, and the error keeps alive what it came through."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not one")
    with pytest.raises(ModelLoadError, match="delete it"):
        read_tensors(path)
    path.unlink()


def test_a_split_model_reads_as_one(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model-00001-of-00002.safetensors", {"a": MATRIX})
    write_tensors(tmp_path / "model-00002-of-00002.safetensors", {"b": MATRIX * 2})
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / WEIGHTS_INDEX).write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    tensors = read_tensors(*find_weights(tmp_path))
    np.testing.assert_array_equal(tensors["b"], tensors["a"] * 2)


def test_a_directory_without_weights_has_none(tmp_path: Path) -> None:
    assert find_weights(tmp_path) == ()


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "gone.safetensors", 3, ""])
def test_an_index_cannot_name_what_is_not_beside_it(tmp_path: Path, name: object) -> None:
    (tmp_path / WEIGHTS_INDEX).write_text(json.dumps({"weight_map": {"a": name}}), "utf-8")
    with pytest.raises(ModelLoadError, match=WEIGHTS_INDEX):
        find_weights(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', "\x00"])
def test_a_broken_index_is_a_load_error(tmp_path: Path, text: str) -> None:
    (tmp_path / WEIGHTS_INDEX).write_text(text, "utf-8")
    with pytest.raises(ModelLoadError, match=WEIGHTS_INDEX):
        find_weights(tmp_path)


def test_two_files_with_the_same_tensor_are_refused(tmp_path: Path) -> None:
    paths = [write_tensors(tmp_path / name, {"a": MATRIX}) for name in ("1.safetensors", "2.safetensors")]
    with pytest.raises(ModelLoadError, match=r"1\.safetensors"):
        read_tensors(*paths)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 1, 7, 8, 40, 0.5, 0.999999])
def test_a_download_that_was_cut_short_is_a_load_error(tmp_path: Path, kept: float) -> None:
    whole = (MINILM / "model.safetensors").read_bytes()
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(whole[: int(kept if kept >= 1 else kept * len(whole))])
    with pytest.raises(ModelLoadError, match="download it again") as caught:
        read_tensors(broken)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


def test_a_missing_file_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot be opened"):
        read_tensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html><body>Sign in</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 90868376\n",
        (1 << 63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{]",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"\xff\xfe",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
)
def test_what_is_no_safetensors_file_is_a_load_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors"):
        read_tensors(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12]},
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]},
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 0]},
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [-16, 0]},
        {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2.0, 2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2, 2]},
        {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]},
        {"shape": [2, 2], "data_offsets": [0, 16]},
        "F32",
        None,
    ],
)
def test_a_header_that_does_not_fit_the_file_is_a_load_error(tmp_path: Path, entry: object) -> None:
    path = write_raw(tmp_path / "model.safetensors", {"a": entry}, bytes(16))
    with pytest.raises(ModelLoadError, match="tensor a"):
        read_tensors(path)


def test_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """A file of some megabytes would make a graph of thousands of layers, and fill the disk."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}
    for other in (entry, entry | {"data_offsets": [4, 12]}, entry | {"shape": [1], "data_offsets": [4, 8]}):
        path = write_raw(tmp_path / "model.safetensors", {"a": entry, "empty": empty, "b": other}, bytes(16))
        with pytest.raises(ModelLoadError, match="tensor [ab] has bytes that another one has"):
            read_tensors(path)


def test_an_unknown_element_type_matters_only_where_it_is_read(tmp_path: Path) -> None:
    header = {
        "scale": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]},
        "a": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]},
    }
    tensors = read_tensors(write_raw(tmp_path / "model.safetensors", header, b"\x01\x02\x03\x04"))
    assert tensors["a"].tolist() == [3, 4]
    with pytest.raises(UnsupportedModelError, match="F8_E4M3"):
        tensors["scale"]


@given(data=st.data())
def test_no_damaged_file_gets_past_the_reader(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever byte is wrong, reading gives arrays or one of the two typed errors, and never reaches past the end."""
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    whole = bytearray(write_tensors(path, {"a": MATRIX, "b": MATRIX[0]}).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        tensors = read_tensors(path)
        sizes = [array.size for array in tensors.values()]
    except (ModelLoadError, UnsupportedModelError):
        return
    assert sum(sizes) <= len(whole)


def test_rows_are_those_of_the_whole_tensor(tmp_path: Path) -> None:
    values = np.random.default_rng(3).standard_normal((7, 5), np.float32)
    for bfloat16 in (False, True):
        path = write_tensors(tmp_path / f"{bfloat16}.safetensors", {"a": values}, bfloat16=bfloat16)
        tensors = read_tensors(path)
        np.testing.assert_array_equal(tensors.rows("a", slice(2, 4)), tensors["a"][2:4])
        np.testing.assert_array_equal(tensors.rows("a", slice(6, 99)), tensors["a"][6:])


def test_to_ask_for_a_name_reads_no_tensor(tmp_path: Path) -> None:
    """One of an element type that cannot be read tells: it would raise."""
    path = tmp_path / "model.safetensors"
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    tensors = read_tensors(path)
    assert "a" in tensors
    assert "b" not in tensors
    with pytest.raises(UnsupportedModelError):
        tensors["a"]
