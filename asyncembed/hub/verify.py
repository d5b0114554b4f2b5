"""Whether the bytes on disk are the file that the hub lists."""

import hashlib
from pathlib import Path
from typing import BinaryIO

from asyncembed.hub.listing import RepoFile

READ_BYTES = 8 * 2**20
"""How much is hashed per step: about 10 ms, which is also how long a cancellation may wait."""


class ContentHash:
    r"""The hash of a file's content, computed from its beginning as far as that is known.

    Large files are named by the sha256 of their content, the others by their git blob id, the sha1 over
    `b"blob " + decimal size + b"\0" + content` (git's object format).

    Attributes:
        position: All bytes before it are in the hash.
    """

    def __init__(self, file: RepoFile) -> None:
        self._file = file
        self.restart()

    def restart(self) -> None:
        """Forget all that was hashed."""
        self.position: int = 0
        if self._file.lfs_sha256 is not None:
            self._hash = hashlib.sha256()
        else:
            self._hash = hashlib.sha1(b"blob %d\0" % self._file.size_bytes, usedforsecurity=False)

    def feed(self, data: bytes) -> None:
        """Add the bytes at `position`."""
        self._hash.update(data)
        self.position += len(data)

    def advance(self, content: BinaryIO) -> bool:
        """Add the next portion, read from `content`; False at the end of the file."""
        content.seek(self.position)
        data = content.read(min(READ_BYTES, self._file.size_bytes - self.position))
        self.feed(data)
        return bool(data)

    def matches(self) -> bool:
        """Whether what was hashed is the whole file, unchanged."""
        return self.position == self._file.size_bytes and self._hash.hexdigest() == self._file.etag


def is_intact(path: Path, file: RepoFile) -> bool:
    """Whether the content of `path` is that of `file`; reads it all."""
    if path.stat().st_size != file.size_bytes:
        return False
    content_hash = ContentHash(file)
    with path.open("rb") as content:
        while content_hash.advance(content):
            pass
    return content_hash.matches()
