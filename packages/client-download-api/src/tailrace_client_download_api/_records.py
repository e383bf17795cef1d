"""Reading results as they are produced, and working on records under credit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from tailrace_common_api import Argument, QueueFigures, Record

DEFAULT_CREDIT_BYTES = 16 * 1024 * 1024
"""Bytes of records that a consumer takes unanswered unless it says otherwise."""


class RecordStream(ABC):
    """The results of one query: ``async for record in client.query("recommendations", user_id=1): …``.

    Read once. Leaving the loop ends the query at the server, and so does closing the stream; as a context manager it is
    closed in any case. A slow reader slows the source. A connection that is lost before the first record is tried
    again; after that it raises ``ConnectionLost``, since a source need not give the same records twice.
    """

    @abstractmethod
    async def open(self) -> None:
        """Begin the query; called by ``__aenter__`` and by the first read, and harmless when it has begun.

        Raises:
            RecordEndNotFound: There is no such source.
            InvalidArgument: An argument is unknown, missing, or of another type.
            TailraceError: The server's error, or the connection's.
        """

    @property
    @abstractmethod
    def content_type(self) -> str:
        """Content type of the records, once the query has begun."""

    @abstractmethod
    def batches(self) -> AsyncGenerator[Sequence[Record], None]:
        """Yield the records as they arrive, those of one message together.

        Raises:
            QueryFailed: The source failed; what was yielded before is right, and not all.
            IntegrityError: Records were lost or changed on the way.
            TailraceError: The server's error, or the connection's.
        """

    @abstractmethod
    async def close(self) -> None:
        """End the query; idempotent."""

    async def _records(self) -> AsyncGenerator[Record, None]:
        async with aclosing(self.batches()) as batches:
            async for batch in batches:
                for record in batch:
                    yield record

    def __aiter__(self) -> AsyncIterator[Record]:
        # A generator: leaving the loop drops it, and that closes the query.
        return self._records()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class Delivery(ABC):
    """A record that was handed to this consumer. Each is answered once; what is not is delivered again, to anyone.

    Answers may come from any task, in any order, also after the consumer was closed while the client is open. An answer
    raises ``LeaseLost`` when the record has been handed to somebody else meanwhile: then that consumer's answer counts.
    It raises ``StorageFailure`` when the server could not take it, and may be repeated then.
    """

    @property
    @abstractmethod
    def id(self) -> int:
        """Number of the record in its queue."""

    @property
    @abstractmethod
    def attempt(self) -> int:
        """How often it has been handed out, this time included."""

    @property
    @abstractmethod
    def priority(self) -> int:
        """Its priority."""

    @property
    @abstractmethod
    def record(self) -> Record:
        """The record."""

    @property
    @abstractmethod
    def settled(self) -> bool:
        """Whether it was answered, and the server has said that this counts."""

    def json(self) -> Any:
        """Return the content, parsed; see :meth:`Record.json`."""
        return self.record.json()

    @abstractmethod
    async def ack(self) -> None:
        """Say that it is done; it is never delivered again when this returns.

        Raises:
            LeaseLost: It is with somebody else by now.
            TailraceError: The answer could not be given; the record is delivered again.
        """

    @abstractmethod
    async def reject(self, reason: str = "", *, delay: float = 0.0, dead_letter: bool = False) -> None:
        """Say that it failed: it is delivered again after ``delay`` seconds, or goes to the dead-letter queue.

        Raises:
            InvalidArgument: ``delay`` is negative.
            LeaseLost, TailraceError: As for :meth:`ack`.
        """

    @abstractmethod
    async def extend(self, seconds: float | None = None) -> None:
        """Begin the lease again; ``None`` for the queue's own length.

        Raises:
            LeaseLost, TailraceError: As for :meth:`ack`.
        """


class RecordConsumer(ABC):
    """A worker of a queue: ``async for delivery in client.work("tasks", credit=4): … await delivery.ack()``.

    The server never has more than the granted records unanswered on the way to it; whatever is not granted can go to
    others. Iterating opens it. Closing it, or leaving it as a context manager, gives what was not answered back at
    once. Deliveries come to one task at a time, answers from any.

    A connection that is lost is taken up again, for as long as the client's ``reconnect_timeout`` says; deliveries that
    are still unanswered count against the credit, and their answers count unless their lease has ended meanwhile.
    """

    @abstractmethod
    async def open(self) -> None:
        """Open it; called by ``__aenter__`` and by the first read, and harmless when it is open.

        Raises:
            RecordEndNotFound: There is no such queue.
            TailraceError: The server's error, or the connection's.
        """

    @property
    @abstractmethod
    def lease(self) -> float:
        """Time that the queue gives for a record, in seconds, once it is open."""

    @property
    @abstractmethod
    def stalled(self) -> bool:
        """Whether there is work at the server that only the lack of credit keeps from this consumer."""

    @property
    @abstractmethod
    def outstanding(self) -> int:
        """Deliveries that are not answered, those that were not read yet included."""

    @abstractmethod
    async def set_credit(self, records: int, bytes: int = DEFAULT_CREDIT_BYTES) -> None:
        """Change the credit; returns when it is in force: unused credit beyond it was taken back.

        0 records pauses. What is outstanding stays to be answered.

        Raises:
            InvalidArgument: Negative, or above the server's limits.
            TailraceError: As for :meth:`open`.
        """

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[Delivery]:
        """Yield deliveries as they arrive; ends when the consumer is closed.

        Raises:
            TailraceError: The server's error, or the connection's when it did not come back.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give back what was not answered and end it; idempotent."""

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class RecordClient(ABC):
    """Reads results and works on queues; any number of both run concurrently over one client."""

    @abstractmethod
    def query(self, source: str, /, **arguments: Argument) -> RecordStream:
        """Prepare a query; it begins when it is first read.

        Args:
            source: Name of the source.
            arguments: Its arguments. ``max_results`` is known to every source: most records to give.

        Raises:
            InvalidArgument: An argument is neither text, a number nor a boolean.
        """

    @abstractmethod
    def work(
        self, queue: str, *, credit: int, credit_bytes: int = DEFAULT_CREDIT_BYTES, extend: bool = False
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

    @abstractmethod
    async def queue_figures(self, queue: str) -> QueueFigures:
        """Return how much work there is in a queue.

        Raises:
            RecordEndNotFound: There is no such queue.
        """
