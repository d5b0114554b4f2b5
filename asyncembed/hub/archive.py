"""Files from a `.tar.gz` at any URL, extracted below one folder of the cache."""

import contextlib
import gzip
import secrets
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from glob import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self, cast

import anyio
from anyio import from_thread

from asyncembed.errors import ArchiveError, NotCachedError, RepoFileNotFoundError
from asyncembed.files import WritableFile, in_disk_thread, move, open_to_write
from asyncembed.hub.access import HubAccess
from asyncembed.hub.addresses import shown_address
from asyncembed.hub.listing import Wanted
from asyncembed.hub.locks import newest_write, only_one
from asyncembed.hub.partial import QUIET_SECONDS
from asyncembed.hub.progress import BytesReceived, DownloadFinished, DownloadStarted, FileFinished, Reporter
from asyncembed.hub.retry import RetryBudget, TransientError
from asyncembed.repo_files import is_safe_path, shown

if TYPE_CHECKING:
    from asyncembed.hub.client import Answer

MAX_MEMBERS = 10_000
MAX_EXTRACTED_BYTES = 64 * 2**30
MAX_EXPANSION = 100
SPARE_BYTES = 16 * 2**20
"""What an archive may be and hold, below its folder or not. A gzip can expand a thousandfold, and weights hardly do:
all that comes out of it is at most so many times its size, and a little more for small ones."""

MAX_HEADER_BYTES = 2**18
"""What may lie between two files, and behind the last one: headers, which are read into memory, and padding."""

MAX_NAME_BYTES = 2**12
"""What a header may have of a long name, or of pax's keywords, which old tarfiles search in quadratic time."""

COPY_BYTES = 2**20


class Archive:
    """An archive; its top folder, `folder`, goes into the cache's root, where fastembed keeps it too."""

    def __init__(self, url: str, folder: str, wanted: Wanted, root: Path, access: HubAccess) -> None:
        if not is_safe_path(folder) or "/" in folder:
            raise ArchiveError(f"{folder!r} is no name of a folder", source=shown_address(url))
        self.name: str = shown_address(url)
        self._url = url
        self._folder = folder
        self._wanted = wanted
        self._root = root
        self._target = root / folder
        # This server is not the hub, and is shown no token.
        self._access = replace(access, token=False)

    def complete(self) -> Path | None:
        """See Place."""
        required = self._wanted.required
        is_whole = all(is_safe_path(path) and _has_bytes(self._target / path) for path in required)
        return self._target if is_whole and any(self._target.glob("*")) else None

    def loadable(self) -> Path:
        """See Place."""
        found = self.complete()
        if found is None:
            raise NotCachedError(
                f"{self._folder} is not (wholly) in the cache at {self._root} and the network may not be used",
                source=self.name,
            )
        return found

    async def download(self, report: Reporter) -> Path:
        """See Place. The folder appears as a whole, by a rename."""
        staging = self._root / _staging(self._folder, secrets.token_hex(4))
        lock = self._root / ".locks" / f"{self._folder}.lock"
        watch = partial(newest_write, self._root, f"{_staging(escape(self._folder), _ANY)}/**/*")
        async with only_one(lock, watch, self._access.policy.stuck_seconds) as is_locked:
            found = await in_disk_thread(self.complete)
            if found is not None:
                return found
            if is_locked:
                await in_disk_thread(self._delete_leftovers)
            try:
                await in_disk_thread(partial(staging.mkdir, parents=True))
                archive = staging / "archive.tar.gz"
                size = await self._transfer(archive, report)
                # Cancelled between two portions: a large archive takes minutes.
                unpack = partial(extract, check=from_thread.check_cancelled)
                await in_disk_thread(unpack, archive, staging, self._folder, self.name)
                await in_disk_thread(self._install, staging / self._folder)
            finally:
                with anyio.CancelScope(shield=True):
                    await in_disk_thread(shutil.rmtree, staging, True)
        report(FileFinished(self.name, self._folder, size))
        report(DownloadFinished(self.name))
        found = await in_disk_thread(self.complete)
        if found is None:
            raise RepoFileNotFoundError(
                f"the archive {self.name} has no {', '.join(self._wanted.required)} in its folder {self._folder}",
                source=self.name,
            )
        return found

    async def _transfer(self, archive: Path, report: Reporter) -> int:
        """Download the archive, from its beginning again where the connection breaks; gives its size."""
        await in_disk_thread(import_module, "asyncembed.hub.client")
        from asyncembed.hub.client import open_client
        from asyncembed.hub.hops import Asked

        asked = Asked(self.name, is_hub=False)
        budget = RetryBudget(self._access.policy, f"downloading {self.name}", self.name)
        async with open_client(self._access) as client:
            while True:
                try:
                    async with (
                        client.open_content(asked, location=self._url) as answer,
                        open_to_write(archive) as content,
                    ):
                        return await self._receive(answer, content, report)
                except TransientError as error:
                    await budget.wait(error)

    async def _receive(self, answer: "Answer", content: WritableFile, report: Reporter) -> int:
        limit, total, received = self._access.policy.archive_limit_bytes, answer.length, 0
        too_large = ArchiveError(f"{self.name} is larger than {limit:,} bytes", source=self.name)
        if total is not None and total > limit:
            raise too_large
        report(DownloadStarted(self.name, 1, total))
        while chunk := await answer.receive():
            received += len(chunk)
            if received > limit:
                raise too_large
            await content.write(chunk)
            report(BytesReceived(self.name, self._folder, received, total))
        if answer.status != 200 or total not in (None, received):
            raise TransientError(f"the connection ended after {received} of {total} bytes")
        return received

    def _delete_leftovers(self) -> None:
        """Delete what downloads have left that nobody ends any more: their processes were killed."""
        for leftover in self._root.glob(_staging(escape(self._folder), _ANY)):
            written = max(newest_write(self._root, leftover.name), newest_write(leftover, "**/*"))
            if time.time() - written > QUIET_SECONDS and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)

    def _install(self, extracted: Path) -> None:
        """Put the folder in its place: of a link there, only itself goes away; of a folder, what the archive has."""
        if self._target.is_symlink():
            self._target.unlink()
        if not self._target.exists():
            move(extracted, self._target)
            return
        # An interrupted tool's, or somebody's own of this name: what else is in it stays.
        home = self._target.resolve()
        for path in sorted(extracted.rglob("*")):
            place = self._target / path.relative_to(extracted)
            if not place.parent.resolve().is_relative_to(home):
                raise ArchiveError(f"{place.parent} is a link out of {home}; take it away", source=self.name)
            if path.is_dir():
                place.mkdir(exist_ok=True)
            else:
                move(path, place)


_ANY = "????????"
"""A pattern for the token of any download."""


def _staging(folder: str, token: str) -> str:
    """The name of the folder in which an archive becomes `folder`."""
    return f".{folder}.{token}.incomplete"


def unfinished_archives(root: Path) -> dict[Path, str]:
    """Where archives are on their way, or were when their process was killed → the folders they become. Blocks."""
    found = [path for path in root.glob(_staging("*", _ANY)) if path.is_dir() and not path.is_symlink()]
    return {path: path.name[1:].rsplit(".", 2)[0] for path in found}


def extract(archive: Path, into: Path, folder: str, source: str, *, check: Callable[[], object] = lambda: None) -> None:
    """Extract the regular files below `folder` of a `.tar.gz` to `into / folder`; blocks.

    Model archives hold files and folders only: links, devices and names that lead elsewhere are refused
    rather than interpreted, and the compressed stream is read to its end, where its checksum is. `check` is called
    before each portion, and may raise.

    Raises:
        ArchiveError: It is no such archive, is damaged, or holds what is refused. Files may have been
        written.
    """
    written: set[str] = set()
    try:
        limit = min(MAX_EXTRACTED_BYTES, MAX_EXPANSION * archive.stat().st_size + SPARE_BYTES)
        with gzip.open(archive) as packed:
            stream = _BoundedStream(cast(BinaryIO, packed), limit, source, check)
            with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r|", tarinfo=_Header) as members:
                members.extraction_filter = getattr(tarfile, "data_filter", None)  # since 3.11.4
                for count, member in enumerate(members):
                    if count >= MAX_MEMBERS:
                        raise ArchiveError(f"{source} holds more than {MAX_MEMBERS} entries", source=source)
                    stream.expect(member.size if member.isfile() else 0)
                    name = _name_of(member, source)
                    if name is None or not name.startswith(f"{folder}/"):
                        continue
                    if name in written:
                        raise ArchiveError(f"{source} holds {shown(name)} twice", source=source)
                    written.add(name)
                    members.extract(member, into, set_attrs=False)  # the umask decides about its mode
            while stream.read(COPY_BYTES):
                pass
    except _UNREADABLE as error:
        raise ArchiveError(f"{source} is no .tar.gz, or a damaged one ({error})", source=source) from error
    if not written:
        raise ArchiveError(f"{source} has no folder {folder!r}", source=source)


_UNREADABLE = (
    tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, ValueError, ArithmeticError, LookupError, RecursionError,
)  # fmt: skip
"""What a stream raises that is no archive: tarfile's parser believes numbers, and calls itself for each long name."""


class _Header(tarfile.TarInfo):
    """A header that is refused before what belongs to it is read into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENDED and not 0 <= header.size <= MAX_NAME_BYTES:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


_EXTENDED = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip


class _BoundedStream:
    """What an archive unpacks to, of which only so much is read as there is reason for.

    tarfile believes the headers: it reads a list of holes as long as it goes on, and skips as much as it is told. So
    what comes is counted here, where it is read.
    """

    def __init__(self, stream: BinaryIO, limit_bytes: int, source: str, check: Callable[[], object]) -> None:
        self._stream = stream
        self._left_bytes = limit_bytes
        self._expected_bytes = MAX_HEADER_BYTES
        self._source = source
        self._check = check

    def expect(self, size_bytes: int) -> None:
        """A file of this size follows, and then the next header."""
        self._expected_bytes = size_bytes + MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        """The next bytes, as of any file."""
        self._check()
        data = self._stream.read(min(size, COPY_BYTES))
        self._left_bytes -= len(data)
        self._expected_bytes -= len(data)
        if min(self._left_bytes, self._expected_bytes) < 0:
            raise ArchiveError(f"{self._source} expands to more than an archive of a model holds", source=self._source)
        return data


def _name_of(member: tarfile.TarInfo, source: str) -> str | None:
    """The path of a file in the archive; None for a folder, and for what macOS adds."""
    name = member.name.removeprefix("./").rstrip("/")
    if name in ("", ".") or name.rpartition("/")[2].startswith("._"):
        return None
    is_plain = (member.isfile() and not member.issparse()) or member.isdir()  # a hole of any size takes no bytes
    if not is_plain or not is_safe_path(name):
        raise ArchiveError(
            f"{source} holds {shown(member.name)}, which is no file or folder below it",
            source=source,
        )
    return name if member.isfile() else None


def _has_bytes(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_size > 0
    return False
