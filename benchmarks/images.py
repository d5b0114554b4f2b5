"""A folder of twelve-megapixel JPEGs against fastembed.

    uv run python -m benchmarks.images [--images 200] [--rounds 3]

The photographs are those of scikit-image's package data, enlarged to 4000x3000 pixels with some noise, so that a file
has the bytes of a camera's. The model is the vision tower of CLIP ViT-B/32 with random weights. Each side runs in a
process of its own, in turn; the time is that of the embedding alone (no loading), the memory the peak of the whole
process tree, loading included (PSS). "fast" is `fast_decode=True`, whose vectors are compared with the exact ones.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import psutil
from PIL import Image

from asyncembed import ImageEmbedding
from benchmarks.common import machine, say, watch_memory
from benchmarks.vision_tower import write_vision_tower

NAME = "Qdrant/clip-ViT-B-32-vision"
SIZE = (4000, 3000)
DISTINCT = 20
"""So many different files are made; a larger folder holds each of them several times."""

FOLDER = Path(tempfile.gettempdir()) / "asyncembed-benchmark-images"
REFERENCE = "fastembed, default"
SIDES: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "fastembed, parallel=2": {"parallel": 2},
    "asyncembed, 2 workers": {"workers": 2},
    "asyncembed, 1 worker": {"workers": 1},
    "asyncembed, 2 workers, fast": {"workers": 2, "fast_decode": True},
    "asyncembed, 1 worker, fast": {"workers": 1, "fast_decode": True},
}


def photographs() -> list[Path]:
    """The pictures that come with scikit-image."""
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The photographs are missing: start this with `uv run`, which installs the demo group.")
    data = Path(spec.submodule_search_locations[0]) / "data"
    return sorted(path for path in data.iterdir() if path.suffix in (".png", ".jpg") and path.stat().st_size > 50_000)


def make_folder(count: int) -> list[Path]:
    """`count` JPEGs of twelve megapixels, made once."""
    FOLDER.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    sources = photographs()
    paths = []
    for number in range(count):
        path = FOLDER / f"{number:03}.jpg"
        if not path.exists():
            first = FOLDER / f"{number % DISTINCT:03}.jpg"
            if number < DISTINCT:
                with Image.open(sources[number % len(sources)]) as image:
                    large = np.asarray(image.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC), dtype=np.float32)
                noisy = large + random.normal(scale=5, size=large.shape).astype(np.float32)
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=88)
            else:
                path.hardlink_to(first)
        paths.append(path)
    return paths


def run_fastembed(paths: list[Path], keywords: dict[str, Any]) -> "np.ndarray[Any, Any]":
    from fastembed import ImageEmbedding as Reference

    model = Reference(NAME, specific_model_path=str(FOLDER / "model"))
    list(model.embed(paths[:1]))
    started, computed = time.perf_counter(), cpu_seconds()
    vectors = np.stack(list(model.embed(paths, **keywords)))
    report(seconds=time.perf_counter() - started, cpu=cpu_seconds() - computed)
    return vectors


async def run_asyncembed(paths: list[Path], keywords: dict[str, Any]) -> "np.ndarray[Any, Any]":
    async with ImageEmbedding(NAME, model_path=FOLDER / "model", **keywords) as model:
        await model.embed_image(paths[0])
        started, computed = time.perf_counter(), cpu_seconds()
        vectors = [vector async for vector in model.embed(paths)]
        report(seconds=time.perf_counter() - started, cpu=cpu_seconds() - computed)
        return np.stack(vectors)


def cpu_seconds() -> float:
    """What this process and its children have computed, ended children included; on a busy machine time says less."""
    own = psutil.Process()
    times = own.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in own.children(recursive=True):
        some = child.cpu_times()
        total += some.user + some.system
    return total


def report(**values: float) -> None:
    print(json.dumps(values), flush=True)


def run_side(side: str, count: int) -> None:
    """In the side's own process."""
    paths = make_folder(count)
    keywords = SIDES[side]
    with watch_memory() as peak:
        if side.startswith("fastembed"):
            vectors = run_fastembed(paths, keywords)
        else:
            vectors = anyio.run(run_asyncembed, paths, keywords)
    report(peak_bytes=peak.size_bytes)
    np.save(_vectors_of(side), vectors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="*", default=list(SIDES), help=f"some of: {'; '.join(SIDES)}")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments.side, arguments.images)
        return
    paths = make_folder(arguments.images)
    write_vision_tower(FOLDER / "model")
    say(machine())
    megabytes = sum(path.stat().st_size for path in paths) / len(paths) / 1e6
    say(f"{len(paths)} JPEGs of {SIZE[0]}x{SIZE[1]} pixels, {megabytes:.1f} MB each; medians of {arguments.rounds}\n")
    found: dict[str, list[dict[str, float]]] = {side: [] for side in (REFERENCE, *arguments.sides)}
    for _ in range(arguments.rounds):
        for side, runs in found.items():
            command = [sys.executable, "-m", "benchmarks.images", "--side", side, "--images", str(arguments.images)]
            lines = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.splitlines()
            runs.append({name: value for line in lines for name, value in json.loads(line).items()})
    reference = {name: statistics.median(run[name] for run in found[REFERENCE]) for name in found[REFERENCE][0]}
    exact = np.load(_vectors_of(REFERENCE))
    say("| side | seconds | images/s | speed-up | CPU seconds | peak MB | of fastembed's | cosine, least and mean |")
    say("|---|---|---|---|---|---|---|---|")
    for side, runs in found.items():
        seconds = [run["seconds"] for run in runs]
        median, peak = statistics.median(seconds), statistics.median(run["peak_bytes"] for run in runs)
        cosines = (np.load(_vectors_of(side)) * exact).sum(axis=1)
        say(
            f"| {side} | {median:.1f} ({min(seconds):.1f} to {max(seconds):.1f}) | {len(paths) / median:.1f} "
            f"| {reference['seconds'] / median:.2f} | {statistics.median(run['cpu'] for run in runs):.1f} "
            f"| {peak / 1e6:.0f} | {peak / reference['peak_bytes']:.2f} "
            f"| {cosines.min():.5f}, {cosines.mean():.5f} |"
        )


def _vectors_of(side: str) -> Path:
    return FOLDER / f"{side.replace(' ', '-').replace(',', '')}.npy"


if __name__ == "__main__":
    main()
