"""From a name to what a worker needs: the catalogue, the hub, a directory's own configuration, the export."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from anyio import CancelScope

from asyncembed.catalogue.from_repo import Overrides, spec_from_directory
from asyncembed.catalogue.limits import most_tokens
from asyncembed.catalogue.lookup import CLASSES, Catalogue
from asyncembed.catalogue.spec import Family, ModelSpec
from asyncembed.encoders.encoder import EncoderConfig
from asyncembed.engine.wakeup import completion
from asyncembed.engine.worker import ProcessWorker
from asyncembed.errors import OptionError, RepoNotFoundError, UnknownModelError
from asyncembed.files import in_disk_thread
from asyncembed.hub import loadable_model_path
from asyncembed.hub.models import HubAccess, fetch_model, fetch_repo
from asyncembed.options import Options

_WITHOUT_GRAPH = frozenset({"static", "bm25"})
"""Encoders whose models have no graph: none is exported for them, and a token costs next to nothing."""


async def prepare(
    name: str | os.PathLike[str] | ModelSpec,
    family: Family,
    options: Options,
    *,
    overrides: Overrides,
    settings: Mapping[str, object],
) -> EncoderConfig:
    """Find a model, bring its files onto disk, and say how a worker is to run it.

    Args:
        name: As `Embedder` takes it. A name of the catalogue comes before a directory of the same relative path;
            "./name" is always a directory.
        family: Which public class asks.
        options: The shared options.
        overrides: What the caller says instead of the repo's own configuration.
        settings: The family's own constructor keywords.

    Raises:
        UnknownModelError: No catalogue entry, directory or hub repo has this name.
        UnsupportedModelError: The files do not say how to compute the model, or ask for what is not supported.
        DownloadError: The files cannot be had.
        OptionError: `max_length` is more than the model can compute.
    """
    spec, directory = await _locate(name, family, options, overrides)
    if options.max_length is not None:
        await in_disk_thread(_check_max_length, directory, options.max_length)
    if spec.model_file is None and spec.encoder not in _WITHOUT_GRAPH and ":" not in spec.encoder:
        # Beside the hub's files, where the user wants those elsewhere; their caches take what is in it for repos.
        cache_dir = None if options.cache_dir is None else Path(options.cache_dir, "asyncembed")
        spec = replace(spec, model_file=str(await _export(directory, cache_dir, in_process=options.workers == 0)))
    elif spec.model_file is not None and not Path(spec.model_file).is_absolute():
        # Absolute where onnxruntime would not find the weights beside the graph, through the links of a hub's cache.
        path = await loadable_model_path(directory, spec.model_file)
        spec = replace(spec, model_file=str(path.relative_to(directory) if path.is_relative_to(directory) else path))
    return EncoderConfig(
        spec=spec,
        directory=directory,
        session=options.session_options(),
        max_length=options.max_length,
        max_batch_tokens=options.batch_tokens(has_graph=spec.encoder not in _WITHOUT_GRAPH),
        accelerated_batch_tokens=options.accelerated_batch_tokens(),
        max_batch_size=options.max_batch_size,
        batch_invariant=options.batch_invariant,
        settings=settings,
    )


async def _locate(
    name: str | os.PathLike[str] | ModelSpec, family: Family, options: Options, overrides: Overrides
) -> tuple[ModelSpec, Path]:
    hub = HubAccess(
        revision=options.revision,
        cache_dir=options.cache_dir,
        local_files_only=options.local_files_only,
        token=options.token,
        progress=options.progress,
    )
    if isinstance(name, ModelSpec):
        if name.family != family:
            raise OptionError(f"{name.name} is a model for {CLASSES[name.family]}, not for {CLASSES[family]}")
        spec: ModelSpec | None = name
        label = name.name
    else:
        label = os.fspath(name)
        spec = Catalogue.builtin().find(label, family) if isinstance(name, str) else None
    given = None if options.model_path is None else await _existing_directory(options.model_path, label)
    if spec is not None:
        spec = _override(spec, overrides)
        if given is not None:
            return spec, given
        return spec, await fetch_model(spec, hub) if spec.sources else Path()
    if given is None:
        is_path = not isinstance(name, str) or label.startswith((".", "/", "~"))
        if is_path or await in_disk_thread(Path(label).is_dir):
            given = await _existing_directory(label, label)
    if given is not None:
        return await in_disk_thread(
            lambda: spec_from_directory(given, name=label, family=family, overrides=overrides)
        ), given
    return await _from_hub(label, family, hub, overrides)


async def _existing_directory(path: str | os.PathLike[str], model: str) -> Path:
    if await in_disk_thread(Path(path).is_dir):
        return Path(path)
    message = f"there is no directory {os.fspath(path)!r}"
    if await in_disk_thread(Path(path).is_file):
        message += ", but a file; give its directory, and onnx_file= where that has several graphs"
    raise UnknownModelError(message, model=model)


async def _from_hub(name: str, family: Family, hub: HubAccess, overrides: Overrides) -> tuple[ModelSpec, Path]:
    catalogue = Catalogue.builtin()
    is_repo_id = name.count("/") == 1
    if catalogue.families_of(name) or not is_repo_id:
        try:
            catalogue.lookup(name, family)
        except UnknownModelError as error:
            if is_repo_id:
                raise
            raise UnknownModelError(
                f"{error}; it is neither a directory nor a hub repo, which is called organisation/name", model=name
            ) from None
    try:
        return await fetch_repo(name, hub, families=(family,), overrides=overrides)
    except RepoNotFoundError as error:
        if near := catalogue.similar(name, family):
            raise RepoNotFoundError(
                f"{error}; did you mean {' or '.join(near)}?", source=error.source, path=error.path
            ) from error
        raise


def _check_max_length(directory: Path, max_length: int) -> None:
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError):
        return  # whether the file is needed, and what it must say, is not for here
    most = most_tokens(config) if isinstance(config, dict) else None
    if most is not None and max_length > most:
        raise OptionError(f"max_length={max_length} is more than the {most} tokens that the model has positions for")


def _override(spec: ModelSpec, overrides: Overrides) -> ModelSpec:
    if overrides.precision is not None:
        raise OptionError(
            f"{spec.name} is catalogued with one file ({spec.model_file}); name another one with onnx_file="
        )
    graph = overrides.onnx_file or spec.model_file
    return replace(
        spec,
        pooling=overrides.pooling or spec.pooling,
        normalize=spec.normalize if overrides.normalize is None else overrides.normalize,
        model_file=graph,
        # The weights of one graph are of no use to another.
        additional_files=tuple(
            path
            for path in spec.additional_files
            if graph == spec.model_file or not path.startswith(f"{spec.model_file}")
        ),
        output=spec.output if overrides.output is None else overrides.output,
    )


async def _export(directory: Path, cache_dir: Path | None, *, in_process: bool) -> Path:
    """The graph of the weights in `directory`: from the cache, or built, in a process of its own.

    Building holds the interpreter's lock for long stretches, so a thread would stall the event loop.
    """
    from asyncembed import export

    found = await in_disk_thread(partial(export.find_graph, directory, cache_dir=cache_dir))
    if found is not None:
        return found
    build = partial(export.ensure_graph, directory, cache_dir=cache_dir)
    if in_process:
        return await in_disk_thread(build)
    builder = ProcessWorker(threads=1)
    try:
        await in_disk_thread(builder.start)
        return await completion(builder.call(build))
    finally:
        builder.kill()
        with CancelScope(shield=True):
            await in_disk_thread(builder.stop)
