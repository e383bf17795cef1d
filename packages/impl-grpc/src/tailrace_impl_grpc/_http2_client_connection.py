"""The client's side of a connection of HTTP/2."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import cast

from tailrace_impl_grpc._http2_client_call import Http2ClientCall
from tailrace_impl_grpc._http2_headers import Fields, Metadata
from tailrace_impl_grpc._http2_layout import (
    ENABLE_PUSH,
    LARGEST_WINDOW,
    MAX_CONCURRENT_STREAMS,
    PREFACE,
    ConnectionOffence,
    ErrorCode,
)
from tailrace_impl_grpc._http2_peer import Http2Peer, ReceiveArea
from tailrace_impl_grpc._http2_stream import LARGE_WINDOW, CallEnded

_MOST_STREAMS = 1 << 30
"""Streams of a connection; the numbers of a client are every second one below 2**31."""


class _Thread(threading.local):
    """What all connections of a thread share: only one event loop runs in it at a time."""

    def __init__(self) -> None:
        self.area = ReceiveArea()


_thread = _Thread()


class Http2ClientConnection(Http2Peer[Http2ClientCall]):
    """A connection to a server. Belongs to the event loop of the thread in which it is made."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        authority: str,
        secure: bool,
        max_message: int,
        compress: bool,
        keepalive_interval: float,
        keepalive_timeout: float,
    ) -> None:
        """Prepare for a transport.

        Args:
            loop: Event loop of the connection.
            authority: Whom it is to, as ``HOST:PORT``.
            secure: Whether it is over TLS.
            max_message: Largest message of the server, in bytes.
            compress: Whether to compress what is sent.
            keepalive_interval: Time between two pings, in seconds.
            keepalive_timeout: Time for the answer to one, in seconds.
        """
        super().__init__(
            _thread.area,
            loop,
            window=LARGE_WINDOW,
            keepalive_interval=keepalive_interval,
            keepalive_timeout=keepalive_timeout,
        )
        self.authority = authority
        """Whom it is to, as ``HOST:PORT``."""
        self.secure = secure
        """Whether it is over TLS."""
        self.ready: asyncio.Future[None] = loop.create_future()
        """Done when the server has shown that it speaks HTTP/2, or that the connection is lost."""
        self.gone: asyncio.Future[None] = loop.create_future()
        """Done when the connection is closed."""
        self._max_message = max_message
        self._compress = compress
        self._most_calls = _MOST_STREAMS
        self._room: list[asyncio.Future[None]] = []
        self._last_stream = -1
        # The server begins no stream.
        self._last_served = 0
        # Those whose stream has not begun among them.
        self._calls: set[Http2ClientCall] = set()
        self._problem = "the server has closed the connection"

    @property
    def usable(self) -> bool:
        """Whether calls can be begun."""
        return not self._leaving and self._last_stream < 2 * _MOST_STREAMS - 3

    async def begin(self, path: str, metadata: Metadata, *, timeout: float | None = None) -> Http2ClientCall:
        """Begin a call; waits while the server has as many as it takes.

        Raises:
            CallEnded: No call can be begun here any more.
        """
        while len(self._calls) >= self._most_calls and self.usable:
            room = self.loop.create_future()
            self._room.append(room)
            try:
                await room
            except asyncio.CancelledError:
                if room in self._room:
                    self._room.remove(room)
                else:
                    self._wake_next()
                raise
        if not self.usable:
            raise CallEnded("the connection takes no more calls")
        call = Http2ClientCall(
            self,
            path,
            metadata,
            max_message=self._max_message,
            compress=self._compress,
            timeout=timeout,
        )
        self._calls.add(call)
        return call

    def begin_stream(self, call: Http2ClientCall) -> int:
        """Return the number of the stream of ``call``, whose headers are to be written at once."""
        self._last_stream += 2
        self._streams[self._last_stream] = call
        return self._last_stream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(PREFACE)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._problem = f"{type(exc).__name__}: {exc}" if not isinstance(exc, OSError) else exc.strerror or str(exc)
        self._lose_all()
        super().connection_lost(exc)
        self._wake_all()
        if not self.gone.done():
            self.gone.set_result(None)

    def ended(self, stream: Http2ClientCall) -> None:
        super().ended(stream)
        self._calls.discard(stream)
        if len(self._calls) < self._most_calls:
            self._wake_next()
        if self._leaving and not self._calls and not self._closed:
            self.close()

    def _wake_next(self) -> None:
        """Let the next one begin a call who waits for that."""
        if self._room:
            room = self._room.pop(0)
            if not room.done():
                room.set_result(None)

    def eof_received(self) -> None:
        self._lose_all()
        super().eof_received()

    def close(self) -> None:
        super().close()
        self._wake_all()

    def _cancel_all(self) -> None:
        for call in tuple(self._calls):
            call.cancel()

    def _lose_all(self) -> None:
        for call in tuple(self._calls):
            call.lost(self._problem)

    def fail(self, offence: ConnectionOffence) -> None:
        self._problem = offence.problem
        self._lose_all()
        super().fail(offence)

    def _wake_all(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)
        while self._room:
            room = self._room.pop()
            if not room.done():
                room.set_result(None)

    def _settings(self) -> Mapping[int, int]:
        return {ENABLE_PUSH: 0}

    def _take_setting(self, name: int, value: int) -> None:
        if name == MAX_CONCURRENT_STREAMS:
            self._most_calls = min(value, LARGEST_WINDOW)
            for _ in range(min(len(self._room), self._most_calls - len(self._calls))):
                self._wake_next()

    def _settled(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    def _is_idle(self, number: int) -> bool:
        return number > self._last_stream or not number & 1

    def _headers_received(self, number: int, fields: Fields, ends: bool) -> None:
        if self._is_idle(number):
            raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "an answer to a call that was not begun")
        call = self._streams.get(number)
        if call is not None:
            call.headers_received(fields, ends)

    def _headers_dropped(self, number: int, ends: bool) -> None:
        raise ConnectionOffence(ErrorCode.ENHANCE_YOUR_CALM, "headers are too large")

    def _went_away(self, last_stream: int) -> None:
        self._leaving = True
        for call in tuple(self._calls):
            if not call.number or call.number > last_stream:
                call.lost("the server is going away")
        self._wake_all()
        if not self._calls:
            self.close()
