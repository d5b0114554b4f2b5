"""From the hub into the cache: many files at once, a large file in several ranges at once, each verified.

A *transfer* downloads one blob. Its streams write into one partial file; each stream is one connection that
fetches one stretch, and tries again from where it was when it breaks. Who runs: one task per missing file,
and in it one task per stream and one that watches for laggards (see `asyncembed.hub.pace`), all in the task group
that `download_blobs` opens; connections are counted by a semaphore that all downloads of the event loop share.
"""

import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import RunVar

from asyncembed.errors import CorruptFileError
from asyncembed.files import in_disk_thread
from asyncembed.hub import pace
from asyncembed.hub.cache import RepoCache, is_disk_full, translate_disk_error
from asyncembed.hub.client import Answer, HubClient
from asyncembed.hub.hops import Asked
from asyncembed.hub.listing import Listing, RepoFile
from asyncembed.hub.locks import newest_write, only_one
from asyncembed.hub.pace import Stretch
from asyncembed.hub.partial import Partial
from asyncembed.hub.progress import BytesReceived, FileFinished, Reporter
from asyncembed.hub.retry import RetryBudget, TransientError

CONNECTIONS = 8
"""Connections at a time, over all downloads of an event loop; content servers refuse many more."""

MAX_MISMATCHES = 2
"""Downloads from zero after the bytes turned out wrong."""

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

_NUMBER = "[0-9]{1,18}"
_CONTENT_RANGE = rf"bytes ({_NUMBER})-({_NUMBER})/({_NUMBER}|\*)"

logger: logging.Logger = logging.getLogger("asyncembed")

_connections: RunVar[anyio.Semaphore] = RunVar("asyncembed_connections")


async def download_blobs(
    client: HubClient, cache: RepoCache, listing: Listing, files: Sequence[RepoFile], report: Reporter
) -> None:
    """Download `files` of a listed commit into the cache, and put them into the commit's snapshot.

    Raises:
        DownloadError: The first file that cannot be had; the others are stopped, and what came of them is
        kept.
    """
    failures: list[Exception] = []

    async def download(file: RepoFile) -> None:
        try:
            await _download_blob(client, cache, listing, file, report)
            report(FileFinished(listing.repo, file.path, file.size_bytes))
        except Exception as error:  # noqa: BLE001 (a group would wrap it; it may be what the caller's callback raised)
            failures.append(translate_disk_error(error, cache.root) if isinstance(error, OSError) else error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        # The largest first, as it takes longest. Its streams queue up only when it has been located, and so behind the
        # small files: those are done while it is on its way.
        for file in sorted(files, key=lambda file: -file.size_bytes):
            group.start_soon(download, file)
    if failures:
        raise failures[0]


async def _download_blob(
    client: HubClient, cache: RepoCache, listing: Listing, file: RepoFile, report: Reporter
) -> None:
    # Also to link a blob that is there already: huggingface_hub, which holds this lock when it links, removes whatever
    # it finds in the link's place, and raises if it then meets a file there.
    blob = cache.blob(file)
    watch = partial(newest_write, blob.parent, f"{blob.name}.*incomplete")
    async with only_one(cache.lock(file), watch, client.policy.stuck_seconds) as is_locked:
        if await in_disk_thread(cache.link_blob, listing.commit, file):
            return
        try:
            await _Transfer(client, cache, listing, file, report, Partial(blob, file, is_locked=is_locked)).run()
        except FileNotFoundError:
            # Someone deletes the cache while we fill it (temporary folders are purged so): once more, from nothing.
            logger.warning("%s vanished from the cache while it was downloaded; beginning anew", file.path)
            await _Transfer(client, cache, listing, file, report, Partial(blob, file, is_locked=is_locked)).run()


class _Mode(Enum):
    """How the bytes of a blob come."""

    RANGES = "in stretches, each of which is asked for"
    SENT_WHOLE = "the server sent all of it to one stream, and the others end"
    ASKED_WHOLE = "what it answers to ranges is none: all of it is asked for, by one stream and from its beginning"


class _RangeFaultError(Exception):
    """The server answers a range with something else than that range."""


class _Transfer:
    """Downloads one blob. The state below is changed by its streams, all in one event loop."""

    def __init__(
        self,
        client: HubClient,
        cache: RepoCache,
        listing: Listing,
        file: RepoFile,
        report: Reporter,
        partial: Partial,
    ) -> None:
        self._client = client
        self._policy = client.policy
        self._cache = cache
        self._asked = Asked(listing.repo, listing.commit, file.path)
        self._file = file
        self._report = report
        self._partial = partial
        self._location: str | None = None
        self._locating = anyio.Lock()
        self._max_streams = CONNECTIONS
        self._mode = _Mode.RANGES
        self._only: Stretch | None = None  # in a mode of one stream
        self._stretches: set[Stretch] = set()
        self._finished_rates: list[float] = []
        self._failure: Exception | None = None

    async def run(self) -> None:
        """Download, verify and publish; on failure leave behind what a later run can use."""
        try:
            await in_disk_thread(self._partial.open)
            for mismatches in range(MAX_MISMATCHES + 1):
                await self._fill()
                while not self._partial.is_hashed() and await in_disk_thread(self._partial.hash_more):
                    pass
                if self._partial.is_verified():
                    await in_disk_thread(self._cache.publish, self._partial, self._asked.revision, self._file)
                    return
                logger.warning("%s came with wrong bytes (try %d)", self._asked, mismatches + 1)
                await in_disk_thread(self._partial.restart)
            await self._discard()
            raise self._corrupt(
                f"{self._asked} came with wrong bytes {MAX_MISMATCHES + 1} times; something between here and the hub "
                "changes it (a proxy, a virus scanner, a broken mirror)"
            )
        except OSError as error:
            if is_disk_full(error):
                await self._discard()
            raise
        finally:
            if self._partial.is_open():
                with anyio.CancelScope(shield=True):
                    await in_disk_thread(self._partial.release)

    async def _discard(self) -> None:
        with anyio.CancelScope(shield=True):
            await in_disk_thread(self._partial.discard)

    async def _fill(self) -> None:
        """Download until every byte is there."""
        while gaps := self._partial.ranges.gaps(self._file.size_bytes):
            self._failure = None
            async with anyio.create_task_group() as watching:
                async with anyio.create_task_group() as streams:
                    for start, end in self._plan(gaps):
                        self._begin(Stretch(start, end, self._policy), streams)
                    watching.start_soon(self._watch, streams)
                watching.cancel_scope.cancel()
            match self._failure:
                case _RangeFaultError() if self._mode is not _Mode.ASKED_WHOLE:
                    logger.info("%s: %s; going on without ranges", self._asked, self._failure)
                    self._switch(_Mode.ASKED_WHOLE)
                    await in_disk_thread(self._partial.restart)
                case _RangeFaultError():
                    raise self._corrupt(
                        f"the server's answers for {self._asked} do not fit the listing ({self._failure})"
                    )
                case Exception():
                    raise self._failure

    def _corrupt(self, message: str) -> CorruptFileError:
        return CorruptFileError(message, source=self._asked.source, path=self._asked.path)

    def _switch(self, mode: _Mode, only: Stretch | None = None) -> None:
        """Let the blob come in another way; `only` is the stream that goes on."""
        self._mode = mode
        self._only = only

    def _plan(self, gaps: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The stretches to download at once: the gaps, the largest ones split while that saves time."""
        if self._mode is _Mode.ASKED_WHOLE:
            return [(0, self._file.size_bytes)]
        self._switch(_Mode.RANGES)
        stretches = sorted(gaps, key=lambda gap: gap[0] - gap[1])
        if sum(end - start for start, end in gaps) < self._policy.split_minimum_bytes:
            return sorted(stretches)
        while len(stretches) < self._max_streams:
            start, end = stretches[0]
            if end - start < 2 * self._policy.stream_minimum_bytes:
                break
            middle = (start + end) // 2
            stretches[:1] = [(start, middle), (middle, end)]
            stretches.sort(key=lambda gap: gap[0] - gap[1])
        return sorted(stretches)

    def _begin(self, stretch: Stretch, streams: "TaskGroup") -> None:
        self._stretches.add(stretch)
        streams.start_soon(self._stream, stretch, streams)

    async def _watch(self, streams: "TaskGroup") -> None:
        """Let idle connections take over from slow ones, as long as there are streams."""
        while True:
            await anyio.sleep(self._policy.watch_seconds)
            self._relieve(anyio.current_time(), streams)

    def _relieve(self, now: float, streams: "TaskGroup") -> None:
        for stretch in self._stretches:
            stretch.sample(now)
        if self._mode is not _Mode.RANGES:
            return  # a part cannot be asked for
        for stretch in pace.find_laggards(self._stretches, self._finished_rates, now):
            logger.info("%s: a connection brings next to nothing; asking for its rest anew", self._file.path)
            stretch.replace(now)
        if idle_connections() and len(self._stretches) < self._max_streams:
            slowest = pace.find_slowest(self._stretches, self._finished_rates)
            if slowest is not None:
                logger.info("%s: an idle connection takes over half of a slow one's rest", self._file.path)
                self._begin(slowest.halve(), streams)

    async def _stream(self, stretch: Stretch, streams: "TaskGroup") -> None:
        """Download one stretch, in as many tries as it takes; a failure is noted and ends the other streams."""
        budget = RetryBudget(self._policy, f"downloading {self._asked}", self._asked.source)
        try:
            while stretch.position < stretch.end and self._goes_on(stretch):
                gained = self._partial.ranges.total()
                try:
                    await self._try(stretch)
                except TransientError as error:
                    if error.status in (401, 403, 404, 410, 416):
                        self._location = None
                        self._max_streams = max(1, self._max_streams // 2)
                    if error.status == 416:
                        raise _RangeFaultError(str(error)) from error
                    if self._partial.ranges.total() - gained >= self._policy.progress_minimum_bytes:
                        budget.refill()
                    await budget.wait(error)
        except Exception as error:  # noqa: BLE001 (as in `download_blobs`)
            self._failure = self._failure or error
            streams.cancel_scope.cancel()
        finally:
            self._stretches.discard(stretch)

    def _goes_on(self, stretch: Stretch) -> bool:
        return self._only in (None, stretch)

    async def _try(self, stretch: Stretch) -> None:
        """One connection's worth."""
        if self._mode is _Mode.ASKED_WHOLE:
            stretch.position = 0
        is_split = stretch.end - stretch.position < self._file.size_bytes >= self._policy.split_minimum_bytes
        location = await self._locate() if is_split else None
        async with connection_slot():
            if not self._goes_on(stretch):
                return
            try:
                with anyio.CancelScope() as stretch.connection:
                    await self._receive(location, stretch)
            finally:
                stretch.connection = None

    async def _receive(self, location: str | None, stretch: Stretch) -> None:
        """Ask for a stretch, at its signed URL where that is known, and write what comes, also when it breaks off."""
        size = self._file.size_bytes
        end = stretch.end if stretch.end < size else None
        async with self._client.open_content(self._asked, start=stretch.position, end=end, location=location) as answer:
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
                    if stretch.received - stretch.position >= self._policy.write_bytes:
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
        if answer.status == 206:
            if answer.is_encoded:
                raise _RangeFaultError("a compressed part")
            told = answer.headers.get("content-range", "no content-range")
            match = re.fullmatch(_CONTENT_RANGE, told)
            if match is None or int(match[1]) != stretch.position or match[3] not in ("*", str(size)):
                raise _RangeFaultError(f"asked for bytes from {stretch.position} of {size}, got {told[:80]!a}")
            return True
        if answer.length not in (None, size):
            raise TransientError(f"the server has {answer.length} bytes where the listing says {size}")
        if not self._goes_on(stretch):
            return False
        asked_for_all = stretch.position == 0 and stretch.end == size
        if self._mode is _Mode.ASKED_WHOLE or (asked_for_all and answer.serves_ranges):
            return True
        self._switch(_Mode.SENT_WHOLE, stretch)
        stretch.position, stretch.end = 0, size
        return True

    async def _locate(self) -> str:
        async with self._locating:
            if self._location is None:
                async with connection_slot():
                    self._location = await self._client.locate(self._asked)
            return self._location

    async def _write(self, stretch: Stretch, chunks: list[bytes]) -> None:
        await in_disk_thread(self._partial.write, stretch.position, chunks)
        stretch.position += sum(map(len, chunks))
        self._report(
            BytesReceived(self._asked.source, self._file.path, self._partial.ranges.total(), self._file.size_bytes)
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
