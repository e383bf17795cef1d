"""The client: a connection that is made when it is first used, and again after it was lost."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from tailrace_common_api import (
    MEBIBYTE,
    ClientSettings,
    ConfigurationError,
    ConnectionLost,
    DeadlineExceeded,
    ProtocolError,
    TailraceError,
    Unsupported,
    url_scheme,
)
from tailrace_impl_common import ClientStream, ConnectedClient, Connection, cancel_and_wait, warn_of_clear_text
from tailrace_impl_common.messages import Request, UnaryAnswer, UnaryRequest
from tailrace_impl_websocket._client_connection import MAX_MESSAGE_SIZE, OpeningConnection
from tailrace_impl_websocket._client_streams import Link
from tailrace_impl_websocket._codec import PATH, SUBPROTOCOL, Failure, Hello, Malformed, decode_from_server
from tailrace_impl_websocket._codec_values import read_error
from tailrace_impl_websocket._credentials import ANONYMOUS
from tailrace_impl_websocket._fields import parse_object
from tailrace_impl_websocket._frame_reader import Payload
from tailrace_impl_websocket._options import WebSocketClientOptions
from tailrace_impl_websocket._tls import client_context

BEST_CHUNK_SIZE = MEBIBYTE
"""Size of chunks that suits WebSocket best, in bytes."""
_DEFAULT_WINDOW = 4 * MEBIBYTE
"""Window of a request that asks for none, in bytes."""
_WRITE_BUFFER = MEBIBYTE
"""Bytes that may wait to be sent, so that the next chunk is hashed and framed while this one is on its way."""
_CLOSE_TIMEOUT = 5.0
"""Longest time for a server to agree to the end of a connection, in seconds."""


def connect(url: str, settings: ClientSettings | None = None) -> ConnectedClient:
    """Return a client for the server at ``url``; it connects when it is first used.

    Args:
        url: ``ws://HOST[:PORT][/PREFIX]`` or ``wss://…``.
        settings: Settings of the connection; ``None`` for the defaults.

    Raises:
        ConfigurationError: The URL or an option cannot be used.
    """
    settings = settings or ClientSettings()
    return ConnectedClient(WebSocketConnection(url, settings), settings)


class WebSocketConnection(Connection):
    """Conversations over one WebSocket.

    A lost connection ends all of them with ``ConnectionLost``; the next request makes a new connection. A download
    or a query that asks for no window gets one of 4 MiB, since on a shared connection a reader that takes nothing would
    otherwise hold up every other conversation.
    """

    def __init__(self, url: str, settings: ClientSettings) -> None:
        """Prepare a connection to ``url``; nothing is sent yet.

        Raises:
            ConfigurationError: The URL or an option cannot be used.
        """
        self._address = _endpoint(url)
        self._settings = settings
        if settings.token is not None and self._address.startswith("ws:"):
            warn_of_clear_text(urlsplit(url).hostname or "")
        self._options = WebSocketClientOptions.parse(settings.options)
        self._context: ssl.SSLContext | None = None
        self._link: Link | None = None
        self._connecting: asyncio.Task[Link] | None = None
        self._closed = False

    @property
    def address(self) -> str:
        """URL of the server's endpoint."""
        return self._address

    @property
    def best_chunk_size(self) -> int:
        return BEST_CHUNK_SIZE

    async def open(self, request: Request) -> ClientStream:
        link = await self._connected()
        return await link.begin(request, min(_DEFAULT_WINDOW, link.hello.limits.max_download_window))

    async def call(self, request: UnaryRequest) -> UnaryAnswer:
        stream = await self.open(request)
        seconds = self._settings.answer_timeout
        try:
            async with asyncio.timeout(seconds):
                answer = await stream.receive()
        except DeadlineExceeded:
            # The server's own.
            raise
        except TimeoutError:
            raise DeadlineExceeded(what=f"the answer to {type(request).__name__}", seconds=seconds) from None
        finally:
            await stream.close()
        if not isinstance(answer, UnaryAnswer):
            raise ProtocolError(f"{type(answer).__name__} does not answer {type(request).__name__}")
        return answer

    async def close(self) -> None:
        self._closed = True
        try:
            if self._connecting is not None:
                await cancel_and_wait(self._connecting)
        finally:
            # Also when this is cancelled: who closes has nobody behind who would.
            if self._link is not None:
                await self._link.close()

    async def _connected(self) -> Link:
        """Return a link that can be used; those who come while it is being made share it."""
        if self._closed:
            raise ConnectionLost(f"the connection to {self._address} was closed")
        if self._link is not None and self._link.usable:
            return self._link
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect(), name="tailrace websocket connect")
            self._connecting.add_done_callback(self._connect_done)
        connecting = self._connecting
        # Whoever is cancelled here leaves it to the others; a cancellation of its own comes from closing.
        await asyncio.wait((connecting,))
        if self._closed:
            raise ConnectionLost(f"the connection to {self._address} was closed")
        return connecting.result()

    def _connect_done(self, task: asyncio.Task[Link]) -> None:
        self._connecting = None
        if not task.cancelled():
            # Everyone who waited may be gone by then; asking for the exception marks it as seen.
            task.exception()

    async def _tls(self) -> dict[str, Any]:
        """Return what a handshake needs for TLS; nothing without it."""
        if not self._address.startswith("wss:"):
            return {}
        if self._context is None:
            self._context = await asyncio.to_thread(client_context, self._settings)
        return {"ssl": self._context}

    async def _connect(self) -> Link:
        if self._link is not None:
            await self._link.close()
        settings, address = self._settings, self._address
        try:
            async with asyncio.timeout(settings.connect_timeout):
                websocket = await connect_websocket(
                    address,
                    create_connection=OpeningConnection,
                    **await self._tls(),
                    **_identification(settings.token),
                    compression="deflate" if self._options.compression else None,
                    proxy=None,
                    open_timeout=None,
                    close_timeout=min(_CLOSE_TIMEOUT, settings.keepalive_timeout),
                    ping_interval=settings.keepalive_interval,
                    ping_timeout=settings.keepalive_timeout,
                    max_size=MAX_MESSAGE_SIZE,
                    write_limit=_WRITE_BUFFER,
                )
                try:
                    if websocket.subprotocol != SUBPROTOCOL:
                        raise Unsupported(f"{address} does not speak {SUBPROTOCOL}")
                    assert isinstance(websocket, OpeningConnection)
                    frames = websocket.frames
                    first = await frames.first()
                    if first is None:
                        raise ConnectionLost(f"{address} is no Tailrace server over WebSocket: {frames.end}")
                    # Known from the moment on in which it is: closing may come before anybody takes the result.
                    self._link = link = Link(frames, _hello(first), address)
                    return link
                except BaseException:
                    websocket.transport.abort()
                    raise
        except TailraceError:
            # The server's own among them, many of which are errors of the system by their other base.
            raise
        except TimeoutError:
            raise DeadlineExceeded(what=f"the connection to {address}", seconds=settings.connect_timeout) from None
        except InvalidStatus as error:
            raise _refusal(address, error) from None
        except (WebSocketException, EOFError) as error:
            raise ConnectionLost(f"{address} is no Tailrace server over WebSocket: {_shown(error)}") from None
        except (OSError, ValueError) as error:
            # The latter where a host has a name that no host can have.
            raise ConnectionLost(f"{address} cannot be reached: {_shown(error)}") from None


def _identification(token: str | None) -> dict[str, Any]:
    """Return what a handshake says of the protocol and of who comes."""
    if token is None:
        return {"subprotocols": [Subprotocol(SUBPROTOCOL), Subprotocol(ANONYMOUS)]}
    return {
        "subprotocols": [Subprotocol(SUBPROTOCOL)],
        "additional_headers": {"Authorization": f"Bearer {token}"},
    }


def _endpoint(url: str) -> str:
    """Return the URL of the endpoint of the server at ``url``; a path in it is kept as a prefix."""
    scheme = url_scheme(url)
    if scheme not in ("ws", "wss"):
        raise ConfigurationError(field="url", problem=f"{url!a} is not a ws:// or wss:// URL")
    parts = urlsplit(url)
    try:
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        has_port = False
    if not has_port or parts.query or parts.fragment or parts.username is not None:
        raise ConfigurationError(field="url", problem=f"{url!a} is not {scheme}://HOST[:PORT][/PREFIX]")
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}{PATH}"


def _hello(frame: str | Payload) -> Hello:
    """Return the server's first message.

    Raises:
        TailraceError: What the server says instead, or ``ProtocolError``.
    """
    if not isinstance(frame, str):
        raise ProtocolError("the server's first message is not a hello")
    try:
        message = decode_from_server(frame).message
    except Malformed as malformed:
        raise malformed.error from None
    if isinstance(message, Failure):
        raise message.error
    if not isinstance(message, Hello):
        raise ProtocolError("the server's first message is not a hello")
    return message


def _refusal(address: str, refusal: InvalidStatus) -> TailraceError:
    """Return the error with which a server refused the handshake."""
    response = refusal.response
    lost = ConnectionLost(f"{address} refused the connection with HTTP status {response.status_code}")
    try:
        return read_error(parse_object((response.body or b"").decode()))
    except (UnicodeDecodeError, ProtocolError):
        return lost


def _shown(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError | socket.gaierror) and error.errno:
        # Event loops tell the same in different words.
        return os.strerror(error.errno)
    return ascii(str(error))[1:-1] or type(error).__name__
