"""Graphs that are made on this machine, once: of weights, in 8 bits, prepared, tried; each in a process of its own."""

import logging
import platform
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from anyio import CancelScope

from asyncembed.catalogue.cpu import features
from asyncembed.catalogue.spec import Family, ModelSpec
from asyncembed.encoders.encoder import EncoderConfig
from asyncembed.encoders.settings import CausalRerankerSettings, read_settings
from asyncembed.engine.pool import engine_of, plan_of
from asyncembed.engine.worker import ProcessWorker
from asyncembed.errors import (
    ModelLoadError,
    UnsupportedModelError,
    WorkersImpossible,
)
from asyncembed.files import default_cache_dir, in_disk_thread
from asyncembed.options import Options
from asyncembed.runtime.loadable_path import loadable_model_path
from asyncembed.runtime.prepared import Source, find_prepared, note_of, prepare_graph
from asyncembed.wakeup import completion

if TYPE_CHECKING:
    from asyncembed.export.heads import Head


BuiltT = TypeVar("BuiltT")

logger: logging.Logger = logging.getLogger("asyncembed")


async def export(directory: Path, head: "Head", cache_dir: Path | None, options: Options) -> Path:
    """The graph of the weights in `directory`: from the cache, or built, in a process of its own.

    Building holds the interpreter's lock for long stretches, so a thread would stall the event loop.
    """
    from asyncembed.export.graph_cache import ensure_graph, find_graph

    # OpenVINO takes graphs with branches, and gives wrong numbers or fails where it runs.
    in_chunks = options.runtime != "openvino" and "openvino" not in options.provider_names
    is_int8 = options.wants_int8
    found = await in_disk_thread(
        partial(find_graph, directory, head=head, in_chunks=in_chunks, is_int8=is_int8, cache_dir=cache_dir)
    )
    if found is not None:
        return found
    if is_int8:
        logger.info("%s: its weights are brought to 8 bits, once", directory)
    build = partial(ensure_graph, directory, head=head, in_chunks=in_chunks, is_int8=is_int8, cache_dir=cache_dir)
    return await _elsewhere(build, options)


_HEADS: Mapping[Family, "Head"] = {"cross_encoder": "scores", "sparse": "words"}
"""What a graph that is built for a family gives, if not hidden states."""


def head_of(spec: ModelSpec, directory: Path) -> "Head":
    """What a graph that is built for a model gives; blocks."""
    if spec.encoder == "causal_reranker":
        from asyncembed.export.answers import read_answer

        settings = read_settings(CausalRerankerSettings, spec)
        if settings.yes is not None:
            return read_answer(directory, settings.yes, settings.no)
    return "states" if spec.encoder == "hybrid" else _HEADS.get(spec.family, "states")


async def in_8_bits(directory: Path, spec: ModelSpec, options: Options) -> Path:
    """The float32 graph of a model in 8 bits: from the cache, or made now, in a process of its own.

    Raises:
        UnsupportedModelError: It is of none of the usual forms.
        ModelLoadError: It cannot be loaded, or the cache cannot be written.
        WorkersImpossible: There can be no such process.
    """
    from asyncembed.export.graph_cache import ensure_int8_graph, find_int8_graph

    assert spec.model_file is not None, "it has a graph"
    source = await in_disk_thread(loadable_model_path, directory, spec.model_file)
    folder, cache_dir = directory / spec.folder, options.own_cache_dir
    found = await in_disk_thread(partial(find_int8_graph, source, folder, cache_dir=cache_dir))
    if found is not None:
        return found
    logger.info("%s: its graph is brought to 8 bits, once", spec.name)
    make = partial(ensure_int8_graph, source, folder, cache_dir=cache_dir)
    return await (in_disk_thread(make) if options.workers == 0 else _in_process(make))


async def discard_damaged(config: EncoderConfig, options: Options, error: ModelLoadError) -> bool:
    """Delete the graph that could not be loaded for the reason `error`, where it was made here: it can be made again.

    Returns:
        Whether that was so.

    Raises:
        ModelLoadError: It cannot be deleted; the message says what to remove.
    """
    from asyncembed.export.graph_cache import delete_graph, folder_of

    graph = config.directory / (config.spec.model_file or "")
    if error.model != str(graph):
        return False
    folder = await in_disk_thread(partial(folder_of, graph, cache_dir=options.own_cache_dir))
    if folder is None:
        return False
    logger.warning("%s: its graph in %s is damaged, and is made again: %s", config.spec.name, folder, error)
    try:
        await in_disk_thread(delete_graph, folder)
    except OSError as obstacle:
        raise ModelLoadError(
            f"{error}; it was made here and is damaged: remove {folder}, which cannot be done from here ({obstacle}), "
            "or name another directory with cache_dir= or in ASYNCEMBED_CACHE, and it is made again",
            model=error.model,
        ) from error
    return True


def int8_objection(options: Options, spec: ModelSpec, directory: Path) -> str | None:
    """Why a graph in 8 bits cannot be built of a model's weights; None: it can be. Said in the log; blocks."""
    from asyncembed.export.architectures import read_plan

    reason = None
    if options.runtime == "openvino":
        reason = "it is for onnxruntime: leave out runtime="
    elif not options.is_for_cpu:
        reason = 'it is for the CPU: say device="cpu"'
    elif find_spec("onnx") is None:
        reason = 'the package onnx is missing: pip install "asyncembed[export]"'
    else:
        folder = directory / spec.folder
        try:
            read_plan(folder, head_of(spec, folder))
        except (ModelLoadError, UnsupportedModelError) as error:
            reason = str(error)
    if reason is not None:
        logger.info("%s: no graph in 8 bits is built of its weights: %s", spec.name, reason)
    return reason


async def prepared_graph(directory: Path, spec: ModelSpec, options: Options, *, is_exported: bool) -> Path | None:
    """The prepared form of the graph: from the cache, or made now, where the workers gain by it."""
    if spec.model_file is None or not options.prepare or not options.is_for_cpu:
        return None
    plan = plan_of(options) if options.pool is None else engine_of(options.pool).plan
    workers = plan.most_workers if options.workers != 0 else None
    path = directory / spec.model_file
    find = partial(_find_prepared, path, options.own_cache_dir, workers=workers)
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


def _find_prepared(path: Path, cache_dir: Path | None, *, workers: int | None) -> tuple[Source | None, Path | None]:
    """The source, where it pays to prepare it, and what has been made of it."""
    source = Source.of(path, machine=_machine(), cache_dir=cache_dir or default_cache_dir())
    return (source, find_prepared(source)) if source.pays(workers=workers) else (None, None)


async def for_openvino(config: EncoderConfig, graph: Path, options: Options) -> EncoderConfig:
    """The config for OpenVINO, or for onnxruntime where it was found out, once, that OpenVINO computes wrongly."""
    from asyncembed.encoders.comparison import objection_to_openvino
    from asyncembed.runtime.verdicts import Verdict, find_verdict, keep_verdict, verdict_file

    name = config.spec.name
    facts = [_machine(), config.spec.encoder, str(config.session.bfloat16)]
    place = partial(verdict_file, graph, facts, cache_dir=options.own_cache_dir or default_cache_dir())
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
