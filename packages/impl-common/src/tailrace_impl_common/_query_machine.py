"""The conversation of a query, without any input or output: messages, the window and the digest, for both sides.

The window counts records as :attr:`RecordBatch.size` does, from the first of the query on. It may be overdrawn by one
message, so that a record that is larger than the window still comes. Window 0 stands for none.
"""

from __future__ import annotations

from collections.abc import Iterator

from tailrace_common_api import (
    MAX_RECORD_SIZE,
    RECORD_OVERHEAD,
    IntegrityError,
    ProtocolError,
    RecordBatch,
)
from tailrace_impl_common._record_digest import RecordDigest
from tailrace_impl_common._window import ReceiveWindow, SendWindow
from tailrace_impl_common.messages import ClientMessage, ServerMessage, Window
from tailrace_impl_common.record_messages import (
    MESSAGE_BYTES,
    MESSAGE_RECORDS,
    QueryEnd,
    QueryStarted,
)


class QuerySender:
    """The server's side behind ``QueryStarted``."""

    def __init__(self, window: int) -> None:
        """Begin with ``window`` bytes granted; 0 for no window."""
        self._window = SendWindow(window) if window else None
        self._sent = 0
        self._digest = RecordDigest()

    @property
    def may_send(self) -> bool:
        """Whether the window is not used up."""
        return self._window is None or self._window.available(self._sent) > 0

    def receive(self, message: ClientMessage) -> bool:
        """Take a message of the reader; return whether it allows more than before.

        Raises:
            ProtocolError: It is no ``Window``, or there is no window.
        """
        if not isinstance(message, Window):
            raise ProtocolError(f"{type(message).__name__} received from the reader of a query")
        if self._window is None:
            raise ProtocolError("Window received where none was asked for")
        return self._window.grant(message.until)

    def message(self, part: RecordBatch, size: int) -> RecordBatch:
        """Take note that ``part``, which counts ``size``, is sent next, and return it."""
        self._digest.update(part)
        self._sent += size
        return part

    def end(self) -> QueryEnd:
        """Return the last message."""
        return QueryEnd(self._digest.records, self._digest.digest())


def message_parts(batch: RecordBatch) -> Iterator[tuple[RecordBatch, int]]:
    """Cut a batch into what goes into a message each, with what that counts in the window.

    Raises:
        ValueError: There is not a key for each record where there are keys.
    """
    data, keys = batch
    if keys and len(keys) != len(data):
        raise ValueError(f"{len(data)} records with {len(keys)} keys")
    size = batch.size
    if len(data) <= MESSAGE_RECORDS and (size <= MESSAGE_BYTES or len(data) == 1):
        if data:
            yield batch, size
        return
    start, total = 0, 0
    for index, record in enumerate(data):
        key = keys[index] if keys else None
        size = len(record) + RECORD_OVERHEAD + (len(key.encode()) if key else 0)
        if index > start and (total + size > MESSAGE_BYTES or index - start == MESSAGE_RECORDS):
            yield RecordBatch(data[start:index], keys[start:index]), total
            start, total = index, 0
        total += size
    yield RecordBatch(data[start:], keys[start:]), total


class QueryReceiver:
    """The reader's side."""

    def __init__(self, *, window: int, verify: bool) -> None:
        """Begin before the first message.

        Args:
            window: Bytes that the server was granted; 0 for no window.
            verify: Whether the digest of the records is checked; their number is in any case.
        """
        overdraft = MAX_RECORD_SIZE + RECORD_OVERHEAD
        self._window = ReceiveWindow(window, overdraft=overdraft) if window else None
        self._digest = RecordDigest()
        self._verify = verify
        self._records = 0
        self._received = 0
        self.started: QueryStarted | None = None
        self.end: QueryEnd | None = None
        """The last message, once it has come and agrees with what came before."""

    @property
    def records(self) -> int:
        """Records that have come."""
        return self._records

    def receive(self, message: ServerMessage) -> RecordBatch | None:
        """Take a message of the server; return the records in it.

        Raises:
            ProtocolError: It is not allowed.
            IntegrityError: The records that came are not those that were sent.
        """
        if self.end is not None:
            raise ProtocolError(f"{type(message).__name__} received behind the end of a query")
        if self.started is None:
            if not isinstance(message, QueryStarted):
                raise ProtocolError(f"{type(message).__name__} does not answer Query")
            self.started = message
        elif isinstance(message, RecordBatch):
            self._take(message)
            return message
        elif isinstance(message, QueryEnd):
            self._check(message)
            self.end = message
        else:
            raise ProtocolError(f"{type(message).__name__} received within a query")
        return None

    def _take(self, batch: RecordBatch) -> None:
        count = len(batch.data)
        if not count or (batch.keys and len(batch.keys) != count):
            raise ProtocolError(f"a message with {count} records and {len(batch.keys)} keys")
        if count > MESSAGE_RECORDS:
            raise ProtocolError(f"a message with {count} records; at most {MESSAGE_RECORDS} are allowed")
        if self._window is not None:
            size = batch.size
            self._window.receive(self._received, size)
            self._received += size
        self._records += count
        if self._verify:
            self._digest.update(batch)

    def _check(self, end: QueryEnd) -> None:
        if end.records != self._records:
            raise IntegrityError(offset=0, problem=f"{end.records} records were sent and {self._records} arrived")
        if self._verify and end.digest != self._digest.digest():
            raise IntegrityError(offset=0, problem="the digest of the records that arrived is not that of those sent")

    def consume(self) -> Window | None:
        """Take note that the reader has all that came; return what to tell the server, when it is time to."""
        if self._window is None:
            return None
        until = self._window.consume(self._received)
        return None if until is None else Window(until)
