"""The recent end of a resource, in memory, shared by all who follow it."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict

from tailrace_impl_common import chunk_hash
from tailrace_server_api import Buffer, Piece

_CHUNK_OVERHEAD = 256
"""Bytes of memory that a chunk costs beside its data; without it a million one-byte chunks would count as nothing."""
_LARGE = 64 * 1024
"""Chunks from this size on are sent as they are; joining them would cost more than a message saves."""
_COMPACT_FROM = 1024


class TailBudget:
    """Bounds what all tails of a server keep together; those without new bytes for longest give way first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        # In order of the last append.
        self._tails: OrderedDict[SharedTail, None] = OrderedDict()

    @property
    def used(self) -> int:
        """Bytes that all tails keep."""
        return self._used

    def grow(self, tail: SharedTail, size: int) -> None:
        """Count ``size`` more bytes of ``tail``, and make room for them."""
        self._used += size
        self._tails[tail] = None
        self._tails.move_to_end(tail)
        while self._used > self._limit and self._tails:
            next(iter(self._tails)).drop_oldest()

    def shrink(self, tail: SharedTail, size: int, *, empty: bool) -> None:
        """Count ``size`` fewer bytes of ``tail``."""
        self._used -= size
        if empty:
            self._tails.pop(tail, None)

    def clear_idle(self, since: float) -> None:
        """Empty the tails that got no bytes since a time on the loop's clock."""
        while self._tails:
            tail = next(iter(self._tails))
            if tail.grown_at > since:
                return
            tail.clear()


class SharedTail:
    """Consecutive chunks up to the end of what an uploader has sent, announced or not.

    Chunks are kept as they arrived, with the hash that came with them, while there is somebody to read them. Belongs to
    one event loop.
    """

    __slots__ = ("_budget", "_end", "_first", "_limit", "_offsets", "_pieces", "_used", "grown_at")

    def __init__(self, limit: int, budget: TailBudget) -> None:
        """Keep up to ``limit`` bytes, bookkeeping included, as far as ``budget`` allows."""
        self._limit = limit
        self._budget = budget
        # Entries below ``_first`` are dropped ones that have not been cut off yet.
        self._offsets: list[int] = []
        self._pieces: list[Piece | None] = []
        self._first = 0
        self._end = 0
        self._used = 0
        self.grown_at = 0.0
        """Time of the last append, on the loop's clock."""

    @property
    def used(self) -> int:
        """Bytes that it keeps, bookkeeping included."""
        return self._used

    def append(self, offset: int, data: Buffer, hash: bytes, now: float) -> None:
        """Take the chunk at ``offset``; one that does not follow the last replaces everything."""
        if offset != self._end:
            self.clear()
        self._offsets.append(offset)
        self._pieces.append(Piece(data, hash))
        self._end = offset + len(data)
        self.grown_at = now
        size = len(data) + _CHUNK_OVERHEAD
        self._used += size
        self._budget.grow(self, size)
        while self._used > self._limit:
            self.drop_oldest()

    def cut(self, size: int) -> None:
        """Forget chunks that reach beyond offset ``size``: they were never announced, and will not be."""
        while self._end > size and self._first < len(self._offsets):
            self._end = self._offsets.pop()
            piece = self._pieces.pop()
            assert piece is not None
            self._forget(len(piece.data))

    def clear(self) -> None:
        """Forget everything."""
        self._offsets.clear()
        self._pieces.clear()
        self._first = 0
        self._end = 0
        used, self._used = self._used, 0
        self._budget.shrink(self, used, empty=True)

    def drop_oldest(self) -> None:
        """Forget the first chunk."""
        piece = self._pieces[self._first]
        assert piece is not None
        self._pieces[self._first] = None
        self._first += 1
        self._forget(len(piece.data))
        if self._first >= _COMPACT_FROM and self._first * 2 >= len(self._offsets):
            del self._offsets[: self._first]
            del self._pieces[: self._first]
            self._first = 0

    def find(self, start: int, end: int) -> tuple[Piece | None, int]:
        """Look for bytes from ``start`` on, up to ``end`` or less.

        Returns:
            The piece, if a whole chunk is what is wanted, else ``None``; and the end of what :meth:`join` would make
            of it, ``start`` if there is nothing at ``start``.
        """
        offsets = self._offsets
        if self._first == len(offsets) or not offsets[self._first] <= start < self._end:
            return None, start
        end = min(end, self._end)
        index = bisect_right(offsets, start, self._first) - 1
        chunk_end = offsets[index + 1] if index + 1 < len(offsets) else self._end
        if start == offsets[index] and (chunk_end == end or (chunk_end < end and chunk_end - start >= _LARGE)):
            return self._pieces[index], chunk_end
        if chunk_end >= end or chunk_end - start >= _LARGE:
            return None, min(chunk_end, end)
        # Small chunks are joined, up to a large one, which is sent as it is.
        index += 1
        while chunk_end < end:
            next_end = offsets[index + 1] if index + 1 < len(offsets) else self._end
            if next_end - chunk_end >= _LARGE:
                break
            chunk_end = next_end
            index += 1
        return None, min(chunk_end, end)

    def join(self, start: int, end: int) -> Piece:
        """Return exactly the bytes ``[start, end)``, which :meth:`find` has found."""
        index = bisect_right(self._offsets, start, self._first) - 1
        parts: list[memoryview] = []
        position = start
        while position < end:
            piece = self._pieces[index]
            assert piece is not None
            skipped = position - self._offsets[index]
            part = memoryview(piece.data)[skipped : skipped + end - position]
            parts.append(part)
            position += len(part)
            index += 1
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return Piece(data, chunk_hash(data))

    def _forget(self, length: int) -> None:
        size = length + _CHUNK_OVERHEAD
        self._used -= size
        self._budget.shrink(self, size, empty=self._first == len(self._offsets))
