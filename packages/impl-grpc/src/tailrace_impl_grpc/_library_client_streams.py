"""A conversation over a call of ``grpc.aio``, on the client's side."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import grpc
import grpc.aio

from tailrace_common_api import ConnectionLost, ProtocolError, TailraceError
from tailrace_impl_common import ClientStream
from tailrace_impl_common.messages import ClientMessage, ServerMessage, Watched
from tailrace_impl_grpc._call_status import STATUS_TIMEOUT, CallStatus
from tailrace_impl_grpc._client_streams import is_last
from tailrace_impl_grpc._codec import WATCHES, Method
from tailrace_impl_grpc._error_table import error_from_status

_Call = grpc.aio.StreamStreamCall[bytes, bytes] | grpc.aio.UnaryStreamCall[bytes, bytes]


class LibraryClientStream(ClientStream):
    """A conversation over one call. Cancelling :meth:`send` or :meth:`receive` ends it."""

    def __init__(
        self, method: Method, call: _Call, address: str, on_close: Callable[[LibraryClientStream], None]
    ) -> None:
        """Use ``call``, which is connected or about to be, with the server at ``address``."""
        self._address = address
        self._on_close = on_close
        self._method = method
        self._call = call
        # Asked once: it is no cheap question, as grpc.aio's types are abstract.
        self._outgoing = call if isinstance(call, grpc.aio.StreamStreamCall) else None
        self._decode = method.decode_response
        # Its iterator, unlike its read(), goes on to the end of the messages even when a write has failed.
        self._messages: AsyncIterator[bytes] = aiter(call)
        self._receiving = False
        self._unread: deque[bytes] = deque()
        self._decoded: list[ServerMessage] | None = None
        self._finished = False
        self._closed = False
        self._ended = asyncio.Event()
        self._error: TailraceError | None = None
        self._status = CallStatus(call)

    async def send(self, message: ClientMessage) -> None:
        if self._outgoing is None:
            raise ProtocolError(f"{self._method.name} takes no further messages")
        await self.send_encoded(self._method.encode_request(message))

    async def send_encoded(self, data: bytes) -> None:
        """Send a message that is encoded already; see :meth:`send`."""
        assert self._outgoing is not None
        try:
            await self._outgoing.write(data)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise await self._why_ended() from None
        except asyncio.CancelledError:
            raise_if_not_cancelled(self._address)
            raise

    async def receive(self) -> ServerMessage | None:
        if self._decoded:
            return self._decoded.pop(0)
        if self._receiving and not self._unread:
            # A write has failed, and its task reads what is left.
            await self._ended.wait()
        data = self._unread.popleft() if self._unread else await self._read()
        if data is None:
            if self._method in WATCHES and not self._finished:
                self._finished = True
                return Watched()
            return None
        try:
            decoded = self._decode(data)
        except TailraceError:
            self._call.cancel()
            raise
        if isinstance(decoded, list):
            message, *self._decoded = decoded
            last = decoded[-1]
        else:
            message = last = decoded
        if is_last(last):
            self._finished = True
        return message

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._decoded = None
        self._on_close(self)
        try:
            if self._finished and not self._call.done():
                # Cancelling a call that the server is just ending in order would look like a failure there.
                async with asyncio.timeout(STATUS_TIMEOUT):
                    await self._call.code()
        except TimeoutError:
            pass
        finally:
            self._call.cancel()
            if isinstance(self._messages, AsyncGenerator) and not self._receiving:
                await self._messages.aclose()

    async def _read(self) -> bytes | None:
        """Return the next message as it came, or ``None`` at the end."""
        if self._ended.is_set():
            if self._error is not None:
                raise self._error
            return None
        self._receiving = True
        try:
            return await anext(self._messages)
        except StopAsyncIteration:
            self._end(None)
            return None
        except grpc.aio.AioRpcError as exc:
            self._end(await self._error_behind(exc))
            if self._error is not None:
                raise self._error from None
            return None
        except asyncio.CancelledError:
            self._end(ConnectionLost("the conversation was cancelled by this client"))
            raise_if_not_cancelled(self._address)
            raise
        finally:
            self._receiving = False

    def _end(self, error: TailraceError | None) -> None:
        self._error = error
        self._ended.set()

    async def _why_ended(self) -> TailraceError:
        """Return the error with which the conversation ended, after a write has failed.

        The server may have said more before it ended the conversation, and gRPC does not show the status before that is
        read. What is read here is bounded by what HTTP/2 had let through.
        """
        try:
            async with asyncio.timeout(STATUS_TIMEOUT):
                if self._receiving:
                    await self._ended.wait()
                else:
                    while (data := await self._read()) is not None:
                        self._unread.append(data)
        except TailraceError as exc:
            return exc
        except TimeoutError:
            pass
        return self._error or ConnectionLost(f"{self._address} has ended the conversation")

    async def _error_behind(self, exc: grpc.aio.AioRpcError) -> TailraceError | None:
        """Return the server's error, for which grpc.aio may have set a placeholder; ``None`` if there was none."""
        exc = await self._status.behind(exc)
        return None if exc.code() is grpc.StatusCode.OK else error_of(exc, self._address)


def error_of(exc: grpc.aio.AioRpcError, address: str) -> TailraceError:
    """Return the error with which a call to ``address`` ended."""
    return error_from_status(exc.code(), exc.details() or "", exc.trailing_metadata() or (), address=address)


def raise_if_not_cancelled(address: str) -> None:
    """Raise ``ConnectionLost`` for a cancellation that came from the call, and was not asked for by this task.

    A call that is cancelled by this client raises ``CancelledError`` in the task that waits for it, too.
    """
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        raise ConnectionLost(f"the conversation with {address} was closed by this client") from None
