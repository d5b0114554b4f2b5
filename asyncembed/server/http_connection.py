"""Uvicorn's connection with bounds: what a client may take that has not asked for anything yet.

Uvicorn keeps heads and trailers of any length, and requests of any number that are sent ahead of their answers; it
waits for ever for the end of a head, for a body, and for somebody who reads the answer. Little of this needs an API
key, so the server that `asyncembed serve` starts bounds all of it. It speaks HTTP/1.1 and nothing else, whatever a
client asks for.
"""

import sys
from asyncio import Transport
from contextlib import suppress
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MOST_HEAD_BYTES = 64 * 1024
"""Of the request line and all headers, or of what is neither a body's nor a head's, give or take what comes in one
piece."""

MOST_PIPELINED = 64
"""Requests that wait for the answer to an earlier one of their connection."""

SENDING_SECONDS = 30.0
"""How long a client has for the head of a request, for some more of its body, or for all the rest of a refused one."""

READING_SECONDS = 60.0
"""How long an answer waits for a client that reads nothing of it."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 25\r\nconnection: close\r\n\r\n"
    b"The headers are too large"
)


class _TooManyError(Exception):
    """More requests than may wait."""


class BoundedConnection(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._head_bytes = 0
        self._piece = self._unread = b""
        self._answering: RequestResponseCycle | None = None
        self._has_moved = False
        self._patience: Any = None
        self._reading: Any = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Give it some time to say what it is for."""
        super().connection_made(transport)
        self._be_patient()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it, and tell the request that is being answered, where uvicorn tells the last one that has come."""
        super().connection_lost(exc)
        if self._answering is not None:
            self._answering.disconnected = not self._answering.response_complete
            self._answering.message_event.set()
        for timer in (self._patience, self._reading):
            if timer is not None:
                timer.cancel()

    # ---------------------------------------------------------------- what it sends

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if len(self.pipeline) >= MOST_PIPELINED:
            raise _TooManyError  # which the parser takes for a fault of the request
        super().on_message_begin()
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Its head is there."""
        super().on_headers_complete()
        if not self.pipeline:
            self._answering = self.cycle

    def on_body(self, body: bytes) -> None:
        """Some of its body."""
        self._head_bytes, self._has_moved = 0, True
        super().on_body(body)

    def data_received(self, data: bytes) -> None:
        """Any part of it."""
        self._head_bytes += len(data)
        self._unread = data
        while self._unread:
            self._piece, self._unread = self._unread, b""
            super().data_received(self._piece)
        self._piece = b""
        if self._head_bytes > MOST_HEAD_BYTES:
            self._refuse_head()
        elif self._owes():
            if self._patience is None:
                self._be_patient()
        elif self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _should_upgrade(self) -> bool:
        return True  # for uvicorn, which leaves it to the method below

    def handle_websocket_upgrade(self) -> None:
        """Read on as if it had not asked for another protocol, of which there is none here.

        The parser has stopped behind the head, in front of a body, which uvicorn would take for the next request: a
        client of Java's asks for HTTP/2 in this way with each POST.
        """
        stopped = sys.exception()
        if self.scope["method"] == "CONNECT" or not isinstance(stopped, httptools.HttpParserUpgrade):
            self.send_400_response("There is no such method here.")
            return
        version = self.parser.get_http_version().encode()
        headers = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (self.scope["method"].encode(), self.url, version, b"".join(headers))
        self.parser: httptools.HttpRequestParser = httptools.HttpRequestParser(self)
        with suppress(AttributeError):  # as uvicorn: older ones have none
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._unread = head + self._piece[stopped.args[0] :]

    def on_response_complete(self) -> None:
        """The next one's turn: nothing more is read as long as others wait."""
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        self._answering = following
        if self.pipeline:
            self.flow.pause_reading()

    def _owes(self) -> bool:
        """Whether the next word is the client's."""
        return self._request is None or self._request.more_body

    @property
    def _request(self) -> RequestResponseCycle | None:
        """The one that is being answered."""
        cycle: RequestResponseCycle | None = self.cycle  # which its type denies
        return None if cycle is None or cycle.response_complete else cycle

    def send_400_response(self, msg: str) -> None:
        """It is no HTTP."""
        if self._is_heard():
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _refuse_head(self) -> None:
        if not self.transport.is_closing():
            if self._is_heard():
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def _is_heard(self) -> bool:
        """Whether what is written now is taken for an answer to what is read now, and not to what came before."""
        request = self._request
        return not self.pipeline and (request is None or (request.more_body and not request.response_started))

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
