"""Which of a repo's ONNX files is meant: the plain one, or that of a precision, the best one for this machine.

Exporters write the precision into the name, each in its own way: sentence-transformers `model_qint8_avx512_vnni.onnx`
(one per kind of CPU), transformers.js `model_quantized.onnx` and `model_int8.onnx` (two names of one kind).
"""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath

from asyncembed.catalogue.cpu import this_cpu
from asyncembed.errors import OptionError, UnsupportedModelError
from asyncembed.repo_files import NEITHER, WEIGHTS, WEIGHTS_INDEX

logger: logging.Logger = logging.getLogger("asyncembed")

_KINDS: Mapping[str, tuple[str, ...]] = {
    "fp32": ("",),
    # Graphs that optimum has optimised hold fp32 weights; its last step, O4, turns them into fp16.
    "fp16": ("fp16", "f16", "float16", "O4"),
    "int8": ("quantized", "int8", "i8", "uint8"),
    "uint8": ("uint8",),
    "q4": ("q4",),
    "q4f16": ("q4f16",),
    "bnb4": ("bnb4",),
    "q2": ("q2",),
    "q2f16": ("q2f16",),
    "q1": ("q1",),
    "q1f16": ("q1f16",),
}
"""What stands behind the last part of a graph's name, by precision, in the order of preference."""

_INT8_FOR_CPU: Mapping[str, tuple[str, ...]] = {
    "arm64": ("qint8_arm64",),
    "avx512_vnni": ("qint8_avx512_vnni", "qint8_avx512", "quint8_avx2"),
    "avx_vnni": ("qint8_avx512_vnni", "qint8_avx512", "quint8_avx2"),
    "avx512": ("qint8_avx512", "quint8_avx2"),
    "avx2": ("quint8_avx2",),
    "other": (),
}
"""The files of sentence-transformers that suit a CPU, the best first; on x86 without VNNI, sums with signed weights can
overflow."""

_FOR_ANY_CPU = {"int8": ("qint8", "quint8"), "uint8": ("quint8",)}
"""How the names of files begin that are made for a certain CPU: they run on the others, too."""
_SUFFIX = re.compile(r"(.+?)_(fp16|f16|float16|O4|quantized|int8|i8|uint8|qu?int8(?:_\w+)?|q[124](?:f16)?|bnb4)")
_SYNONYMS = {"q8": "int8"}  # as transformers.js says


def choose_onnx_file(
    files: Collection[str],
    *,
    onnx_file: str | None = None,
    precision: str | None = None,
    model: str = "",
    cpu: str | None = None,
) -> str | None:
    """Which graph of a repo is meant: the plain fp32 one unless another is asked for.

    Args:
        files: The repo's files, as paths with "/".
        onnx_file: The path of the graph that the caller wants.
        precision: The precision that the caller wants; "int8" is the file that suits `cpu` best.
        model: Its name, for messages.
        cpu: The kind of CPU, as `this_cpu` gives it; None: this machine's.

    Returns:
        Its path, or None where the repo has weights that can be exported, but no fp32 graph.

    Raises:
        UnsupportedModelError: There is none that fits, or several; the message lists them.
        OptionError: `precision` is no precision that we know the file names of.
    """
    graphs = sorted(path for path in files if path.endswith(".onnx"))
    if onnx_file is not None:
        if onnx_file not in graphs:
            raise UnsupportedModelError(f"{model} has no {onnx_file}; its ONNX files: {_listed(graphs)}", model=model)
        return onnx_file
    wanted = _SYNONYMS.get(precision or "fp32", precision or "fp32")
    if wanted not in _KINDS:
        raise OptionError(f"precision must be one of {', '.join(_KINDS)}, not {precision!r}")
    if cpu is None:
        cpu = this_cpu() if wanted == "int8" else "other"
    best = _best(graphs, wanted, cpu)
    if len(best) == 1:
        if precision is not None:
            logger.info("%s: precision=%r is %s here (CPU: %s)", model, precision, best[0], cpu)
        return best[0]
    if not best and wanted == "fp32" and _has_weights(files):
        return None
    raise _unclear(graphs, has_several=bool(best), precision=precision, files=files, model=model)


def prefer(precision: str, graph: str, files: Collection[str]) -> str:
    """The graph of a precision that lies beside the fp32 `graph` under its name; `graph` itself where there is none."""
    (name, kind), folder = _parts(graph), PurePosixPath(graph).parent
    if kind != "":
        return graph
    for wanted in _KINDS[precision]:
        other = (folder / f"{name}_{wanted}.onnx").as_posix()
        if other in files:
            logger.info("%s is taken instead of %s: precision= says otherwise", other, graph)
            return other
    return graph


def precision_of(path: str) -> str:
    """The precision that a graph's name tells: "fp32" where it tells none."""
    _, kind = _parts(path)
    if kind.startswith(_FOR_ANY_CPU["int8"]):
        return "uint8" if kind.startswith("quint8") else "int8"
    return next(
        precision for precision, kinds in _KINDS.items() if kind in kinds and (precision, kind) != ("int8", "uint8")
    )


def _has_weights(files: Collection[str]) -> bool:
    """Whether there are weights that a graph can be built from."""
    return WEIGHTS in files or WEIGHTS_INDEX in files


def _best(graphs: Sequence[str], precision: str, cpu: str) -> list[str]:
    """Those of `graphs` that are of a precision and are preferred alike: one, if it is clear which is meant."""
    parts = {path: _parts(path) for path in graphs}
    others = sorted(kind for _, kind in parts.values() if kind.startswith(_FOR_ANY_CPU.get(precision, ())))
    for_cpu = _INT8_FOR_CPU.get(cpu, ()) if precision == "int8" else ()
    kinds = (*for_cpu, *_KINDS[precision], *others)
    ranks = {
        path: (
            name != "model",
            kinds.index(kind),
            not path.startswith("onnx/"),  # the folder that the hub's tools use
        )
        for path, (name, kind) in parts.items()
        if kind in kinds
    }
    return [path for path, rank in ranks.items() if rank == min(ranks.values())]


def _parts(path: str) -> tuple[str, str]:
    """What a graph's name is without its precision, and what tells the precision: "" for fp32."""
    stem = PurePosixPath(path).stem
    match = _SUFFIX.fullmatch(stem)
    return (stem, "") if match is None else (match[1], match[2])


def _unclear(
    graphs: Sequence[str], *, has_several: bool, precision: str | None, files: Collection[str], model: str
) -> UnsupportedModelError:
    if graphs:
        found = "several ONNX files" if has_several else "no ONNX file"
        wanted = f"of precision {precision}" if precision else "of plain fp32"
        reason = f"{found} {wanted}, of these: {_listed(graphs)}; say which one with onnx_file= or precision="
    elif _has_weights(files):
        reason = (
            f"no ONNX file; its weights can be exported, but not with precision={precision!r}: leave it out for fp32"
        )
        reason += "" if precision == "int8" else ', or say precision="int8"'
    else:
        reason = NEITHER
    return UnsupportedModelError(f"{model} has {reason}", model=model)


def _listed(graphs: Sequence[str], limit: int = 20) -> str:
    shown = ", ".join(graphs[:limit]) or "none"
    return f"{shown} and {len(graphs) - limit} more" if len(graphs) > limit else shown
