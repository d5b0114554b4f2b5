"""From a model's name to its files: what the catalogue or the repo itself says it needs, and no more."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import anyio

from asyncembed.catalogue.from_repo import Overrides, configuration_files, spec_from_directory
from asyncembed.catalogue.lookup import Catalogue
from asyncembed.catalogue.spec import Family, HubSource, ModelSpec
from asyncembed.errors import AsyncEmbedError, OptionError, UnsupportedModelError
from asyncembed.files import in_disk_thread
from asyncembed.hub import fetch, list_files
from asyncembed.hub.progress import Progress

CONFIGURATION = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
)
"""Small files that a catalogued model may need: those that fastembed downloads, so its models count as complete."""


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
        The directory with the files; for several names a list of them, in their order.

    Raises:
        DownloadError: A model cannot be had.
        UnsupportedModelError: A repo outside the catalogue does not say which of its files make up a model.
    """
    if not names:
        raise OptionError("name at least one model")
    if isinstance(patterns, str):
        raise OptionError("patterns= is a sequence of globs, as in ['*.json']")
    directories: dict[int, Path] = {}
    failures: list[AsyncEmbedError] = []

    async def bring(position: int, name: str) -> None:
        specs = [spec for family in get_args(Family) if (spec := Catalogue.builtin().find(name, family))]
        try:
            if patterns is not None:
                directories[position] = await fetch(
                    specs[0].sources if specs else (HubSource(name),),
                    patterns=patterns,
                    revision=revision,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    token=token,
                    progress=progress,
                    refresh=refresh,
                    verify=verify,
                )
                return
            if not specs:
                specs = [
                    await describe_repo(
                        name,
                        family=None,
                        revision=revision,
                        cache_dir=cache_dir,
                        local_files_only=local_files_only,
                        token=token,
                        refresh=refresh,
                    )
                ]
            # One name may stand for models of several families; the first one's directory is the answer.
            for spec in reversed(specs):
                directories[position] = await fetch_model(
                    spec,
                    revision=revision,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    token=token,
                    progress=progress,
                    refresh=refresh,
                    verify=verify,
                )
        except AsyncEmbedError as error:
            failures.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for position, name in enumerate(names):
            group.start_soon(bring, position, name)
    if failures:
        raise failures[0]
    found = [directories[position] for position in range(len(names))]
    return found if len(found) > 1 else found[0]


async def fetch_model(
    spec: ModelSpec,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    progress: Progress = None,
    refresh: bool = False,
    verify: bool = False,
) -> Path:
    """Give a directory with all files that `spec` needs: its graph with its weights, tokenizer and configuration.

    Raises:
        DownloadError: See `asyncembed.hub.fetch`.
    """
    graph = spec.model_file
    required = (graph, *spec.additional_files) if graph is not None else spec.additional_files
    # A graph may keep its weights in files beside it, which exporters call model.onnx_data or model.onnx.data.
    weights = (f"{graph}?data", f"{graph}?data_*") if graph is not None else ()
    return await fetch(
        spec.sources,
        patterns=(*CONFIGURATION, *weights),
        required=required,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
        progress=progress,
        refresh=refresh,
        verify=verify,
    )


async def describe_repo(
    repo: str,
    *,
    family: Family | None = "text",
    overrides: Overrides | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    refresh: bool = False,
) -> ModelSpec:
    """Read the spec of a repo that no catalogue knows from its own small files, which are fetched.

    `family` None takes what the repo can be: a text model, else a cross-encoder.

    Raises:
        UnsupportedModelError: The repo does not say something that must be known.
        DownloadError: Its listing or these files cannot be had.
    """
    listing = await list_files(
        repo,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
        refresh=refresh,
    )
    directory = await fetch(
        (HubSource(repo),),
        patterns=configuration_files(listing.paths),
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
        progress=False,
        refresh=refresh,
    )
    families: tuple[Family, ...] = ("text", "cross_encoder") if family is None else (family,)
    failures = []
    for candidate in families:
        try:
            return await in_disk_thread(
                partial(
                    spec_from_directory,
                    directory,
                    name=repo,
                    family=candidate,
                    files=listing.paths,
                    source=HubSource(repo),
                    overrides=overrides or Overrides(),
                )
            )
        except UnsupportedModelError as error:
            failures.append(error)
    raise failures[0]
