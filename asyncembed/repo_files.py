"""The files of a model's repo or directory: data of a stranger, read without leaving the folder and within bounds.

A file of a repo may name others (`modules.json` its modules' folders, an index its shards), and a listing or an archive
names all of them. Every reader gets from such a name to a path by `inside`, and to what a JSON file holds by
`read_json`: the errors are ours, whatever the name or the file is.
"""

import json
import os
import re
from pathlib import Path
from reprlib import Repr
from typing import Any

from asyncembed.errors import ModelLoadError

MAX_JSON_BYTES = 32 * 2**20
"""Far more than a configuration has; what is parsed takes up to twenty times as much memory."""

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
"""Weights are in the one file, or in those that the index names."""

NEITHER = "neither an ONNX file nor model.safetensors; `save_pretrained` of the library that made it writes the latter"
"""What a repo has of which no graph can be had, as one of which the weights are pickled."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./-]{1,120}")
_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlist, _SHORT.maxdict = 2, 120, 4, 2

_NOT_ON_WINDOWS = re.compile(
    r"""
    .*[<>:"|?*\x00-\x1f]                                      # characters that names have not
    | .*[ .]$                                                # ends that are left out
    | (con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\ *(\.|$)   # devices, whatever their ending
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)

_LONGEST_PATH = 1000
_LONGEST_NAME_BYTES = 255  # of one part of a path, on every file system of Linux, macOS and Windows


def is_safe_path(path: str) -> bool:
    """Whether a name from outside is that of a file below the directory it is put into, on every platform.

    On Windows also whether there can be such a file: not where a part names a device (`aux.json`), has a character that
    names have not (`:` begins a stream of another file), or ends in a dot or a blank, which would be left out.
    """
    if len(path) > _LONGEST_PATH or "\\" in path or "\0" in path:
        return False
    parts = path.split("/")
    return all(map(_is_name, parts)) and (os.name != "nt" or all(map(is_name_on_windows, parts)))


def is_name_on_windows(part: str) -> bool:
    """Whether Windows takes this as a file's name, and as no other's."""
    return _NOT_ON_WINDOWS.match(part) is None


def inside(directory: Path, path: str) -> Path:
    """The path of a repo's file in `directory`, where the repo lies.

    Links are not followed, so it may be one: the hub's cache consists of them.

    Raises:
        ModelLoadError: The name leads out of the directory, or can be no file's.
    """
    if not is_safe_path(path):
        raise ModelLoadError(
            f"{str(directory)!r} names a file {shown(path)}, which cannot lie below it: nothing outside is read",
            model=str(directory),
        )
    return directory / path


def list_directory(directory: Path) -> list[str]:
    """The files below a directory, as paths with "/", hidden ones left out.

    Raises:
        ModelLoadError: There is no such directory, or it cannot be read.
    """
    if not directory.is_dir():
        raise ModelLoadError(f"there is no directory {directory}", model=str(directory))
    try:
        return [
            path.relative_to(directory).as_posix()
            for path in directory.rglob("*")
            if not any(part.startswith(".") for part in path.relative_to(directory).parts) and path.is_file()
        ]
    except OSError as error:
        raise ModelLoadError(f"the directory {directory} cannot be read: {error}", model=str(directory)) from error


def is_commit(revision: str) -> bool:
    """Whether `revision` is a full commit hash, which needs no look-up; also the name of a snapshot's folder."""
    return _COMMIT.fullmatch(revision) is not None


def read_json(file: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """What a JSON file holds, as `json.loads` gives it; None where there is no such file.

    Raises:
        ModelLoadError: It is no JSON, larger than `max_bytes`, nested too deeply, or cannot be read.
    """
    try:
        if not file.is_file():
            return None
        with file.open("rb") as stream:
            content = stream.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise ModelLoadError(f"{file} is larger than {max_bytes:,} bytes", model=str(file.parent))
        return json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"cannot read {file}: {error}", model=str(file.parent)) from error


def read_object(file: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file; an absent file, and one with something else in it, counts as an empty one.

    Raises:
        ModelLoadError: As `read_json`.
    """
    value = read_json(file, max_bytes=max_bytes)
    return value if isinstance(value, dict) else {}


def read_note(file: Path, *, max_bytes: int) -> str | None:
    """The text of a small file of a cache, which others may write to; None: there is none that is one. Blocks."""
    try:
        if not file.is_file():  # a pipe would never be read to its end
            return None
        with file.open("rb") as stream:
            content = stream.read(max_bytes + 1)
        return content.decode() if len(content) <= max_bytes else None
    except (OSError, ValueError):
        return None


def shown(value: object) -> str:
    """A value of a stranger's file as a message may show it: a plain word as it is, anything else as `quoted`."""
    return value if isinstance(value, str) and _PLAIN_WORD.fullmatch(value) else quoted(value)


def quoted(value: object) -> str:
    """The `repr` of a value of a stranger's file, cut to what a message bears: printable, on one line."""
    return _SHORT.repr(value)


def _is_name(part: str) -> bool:
    """Whether this can be a name in a directory; surrogates, which are no text, are none."""
    try:
        length = len(part.encode())
    except UnicodeEncodeError:
        return False
    return part not in ("", ".", "..") and not re.match(r"[A-Za-z]:", part) and length <= _LONGEST_NAME_BYTES
