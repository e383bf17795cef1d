"""How large chunks to readers may be while many of them do not take theirs."""

from __future__ import annotations

from tailrace_common_api import KIBIBYTE, MEBIBYTE

SMALLEST_CHUNK = 64 * KIBIBYTE
"""Bytes of a chunk while the budget is used up: below that, the cost of a message takes over."""


class SendBudget:
    """Counts the bytes of chunks that were handed to a transport and not taken yet. Belongs to one event loop.

    A reader that takes nothing holds one chunk, whatever its size; thousands of them hold thousands. None may keep the
    others waiting, so nobody waits here: chunks become small instead while too many bytes are on their way.
    """

    __slots__ = ("_limit", "in_flight")

    def __init__(self, limit: int = 128 * MEBIBYTE) -> None:
        """Start with nothing on its way.

        Args:
            limit: Bytes on their way from which on chunks are small; what is on its way stays below it and
                :data:`SMALLEST_CHUNK` for each reader.
        """
        self._limit = limit
        self.in_flight = 0
        """Bytes on their way; kept by who sends."""

    def chunk_size(self, best: int) -> int:
        """Return the size of the next chunk, where ``best`` bytes are best for the transport."""
        if self.in_flight + best <= self._limit:
            return best
        return min(best, SMALLEST_CHUNK)
