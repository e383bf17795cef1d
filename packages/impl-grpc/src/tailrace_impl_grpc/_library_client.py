"""Makes calls by ``grpc.aio``'s channel."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from tailrace_common_api import (
    ClientSettings,
    ConnectionLost,
    DeadlineExceeded,
    ProtocolError,
)
from tailrace_impl_common import (
    ClientStream,
    Connection,
    cancel_and_wait,
    outgoing_trace,
)
from tailrace_impl_common.messages import WATCH_REQUESTS, Request, UnaryAnswer, UnaryRequest
from tailrace_impl_grpc._address import parse_url
from tailrace_impl_grpc._codec import method_of
from tailrace_impl_grpc._error_table import ERROR_KEY
from tailrace_impl_grpc._library_client_streams import LibraryClientStream, error_of, raise_if_not_cancelled
from tailrace_impl_grpc._options import (
    BEST_CHUNK_SIZE,
    GrpcClientOptions,
    channel_credentials,
    channel_options,
    compression_of,
)
from tailrace_impl_grpc._poller import keep_poller


class LibraryConnection(Connection):
    """A channel to a server, made when it is first used and made anew when it is broken."""

    def __init__(self, url: str, settings: ClientSettings, options: GrpcClientOptions) -> None:
        """Prepare a connection to the server at ``url``; nothing is connected yet."""
        address = parse_url(url)
        self._secure = address.secure
        self._address = str(address)
        self._settings = settings
        self._options = options
        self._channel_options = channel_options(settings, options, address.host)
        self._credentials: grpc.ChannelCredentials | None = None
        self._channel: grpc.aio.Channel | None = None
        self._streams: set[LibraryClientStream] = set()
        self._connecting: set[asyncio.Future[None]] = set()
        self._closed = False

    @property
    def best_chunk_size(self) -> int:
        return BEST_CHUNK_SIZE

    @property
    def address(self) -> str:
        """Whom this connects to, as ``HOST:PORT``."""
        return self._address

    async def open(self, request: Request) -> ClientStream:
        method = method_of(request)
        first = method.encode_request(request)
        channel = await self._ready_channel()
        if isinstance(request, WATCH_REQUESTS):
            # Its connection is proven by its first message: gRPC sends this request together with the call's headers.
            watch = channel.unary_stream(method.path, _same, _same)(first, metadata=self._metadata())
            return self._opened(LibraryClientStream(method, watch, self._address, self._streams.discard))
        call = channel.stream_stream(method.path, _same, _same)(metadata=self._metadata())
        seconds = self._settings.connect_timeout
        connecting = asyncio.ensure_future(call.wait_for_connection())
        self._connecting.add(connecting)
        try:
            async with asyncio.timeout(seconds):
                await connecting
        except grpc.aio.AioRpcError as exc:
            raise error_of(exc, self._address) from None
        except TimeoutError:
            call.cancel()
            raise DeadlineExceeded(what=f"the connection to {self._address}", seconds=seconds) from None
        except asyncio.CancelledError:
            call.cancel()
            raise_if_not_cancelled(self._address)
            raise
        finally:
            self._connecting.discard(connecting)
        if self._closed:
            # Between the call's connection and this: closing did not know of it any more, nor of the stream yet.
            call.cancel()
            raise ConnectionLost(f"the connection to {self._address} was closed by this client")
        stream = self._opened(LibraryClientStream(method, call, self._address, self._streams.discard))
        try:
            await stream.send_encoded(first)
        except BaseException:
            await stream.close()
            raise
        return stream

    async def call(self, request: UnaryRequest) -> UnaryAnswer:
        method = method_of(request)
        data = method.encode_request(request)
        channel = await self._ready_channel()
        seconds = self._settings.answer_timeout
        try:
            unary = channel.unary_unary(method.path, _same, _same)
            answer = await unary(data, timeout=seconds, metadata=self._metadata())
        except grpc.aio.AioRpcError as exc:
            if exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED and ERROR_KEY not in (exc.trailing_metadata() or ()):
                raise DeadlineExceeded(what=f"the answer to {method.name}", seconds=seconds) from None
            raise error_of(exc, self._address) from None
        except asyncio.CancelledError:
            raise_if_not_cancelled(self._address)
            raise
        if answer is None:
            # The library does not say that a call ended well and without the one message that it has to have.
            raise ProtocolError(f"no message answers {method.name}")
        message = method.decode_response(answer)
        if not isinstance(message, UnaryAnswer):
            raise ProtocolError(f"{type(message).__name__} does not answer {type(request).__name__}")
        return message

    async def close(self) -> None:
        self._closed = True
        # Closing the channel would not wake those who wait for its connection.
        for connecting in self._connecting:
            connecting.cancel()
        closing = [asyncio.ensure_future(stream.close()) for stream in self._streams]
        try:
            if closing:
                await asyncio.wait(closing)
        finally:
            # Also when this is cancelled: who closes has nobody behind who would.
            try:
                await cancel_and_wait(*closing)
            finally:
                channel, self._channel = self._channel, None
                if channel is not None:
                    await channel.close()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what a call says beside its messages."""
        token = self._settings.token
        authorization = () if token is None else (("authorization", f"Bearer {token}"),)
        return (*authorization, *outgoing_trace().items())

    async def _ready_channel(self) -> grpc.aio.Channel:
        """Return a channel that is connected, or is about to try."""
        broken = self._channel
        if self._closed:
            raise ConnectionLost(f"the connection to {self._address} was closed by this client")
        if broken is not None:
            if broken.get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                return broken
            # It would refuse every call until its own time to try again has come.
            self._channel = None
        if self._secure and self._credentials is None:
            credentials = await asyncio.to_thread(channel_credentials, self._settings)
            self._credentials = credentials
            # Somebody else may have made the channel meanwhile, or closed the connection.
            return await self._ready_channel()
        channel = self._channel = self._new_channel()
        if broken is not None:
            await broken.close()
            if self._closed:
                raise ConnectionLost(f"the connection to {self._address} was closed by this client")
        return channel

    def _new_channel(self) -> grpc.aio.Channel:
        keep_poller()
        compression = compression_of(self._options)
        if self._secure:
            assert self._credentials is not None
            return grpc.aio.secure_channel(self._address, self._credentials, self._channel_options, compression)
        return grpc.aio.insecure_channel(self._address, self._channel_options, compression)

    def _opened(self, stream: LibraryClientStream) -> LibraryClientStream:
        self._streams.add(stream)
        return stream


def _same(data: bytes) -> bytes:
    """Stand in for gRPC's serializers: the codec has done their work, or will."""
    return data
