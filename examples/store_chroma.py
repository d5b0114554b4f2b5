"""Search the docstrings of Python's standard library in Chroma, which keeps the model's name with the collection.

    uv run -m examples.store_chroma                                   # a few hundred documents, some queries
    uv run -m examples.store_chroma --folder db "wait for tasks"      # kept on disk: found there by the next run

Chroma calls embedding functions synchronously: so does this program. One with an event loop gives Chroma vectors of its
own, as `asyncembed.integrations.chroma` says.
"""

import argparse
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp

import chromadb
from chromadb.config import Settings

from asyncembed.integrations.chroma import AsyncembedEmbeddingFunction
from examples.quickstart import QUERIES, demo_model, stdlib_docstrings

COLLECTION = "docstrings"
HITS = 3


def main() -> None:
    arguments = parse_arguments()
    settings = Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(arguments.folder or mkdtemp()), settings)
    if COLLECTION not in [collection.name for collection in client.list_collections()]:
        function = AsyncembedEmbeddingFunction(str(demo_model()), workers=arguments.workers)
        collection = client.create_collection(COLLECTION, embedding_function=function)  # type: ignore[arg-type]
        documents = dict(islice(stdlib_docstrings(), arguments.documents))
        collection.add(ids=list(documents), documents=list(documents.values()))
    collection = client.get_collection(COLLECTION)  # with the function that it was made with
    print(f"{collection.count()} docstrings in the collection")
    found = collection.query(query_texts=arguments.queries, n_results=HITS)
    for query, ids in zip(arguments.queries, found["ids"], strict=True):
        print(f"\n{query}")
        for name in ids:
            print(f"  {name}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", nargs="*", default=QUERIES, help="what to look for")
    parser.add_argument("-n", "--documents", type=int, default=400, help="how many docstrings (default 400)")
    parser.add_argument("--folder", type=Path, help="where the collection is kept")
    parser.add_argument("--workers", type=int, help="worker processes; 0: threads of this one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
