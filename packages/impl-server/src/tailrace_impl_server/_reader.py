"""Reading a resource: bytes, lines and heads."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from tailrace_common_api import (
    Deleted,
    LineAccessDisabled,
    LineRangeNotSatisfiable,
    NotFound,
    Position,
    RangeNotSatisfiable,
    Status,
)
from tailrace_impl_common import HeadHasher, count_newlines, find_newline
from tailrace_impl_server._live_resource import LiveResource
from tailrace_server_api import BLOCK_SIZE, Buffer, Piece, ResourceReader, Snapshot, Storage


class _Searched(NamedTuple):
    """A block in which a line was found a moment ago: the line after it is found there, too."""

    block: Buffer
    offset: int
    """Where the block begins."""
    line: int
    """The line that was found."""
    start: int
    """Where it starts in the block."""


class LiveReader(ResourceReader):
    """Reads a resource in use; releases it when closed."""

    __slots__ = ("_live", "_release", "_searched", "_storage")

    def __init__(self, live: LiveResource, storage: Storage, release: Callable[[LiveResource], None]) -> None:
        self._live = live
        self._storage = storage
        self._release: Callable[[LiveResource], None] | None = release
        # Only between one search and the next: who reads or waits does not hold a block meanwhile.
        self._searched: _Searched | None = None
        live.pieces.readers += 1

    @property
    def id(self) -> str:
        return self._live.id

    @property
    def line_access(self) -> bool:
        return self._live.descriptor.metadata.lines

    @property
    def snapshot(self) -> Snapshot:
        return self._live.snapshot

    def status(self) -> Status:
        return self._live.status()

    def changed(self, version: int, absorb: Callable[[Snapshot], bool] | None = None) -> Coroutine[Any, Any, Snapshot]:
        # No coroutine of its own: thousands of followers wait in it.
        self._searched = None
        return self._live.changed(version, absorb)

    def try_read(self, start: int, end: int) -> Piece | None:
        self._searched = None
        self._check_range(start, end)
        try:
            return self._live.pieces.try_read(start, end)
        except NotFound:
            raise Deleted(id=self.id) from None

    async def read(self, start: int, end: int) -> Piece:
        self._searched = None
        self._check_range(start, end)
        try:
            piece = await self._live.pieces.read(start, end)
        except NotFound:
            raise Deleted(id=self.id) from None
        self._live.check()
        return piece

    async def line_offset(self, line: int, snapshot: Snapshot) -> int:
        self._check_lines()
        if not 0 <= line <= snapshot.lines:
            raise LineRangeNotSatisfiable(first=line, count=None, lines=snapshot.lines)
        if line > snapshot.newlines:
            # The end of an unterminated last line.
            return snapshot.size
        return await self._behind_newline(line, snapshot.size)

    async def line_at(self, offset: int, snapshot: Snapshot) -> Position:
        self._check_lines()
        if not 0 <= offset <= snapshot.size:
            raise RangeNotSatisfiable(start=offset, end=None, size=snapshot.size)
        try:
            boundary = await self._storage.boundary(self.id, offset)
        except NotFound:
            raise Deleted(id=self.id) from None
        before = await self._read_exactly(boundary.offset, offset)
        line = boundary.newlines + count_newlines(before)
        last = bytes(before).rfind(b"\n")
        if last >= 0:
            return Position(line, boundary.offset + last + 1)
        return Position(line, await self._behind_newline(line, snapshot.size))

    async def head(self, size: int) -> bytes:
        snapshot = self._live.snapshot
        if not 0 <= size <= snapshot.size:
            raise RangeNotSatisfiable(start=size, end=None, size=snapshot.size)
        self._live.check()
        if size == snapshot.size:
            return snapshot.head
        try:
            boundary = await self._storage.boundary(self.id, size)
        except NotFound:
            raise Deleted(id=self.id) from None
        open_block = await self._read_exactly(boundary.offset, size)
        blocks = boundary.offset // BLOCK_SIZE
        return HeadHasher.resume(spine=boundary.spine, blocks=blocks, open_block=open_block).head()

    def close(self) -> None:
        if self._release is not None:
            self._live.pieces.readers -= 1
            self._release(self._live)
            self._release = None
            self._searched = None

    async def _behind_newline(self, newlines: int, size: int) -> int:
        """Return the offset behind the ``newlines``-th newline, which is below ``size``; 0 for none."""
        if newlines == 0:
            return 0
        if (offset := self._found_again(newlines, size)) is not None:
            return offset
        try:
            boundary = await self._storage.boundary_of_newline(self.id, newlines, size)
        except NotFound:
            raise Deleted(id=self.id) from None
        # Nothing from ``size`` on is looked at: it may be there already, and is not announced to this reader.
        block = await self._read_exactly(boundary.offset, min(boundary.offset + BLOCK_SIZE, size))
        start = find_newline(block, newlines - boundary.newlines)
        self._searched = _Searched(block, boundary.offset, newlines, start)
        return boundary.offset + start

    def _found_again(self, newlines: int, size: int) -> int | None:
        """Return the offset behind the newline if it is in the block that was searched last."""
        searched = self._searched
        if searched is None or searched.offset + len(searched.block) > size:
            return None
        if not 0 <= newlines - searched.line <= len(searched.block) - searched.start:
            return None
        try:
            start = find_newline(searched.block, newlines - searched.line, searched.start)
        except ValueError:
            return None
        self._searched = searched._replace(line=newlines, start=start)
        return searched.offset + start

    async def _read_exactly(self, start: int, end: int) -> Buffer:
        parts: list[Buffer] = []
        while start < end:
            data = (await self.read(start, end)).data
            parts.append(data)
            start += len(data)
        self._live.check()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check_lines(self) -> None:
        self._live.check()
        if not self.line_access:
            raise LineAccessDisabled(id=self.id)

    def _check_range(self, start: int, end: int) -> None:
        self._live.check()
        if not 0 <= start < end <= self._live.snapshot.size:
            raise RangeNotSatisfiable(start=start, end=end, size=self._live.snapshot.size)
