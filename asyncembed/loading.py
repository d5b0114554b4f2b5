"""From a name to what a worker needs: the catalogue, the hub, a directory's own configuration, the export."""

import contextlib
import logging
import os
import platform
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from anyio import CancelScope

from asyncembed.catalogue.cpu import features
from asyncembed.catalogue.described import Overrides
from asyncembed.catalogue.limits import check_max_length
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
from asyncembed.encoders.encoder import EncoderConfig
from asyncembed.encoders.registry import check_settings, row_of
from asyncembed.encoders.settings import CausalRerankerSettings, read_settings
from asyncembed.engine.pool import engine_of, plan_of
from asyncembed.engine.worker import ProcessWorker
from asyncembed.errors import (
    DownloadError,
    ModelLoadError,
    OptionError,
    RepoNotFoundError,
    UnknownModelError,
    UnsupportedModelError,
    WorkersImpossible,
)
from asyncembed.faking import ENCODER, SETTING, Fakes, current_fakes
from asyncembed.files import default_cache_dir, in_disk_thread
from asyncembed.hub import HubAccess, download_files
from asyncembed.hub.model_files import download_model, download_repo, first_spec, list_model, own_repo
from asyncembed.options import Options, absolute, is_path
from asyncembed.repo_files import WEIGHTS, WEIGHTS_INDEX, list_directory, read_object
from asyncembed.runtime.loadable_path import loadable_model_path
from asyncembed.runtime.onnx_file import read_onnx_file
from asyncembed.runtime.prepared import Source, find_prepared, note_of, prepare_graph
from asyncembed.runtime.providers import is_gpu_package_installed
from asyncembed.wakeup import completion

if TYPE_CHECKING:
    from asyncembed.export.heads import Head

BuiltT = TypeVar("BuiltT")

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
    spec, directory, kept = await _located(name, family, options, place, overrides)
    check_settings(spec, settings)
    kind = row_of(spec)
    if options.precision == "fp32" and spec.model_file is not None:
        await in_disk_thread(_check_is_fp32, directory, spec)
    if options.max_length is not None:
        await in_disk_thread(_check_max_length, directory / spec.folder, options.max_length)
    is_exported = spec.model_file is None and kind.needs_graph
    if is_exported:
        folder = directory / spec.folder
        head = await in_disk_thread(_head_of, spec, folder)
        spec = replace(spec, model_file=str(await _export(folder, head, own_cache_dir(options), options)))
    elif kept is not None:
        spec = replace(spec, model_file=str(kept))
    elif spec.model_file is not None and not Path(spec.model_file).is_absolute():
        spec = await _with_loadable_file(spec, spec.model_file, directory, options)
    prepared = await _prepared(directory, spec, options, is_exported=is_exported) if kind.needs_graph else None
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
        return await _for_openvino(config, directory / spec.model_file, options)
    return config


async def _located(
    name: str | os.PathLike[str] | ModelSpec,
    family: Family,
    options: Options,
    place: Path | None,
    overrides: Overrides,
) -> tuple[ModelSpec, Path, Path | None]:
    """The model in the precision that suits best and can be had, where its files lie, and the graph made of its own."""
    if _wants_int8(options):
        overrides = replace(
            overrides, int8_objection=partial(_int8_objection, options), int8_of_graphs=_can_int8(options)
        )
    try:
        spec, directory = await _locate(name, family, options, place, overrides)
    except DownloadError:
        # What nobody has asked for by name must not be needed: offline, the plain file may be all there is.
        if overrides.preferred_precision is None:
            raise
        plain = replace(overrides, preferred_precision=None)
        spec, directory = await _locate(name, family, options, place, plain)
    if not (overrides.int8_of_graphs and _is_plain(spec)):
        return spec, directory, None
    try:
        return spec, directory, await _in_8_bits(directory, spec, options)
    except (UnsupportedModelError, ModelLoadError, OSError, WorkersImpossible) as error:
        logger.info("%s: its float32 graph is not brought to 8 bits: %s", spec.name, error)
        return *await _locate_quantized(name, family, options, place, overrides, error), None


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


FAKE_DIMS: Mapping[Family, int] = {
    "text": 384, "image": 512, "late_interaction": 128, "late_interaction_multimodal": 128, "hybrid": 384,
}  # fmt: skip
"""Of fakes of models that the catalogue does not know, unless a test says otherwise."""

FAKE_MAX_LENGTH = 512
"""Words of a text, unless a test or a catalogued model says otherwise."""


async def prepare_fake(
    fakes: Fakes,
    name: str | os.PathLike[str] | ModelSpec,
    family: Family,
    options: Options,
    *,
    place: Path | None,  # noqa: ARG001 (what `prepare` takes)
    overrides: Overrides,
    settings: Mapping[str, object],
) -> EncoderConfig:
    """`prepare` for a fake, which needs no files: any name will do, and the catalogue says what it can say.

    Raises:
        OptionError: A keyword that the catalogued model of this name does not have; or the spec is of another family.
    """
    fakes.announce()
    if fakes.opening_error is not None:
        raise fakes.opening_error
    if isinstance(name, ModelSpec):
        _check_family(name, family)
        spec = name
    else:
        unknown = ModelSpec(name=os.fspath(name), family=family, encoder=ENCODER, sources=(), is_catalogued=False)
        spec = (find_model(name, family) if isinstance(name, str) else None) or unknown
    check_settings(spec, settings)
    has_limit = spec.encoder == ENCODER or not row_of(spec).is_cheap
    faked = replace(
        spec,
        encoder=ENCODER,
        sources=(),
        model_file=None,
        additional_files=(),
        dim=spec.dim or (FAKE_DIMS.get(family) and (fakes.dim or FAKE_DIMS[family])),
        max_length=overrides.max_length or spec.max_length or (FAKE_MAX_LENGTH if has_limit else None),
        settings={**spec.settings, SETTING: fakes},
    )
    return EncoderConfig(
        spec=faked,
        directory=Path(),
        max_length=options.max_length,
        max_batch_tokens=options.batch_tokens(has_graph=True),
        max_batch_size=options.max_batch_size,
        keywords=settings,
    )


def _check_family(spec: ModelSpec, family: Family) -> None:
    if spec.family != family:
        raise OptionError(f"{spec.name} is a model for {CLASSES[spec.family]}, not for {CLASSES[family]}")


async def _locate(
    name: str | os.PathLike[str] | ModelSpec,
    family: Family,
    options: Options,
    place: Path | None,
    overrides: Overrides,
) -> tuple[ModelSpec, Path]:
    hub = _hub_access(options)
    if isinstance(name, ModelSpec):
        _check_family(name, family)
        spec: ModelSpec | None = name
        label = name.name
    else:
        label = os.fspath(name)
        spec = find_model(label, family) if isinstance(name, str) else None
    given = None
    if options.model_path is not None:
        given = await _existing_directory(Path(options.model_path), os.fspath(options.model_path), label)
    if spec is not None and spec.reads_repo:
        return await _from_own_repo(spec, given, hub, overrides)
    if spec is not None:
        if overrides.precision is not None:
            built = await _with_weights(spec, given, hub, overrides)
            try:
                spec = built or await _with_precision(spec, overrides.precision, given, hub)
            except UnsupportedModelError:
                if not (overrides.int8_of_graphs and _is_plain(spec)):
                    raise
        elif overrides.preferred_precision is not None and not isinstance(name, ModelSpec):
            spec = await _preferring(spec, overrides.preferred_precision, given, hub)
        spec = overrides.applied_to(spec)
        if given is not None:
            return spec, given
        if overrides.onnx_file is not None:
            return await _download_named(spec, hub)
        return spec, await download_model(spec, hub) if spec.sources else Path()
    if given is None and place is not None and (is_path(name) or await in_disk_thread(_is_so, place.is_dir)):
        given = await _existing_directory(place, label, label)
    if given is not None:
        return await in_disk_thread(
            lambda: spec_from_directory(given, name=label, family=family, overrides=overrides)
        ), given
    return await _from_hub(label, family, hub, overrides)


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
        directory = given
        read = await in_disk_thread(
            lambda: spec_from_directory(given, name=spec.name, family=spec.family, overrides=overrides)
        )
    return spec.completed_by(read), directory


def _hub_access(options: Options) -> HubAccess:
    return HubAccess(
        revision=options.revision,
        cache_dir=options.cache_dir,
        local_files_only=options.local_files_only,
        token=options.token,
        progress=options.progress,
    )


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
    overrides = Overrides(
        onnx_file=options.onnx_file,
        precision=options.file_precision,
        preferred_precision=options.preferred_precision,
    )
    label, place, families = os.fspath(name), absolute(name), FAMILIES_BY_FILES
    if is_path(name) or await in_disk_thread(_is_so, place.is_dir):
        directory = await _existing_directory(place, label, label)
        spec = await in_disk_thread(partial(first_spec, directory, label, families, overrides=overrides))
    elif label.count("/") != 1:
        spec, _ = await _from_hub(label, "text", _hub_access(options), overrides)  # raises what there is to say
    else:
        spec, _ = await download_repo(label, _hub_access(options), families=families, overrides=overrides)
    return spec.family


def _is_so(question: Callable[[], bool]) -> bool:
    """The answer about a path; no where there can be no such path, as its name may be of any length."""
    try:
        return question()
    except OSError:
        return False


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


def _check_max_length(directory: Path, max_length: int) -> None:
    # Whether the file is needed, and what it must say, is not for here.
    with contextlib.suppress(ModelLoadError):
        check_max_length(max_length, read_object(directory / "config.json"))


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


_HEADS: Mapping[Family, "Head"] = {"cross_encoder": "scores", "sparse": "words"}
"""What a graph that is built for a family gives, if not hidden states."""


def _head_of(spec: ModelSpec, directory: Path) -> "Head":
    """What a graph that is built for a model gives; blocks."""
    if spec.encoder == "causal_reranker":
        from asyncembed.export.answers import read_answer

        settings = read_settings(CausalRerankerSettings, spec)
        if settings.yes is not None:
            return read_answer(directory, settings.yes, settings.no)
    return "states" if spec.encoder == "hybrid" else _HEADS.get(spec.family, "states")


def _wants_int8(options: Options) -> bool:
    return options.precision in ("int8", "q8")


def _can_int8(options: Options) -> bool:
    """Whether what computes is what graphs in 8 bits are made for."""
    return options.runtime != "openvino" and _is_for_cpu(options)


def _is_plain(spec: ModelSpec) -> bool:
    """Whether a model of texts has a graph of whose name no precision is a part."""
    is_of_texts = not spec.family.startswith("image") and "multimodal" not in spec.family
    return is_of_texts and spec.model_file is not None and precision_of(spec.model_file) == "fp32"


async def _in_8_bits(directory: Path, spec: ModelSpec, options: Options) -> Path:
    """The float32 graph of a model in 8 bits: from the cache, or made now, in a process of its own.

    Raises:
        UnsupportedModelError: It is of none of the usual forms.
        ModelLoadError: It cannot be loaded, or the cache cannot be written.
        WorkersImpossible: There can be no such process.
    """
    from asyncembed.export.graph_cache import ensure_int8_graph, find_int8_graph

    assert spec.model_file is not None, "it has a graph"
    source = await in_disk_thread(loadable_model_path, directory, spec.model_file)
    folder, cache_dir = directory / spec.folder, own_cache_dir(options)
    found = await in_disk_thread(partial(find_int8_graph, source, folder, cache_dir=cache_dir))
    if found is not None:
        return found
    logger.info("%s: its graph is brought to 8 bits, once", spec.name)
    make = partial(ensure_int8_graph, source, folder, cache_dir=cache_dir)
    return await (in_disk_thread(make) if options.workers == 0 else _in_process(make))


async def _locate_quantized(
    name: str | os.PathLike[str] | ModelSpec,
    family: Family,
    options: Options,
    place: Path | None,
    overrides: Overrides,
    error: Exception,
) -> tuple[ModelSpec, Path]:
    """The model with the file that its own repo has in 8 bits, as none can be made for the reason `error`."""
    try:
        return await _locate(name, family, options, place, replace(overrides, int8_of_graphs=False))
    except UnsupportedModelError as other:
        raise UnsupportedModelError(f"{other}; {error}", model=other.model) from error


def _int8_objection(options: Options, spec: ModelSpec, directory: Path) -> str | None:
    """Why a graph in 8 bits cannot be built of a model's weights; None: it can be. Said in the log; blocks."""
    from asyncembed.export.architectures import read_plan

    reason = None
    if options.runtime == "openvino":
        reason = "it is for onnxruntime: leave out runtime="
    elif not _is_for_cpu(options):
        reason = 'it is for the CPU: say device="cpu"'
    elif find_spec("onnx") is None:
        reason = 'the package onnx is missing: pip install "asyncembed[export]"'
    else:
        folder = directory / spec.folder
        try:
            read_plan(folder, _head_of(spec, folder))
        except (ModelLoadError, UnsupportedModelError) as error:
            reason = str(error)
    if reason is not None:
        logger.info("%s: no graph in 8 bits is built of its weights: %s", spec.name, reason)
    return reason


async def _export(directory: Path, head: "Head", cache_dir: Path | None, options: Options) -> Path:
    """The graph of the weights in `directory`: from the cache, or built, in a process of its own.

    Building holds the interpreter's lock for long stretches, so a thread would stall the event loop.
    """
    from asyncembed.export.graph_cache import ensure_graph, find_graph

    # OpenVINO takes graphs with branches, and gives wrong numbers or fails where it runs.
    in_chunks = options.runtime != "openvino" and "openvino" not in options.provider_names
    is_int8 = _wants_int8(options)
    found = await in_disk_thread(
        partial(find_graph, directory, head=head, in_chunks=in_chunks, is_int8=is_int8, cache_dir=cache_dir)
    )
    if found is not None:
        return found
    if is_int8:
        logger.info("%s: its weights are brought to 8 bits, once", directory)
    build = partial(ensure_graph, directory, head=head, in_chunks=in_chunks, is_int8=is_int8, cache_dir=cache_dir)
    return await _elsewhere(build, options)


async def _prepared(directory: Path, spec: ModelSpec, options: Options, *, is_exported: bool) -> Path | None:
    """The prepared form of the graph: from the cache, or made now, where the workers gain by it."""
    if spec.model_file is None or not options.prepare or not _is_for_cpu(options):
        return None
    plan = plan_of(options) if options.pool is None else engine_of(options.pool).plan
    workers = plan.most_workers if options.workers != 0 else None
    path = directory / spec.model_file
    find = partial(_find_prepared, path, own_cache_dir(options), workers=workers)
    try:
        source, found = await in_disk_thread(find)
        if found is not None or source is None or options.workers == 0:
            return found
        from asyncembed.runtime.chunked_attention import save_with_chunks
        from asyncembed.runtime.onnx import save_optimized

        # What we export has its attention in chunks already.
        save = save_optimized if is_exported else save_with_chunks
        logger.info("%s: its graph is prepared for the workers of this machine, once", spec.name)
        made = await _in_process(partial(prepare_graph, source, save))
        if (note := await in_disk_thread(partial(note_of, made))) is not None:
            logger.info("%s: %s", spec.name, note)
        return made
    except (OSError, ModelLoadError, WorkersImpossible) as error:
        logger.info("%s: its graph is not prepared, so that each worker does it: %s", spec.name, error)
        return None


async def _for_openvino(config: EncoderConfig, graph: Path, options: Options) -> EncoderConfig:
    """The config for OpenVINO, or for onnxruntime where it was found out, once, that OpenVINO computes wrongly."""
    from asyncembed.encoders.comparison import objection_to_openvino
    from asyncembed.runtime.verdicts import Verdict, find_verdict, keep_verdict, verdict_file

    name = config.spec.name
    facts = [_machine(), config.spec.encoder, str(config.session.bfloat16)]
    place = partial(verdict_file, graph, facts, cache_dir=own_cache_dir(options) or default_cache_dir())
    try:
        file = await in_disk_thread(place)
        verdict = await in_disk_thread(partial(find_verdict, file))
        if verdict is None:
            logger.info("%s: what OpenVINO computes is compared with onnxruntime, once", name)
            verdict = Verdict(await _elsewhere(partial(objection_to_openvino, config), options))
            await in_disk_thread(partial(keep_verdict, file, verdict))
    except OSError as error:
        raise ModelLoadError(f"{graph} cannot be read: {error}", model=name) from error
    except ModelLoadError as error:  # OpenVINO has taken the process with it
        verdict = Verdict(f"onnxruntime runs it: {error}")
    if verdict.objection is None:
        return config
    logger.warning("%s: %s", name, verdict.objection)
    return replace(config, session=replace(config.session, runtime="onnxruntime", bfloat16=False))


def _machine() -> str:
    """What a graph made for this machine, or tried on it, may depend on."""
    return " ".join([platform.machine(), *sorted(features())])


def _find_prepared(path: Path, cache_dir: Path | None, *, workers: int | None) -> tuple[Source | None, Path | None]:
    """The source, where it pays to prepare it, and what has been made of it."""
    source = Source.of(path, machine=_machine(), cache_dir=cache_dir or default_cache_dir())
    return (source, find_prepared(source)) if source.pays(workers=workers) else (None, None)


def _is_for_cpu(options: Options) -> bool:
    """Whether it is certain that the CPU computes."""
    if options.runtime == "openvino":
        return False  # none of onnxruntime's
    if options.providers is None:
        return options.device == "cpu" or (options.device == "auto" and not is_gpu_package_installed())
    return options.provider_names == ["cpu"]


def own_cache_dir(options: Options) -> Path | None:
    """Where what we make of a model is kept: beside the hub's files, where the user wants those elsewhere."""
    return None if options.cache_dir is None else Path(options.cache_dir, "asyncembed")


async def _elsewhere(build: Callable[[], BuiltT], options: Options) -> BuiltT:
    """Do it in a process of its own, or in a thread where the model is to have no processes."""
    if options.workers == 0:
        return await in_disk_thread(build)
    try:
        return await _in_process(build)
    except WorkersImpossible:
        if options.workers is not None:
            raise
        return await in_disk_thread(build)


async def _in_process(build: Callable[[], BuiltT]) -> BuiltT:
    builder = ProcessWorker(threads=1)
    try:
        await in_disk_thread(builder.start)
        return await completion(builder.call(build))
    except BrokenExecutor as error:
        raise ModelLoadError(
            "the process that was to make the graph, or to try it, has ended; it may have lacked memory"
        ) from error
    finally:
        builder.kill()
        with CancelScope(shield=True):
            await in_disk_thread(builder.stop)
