"""huggingface_hub's cache on disk: where things lie in it, what of it is usable, and how files appear in it.

```
<cache>/.locks/models--org--name/<etag>.lock
<cache>/models--org--name/
    blobs/<etag>                        the bytes, once per content
    refs/<revision>                     the commit a name stands for: 40 hex digits, nothing else
    snapshots/<commit>/<path>           links to ../../blobs/<etag>
    trees/<commit>.json                 all files of the commit, with sizes and hashes
```
Everything here blocks. Nothing reads a lock: each file appears by a rename, a listing before its files (so
that any tool sees a half-filled snapshot for what it is), and a ref after all files it leads to (so that a
failed update leaves the old snapshot in use).

Others may write to a cache, too. Below a repo's folder only a snapshot's files may be links: what would be written or
deleted behind a link that stands for a directory is refused, and what such a snapshot holds is not used.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from asyncembed.errors import CacheNotWritableError, DiskFullError, DownloadError
from asyncembed.files import move, replacing
from asyncembed.hub.listing import DEFAULT_REVISION, Listing, RepoFile, Wanted, parse_file
from asyncembed.hub.partial import Partial, allocated_bytes
from asyncembed.hub.verify import is_intact
from asyncembed.repo_files import is_commit, is_safe_path

EMPTY_BLOB_ID = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
"""git's name for no bytes at all; another blob without bytes is what a crash left."""

_MOST_OF_A_PATH = 248
"""Characters that a directory's path may have on Windows; a file's may have twelve more."""

_TREE_FORMAT = 1
_MAX_TREE_BYTES = 64 * 2**20
_MAX_REF_BYTES = 1024
_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This file marks a cache directory (https://bford.info/cachedir/); backup tools may leave it out.\n"
)


@dataclass(frozen=True, slots=True)
class OnDisk:
    """What the cache holds of what is wanted from one commit.

    Attributes:
        snapshot: Its directory.
        missing: Wanted files that are not (wholly) there.
        listing: All files that there should be, where that is known.
    """

    snapshot: Path
    missing: tuple[str, ...]
    listing: Listing | None

    def is_complete(self, wanted: Wanted) -> bool:
        """Whether nothing can be missing."""
        return not self.missing and (self.listing is not None or bool(wanted.required))

    def is_loadable(self, wanted: Wanted) -> bool:
        """Whether a model can be loaded from it, where the network is out of reach."""
        if wanted.required:
            return not set(self.missing) & set(wanted.required)
        return not self.missing


def cache_root(cache_dir: str | os.PathLike[str] | None) -> Path:
    """The cache's root: `cache_dir`, else where huggingface_hub keeps its own."""
    from huggingface_hub import constants

    root = Path(cache_dir if cache_dir is not None else constants.HF_HUB_CACHE)
    try:
        return root.expanduser().resolve()
    except RuntimeError as error:  # a user without an entry in passwd, as in a container, and no HOME
        raise CacheNotWritableError(
            f"the cache {root} cannot be found, as this user has no home; set HOME or HF_HOME, or give cache_dir="
        ) from error


class RepoCache:
    """One repo's part of the cache."""

    def __init__(self, root: Path, repo: str) -> None:
        self.root = root
        self.repo = repo
        self.folder: Path = _existing_folder(root, f"models--{repo.replace('/', '--')}")

    def blob(self, file: RepoFile) -> Path:
        """Where the bytes of `file` belong."""
        return self.folder / "blobs" / file.etag

    def snapshot(self, commit: str) -> Path:
        """The directory of one commit."""
        return self.folder / "snapshots" / commit

    def lock(self, file: RepoFile) -> Path:
        """The lock file of a blob, which huggingface_hub uses too."""
        return self.root / ".locks" / self.folder.name / f"{file.etag}.lock"

    def on_disk(self, revision: str, wanted: Wanted) -> OnDisk | None:
        """What is there for `revision`; None if nothing is. Writes nothing.

        Where the default revision leads to an incomplete snapshot (an update that failed half-way in another
        tool) or nowhere, a complete older one is taken.
        """
        commit = self.read_ref(revision)
        found = self._on_disk_at(commit, revision, wanted) if commit is not None else None
        if revision == DEFAULT_REVISION and not (found and found.is_loadable(wanted)):
            for snapshot in self._snapshots():
                other = self._on_disk_at(snapshot.name, revision, wanted)
                if other is not None and other.is_complete(wanted):
                    return replace(other, listing=None)
        return found

    def read_ref(self, revision: str) -> str | None:
        """The commit that `revision` stood for at the last download."""
        if is_commit(revision):
            return revision
        if not is_safe_path(revision):
            return None
        try:
            commit = _read_text(self.folder / "refs" / revision, _MAX_REF_BYTES).strip()
        except (OSError, ValueError):
            return None
        return commit if is_commit(commit) else None

    def write_ref(self, revision: str, commit: str) -> None:
        """Let `revision` name `commit`; writes only what changes."""
        if is_commit(revision) or not is_safe_path(revision):
            return
        path = self._directory("refs", *revision.split("/")[:-1]) / revision.rpartition("/")[2]
        try:
            if _read_text(path, _MAX_REF_BYTES) == commit:
                return
        except (OSError, ValueError):
            pass
        _write_atomically(path, commit)

    def read_listing(self, revision: str, commit: str) -> Listing | None:
        """The listing of `commit` that some tool left; None if there is none that can be read."""
        try:
            data = json.loads(_read_text(self.folder / "trees" / f"{commit}.json", _MAX_TREE_BYTES))
            if data["format_version"] != _TREE_FORMAT:
                return None
            files = tuple(
                parse_file(path, entry["size"], entry["blob_id"], entry.get("lfs_sha256"), entry)
                for path, entry in data["files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return Listing(self.repo, revision, commit, files)

    def write_listing(self, listing: Listing) -> None:
        """Leave the listing of a commit for later runs and for other tools."""
        files = {file.path: _entry(file) for file in sorted(listing.files, key=lambda file: file.path)}
        path = self._directory("trees") / f"{listing.commit}.json"
        _write_atomically(path, json.dumps({"format_version": _TREE_FORMAT, "files": files}, indent=1))

    def drop_damaged(self, revision: str, wanted: Wanted) -> list[str]:
        """Read all wanted files that are there, and delete those whose bytes are not what the listing says."""
        commit = self.read_ref(revision)
        listing = None if commit is None else self.read_listing(revision, commit)
        if listing is None:
            return []
        damaged = []
        for file in listing.files:
            path = self.snapshot(listing.commit) / file.path
            if wanted.matches(file.path) and file.is_storable and path.is_file() and not is_intact(path, file):
                damaged.append(file.path)
                (self._directory("blobs") / file.etag).unlink(missing_ok=True)
                self._pointer(listing.commit, file).unlink(missing_ok=True)
        return damaged

    def list_snapshot(self, revision: str, commit: str) -> Listing | None:
        """What lies in the snapshot of a commit, for want of a listing; None if there is no snapshot."""
        snapshot = self.snapshot(commit)
        if not _is_directory(snapshot):
            return None
        files = tuple(
            RepoFile(path, (snapshot / path).stat().st_size, (snapshot / path).resolve().name)
            for path in _plausible_paths(snapshot)
        )
        return Listing(self.repo, revision, commit, files)

    def prepare(self, files: Sequence[RepoFile], new_listing: Listing | None) -> None:
        """Make the directories, see that there is room for what is missing of `files`, and leave a new listing."""
        self._directory("blobs")
        self._directory("snapshots")
        tag = self.root / "CACHEDIR.TAG"
        if not tag.exists():
            with contextlib.suppress(OSError):
                _write_atomically(tag, _TAG)
        needed = sum(file.size_bytes for file in files if not self._is_there(self.blob(file), file))
        kept = _kept_bytes(self.folder / "blobs")
        usage = shutil.disk_usage(self.folder)
        if usage.total and usage.free + kept < needed:  # some network file systems report 0 of 0
            raise disk_full(self.folder, needed - kept, usage.free)
        if new_listing is not None:
            self.write_listing(new_listing)

    def missing(self, commit: str, files: Sequence[RepoFile]) -> tuple[RepoFile, ...]:
        """Those of `files` that the snapshot lacks, or has with another size, or cannot have."""
        snapshot = self.snapshot(commit)
        return tuple(file for file in files if not (file.is_storable and self._is_there(snapshot / file.path, file)))

    def link_blob(self, commit: str, file: RepoFile) -> bool:
        """Put `file` into the snapshot if its bytes are there already; whether it is in the snapshot now."""
        if self._is_there(self.snapshot(commit) / file.path, file):
            return True
        blob = self._directory("blobs") / file.etag
        if file.size_bytes == 0 and not blob.exists():
            _write_atomically(blob, "")
        if not self._is_there(blob, file):
            return self._take_from_other(commit, file)
        self._link(blob, commit, file, may_move=False)
        return True

    def _take_from_other(self, commit: str, file: RepoFile) -> bool:
        """The same from another commit's snapshot, where that has the file itself, for want of links. Reads it all."""
        for snapshot in self._snapshots():
            listing = self.read_listing(snapshot.name, snapshot.name) if _is_directory(snapshot) else None
            for other in () if listing is None else listing.files:
                source = snapshot / other.path
                is_same = other.etag == file.etag and other.is_storable and not source.is_symlink()
                if is_same and self._is_there(source, file) and is_intact(source, file):
                    self._put(source, self._pointer(commit, file), file, _duplicate)
                    return True
        return False

    def publish(self, partial: Partial, commit: str, file: RepoFile) -> None:
        """Make a verified partial file the blob, and put it into the snapshot."""
        blob = self._directory("blobs") / file.etag
        partial.finish(blob)
        self._link(blob, commit, file, may_move=True)

    def _link(self, blob: Path, commit: str, file: RepoFile, *, may_move: bool) -> None:
        """Make the snapshot's entry of `file` lead to `blob`; without symlinks it becomes the file itself."""
        from huggingface_hub import constants

        pointer = self._pointer(commit, file)
        if not constants.HF_HUB_DISABLE_SYMLINKS:
            with contextlib.suppress(OSError, NotImplementedError):
                _symlink(os.path.relpath(blob, pointer.parent), pointer)
                # On some Windows machines links can be made, but lead nowhere.
                if self._is_there(pointer, file):
                    return
        self._put(blob, pointer, file, move if may_move else _duplicate)

    def _put(self, source: Path, pointer: Path, file: RepoFile, transfer: Callable[[Path, Path], None]) -> None:
        try:
            transfer(source, pointer)
        except PermissionError:
            # On Windows a file that somebody has open is not replaced: it may be what another download has put there.
            if not self._is_there(pointer, file):
                raise

    def _pointer(self, commit: str, file: RepoFile) -> Path:
        """The snapshot's entry of `file`, in its directory, which is there."""
        folders, _, name = file.path.rpartition("/")
        return self._directory("snapshots", commit, *filter(None, folders.split("/"))) / name

    def _directory(self, *parts: str) -> Path:
        """A directory below the repo's folder, made where there is none.

        Raises:
            CacheNotWritableError: A link stands for it, or for one on the way.
        """
        path = self.folder
        if path.is_symlink() and not _is_trusted(path):
            raise _behind_a_link(path)
        for part in parts:
            path /= part
            if path.is_symlink():
                raise _behind_a_link(path)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _on_disk_at(self, commit: str, revision: str, wanted: Wanted) -> OnDisk | None:
        snapshot = self.snapshot(commit)
        if not _is_directory(snapshot):
            return None
        listing = self.read_listing(revision, commit)
        if listing is not None:
            missing = [path for path in wanted.required if path not in listing.paths]
            files = [file for file in listing.files if wanted.matches(file.path)]
            return OnDisk(snapshot, (*missing, *(file.path for file in self.missing(commit, files))), listing)
        # No one knows what should be there. A required file is either there or not; of the others, those
        # that are there count, unless none is.
        missing = [path for path in wanted.required if not (is_safe_path(path) and _is_plausible(snapshot / path))]
        if not wanted.required and not any(map(wanted.matches, _plausible_paths(snapshot))):
            missing = list(wanted.patterns)
        return OnDisk(snapshot, tuple(missing), None)

    def _snapshots(self) -> list[Path]:
        """The snapshots, the newest first."""
        try:
            found = [path for path in (self.folder / "snapshots").iterdir() if is_commit(path.name)]
            return sorted(found, key=lambda path: -path.stat().st_mtime)
        except OSError:
            return []

    @staticmethod
    def _is_there(path: Path, file: RepoFile) -> bool:
        """Whether `path` leads to a file of the right size that we may read: another user's store may be closed."""
        try:
            return path.is_file() and path.stat().st_size == file.size_bytes and _is_readable(path)
        except OSError:
            return False


def _kept_bytes(blobs: Path) -> int:
    """What earlier downloads have left there, to be gone on with."""
    kept = 0
    for path in blobs.glob("*.asyncembed*.incomplete"):
        with contextlib.suppress(OSError):  # it is whole by now, and has another name
            kept += allocated_bytes(path.lstat())
    return kept


def _entry(file: RepoFile) -> dict[str, str | int]:
    """A file in a listing, as huggingface_hub writes it."""
    entry: dict[str, str | int] = {"size": file.size_bytes, "blob_id": file.blob_id}
    if file.lfs_sha256 is not None:
        entry |= {"lfs_sha256": file.lfs_sha256, "lfs_size": file.size_bytes}
    if file.xet_hash is not None:
        entry["xet_hash"] = file.xet_hash
    return entry


def _behind_a_link(path: Path) -> CacheNotWritableError:
    return CacheNotWritableError(
        f"{path} is a link where a directory of the cache belongs, and nothing is written or deleted behind one; "
        "remove it, or give another directory (cache_dir=, HF_HUB_CACHE or HF_HOME)",
        source=str(path),
    )


def _is_trusted(link: Path) -> bool:
    """Whether this user or the system's made the link, as one does who moves a large model to another disk."""
    return not hasattr(os, "geteuid") or link.lstat().st_uid in (0, os.geteuid())


def _is_directory(path: Path) -> bool:
    """Whether it is a directory itself, and neither a link to one nor in a `snapshots` that is one."""
    return path.is_dir() and not path.is_symlink() and not path.parent.is_symlink()


def translate_disk_error(error: OSError, where: Path) -> DownloadError:
    """The error to raise for an OSError met while writing below `where`."""
    if is_disk_full(error):
        try:
            free = shutil.disk_usage(where).free
        except OSError:
            free = 0
        return disk_full(where, None, free)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        in_use = ", or end the programs that have it open" if os.name == "nt" else ""
        return CacheNotWritableError(
            f"files are missing in the cache and it cannot be written ({error}); make it writable{in_use}, or give "
            "another directory (cache_dir=, HF_HUB_CACHE or HF_HOME)",
            source=str(where),
        )
    if os.name == "nt" and len(str(error.filename or "")) >= _MOST_OF_A_PATH:
        return DownloadError(
            f"the cache cannot be used: {error}; Windows takes no longer paths unless long ones are switched on: give "
            "a directory with a shorter name (cache_dir=, HF_HUB_CACHE or HF_HOME)",
            source=str(where),
        )
    return DownloadError(f"the cache cannot be used: {error}", source=str(where))


def is_disk_full(error: OSError) -> bool:
    """Whether the disk, a quota or a limit on a file's size left no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_full(where: Path, needed_bytes: int | None, free_bytes: int) -> DiskFullError:
    """The error for a disk without room for `needed_bytes` more."""
    needed = "" if needed_bytes is None else f"{needed_bytes / 1e6:,.1f} MB are needed, "
    return DiskFullError(
        f"no room left on the disk (or in the quota) of {where}: {needed}{free_bytes / 1e6:,.1f} MB are "
        "free; free some, or give another directory (cache_dir=, HF_HUB_CACHE or HF_HOME)",
        source=str(where),
    )


def _existing_folder(root: Path, name: str) -> Path:
    """The repo's folder; one in other letter case (older tools wrote lower case) if only that exists."""
    exact = root / name
    if not exact.is_dir():
        with contextlib.suppress(OSError):
            for path in root.iterdir():
                if path.name.lower() == name.lower() and path.is_dir():
                    return path
    return exact


def _is_plausible(path: Path) -> bool:
    """Whether a cached file of unknown size may be whole: it resolves, and is not what a crash left empty."""
    try:
        target = path.resolve(strict=True)
        is_filled = target.stat().st_size > 0 or target.name in (EMPTY_BLOB_ID, "__init__.py")
        return target.is_file() and is_filled and _is_readable(target)
    except OSError:
        return False


def _plausible_paths(snapshot: Path) -> list[str]:
    return [path.relative_to(snapshot).as_posix() for path in sorted(snapshot.rglob("*")) if _is_plausible(path)]


def _is_readable(path: Path) -> bool:
    return os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)


def _symlink(target: str, pointer: Path) -> None:
    """Make or replace a link without a moment in which there is none."""
    try:
        pointer.symlink_to(target)
    except FileExistsError:
        if pointer.is_symlink() and str(pointer.readlink()) == target:
            return
        with replacing(pointer) as temporary:
            temporary.symlink_to(target)


def _duplicate(source: Path, target: Path) -> None:
    """Give a file another name, in the place of what has it now; where it can have but one, copy it."""
    with replacing(target) as temporary:
        try:
            os.link(source.resolve(), temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("xb") as file:
        file.write(text.encode())


def _read_text(path: Path, most_bytes: int) -> str:
    """What a small file holds.

    Raises:
        OSError: There is none, or something else: a pipe, which would never end, or a file without end.
        ValueError: It is no text, or more than `most_bytes`.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{path} is larger than {most_bytes:,} bytes")
    return content.decode()


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
