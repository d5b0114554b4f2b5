"""The bar of a stream: in a terminal, in a log, and where there is nothing to write to. Nothing of it stays."""

import io
import os
import re
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, TextIO

import anyio
import pytest

from asyncembed import bars
from asyncembed.embedders.text import TextEmbedding
from asyncembed.errors import InputError, OptionError
from tests.support import posix
from tests.support.encoders import ECHO
from tests.support.waiting import nothing_left_behind, until


@pytest.fixture(scope="module")
async def model(anyio_backend: str) -> AsyncGenerator[TextEmbedding]:
    async with TextEmbedding(ECHO, workers=0) as model:
        yield model


def texts(count: int) -> list[str]:
    return [f"#{i}" for i in range(count)]


class Output:
    """Where stderr goes, once a test says so: pytest puts its own there before each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file: TextIO
        self._monkeypatch = monkeypatch

    def use(self) -> None:
        self._monkeypatch.setattr(sys, "stderr", self.file)


class Log(Output):
    """A file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        super().__init__(monkeypatch)
        self._path = path
        self.file = path.open("w", encoding="utf-8")

    def text(self) -> str:
        return self._path.read_text(encoding="utf-8")


class Terminal(Output):
    """A terminal of 80 columns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.reader, end = posix.open_terminal(columns=80)
        self.file = os.fdopen(end, "w", encoding="utf-8")

    def text(self, end: str = "\n") -> str:
        """What has been drawn since the last look, when it holds `end`."""
        drawn = b""
        while end.encode() not in drawn:
            drawn += os.read(self.reader, 1_000_000)
        return drawn.decode()


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    log = Log(monkeypatch, tmp_path / "log.txt")
    with log.file:
        yield log


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    terminal = Terminal(monkeypatch)
    with terminal.file:
        yield terminal
    os.close(terminal.reader)


# ---------------------------------------------------------------- what is seen


@pytest.mark.posix
async def test_a_terminal_has_one_bar_that_is_complete_when_the_loop_ends(
    terminal: Terminal, model: TextEmbedding
) -> None:
    terminal.use()
    async for _ in model.embed(texts(300), progress=True):
        pass
    drawn = terminal.text()
    assert drawn.count("\n") == 1
    assert drawn.endswith("\n")
    last = drawn.split("\r")[-2]
    assert last.startswith("echo: 100%|█")
    assert " 300/300 [" in last
    assert len(last) <= 80


@pytest.mark.posix
async def test_a_bar_moves_while_results_are_taken(
    terminal: Terminal, model: TextEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.use()
    monkeypatch.setattr(bars, "REFRESH_SECONDS", 0.001)
    async with model.embed(texts(10), progress=True) as stream:
        for taken in (1, 2, 3):
            await anext(stream)
            await anyio.to_thread.run_sync(terminal.text, f" {taken}/10 [")


def on_screen(drawn: str) -> list[str]:
    """The lines that a terminal shows in the end."""
    lines, row, column = [""], 0, 0
    for part in re.findall("\r|\n|\x1b\\[A|[^\r\n\x1b]+", drawn):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[A":
            row -= 1
        else:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + part + line[column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines if line.strip()]


@pytest.mark.posix
async def test_bars_of_several_streams_leave_a_line_each(
    terminal: Terminal, model: TextEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one may end first: nothing of the others stays where they were."""
    terminal.use()
    monkeypatch.setattr(bars, "REFRESH_SECONDS", 0.001)
    drawn = ""
    streams = []
    for count in (10, 20, 30):
        streams.append(model.embed(texts(count), progress=True))
        await anext(streams[-1])
        drawn += await anyio.to_thread.run_sync(terminal.text, f" 1/{count} [")
    for stream, count in zip(streams, (10, 20, 30), strict=True):
        await stream.collect()
        drawn += await anyio.to_thread.run_sync(terminal.text, f" {count}/{count} [")
    terminal.file.write("END")
    terminal.file.flush()
    lines = on_screen(drawn + await anyio.to_thread.run_sync(terminal.text, "END"))
    assert [line.partition("[")[0].rpartition("|")[2] for line in lines] == [" 10/10 ", " 20/20 ", " 30/30 ", "END"]


@pytest.mark.posix
async def test_a_source_that_does_not_know_its_length_is_counted(terminal: Terminal, model: TextEmbedding) -> None:
    terminal.use()
    await model.embed(iter(texts(50)), progress=True).collect()
    assert "50 inputs [" in terminal.text()
    await model.embed((text for text in texts(50)), progress=True, total=100).collect()
    assert " 50/100 [" in terminal.text()


@pytest.mark.posix
async def test_records_that_failed_are_through_too_and_are_counted(terminal: Terminal, model: TextEmbedding) -> None:
    terminal.use()
    await model.embed(["#0", "bad", "#2", "bad"], progress=True, on_error="skip").collect()
    drawn = terminal.text()
    assert " 4/4 [" in drawn
    assert "2 failed]" in drawn


@pytest.mark.parametrize("way", ["one by one", "collect", "batches", "some"])
async def test_a_log_has_one_line_of_a_short_stream_whichever_way_it_is_taken(
    way: str, log: Log, model: TextEmbedding
) -> None:
    log.use()
    stream = model.embed(texts(300), progress=True)
    match way:
        case "one by one":
            async for _ in stream:
                pass
        case "collect":
            await stream.collect()
        case "batches":
            async for _ in stream.with_inputs().batches(64, max_wait=1):
                pass
        case _:
            while await stream.take_some():
                pass
    (line,) = log.text().splitlines()
    assert line.startswith("echo: 100% 300/300 [")
    assert "\r" not in log.text()


async def test_a_log_has_a_line_now_and_then(log: Log, model: TextEmbedding, monkeypatch: pytest.MonkeyPatch) -> None:
    log.use()
    monkeypatch.setattr(bars, "REFRESH_SECONDS", 0.001)
    monkeypatch.setattr(bars, "LINE_SECONDS", 0.002)
    async with model.embed(texts(8), progress=True) as stream:
        for taken in range(1, 5):
            await anext(stream)
            await until(lambda taken=taken: f" {taken}/8 [" in log.text())  # type: ignore[misc]
    lines = log.text().split("\n")
    assert lines.pop() == ""
    assert all(line.startswith("echo: ") and line.endswith("]") for line in lines)


async def test_a_stream_that_is_not_told_to_shows_nothing(log: Log, model: TextEmbedding) -> None:
    log.use()
    threads = threading.active_count()
    stream = model.embed(texts(3))
    await anext(stream)
    assert threading.active_count() <= threads
    await stream.collect()
    await model.embed(texts(3), progress=False, total=3).collect()
    unread = model.embed(texts(3), progress=True)
    await unread.aclose()
    assert log.text() == ""


class _Full(io.StringIO):
    """A file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def _closed() -> TextIO:
    file = io.StringIO()
    file.close()
    return file


@pytest.mark.slow
@pytest.mark.parametrize("stderr", [None, _closed(), _Full()], ids=["none", "closed", "full"])
async def test_a_stream_goes_its_way_where_nothing_can_be_written(
    stderr: TextIO | None, model: TextEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    async with nothing_left_behind():
        assert len(await model.embed(texts(30), progress=True).collect()) == 30


@pytest.mark.slow
@pytest.mark.posix
async def test_a_halted_terminal_halts_no_stream(terminal: Terminal, model: TextEmbedding) -> None:
    """Its user has pressed Ctrl-S; what remains to be drawn is drawn when it goes on."""
    terminal.use()
    posix.let_output_flow(terminal.file.fileno(), flows=False)
    try:
        assert len(await model.embed(texts(300), progress=True).collect()) == 300
    finally:
        posix.let_output_flow(terminal.file.fileno(), flows=True)
    await until(lambda: "asyncembed-progress" not in {thread.name for thread in threading.enumerate()})
    assert " 300/300 [" in terminal.text()


# ---------------------------------------------------------------- every end


@pytest.mark.slow
@pytest.mark.parametrize("way", ["end", "break", "error", "own error", "cancel", "aclose", "drop", "close"])
async def test_a_bar_ends_with_its_stream_and_leaves_nothing(way: str, log: Log) -> None:
    log.use()
    async with nothing_left_behind():
        async with TextEmbedding(ECHO, workers=0) as model:
            records = [*texts(5), "bad", *texts(300)]
            on_error: Any = "raise" if way == "error" else "skip"
            stream: Any = model.embed(records, progress=True, on_error=on_error)
            match way:
                case "end":
                    await stream.collect()
                case "break":
                    async for _ in stream:
                        break
                case "error":
                    with pytest.raises(InputError):
                        await stream.collect()
                case "own error":
                    with pytest.raises(LookupError):
                        async for _ in stream:
                            raise LookupError
                case "cancel":
                    with anyio.CancelScope() as scope:
                        await anext(stream)
                        scope.cancel()
                        await stream.collect()
                case "aclose":
                    await anext(stream)
                    await stream.aclose()
                case _:
                    await anext(stream)
            if way != "close":
                del stream
                await until(lambda: log.text() != "")
    (line,) = log.text().splitlines()
    expected = {"end": " 306/306 [", "error": " 6/306 ["}
    assert expected.get(way, " 1/306 [") in line


@pytest.mark.parametrize("way", ["error", "aclose"])
async def test_a_bar_is_complete_before_anything_else_is_written(way: str, log: Log, model: TextEmbedding) -> None:
    """A traceback, or what the program prints next, comes below it."""
    log.use()
    if way == "error":
        with pytest.raises(InputError):
            async for _ in model.embed(["#0", "bad"], progress=True):
                pass
    else:
        async with model.embed(texts(30), progress=True) as stream:
            await anext(stream)
    assert log.text().endswith("]\n")


@pytest.mark.parametrize("keywords", [{"progress": "yes"}, {"progress": 100}, {"total": -1}, {"total": "all"}])
async def test_what_a_bar_is_told_is_checked(keywords: dict[str, Any], model: TextEmbedding) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(keywords))} must be"):
        model.embed(texts(3), **keywords)
