"""What frameworks cost on top of a model, and what they gain by it against their own integrations of fastembed.

    uv run python -m benchmarks.integrations [--rounds 3] [--waves 30] [--texts 1000] [--only queries ingest]

all-MiniLM-L6-v2 in fp32, one open model for all adapters. Queries are 64 short ones at once, by the model's own call
and through each adapter in turn; what an adapter costs are the differences of neighbours in time (median and
quartiles): of the mean time until an answer, and of the processor time of the event loop's thread for each query. A
ticker on the loop measures by how much it is late meanwhile. An ingest is of docstrings of very mixed length, cut at
512 tokens: LangChain's `aadd_documents` into its store in memory, and LlamaIndex's pipeline, awaited and in a thread,
each with its defaults; what the model's own stream takes for the same texts stands beside it.
"""

import argparse
import asyncio
import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from itertools import cycle, islice
from typing import Any, cast

from langchain_community.embeddings import FastEmbedEmbeddings
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from llama_index.embeddings.fastembed import FastEmbedEmbedding
from pydantic_ai import Embedder

from asyncembed import TextEmbedding
from asyncembed.integrations.langchain import AsyncembedEmbeddings
from asyncembed.integrations.llama_index import AsyncembedEmbedding
from asyncembed.integrations.pydantic_ai import AsyncembedEmbeddingModel
from benchmarks.common import fastembed_directory, machine, minilm, minilm_spec, say, spread, texts
from benchmarks.queries import CONCURRENT, QUERIES, Query, p99, ticker, timed

FASTEMBED = "sentence-transformers/all-MiniLM-L6-v2"
OWN = "the model's own call"
STREAM = "the model's own stream"

Ingest = Callable[[list[str]], Awaitable[object]]
Found = dict[str, list[float]]


# ---------------------------------------------------------------- queries


async def wave(query: Query) -> tuple[float, float, list[float]]:
    """Milliseconds of one of 64 concurrent queries, until its answer and of the processor; and the loop's lags."""
    gc.collect()
    async with ticker() as lags:
        before = time.thread_time()
        # All different: of equal ones only one would be computed.
        texts_of_wave = [f"{text} ({number})" for number, text in enumerate(islice(cycle(QUERIES), CONCURRENT))]
        taken = await asyncio.gather(*[timed(query, text) for text in texts_of_wave])
        processor = time.thread_time() - before
    return statistics.mean(taken) * 1e3, processor / CONCURRENT * 1e3, [lag * 1e3 for lag in lags]


async def ask(model: TextEmbedding[Any], waves: int) -> None:
    """The table of queries."""
    queries: Mapping[str, Query] = {
        OWN: model.embed_query,
        "LangChain, `aembed_query`": AsyncembedEmbeddings(model).aembed_query,
        "LlamaIndex, `aget_query_embedding`": AsyncembedEmbedding(model).aget_query_embedding,
        "Pydantic AI, `embed_query`": Embedder(AsyncembedEmbeddingModel(model)).embed_query,
    }
    taken: Found = defaultdict(list)
    processor: Found = defaultdict(list)
    lags: Found = defaultdict(list)
    for query in queries.values():
        await wave(query)
    for number in range(waves):
        for title, query in in_turn(queries, number):
            milliseconds, computed, late = await wave(query)
            taken[title].append(milliseconds)
            processor[title].append(computed)
            lags[title] += late
    title = f"{CONCURRENT} at once, {waves} times"
    say(f"| {title} | answer after, ms | more | the loop's processor, ms | more | loop lag p99, ms |")
    say("|---|---|---|---|---|---|")
    for title in queries:
        cells = [
            f"{statistics.median(taken[title]):.1f}",
            more_than_own(taken, title),
            f"{statistics.median(processor[title]):.2f}",
            more_than_own(processor, title),
            f"{p99(lags[title]):.1f}",
        ]
        say(f"| {title} | {' | '.join(cells)} |")


def more_than_own(values: Found, title: str) -> str:
    """The cell of the differences from the own call, each time from the one beside it: median and quartiles."""
    if title == OWN:
        return ""
    low, median, high = statistics.quantiles([one - own for one, own in zip(values[title], values[OWN], strict=True)])
    return f"{median:+.2f} ({low:+.2f} to {high:+.2f})"


# ---------------------------------------------------------------- ingest


def into_langchain(embeddings: Embeddings) -> Ingest:
    async def ingest(documents: list[str]) -> None:
        store = InMemoryVectorStore(embeddings)
        await store.aadd_documents([Document(text) for text in documents])
        assert len(store.store) == len(documents)

    return ingest


def into_llama_index(embedding: BaseEmbedding) -> Ingest:
    async def ingest(documents: list[str]) -> None:
        pipeline = IngestionPipeline(transformations=[embedding], disable_cache=True)
        nodes = await pipeline.arun(nodes=[TextNode(text=text) for text in documents])
        assert len(nodes) == len(documents)

    return ingest


def from_a_thread(embedding: BaseEmbedding) -> Ingest:
    async def ingest(documents: list[str]) -> None:
        pipeline = IngestionPipeline(transformations=[embedding], disable_cache=True)
        nodes = await asyncio.to_thread(pipeline.run, nodes=[TextNode(text=text) for text in documents])
        assert len(nodes) == len(documents)

    return ingest


def langchains_fastembed() -> Embeddings:
    """As its constructor makes it, which takes no directory."""
    from fastembed import TextEmbedding

    model = TextEmbedding(FASTEMBED, specific_model_path=str(fastembed_directory()), max_length=512)
    return FastEmbedEmbeddings.model_construct(model_name=FASTEMBED, model=model)


def llama_indexs_fastembed() -> BaseEmbedding:
    return cast(BaseEmbedding, FastEmbedEmbedding(FASTEMBED, specific_model_path=str(fastembed_directory())))


async def store(model: TextEmbedding[Any], documents: list[str], rounds: int) -> None:
    """The table of ingests."""
    langchain, llama_index = AsyncembedEmbeddings(model), AsyncembedEmbedding(model)
    fastembed = llama_indexs_fastembed()
    rows: Mapping[str, tuple[Ingest, Ingest]] = {
        "LangChain, `aadd_documents`": (into_langchain(langchain), into_langchain(langchains_fastembed())),
        "LlamaIndex, `IngestionPipeline.arun`": (into_llama_index(llama_index), into_llama_index(fastembed)),
        "LlamaIndex, `run` in a thread": (from_a_thread(llama_index), from_a_thread(fastembed)),
    }
    found: dict[str, tuple[list[float], list[float], list[float]]] = {title: ([], [], []) for title in rows}
    for ingest, _ in rows.values():
        await ingest(documents[:50])
    for number in range(rounds):
        for title, (ingest, other) in in_turn(rows, number):
            sides = (lambda texts: model.embed(texts).collect(), ingest, other)
            for values, side in zip(found[title], sides, strict=True):
                values.append(await seconds(side, documents))
            say(f"{title}: own stream, adapter, fastembed: {[round(values[-1], 1) for values in found[title]]} s")
    say(f"\n| {len(documents)} texts | asyncembed, s | its fastembed, s | times as fast | {STREAM}, s | of its speed |")
    say("|---|---|---|---|---|---|")
    for title, (stream, ours, theirs) in found.items():
        faster = [other / one for other, one in zip(theirs, ours, strict=True)]
        share = [own / one * 100 for own, one in zip(stream, ours, strict=True)]
        cells = [spread(ours), spread(theirs), spread(faster), spread(stream), f"{statistics.median(share):.0f} %"]
        say(f"| {title} | {' | '.join(cells)} |")


async def seconds(ingest: Ingest, documents: list[str]) -> float:
    gc.collect()
    started = time.perf_counter()
    await ingest(documents)
    return time.perf_counter() - started


def in_turn(sides: Mapping[str, Any], number: int) -> list[tuple[str, Any]]:
    """The sides, each time with another one first."""
    items = list(sides.items())
    first = number % len(items)
    return items[first:] + items[:first]


# ---------------------------------------------------------------- the program


async def measure(arguments: argparse.Namespace) -> None:
    async with TextEmbedding(minilm_spec(), model_path=minilm()[0]) as model:
        if "queries" in arguments.only:
            await ask(model, arguments.waves)
        if "ingest" in arguments.only:
            say("")
            await store(model, texts(arguments.texts), arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of the ingest (default 3)")
    parser.add_argument("--waves", type=int, default=30, help="of 64 queries, for each side (default 30)")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=("queries", "ingest"), default=("queries", "ingest"))
    arguments = parser.parse_args()
    minilm()
    packages = ("langchain-core", "langchain-community", "llama-index-core", "pydantic-ai-slim")
    say(f"{machine()}, {', '.join(f'{name} {version(name)}' for name in packages)}")
    say(f"medians (range) of {arguments.rounds} rounds; ratios and differences are medians of neighbours in time\n")
    asyncio.run(measure(arguments))


if __name__ == "__main__":
    main()
