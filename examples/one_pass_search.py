"""Search the docstrings of Python's standard library by meaning, by words and token by token, with one model.

    uv run python -m examples.one_pass_search                                # BAAI/bge-m3 from the hub: 2.3 GB
    uv run python -m examples.one_pass_search -n 2000 "wait for tasks"       # more documents, your own queries
    uv run python -m examples.one_pass_search --model path/to/a/model        # one of the same kind

Each text goes through the model once, which gives a dense vector, the weights of its words, and a vector per token. The
first two find candidates in no time; all three together put them in order.
"""

import argparse
import time
from itertools import islice

import anyio
import numpy as np
from anyio import to_thread

from asyncembed import HybridBatch, HybridEmbedding, HybridTextEmbedding, hybrid_scores, sparse_scores, top_k
from examples.quickstart import stdlib_docstrings

QUERIES = ["run a coroutine with a time limit", "setlocale category", "how alike are two strings?"]
CANDIDATES = 30
"""That each of the two searches has a say in."""
HITS = 3


async def main() -> None:
    arguments = parse_arguments()
    async with HybridTextEmbedding(arguments.model) as model:
        print(f"{arguments.model} gives {', '.join(model.outputs)}")
        started = time.perf_counter()
        documents, batch = (
            await model.embed(islice(stdlib_docstrings(), arguments.documents), key=lambda document: document.text)
            .with_inputs()
            .collect()
        )
        print(f"{len(documents)} docstrings in {time.perf_counter() - started:.1f} s, one pass each")
        for query in arguments.queries:
            embedding = await model.embed_query(query)
            # Computing with arrays is nothing for the event loop.
            hits = await to_thread.run_sync(search, embedding, batch)
            print(f"\n{query}")
            for score, position in hits:
                print(f"  {score:6.3f}  {documents[position].name}")


def search(query: HybridEmbedding, documents: HybridBatch) -> list[tuple[float, int]]:
    """The best documents, each as its score and position."""
    by_meaning, _ = top_k(query.dense, documents.dense, CANDIDATES)
    by_words = sparse_scores(query.sparse, documents.sparse)
    candidates = sorted({*by_meaning.tolist(), *np.argsort(-by_words)[:CANDIDATES].tolist()})
    scores = hybrid_scores(query, [documents[position] for position in candidates])
    return [(float(scores[place]), candidates[place]) for place in np.argsort(-scores)[:HITS]]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", nargs="*", default=QUERIES, help="what to look for")
    parser.add_argument("-n", "--documents", type=int, default=300, help="how many docstrings (default 300)")
    parser.add_argument("--model", default="BAAI/bge-m3", help="its name on the hub, or a directory")
    return parser.parse_args()


if __name__ == "__main__":
    anyio.run(main)
