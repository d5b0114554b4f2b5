"""A blob on its way: the bytes that came so far, in any order, and a journal of which those are.

Both live in one file, so that they cannot part: the content at its final offsets in `[0, size)`, and
behind it one record per written stretch. A partial file is thus always longer than the blob, and no one
can take it for complete. When the blob is whole and verified, the journal is cut off and the file is
renamed.

One writer per partial file, which has a name that nobody else has, and one that says what may become of it:
```
<etag>.asyncembed.incomplete                    let go of
<etag>.asyncembed-<host>-<token>.incomplete     of whoever holds the blob's lock on that host
<etag>.asyncembed-<token>.incomplete            of one who goes on without the lock
```
Who holds the lock takes a leftover over by renaming it: one of the first two of this host, whose owner must be gone, or
one that nobody has written to for long. Without the lock nothing is taken over, and so no two write into one file.
"""

import contextlib
import hashlib
import os
import platform
import secrets
import stat
import struct
import threading
import time
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import BinaryIO, cast

from asyncembed.files import move
from asyncembed.hub.listing import RepoFile
from asyncembed.hub.verify import ContentHash

QUIET_SECONDS = 600.0
"""What another host, or one without the lock, began is taken over after so long without a write: no download of ours
waits that long between two."""

STALE_SECONDS = 24 * 3600.0
"""Unfinished files of huggingface_hub, which never resumes them, are deleted after so long."""

_RECORD = struct.Struct(">QQI")
"""Start and end of a written stretch, and the crc32 of those two, so that a torn record is noticed."""

_MAX_JOURNAL_BYTES = 2 * 2**20
_MAX_STRETCHES = 1000
"""What a journal may hold: a stretch per connection that broke, and a record per megabyte or less. A longer one is not
ours, and every gap between its stretches would be a request."""

_MARK = ".asyncembed"
_SUFFIX = ".incomplete"


class ByteRanges:
    """A set of byte offsets, kept as sorted, disjoint, non-adjacent `[start, end)` stretches."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._total = 0

    def __len__(self) -> int:
        """How many stretches these are."""
        return len(self._starts)

    def add(self, start: int, end: int) -> int:
        """Add `[start, end)`; returns how many of these bytes are new."""
        # Those that it overlaps or touches: ends not before its start, and starts not behind its end.
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        known = sum(high - low for low, high in zip(self._starts[first:last], self._ends[first:last], strict=True))
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        self._total += end - start - known
        return end - start - known

    def total(self) -> int:
        """How many bytes are in the set."""
        return self._total

    def gaps(self, size: int) -> list[tuple[int, int]]:
        """The stretches of `[0, size)` that are not in the set."""
        edges = zip([0, *self._ends], [*self._starts, size], strict=True)
        return [(start, end) for start, end in edges if start < end]

    def clear(self) -> None:
        """Take everything out."""
        self._starts.clear()
        self._ends.clear()
        self._total = 0


class Partial:
    """The partial file of one blob. Every method blocks and may be called from any thread.

    Attributes:
        ranges: The bytes that are on disk; changed only here, under the lock.
    """

    def __init__(self, blob: Path, file: RepoFile, *, is_locked: bool = True) -> None:
        """`is_locked`: the caller holds the blob's lock."""
        self._blob = blob
        self._size = file.size_bytes
        self._is_locked = is_locked
        self._prefix = f"{blob.name}{_MARK}-{_host_id()}-"
        prefix = self._prefix if is_locked else f"{blob.name}{_MARK}-"
        self._path = blob.with_name(f"{prefix}{secrets.token_hex(4)}{_SUFFIX}")
        self._free_path = blob.with_name(f"{blob.name}{_MARK}{_SUFFIX}")
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._journal_end = self._size
        self._hash = ContentHash(file)
        self.ranges: ByteRanges = ByteRanges()

    @property
    def path(self) -> Path:
        """Where its bytes lie until it is whole."""
        return self._path

    def open(self) -> None:
        """Take over what an earlier download of the same blob left, or begin anew."""
        with self._lock:
            self._blob.parent.mkdir(parents=True, exist_ok=True)
            for leftover in self._leftovers():
                try:
                    leftover.rename(self._path)
                    break
                except OSError:  # another process was quicker, or it is not ours to move
                    continue
            # Unbuffered, as every write is large.
            self._file = cast(BinaryIO, os.fdopen(_open_own(self._path), "r+b", buffering=0))
            self._read_journal()

    def write(self, offset: int, chunks: list[bytes]) -> int:
        """Put bytes at `offset` and note them in the journal; returns how many of them are new."""
        data = b"".join(chunks)
        with self._lock:
            if self._file is None:  # released while a cancelled caller's thread was on its way
                return 0
            self._write_at(offset, data)
            end = offset + len(data)
            stretch = struct.pack(">QQ", offset, end)
            self._write_at(self._journal_end, stretch + struct.pack(">I", zlib.crc32(stretch)))
            self._journal_end += _RECORD.size
            if offset < self._hash.position:
                self._hash.restart()  # what was hashed is there no more
            if offset == self._hash.position:
                self._hash.feed(data)
            return self.ranges.add(offset, end)

    def hash_more(self) -> bool:
        """Hash one portion of what came out of order; False when all is hashed."""
        with self._lock:
            return self._file is not None and self._hash.advance(self._file)

    def is_open(self) -> bool:
        """Whether there is anything to let go of."""
        return self._file is not None

    def is_hashed(self) -> bool:
        """Whether there is nothing left to hash, as where all came in order."""
        return self._hash.position == self._size

    def is_verified(self) -> bool:
        """Whether all bytes are there and are the file's."""
        return self._hash.matches()

    def restart(self) -> None:
        """Throw away all bytes."""
        with self._lock:
            if self._file is not None:
                self._file.truncate(0)
            self.ranges.clear()
            self._hash.restart()
            self._journal_end = self._size

    def finish(self, target: Path) -> None:
        """Make it the file `target`, which appears whole or not at all."""
        with self._lock:
            assert self._file is not None
            assert self.is_verified()
            self._file.truncate(self._size)
            self._close()
            try:
                move(self._path, target)
            except PermissionError:
                # On Windows a file that somebody has open is not replaced: it may be what another download has put.
                if not target.is_file() or target.stat().st_size != self._size:
                    raise
                with contextlib.suppress(OSError):  # it may be this one that is open; then it stays, as a leftover
                    self._path.unlink()
            self._delete_leftovers()

    def release(self) -> None:
        """Let go of it; a later download resumes from it. Does nothing after `finish` or `discard`."""
        with self._lock:
            if self._file is not None:
                self._close()
                with contextlib.suppress(OSError):
                    if self.ranges.total():
                        move(self._path, self._free_path)
                    else:
                        self._path.unlink()

    def discard(self) -> None:
        """Delete it."""
        with self._lock:
            self._close()
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _leftovers(self) -> list[Path]:
        """What other downloads of this blob left and no one writes to any more, the fullest first."""
        found = []
        for path in self._blob.parent.glob(f"{self._blob.name}{_MARK}*{_SUFFIX}") if self._is_locked else ():
            with contextlib.suppress(OSError):
                status = path.lstat()
                is_free = path == self._free_path or path.name.startswith(self._prefix)
                if _is_own(status) and (is_free or time.time() - status.st_mtime > QUIET_SECONDS):
                    found.append((allocated_bytes(status), path))
        return [path for _, path in sorted(found, reverse=True)]

    def _delete_leftovers(self) -> None:
        for path in self._leftovers():
            with contextlib.suppress(OSError):
                path.unlink()
        for path in self._blob.parent.glob(f"{self._blob.name}*{_SUFFIX}"):
            with contextlib.suppress(OSError):
                if _MARK not in path.name and time.time() - path.lstat().st_mtime > STALE_SECONDS:
                    path.unlink()

    def _read_journal(self) -> None:
        """Take what came from the journal; one that no download of ours can have written counts for nothing."""
        assert self._file is not None
        self._file.seek(self._size)
        journal = self._file.read(_MAX_JOURNAL_BYTES + 1)
        if len(journal) <= _MAX_JOURNAL_BYTES:
            for start, end in _records(journal, self._size):
                self.ranges.add(start, end)
                self._journal_end += _RECORD.size
                if len(self.ranges) > _MAX_STRETCHES:
                    break
        if len(journal) > _MAX_JOURNAL_BYTES or len(self.ranges) > _MAX_STRETCHES:
            self.ranges.clear()
            self._journal_end = self._size
            self._file.truncate(0)
        else:
            self._file.truncate(self._journal_end)

    def _write_at(self, offset: int, data: bytes) -> None:
        assert self._file is not None
        self._file.seek(offset)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


def allocated_bytes(status: os.stat_result) -> int:
    """What a file takes of its disk, gaps left out. Windows does not say it, and files have no gaps there."""
    blocks: int | None = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else blocks * 512


def _records(journal: bytes, size: int) -> Iterable[tuple[int, int]]:
    """The written stretches that a journal tells of, up to the first record that is torn."""
    for position in range(0, len(journal) - _RECORD.size + 1, _RECORD.size):
        start, end, check = _RECORD.unpack_from(journal, position)
        if zlib.crc32(journal[position : position + 16]) != check or not start <= end <= size:
            return
        yield start, end


def _open_own(path: Path) -> int:
    """Open a partial file, or begin one, with the umask's mode, as the blob will keep it.

    In a cache that others write to, something else may lie there: a link to a file of this user, or one that another
    user holds open. It goes away.
    """
    flags = os.O_RDWR | os.O_CREAT
    for name in ("O_BINARY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
        flags |= getattr(os, name, 0)
    with contextlib.suppress(OSError):
        descriptor = os.open(path, flags, 0o666)
        if _is_own(os.fstat(descriptor)):
            return descriptor
        os.close(descriptor)
    path.unlink(missing_ok=True)
    return os.open(path, flags | os.O_EXCL, 0o666)


def _is_own(status: os.stat_result) -> bool:
    """Whether it is a file of this user's, and no other name leads to it."""
    is_ours = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    return stat.S_ISREG(status.st_mode) and status.st_nlink <= 1 and is_ours


@cache
def _host_id() -> str:
    """Names this host; one that was booted anew is another one, and so is a container on another machine."""
    name = platform.node()
    with contextlib.suppress(OSError):
        name += Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    return hashlib.sha256(name.encode()).hexdigest()[:8]
