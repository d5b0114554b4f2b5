"""Downloading a model: asyncembed beside `huggingface_hub.snapshot_download`, from one local hub, in one run.

    uv run python -m benchmarks.hub_download [--size-mb 1000] [--rate-mb 25] [--latency-ms 20] [--rounds 3]

The hub (the one of the tests, on real sockets) limits the rate of each connection, as content servers do, and answers
each request after a latency. Each download runs in a process of its own into an empty cache; the sides alternate. Two
repos: a large one (one weight file of `--size-mb` and ten small files) and a small one (20 MB and ten small files).

Per side: seconds from before the imports of the library to the end (median, least, most), the peak of memory above
that at the start, the requests made; for asyncembed also the longest time that the event loop stood still from the
first event to the last one, and, as a control, how long an idle loop in another process did meanwhile.
"""

import argparse
import asyncio
import json
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import psutil

from tests.hub.server import Content, HubServer, Repo

BEAT_SECONDS = 0.002
SAMPLE_SECONDS = 0.01


def small_files() -> dict[str, Content]:
    source = random.Random(0)
    files: dict[str, Content] = {f"{name}.json": source.randbytes(2000 * (name + 1)) for name in range(9)}
    return {**files, "tokenizer.json": source.randbytes(700_000)}


def weights(path: Path, size: int) -> Content:
    """A file of `size` bytes of noise, mapped, so that the server holds no copy."""
    block = random.Random(1).randbytes(2**20 + 7)
    with path.open("wb") as file:
        for position in range(0, size, len(block)):
            file.write(block[: size - position])
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


# ------------------------------------------------------------------ one download, in a process of its own


def measure(side: str, repo: str, cache: str) -> Mapping[str, float]:
    process = psutil.Process()
    before = process.memory_info().rss
    peak = before
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_SECONDS):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    stall = asyncio.run(download_with_us(repo, cache)) if side == "asyncembed" else download_with_them(repo, cache)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return {"seconds": seconds, "peak_mb": (peak - before) / 1e6, "stall_ms": stall * 1000}


class Heart:
    """Beats in the event loop; `longest` is the longest time, in seconds, by which a beat came too late."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def beat(self) -> None:
        while True:
            asleep = time.perf_counter()
            await asyncio.sleep(BEAT_SECONDS)
            self.longest = max(self.longest, time.perf_counter() - asleep - BEAT_SECONDS)


async def download_with_us(repo: str, cache: str) -> float:
    from asyncembed.catalogue.spec import HubOrigin
    from asyncembed.hub import DownloadStarted, HubAccess, ProgressEvent, download_files

    heart = Heart()

    def watch(event: ProgressEvent) -> None:
        if isinstance(event, DownloadStarted):
            heart.longest = 0.0

    async with asyncio.TaskGroup() as group:
        beating = group.create_task(heart.beat())
        await download_files([HubOrigin(repo)], HubAccess(cache_dir=cache, progress=watch), patterns=["*"])
        beating.cancel()
    return heart.longest


async def idle() -> float:
    """Do nothing until the standard input ends."""
    heart = Heart()
    async with asyncio.TaskGroup() as group:
        beating = group.create_task(heart.beat())
        await asyncio.to_thread(sys.stdin.read)
        beating.cancel()
    return heart.longest


def download_with_them(repo: str, cache: str) -> float:
    from huggingface_hub import snapshot_download

    snapshot_download(repo, cache_dir=cache)
    return 0.0


# ------------------------------------------------------------------ the comparison


def run_side(side: str, repo: str, hub: HubServer, folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        hub.requests.clear()
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": cache,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "*",
        }
        command = [sys.executable, "-m", "benchmarks.hub_download", "--side", side, "--repo", repo, "--cache", cache]
        control = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.hub_download", "--side", "idle"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        output = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True).stdout
        result: dict[str, float] = json.loads(output)
        result["requests"] = len(hub.requests)
        result["idle_stall_ms"] = float(control.communicate()[0])
        return result


def compare(repo: str, hub: HubServer, folder: Path, rounds: int) -> None:
    sides = ("huggingface_hub", "asyncembed")
    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            results[side].append(run_side(side, repo, hub, folder))
    print(f"\n{repo}")
    for side in sides:
        seconds = [result["seconds"] for result in results[side]]
        line = (
            f"  {side:16} {statistics.median(seconds):7.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
            f"   {results[side][-1]['requests']:3.0f} requests"
            f"   +{max(result['peak_mb'] for result in results[side]):4.0f} MB"
        )
        if side == "asyncembed":
            stalls = ", ".join(f"{result['stall_ms']:.0f} ({result['idle_stall_ms']:.0f})" for result in results[side])
            line += f"   longest stall (of an idle loop), ms: {stalls}"
        print(line)
    medians = [statistics.median(result["seconds"] for result in results[side]) for side in sides]
    print(f"  asyncembed is {medians[0] / medians[1]:.2f} times as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size-mb", type=float, default=1000)
    parser.add_argument("--rate-mb", type=float, default=25, help="per connection and second")
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--repo", help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side == "idle":
        print(asyncio.run(idle()) * 1000)
        return
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.repo, arguments.cache)))
        return
    print(
        f"Python {sys.version.split()[0]}, huggingface_hub {version('huggingface_hub')}, {os.cpu_count()} cores; "
        f"{arguments.rate_mb:g} MB/s per connection, {arguments.latency_ms:g} ms per request, {arguments.rounds} rounds"
    )
    with tempfile.TemporaryDirectory() as name, HubServer() as hub:
        folder = Path(name)
        hub.bytes_per_second = arguments.rate_mb * 1e6
        hub.latency_seconds = arguments.latency_ms / 1000
        sizes = {"bench/large": int(arguments.size_mb * 1e6), "bench/small": 20_000_000}
        for repo, size in sizes.items():
            content = weights(folder / repo.replace("/", "-"), size)
            large = frozenset({"model.onnx"})
            hub.repos[repo] = Repo({**small_files(), "model.onnx": content}, large=large)
            hub.repos[repo].sha256("model.onnx")
            compare(repo, hub, folder, arguments.rounds)


if __name__ == "__main__":
    main()
