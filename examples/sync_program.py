"""A program without an event loop: a script that ingests, and threads that search at the same time.

    uv run -m examples.sync_program                          # a few hundred docstrings, some queries
    uv run -m examples.sync_program -n 5000 --threads 16

`asyncembed.sync` has the seven classes as plain ones: calls block, streams are for `for`. They may be used from any
number of threads; queries of threads that ask at the same time are computed together, and go before the ingest.
"""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from asyncembed.sync import TextEmbedding
from examples.quickstart import QUERIES, Document, demo_model, show, stdlib_docstrings

MODEL = os.environ.get("MODEL") or demo_model()


def main() -> None:
    arguments = parse_arguments()
    with TextEmbedding(MODEL) as model, ThreadPoolExecutor(arguments.threads) as threads:
        # Answered in the middle of the ingest.
        queries = [threads.submit(model.embed_query, query) for query in QUERIES]
        documents, matrix = ingest(model, islice(stdlib_docstrings(), arguments.documents))
        for query, vector in zip(QUERIES, queries, strict=True):
            names, texts = zip(*documents, strict=True)
            show(query, matrix @ vector.result(), list(names), list(texts))
        stats = model.stats()
        print(f"\n{stats.items} texts in {stats.batches} batches by {stats.workers} workers")


def ingest(model: TextEmbedding, source: Iterator[Document]) -> tuple[list[Document], np.ndarray]:
    """Read no further ahead than the window: a slow loop, as one that writes into a database, slows the source."""
    documents: list[Document] = []
    parts: list[np.ndarray] = []
    with model.embed(source, key=lambda document: document.text, progress=True).with_inputs() as stream:
        for batch, vectors in stream.batches(64):
            documents += batch
            parts.append(vectors)
    return documents, np.concatenate(parts)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--documents", type=int, default=400, help="how many docstrings (default 400)")
    parser.add_argument("--threads", type=int, default=4, help="threads that search (default 4)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
