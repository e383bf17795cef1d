"""Where to look for the records of a queue that are ready.

They are found by an index, in the order in which they are handed out. An entry of the index goes some time after its
record has been claimed: not before every transaction has ended that was running then. While one runs for long, be it
the query of a slow reader, every claim would have to step over the entries of all records that were claimed since.

So it is remembered up to where nothing was left, for each priority. A record may become ready there all the same:
given back, or fed by a transaction that took its number earlier and ended later. What this server itself was given
back is known, and the next search begins there. All else is looked for by a thorough search, from the beginning. Every
search is one as long as that is quick; when it is not, it gets a share of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Set

_SLOW_SECONDS = 0.02
"""Time from which on a thorough search is not for every claim."""
_SHARE = 5
"""A slow search is repeated after this many times the time it took, at the earliest."""
_AT_LEAST_EVERY = 1.0
"""Time after which a thorough search is made although nothing is known to have changed, in seconds."""
_PRIORITIES = 100
"""Most priorities that something is remembered for."""
_LOWEST, _HIGHEST = -32768, 32767

Place = tuple[int, int]
"""Rank, which is the negative priority, and number of a record."""


class Scan:
    """One search, from its beginning to the claim that comes of it."""

    def __init__(self, parts: list[tuple[Place, int]], *, thorough: bool, began: float) -> None:
        self.thorough = thorough
        """Whether everything is looked at."""
        self.found: list[Place] = []
        """The records that were found, in order."""
        self.began = began
        """When it began."""
        self.seconds: float | None = None
        """How long the first look has taken; ``None`` before it."""
        self._parts = parts

    def parts(self) -> tuple[list[int], list[int], list[int]]:
        """Return the parts that are left to look at: rank and number behind which each begins, rank before its end."""
        if self.found:
            last = self.found[-1]
            self._parts = [(max(low, last), end) for low, end in self._parts if end > last[0]]
        return (
            [low[0] for low, _ in self._parts],
            [low[1] for low, _ in self._parts],
            [end for _, end in self._parts],
        )


class ReadySearch:
    """Remembers where nothing is ready. Only one search at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing known; ``clock`` gives seconds."""
        self._clock = clock
        self._floors: dict[int, int] = {}
        self._cost = 0.0
        self._thorough_at = 0.0
        self._changed = True
        self._forced = False
        self._given_back: int | None = None

    def changed(self) -> None:
        """Note that records may have become ready anywhere."""
        self._changed = True

    def given_back(self, numbers: Iterable[int]) -> None:
        """Note that these records may be ready again: the next search finds them, however short it is."""
        if self._given_back is not None:
            numbers = (self._given_back, *numbers)
        self._given_back = min(numbers, default=None)

    def force(self) -> None:
        """Have the next search be a thorough one, whatever it takes: it is known to find something."""
        self._forced = True

    def begin(self) -> Scan:
        """Begin a search."""
        now = self._clock()
        wanted = self._changed or now >= self._thorough_at + _AT_LEAST_EVERY
        affordable = self._cost < _SLOW_SECONDS or now >= self._thorough_at + _SHARE * self._cost
        thorough = self._forced or self._cost < _SLOW_SECONDS or (wanted and affordable)
        lowest, self._given_back = self._given_back, None
        if thorough:
            self._floors.clear()
            self._changed = self._forced = False
            self._thorough_at = now
        elif lowest is not None:
            self._floors = {rank: min(floor, lowest) for rank, floor in self._floors.items()}
        parts: list[tuple[Place, int]] = []
        low: Place = (_LOWEST, 0)
        for rank, floor in sorted(self._floors.items()):
            parts.append((low, rank))
            low = (rank, floor - 1)
        parts.append((low, _HIGHEST))
        return Scan(parts, thorough=thorough, began=now)

    def looked(self, scan: Scan) -> None:
        """Note that the first records have been looked for."""
        if scan.seconds is None:
            scan.seconds = self._clock() - scan.began
            if scan.thorough:
                self._cost = scan.seconds

    def end(self, scan: Scan, claimed: Set[int]) -> float | None:
        """Remember where nothing is left when what was found and is in ``claimed`` has been claimed.

        Returns:
            In how many seconds a thorough search may find more; ``None``: this has been one.
        """
        left: set[int] = set()
        for rank, number in scan.found:
            if number not in claimed and rank not in left:
                left.add(rank)
                self._floors[rank] = number
            elif rank not in left:
                self._floors[rank] = number + 1
        if len(self._floors) > _PRIORITIES:
            self._floors.clear()
        if scan.thorough:
            return None
        return max(0.0, self._thorough_at + _SHARE * self._cost - self._clock())
