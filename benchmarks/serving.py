r"""The server beside infinity's, with its torch and its optimum engine, on the same model and the same ONNX file.

    uv run python -m benchmarks.serving [--seconds 10] [--rounds 3] [--infinity PYTHON]
    uv run python -m benchmarks.serving --many [--seconds 60]

all-MiniLM-L6-v2 in fp32, served at the same time by every side; each load goes to one side after the other, in every
round, while the others rest. The load comes from wrk (a package of Debian), whose requests all have other texts. Before
that, the real client of OpenAI asks every side for the same vectors. PYTHON is the interpreter of an environment of its
own, as infinity asks for torch and for older versions of others:

    uv venv --python 3.11 infinity
    uv pip install --python infinity/bin/python "infinity-emb[torch,optimum,server]==0.0.78" "optimum==1.24.0" \
        "transformers==4.48.3" "pyarrow<20" "click<8.2" "torch<2.8"

It gets the model from a local hub. Without `--infinity` our own server is measured alone: against an awaited call in
this process, and by its own processor time, that is, the server's without its workers'.

`--many` has 256 connections at our own server, and tells what of its memory, descriptors and threads stays; then what a
client costs that leaves in the middle of a long list.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx
import numpy as np
import onnx
import psutil

from asyncembed import TextEmbedding
from benchmarks.common import machine, minilm, say, spread
from tests.hub.server import HubServer, Repo
from tests.support.waiting import open_files

NAME = "local/all-MiniLM-L6-v2"
START_SECONDS = 300
AGREEMENT = 0.9999


class Load(NamedTuple):
    """What is sent: texts of some words, several a request, over some connections.

    With `fewest`, a text has some number of words between that and `words`, each number as often as any other.
    """

    name: str
    connections: int
    texts: int
    words: int
    fewest: int | None = None


LOADS = [
    Load("64 connections, a text of 60 characters", 64, 1, 10),
    Load("4 connections, 32 documents of 230 characters", 4, 32, 38),
    Load("4 connections, 32 documents of 12 to 450 characters", 4, 32, 74, 2),
    Load("one connection, a text of 60 characters", 1, 1, 10),
    Load("one connection, 256 texts of 64 tokens", 1, 256, 62),
]
ONE = LOADS[3]
LARGE = LOADS[4]
"""For the server's own share only: others take longer for one such request than a round lasts."""

MANY = Load("256 connections, a text of 60 characters", 256, 1, 10)

LEFT_TEXTS = 2000
"""Of a request whose client leaves."""

SCRIPT = """
local words = {}
local list = "time list file open read sort copy close query index model token batch vector stream worker"
for word in list:gmatch("%a+") do
    words[#words + 1] = word
end
local function text(count)
    local found = {}
    for place = 1, count do found[place] = words[math.random(#words)] end
    return '"' .. table.concat(found, " ") .. '"'
end
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
function request()
    local texts = {}
    for place = 1, TEXTS do texts[place] = text(math.random(FEWEST, WORDS)) end
    local input = TEXTS == 1 and texts[1] or "[" .. table.concat(texts, ",") .. "]"
    return wrk.format(nil, nil, nil, '{"model": "NAME", "encoding_format": "base64", "input": ' .. input .. "}")
end
function done(summary, latency)
    local failed = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status
        + summary.errors.timeout
    io.write(string.format('\\nFOUND {"requests": %d, "micros": %d, "failed": %d, "p50": %f, "p99": %f}\\n',
        summary.requests, summary.duration, failed, latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


@dataclass
class Side:
    """A server that runs."""

    name: str
    port: int
    process: psutil.Process
    seconds_to_ready: float

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def processor_seconds(self) -> tuple[float, float]:
        """Of the server itself, and of its workers."""
        children = sum(_seconds_of(child) for child in self.process.children(recursive=True))
        return _seconds_of(self.process), children


def _seconds_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


# ---------------------------------------------------------------- servers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(name: str, command: list[str], port: int, environment: dict[str, str]) -> Iterator[Side]:
    """A server, as long as the block runs: it has answered one request when it begins."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)
        try:
            while not _answers(port):
                if process.poll() is not None or time.perf_counter() - started > START_SECONDS:
                    log.seek(0)
                    sys.exit(f"{name} does not start:\n{log.read().decode(errors='replace')[-3000:]}")
                time.sleep(0.02)
            yield Side(name, port, psutil.Process(process.pid), time.perf_counter() - started)
        finally:
            process.terminate()
            process.wait(60)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=1).is_success
    except httpx.HTTPError:
        return False


@contextmanager
def all_sides(infinity: str | None) -> Iterator[list[Side]]:
    directory, graph = minilm()
    with ExitStack() as stack:
        port = free_port()
        command = [sys.executable, "-m", "asyncembed", "serve", f"{NAME}={directory}", "--port", str(port)]
        sides = [stack.enter_context(serving("asyncembed", command, port, {}))]
        if infinity:
            hub = stack.enter_context(HubServer())
            hub.small_files_redirect = False  # older clients drop the query of such an address
            files = {
                str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
            }
            hub.repos[NAME] = Repo(
                files | {"onnx/model.onnx": onnx.load(graph).SerializeToString()}, large=frozenset({"onnx/model.onnx"})
            )
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="serving-"))
            environment = {
                "HF_ENDPOINT": hub.url,
                "HF_HOME": home,
                "DO_NOT_TRACK": "1",
                "INFINITY_ANONYMOUS_USAGE_STATS": "0",
            }
            for engine in ("torch", "optimum"):
                port = free_port()
                command = [str(Path(infinity).parent / "infinity_emb"), "v2", "--model-id", NAME, "--engine", engine]
                command += [
                    "--port",
                    str(port),
                    "--device",
                    "cpu",
                    "--dtype",
                    "float32",
                    "--pooling-method",
                    "mean",
                    "--url-prefix",
                    "/v1",
                ]
                sides.append(stack.enter_context(serving(f"infinity, {engine}", command, port, environment)))
        yield sides


# ---------------------------------------------------------------- load


def agree(sides: list[Side]) -> None:
    """End the program unless OpenAI's client gets the same vectors from every side."""
    from openai import OpenAI

    texts = ["open a file and read its lines", "sort a list of words"] * 4
    found = []
    for side in sides:
        with OpenAI(base_url=side.url, api_key="none") as client:
            answer = client.embeddings.create(model=NAME, input=texts)
        found.append(np.asarray([item.embedding for item in answer.data]))
    for side, vectors in zip(sides, found, strict=True):
        if (least := float((vectors * found[0]).sum(axis=1).min())) < AGREEMENT:
            sys.exit(f"{side.name} gives other vectors: cosine {least:.5f}")


def measure(side: Side, load: Load, seconds: float) -> dict[str, float]:
    with tempfile.NamedTemporaryFile("w", suffix=".lua", encoding="utf-8") as script:
        script.write(_script(load))
        script.flush()
        command = ["wrk", "-t1", f"-c{load.connections}", f"-d{seconds:g}s", "--timeout", "60s", "-s", script.name]
        before = side.processor_seconds()
        out = subprocess.run(
            [*command, f"{side.url}/embeddings"], capture_output=True, text=True, check=True, encoding="utf-8"
        ).stdout
        own, workers = (after - was for after, was in zip(side.processor_seconds(), before, strict=True))
    found: dict[str, float] = json.loads(out.split("FOUND ")[1])
    if found["failed"] or not found["requests"]:
        sys.exit(f"{side.name}, {load.name}: requests failed\n{out}")
    requests = found["requests"]
    return {
        "a second": requests / found["micros"] * 1e6,
        "p50 ms": found["p50"],
        "p99 ms": found["p99"],
        "own ms": own / requests * 1e3,
        "all ms": (own + workers) / requests * 1e3,
    }


def _script(load: Load) -> str:
    script = SCRIPT
    for word, value in {
        "TEXTS": load.texts,
        "WORDS": load.words,
        "FEWEST": load.fewest or load.words,
        "NAME": NAME,
    }.items():
        script = script.replace(word, str(value))
    return script


# ---------------------------------------------------------------- many connections, and who leaves


class Kept(NamedTuple):
    """What a server and its workers hold while nobody asks them: memory, and the server's descriptors and threads."""

    megabytes: list[float]
    descriptors: int
    threads: int

    def __str__(self) -> str:
        memory = " + ".join(f"{one:.1f}" for one in self.megabytes)
        return f"{memory} MB, {self.descriptors} descriptors, {self.threads} threads"


def kept_by(side: Side) -> Kept:
    processes = [side.process, *side.process.children(recursive=True)]
    memory = [process.memory_info().rss / 1e6 for process in processes]
    return Kept(memory, open_files(side.process.pid), side.process.num_threads())


def load_much(side: Side, seconds: float) -> None:
    """The load of many connections: what was served, and what stays of it."""
    measure(side, MANY, min(seconds, 5))  # what is kept from the first requests on
    time.sleep(1)
    before = kept_by(side)
    found = measure(side, MANY, seconds)
    time.sleep(1)
    say(f"{MANY.name}: {found['a second']:.0f} requests/s for {seconds:.0f} s, none failed")
    say(f"p50 {found['p50 ms']:.0f} ms, p99 {found['p99 ms']:.0f} ms")
    say(f"server and workers before: {before}\nand after: {kept_by(side)}\n")


def leave(side: Side) -> None:
    """What a client costs that leaves in the middle of a long list."""
    texts = ["time list file open read sort copy close query index"] * LEFT_TEXTS
    with httpx.Client(base_url=side.url.removesuffix("/v1")) as client, suppress(httpx.ReadTimeout):
        client.post("/v1/embeddings", json={"input": texts}, timeout=httpx.Timeout(60, read=0.5))
    left = side.processor_seconds()
    time.sleep(2)
    own, workers = (after - was for after, was in zip(side.processor_seconds(), left, strict=True))
    say(f"a client that left after 0.5 s, of a list of {LEFT_TEXTS} texts: {1000 * workers:.0f} ms of its workers'")
    say(f"processor time from then on, and {1000 * own:.0f} ms of the server's own\n")


async def await_calls(model: Any, seconds: float) -> float:
    """Milliseconds of one awaited call: the median."""
    found = []
    texts = cycle(f"time list file open read sort copy close query {n}" for n in range(1000))
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        started = time.perf_counter()
        await model.embed_query(next(texts))
        found.append(time.perf_counter() - started)
    return statistics.median(found) * 1e3


async def main(options: argparse.Namespace) -> None:
    if options.many:
        say(machine())
        with all_sides(None) as (side,):
            load_much(side, options.seconds)
            leave(side)
        return
    results: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    awaited = []
    with all_sides(options.infinity) as sides:
        agree(sides)
        async with TextEmbedding(str(minilm()[0])) as model:
            for _ in range(options.rounds):
                for load in LOADS:
                    for side in sides[:1] if load is LARGE else sides:
                        for what, value in measure(side, load, options.seconds).items():
                            results[load.name, side.name][what].append(value)
                awaited.append(await await_calls(model, min(options.seconds, 5)))
    report(sides, results, awaited, options.rounds)


def report(
    sides: list[Side], results: dict[tuple[str, str], dict[str, list[float]]], awaited: list[float], rounds: int
) -> None:
    say(machine())
    say(f"medians (range) of {rounds} rounds; ratios are medians of neighbours in time\n")
    say(
        "start to the first answer: " + ", ".join(f"{side.name} {side.seconds_to_ready:.1f} s" for side in sides) + "\n"
    )
    say("a request's processor time is that of the serving process itself, and with its workers\n")
    say("| load | server | requests/s | ours / theirs | p50, ms | p99, ms | ours / theirs | own processor ms | all |")
    say("|---|---|---|---|---|---|---|---|---|")
    for load in LOADS:
        ours = results[load.name, sides[0].name]
        for side in sides[:1] if load is LARGE else sides:
            found = results[load.name, side.name]
            columns = [spread(found["a second"]), _ratio(ours["a second"], found["a second"])]
            columns += [spread(found["p50 ms"]), spread(found["p99 ms"]), _ratio(ours["p99 ms"], found["p99 ms"])]
            columns += [spread(found["own ms"]), spread(found["all ms"])]
            say(f"| {load.name} | {side.name} | " + " | ".join(columns) + " |")
    alone = results[ONE.name, sides[0].name]["p50 ms"]
    more = statistics.median(mine - theirs for mine, theirs in zip(alone, awaited, strict=True))
    say(f"\nan awaited call in a process of its own: {spread(awaited)} ms; over one connection {more:+.2f} ms at p50")
    large = results[LARGE.name, sides[0].name]
    share = statistics.median(own / whole for own, whole in zip(large["own ms"], large["p50 ms"], strict=True))
    say(f"the server's own share of a request of 256 texts: {share:.1%}")


def _ratio(ours: list[float], theirs: list[float]) -> str:
    return f"{statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True)):.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="Of one load on one side: 10, or 60 with --many.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many", action="store_true", help="256 connections at our own server, and nothing else.")
    parser.add_argument("--infinity", metavar="PYTHON", help="Interpreter of the environment with infinity.")
    given = parser.parse_args()
    given.seconds = given.seconds or (60 if given.many else 10)
    anyio.run(main, given)
