"""The server: the application, run by uvicorn in the event loop of the caller."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import cast
from urllib.parse import urlsplit

import uvicorn

from tailrace_common_api import ConfigurationError, url_scheme
from tailrace_impl_common import Endpoint, cancel_and_wait, listen, where_waits
from tailrace_impl_websocket._application import BEST_CHUNK_SIZE, Endpoints
from tailrace_impl_websocket._buffered_protocol import buffered_frame_protocol
from tailrace_impl_websocket._chunk_frame import MAX_FRAME_SIZE
from tailrace_impl_websocket._frame_protocol import FrameProtocol
from tailrace_impl_websocket._http_protocol import http_protocol
from tailrace_impl_websocket._options import FrameProtocols, WebSocketServerOptions
from tailrace_impl_websocket._origins import Origins
from tailrace_impl_websocket._server_streams import ServerContext
from tailrace_impl_websocket._tls import check_server_files
from tailrace_server_api import ResourceManager, TransportServer, TransportServerSettings

logger = logging.getLogger(__name__)

_TICK = 1.0
"""Time between two updates of the date in responses, in seconds."""
_LAST_CHANCE = 1.0
"""Least time that connections get to end by themselves when the server closes, in seconds."""
_LAST_WAIT = 5.0
"""Time for what was cut to end, until the server goes without it, in seconds."""


class WebSocketServer(TransportServer):
    """Listens for WebSocket and HTTP on one port."""

    def __init__(self) -> None:
        """Prepare; :meth:`start` listens."""
        self._endpoints: Endpoints | None = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._urls: Mapping[str, str] = MappingProxyType({})
        self._closing: asyncio.Future[None] | None = None

    async def start(self, manager: ResourceManager, settings: TransportServerSettings) -> None:
        options = WebSocketServerOptions.parse(settings.options)
        if settings.public_base is not None:
            _check_base(settings.public_base)
        await asyncio.to_thread(check_server_files, settings)
        secure = "" if settings.certificate_file is None else "s"
        listener = await listen(settings.host, settings.port)
        try:
            prefix = options.prefix
            if prefix is None:
                prefix = urlsplit(settings.public_base or "").path.rstrip("/")
            port: int = listener.getsockname()[1]
            address = f"{_in_url(settings.host)}:{port}{prefix}"
            base = settings.public_base or f"ws{secure}://{address}"
            self._endpoints = Endpoints(
                ServerContext(
                    manager=manager,
                    endpoint=Endpoint(
                        transport="websocket",
                        base=base,
                        chunk_size=min(settings.chunk_size or BEST_CHUNK_SIZE, manager.limits.chunk_size),
                        telemetry=manager.telemetry,
                    ),
                    keepalive_interval=settings.keepalive_interval,
                    max_connections=settings.max_connections,
                    origins=Origins(options.origins, base=base, host=settings.host),
                )
            )
            self._server = _Server(
                uvicorn.Config(
                    self._endpoints.application(prefix),
                    http=http_protocol(
                        settings.max_connections,
                        keepalive_interval=settings.keepalive_interval,
                        keepalive_timeout=settings.keepalive_timeout,
                    ),
                    ws=_frame_protocol(options),
                    # Above the largest frame, so that a frame that is too large fails its request and no other one.
                    ws_max_size=2 * MAX_FRAME_SIZE,
                    ws_ping_interval=settings.keepalive_interval,
                    ws_ping_timeout=settings.keepalive_timeout,
                    ws_per_message_deflate=options.compression,
                    loop="none",
                    lifespan="off",
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    proxy_headers=False,
                    timeout_keep_alive=30,
                    ssl_certfile=settings.certificate_file,
                    ssl_keyfile=settings.key_file,
                    ssl_ca_certs=settings.client_ca_file,
                    ssl_cert_reqs=ssl.CERT_NONE if settings.client_ca_file is None else ssl.CERT_REQUIRED,
                )
            )
            self._serving = asyncio.create_task(self._server.serve([listener]), name="tailrace websocket server")
            await self._server.started_or_failed.wait()
            if not self._server.started:
                await self._serving
        except BaseException:
            self._closing = asyncio.ensure_future(self._give_up(listener))
            await asyncio.shield(self._closing)
            raise
        manager.add_base(base)
        self._urls = MappingProxyType(
            {f"{scheme}{secure}": f"{scheme}{secure}://{address}" for scheme in ("ws", "http")}
        )

    async def _give_up(self, listener: socket.socket) -> None:
        """End a start that has failed, or was cancelled."""
        if self._server is not None and self._serving is not None:
            # In order: an event loop gets confused where a socket that it listens to is closed behind its back.
            await self._server.started_or_failed.wait()
            if self._server.started:
                await self._close(0.0)
        listener.close()

    @property
    def urls(self) -> Mapping[str, str]:
        return self._urls

    async def close(self, grace: float) -> None:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close(grace))
        await asyncio.shield(self._closing)

    async def _close(self, grace: float) -> None:
        if self._server is None or self._endpoints is None or self._serving is None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace
        # Who comes meanwhile is still told why it is refused.
        await self._endpoints.close(grace)
        self._server.stop_listening()
        self._server.exit()
        await asyncio.wait((self._serving,), timeout=max(_LAST_CHANCE, deadline - loop.time()))
        self._server.cut_connections()
        await asyncio.wait((self._serving,), timeout=_LAST_WAIT)
        if not self._serving.done():
            left = self._server.end_tasks()
            logger.warning("requests did not end with their connections: %s", ", ".join(map(where_waits, left)))
            await asyncio.wait((self._serving, *left), timeout=_LAST_WAIT)
            self._server.force_exit = True
            await asyncio.wait((self._serving,), timeout=_LAST_WAIT)
        await cancel_and_wait(self._serving)
        if not self._serving.cancelled():
            self._serving.result()


class _Server(uvicorn.Server):
    """uvicorn in a loop that is not its own: the application handles signals, and knows when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.started_or_failed = asyncio.Event()
        self._exit = asyncio.Event()

    def exit(self) -> None:
        """End what :meth:`serve` does."""
        self.should_exit = True
        self._exit.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.started_or_failed.set()

    async def main_loop(self) -> None:
        """Keep the date of responses current; the base looks ten times a second whether it is to end."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK):
                    await self._exit.wait()

    def stop_listening(self) -> None:
        for server in self.servers:
            server.close()

    def end_tasks(self) -> Sequence[asyncio.Task[None]]:
        """Cancel whatever still runs, and return it."""
        left = tuple(self.server_state.tasks)
        for task in left:
            task.cancel()
        return left

    def cut_connections(self) -> None:
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()


def _frame_protocol(options: WebSocketServerOptions) -> type[asyncio.Protocol]:
    if options.compression or options.protocol is FrameProtocols.SANSIO:
        return FrameProtocol
    # uvicorn gives it no more than the request; the loop sees what it is.
    return cast(type[asyncio.Protocol], buffered_frame_protocol())


def _check_base(base: str) -> None:
    """Refuse a public base that no client of this transport can connect to."""
    try:
        known = url_scheme(base) in ("ws", "wss", "http", "https")
    except ConfigurationError:
        known = False
    if not known or urlsplit(base).query or urlsplit(base).fragment:
        raise ConfigurationError(field="public_base", problem=f"{base!a} is not ws://HOST[:PORT][/PREFIX]")


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host or "localhost"
