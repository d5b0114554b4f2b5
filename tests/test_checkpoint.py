"""How far an ingest is, whatever happens to it."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from random import Random
from textwrap import dedent
from time import sleep
from typing import Any, cast

import pytest

from asyncembed import Checkpoint, TextEmbedding, sync
from asyncembed.errors import AsyncEmbedError, InputError, OptionError, StateError, UsageError
from asyncembed.testing import fake_model
from tests.support.posix import room_for

RECORDS = [f"record {number}" for number in range(10)]


async def test_the_next_run_goes_on_behind_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "done"
    async with Checkpoint(path) as done:
        assert done.records == 0
        rest = done.rest(iter(RECORDS))
        assert [next(rest) for _ in range(5)] == RECORDS[:5]
        await done.advance(2)
        await done.advance(1)
    async with Checkpoint(path) as done:
        assert done.records == 3
        assert list(done.rest(RECORDS)) == RECORDS[3:]
        await done.advance(7)
    async with Checkpoint(path) as done:
        assert list(done.rest([*RECORDS, "new"])) == ["new"]


async def test_an_async_source_is_gone_on_with_and_closed(tmp_path: Path) -> None:
    closed = []

    async def source() -> AsyncIterator[str]:
        try:
            for record in RECORDS:
                yield record
        finally:
            closed.append(True)

    path = tmp_path / "done"
    async with Checkpoint(path) as done, TextEmbedding(fake_model()) as model:
        async for texts, _ in model.embed(done.rest(source())).with_inputs().batches(4):
            await done.advance(len(texts))
            break
    assert closed
    async with Checkpoint(path) as done:
        assert [record async for record in done.rest(source())] == RECORDS[4:]


async def test_failed_records_count_with_those_that_are_stored_after_them(tmp_path: Path) -> None:
    path = tmp_path / "done"
    records: list[str | InputError] = ["good", InputError("spoilt"), "good", InputError("spoilt")]
    async with Checkpoint(path) as done, TextEmbedding(fake_model()) as model:
        async for _ in model.embed(done.rest(records), on_error=done.skip):
            await done.advance(1)
        assert done.records == 3
        await done.advance(0)
        assert done.records == 4


def test_a_program_without_a_loop_has_the_same(tmp_path: Path) -> None:
    path = tmp_path / "done"
    with sync.Checkpoint(path) as done, sync.TextEmbedding(fake_model()) as model:
        for texts, _ in model.embed(done.rest(RECORDS)).with_inputs().batches(4):
            done.advance(len(texts))
            break
    with sync.Checkpoint(path) as done:
        assert list(done.rest(RECORDS)) == RECORDS[4:]
        done.reach(6)
        done.reach(5)
        assert done.records == 6


@pytest.mark.parametrize(
    "other", [["another", *RECORDS[1:]], RECORDS[1:], RECORDS[:2]], ids=["changed", "shifted", "too short"]
)
async def test_another_source_is_refused(other: list[str], tmp_path: Path) -> None:
    async with Checkpoint(tmp_path / "done", key=str.upper) as done:
        rest = done.rest(RECORDS)
        list(rest)
        await done.advance(3)

    async def slowly() -> AsyncIterator[str]:
        for record in other:
            yield record

    async with Checkpoint(tmp_path / "done", key=str.upper) as done:
        with pytest.raises(OptionError, match="the first 3 records are not those that are done"):
            list(done.rest(other))
    async with Checkpoint(tmp_path / "done", key=str.upper) as done:
        with pytest.raises(OptionError, match="the first 3 records are not those that are done"):
            _ = [record async for record in done.rest(slowly())]


async def test_a_record_without_a_key_fails_alone_and_counts(tmp_path: Path) -> None:
    """What a reader could not read has none, and the next run may name the file otherwise; nor has a dirty record."""

    def records(file: str) -> list[Any]:
        return [
            InputError(f"{file}: line 1"),
            {"id": 1, "text": "one"},
            {"text": "no id"},
            {"id": None, "text": "none"},
        ]

    async def slowly(records: list[Any]) -> AsyncIterator[Any]:
        for record in records:
            yield record

    errors: list[str] = []

    def skip(record: object, error: AsyncEmbedError) -> None:
        done.skip(record, error)  # type: ignore[arg-type]
        errors.append(str(error))

    async with Checkpoint(tmp_path / "done", key=lambda record: record["id"]) as done:
        async with TextEmbedding(fake_model()) as model:
            stream = model.embed(
                done.rest(records("a")), key=lambda record: record["text"], on_error=skip
            ).with_inputs()
            async for rows, _ in stream.batches(4):
                await done.advance(len(rows))
        assert done.records == 4
        assert [error.partition(": ")[2] for error in errors] == [
            "a: line 1",
            "the checkpoint's key= failed: KeyError: 'id'",
            "the checkpoint's key= must give a str or an int, got NoneType",
        ]
    more = [*records("./a"), "more"]
    async with Checkpoint(tmp_path / "done", key=lambda record: record["id"]) as done:
        (kept,) = done.rest(more)
        assert "key= failed: TypeError" in str(kept)
    async with Checkpoint(tmp_path / "done", key=lambda record: record["id"]) as done:
        assert len([record async for record in done.rest(slowly(more))]) == 1
    async with Checkpoint(tmp_path / "done", key=lambda record: record["text"]) as done:
        with pytest.raises(OptionError, match="the first 4 records are not those"):
            list(done.rest(more))


async def test_two_runs_do_not_use_the_same(tmp_path: Path) -> None:
    async with Checkpoint(tmp_path / "done"):
        with pytest.raises(OptionError, match="in use by another run"):
            await Checkpoint(tmp_path / "done").__aenter__()
    async with Checkpoint(tmp_path / "done"):
        pass


@pytest.mark.parametrize(
    "content",
    [
        b"a text",
        b"two\nlines\n",
        b'{"checkpoint": 1}\n{"records": -1, "checksum": 0}\n',
        b'{"checkpoint": 1}\n{"records": true, "checksum": 0}\n',
        b'{"checkpoint": 1}\n{"records": 1}\n',
        b'{"checkpoint": 2}\n{"records": 1, "checksum": 0}\n',
        b'{"checkpoint": 1}\n{"records": 9999999999999999999, "checksum": 0}\n',
        b"[" * 100_000 + b"\n\n",
    ],
)
async def test_what_is_no_checkpoint_is_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "done"
    path.write_bytes(content)
    with pytest.raises(OptionError, match="remove it to begin anew"):
        await Checkpoint(path).__aenter__()
    assert path.read_bytes() == content


@pytest.mark.parametrize("left", [b"", b'{"check', b'{"checkpoint": 1}\n', b'{"checkpoint": 1}\n{"rec'])
async def test_what_a_kill_leaves_of_the_first_lines_is_a_beginning(left: bytes, tmp_path: Path) -> None:
    path = tmp_path / "done"
    path.write_bytes(left)
    async with Checkpoint(path) as done:
        list(done.rest(RECORDS))
        await done.advance(4)
    async with Checkpoint(path) as done:
        assert done.records == 4


async def test_a_line_that_was_not_written_to_its_end_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "done"
    async with Checkpoint(path) as done:
        list(done.rest(RECORDS))
        await done.advance(4)
    with path.open("ab") as file:
        file.write(b'{"records": 7, "check')
    async with Checkpoint(path) as done:
        list(done.rest(RECORDS))
        await done.advance(1)
    async with Checkpoint(path) as done:
        assert done.records == 5


@pytest.mark.posix
async def test_on_a_full_disk_nothing_is_noted_and_it_may_be_said_once_more(tmp_path: Path) -> None:
    path = tmp_path / "done"
    async with Checkpoint(path, key=str) as done:
        for _ in done.rest(["a", "b", "c"]):
            pass
        await done.advance(1)
        done.skip("b", InputError("it fails"))
        with room_for(path.stat().st_size + 7), pytest.raises(OSError, match=re.escape(str(path))):
            await done.advance(1)
        assert done.records == 1
        await done.advance(1)
    async with Checkpoint(path, key=str) as done:
        assert done.records == 3
        assert list(done.rest(["a", "b", "c", "d"])) == ["d"]


async def test_wrong_uses_say_what_to_do(tmp_path: Path) -> None:
    done = Checkpoint(tmp_path / "done")
    for use in (lambda: done.records, lambda: done.rest(RECORDS)):
        with pytest.raises(StateError, match="is not open"):
            use()
    with pytest.raises(StateError, match="is not open"):
        await done.advance(1)
    async with done:
        rest = done.rest(RECORDS)
        with pytest.raises(UsageError, match="one source"):
            done.rest(RECORDS)
        next(rest)
        with pytest.raises(UsageError, match="2 more records are said to be done, of 1 that were read"):
            await done.advance(2)
        for count in (-1, 1.5, True):
            with pytest.raises(OptionError, match="0 or more"):
                await done.advance(count)  # type: ignore[arg-type]
    for path in (tmp_path, tmp_path / "nowhere" / "done"):
        with pytest.raises(OptionError, match="can be no checkpoint"):
            await Checkpoint(path).__aenter__()
    if hasattr(os, "mkfifo"):  # as a device is, and the null one would be deleted
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OptionError, match="can be no checkpoint: it is no file"):
            await Checkpoint(tmp_path / "pipe").__aenter__()
        assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(OptionError, match="at a path"):
        Checkpoint(5)  # type: ignore[arg-type]


INGEST = dedent("""
    import sys
    from asyncembed import sync
    from asyncembed.testing import fake_model

    with sync.Checkpoint("done", key=str) as done, sync.TextEmbedding(fake_model()) as model:
        print("open", flush=True)
        stream = model.embed(done.rest(map(str, range(400)))).with_inputs()
        for texts, _ in stream.batches(7):
            with open("store", "a") as store:
                store.write("".join(f"{text}\\n" for text in texts))
            done.advance(len(texts))
""")


@pytest.mark.posix
@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing_and_double_one_batch_each(tmp_path: Path) -> None:
    random, kills = Random(7), 0
    for attempt in range(6):
        with subprocess.Popen([sys.executable, "-c", INGEST], cwd=tmp_path, stdout=subprocess.PIPE) as run:
            assert run.stdout is not None
            run.stdout.readline()
            if attempt < 5:
                sleep(random.uniform(0, 0.05))
                run.kill()
            kills += run.wait() != 0
    assert run.returncode == 0
    stored = (tmp_path / "store").read_text(encoding="utf-8").splitlines()
    assert list(dict.fromkeys(stored)) == [str(number) for number in range(400)]
    assert len(stored) <= 400 + 7 * kills


def test_a_generator_is_closed_when_nobody_reads_on(tmp_path: Path) -> None:
    source = (record for record in RECORDS)
    with sync.Checkpoint(tmp_path / "done") as done:
        rest = done.rest(source)
        next(rest)
        cast("Generator[str]", rest).close()
    assert list(source) == []
