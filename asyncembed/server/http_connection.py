"""Uvicorn's connection with bounds: what a client may take that has not asked for anything yet.

Uvicorn keeps a head of any length, and waits for ever for its end, for a body, and for somebody who reads the answer.
Little of this needs an API key, so the server that `asyncembed serve` starts bounds all of it.
"""

from asyncio import Transport
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MOST_HEAD_BYTES = 64 * 1024
"""Of the request line and all headers, give or take what comes in one piece."""

SENDING_SECONDS = 30.0
"""How long a client has for the head of a request, for some more of its body, or for all the rest of a refused one."""

READING_SECONDS = 60.0
"""How long an answer waits for a client that reads nothing of it."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 25\r\nconnection: close\r\n\r\n"
    b"The headers are too large"
)


class BoundedConnection(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._is_in_head = True
        self._head_bytes = 0
        self._has_moved = False
        self._patience: Any = None
        self._reading: Any = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Give it some time to say what it is for."""
        super().connection_made(transport)
        self._be_patient()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        for timer in (self._patience, self._reading):
            if timer is not None:
                timer.cancel()

    def handle_websocket_upgrade(self) -> None:
        """It goes on as another one."""
        if self._patience is not None:
            self._patience.cancel()
        super().handle_websocket_upgrade()

    # ---------------------------------------------------------------- what it sends

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._is_in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """Its head is there."""
        self._is_in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of its body."""
        self._has_moved = True
        super().on_body(body)

    def data_received(self, data: bytes) -> None:
        """Any part of it."""
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > MOST_HEAD_BYTES:
            self._refuse_head()
        elif self._owes():
            if self._patience is None:
                self._be_patient()
        elif self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _owes(self) -> bool:
        """Whether the next word is the client's."""
        return self._request is None or self._request.more_body

    @property
    def _request(self) -> RequestResponseCycle | None:
        """The one that is being answered."""
        cycle: RequestResponseCycle | None = self.cycle  # which its type denies
        return None if cycle is None or cycle.response_complete else cycle

    def _refuse_head(self) -> None:
        if not self.transport.is_closing():
            if self._owes():
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def _be_patient(self) -> None:
        self._has_moved = False
        self._patience = self.loop.call_later(SENDING_SECONDS, self._lose_patience)

    def _lose_patience(self) -> None:
        self._patience = None
        if self._owes():
            if self._request is not None and (self._has_moved or self.flow.read_paused):
                self._be_patient()
            else:
                self.transport.close()

    # ---------------------------------------------------------------- what it reads

    def pause_writing(self) -> None:
        """It reads more slowly than it is answered."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """It has read on."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _expect_reading(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._reading = self.loop.call_later(READING_SECONDS, self._look_at_reading, unread)

    def _look_at_reading(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self._expect_reading()
        else:
            self.transport.abort()
