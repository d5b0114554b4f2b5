"""The recipe `examples/redis_streams.py`: real programs, some of them killed, at a real Redis server."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis import Redis, asyncio

from asyncembed import TextEmbedding
from asyncembed.testing import fake_model
from examples import redis_streams as example
from tests.support import snippets
from tests.support.killing import kill
from tests.support.servers import redis_server
from tests.support.waiting import until, worker_processes

pytestmark = [pytest.mark.slow, pytest.mark.posix, pytest.mark.timeout(60)]

ROOT = Path(__file__).parents[2]
STREAM, GROUP, BROKEN = example.STREAM, example.GROUP, example.BROKEN

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Redis' client does not know trio."""
    return "asyncio"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with redis_server() as url:
        yield url


@pytest.fixture
def redis(url: str) -> Iterator[Any]:
    """A client of an empty server."""
    with Redis.from_url(url, decode_responses=True) as client:
        client.flushall()
        client.config_resetstat()
        yield client


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "records.db"
    example.open_database(path).close()
    return path


@pytest.fixture
def start(url: str, redis: Any, database: Path) -> Iterator[Start]:
    """Starts a consumer, which has a fake model and is one of the group when this returns."""
    programs: list[subprocess.Popen[str]] = []

    def start(name: str, *options: str, claim_after: float = 30, workers: int = 0) -> subprocess.Popen[str]:
        arguments = ["--redis", url, "--name", name, "--claim-after", str(claim_after), "--workers", str(workers)]
        programs.append(
            subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "examples.redis_streams", str(database), *arguments, *options],
                cwd=ROOT,
                env=os.environ | {"ASYNCEMBED_FAKE": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
            )
        )
        return programs[-1]

    yield start
    for program in programs:
        program.kill()
        program.communicate()


def add(redis: Any, *names: object, text: str = "some words") -> list[str]:
    return [redis.xadd(STREAM, {"id": str(name), "text": f"{text} {name}"}) for name in names]


def stored(database: Path) -> dict[str, str]:
    with closing(sqlite3.connect(database)) as connection:
        return dict(connection.execute("SELECT id, text FROM records"))


def has_stored(database: Path, count: int) -> bool:
    return len(stored(database)) >= count


def pending(redis: Any) -> dict[str, int]:
    """How many records each consumer has been given and has not acknowledged."""
    if not redis.exists(STREAM) or not redis.xinfo_groups(STREAM):
        return {}
    return {one["name"]: one["pending"] for one in redis.xinfo_consumers(STREAM, GROUP)}


def calls(redis: Any, command: str) -> int:
    return int(redis.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """While the block runs, no consumer can store anything."""
    with closing(sqlite3.connect(database, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def finish(program: subprocess.Popen[str]) -> str:
    output, errors = program.communicate(timeout=40)
    assert program.returncode == 0, errors
    return output


async def test_it_stores_what_is_there_and_ends(redis: Any, start: Start, database: Path) -> None:
    program = start("a", "--sample", "300", "--until-empty")
    assert finish(program) == f"300 records in {database}, 0 broken ones in the stream {BROKEN}\n"
    assert len(stored(database)) == 300
    assert pending(redis) == {}  # and it has left the group


async def test_a_record_is_not_held_back_until_others_come(redis: Any, start: Start, database: Path) -> None:
    start("a")
    for count in (1, 2):
        add(redis, count)
        await until(partial(has_stored, database, count))
        await until(lambda: pending(redis) == {"a": 0})


async def test_two_consumers_share_what_comes_in_and_each_record_is_computed_once(
    redis: Any, start: Start, database: Path
) -> None:
    programs = [start("a"), start("b")]
    await until(lambda: redis.info("clients")["blocked_clients"] == 2)  # both wait for what comes
    for number in range(0, 300, 10):
        add(redis, *range(number, number + 10))
    await until(lambda: len(stored(database)) == 300)
    for program in programs:
        program.terminate()
    counts = [int(finish(program).split()[0]) for program in programs]
    assert sum(counts) == 300
    assert min(counts) > 0


async def test_a_consumer_that_is_killed_loses_nothing(redis: Any, start: Start, database: Path) -> None:
    """With records that it has stored, has been given, and has left in the stream; it has workers, which go with it."""
    program = start("a", workers=1)
    add(redis, *range(50))
    await until(lambda: len(stored(database)) == 50)
    workers = worker_processes(program.pid)
    with locked(database):
        add(redis, *range(50, 100))
        await until(lambda: pending(redis) == {"a": 50})
        kill(program.pid)
        program.wait()
    add(redis, *range(100, 120))
    assert len(stored(database)) == 50
    finish(start("b", "--until-empty", claim_after=0.5))
    assert stored(database) == {str(number): f"some words {number}" for number in range(120)}
    assert pending(redis) == {"a": 0}
    assert redis.xlen(BROKEN) == 0
    await until(lambda: not any(worker.is_running() for worker in workers))


async def test_nothing_is_lost_whatever_consumers_do_when_they_are_killed(
    redis: Any, start: Start, database: Path
) -> None:
    programs = [start(name, claim_after=1) for name in "abc"]
    await until(lambda: pending(redis).keys() == {"a", "b", "c"})
    for number, program in enumerate(programs):
        add(redis, *range(1000 * number, 1000 * (number + 1)))
        await until(partial(has_stored, database, 900 * number + 1))
        kill(program.pid)
        program.wait()
    finish(start("last", "--until-empty", claim_after=1))
    assert stored(database) == {str(number): f"some words {number}" for number in range(3000)}
    assert sum(pending(redis).values()) == 0
    assert redis.xlen(BROKEN) == 0


async def test_a_broken_record_goes_into_a_stream_of_its_own_and_the_rest_goes_on(
    redis: Any, start: Start, database: Path
) -> None:
    add(redis, "fine")
    no_text = redis.xadd(STREAM, {"id": "no text", "text": " "})
    no_fields = redis.xadd(STREAM, {"titel": "a"})
    no_utf8 = redis.xadd(STREAM, {"id": "no text either", "text": b"\xff\xfe"})
    start("a")  # which has no other records to go with them
    add(redis, "fine, too")
    await until(lambda: stored(database).keys() == {"fine", "fine, too"})
    await until(lambda: pending(redis) == {"a": 0})
    redis.connection_pool.disconnect()
    with Redis.from_url(f"unix://{redis.connection_pool.connection_kwargs['path']}") as as_bytes:
        broken: Any = [fields for _, fields in as_bytes.xrange(BROKEN)]
    assert [fields[b"entry"].decode() for fields in broken] == [no_text, no_fields, no_utf8]
    assert broken[2][b"text"] == b"\xff\xfe"
    assert b"the id or the text is empty" in broken[0][b"error"]
    assert b"no field 'id' that is UTF-8" in broken[1][b"error"]
    assert b"no field 'text' that is UTF-8" in broken[2][b"error"]


async def test_broken_records_do_not_wait_for_good_ones(redis: Any, start: Start) -> None:
    start("a")
    redis.xadd(STREAM, {"id": "no text"})
    await until(lambda: redis.xlen(BROKEN) == 1 and pending(redis) == {"a": 0})


async def test_a_record_that_consumers_have_died_of_is_taken_for_broken(
    redis: Any, start: Start, database: Path
) -> None:
    redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    (deadly, unlucky) = add(redis, "deadly", "unlucky")
    redis.xreadgroup(GROUP, "dead", {STREAM: ">"})
    redis.xclaim(STREAM, GROUP, "dead", 0, [deadly], retrycount=example.MAX_DELIVERIES)
    redis.xclaim(STREAM, GROUP, "dead", 0, [unlucky], retrycount=example.MAX_DELIVERIES - 1)
    finish(start("a", "--until-empty", claim_after=0.1))
    assert stored(database).keys() == {"unlucky"}
    ((_, fields),) = redis.xrange(BROKEN)
    assert (fields["id"], fields["entry"]) == ("deadly", deadly)
    assert fields["error"] == "not stored in 5 deliveries"
    assert pending(redis) == {"dead": 0}


async def test_a_record_that_was_trimmed_away_while_a_dead_consumer_held_it_is_no_trouble(
    redis: Any, start: Start, database: Path
) -> None:
    redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    add(redis, "trimmed", "kept")
    redis.xreadgroup(GROUP, "dead", {STREAM: ">"})
    redis.xtrim(STREAM, maxlen=1, approximate=False)
    finish(start("a", "--until-empty", claim_after=0.1))
    assert stored(database).keys() == {"kept"}
    assert pending(redis) == {"dead": 0}


async def test_a_consumer_that_waits_for_its_database_is_not_taken_for_dead(
    redis: Any, start: Start, database: Path
) -> None:
    start("slow", claim_after=5)
    await until(lambda: pending(redis) == {"slow": 0})
    with locked(database):
        entries = add(redis, *range(20))
        await until(lambda: pending(redis) == {"slow": 20})
        start("other", claim_after=5)
        # Since the records were given away, others have looked for what is left behind for longer than it takes.
        await until(lambda: calls(redis, "xclaim") >= 6)
        held = redis.xpending_range(STREAM, GROUP, "-", "+", 100)
        assert calls(redis, "xautoclaim") > 5
        assert [one["message_id"] for one in held] == entries
        assert {(one["consumer"], one["times_delivered"]) for one in held} == {("slow", 1)}
    await until(lambda: len(stored(database)) == 20)


async def test_a_record_is_not_replaced_by_an_earlier_one_that_is_delivered_late(
    redis: Any, start: Start, database: Path
) -> None:
    redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    add(redis, "a", text="old")
    redis.xreadgroup(GROUP, "dead", {STREAM: ">"})
    add(redis, "a", text="new")
    start("b", claim_after=2)
    await until(lambda: stored(database) == {"a": "new a"})
    await until(lambda: pending(redis) == {"b": 0, "dead": 0})
    assert stored(database) == {"a": "new a"}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
async def test_a_consumer_that_is_told_to_stop_finishes_what_it_holds(
    name: str, redis: Any, start: Start, database: Path
) -> None:
    program = start("a")
    with locked(database):
        add(redis, *range(30))
        await until(lambda: pending(redis) == {"a": 30})
        program.send_signal(getattr(signal, name))
    assert finish(program).startswith("30 records in ")
    assert len(stored(database)) == 30
    assert pending(redis) == {}


async def test_the_snippet_of_the_readme_runs(url: str, redis: Any, database: Path) -> None:
    snippet = snippets.of_integration((ROOT / "README.md").read_text(encoding="utf-8"), "redis_streams")
    add(redis, "a")
    async with TextEmbedding(fake_model()) as model, asyncio.Redis.from_url(url) as client:
        consumer = example.Consumer(client, "a", claim_after=30, until_empty=True)
        await consumer.join()
        with closing(example.open_database(database)) as connection:
            names = {"model": model, "consumer": consumer, "database": connection}
            await eval(snippet.removeprefix("await "), vars(example) | names)
    assert stored(database) == {"a": "some words a"}
