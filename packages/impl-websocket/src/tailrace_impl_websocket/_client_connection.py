"""How a client's WebSocket is opened: by the library, which leaves the frames to this package afterwards."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.protocol import State

from tailrace_impl_common import LOOKS_PER_TIMEOUT, Patience, cancel_and_wait
from tailrace_impl_common.messages import Buffer
from tailrace_impl_websocket._chunk_frame import MAX_FRAME_SIZE
from tailrace_impl_websocket._client_frames import ClientFrameProtocol, ClientFrames, MessageReceiver
from tailrace_impl_websocket._frame_reader import Payload

logger = logging.getLogger(__name__)

MAX_MESSAGE_SIZE = 2 * MAX_FRAME_SIZE
"""Largest message of a server, in bytes: above the largest frame of the binding, so that a frame that is too large
fails its request and no other one."""
_END_OF_HEAD = b"\r\n\r\n"


class OpeningConnection(ClientConnection):
    """The library's connection as far as the handshake goes.

    Where an extension was agreed on, which the library knows and this package does not, it goes on.
    """

    _own: ClientFrameProtocol | None = None
    _head = b""
    """The last bytes of what was received of the answer's head."""
    _answered = False

    @property
    def frames(self) -> ClientFrames:
        """The frames of the connection, once it is open."""
        return self._own or LibraryFrames(self)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            super().data_received(data)
            return
        seen = self._head + data
        end = seen.find(_END_OF_HEAD)
        if end < 0:
            self._head = seen[-len(_END_OF_HEAD) + 1 :]
            super().data_received(data)
            return
        self._answered = True
        # The library may see of what follows its own part only what is for it.
        size = end + len(_END_OF_HEAD) - len(self._head)
        self._head = b""
        super().data_received(data[:size])
        rest = data[size:]
        # Here or never: once the library has seen what follows, only the library knows what that was.
        if self.state is State.OPEN and not self.protocol.extensions:
            self._hand_over(rest)
        elif rest:
            super().data_received(rest)

    def _hand_over(self, received: bytes) -> None:
        self._own = ClientFrameProtocol(
            self.transport,
            max_size=MAX_MESSAGE_SIZE,
            ping_interval=self.ping_interval,
            ping_timeout=self.ping_timeout,
            close_timeout=self.close_timeout,
        )
        self._own.begin(received)

    def start_keepalive(self) -> None:
        if self._own is None:
            super().start_keepalive()

    async def keepalive(self) -> None:
        # As the library's, which would not see that bytes flow.
        assert self.ping_interval is not None
        latency = 0.0
        while True:
            await asyncio.sleep(max(0.0, self.ping_interval - latency))
            patience = Patience(self.transport)
            answer = asyncio.ensure_future(await self.ping())
            if self.ping_timeout is None:
                continue
            while not (await asyncio.wait((answer,), timeout=self.ping_timeout / LOOKS_PER_TIMEOUT))[0]:
                if not patience.lasts():
                    async with self.send_context():
                        self.protocol.fail(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")
                    return
            latency = answer.result()


class LibraryFrames:
    """The frames of a connection that stays the library's."""

    def __init__(self, connection: ClientConnection) -> None:
        """Use ``connection``, which is open."""
        self._connection = connection
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._putting: set[asyncio.Task[None]] = set()

    @property
    def transport(self) -> asyncio.Transport:
        """What is below it."""
        return self._connection.transport

    @property
    def is_open(self) -> bool:
        """Whether neither side has ended the connection."""
        return self._connection.state is State.OPEN

    @property
    def end(self) -> str:
        """How the connection ended, for error texts."""
        code, reason = self._connection.close_code, self._connection.close_reason
        return f"closed with code {code}" + (f", {reason!a}" if reason else "") if code else "broken"

    async def first(self) -> str | Payload | None:
        """Return the first message; ``None`` when the connection ended before."""
        try:
            return await self._connection.recv()
        except ConnectionClosed:
            return None

    def hand_to(self, receiver: MessageReceiver) -> None:
        """Give every message to ``receiver``."""
        self._task = asyncio.create_task(self._read(receiver), name="tailrace websocket reader")

    async def _read(self, receiver: MessageReceiver) -> None:
        receive = self._connection.recv
        try:
            while True:
                message = await receive()
                if isinstance(message, bytes):
                    receiver.binary_received(message)
                else:
                    receiver.text_received(message)
                # Nothing may keep the message alive while the next one is awaited.
                del message
        except ConnectionClosed:
            pass
        except Exception:
            logger.exception("what a server sent could not be taken")
        finally:
            # Whatever ends this, nobody may wait for more.
            receiver.disconnected()

    async def send_text(self, text: str) -> None:
        """Send a text message, and wait until the transport has room for more.

        Raises:
            OSError: The connection ended.
        """
        try:
            await self._connection.send(text)
        except ConnectionClosed:
            raise ConnectionResetError from None

    def put_text(self, text: str) -> None:
        """Send a text message, whether or not there is room for it: a small one, of which there are few.

        Where the connection has ended, it is dropped.
        """
        task = asyncio.create_task(self._put(text), name="tailrace websocket sender")
        self._putting.add(task)
        task.add_done_callback(self._putting.discard)

    async def _put(self, text: str) -> None:
        with suppress(ConnectionClosed):
            await self._connection.send(text)

    async def send_parts(self, header: bytes, payload: Buffer) -> None:
        """Send a binary message in two parts; as :meth:`send_text`."""
        try:
            await self._connection.send(b"".join((header, payload)))
        except ConnectionClosed:
            raise ConnectionResetError from None

    def leave(self) -> None:
        """Tell the server that the connection ends, without waiting for its answer. Idempotent."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._connection.close(), name="tailrace websocket close")

    async def close(self) -> None:
        """End the connection; waits for the server to agree, as long as it may take. Idempotent."""
        try:
            # The library's own limit begins when there is room for its last frame.
            async with asyncio.timeout(self._connection.close_timeout):
                await self._connection.close()
        except TimeoutError:
            pass
        finally:
            self.transport.abort()
            tasks = (self._task, self._closing, *self._putting)
            await cancel_and_wait(*(task for task in tasks if task is not None))
