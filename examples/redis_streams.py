"""Embed what arrives in a Redis stream, and store it; no crash loses a record.

    redis-server &                                                     # 7 or later
    uv run -m examples.redis_streams --sample 300 --until-empty        # adds records first, ends when all are stored
    uv run -m examples.redis_streams articles.db                       # goes on until Ctrl-C or SIGTERM

Start it several times: a consumer group hands each record to one of them. A record is acknowledged when the database
has it, at most about a second after it came in. What a consumer held that was killed, another one claims. What cannot
be embedded goes into a stream beside the first, with what was wrong. Records have the fields "id" and "text"; a later
record of the same id replaces the earlier one, in whatever order they are stored. Acknowledged ones stay in the stream
until its producer trims it.
"""

import argparse
import os
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import anyio
import numpy as np
from anyio import to_thread
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from asyncembed import StreamProgress, TextEmbedding
from asyncembed.errors import InputError
from examples.quickstart import demo_model, stdlib_docstrings

STREAM = "articles"
BROKEN = "articles:broken"
GROUP = "embedding"

BATCH_ROWS = 256
MAX_WAIT_SECONDS = 1.0
READ_AT_ONCE = 64
BLOCK_MILLISECONDS = 1000
"""How long one command waits for records, and with it a signal that ends the program."""

MAX_DELIVERIES = 5
"""A record whose consumers have died so often is taken to be the cause."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record of the stream, as Redis has it: bytes, which may be no text at all."""

    id: str
    fields: Mapping[bytes, bytes]

    @property
    def version(self) -> str:
        """Its place in the stream, in a form that sorts."""
        milliseconds, number = self.id.split("-")
        return f"{milliseconds:0>15}-{number:0>20}"

    @property
    def text(self) -> str:
        return self._field(b"text")

    @property
    def name(self) -> str:
        return self._field(b"id")

    def _field(self, name: bytes) -> str:
        try:
            return self.fields[name].decode()
        except (KeyError, UnicodeDecodeError) as error:
            raise InputError(f"no field {name.decode()!r} that is UTF-8: {error!r}") from error


class Consumer:
    """One of the group. What it has been given and not acknowledged is kept in its name, by Redis and in `held`."""

    def __init__(self, redis: Redis, name: str, *, claim_after: float, until_empty: bool = False) -> None:
        self.redis = redis
        self.name = name
        self.claim_after = claim_after
        self.is_stopping = False
        self.held: set[str] = set()
        self._until_empty = until_empty
        self._cursor: Any = "0-0"

    async def join(self) -> None:
        try:
            await self.redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        await self.redis.xgroup_createconsumer(STREAM, GROUP, self.name)

    async def entries(self) -> AsyncIterator[Entry]:
        """The source: what others have left behind, and what is new. It is read no further than the model's window."""
        while not self.is_stopping:
            found = await self._claim() or await self._read()
            self.held |= {entry.id for entry in found}
            for entry in found:
                yield entry
            if self._until_empty and not found and not (await self.redis.xpending(STREAM, GROUP))["pending"]:
                return

    async def _read(self) -> list[Entry]:
        streams: Any = {STREAM: ">"}
        answer: Any = await self.redis.xreadgroup(
            GROUP, self.name, streams, count=READ_AT_ONCE, block=BLOCK_MILLISECONDS
        )
        return [entry for _, found in answer for entry in as_entries(found)]

    async def _claim(self) -> list[Entry]:
        """Take over what has been in another's hands for too long without a sign of life."""
        idle = int(self.claim_after * 1000)
        answer: Any = await self.redis.xautoclaim(
            STREAM, GROUP, self.name, min_idle_time=idle, start_id=self._cursor, count=READ_AT_ONCE
        )
        self._cursor, found = answer[0], [entry for entry in as_entries(answer[1]) if entry.id not in self.held]
        if not found:
            return []
        pending: Any = await self.redis.xpending_range(
            STREAM, GROUP, found[0].id, found[-1].id, count=len(found) + len(self.held), consumername=self.name
        )
        deliveries = {one["message_id"].decode(): one["times_delivered"] for one in pending}
        spent = [entry for entry in found if deliveries.get(entry.id, 0) > MAX_DELIVERIES]
        await self.settle([], [(entry, f"not stored in {MAX_DELIVERIES} deliveries") for entry in spent])
        return [entry for entry in found if entry not in spent]

    async def settle(self, stored: Iterable[Entry], broken: Iterable[tuple[Entry, object]]) -> None:
        """Acknowledge what is stored, and what is put among the broken ones in the same transaction."""
        done = [entry.id for entry in stored]
        async with self.redis.pipeline(transaction=True) as commands:
            for entry, error in broken:
                fields: dict[Any, Any] = {**entry.fields, b"entry": entry.id, b"error": str(error)}
                commands.xadd(BROKEN, fields)
                done.append(entry.id)
            if done:
                commands.xack(STREAM, GROUP, *done)
                await commands.execute()
        self.held -= set(done)

    async def show_life(self) -> None:
        """Keep others from claiming what waits here for a slow database: who is slow is not dead."""
        while True:
            await anyio.sleep(self.claim_after / 4)
            if self.held:
                await self.redis.xclaim(STREAM, GROUP, self.name, 0, [*self.held], justid=True)

    async def leave(self) -> None:
        """Remove the name from the group, unless something is pending in it, which would be removed, too."""
        if not await self.redis.xpending_range(STREAM, GROUP, "-", "+", 1, consumername=self.name):
            await self.redis.xgroup_delconsumer(STREAM, GROUP, self.name)


def as_entries(answer: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> list[Entry]:
    return [Entry(name.decode(), fields) for name, fields in answer]


async def ingest(model: TextEmbedding, consumer: Consumer, database: sqlite3.Connection) -> StreamProgress:
    """Store what comes in; each batch is acknowledged when the database has it."""
    stream = model.embed(consumer.entries(), key=text_of, on_error="return")
    async with stream.with_inputs().batches(BATCH_ROWS, max_wait=MAX_WAIT_SECONDS) as batches:
        async for entries, results in batches:
            pairs = list(zip(entries, results, strict=True))
            rows = [(entry, result) for entry, result in pairs if isinstance(result, np.ndarray)]
            await to_thread.run_sync(store, database, rows)
            await consumer.settle(
                [entry for entry, _ in rows],
                [(entry, result) for entry, result in pairs if not isinstance(result, np.ndarray)],
            )
    return stream.progress()


def text_of(entry: Entry) -> str:
    if not entry.name or not entry.text.strip():
        raise InputError("the id or the text is empty")
    return entry.text


def store(database: sqlite3.Connection, rows: list[tuple[Entry, np.ndarray]]) -> None:
    """One transaction for a batch. What was delivered twice is stored once, and never over something newer."""
    with database:
        database.executemany(
            "INSERT INTO records VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
            " version = excluded.version, text = excluded.text, vector = excluded.vector"
            " WHERE excluded.version > version",
            [(entry.name, entry.version, entry.text, vector.tobytes()) for entry, vector in rows],
        )


def open_database(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False, timeout=60)  # others write, too
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE IF NOT EXISTS records (id TEXT PRIMARY KEY, version TEXT, text TEXT, vector BLOB)")
    return database


async def stop_when_told(consumer: Consumer) -> None:
    """Read no more after SIGINT or SIGTERM, and finish what is held; a second one ends the program at once."""
    if os.name == "posix":
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                consumer.is_stopping = True
                return


async def main() -> None:
    arguments = parse_arguments()
    path = arguments.database or Path(mkdtemp()) / "records.db"
    database = open_database(path)
    async with Redis.from_url(arguments.redis) as redis, anyio.create_task_group() as group:
        for name, text in islice(stdlib_docstrings(), arguments.sample):
            await redis.xadd(STREAM, {"id": name, "text": text})
        consumer = Consumer(redis, arguments.name, claim_after=arguments.claim_after, until_empty=arguments.until_empty)
        await consumer.join()
        group.start_soon(consumer.show_life)
        group.start_soon(stop_when_told, consumer)
        async with TextEmbedding(arguments.model or demo_model(), workers=arguments.workers) as model:
            done = await ingest(model, consumer, database)
        await consumer.leave()
        group.cancel_scope.cancel()
    database.close()
    print(f"{done.done} records in {path}, {done.failed} broken ones in the stream {BROKEN}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="?", type=Path, help="where to store, by SQLite; made if it is not there")
    parser.add_argument("--redis", default="redis://localhost", metavar="URL", help="default: redis://localhost")
    parser.add_argument(
        "--name", default=f"{socket.gethostname()}-{os.getpid()}", help="of this consumer, in its group"
    )
    parser.add_argument(
        "--claim-after", type=float, default=30.0, metavar="SECONDS", help="without a sign of life (default 30)"
    )
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="add so many docstrings first")
    parser.add_argument("--until-empty", action="store_true", help="end when all records are stored")
    parser.add_argument("--model", type=Path, help="a model's directory, instead of all-MiniLM-L6-v2")
    parser.add_argument("--workers", type=int, help="worker processes; 0: threads of this one")
    return parser.parse_args()


if __name__ == "__main__":
    anyio.run(main)
