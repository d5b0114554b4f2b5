"""Weights that lie in files beside their graph: which these are, and whether onnxruntime will open them.

It does so (from 1.24.2 on) only if a file's real path is inside the directory of the path that it was given for the
graph, or inside the directory of the graph's own real path. In the hub's cache both are links, and where they lead is
up to whoever wrote them.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from asyncembed.errors import ModelLoadError
from asyncembed.runtime.onnx_file import read_onnx_file


def external_data_files(model: Path) -> tuple[str, ...]:
    """Names of the files that hold weights of a graph, relative to the graph's directory; blocks.

    Read from the graph itself. What is no such graph has none, and a name that leads out of the directory is none.
    """
    try:
        names = read_onnx_file(model).weights
    except OSError:
        return ()
    return tuple(name for name in names if _stays_inside(name))


def are_within_reach(model: Path, names: Sequence[str]) -> bool:
    """Whether onnxruntime will open these files for the graph at `model`; blocks."""
    allowed = (model.parent.resolve(), model.resolve().parent)
    return all(
        any((model.parent / name).resolve().is_relative_to(directory) for directory in allowed) for name in names
    )


def check_origin(model: Path, names: Sequence[str]) -> None:
    """See that these files of the graph at `model` may be read although onnxruntime would not; blocks.

    That is so in the hub's cache, where a file is a link into the blobs of its repo, or into those that all repos
    share. Elsewhere a link is as good as the stranger who made the directory: it could show any file as numbers.

    Raises:
        ModelLoadError: One of them lies elsewhere.
    """
    snapshot = snapshot_of(model)
    repo = None if snapshot is None else snapshot.parent.parent.resolve()
    allowed = (model.parent.resolve(), *(() if repo is None else (repo / "blobs", repo.parent / "blobs")))
    for name in names:
        target = (model.parent / name).resolve()
        if not any(target.is_relative_to(directory) for directory in allowed):
            raise ModelLoadError(
                f"{model.parent / name} is a link out of its directory, to {target}, which is not read for a graph: "
                "put the file itself there",
                model=str(model),
            )


def snapshot_of(path: Path) -> Path | None:
    """The snapshot of a hub's cache that a path lies in, by its name: `models--org--name/snapshots/<commit>`."""
    for parent in path.parents:
        if (
            re.fullmatch(r"[0-9a-f]{40}", parent.name)
            and parent.parent.name == "snapshots"
            and parent.parent.parent.name.startswith("models--")
        ):
            return parent
    return None


def _stays_inside(name: str) -> bool:
    path = PureWindowsPath(name)  # which also knows the separators and roots of other systems
    return bool(name) and not path.anchor and ".." not in path.parts
