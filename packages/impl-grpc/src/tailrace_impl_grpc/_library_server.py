"""Takes calls by ``grpc.aio``'s server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
import grpc.aio

from tailrace_common_api import ConfigurationError
from tailrace_impl_grpc._call_server import CallServer, Handlers
from tailrace_impl_grpc._library_log import quiet_library
from tailrace_impl_grpc._options import GrpcServerOptions, compression_of, server_credentials, server_options
from tailrace_impl_grpc._poller import keep_poller
from tailrace_server_api import TransportServerSettings


class LibraryServer(CallServer):
    """Serves methods of gRPC by the library's server, with its threads and its settings."""

    def __init__(self, settings: TransportServerSettings, options: GrpcServerOptions, *, max_calls: int) -> None:
        """Prepare.

        Args:
            settings: Where to listen, and how.
            options: Of the transport.
            max_calls: Most calls of a connection.
        """
        keep_poller()
        quiet_library()
        self._settings = settings
        self._server = grpc.aio.server(
            options=[*server_options(settings), ("grpc.max_concurrent_streams", max_calls)],
            compression=compression_of(options),
        )
        self._starting: asyncio.Future[None] | None = None

    def add_registered_method_handlers(self, service: str, handlers: Handlers) -> None:
        self._server.add_registered_method_handlers(service, handlers)
        # What is registered alone is not found in every version.
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, dict(handlers)),))

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    async def bind(self) -> int:
        settings = self._settings
        address = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
        credentials = await asyncio.to_thread(server_credentials, settings)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            port = 0
        if not port:
            # gRPC does not tell which.
            problem = f"cannot listen on {address}: it is in use, or is no address of this machine"
            raise ConfigurationError(field="host", problem=problem)
        return port

    async def start(self) -> None:
        # gRPC does not bear to be cancelled on its way there.
        self._starting = asyncio.ensure_future(self._server.start())
        await asyncio.shield(self._starting)

    async def stop(self, grace: float | None) -> None:
        if self._starting is None:
            # Only a server that has started can be stopped; else garbage collection alone lets go of its port.
            self._starting = asyncio.ensure_future(self._server.start())
        await asyncio.wait((self._starting,))
        await self._server.stop(grace)
