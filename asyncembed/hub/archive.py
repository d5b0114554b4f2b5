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
from importlib import import_module
from pathlib import Path

import anyio

from asyncembed.errors import ArchiveError, CorruptFileError, NotCachedError, RepoFileNotFoundError
from asyncembed.files import in_disk_thread, open_file
from asyncembed.hub.flight import only_one
from asyncembed.hub.listing import Wanted
from asyncembed.hub.progress import BytesReceived, DownloadFinished, DownloadStarted, FileFinished, Reporter
from asyncembed.hub.retry import Patience, TransientError
from asyncembed.repo_files import is_safe_path

MAX_MEMBERS = 10_000
MAX_EXTRACTED_BYTES = 64 * 2**30
"""Bounds of what an archive may hold; a small gzip can expand a thousandfold."""

COPY_BYTES = 2**20

logger = logging.getLogger("asyncembed")


class Archive:
    """An archive; its top folder, `folder`, goes into the cache's root, where fastembed keeps it too."""

    def __init__(self, root: Path, url: str, folder: str, wanted: Wanted) -> None:
        if not is_safe_path(folder) or "/" in folder:
            raise ArchiveError(f"{folder!r} is no name of a folder", source=url)
        self.name = url
        self._root = root
        self._folder = folder
        self._target = root / folder
        self._wanted = wanted

    def find(self) -> Path | None:
        """See Place."""
        missing = [path for path in self._wanted.required if not _has_bytes(self._target / path)]
        if missing or not any(self._target.glob("*")):
            return None
        return self._target

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
                await in_disk_thread(extract, archive, staging, self._folder, self.name)
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
        """Put the folder in its place; what an interrupted tool left there goes away."""
        if self._target.exists():
            leftover = extracted.with_name("leftover")
            self._target.rename(leftover)
        extracted.rename(self._target)

    async def _download(self, archive: Path, report: Reporter) -> int:
        """Download the archive; going on where it broke off, if the server still has the same one."""
        from asyncembed.hub.client import open_client

        patience = Patience(f"downloading {self.name}", self.name)
        received = 0
        etag = ""
        md5 = ""
        # token=False: this server is not the hub.
        async with open_client(token=False) as client, open_file(archive, "xb") as content:
            while True:
                before = received
                headers = {"If-Range": etag} if received and etag else {}
                try:
                    async with client.open_content(self.name, start=received if etag else 0, headers=headers) as answer:
                        start, total = _extent(answer.status, answer.headers.get("content-range", ""))
                        length = answer.headers.get("content-length", "")
                        if answer.status == 200:
                            total = int(length) if length.isdigit() and not answer.is_encoded else None
                        elif start != received:
                            etag = ""
                            raise TransientError(f"asked for bytes from {received}, got them from {start}")
                        if received == 0 or answer.status == 200:
                            report(DownloadStarted(self.name, 1, total))
                            etag = answer.headers.get("etag", "") if not answer.is_encoded else ""
                            etag = "" if etag.startswith("W/") else etag
                            found = re.search(r"md5=([A-Za-z0-9+/=]+)", answer.headers.get("x-goog-hash", ""))
                            md5 = b64decode(found[1]).hex() if found and not answer.is_encoded else ""
                        received = start
                        await content.seek(start)
                        await content.truncate(start)
                        while chunk := await answer.receive():
                            await content.write(chunk)
                            received += len(chunk)
                            report(BytesReceived(self.name, self._folder, received, total))
                        if total is not None and received != total:
                            raise TransientError(f"the connection ended after {received} of {total} bytes")
                        break
                except TransientError as error:
                    if received > before:
                        patience.progressed()
                    await patience.after(error)
        if md5 and await in_disk_thread(_md5, archive) != md5:
            raise CorruptFileError(f"{self.name} came with wrong bytes (its md5 differs)", source=self.name)
        return received


def extract(archive: Path, into: Path, folder: str, source: str) -> None:
    """Extract the regular files below `folder` of a `.tar.gz` to `into / folder`; blocks.

    Model archives hold files and folders only: links, devices and names that lead elsewhere are refused
    rather than interpreted, and the compressed stream is read to its end, where its checksum is.

    Raises:
        ArchiveError: It is no such archive, is damaged, or holds what is refused. Files may have been
        written.
    """
    written: set[Path] = set()
    left_bytes = MAX_EXTRACTED_BYTES
    try:
        with gzip.open(archive) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as members:
                for count, member in enumerate(members):
                    if count >= MAX_MEMBERS:
                        raise ArchiveError(f"{source} holds more than {MAX_MEMBERS} entries", source=source)
                    name = member.name.removeprefix("./").rstrip("/")
                    if name in ("", ".") or Path(name).name.startswith("._"):  # macOS' own additions
                        continue
                    if not is_safe_path(name) or not (member.isfile() or member.isdir()):
                        raise ArchiveError(
                            f"{source} holds {member.name!r}, which is no file or folder below it",
                            source=source,
                        )
                    if member.isdir() or not name.startswith(f"{folder}/"):
                        continue
                    left_bytes -= member.size
                    target = into / name
                    content = members.extractfile(member)
                    if target in written or left_bytes < 0 or content is None:
                        raise ArchiveError(f"{source} holds {name!r} twice, or too much", source=source)
                    written.add(target)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("xb") as file:
                        shutil.copyfileobj(content, file, COPY_BYTES)
            _read_to_end(stream)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ArchiveError(f"{source} is no .tar.gz, or a damaged one ({error})", source=source) from error
    if not written:
        raise ArchiveError(f"{source} has no folder {folder!r}", source=source)


def _read_to_end(stream: gzip.GzipFile) -> None:
    while stream.read(COPY_BYTES):
        pass


def _extent(status: int, content_range: str) -> tuple[int, int | None]:
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range)
    if status != 206 or match is None:
        return 0, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _md5(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _make_folder(path: Path) -> None:
    path.mkdir(parents=True)


def _has_bytes(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_size > 0
    return False
