"""Reading stored bytes and looking up block boundaries. Blocks, except for what is called resident.

No byte is served unchecked. A read takes in whole blocks and hashes each of them where it lies: full blocks must have
the digests that the journal records, the open block the one of the announced state, which the caller takes before the
read begins. What lies behind that state is not looked at: it may be changing. The hash of what is read is made of these
digests where it starts with a block, so that nothing is hashed twice.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from tailrace_common_api import DamagedBlock
from tailrace_impl_common import ReusableBuffers, block_digest, chunk_hash
from tailrace_impl_server._filesystem_files import CheckedBlock, ResourceFiles
from tailrace_impl_server._filesystem_recovery import recover
from tailrace_impl_server._journal import (
    RECORD_SIZE,
    JournalDamagedError,
    Slot,
    boundary_behind,
    record_offset,
    unpack_record,
)
from tailrace_impl_server._newline_search import NOTHING_BELOW, search_newline
from tailrace_impl_server._positional_io import read_up_to
from tailrace_server_api import BLOCK_SIZE, Boundary, Buffer, Piece

_AT_ONCE = 7 * BLOCK_SIZE
"""Bytes that are read at once where it takes no waiting. They are hashed and sent from the second level of the
processor's cache, of which many have a MiB, and which holds other things, too."""

# Linux only. Elsewhere nothing is known to be in memory, and all reads go through a thread.
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)

_WILL_NEED: int | None = getattr(os, "POSIX_FADV_WILLNEED", None)


class ResidencyUnknownError(Exception):
    """The system or the filesystem cannot say what is in memory."""


def forget_cached(files: ResourceFiles) -> None:
    """Let the system drop what it holds of the files, so that the next read shows what is on disk.

    Raises:
        OSError: The system refuses.
    """
    if hasattr(os, "posix_fadvise"):
        for fd in (files.data, files.journal):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def announced_slot(files: ResourceFiles, end: int) -> Slot:
    """Return a state of a resource that nobody writes, under which at least ``end`` bytes are announced.

    Raises:
        DamagedBlock: No such state is proven by what is stored.
        StorageFailure: The journal is damaged.
        OSError: The files cannot be read.
    """
    slot = files.slot
    if slot is None or slot.snapshot.size < end:
        slot = files.slot = recover(files).slot
        if slot.snapshot.size < end:
            proven = slot.snapshot.size
            raise DamagedBlock(offset=proven - proven % BLOCK_SIZE, problem="the stored bytes do not prove their state")
    return slot


def read_resident(files: ResourceFiles, start: int, end: int, slot: Slot, buffers: ReusableBuffers) -> Piece | None:
    """Return bytes from ``start``, at most up to ``end``, that are in memory; ``None`` when the disk is needed.

    Of much that is asked for, it is as much as is best read at once, up to where a block ends.

    Args:
        files: The open files.
        start: First byte.
        end: End, at most the size of ``slot``.
        slot: The announced state, or an older one that reaches to ``end``.
        buffers: What to read into: what is returned may be a view of one of them, and keeps it from being used again.

    Raises:
        ResidencyUnknownError: Asking is of no use, now or later.
        DamagedBlock: The bytes at ``start`` are not what was written.
    """
    known = files.checked
    if known is not None and known.start <= start < known.start + len(known.data):
        end = min(end, known.start + len(known.data))
        data = known.data[start - known.start : end - known.start]
        return Piece(data, chunk_hash(data))
    if _NOWAIT is None:
        raise ResidencyUnknownError
    end = min(end, start - start % BLOCK_SIZE + _AT_ONCE)
    first, below = _blocks_around(start, end, slot)
    buffer = buffers.take(below - first)
    view = memoryview(buffer)[: below - first]
    records = bytearray(_records_length(first, below))
    try:
        if records and os.preadv(files.journal, [records], record_offset(first // BLOCK_SIZE), _NOWAIT) < len(records):
            return None
        count = os.preadv(files.data, [view], first, _NOWAIT)
    except BlockingIOError:
        return None
    except OSError as error:
        raise ResidencyUnknownError from error
    view = view.toreadonly()
    if count < len(view):
        # A block of which a part is not in memory cannot be checked: what counts is whole blocks.
        count -= count % BLOCK_SIZE
        if first + count <= start:
            return None
        view = view[:count]
    good, digests = _check(view, first, records, slot)
    if first + good <= start:
        # In a thread, so that the lowest damaged block is told whatever is in memory.
        return None
    return _part(files, view[:good], len(buffer), digests, first, start, min(end, first + good))


def read_exactly(files: ResourceFiles, start: int, end: int, slot: Slot) -> Piece:
    """Return bytes ``[start, end)``, and let the system fetch as many behind them: most readers go on there.

    Raises:
        DamagedBlock: A block is not what was written, or the file ends before ``end``.
        OSError: The files cannot be read.
    """
    first, below = _blocks_around(start, end, slot)
    records = read_up_to(files.journal, _records_length(first, below), record_offset(first // BLOCK_SIZE))
    buffer = read_up_to(files.data, below - first, first)
    good, digests = _check(buffer, first, records, slot)
    if first + good < end:
        raise _damage(buffer, first, good, records)
    if _WILL_NEED is not None:
        # So that the next piece is found in memory, and needs no thread, while this one is on its way to the reader.
        os.posix_fadvise(files.data, below, end - start, _WILL_NEED)
    return _part(files, buffer, len(buffer), digests, first, start, end)


def _blocks_around(start: int, end: int, slot: Slot) -> tuple[int, int]:
    """Return where the blocks that a range touches begin and end; the open block ends with what is announced."""
    return start - start % BLOCK_SIZE, min(end + -end % BLOCK_SIZE, slot.snapshot.size)


def _records_length(first: int, below: int) -> int:
    """Return the bytes of the records of the full blocks of a range of blocks."""
    return (below // BLOCK_SIZE - first // BLOCK_SIZE) * RECORD_SIZE


def _check(buffer: Buffer, first: int, records: Buffer, slot: Slot) -> tuple[int, list[bytes]]:
    """Return how many bytes of ``buffer``, read at ``first``, are proven before the first that is not, and digests.

    There is a digest for each block, and for what of the open one is announced.
    """
    view = memoryview(buffer)
    number = first // BLOCK_SIZE
    full = slot.snapshot.size // BLOCK_SIZE
    digests: list[bytes] = []
    position = record = 0
    while position < len(view):
        if number == full:
            open_block = view[position : position + slot.snapshot.size % BLOCK_SIZE]
            if block_digest(open_block) == slot.open_digest:
                digests.append(slot.open_digest)
                position += len(open_block)
            break
        block = view[position : position + BLOCK_SIZE]
        try:
            expected = unpack_record(bytes(records[record : record + RECORD_SIZE]), number).digest
        except JournalDamagedError:
            break
        if len(block) < BLOCK_SIZE or block_digest(block) != expected:
            break
        digests.append(expected)
        position += BLOCK_SIZE
        record += RECORD_SIZE
        number += 1
    return position, digests


def _damage(buffer: Buffer, first: int, good: int, records: Buffer) -> DamagedBlock:
    """Return the error for the block behind ``good`` proven bytes of ``buffer``, read at ``first``."""
    offset = first + good
    if len(buffer) < good + BLOCK_SIZE and good // BLOCK_SIZE < len(records) // RECORD_SIZE:
        return DamagedBlock(
            offset=offset, problem=f"the stored bytes end at {first + len(buffer)}, below the announced size"
        )
    record = bytes(records[good // BLOCK_SIZE * RECORD_SIZE :][:RECORD_SIZE])
    try:
        if record:
            unpack_record(record, offset // BLOCK_SIZE)
    except JournalDamagedError as error:
        return DamagedBlock(offset=offset, problem=str(error))
    return DamagedBlock(offset=offset, problem="the stored bytes do not have their digest")


def _part(
    files: ResourceFiles, checked: Buffer, held: int, digests: list[bytes], first: int, start: int, end: int
) -> Piece:
    """Return ``[start, end)`` of checked bytes, and keep the block in which it ends for who goes on there.

    A full one that was read alone is kept, too: it was read to find a line in it, which is asked for next.

    Args:
        files: The open files.
        checked: What was read at ``first`` and found to be good.
        held: Size of what a view of it keeps in memory.
        digests: Digests of its blocks.
        first: Where it begins, which is where a block does.
        start: First byte.
        end: End.
    """
    if end < first + len(checked) or len(checked) == BLOCK_SIZE:
        last = min(end - first, len(checked) - 1) // BLOCK_SIZE * BLOCK_SIZE
        files.checked = CheckedBlock(first + last, bytes(memoryview(checked)[last : last + BLOCK_SIZE]))
    whole = start == first and end == first + len(checked)
    part = checked if whole else memoryview(checked)[start - first : end - first]
    known: Sequence[bytes] = ()
    if start == first:
        known = digests if whole else digests[: len(part) // BLOCK_SIZE]
    # A view keeps all of the buffer: a small part is copied.
    return Piece(part if 2 * len(part) >= held else bytes(part), chunk_hash(part, known))


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

    def read(block: int, count: int) -> Buffer:
        return read_up_to(files.journal, count * RECORD_SIZE, record_offset(block))

    return search_newline(newlines, blocks, read)


def resident_boundary_of_newline(files: ResourceFiles, newlines: int, blocks: int) -> Boundary | None:
    """Return what :func:`boundary_of_newline` does if that is in memory; ``None`` when the disk is needed.

    Raises:
        ResidencyUnknownError: Asking is of no use, now or later.
    """
    if _NOWAIT is None:
        raise ResidencyUnknownError
    flags = _NOWAIT

    def read(block: int, count: int) -> Buffer:
        records = bytearray(count * RECORD_SIZE)
        if os.preadv(files.journal, [records], record_offset(block), flags) < len(records):
            raise BlockingIOError
        return records

    try:
        return search_newline(newlines, blocks, read)
    except (BlockingIOError, DamagedBlock):
        # What is damaged is told by the thread that looks again.
        return None
    except OSError as error:
        raise ResidencyUnknownError from error
