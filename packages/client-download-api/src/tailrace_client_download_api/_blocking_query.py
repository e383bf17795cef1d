"""Results of queries for blocking code: a façade, part of :mod:`tailrace_client_download_api.sync`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from tailrace_client_download_api import _records as asynchronous
from tailrace_common_api import Record
from tailrace_common_api.blocking import BlockingIterator, Portal, call

# Messages fetched in front of the reader, so that receiving and using overlap.
_AHEAD = 2


class RecordStream:
    """The results of one query, for blocking code; see :class:`tailrace_client_download_api.RecordStream`.

    ``for record in client.query("recommendations", user_id=1): …``. Whole messages cross from the event loop, so that a
    record costs a fraction of a thread switch. Leaving the loop ends the query, and so does closing the stream.
    """

    def __init__(self, portal: Portal, stream: asynchronous.RecordStream) -> None:
        self._portal = portal
        self._stream = stream

    @property
    def content_type(self) -> str:
        """Content type of the records, once the query has begun."""
        return self._stream.content_type

    def open(self) -> None:
        """Begin the query; called by ``__enter__`` and by the first read, and harmless when it has begun."""
        call(self._portal, self._stream.open)

    def batches(self) -> BlockingIterator[Sequence[Record]]:
        """Yield the records as they arrive, those of one message together."""
        return BlockingIterator(self._portal, self._stream.batches(), ahead=_AHEAD)

    def __iter__(self) -> RecordIterator:
        return RecordIterator(self.batches())

    def close(self) -> None:
        """End the query; idempotent."""
        call(self._portal, self._stream.close)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class RecordIterator(Iterator[Record]):
    """The records of a query one by one.

    Closing it, or dropping it, ends the query. An interrupted ``next()`` loses nothing: iteration can go on.
    """

    def __init__(self, batches: BlockingIterator[Sequence[Record]]) -> None:
        self._batches = batches
        self._current: Iterator[Record] = iter(())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Record:
        while True:
            for record in self._current:
                return record
            self._current = iter(next(self._batches))

    def close(self) -> None:
        """End the query and wait until it has ended; idempotent. Records that were not read are dropped."""
        self._batches.close()
        self._current = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
