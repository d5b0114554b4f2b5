"""Everything at once for a long time: is each answer there once and right, and is nothing left behind?

    uv run python -m benchmarks.soak [--minutes 30] [--model DIRECTORY] [--seed N]

Two programs, on asyncio and on trio, ingest, query, leave streams in the middle, open and close models and let them
idle out, and kill their own workers (`benchmarks/soak_life.py`). Two servers, uvicorn on asyncio and hypercorn on trio,
answer clients of which some leave, and have their workers killed (`benchmarks/soak_web.py`). Every vector is compared
with what the model gave while nothing else went on. Each comes to rest again and again, and tells what it holds then:
the table has what that was after the first rounds, in which a process takes what it keeps, and at the end. The program
fails if an answer is missing or wrong, if something hangs, or if something grows.

The model is a small one, so that much happens; `--model` takes a directory with a real one of texts.
"""

import argparse
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from subprocess import PIPE
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import anyio
import psutil
from anyio import create_task_group
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from benchmarks.common import machine, say
from benchmarks.soak_books import Books, prepare, until_rest
from benchmarks.soak_web import Clients

ROUNDS = 40
ROUND_SECONDS = (1.0, 20.0)
"""The shortest and the longest: a long soak has more of them."""

WARM_UP_ROUNDS = 2
WARM_UP = 0.25
"""So many rounds, or this part of them, are no more than a beginning: pools of threads, caches and heaps fill."""

FEWEST_ROUNDS = 6
"""After these: of fewer nobody can tell what grows from what varies."""

HEAP_SECONDS = 60
"""Between the first and the last third of what is looked at: before that a heap still fills."""

ALLOWED = {
    "memory, MB": (1.5, 0.02),
    "workers' memory, MB": (1.5, 0.02),
    "fork server's memory, MB": (1.0, 0.02),
    "objects": (500, 0.005),
}
"""By how much, and by which part of it, what varies may be more at the end; what is not here is counted."""

SUSPICIOUS = ("Traceback", "Warning: ", "was never")
"""What no process writes into its log while all goes well."""

WARNINGS = ("-W", "always::ResourceWarning", "-W", "ignore:Async generator '__main__.lines':ResourceWarning")
"""Of what nobody closed; but Starlette leaves the generator of an answer to Trio, which says so."""


class Sample(NamedTuple):
    """What one process held at one time."""

    seconds: float
    held: dict[str, float]


@dataclass
class Account:
    """Of one program or server: what was answered, what went wrong, and what it held each time it came to rest."""

    name: str
    samples: list[Sample] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    pids: set[int] = field(default_factory=set)

    def add(self, seconds: float, told: dict[str, Any]) -> None:
        """Take in what it told."""
        self.counts = Counter(told["counts"])
        self.problems = Counter(told["problems"])
        if told["held"]:
            self.samples.append(Sample(seconds, told["held"]))


class Row(NamedTuple):
    """How something that a process holds went on."""

    what: str
    first: float
    middle: float
    last: float
    a_minute: float
    grows: bool


# ---------------------------------------------------------------- what it comes to


def row(what: str, samples: Sequence[Sample]) -> Row:
    """The medians of each third after the warm-up; and whether that of the last is more than it may be."""
    warm = samples[max(WARM_UP_ROUNDS, int(len(samples) * WARM_UP)) :] or samples[-1:]
    third = max(1, len(warm) // 3)
    parts = (warm[:third], warm[third:-third] or warm, warm[-third:])
    first, middle, last = (statistics.median(one.held[what] for one in some) for some in parts)
    seconds = statistics.fmean(one.seconds for one in warm[-third:])
    seconds -= statistics.fmean(one.seconds for one in warm[:third])
    if what in ALLOWED:
        absolute, part = ALLOWED[what]
        grows = last - first > absolute + part * first and seconds >= HEAP_SECONDS
    else:  # what is counted may come and go, but one day all that came is gone
        grows = min(one.held[what] for one in parts[2]) > max(one.held[what] for one in parts[0])
    grows = grows and len(warm) >= FEWEST_ROUNDS
    return Row(what, first, middle, last, 60 * (last - first) / seconds if seconds else 0.0, grows)


def rows(account: Account) -> list[Row]:
    return [row(what, account.samples) for what in account.samples[0].held] if account.samples else []


def report(accounts: Sequence[Account], seconds: float) -> bool:
    """The table; whether all is well."""
    say(f"{machine()}\n{seconds / 60:.1f} minutes\n")
    say("| of | what it holds at rest | after warm-up | in the middle | at the end | a minute | |")
    say("|---|---|---|---|---|---|---|")
    is_well = True
    for account in accounts:
        for one in rows(account):
            is_well &= not one.grows
            verdict = "GROWS" if one.grows else "flat"
            values = " | ".join(f"{value:.6g}" for value in (one.first, one.middle, one.last))
            say(f"| {account.name} | {one.what} | {values} | {one.a_minute:+.3g} | {verdict} |")
    for account in accounts:
        answers = ", ".join(f"{count:,} {what}" for what, count in sorted(account.counts.items()))
        say(f"\n{account.name}, {len(account.samples)} times at rest: {answers}")
        for problem, times in account.problems.items():
            is_well = False
            say(f"PROBLEM, {times} times: {problem}")
        if not account.samples:
            is_well = False
            say("PROBLEM: it never came to rest")
    say("\nall answered once and right, and flat" if is_well else "\nNOT all is well: see above")
    return is_well


# ---------------------------------------------------------------- programs and servers


class Soak:
    """The processes of one soak, in a folder of its own."""

    def __init__(self, folder: Path, seconds: float, seed: int) -> None:
        self.accounts: list[Account] = []
        self._folder = folder
        self._seconds = seconds
        shortest, longest = ROUND_SECONDS
        self._round_seconds = min(longest, max(shortest, seconds / ROUNDS))
        self._seed = seed
        self._began = perf_counter()

    async def run(self) -> None:
        """All of it."""
        async with create_task_group() as group:
            for backend in ("asyncio", "trio"):
                self._seed += 1
                group.start_soon(self._live, backend, self._seed)
                group.start_soon(self._serve, backend, self._seed)

    @asynccontextmanager
    async def _running(self, name: str, module: str, *arguments: object) -> AsyncIterator[tuple[Account, Process]]:
        """A process with a folder of its own for temporary files; and what must be so when it has ended."""
        account = Account(name)
        self.accounts.append(account)
        own = self._folder / name.replace(", ", "-")
        (own / "temporary").mkdir(parents=True)
        environment = os.environ | {"TMPDIR": str(own / "temporary"), "HF_HOME": str(own / "hub")}
        command = [sys.executable, *WARNINGS, "-m", module, *map(str, arguments)]
        log = own / "log"
        with log.open("wb") as errors:
            async with await anyio.open_process(command, stdin=PIPE, stderr=errors, env=environment) as process:
                yield account, process
                assert process.stdin is not None
                await process.stdin.aclose()
                await process.wait()
        await self._check_end(account, process.returncode, log.read_text(encoding="utf-8", errors="replace"))

    async def _live(self, backend: str, seed: int) -> None:
        arguments = (backend, self._folder, self._seconds, self._round_seconds, seed)
        async with self._running(f"program, {backend}", "benchmarks.soak_life", *arguments) as (account, process):
            async for line in _lines(process):
                account.add(self._now(), json.loads(line))
                account.pids |= _tree(process.pid)

    async def _serve(self, backend: str, seed: int) -> None:
        books = Books(self._folder, seed)
        async with self._running(f"server, {backend}", "benchmarks.soak_web", backend, self._folder) as running:
            account, process = running
            clients = Clients(books, int(await anext(_lines(process))), process.pid)
            await clients.start()
            ends = self._now() + self._seconds
            while self._now() < ends:
                await clients.play(self._round_seconds)
                account.add(self._now(), {"held": await clients.rest(), **books.told()})
                account.pids |= _tree(process.pid)

    def _now(self) -> float:
        return perf_counter() - self._began

    async def _check_end(self, account: Account, code: int | None, log: str) -> None:
        if code:
            account.problems[f"it ends with {code}: {log[-3000:]}"] += 1
        # (multiprocessing's resource tracker ends a moment after its process)
        await until_rest(lambda: not any(map(psutil.pid_exists, account.pids)))
        if left := [pid for pid in account.pids if psutil.pid_exists(pid)]:
            account.problems[f"processes left: {left}"] += 1
        account.problems.update(f"in its log: {told}" for told in _told(log))


def _told(log: str) -> Iterator[str]:
    """What nobody wants to read in a log: a line, and of a traceback all."""
    lines = log.splitlines()
    for place, line in enumerate(lines):
        if any(word in line for word in SUSPICIOUS):
            inner = list(takewhile(lambda each: each.startswith(" "), lines[place + 1 :]))
            yield "\n".join(lines[place : place + 1 + len(inner) + 1])


async def _lines(process: Process) -> AsyncIterator[str]:
    assert process.stdout is not None
    rest = ""
    async for text in TextReceiveStream(process.stdout):
        *whole, rest = (rest + text).split("\n")
        for line in whole:
            yield line


def _tree(pid: int) -> set[int]:
    with suppress(psutil.NoSuchProcess):
        return {one.pid for one in psutil.Process(pid).children(recursive=True)}
    return set()


def main(minutes: float, model: Path | None, seed: int) -> bool:
    """A soak and its table; whether all is well."""
    with TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        prepare(folder, model)
        soak = Soak(folder, 60 * minutes, seed)
        anyio.run(soak.run)
    return report(soak.accounts, 60 * minutes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--model", type=Path, metavar="DIRECTORY", help="A model of texts, instead of a small one.")
    parser.add_argument("--seed", type=int, default=20, help="Of what is random.")
    given = parser.parse_args()
    sys.exit(not main(given.minutes, given.model, given.seed))
