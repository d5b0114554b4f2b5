"""Search the docstrings of Python's standard library with LlamaIndex: ingestion, index, retriever, reranker, no LLM.

    uv run python -m examples.llama_index_search                          # a few hundred documents, some queries
    uv run python -m examples.llama_index_search -n 2000 "wait for tasks" # more documents, your own queries
    uv run python -m examples.llama_index_search --reranker Xenova/ms-marco-MiniLM-L-6-v2

The models are opened here, and LlamaIndex's classes are handed them: one pool of workers serves both, and all queries
are asked at once. The dense model's weights come with a package of the `demo` group; a reranker's come from the hub, or
from a directory, and without `--reranker` that step is left out.
"""

import argparse
import asyncio
import textwrap
import time
from contextlib import AsyncExitStack
from itertools import islice

from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import TextNode

from asyncembed import TextCrossEncoder, TextEmbedding, WorkerPool
from asyncembed.integrations.llama_index import AsyncembedEmbedding, AsyncembedRerank
from examples.quickstart import demo_model, stdlib_docstrings

QUERIES = ["run a coroutine with a time limit", "numbers drawn by chance", "how alike are two strings?"]
CANDIDATES = 20
HITS = 3


async def main() -> None:
    arguments = parse_arguments()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(WorkerPool())
        model = await stack.enter_async_context(TextEmbedding(demo_model(), pool=pool))
        embedding = AsyncembedEmbedding(model)

        documents = [
            TextNode(text=document.text, metadata={"name": document.name}, excluded_embed_metadata_keys=["name"])
            for document in islice(stdlib_docstrings(), arguments.documents)
        ]
        started = time.perf_counter()
        nodes = await IngestionPipeline(transformations=[embedding], disable_cache=True).arun(nodes=documents)
        print(f"{len(nodes)} docstrings in {time.perf_counter() - started:.1f} s with {pool.size} workers")

        # The constructor would embed nodes synchronously; these have their embeddings already.
        index = VectorStoreIndex([], embed_model=embedding)
        await index.ainsert_nodes(nodes)

        reranker = None
        if arguments.reranker:
            cross_encoder = await stack.enter_async_context(TextCrossEncoder(arguments.reranker, pool=pool))
            reranker = AsyncembedRerank(cross_encoder, top_n=HITS)
        # Without an LLM a query engine gives what it has found; with one of yours it answers from that.
        engine = RetrieverQueryEngine(
            index.as_retriever(similarity_top_k=CANDIDATES if reranker else HITS),
            NoText(llm=MockLLM()),
            node_postprocessors=[reranker] if reranker else [],
        )
        answers = await asyncio.gather(*map(engine.aquery, arguments.queries))
    for query, answer in zip(arguments.queries, answers, strict=True):
        print(f"\n{query}")
        for hit in answer.source_nodes:
            print(f"  {hit.score:6.2f}  {hit.node.metadata['name']}")
            print(textwrap.indent(textwrap.shorten(hit.node.get_content(), 90), " " * 10))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", nargs="*", default=QUERIES, help="what to look for")
    parser.add_argument("-n", "--documents", type=int, default=400, help="how many docstrings (default 400)")
    parser.add_argument("--reranker", help="a cross-encoder: its name on the hub, or a directory")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main())
