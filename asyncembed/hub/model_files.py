"""From a model's name to its files: what the catalogue or the repo itself says it needs, and no more."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import get_args

import anyio

from asyncembed.catalogue.described import Overrides
from asyncembed.catalogue.lookup import CLASSES, find_model
from asyncembed.catalogue.pipeline import CONFIGURATION, configuration_files, spec_from_directory
from asyncembed.catalogue.spec import CacheFolderOrigin, Family, HubOrigin, ModelSpec, Origin
from asyncembed.errors import DownloadError, NoSourceError, OptionError, UnsupportedModelError
from asyncembed.faking import current_fakes
from asyncembed.files import in_disk_thread
from asyncembed.hub.access import HubAccess
from asyncembed.hub.api import download_files, list_files
from asyncembed.hub.listing import Listing
from asyncembed.hub.progress import Progress
from asyncembed.repo_files import WEIGHTS_INDEX, list_directory
from asyncembed.runtime.onnx_file import read_onnx_file
from asyncembed.runtime.safetensors import find_shards


async def download(
    *names: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    patterns: Sequence[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    progress: Progress = None,
    refresh: bool = False,
    verify: bool = False,
) -> Path | list[Path]:
    """Download models, so that opening them needs no network; what is complete on this disk is used as it is.

    That holds for a branch, too: once some tool has downloaded it, it stays at that commit, unless `refresh` is given.

    Args:
        names: Names of the catalogue (letter case does not matter), or repos of the hub.
        revision: Branch, tag or commit on the hub; None: the default branch.
        cache_dir: Cache instead of the one that huggingface_hub uses.
        patterns: Globs of the files to take (`*` also matches `/`) instead of those that the model needs.
        local_files_only: Ask no network; raise if something is missing.
        token: Access token for the hub; None: the usual one, False: none.
        progress: A callback for events (see `asyncembed.hub.progress`); False: no bar; None: a bar in a terminal.
        refresh: Ask the hub where the branch is now, and download what is new. Where the hub cannot be asked, what is
            in the cache is used.
        verify: Also read what is in the cache already, and replace what is damaged.

    Returns:
        The directory with the files; for several names a list of them, in their order. Where models are fakes (see
        `asyncembed.testing`) nobody is asked for any, and it is an empty one.

    Raises:
        DownloadError: A model cannot be had.
        UnsupportedModelError: A repo outside the catalogue is a model for none of the classes; the message has each
            one's reason.
    """
    access = HubAccess(
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
        progress=progress,
        refresh=refresh,
        verify=verify,
    )
    found = await download_models(names, access, patterns=patterns)
    return found if len(found) > 1 else found[0]


async def download_models(
    names: Sequence[str], access: HubAccess, *, patterns: Sequence[str] | None = None
) -> list[Path]:
    """Download models at once; the directories in the order of their names. See `download`."""
    if not names:
        raise OptionError("name at least one model")
    for name in names:
        if not isinstance(name, str):
            raise OptionError(f"names are those of the catalogue or of repos, as in 'org/name'; got {name!r}")
    if isinstance(patterns, str):
        raise OptionError("patterns= is a sequence of globs, as in ['*.json']")
    if (fakes := current_fakes()) is not None:
        fakes.announce()
        return [await in_disk_thread(_empty_directory)] * len(names)
    directories: dict[int, Path] = {}
    failures: list[Exception] = []

    async def download_one(position: int, name: str) -> None:
        try:
            directories[position] = await _download_any(name, patterns, access)
        except Exception as error:  # noqa: BLE001 (a group would wrap it; it may be what the caller's callback raised)
            failures.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for position, name in enumerate(names):
            group.start_soon(download_one, position, name)
    if failures:
        raise failures[0]
    return [directories[position] for position in range(len(names))]


def _empty_directory() -> Path:
    """The same one always: fakes have no files."""
    found = Path(tempfile.gettempdir(), "asyncembed-fakes")
    found.mkdir(exist_ok=True)
    return found


async def download_model(spec: ModelSpec, access: HubAccess) -> Path:
    """Give a directory with all files that `spec` needs: its graph with its weights, tokenizer and configuration.

    Raises:
        DownloadError: See `asyncembed.hub.download_files`.
    """
    return await _download_whole(spec, access, CONFIGURATION, _files_of(spec))


async def download_repo(
    repo: str, access: HubAccess, *, families: Sequence[Family], overrides: Overrides | None = None
) -> tuple[ModelSpec, Path]:
    """Read the spec of a repo that no catalogue knows from its own small files, and download what it names.

    Returns:
        The spec, and the directory with its files. It is of the first of `families` that the repo can be.

    Raises:
        UnsupportedModelError: The repo does not say something that must be known; of several families, each one's
            reason.
        DownloadError: Its listing or its files cannot be had.
    """
    listing = await list_files(repo, access)
    configuration = configuration_files(listing.paths)
    if not configuration:
        raise UnsupportedModelError(
            f"{repo} has no configuration of a model, only {', '.join(listing.paths[:12]) or 'no files at all'}",
            model=repo,
        )
    # The files are few and small, and the bar is for what takes long.
    quiet = replace(access, progress=False)
    directory = await download_files(
        (HubOrigin(repo),), quiet, patterns=configuration, required=configuration, commit=listing.commit
    )
    spec = await in_disk_thread(_read_spec, directory, listing, families, overrides or Overrides())
    required = (*configuration, *_files_of(spec))
    return spec, await _download_whole(spec, access, configuration, required, commit=listing.commit)


async def list_model(spec: ModelSpec, access: HubAccess) -> tuple[str, ...]:
    """All files of the first source of `spec` that can be had, as paths with "/".

    Raises:
        DownloadError: None of them can be.
    """
    failures: list[DownloadError] = []
    for source in spec.sources:
        try:
            if isinstance(source, HubOrigin):
                return (await list_files(source.repo, access)).paths
            if not isinstance(source, CacheFolderOrigin):  # which older tools filled with one precision only
                directory = await download_files((source,), access, patterns=("*",))
                return tuple(await in_disk_thread(list_directory, directory))
        except DownloadError as error:
            failures.append(error)
    raise failures[0] if failures else NoSourceError(f"{spec.name} has no source whose files can be listed")


async def _download_whole(
    spec: ModelSpec, access: HubAccess, patterns: Sequence[str], required: Sequence[str], *, commit: str | None = None
) -> Path:
    """Download what is known to be needed, and then what those files say that they need besides."""
    named: tuple[str, ...] = ()
    while True:
        directory = await download_files(
            spec.sources, access, patterns=patterns, required=(*required, *named), commit=commit
        )
        needed = await in_disk_thread(_named_by_files, directory, spec)
        # Not those of before, if a branch has moved in between: then once more.
        if set(needed) <= set(named):
            return directory
        named = needed


def _named_by_files(directory: Path, spec: ModelSpec) -> tuple[str, ...]:
    """Files that others of a model's files name, as paths in its repo: a graph its weights, an index its shards."""
    if spec.model_file is None:
        return find_shards(directory / spec.folder) if WEIGHTS_INDEX in spec.additional_files else ()
    folder = PurePosixPath(spec.model_file).parent
    return tuple((folder / name).as_posix() for name in read_onnx_file(directory / spec.model_file).weights)


async def _download_any(name: str, patterns: Sequence[str] | None, access: HubAccess) -> Path:
    specs = [spec for family in get_args(Family) if (spec := find_model(name, family))]
    if patterns is not None:
        return await download_files(specs[0].sources if specs else (HubOrigin(name),), access, patterns=patterns)
    if not specs:
        _, directory = await download_repo(name, access, families=get_args(Family))
        return directory
    # One name may stand for models of several families; the first one's directory is the answer.
    directories = [await _download_catalogued(spec, access) for spec in specs]
    return directories[0]


async def _download_catalogued(spec: ModelSpec, access: HubAccess) -> Path:
    if not spec.reads_repo:
        return await download_model(spec, access)
    _, directory = await download_repo(own_repo(spec), access, families=(spec.family,))
    return directory


def own_repo(spec: ModelSpec) -> str:
    """The repo of a catalogued model whose own files say how it is computed."""
    return next(source.repo for source in spec.sources if isinstance(source, HubOrigin))


def _files_of(spec: ModelSpec) -> tuple[str, ...]:
    return spec.additional_files if spec.model_file is None else (spec.model_file, *spec.additional_files)


def _read_spec(directory: Path, listing: Listing, families: Sequence[Family], overrides: Overrides) -> ModelSpec:
    origin = HubOrigin(listing.repo)
    return first_spec(directory, listing.repo, families, files=listing.paths, origin=origin, overrides=overrides)


def first_spec(
    directory: Path,
    name: str,
    families: Sequence[Family],
    *,
    files: Sequence[str] | None = None,
    origin: Origin | None = None,
    overrides: Overrides,
) -> ModelSpec:
    """`spec_from_directory` for the first of several families that the repo can be of.

    Raises:
        UnsupportedModelError: It can be of none; the message has each one's reason.
    """
    failures: dict[Family, UnsupportedModelError] = {}
    for family in families:
        try:
            return spec_from_directory(
                directory, name=name, family=family, files=files, origin=origin, overrides=overrides
            )
        except UnsupportedModelError as error:
            failures[family] = error
    if len(failures) == 1:
        raise failures[families[0]]
    reasons = (f"{CLASSES[family]}: {str(error).removeprefix(f'{name}: ')}" for family, error in failures.items())
    raise UnsupportedModelError(
        "\n".join((f"{name} is a model for none of the classes (patterns= takes files all the same):", *reasons)),
        model=name,
    )
