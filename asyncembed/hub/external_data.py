"""A path from which onnxruntime loads a graph whose weights lie in files of their own.

onnxruntime (from 1.24.2 on) opens such a file only if its real path is inside the directory of the path it was given,
or inside the directory of the graph's own real path. In the hub's cache both are links, and where they lead is up to
whoever wrote them: two files of one repo may lie in different directories of a store that all repos share. Then hard
links to both, under their repo names in one directory, are what every version accepts.
"""

import contextlib
import getpass
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from asyncembed.errors import CacheNotWritableError, ModelLoadError
from asyncembed.files import in_disk_thread
from asyncembed.hub.listing import is_safe_path

# Field numbers of onnx.proto (ModelProto, GraphProto, TensorProto, StringStringEntryProto).
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_EXTERNAL_DATA = 13
_ENTRY_KEY = 1
_ENTRY_VALUE = 2


async def loadable_model_path(directory: Path, model_file: str) -> Path:
    """The path to give to onnxruntime for `directory / model_file`: itself, where its weights can be reached from it.

    Otherwise that of a hard link (or, where links cannot be made, a copy) beside those of its weights.

    Raises:
        ModelLoadError: There is no such file.
        CacheNotWritableError: Its weights cannot be reached, and nowhere can links or copies be made.
    """
    return await in_disk_thread(_loadable_model_path, directory, model_file)


def external_data_files(model: Path) -> tuple[str, ...]:
    """Names of the files that hold weights of a graph, relative to the graph's directory; blocks.

    Read from the graph itself: `ModelProto.graph.initializer[].external_data["location"]` (onnx.proto). What is no
    such graph has none.
    """
    found: dict[str, None] = {}
    try:
        with model.open("rb") as file:
            end = os.fstat(file.fileno()).st_size
            for graph_end in _messages(file, end, _MODEL_GRAPH):
                for tensor_end in _messages(file, graph_end, _GRAPH_INITIALIZER):
                    for entry_end in _messages(file, tensor_end, _TENSOR_EXTERNAL_DATA):
                        entry = dict(_strings(file, entry_end))
                        if entry.get(_ENTRY_KEY) == "location":
                            found[entry.get(_ENTRY_VALUE, "")] = None
    except (EOFError, ValueError):
        return ()
    return tuple(name for name in found if is_safe_path(name))


def _loadable_model_path(directory: Path, model_file: str) -> Path:
    model = directory / model_file
    if not model.is_file():
        raise ModelLoadError(f"there is no file {model}; onnx_file= names another graph", model=str(directory))
    real_model = model.resolve()
    needed = [model.parent / name for name in external_data_files(model)]
    allowed = (model.parent.resolve(), real_model.parent)
    if all(any(path.resolve().is_relative_to(folder) for folder in allowed) for path in needed):
        return model
    problems = []
    for transfer in (os.link, shutil.copyfile):
        for home in _homes(directory):
            try:
                for path in (model, *needed):
                    target = home / path.relative_to(directory)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _place(path.resolve(), target, transfer)
            except OSError as error:
                problems.append(str(error))
            else:
                return home / model_file
    raise CacheNotWritableError(
        f"the weights of {model} lie where onnxruntime does not read them, and they can be linked or copied nowhere "
        f"({'; '.join(problems)}); make the cache writable, or download the model "
        "anew with HF_HUB_DISABLE_SHARED_BLOBS=1",
        source=str(directory),
        path=model_file,
    )


def _homes(snapshot: Path) -> Iterator[Path]:
    """Directories to put the links of a snapshot into, the best first."""
    from huggingface_hub import constants

    repo, commit = snapshot.parent.parent, snapshot.name
    shared = repo / "onnx_snapshots"  # fastembed's place for the same thing
    with contextlib.suppress(OSError):
        # Hard links keep the bytes of a snapshot that was deleted.
        for path in shared.iterdir():
            if not (repo / "snapshots" / path.name).exists():
                shutil.rmtree(path, ignore_errors=True)
    yield shared / commit
    yield Path(constants.HF_HOME) / "asyncembed" / "onnx_snapshots" / repo.name / commit
    temporary = Path(tempfile.gettempdir()) / f"asyncembed-{getpass.getuser()}"
    with contextlib.suppress(OSError):
        temporary.mkdir(mode=0o700, exist_ok=True)
        # Nobody else may put a model there.
        if not hasattr(os, "getuid") or temporary.stat().st_uid == os.getuid():
            yield temporary / "onnx_snapshots" / repo.name / commit


def _place(source: Path, target: Path, transfer: Callable[[Path, Path], object]) -> None:
    """Link or copy a file to `target`, unless it is there already; it appears as a whole."""
    if target.exists() and (
        target.samefile(source) or (transfer is shutil.copyfile and target.stat().st_size == source.stat().st_size)
    ):
        return
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        transfer(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _messages(file: BinaryIO, end: int, wanted: int) -> Iterator[int]:
    """Stop at each length-delimited field `wanted` up to `end`; the value is where the field ends.

    Protocol buffers' wire format; what is not wanted is skipped by its length, so weights are never read.
    """
    while file.tell() < end:
        key = _varint(file)
        number, kind = key >> 3, key & 7
        if kind == 2:
            length = _varint(file)
            stop = file.tell() + length
            if stop > end:
                raise EOFError
            if number == wanted:
                yield stop
            file.seek(stop)
        else:
            _skip_scalar(file, kind)


def _strings(file: BinaryIO, end: int) -> Iterable[tuple[int, str]]:
    """The string fields of a message, as (number, text)."""
    while file.tell() < end:
        key = _varint(file)
        if key & 7 == 2:
            yield key >> 3, file.read(_varint(file)).decode()
        else:
            _skip_scalar(file, key & 7)


def _skip_scalar(file: BinaryIO, kind: int) -> None:
    if kind == 0:
        _varint(file)
    elif kind in (1, 5):
        file.seek(8 if kind == 1 else 4, os.SEEK_CUR)
    else:
        raise ValueError(f"wire type {kind}")


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while shift < 70:
        byte = file.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7
    raise ValueError("no varint")
