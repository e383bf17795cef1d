"""Work on queues for blocking code: a façade, part of :mod:`tailrace_client_download_api.sync`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from types import TracebackType
from typing import Any, Self

from tailrace_client_download_api import _records as asynchronous
from tailrace_common_api import Record
from tailrace_common_api.blocking import BlockingIterator, Portal, call


class Delivery:
    """A record that was handed to this consumer, for blocking code; see :class:`tailrace_client_download_api.Delivery`.

    Answers may come from any thread.
    """

    def __init__(self, portal: Portal, delivery: asynchronous.Delivery) -> None:
        self._portal = portal
        self._delivery = delivery

    @property
    def id(self) -> int:
        """Number of the record in its queue."""
        return self._delivery.id

    @property
    def attempt(self) -> int:
        """How often it has been handed out, this time included."""
        return self._delivery.attempt

    @property
    def priority(self) -> int:
        """Its priority."""
        return self._delivery.priority

    @property
    def record(self) -> Record:
        """The record."""
        return self._delivery.record

    @property
    def settled(self) -> bool:
        """Whether it was answered, and the server has said that this counts."""
        return self._delivery.settled

    def json(self) -> Any:
        """Return the content, parsed; see :meth:`Record.json`."""
        return self._delivery.json()

    def ack(self) -> None:
        """Say that it is done; it is never delivered again when this returns.

        Raises:
            LeaseLost: It is with somebody else by now.
            TailraceError: The answer could not be given; the record is delivered again.
        """
        call(self._portal, self._delivery.ack)

    def reject(self, reason: str = "", *, delay: float = 0.0, dead_letter: bool = False) -> None:
        """Say that it failed: it is delivered again after ``delay`` seconds, or goes to the dead-letter queue.

        Raises:
            InvalidArgument: ``delay`` is negative.
            LeaseLost, TailraceError: As for :meth:`ack`.
        """
        call(self._portal, self._delivery.reject, reason, delay=delay, dead_letter=dead_letter)

    def extend(self, seconds: float | None = None) -> None:
        """Begin the lease again; ``None`` for the queue's own length.

        Raises:
            LeaseLost, TailraceError: As for :meth:`ack`.
        """
        call(self._portal, self._delivery.extend, seconds)


class RecordConsumer:
    """A worker of a queue, for blocking code; see :class:`tailrace_client_download_api.RecordConsumer`.

    ``for delivery in client.work("tasks", credit=4): … delivery.ack()``. Leaving the loop keeps what was delivered;
    closing it, or leaving it as a context manager, gives what was not answered back at once. One thread at a time
    iterates. An interrupted loop (``KeyboardInterrupt``) loses nothing: the next one goes on where it ended.
    """

    def __init__(self, portal: Portal, consumer: asynchronous.RecordConsumer) -> None:
        self._portal = portal
        self._consumer = consumer
        self._deliveries: BlockingIterator[asynchronous.Delivery] | None = None

    def open(self) -> None:
        """Open it; called by ``__enter__`` and by the first read, and harmless when it is open.

        Raises:
            RecordEndNotFound: There is no such queue.
            TailraceError: The server's error, or the connection's.
        """
        call(self._portal, self._consumer.open)

    @property
    def lease(self) -> float:
        """Time that the queue gives for a record, in seconds, once it is open."""
        return self._consumer.lease

    @property
    def stalled(self) -> bool:
        """Whether there is work at the server that only the lack of credit keeps from this consumer."""
        return self._consumer.stalled

    @property
    def outstanding(self) -> int:
        """Deliveries that are not answered, those that were not read yet included."""
        return self._consumer.outstanding

    def set_credit(self, records: int, bytes: int = asynchronous.DEFAULT_CREDIT_BYTES) -> None:
        """Change the credit; returns when it is in force: unused credit beyond it was taken back.

        Raises:
            InvalidArgument: Negative, or above the server's limits.
            TailraceError: As for :meth:`open`.
        """
        call(self._portal, self._consumer.set_credit, records, bytes)

    def __iter__(self) -> Iterator[Delivery]:
        return self._iterate()

    def _iterate(self) -> Iterator[Delivery]:
        while True:
            # One for all loops: what it has fetched when a loop is left belongs to the next one.
            deliveries = self._deliveries
            if deliveries is None:
                deliveries = self._deliveries = BlockingIterator(self._portal, _deliveries(self._consumer))
            try:
                delivery = next(deliveries)
            except StopIteration:
                self._deliveries = None
                return
            except KeyboardInterrupt:
                raise
            except BaseException:
                # It has ended with this; the next loop asks the consumer again.
                self._deliveries = None
                raise
            yield Delivery(self._portal, delivery)

    def close(self) -> None:
        """Give back what was not answered and end it; idempotent."""
        try:
            call(self._portal, self._consumer.close)
        finally:
            # Another thread may be waiting in it: it is told the end, and not waited for here.
            if (deliveries := self._deliveries) is not None:
                deliveries.cancel()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


async def _deliveries(consumer: asynchronous.RecordConsumer) -> AsyncGenerator[asynchronous.Delivery, None]:
    async for delivery in consumer:
        yield delivery
