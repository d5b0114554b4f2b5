"""What the engine itself costs per item: 200,000 short texts through an encoder that computes nothing.

    uv run python -m benchmarks.overhead [--items 200000]

The source is a list, or an iterator that is read in a thread; memory is that of all processes. There is no other
side: an item's cost is compared with that of a plain `async for` over an async generator that yields arrays. The token
budget is that of a graph (32 of these items in a batch), then that of a model without one (as many as wait).
"""

import argparse
import time
from collections import defaultdict
from collections.abc import AsyncIterator

import anyio
import numpy as np
from anyio.lowlevel import checkpoint

from asyncembed import TextEmbedding, WorkerPool
from asyncembed.options import MAX_BATCH_TOKENS, MAX_BATCH_TOKENS_WITHOUT_GRAPH
from benchmarks.common import machine, say, watch_memory
from benchmarks.trivial import TRIVIAL


async def plain(count: int) -> AsyncIterator[np.ndarray]:
    """The floor: an async generator with a checkpoint an item."""
    row = np.zeros(8, np.float32)
    for _ in range(count):
        await checkpoint()
        yield row


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    count = arguments.items
    documents = [f"text {number}" for number in range(count)]
    say(machine())
    rows: dict[str, list[float]] = defaultdict(list)
    memory: list[str] = []
    async with WorkerPool(workers=2) as pool:
        for _ in range(arguments.rounds):
            started = time.perf_counter()
            async for _vector in plain(count):
                pass
            rows["plain async generator"].append(time.perf_counter() - started)
            for budget in (MAX_BATCH_TOKENS, MAX_BATCH_TOKENS_WITHOUT_GRAPH):
                async with TextEmbedding(TRIVIAL, pool=pool, max_batch_tokens=budget) as model:
                    for name, source in (("a list", documents), ("a generator", iter(documents))):
                        with watch_memory() as peak:
                            started = time.perf_counter()
                            async for _vector in model.embed(source):
                                pass
                            rows[f"async for, {name}, budget {budget}"].append(time.perf_counter() - started)
                        memory.append(f"+{(peak.size_bytes - peak.start_bytes) / 1e6:.0f} MB")
                    started = time.perf_counter()
                    async for _batch in model.embed(documents).batches(256):
                        pass
                    rows[f"batches(256), a list, budget {budget}"].append(time.perf_counter() - started)
    for name, seconds in rows.items():
        per_item = sorted(value / count * 1e6 for value in seconds)
        say(f"{name:40} {per_item[len(per_item) // 2]:6.1f} µs an item ({per_item[0]:.1f} to {per_item[-1]:.1f})")
    say(f"memory above the start of each stream: {', '.join(memory)}")


if __name__ == "__main__":
    anyio.run(main)
