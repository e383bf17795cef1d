"""How many connections have calls, and how many calls each has."""

from __future__ import annotations

from collections import Counter

from tailrace_common_api import Overloaded

_RETRY_AFTER = 1.0


class Peers:
    """Bounds what gRPC does not bound with an error of ours. Belongs to one event loop.

    A peer is a connection of a client. One without a call is not seen here; it costs a descriptor and little else, and
    the server refuses everything when descriptors become scarce.
    """

    def __init__(self, *, max_connections: int, max_requests: int) -> None:
        """Start with no call.

        Args:
            max_connections: Most connections that have calls.
            max_requests: Most calls of one connection.
        """
        self._max_connections = max_connections
        self._max_requests = max_requests
        self._calls: Counter[str] = Counter()

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
        self._calls[peer] = calls + 1

    def end(self, peer: str) -> None:
        """Count a call no more."""
        self._calls[peer] -= 1
        if not self._calls[peer]:
            del self._calls[peer]
