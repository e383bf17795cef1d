"""What takes calls and hands them to methods: there are two, this package's own and the library's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import grpc

Handlers = Mapping[str, Any]
"""Handlers of gRPC (``grpc.RpcMethodHandler``) by the names of their methods."""


class CallServer(ABC):
    """Takes calls. Belongs to one event loop.

    Methods are added before it starts, also by the functions that gRPC generates for a service.
    """

    @abstractmethod
    def add_registered_method_handlers(self, service: str, handlers: Handlers) -> None:
        """Serve the methods of a service."""

    @abstractmethod
    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Serve methods; generated code gives all of them to :meth:`add_registered_method_handlers`, too."""

    @abstractmethod
    async def bind(self) -> int:
        """Listen, without taking calls yet, and return the port.

        Raises:
            ConfigurationError: The address cannot be listened on, or a file of TLS is not what it should be.
        """

    @abstractmethod
    async def start(self) -> None:
        """Take calls. Where it is cancelled or fails, :meth:`stop` cleans up."""

    @abstractmethod
    async def stop(self, grace: float | None) -> None:
        """Take no more calls, let those that run end within ``grace`` seconds, and cancel them then."""
