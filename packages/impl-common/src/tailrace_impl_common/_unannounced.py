"""What an upload has sent and may have to send again: the bytes that are not announced, and hash states among them.

The server may take an upload up again at any offset from the last announced one to the last one sent. To continue
there a sender needs the bytes behind that offset, and the hash state at it: the latter is computed from the copy that
was made of it at the start of the segment that holds the offset. A copy takes a microsecond, once per segment.
"""

from __future__ import annotations

from collections import deque

from tailrace_impl_common._buffers import Buffer
from tailrace_impl_common._head import HeadHasher

SEGMENT_SIZE = 64 * 1024
"""Bytes from which on a segment is full."""
_SMALL = 16 * 1024
"""Bytes below which a piece is copied into a common buffer, whose cost per piece would else be that of an object."""


class _Segment:
    """Consecutive bytes, and the hash state at their start."""

    __slots__ = ("end", "parts", "start", "state")

    def __init__(self, state: HeadHasher) -> None:
        self.state = state
        self.start = self.end = state.size
        self.parts: list[Buffer] = []

    def add(self, data: Buffer) -> None:
        self.end += len(data)
        parts = self.parts
        if len(data) >= _SMALL:
            # A bytearray is marked as somebody else's.
            parts.append(memoryview(data) if type(data) is bytearray else data)
        elif parts and type(parts[-1]) is bytearray:
            parts[-1] += data
        else:
            parts.append(bytearray(data))

    def split(self, offset: int) -> tuple[list[Buffer], list[Buffer]]:
        """Return the bytes below ``offset`` and those from there on, none of which changes any more."""
        below: list[Buffer] = []
        above: list[Buffer] = []
        position = self.start
        for part in self.parts:
            # A common buffer would go on growing; nothing else in here is a bytearray.
            data = bytes(part) if type(part) is bytearray else part
            end = position + len(data)
            if end <= offset:
                below.append(data)
            elif position >= offset:
                above.append(data)
            else:
                view = memoryview(data)
                below.append(view[: offset - position])
                above.append(view[offset - position :])
            position = end
        return below, above


class Unannounced:
    """The bytes ``[start, end)`` in the order in which they were sent; held by reference, small ones by copy.

    It holds at most one segment and one chunk more than what is not announced.
    """

    __slots__ = ("_segments",)

    def __init__(self) -> None:
        """Hold nothing."""
        self._segments: deque[_Segment] = deque()

    @property
    def start(self) -> int | None:
        """Offset of the first byte that is held; ``None`` when there is none."""
        return self._segments[0].start if self._segments else None

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return self._segments[-1].end - self._segments[0].start if self._segments else 0

    def add(self, data: Buffer, hasher: HeadHasher) -> None:
        """Hold the next bytes, which ``hasher`` has not been fed with yet. They must not change any more."""
        segments = self._segments
        if not segments or segments[-1].end - segments[-1].start >= SEGMENT_SIZE:
            segments.append(_Segment(hasher.copy()))
        segments[-1].add(data)

    def announce(self, size: int) -> None:
        """Let go of what is announced, full segments at a time."""
        segments = self._segments
        while segments and (first := segments[0]).end <= size and first.end - first.start >= SEGMENT_SIZE:
            segments.popleft()

    def states(self) -> list[HeadHasher]:
        """Return the hash states that are held, in order; they are not to be changed."""
        return [segment.state for segment in self._segments]

    def state_at(self, offset: int, end: HeadHasher) -> HeadHasher | None:
        """Return a new hasher at ``offset``; ``None`` when what is held does not reach there.

        Args:
            offset: At most the size of ``end``.
            end: The hasher behind the last byte sent.
        """
        if offset == end.size:
            return end.copy()
        for segment in self._segments:
            if segment.start <= offset < segment.end:
                state = segment.state.copy()
                for data in segment.split(offset)[0]:
                    state.update(data)
                return state
        return None

    def take_from(self, offset: int) -> list[Buffer]:
        """Stop holding what lies at ``offset`` and behind it, and return that."""
        taken: list[Buffer] = []
        while self._segments and self._segments[-1].end > offset:
            segment = self._segments.pop()
            below, above = segment.split(offset)
            taken[:0] = above
            if below:
                segment.parts, segment.end = below, offset
                self._segments.append(segment)
                break
        return taken

    def clear(self) -> None:
        """Hold nothing any more."""
        self._segments.clear()
