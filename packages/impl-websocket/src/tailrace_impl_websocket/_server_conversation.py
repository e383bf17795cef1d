"""One conversation of a client, seen from the server: what arrived, and how much more may arrive."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tailrace_common_api import (
    MEBIBYTE,
    ConnectionLost,
    MessageTooLarge,
    ProtocolError,
    TailraceError,
)
from tailrace_impl_common import MessageStream
from tailrace_impl_common.messages import (
    UNARY_REQUESTS,
    UPLOAD_REQUESTS,
    WATCH_REQUESTS,
    Chunk,
    ClientMessage,
    Opened,
    Request,
    ServerMessage,
    Window,
)
from tailrace_impl_common.record_messages import BulkOpened, Deliveries, OpenBulk, RecordBatch, Settle
from tailrace_impl_websocket._binary_frame import data_size, parse_frame
from tailrace_impl_websocket._chunk_frame import CHUNK_LAYOUT, MAX_FRAME_SIZE
from tailrace_impl_websocket._codec import encode_from_server
from tailrace_impl_websocket._record_frame import RECORDS_LAYOUT

if TYPE_CHECKING:
    from tailrace_impl_websocket._server_streams import ServerConnection

_MOST_CONTROL = 1024
"""Control messages of one conversation that may wait; a client that obeys the protocol needs a handful."""
_MOST_ANSWERS = 8 * MEBIBYTE
"""Answers to deliveries that may wait, in bytes: each counts for its reason and for 64 more. That is one for each of a
hundred thousand deliveries. They come many to a message, so that counting messages would bound nothing."""
_ANSWER_SIZE = 64


class ServerStream(MessageStream[ServerMessage, ClientMessage]):
    """One conversation: what arrived and was not taken yet, and how much more may arrive."""

    __slots__ = (
        "_answers",
        "_connection",
        "_control",
        "_failure",
        "_inbound",
        "_layout",
        "_number",
        "_room",
        "_until",
        "_waiter",
        "dismissal",
        "dismissed",
        "request",
        "started",
        "task",
        "trace",
    )

    def __init__(self, connection: ServerConnection, number: int, request: Request, trace: Mapping[str, str]) -> None:
        self._connection = connection
        self._number = number
        self.request = request
        self.trace = trace
        """Trace context of the caller; empty for none."""
        self.task: asyncio.Task[None] | None = None
        self.started = False
        """Whether the task runs: one that is cancelled before would not even clean up."""
        self.dismissed = False
        """Whether the conversation was ended from outside."""
        self.dismissal: TailraceError | None = None
        """What to tell the client of that; ``None``: nothing."""
        # Binary frames are kept as they arrived: they are decoded by who takes them, and small until then.
        # Made with the first of them: a deque takes 760 bytes, and most followers never say anything.
        self._inbound: deque[bytes | ClientMessage] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._failure: TailraceError | None = None
        self._control = 0
        self._answers = 0
        # Of the binary frames that the client may send; 0: of none.
        self._layout = (
            CHUNK_LAYOUT
            if isinstance(request, UPLOAD_REQUESTS)
            else RECORDS_LAYOUT
            if isinstance(request, OpenBulk)
            else 0
        )
        self._room = 0
        self._until = 0

    # The conversation's side

    async def send(self, message: ServerMessage) -> None:
        if isinstance(message, Chunk | RecordBatch | Deliveries):
            await self._connection.send_binary(self._number, message)
        else:
            await self._connection.send_text(self._text_of(message))

    async def send_together(self, *messages: ServerMessage) -> None:
        await self._send_all(messages)

    async def send_last(self, *messages: ServerMessage) -> None:
        await self._send_all(messages)

    async def _send_all(self, messages: Sequence[ServerMessage]) -> None:
        prepared = [
            message if isinstance(message, Chunk | RecordBatch | Deliveries) else self._text_of(message)
            for message in messages
        ]
        await self._connection.send_together(self._number, prepared)

    def _text_of(self, message: ServerMessage) -> str:
        # Granted before it is sent: the client may answer before the call returns.
        if isinstance(message, Opened):
            self._until = message.until
            self._room = message.until - message.offset
        elif isinstance(message, BulkOpened):
            self._until = self._room = 0 if message.result is not None else message.until
        elif isinstance(message, Window):
            self._room += max(0, message.until - self._until)
            self._until = max(self._until, message.until)
        return encode_from_server(self._number, message)

    @property
    def writer(self) -> Callable[[ServerMessage], None] | None:
        return self._write if self._connection.writable else None

    def _write(self, message: ServerMessage) -> None:
        assert isinstance(message, Chunk)
        self._connection.write_chunk(self._number, message)

    async def receive(self) -> ClientMessage | None:
        while not self._inbound:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        assert self._inbound is not None
        message = self._inbound.popleft()
        if isinstance(message, bytes):
            content = parse_frame(message)
            assert not isinstance(content, Deliveries)
            if isinstance(content, Chunk) and content.checkpoint is not None:
                raise ProtocolError("a checkpoint in a chunk of an upload")
            return content
        if isinstance(message, Settle):
            self._answers -= _answers_size(message)
        else:
            self._control -= 1
        return message

    # The connection's side

    def put_frame(self, frame: bytes) -> None:
        """Take a binary frame of the client."""
        if self._failure is not None:
            return
        # Counted by size and not by what the frame says of its offset: what is held must be what was granted.
        self._room -= data_size(frame)
        if frame[0] != self._layout:
            self.fail(ProtocolError(f"a binary frame of layout {frame[0]} in {type(self.request).__name__}"))
        elif len(frame) > MAX_FRAME_SIZE:
            self.fail(MessageTooLarge(size=len(frame), maximum=MAX_FRAME_SIZE))
        elif self._room < 0:
            self.fail(ProtocolError(f"{-self._room} bytes more than the window allows"))
        else:
            self._keep(frame)

    def put_message(self, message: ClientMessage) -> None:
        """Take a control message of the client."""
        if self._failure is not None:
            return
        if isinstance(message, Window) and self._inbound and type(self._inbound[-1]) is Window:
            # The later grant includes the earlier one.
            self._inbound[-1] = message
            return
        if isinstance(message, Settle):
            self._answers += _answers_size(message)
            if self._answers > _MOST_ANSWERS:
                self.fail(ProtocolError("more answers to deliveries than anyone has, without waiting for what counts"))
                return
            self._keep(message)
            return
        if self._control >= _MOST_CONTROL:
            self.fail(ProtocolError(f"more than {_MOST_CONTROL} messages without waiting for an answer"))
            return
        self._control += 1
        self._keep(message)

    def fail(self, error: TailraceError) -> None:
        """End the conversation with ``error``, behind what arrived before."""
        if self._failure is not None:
            return
        self._failure = error
        self._wake()
        if isinstance(self.request, WATCH_REQUESTS + UNARY_REQUESTS):
            # Nobody receives there, since the client has nothing to say.
            self.dismiss(error)

    def dismiss(self, error: TailraceError | None) -> None:
        """Cancel the conversation, and tell the client why unless it was the client who left."""
        self._failure = self._failure or error or ConnectionLost("the client left")
        if not self.dismissed:
            self.dismissed = True
            self.dismissal = error
            if self.started and self.task is not None:
                self.task.cancel()

    def _keep(self, message: bytes | ClientMessage) -> None:
        if self._inbound is None:
            self._inbound = deque()
        self._inbound.append(message)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _answers_size(message: Settle) -> int:
    return sum(_ANSWER_SIZE + len(settlement.reason) for settlement in message.settlements)
