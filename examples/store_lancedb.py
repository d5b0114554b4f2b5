"""Search the docstrings of Python's standard library in LanceDB's asynchronous tables; the schema names the model.

    uv run -m examples.store_lancedb                                  # a few hundred documents, some queries
    uv run -m examples.store_lancedb --folder db "wait for tasks"     # kept on disk: found there by the next run

LanceDB calls the embedding function in threads of its own: the event loop stays free.
"""

import argparse
import asyncio
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp

import lancedb
import pyarrow as pa
from lancedb.embeddings import EmbeddingFunctionConfig

from asyncembed.integrations.lancedb import AsyncembedFunction
from examples.quickstart import QUERIES, demo_model, stdlib_docstrings

TABLE = "docstrings"
HITS = 3


async def main() -> None:
    arguments = parse_arguments()
    connection = await lancedb.connect_async(arguments.folder or mkdtemp())
    if TABLE not in (await connection.list_tables()).tables:
        await fill(connection, arguments)
    table = await connection.open_table(TABLE)  # with the function that its schema names
    print(f"{await table.count_rows()} docstrings in the table")
    for query in arguments.queries:
        print(f"\n{query}")
        for hit in await (await table.search(query)).limit(HITS).to_list():
            print(f"  {hit['name']}")


async def fill(connection: lancedb.AsyncConnection, arguments: argparse.Namespace) -> None:
    function = AsyncembedFunction.create(model=str(demo_model()), workers=arguments.workers)
    vector = pa.list_(pa.float32(), await asyncio.to_thread(function.ndims))
    schema = pa.schema([("name", pa.string()), ("text", pa.string()), ("vector", vector)])
    functions = [EmbeddingFunctionConfig(source_column="text", vector_column="vector", function=function)]
    table = await connection.create_table(TABLE, schema=schema, embedding_functions=functions)
    await table.add([document._asdict() for document in islice(stdlib_docstrings(), arguments.documents)])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", nargs="*", default=QUERIES, help="what to look for")
    parser.add_argument("-n", "--documents", type=int, default=400, help="how many docstrings (default 400)")
    parser.add_argument("--folder", type=Path, help="where the table is kept")
    parser.add_argument("--workers", type=int, help="worker processes; 0: threads of this one")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main())
