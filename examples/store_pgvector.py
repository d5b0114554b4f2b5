"""Search the docstrings of Python's standard library in PostgreSQL with pgvector, by psycopg 3 or by asyncpg.

    uv run -m examples.store_pgvector                                   # where PGHOST, PGDATABASE and their like say
    uv run -m examples.store_pgvector --database postgresql://localhost/docs "wait for tasks"
    uv run -m examples.store_pgvector --driver asyncpg

It needs a PostgreSQL that has the extension pgvector, 0.7 or later. Each batch is one transaction: a binary COPY into a
temporary table, and from there an upsert, so that the program may be stopped and started as often as you like. While
the database stores, the workers compute; if it is slow, the source is read no further than the model's window.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import asyncpg
import numpy as np
import pgvector.asyncpg
import pgvector.psycopg
import psycopg

from asyncembed import StreamProgress, TextEmbedding
from asyncembed.errors import AsyncEmbedError, InputError
from examples.quickstart import QUERIES, Document, demo_model, stdlib_docstrings

BATCH_ROWS = 256
HITS = 3
LONGEST_NAME = 2600
"""Bytes: an entry of an index has 2,704 at most."""

# `halfvec(...)` takes half of the room, and its index goes up to 4,000 dimensions instead of 2,000.
SCHEMA = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE IF NOT EXISTS documents (
    name text PRIMARY KEY, text text NOT NULL, embedding vector({size}) NOT NULL
)
"""
# Of this connection alone, and empty again after each transaction.
INCOMING = "CREATE TEMPORARY TABLE incoming (place serial, LIKE documents) ON COMMIT DELETE ROWS"
COLUMNS = ["name", "text", "embedding"]
# Of two documents of one name in a batch the later one counts: an upsert may touch a row only once.
UPSERT = """
INSERT INTO documents (name, text, embedding)
SELECT DISTINCT ON (name) name, text, embedding FROM incoming ORDER BY name, place DESC
ON CONFLICT (name) DO UPDATE SET text = EXCLUDED.text, embedding = EXCLUDED.embedding
"""
# Built when the rows are there, which is faster; from then on each upsert keeps it up to date.
INDEX = "CREATE INDEX IF NOT EXISTS documents_embedding ON documents USING hnsw (embedding vector_cosine_ops)"
SEARCH = """
SELECT 1 - (embedding <=> {query}) AS score, name FROM documents ORDER BY embedding <=> {query} LIMIT {limit}
"""


class Store(Protocol):
    """What this program asks of a driver."""

    async def prepare(self, size: int) -> None: ...
    async def store(self, documents: Sequence[Document], vectors: np.ndarray) -> None: ...
    async def search(self, vector: np.ndarray, limit: int) -> list[tuple[float, str]]: ...
    async def build_index(self) -> None: ...
    async def close(self) -> None: ...


class WithPsycopg:
    """A connection of psycopg 3."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self.connection = connection

    @classmethod
    async def connect(cls, database: str) -> "WithPsycopg":
        return cls(await psycopg.AsyncConnection.connect(database, autocommit=True))

    async def prepare(self, size: int) -> None:
        await self.connection.execute(SCHEMA.format(size=size).encode())
        await self.connection.execute(INCOMING)
        await pgvector.psycopg.register_vector_async(self.connection)

    async def store(self, documents: Sequence[Document], vectors: np.ndarray) -> None:
        async with self.connection.transaction(), self.connection.cursor() as cursor:
            command = f"COPY incoming ({', '.join(COLUMNS)}) FROM STDIN (FORMAT binary)"
            async with cursor.copy(command.encode()) as copy:
                copy.set_types(["text", "text", "vector"])
                for document, vector in zip(documents, vectors, strict=True):
                    await copy.write_row((*document, vector))
            await cursor.execute(UPSERT)

    async def search(self, vector: np.ndarray, limit: int) -> list[tuple[float, str]]:
        query = SEARCH.format(query="%(vector)b", limit="%(limit)s")
        cursor = await self.connection.execute(query.encode(), {"vector": vector, "limit": limit})
        return await cursor.fetchall()

    async def build_index(self) -> None:
        await self.connection.execute(INDEX)

    async def close(self) -> None:
        await self.connection.close()


class WithAsyncpg:
    """A connection of asyncpg, whose COPY is always binary."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    @classmethod
    async def connect(cls, database: str) -> "WithAsyncpg":
        return cls(await asyncpg.connect(database or None))

    async def prepare(self, size: int) -> None:
        await self.connection.execute(SCHEMA.format(size=size))
        await self.connection.execute(INCOMING)
        await pgvector.asyncpg.register_vector(self.connection)

    async def store(self, documents: Sequence[Document], vectors: np.ndarray) -> None:
        rows = ((*document, vector) for document, vector in zip(documents, vectors, strict=True))
        async with self.connection.transaction():
            await self.connection.copy_records_to_table("incoming", records=rows, columns=COLUMNS)
            await self.connection.execute(UPSERT)

    async def search(self, vector: np.ndarray, limit: int) -> list[tuple[float, str]]:
        rows = await self.connection.fetch(SEARCH.format(query="$1", limit="$2"), vector, limit)
        return [tuple(row) for row in rows]

    async def build_index(self) -> None:
        await self.connection.execute(INDEX)

    async def close(self) -> None:
        await self.connection.close()


DRIVERS: Mapping[str, Callable[[str], Awaitable[Store]]] = {
    "psycopg": WithPsycopg.connect,
    "asyncpg": WithAsyncpg.connect,
}


async def ingest(model: TextEmbedding, store: Store, documents: Iterable[Document]) -> StreamProgress:
    """Store each document with its vector; one that cannot be stored is left out, and said."""

    def leave_out(document: Document, error: AsyncEmbedError) -> None:
        print(f"left out: {document.name!r}: {error}")

    stream = model.embed(documents, key=text_of, on_error=leave_out, progress=True)
    async with stream.with_inputs().batches(BATCH_ROWS) as batches:
        async for rows, vectors in batches:
            await store.store(rows, vectors)
    return stream.progress()


def text_of(document: Document) -> str:
    """Found here, a text or name that the database refuses costs itself, and not its batch."""
    if "\0" in document.name + document.text:
        raise InputError("PostgreSQL keeps no NUL characters")
    # A lone surrogate, which is found in texts by itself, makes no UTF-8.
    if len(document.name.encode()) > LONGEST_NAME:
        raise InputError(f"the name has over {LONGEST_NAME} bytes, which no index takes")
    return document.text


async def main() -> None:
    arguments = parse_arguments()
    async with TextEmbedding(demo_model(), workers=arguments.workers) as model:
        store = await DRIVERS[arguments.driver](arguments.database)
        try:
            await store.prepare(model.embedding_size)
            done = await ingest(model, store, islice(stdlib_docstrings(), arguments.documents))
            await store.build_index()
            print(f"{done.done} docstrings, {done.items_per_second:.0f} in a second")
            for query in arguments.queries:
                print(f"\n{query}")
                for score, name in await store.search(await model.embed_query(query), HITS):
                    print(f"  {score:.2f}  {name}")
        finally:
            await store.close()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", nargs="*", default=QUERIES, help="what to look for")
    parser.add_argument("-n", "--documents", type=int, default=400, help="how many docstrings (default 400)")
    parser.add_argument("--database", default="", help="its URL; else the environment says, by PGHOST, PGDATABASE, ...")
    parser.add_argument("--driver", choices=DRIVERS, default="psycopg", help="what talks to PostgreSQL")
    parser.add_argument("--workers", type=int, help="worker processes; 0: threads of this one")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main())
