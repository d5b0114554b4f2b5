"""From the hub into the cache: many files at once, a large file in several ranges at once, each verified.

A *transfer* brings one blob. Its streams write into one partial file; each stream is one connection that
fetches one stretch, and tries again from where it was when it breaks. Who runs: one task per missing file,
and in it one task per stream and one that watches for laggards (see `asyncembed.hub.pace`), all in the task group
that `download_files` opens; connections are counted by a semaphore that all downloads of the event loop share.
"""

import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import RunVar

from asyncembed.errors import CorruptFileError
from asyncembed.files import in_disk_thread
from asyncembed.hub import pace
from asyncembed.hub.cache import RepoCache, is_disk_full, translate_disk_error
from asyncembed.hub.client import Answer, HubClient
from asyncembed.hub.listing import Listing, RepoFile
from asyncembed.hub.locks import only_one
from asyncembed.hub.pace import Stretch
from asyncembed.hub.partial import Partial
from asyncembed.hub.progress import BytesReceived, FileFinished, Reporter
from asyncembed.hub.retry import Patience, TransientError

CONNECTIONS = 8
"""Connections at a time, over all downloads of an event loop; content servers refuse many more."""

LEAST_SPLIT_BYTES = 16 * 2**20
"""A smaller file comes in one stream: its ranges would cost more requests than they save time."""

LEAST_STREAM_BYTES = 8 * 2**20
"""No stream is started for less."""

WRITE_BYTES = 2**20
"""How much a stream gathers before it goes to disk; with `CONNECTIONS` the bound of the memory in use."""

LEAST_PROGRESS_BYTES = 64 * 2**10
"""A try that gained less counts as a failure in a row: a trickle would be tried for ever."""

MAX_MISMATCHES = 2
"""Downloads from zero after the bytes turned out wrong."""

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

_NUMBER = "[0-9]{1,18}"
_CONTENT_RANGE = rf"bytes ({_NUMBER})-({_NUMBER})/({_NUMBER}|\*)"

logger: logging.Logger = logging.getLogger("asyncembed")

_connections: RunVar[anyio.Semaphore] = RunVar("asyncembed_connections")


async def download_files(
    client: HubClient, cache: RepoCache, listing: Listing, files: Sequence[RepoFile], report: Reporter
) -> None:
    """Bring `files` of a listed commit into the cache and into the commit's snapshot.

    Raises:
        DownloadError: The first file that cannot be had; the others are stopped, and what came of them is
        kept.
    """
    failures: list[Exception] = []

    async def bring(file: RepoFile) -> None:
        try:
            await _bring(client, cache, listing, file, report)
            report(FileFinished(listing.repo, file.path, file.size_bytes))
        except Exception as error:  # noqa: BLE001 (a group would wrap it; it may be what the caller's callback raised)
            failures.append(translate_disk_error(error, cache.root) if isinstance(error, OSError) else error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        # The largest first, as it takes longest. Its streams queue up only when it has been located, and so behind the
        # small files: those are done while it is on its way.
        for file in sorted(files, key=lambda file: -file.size_bytes):
            group.start_soon(bring, file)
    if failures:
        raise failures[0]


async def _bring(client: HubClient, cache: RepoCache, listing: Listing, file: RepoFile, report: Reporter) -> None:
    # Also to link a blob that is there already: huggingface_hub, which holds this lock when it links, removes whatever
    # it finds in the link's place, and raises if it then meets a file there.
    async with only_one(cache.lock(file), watch=lambda: _newest_write(cache.blob(file))):
        if await in_disk_thread(cache.adopt, listing.commit, file):
            return
        try:
            await _Transfer(client, cache, listing, file, report).run()
        except FileNotFoundError:
            # Someone deletes the cache while we fill it (temporary folders are purged so): once more, from nothing.
            logger.warning("%s vanished from the cache while it was downloaded; beginning anew", file.path)
            await _Transfer(client, cache, listing, file, report).run()


class _RangeFaultError(Exception):
    """The server answers a range with something else than that range."""


class _Transfer:
    """Brings one blob. The state below is changed by its streams, all in one event loop."""

    def __init__(self, client: HubClient, cache: RepoCache, listing: Listing, file: RepoFile, report: Reporter) -> None:
        self._client = client
        self._cache = cache
        self._listing = listing
        self._file = file
        self._report = report
        self._partial = Partial(cache.blob(file), file)
        self._resolve_url = client.resolve_url(listing.repo, listing.commit, file.path)
        self._location: str | None = None
        self._locating = anyio.Lock()
        self._uses_ranges = True
        self._max_streams = CONNECTIONS
        self._whole: Stretch | None = None  # the one stream left, when the server sends the whole file
        self._streams: TaskGroup | None = None
        self._watch_scope = anyio.CancelScope()
        self._stretches: set[Stretch] = set()
        self._finished_rates: list[float] = []
        self._failure: Exception | None = None

    async def run(self) -> None:
        """Download, verify and publish; on failure leave behind what a later run can use."""
        try:
            await in_disk_thread(self._partial.open)
            for mismatches in range(MAX_MISMATCHES + 1):
                await self._fill()
                while await in_disk_thread(self._partial.hash_more):
                    pass
                if self._partial.is_verified():
                    await in_disk_thread(self._cache.publish, self._partial, self._listing.commit, self._file)
                    return
                logger.warning(
                    "%s of %s came with wrong bytes (try %d)",
                    self._file.path,
                    self._listing.repo,
                    mismatches + 1,
                )
                await in_disk_thread(self._partial.restart)
            with anyio.CancelScope(shield=True):
                await in_disk_thread(self._partial.discard)
            raise CorruptFileError(
                f"{self._file.path} of {self._listing.repo} came with wrong bytes {MAX_MISMATCHES + 1} "
                "times; something between here and the hub changes it (a proxy, a virus scanner, a broken mirror)",
                source=self._listing.repo,
                path=self._file.path,
            )
        except OSError as error:
            if is_disk_full(error):
                with anyio.CancelScope(shield=True):
                    await in_disk_thread(self._partial.discard)
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await in_disk_thread(self._partial.release)

    async def _fill(self) -> None:
        """Fetch until every byte is there."""
        faults = 0
        while gaps := self._partial.ranges.gaps(self._file.size_bytes):
            self._whole = None
            self._failure = None
            self._watch_scope = anyio.CancelScope()
            async with anyio.create_task_group() as group:
                self._streams = group
                for start, end in self._plan(gaps):
                    self._begin(Stretch(start, end))
                group.start_soon(self._watch)
            if isinstance(self._failure, _RangeFaultError):
                faults += 1
                logger.info("%s: %s; going on without ranges", self._file.path, self._failure)
                if faults > 1:
                    raise CorruptFileError(
                        f"the server's answers for {self._file.path} of {self._listing.repo} do not fit the "
                        f"listing ({self._failure})",
                        source=self._listing.repo,
                        path=self._file.path,
                    )
                self._uses_ranges = False
                await in_disk_thread(self._partial.restart)
            elif self._failure is not None:
                raise self._failure

    def _plan(self, gaps: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The stretches to fetch at once: the gaps, the largest ones split while that saves time."""
        if not self._uses_ranges:
            return [(0, self._file.size_bytes)]
        stretches = sorted(gaps, key=lambda gap: gap[0] - gap[1])
        if sum(end - start for start, end in gaps) < LEAST_SPLIT_BYTES:
            return sorted(stretches)
        while len(stretches) < self._max_streams:
            start, end = stretches[0]
            if end - start < 2 * LEAST_STREAM_BYTES:
                break
            middle = (start + end) // 2
            stretches[:1] = [(start, middle), (middle, end)]
            stretches.sort(key=lambda gap: gap[0] - gap[1])
        return sorted(stretches)

    def _begin(self, stretch: Stretch) -> None:
        assert self._streams is not None
        self._stretches.add(stretch)
        self._streams.start_soon(self._stream, stretch)

    async def _watch(self) -> None:
        """Let idle connections take over from slow ones, as long as there are streams."""
        with self._watch_scope:
            while True:
                await anyio.sleep(pace.WATCH_SECONDS)
                self._relieve(anyio.current_time())

    def _relieve(self, now: float) -> None:
        for stretch in self._stretches:
            stretch.sample(now)
        if not self._uses_ranges or self._whole is not None:
            return  # a part cannot be asked for
        for stretch in pace.find_laggards(self._stretches, self._finished_rates, now):
            logger.info("%s: a connection brings next to nothing; asking for its rest anew", self._file.path)
            stretch.replace(now)
        if idle_connections() and len(self._stretches) < self._max_streams:
            slowest = pace.find_slowest(self._stretches, self._finished_rates)
            if slowest is not None:
                logger.info("%s: an idle connection takes over half of a slow one's rest", self._file.path)
                self._begin(slowest.halve())

    async def _stream(self, stretch: Stretch) -> None:
        """Fetch one stretch, in as many tries as it takes; a failure is noted and ends the other streams."""
        patience = Patience(f"downloading {self._file.path} of {self._listing.repo}", self._listing.repo)
        try:
            while stretch.position < stretch.end and self._whole in (None, stretch):
                gained = self._partial.ranges.total()
                try:
                    await self._try(stretch)
                except TransientError as error:
                    if error.status in (401, 403, 404, 410, 416):
                        self._location = None
                        self._max_streams = max(1, self._max_streams // 2)
                    if error.status == 416:
                        raise _RangeFaultError(str(error)) from error
                    if self._partial.ranges.total() - gained >= LEAST_PROGRESS_BYTES:
                        patience.progressed()
                    await patience.after(error)
        except Exception as error:  # noqa: BLE001 (as in `download_files`)
            if self._failure is None:
                self._failure = error
            assert self._streams is not None
            self._streams.cancel_scope.cancel()
        finally:
            self._stretches.discard(stretch)
            if not self._stretches:
                self._watch_scope.cancel()

    async def _try(self, stretch: Stretch) -> None:
        """One connection's worth."""
        if not self._uses_ranges:
            stretch.position = 0
        is_split = stretch.end - stretch.position < self._file.size_bytes >= LEAST_SPLIT_BYTES
        url = await self._locate() if is_split else self._resolve_url
        async with connection_slot():
            if self._whole not in (None, stretch):
                return
            try:
                with anyio.CancelScope() as stretch.connection:
                    await self._receive(url, stretch, is_located=is_split)
            finally:
                stretch.connection = None

    async def _receive(self, url: str, stretch: Stretch, *, is_located: bool) -> None:
        """Ask for a stretch; everything that comes is written, also when it breaks off."""
        size = self._file.size_bytes
        async with self._client.open_content(
            url,
            start=stretch.position,
            end=stretch.end if stretch.end < size else None,
            is_located=is_located,
            repo=self._listing.repo,
            revision=self._listing.commit,
            path=self._file.path,
        ) as answer:
            if not self._accepts(answer, stretch):
                return
            stretch.connected(anyio.current_time())
            asked_end = stretch.end
            chunks: list[bytes] = []
            try:
                # Read to its end, and not only to the last byte we want: else the connection cannot be used again.
                while chunk := await answer.receive():
                    room = max(0, stretch.end - stretch.received)
                    if len(chunk) > room and stretch.end == asked_end:
                        raise TransientError(f"more than the {stretch.end} bytes expected came")
                    chunks.append(chunk[:room])
                    stretch.received += len(chunks[-1])
                    if stretch.received - stretch.position >= WRITE_BYTES:
                        await self._write(stretch, chunks)
                        chunks = []
                    if stretch.received >= stretch.end < asked_end:
                        break  # another connection brings the rest
                self._finished_rates.append(stretch.average_rate(anyio.current_time()))
                if stretch.received < stretch.end:
                    raise TransientError(f"the connection ended after {stretch.received} of {size} bytes")
            finally:
                if chunks:
                    with anyio.CancelScope(shield=True):
                        await self._write(stretch, chunks)

    def _accepts(self, answer: Answer, stretch: Stretch) -> bool:
        """Whether the answer is to be read; a whole file makes its stream the only one."""
        size = self._file.size_bytes
        length = answer.headers.get("content-length", "")
        if answer.status == 206 and not answer.is_encoded:
            match = re.fullmatch(_CONTENT_RANGE, answer.headers.get("content-range", ""))
            if match is None or int(match[1]) != stretch.position or match[3] not in ("*", str(size)):
                raise _RangeFaultError(
                    f"asked for bytes from {stretch.position} of {size}, got "
                    f"{answer.headers.get('content-range', 'no content-range')[:80]!a}"
                )
            return True
        if answer.status == 206:
            raise _RangeFaultError("a compressed part")
        if not answer.is_encoded and re.fullmatch(_NUMBER, length) and int(length) != size:
            raise TransientError(f"the server has {length} bytes where the listing says {size}")
        if self._whole not in (None, stretch):
            return False
        asked_for_all = stretch.position == 0 and stretch.end == size
        if asked_for_all and self._uses_ranges and _serves_ranges(answer):
            return True
        self._whole = stretch
        stretch.position, stretch.end = 0, size
        return True

    async def _locate(self) -> str:
        async with self._locating:
            if self._location is None:
                async with connection_slot():
                    self._location = await self._client.locate(
                        self._resolve_url,
                        repo=self._listing.repo,
                        revision=self._listing.commit,
                        path=self._file.path,
                    )
            return self._location

    async def _write(self, stretch: Stretch, chunks: list[bytes]) -> None:
        await in_disk_thread(self._partial.write, stretch.position, chunks)
        stretch.position += sum(map(len, chunks))
        self._report(
            BytesReceived(self._listing.repo, self._file.path, self._partial.ranges.total(), self._file.size_bytes)
        )


@asynccontextmanager
async def connection_slot() -> AsyncIterator[None]:
    """Hold one of the event loop's connections."""
    slots = _connections.get(None)
    if slots is None:
        slots = anyio.Semaphore(CONNECTIONS)
        _connections.set(slots)
    async with slots:
        yield


def idle_connections() -> int:
    """How many of the event loop's connections nobody uses or waits for."""
    slots = _connections.get(None)
    return CONNECTIONS if slots is None else slots.value


def _serves_ranges(answer: Answer) -> bool:
    return not answer.is_encoded and answer.headers.get("accept-ranges", "").strip().lower() == "bytes"


def _newest_write(blob: Path) -> float:
    """When anyone last wrote to an unfinished file of this blob; 0.0 if no one does."""
    times = [0.0]
    for path in blob.parent.glob(f"{blob.name}.*incomplete"):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times)
