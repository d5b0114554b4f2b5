"""The places that files come from: a repo of the hub, or a directory of this machine."""

import contextlib
import logging
from importlib import import_module
from pathlib import Path
from typing import Protocol

from asyncembed.errors import DownloadError, NotCachedError, RepoFileNotFoundError
from asyncembed.files import in_disk_thread
from asyncembed.hub.cache import RepoCache
from asyncembed.hub.listing import (
    Listing,
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

logger: logging.Logger = logging.getLogger("asyncembed")


class Place(Protocol):
    """One source of a model's files, together with where they lie on this disk."""

    @property
    def name(self) -> str:
        """How it is called in messages."""
        ...

    def find(self) -> Path | None:
        """The directory, if all that is wanted is on this disk; blocks."""
        ...

    def find_usable(self) -> Path:
        """The directory, if what is on this disk is enough to load the model; blocks.

        Raises:
            NotCachedError: It is not; the message says what is missing and what can be done.
        """
        ...

    async def bring(self, report: Reporter) -> Path:
        """Download what is missing, and give the directory."""
        ...


class HubRepo:
    """A repo of the hub at a revision, in huggingface_hub's cache."""

    def __init__(
        self,
        root: Path,
        repo: str,
        revision: str,
        wanted: Wanted,
        token: str | bool | None = None,
        *,
        commit: str | None = None,
        refresh: bool = False,
    ) -> None:
        """`commit` is what `revision` stands for; None: the hub is asked, where files are missing or on `refresh`."""
        check_repo_id(repo)
        check_revision(revision)
        self.name = repo
        self._cache = RepoCache(root, repo)
        self._revision = revision
        self._commit = commit
        self._wanted = wanted
        self._token = token
        self._asks_first = refresh and commit is None and not is_commit(revision)

    def find(self) -> Path | None:
        """See Place; nothing is enough where the hub is to be asked first."""
        if self._asks_first:
            return None
        found = self._cache.look_up(self._commit or self._revision, self._wanted)
        return found.snapshot if found is not None and found.is_complete(self._wanted) else None

    def find_usable(self) -> Path:
        """See Place."""
        found = self._cache.look_up(self._revision, self._wanted)
        if found is None:
            state = "is not in the cache"
        elif found.is_usable(self._wanted):
            if found.missing:
                logger.warning("%s is used without %s", self.name, ", ".join(found.missing))
            return found.snapshot
        else:
            state = f"is incomplete in the cache ({', '.join(found.missing[:5])} missing)"
        raise NotCachedError(
            f"{self.name} (revision {self._revision}) {state} at {self._cache.root}; allow the network "
            "(HF_HUB_OFFLINE, local_files_only), give the cache that holds it (cache_dir=, HF_HOME), or give its files "
            "(model_path=)",
            source=self.name,
        )

    async def bring(self, report: Reporter) -> Path:
        """See Place. Tasks that want the same take turns: the second one finds all of it on disk."""
        async with only_one_task(f"{self._cache.folder}@{self._revision}:{self._wanted}"):
            found = await in_disk_thread(self.find)
            if found is not None:
                return found
            try:
                return await self._download(report)
            except (DownloadError, OSError) as error:
                try:
                    usable = await in_disk_thread(self.find_usable)
                except NotCachedError:
                    raise error from error.__cause__
                logger.warning("using %s as it is in the cache, since %s", self.name, error)
                return usable

    def drop_damaged(self) -> None:
        """Read what is in the cache, and delete what is damaged; blocks, about a second per gigabyte."""
        damaged = self._cache.drop_damaged(self._revision, self._wanted)
        if damaged:
            logger.warning("%s: damaged in the cache and deleted: %s", self.name, ", ".join(damaged))

    async def list_files(self, *, may_ask: bool) -> Listing:
        """All files of the revision: as some tool listed them, else by asking, else what the cache holds."""
        cache = self._cache
        commit = await in_disk_thread(cache.read_ref, self._revision)
        known = None if commit is None else await in_disk_thread(cache.read_listing, self._revision, commit)
        if known is not None and not self._asks_first:
            return known
        cached = known or await in_disk_thread(cache.list_snapshot, self._revision)
        if may_ask:
            try:
                listing = await self._ask_listing(None if self._asks_first or cached is None else commit)
            except DownloadError as error:
                if cached is None:
                    raise
                logger.warning("using the listing of %s that is in the cache, since %s", self.name, error)
                return cached
            with contextlib.suppress(OSError):
                await in_disk_thread(cache.write_listing, listing)
            return listing
        if cached is None:
            await in_disk_thread(self.find_usable)  # says what is wrong
            raise NotCachedError(f"{self.name} is not in the cache", source=self.name)
        return cached

    async def _ask_listing(self, commit: str | None) -> Listing:
        await in_disk_thread(import_module, "asyncembed.hub.client")
        from asyncembed.hub.client import open_client

        async with open_client(self._token) as client:
            if commit is None:
                commit = await resolve_commit(client, self.name, self._revision)
            return await list_tree(client, self.name, self._revision, commit)

    async def _download(self, report: Reporter) -> Path:
        # In a thread: the HTTP client alone takes a fifth of a second to import.
        await in_disk_thread(import_module, "asyncembed.hub.download")
        from asyncembed.hub.client import open_client
        from asyncembed.hub.download import download_files

        cache = self._cache
        async with open_client(self._token) as client:
            commit = self._commit or await resolve_commit(client, self.name, self._revision)
            listing = await in_disk_thread(cache.read_listing, self._revision, commit)
            is_new = listing is None
            if listing is None:
                listing = await list_tree(client, self.name, self._revision, commit)
            files = listing.select(self._wanted)
            if not files:
                raise RepoFileNotFoundError(
                    f"{self.name} has no file that matches {', '.join(self._wanted.patterns)}; it has "
                    f"{enumerate_names(listing.paths)}",
                    source=self.name,
                )
            missing = await in_disk_thread(cache.missing, commit, files)
            if missing:
                await in_disk_thread(cache.prepare, missing)
                if is_new:
                    await in_disk_thread(cache.write_listing, listing)
                report(DownloadStarted(self.name, len(missing), sum(file.size_bytes for file in missing)))
                await download_files(client, cache, listing, missing, report)
                report(DownloadFinished(self.name))
                await in_disk_thread(cache.write_ref, self._revision, commit)
            else:
                with contextlib.suppress(OSError):  # a read-only cache that lacks no file
                    if is_new:
                        await in_disk_thread(cache.write_listing, listing)
                    await in_disk_thread(cache.write_ref, self._revision, commit)
        return cache.snapshot(commit)


class LocalDirectory:
    """A directory of this machine, used as it is."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self.name: str = str(path)
        self._path = path.expanduser()
        self._wanted = wanted

    def find(self) -> Path | None:
        """See Place."""
        if not self._path.is_dir() or self._missing():
            return None
        return self._path

    def find_usable(self) -> Path:
        """See Place."""
        found = self.find()
        if found is not None:
            return found
        if not self._path.is_dir():
            raise NotCachedError(f"there is no directory {self._path}", source=self.name)
        raise RepoFileNotFoundError(
            f"the directory {self._path} has no {', '.join(self._missing())}",
            source=self.name,
            path=self._missing()[0],
        )

    async def bring(self, report: Reporter) -> Path:  # noqa: ARG002 (nothing to report)
        """See Place: there is nothing to download."""
        return await in_disk_thread(self.find_usable)

    def _missing(self) -> list[str]:
        return [path for path in self._wanted.required if not (is_safe_path(path) and (self._path / path).is_file())]


class CacheFolder(LocalDirectory):
    """A directory in the cache's root that an older tool left there, if it has the files that a model must have."""

    def find(self) -> Path | None:
        """See Place; without required files no one could say whether it is whole."""
        return super().find() if self._wanted.required else None
