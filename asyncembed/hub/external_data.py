"""A path from which onnxruntime loads a graph whose weights lie in files of their own.

In the hub's cache all files are links, and two files of one repo may lead to different directories of a store that all
repos share, where onnxruntime does not follow (see `asyncembed.runtime.external_data`). Then hard links to both, under
their repo names in one directory, are what every version accepts.
"""

import contextlib
import getpass
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from asyncembed.errors import ModelLoadError
from asyncembed.files import in_disk_thread
from asyncembed.runtime.external_data import are_within_reach, external_data_files

logger = logging.getLogger("asyncembed")


async def loadable_model_path(directory: Path, model_file: str) -> Path:
    """The path to give to onnxruntime for `directory / model_file`: itself, where its weights can be reached from it.

    Otherwise that of a hard link (or, where links cannot be made, a copy) beside those of its weights. Where neither
    can be made anywhere it is itself, too: then the session takes the weights from memory.

    Raises:
        ModelLoadError: There is no such file.
    """
    return await in_disk_thread(_loadable_model_path, directory, model_file)


def _loadable_model_path(directory: Path, model_file: str) -> Path:
    model = directory / model_file
    if not model.is_file():
        raise ModelLoadError(f"there is no file {model}; onnx_file= names another graph", model=str(directory))
    names = external_data_files(model)
    if are_within_reach(model, names):
        return model
    needed = [model.parent / name for name in names]
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
    logger.warning(
        "each worker reads the weights of %s into memory, as they lie where onnxruntime does not follow and can be "
        "linked or copied nowhere (%s); a cache that can be written avoids it, and so does a download with "
        "HF_HUB_DISABLE_SHARED_BLOBS=1",
        model,
        "; ".join(problems),
    )
    return model


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
