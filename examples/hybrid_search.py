"""Search the docstrings of Python's standard library by meaning and by words at once, in Qdrant's embedded mode.

    uv run python -m examples.hybrid_search                              # a few hundred documents, some queries
    uv run python -m examples.hybrid_search -n 5000 "wait for tasks"     # more documents, your own queries
    uv run python -m examples.hybrid_search --reranker Xenova/ms-marco-MiniLM-L-6-v2

One pool of workers serves all models. The corpus is read once, and goes through the dense model and BM25 into one
collection; a query is answered from the vectors of both, fused by their ranks, and a reranker can put the best hits in
order.

What needs no hub: the dense model's weights come with a package of the `demo` group, and BM25 with stop words of one's
own has no files. A reranker's weights come from the hub, or from a directory; without `--reranker` that step is left
out.
"""

import argparse
import textwrap
import time
from contextlib import AsyncExitStack
from itertools import islice

import anyio
from qdrant_client import AsyncQdrantClient, models

from asyncembed import SparseTextEmbedding, TextCrossEncoder, TextEmbedding, WorkerPool
from asyncembed.integrations.qdrant import collection_config, points, prefetch, upload
from examples.quickstart import demo_model, stdlib_docstrings

QUERIES = [
    "run a coroutine with a time limit",
    "sock_connect",
    "setlocale category",
    "how alike are two strings?",
]
# So that the example needs no files: without `stopwords=`, BM25 takes the list of its language from the hub.
STOP_WORDS = (
    "a an and are as at be but by can do for from has have how if in into is it its no not of on or should so such "
    "that the their then there these they this to was when where which will with you your"
)
COLLECTION = "docstrings"
CANDIDATES = 20
HITS = 3


async def main() -> None:
    arguments = parse_arguments()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(WorkerPool())
        dense = await stack.enter_async_context(TextEmbedding(demo_model(), pool=pool))
        sparse = await stack.enter_async_context(
            SparseTextEmbedding("Qdrant/bm25", stopwords=STOP_WORDS.split(), pool=pool)
        )
        reranker = None
        if arguments.reranker:
            reranker = await stack.enter_async_context(TextCrossEncoder(arguments.reranker, pool=pool))
        else:
            print("no --reranker: hits stay in the order in which the two searches, fused, have them")
        client = AsyncQdrantClient(":memory:")
        stack.push_async_callback(client.close)
        started = time.perf_counter()
        count = await ingest(client, dense, sparse, arguments.documents)
        print(f"{count} docstrings in {time.perf_counter() - started:.1f} s with {pool.size} workers")
        for query in arguments.queries:
            print(f"\n{query}")
            for score, hit in await search(client, dense, sparse, reranker, query):
                print(f"  {score:6.2f}  {hit['name']}")
                print(textwrap.indent(textwrap.shorten(hit["text"], 90), " " * 10))


async def ingest(client: AsyncQdrantClient, dense: TextEmbedding, sparse: SparseTextEmbedding, limit: int) -> int:
    """Embed and store up to `limit` docstrings; returns how many there were."""
    await client.create_collection(COLLECTION, **collection_config(dense=dense, sparse=sparse))
    stream = points(
        islice(stdlib_docstrings(), limit),
        dense=dense,
        sparse=sparse,
        key=lambda document: document.text,
        payload=lambda document: document._asdict(),
    )
    return (await upload(client, COLLECTION, stream)).done


async def search(
    client: AsyncQdrantClient,
    dense: TextEmbedding,
    sparse: SparseTextEmbedding,
    reranker: TextCrossEncoder | None,
    query: str,
) -> list[tuple[float, dict[str, str]]]:
    """The best hits for `query`, each with its score: that of the reranker, or of the fusion without one."""
    found = await client.query_points(
        COLLECTION,
        prefetch=await prefetch(query, dense=dense, sparse=sparse, limit=CANDIDATES),
        query=models.FusionQuery(fusion=models.Fusion.RRF),
        limit=CANDIDATES if reranker else HITS,
    )
    hits = [(point.score, point.payload or {}) for point in found.points]
    if reranker is None:
        return hits
    ranked = await reranker.rank(query, [hit["text"] for _, hit in hits], top_k=HITS)
    return [(score, hits[position][1]) for position, score in ranked]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", nargs="*", default=QUERIES, help="what to look for")
    parser.add_argument("-n", "--documents", type=int, default=400, help="how many docstrings (default 400)")
    parser.add_argument("--reranker", help="a cross-encoder: its name on the hub, or a directory")
    return parser.parse_args()


if __name__ == "__main__":
    anyio.run(main)
