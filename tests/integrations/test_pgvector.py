"""The recipe `examples/store_pgvector.py`, by both drivers, on a real PostgreSQL with pgvector."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import psycopg
import pytest

from asyncembed import TextEmbedding
from asyncembed.testing import fake_model
from examples import store_pgvector as example
from examples.quickstart import Document, stdlib_docstrings
from tests.support import snippets
from tests.support.killing import kill
from tests.support.servers import postgres_server
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.posix]

ROOT = Path(__file__).parents[2]
DIM = 32
every_driver = pytest.mark.parametrize("driver", example.DRIVERS)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Neither driver knows trio."""
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[Mapping[str, str]]:
    with postgres_server() as variables:
        yield variables


@pytest.fixture
def variables(server: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """Those of an empty database, as this process and those that it starts have them."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    with psycopg.connect(autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS test WITH (FORCE)")
        connection.execute("CREATE DATABASE test")
    monkeypatch.setenv("PGDATABASE", "test")
    return server


@asynccontextmanager
async def opened(driver: str, **options: Any) -> AsyncIterator[tuple[TextEmbedding[Any], example.Store]]:
    async with TextEmbedding(fake_model(dim=DIM), **options) as model:
        store = await example.DRIVERS[driver]("")
        try:
            await store.prepare(model.embedding_size)
            yield model, store
        finally:
            await store.close()


def rows(what: str = "name, text") -> list[Any]:
    with psycopg.connect() as connection:
        return connection.execute(f"SELECT {what} FROM documents ORDER BY name".encode()).fetchall()


def command(driver: str, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "examples.store_pgvector", "--driver", driver, *arguments]


@pytest.mark.timeout(60)  # the real model, three times
@every_driver
def test_the_program_finds_what_it_has_stored_and_stores_it_once(driver: str, variables: Mapping[str, str]) -> None:
    name, text = next(iter(stdlib_docstrings()))
    query = text.partition("\n")[0]
    for _ in range(2):
        done = subprocess.run(
            command(driver, "-n", "30", "--workers", "0", query),
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        assert re.match(r"30 docstrings, \d+ in a second\n", done.stdout)
        hits = re.findall(r"^  (\d\.\d\d)  ([\w.]+)$", done.stdout, re.MULTILINE)
        assert [float(score) for score, _ in hits] == sorted([float(score) for score, _ in hits], reverse=True)
        assert len(hits) == 3
        assert name in [hit for _, hit in hits]
        assert len(rows()) == 30


@every_driver
async def test_vectors_are_stored_as_the_model_gives_them(driver: str, variables: Mapping[str, str]) -> None:
    documents = [Document(f"{number:03}", f"text number {number}") for number in range(300)]
    async with opened(driver) as (model, store):
        done = await example.ingest(model, store, documents)
        vectors = await model.embed_documents([document.text for document in documents])
        ((score, name),) = await store.search(vectors[7], 1)
    assert done.done == 300
    stored = rows("name, text, embedding::text")
    assert [(name, text) for name, text, _ in stored] == documents
    np.testing.assert_array_equal(np.array([eval(text) for *_, text in stored], np.float32), vectors)
    assert score == pytest.approx(1.0)
    assert name == "007"


@every_driver
async def test_the_later_of_two_documents_of_a_name_counts(
    driver: str, variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one batch, and in two."""
    monkeypatch.setattr(example, "BATCH_ROWS", 4)
    documents = [Document(name, f"{name} {number}") for number, name in enumerate("aabacdefab")]
    async with opened(driver) as (model, store):
        await example.ingest(model, store, documents)
        expected = await model.embed_documents(["a 8", "b 9"])
    assert rows() == [("a", "a 8"), ("b", "b 9"), ("c", "c 4"), ("d", "d 5"), ("e", "e 6"), ("f", "f 7")]
    stored = [np.array(eval(text), np.float32) for (text,) in rows("embedding::text")[:2]]
    np.testing.assert_array_equal(stored, expected)


@every_driver
async def test_a_text_that_the_database_refuses_costs_itself_alone(
    driver: str, variables: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [
        Document("a", "fine"),
        Document("b", "no\0t"),
        Document("c", "half \ud800"),
        Document("d", "fine, too"),
        Document("e\ud800", "fine, but for its name"),
        Document("f" * (example.LONGEST_NAME + 1), "likewise"),
        Document("g\0", "likewise"),
        Document(7, "likewise"),  # type: ignore[arg-type]  # as a record of a file may have it
        Document("h'; DROP TABLE documents; --", "\\N\t\\."),
    ]
    async with opened(driver) as (model, store):
        done = await example.ingest(model, store, documents)
    assert (done.done, done.failed) == (3, 6)
    assert rows() == [tuple(documents[place]) for place in (0, 3, 8)]
    said = re.findall("^left out: '?(.).*: input (.)", capsys.readouterr().out, re.MULTILINE)
    assert said == [("b", "1"), ("c", "2"), ("e", "4"), ("f", "5"), ("g", "6"), ("7", "7")]


def stores_wait() -> bool:
    """Whether an upsert waits for the table."""
    with psycopg.connect() as connection:
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%INSERT INTO doc%'"
        )
        (count,) = connection.execute(query).fetchone() or (0,)
    return bool(count)


@every_driver
async def test_a_database_that_is_slow_slows_the_source(driver: str, variables: Mapping[str, str]) -> None:
    count = 0

    def source() -> Iterator[Document]:
        nonlocal count
        for count in range(1, 3001):
            yield Document(str(count), f"text {count}")

    async with opened(driver, max_in_flight=64) as (model, store):
        with psycopg.connect() as other:
            other.execute("LOCK TABLE documents IN SHARE MODE")
            async with anyio.create_task_group() as group:
                group.start_soon(example.ingest, model, store, source())
                await until(stores_wait)
                await until(lambda: model.stats().queued == model.stats().in_flight == 0)
                assert example.BATCH_ROWS <= count <= example.BATCH_ROWS + 64 + 1
                other.rollback()
    assert count == len(rows()) == 3000


@pytest.mark.timeout(60)  # two whole programs
@every_driver
async def test_an_ingest_that_is_killed_leaves_no_part_of_a_batch_and_the_next_one_stores_all(
    driver: str, variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCEMBED_FAKE", "1")
    store = await example.DRIVERS[driver]("")
    await store.prepare(384)
    await store.close()
    with psycopg.connect() as other:
        other.execute("LOCK TABLE documents IN SHARE MODE")
        async with await anyio.open_process(
            command(driver, "-n", "600"), cwd=ROOT, stderr=subprocess.DEVNULL
        ) as program:
            await until(lambda: stores_wait() or program.returncode is not None)
            assert program.returncode is None
            kill(program.pid)
        other.rollback()
    await until(lambda: not stores_wait())
    assert rows() == []
    await anyio.run_process(command(driver, "-n", "600"), cwd=ROOT)
    assert len(rows()) == 600


async def test_the_snippet_of_the_readme_runs(variables: Mapping[str, str]) -> None:
    snippet = snippets.of_integration((ROOT / "README.md").read_text(encoding="utf-8"), "pgvector")
    async with opened("psycopg") as (model, store):
        names = {"model": model, "store": store, "documents": [Document("a", "b")]}
        await eval(snippet.removeprefix("await "), vars(example) | names)
    assert rows() == [("a", "b")]
