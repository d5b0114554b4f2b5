"""How a download goes: typed events for a callback, and the bar that is shown without one."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

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


class ProgressReport:
    """Hands events to the callback, or draws one bar per download. Leaving it as a context ends the bar."""

    def __init__(self, progress: Progress) -> None:
        self._callback = progress if callable(progress) else None
        self._shows_bar = progress is None or progress is True
        self._bar: tqdm[Any] | None = None
        self._received: dict[str, int] = {}

    def __enter__(self) -> "ProgressReport":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __call__(self, event: ProgressEvent) -> None:
        """Report one event."""
        if self._callback is not None:
            self._callback(event)
        elif self._shows_bar:
            self._draw(event)

    def _draw(self, event: ProgressEvent) -> None:
        match event:
            case DownloadStarted(source, _, total_bytes):
                self.__exit__()
                self._received.clear()
                self._bar = _open_bar(source, total_bytes)
            case BytesReceived(_, path, received_bytes) if self._bar is not None:
                self._bar.update(received_bytes - self._received.get(path, 0))
                self._received[path] = received_bytes
            case FileFinished(_, path, size_bytes) if self._bar is not None:
                self._bar.update(size_bytes - self._received.get(path, 0))
                self._received[path] = size_bytes
            case DownloadFinished():
                self.__exit__()


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
