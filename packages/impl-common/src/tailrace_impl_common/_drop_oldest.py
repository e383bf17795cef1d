"""A bounded queue of bytes that loses its oldest lines when there are too many."""

from __future__ import annotations

from collections import deque

from tailrace_impl_common._buffers import Buffer
from tailrace_impl_common._waiting_bytes import WaitingBytes

_PART = 64 * 1024
_NEWLINE = b"\n"
_MARKER_ROOM = 160
"""Bytes that a marker has at most."""


def dropped_marker(size: int, lines: int) -> bytes:
    """Return the line that stands where bytes were dropped.

    Args:
        size: Number of bytes.
        lines: Number of ends of lines among them.
    """
    return b"[tailrace: %d bytes (%d lines) were dropped here while the server was away]\n" % (size, lines)


class DropOldestBytes(WaitingBytes):
    """What waits in memory, never more than ``max_bytes``; the oldest lines make room for the newest.

    The rest of a line of which the beginning was taken stays, unless it is longer than half of the room. Behind it one
    marker says how much is missing until it is taken itself. Bytes without ends of lines are cut anywhere.
    """

    def __init__(self, max_bytes: int, *, at_line_start: bool = True) -> None:
        """Wait for bytes.

        Args:
            max_bytes: Most bytes that wait, the marker included; at least 1,024.
            at_line_start: Whether the first byte begins a line.
        """
        self._capacity = max_bytes - _MARKER_ROOM
        self._begun: deque[bytearray] = deque()  # The rest of a line that is partly taken, in front of the marker.
        self._begun_size = 0
        self._lost = 0
        self._lost_lines = 0
        self._parts: deque[bytearray] = deque()
        self._parts_size = 0
        self._newlines = 0
        self._at_line_start = at_line_start
        self._cut_within_line = False

    @property
    def size(self) -> int:
        return self._begun_size + len(self._marker()) + self._parts_size

    @property
    def lost(self) -> int:
        """Bytes that the next marker tells of."""
        return self._lost

    def open(self) -> None:
        """Do nothing: there is always room."""

    def fits(self, length: int) -> bool:
        return True

    def add(self, data: Buffer) -> None:
        view = memoryview(data)
        for start in range(0, len(view), _PART):
            self._add(view[start : start + _PART])

    def _add(self, data: memoryview) -> None:
        last = self._parts[-1] if self._parts else None
        if last is None or len(last) + len(data) > _PART:
            last = bytearray()
            self._parts.append(last)
        last += data
        self._parts_size += len(data)
        self._newlines += bytes(data).count(_NEWLINE)
        if self._begun_size + self._parts_size > self._capacity:
            self._drop()

    def _drop(self) -> None:
        if not self._lost and not self._at_line_start:
            self._keep_begun_line()
        excess = self._begun_size + self._parts_size - self._capacity
        if self._begun_size > self._capacity // 2:
            # One endless line: what is left of it goes first, and the marker takes its place.
            excess -= self._begun_size
            self._lost += self._begun_size
            self._lost_lines += sum(part.count(_NEWLINE) for part in self._begun)
            self._begun.clear()
            self._begun_size = 0
        while excess > 0:
            excess -= self._drop_from_first(excess)
        self._drop_begun_line()

    def _keep_begun_line(self) -> None:
        """Set the rest of the line that is partly taken aside, if it has an end that is near."""
        if not self._newlines:
            return
        kept = 0
        while kept <= self._capacity // 2:
            part = self._parts[0]
            end = part.find(_NEWLINE) + 1
            taken = part[:end] if end else part
            kept += len(taken)
            self._begun.append(taken)
            self._begun_size += len(taken)
            self._remove(len(taken), 1 if end else 0)
            if end:
                return

    def _drop_from_first(self, excess: int) -> int:
        size = min(excess, len(self._parts[0]))
        return self._lose(size)

    def _lose(self, size: int) -> int:
        part = self._parts[0]
        newlines = part.count(_NEWLINE, 0, size)
        self._cut_within_line = part[size - 1] != _NEWLINE[0]
        self._remove(size, newlines)
        self._lost += size
        self._lost_lines += newlines
        return size

    def _drop_begun_line(self) -> None:
        """Drop the rest of the line that was cut, if it has an end."""
        while self._cut_within_line and self._newlines:
            part = self._parts[0]
            end = part.find(_NEWLINE) + 1
            self._lose(end or len(part))

    def _remove(self, size: int, newlines: int) -> None:
        """Take bytes off the first part."""
        part = self._parts[0]
        if size == len(part):
            self._parts.popleft()
        else:
            del part[:size]
        self._parts_size -= size
        self._newlines -= newlines

    def _marker(self) -> bytes:
        if not self._lost:
            return b""
        ends = self._begun[-1][-1:] == _NEWLINE if self._begun else self._at_line_start
        return (b"" if ends else _NEWLINE) + dropped_marker(self._lost, self._lost_lines)

    def take(self) -> bytes:
        if self._begun:
            taken = bytes(self._begun.popleft())
            self._begun_size -= len(taken)
        elif self._lost:
            taken = self._marker()
            self._lost = self._lost_lines = 0
        elif self._parts:
            taken = bytes(self._parts[0])
            self._remove(len(taken), taken.count(_NEWLINE))
        else:
            return b""
        self._at_line_start = taken.endswith(_NEWLINE)
        return taken

    def announced(self, size: int) -> None:
        """Do nothing: what was taken is not kept."""

    def close(self) -> None:
        self._begun.clear()
        self._parts.clear()
        self._begun_size = self._parts_size = self._newlines = self._lost = self._lost_lines = 0
