"""Sources of records that are functions; servers of the suite find them by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

made: list[int] = []
"""What :func:`ticks` has yielded in this process, in order; tests clear it."""
begun: list[int] = []
"""How many records each of its queries was to give, those included that have ended."""
ended: list[int] = []
"""After how many records each of its queries ended."""


async def ticks(count: int = 10, pause: float = 0.0) -> AsyncGenerator[dict[str, object], None]:
    """Yield ``count`` records, after a pause before each but the first."""
    number = 0
    begun.append(count)
    try:
        for number in range(count):
            if number and pause:
                await asyncio.sleep(pause)
            made.append(number)
            yield {"tick": number}
    finally:
        ended.append(number)


async def burst(count: int = 10) -> AsyncGenerator[dict[str, object], None]:
    """Yield ``count`` records at once, and be silent for ever."""
    begun.append(count)
    try:
        for number in range(count):
            made.append(number)
            yield {"tick": number}
        await asyncio.Event().wait()
    finally:
        ended.append(count)


async def failing(after: int = 3) -> AsyncGenerator[dict[str, object], None]:
    """Yield ``after`` records, and fail."""
    for number in range(after):
        yield {"number": number}
    raise RuntimeError("a secret of the source")
