"""What the rest of the package asks of the hub: a directory with a model's files, and what a repo holds."""

from collections.abc import Sequence
from pathlib import Path

from asyncembed.catalogue.spec import ArchiveOrigin, CacheFolderOrigin, HubOrigin, LocalOrigin, Origin
from asyncembed.errors import DownloadError, NoSourceError, OptionError
from asyncembed.files import in_disk_thread
from asyncembed.hub.access import HubAccess
from asyncembed.hub.archive import Archive
from asyncembed.hub.cache import cache_root, translate_disk_error
from asyncembed.hub.listing import Listing, Wanted
from asyncembed.hub.progress import CallbackFailedError, ProgressReport
from asyncembed.hub.repo import HubRepo, LocalDirectory, Place


async def download_files(
    origins: Sequence[Origin],
    access: HubAccess,
    *,
    patterns: Sequence[str],
    required: Sequence[str] = (),
    commit: str | None = None,
) -> Path:
    """Give a directory with the wanted files of the first origin that has them.

    What is complete on this disk is used as it is, from whichever origin, without asking the network.
    Otherwise the origins are tried in order. `patterns` are globs over whole paths (`*` also matches `/`),
    of which an origin need not have any; `required` are exact paths that it must have. `commit` is what the
    revision stands for in the one repo concerned, where `list_files` has told that already.

    A branch (also the default one) therefore stays at the commit that it was at when some tool last downloaded it.
    `refresh` asks the hub where it is now, and downloads what is new; without the network, or where the hub cannot be
    reached, the cached commit is used all the same.

    Cancelling it keeps what came so far, and the next call resumes. Tasks that want the same files take
    turns, so each file is downloaded once.

    Raises:
        DownloadError: The only origin's error, or NoSourceError with each one's.
        OptionError: A repo id or a network setting that cannot work.
        Exception: What the callback raised.
    """
    if not origins:
        raise OptionError("there is nothing that files could come from")
    wanted = Wanted(tuple(patterns), tuple(required))
    root = await in_disk_thread(cache_root, access.cache_dir)

    def look() -> tuple[list[Place], Path | None]:
        places = [_place(origin, wanted, root, access, commit) for origin in origins]
        return places, next((found for place in places if (found := place.complete()) is not None), None)

    try:
        places, found = await in_disk_thread(look)
        if found is not None:
            return found
    except OSError as error:
        raise translate_disk_error(error, root) from error
    # What an older tool left has had its chance, unless there is nothing else to name in a message.
    places = [place for place in places if not (isinstance(place, LocalDirectory) and place.is_leftover)] or places
    try:
        return await _first_of(places, root, access)
    except CallbackFailedError as failure:
        raised = failure.error
    raise raised


async def _first_of(places: Sequence[Place], root: Path, access: HubAccess) -> Path:
    failures: list[DownloadError] = []
    async with ProgressReport(access.progress, access.policy.bar_grace_seconds) as report:
        for place in places:
            try:
                if access.may_ask:
                    return await place.download(report)
                return await in_disk_thread(place.loadable)
            except DownloadError as error:
                failures.append(error)
            except OSError as error:
                failures.append(translate_disk_error(error, root))
    if len(failures) == 1:
        raise failures[0]
    lines = [f"{place.name}: {failure}" for place, failure in zip(places, failures, strict=True)]
    raise NoSourceError("no source has the files:\n" + "\n".join(lines), failures=tuple(failures))


async def list_files(repo: str, access: HubAccess) -> Listing:
    """All files of a repo at a revision: from the cache if they are known there (unless `refresh`), else from the hub.

    The revision stays at the commit of the cache, if it has one. Where its listing is not in the cache, and the
    network is not to be used (`local_files_only`, HF_HUB_OFFLINE) or the hub gives none, it is what the cache holds.

    Raises:
        DownloadError: The hub refuses or cannot be reached, or offline, and the cache holds nothing.
    """
    root = await in_disk_thread(cache_root, access.cache_dir)
    try:
        place = await in_disk_thread(HubRepo, repo, Wanted(("*",)), root, access)
        return await place.list_files()
    except OSError as error:
        raise translate_disk_error(error, root) from error


def _place(origin: Origin, wanted: Wanted, root: Path, access: HubAccess, commit: str | None) -> Place:
    """What stands for an origin here; blocks, as it looks at the disk."""
    match origin:
        case HubOrigin(repo):
            return HubRepo(repo, wanted, root, access, commit)
        case ArchiveOrigin(url, folder):
            return Archive(url, folder, wanted, root, access)
        case LocalOrigin(path):
            return LocalDirectory(path, wanted)
        case CacheFolderOrigin(folder):
            return LocalDirectory(root / folder, wanted, is_leftover=True)
