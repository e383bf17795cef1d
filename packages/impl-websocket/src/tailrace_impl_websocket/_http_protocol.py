"""What is behind each HTTP connection: uvicorn's protocol class, with bounds on what is no request yet."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tailrace_common_api import DeadlineExceeded, MessageTooLarge, TailraceError
from tailrace_impl_websocket._http_bodies import ABORT_EXTENSION

LINGER = 10.0
"""Time that a client may take to read the end of a connection, in seconds; then it is cut."""
REFUSAL_LINGER = 2.0
"""Time that a client which sends more than it may has to see why it is refused, in seconds."""
MAX_HEADERS = 64 * 1024
"""Most bytes of the first line and the headers of a request."""
HEADERS_TIMEOUT = 10.0
"""Longest time from a new connection, or the first byte of a request, to the end of its headers, in seconds."""
_PROBES = 3
"""Questions without an answer before a client is taken for gone."""
_MOST_SECONDS = 32767
"""What the system takes at the most."""
_STATUS_LINES = {
    408: b"HTTP/1.1 408 Request Timeout\r\n",
    431: b"HTTP/1.1 431 Request Header Fields Too Large\r\n",
}


class HttpProtocol(HttpToolsProtocol):
    """Ends connections whose requests are too large or too slow to arrive.

    It also lets the application cut a response off, and notices clients that are gone without a word.
    """

    most_connections = 20_000
    """Connections beyond these are cut at once; set by who makes the class."""
    keepalive_interval = 20.0
    """Time without a byte after which the system asks whether the client is there, in seconds."""
    keepalive_timeout = 20.0
    """Time for the answer, in seconds."""
    _deadline: asyncio.TimerHandle | None = None
    _received = 0
    _awaiting_headers = True
    _refused = False
    _overtaken: deque[RequestResponseCycle] | None = None
    """Requests behind which others have arrived before they were answered, in that order; ``None`` for none so far."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            # Below this number connections are refused with an answer.
            transport.abort()
            return
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None:
            _ask_whether_it_lives(connection, self.keepalive_interval, self.keepalive_timeout)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        for cycle in self._overtaken or ():
            # The base tells the last request alone, and the others would wait for ever.
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            # Read on, or the system would answer what is not read with a reset, and the client not see why.
            return
        while data and self._awaiting_headers:
            # The parser is given no more than is allowed until it knows where the headers end.
            allowed = MAX_HEADERS - self._received
            if allowed <= 0:
                self._refuse(431, MessageTooLarge(size=self._received + len(data), maximum=MAX_HEADERS))
                return
            part, data = data[:allowed], data[allowed:]
            self._received += len(part)
            super().data_received(part)
            if self.transport.is_closing() or self.transport.get_protocol() is not self or self._refused:
                return
        if data:
            super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._awaiting_headers = True
        if self._deadline is None:
            self._start_clock()
        self.scope["extensions"] = {ABORT_EXTENSION: {"abort": self._cut_off}}

    def on_headers_complete(self) -> None:
        self._stop_clock()
        self._awaiting_headers = False
        self._received = 0
        before: RequestResponseCycle | None = self.cycle
        super().on_headers_complete()
        if before is not None and before is not self.cycle and not before.response_complete:
            if self._overtaken is None:
                self._overtaken = deque()
            while self._overtaken and self._overtaken[0].response_complete:
                self._overtaken.popleft()
            self._overtaken.append(before)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        # What follows on the connection is the next request.
        self._awaiting_headers = True

    def _start_clock(self) -> None:
        self._deadline = self.loop.call_later(HEADERS_TIMEOUT, self._too_slow)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        self._refuse(408, DeadlineExceeded(what="the end of the headers", seconds=HEADERS_TIMEOUT))

    def _refuse(self, status: int, error: TailraceError) -> None:
        """Answer what is no request yet, and end the connection."""
        self._stop_clock()
        body = json.dumps({"code": error.code, "message": error.message, "details": error.details()}).encode()
        lines = [
            _STATUS_LINES[status],
            b"content-type: application/json\r\n",
            b"content-length: %d\r\n" % len(body),
            b"connection: close\r\n\r\n",
            body,
        ]
        self.transport.write(b"".join(lines))
        self._refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(REFUSAL_LINGER, self.transport.abort)
        else:
            self._cut_off()

    def _cut_off(self) -> None:
        self.transport.close()
        self.loop.call_later(LINGER, self.transport.abort)


def http_protocol(max_connections: int, *, keepalive_interval: float, keepalive_timeout: float) -> type[HttpProtocol]:
    """Return the class for a server with so many connections at most; twice as many are let in to be told so."""
    values = {
        "most_connections": 2 * max_connections,
        "keepalive_interval": keepalive_interval,
        "keepalive_timeout": keepalive_timeout,
    }
    return type("HttpProtocol", (HttpProtocol,), values)


def _ask_whether_it_lives(connection: socket.socket, interval: float, timeout: float) -> None:
    """Let the system end the connection when the client's does not answer: HTTP has no message to ask with.

    A client that is there and does not read answers, and is waited for.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    values = {
        "TCP_KEEPIDLE": _within(interval, _MOST_SECONDS),
        "TCP_KEEPINTVL": _within(timeout / _PROBES, _MOST_SECONDS),
        "TCP_KEEPCNT": _PROBES,
    }
    for name, value in values.items():
        # Not every system has each of them.
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _within(seconds: float, most: int) -> int:
    return min(max(1, round(seconds)), most)
