"""A resource as a seekable, read-only binary file object."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Protocol

from tailrace_common_api import KIBIBYTE, Status

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from tailrace_client_download_api._client import DataChunk
    from tailrace_common_api.blocking import BlockingIterator

ResourceFile = io.BufferedReader
"""What ``file()`` returns."""

# Bytes of one request where a file is read here and there.
_BUFFER_SIZE = 256 * KIBIBYTE


class _Readable(Protocol):
    """What the file needs of a resource."""

    def status(self) -> Status: ...

    def read(self, start: int = 0, end: int | None = None) -> bytes: ...

    def chunks(self, start: int = 0, end: int | None = None) -> BlockingIterator[DataChunk]: ...


def open_file(resource: _Readable) -> ResourceFile:
    """Open a resource as a buffered file."""
    return io.BufferedReader(_RawResource(resource), _BUFFER_SIZE)


class _RawResource(io.RawIOBase):
    """The unbuffered file.

    The first read at a place asks for just the bytes that it needs; the next one, if it goes on from there, opens a
    stream to the end, which further reads in order take from. A seek elsewhere ends the stream.
    """

    def __init__(self, resource: _Readable) -> None:
        super().__init__()
        self._resource = resource
        self._position = 0
        # Where the last read ended: a read that begins there is one in order. None before the first.
        self._ended_at: int | None = None
        self._stream: BlockingIterator[DataChunk] | None = None
        self._rest = memoryview(b"")
        self._look()

    def _look(self) -> None:
        status = self._resource.status()
        self._size = status.size
        self._growing = not status.state.terminal

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._check_open()
        if self._growing:
            self._look()
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        if whence not in origins:
            raise ValueError(f"whence {whence} is none of SEEK_SET, SEEK_CUR and SEEK_END")
        position = origins[whence] + offset
        if position < 0:
            raise ValueError(f"seek to {position}, before the start of the file")
        if position != self._position:
            self._end_stream()
            self._position = position
        return position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._check_open()
        target = memoryview(buffer).cast("B")
        wanted = min(len(target), self._size - self._position)
        if wanted <= 0:
            return 0
        if not self._rest:
            self._rest = memoryview(self._next_bytes(wanted))
        count = min(wanted, len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._position += count
        self._ended_at = self._position
        return count

    def readall(self) -> bytes:
        self._check_open()
        if self._position >= self._size:
            return b""
        start = self._position
        self._end_stream()
        data = self._resource.read(start, self._size)
        self._position = self._ended_at = start + len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            self._end_stream()
        super().close()

    def _next_bytes(self, wanted: int) -> bytes | bytearray | memoryview:
        if self._stream is None:
            if self._position != self._ended_at:
                return self._resource.read(self._position, self._position + wanted)
            self._stream = self._resource.chunks(self._position, self._size)
        chunk = next(self._stream, None)
        if chunk is None:
            # A seek while the resource grew has moved the end beyond that of the stream.
            self._stream = self._resource.chunks(self._position, self._size)
            chunk = next(self._stream)
        return chunk.data

    def _end_stream(self) -> None:
        self._rest = memoryview(b"")
        self._ended_at = None
        stream, self._stream = getattr(self, "_stream", None), None
        if stream is not None:
            # Not waited for: the collector, which closes dropped files, may run in the thread of the loop.
            stream.cancel()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed file")
