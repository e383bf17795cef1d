"""Windows in bytes: how far ahead of its receiver a sender may be.

A window is told as ``until``, the absolute offset up to which the sender may send. It never shrinks, so a repeated or
late message is harmless. An upload never goes beyond it; a download may by one chunk, so that chunks shared between
readers need not be split.
"""

from __future__ import annotations

from tailrace_common_api import ProtocolError


class SendWindow:
    """What the peer allows this side to send."""

    __slots__ = ("until",)

    def __init__(self, until: int = 0) -> None:
        """Start with ``until`` granted."""
        self.until = until
        """Absolute offset up to which bytes may be sent; :meth:`grant` raises it."""

    def available(self, offset: int) -> int:
        """Return how many bytes may be sent from ``offset`` on; 0 when the window is used up."""
        return max(0, self.until - offset)

    def grant(self, until: int) -> bool:
        """Take a grant; return whether it allows more than was allowed before."""
        if until <= self.until:
            return False
        self.until = until
        return True


class ReceiveWindow:
    """What this side allows the peer to send, and when to allow more."""

    __slots__ = ("_overdraft", "_size", "_step", "_until")

    def __init__(self, size: int, *, offset: int = 0, overdraft: int = 0) -> None:
        """Grant ``size`` bytes from ``offset`` on.

        Args:
            size: Bytes that the peer may have sent and this side not consumed, at least 1.
            offset: Offset of the first byte.
            overdraft: Bytes of the one chunk with which the peer may go beyond the window; 0 when it may not.
        """
        if size < 1:
            raise ValueError(f"a window of {size} bytes")
        self._size = size
        self._step = (size + 3) // 4
        self._until = offset + size
        self._overdraft = overdraft

    @property
    def until(self) -> int:
        """Absolute offset up to which the peer was last told that it may send."""
        return self._until

    def receive(self, offset: int, length: int) -> None:
        """Check that a chunk was allowed.

        Raises:
            ProtocolError: It goes beyond the window, or further than the overdraft covers.
        """
        end = offset + length
        if end <= self._until or (offset < self._until and length <= self._overdraft):
            return
        raise ProtocolError(f"bytes [{offset}, {end}) overdraw the window, which ends at offset {self._until}")

    def consume(self, offset: int) -> int | None:
        """Note that everything below ``offset`` is consumed: stored, or taken by the reader.

        Returns:
            The ``until`` to tell the peer, once that allows at least a quarter of a window more; else ``None``. The
            peer therefore always has three quarters of a window when all it sent is consumed.
        """
        until = offset + self._size
        if until - self._until < self._step:
            return None
        self._until = until
        return until
