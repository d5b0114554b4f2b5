"""A path from which onnxruntime loads a graph whose weights lie in files of their own.

In the hub's cache all files are links, and two files of one repo may lead to different directories of a store that all
repos share, where onnxruntime does not follow (see `asyncembed.runtime.onnx_file`). Then hard links to both, under
their repo names in one directory, are what every version accepts.
"""

import contextlib
import getpass
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from asyncembed.errors import ModelLoadError
from asyncembed.files import default_cache_dir, replacing
from asyncembed.repo_files import is_commit
from asyncembed.runtime.onnx_file import are_within_reach, check_links, read_onnx_file, snapshot_of

MARK = ".made-by-asyncembed"
"""A file in each directory of links that we made: only what holds it is ever deleted."""

logger: logging.Logger = logging.getLogger("asyncembed")


def loadable_model_path(directory: Path, model_file: str, *, beside_only: bool = False) -> Path:
    """The path to give to onnxruntime for `directory / model_file`: itself, where its weights can be reached from it.

    `beside_only`: the path to give to OpenVINO, which follows fewer links.
    Otherwise, in the hub's cache, that of a hard link (or, where links cannot be made, a copy) beside those of its
    weights. Where neither can be made anywhere it is itself, too: then the session takes the weights from memory.
    Blocks.

    Raises:
        ModelLoadError: There is no such file, or one of those that it keeps weights in is missing, or a link that
            leads out of a directory other than the hub's cache.
    """
    model = directory / model_file
    if not model.is_file():
        raise ModelLoadError(f"there is no file {model}; onnx_file= names another graph", model=str(directory))
    names = read_onnx_file(model).weights
    if missing := [name for name in names if not (model.parent / name).is_file()]:
        raise ModelLoadError(
            f"{model} keeps weights in {missing[0]}, and {model.parent} has no such file: put it there",
            model=str(directory),
        )
    snapshot = snapshot_of(model)
    if are_within_reach(model, names, beside_only=beside_only and snapshot is not None):
        return model
    check_links(model, names)
    assert snapshot is not None, "elsewhere weights out of reach are refused"
    return _link_or_copy(snapshot, (model, *(model.parent / name for name in names)))


def linked_snapshots(repos: Iterable[Path]) -> list[Path]:
    """The directories of links that we made for the snapshots of some repos of the hub's cache. Blocks.

    A link costs nothing, but it keeps the bytes of a snapshot that was deleted.
    """
    homes = [repo / "onnx_snapshots" for repo in repos]
    if (private := _private_folder(must_exist=True)) is not None:
        homes += (private / "onnx_snapshots").glob("*")
    homes += (default_cache_dir() / "onnx_snapshots").glob("*")
    found = [path for home in homes if not home.is_symlink() for path in home.glob("*")]
    return sorted(path for path in found if is_commit(path.name) and not path.is_symlink() and (path / MARK).is_file())


def _link_or_copy(snapshot: Path, files: tuple[Path, ...]) -> Path:
    """Put a graph and its weights, in this order, where onnxruntime opens them; the graph's path there."""
    problems = []
    for transfer in (os.link, shutil.copyfile):
        for home in _homes(snapshot):
            try:
                _make_marked(home)
                for path in files:
                    target = home / path.relative_to(snapshot)
                    _check_home(home, target.parent)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _place(path.resolve(), target, transfer)
            except OSError as error:
                problems.append(str(error))
            else:
                return home / files[0].relative_to(snapshot)
    logger.warning(
        "each worker reads the weights of %s into memory, as they lie where onnxruntime does not follow and can be "
        "linked or copied nowhere (%s); a cache that can be written avoids it, and so does a download with "
        "HF_HUB_DISABLE_SHARED_BLOBS=1",
        files[0],
        "; ".join(problems),
    )
    return files[0]


def _homes(snapshot: Path) -> Iterator[Path]:
    """Directories to put the links of a snapshot into, the best first."""
    repo, commit = snapshot.parent.parent, snapshot.name
    shared = repo / "onnx_snapshots"  # fastembed's place for the same thing
    if not shared.is_symlink():
        _forget_deleted(shared, repo)
        yield shared / commit
    yield default_cache_dir() / "onnx_snapshots" / repo.name / commit
    if (private := _private_folder()) is not None:
        yield private / "onnx_snapshots" / repo.name / commit


def _forget_deleted(shared: Path, repo: Path) -> None:
    """Delete our links to snapshots that were deleted: they would keep the bytes. What others made stays."""
    with contextlib.suppress(OSError):
        for path in shared.iterdir():
            is_ours = is_commit(path.name) and not path.is_symlink() and (path / MARK).is_file()
            if is_ours and not (repo / "snapshots" / path.name).exists():
                delete_links(path)


def delete_links(folder: Path) -> None:
    """Delete one of `linked_snapshots`, its mark last: what is mapped stays on Windows, and is ours the next time.

    Raises:
        OSError: Something of it stays.
    """
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()
    shutil.rmtree(folder)


def _make_marked(home: Path) -> None:
    """Make a directory, and mark it as ours; one that is there already stays as it is."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        home.mkdir()
        (home / MARK).touch()


def _check_home(home: Path, folder: Path) -> None:
    """Raise OSError where a link in the place of a folder leads out of `home`."""
    if not folder.resolve().is_relative_to(home.parent.resolve() / home.name):
        raise NotADirectoryError(f"{folder} leads elsewhere")


def _private_folder(*, must_exist: bool = False) -> Path | None:
    """A folder below the temporary one that nobody else can put a model into; None where there is none.

    It is made, unless it `must_exist`.
    """
    try:
        user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
        folder = Path(tempfile.gettempdir()) / f"asyncembed-{user}"
        if not must_exist:
            folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except (OSError, KeyError, ImportError):  # no folder to write to; no name for the user
        return None
    if not stat.S_ISDIR(status.st_mode):
        return None
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        return None
    return folder


def _place(source: Path, target: Path, transfer: Callable[[Path, Path], object]) -> None:
    """Link or copy a file to `target`, unless it is there already; it appears as a whole."""
    if target.exists() and (
        target.samefile(source) or (transfer is shutil.copyfile and target.stat().st_size == source.stat().st_size)
    ):
        return
    with replacing(target) as temporary:
        transfer(source, temporary)
