"""How a download goes: typed events for a callback, and the bar that is shown without one."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
from anyio import to_thread

if TYPE_CHECKING:
    from tqdm import tqdm


CLOSE_GRACE_SECONDS = 2.0
"""How long the end of a download waits for a terminal that takes no output."""


@dataclass(frozen=True, slots=True)
class DownloadStarted:
    """Files are missing and will be downloaded. `total_bytes` is None where the server does not say."""

    source: str
    file_count: int
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class BytesReceived:
    """`received_bytes` of the file at `path` are on disk now; it falls when a file must be started anew."""

    source: str
    path: str
    received_bytes: int
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class FileFinished:
    """The file at `path` is verified and in its place."""

    source: str
    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DownloadFinished:
    """All files of `source` are in their place."""

    source: str


ProgressEvent: TypeAlias = DownloadStarted | BytesReceived | FileFinished | DownloadFinished
Reporter: TypeAlias = Callable[[ProgressEvent], None]
Progress: TypeAlias = bool | Reporter | None
"""A callback for the events; None or True: a bar, where one can be seen; False: nothing.

The callback runs in the event loop: it must return at once. What it raises ends the download.
"""


class CallbackFailedError(Exception):
    """What the caller's callback raised, on its way to the caller: no failure of a source or a disk, whatever it is."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class ProgressReport:
    """Hands events to the callback, or to a thread that draws one bar per download. Leaving it ends the bar."""

    def __init__(self, progress: Progress) -> None:
        self._callback = progress if callable(progress) else None
        self._shows_bar = progress is None or progress is True
        self._drawing: _DrawingThread | None = None

    async def __aenter__(self) -> "ProgressReport":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._drawing is not None:
            self._drawing.events.put(None)
            with anyio.move_on_after(CLOSE_GRACE_SECONDS, shield=True):
                limiter = anyio.CapacityLimiter(1)
                await to_thread.run_sync(self._drawing.join, abandon_on_cancel=True, limiter=limiter)

    def __call__(self, event: ProgressEvent) -> None:
        """Report one event.

        Raises:
            CallbackFailedError: The callback raised.
        """
        if self._callback is not None:
            try:
                self._callback(event)
            except Exception as error:
                raise CallbackFailedError(error) from error
        elif self._shows_bar:
            if self._drawing is None:
                self._drawing = _DrawingThread()
                self._drawing.start()
            self._drawing.events.put(event)


class _DrawingThread(threading.Thread):
    """Draws the bars. A terminal may be slow, or halted by its user (Ctrl-S): neither may halt the event loop."""

    def __init__(self) -> None:
        super().__init__(name="asyncembed-progress", daemon=True)
        self.events: SimpleQueue[ProgressEvent | None] = SimpleQueue()
        self._bar: tqdm[Any] | None = None
        self._received: dict[str, int] = {}

    def run(self) -> None:
        """Draw until None comes."""
        while (event := self.events.get()) is not None:
            self._draw(event)
        self._close()

    def _draw(self, event: ProgressEvent) -> None:
        match event:
            case DownloadStarted(source, _, total_bytes):
                self._close()
                self._received.clear()
                self._bar = _open_bar(source, total_bytes)
            case BytesReceived(_, path, received_bytes) if self._bar is not None:
                self._bar.update(received_bytes - self._received.get(path, 0))
                self._received[path] = received_bytes
            case FileFinished(_, path, size_bytes) if self._bar is not None:
                self._bar.update(size_bytes - self._received.get(path, 0))
                self._received[path] = size_bytes
            case DownloadFinished():
                self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _open_bar(source: str, total_bytes: int | None) -> "tqdm[Any]":
    from huggingface_hub.utils import are_progress_bars_disabled

    return _bar_class()(
        total=total_bytes,
        desc=source,
        unit="B",
        unit_scale=True,
        # None: only where the output is a terminal.
        disable=True if are_progress_bars_disabled() else None,
    )


@cache
def _bar_class() -> "type[tqdm[Any]]":
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        # tqdm's own lock fixes the start method of multiprocessing for the whole program, and its monitor is a thread
        # that outlives the bar; neither is needed here, so neither is made.
        monitor_interval = 0

    Bar.set_lock(threading.RLock())
    return Bar
