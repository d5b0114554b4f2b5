"""An object that others call as they like, from any thread and event loop, and never close: an adapter, say.

    uv run -m examples.any_loop

Frameworks want embedders whose constructor is plain, whose methods come in pairs, `embed` and `aembed`, and which they
call under loops that come and go. `on_any_loop()` gives a model that can be awaited under all of them, on asyncio and
on trio; `asyncembed.sync` the same without a loop. Both are one engine with one set of workers, as the model and its
options are the same. The first call opens it; it closes when the last adapter is dropped, or with the program.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import trio

from asyncembed import TextEmbedding, sync
from examples.quickstart import demo_model

MODEL = os.environ.get("MODEL") or demo_model()


class Embeddings:
    """What a framework asks for."""

    def __init__(self, model: str | os.PathLike[str]) -> None:
        # Nothing is loaded here. After ten minutes without a call the model goes, until the next one.
        self._awaited = TextEmbedding(model).on_any_loop(keep_alive=600)
        self._blocking = sync.TextEmbedding(model, keep_alive=600)

    def embed_query(self, text: str) -> list[float]:
        vector: list[float] = self._blocking.embed_query(text).tolist()
        return vector

    async def aembed_query(self, text: str) -> list[float]:
        vector: list[float] = (await self._awaited.embed_query(text)).tolist()
        return vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._blocking.embed_documents(texts).tolist()
        return vectors

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = (await self._awaited.embed_documents(texts)).tolist()
        return vectors

    def __repr__(self) -> str:
        return repr(self._blocking)


def main() -> None:
    embeddings = Embeddings(MODEL)
    print("here:", len(embeddings.embed_query("what is backpressure?")), "numbers")
    print("asyncio:", len(asyncio.run(embeddings.aembed_query("what is backpressure?"))), "numbers")
    print("asyncio, another loop:", len(asyncio.run(embeddings.aembed_documents(["one", "two"]))), "vectors")
    print("trio:", len(trio.run(embeddings.aembed_documents, ["one", "two"])), "vectors")
    with ThreadPoolExecutor(4) as threads:
        print("threads:", len([*threads.map(embeddings.embed_query, ["one", "two", "three", "four"])]), "vectors")
    print(embeddings)


if __name__ == "__main__":
    main()
