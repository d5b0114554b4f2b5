"""Where a model's files are: the catalogue, a directory, the hub; and which of several graphs is taken."""

import contextlib
import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from asyncembed.catalogue.described import Overrides
from asyncembed.catalogue.lookup import (
    CLASSES,
    families_of,
    find_model,
    is_only_catalogued,
    require_model,
    similar_names,
)
from asyncembed.catalogue.onnx_choice import choose_onnx_file, precision_of, prefer
from asyncembed.catalogue.pipeline import spec_from_directory
from asyncembed.catalogue.spec import Family, HubOrigin, ModelSpec
from asyncembed.errors import (
    DownloadError,
    OptionError,
    RepoNotFoundError,
    UnknownModelError,
    UnsupportedModelError,
)
from asyncembed.faking import current_fakes
from asyncembed.files import in_disk_thread
from asyncembed.hub import HubAccess, download_files
from asyncembed.hub.model_files import download_model, download_repo, first_spec, list_model, own_repo
from asyncembed.options import Options, absolute, is_path, overrides_of
from asyncembed.repo_files import WEIGHTS, WEIGHTS_INDEX, list_directory

logger: logging.Logger = logging.getLogger("asyncembed")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for: see `prepare` for each."""

    name: str | os.PathLike[str] | ModelSpec
    family: Family
    options: Options
    place: Path | None
    overrides: Overrides

    def but(self, **overrides: Any) -> "Wanted":
        """The same with other overrides."""
        return replace(self, overrides=replace(self.overrides, **overrides))


async def locate(wanted: Wanted) -> tuple[ModelSpec, Path]:
    """What a model is, and the directory with its files, which are downloaded where they are not there.

    Raises:
        UnknownModelError, UnsupportedModelError, DownloadError, OptionError: See `prepare`.
    """
    name, family, options, overrides = wanted.name, wanted.family, wanted.options, wanted.overrides
    hub = _hub_access(options)
    spec: ModelSpec | None
    if isinstance(name, ModelSpec):
        check_family(name, family)
        label, spec = name.name, name
    else:
        label, spec = os.fspath(name), find_model(name, family) if isinstance(name, str) else None
    given = None
    if options.model_path is not None:
        given = await _existing_directory(Path(options.model_path), os.fspath(options.model_path), label)
    if spec is not None and spec.reads_repo:
        return await _from_own_repo(spec, given, hub, overrides)
    if spec is not None:
        # Of the graphs of a spec of the caller's own, none is preferred to the one that it names.
        asked = replace(overrides, preferred_precision=None) if spec is name else overrides
        return await _as_described(spec, given, hub, asked)
    given = given or await _directory_named(name, wanted.place, label)
    if given is None:
        return await _from_hub(label, family, hub, overrides)
    return await _from_directory(given, label, family, overrides), given


async def _as_described(
    spec: ModelSpec, given: Path | None, hub: HubAccess, overrides: Overrides
) -> tuple[ModelSpec, Path]:
    """A model that the catalogue or the caller describes, with the graph that is asked for."""
    if overrides.precision is not None:
        built = await _with_weights(spec, given, hub, overrides)
        try:
            spec = built or await _with_precision(spec, overrides.precision, given, hub)
        except UnsupportedModelError:
            if not (overrides.int8_of_graphs and is_plain(spec)):
                raise
    elif overrides.preferred_precision is not None:
        spec = await _preferring(spec, overrides.preferred_precision, given, hub)
    spec = overrides.applied_to(spec)
    if given is not None:
        return spec, given
    if overrides.onnx_file is not None:
        return await _download_named(spec, hub)
    return spec, await download_model(spec, hub) if spec.sources else Path()


async def _from_own_repo(
    spec: ModelSpec, given: Path | None, hub: HubAccess, overrides: Overrides
) -> tuple[ModelSpec, Path]:
    """A catalogued model as the files of its own repo, or of the directory that was given instead, say it is."""
    template = spec.settings.get("template")
    if overrides.template is None and isinstance(template, str):
        overrides = replace(overrides, template=template)
    if given is None:
        read, directory = await download_repo(own_repo(spec), hub, families=(spec.family,), overrides=overrides)
    else:
        read, directory = await _from_directory(given, spec.name, spec.family, overrides), given
    return spec.completed_by(read), directory


async def _from_directory(directory: Path, name: str, family: Family, overrides: Overrides) -> ModelSpec:
    """What the files of a directory say of its model."""
    return await in_disk_thread(partial(spec_from_directory, directory, name=name, family=family, overrides=overrides))


def _hub_access(options: Options) -> HubAccess:
    return HubAccess(
        revision=options.revision,
        cache_dir=options.cache_dir,
        local_files_only=options.local_files_only,
        token=options.token,
        progress=options.progress,
    )


def check_family(spec: ModelSpec, family: Family) -> None:
    """Raise `OptionError` for a spec that another class is for."""
    if spec.family != family:
        raise OptionError(f"{spec.name} is a model for {CLASSES[spec.family]}, not for {CLASSES[family]}")


def _is_so(question: Callable[[], bool]) -> bool:
    """The answer about a path; no where there can be no such path, as its name may be of any length."""
    try:
        return question()
    except OSError:
        return False


async def _directory_named(name: object, place: Path | None, label: str) -> Path | None:
    """The directory that a name means: what is a path means one, and what may also be a repo's name if it is there."""
    if place is None or not (is_path(name) or await in_disk_thread(_is_so, place.is_dir)):
        return None
    return await _existing_directory(place, label, label)


async def _existing_directory(path: Path, as_given: str, model: str) -> Path:
    if await in_disk_thread(_is_so, path.is_dir):
        return path
    message = f"there is no directory {as_given!r}"
    if str(path) != as_given:
        message += f" ({path})"
    if await in_disk_thread(_is_so, path.is_file):
        message += ", but a file; give its directory, and onnx_file= where that has several graphs"
    raise UnknownModelError(message, model=model)


async def _from_hub(name: str, family: Family, hub: HubAccess, overrides: Overrides) -> tuple[ModelSpec, Path]:
    is_repo_id = name.count("/") == 1
    if is_only_catalogued(name) or not is_repo_id:
        try:
            require_model(name, family)
        except UnknownModelError as error:
            if is_repo_id:
                raise
            short = "" if "/" in name else f"; sentence-transformers/{name} is what sentence-transformers would take"
            raise UnknownModelError(
                f"{error}; it is neither a directory nor a hub repo, which is called organisation/name{short}",
                model=name,
            ) from None
    try:
        return await download_repo(name, hub, families=(family,), overrides=overrides)
    except RepoNotFoundError as error:
        if near := similar_names(name, family):
            raise RepoNotFoundError(
                f"{error}; did you mean {' or '.join(near)}?", source=error.source, path=error.path
            ) from error
        raise


async def _with_precision(spec: ModelSpec, precision: str, given: Path | None, hub: HubAccess) -> ModelSpec:
    """The spec of a catalogued model with its file of another precision: from its source, else from its own repo."""
    if spec.model_file is None:
        raise OptionError(f"{spec.name} has no graph, so there is nothing that precision= could choose")
    if given is not None:
        return spec.with_graph(_choose(spec, precision, await in_disk_thread(list_directory, given)))
    try:
        return spec.with_graph(_choose(spec, precision, await list_model(spec, hub)))
    except (UnsupportedModelError, DownloadError):
        # The catalogue's sources often have one precision only; the repo that the model is named after has more.
        own = HubOrigin(spec.name)
        if own in spec.sources or spec.name.count("/") != 1:
            raise
        with contextlib.suppress(UnsupportedModelError, DownloadError):
            named = replace(spec, sources=(own,))
            return named.with_graph(_choose(named, precision, await list_model(named, hub)))
        raise


async def _preferring(spec: ModelSpec, precision: str, given: Path | None, hub: HubAccess) -> ModelSpec:
    """The spec of a catalogued model with its file of another precision, where its directory or repo has that."""
    if spec.model_file is None:
        return spec
    repos = tuple(source for source in spec.sources if isinstance(source, HubOrigin))[:1]
    with contextlib.suppress(DownloadError):
        if given is not None:
            return spec.with_graph(prefer(precision, spec.model_file, await in_disk_thread(list_directory, given)))
        if repos:
            named = replace(spec, sources=repos)
            graph = prefer(precision, spec.model_file, await list_model(named, hub))
            return spec if graph == spec.model_file else named.with_graph(graph)
    return spec


async def _download_named(spec: ModelSpec, hub: HubAccess) -> tuple[ModelSpec, Path]:
    """A catalogued model with the graph that the caller names: of its source, else of the repo it is named after."""
    own = HubOrigin(spec.name)
    try:
        return spec, await download_model(spec, hub) if spec.sources else Path()
    except DownloadError:
        if own in spec.sources or spec.name.count("/") != 1:
            raise
        with contextlib.suppress(DownloadError):
            named = replace(spec, sources=(own,))
            return named, await download_model(named, hub)
        raise


async def _with_weights(spec: ModelSpec, given: Path | None, hub: HubAccess, overrides: Overrides) -> ModelSpec | None:
    """The spec of a catalogued model with weights that a graph in 8 bits can be built of; None: there are none."""
    is_pooled_here = spec.encoder == "dense" and spec.pooling != "none" and "task_input" not in spec.settings
    objection = overrides.int8_objection
    if objection is None or spec.graph_output != 0 or not (is_pooled_here or spec.encoder == "cross_encoder"):
        return None
    # The catalogue's sources often have a graph only; the repo that the model is named after has its weights.
    sources = spec.sources if given is not None or spec.name.count("/") != 1 else (HubOrigin(spec.name),)
    bare = replace(spec, sources=sources, model_file=None)
    try:
        files = await list_model(bare, hub) if given is None else await in_disk_thread(list_directory, given)
        weights = next((name for name in (WEIGHTS, WEIGHTS_INDEX) if name in files), None)
        if weights is None:
            return None
        if given is None:
            config = ("config.json",)
            given = await download_files(sources, replace(hub, progress=False), patterns=config, required=config)
    except DownloadError as error:
        logger.info("%s: no graph in 8 bits is built of its weights: %s", spec.name, error)
        return None
    if await in_disk_thread(objection, bare, given) is not None:
        return None
    others = (path for path in spec.additional_files if not path.startswith(f"{spec.model_file}"))
    return replace(bare, additional_files=(weights, *others))


def _choose(spec: ModelSpec, precision: str, files: Collection[str]) -> str:
    chosen = choose_onnx_file([path for path in files if path.endswith(".onnx")], precision=precision, model=spec.name)
    assert chosen is not None, "without weights to export there is a graph or an error"
    return chosen


def is_plain(spec: ModelSpec) -> bool:
    """Whether a model of texts has a graph of whose name no precision is a part."""
    is_of_texts = not spec.family.startswith("image") and "multimodal" not in spec.family
    return is_of_texts and spec.model_file is not None and precision_of(spec.model_file) == "fp32"


def known_family(name: str | os.PathLike[str]) -> Family | None:
    """The family of a model of the catalogue, the first one of several; None: it has no such model."""
    # What is hybrid is also a text model, and that is what programs ask for that leave the family to the model.
    families = [family for family in families_of(name) if family != "hybrid"] if isinstance(name, str) else []
    if not families and current_fakes() is not None:
        return "text"
    return next(iter(families), None)


FAMILIES_BY_FILES: tuple[Family, ...] = ("text", "image", "sparse", "late_interaction", "cross_encoder")
"""Those that a model can be of by its files: first what is surest to be told by them."""


async def find_family(name: str | os.PathLike[str], options: Options) -> Family:
    """The first family that a model can be of, by the files of its directory or repo, which is downloaded.

    Raises:
        UnsupportedModelError: It can be of none.
        DownloadError: Its files cannot be had.
    """
    label, families, overrides = os.fspath(name), FAMILIES_BY_FILES, overrides_of(options)
    directory = await _directory_named(name, absolute(name), label)
    if directory is not None:
        spec = await in_disk_thread(partial(first_spec, directory, label, families, overrides=overrides))
    elif label.count("/") != 1:
        spec, _ = await _from_hub(label, "text", _hub_access(options), overrides)  # raises what there is to say
    else:
        spec, _ = await download_repo(label, _hub_access(options), families=families, overrides=overrides)
    return spec.family
