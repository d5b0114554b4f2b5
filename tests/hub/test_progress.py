"""How a download goes, told to a callback or drawn in a terminal."""

import os
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

import anyio
import pytest

from asyncembed.catalogue.spec import HubOrigin
from asyncembed.hub import (
    BytesReceived,
    DownloadFinished,
    DownloadStarted,
    FileFinished,
    ProgressEvent,
)
from tests.hub.calls import change_policy, download_files
from tests.hub.server import HubServer, Repo
from tests.support import posix

pytestmark = pytest.mark.slow

FILES: dict[str, bytes | memoryview] = {"config.json": b"{}", "model.onnx": bytes(300_000), "empty.txt": b""}


@pytest.fixture(autouse=True)
def repo(hub: HubServer) -> None:
    hub.repos["org/model"] = Repo(FILES, large=frozenset({"model.onnx"}))


async def test_a_callback_gets_typed_events_in_their_order() -> None:
    events: list[ProgressEvent] = []
    await download_files([HubOrigin("org/model")], patterns=["*"], progress=events.append)
    assert events[0] == DownloadStarted("org/model", 3, sum(map(len, FILES.values())))
    assert events[-1] == DownloadFinished("org/model")
    assert {event.path: event.size_bytes for event in events if isinstance(event, FileFinished)} == {
        name: len(content) for name, content in FILES.items()
    }
    received = [event.received_bytes for event in events if isinstance(event, BytesReceived) if "onnx" in event.path]
    assert received[-1] == len(FILES["model.onnx"])


async def test_nothing_is_reported_where_nothing_is_downloaded() -> None:
    await download_files([HubOrigin("org/model")], patterns=["*"], progress=False)
    events: list[ProgressEvent] = []
    await download_files([HubOrigin("org/model")], patterns=["*"], progress=events.append)
    assert events == []


@pytest.mark.parametrize("kind", [DownloadStarted, BytesReceived, FileFinished, DownloadFinished])
async def test_what_a_callback_raises_ends_the_download(kind: type[ProgressEvent]) -> None:
    def object_to(event: ProgressEvent) -> None:
        if isinstance(event, kind):
            raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        await download_files([HubOrigin("org/model")], patterns=["*"], progress=object_to)


@pytest.fixture
def halted_terminal() -> Iterator[TextIO]:
    """A terminal whose user pressed Ctrl-S."""
    reader, end = posix.open_terminal()
    posix.let_output_flow(end, flows=False)
    with os.fdopen(end, "w", encoding="utf-8") as terminal:
        yield terminal
    os.close(reader)


@pytest.mark.posix
async def test_a_halted_terminal_halts_no_event_loop(halted_terminal: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the download happens, while not one character of its bar can be written."""
    monkeypatch.setattr(sys, "stderr", halted_terminal)
    change_policy(monkeypatch, bar_grace_seconds=0.1)
    with anyio.fail_after(30):
        snapshot = await download_files([HubOrigin("org/model")], patterns=["*"])
    assert (snapshot / "model.onnx").stat().st_size == 300_000
    (drawing,) = (thread for thread in threading.enumerate() if thread.name == "asyncembed-progress")
    posix.let_output_flow(halted_terminal.fileno(), flows=True)
    await anyio.to_thread.run_sync(drawing.join)
