"""Whether bytes flow on a connection whose peer owes an answer."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from dataclasses import dataclass

LOOKS_PER_TIMEOUT = 4
"""Looks at a connection in the time that an answer may take."""
_COUNTS = struct.Struct("=QQ8xI")
"""What is read of Linux's `tcp_info`: tcpi_bytes_acked, tcpi_bytes_received, tcpi_notsent_bytes (Linux 4.6)."""
_COUNTS_AT = 120


@dataclass(frozen=True, slots=True)
class Traffic:
    """What can be seen of a connection at one time."""

    buffered: int
    """Bytes that wait in the transport to be taken by the system."""
    unsent: int = 0
    """Bytes that wait in the system to be sent."""
    acknowledged: int = -1
    """Bytes that the peer's system has confirmed since the connection began; -1: not known."""
    received: int = -1
    """Bytes that have come from the peer since the connection began; -1: not known."""

    @classmethod
    def of(cls, transport: asyncio.Transport) -> Traffic:
        """Look at the connection of a transport."""
        # A transport of TLS that was closed twice has no answer to that.
        buffered = 0 if transport.is_closing() else transport.get_write_buffer_size()
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is None or sys.platform != "linux":
            return cls(buffered)
        try:
            data = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTS_AT + _COUNTS.size)
        except OSError:
            # A socket of another family, or one that is closed.
            return cls(buffered)
        if len(data) < _COUNTS_AT + _COUNTS.size:
            return cls(buffered)
        acknowledged, received, unsent = _COUNTS.unpack_from(data, _COUNTS_AT)
        return cls(buffered, unsent, acknowledged, received)

    def has_moved(self, before: Traffic) -> bool:
        """Return whether bytes of before, which hold an answer up, have flown since.

        The system of a peer that is dead itself goes on to confirm: what did not have to wait says nothing. What did,
        because the network or the peer takes no more at a time, leaves only while they take it.
        """
        if self.received > before.received or self.buffered < before.buffered:
            return True
        return bool(before.buffered or before.unsent) and self.acknowledged > before.acknowledged


class Patience:
    """How long an answer is waited for: as long as it may take, from the last time on at which bytes flowed."""

    __slots__ = ("_idle", "_seen", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        """Begin, before the question is asked."""
        self._transport = transport
        self._seen = Traffic.of(transport)
        self._idle = 0

    def lasts(self) -> bool:
        """Look whether bytes have flown; return whether to look again: `LOOKS_PER_TIMEOUT` times in the time."""
        seen, self._seen = self._seen, Traffic.of(self._transport)
        self._idle = 0 if self._seen.has_moved(seen) else self._idle + 1
        return self._idle < LOOKS_PER_TIMEOUT

    def begin_anew(self) -> None:
        """Wait as long as at the beginning."""
        self._idle = 0
