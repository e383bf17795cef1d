"""A bounded queue of bytes that overflows to disk."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from typing import BinaryIO

from tailrace_common_api import MEBIBYTE
from tailrace_impl_common._buffers import Buffer
from tailrace_impl_common._waiting_bytes import PIECE_SIZE, WaitingBytes

_MEMORY = MEBIBYTE
"""Bytes that wait in memory before any go to disk."""


class Spool(WaitingBytes):
    """The newest bytes wait in memory, and all before them in a file once there are too many.

    The file is used as a ring, so it never has more than ``max_bytes``. It has no name: it ends with the process,
    however that ends.
    """

    def __init__(self, directory: str | os.PathLike[str], max_bytes: int) -> None:
        """Prepare a spool; nothing is made yet.

        Args:
            directory: Folder of the file; made if it is not there.
            max_bytes: Most bytes that wait, in memory and on disk.
        """
        self._directory = directory
        self._capacity = max_bytes
        self._in_memory = min(_MEMORY, max_bytes // 2)
        self._file: BinaryIO | None = None
        # The part on disk, as numbers of bytes since the file was empty.
        self._start = self._end = 0
        self._recent: deque[bytes] = deque()
        self._recent_size = 0

    def open(self) -> None:
        os.makedirs(self._directory, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115 - open until close()

    @property
    def size(self) -> int:
        return self._end - self._start + self._recent_size

    @property
    def on_disk(self) -> int:
        """Bytes that wait on disk."""
        return self._end - self._start

    def fits(self, length: int) -> bool:
        return not self.size or self.size + length <= self._capacity

    def add_blocks(self, length: int) -> bool:
        return self._recent_size + length > self._in_memory

    @property
    def take_blocks(self) -> bool:
        return self._end > self._start

    def add(self, data: Buffer) -> None:
        if self.add_blocks(len(data)) and self._recent and self.size <= self._capacity:
            self._spill()
        self._recent.append(bytes(data))
        self._recent_size += len(data)

    def _spill(self) -> None:
        data = memoryview(b"".join(self._recent))
        position = self._end
        while data:
            place = position % self._capacity
            written = os.pwrite(self._descriptor(), data[: self._capacity - place], place)
            data = data[written:]
            position += written
        self._end = position
        self._recent.clear()
        self._recent_size = 0

    def take(self) -> bytes:
        if self._end == self._start:
            return self._take_recent()
        place = self._start % self._capacity
        wanted = min(self._end - self._start, self._capacity - place, PIECE_SIZE)
        data = os.pread(self._descriptor(), wanted, place)
        if not data:
            raise OSError("the spool file is shorter than what was written to it")
        self._start += len(data)
        if self._start == self._end:
            self._start = self._end = 0
            os.ftruncate(self._descriptor(), 0)
        return data

    def _take_recent(self) -> bytes:
        taken: list[bytes] = []
        size = 0
        while self._recent and (not taken or size + len(self._recent[0]) <= PIECE_SIZE):
            taken.append(self._recent.popleft())
            size += len(taken[-1])
        self._recent_size -= size
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def _descriptor(self) -> int:
        if self._file is None:
            raise OSError("the spool is closed")
        return self._file.fileno()

    def announced(self, size: int) -> None:
        """Do nothing: what was taken is not kept."""

    def close(self) -> None:
        self._recent.clear()
        self._recent_size = 0
        self._start = self._end = 0
        if self._file is not None:
            self._file.close()
            self._file = None
