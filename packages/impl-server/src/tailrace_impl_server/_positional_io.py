"""Whole reads and writes at positions of open files, and what their errors mean. All of it blocks."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from pathlib import Path

from tailrace_common_api import Overloaded, StorageFailure, StorageFull
from tailrace_server_api import Buffer

MAX_BUFFERS = 512
"""Most buffers in one call; systems allow 1,024."""
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_PAUSES = (0.01, 0.05, 0.2, 0.5)
"""Pauses before a folder is opened again that could not be for want of a descriptor, in seconds."""
_RETRY_AFTER = 1.0


def sync_data(fd: int) -> None:
    """Wait until the bytes of a file and its size are on disk.

    Raises:
        OSError: They may not be.
    """
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def write_all(fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Write all bytes of ``buffers``, one behind the other, from ``offset`` on.

    Args:
        fd: An open file.
        buffers: At most :data:`MAX_BUFFERS`.
        offset: Where to begin, in bytes.

    Raises:
        OSError: Not everything could be written; how much was is not known.
    """
    total = sum(map(len, buffers))
    written = os.pwritev(fd, buffers, offset)
    while written < total:
        # A write is cut short by a full disk or a signal; the next attempt tells which.
        rest = memoryview(b"".join(buffers))[written:]
        count = os.pwrite(fd, rest, offset + written)
        if not count:
            raise OSError(errno.EIO, "a write stored nothing")
        written += count


def read_up_to(fd: int, length: int, offset: int) -> bytes:
    """Return ``length`` bytes from ``offset``, fewer only where the file ends.

    Raises:
        OSError: The file cannot be read.
    """
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk.

    Raises:
        OSError: The folder cannot be opened or synced.
    """
    fd = _open_folder(path)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open_folder(path: Path) -> int:
    for pause in _PAUSES:
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            if error.errno not in _NO_DESCRIPTORS:
                raise
        # A burst of connections is refused in a moment; what is about to be complete need not fail for it.
        time.sleep(pause)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def write_new_file(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a file that must not exist, and wait until its bytes are on disk.

    Args:
        path: Where it shall be.
        data: Its bytes.
        sync: Whether to wait.

    Raises:
        OSError: The file exists or cannot be written.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        if data:
            write_all(fd, [data], 0)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def storage_error(error: OSError, doing: str) -> StorageFull | StorageFailure | Overloaded:
    """Return the error that callers of a storage know for one of the system.

    Args:
        error: What the system said.
        doing: What failed, as in "cannot …".
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        # Whoever reads that is likely to have a disk of their own.
        return StorageFull(f"the server cannot {doing}: {error.strerror}")
    if error.errno in _NO_DESCRIPTORS:
        return Overloaded(what=f"file descriptors: cannot {doing}", retry_after=_RETRY_AFTER)
    return StorageFailure(f"cannot {doing}: {error.strerror or error}")
