"""Where exported graphs are kept, so that each is built once for the same weights."""

import contextlib
import errno
import importlib.util
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from asyncembed.errors import ModelLoadError, RuntimeMissingError, UnsupportedModelError
from asyncembed.export.architectures import Plan, read_plan
from asyncembed.export.foreign_int8 import write_in_8_bits
from asyncembed.export.heads import Head
from asyncembed.export.int8_graph import TOKENIZER_FILE, activations, frame_of, quantize, watch_activations
from asyncembed.export.onnx_builder import Graph
from asyncembed.files import default_cache_dir, move, replacing, sync
from asyncembed.repo_files import NEITHER, read_note
from asyncembed.runtime.digests import KEY_LENGTH, file_digest, key_of, known_digest
from asyncembed.runtime.onnx_file import read_onnx_file
from asyncembed.runtime.safetensors import Tensors, find_weights, read_tensors

# Raised when the graph that the same weights give changes: older graphs are then not found any more.
FORMAT_VERSION = 2

# Raised likewise for graphs in 8 bits, and for those that are made of others' graphs.
INT8_VERSION = 1
FOREIGN_INT8_VERSION = 1

GRAPH_FILE = "model.onnx"
INT8_GRAPH_FILE = "model_int8.onnx"
DATA_FILE = "model.onnx_data"
ACCURACY_FILE = "accuracy.json"
"""How near the vectors of a graph in 8 bits are to the float one's, once that was measured."""

REFUSAL_FILE = "refusal.txt"
"""Why none can be made."""

_MAX_REFUSAL_BYTES = 4096

_FILES = (GRAPH_FILE, INT8_GRAPH_FILE, DATA_FILE, ACCURACY_FILE, REFUSAL_FILE)

_TEMPORARY_PREFIX = "tmp-"
_HEAD_LENGTH = 8
_ANY_KEY = "[0-9a-f]" * KEY_LENGTH
_ANY_HEAD = "[0-9a-f]" * _HEAD_LENGTH

# A temporary directory that is older belongs to a process that was killed.
_ABANDONED_SECONDS = 24 * 3600.0


def ensure_graph(
    directory: Path,
    *,
    head: Head = "states",
    in_chunks: bool = True,
    is_int8: bool = False,
    cache_dir: Path | None = None,
) -> Path:
    """The ONNX graph of the model in `directory`, built from its safetensors weights or found in the cache.

    Blocks while it reads and writes; the first call for some weights takes about two seconds per GB (in 8 bits ten
    times as long, and twice their memory), later ones a millisecond. The result lies under `cache_dir` (default:
    `default_cache_dir()`), its weights in a second file beside it. It is found again by the content of the config and
    the weights, not by their place, and appears whole or not at all, however many processes build it at once.

    Inputs and output are those of `Plan.build`. `in_chunks` bounds the memory that long texts take, by branches in the
    graph that not every runtime computes rightly. `is_int8` brings linear maps and the word table to 8 bits, as
    `quantized` says.

    Raises:
        UnsupportedModelError: There are no weights, the architecture is not known, or the config asks for
            something that is not computed.
        ModelLoadError: The weights are broken or incomplete, or the cache cannot be written.
        RuntimeMissingError: The graph must be built and the package `onnx` is not installed.
    """
    plan = read_plan(directory, head)
    root, target, weights = _place(directory, head, cache_dir, in_chunks=in_chunks, is_int8=is_int8)
    graph_file = _graph_file(is_int8=is_int8)
    if _is_complete(target):
        return target / graph_file
    if importlib.util.find_spec("onnx") is None:
        raise RuntimeMissingError(
            f"{directory} has no ONNX file; to build it from the weights, "
            'install the package onnx: pip install "asyncembed[export]"',
            model=str(directory),
        )
    with read_tensors(*weights) as tensors:
        build = partial(_built_int8, directory) if is_int8 else _built

        def write(temporary: Path) -> None:
            graph = build(plan, tensors, temporary, in_chunks=in_chunks)
            graph.write(temporary / graph_file, temporary / DATA_FILE, DATA_FILE)

        _keep(write, root, target, graph_file, directory)
    return target / graph_file


def ensure_int8_graph(source: Path, directory: Path, *, cache_dir: Path | None = None) -> Path:
    """The float32 graph at `source`, of the model in `directory`, in 8 bits: made, or found in the cache. Blocks.

    The first call takes some seconds and the memory of the weights. Why a graph cannot be brought to 8 bits is
    remembered as well.

    Raises:
        UnsupportedModelError: It is of none of the usual forms, or its numbers would be others.
        ModelLoadError: It cannot be loaded, or the cache cannot be written.
    """
    found = find_int8_graph(source, directory, cache_dir=cache_dir)
    if found is not None:
        return found
    target = _place_of_int8(source, directory, cache_dir)

    def write(temporary: Path) -> None:
        write_in_8_bits(source, directory, temporary / INT8_GRAPH_FILE, temporary / DATA_FILE)

    try:
        _keep(write, target.parent, target, INT8_GRAPH_FILE, source)
    except UnsupportedModelError as error:
        with contextlib.suppress(OSError):
            target.mkdir(parents=True, exist_ok=True)
            with replacing(target / REFUSAL_FILE) as refusal:
                refusal.write_text(str(error), "utf-8")
        raise
    return target / INT8_GRAPH_FILE


def find_int8_graph(source: Path, directory: Path, *, cache_dir: Path | None = None) -> Path | None:
    """What `ensure_int8_graph` would give, if it has been made already; None otherwise. Blocks.

    Raises:
        UnsupportedModelError: It was tried, and cannot be.
        ModelLoadError: The graph cannot be read.
    """
    target = _place_of_int8(source, directory, cache_dir)
    if _is_complete(target):
        return target / INT8_GRAPH_FILE
    if (refusal := read_note(target / REFUSAL_FILE, max_bytes=_MAX_REFUSAL_BYTES)) is not None:
        raise UnsupportedModelError(refusal, model=str(source))
    return None


def _place_of_int8(source: Path, directory: Path, cache_dir: Path | None) -> Path:
    """The folder in the cache of what is made of a graph."""
    root = _root(cache_dir)
    beside = [source.parent / name for name in read_onnx_file(source).weights]
    others = [path for name in ("config.json", TOKENIZER_FILE) if (path := directory / name).is_file()]
    try:
        digests = [file_digest(path, root / "digests") for path in (source, *beside, *others)]
    except OSError as error:
        raise ModelLoadError(f"the graph {source} cannot be read: {error}", model=str(source)) from error
    return root / key_of(["of a graph", str(FOREIGN_INT8_VERSION), *digests])


def _built(plan: Plan, tensors: Tensors, _: Path, *, in_chunks: bool) -> Graph:
    """The graph, ready to be written."""
    return plan.build(tensors, in_chunks=in_chunks)


def _built_int8(directory: Path, plan: Plan, tensors: Tensors, temporary: Path, *, in_chunks: bool) -> Graph:
    """The graph of the model in `directory` in 8 bits; the float one is in `temporary` meanwhile."""
    watched = temporary / GRAPH_FILE, temporary / DATA_FILE
    plan.build(tensors, in_chunks=in_chunks, finish=watch_activations).write(*watched, DATA_FILE)
    largest = activations(watched[0], frame_of(directory, words=plan.vocabulary(tensors), config=plan.config))
    for path in watched:
        path.unlink()
    return plan.build(tensors, in_chunks=in_chunks, finish=partial(quantize, largest=largest))


def _keep(write: Callable[[Path], None], root: Path, target: Path, graph_file: str, source: Path) -> None:
    """Have the graph of `source` written into a folder, and move it into its own, `target`."""
    try:
        _prune(root)
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY_PREFIX, dir=root, ignore_cleanup_errors=True) as temporary:
            write(Path(temporary))
            target.mkdir(exist_ok=True)
            if target.is_symlink():
                raise NotADirectoryError(errno.ENOTDIR, "a link where a directory of the cache belongs", str(target))
            # The graph last: whoever sees it finds its weights. Two processes write the same bytes.
            for name in (DATA_FILE, graph_file):
                sync(Path(temporary, name))
                move(Path(temporary, name), target / name)
    except OSError as error:
        if _is_complete(target):  # Windows does not replace a file that another process has just made and mapped
            return
        raise ModelLoadError(
            f"the graph built from {source} cannot be kept in {root}: {error}; "
            "name another directory with cache_dir= or in ASYNCEMBED_CACHE",
            model=str(source),
        ) from error


def find_graph(
    directory: Path,
    *,
    head: Head = "states",
    in_chunks: bool = True,
    is_int8: bool = False,
    cache_dir: Path | None = None,
) -> Path | None:
    """What `ensure_graph` would give, if it has been built already; None otherwise.

    Blocks as long as it takes to hash weights that were not seen before: about a second per GB.

    Raises:
        UnsupportedModelError: There are no weights.
        ModelLoadError: The weights cannot be read.
    """
    _, target, _ = _place(directory, head, cache_dir, in_chunks=in_chunks, is_int8=is_int8)
    return target / _graph_file(is_int8=is_int8) if _is_complete(target) else None


def kept_graphs(*, cache_dir: Path | None = None) -> list[Path]:
    """The folders of all graphs that have been built and are kept. Blocks."""
    return sorted(path for path in _root(cache_dir).glob(_ANY_KEY) if _is_complete(path))


def kept_graphs_of(directory: Path, *, cache_dir: Path | None = None) -> list[Path]:
    """The folders of the graphs built from the weights in `directory`, where these were hashed before. Reads none."""
    root, weights = _root(cache_dir), find_weights(directory)
    try:
        digests = [known_digest(path, root / "digests") for path in (directory / "config.json", *weights)]
    except OSError:
        return []
    targets = sorted(root.glob(f"{_weights_key(digests)}{_ANY_HEAD}"))
    return [target for target in targets if weights and _is_complete(target)]


def folder_of(graph: Path, *, cache_dir: Path | None = None) -> Path | None:
    """The folder of a graph, if it is one of `kept_graphs`. Blocks."""
    return graph.parent if graph.parent in kept_graphs(cache_dir=cache_dir) else None


def delete_graph(folder: Path) -> None:
    """Delete one of `kept_graphs`; it is built again when it is needed.

    Raises:
        OSError: It cannot be, as on Windows while a worker has it mapped.
    """
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()


def _root(cache_dir: Path | None) -> Path:
    return (cache_dir or default_cache_dir()).expanduser() / "exported"


def _place(
    directory: Path, head: Head, cache_dir: Path | None, *, in_chunks: bool, is_int8: bool
) -> tuple[Path, Path, tuple[Path, ...]]:
    """The cache's root, the folder there of the graph that `directory` gives, and the weights that identify it."""
    weights = find_weights(directory)
    if not weights:
        raise UnsupportedModelError(f"{directory} has {NEITHER}", model=str(directory))
    root = _root(cache_dir)
    try:
        digests = [file_digest(path, root / "digests") for path in (directory / "config.json", *weights)]
        how = [] if in_chunks else ["whole"]
        if is_int8:
            tokenizer = directory / TOKENIZER_FILE
            how += ["int8", str(INT8_VERSION)]
            how += [file_digest(tokenizer, root / "digests")] if tokenizer.is_file() else []
    except OSError as error:
        raise ModelLoadError(f"the weights in {directory} cannot be read: {error}", model=str(directory)) from error
    return root, root / (_weights_key(digests) + key_of([str(head), *how])[:_HEAD_LENGTH]), weights


def _weights_key(digests: list[str]) -> str:
    """What the names of all graphs of the same weights begin with."""
    return key_of([str(FORMAT_VERSION), *digests])[: KEY_LENGTH - _HEAD_LENGTH]


def _graph_file(*, is_int8: bool) -> str:
    return INT8_GRAPH_FILE if is_int8 else GRAPH_FILE


def _is_complete(target: Path) -> bool:
    has_graph = (target / GRAPH_FILE).is_file() or (target / INT8_GRAPH_FILE).is_file()
    return not target.is_symlink() and has_graph and (target / DATA_FILE).is_file()


def _prune(root: Path) -> None:
    """Remove what killed processes left behind: files of our names only, and directories without any others."""
    for path in root.glob(f"{_TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):  # its owner may be done with it at this moment
            if time.time() - path.lstat().st_mtime > _ABANDONED_SECONDS and not path.is_symlink():
                for name in _FILES:
                    (path / name).unlink(missing_ok=True)
                path.rmdir()
