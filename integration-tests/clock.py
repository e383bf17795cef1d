"""Time that passes at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Clock:
    """The clock of an event loop, which a test can put forward: all timers that are due by then go off."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take over the clock of ``loop``."""
        self._time: Callable[[], float] = loop.time
        self._ahead = 0.0
        loop.time = self._now  # type: ignore[method-assign]  # the loop's timers ask this attribute

    def _now(self) -> float:
        return self._time() + self._ahead

    async def advance(self, seconds: float) -> None:
        """Let time pass and everything run that it brings about."""
        self._ahead += seconds
        # Timers that went off put callbacks into the next iterations.
        for _ in range(10):
            await asyncio.sleep(0)
