"""Resource ids."""

from __future__ import annotations

import secrets
import time
from base64 import b32hexencode
from collections.abc import Callable

_TIME_BITS = 56
_RANDOM_BYTES = 13


class IdGenerator:
    """Makes ids that sort by creation time and cannot be guessed.

    An id is 56 bits of microseconds since the Unix epoch, strictly rising within the process whatever the clock does,
    then 104 random bits, in lower-case base32hex.
    """

    __slots__ = ("_clock", "_last")

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        """Read the time in nanoseconds since the Unix epoch from ``clock``."""
        self._clock = clock
        self._last = 0

    def next(self) -> tuple[str, float]:
        """Return a new id and the time in it, in seconds since the Unix epoch."""
        self._last = max(self._clock() // 1000, self._last + 1)
        value = self._last.to_bytes(_TIME_BITS // 8, "big") + secrets.token_bytes(_RANDOM_BYTES)
        return b32hexencode(value).decode("ascii").lower(), self._last / 1e6
