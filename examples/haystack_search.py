"""Search the docstrings of Python's standard library with Haystack: one pipeline indexes, the other one searches.

    uv run python -m examples.haystack_search                             # a few hundred documents, one query
    uv run python -m examples.haystack_search -n 5000 "wait for tasks"
    uv run python -m examples.haystack_search --reranker Xenova/ms-marco-MiniLM-L-6-v2

Both embedders name the same model: they share one engine, which the first of them opens.
"""

import argparse
import asyncio
from itertools import islice

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore

from asyncembed.integrations.haystack import AsyncembedDocumentEmbedder, AsyncembedRanker, AsyncembedTextEmbedder
from examples.quickstart import demo_model, stdlib_docstrings


async def main() -> None:
    arguments = parse_arguments()
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    indexing, searching = index_pipeline(store), search_pipeline(store, arguments.reranker)
    documents = [
        Document(content=found.text, meta={"name": found.name})
        for found in islice(stdlib_docstrings(), arguments.documents)
    ]
    result = await indexing.run_async({"embedder": {"documents": documents}})
    print(f"{result['writer']['documents_written']} docstrings")
    asked = {"embedder": {"text": arguments.query}}
    if arguments.reranker:
        asked["ranker"] = {"query": arguments.query}
    found = (await searching.run_async(asked))["ranker" if arguments.reranker else "retriever"]
    for hit in found["documents"][:3]:
        print(f"  {hit.score:6.2f}  {hit.meta['name']}")
    await indexing.close_async()
    await searching.close_async()


def index_pipeline(store: InMemoryDocumentStore) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("embedder", AsyncembedDocumentEmbedder(demo_model()))
    pipeline.add_component("writer", DocumentWriter(store))
    pipeline.connect("embedder.documents", "writer.documents")
    return pipeline


def search_pipeline(store: InMemoryDocumentStore, reranker: str | None) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("embedder", AsyncembedTextEmbedder(demo_model()))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=20))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    if reranker is not None:
        pipeline.add_component("ranker", AsyncembedRanker(reranker))
        pipeline.connect("retriever.documents", "ranker.documents")
    return pipeline


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query", nargs="?", default="run a coroutine with a time limit", help="what to look for")
    parser.add_argument("-n", "--documents", type=int, default=400, help="how many docstrings (default 400)")
    parser.add_argument("--reranker", help="a cross-encoder: its name on the hub, or a directory")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main())
