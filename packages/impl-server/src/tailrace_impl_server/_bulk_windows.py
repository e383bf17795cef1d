"""How much all bulks of a server may have on their way and in memory together."""

from __future__ import annotations

_SHARE = 16
"""What is free is handed out in parts of this number, so that later bulks find something, too."""


class BulkWindows:
    """Gives each bulk its window, smaller ones when there are many bulks. Belongs to one event loop.

    All windows together are no larger than ``total``, but for one thing: no bulk gets less than ``least``, without
    which it could not send the largest record.
    """

    def __init__(self, *, total: int, largest: int, least: int) -> None:
        """Have ``total`` bytes to give, in windows of ``least`` to ``largest`` bytes."""
        self._total = total
        self._largest = largest
        self._least = least
        self._taken = 0

    @property
    def taken(self) -> int:
        """Bytes of the windows that were taken and not given back."""
        return self._taken

    def take(self) -> int:
        """Return the window of one more bulk, in bytes."""
        window = max(self._least, min(self._largest, (self._total - self._taken) // _SHARE))
        self._taken += window
        return window

    def give_back(self, window: int) -> None:
        """Have a window back whose bulk has ended."""
        self._taken -= window
