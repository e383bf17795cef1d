"""A conversation, on the client's side."""

from __future__ import annotations

import asyncio
from typing import cast

import grpc

from tailrace_common_api import ConnectionLost, ProtocolError, TailraceError
from tailrace_impl_common import ClientStream
from tailrace_impl_common.messages import Chunk, ClientMessage, End, Finished, Opened, ServerMessage, Watched
from tailrace_impl_common.record_messages import BulkCommitted, BulkOpened, Left, QueryEnd
from tailrace_impl_grpc._call_status import STATUS_TIMEOUT
from tailrace_impl_grpc._codec import WATCHES, Method, encode_chunk
from tailrace_impl_grpc._error_table import error_from_status
from tailrace_impl_grpc._http2_client_call import Http2ClientCall
from tailrace_impl_grpc._http2_headers import CallStatus
from tailrace_impl_grpc._http2_stream import CallEnded, Parts


class GrpcClientStream(ClientStream):
    """A conversation over one call."""

    def __init__(self, method: Method, call: Http2ClientCall, address: str, streams: set[GrpcClientStream]) -> None:
        """Converse over ``call`` with the server at ``address``; one of ``streams`` until it is closed."""
        self._method = method
        self._call = call
        self._address = address
        self._streams = streams
        self._decoded: list[ServerMessage] | None = None
        self._finished = False
        self._closed = False
        streams.add(self)

    async def send(self, message: ClientMessage) -> None:
        if self._method in WATCHES:
            raise ProtocolError(f"{self._method.name} takes no further messages")
        await self.send_encoded(
            encode_chunk(message) if type(message) is Chunk else self._method.encode_request(message)
        )

    async def send_encoded(self, data: bytes | Parts) -> None:
        """Send a message that is encoded already; see :meth:`send`."""
        try:
            await self._call.write(data)
        except CallEnded:
            raise await self._why_ended() from None

    async def send_only(self, data: bytes) -> None:
        """Send the only message of a conversation."""
        try:
            await self._call.write_last(data)
        except CallEnded:
            raise await self._why_ended() from None

    async def receive(self) -> ServerMessage | None:
        if self._decoded:
            return self._decoded.pop(0)
        data = await self._call.read()
        if data is None:
            status = await self._call.status()
            if self._closed:
                raise ConnectionLost(f"the conversation with {self._address} was closed by this client")
            if status.code is not grpc.StatusCode.OK:
                raise error_of_status(status, self._address)
            if self._method in WATCHES and not self._finished:
                self._finished = True
                return Watched()
            return None
        try:
            decoded = self._method.decode_response(cast(bytes, data))
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
        self._streams.discard(self)
        try:
            if self._finished and not self._call.over:
                # Cancelling a call that the server is just ending in order would look like a failure there.
                async with asyncio.timeout(STATUS_TIMEOUT):
                    await self._call.status()
        except TimeoutError:
            pass
        finally:
            self._call.cancel()

    async def _why_ended(self) -> TailraceError:
        """Return the error with which the conversation ended, after a write has failed."""
        status = await self._call.status()
        if self._closed:
            return ConnectionLost(f"the conversation with {self._address} was closed by this client")
        if status.code is grpc.StatusCode.OK:
            return ConnectionLost(f"{self._address} has ended the conversation")
        return error_of_status(status, self._address)


def error_of_status(status: CallStatus, address: str) -> TailraceError:
    """Return the error with which a call to ``address`` ended."""
    return error_from_status(status.code, status.details, status.metadata, address=address)


def is_last(message: ServerMessage) -> bool:
    """Return whether the server ends the conversation behind this message."""
    match message:
        case End() | Finished() | BulkCommitted() | QueryEnd() | Left():
            return True
        case Opened(status=status):
            return status.state.terminal
        case BulkOpened(result=result):
            return result is not None
        case _:
            return False
