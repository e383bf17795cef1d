"""One call of a client, as ``grpc.aio`` shows calls to the methods that serve them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio

from tailrace_impl_grpc._http2_headers import CallHeaders, Metadata, response_headers, trailers
from tailrace_impl_grpc._http2_layout import ErrorCode, reset
from tailrace_impl_grpc._http2_stream import FIRST_WINDOW, Http2Stream, MessageRefused

if TYPE_CHECKING:
    from tailrace_impl_grpc._http2_connection import Http2Connection

logger = logging.getLogger(__name__)

OK = grpc.StatusCode.OK


class Http2Call(Http2Stream, grpc.aio.ServicerContext[Any, Any]):
    """A call that is being served. Belongs to one event loop."""

    _connection: Http2Connection

    def __init__(
        self, connection: Http2Connection, number: int, headers: CallHeaders, *, max_message: int, compress: bool
    ) -> None:
        """Begin; :meth:`begin` says who serves it.

        Args:
            connection: Of the client.
            number: Of its stream.
            headers: What the client said when it began the call.
            max_message: Largest message that is taken, in bytes.
            compress: Whether to compress what is sent, if the client accepts that.
        """
        compress = compress and headers.accepts_gzip
        super().__init__(connection, number, window=FIRST_WINDOW, max_message=max_message, compress=compress)
        self.encoding = headers.encoding
        self.headers = headers
        """What the client said when it began the call."""
        self.task: asyncio.Task[None] | None = None
        """What serves it."""
        self._encode: Callable[[Any], bytes] | None = None
        self._decode: Callable[[bytes], Any] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._initial: Metadata = ()
        self._trailing: Metadata = ()
        self._code = OK
        self._details = ""

    # What a handler sees

    def serve_with(self, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        """Use what ``handler`` makes messages with."""
        self._encode = handler.response_serializer
        self._decode = handler.request_deserializer

    def invocation_metadata(self) -> Metadata:  # type: ignore[override]  # the stubs want a class
        return self.headers.metadata

    def peer(self) -> str:
        return self._connection.peer

    def peer_identities(self) -> Iterable[bytes] | None:
        return self._connection.auth_context.get("x509_common_name")

    def peer_identity_key(self) -> str | None:
        return "x509_common_name" if self._connection.auth_context else None

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return self._connection.auth_context

    def time_remaining(self) -> float | None:  # type: ignore[override]  # a call need not have a deadline
        if self._deadline is None:
            return None
        return max(0.0, self._deadline.when() - self._connection.loop.time())

    def set_compression(self, compression: grpc.Compression) -> None:
        self._compress = compression is grpc.Compression.Gzip and self.headers.accepts_gzip

    def disable_next_message_compression(self) -> None:
        self._compress = False

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._trailing = tuple(trailing_metadata)

    def trailing_metadata(self) -> Metadata:  # type: ignore[override]  # the stubs want a class
        return self._trailing

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def set_details(self, details: str) -> None:
        self._details = details

    def details(self) -> str:
        return self._details

    def cancelled(self) -> bool:
        return self.over and self._code is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        return self.over

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self.task is None or self.task.done():
            callback(self)
        else:
            self._callbacks.append(callback)

    # Messages

    async def read(self) -> Any:
        """Return the next message, or ``grpc.aio.EOF`` behind the last one.

        Raises:
            CallEnded: The client is gone.
            grpc.aio.AbortError: What it sent is malformed or too large; the call has ended with that.
        """
        try:
            data = await self.read_message()
        except MessageRefused as refused:
            await self.abort(refused.code, refused.problem)
        if data is None:
            return grpc.aio.EOF
        if self._decode is None:
            return data
        try:
            return self._decode(bytes(data))
        except Exception:
            # Whatever the deserializer of a service raises.
            logger.debug("a message cannot be decoded", exc_info=True)
        await self.abort(grpc.StatusCode.INTERNAL, "a message cannot be decoded")

    async def messages(self) -> AsyncGenerator[Any, None]:
        """Yield all messages."""
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        self._check_open()
        if self._headers_sent:
            raise grpc.aio.UsageError("initial metadata were already sent")
        self._initial = tuple(initial_metadata)
        self._connection.write([self._first_headers()])

    async def write(self, message: Any) -> None:
        """Write a message; returns when the next one can be.

        Raises:
            CallEnded: The client is gone.
        """
        await self._write(message if self._encode is None else self._encode(message), b"")

    async def answer(self, message: Any) -> None:
        """Write the only or last message, together with the status."""
        data: bytes = message if self._encode is None else self._encode(message)
        await self._write(data, trailers(self._code, self._details, self._trailing, alone=False))

    def _first_headers(self) -> bytes:
        self._headers_sent = True
        block = response_headers(compressed=self._compress, metadata=self._initial)
        return self._connection.header_frames(self.number, block, ends=False)

    def _last_headers(self, block: bytes) -> bytes:
        frame = self._connection.header_frames(self.number, block, ends=True)
        # What the client still sends is for nobody.
        return frame if self.half_closed else frame + reset(self.number, ErrorCode.NO_ERROR)

    def _sent_last(self) -> None:
        self._end()

    # Ending

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        self._check_open()
        self._code, self._details = code, details
        if trailing_metadata:
            self._trailing = tuple(trailing_metadata)
        self.finish()
        await self.wait_ended()
        raise grpc.aio.AbortError(f"{code}: {details}")

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        await self.abort(status.code, status.details or "", status.trailing_metadata or ())

    def finish(self) -> None:
        """Send the status, behind whatever was written; see :meth:`wait_ended`."""
        if self.over or self._last:
            return
        block = trailers(self._code, self._details, self._trailing, alone=not self._headers_sent)
        self._headers_sent = True
        if self._unsent is not None:
            self._last = block
            return
        # Nobody waits until the client takes it.
        self._connection.write_control(self._last_headers(block))
        self._end()

    def end_with(self, code: grpc.StatusCode, details: str) -> None:
        """Send this status, behind whatever was written."""
        self._code, self._details = code, details
        self.finish()

    async def wait_ended(self) -> None:
        """Wait until the status is sent, or the client is gone."""
        while not self.over:
            await self._wait_for_room()

    def begin(self, task: asyncio.Task[None]) -> None:
        """Be served by ``task``."""
        self.task = task
        if self.headers.timeout is not None:
            self._deadline = self._connection.loop.call_later(self.headers.timeout, self._expire)
        task.add_done_callback(self._served)

    def cancel(self) -> None:
        """Learn that the client is gone, or end the call without a status."""
        if self.over:
            return
        self._code = grpc.StatusCode.CANCELLED
        self._end()
        if self.task is not None:
            self.task.cancel()

    def _expire(self) -> None:
        self._code, self._details = grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"
        if self._unsent is None:
            self.finish()
        else:
            # The status would have to wait for a client that does not read.
            self._connection.write_control(reset(self.number, ErrorCode.CANCEL))
            self._end()
        if self.task is not None:
            self.task.cancel()

    def _end(self) -> None:
        # Nobody is there for whom it would be read.
        self._waiting = None
        if self._deadline is not None:
            self._deadline.cancel()
        super()._end()

    def _served(self, _task: asyncio.Task[None]) -> None:
        self._connection.served()
        for callback in self._callbacks:
            callback(self)
        self._callbacks.clear()
        # A task that was cancelled holds its frames, and they this.
        self.task = None
