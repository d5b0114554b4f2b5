"""Tensors of `.pt` files: those of torch itself are read, and nothing that a hostile file says is done."""

import contextlib
import pickle
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest

from asyncembed.errors import ModelLoadError
from asyncembed.runtime.torch_file import MAX_PICKLE_BYTES, read_torch_file
from tests.support.hybrid_models import DATA
from tests.support.torch_files import pickled, tensor, write_archive, write_torch_file

pytestmark = pytest.mark.slow

ONES = np.ones((2, 3), np.float32)


def entry(program: bytes, name: str = "weight") -> bytes:
    """The pickle of a dictionary with one entry, whose value these instructions make."""
    return b"\x80\x02}X" + len(name).to_bytes(4, "little") + name.encode() + program + b"s."


def test_files_of_torch_itself_are_read() -> None:
    """Those of `reference_one_pass.py`, in half precision."""
    sparse, colbert = read_torch_file(DATA / "sparse_linear.pt"), read_torch_file(DATA / "colbert_linear.pt")
    assert {name: array.shape for name, array in sparse.items()} == {"weight": (1, 8), "bias": (1,)}
    assert {name: array.shape for name, array in colbert.items()} == {"weight": (8, 8), "bias": (8,)}
    assert colbert["weight"].dtype == np.float32
    assert np.abs(colbert["weight"]).max() > 1


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_numbers_of_every_kind_come_as_they_are(dtype: str, tmp_path: Path) -> None:
    numbers = np.linspace(-3, 5, 12).astype(dtype).reshape(3, 4)
    path = write_torch_file(tmp_path / "a.pt", {"weight": numbers, "bias": numbers[0].copy()})
    tensors = read_torch_file(path)
    np.testing.assert_array_equal(tensors["weight"], numbers)
    np.testing.assert_array_equal(tensors["bias"], numbers[0])
    assert tensors["weight"].dtype == (np.float64 if dtype == "<f8" else np.float32)


def test_bfloat16_is_the_upper_half_of_float32(tmp_path: Path) -> None:
    exact = np.array([1.0, -2.5, 0.15625], np.float32)
    halves = (exact.view(np.uint32) >> 16).astype("<u2")
    np.testing.assert_array_equal(read_torch_file(write_torch_file(tmp_path / "a.pt", {"a": halves}))["a"], exact)


def test_tensors_may_share_a_storage(tmp_path: Path) -> None:
    numbers = np.arange(6, dtype=np.float32)
    program = entry(tensor(0, numbers, shape=(2,), offset=4))
    path = write_archive(tmp_path / "a.pt", program, {"0": numbers.tobytes()}, byteorder=None, folder="other")
    assert read_torch_file(path)["weight"].tolist() == [4, 5]


class Calls:
    """Runs a function of the program that reads the pickle, if that is let."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


ran: list[str] = []


def note(what: str) -> str:
    ran.append(what)
    return what


@pytest.mark.parametrize(
    "value",
    [
        Calls(note, "called"),
        Calls(eval, "__import__('tests.runtime.test_torch_file').runtime.test_torch_file.note('evaluated')"),
        Calls(getattr, np.ndarray, "tofile"),
        Calls(OrderedDict, [("a", 1)]),
        np.ones(3),
        [1, 2],
        b"bytes",
        1.5,
        {"a": ONES},
        "text",
    ],
)
def test_what_makes_no_tensor_is_refused_and_nothing_of_it_runs(value: Any, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.pt", pickle.dumps(OrderedDict(weight=value), 2), {})
    with pytest.raises(ModelLoadError, match="a dictionary of tensors"):
        read_torch_file(path)
    assert not ran


PUT_FAR_AWAY = b"r\xff\xff\xff\xff"
HUGE_BYTES = b"\x96" + (2**60).to_bytes(8, "little")
"""Instructions for which `pickle` itself takes gigabytes of memory."""


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x80\x02",
        b"\x80\x04}.",
        b"\x80\x02.",
        b"\x80\x02}",
        b"\x80\x02N.",
        b"\x80\x02]" + PUT_FAR_AWAY + b".",
        b"\x80\x02" + HUGE_BYTES + b".",
        b"\x80\x02h\x05.",
        b"\x80\x02(((((",
        b"\x80\x02u.",
        b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}R.",
        b"\x80\x02ccollections\nOrderedDict\nK\x01R.",
        b"\x80\x02Nb.",
        b"\x80\x02}Q.",
        b"\x80\x02}K\x01K\x02s.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02" + b"X\xff\xff\xff\x7fabc" + b".",
        b"\x80\x02I" + b"9" * 5000 + b"\n.",
        pickled({"weight": ONES})[:-1] + b"x.",
        entry(b"U\x03abc"),
        entry(tensor("../../../etc/passwd", ONES)),
        entry(tensor("7", ONES)),
        entry(tensor(0, ONES, count=7)),
        entry(tensor(0, ONES, count=-6)),
        entry(tensor(0, ONES, count=2**40)),
        entry(tensor(0, ONES, offset=1)),
        entry(tensor(0, ONES, offset=-1)),
        entry(tensor(0, ONES, shape=(2, -3))),
        entry(tensor(0, ONES, shape=(2**40, 2**40))),
        entry(tensor(0, ONES, strides=(1, 2))),
        entry(tensor(0, ONES, strides=(0, 0))),
        entry(tensor(0, ONES, storage="IntStorage")),
        entry(tensor(0, ONES, storage="HalfStorage")),
    ],
    ids=range(37),
)
def test_a_broken_or_hostile_program_is_one_error(program: bytes, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.pt", program, {"0": ONES.tobytes()})
    with pytest.raises(ModelLoadError, match=r"a\.pt is not read: "):
        read_torch_file(path)


def test_what_is_no_archive_of_torch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with pytest.raises(ModelLoadError):
        read_torch_file(path)
    for content in (b"", b"\x80\x02}q\x00.", pickle.dumps({"weight": 1}), b"PK\x03\x04" + b"\0" * 40):
        path.write_bytes(content)
        with pytest.raises(ModelLoadError, match="since 1.6"):
            read_torch_file(path)
    with ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", ONES.tobytes())
    with pytest.raises(ModelLoadError, match=r"no member data\.pkl"):
        read_torch_file(path)


def test_what_is_compressed_or_large_is_refused(tmp_path: Path) -> None:
    """A small file could be gigabytes otherwise."""
    path = tmp_path / "a.pt"
    write_torch_file(path, {"weight": np.zeros((512, 512), np.float32)}, compression=ZIP_DEFLATED)
    with pytest.raises(ModelLoadError, match="compressed"):
        read_torch_file(path)
    write_archive(path, b"\x80\x02" + b"N" * MAX_PICKLE_BYTES, {})
    with pytest.raises(ModelLoadError, match="at most"):
        read_torch_file(path)
    write_archive(path, pickled({}), {str(number): b"" for number in range(300)})
    with pytest.raises(ModelLoadError, match="more in it"):
        read_torch_file(path)
    with ZipFile(path, "w") as archive:  # whose list alone would take gigabytes, were it longer
        for number in range(10_000):
            archive.writestr(str(number), b"")
    with pytest.raises(ModelLoadError, match="more in it"):
        read_torch_file(path)
    write_torch_file(path, {"weight": ONES}, byteorder="big")
    with pytest.raises(ModelLoadError, match="little-endian"):
        read_torch_file(path)


def test_the_same_numbers_are_not_told_over_and_over(tmp_path: Path) -> None:
    numbers = np.zeros(2**20, "<f2")
    parts = [b"X\x04\x00\x00\x00" + f"{number:04}".encode() + tensor(0, numbers) for number in range(300)]
    path = write_archive(tmp_path / "a.pt", b"\x80\x02}(" + b"".join(parts) + b"u.", {"0": numbers.tobytes()})
    with pytest.raises(ModelLoadError, match="more numbers than it has"):
        read_torch_file(path)


def test_a_storage_is_read_once_however_often_it_is_referred_to(tmp_path: Path) -> None:
    """A pickle of a few kB could otherwise keep thousands of copies of it."""
    numbers = np.zeros(2**20, np.float32)
    one = tensor(0, numbers, shape=(1,), strides=(1,))
    program = b"\x80\x02}(" + b"".join(b"X\x02\x00\x00\x00%02d" % i + one for i in range(60)) + b"u."
    path = write_archive(tmp_path / "a.pt", program, {"0": numbers.tobytes()})
    tracemalloc.start()
    try:
        assert len(read_torch_file(path)) == 60
        assert tracemalloc.get_traced_memory()[1] < 4 * numbers.nbytes
    finally:
        tracemalloc.stop()


def test_a_file_with_some_bytes_changed_or_missing_is_one_error_if_any(tmp_path: Path) -> None:
    whole = write_torch_file(tmp_path / "whole.pt", {"weight": np.ones((1, 4), np.float32)}).read_bytes()
    path, generator = tmp_path / "changed.pt", np.random.default_rng(5)
    for _ in range(600):
        changed = bytearray(whole)
        for place in generator.integers(len(changed), size=3):
            changed[place] = generator.integers(256)
        path.write_bytes(changed[: generator.integers(1, 2 * len(changed))])
        with contextlib.suppress(ModelLoadError):
            read_torch_file(path)
