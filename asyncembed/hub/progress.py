"""How a download goes: typed events for a callback, and the bar that is shown without one."""

from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
from anyio import to_thread

from asyncembed.bars import bar_class

if TYPE_CHECKING:
    from tqdm import tqdm


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
    """Hands events to the callback, or to a thread that draws one bar per download. Leaving it ends the bar.

    A terminal may be slow, or halted by its user (Ctrl-S): neither may halt the event loop, or, for longer than
    `grace_seconds`, the end of a download.
    """

    def __init__(self, progress: Progress, grace_seconds: float) -> None:
        self._callback = progress if callable(progress) else None
        self._shows_bar = progress is None or progress is True
        self._grace_seconds = grace_seconds
        self._events: SimpleQueue[ProgressEvent | None] = SimpleQueue()
        self._drawing = Thread(target=_draw, args=(self._events,), name="asyncembed-progress", daemon=True)

    async def __aenter__(self) -> "ProgressReport":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._drawing.ident is not None:
            self._events.put(None)
            with anyio.move_on_after(self._grace_seconds, shield=True):
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
            if self._drawing.ident is None:
                self._drawing.start()
            self._events.put(event)


def _draw(events: "SimpleQueue[ProgressEvent | None]") -> None:
    """Draw until None comes."""
    bar: tqdm[Any] | None = None
    received: dict[str, int] = {}
    while (event := events.get()) is not None:
        match event:
            case DownloadStarted(source, _, total_bytes):
                if bar is not None:
                    bar.close()
                bar, received = _open_bar(source, total_bytes), {}
            case BytesReceived(_, path, size_bytes) | FileFinished(_, path, size_bytes) if bar is not None:
                bar.update(size_bytes - received.get(path, 0))
                received[path] = size_bytes
            case DownloadFinished() if bar is not None:
                bar.close()
    if bar is not None:
        bar.close()


def _open_bar(source: str, total_bytes: int | None) -> "tqdm[Any]":
    from huggingface_hub.utils import are_progress_bars_disabled

    return bar_class()(
        total=total_bytes,
        desc=source,
        unit="B",
        unit_scale=True,
        # None: only where the output is a terminal.
        disable=True if are_progress_bars_disabled() else None,
    )
