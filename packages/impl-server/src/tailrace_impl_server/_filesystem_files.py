"""The open files of one resource, and a bounded number of them kept open for reading. Opening and closing block."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from tailrace_impl_server._journal import Slot

DATA = "data"
JOURNAL = "journal"
DESCRIPTION = "resource.json"


class CheckedBlock(NamedTuple):
    """Bytes of one block that were read and found to be what was written."""

    start: int
    """Where the block begins."""
    data: bytes
    """The block, or as much of it as was announced."""


class ResourceFiles:
    """Descriptors of data and journal; both are closed when nobody refers to the object any more.

    Whoever reads or writes holds a reference for as long, so that no descriptor is ever used after it was closed and
    its number went to another file.
    """

    __slots__ = ("checked", "data", "folder", "journal", "slot")

    def __init__(self, folder: Path, *, writable: bool) -> None:
        """Open the files in ``folder``.

        Raises:
            OSError: They cannot be opened.
        """
        flags = os.O_RDWR if writable else os.O_RDONLY
        self.folder = folder
        self.journal = -1
        self.slot: Slot | None = None
        """An announced state, not necessarily the newest; ``None`` while none is known."""
        self.checked: CheckedBlock | None = None
        """The block in which the last read ended; announced bytes never change."""
        self.data = os.open(folder / DATA, flags)
        self.journal = os.open(folder / JOURNAL, flags)

    def __del__(self) -> None:
        # Opening may have failed halfway.
        for fd in (getattr(self, "data", -1), getattr(self, "journal", -1)):
            if fd >= 0:
                os.close(fd)


class FileCache:
    """The most recently used open resources, by id. Belongs to one event loop."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._open: OrderedDict[str, ResourceFiles] = OrderedDict()

    def get(self, id: str) -> ResourceFiles | None:
        """Return the open files of a resource."""
        files = self._open.get(id)
        if files is not None:
            self._open.move_to_end(id)
        return files

    def put(self, id: str, files: ResourceFiles) -> None:
        """Keep files open, at the expense of those that were not used for longest."""
        self._open[id] = files
        self._open.move_to_end(id)
        if len(self._open) > self._capacity:
            self._open.popitem(last=False)

    def pop(self, id: str) -> ResourceFiles | None:
        """Forget the files of a resource; they are closed when the caller drops what is returned."""
        return self._open.pop(id, None)

    def clear(self) -> None:
        """Forget all files."""
        self._open.clear()
