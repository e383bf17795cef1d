"""Finding the block that holds a newline, in records of blocks that count the newlines up to their ends.

Lines are of about equal length more often than not, so the first looks are where the rule of three says, and each takes
in the records around: one or two looks find a line among hundreds of millions. Where lines are not like that, halving
takes over, and the number of looks grows with the logarithm of the blocks.
"""

from __future__ import annotations

from collections.abc import Callable

from tailrace_common_api import DamagedBlock
from tailrace_impl_server._journal import (
    EMPTY_SPINE,
    RECORD_SIZE,
    JournalDamagedError,
    boundary_behind,
    unpack_record,
)
from tailrace_server_api import BLOCK_SIZE, Boundary, Buffer

NOTHING_BELOW = Boundary(0, 0, EMPTY_SPINE)
"""The boundary at the start of every resource."""

GUESSES = 3
"""Looks at where the block is to be expected, before the rest is halved."""
RECORDS_AROUND = 42
"""Records on each side that a look takes in, as many as a page of memory has in all."""

ReadRecords = Callable[[int, int], Buffer]
"""Takes the number of a block and a count, and returns the records of so many blocks from it on."""


def search_newline(newlines: int, blocks: int, read: ReadRecords) -> Boundary:
    """Return the last of the boundaries ``0`` to ``blocks`` with fewer than ``newlines`` newlines below it.

    Raises:
        DamagedBlock: A record on the way is damaged or missing.
    """
    # All blocks below `low` end with fewer newlines, no block from `high` on does.
    low, high, found = 0, blocks, NOTHING_BELOW
    looks, most = 0, 0
    while low < high:
        if looks == 0:
            # How many there are in all is what the rule of three needs.
            first, below = high - 1, high
        else:
            middle = (low + high) // 2
            if looks <= GUESSES:
                expected = (newlines - 1 - found.newlines) * (high - low) // max(1, most - found.newlines)
                middle = min(max(low, low + expected), high - 1)
            first, below = max(low, middle - RECORDS_AROUND), min(high, middle + RECORDS_AROUND + 1)
        looks += 1
        start = first
        records = memoryview(read(first, below - first))
        while first < below:
            middle = (first + below) // 2
            place = (middle - start) * RECORD_SIZE
            try:
                record = unpack_record(bytes(records[place : place + RECORD_SIZE]), middle)
            except JournalDamagedError as error:
                raise DamagedBlock(offset=middle * BLOCK_SIZE, problem=str(error)) from error
            if record.newlines < newlines:
                first = low = middle + 1
                found = boundary_behind(record)
            else:
                below = high = middle
                most = record.newlines
    return found
