"""The engine against the least that could be done: two threads in a loop over the same ONNX file.

    uv run python -m benchmarks.bare_loop [--texts 1000] [--rounds 5] [--max-batch-tokens 256 512 2048]

Both sides tokenize, run all-MiniLM-L6-v2 (fp32, cut at 512 tokens, one thread per session) on batches of neighbouring
length within the same token budget, average and normalise. The loop has all texts at hand and sorts them all; the
engine gets them as a stream and yields vectors in order. The sides, and the budgets, alternate in one run.
"""

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from itertools import product
from queue import Empty, SimpleQueue

import anyio
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from asyncembed import TextEmbedding, WorkerPool
from asyncembed.options import MAX_BATCH_TOKENS
from benchmarks.common import machine, minilm, minilm_spec, say, spread, texts


class BareLoop:
    """Two sessions of one thread each, and a queue of batches."""

    def __init__(self, threads: int) -> None:
        directory, graph = minilm()
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.enable_truncation(512)
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._sessions = [
            onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
            for _ in range(threads)
        ]
        self._names = {entry.name for entry in self._sessions[0].get_inputs()}

    def run(self, documents: list[str], max_tokens: int) -> np.ndarray:
        """All vectors, float32 (n, 384), in input order; `longest * count` of a batch is at most `max_tokens`."""
        encodings = [encoding.ids for encoding in self._tokenizer.encode_batch(documents)]
        batches: SimpleQueue[list[int]] = SimpleQueue()
        batch: list[int] = []
        for row in sorted(range(len(encodings)), key=lambda row: len(encodings[row])):
            if batch and len(encodings[row]) * (len(batch) + 1) > max_tokens:
                batches.put(batch)
                batch = []
            batch.append(row)
        batches.put(batch)
        vectors = np.empty((len(documents), 384), np.float32)

        def work(session: onnxruntime.InferenceSession) -> None:
            while True:
                try:
                    rows = batches.get_nowait()
                except Empty:
                    return
                longest = max(len(encodings[row]) for row in rows)
                ids = np.zeros((len(rows), longest), np.int64)
                mask = np.zeros((len(rows), longest), np.int64)
                for position, row in enumerate(rows):
                    ids[position, : len(encodings[row])] = encodings[row]
                    mask[position, : len(encodings[row])] = 1
                feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
                hidden = session.run(None, {name: array for name, array in feed.items() if name in self._names})[0]
                weights = mask[:, :, None].astype(np.float32)
                pooled = (hidden * weights).sum(1) / weights.sum(1)
                vectors[rows] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

        with ThreadPoolExecutor(len(self._sessions)) as pool:
            list(pool.map(work, self._sessions))
        return vectors


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--max-batch-tokens", type=int, nargs="+", default=[MAX_BATCH_TOKENS])
    arguments = parser.parse_args()
    documents = texts(arguments.texts)
    budgets: list[int] = arguments.max_batch_tokens
    say(machine())
    say(f"{len(documents)} docstrings, {arguments.workers} workers of 1 thread, {arguments.rounds} rounds\n")
    loop = BareLoop(arguments.workers)
    bare: dict[int, list[float]] = {budget: [] for budget in budgets}
    engine: dict[int, list[float]] = {budget: [] for budget in budgets}
    difference = 0.0
    async with WorkerPool(workers=arguments.workers, threads=1) as pool, AsyncExitStack() as stack:
        models = {
            budget: await stack.enter_async_context(
                TextEmbedding(minilm_spec(), model_path=minilm()[0], pool=pool, max_batch_tokens=budget)
            )
            for budget in budgets
        }
        for _, (budget, model) in product(range(arguments.rounds), models.items()):
            started = time.perf_counter()
            expected = loop.run(documents, budget)
            bare[budget].append(time.perf_counter() - started)
            started = time.perf_counter()
            vectors = await model.embed(documents).collect()
            engine[budget].append(time.perf_counter() - started)
            difference = max(difference, float(np.abs(vectors - expected).max()))
        stats = {budget: model.stats() for budget, model in models.items()}
    say("| budget | bare loop, s | engine, s | engine's throughput | padding | median batch, ms |")
    say("|---|---|---|---|---|---|")
    for budget in budgets:
        ratio = statistics.median(b / e for b, e in zip(bare[budget], engine[budget], strict=True))
        say(
            f"| {budget} | {spread(bare[budget])} | {spread(engine[budget])} | {ratio:.1%} of the loop's "
            f"| {stats[budget].padding_share:.1%} | {stats[budget].batch_seconds * 1e3:.0f} |"
        )
    say(f"\nlargest difference between the two sides' vectors: {difference:.1e}")


if __name__ == "__main__":
    anyio.run(main)
