"""From a name to what a worker needs: its files found, its graph made where it has none, its options."""

import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from asyncembed.catalogue.described import Overrides
from asyncembed.catalogue.limits import check_max_length
from asyncembed.catalogue.spec import Family, ModelSpec
from asyncembed.encoders.encoder import EncoderConfig
from asyncembed.encoders.registry import check_settings, row_of
from asyncembed.errors import DownloadError, ModelLoadError, UnsupportedModelError, WorkersImpossible
from asyncembed.files import in_disk_thread
from asyncembed.loading.locate import Wanted, is_plain, locate
from asyncembed.loading.made_graphs import export, for_openvino, head_of, in_8_bits, int8_objection, prepared_graph
from asyncembed.options import Options
from asyncembed.repo_files import read_object
from asyncembed.runtime.loadable_path import loadable_model_path
from asyncembed.runtime.onnx_file import read_onnx_file

logger: logging.Logger = logging.getLogger("asyncembed")


async def prepare(
    name: str | os.PathLike[str] | ModelSpec,
    family: Family,
    options: Options,
    *,
    place: Path | None,
    overrides: Overrides,
    settings: Mapping[str, object],
) -> EncoderConfig:
    """Find a model, bring its files onto disk, and say how a worker is to run it.

    Args:
        name: As `Embedder` takes it. A name of the catalogue comes before a directory of the same relative path;
            "./name" is always a directory.
        family: Which public class asks.
        options: The shared options.
        place: Where the name would be a directory, as a path that does not depend on the working directory.
        overrides: What the caller says instead of the repo's own configuration.
        settings: The family's own constructor keywords.

    Raises:
        UnknownModelError: No catalogue entry, directory or hub repo has this name.
        UnsupportedModelError: The files do not say how to compute the model, or ask for what is not supported.
        DownloadError: The files cannot be had.
        OptionError: `max_length` is more than the model can compute.
    """
    spec, directory, kept = await _located(Wanted(name, family, options, place, overrides))
    check_settings(spec, settings)
    kind = row_of(spec)
    if options.precision == "fp32" and spec.model_file is not None:
        await in_disk_thread(_check_is_fp32, directory, spec)
    if options.max_length is not None:
        await in_disk_thread(_check_max_length, directory / spec.folder, options.max_length)
    is_exported = spec.model_file is None and kind.needs_graph
    if is_exported:
        spec = await _exported(spec, directory, options)
    elif kept is not None:
        spec = replace(spec, model_file=str(kept))
    elif spec.model_file is not None and not Path(spec.model_file).is_absolute():
        spec = await _with_loadable_file(spec, spec.model_file, directory, options)
    prepared = await prepared_graph(directory, spec, options, is_exported=is_exported) if kind.needs_graph else None
    config = EncoderConfig(
        spec=spec,
        directory=directory,
        session=options.session_options(),
        prepared=prepared,
        max_length=options.max_length,
        max_batch_tokens=options.batch_tokens(has_graph=not kind.is_cheap),
        accelerated_batch_tokens=options.accelerated_batch_tokens(),
        max_batch_size=options.max_batch_size,
        batch_invariant=options.batch_invariant,
        is_exported=is_exported,
        keywords=settings,
    )
    if options.runtime == "openvino" and kind.needs_graph and spec.model_file is not None:
        return await for_openvino(config, directory / spec.model_file, options)
    return config


async def _located(wanted: Wanted) -> tuple[ModelSpec, Path, Path | None]:
    """The model in the precision that suits best and can be had, where its files lie, and the graph made of its own."""
    options = wanted.options
    if options.wants_int8:
        wanted = wanted.but(int8_objection=partial(int8_objection, options), int8_of_graphs=options.is_for_cpu)
    try:
        spec, directory = await locate(wanted)
    except DownloadError:
        # What nobody has asked for by name must not be needed: offline, the plain file may be all there is.
        if wanted.overrides.preferred_precision is None:
            raise
        spec, directory = await locate(wanted.but(preferred_precision=None))
    if not (wanted.overrides.int8_of_graphs and is_plain(spec)):
        return spec, directory, None
    try:
        return spec, directory, await in_8_bits(directory, spec, options)
    except (UnsupportedModelError, ModelLoadError, OSError, WorkersImpossible) as error:
        logger.info("%s: its float32 graph is not brought to 8 bits: %s", spec.name, error)
        return *await _locate_quantized(wanted, error), None


async def _locate_quantized(wanted: Wanted, error: Exception) -> tuple[ModelSpec, Path]:
    """The model with the file that its own repo has in 8 bits, as none can be made for the reason `error`."""
    try:
        return await locate(wanted.but(int8_of_graphs=False))
    except UnsupportedModelError as other:
        raise UnsupportedModelError(f"{other}; {error}", model=other.model) from error


async def _exported(spec: ModelSpec, directory: Path, options: Options) -> ModelSpec:
    """The spec with the graph that is built of its weights."""
    folder = directory / spec.folder
    head = await in_disk_thread(head_of, spec, folder)
    return replace(spec, model_file=str(await export(folder, head, options.own_cache_dir, options)))


async def _with_loadable_file(spec: ModelSpec, file: str, directory: Path, options: Options) -> ModelSpec:
    """The spec with a path of its graph by which the runtime finds the weights beside it.

    That is absolute where it would not find them through the links of a hub's cache.
    """
    find = partial(loadable_model_path, directory, file, beside_only=options.runtime == "openvino")
    path = await in_disk_thread(find)
    relative = path.relative_to(directory) if path.is_relative_to(directory) else path
    spec = replace(spec, model_file=relative.as_posix())
    if options.batch_invariant and (await in_disk_thread(read_onnx_file, path)).is_dynamically_quantized:
        logger.info(
            '%s: %s has one scale for a whole batch, so that its inputs run one by one; precision="int8" takes a '
            "nearer one that runs whole batches, where that can be made",
            *(spec.name, relative.as_posix()),
        )
    return spec


def _check_max_length(directory: Path, max_length: int) -> None:
    # Whether the file is needed, and what it must say, is not for here.
    with contextlib.suppress(ModelLoadError):
        check_max_length(max_length, read_object(directory / "config.json"))


def _check_is_fp32(directory: Path, spec: ModelSpec) -> None:
    """See that a file whose name tells no precision is not a quantised one, as some conversions are."""
    assert spec.model_file is not None
    path = directory / spec.model_file
    if read_onnx_file(path).is_dynamically_quantized:
        raise UnsupportedModelError(
            f"{spec.name}: {spec.model_file} is quantised although its name does not say so: "
            "leave out precision=, or name an fp32 file with onnx_file=",
            model=spec.name,
        )
