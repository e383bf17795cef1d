"""A bounded spool that a later process can go on with: bytes that were read and are not announced, in segments.

A segment is a file named by the offset of its first byte, which is a multiple of the block size::

    magic           8 bytes
    start           offset of the first byte, 8 bytes little-endian
    spine           spine over all blocks before it, 16 bytes
    check           XXH3-64 of the fields above, 8 bytes
    the bytes

So the hash state at the start of each segment is there, and that at any offset behind it needs no other bytes. A
segment is deleted when all of it is announced; nothing is ever rewritten, so a process may be killed at any moment.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_64_digest

from tailrace_common_api import MEBIBYTE, IntegrityError, InvalidArgument
from tailrace_impl_common._blocks import BLOCK_SIZE
from tailrace_impl_common._buffers import Buffer
from tailrace_impl_common._head import HeadHasher
from tailrace_impl_common._waiting_bytes import PIECE_SIZE, WaitingBytes

MIN_SPOOL_BYTES = MEBIBYTE
"""Fewest bytes that a spool may hold."""
_MAGIC = b"TRSPOOL1"
_HEADER_SIZE = 40
_MOST_IN_SEGMENT = 8 * MEBIBYTE
_READ_SIZE = MEBIBYTE


@dataclass(slots=True)
class _Segment:
    """A file of the spool."""

    path: Path
    start: int
    end: int
    spine: bytes

    def state(self) -> HeadHasher:
        return HeadHasher.resume(spine=self.spine, blocks=self.start // BLOCK_SIZE)

    def read(self, offset: int, length: int) -> bytes:
        with open(self.path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), length, _HEADER_SIZE + offset - self.start)


class SegmentSpool(WaitingBytes):
    """Bytes of a resource that are kept until they are announced, for this process and a later one.

    Everything works on files.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Prepare a spool; nothing is read or made yet.

        Args:
            directory: Folder of the segments, which holds nothing else; made if it is not there.
            max_bytes: Most bytes that are kept; at least :data:`MIN_SPOOL_BYTES`.

        Raises:
            InvalidArgument: ``max_bytes`` is less.
        """
        if max_bytes < MIN_SPOOL_BYTES:
            raise InvalidArgument(field="max_bytes", problem=f"{max_bytes} is below {MIN_SPOOL_BYTES}")
        self._directory = directory
        self._capacity = max_bytes
        self._segment_size = min(_MOST_IN_SEGMENT, max_bytes // 8 // BLOCK_SIZE * BLOCK_SIZE)
        self._segments: list[_Segment] = []
        self._hasher = HeadHasher()
        self._position = 0
        self._writer = -1
        self._opened = False

    def open(self) -> None:
        """Find what an earlier process has left, and prove that it is whole; harmless when it is open.

        Raises:
            IntegrityError: It is not.
            OSError: The folder cannot be made or read.
        """
        if self._opened:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._segments = self._found()
        for number, segment in enumerate(self._segments):
            if number and (segment.start, segment.spine) != (self._hasher.size, self._hasher.spine):
                raise self._damaged(segment.path, "does not follow the one before it")
            if not number:
                self._hasher = segment.state()
            while data := segment.read(self._hasher.size, _READ_SIZE):
                self._hasher.update(data)
            segment.end = self._hasher.size
        self._position = self.start
        self._opened = True

    def _found(self) -> list[_Segment]:
        found = []
        for path in sorted(self._directory.iterdir()):
            with open(path, "rb") as file:
                header = file.read(_HEADER_SIZE)
            if len(header) < _HEADER_SIZE:
                # The process was killed while it began this segment; there is nothing in it.
                path.unlink()
                continue
            start = int.from_bytes(header[8:16], "little")
            if header[:8] != _MAGIC or xxh3_64_digest(header[:32]) != header[32:] or path.name != _name(start):
                raise self._damaged(path, "is no segment of a spool, or damaged")
            found.append(_Segment(path, start, start, header[16:32]))
        return found

    def _damaged(self, path: Path, what: str) -> IntegrityError:
        return IntegrityError(offset=self._hasher.size, problem=f"{str(path)!a} {what}")

    @property
    def start(self) -> int:
        """Offset of the first byte that is kept."""
        return self._segments[0].start if self._segments else self._hasher.size

    @property
    def end(self) -> int:
        """Offset behind the last byte that was added."""
        return self._hasher.size

    @property
    def head(self) -> bytes:
        """Head of everything that was ever added."""
        return self._hasher.head()

    @property
    def size(self) -> int:
        return self.end - self._position

    def seek(self, offset: int) -> None:
        """Let :meth:`take` go on at ``offset``.

        Raises:
            ValueError: It is not among what is kept.
        """
        if not self.start <= offset <= self.end:
            raise ValueError(f"offset {offset} is not within [{self.start}, {self.end}]")
        self._position = offset

    def state_at(self, offset: int) -> HeadHasher | None:
        """Return the hash state at ``offset``; ``None`` when what is kept does not tell it. Blocking."""
        for segment in self._segments:
            if segment.start <= offset <= segment.end:
                state = segment.state()
                while state.size < offset:
                    state.update(segment.read(state.size, min(_READ_SIZE, offset - state.size)))
                return state
        return HeadHasher() if not offset and not self.end else None

    def samples(self) -> list[tuple[int, bytes]]:
        """Return offsets with the heads there, in order: those of the starts of segments."""
        return [(segment.start, segment.state().head()) for segment in self._segments if segment.start]

    def fits(self, length: int) -> bool:
        return self.end - self.start + length <= self._capacity

    def add_blocks(self, length: int) -> bool:
        return True

    @property
    def take_blocks(self) -> bool:
        return True

    @property
    def keeps_taken(self) -> bool:
        return True

    def add(self, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            segment = self._current()
            piece = view[: self._segment_size - (segment.end - segment.start)]
            written = os.write(self._writer, piece)
            self._hasher.update(piece[:written])
            segment.end += written
            view = view[written:]

    def _current(self) -> _Segment:
        """Return the segment that is written to, with its file open."""
        last = self._segments[-1] if self._segments else None
        if last is None or last.end - last.start >= self._segment_size:
            self._close_writer()
            start, spine = self._hasher.size, self._hasher.spine
            header = _MAGIC + start.to_bytes(8, "little") + spine
            last = _Segment(self._directory / _name(start), start, start, spine)
            self._writer = os.open(last.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            os.write(self._writer, header + xxh3_64_digest(header))
            self._segments.append(last)
        elif self._writer < 0:
            self._writer = os.open(last.path, os.O_WRONLY | os.O_APPEND)
        return last

    def take(self) -> bytes:
        for segment in self._segments:
            if segment.start <= self._position < segment.end:
                data = segment.read(self._position, min(PIECE_SIZE, segment.end - self._position))
                if not data:
                    raise OSError(f"{segment.path} is shorter than what was written to it")
                self._position += len(data)
                return data
        return b""

    def announced(self, size: int) -> None:
        while len(self._segments) > 1 and self._segments[0].end <= min(size, self._position):
            self._segments.pop(0).path.unlink(missing_ok=True)

    def _close_writer(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1

    def close(self) -> None:
        """Close the files, which stay for a later process; idempotent."""
        self._close_writer()

    def remove(self) -> None:
        """Delete everything, an unreadable spool too; idempotent."""
        self.close()
        self._segments.clear()
        with suppress(FileNotFoundError):
            for path in self._directory.iterdir():
                path.unlink()
            self._directory.rmdir()


def _name(start: int) -> str:
    return f"{start:020d}"
