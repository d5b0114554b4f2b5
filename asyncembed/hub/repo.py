"""The places that files come from: a repo of the hub, or a directory of this machine."""

import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from asyncembed.errors import DownloadError, NotCachedError, RepoFileNotFoundError
from asyncembed.files import in_disk_thread
from asyncembed.hub.access import HubAccess
from asyncembed.hub.cache import OnDisk, RepoCache
from asyncembed.hub.listing import (
    DEFAULT_REVISION,
    Listing,
    RepoFile,
    Wanted,
    check_repo_id,
    check_revision,
    enumerate_names,
    list_tree,
    resolve_commit,
)
from asyncembed.hub.locks import only_one_task
from asyncembed.hub.progress import DownloadFinished, DownloadStarted, Reporter
from asyncembed.repo_files import is_commit, is_safe_path

if TYPE_CHECKING:
    from asyncembed.hub.client import HubClient

logger: logging.Logger = logging.getLogger("asyncembed")


class Place(Protocol):
    """Where a model's files come from, together with where they lie on this disk."""

    @property
    def name(self) -> str:
        """How it is called in messages."""
        ...

    def complete(self) -> Path | None:
        """The directory, if all that is wanted is on this disk; blocks."""
        ...

    def loadable(self) -> Path:
        """The directory, if what is on this disk is enough to load the model; blocks.

        Raises:
            NotCachedError: It is not; the message says what is missing and what can be done.
        """
        ...

    async def download(self, report: Reporter) -> Path:
        """Download what is missing, and give the directory."""
        ...


class HubRepo:
    """A repo of the hub at a revision, in huggingface_hub's cache."""

    def __init__(self, repo: str, wanted: Wanted, root: Path, access: HubAccess, commit: str | None = None) -> None:
        """`commit` is what the revision stands for; None: the hub is asked, where files are missing or on `refresh`."""
        check_repo_id(repo)
        self.name = repo
        self._revision = access.revision or DEFAULT_REVISION
        check_revision(self._revision)
        self._access = access
        self._cache = RepoCache(root, repo)
        self._commit = commit
        self._wanted = wanted
        self._asks_first = access.refresh and access.may_ask and commit is None and not is_commit(self._revision)
        self._known: OnDisk | None = None

    def complete(self) -> Path | None:
        """See Place; nothing is enough where the hub is to be asked first."""
        if self._access.verify:
            self._drop_damaged()
        if self._asks_first:
            return None
        self._known = self._cache.on_disk(self._commit or self._revision, self._wanted)
        return self._known.snapshot if self._known is not None and self._known.is_complete(self._wanted) else None

    def loadable(self) -> Path:
        """See Place."""
        found = self._cache.on_disk(self._revision, self._wanted)
        if found is None:
            raise self._not_cached("is not in the cache")
        if not found.is_loadable(self._wanted):
            raise self._not_cached(f"is incomplete in the cache ({', '.join(found.missing[:5])} missing)")
        if found.missing:
            logger.warning("%s is used without %s", self.name, ", ".join(found.missing))
        return found.snapshot

    async def download(self, report: Reporter) -> Path:
        """See Place. Tasks that want the same take turns: the second one finds all of it on disk."""
        async with only_one_task(f"{self._cache.folder}@{self._revision}:{self._wanted}") as has_waited:
            if has_waited and (found := await in_disk_thread(self.complete)) is not None:
                return found
            try:
                return await self._download(report)
            except (DownloadError, OSError) as error:
                try:
                    loadable = await in_disk_thread(self.loadable)
                except NotCachedError:
                    raise error from error.__cause__
                logger.warning("using %s as it is in the cache, since %s", self.name, error)
                return loadable

    async def list_files(self) -> Listing:
        """All files of the revision: as some tool listed them, else by asking, else what the cache holds."""
        cached, is_whole = await in_disk_thread(self._cached_listing)
        if cached is not None and (not self._access.may_ask or (is_whole and not self._asks_first)):
            return cached
        if not self._access.may_ask:
            raise self._not_cached("is not in the cache")
        try:
            async with self._open_client() as client:
                commit = None if self._asks_first or cached is None else cached.commit
                commit = commit or await resolve_commit(client, self.name, self._revision)
                listing = await list_tree(client, self.name, self._revision, commit)
        except DownloadError as error:
            if cached is None:
                raise
            logger.warning("using the listing of %s that is in the cache, since %s", self.name, error)
            return cached
        with contextlib.suppress(OSError):
            await in_disk_thread(self._cache.write_listing, listing)
        return listing

    def _cached_listing(self) -> tuple[Listing | None, bool]:
        """What the cache knows to be in the repo, and whether that is all of it; blocks."""
        commit = self._cache.read_ref(self._revision)
        if commit is None:
            return None, False
        listing = self._cache.read_listing(self._revision, commit)
        return (listing, True) if listing is not None else (self._cache.list_snapshot(self._revision, commit), False)

    async def _download(self, report: Reporter) -> Path:
        cache = self._cache
        async with self._open_client() as client:
            commit = self._commit or await resolve_commit(client, self.name, self._revision)
            known = await in_disk_thread(self._known_listing, commit)
            listing = known or await list_tree(client, self.name, self._revision, commit)
            missing = await in_disk_thread(self._missing, listing)
            if missing:
                from asyncembed.hub.download import download_blobs

                await in_disk_thread(cache.prepare, missing, None if known else listing)
                report(DownloadStarted(self.name, len(missing), sum(file.size_bytes for file in missing)))
                await download_blobs(client, cache, listing, missing, report)
                report(DownloadFinished(self.name))
                await in_disk_thread(cache.write_ref, self._revision, commit)
            else:
                with contextlib.suppress(OSError):  # a read-only cache that lacks no file
                    if known is None:
                        await in_disk_thread(cache.write_listing, listing)
                    await in_disk_thread(cache.write_ref, self._revision, commit)
        return cache.snapshot(commit)

    def _known_listing(self, commit: str) -> Listing | None:
        listing = self._known.listing if self._known is not None else None
        if listing is not None and listing.commit == commit:
            return listing
        return self._cache.read_listing(self._revision, commit)

    def _missing(self, listing: Listing) -> tuple[RepoFile, ...]:
        """What is wanted and not there, as far as the first look has not told already; blocks."""
        files = listing.select(self._wanted)
        if not files:
            raise RepoFileNotFoundError(
                f"{self.name} has no file that matches {', '.join(self._wanted.patterns)}; it has "
                f"{enumerate_names(listing.paths)}",
                source=self.name,
            )
        if self._known is not None and self._known.listing is listing:
            return tuple(file for file in files if file.path in self._known.missing)
        return self._cache.missing(listing.commit, files)

    @asynccontextmanager
    async def _open_client(self) -> AsyncIterator["HubClient"]:
        # In a thread: the HTTP client alone takes a fifth of a second to import.
        await in_disk_thread(import_module, "asyncembed.hub.download")
        from asyncembed.hub.client import open_client

        async with open_client(self._access) as client:
            yield client

    def _drop_damaged(self) -> None:
        """Read what is in the cache, and delete what is damaged; blocks, about a second per gigabyte."""
        damaged = self._cache.drop_damaged(self._revision, self._wanted)
        if damaged:
            logger.warning("%s: damaged in the cache and deleted: %s", self.name, ", ".join(damaged))

    def _not_cached(self, state: str) -> NotCachedError:
        return NotCachedError(
            f"{self.name} (revision {self._revision}) {state} at {self._cache.root}; allow the network "
            "(HF_HUB_OFFLINE, local_files_only), give the cache that holds it (cache_dir=, HF_HOME), or give its files "
            "(model_path=)",
            source=self.name,
        )


class LocalDirectory:
    """A directory of this machine, used as it is."""

    def __init__(self, path: Path, wanted: Wanted, *, is_leftover: bool = False) -> None:
        """`is_leftover`: an older tool's, in the cache's root; only required files tell whether it is whole."""
        self.name: str = str(path)
        self.is_leftover = is_leftover
        self._path = path.expanduser()
        self._wanted = wanted

    def complete(self) -> Path | None:
        """See Place."""
        if not self._path.is_dir() or self._missing() or (self.is_leftover and not self._wanted.required):
            return None
        return self._path

    def loadable(self) -> Path:
        """See Place."""
        if not self._path.is_dir():
            raise NotCachedError(f"there is no directory {self._path}", source=self.name)
        if missing := self._missing():
            raise RepoFileNotFoundError(
                f"the directory {self._path} has no {', '.join(missing)}", source=self.name, path=missing[0]
            )
        return self._path

    async def download(self, report: Reporter) -> Path:  # noqa: ARG002 (nothing to report)
        """See Place: there is nothing to download."""
        return await in_disk_thread(self.loadable)

    def _missing(self) -> list[str]:
        return [path for path in self._wanted.required if not (is_safe_path(path) and (self._path / path).is_file())]
