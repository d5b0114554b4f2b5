"""`asyncembed embed` beside the library's own ingest of the same texts: whole programs, from start to end.

    uv run python -m benchmarks.command_line [--texts 10000] [--rounds 3]

all-MiniLM-L6-v2 in fp32 and lines of up to 60 characters. The library's program reads the same file, and collects one
array, which it saves. The sides alternate; a ratio is that of neighbours in time.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.common import machine, minilm, say, spread

WORDS = "time list file open read sort copy close query index model token batch vector stream worker"

LIBRARY = """
import sys, anyio, numpy
from asyncembed import TextEmbedding

async def main(model, source, out):
    async with TextEmbedding(model) as embedder:
        with open(source, encoding="utf-8") as lines:
            numpy.save(out, await embedder.passage_embed(line.rstrip("\\n") for line in lines).collect())

anyio.run(main, *sys.argv[1:])
"""


def write_texts(path: Path, count: int) -> None:
    source, words = random.Random(0), WORDS.split()
    lines = (" ".join(source.choices(words, k=source.randint(3, 10)))[:60] for _ in range(count))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def seconds_of(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - started


def main(count: int, rounds: int) -> None:
    model = str(minilm()[0])
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder, "texts.txt")
        write_texts(texts, count)
        for _ in range(rounds):
            found["library"].append(seconds_of(["-c", LIBRARY, model, str(texts), str(Path(folder, "own.npy"))]))
            for ending in ("npy", "jsonl", "parquet"):
                out = Path(folder, f"out.{ending}")
                found[ending].append(seconds_of(["-m", "asyncembed", "embed", model, str(texts), "-o", str(out)]))
                out.unlink()
    say(machine())
    say(f"{count} texts, medians (range) of {rounds} rounds\n")
    say("| | seconds | speed beside the library |")
    say("|---|---|---|")
    for side, seconds in found.items():
        ratio = statistics.median(own / its for own, its in zip(found["library"], seconds, strict=True))
        say(f"| {side} | {spread(seconds)} | {ratio:.1%} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    main(given.texts, given.rounds)
