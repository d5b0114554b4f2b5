"""Graphs that were optimised once, with their weights packed: every worker maps the same file.

onnxruntime packs the weights of matrix products anew in each session, so that each worker has a copy of its own. A
prepared graph holds them as the products want them, and a session of it has the results of the unprepared one bit for
bit. Source: the session options `session.save_external_prepacked_constant_initializers` and
`session.optimized_model_external_initializers_file_name` of onnxruntime.

What is published is never written to again, as a truncated map kills whoever reads it, and an overwritten one gives
wrong numbers in silence: it appears under its name at once, and goes by its name.
"""

import contextlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from asyncembed.errors import ModelLoadError
from asyncembed.files import move, sync
from asyncembed.repo_files import read_object
from asyncembed.runtime.digests import KEY_LENGTH, file_digest, key_of
from asyncembed.runtime.onnx_file import read_onnx_file

FORMAT_VERSION = 2
"""Raised when a graph that is prepared of the same file changes."""

GRAPH_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
FACTS_FILE = "prepared.json"
"""What the graph was made of. The time of its last change is that of the graph's last use."""

_ANY_KEY = "[0-9a-f]" * KEY_LENGTH
_TEMPORARY_PREFIX, _DAMAGED_PREFIX = "tmp-", "damaged-"
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")

SMALLEST_INLINE_BYTES = 16 * 2**20
"""Weights inside a graph are copied by each session, so that sharing them pays soon."""

SMALLEST_BESIDE_BYTES = 100 * 2**20
"""Weights beside a graph are mapped as they are: what is saved is their packed form."""

# A prepared file holds what is packed in both forms: 1.5 to 1.9 times the source, as measured.
_GROWTH = 2
_MARGIN_BYTES = 256 * 2**20

_ABANDONED_SECONDS = 24 * 3600.0
_UNUSED_SECONDS = 30 * 24 * 3600.0
# Within this time a use is not written down again.
_STAMP_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Source:
    """A graph that can be prepared.

    Attributes:
        path: The ONNX file.
        weights: The files beside it that hold weights.
        machine: What the packed form depends on, besides onnxruntime: the kind of processor.
        root: Where prepared graphs are kept.
    """

    path: Path
    weights: tuple[Path, ...]
    machine: str
    root: Path

    @classmethod
    def of(cls, path: Path, *, machine: str, cache_dir: Path) -> "Source":
        """The source at `path`; blocks."""
        weights = tuple(path.parent / name for name in read_onnx_file(path).weights)
        return cls(path, weights, machine, cache_dir.expanduser() / "prepared")

    @property
    def inline_bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def size_bytes(self) -> int:
        return self.inline_bytes + sum(path.stat().st_size for path in self.weights)

    def pays(self, *, workers: int | None) -> bool:
        """Whether workers would gain by it."""
        if self.inline_bytes >= SMALLEST_INLINE_BYTES:
            return True
        return workers != 1 and self.size_bytes >= SMALLEST_BESIDE_BYTES

    def folder(self) -> Path:
        """Where it is kept once it is prepared. Reads the whole source when that was not seen before."""
        digests = [file_digest(path, self.root / "digests") for path in (self.path, *self.weights)]
        return self.root / key_of([str(FORMAT_VERSION), _runtime(), self.machine, *digests])


def find_prepared(source: Source) -> Path | None:
    """The prepared graph of this source, where it was made; its use is noted. Blocks.

    Raises:
        OSError: The source cannot be read.
    """
    folder = source.folder()
    if not _is_complete(folder):
        return None
    with contextlib.suppress(OSError):  # a cache of somebody else's
        if time.time() - (folder / FACTS_FILE).stat().st_mtime > _STAMP_SECONDS:
            os.utime(folder / FACTS_FILE)
    return folder / GRAPH_FILE


def prepare_graph(source: Source, save: Callable[[Path, Path, str], str | None]) -> Path:
    """Make it, in a folder beside that is renamed when it is whole. Takes about the memory of the weights; blocks.

    `save` writes the graph at one path to another, and its packed weights beside that under the name given; what it has
    to say of that is kept for `note_of`.

    Raises:
        ModelLoadError: onnxruntime cannot load the source, or cannot write what it has made.
        OSError: The cache cannot be written, or its disk is too full.
    """
    folder = source.folder()
    source.root.mkdir(parents=True, exist_ok=True)
    _prune(source.root)
    if shutil.disk_usage(source.root).free < _GROWTH * source.size_bytes + _MARGIN_BYTES:
        raise OSError(f"{source.root} lacks the room for {_GROWTH * source.size_bytes / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY_PREFIX, dir=source.root, ignore_cleanup_errors=True) as beside:
        made = Path(beside, "made")
        made.mkdir()
        note = save(source.path, made / GRAPH_FILE, DATA_FILE)
        if not (made / DATA_FILE).is_file():
            raise ModelLoadError(f"onnxruntime has kept no weights of {source.path} beside", model=str(source.path))
        facts = {"source": str(source.path), "runtime": _runtime(), "machine": source.machine, "note": note}
        (made / FACTS_FILE).write_text(json.dumps(facts, indent=1), "utf-8")
        for name in (GRAPH_FILE, DATA_FILE):
            sync(made / name)
        _publish(made, folder)
    return folder / GRAPH_FILE


def _publish(made: Path, folder: Path) -> None:
    try:
        move(made, folder)
    except OSError:
        if _is_complete(folder):  # somebody else was sooner, with the same bytes
            return
        put_aside(folder / GRAPH_FILE)  # what a part of is gone would be in the way for ever
        move(made, folder)


def put_aside(graph: Path) -> None:
    """Take a prepared graph away that cannot be loaded, so that it is made again the next time. Blocks."""
    folder = graph.parent
    with contextlib.suppress(OSError):  # on Windows where a worker has it mapped; or it is gone already
        aside = folder.with_name(f"{_DAMAGED_PREFIX}{secrets.token_hex(4)}")
        folder.rename(aside)
        delete_prepared(aside)


def kept_prepared(*, cache_dir: Path) -> list[Path]:
    """The folders of all prepared graphs. Blocks."""
    return sorted(path for path in (cache_dir.expanduser() / "prepared").glob(_ANY_KEY) if _is_complete(path))


def made_of(folder: Path) -> Path | None:
    """The graph that one of `kept_prepared` was made of, which may be gone; None where that cannot be read."""
    named = _fact(folder, "source")
    return None if named is None else Path(named)


def note_of(graph: Path) -> str | None:
    """What was to be said when this prepared graph was made; None: nothing."""
    return _fact(graph.parent, "note")


def delete_prepared(folder: Path) -> None:
    """Delete one of `kept_prepared`; it is made again when it is needed.

    Raises:
        OSError: It cannot be, as on Windows while a worker has it mapped.
    """
    for name in (GRAPH_FILE, DATA_FILE, FACTS_FILE):
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()


def _fact(folder: Path, key: str) -> str | None:
    with contextlib.suppress(ModelLoadError):
        value = read_object(folder / FACTS_FILE).get(key)
        return value if isinstance(value, str) and value.isprintable() else None
    return None


def _is_complete(folder: Path) -> bool:
    files = (folder / name for name in (GRAPH_FILE, DATA_FILE, FACTS_FILE))
    return not folder.is_symlink() and all(path.is_file() and not path.is_symlink() for path in files)


def _runtime() -> str:
    """Which onnxruntime is installed, of the packages that bring one; without importing it."""
    found = []
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def _prune(root: Path) -> None:
    """Remove what killed processes left behind, and what was not used for weeks: files of our names only."""
    for path in root.iterdir():
        with contextlib.suppress(OSError):
            if not path.is_symlink() and path.is_dir():
                _remove_if_done_with(path, time.time())


def _remove_if_done_with(path: Path, now: float) -> None:
    if path.name.startswith(_TEMPORARY_PREFIX) and now - path.stat().st_mtime > _ABANDONED_SECONDS:
        if (path / "made").is_dir():
            delete_prepared(path / "made")
        path.rmdir()
    elif path.name.startswith(_DAMAGED_PREFIX) or (
        path.match(_ANY_KEY) and now - (path / FACTS_FILE).stat().st_mtime > _UNUSED_SECONDS
    ):
        delete_prepared(path)
