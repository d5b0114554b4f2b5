"""A result on its way: beside the file that is to be, a folder `NAME.partial` with what there is of it so far.

The folder goes when the file is whole, and its name says until then that nothing here is. Into it, `data` and `failed`
are appended to; then a line in the journal says how long they are by now, and how far the source was read for it. What
is longer than the last whole line of the journal says was written by a process that died before it could say so, and is
cut off by the next one, which computes it again. So each record is there once, whenever a process is killed, and (as
files reach the disk before the journal speaks of them) whenever the machine loses its power.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import IO, Any

from filelock import FileLock

from asyncembed.errors import OptionError
from asyncembed.files import move
from asyncembed.journal import Journal, take_lock

VERSION = 1
"""Of what the folder holds: another version's draft is not gone on with."""


_NAMES = frozenset({"about", "data", "failed", "journal", "lock", "whole"})
"""Of all that a run leaves in the folder."""

_OF_FILELOCK = ".filelock-"
"""What names of files begin with by which filelock sees what a file system can do; a killed process leaves them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How far a draft is.

    Attributes:
        read: Records of the source, failed ones included.
        written: Records that have a result.
        size_bytes: Of `data`.
        failed_bytes: Of `failed`.
        checksum: Of the texts of all that was read, in their order.
        is_whole: Whether the source has no more.
    """

    read: int = 0
    written: int = 0
    size_bytes: int = 0
    failed_bytes: int = 0
    checksum: int = 0
    is_whole: bool = False


class Draft:
    """The draft of one file, held by one process at a time: a context manager. All of it blocks."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder: Path = target.with_name(f"{target.name}.partial")
        self.data: Path = self.folder / "data"
        self.failed: Path = self.folder / "failed"
        self.mark: Mark = Mark()
        """What the journal says."""
        self._journal = Journal(self.folder / "journal")
        self._lock_file = self.folder / "lock"
        self._lock = FileLock(self._lock_file)
        self._files: dict[Path, IO[bytes]] = {}
        self._is_removed = False  # what is there after that is another process's

    def __enter__(self) -> "Draft":
        """Raises `OptionError` if another process is writing it, or somebody has put something else in its place."""
        taken = f"{self.target} is being written by another process"
        try:
            self._check_is_ours()
            self.folder.mkdir(exist_ok=True)
            is_there = self._take_lock(taken)
        except (FileNotFoundError, FileExistsError) as error:  # the other's folder goes just now
            raise OptionError(taken) from error
        if not is_there:
            self._lock.release()
            raise OptionError(taken)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        if not (self._is_removed or self._journal.exists()):
            self._remove()
        self._lock.release()

    def _check_is_ours(self) -> None:
        """See that nothing is there that would be written through, or deleted with the folder."""
        for path in (self.folder, *(self.folder.iterdir() if self.folder.is_dir() else ())):
            with suppress(FileNotFoundError):
                is_right = S_ISDIR if path == self.folder else S_ISREG
                if not is_right(path.lstat().st_mode):
                    raise OptionError(f"{path} is a link, or no file or folder that a run has left: remove it")
            if path != self.folder and not _is_of_a_run(path.name):
                raise OptionError(f"{path} is of no run, and {self.folder} will be deleted: move it elsewhere")

    def _take_lock(self, taken: str) -> bool:
        """Lock the folder; whether that is still its lock then, and not one that its owner has deleted meanwhile.

        What is open keeps its number, and so nothing else that is there later is taken for it.
        """
        seen = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            take_lock(self._lock, taken)
            try:
                return os.path.samestat(os.fstat(seen), self._lock_file.stat())
            except FileNotFoundError:
                return False
        finally:
            os.close(seen)

    # ---------------------------------------------------------------- from the beginning, or from where it was left

    @property
    def origin(self) -> Mapping[str, Any] | None:
        """What an earlier process has begun it with; None: there is nothing to go on with."""
        ends = self._ends()
        if ends is None:
            return None
        origin = ends[0].get("origin")
        if not isinstance(origin, dict):
            raise self._broken()
        return origin

    def begin(self, origin: Mapping[str, Any], header: bytes) -> None:
        """Make it anew; `header` is what `data` begins with."""
        self._close()
        self._journal.remove()
        for path in (self.data, self.failed):
            path.write_bytes(b"")
        self._open()
        self.append(header)
        self._journal.write({"version": VERSION, "origin": origin})
        self.commit(Mark(size_bytes=len(header)))

    def resume(self) -> None:
        """Go on with an earlier one: what its journal does not speak of is cut off.

        Raises:
            OptionError: It is of another version, or broken.
        """
        ends = self._ends()
        assert ends is not None, "it is gone on with where it has an origin"
        if ends[0].get("version") != VERSION:
            raise OptionError(f"{self.folder} was begun by another version of asyncembed: start over with --restart")
        self.mark = self._marked(ends[1])
        if not self.mark.is_whole:
            sizes = {self.data: self.mark.size_bytes, self.failed: self.mark.failed_bytes}
            if not all(path.exists() and path.stat().st_size >= size for path, size in sizes.items()):
                raise self._broken()
            for path, size in sizes.items():
                with path.open("r+b") as file:
                    file.truncate(size)
            self._open()
        self._journal.cut()

    def discard(self) -> None:
        """Have nothing of it stay, when it is left."""
        self._close()
        self._journal.remove()

    def _ends(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        try:
            return self._journal.ends()
        except ValueError:
            raise self._broken() from None

    def _marked(self, line: Mapping[str, Any]) -> Mark:
        try:
            mark = Mark(**line)
        except TypeError:
            raise self._broken() from None
        if not all(isinstance(number, int) and number >= 0 for number in asdict(mark).values()):
            raise self._broken()
        return mark

    def _broken(self) -> OptionError:
        return OptionError(f"{self.folder} is broken, and cannot be gone on with: start over with --restart")

    # ---------------------------------------------------------------- appending

    def append(self, data: "bytes | memoryview", failed: bytes = b"") -> None:
        """Write more; it counts from the next `commit` on."""
        self._files[self.data].write(data)
        self._files[self.failed].write(failed)

    def commit(self, mark: Mark) -> None:
        """Have what was written stay, and note that it is as much as `mark` says."""
        for path in (self.data, self.failed):
            self._files[path].flush()
            os.fsync(self._files[path].fileno())
        self._journal.write(asdict(mark))
        self.mark = mark

    def _open(self) -> None:
        for path in (self.data, self.failed):
            self._files[path] = path.open("ab")

    def _close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    # ---------------------------------------------------------------- the end

    def publish(self, whole: Path, about: bytes | None, failed_to: Path | None) -> None:
        """Have the file be there, which `whole` (in the folder) is, and nothing else any more.

        `about` goes into a file beside it; what failed is copied to `failed_to`. May be called again after it was
        interrupted: without `whole`, if that has become the file already.
        """
        self._close()
        if failed_to is not None and whole.exists():
            # Always of the same name, which the next run takes if this one is killed here.
            copy = failed_to.with_name(f"{failed_to.name}.partial")
            copy.unlink(missing_ok=True)  # it may be a link by now
            with self.failed.open("rb") as failed, copy.open("xb") as file:
                shutil.copyfileobj(failed, file)
            move(copy, failed_to)
        beside = about_file(self.target)
        if whole.exists():
            # Never an older file with what is said about the new one.
            self.target.unlink(missing_ok=True)
            beside.unlink(missing_ok=True)
            if about is not None:
                told = self.folder / "about"
                told.write_bytes(about)
                move(told, beside)
            move(whole, self.target)
            _sync_folder(self.target.parent)
        self._remove()

    def _remove(self) -> None:
        """Remove the folder, its journal first: without one there is no draft. The lock goes last, while it is held."""
        self._journal.remove()
        self._is_removed = True
        with suppress(OSError):
            for path in list(self.folder.iterdir()):
                if path != self._lock_file and _is_of_a_run(path.name):
                    path.unlink(missing_ok=True)
            if os.name == "nt":  # where nothing goes that is open, as this is if another process has it by now
                self._lock.release()
            self._lock_file.unlink()
            self.folder.rmdir()
        self._lock.release()


def _is_of_a_run(name: str) -> bool:
    return name in _NAMES or name.startswith(_OF_FILELOCK)


def about_file(target: Path) -> Path:
    """Where it stands what a file was made with, if the file itself cannot say so."""
    return target.with_name(f"{target.name}.meta.json")


def _sync_folder(folder: Path) -> None:
    """Have the names of a folder stay. Windows does so by itself."""
    if os.name != "posix":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
