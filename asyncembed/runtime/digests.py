"""The content of files, known without reading them twice."""

import contextlib
import errno
import hashlib
import re
import time
from pathlib import Path

from asyncembed.files import replacing
from asyncembed.repo_files import read_note

KEY_LENGTH = 32
"""Hexadecimal digits of a key, which the name of a folder is."""

_DIGEST_LENGTH = 64
_DIGEST = re.compile(f"[0-9a-f]{{{_DIGEST_LENGTH}}}")

# Within this time a file can change twice without a new timestamp (FAT: 2 s): its stat does not identify it.
_TIMESTAMP_STEP_SECONDS = 2.0


def key_of(parts: list[str]) -> str:
    """A name for what these parts, together and in this order, identify."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:KEY_LENGTH]


def file_digest(path: Path, known: Path) -> str:
    """The SHA-256 of a file's content, read only if the file is not the one it was. Blocks.

    Digests are remembered in the directory `known`, under the identity that `stat` gives: device, inode,
    size, and the times of the last change to the content and to the inode. No program can set the latter, so
    it also tells files apart whose modification time an archive or a package manager has fixed. (On Windows it is the
    time when the file was made.)
    """
    status, memo = path.stat(), _memo(path, known)
    if (remembered := _remembered(memo)) is not None:
        return remembered
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - max(status.st_mtime, status.st_ctime) > _TIMESTAMP_STEP_SECONDS:
        _remember(memo, digest)
    return digest


def known_digest(path: Path, known: Path) -> str:
    """The same, without reading the file.

    Raises:
        OSError: There is no such file, or its digest was not taken as it is now.
    """
    if (remembered := _remembered(_memo(path, known))) is None:
        raise FileNotFoundError(errno.ENOENT, "its content was not seen yet", str(path))
    return remembered


def _remembered(memo: Path) -> str | None:
    """A digest that was kept; None: what is there, if anything, is none, as after the machine lost its power."""
    found = read_note(memo, max_bytes=_DIGEST_LENGTH)
    return found if found is not None and _DIGEST.fullmatch(found) else None


def _memo(path: Path, known: Path) -> Path:
    """Where the digest of a file as it is now is remembered, if it was ever taken."""
    status = path.stat()
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return known / key_of([repr(identity)])


def _remember(memo: Path, digest: str) -> None:
    """Keep a digest; where that cannot be, the next caller hashes again."""
    with contextlib.suppress(OSError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        with replacing(memo) as temporary:
            temporary.write_text(digest, "ascii")
