"""How a connection takes and sends its frames: through ASGI, or past it where the server is this package's own.

ASGI makes a dictionary of every message, wakes a task for it, and has binary messages in one piece only. None of that
is needed between a protocol class and a connection that both belong to this package.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from starlette.types import Message, Receive, Scope, Send

from tailrace_impl_common.messages import Chunk
from tailrace_impl_websocket._binary_frame import BinaryMessage, frame_of, frame_parts
from tailrace_impl_websocket._chunk_frame import chunk_header
from tailrace_impl_websocket._codec import SUBPROTOCOL
from tailrace_impl_websocket._frame_layout import BINARY, TEXT, frame_header
from tailrace_impl_websocket._shared_frame import SharedFrame

FRAMES_EXTENSION = "tailrace.frames"
"""ASGI extension of this package's own server: ``scope["extensions"][…]["channel"]`` is a :class:`FrameChannel`."""
_BATCH = 64
"""Messages to take in before other tasks run, where they arrive faster than they are asked for."""


class FrameReceiver(Protocol):
    """Who takes messages as they arrive; none of the methods raises anything."""

    def binary_received(self, data: bytes) -> None:
        """Take a whole binary message."""

    def text_received(self, text: str) -> None:
        """Take a whole text message."""

    def disconnected(self) -> None:
        """Learn that nothing more comes. May be called more than once."""


class FrameChannel(Protocol):
    """A protocol class that takes and gives frames as they are, once the connection was accepted."""

    def hand_to(self, receiver: FrameReceiver | None) -> None:
        """Give every message to ``receiver``, those that wait already first; ``None``: to nobody any more."""

    @property
    def writable(self) -> bool:
        """Whether a message can be written without waiting for the client, or for those who wait for it."""

    async def turn(self) -> None:
        """Wait until a message can be written, in the order in which it was asked for; it has to be written at once.

        Raises:
            OSError: Nothing can be sent any more.
        """

    def write_text(self, text: str) -> None:
        """Write a text message."""

    def write_frames(self, frames: bytes) -> None:
        """Write frames that have their headers."""

    def write_binary(self, header: bytes, payload: bytes | bytearray | memoryview = b"") -> None:
        """Write a binary message in two parts, the second of which must not change."""


class FrameTaker(Protocol):
    """Who is to take the messages of a connection."""

    def take_frame(self, frame: bytes) -> None:
        """Take a binary message; what is raised ends the reading."""

    def take_text(self, text: str) -> None:
        """Take a text message; what is raised ends the reading."""


class AsgiFrames:
    """The frames of a connection under any ASGI server."""

    def __init__(self, receive: Receive, send: Send) -> None:
        """Use what ASGI gives for a connection."""
        self._receive = receive
        self._send = send
        self._sending_frame = asyncio.Lock()

    async def accept(self) -> None:
        """Accept the connection."""
        await self._send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL})

    async def first(self) -> Message:
        """Return the first message that arrives, as ASGI has it."""
        return await self._receive()

    async def read(self, taker: FrameTaker) -> None:
        """Give all messages to ``taker`` until the client leaves.

        Raises:
            Exception: What ``taker`` raised.
        """
        receive = self._receive
        taken = 0
        while True:
            event = await receive()
            frame = event.get("bytes")
            if frame is not None:
                taker.take_frame(frame)
                # Nothing may keep the frame alive while the next one is awaited.
                del frame, event
            elif event["type"] == "websocket.disconnect":
                return
            else:
                taker.take_text(event["text"])
            taken += 1
            if not taken % _BATCH:
                # A receive that finds something waiting returns at once, for as long as the client keeps sending.
                await asyncio.sleep(0)

    async def send_text(self, text: str) -> None:
        """Send a text message; waits for the transport.

        Raises:
            OSError: Nothing can be sent any more.
            RuntimeError: The same, said by servers that do not keep to ASGI there.
        """
        await self._send({"type": "websocket.send", "text": text})

    async def send_binary(self, request: int, message: BinaryMessage, *, alone: bool) -> None:
        """Send a binary message; waits for the transport.

        Args:
            request: Number of its request.
            message: What to send.
            alone: Whether no other request can want to send at the same time.

        Raises:
            OSError: Nothing can be sent any more.
            RuntimeError: The same, said by servers that do not keep to ASGI there.
        """
        if alone:
            await self._send({"type": "websocket.send", "bytes": frame_of(request, message)})
            return
        # What many conversations want to send to a client that does not read is not encoded before it is its turn.
        async with self._sending_frame:
            await self._send({"type": "websocket.send", "bytes": frame_of(request, message)})

    async def send_together(self, request: int, messages: Sequence[str | BinaryMessage], *, alone: bool) -> None:
        """Send small messages of a request, text and binary, in order; arguments and errors as above."""
        for message in messages:
            if isinstance(message, str):
                await self.send_text(message)
            else:
                await self.send_binary(request, message, alone=alone)

    @property
    def writable(self) -> bool:
        """Whether :meth:`write_chunk` may be called at the moment; never, where ASGI has to be waited for."""
        return False

    def write_chunk(self, request: int, chunk: Chunk, shared: SharedFrame) -> None:
        """Send a chunk without waiting; only while :attr:`writable`."""
        raise NotImplementedError("ASGI has to be waited for: this channel is never `writable`")

    async def close(self, code: int, reason: str) -> None:
        """Close the connection; errors as those of :meth:`send_text`."""
        await self._send({"type": "websocket.close", "code": code, "reason": reason})


class DirectFrames(AsgiFrames):
    """The frames of a connection under the server of this package."""

    def __init__(self, receive: Receive, send: Send, channel: FrameChannel) -> None:
        """Use ``channel`` once the connection was accepted."""
        super().__init__(receive, send)
        self._channel = channel
        self._taker: FrameTaker | None = None
        self._ended: asyncio.Future[None] | None = None

    async def read(self, taker: FrameTaker) -> None:
        self._taker = taker
        self._ended = asyncio.get_running_loop().create_future()
        self._channel.hand_to(self)
        try:
            await self._ended
        finally:
            self._taker = None

    def binary_received(self, data: bytes) -> None:
        if self._taker is not None:
            try:
                self._taker.take_frame(data)
            except Exception as error:  # noqa: BLE001  # the task that reads raises it
                self._fail(error)

    def text_received(self, text: str) -> None:
        if self._taker is not None:
            try:
                self._taker.take_text(text)
            except Exception as error:  # noqa: BLE001  # the task that reads raises it
                self._fail(error)

    def disconnected(self) -> None:
        self._taker = None
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._taker = None
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(error)

    async def send_text(self, text: str) -> None:
        if not self._channel.writable:
            await self._channel.turn()
        self._channel.write_text(text)

    async def send_binary(self, request: int, message: BinaryMessage, *, alone: bool) -> None:
        # Encoded when it is its turn: what waits for a client that does not read is what the conversations hold anyway.
        if not self._channel.writable:
            await self._channel.turn()
        self._channel.write_binary(*frame_parts(request, message))

    async def send_together(self, request: int, messages: Sequence[str | BinaryMessage], *, alone: bool) -> None:
        if not self._channel.writable:
            await self._channel.turn()
        # A system call for all of them, and the client is woken once.
        self._channel.write_frames(b"".join([_whole_frame(request, message) for message in messages]))

    @property
    def writable(self) -> bool:
        return self._channel.writable

    def write_chunk(self, request: int, chunk: Chunk, shared: SharedFrame) -> None:
        frame = shared.frame(request, chunk)
        if frame is None:
            self._channel.write_binary(chunk_header(request, chunk), chunk.data)
        else:
            self._channel.write_frames(frame)


def _whole_frame(request: int, message: str | BinaryMessage) -> bytes:
    if isinstance(message, str):
        data = message.encode()
        return frame_header(TEXT, len(data)) + data
    header, payload = frame_parts(request, message)
    return b"".join((frame_header(BINARY, len(header) + len(payload)), header, payload))


def frames_of(scope: Scope, receive: Receive, send: Send) -> AsgiFrames:
    """Return the frames of a connection."""
    extension = scope.get("extensions", {}).get(FRAMES_EXTENSION)
    return AsgiFrames(receive, send) if extension is None else DirectFrames(receive, send, extension["channel"])
