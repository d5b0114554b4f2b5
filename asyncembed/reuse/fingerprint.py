"""Which bytes make a model's vectors: in one short string, the same on every machine.

It is made of the contents of the files that are computed with (not of their places, nor of the model's name), of what
is done with them (pooling, normalisation, prompts, limit), and of nothing that only decides where and how fast.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path, PurePath
from types import FunctionType
from typing import TYPE_CHECKING, Any

from asyncembed.catalogue.pipeline import CONFIGURATION, configuration_files
from asyncembed.faking import ENCODER, SETTING
from asyncembed.files import default_cache_dir
from asyncembed.repo_files import list_directory
from asyncembed.runtime.digests import file_digest
from asyncembed.runtime.onnx_file import read_onnx_file, snapshot_of
from asyncembed.runtime.safetensors import find_weights

if TYPE_CHECKING:
    from asyncembed.encoders.encoder import EncoderConfig

COMPUTING_VERSION = 1
"""Raised when encoders compute something else of the same files: what was kept of before is then computed anew."""

FINGERPRINT_LENGTH = 20
"""Hexadecimal digits."""

_OF_SPEC = (
    "family", "encoder", "pooling", "normalize", "graph_output", "max_length", "prompts", "default_prompt",
    "prompts_by_default",
)  # fmt: skip
"""Of what a spec says, that which decides about vectors, beside its settings."""

_LIMITED_ALIKE = frozenset({"dense", "static", "cross_encoder", "causal_reranker"})
"""Encoders that compute the same whether it is the spec or the caller who says a limit."""

_SHA256 = re.compile("[0-9a-f]{64}")


def model_digest(config: "EncoderConfig", cache_dir: Path | None, *, precision: str | None = None) -> str:
    """What identifies a model, whatever a call asks of it. Blocks.

    A large file of the hub's cache is known by its name there. Others are read once, and remembered below `cache_dir`
    until they change. `precision` is what a graph was built in, where it was built here.

    Raises:
        OSError: A file cannot be read.
    """
    known = (cache_dir or default_cache_dir()).expanduser() / "prepared" / "digests"
    files = [f"{name} {_digest(path, known)}" for name, path in sorted(_files(config).items())]
    spec = config.spec
    words = [f"{name}={_words(getattr(spec, name))}" for name in _OF_SPEC]
    settings = {name: value for name, value in spec.settings.items() if name != SETTING}
    words += [_words(settings), _words(config.keywords), _words(_other_limit(config))]
    if config.is_exported and precision in ("int8", "q8"):
        words.append("int8")
    if config.session.bfloat16:
        words.append("bf16")
    if spec.encoder == ENCODER:
        words.append(f"fake of {spec.dim}")  # whose files say nothing
    return _hash([f"{COMPUTING_VERSION}", *files, *words])


def fingerprint_of(digest: str, calls: Iterable[object]) -> str:
    """The fingerprint of a model whose calls are these unless they ask for something else."""
    return _hash([digest, *map(call_words, calls)])[:FINGERPRINT_LENGTH]


def call_words(call: object) -> str:
    """What a call asks for, besides what every call does; the same in each version that knows of it."""
    if not is_dataclass(call):
        return repr(call)
    asked = ((one.name, getattr(call, one.name), one.default) for one in fields(call))
    return " ".join(f"{name}={_words(value)}" for name, value, default in asked if value != default)


def _other_limit(config: "EncoderConfig") -> int | None:
    """The limit that the caller has said, where it is not what the spec says as well."""
    is_alike = config.spec.encoder in _LIMITED_ALIKE and config.max_length == config.spec.max_length
    return None if is_alike else config.max_length


def _files(config: "EncoderConfig") -> dict[str, Path]:
    """The files that a model is computed with, by names that are the same wherever it comes from."""
    spec, directory = config.spec, config.directory
    names = set(spec.additional_files)
    if spec.is_catalogued and not spec.reads_repo:
        # Others may lie beside them, by other tools, and are not looked at.
        names.update(CONFIGURATION)
    else:
        names.update(configuration_files(list_directory(directory)) if spec.sources or directory != Path() else ())
    found = {name: directory / name for name in names}
    if config.is_exported:
        found |= {f"weights {path.name}": path for path in find_weights(directory / spec.folder)}
    elif spec.model_file is not None:
        graph = directory / spec.model_file
        found["graph"] = graph
        found |= {f"graph {name}": graph.parent / name for name in read_onnx_file(graph).weights}
    return {name: path for name, path in found.items() if path.is_file()}


def _digest(path: Path, known: Path) -> str:
    """The SHA-256 of a file."""
    if snapshot_of(path) is not None:
        blob = path.resolve()
        if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
            return blob.name
    return file_digest(path, known)


def _words(value: Any) -> str:
    """A value in words that are the same in every process."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_words(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(_words, value))) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return "[" + ", ".join(map(_words, value)) + "]"
    if isinstance(value, PurePath):
        return value.name
    if isinstance(value, FunctionType):  # two of one name, as lambdas are, differ in what they do
        code = value.__code__
        inside = [value.__defaults__ or (), *(cell.cell_contents for cell in value.__closure__ or ())]
        does = f"{code.co_code.hex()} {code.co_consts!r} {code.co_names} {_words(inside)}"
        return f"{value.__module__}.{value.__qualname__} {does}"
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def _hash(parts: Sequence[str]) -> str:
    joined = "\0".join(parts)
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()
