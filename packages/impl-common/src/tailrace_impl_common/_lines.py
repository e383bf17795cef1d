r"""Line arithmetic: counting and finding ``\n``, and which lines a request means.

A line ends behind its ``\n``. While a resource grows, its lines are its newlines; in a terminal state bytes behind the
last newline are one line more. Line numbers start at 0, ranges are half-open.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable

from tailrace_common_api import InvalidArgument, LineRangeNotSatisfiable
from tailrace_impl_common._buffers import Buffer

NEWLINE = 0x0A

# Counting goes through a copy of this many bytes at most; it stays in the processor's cache.
_PIECE = 128 * 1024
# Bytes at the start of a piece that tell whether its lines are short.
_SAMPLE = 512
# With more newlines than this in the sample, bytes.count is the fastest way on every interpreter.
_SHORT_LINES = _SAMPLE // 24
# Searching stops halving here; what is left is stepped through.
_STEP_THROUGH = 256
# So few newlines are stepped through wherever they are: finding one costs as little as counting a few hundred bytes.
_FEW_LINES = 64
# Before CPython 3.13 bytes.count compares byte by byte (3 to 4 GB/s whatever the lines are), while bytes.replace runs
# on memchr: 9 GB/s at 100 bytes a line, 30 and more at 1,000. From 3.13 on bytes.count is vectorised.
_COUNT_IS_VECTORISED = sys.version_info >= (3, 13)
# Fewer bytes are counted as fast without the library.
_LARGE = 2048
# What the library counts at once: it stays in the processor's cache, and memory of this size is not mapped anew.
_LARGEST = 64 * 1024
# 1 for a newline, 0 for every other byte: their sum is the number of newlines.
_ONE_IF_NEWLINE = bytes(byte == NEWLINE for byte in range(256))
_count_large: Callable[[memoryview], int] | None
try:
    # Extra `fast`. Importing it takes less than a millisecond and one MiB.
    from stringzilla import bytesum, translate
except ImportError:
    _count_large = None
else:

    def _count_large(piece: memoryview) -> int:
        # Two vectorised passes: its own count() goes from one newline to the next, and is slow where lines are short.
        total: int = bytesum(translate(piece, _ONE_IF_NEWLINE))
        return total


def count_newlines(buffer: Buffer | mmap.mmap, start: int = 0, end: int | None = None) -> int:
    r"""Count the bytes ``\n`` in ``buffer[start:end]``; ``end=None`` is its length.

    ``buffer`` is indexed by bytes: a memoryview must be contiguous and one-dimensional, with items of one byte.
    """
    if end is None:
        end = len(buffer)
    total = 0
    if _count_large is not None and end - start >= _LARGE:
        view = memoryview(buffer)
        for first in range(start, end, _LARGEST):
            total += _count_large(view[first : min(first + _LARGEST, end)])
        return total
    while start < end:
        stop = min(start + _PIECE, end)
        if isinstance(buffer, memoryview):
            total += _count(buffer[start:stop].tobytes())
        elif stop - start == len(buffer) and not isinstance(buffer, mmap.mmap):
            total += _count(buffer)
        else:
            total += _count(buffer[start:stop])
        start = stop
    return total


def _count(piece: bytes | bytearray) -> int:
    if _COUNT_IS_VECTORISED or len(piece) <= _SAMPLE or piece.count(b"\n", 0, _SAMPLE) > _SHORT_LINES:
        return piece.count(b"\n")
    return len(piece) - len(piece.replace(b"\n", b""))


def find_newline(block: Buffer | mmap.mmap, nth: int, start: int = 0) -> int:
    """Return the offset behind the ``nth`` newline of ``block[start:]``, counted from 1; ``start`` for ``nth=0``.

    That is where line ``nth`` starts if line 0 starts at ``start``. Counts each byte about once, then steps through
    the last few; or steps through all, where they are few.

    Raises:
        ValueError: The block has fewer newlines, or ``nth`` is negative.
    """
    if nth < 0:
        raise ValueError(f"newline {nth} of a block")
    if nth == 0:
        return start
    searched = block.tobytes() if isinstance(block, memoryview) else block
    low, high = start, len(searched)
    left = nth
    while left > _FEW_LINES and high - low > _STEP_THROUGH:
        middle = (low + high) // 2
        newlines = count_newlines(searched, low, middle)
        if newlines >= left:
            high = middle
        else:
            left -= newlines
            low = middle
    position = low
    while left:
        found = searched.find(b"\n", position, high)
        if found < 0:
            raise ValueError(f"newline {nth} of a block that has {nth - left}")
        position = found + 1
        left -= 1
    return position


def line_count(newlines: int, size: int, *, ends_with_newline: bool, terminal: bool) -> int:
    r"""Return the number of lines of a resource.

    Args:
        newlines: Bytes ``\n`` below ``size``.
        size: Size in bytes.
        ends_with_newline: Whether the byte at ``size - 1`` is ``\n``; not looked at when ``size`` is 0.
        terminal: Whether the resource has ended, so that an unterminated last line counts.
    """
    unterminated = size > 0 and not ends_with_newline
    return newlines + 1 if terminal and unterminated else newlines


def resolve_lines(first: int, count: int | None, lines: int) -> tuple[int, int]:
    """Return ``(first, end)`` of the lines that ``[first, first + count)`` means in a resource of ``lines`` lines.

    Args:
        first: First line, within ``[0, lines]``.
        count: Number of lines, cut at ``lines``; ``None`` for all from ``first`` on.
        lines: Lines that are readable.

    Raises:
        LineRangeNotSatisfiable: ``first`` or ``count`` is negative, or ``first`` is above ``lines``.
    """
    if first < 0 or first > lines or (count is not None and count < 0):
        raise LineRangeNotSatisfiable(first=first, count=count, lines=lines)
    return first, lines if count is None else min(first + count, lines)


def last_lines(count: int, lines: int) -> tuple[int, int]:
    """Return ``(first, end)`` of the last ``count`` of ``lines`` lines; all of them when there are fewer.

    Raises:
        InvalidArgument: ``count`` is negative.
    """
    if count < 0:
        raise InvalidArgument(field="last", problem=f"{count} lines; a number of lines is not negative")
    return max(0, lines - count), lines
