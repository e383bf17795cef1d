"""One connection of a client, seen from the server: many conversations over one WebSocket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.types import Receive, Scope, Send

from tailrace_common_api import (
    ConnectionLost,
    GoingAway,
    InternalError,
    MessageTooLarge,
    Overloaded,
    ProtocolError,
    TailraceError,
    Unauthenticated,
)
from tailrace_impl_common import Endpoint, answer_request, counted_refusals, serve_conversation
from tailrace_impl_common.messages import (
    UNARY_REQUESTS,
    Chunk,
    Request,
)
from tailrace_impl_websocket._binary_frame import BinaryMessage, frame_request
from tailrace_impl_websocket._codec import (
    MAX_TEXT_SIZE,
    PROTOCOL_VERSION,
    REQUESTS,
    SUBPROTOCOL,
    Authenticate,
    Cancel,
    Failure,
    Hello,
    Malformed,
    Ping,
    Pong,
    close_reason,
    decode_from_client,
    encode_from_server,
    text_size,
)
from tailrace_impl_websocket._error_table import wire_status
from tailrace_impl_websocket._frame_channel import frames_of
from tailrace_impl_websocket._origins import Origins
from tailrace_impl_websocket._server_conversation import ServerStream
from tailrace_impl_websocket._shared_frame import SharedFrame
from tailrace_server_api import Credentials, ResourceManager

logger = logging.getLogger(__name__)

_MOST_REPLIES = 256
"""Answers of the connection itself that may wait for a client that does not read."""
AUTHENTICATION_TIMEOUT = 5.0
"""Time for the first message of a client that has to show a token, in seconds."""
_CLOSE_TIMEOUT = 5.0
"""Time that the last words to a client may take, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerContext:
    """What every connection of one server shares."""

    manager: ResourceManager
    endpoint: Endpoint
    """What conversations need to know of the transport."""
    keepalive_interval: float
    """Announced to clients that cannot send protocol pings, in seconds."""
    max_connections: int
    """Most WebSockets and plain HTTP requests at the same time, together."""
    origins: Origins
    """Whose pages may use the server."""
    shared_frame: SharedFrame = field(default_factory=SharedFrame)
    """The frame that the next follower may need, too."""


class ServerConnection:
    """One WebSocket: a task that reads and hands out, and a task for each request.

    Reading never waits for sending, so that a client that stops taking data can still cancel, and is still heard by
    the keep-alive.
    """

    def __init__(
        self,
        context: ServerContext,
        credentials: Credentials,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        offered: str | None,
    ) -> None:
        """Serve the connection of an ASGI scope; :meth:`run` does it.

        Args:
            context: What all connections share.
            credentials: What the headers of the handshake show; a token among them was looked at.
            scope: Of ASGI.
            receive: Of ASGI.
            send: Of ASGI.
            offered: Token that was shown in another way, and not looked at; ``None`` for none.
        """
        self._context = context
        self._credentials = credentials if offered is None else replace(credentials, token=offered)
        self._may_authenticate = self._credentials.token is None
        self._frames = frames_of(scope, receive, send)
        self._streams: dict[int, ServerStream] = {}
        self._last_request = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._replies: list[str] = []
        self._replying = False
        self._closed = False
        self._going_away: GoingAway | None = None
        self._task: asyncio.Task[Any] | None = None

    @property
    def running(self) -> Collection[asyncio.Task[Any]]:
        """The tasks of the connection and of its requests, as far as they run."""
        return (*self._tasks, *([] if self._task is None else [self._task]))

    async def run(self) -> None:
        """Serve until the client leaves, or :meth:`end` was called."""
        self._task = asyncio.current_task()
        try:
            await self._transmit(self._frames.accept())
            if not await self._authenticate():
                return
            await self.send_text(
                encode_from_server(
                    None, Hello(PROTOCOL_VERSION, self._context.manager.limits, self._context.keepalive_interval)
                )
            )
            await self._frames.read(self)
        except ConnectionLost:
            pass
        except Malformed as malformed:
            await self.end(malformed.error)
        except asyncio.CancelledError:
            if not self._closed:
                raise
        except Exception:
            logger.exception("a connection failed")
            await self.end(InternalError("the connection failed; the server's log says why"))
        finally:
            self._closed = True
            tasks = tuple(self._tasks)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _authenticate(self) -> bool:
        """Let the client prove who it is, before anything else; return whether it did, and was not told otherwise."""
        manager = self._context.manager
        if manager.anonymous:
            return True
        try:
            with counted_refusals(self._context.endpoint, self._credentials.peer):
                if self._credentials.token is None:
                    token = await self._first_token()
                    if token is None:
                        return False
                    self._credentials = replace(self._credentials, token=token)
                    self._may_authenticate = False
                await manager.authenticate(self._credentials)
        except TailraceError as error:
            await self.end(error)
            return False
        return True

    async def _first_token(self) -> str | None:
        """Return the token in the client's first message; ``None`` when the client left.

        Raises:
            Unauthenticated: It is another message, or there is none in time.
        """
        try:
            async with asyncio.timeout(AUTHENTICATION_TIMEOUT):
                event = await self._frames.first()
        except TimeoutError:
            raise Unauthenticated(f"no token within {AUTHENTICATION_TIMEOUT:g} s") from None
        if event["type"] == "websocket.disconnect":
            return None
        text = event.get("text")
        message: object = None
        if text is not None and text_size(text) <= MAX_TEXT_SIZE:
            with suppress(Malformed):
                message = decode_from_client(text).message
        if not isinstance(message, Authenticate):
            raise Unauthenticated("a token is needed before anything else")
        return message.token

    # Sending

    @property
    def writable(self) -> bool:
        """Whether :meth:`write_chunk` may be called at the moment."""
        return self._frames.writable and not self._closed

    def write_chunk(self, request: int, chunk: Chunk) -> None:
        """Send a chunk without waiting; only while :attr:`writable`."""
        self._frames.write_chunk(request, chunk, self._context.shared_frame)

    async def send_binary(self, request: int, message: BinaryMessage) -> None:
        """Send a binary frame; waits for the transport.

        Raises:
            ConnectionLost: The client is gone.
        """
        await self._transmit(self._frames.send_binary(request, message, alone=len(self._streams) < 2))

    async def send_text(self, text: str) -> None:
        """Send a text frame; waits for the transport.

        Raises:
            ConnectionLost: The client is gone.
        """
        await self._transmit(self._frames.send_text(text))

    async def send_together(self, request: int, messages: Sequence[str | BinaryMessage]) -> None:
        """Send small messages of a request, texts encoded already; waits for the transport.

        Raises:
            ConnectionLost: The client is gone.
        """
        await self._transmit(self._frames.send_together(request, messages, alone=len(self._streams) < 2))

    async def _transmit(self, sending: Coroutine[Any, Any, None]) -> None:
        if self._closed:
            sending.close()
            raise ConnectionLost("the connection is closed")
        try:
            await sending
        except (OSError, RuntimeError) as error:
            # ASGI says OSError. Servers also raise RuntimeError, for what comes behind a close of their own.
            raise ConnectionLost(f"the connection is closed: {type(error).__name__}") from None

    def _reply(self, request: int | None, message: Pong | Failure) -> None:
        """Queue a message that is sent beside the reading.

        Raises:
            Malformed: The client asks for more than it reads.
        """
        if len(self._replies) >= _MOST_REPLIES:
            raise Malformed(None, ProtocolError(f"more than {_MOST_REPLIES} answers that are not read"))
        self._replies.append(encode_from_server(request, message))
        if not self._replying:
            self._replying = True
            self._spawn(self._send_replies())

    async def _send_replies(self) -> None:
        try:
            while self._replies:
                await self.send_text(self._replies.pop(0))
        except ConnectionLost:
            pass
        finally:
            self._replying = False

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Reading

    def take_frame(self, frame: bytes) -> None:
        """Take a binary frame of the client.

        Raises:
            Malformed: It cannot be understood; the connection is of no more use.
        """
        try:
            number = frame_request(frame)
        except ProtocolError as error:
            raise Malformed(None, error) from None
        stream = self._streams.get(number)
        if stream is not None:
            stream.put_frame(frame)
        else:
            self._refuse_unknown(number)

    def take_text(self, text: str) -> None:
        """Take a text frame of the client.

        Raises:
            Malformed: It cannot be understood; the connection is of no more use.
        """
        size = text_size(text)
        if size > MAX_TEXT_SIZE:
            raise Malformed(None, MessageTooLarge(size=size, maximum=MAX_TEXT_SIZE))
        try:
            number, message, trace = decode_from_client(text)
        except Malformed as malformed:
            if malformed.request is None:
                raise
            self._fail(malformed.request, malformed.error)
            return
        if isinstance(message, Ping):
            self._reply(None, Pong())
            return
        if isinstance(message, Authenticate):
            if self._may_authenticate:
                # Nobody asked, and the client could not know.
                self._may_authenticate = False
                return
            raise Malformed(None, ProtocolError("authenticate is the first message of a connection, or none"))
        self._may_authenticate = False
        assert number is not None
        if isinstance(message, REQUESTS):
            self._begin(number, message, trace)
            return
        stream = self._streams.get(number)
        if stream is None:
            self._refuse_unknown(number)
        elif isinstance(message, Cancel):
            # The client may use the number again, while the conversation still cleans up.
            del self._streams[number]
            stream.dismiss(None)
        else:
            stream.put_message(message)

    def _begin(self, number: int, request: Request, trace: Mapping[str, str]) -> None:
        if number in self._streams:
            self._fail(number, ProtocolError(f"request {number} is running already"))
            return
        self._last_request = max(self._last_request, number)
        try:
            with counted_refusals(self._context.endpoint, self._credentials.peer):
                self._admit()
        except TailraceError as error:
            self._reply(number, Failure(error))
            return
        stream = ServerStream(self, number, request, trace)
        self._streams[number] = stream
        stream.task = self._spawn(self._serve(number, stream))

    def _admit(self) -> None:
        if self._going_away is not None:
            raise self._going_away
        most = self._context.manager.limits.max_requests
        if len(self._streams) >= most or len(self._tasks) >= 2 * most:
            raise Overloaded(what="requests on one connection", retry_after=1.0)
        self._context.manager.admit()

    def _fail(self, number: int, error: TailraceError) -> None:
        """Answer a message that cannot be understood; it ends the request that it names."""
        stream = self._streams.get(number)
        if stream is not None:
            stream.fail(error)
        else:
            self._last_request = max(self._last_request, number)
            self._reply(number, Failure(error))

    def _refuse_unknown(self, number: int) -> None:
        """Take a message of a request that does not run: late, when the request has ended; else a mistake."""
        if number > self._last_request:
            self._last_request = number
            self._reply(number, Failure(ProtocolError(f"request {number} was never begun")))

    # Requests

    async def _serve(self, number: int, stream: ServerStream) -> None:
        stream.started = True
        failure: TailraceError | None = None
        try:
            if not stream.dismissed:
                await self._drive(number, stream)
        except TailraceError as error:
            failure = error
        except asyncio.CancelledError:
            if not stream.dismissed or self._closed:
                raise
        except Exception:
            logger.exception("a request failed")
            failure = InternalError("the request failed; the server's log says why")
        finally:
            if self._streams.get(number) is stream:
                del self._streams[number]
        if stream.dismissed:
            failure = stream.dismissal
        if failure is not None:
            await self._tell(number, failure)

    async def _tell(self, number: int, failure: TailraceError) -> None:
        try:
            await self.send_text(encode_from_server(number, Failure(failure)))
        except ConnectionLost:
            logger.debug("a client left before it was told: %s", failure.code)

    async def _drive(self, number: int, stream: ServerStream) -> None:
        context, request = self._context, stream.request
        with counted_refusals(context.endpoint, self._credentials.peer):
            service = await context.manager.authenticate(self._credentials)
        if isinstance(request, UNARY_REQUESTS):
            answer = await answer_request(request, service=service, endpoint=context.endpoint, trace=stream.trace)
            await self.send_text(encode_from_server(number, answer))
        else:
            await serve_conversation(request, stream, service=service, endpoint=context.endpoint, trace=stream.trace)

    # Ending

    def go_away(self, error: GoingAway) -> set[asyncio.Task[None]]:
        """Refuse new requests, tell streaming conversations ``error``, and return the tasks that still run."""
        self._going_away = error
        for stream in tuple(self._streams.values()):
            if not isinstance(stream.request, UNARY_REQUESTS):
                stream.dismiss(error)
        return set(self._tasks)

    async def end(self, error: TailraceError) -> None:
        """Tell the client why the connection ends, and close it; :meth:`run` then returns. Idempotent."""
        if self._closed:
            return
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self.send_text(encode_from_server(None, Failure(error)))
                self._closed = True
                await self._frames.close(wire_status(error).close_code, close_reason(error.message))
        except (ConnectionLost, OSError, RuntimeError, TimeoutError):
            logger.debug("a client was gone before it was told: %s", error.code)
        self._closed = True
        if self._task is not None and self._task is not asyncio.current_task():
            # It waits for a client that may never answer.
            self._task.cancel()


def offers_subprotocol(scope: Scope) -> bool:
    """Return whether the client speaks the protocol of this server."""
    return SUBPROTOCOL in scope.get("subprotocols", ())
