"""How many connections have calls, and how many calls each has."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager

from tailrace_common_api import Overloaded
from tailrace_server_api import Telemetry

_RETRY_AFTER = 1.0


class Peers:
    """Bounds what gRPC does not bound with an error of ours. Belongs to one event loop.

    A peer is a connection of a client. One without a call is not seen here; it costs a descriptor and little else, and
    the server refuses everything when descriptors become scarce.
    """

    def __init__(self, *, max_connections: int, max_requests: int, telemetry: Telemetry) -> None:
        """Start with no call.

        Args:
            max_connections: Most connections that have calls.
            max_requests: Most calls of one connection.
            telemetry: Counts connections from their first call to the end of their last one.
        """
        self._max_connections = max_connections
        self._max_requests = max_requests
        self._calls: Counter[str] = Counter()
        self._telemetry = telemetry
        self._counted: dict[str, AbstractContextManager[None]] = {}

    def begin(self, peer: str) -> None:
        """Count a call.

        Raises:
            Overloaded: There is no room for it; it is not counted.
        """
        calls = self._calls.get(peer, 0)
        if not calls and len(self._calls) >= self._max_connections:
            raise Overloaded(what="connections", retry_after=_RETRY_AFTER)
        if calls >= self._max_requests:
            raise Overloaded(what="requests on one connection", retry_after=_RETRY_AFTER)
        if not calls:
            self._counted[peer] = counted = self._telemetry.connection("grpc")
            counted.__enter__()
        self._calls[peer] = calls + 1

    def end(self, peer: str) -> None:
        """Count a call no more."""
        self._calls[peer] -= 1
        if not self._calls[peer]:
            del self._calls[peer]
            self._counted.pop(peer).__exit__(None, None, None)
