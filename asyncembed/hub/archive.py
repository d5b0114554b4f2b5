"""Files from a `.tar.gz` at any URL, extracted below one folder of the cache."""

import contextlib
import gzip
import hashlib
import logging
import re
import secrets
import shutil
import tarfile
import zlib
from base64 import b64decode
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Self, cast

import anyio
from anyio import from_thread

from asyncembed.errors import ArchiveError, CorruptFileError, NotCachedError, RepoFileNotFoundError
from asyncembed.files import BinaryFile, in_disk_thread, open_file
from asyncembed.hub.addresses import shown_address
from asyncembed.hub.listing import Wanted
from asyncembed.hub.locks import only_one
from asyncembed.hub.progress import BytesReceived, DownloadFinished, DownloadStarted, FileFinished, Reporter
from asyncembed.hub.retry import Patience, TransientError
from asyncembed.repo_files import is_safe_path, shown

if TYPE_CHECKING:
    from asyncembed.hub.client import Answer

MAX_ARCHIVE_BYTES = 16 * 2**30
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

_NUMBER = "[0-9]{1,18}"

logger: logging.Logger = logging.getLogger("asyncembed")


class Archive:
    """An archive; its top folder, `folder`, goes into the cache's root, where fastembed keeps it too."""

    def __init__(self, root: Path, url: str, folder: str, wanted: Wanted) -> None:
        if not is_safe_path(folder) or "/" in folder:
            raise ArchiveError(f"{folder!r} is no name of a folder", source=shown_address(url))
        self.name: str = shown_address(url)
        self._url = url
        self._root = root
        self._folder = folder
        self._target = root / folder
        self._wanted = wanted

    def find(self) -> Path | None:
        """See Place."""
        required = self._wanted.required
        is_whole = all(is_safe_path(path) and _has_bytes(self._target / path) for path in required)
        return self._target if is_whole and any(self._target.glob("*")) else None

    def find_usable(self) -> Path:
        """See Place."""
        found = self.find()
        if found is None:
            raise NotCachedError(
                f"{self._folder} is not (wholly) in the cache at {self._root} and the network may not be used",
                source=self.name,
            )
        return found

    async def bring(self, report: Reporter) -> Path:
        """See Place. The folder appears as a whole, by a rename."""
        await in_disk_thread(import_module, "asyncembed.hub.client")
        staging = self._root / f".{self._folder}.{secrets.token_hex(4)}.incomplete"
        lock = self._root / ".locks" / f"{self._folder}.lock"

        def last_write() -> float:
            return max((path.stat().st_mtime for path in self._root.glob(f".{self._folder}.*/*")), default=0.0)

        async with only_one(lock, last_write):
            found = await in_disk_thread(self.find)
            if found is not None:
                return found
            try:
                await in_disk_thread(_make_folder, staging)
                archive = staging / "archive.tar.gz"
                size = await self._download(archive, report)
                # Cancelled between two portions: a large archive takes minutes.
                unpack = partial(extract, check=from_thread.check_cancelled)
                await in_disk_thread(unpack, archive, staging, self._folder, self.name)
                await in_disk_thread(self._install, staging / self._folder)
            finally:
                with anyio.CancelScope(shield=True):
                    await in_disk_thread(shutil.rmtree, staging, True)
        report(FileFinished(self.name, self._folder, size))
        report(DownloadFinished(self.name))
        found = await in_disk_thread(self.find)
        if found is None:
            raise RepoFileNotFoundError(
                f"the archive {self.name} has no {', '.join(self._wanted.required)} in its folder {self._folder}",
                source=self.name,
            )
        return found

    def _install(self, extracted: Path) -> None:
        """Put the folder in its place: of a link there, only itself goes away; of a folder, what the archive has."""
        if self._target.is_symlink():
            self._target.unlink()
        if not self._target.exists():
            extracted.rename(self._target)
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
                path.replace(place)

    async def _download(self, archive: Path, report: Reporter) -> int:
        """Download the archive; going on where it broke off, if the server still has the same one."""
        from asyncembed.hub.client import open_client

        patience = Patience(f"downloading {self.name}", self.name)
        transfer = _Transfer(self.name, self._folder, report)
        # token=False: this server is not the hub.
        async with open_client(token=False) as client, open_file(archive, "xb") as content:
            while True:
                before = transfer.received
                try:
                    async with client.open_content(self._url, start=transfer.start, headers=transfer.headers) as answer:
                        await transfer.receive(answer, content)
                    break
                except TransientError as error:
                    if transfer.received > before:
                        patience.progressed()
                    await patience.after(error)
        if transfer.md5 and await in_disk_thread(_md5, archive) != transfer.md5:
            raise CorruptFileError(f"{self.name} came with wrong bytes (its md5 differs)", source=self.name)
        return transfer.received


class _Transfer:
    """An archive on its way.

    Attributes:
        received: Bytes that are on disk.
        etag: What the server calls the content, if it came with a name that says the same bytes come again.
        md5: Its hash, where the server tells it; "" where not.
    """

    def __init__(self, name: str, folder: str, report: Reporter) -> None:
        self._name = name
        self._folder = folder
        self._report = report
        self.received = 0
        self.etag = ""
        self.md5 = ""

    @property
    def start(self) -> int:
        """Where to go on."""
        return self.received if self.etag else 0

    @property
    def headers(self) -> dict[str, str]:
        """What to ask with, so that the rest comes only if it is the same archive."""
        return {"If-Range": self.etag} if self.start else {}

    async def receive(self, answer: "Answer", content: BinaryFile) -> None:
        """Write what comes.

        Raises:
            TransientError: Not all of it came, or another part.
            ArchiveError: It does not end.
        """
        start, total = self._begin(answer)
        self.received = start
        await content.seek(start)
        await content.truncate(start)
        while chunk := await answer.receive():
            await content.write(chunk)
            self.received += len(chunk)
            if self.received > MAX_ARCHIVE_BYTES:
                raise self._too_large()
            self._report(BytesReceived(self._name, self._folder, self.received, total))
        if total is not None and self.received != total:
            raise TransientError(f"the connection ended after {self.received} of {total} bytes")

    def _begin(self, answer: "Answer") -> tuple[int, int | None]:
        """Where in the archive the answer begins, and the archive's size, where it is told."""
        start, total = _extent(answer.status, answer.headers.get("content-range", ""))
        if answer.status == 200:
            length = answer.headers.get("content-length", "")
            total = int(length) if re.fullmatch(_NUMBER, length) and not answer.is_encoded else None
        elif start != self.received:
            self.etag = ""
            raise TransientError(f"asked for bytes from {self.received}, got them from {start}")
        if total is not None and total > MAX_ARCHIVE_BYTES:
            raise self._too_large()
        if self.received == 0 or answer.status == 200:
            self._report(DownloadStarted(self._name, 1, total))
            etag = answer.headers.get("etag", "") if not answer.is_encoded else ""
            self.etag = "" if etag.startswith("W/") else etag
            self.md5 = "" if answer.is_encoded else _told_md5(answer.headers.get("x-goog-hash", ""))
        return start, total

    def _too_large(self) -> ArchiveError:
        return ArchiveError(f"{self._name} is larger than {MAX_ARCHIVE_BYTES:,} bytes", source=self._name)


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
        most = min(MAX_EXTRACTED_BYTES, MAX_EXPANSION * archive.stat().st_size + SPARE_BYTES)
        with gzip.open(archive) as packed:
            stream = _BoundedStream(cast(BinaryIO, packed), most, source, check)
            with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r|", tarinfo=_Header) as members:
                for count, member in enumerate(members):
                    if count >= MAX_MEMBERS:
                        raise ArchiveError(f"{source} holds more than {MAX_MEMBERS} entries", source=source)
                    stream.expect(member.size if member.isfile() else 0)
                    name = _name_of(member, into, source)
                    content = members.extractfile(member)
                    if name is None or content is None or not name.startswith(f"{folder}/"):
                        continue
                    if name in written:
                        raise ArchiveError(f"{source} holds {shown(name)} twice", source=source)
                    written.add(name)
                    _write(into / name, content)
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

    def __init__(self, stream: BinaryIO, most_bytes: int, source: str, check: Callable[[], object]) -> None:
        self._stream = stream
        self._left_bytes = most_bytes
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


def _name_of(member: tarfile.TarInfo, into: Path, source: str) -> str | None:
    """The path of a file in the archive; None for a folder, and for what macOS adds."""
    name = member.name.removeprefix("./").rstrip("/")
    if name in ("", ".") or name.rpartition("/")[2].startswith("._"):
        return None
    is_plain = (member.isfile() and not member.issparse()) or member.isdir()  # a hole of any size takes no bytes
    if not is_plain or not is_safe_path(name) or not _may_be_extracted(member, into):
        raise ArchiveError(
            f"{source} holds {shown(member.name)}, which is no file or folder below it",
            source=source,
        )
    return name if member.isfile() else None


def _may_be_extracted(member: tarfile.TarInfo, into: Path) -> bool:
    """Tarfile's own opinion, where it has one (since 3.11.4)."""
    if not hasattr(tarfile, "data_filter"):
        return True
    try:
        return tarfile.data_filter(member, str(into)) is not None
    except tarfile.FilterError:
        return False


def _write(target: Path, content: IO[bytes]) -> None:
    # Written here, and not by tarfile, for the umask's mode and in portions.
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        shutil.copyfileobj(content, file, COPY_BYTES)


def _extent(status: int, content_range: str) -> tuple[int, int | None]:
    match = re.fullmatch(rf"bytes ({_NUMBER})-{_NUMBER}/({_NUMBER}|\*)", content_range)
    if status != 206 or match is None:
        return 0, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _told_md5(hashes: str) -> str:
    """The md5 in Google's `x-goog-hash: crc32c=...,md5=...`, in hexadecimal."""
    found = re.search(r"md5=([A-Za-z0-9+/]{22}==)", hashes)
    return b64decode(found[1]).hex() if found else ""


def _md5(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _make_folder(path: Path) -> None:
    path.mkdir(parents=True)


def _has_bytes(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_size > 0
    return False
