"""What is behind each WebSocket: uvicorn's protocol class, which here says why before it ends a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import PayloadTooBig
from websockets.frames import Close, CloseCode, Frame, Opcode

from tailrace_common_api import InternalError, MessageTooLarge, ProtocolError, TailraceError
from tailrace_impl_common import Keepalive
from tailrace_impl_websocket._codec import Failure, encode_from_server
from tailrace_impl_websocket._http_protocol import LINGER

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

_DRAIN = 1.0
"""Seconds in which what a client still sends is taken over TLS, which has no connections that are half closed."""


class FrameProtocol(WebSocketsSansIOProtocol):
    """Ends connections whose frames break RFC 6455, or are far too large, with a message that has the typed error.

    It also ends connections whose clients do not read: closing alone waits for them for ever.
    """

    _refused = False
    _keepalive: Keepalive | None = None

    def start_keepalive(self) -> None:
        # The base would not see that bytes flow.
        if self.ping_interval:
            self._keepalive = Keepalive(
                self.loop,
                self.ping_interval,
                self.ping_timeout,
                self.transport,
                ping=self._ping,
                lost=self.keepalive_timeout,
            )

    def stop_keepalive(self) -> None:
        super().stop_keepalive()
        if self._keepalive is not None:
            self._keepalive.stop()

    def handle_pong(self, event: Frame) -> None:
        if self._keepalive is not None:
            self._keepalive.answered(bytes(event.data))

    def _ping(self, payload: bytes) -> None:
        if not self.close_sent and not self.transport.is_closing():
            self.conn.send_ping(payload)
            self.transport.write(b"".join(self.conn.data_to_send()))

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            # The base forgets that a refusal completes the handshake too, and logs an error.
            self.handshake_complete = True

    async def run_asgi(self) -> None:
        await super().run_asgi()
        if not self.disconnected:
            self.loop.call_later(LINGER, self.transport.abort)

    def eof_received(self) -> None:
        # The event loop waits until all that was written has left, which may never be: the keep-alive asks nobody any
        # more. What is behind the end of the application is cut.
        self.queue.put_nowait({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL_CLOSURE})

    def data_received(self, data: bytes) -> None:
        # What is still on its way behind an offence is taken and dropped: closing without that would reset the
        # connection, and the client would not see why.
        if not self._refused:
            super().data_received(data)

    def send_receive_event_to_app(self) -> None:
        # The base would log a mistake of the client as one of its own.
        if self.curr_msg_data_type == "text" and not self.close_sent and not all(map(bytes.isascii, self.frames)):
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError as error:
                self.conn.fail(CloseCode.INVALID_DATA, f"{error.reason} at byte {error.start}")
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """Tell the client why its frames end the connection, close it, and let it read that."""
        if self._refused:
            return
        self._refused = True
        close = self.conn.close_sent
        if close is None or self.close_sent:
            # Nothing can be said before the handshake is over, nor behind a close.
            self.queue.put_nowait({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL_CLOSURE})
            self.transport.close()
            return
        text = encode_from_server(None, Failure(_why(close, self.conn.parser_exc)))
        self.transport.write(Frame(Opcode.TEXT, text.encode()).serialize(mask=False, extensions=self.conn.extensions))
        # What arrived together with the offence, and before it, counts.
        self.handle_events()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(LINGER, self.transport.abort)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.loop.call_later(_DRAIN, self.transport.close)


def _why(close: Close, cause: Exception | None) -> TailraceError:
    """Return the typed error for frames that cannot be accepted."""
    if isinstance(cause, PayloadTooBig) and cause.message is None:
        # The size of what is compressed is not known.
        size = cause.max_size + 1 if cause.size is None else (cause.current_size or 0) + cause.size
        return MessageTooLarge(size=size, maximum=cause.max_size)
    if close.code == CloseCode.INTERNAL_ERROR:
        return InternalError("the frames of the connection could not be read")
    return ProtocolError(close.reason or f"frames that end the connection with code {close.code}")
