"""The client's side: a connection over ``grpc.aio``."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from urllib.parse import urlsplit

import grpc
import grpc.aio

from tailrace_common_api import (
    ClientSettings,
    ConfigurationError,
    ConnectionLost,
    DeadlineExceeded,
    ProtocolError,
    TailraceError,
    url_scheme,
)
from tailrace_impl_common import ClientStream, ConnectedClient, Connection
from tailrace_impl_common.messages import (
    ClientMessage,
    End,
    Finished,
    Opened,
    Request,
    ServerMessage,
    UnaryAnswer,
    UnaryRequest,
    Watch,
    Watched,
)
from tailrace_impl_grpc._call_status import STATUS_TIMEOUT, CallStatus
from tailrace_impl_grpc._codec import WATCH, Method, method_of
from tailrace_impl_grpc._error_table import ERROR_KEY, error_from_status
from tailrace_impl_grpc._options import BEST_CHUNK_SIZE, GrpcClientOptions, channel_options, compression_of
from tailrace_impl_grpc._poller import keep_poller

DEFAULT_PORT = 7070
"""Port of a URL that names none."""

_SCHEMES = ("grpc", "grpcs")

_Call = grpc.aio.StreamStreamCall[bytes, bytes] | grpc.aio.UnaryStreamCall[bytes, bytes]


def connect(url: str, settings: ClientSettings | None = None) -> ConnectedClient:
    """Return a client of the server at ``url``; it connects when it is first used.

    Args:
        url: ``grpc://HOST[:PORT]``, or ``grpcs://`` for TLS with the system's certificate authorities.
        settings: Settings of the connection.

    Raises:
        ConfigurationError: The URL or an option is not one that gRPC can have.
    """
    settings = settings or ClientSettings()
    return ConnectedClient(GrpcConnection(url, settings), settings)


class GrpcConnection(Connection):
    """A channel to a server, made when it is first used and made anew when it is broken."""

    def __init__(self, url: str, settings: ClientSettings) -> None:
        """Prepare a connection; see :func:`connect`."""
        self._secure, host, port = _parse_url(url)
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._settings = settings
        self._options = GrpcClientOptions.parse(settings.options)
        self._channel_options = channel_options(settings, self._options, host)
        self._channel: grpc.aio.Channel | None = None
        self._streams: set[GrpcClientStream] = set()
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
        if isinstance(request, Watch):
            # Its connection is proven by its first message: gRPC sends this request together with the call's headers.
            watch = channel.unary_stream(method.path, _same, _same)(first)
            return self._opened(GrpcClientStream(self, method, watch))
        call = channel.stream_stream(method.path, _same, _same)()
        seconds = self._settings.connect_timeout
        try:
            async with asyncio.timeout(seconds):
                await call.wait_for_connection()
        except grpc.aio.AioRpcError as exc:
            raise self.error_of(exc) from None
        except TimeoutError:
            call.cancel()
            raise DeadlineExceeded(what=f"the connection to {self._address}", seconds=seconds) from None
        except asyncio.CancelledError:
            call.cancel()
            self.raise_if_not_cancelled()
            raise
        stream = self._opened(GrpcClientStream(self, method, call))
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
            answer = await channel.unary_unary(method.path, _same, _same)(data, timeout=seconds)
        except grpc.aio.AioRpcError as exc:
            if exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED and ERROR_KEY not in (exc.trailing_metadata() or ()):
                raise DeadlineExceeded(what=f"the answer to {method.name}", seconds=seconds) from None
            raise self.error_of(exc) from None
        except asyncio.CancelledError:
            self.raise_if_not_cancelled()
            raise
        message: UnaryAnswer = method.decode_response(answer)  # type: ignore[assignment]  # By the method's own decoder.
        return message

    async def close(self) -> None:
        self._closed = True
        for stream in list(self._streams):
            await stream.close()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

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
        channel = self._channel = self._new_channel()
        if broken is not None:
            await broken.close()
        return channel

    def _new_channel(self) -> grpc.aio.Channel:
        keep_poller()
        compression = compression_of(self._options)
        if self._secure:
            credentials = grpc.ssl_channel_credentials()
            return grpc.aio.secure_channel(self._address, credentials, self._channel_options, compression)
        return grpc.aio.insecure_channel(self._address, self._channel_options, compression)

    def _opened(self, stream: GrpcClientStream) -> GrpcClientStream:
        self._streams.add(stream)
        return stream

    def forget(self, stream: GrpcClientStream) -> None:
        """Take note that a stream is closed."""
        self._streams.discard(stream)

    def error_of(self, exc: grpc.aio.AioRpcError) -> TailraceError:
        """Return the error with which a call ended."""
        return error_from_status(exc.code(), exc.details() or "", exc.trailing_metadata() or (), address=self._address)

    def raise_if_not_cancelled(self) -> None:
        """Raise ``ConnectionLost`` for a cancellation that came from the call, and was not asked for by this task.

        A call that is cancelled by this client raises ``CancelledError`` in the task that waits for it, too.
        """
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            raise ConnectionLost(f"the conversation with {self._address} was closed by this client") from None


class GrpcClientStream(ClientStream):
    """A conversation over one call. Cancelling :meth:`send` or :meth:`receive` ends it."""

    def __init__(self, connection: GrpcConnection, method: Method, call: _Call) -> None:
        """Use ``call``, which is connected or about to be."""
        self._connection = connection
        self._method = method
        self._call = call
        self._decode = method.decode_response
        # Its iterator, unlike its read(), goes on to the end of the messages even when a write has failed.
        self._messages: AsyncIterator[bytes] = aiter(call)
        self._receiving = False
        self._unread: deque[bytes] = deque()
        self._finished = False
        self._closed = False
        self._ended = asyncio.Event()
        self._error: TailraceError | None = None
        self._status = CallStatus(call)

    async def send(self, message: ClientMessage) -> None:
        if isinstance(self._call, grpc.aio.UnaryStreamCall):
            raise ProtocolError(f"{self._method.name} takes no further messages")
        await self.send_encoded(self._method.encode_request(message))

    async def send_encoded(self, data: bytes) -> None:
        """Send a message that is encoded already; see :meth:`send`."""
        assert isinstance(self._call, grpc.aio.StreamStreamCall)
        try:
            await self._call.write(data)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise await self._why_ended() from None
        except asyncio.CancelledError:
            self._connection.raise_if_not_cancelled()
            raise

    async def receive(self) -> ServerMessage | None:
        if self._receiving and not self._unread:
            # A write has failed, and its task reads what is left.
            await self._ended.wait()
        data = self._unread.popleft() if self._unread else await self._read()
        if data is None:
            if self._method is WATCH and not self._finished:
                self._finished = True
                return Watched()
            return None
        try:
            message = self._decode(data)
        except TailraceError:
            self._call.cancel()
            raise
        if isinstance(message, End | Finished) or (isinstance(message, Opened) and message.status.state.terminal):
            self._finished = True
        return message

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._connection.forget(self)
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
            self._connection.raise_if_not_cancelled()
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
        return self._error or ConnectionLost(f"{self._connection.address} has ended the conversation")

    async def _error_behind(self, exc: grpc.aio.AioRpcError) -> TailraceError | None:
        """Return the server's error, for which grpc.aio may have set a placeholder; ``None`` if there was none."""
        exc = await self._status.behind(exc)
        return None if exc.code() is grpc.StatusCode.OK else self._connection.error_of(exc)


def _same(data: bytes) -> bytes:
    """Stand in for gRPC's serializers: the codec has done their work, or will."""
    return data


def _parse_url(url: str) -> tuple[bool, str, int]:
    """Return whether the connection is secure, the host and the port."""
    scheme = url_scheme(url)
    if scheme not in _SCHEMES:
        raise ConfigurationError(field="url", problem=f"{url!a} is not grpc://HOST[:PORT] or grpcs://HOST[:PORT]")
    parts = urlsplit(url)
    try:
        port = parts.port or DEFAULT_PORT
    except ValueError:
        raise ConfigurationError(field="url", problem=f"{url!a} has no valid port") from None
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise ConfigurationError(field="url", problem=f"{url!a} has more than host and port, which gRPC cannot use")
    assert parts.hostname is not None
    return scheme == "grpcs", parts.hostname, port
