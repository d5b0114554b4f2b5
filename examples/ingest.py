"""Read records into a database, each with its vector; what is broken is kept aside, and the rest goes on.

    uv run -m examples.ingest                                           # a sample that it makes, broken lines included
    uv run -m examples.ingest articles.jsonl articles.db                # records of your own: {"id": ..., "text": ...}
    tail -f articles.jsonl | uv run -m examples.ingest - articles.db    # as they come, at most a second later

Broken lines, records without a text and texts that cannot be embedded go into a file beside the database, one JSON
object a line, with what was wrong. The database is SQLite's; a vector is float32, as bytes.
"""

import argparse
import json
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TextIO

import anyio
import numpy as np
from anyio import to_thread

from asyncembed import StreamProgress, TextEmbedding
from asyncembed.errors import AsyncEmbedError, InputError
from asyncembed.readers import json_lines
from examples.quickstart import demo_model, stdlib_docstrings

BATCH_ROWS = 256
MAX_WAIT_SECONDS = 1.0
"""How long a record may wait for others to fill its batch."""


async def ingest(
    model: TextEmbedding, records: Iterable[Any], database: sqlite3.Connection, aside: TextIO
) -> StreamProgress:
    """Store each record with its vector; those that fail go aside."""

    def set_aside(record: object, error: AsyncEmbedError) -> None:
        # Runs on the event loop: it writes a line, and no more.
        kept = None if isinstance(record, InputError) else record
        print(json.dumps({"error": str(error), "record": kept}), file=aside, flush=True)

    stream = model.embed(records, key=text_of, on_error=set_aside, progress=True)
    async with stream.with_inputs().batches(BATCH_ROWS, max_wait=MAX_WAIT_SECONDS) as batches:
        async for rows, vectors in batches:
            await to_thread.run_sync(store, database, rows, vectors)
    return stream.progress()


def text_of(record: dict[str, Any]) -> str:
    text = record["text"]
    if not isinstance(text, str) or not text.strip():
        raise InputError("there is no text")
    return text


def store(database: sqlite3.Connection, rows: list[dict[str, Any]], vectors: np.ndarray) -> None:
    """One transaction for a batch; in a thread, as a disk may be slow."""
    with database:
        database.executemany(
            "INSERT OR REPLACE INTO records VALUES (?, ?, ?)",
            [
                (str(row.get("id", row["text"])), row["text"], vector.tobytes())
                for row, vector in zip(rows, vectors, strict=True)
            ],
        )


def typed_records() -> Iterator[Any]:
    """The records that come in on stdin, each as soon as its line is there."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError as error:
                value = InputError(f"line {number} is no JSON: {error}")
            yield value


def write_sample(path: Path) -> Path:
    """Some hundred records, and what files of other people hold besides."""
    lines = [json.dumps({"id": name, "text": text}) for name, text in islice(stdlib_docstrings(), 300)]
    lines[50:50] = ['{"id": "cut off, "text"', '{"id": "no text"}', '{"id": "empty", "text": " "}', "[1, 2]"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


async def main() -> None:
    arguments = parse_arguments()
    folder = Path(mkdtemp()) if arguments.database is None else arguments.database.parent
    path = arguments.database or folder / "records.db"
    source = arguments.source or write_sample(folder / "sample.jsonl")
    records = typed_records() if str(source) == "-" else json_lines(source)
    broken = path.with_suffix(".broken.jsonl")
    database = sqlite3.connect(path, check_same_thread=False)
    database.execute("CREATE TABLE IF NOT EXISTS records (id TEXT PRIMARY KEY, text TEXT, vector BLOB)")
    with broken.open("w", encoding="utf-8") as aside:
        async with TextEmbedding(arguments.model or demo_model(), workers=arguments.workers) as model:
            done = await ingest(model, records, database, aside)
    database.close()
    print(f"{done.done} records in {path}, {done.failed} broken ones in {broken}")
    print(f"{done.items_per_second:.0f} records and {done.tokens_per_second:.0f} tokens in a second")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, help="a JSONL file, or - for stdin")
    parser.add_argument("database", nargs="?", type=Path, help="where to store; made if it is not there")
    parser.add_argument("--model", type=Path, help="a model's directory, instead of all-MiniLM-L6-v2")
    parser.add_argument("--workers", type=int, help="worker processes; 0: threads of this one")
    return parser.parse_args()


if __name__ == "__main__":
    anyio.run(main)
