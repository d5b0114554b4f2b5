"""Retrieval for a chat model, with LangChain: what answers a question goes into the prompt.

    uv run -m examples.langchain_search                               # a few hundred docstrings, some questions
    uv run -m examples.langchain_search -n 5000 "how do I wait for several tasks?"
    uv run -m examples.langchain_search --reranker Xenova/ms-marco-MiniLM-L-6-v2

The corpus goes into LangChain's store in memory as bulk work, while the first question is asked already: it is answered
from what the store has by then. Then all questions run through a chain at once, and their embeddings are computed
together. The chain ends with the prompt, as a chat model costs money: add yours with `chain | model`.

The weights come with a package of the `demo` group. A reranker's come from the hub, or from a directory.
"""

import argparse
from contextlib import AsyncExitStack
from itertools import islice

import anyio
from langchain_core.documents import Document
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from asyncembed import TextCrossEncoder, TextEmbedding, WorkerPool
from asyncembed.integrations.langchain import AsyncembedEmbeddings, AsyncembedReranker
from examples.quickstart import demo_model, stdlib_docstrings

QUESTIONS = [
    "How do I run a coroutine with a time limit?",
    "How do I read a file that is compressed?",
    "How alike are two strings?",
]
CANDIDATES = 20
HITS = 3
BATCH = 100

PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer from these parts of Python's documentation only:\n\n{context}"),
        ("human", "{question}"),
    ]
)


async def main() -> None:
    arguments = parse_arguments()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(WorkerPool())
        model = await stack.enter_async_context(TextEmbedding(demo_model(), pool=pool))
        reranker = None
        if arguments.reranker:
            scorer = await stack.enter_async_context(TextCrossEncoder(arguments.reranker, pool=pool))
            reranker = AsyncembedReranker(scorer, top_n=HITS)
        store = InMemoryVectorStore(AsyncembedEmbeddings(model))
        async with anyio.create_task_group() as group:
            group.start_soon(fill, store, arguments.documents)
            early = await store.asimilarity_search(arguments.questions[0], k=HITS)
            print(f"{len(early)} hits before the store was full")
        print(f"{len(store.store)} docstrings in the store")
        chain = retrieval_chain(store, reranker)
        prompts = await chain.abatch(arguments.questions)
        for prompt in prompts:
            print("\n" + prompt.to_string())


async def fill(store: InMemoryVectorStore, limit: int) -> None:
    found = islice(stdlib_docstrings(), limit)
    documents = [Document(one.text, metadata={"name": one.name}) for one in found]
    for start in range(0, len(documents), BATCH):
        await store.aadd_documents(documents[start : start + BATCH])


def retrieval_chain(store: InMemoryVectorStore, reranker: AsyncembedReranker | None) -> Runnable[str, PromptValue]:
    """From a question to the prompt for a chat model."""

    async def retrieve(question: str) -> list[Document]:
        if reranker is None:
            return await store.asimilarity_search(question, k=HITS)
        candidates = await store.asimilarity_search(question, k=CANDIDATES)
        return list(await reranker.acompress_documents(candidates, question))

    context = RunnableLambda(retrieve) | as_context
    return {"context": context, "question": RunnablePassthrough()} | PROMPT


def as_context(documents: list[Document]) -> str:
    return "\n\n".join(f"{scored_name(one)}\n{one.page_content.splitlines()[0]}" for one in documents)


def scored_name(document: Document) -> str:
    score = document.metadata.get("relevance_score")
    return str(document.metadata["name"]) if score is None else f"{document.metadata['name']} ({score:.2f})"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", default=QUESTIONS, help="what to ask")
    parser.add_argument("-n", "--documents", type=int, default=400, help="how many docstrings (default 400)")
    parser.add_argument("--reranker", help="a cross-encoder: its name on the hub, or a directory")
    return parser.parse_args()


if __name__ == "__main__":
    anyio.run(main)
