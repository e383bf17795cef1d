"""Results and work for blocking code: a façade, part of :mod:`tailrace_client_download_api.sync`."""

from __future__ import annotations

from functools import partial

from tailrace_client_download_api import _records as asynchronous
from tailrace_client_download_api._blocking_query import RecordStream
from tailrace_common_api import Argument, QueueFigures
from tailrace_common_api.blocking import Portal, call, call_plain


class RecordClient:
    """Reads results and works on queues, for blocking code; see :class:`tailrace_client_download_api.RecordClient`."""

    def __init__(self, portal: Portal, client: asynchronous.RecordClient) -> None:
        self._record_portal = portal
        self._record_client = client

    def query(self, source: str, /, **arguments: Argument) -> RecordStream:
        """Prepare a query; it begins when it is first read.

        Args:
            source: Name of the source.
            arguments: Its arguments. ``max_results`` is known to every source: most records to give.

        Raises:
            InvalidArgument: An argument is neither text, a number nor a boolean.
        """
        # Bound first: arguments may have the names of what `call_plain` takes itself.
        prepare = partial(self._record_client.query, source, **arguments)
        stream = call_plain(self._record_portal, prepare)
        return RecordStream(self._record_portal, stream)

    def queue_figures(self, queue: str) -> QueueFigures:
        """Return how much work there is in a queue."""
        return call(self._record_portal, self._record_client.queue_figures, queue)
