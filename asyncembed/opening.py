"""From a name to what a worker needs: the catalogue, the hub, a directory's own configuration, the export."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import anyio
from anyio import CancelScope, to_thread

from asyncembed import hub
from asyncembed.catalogue.from_repo import Overrides, configuration_files, spec_from_directory
from asyncembed.catalogue.lookup import Catalogue
from asyncembed.catalogue.spec import Family, HubSource, ModelSpec
from asyncembed.encoders.encoder import EncoderConfig
from asyncembed.engine.wakeup import completion
from asyncembed.engine.worker import ProcessWorker
from asyncembed.errors import OptionError, UnknownModelError
from asyncembed.options import Options

CONFIGURATION_PATTERNS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""What a catalogued model may have beside the files that its spec names."""

_WITHOUT_GRAPH = frozenset({"static", "bm25"})
"""Encoders whose models have no graph: none is exported for them, and a token costs next to nothing."""

_CHEAP_BATCH_TOKENS = 32768
"""Token budget without a graph: some tens of milliseconds, so that sending a batch costs less than computing it."""


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
    """
    spec, directory = await _locate(name, family, options, overrides)
    if spec.model_file is None and spec.encoder not in _WITHOUT_GRAPH and ":" not in spec.encoder:
        spec = replace(spec, model_file=str(await _export(directory, in_process=options.workers == 0)))
    elif spec.model_file is not None and not Path(spec.model_file).is_absolute():
        # Absolute where onnxruntime would not find the weights beside the graph, through the links of a hub's cache.
        path = await hub.loadable_model_path(directory, spec.model_file)
        spec = replace(spec, model_file=str(path.relative_to(directory) if path.is_relative_to(directory) else path))
    return EncoderConfig(
        spec=spec,
        directory=directory,
        session=options.session_options(),
        max_length=options.max_length,
        max_batch_tokens=(
            options.max_batch_tokens or _CHEAP_BATCH_TOKENS
            if spec.encoder in _WITHOUT_GRAPH
            else options.batch_tokens()
        ),
        max_batch_size=options.max_batch_size,
        batch_invariant=options.batch_invariant,
        settings=settings,
    )


async def _locate(
    name: str | os.PathLike[str] | ModelSpec, family: Family, options: Options, overrides: Overrides
) -> tuple[ModelSpec, Path]:
    spec = name if isinstance(name, ModelSpec) else Catalogue.builtin().find(os.fspath(name), family)
    if isinstance(name, ModelSpec) and name.family != family:
        raise OptionError(f"{name.name} is a model of the family {name.family}, not {family}")
    if spec is not None:
        spec = _override(spec, overrides)
        return spec, await _files_of(spec, options)
    assert not isinstance(name, ModelSpec)
    path = Path(os.fspath(options.model_path or name))
    if await _is_directory(path):
        label = os.fspath(name)
        return await to_thread.run_sync(
            lambda: spec_from_directory(path, name=label, family=family, overrides=overrides)
        ), path
    if options.model_path is not None:
        raise UnknownModelError(f"model_path={str(path)!r} is no directory", model=os.fspath(name))
    return await _from_hub(os.fspath(name), family, options, overrides)


def _override(spec: ModelSpec, overrides: Overrides) -> ModelSpec:
    if overrides.precision is not None:
        raise OptionError(
            f"{spec.name} is catalogued with one file ({spec.model_file}); name another one with onnx_file="
        )
    return replace(
        spec,
        pooling=overrides.pooling or spec.pooling,
        normalize=spec.normalize if overrides.normalize is None else overrides.normalize,
        model_file=overrides.onnx_file or spec.model_file,
        output=spec.output if overrides.output is None else overrides.output,
    )


async def _files_of(spec: ModelSpec, options: Options) -> Path:
    if options.model_path is not None:
        path = Path(options.model_path)
        if not await _is_directory(path):
            raise UnknownModelError(f"model_path={str(path)!r} is no directory", model=spec.name)
        return path
    if not spec.sources:
        return Path()
    required = [*([spec.model_file] if spec.model_file else []), *spec.additional_files]
    return await hub.fetch(
        spec.sources,
        patterns=[*CONFIGURATION_PATTERNS, *required],
        required=required,
        revision=options.revision,
        cache_dir=_path(options.cache_dir),
        local_files_only=options.local_files_only,
        token=options.token,
        progress=options.progress,
    )


async def _from_hub(name: str, family: Family, options: Options, overrides: Overrides) -> tuple[ModelSpec, Path]:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        try:
            Catalogue.builtin().lookup(name, family)
        except UnknownModelError as error:
            raise UnknownModelError(
                f"{error}; it is neither a directory nor a hub repo, which is called organisation/name", model=name
            ) from None
    cache_dir = _path(options.cache_dir)
    listing = await hub.list_files(
        name,
        revision=options.revision,
        cache_dir=cache_dir,
        local_files_only=options.local_files_only,
        token=options.token,
    )
    files = list(listing.paths)

    async def fetch(paths: list[str]) -> Path:
        return await hub.fetch(
            [HubSource(name)],
            patterns=paths,
            required=paths,
            revision=options.revision,
            cache_dir=cache_dir,
            local_files_only=options.local_files_only,
            token=options.token,
            progress=options.progress,
        )

    configuration = list(configuration_files(files))
    directory = await fetch(configuration)
    spec = await to_thread.run_sync(
        lambda: spec_from_directory(
            directory, name=name, family=family, files=files, source=HubSource(name), overrides=overrides
        )
    )
    rest = [*([spec.model_file] if spec.model_file else []), *spec.additional_files]
    return spec, await fetch([*configuration, *rest])


async def _export(directory: Path, *, in_process: bool) -> Path:
    """The graph of the weights in `directory`: from the cache, or built, in a process of its own.

    Building holds the interpreter's lock for long stretches, so a thread would stall the event loop.
    """
    from asyncembed import export

    found = await to_thread.run_sync(export.find_graph, directory)
    if found is not None:
        return found
    if in_process:
        return await to_thread.run_sync(export.ensure_graph, directory)
    builder = ProcessWorker(threads=1)
    try:
        await to_thread.run_sync(builder.start)
        return await completion(builder.call(export.ensure_graph, directory))
    finally:
        builder.kill()
        with CancelScope(shield=True):
            await to_thread.run_sync(builder.stop)


async def _is_directory(path: Path) -> bool:
    return await anyio.Path(path).is_dir()


def _path(value: str | os.PathLike[str] | None) -> Path | None:
    return None if value is None else Path(value)
