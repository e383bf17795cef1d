"""`tailrace` for benchmarks only, whose resources are not stored: their bytes go round and round in one warm file.

A new file is written at whatever speed the memory of a virtual machine has at the moment, which differs by a factor of
five from one run to the next for a plain loop. Here the server does all of its work, journal included, but each write
of resource bytes lands in pages that are there already, of one file of 64 MiB. What was uploaded cannot be read back.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from floor import make_warm_file
from raw_socket import RING

from tailrace_impl_server._filesystem_files import ResourceFiles

Buffer = bytes | bytearray | memoryview


class WarmFile:
    """Takes the writes that go to the data of resources."""

    def __init__(self) -> None:
        path = make_warm_file()
        self._fd = os.open(path, os.O_RDWR)
        path.unlink()
        self._data: set[int] = set()
        self._pwrite = os.pwrite
        self._pwritev = os.pwritev
        self._open = ResourceFiles.__init__
        self._close = ResourceFiles.__del__

    def install(self) -> None:
        """Stand between the server and its files."""
        warm = self

        def open_files(files: ResourceFiles, folder: Path, *, writable: bool) -> None:
            warm._open(files, folder, writable=writable)
            if writable:
                warm._data.add(files.data)

        def close_files(files: ResourceFiles) -> None:
            warm._data.discard(getattr(files, "data", -1))
            warm._close(files)

        ResourceFiles.__init__ = open_files  # type: ignore[assignment,method-assign]
        ResourceFiles.__del__ = close_files  # type: ignore[method-assign]  # stands in for the method
        os.pwrite = self.pwrite  # type: ignore[assignment]  # the buffers that the server has
        os.pwritev = self.pwritev  # type: ignore[assignment]  # the same

    def pwrite(self, fd: int, data: Buffer, offset: int, /) -> int:
        """Write where the ring stands, if these are bytes of a resource."""
        if fd in self._data:
            fd, offset = self._fd, self._place(offset, len(data))
        return self._pwrite(fd, data, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int, flags: int = 0, /) -> int:
        """Write where the ring stands, if these are bytes of a resource."""
        if fd in self._data:
            fd, offset = self._fd, self._place(offset, sum(map(len, buffers)))
        return self._pwritev(fd, buffers, offset, flags)

    def _place(self, offset: int, length: int) -> int:
        place = offset % RING
        return place if place + length <= RING else 0


if __name__ == "__main__":
    from tailrace.__main__ import main

    WarmFile().install()
    main()
