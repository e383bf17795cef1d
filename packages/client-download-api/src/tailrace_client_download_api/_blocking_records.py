"""Results and work for blocking code: a façade, part of :mod:`tailrace_client_download_api.sync`."""

from __future__ import annotations

from functools import partial

from tailrace_client_download_api import _records as asynchronous
from tailrace_client_download_api._blocking_query import RecordStream
from tailrace_client_download_api._blocking_work import RecordConsumer
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

    def work(
        self,
        queue: str,
        *,
        credit: int,
        credit_bytes: int = asynchronous.DEFAULT_CREDIT_BYTES,
        extend: bool = False,
    ) -> RecordConsumer:
        """Prepare a consumer; it opens when it is first read.

        Args:
            queue: Name of the queue; that of its dead letters is ``NAME.dead``.
            credit: Most records that are unanswered at the same time; 0 pauses until :meth:`RecordConsumer.set_credit`.
            credit_bytes: Most bytes of them; a larger record comes when nothing else is unanswered.
            extend: Whether leases of what is not answered are extended by themselves, for as long as it is open.

        Raises:
            InvalidArgument: A credit is negative.
        """
        consumer = call_plain(
            self._record_portal,
            self._record_client.work,
            queue,
            credit=credit,
            credit_bytes=credit_bytes,
            extend=extend,
        )
        return RecordConsumer(self._record_portal, consumer)

    def queue_figures(self, queue: str) -> QueueFigures:
        """Return how much work there is in a queue."""
        return call(self._record_portal, self._record_client.queue_figures, queue)
