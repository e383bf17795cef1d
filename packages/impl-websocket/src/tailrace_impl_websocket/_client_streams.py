"""One connection to a server, seen from the client: many conversations over one WebSocket."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import replace

from tailrace_common_api import (
    ConnectionLost,
    MessageTooLarge,
    ProtocolError,
    TailraceError,
    error_from_wire,
)
from tailrace_impl_common import ClientStream, ReceiveWindow, outgoing_trace
from tailrace_impl_common.messages import (
    DOWNLOAD_REQUESTS,
    UNARY_REQUESTS,
    Buffer,
    Checkpoint,
    Chunk,
    ClientMessage,
    ContextEvent,
    DownloadRequest,
    End,
    Finished,
    Opened,
    Request,
    ServerMessage,
    Started,
    Status,
    Watched,
    Window,
)
from tailrace_impl_common.record_messages import (
    BulkCommitted,
    BulkOpened,
    Credit,
    CreditSet,
    Deliveries,
    Left,
    Query,
    QueryEnd,
    QueryStarted,
    RecordBatch,
    Settle,
    Settled,
    Work,
)
from tailrace_impl_websocket._binary_frame import data_size, frame_parts, frame_request, parse_frame
from tailrace_impl_websocket._chunk_frame import CHUNK_LAYOUT, MAX_FRAME_SIZE
from tailrace_impl_websocket._client_frames import ClientFrames
from tailrace_impl_websocket._codec import (
    MAX_REQUEST,
    Cancel,
    Failure,
    Hello,
    Malformed,
    Pong,
    decode_from_server,
    encode_from_client,
)
from tailrace_impl_websocket._frame_reader import Payload
from tailrace_impl_websocket._record_frame import DELIVERIES_LAYOUT, RECORDS_LAYOUT, delivery_figures

logger = logging.getLogger(__name__)

_MOST_CONTROL = 4096
"""Control messages of one conversation that may wait; a server that obeys the protocol sends a handful."""
_LAST_MESSAGES = (Finished, End, Watched, BulkCommitted, QueryEnd, Left)
"""Messages that end their conversation."""
_FIGURES = (Status, Checkpoint, Window, CreditSet)
"""Messages of which the newest says all that an older one said."""


class WebSocketClientStream(ClientStream):
    """One conversation: what arrived and was not taken yet.

    A reader always has a window, so that one that takes nothing holds up no other conversation on the connection. Where
    the request asks for none, the stream has one of its own and renews it as its data is taken. What a consumer may be
    sent is its credit.
    """

    def __init__(self, link: Link, number: int, request: Request, window: int) -> None:
        """Begin as request ``number`` on ``link``; ``window`` is used where ``request`` has none, in bytes."""
        self._link = link
        self._number = number
        self._own_window: ReceiveWindow | None = None
        self._own_size = 0
        self._taken = 0
        self._first_window = 0
        self._room = 0
        self._until = 0
        self._credit = (0, 0)
        self._held = [0, 0]
        self._unsettled = 0
        # Of the binary frames that the server may send; 0: of none.
        self._layout = 0
        if isinstance(request, DOWNLOAD_REQUESTS):
            self._layout = CHUNK_LAYOUT
            request = self._with_window(request, window)
        elif isinstance(request, Query):
            self._layout = RECORDS_LAYOUT
            request = self._with_window(request, window)
        elif isinstance(request, Work):
            self._layout = DELIVERIES_LAYOUT
            self._credit = (request.records, request.bytes)
        self.request = request
        """First message of the conversation, as it is sent."""
        self._unary = isinstance(request, UNARY_REQUESTS)
        # Binary frames are kept as they arrived: they are decoded by who takes them, and small until then.
        self._inbound: deque[Payload | ServerMessage] = deque()
        self._control = 0
        self._waiter: asyncio.Future[None] | None = None
        self._failure: TailraceError | None = None
        self._complete = False

    def _with_window(self, request: DownloadRequest | Query, window: int) -> DownloadRequest | Query:
        if not request.window:
            self._own_size = window
            request = replace(request, window=window)
        self._first_window = self._room = request.window
        return request

    # The conversation's side

    async def send(self, message: ClientMessage) -> None:
        if self._failure is not None:
            raise self._failure
        if self._complete:
            raise ConnectionLost("the conversation has ended")
        if isinstance(message, Chunk | RecordBatch):
            await self._link.send_parts(*frame_parts(self._number, message))
            return
        # Each before it is sent: the answer may be there before the call returns.
        if isinstance(message, Window):
            self._grant(message.until)
        elif isinstance(message, Credit):
            records, size = self._credit
            # What is taken back may be on its way.
            self._credit = (max(records, message.records), max(size, message.bytes))
        elif isinstance(message, Settle):
            self._unsettled += 1
        await self._link.send(encode_from_client(self._number, message))

    async def receive(self) -> ServerMessage | None:
        while not self._inbound:
            if self._failure is not None:
                raise self._failure
            if self._complete:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message = self._inbound.popleft()
        if not isinstance(message, bytes | memoryview):
            if not isinstance(message, Settled):
                self._control -= 1
            return message
        content = parse_frame(message)
        if isinstance(content, Deliveries):
            self._hold(message, -1)
        elif self._own_window is not None:
            self._taken += data_size(message)
            # Without waiting: who is cancelled there would have taken a message that nobody gets.
            self._renew(self._own_window, self._taken)
        return content

    async def close(self) -> None:
        if self._failure is None:
            self._failure = ConnectionLost("the conversation was closed")
        self._inbound.clear()
        self._wake()
        # Without waiting: a server that reads nothing would keep who wants to leave.
        self._link.cancel(self._number)

    def _renew(self, window: ReceiveWindow, consumed: int) -> None:
        until = window.consume(consumed)
        if until is not None and not self._complete:
            self._grant(until)
            self._link.put(encode_from_client(self._number, Window(until)))

    def _grant(self, until: int) -> None:
        self._room += max(0, until - self._until)
        self._until = max(self._until, until)

    # The connection's side

    def put_frame(self, frame: Payload) -> None:
        """Take a binary frame of the server."""
        if self._failure is not None or self._complete:
            return
        if frame[0] != self._layout:
            self._refuse(ProtocolError(f"a binary frame of layout {frame[0]} in {type(self.request).__name__}"))
        elif len(frame) > MAX_FRAME_SIZE:
            self._refuse(MessageTooLarge(size=len(frame), maximum=MAX_FRAME_SIZE))
        elif self._layout == DELIVERIES_LAYOUT:
            self._put_deliveries(frame)
        elif self._room <= 0:
            self._refuse(ProtocolError(f"data where the window was used up {-self._room} bytes ago"))
        else:
            # The last frame may go beyond the window.
            self._room -= data_size(frame)
            self._inbound.append(frame)
            self._wake()

    def _put_deliveries(self, frame: Payload) -> None:
        held = self._held[0]
        self._hold(frame, 1)
        records, size = self._credit
        # A record that is larger than the credit comes when nothing else is here.
        if self._held[0] > records or (held and self._held[1] > size):
            self._refuse(ProtocolError(f"deliveries beyond the credit of {records} records and {size} bytes"))
            return
        self._inbound.append(frame)
        self._wake()

    def _hold(self, frame: Payload, sign: int) -> None:
        """Count the deliveries of a frame that nobody has taken."""
        records, size = delivery_figures(frame)
        self._held[0] += sign * records
        self._held[1] += sign * size

    def put_message(self, message: ServerMessage) -> None:
        """Take a control message of the server."""
        if self._failure is not None or self._complete:
            return
        if isinstance(message, Started):
            self._until = message.offset + self._first_window
            self._taken = message.offset
            if self._own_size:
                self._own_window = ReceiveWindow(self._own_size, offset=message.offset)
        elif isinstance(message, QueryStarted):
            self._until = self._first_window
            if self._own_size:
                self._own_window = ReceiveWindow(self._own_size)
        elif isinstance(message, Settled):
            self._put_settled(message)
            return
        if (
            self._unary
            or isinstance(message, _LAST_MESSAGES)
            or (isinstance(message, Opened) and message.status.state.terminal)
            or (isinstance(message, BulkOpened) and message.result is not None)
        ):
            self._complete = True
            self._link.forget(self._number)
        if self._inbound and isinstance(message, _FIGURES) and type(self._inbound[-1]) is type(message):
            self._inbound[-1] = message
            return
        if self._control >= _MOST_CONTROL and not self._complete:
            if not isinstance(message, ContextEvent):
                self._refuse(ProtocolError(f"more than {_MOST_CONTROL} messages that nobody asked for"))
                return
            # Who is slower than what happens misses the oldest, which the gap in the numbers shows.
            self._inbound.popleft()
            self._control -= 1
        self._control += 1
        self._inbound.append(message)
        self._wake()

    def _put_settled(self, message: Settled) -> None:
        if not self._unsettled:
            self._refuse(ProtocolError("an answer to deliveries was confirmed that nobody gave"))
            return
        self._unsettled -= 1
        self._inbound.append(message)
        self._wake()

    def fail(self, error: TailraceError) -> None:
        """End the conversation with ``error``, behind what arrived before."""
        if self._failure is None and not self._complete:
            self._failure = error
            self._wake()

    def _refuse(self, error: TailraceError) -> None:
        self.fail(error)
        self._link.cancel(self._number)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Link:
    """One open WebSocket and the conversations over it.

    What arrives is handed out all the time: what a conversation may be sent is what it can hold.
    """

    def __init__(self, websocket: ClientFrames, hello: Hello, address: str) -> None:
        """Take what arrives at ``websocket``, on which ``hello`` was received; ``address`` is for error texts."""
        self.hello = hello
        self._websocket = websocket
        self._address = address
        self._streams: dict[int, WebSocketClientStream] = {}
        self._last = 0
        self._farewell: TailraceError | None = None
        self._closed_here = False
        self._ended = False
        websocket.hand_to(self)

    @property
    def usable(self) -> bool:
        """Whether new requests can be sent over it."""
        return not self._ended and self._farewell is None and self._websocket.is_open

    async def begin(self, request: Request, window: int) -> WebSocketClientStream:
        """Send the first message of a conversation.

        Raises:
            ConnectionLost: The connection ended.
            MessageTooLarge: The request does not fit into a control message.
        """
        number = self._next_number()
        stream = WebSocketClientStream(self, number, request, window)
        text = encode_from_client(number, stream.request, outgoing_trace())
        # Before it is sent: the answer may be there before the call returns.
        self._streams[number] = stream
        try:
            await self.send(text)
        except BaseException:
            await stream.close()
            raise
        return stream

    def _next_number(self) -> int:
        number = self._last % MAX_REQUEST + 1
        while number in self._streams:
            number = number % MAX_REQUEST + 1
        self._last = number
        return number

    async def send(self, text: str) -> None:
        """Send a control message; waits for the transport.

        Raises:
            ConnectionLost: The connection ended.
        """
        try:
            await self._websocket.send_text(text)
        except OSError:
            raise self._lost() from None

    async def send_parts(self, header: bytes, payload: Buffer) -> None:
        """Send a binary frame that is in two parts; waits for the transport.

        Raises:
            ConnectionLost: The connection ended.
        """
        try:
            await self._websocket.send_parts(header, payload)
        except OSError:
            raise self._lost() from None

    def forget(self, number: int) -> bool:
        """Hand out nothing more for a request; return whether it was running."""
        return self._streams.pop(number, None) is not None

    def put(self, text: str) -> None:
        """Send a small control message, of which there are few, without waiting; dropped where the connection ended."""
        self._websocket.put_text(text)

    def cancel(self, number: int) -> None:
        """Hand out nothing more for a request, and tell the server, if it was running."""
        if self.forget(number):
            self.put(encode_from_client(number, Cancel()))

    async def close(self) -> None:
        """End every conversation and the connection. Idempotent.

        One that is cancelled takes no leave of the server, and ends everything all the same.
        """
        self._closed_here = self._closed_here or not self._ended
        self._ended = True
        self._fail_all()
        try:
            await self._websocket.close()
        finally:
            self._websocket.transport.abort()

    def _lost(self) -> TailraceError:
        """Return why the connection is of no more use, a new error each time."""
        if self._farewell is not None:
            return error_from_wire(self._farewell.code, self._farewell.message, self._farewell.details())
        if self._closed_here:
            return ConnectionLost(f"the connection to {self._address} was closed")
        return ConnectionLost(f"the connection to {self._address} was lost: {self._websocket.end}")

    def _fail_all(self) -> None:
        streams = tuple(self._streams.values())
        self._streams.clear()
        for stream in streams:
            stream.fail(self._lost())

    # What the connection says

    def binary_received(self, data: Payload) -> None:
        """Hand out a binary message."""
        if self._ended:
            return
        try:
            stream = self._streams.get(frame_request(data))
        except TailraceError as error:
            self._leave(error)
            return
        # Late messages of requests that were cancelled belong to nobody.
        if stream is not None:
            stream.put_frame(data)

    def text_received(self, text: str) -> None:
        """Hand out a control message."""
        if self._ended:
            return
        try:
            self._take_text(text)
        except TailraceError as error:
            self._leave(error)

    def disconnected(self) -> None:
        """End every conversation: nothing more comes."""
        self._ended = True
        self._fail_all()

    def _leave(self, error: TailraceError) -> None:
        """Leave a server that cannot be understood; the connection is of no more use."""
        self._farewell = self._farewell or error
        self.disconnected()
        self._websocket.leave()

    def _take_text(self, text: str) -> None:
        try:
            number, message = decode_from_server(text)
        except Malformed as malformed:
            stream = None if malformed.request is None else self._streams.get(malformed.request)
            if malformed.request is None:
                raise malformed.error from None
            if stream is not None:
                stream.fail(malformed.error)
                self.cancel(malformed.request)
            return
        if number is None:
            if isinstance(message, Failure):
                self._farewell = message.error
                logger.info("%s ends the connection: %s", self._address, ascii(message.error.message))
            elif isinstance(message, Hello):
                raise ProtocolError("a second hello on one connection")
            return
        stream = self._streams.get(number)
        if stream is None:
            return
        if isinstance(message, Failure):
            stream.fail(message.error)
            self.forget(number)
        elif not isinstance(message, Hello | Pong):
            stream.put_message(message)
