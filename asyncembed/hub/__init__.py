"""From a model's sources to a directory with its files: the hub, archives, what is on this disk already."""

from collections.abc import Sequence
from pathlib import Path

from asyncembed.catalogue.spec import ArchiveOrigin, CacheFolderOrigin, HubOrigin, LocalOrigin, Origin
from asyncembed.errors import DownloadError, NoSourceError, OptionError
from asyncembed.files import in_disk_thread
from asyncembed.hub.archive import Archive
from asyncembed.hub.cache import cache_root, translate_disk_error
from asyncembed.hub.listing import DEFAULT_REVISION, Listing, RepoFile, Wanted
from asyncembed.hub.loadable_path import loadable_model_path
from asyncembed.hub.progress import (
    BytesReceived,
    CallbackFailedError,
    DownloadFinished,
    DownloadStarted,
    FileFinished,
    Progress,
    ProgressEvent,
    ProgressReport,
)
from asyncembed.hub.repo import CacheFolder, HubRepo, LocalDirectory, Place

__all__ = [
    "BytesReceived",
    "DownloadFinished",
    "DownloadStarted",
    "FileFinished",
    "Listing",
    "Progress",
    "ProgressEvent",
    "RepoFile",
    "fetch",
    "list_files",
    "loadable_model_path",
]


async def fetch(
    sources: Sequence[Origin],
    *,
    patterns: Sequence[str],
    required: Sequence[str] = (),
    revision: str | None = None,
    commit: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    progress: Progress = None,
    refresh: bool = False,
    verify: bool = False,
) -> Path:
    """Give a directory with the wanted files of the first source that has them.

    What is complete on this disk is used as it is, from whichever source, without asking the network.
    Otherwise the sources are tried in order. `patterns` are globs over whole paths (`*` also matches `/`),
    of which a source need not have any; `required` are exact paths that it must have. `revision` applies
    to hub sources; `commit` is what it stands for in the one repo concerned, where `list_files` has told that already.

    A branch (also the default one) therefore stays at the commit that it was at when some tool last downloaded it.
    `refresh` asks the hub where it is now, and downloads what is new; without the network, or where the hub cannot be
    reached, the cached commit is used all the same.

    `verify` also reads the hub's files that are in the cache already, and replaces those whose hash is wrong (their
    sizes are always compared).

    Cancelling it keeps what came so far, and the next call resumes. Tasks that want the same files take
    turns, so each file is downloaded once.

    Raises:
        DownloadError: The only source's error, or NoSourceError with each one's.
        OptionError: A repo id or a network setting that cannot work.
        Exception: What the callback raised.
    """
    if not sources:
        raise OptionError("there is no source to fetch files from")
    wanted = Wanted(tuple(patterns), tuple(required))
    root = await in_disk_thread(cache_root, cache_dir)
    may_ask = not local_files_only and _is_online()

    def look_around() -> list[Place]:
        wanted_revision = revision or DEFAULT_REVISION
        return [
            _place(source, root, wanted, wanted_revision, commit, token, refresh=refresh and may_ask)
            for source in sources
        ]

    try:
        places = await in_disk_thread(look_around)
        for place in places:
            if verify and isinstance(place, HubRepo):
                await in_disk_thread(place.drop_damaged)
            found = await in_disk_thread(place.find)
            if found is not None:
                return found
    except OSError as error:
        raise translate_disk_error(error, root) from error
    # What is only ever found on disk has had its chance, unless there is nothing else to name in a message.
    places = [place for place in places if not isinstance(place, CacheFolder)] or places
    try:
        return await _first_of(places, root, progress, may_ask=may_ask)
    except CallbackFailedError as failure:
        raised = failure.error
    raise raised


async def _first_of(places: Sequence[Place], root: Path, progress: Progress, *, may_ask: bool) -> Path:
    failures: list[DownloadError] = []
    async with ProgressReport(progress) as report:
        for place in places:
            try:
                if may_ask:
                    return await place.bring(report)
                return await in_disk_thread(place.find_usable)
            except DownloadError as error:
                failures.append(error)
            except OSError as error:
                failures.append(translate_disk_error(error, root))
    if len(failures) == 1:
        raise failures[0]
    lines = [f"{place.name}: {failure}" for place, failure in zip(places, failures, strict=True)]
    raise NoSourceError("no source has the files:\n" + "\n".join(lines), failures=tuple(failures))


async def list_files(
    repo: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    refresh: bool = False,
) -> Listing:
    """All files of a repo at a revision: from the cache if they are known there (unless `refresh`), else from the hub.

    The revision stays at the commit of the cache, if it has one. Where its listing is not in the cache, and the
    network is not to be used (`local_files_only`, HF_HUB_OFFLINE) or the hub gives none, it is what the cache holds.

    Raises:
        DownloadError: The hub refuses or cannot be reached, or offline, and the cache holds nothing.
    """
    root = await in_disk_thread(cache_root, cache_dir)
    may_ask = not local_files_only and _is_online()
    try:
        place = await in_disk_thread(
            lambda: HubRepo(
                root, repo, revision or DEFAULT_REVISION, Wanted(("*",)), token, refresh=refresh and may_ask
            )
        )
        return await place.list_files(may_ask=may_ask)
    except OSError as error:
        raise translate_disk_error(error, root) from error


def _is_online() -> bool:
    # Imported by `cache_root` already, in a thread: this is called on the event loop.
    from huggingface_hub import constants

    return not constants.is_offline_mode()


def _place(
    source: Origin,
    root: Path,
    wanted: Wanted,
    revision: str,
    commit: str | None,
    token: str | bool | None,
    *,
    refresh: bool,
) -> Place:
    """What stands for a source here; blocks, as it looks at the disk."""
    match source:
        case HubOrigin(repo):
            return HubRepo(root, repo, revision, wanted, token, commit=commit, refresh=refresh)
        case ArchiveOrigin(url, folder):
            return Archive(root, url, folder, wanted)
        case LocalOrigin(path):
            return LocalDirectory(path, wanted)
        case CacheFolderOrigin(folder):
            return CacheFolder(root / folder, wanted)
