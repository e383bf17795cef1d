"""What is behind each WebSocket: a protocol class for uvicorn that copies no payload.

Payloads are received straight into buffers of their size and sent as they are, behind a header of their own. The ASGI
application may take frames as they arrive and send them as they are, through the extension of
:mod:`tailrace_impl_websocket._frame_channel`; for all others this is a WebSocket as ASGI describes it.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, cast

from starlette.types import Message, Scope
from uvicorn.config import Config
from uvicorn.protocols.utils import (
    ClientDisconnected,
    get_client_addr,
    get_local_addr,
    get_path_with_query_string,
    get_remote_addr,
    is_ssl,
)
from websockets.frames import Close, CloseCode

from tailrace_common_api import KIBIBYTE, MEBIBYTE, TailraceError
from tailrace_impl_common import Keepalive, sends_lists
from tailrace_impl_websocket._codec import Failure, encode_from_server
from tailrace_impl_websocket._frame_channel import FRAMES_EXTENSION, FrameReceiver
from tailrace_impl_websocket._frame_layout import BINARY, CLOSE, PING, PONG, TEXT, frame_header
from tailrace_impl_websocket._frame_reader import FrameReader, ReceiveBuffers
from tailrace_impl_websocket._handshake import Handshake
from tailrace_impl_websocket._http_protocol import LINGER

if TYPE_CHECKING:
    from uvicorn.server import ServerState

DRAIN = 1.0
"""Seconds in which what a client still sends is taken over TLS, which has no connections that are half closed."""
_CLOSE_TIMEOUT = 10.0
"""Time for a client to confirm a close, in seconds."""
_JOINED = 16 * KIBIBYTE
"""Payloads up to this size are joined with their header: that costs less than a second buffer."""
_MOST_WAITING = 16
"""Messages that may wait for an application that asks for them; then the client has to."""
_MOST_BYTES_WAITING = MEBIBYTE


class BufferedFrameProtocol(asyncio.BufferedProtocol):
    """One WebSocket of a uvicorn server.

    Connections whose frames break RFC 6455, or are far too large, end with a message that has the typed error. So do,
    without one, connections whose clients do not read: closing alone would wait for them for ever.
    """

    __slots__ = (
        "_bytes_waiting",
        "_close_sent",
        "_close_timer",
        "_closed",
        "_config",
        "_disconnected",
        "_ended",
        "_gone",
        "_handshake",
        "_keepalive",
        "_loop",
        "_paused",
        "_pong",
        "_reader",
        "_reading_paused",
        "_receiver",
        "_scope",
        "_sends_lists",
        "_server_state",
        "_state",
        "_waiting",
        "_waiting_receiver",
        "_waiting_senders",
        "transport",
    )

    buffers: ClassVar[ReceiveBuffers | None] = None
    """Of the event loop in which all connections of the class are; ``None``: each connection has its own."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._config = config
        self._server_state = server_state
        self._state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        """Of the connection."""
        self._reader = FrameReader(self, self.buffers or ReceiveBuffers(), max_size=config.ws_max_size)
        self._handshake: Handshake | None = None
        self._scope: Scope = {}
        self._keepalive: Keepalive | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        # Whether the application has closed the connection, anyone here has, the client has, and whether it is lost.
        self._closed = False
        self._close_sent = False
        self._ended = False
        self._gone = False
        # Receiving: a receiver that takes messages as they arrive, or a queue. Those here are short, and a deque takes
        # 760 bytes, empty or not.
        self._receiver: FrameReceiver | None = None
        self._waiting: list[Message] = []
        self._bytes_waiting = 0
        self._waiting_receiver: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._disconnected = False
        # Sending.
        self._paused = False
        self._waiting_senders: list[asyncio.Future[None]] = []
        self._pong: bytes | None = None
        self._sends_lists = False

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        self._sends_lists = sends_lists(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._reader.end()
        self._stop_timers()
        self._disconnect(CloseCode.ABNORMAL_CLOSURE if self._handshake else CloseCode.NO_STATUS_RCVD)
        self._ended = True
        self._gone = True
        self._wake_all_senders()
        if exc is None:
            self.transport.close()

    def eof_received(self) -> None:
        """Let the connection end: nothing more comes."""
        # The event loop waits until all that was written has left, which may never be: the keep-alive asks nobody any
        # more. What is behind the end of the application is cut.
        self._disconnect(CloseCode.ABNORMAL_CLOSURE)
        self._ended = True
        self._wake_all_senders()

    def shutdown(self) -> None:
        """End the connection because the server ends."""
        if self._handshake is not None:
            if not self._handshake.denying:
                self._write(self._handshake.reject(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal Server Error"))
        elif not self._close_sent:
            self._disconnect(CloseCode.SERVICE_RESTART)
            self._write_close(Close(CloseCode.SERVICE_RESTART, ""))
        self._stop_timers()
        self.transport.close()

    @property
    def _connections(self) -> set[Any]:
        return cast(set[Any], self._server_state.connections)

    def _stop_timers(self) -> None:
        if self._keepalive is not None:
            self._keepalive.stop()
        if self._close_timer is not None:
            self._close_timer.cancel()
            self._close_timer = None

    # The handshake

    def data_received(self, data: bytes) -> None:
        """Take the request, which uvicorn has read; what follows it comes through :meth:`get_buffer`."""
        handshake = Handshake(data, _logger)
        if handshake.answer:
            self.transport.write(handshake.answer)
            self.transport.close()
            self._close_sent = True
            return
        self._handshake = handshake
        # Nothing may come before the answer. uvloop also has to begin anew, since it fills buffers for this class.
        self.transport.pause_reading()
        self._scope = {
            **handshake.scope(self._config.root_path),
            "asgi": {"version": self._config.asgi_version, "spec_version": "2.4"},
            "scheme": "wss" if is_ssl(self.transport) else "ws",
            "server": get_local_addr(self.transport),
            "client": get_remote_addr(self.transport),
            "state": self._state.copy(),
            "extensions": {"websocket.http.response": {}, FRAMES_EXTENSION: {"channel": self}},
        }
        self._waiting.append({"type": "websocket.connect"})
        task = self._loop.create_task(self._run())
        task.add_done_callback(self._server_state.tasks.discard)
        self._server_state.tasks.add(task)

    async def _run(self) -> None:
        """Run the application."""
        try:
            result: object = await cast(Any, self._config.loaded_app)(self._scope, self.receive, self.send)
            if self._handshake is not None:
                _logger.error("ASGI callable returned without completing handshake.")
            elif result is not None:
                _logger.error("ASGI callable should return None, but returned '%s'.", result)
        except ClientDisconnected:
            pass
        except BaseException:
            _logger.exception("Exception in ASGI application\n")
        if self._handshake is not None and not self._handshake.denying and not self._ended:
            self._write(self._handshake.reject(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal Server Error"))
        if self._close_timer is None:
            self.transport.close()
        if not self._gone:
            self._loop.call_later(LINGER, self.transport.abort)

    def _answer(self, message: Message) -> None:
        """Take what the application says to the handshake."""
        handshake, kind = self._handshake, message["type"]
        assert handshake is not None
        if handshake.denying:
            if kind != "websocket.http.response.body":
                raise RuntimeError(f"Expected ASGI message 'websocket.http.response.body' but got '{kind}'.")
            handshake.add_to_denial(message)
            if handshake.answer:
                self._deny(handshake.answer)
        elif kind == "websocket.accept":
            if self.transport.is_closing():
                raise ClientDisconnected
            self._log("[accepted]")
            self._open(handshake.accept(message, self._server_state.default_headers))
        elif kind == "websocket.close":
            self._log("403")
            self._deny(handshake.reject(HTTPStatus.FORBIDDEN))
        elif kind == "websocket.http.response.start":
            if message["status"] not in range(100, 600):
                raise RuntimeError(f"Invalid HTTP status code '{message['status']}' in response.")
            self._log(str(message["status"]))
            handshake.begin_denial(message)
        else:
            raise RuntimeError(
                "Expected ASGI message 'websocket.accept', 'websocket.close' or 'websocket.http.response.start' "
                f"but got '{kind}'."
            )

    def _open(self, answer: bytes) -> None:
        self._handshake = None
        self.transport.write(answer)
        self.transport.resume_reading()
        interval = self._config.ws_ping_interval
        if interval:
            self._keepalive = Keepalive(
                self._loop,
                interval,
                self._config.ws_ping_timeout,
                self.transport,
                ping=self._ping,
                lost=self._lost,
            )

    def _deny(self, answer: bytes) -> None:
        self._handshake = None
        self._close_sent = True
        self._disconnect(CloseCode.ABNORMAL_CLOSURE)
        self._write(answer)
        self.transport.close()

    def _log(self, what: str) -> None:
        scope = cast(Any, self._scope)
        _logger.info('%s - "WebSocket %s" %s', get_client_addr(scope), get_path_with_query_string(scope), what)

    # Receiving

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        # What is still on its way behind an offence is taken and dropped: closing without that would reset the
        # connection, and the client would not see why.
        self._reader.buffer_updated(nbytes)

    def binary_received(self, data: bytes) -> None:
        if self._receiver is not None:
            self._receiver.binary_received(data)
        else:
            self._queue({"type": "websocket.receive", "bytes": data}, len(data))

    def text_received(self, text: str) -> None:
        if self._receiver is not None:
            self._receiver.text_received(text)
        else:
            self._queue({"type": "websocket.receive", "text": text}, len(text))

    def _queue(self, message: Message, size: int) -> None:
        if self._close_sent:
            # The application is past its last word; reading goes on until the client has answered it.
            return
        self._waiting.append(message)
        self._bytes_waiting += size
        self._wake_receiver()
        if not self._reading_paused and (
            len(self._waiting) >= _MOST_WAITING or self._bytes_waiting >= _MOST_BYTES_WAITING
        ):
            self._reading_paused = True
            self.transport.pause_reading()

    async def receive(self) -> Message:
        """Return the next message, as ASGI has it."""
        while not self._waiting:
            if self._disconnected:
                # Said already: whoever asks again waits for nothing.
                return {"type": "websocket.disconnect", "code": CloseCode.NO_STATUS_RCVD}
            self._waiting_receiver = self._loop.create_future()
            try:
                await self._waiting_receiver
            finally:
                self._waiting_receiver = None
        message = self._waiting.pop(0)
        if not self._waiting:
            self._bytes_waiting = 0
            self._resume_reading()
        return message

    def hand_to(self, receiver: FrameReceiver | None) -> None:
        """Give every message to ``receiver``, those that wait already first; ``None``: to nobody any more."""
        self._receiver = receiver
        if receiver is None:
            return
        waiting = tuple(self._waiting)
        self._waiting.clear()
        self._bytes_waiting = 0
        for message in waiting:
            if message["type"] == "websocket.disconnect":
                receiver.disconnected()
            elif "bytes" in message:
                receiver.binary_received(message["bytes"])
            else:
                receiver.text_received(message["text"])
        if self._disconnected and not waiting:
            receiver.disconnected()
        self._resume_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    def _disconnect(self, code: int, reason: str = "") -> None:
        """Tell the application that nothing more comes."""
        if self._disconnected:
            return
        self._disconnected = True
        if self._receiver is not None:
            self._receiver.disconnected()
        else:
            self._waiting.append({"type": "websocket.disconnect", "code": int(code), "reason": reason})
            self._wake_receiver()

    def _wake_receiver(self) -> None:
        if self._waiting_receiver is not None and not self._waiting_receiver.done():
            self._waiting_receiver.set_result(None)

    # Control frames

    def ping_received(self, data: bytes) -> None:
        if self._paused:
            # Answered when there is room: only the last of several has to be (RFC 6455, section 5.5.3).
            self._pong = data
        elif not self._ended:
            self._write(frame_header(PONG, len(data)) + data)

    def pong_received(self, data: bytes) -> None:
        if self._keepalive is not None:
            self._keepalive.answered(data)

    def close_received(self, close: Close, data: bytes) -> None:
        if self._close_sent:
            self._stop_timers()
            self.transport.close()
            return
        self._disconnect(close.code, close.reason)
        if not self.transport.is_closing():
            self.transport.write(frame_header(CLOSE, len(data)) + data)
            self.transport.close()
        self._ended = True
        self._wake_all_senders()

    def refused(self, close: Close, error: TailraceError) -> None:
        """Tell the client why its frames end the connection, close it, and let it read that."""
        if self._close_sent:
            # Nothing can be said behind a close.
            self.transport.close()
            return
        text = encode_from_server(None, Failure(error)).encode()
        self._write(frame_header(TEXT, len(text)) + text)
        self._disconnect(close.code, close.reason)
        self._write_close(close)
        self._resume_reading()
        self._stop_timers()
        self._close_timer = self._loop.call_later(LINGER, self.transport.abort)
        if self.transport.can_write_eof():
            if not self.transport.is_closing():
                self.transport.write_eof()
        else:
            self._loop.call_later(DRAIN, self.transport.close)

    def _write_close(self, close: Close) -> None:
        data = close.serialize()
        self._write(frame_header(CLOSE, len(data)) + data)
        self._close_sent = True
        self._wake_all_senders()

    def _write(self, data: bytes) -> None:
        # A write may find that the connection is lost; uvloop raises an error at the next one.
        if not self.transport.is_closing():
            self.transport.write(data)

    def _ping(self, payload: bytes) -> None:
        if not self._close_sent and not self.transport.is_closing():
            self.transport.write(frame_header(PING, len(payload)) + payload)

    def _lost(self) -> None:
        if self._close_sent or self.transport.is_closing():
            return
        self._write_close(Close(CloseCode.INTERNAL_ERROR, "keepalive ping timeout"))
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    # Sending

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._pong is not None and not self._close_sent:
            self._write(frame_header(PONG, len(self._pong)) + self._pong)
        self._pong = None
        self._wake_sender()

    @property
    def writable(self) -> bool:
        """Whether a message can be written without waiting for the client, or for those who wait for it."""
        return not self._paused and not self._waiting_senders and not self._ended and not self._close_sent

    async def turn(self) -> None:
        """Wait until a message can be written, in the order in which it was asked for; it has to be written at once.

        Raises:
            ClientDisconnected: Nothing can be sent any more.
        """
        waited = False
        while (self._paused or (self._waiting_senders and not waited)) and not self._ended and not self._close_sent:
            turn = self._loop.create_future()
            if waited:
                # Somebody who did not have to wait was quicker.
                self._waiting_senders.insert(0, turn)
            else:
                self._waiting_senders.append(turn)
            waited = True
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self._waiting_senders:
                    self._waiting_senders.remove(turn)
                else:
                    self._wake_sender()
                raise
        if waited and self._waiting_senders:
            # When this one has written, unless that is more than the client takes.
            self._loop.call_soon(self._wake_sender)
        if self._ended or self._close_sent:
            raise ClientDisconnected

    def _wake_sender(self) -> None:
        while self._waiting_senders and not self._paused:
            turn = self._waiting_senders.pop(0)
            if not turn.done():
                turn.set_result(None)
                return

    def _wake_all_senders(self) -> None:
        while self._waiting_senders:
            turn = self._waiting_senders.pop(0)
            if not turn.done():
                turn.set_result(None)

    def write_text(self, text: str) -> None:
        """Write a text message; see :meth:`turn`."""
        data = text.encode()
        self.transport.write(frame_header(TEXT, len(data)) + data)

    def write_frames(self, frames: bytes) -> None:
        """Write frames that have their headers; see :meth:`turn`."""
        self.transport.write(frames)

    def write_binary(self, header: bytes, payload: bytes | bytearray | memoryview = b"") -> None:
        """Write a binary message in two parts, the second of which must not change; see :meth:`turn`."""
        size = len(payload)
        header = frame_header(BINARY, len(header) + size) + header
        if size <= _JOINED:
            self.transport.write(b"".join((header, payload)))
        elif self._sends_lists:
            self.transport.writelines((header, payload))
        else:
            self.transport.write(header)
            self.transport.write(payload)

    async def send(self, message: Message) -> None:
        """Send a message, as ASGI has it; waits for the client to take those before."""
        if self._handshake is not None:
            if self._ended:
                raise ClientDisconnected
            self._answer(message)
            return
        kind = message["type"]
        if self._closed:
            raise RuntimeError(f"Unexpected ASGI message '{kind}', after sending 'websocket.close'.")
        if kind not in ("websocket.send", "websocket.close"):
            raise RuntimeError(f"Expected ASGI message 'websocket.send' or 'websocket.close', but got '{kind}'.")
        await self.turn()
        if kind == "websocket.close":
            self._close(Close(message.get("code", CloseCode.NORMAL_CLOSURE), message.get("reason") or ""))
        elif message.get("bytes") is not None:
            self.write_binary(message["bytes"])
        elif message.get("text") is not None:
            self.write_text(message["text"])

    def _close(self, close: Close) -> None:
        if self.transport.is_closing():
            return
        self._closed = True
        self._disconnect(close.code, close.reason)
        self._write_close(close)
        # The answer of the client is waited for.
        self._resume_reading()
        self._close_timer = self._loop.call_later(_CLOSE_TIMEOUT, self.transport.close)


_logger = logging.getLogger("uvicorn.error")


def buffered_frame_protocol() -> type[BufferedFrameProtocol]:
    """Return the class for a server: all its connections are in one event loop, and share what they receive into."""
    return type("BufferedFrameProtocol", (BufferedFrameProtocol,), {"__slots__": (), "buffers": ReceiveBuffers()})
