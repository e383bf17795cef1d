"""Reading a resource once for all who want the same bytes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from tailrace_impl_server._shared_tail import SharedTail
from tailrace_server_api import Piece, Storage

_PieceKey = tuple[str, int, int]
_PIECE_OVERHEAD = 512
"""Bytes of memory that a piece costs beside its data: joined lines are small, and there are many of them."""


def _memory_of(piece: Piece) -> int:
    """Return the bytes of memory that a piece keeps: a view keeps all of what it is a view of."""
    data = piece.data
    return _PIECE_OVERHEAD + (memoryview(data.obj).nbytes if isinstance(data, memoryview) else len(data))


class PieceCache:
    """Pieces that were joined or read a moment ago, by (id, start, end), the least recently used dropped first.

    Announced bytes never change, so an entry cannot be wrong.
    """

    def __init__(self, limit: int) -> None:
        """Keep up to ``limit`` bytes, bookkeeping included."""
        self._limit = limit
        self._used = 0
        self._pieces: OrderedDict[_PieceKey, Piece] = OrderedDict()

    def get(self, key: _PieceKey) -> Piece | None:
        """Return a piece that is kept."""
        piece = self._pieces.get(key)
        if piece is not None:
            self._pieces.move_to_end(key)
        return piece

    def put(self, key: _PieceKey, piece: Piece) -> None:
        """Keep a piece."""
        size = _memory_of(piece)
        if size > self._limit or key in self._pieces:
            return
        self._pieces[key] = piece
        self._used += size
        while self._used > self._limit:
            _, dropped = self._pieces.popitem(last=False)
            self._used -= _memory_of(dropped)

    def clear(self) -> None:
        """Forget everything."""
        self._pieces.clear()
        self._used = 0


class PieceSource:
    """Pieces of one resource: from its shared tail, from what was read a moment ago, from storage.

    Callers keep within the announced size. Belongs to one event loop.
    """

    def __init__(self, id: str, storage: Storage, tail: SharedTail, cache: PieceCache) -> None:
        self._id = id
        self._storage = storage
        self._cache = cache
        self._reading: dict[tuple[int, int], list[asyncio.Future[Piece | None]]] = {}
        self.tail = tail
        """Recent chunks."""
        self.readers = 0
        """Open readers; with only one nothing is kept for others."""

    def try_read(self, start: int, end: int) -> Piece | None:
        """Return bytes from ``start`` on without waiting, if that is possible."""
        piece, found_end = self.tail.find(start, end)
        if piece is not None:
            return piece
        key = (self._id, start, found_end if found_end > start else end)
        piece = self._cache.get(key)
        if piece is not None:
            return piece
        if found_end > start:
            piece = self.tail.join(start, found_end)
        else:
            piece = self._storage.read_cached(self._id, start, end)
            if piece is None:
                return None
        self._keep(key, piece)
        return piece

    async def read(self, start: int, end: int) -> Piece:
        """Return bytes from ``start`` on; readers of the same range share one read."""
        while True:
            piece = self.try_read(start, end)
            if piece is not None:
                return piece
            others = self._reading.get((start, end))
            if others is None:
                return await self._read_for_all(start, end)
            turn: asyncio.Future[Piece | None] = asyncio.get_running_loop().create_future()
            others.append(turn)
            piece = await turn
            if piece is not None:
                return piece

    async def _read_for_all(self, start: int, end: int) -> Piece:
        others: list[asyncio.Future[Piece | None]] = []
        self._reading[start, end] = others
        piece = None
        try:
            piece = await self._storage.read(self._id, start, end)
            self._keep((self._id, start, end), piece)
            return piece
        finally:
            # Without a piece (an error, a cancellation) each of the others tries for itself.
            del self._reading[start, end]
            for other in others:
                if not other.done():
                    other.set_result(piece)

    def _keep(self, key: _PieceKey, piece: Piece) -> None:
        if self.readers > 1:
            self._cache.put(key, piece)
