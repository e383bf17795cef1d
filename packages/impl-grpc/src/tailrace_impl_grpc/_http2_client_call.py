"""One call to a server, on a stream of HTTP/2."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from tailrace_impl_grpc._http2_headers import (
    CallStatus,
    Fields,
    Metadata,
    parse_response_headers,
    parse_trailers,
    request_headers,
)
from tailrace_impl_grpc._http2_layout import (
    DATA,
    END_STREAM,
    ErrorCode,
    frame_header,
    reset,
)
from tailrace_impl_grpc._http2_stream import LARGE_WINDOW, CallEnded, Http2Stream, MessageRefused, Parts

if TYPE_CHECKING:
    from tailrace_impl_grpc._http2_client_connection import Http2ClientConnection

_HALF_CLOSE = b"\0"
"""What stands for the end of what is sent."""
_STATUS_OF_RESET: dict[int, grpc.StatusCode] = {
    ErrorCode.NO_ERROR: grpc.StatusCode.INTERNAL,
    ErrorCode.REFUSED_STREAM: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.CANCEL: grpc.StatusCode.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class Http2ClientCall(Http2Stream):
    """A call. Belongs to one event loop.

    Its status is known when it is over: messages that came before are still there to be read.
    """

    _connection: Http2ClientConnection

    def __init__(
        self,
        connection: Http2ClientConnection,
        path: str,
        metadata: Metadata,
        *,
        max_message: int,
        compress: bool,
        timeout: float | None,
    ) -> None:
        """Begin a call; its headers go out with the first message.

        Args:
            connection: To the server.
            path: Of the method.
            metadata: What is said beside the messages.
            max_message: Largest message that is taken, in bytes.
            compress: Whether to compress what is sent.
            timeout: What the server is told of the time for the call, in seconds.
        """
        # Its stream has a number when it begins: those of a connection begin in the order of their numbers.
        super().__init__(connection, 0, window=LARGE_WINDOW, max_message=max_message, compress=compress)
        self._path = path
        self._metadata = metadata
        self._timeout = timeout
        self._answered = False
        self._sent_all = False
        self._status: CallStatus | None = None
        self._ended = asyncio.Event()

    async def write(self, data: bytes | Parts) -> None:
        """Write a message; returns when the next one can be.

        Raises:
            CallEnded: The call is over.
        """
        await self._write(data, b"")

    async def write_last(self, data: bytes) -> None:
        """Write the only or last message; see :meth:`write`."""
        await self._write(data, _HALF_CLOSE)

    async def read(self) -> bytes | memoryview | None:
        """Return the next message, or ``None`` when the call is over, and its status known."""
        try:
            data = await self.read_message()
        except MessageRefused as refused:
            status = CallStatus(refused.code, refused.problem)
            # The server may have ended the call in order behind what is refused.
            if self.over and self._status is not None and self._status.code is grpc.StatusCode.OK:
                self._status = status
            else:
                self.give_up(status)
        except CallEnded:
            pass
        else:
            if data is not None:
                return data
        await self._ended.wait()
        return None

    async def status(self) -> CallStatus:
        """Return how the call has ended, as soon as it has."""
        await self._ended.wait()
        assert self._status is not None
        return self._status

    def headers_received(self, fields: Fields, ends: bool) -> None:
        """Take the headers of the answer, or those behind it."""
        if self._answered:
            if ends:
                self._complete(parse_trailers(fields), ends)
            return
        if not ends and dict(fields).get(b":status", b"").startswith(b"1"):
            # More will follow (RFC 9113, section 8.1).
            return
        self._answered = True
        status, self.encoding = parse_response_headers(fields)
        if status is not None:
            self._complete(status, ends)
        elif ends:
            self._complete(CallStatus(grpc.StatusCode.UNKNOWN, "the answer has no status"), ends)

    def _complete(self, status: CallStatus, ends: bool) -> None:
        """End the call as the server says, on both sides; ``ends`` if the server has ended its own."""
        super().received_all()
        if self._refused is not None and status.code is grpc.StatusCode.OK:
            status = CallStatus(self._refused.code, self._refused.problem)
        if not (ends and self._sent_all):
            code = ErrorCode.NO_ERROR if ends else ErrorCode.CANCEL
            self._connection.write_control(reset(self.number, code))
        self._finish(status)

    def received_all(self) -> None:
        super().received_all()
        # An answer ends with its status, and not with data.
        self._complete(CallStatus(grpc.StatusCode.UNKNOWN, "the answer has no status"), True)

    def reset(self, code: int) -> None:
        status = _STATUS_OF_RESET.get(code, grpc.StatusCode.INTERNAL)
        self._finish(CallStatus(status, f"Received RST_STREAM with error code {code}"))

    def lost(self, problem: str) -> None:
        """Learn that the connection is lost, and why."""
        self._finish(CallStatus(grpc.StatusCode.UNAVAILABLE, problem))

    def give_up(self, status: CallStatus) -> None:
        """End the call from this side; ``status`` is what is said here of that."""
        if not self.over:
            if self._headers_sent:
                self._connection.write_control(reset(self.number, ErrorCode.CANCEL))
            self._finish(status)

    def cancel(self) -> None:
        self.give_up(CallStatus(grpc.StatusCode.CANCELLED, "the call was cancelled by this client"))

    def broken(self) -> None:
        self._finish(CallStatus(grpc.StatusCode.INTERNAL, "the server has broken a rule of HTTP/2"))

    def _finish(self, status: CallStatus) -> None:
        if self.over:
            return
        self._status = status
        self._end()
        self._ended.set()

    def _first_headers(self) -> bytes:
        self._headers_sent = True
        connection = self._connection
        self.number = connection.begin_stream(self)
        self.send_window = connection.stream_window
        block = request_headers(
            self._path,
            connection.authority,
            self._metadata,
            secure=connection.secure,
            compressed=self._compress,
            timeout=self._timeout,
        )
        return connection.header_frames(self.number, block, ends=False)

    def _last_headers(self, block: bytes) -> bytes:
        return frame_header(0, DATA, END_STREAM, self.number)

    def _sent_last(self) -> None:
        self._sent_all = True
