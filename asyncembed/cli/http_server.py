"""Uvicorn as `asyncembed serve` runs it: it ends when it is told to, whatever it does just then, and in few words."""

import asyncio
import signal
import socket
from logging import ERROR, Logger, LogRecord, getLogger
from types import FrameType

import uvicorn

ENDING_SECONDS = 5.0
"""How long models have to close where nobody wants to wait for them."""

log: Logger = getLogger("uvicorn.error")


class HttpServer(uvicorn.Server):
    """Uvicorn, which by itself hears no signal before its models are open, and ends with a traceback for each request.

    The first signal finishes what is under way, as uvicorn does. One that comes before the models are open, and a
    second Ctrl-C, end it at once: requests are refused, downloads stop, workers end.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._serving: asyncio.Task[object] | None = None
        self._signal: int | None = None
        self.is_cut_short: bool = False

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until it is told to end."""
        log.addFilter(self._is_news)
        try:
            super().run(sockets)
        finally:
            log.removeFilter(self._is_news)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until it is told to end."""
        self._serving = serving = asyncio.current_task()
        try:
            await super().serve(sockets)
        except asyncio.CancelledError:
            if not self.is_cut_short or serving is None or self._signal is None:
                raise
            serving.uncancel()
        finally:
            self._serving = None
        if self.is_cut_short and self._signal is not None:
            log.warning("Ending at once, with %d requests under way", len(self.server_state.tasks))
            await _cancel_others()
            signal.raise_signal(self._signal)  # as uvicorn does in the end, so that the exit code tells

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Hear a signal."""
        super().handle_exit(sig, frame)
        self._signal = sig
        if (self.force_exit or not self.started) and self._serving is not None and not self.is_cut_short:
            self.is_cut_short = True
            self._serving.get_loop().call_soon_threadsafe(self._serving.cancel)

    def _is_news(self, record: LogRecord) -> bool:
        """Whether a record of uvicorn's says more than that what was cancelled is cancelled."""
        error = record.exc_info[1] if record.exc_info else None
        return not (isinstance(error, asyncio.CancelledError) or (self.is_cut_short and record.levelno >= ERROR))


async def _cancel_others() -> None:
    """End all tasks but this one: requests, and the one that holds the models."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=ENDING_SECONDS)
