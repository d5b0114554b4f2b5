"""What the benchmarks share: the corpus, the model, the machine's description, and the tree's peak memory."""

import os
import platform
import shutil
import statistics
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.export.graph_cache import ensure_graph
from examples.quickstart import demo_model, stdlib_docstrings

SAMPLE_SECONDS = 0.1


def texts(count: int) -> list[str]:
    """`count` docstrings of the standard library, of very mixed length; repeated if there are fewer."""
    found: list[str] = []
    for document in stdlib_docstrings():
        found.append(document.text)
        if len(found) == count:
            return found
    return [found[position % len(found)] for position in range(count)]


def minilm() -> tuple[Path, Path]:
    """The directory of all-MiniLM-L6-v2 and its fp32 graph."""
    directory = demo_model()
    return directory, ensure_graph(directory)


def minilm_spec(limit: int = 512) -> ModelSpec:
    """all-MiniLM-L6-v2 as the catalogue has it: mean pooling, normalised, cut at `limit` tokens."""
    return ModelSpec(
        name="all-MiniLM-L6-v2",
        family="text",
        encoder="dense",
        sources=(),
        model_file=str(minilm()[1]),
        dim=384,
        pooling="mean",
        normalize=True,
        max_length=limit,
    )


def fastembed_directory() -> Path:
    """The same model laid out as fastembed wants it: the graph and the tokenizer's files in one directory."""
    directory, graph = minilm()
    target = graph.parent / "fastembed"
    target.mkdir(exist_ok=True)
    wanted = {name: directory / name for name in ("config.json", "special_tokens_map.json", "tokenizer.json")}
    wanted |= {"tokenizer_config.json": directory / "tokenizer_config.json"}
    wanted |= {"model.onnx": graph, "model.onnx_data": graph.with_name("model.onnx_data")}
    for name, source in wanted.items():
        if not (target / name).exists():
            shutil.copy(source, target / name)
    return target


def machine() -> str:
    """One line on what this ran on."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "tokenizers", "numpy", "fastembed"))
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}, {packages}"


@dataclass
class Peak:
    """The largest memory of this process and its children together, in bytes, while it was watched."""

    size_bytes: int = 0
    start_bytes: int = 0


@contextmanager
def watch_memory() -> Iterator[Peak]:
    """Sample the memory of the whole process tree (PSS: a page that processes share counts once)."""
    peak = Peak()
    done = threading.Event()
    own = psutil.Process()

    def sample() -> int:
        total = 0
        for process in [own, *own.children(recursive=True)]:
            try:
                info = process.memory_full_info()
                total += getattr(info, "pss", info.uss)  # elsewhere than on Linux what is shared is left out
            except psutil.Error:
                continue
        return total

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            peak.size_bytes = max(peak.size_bytes, sample())

    peak.start_bytes = peak.size_bytes = sample()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def processor_seconds() -> float:
    """Of this process and its workers, as long as these live."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def spread(values: Sequence[float]) -> str:
    """Median, and the range around it."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def say(text: str) -> None:
    """Print at once: a benchmark runs long."""
    print(text)
    sys.stdout.flush()
