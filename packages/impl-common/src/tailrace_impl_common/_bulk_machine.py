"""The conversation of a bulk, without any input or output: order of messages and the window, for both sides.

The window counts records as :attr:`RecordBatch.size` does, from the first of the bulk on, and is told as ``until``, the
absolute count up to which the client may send. The client never goes beyond it: it cuts what it has gathered between
two records. A window always has room for the largest record that is accepted, once everything before it is staged.
"""

from __future__ import annotations

from tailrace_common_api import (
    RECORD_OVERHEAD,
    BulkConflict,
    BulkResult,
    MessageTooLarge,
    ProtocolError,
    RecordBatch,
    RecordLimits,
)
from tailrace_impl_common._record_digest import RecordDigest
from tailrace_impl_common.messages import ClientMessage, ServerMessage, Window
from tailrace_impl_common.record_messages import (
    MESSAGE_RECORDS,
    BulkCommitted,
    BulkOpened,
    CommitBulk,
)


class BulkReceiver:
    """The server's side behind ``BulkOpened``."""

    def __init__(self, limits: RecordLimits, until: int) -> None:
        """Begin with ``until`` granted."""
        self._until = until
        self._received = 0
        # Whoever has nothing on its way has room for the largest record, whatever was not worth telling it.
        self._step = max(1, min(limits.window // 4, limits.window - limits.record_bytes - RECORD_OVERHEAD))

    def receive(self, message: ClientMessage) -> RecordBatch | CommitBulk:
        """Take a message of the client, and return it if it is allowed.

        Raises:
            ProtocolError: It is not.
        """
        if isinstance(message, RecordBatch):
            count = len(message.data)
            if not count or (message.keys and len(message.keys) != count):
                raise ProtocolError(f"a message with {count} records and {len(message.keys)} keys")
            if count > MESSAGE_RECORDS:
                raise ProtocolError(f"a message with {count} records; at most {MESSAGE_RECORDS} are allowed")
            self._received += message.size
            if self._received > self._until:
                raise ProtocolError(f"{self._received} bytes of records overdraw the window, which is {self._until}")
            return message
        if isinstance(message, CommitBulk):
            return message
        raise ProtocolError(f"{type(message).__name__} received within a bulk")

    @property
    def received(self) -> int:
        """Bytes of records that have arrived, each counted with its overhead."""
        return self._received

    def grant(self, until: int) -> Window | None:
        """Return what to tell the client of ``until``; ``None`` while it is not worth a message."""
        if until - self._until < self._step:
            return None
        self._until = until
        return Window(until)


class BulkSender:
    """The client's side: gathers records, cuts them to the window, and knows how the bulk stands.

    Who adds records sees to it that what is gathered is one message at most.
    """

    def __init__(self) -> None:
        """Begin before the first conversation."""
        self.opened: BulkOpened | None = None
        self.result: BulkResult | None = None
        """The result, when there is one."""
        self.committing = False
        """Whether ``CommitBulk`` was handed out."""
        self.data: list[bytes] = []
        self.keys: list[str | None] = []
        self.gathered = 0
        """What the gathered records count for in the window."""
        self.digest = RecordDigest()
        self._sent = 0
        self._until = 0

    @property
    def sent(self) -> int:
        """Bytes of records that were handed out, each counted with its overhead."""
        return self._sent

    def receive(self, message: ServerMessage) -> None:
        """Take a message of the server.

        Raises:
            ProtocolError: It is not allowed.
        """
        if isinstance(message, Window) and self.opened is not None:
            self._until = max(self._until, message.until)
        elif isinstance(message, BulkCommitted) and self.committing:
            self._check(message.result)
            self.result = message.result
        elif isinstance(message, BulkOpened) and not self._sent:
            self.opened = message
            self._until = message.until
            if message.result is not None:
                self.result = message.result
                self.forget()
        else:
            raise ProtocolError(f"{type(message).__name__} received within a bulk")

    def _check(self, result: BulkResult) -> None:
        if (result.records, result.digest) != (self.digest.records, self.digest.digest()):
            raise ProtocolError(f"{self.digest.records} records were sent, and {result.records} others committed")

    def add(self, data: bytes, key: str | None, size: int) -> None:
        """Gather a record that counts ``size`` in the window."""
        self.data.append(data)
        if key is not None:
            self.keys.extend([None] * (len(self.data) - 1 - len(self.keys)))
            self.keys.append(key)
        elif self.keys:
            self.keys.append(None)
        self.gathered += size

    def next_message(self) -> RecordBatch | None:
        """Return the gathered records, as many of them as the window allows; ``None`` when that is none."""
        if not self.data:
            return None
        room = self._until - self._sent
        if self.gathered <= room:
            batch, size = RecordBatch(self.data, self.keys), self.gathered
            self.data, self.keys, self.gathered = [], [], 0
        else:
            count, size = self._fitting(room)
            if not count:
                return None
            batch = RecordBatch(self.data[:count], self.keys[:count])
            self.data, self.keys = self.data[count:], self.keys[count:]
            self.gathered -= size
        self._sent += size
        self.digest.update(batch)
        return batch

    def _fitting(self, room: int) -> tuple[int, int]:
        """Return how many of the gathered records fit into ``room``, and what they count."""
        total = 0
        for count, data in enumerate(self.data):
            key = self.keys[count] if self.keys else None
            size = len(data) + RECORD_OVERHEAD + (len(key.encode()) if key is not None else 0)
            if total + size > room:
                return count, total
            total += size
        return len(self.data), total

    def forget(self) -> None:
        """Take note of the gathered records without sending them: the bulk has committed before."""
        if self.data:
            self.digest.update(RecordBatch(self.data, self.keys))
            self.data, self.keys, self.gathered = [], [], 0

    def commit(self) -> CommitBulk:
        """Return the end of the input."""
        self.committing = True
        return CommitBulk(self.digest.records, self.digest.digest())

    def compare(self, result: BulkResult) -> None:
        """Check that a bulk that has committed before had these records.

        Raises:
            BulkConflict: It had others.
        """
        self.forget()
        if (result.records, result.digest) != (self.digest.records, self.digest.digest()):
            raise BulkConflict(id=result.id)


def largest_record(limits: RecordLimits) -> int:
    """Return the largest record that fits into a bulk's window and limits, data and key together, in bytes."""
    return min(limits.record_bytes, limits.window - RECORD_OVERHEAD)


def check_limits(limits: RecordLimits, until: int) -> None:
    """Check that something can be sent at all under what a server has announced.

    Raises:
        MessageTooLarge: No record fits.
    """
    if largest_record(limits) < 1 or until < 1:
        raise MessageTooLarge(size=RECORD_OVERHEAD + 1, maximum=max(0, min(limits.window, until)))
