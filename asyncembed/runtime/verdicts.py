"""What was found out about a graph and a runtime, kept beside what is made of graphs, so that it is found out once."""

import json
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from asyncembed.errors import ModelLoadError
from asyncembed.files import replacing
from asyncembed.repo_files import read_object
from asyncembed.runtime.digests import file_digest, key_of
from asyncembed.runtime.onnx_file import read_onnx_file

FORMAT_VERSION = 1
"""Raised when graphs are tried in another way."""

_PACKAGES = ("openvino", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether OpenVINO is to run a graph; `objection` says why not."""

    objection: str | None


def verdict_file(graph: Path, facts: list[str], *, cache_dir: Path) -> Path:
    """Where the verdict about a graph is kept. Reads all of the graph when it was not seen before; blocks.

    `facts` are what it depends on beside the graph and the versions of what was tried.

    Raises:
        OSError: The graph cannot be read.
    """
    root = cache_dir.expanduser() / "verdicts"
    weights = [graph.parent / name for name in read_onnx_file(graph).weights]
    digests = [file_digest(path, root / "digests") for path in (graph, *weights)]
    return root / f"{key_of([str(FORMAT_VERSION), *map(_version, _PACKAGES), *facts, *digests])}.json"


def find_verdict(file: Path) -> Verdict | None:
    """What is kept in a `verdict_file`; None: nothing that could be read. Blocks."""
    with suppress(ModelLoadError, KeyError):
        objection = read_object(file)["objection"]
        if objection is None or isinstance(objection, str):
            return Verdict(objection)
    return None


def keep_verdict(file: Path, verdict: Verdict) -> None:
    """Write it there; where that cannot be, it is found out again the next time. Blocks."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_text(json.dumps({"objection": verdict.objection}), "utf-8")


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"
