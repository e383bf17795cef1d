"""What the writers of one storage tell each other about a disk that holds up the event loop."""

from __future__ import annotations

_PAUSE = 20
"""Times the length of a stall for which the others leave writing to threads."""


class Stalls:
    """The last stall. Belongs to one event loop.

    A disk that cannot keep up holds whoever writes to it. Each writer would find out for itself, those that are new as
    well, and hold up everybody whom the loop serves: so one speaks for all.
    """

    __slots__ = ("until",)

    def __init__(self) -> None:
        """Begin without any."""
        self.until = 0.0
        """Time in seconds until which others than the writer that was held write nothing on the event loop."""

    def note(self, now: float, taken: float) -> float:
        """Take notice that a write has just held up the loop for ``taken`` seconds; return :attr:`until`."""
        self.until = now + _PAUSE * taken
        return self.until
