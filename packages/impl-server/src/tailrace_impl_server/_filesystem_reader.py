"""Reading stored bytes and looking up block boundaries. Blocks, except for :func:`read_resident`."""

from __future__ import annotations

import os

from tailrace_common_api import DamagedBlock
from tailrace_impl_server._filesystem_files import ResourceFiles
from tailrace_impl_server._journal import (
    EMPTY_SPINE,
    RECORD_SIZE,
    JournalDamagedError,
    boundary_behind,
    record_offset,
    unpack_record,
)
from tailrace_impl_server._positional_io import read_up_to
from tailrace_server_api import BLOCK_SIZE, Boundary

# Linux only. Elsewhere nothing is known to be in memory, and all reads go through a thread.
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)

_WILL_NEED: int | None = getattr(os, "POSIX_FADV_WILLNEED", None)

NOTHING_BELOW = Boundary(0, 0, EMPTY_SPINE)
"""The boundary at the start of every resource."""


class ResidencyUnknownError(Exception):
    """The system or the filesystem cannot say what is in memory."""


def read_resident(files: ResourceFiles, start: int, end: int) -> bytearray | None:
    """Return bytes from ``start``, at most up to ``end``, that are in memory; ``None`` when the disk is needed.

    Raises:
        ResidencyUnknownError: Asking is of no use, now or later.
    """
    if _NOWAIT is None:
        raise ResidencyUnknownError
    buffer = bytearray(end - start)
    try:
        count = os.preadv(files.data, [buffer], start, _NOWAIT)
    except BlockingIOError:
        return None
    except OSError as error:
        raise ResidencyUnknownError from error
    if not count:
        return None
    if count < len(buffer):
        del buffer[count:]
    return buffer


def read_exactly(files: ResourceFiles, start: int, end: int) -> bytes:
    """Return bytes ``[start, end)``, and let the system fetch as many behind them: most readers go on there.

    Raises:
        DamagedBlock: The file ends before ``end``.
        OSError: The file cannot be read.
    """
    data = read_up_to(files.data, end - start, start)
    if len(data) < end - start:
        missing = start + len(data)
        raise DamagedBlock(
            offset=missing - missing % BLOCK_SIZE,
            problem=f"the stored bytes end at {missing}, below the announced size",
        )
    if _WILL_NEED is not None:
        # So that the next piece is found in memory, and needs no thread, while this one is on its way to the reader.
        os.posix_fadvise(files.data, end, end - start, _WILL_NEED)
    return data


def boundary_at(files: ResourceFiles, blocks: int) -> Boundary:
    """Return what is known of the first ``blocks`` blocks, all of which are full.

    Raises:
        DamagedBlock: The journal does not know.
        OSError: The journal cannot be read.
    """
    if not blocks:
        return NOTHING_BELOW
    data = read_up_to(files.journal, RECORD_SIZE, record_offset(blocks - 1))
    try:
        return boundary_behind(unpack_record(data, blocks - 1))
    except JournalDamagedError as error:
        raise DamagedBlock(offset=(blocks - 1) * BLOCK_SIZE, problem=str(error)) from error


def boundary_of_newline(files: ResourceFiles, newlines: int, blocks: int) -> Boundary:
    """Return the last of the boundaries ``0`` to ``blocks`` with fewer than ``newlines`` newlines below it.

    Raises:
        DamagedBlock: A record on the way is damaged.
        OSError: The journal cannot be read.
    """
    # Bisection; the boundary at `low` always has fewer newlines, the one behind `high` does not.
    low, high = 0, blocks
    found = NOTHING_BELOW
    while low < high:
        middle = (low + high + 1) // 2
        boundary = boundary_at(files, middle)
        if boundary.newlines < newlines:
            low, found = middle, boundary
        else:
            high = middle - 1
    return found
