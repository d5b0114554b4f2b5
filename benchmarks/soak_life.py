"""A program of the soak: ingests, queries, streams that are left, models that come and go, workers that are killed.

    python -m benchmarks.soak_life asyncio FOLDER SECONDS ROUND_SECONDS SEED

It plays rounds of everything at once; after each it comes to rest and prints, as a line of JSON, what was answered and
what it holds. The last line is what is left once all is closed.
"""

import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from time import perf_counter, time
from typing import Any, Literal

import anyio
from anyio import create_task_group, move_on_after, sleep, to_thread
from anyio.lowlevel import checkpoint

from asyncembed import Checkpoint, TextEmbedding, VectorCacheFile, WorkerPool, sync
from asyncembed.errors import InputError, ModelLoadError, StateError
from asyncembed.readers import json_lines
from benchmarks.soak_books import Books, until_rest, usage
from tests.support.killing import kill
from tests.support.waiting import worker_processes

MOST_RECORDS = 300
KEEP_ALIVE_SECONDS = 0.3

LOADED_SECONDS = 3.0
"""A worker that is older has loaded its model."""

CACHE_BYTES = 2**16
"""Of the file that both programs use at once: it has no room for all vectors, so that some are computed again."""


class Life:
    """One program's models, and what everybody does with them: each method `..._turn` is somebody's turn."""

    def __init__(self, books: Books, steady: TextEmbedding, cached: TextEmbedding, mortal: TextEmbedding) -> None:
        self.books = books
        self.random = books.random
        self.models = {"steady": steady, "mortal": mortal}
        self._cached = cached
        self.spared: set[int] = set()
        self._count = 0

    def path(self, suffix: str) -> Path:
        """Of a file of one's own, where temporary files are."""
        self._count += 1
        return Path(gettempdir(), f"{self._count}{suffix}")

    def pick_model(self) -> tuple[str, TextEmbedding]:
        """A model, by the name of its files; a part of the time that which has its vectors from the cache."""
        if self.random.random() < 0.2:
            return "steady", self._cached
        name = self.random.choice(list(self.models))
        return name, self.models[name]

    # ---------------------------------------------------------------- ingests

    async def ingest_turn(self) -> None:
        """All records of a source of any kind, some of them broken, in any of the ways out."""
        name, model = self.pick_model()
        numbers = self.books.pick(MOST_RECORDS)
        broken = {place for place in range(len(numbers)) if self.random.random() < 0.02}
        failed: list[Any] = []
        on_error: Any = self.random.choice(["skip", "return", lambda record, _: failed.append(record)])
        ordered = self.random.random() < 0.7
        with self._source(numbers, broken) as source:
            stream = model.embed(source, key=_text_of, on_error=on_error, ordered=ordered).with_inputs()
            found, failures = await self._drain(stream)
        good = [number for place, number in enumerate(numbers) if place not in broken]
        if not ordered:
            found.sort(key=lambda pair: pair[0])
            good.sort()
        self.books.expect("records", [number for number, _ in found], good)
        self.books.check("ingested", name, good, [vector for _, vector in found])
        seen = {"skip": stream.skipped, "return": failures}.get(str(on_error), len(failed))
        self.books.expect("failures", seen, len(broken))

    async def _drain(self, stream: Any) -> tuple[list[tuple[int, Any]], int]:
        way = self.random.choice(["for", "batches", "collect", "take_some"])
        pairs: list[Any] = []
        if way == "for":
            pairs = [pair async for pair in stream]
        elif way == "batches":
            async for records, vectors in stream.batches(self.random.randint(1, 64), max_wait=0.01):
                pairs += zip(records, vectors, strict=True)
        elif way == "collect":
            pairs = list(zip(*await stream.collect(), strict=True))
        else:
            while some := await stream.take_some():
                pairs += some
        failures = sum(isinstance(vector, Exception) for _, vector in pairs)
        return [(record["number"], vector) for record, vector in pairs if not isinstance(vector, Exception)], failures

    def _source(self, numbers: list[int], broken: set[int]) -> "_Source":
        records = [
            {"number": number, "text": 42 if place in broken else self.books.texts[number]}
            for place, number in enumerate(numbers)
        ]
        way = self.random.choice(["list", "generator", "async generator", "file"])
        if way == "file":
            path = self.path(".jsonl")
            path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
            return _Source(json_lines(path), path)
        ways: dict[str, Callable[[list[Any]], Any]] = {"list": list, "generator": iter}
        return _Source(ways.get(way, _as_they_come)(records))  # type: ignore[no-untyped-call]

    async def failing_ingest_turn(self) -> None:
        """A stream that ends with its first broken record."""
        broken: Any = 42
        name, model = self.pick_model()
        numbers = self.books.pick(50)
        vectors = []
        try:
            async for vector in model.embed([*(self.books.texts[number] for number in numbers), broken]):
                vectors.append(vector)  # noqa: PERF401 (those before the error count)
            self.books.note("a broken record raises nothing")
        except InputError as error:
            self.books.expect("index", error.index, len(numbers))
        self.books.check("ingested until the first error", name, numbers, vectors)

    async def chunks_turn(self) -> None:
        """Texts as documents: their chunks are all of them, and a chunk that is a whole document has its vector."""
        name, model = self.pick_model()
        numbers = self.books.pick(50)
        mode: Literal["plain", "late"] = self.random.choice(["plain", "late"])
        parts: list[list[Any]] = []
        async for chunk in model.embed_chunks([self.books.texts[number] for number in numbers], mode=mode):
            parts += [[]] if chunk.index == 0 else []
            parts[-1].append(chunk)
        found = [" ".join(chunk.document[chunk.start : chunk.end] for chunk in some) for some in parts]
        self.books.expect("chunks", found, [self.books.texts[number] for number in numbers])
        if mode == "plain":
            whole = [(number, some[0].vector) for number, some in zip(numbers, parts, strict=True) if len(some) == 1]
            self.books.check("chunks", name, [number for number, _ in whole], [vector for _, vector in whole])

    async def resumed_ingest_turn(self) -> None:
        """An ingest with a checkpoint, cut off at any moment and taken up again until all is done."""
        name, model = self.pick_model()
        numbers = self.books.pick(MOST_RECORDS, 50)
        path = self.path(".done")
        stored: dict[int, Any] = {}
        records = [{"number": place, "text": self.books.texts[number]} for place, number in enumerate(numbers)]
        is_done = False
        patience = 0.1
        while not is_done:
            patience *= 1.2
            with move_on_after(self.random.uniform(0, patience)):
                async with (
                    Checkpoint(path, key=_text_of) as done,
                    model.embed(done.rest(records), key=_text_of).with_inputs() as stream,
                ):
                    async for some, vectors in stream.batches(32):
                        stored.update(zip(map(_number_of, some), vectors, strict=True))
                        await done.advance(len(some))
                is_done = True
        for file in (path, Path(f"{path}.lock")):
            file.unlink(missing_ok=True)
        self.books.check("ingested with a checkpoint", name, numbers, [stored[place] for place in range(len(numbers))])

    # ---------------------------------------------------------------- queries, and who leaves

    async def query_turn(self) -> None:
        """Some single calls at once, or one for a list."""
        name, model = self.pick_model()
        numbers = self.books.pick(8)
        texts = [self.books.texts[number] for number in numbers]
        if self.random.random() < 0.3:
            self.books.check("listed", name, numbers, await model.embed_documents(texts))
            return
        answers: dict[int, Any] = {}

        async def ask(place: int) -> None:
            answers[place] = await model.embed_query(texts[place])

        async with create_task_group() as group:
            for place in range(len(texts)):
                group.start_soon(ask, place)
        self.books.check("queried", name, numbers, [answers[place] for place in range(len(texts))])
        await sleep(self.random.uniform(0, 0.05))

    async def leaving_turn(self) -> None:
        """A stream that is left in the middle, or a call that is cancelled: what is there already is right."""
        name, model = self.pick_model()
        numbers = self.books.pick(MOST_RECORDS)
        closed = anyio.Event()
        source = _noticed((self.books.texts[number] for number in numbers), closed)
        vectors: list[Any] = []
        way = self.random.choice(["break", "close", "cancel", "cancelled query"])
        if way == "break":
            await self._take_a_few(model.embed(source), vectors)
        elif way == "close":
            async with model.embed(source) as stream:
                await self._take_a_few(stream, vectors)
        elif way == "cancel":
            with move_on_after(self.random.uniform(0, 0.1)):
                async for vector in model.embed(source):
                    vectors.append(vector)  # noqa: PERF401 (those before the end count)
        else:
            with move_on_after(self.random.uniform(0, 0.02)):
                await model.embed_query(self.books.texts[numbers[0]])
            await source.aclose()
        self.books.check("left", name, numbers[: len(vectors)], vectors)
        if way == "close" and vectors:
            self.books.expect("the source of a closed stream is closed", closed.is_set(), True)

    async def _take_a_few(self, stream: Any, vectors: list[Any]) -> None:
        most = self.random.randint(1, 50)
        async for vector in stream:
            vectors.append(vector)
            if len(vectors) == most:
                break

    # ---------------------------------------------------------------- models that come and go

    async def idle_turn(self) -> None:
        """A model for any loop, which idles out or is unloaded, and is back with the next call."""
        model = TextEmbedding(self.books.folder / "idle", workers=1).on_any_loop(keep_alive=KEEP_ALIVE_SECONDS)
        for _ in range(3):
            numbers = self.books.pick(5)
            with self._unless_ended():
                vectors = [await model.embed_query(self.books.texts[number]) for number in numbers]
                self.books.check("queried a model that idles out", "idle", numbers, vectors)
            await sleep(self.random.uniform(0, 3 * KEEP_ALIVE_SECONDS))
            if self.random.random() < 0.3:
                await model.unload()

    async def sync_turn(self) -> None:
        """The same from a thread that has no loop."""
        numbers = self.books.pick(20)
        with self._unless_ended():
            vectors = await to_thread.run_sync(self._in_thread, [self.books.texts[number] for number in numbers])
            self.books.check("asked from a thread", "idle", numbers, vectors)

    @contextmanager
    def _unless_ended(self) -> Iterator[None]:
        """What runs while another turn unloads the model, or kills its workers thrice, gets an error that says so."""
        try:
            yield
        except StateError:
            self.books.counts["unloaded meanwhile"] += 1
        except ModelLoadError:
            self.books.counts["killed thrice while it loaded"] += 1

    def _in_thread(self, texts: list[str]) -> list[Any]:
        with sync.TextEmbedding(self.books.folder / "idle", workers=1, keep_alive=KEEP_ALIVE_SECONDS) as model:
            found = list(model.embed(iter(texts[1:])))
            return [model.embed_query(texts[0]), *found]

    async def opening_turn(self) -> None:
        """A model that is opened, used and closed; now and then it is given up while it opens, or in the middle."""
        patience = self.random.uniform(0, 1) if self.random.random() < 0.5 else 60
        numbers = self.books.pick(10)
        with self._unless_ended(), move_on_after(patience):
            async with TextEmbedding(self.books.folder / "idle", workers=self.random.randint(1, 2)) as model:
                vectors = await model.embed([self.books.texts[number] for number in numbers]).collect()
                self.books.check("asked a model just opened", "idle", numbers, vectors)

    async def killing_turn(self) -> None:
        """A worker that ends from one moment to the next, whatever it does; then one is there that answers."""
        await sleep(self.random.uniform(0.3, 2))
        victims = [worker for worker in worker_processes() if worker.pid not in self.spared]
        if self.books.counts["workers killed"] % 3:  # one that dies three times while it loads is given up, and rightly
            victims = [worker for worker in victims if time() - worker.create_time() > LOADED_SECONDS]
        if victims:
            with suppress(ProcessLookupError):
                kill(self.random.choice(victims).pid)
                self.books.counts["workers killed"] += 1
        number = self.books.pick(1)[0]
        vector = await self.models["mortal"].embed_query(self.books.texts[number])
        self.books.check("queried after a kill", "mortal", [number], [vector])

    # ---------------------------------------------------------------- rest

    def is_at_rest(self) -> bool:
        """Whether nothing is asked, all workers are back, and models that idle out are gone."""
        stats = [model.stats() for model in self.models.values()]
        is_idle = not any(one.queued or one.in_flight for one in [*stats, self._cached.stats()])
        return (
            is_idle
            and all(one.workers_ready == one.workers for one in stats)
            and len(worker_processes()) == sum(one.workers for one in stats)
        )


class _Source:
    """Records, and the file that they lie in."""

    def __init__(self, records: Any, path: Path | None = None) -> None:
        self._records, self._path = records, path

    def __enter__(self) -> Any:
        return self._records

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            self._path.unlink()


def _text_of(record: dict[str, Any]) -> str:
    return record["text"]  # type: ignore[no-any-return]


def _number_of(record: dict[str, Any]) -> int:
    return record["number"]  # type: ignore[no-any-return]


async def _as_they_come(records: list[Any]) -> AsyncIterator[Any]:
    for record in records:
        await checkpoint()
        yield record


async def _noticed(texts: Iterator[str], closed: anyio.Event) -> Any:
    try:
        for text in texts:
            yield text
    finally:
        closed.set()


# ---------------------------------------------------------------- the program


async def live(folder: Path, seconds: float, round_seconds: float, seed: int) -> None:
    """Rounds, and a rest after each."""
    books = Books(folder, seed)
    tasks = len(anyio.get_running_tasks())
    async with (
        WorkerPool(workers=1, interactive_workers=1) as pool,
        TextEmbedding(folder / "steady", pool=pool) as steady,
        TextEmbedding(folder / "steady", pool=pool, cache=VectorCacheFile(folder / "vectors", CACHE_BYTES)) as cached,
    ):
        spared = {worker.pid for worker in worker_processes()}
        async with TextEmbedding(folder / "mortal", workers=2, interactive_workers=0) as mortal:
            life = Life(books, steady, cached, mortal)
            life.spared = spared
            turns = {life.ingest_turn: 2, life.query_turn: 3, life.leaving_turn: 2, life.idle_turn: 2}
            turns |= {life.sync_turn: 1, life.opening_turn: 1, life.killing_turn: 1}
            turns |= {life.failing_ingest_turn: 1, life.resumed_ingest_turn: 1, life.chunks_turn: 1}
            ends = perf_counter() + seconds
            while perf_counter() < ends:
                await books.play(turns, round_seconds)
                if not await until_rest(life.is_at_rest):
                    books.note(f"no rest: {[model.stats() for model in life.models.values()]}, {worker_processes()}")
                tell(books, usage(spared, [Path(gettempdir())]))
            books.counts["vectors from the cache"] = cached.stats().cache_hits
            books.counts["computed once for several"] = steady.stats().deduplicated + mortal.stats().deduplicated
    await until_rest(lambda: not worker_processes())
    if left := worker_processes():
        books.note(f"processes left: {left}")
    books.expect("tasks left", len(anyio.get_running_tasks()) <= tasks, True)
    tell(books, None)


def tell(books: Books, held: dict[str, float] | None) -> None:
    """A line of JSON."""
    print(json.dumps(books.told() | {"held": held}), flush=True)


if __name__ == "__main__":
    backend, folder, seconds, round_seconds, seed = sys.argv[1:]
    anyio.run(partial(live, Path(folder), float(seconds), float(round_seconds), int(seed)), backend=backend)
